%%% The commands (XEP-0050) with which administrators ask a node for a broadcast, and about those
%%% that there are. An administrator is whom the access rule `configure` allows, as for the commands
%%% of mod_configure. His session waits while the node is asked, some seconds at most.
-module(mod_amphora_command).

-export([hooks/1, items/4, command/4, identity/5, features/5]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

-define(SEND, <<"urn:amphora:broadcast:send">>).
-define(LIST, <<"urn:amphora:broadcast:list">>).
-define(RATE, 50). % messages a second
-define(MAX_RATE, 1000).
-define(MAX_EXPIRY, 366 * 86400). % seconds

-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) ->
    [
        {adhoc_local_items, ?MODULE, items, 50},
        {adhoc_local_commands, ?MODULE, command, 50},
        %% behind mod_adhoc's (99), which knows only nodes of its own
        {disco_local_identity, ?MODULE, identity, 100},
        {disco_local_features, ?MODULE, features, 100}
    ].

is_admin(Host, From) -> acl:match_rule(Host, configure, From) =:= allow.

is_ours(Node) -> Node =:= ?SEND orelse Node =:= ?LIST.

name(?SEND) -> <<"Send a broadcast">>;
name(?LIST) -> <<"Broadcasts">>.

%%% ------------------------------------------------------------------ hooks

items(Acc, From, #jid{lserver = Host}, _Lang) ->
    case is_admin(Host, From) of
        true ->
            Before = case Acc of {result, Items} -> Items; _ -> [] end,
            Ours = [#disco_item{jid = jid:make(Host), node = Node, name = name(Node)} || Node <- [?SEND, ?LIST]],
            {result, Before ++ Ours};
        false ->
            Acc
    end.

identity(Acc, From, #jid{lserver = Host}, Node, _Lang) ->
    case is_ours(Node) andalso is_admin(Host, From) of
        true -> [#identity{category = <<"automation">>, type = <<"command-node">>, name = name(Node)} | Acc];
        false -> Acc
    end.

features(Acc, From, #jid{lserver = Host}, Node, _Lang) ->
    case is_ours(Node) andalso is_admin(Host, From) of
        true -> {result, [?NS_COMMANDS, ?NS_XDATA]};
        false -> Acc
    end.

command(Acc, From, #jid{lserver = Host}, #adhoc_command{node = Node, action = Action, lang = Lang} = Request) ->
    case is_ours(Node) of
        false ->
            Acc;
        true ->
            case is_admin(Host, From) of
                false -> {error, xmpp:err_forbidden(<<"Only administrators may do this">>, Lang)};
                true when Action =:= cancel -> respond(Request, canceled, [], undefined);
                true -> protect(fun() -> run(Node, Host, From, Request) end, Lang)
            end
    end.

%% What goes wrong is told to the administrator and the log.
protect(Run, Lang) ->
    try Run()
    catch
        Class:Reason:Stack ->
            ?LOG_ERROR("Amphora: while carrying out a command about broadcasts: ~p", [{Class, Reason, Stack}]),
            {error, xmpp:err_internal_server_error(<<"See the server's log">>, Lang)}
    end.

respond(Request, Status, Notes, Form) ->
    Actions = case Status of
                  executing -> #adhoc_actions{execute = complete, complete = true};
                  _ -> undefined
              end,
    xmpp_util:make_adhoc_response(Request, #adhoc_command{
        status = Status, actions = Actions, xdata = Form, sid = session(Request),
        notes = [#adhoc_note{type = Type, data = Text} || {Type, Text} <- Notes]
    }).

session(#adhoc_command{sid = <<>>}) -> p1_rand:get_string();
session(#adhoc_command{sid = Sid}) -> Sid.

run(?SEND, Host, From, Request) -> send(Host, From, Request);
run(?LIST, Host, From, Request) -> list(Host, From, Request).

%%% ------------------------------------------------------------------ sending one

send(Host, _From, #adhoc_command{xdata = undefined, sid = <<>>} = Request) ->
    respond(Request, executing, [], send_form(Host, defaults()));
send(Host, _From, #adhoc_command{xdata = undefined} = Request) ->
    again(Request, send_form(Host, defaults()), <<"The form was not filled in">>);
send(Host, From, #adhoc_command{xdata = Data} = Request) ->
    Fields = values(Data),
    case flaws(Host, Fields) of
        [] -> start(Host, From, Fields, Request);
        Flaws -> again(Request, send_form(Host, Fields), iolist_to_binary(lists:join("\n", Flaws)))
    end.

again(Request, Form, Text) -> respond(Request, executing, [{error, Text}], Form).

defaults() ->
    #{<<"to">> => [<<"everyone">>], <<"expire">> => [<<"86400">>], <<"rate">> => [integer_to_binary(?RATE)]}.

send_form(Host, Fields) ->
    Field = fun(Var, Type, Label) -> field(Var, Type, Label, Fields) end,
    #xdata{
        type = form,
        title = <<"Send a broadcast">>,
        instructions = [<<"Each recipient gets the message once: at once, or when they come back before it expires.">>],
        fields = [
            #xdata_field{var = <<"FORM_TYPE">>, type = hidden, values = [?SEND]},
            (Field(<<"to">>, 'list-single', label(<<"to">>)))#xdata_field{
                required = true,
                options = [
                    #xdata_option{label = <<"Everyone on ", Host/binary>>, value = <<"everyone">>},
                    #xdata_option{label = <<"The recipients below">>, value = <<"list">>}
                ]},
            (Field(<<"recipients">>, 'jid-multi', label(<<"recipients">>)))#xdata_field{
                desc = <<"Users of ", Host/binary, ", if not everyone">>},
            Field(<<"subject">>, 'text-single', label(<<"subject">>)),
            (Field(<<"body">>, 'text-multi', label(<<"body">>)))#xdata_field{required = true},
            (Field(<<"expire">>, 'text-single', label(<<"expire">>)))#xdata_field{
                required = true, desc = <<"In so many seconds, or at a time in UTC, as 2026-12-31T18:00:00Z">>},
            Field(<<"rate">>, 'text-single', label(<<"rate">>))
        ]
    }.

field(Var, Type, Label, Fields) ->
    #xdata_field{var = Var, type = Type, label = Label, values = maps:get(Var, Fields, [])}.

label(<<"to">>) -> <<"To">>;
label(<<"recipients">>) -> <<"Recipients">>;
label(<<"subject">>) -> <<"Subject">>;
label(<<"body">>) -> <<"Message">>;
label(<<"expire">>) -> <<"Expires">>;
label(<<"rate">>) -> <<"Messages a second">>.

values(#xdata{fields = Fields}) ->
    maps:from_list([{Var, filled(Var, Values)} || #xdata_field{var = Var, values = Values} <- Fields]).

filled(<<"body">>, Lines) -> Lines;
filled(_Var, Values) -> [Value || Value <- Values, Value =/= <<>>].

first(Var, Fields) ->
    case maps:get(Var, Fields, []) of
        [Value | _] -> Value;
        [] -> <<>>
    end.

text(Var, Fields) -> iolist_to_binary(lists:join("\n", maps:get(Var, Fields, []))).

%% What is wrong with the fields, each under its label.
flaws(Host, Fields) ->
    Vars = [<<"to">>, <<"recipients">>, <<"body">>, <<"expire">>, <<"rate">>],
    Wrong = lists:append([flaw(Var, Host, Fields) || Var <- Vars]),
    [[label(Var), ": ", Text] || {Var, Text} <- Wrong].

flaw(<<"to">> = Var, _Host, Fields) ->
    case first(Var, Fields) of
        To when To =:= <<"everyone">>; To =:= <<"list">> -> [];
        _ -> [{Var, <<"must be everyone or list">>}]
    end;
flaw(<<"recipients">> = Var, Host, Fields) ->
    Recipients = maps:get(Var, Fields, []),
    case {first(<<"to">>, Fields), Recipients} of
        {<<"list">>, []} -> [{Var, <<"Required value missing">>}];
        {<<"everyone">>, [_ | _]} -> [{Var, <<"must be empty if the message is to everyone">>}];
        _ -> [{Var, <<Jid/binary, " is no user of ", Host/binary>>} || Jid <- Recipients, not is_user(Jid, Host)]
    end;
flaw(<<"body">> = Var, _Host, Fields) ->
    case re:run(text(Var, Fields), "\\S") of
        nomatch -> [{Var, <<"Required value missing">>}];
        _ -> []
    end;
flaw(<<"expire">> = Var, _Host, Fields) ->
    case expiry(first(Var, Fields)) of
        {ok, _} -> [];
        {error, Text} -> [{Var, Text}]
    end;
flaw(<<"rate">> = Var, _Host, Fields) ->
    case rate(Fields) of
        error -> [{Var, iolist_to_binary(io_lib:format("must be a number from 1 to ~b", [?MAX_RATE]))}];
        _ -> []
    end.

is_user(Text, Host) ->
    try jid:decode(Text) of
        #jid{luser = User, lserver = Host, lresource = <<>>} -> User =/= <<>>;
        _ -> false
    catch _:_ -> false
    end.

rate(Fields) ->
    case first(<<"rate">>, Fields) of
        <<>> -> ?RATE;
        Text ->
            try binary_to_integer(Text) of
                N when N >= 1, N =< ?MAX_RATE -> N;
                _ -> error
            catch error:_ -> error
            end
    end.

%% The time that the field says, or what is wrong with it.
expiry(<<>>) -> {error, <<"Required value missing">>};
expiry(Text) ->
    Now = os:system_time(second),
    try binary_to_integer(Text) of
        Seconds when Seconds >= 1, Seconds =< ?MAX_EXPIRY -> {ok, utc(Now + Seconds)};
        _ -> {error, <<"must be 1 second to 366 days from now">>}
    catch error:_ -> time(Text, Now)
    end.

time(Text, Now) ->
    case re:run(Text, "^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d+)?(Z|[+-]\\d\\d:\\d\\d)$") of
        nomatch -> {error, <<"must be a number of seconds, or a time as 2026-12-31T18:00:00Z">>};
        _ ->
            try calendar:rfc3339_to_system_time(binary_to_list(Text)) of
                At when At =< Now -> {error, <<"is in the past">>};
                At -> {ok, utc(At)}
            catch error:_ -> {error, <<"must be a number of seconds, or a time as 2026-12-31T18:00:00Z">>}
            end
    end.

utc(Seconds) -> list_to_binary(calendar:system_time_to_rfc3339(Seconds, [{offset, "Z"}])).

start(Host, From, Fields, Request) ->
    {ok, Expires} = expiry(first(<<"expire">>, Fields)),
    Everyone = [{<<"everyone">>, <<"true">>} || first(<<"to">>, Fields) =:= <<"everyone">>],
    Rate = integer_to_binary(rate(Fields)),
    Attrs = [{<<"action">>, <<"start">>}, {<<"expires">>, Expires}, {<<"rate">>, Rate}] ++ Everyone,
    Children = [cdata(<<"subject">>, Subject) || Subject <- [text(<<"subject">>, Fields)], Subject =/= <<>>] ++
        [cdata(<<"body">>, text(<<"body">>, Fields))] ++
        [#xmlel{name = <<"recipient">>, attrs = [{<<"jid">>, Jid}]} || Jid <- maps:get(<<"recipients">>, Fields, [])],
    case one(mod_amphora_broadcast:ask(Host, set, Attrs, Children)) of
        {ok, Started} ->
            ?LOG_INFO("Amphora: ~ts started broadcast ~ts to ~ts",
                      [jid:encode(From), mod_amphora_xml:attr(<<"id">>, Started), first(<<"to">>, Fields)]),
            respond(Request, completed, [{info, <<"Broadcast ", (progress(Started))/binary>>}], undefined);
        {error, Why} ->
            again(Request, send_form(Host, Fields), Why)
    end.

cdata(Name, Text) -> #xmlel{name = Name, children = [{xmlcdata, Text}]}.

one({ok, Answer}) ->
    case mod_amphora_xml:children(<<"broadcast">>, ?NS_INTERCEPT, Answer) of
        [Broadcast | _] -> {ok, Broadcast};
        [] -> {error, <<"The node gave no answer">>}
    end;
one({error, _} = Error) ->
    Error.

progress(El) ->
    Text = fun(Name) -> case mod_amphora_xml:attr(Name, El) of undefined -> <<"?">>; Value -> Value end end,
    Number = fun(Name) -> try binary_to_integer(Text(Name)) catch error:_ -> 0 end end,
    Trouble = fxml:get_tag_cdata(El),
    iolist_to_binary([
        Text(<<"id">>), ": ", Text(<<"state">>), ", to ",
        case Text(<<"everyone">>) of <<"true">> -> "everyone"; _ -> "a list" end, ", ",
        integer_to_binary(Number(<<"total">>) - Number(<<"left">>)), " of ", integer_to_binary(Number(<<"total">>)),
        case Text(<<"counting">>) of <<"true">> -> " counted"; _ -> "" end, " settled (",
        lists:join(", ", [[Text(Name), " ", Name] || Name <- [<<"delivered">>, <<"stored">>, <<"discarded">>,
                                                              <<"expired">>, <<"cancelled">>]]),
        "), until ", Text(<<"expires">>),
        case Trouble of <<>> -> ""; _ -> ["; ", Trouble] end
    ]).

%%% ------------------------------------------------------------------ those that there are

list(Host, _From, #adhoc_command{xdata = undefined} = Request) ->
    list_again(Host, Request, []);
list(Host, From, #adhoc_command{xdata = Data} = Request) ->
    Fields = values(Data),
    Id = first(<<"broadcast">>, Fields),
    case {Id, lists:member(first(<<"do">>, Fields), actions())} of
        {Id, true} when Id =/= <<>> ->
            act(Host, From, first(<<"do">>, Fields), Id, Request);
        _ ->
            list_again(Host, Request, [{error, <<"Choose a broadcast, and what is to be done with it">>}])
    end.

actions() -> [<<"status">>, <<"pause">>, <<"resume">>, <<"cancel">>].

act(Host, From, Action, Id, Request) ->
    case one(mod_amphora_broadcast:ask(Host, set, [{<<"action">>, Action}, {<<"id">>, Id}], [])) of
        {ok, Broadcast} ->
            _ = Action =:= <<"status">> orelse
                ?LOG_INFO("Amphora: ~ts: ~ts broadcast ~ts", [jid:encode(From), Action, Id]),
            respond(Request, completed, [{info, <<"Broadcast ", (progress(Broadcast))/binary>>}], undefined);
        {error, Why} ->
            list_again(Host, Request, [{error, Why}])
    end.

list_again(Host, Request, Notes) ->
    case mod_amphora_broadcast:ask(Host, get, [{<<"action">>, <<"list">>}], []) of
        {ok, Answer} ->
            case lists:reverse(mod_amphora_xml:children(<<"broadcast">>, ?NS_INTERCEPT, Answer)) of
                [] -> respond(Request, completed, Notes ++ [{info, <<"There are no broadcasts">>}], undefined);
                Broadcasts -> respond(Request, executing, Notes, list_form(Broadcasts))
            end;
        {error, Why} ->
            respond(Request, completed, Notes ++ [{error, Why}], undefined)
    end.

list_form([Newest | _] = Broadcasts) ->
    Id = fun(El) -> mod_amphora_xml:attr(<<"id">>, El) end,
    Fields = #{<<"broadcast">> => [Id(Newest)], <<"do">> => [<<"status">>]},
    #xdata{
        type = form,
        title = <<"Broadcasts">>,
        instructions = [<<"Choose one and what is to be done with it.">>],
        fields = [
            #xdata_field{var = <<"FORM_TYPE">>, type = hidden, values = [?LIST]},
            (field(<<"broadcast">>, 'list-single', <<"Broadcast">>, Fields))#xdata_field{
                required = true, options = [#xdata_option{label = progress(El), value = Id(El)} || El <- Broadcasts]},
            (field(<<"do">>, 'list-single', <<"What to do">>, Fields))#xdata_field{
                required = true,
                options = [#xdata_option{label = Label, value = Value}
                           || {Label, Value} <- lists:zip([<<"See how it stands">>, <<"Pause it">>, <<"Resume it">>,
                                                           <<"Cancel it">>], actions())]}
        ]
    }.
