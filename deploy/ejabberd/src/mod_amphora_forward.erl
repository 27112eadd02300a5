%%% What is sent on: messages for one user go to another, or those for all of this host to a
%%% gateway's domain. The node says which, in its greeting; what it said last holds while it is away,
%%% and over a restart.
%%%
%%% A message that is sent on is not delivered here: no session, archive or push of the recipient
%%% sees it. It bears a mark with the recipients it was sent on for, so that it goes round no loop.
-module(mod_amphora_forward).

-export([start/1, greeted/2, any/1, target/3, redirect/3, redirect/4]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% A message is sent on so often, over all servers; more than two or three is a loop that grows.
-define(MAX_TIMES, 8).
-define(NS_PUBSUB_EVENTS, <<"http://jabber.org/protocol/pubsub#event">>).

-type entries() :: {Users :: #{Bare :: binary() => Bare :: binary()}, Gateway :: binary() | none}.

-define(NONE, {#{}, none}).

%%% ------------------------------------------------------------------ entries

-spec entries(binary()) -> entries().
entries(Host) -> persistent_term:get({?MODULE, Host}, ?NONE).

%% Is anything sent on at all? Asked for every message.
-spec any(binary()) -> boolean().
any(Host) -> entries(Host) =/= ?NONE.

%% Restores the entries. Called once, before any worker starts.
-spec start(binary()) -> ok.
start(Host) ->
    Entries =
        case file:consult(path(Host)) of
            {ok, [{#{}, _} = Kept]} ->
                Kept;
            {error, enoent} ->
                ?NONE;
            Wrong ->
                ?LOG_ERROR("Amphora: what ~ts sends on can't be read from ~ts, until a node says it: ~p",
                           [Host, path(Host), Wrong]),
                ?NONE
        end,
    persistent_term:put({?MODULE, Host}, Entries).

path(Host) -> filename:join([mnesia:system_info(directory), "amphora", Host, "forward.term"]).

save(Host, Entries) ->
    Path = path(Host),
    New = iolist_to_binary([Path, ".new"]),
    ok = filelib:ensure_dir(Path),
    case file:write_file(New, io_lib:format("%% What ~ts sends on, as a node said last.~n~p.~n", [Host, Entries])) of
        ok -> file:rename(New, Path);
        {error, _} = Error -> Error
    end.

%% Takes the entries out of a greeting, in place of those before.
-spec greeted(binary(), #xmlel{}) -> ok.
greeted(Host, #xmlel{children = Children}) ->
    Entries = lists:foldl(fun(Child, Acc) -> add_entry(Host, Child, Acc) end, ?NONE, Children),
    case entries(Host) of
        Entries -> ok;
        _ -> take(Host, Entries)
    end.

take(Host, {Users, Gateway} = Entries) ->
    persistent_term:put({?MODULE, Host}, Entries),
    case save(Host, Entries) of
        ok -> ok;
        {error, Reason} ->
            ?LOG_ERROR("Amphora: what ~ts sends on can't be kept over a restart: ~ts: ~ts",
                       [Host, path(Host), file:format_error(Reason)])
    end,
    ?LOG_INFO("Amphora: ~ts: Messages for ~b users are sent on, for all others ~ts",
              [Host, map_size(Users), case Gateway of none -> <<"not">>; _ -> [<<"to ">>, Gateway] end]).

add_entry(Host, #xmlel{name = Name} = El, {Users, Gateway}) when Name =:= <<"forward">>; Name =:= <<"gateway">> ->
    case {Name, address(<<"from">>, El), address(<<"to">>, El)} of
        {<<"forward">>, {FromUser, Host, <<>>}, {ToUser, ToHost, <<>>}} when FromUser =/= <<>>, ToUser =/= <<>> ->
            {Users#{bare(FromUser, Host) => bare(ToUser, ToHost)}, Gateway};
        {<<"gateway">>, {<<>>, Host, <<>>}, {<<>>, Domain, <<>>}} ->
            {Users, Domain};
        _ ->
            ?LOG_WARNING("Amphora: the node wants ~ts sent on to ~ts, which is left out",
                         [mod_amphora_xml:attr(<<"from">>, El), mod_amphora_xml:attr(<<"to">>, El)]),
            {Users, Gateway}
    end;
add_entry(_Host, _Other, Entries) ->
    Entries.

address(Name, El) ->
    try jid:tolower(jid:decode(mod_amphora_xml:attr(Name, El)))
    catch _:_ -> none
    end.

bare(User, Host) -> <<User/binary, $@, Host/binary>>.

entry(Host, Bare) ->
    case entries(Host) of
        {#{Bare := To}, _} -> {<<"forwards-to">>, To};
        {_, none} -> none;
        {_, Gateway} -> {<<"gateway">>, bare(hd(binary:split(Bare, <<"@">>)), Gateway)}
    end.

%%% ------------------------------------------------------------------ what is sent on

%% How a message is sent on (as the attribute of an intercept is called) and where. One that was
%% sent on for this recipient before stays: it came round.
-spec target(binary(), binary(), message()) -> none | {binary(), binary()}.
target(Host, Bare, Message) ->
    case entry(Host, Bare) of
        none -> none;
        Entry ->
            case is_own(Message) orelse lists:member(Bare, marks(Message)) of
                true -> none;
                false -> Entry
            end
    end.

%% Some of what comes for a user is of his sessions here, and nobody else's: answers to what he
%% sent, what a room says to an occupant, what he has subscribed to.
is_own(#message{type = Type}) when Type =:= error; Type =:= groupchat -> true;
is_own(Message) ->
    mod_amphora_xml:notice_status(Message) =/= undefined orelse has(<<"x">>, ?NS_MUC_USER, Message)
        orelse has(<<"event">>, ?NS_PUBSUB_EVENTS, Message) orelse mod_amphora_xml:is_from_room(Message).

has(Name, NS, #message{sub_els = Els}) ->
    lists:any(fun(El) -> is(Name, NS, El) end, Els).

is(Name, NS, El) -> xmpp:get_name(El) =:= Name andalso xmpp:get_ns(El) =:= NS.

%%% ------------------------------------------------------------------ marks

%% For whom a message was sent on before.
marks(#message{sub_els = Els}) ->
    [mod_amphora_xml:attr(<<"jid">>, For)
     || #xmlel{name = <<"redirected">>} = El <- Els, is(<<"redirected">>, ?NS_INTERCEPT, El),
        #xmlel{name = <<"for">>} = For <- El#xmlel.children].

mark(Bare, #message{sub_els = Els} = Message) ->
    For = #xmlel{name = <<"for">>, attrs = [{<<"jid">>, Bare}]},
    case lists:splitwith(fun(El) -> not is(<<"redirected">>, ?NS_INTERCEPT, El) end, Els) of
        {Before, [#xmlel{children = Children} = Mark | After]} ->
            Message#message{sub_els = Before ++ [Mark#xmlel{children = Children ++ [For]} | After]};
        {_, []} ->
            Message#message{sub_els = Els ++ [mod_amphora_xml:el(<<"redirected">>, [], [For])]}
    end.

%%% ------------------------------------------------------------------ sending on

%% Names the sender in a message that can't bear his address (XEP-0033). A name that is there
%% already is anybody's.
name_sender(From, #message{sub_els = Els} = Message) ->
    {Lists, Others} = lists:partition(fun(El) -> is(<<"addresses">>, ?NS_ADDRESS, El) end, Els),
    Kept = [Child || List <- Lists, Child <- (xmpp:encode(List))#xmlel.children, not is_ofrom(Child)],
    Sender = #xmlel{name = <<"address">>, attrs = [{<<"type">>, <<"ofrom">>}, {<<"jid">>, jid:encode(From)}]},
    Message#message{sub_els = Others ++ [#xmlel{name = <<"addresses">>, attrs = [{<<"xmlns">>, ?NS_ADDRESS}],
                                                children = Kept ++ [Sender]}]}.

is_ofrom(#xmlel{name = <<"address">>} = El) -> mod_amphora_xml:attr(<<"type">>, El) =:= <<"ofrom">>;
is_ofrom(_) -> false.

-spec redirect(binary(), binary(), message()) -> boolean().
redirect(Host, Bare, Message) -> redirect(Host, Bare, Message, false).

%% Sends a message on, if it is to be: true if it was, or if its sender got an error for it. Called
%% in place of its delivery, behind the block list. `Silent`: nothing goes back to its sender.
-spec redirect(binary(), binary(), message(), boolean()) -> boolean().
redirect(Host, Bare, Message, Silent) ->
    case any(Host) andalso target(Host, Bare, Message) of
        {_, To} ->
            case length(marks(Message)) >= ?MAX_TIMES of
                true -> refuse(Message, Silent);
                false -> send_on(Host, Bare, jid:decode(To), Message, Silent)
            end,
            true;
        _ ->
            false
    end.

refuse(_Message, true) -> ok;
refuse(Message, false) ->
    Error = xmpp:err_policy_violation(<<"The message was sent on too often">>, <<"en">>),
    mod_amphora_xml:bounce(Message, Error#stanza_error{type = cancel}).

%% Its rules name the sender, and the address that he wrote to (section 4.1 of XEP-0079).
send_on(Host, Bare, #jid{lserver = Domain} = To, #message{from = From} = Message, Silent) ->
    #message{sub_els = Els} = Addressed = mod_amphora_xml:address_rules(Message),
    Ids = mod_amphora_xml:stanza_ids(Addressed, Bare),
    Marked = mark(Bare, Addressed#message{to = To, sub_els = Els -- Ids, meta = #{}}),
    ToHere = ejabberd_router:is_my_route(Domain),
    Sent = case ToHere orelse ejabberd_router:is_my_route(From#jid.lserver) of
               true -> Marked;
               %% No other server lets this one speak for a third.
               false -> (name_sender(From, Marked))#message{from = jid:decode(Bare)}
           end,
    case ToHere of
        true -> ejabberd_router:route(silence(Silent, Sent));
        false -> mod_amphora_edge:relay(Host, Sent, Silent)
    end.

silence(true, Message) -> xmpp:put_meta(Message, amphora_silent, true);
silence(false, Message) -> Message.
