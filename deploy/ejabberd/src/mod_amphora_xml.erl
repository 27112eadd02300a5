%%% Building and reading the elements of the intercept protocol, and messages as they travel in it.
-module(mod_amphora_xml).

-export([stamp/0, stamp/1, el/2, el/3, attr/2, child/3, children/3]).
-export([encode/1, decode/1, bytes/1, deeper_than/2]).
-export([has_rules/1, notice_status/1, address_rules/1, is_from_room/1, is_chat/1, is_result/1]).
-export([stanza_ids/2, own_id/2, with_ids/2, add_delay/3, forwarded/2, own_stanza/2, bounce/2, error_message/2]).

-include("xmpp.hrl").
-include("mod_amphora.hrl").

%%% ------------------------------------------------------------------ time

%% XEP-0082 in UTC with milliseconds, which is what expiry is decided by.
stamp() -> stamp(os:system_time(millisecond)).

stamp({_, _, _} = Timestamp) ->
    stamp(
        erlang:convert_time_unit(
            element(1, Timestamp) * 1000000000000 + element(2, Timestamp) * 1000000 + element(3, Timestamp),
            microsecond,
            millisecond
        )
    );
stamp(Ms) ->
    {{Y, Mo, D}, {H, Mi, S}} = calendar:system_time_to_universal_time(Ms div 1000, second),
    <<(integer_to_binary(Y))/binary, $-, (two(Mo))/binary, $-, (two(D))/binary, $T, (two(H))/binary, $:,
        (two(Mi))/binary, $:, (two(S))/binary, $., (three(Ms rem 1000))/binary, $Z>>.

two(N) -> <<($0 + N div 10), ($0 + N rem 10)>>.

three(N) -> <<($0 + N div 100), (two(N rem 100))/binary>>.

%%% ------------------------------------------------------------------ elements

el(Name, Attrs) -> el(Name, Attrs, []).

el(Name, Attrs, Children) ->
    #xmlel{name = Name, attrs = [{<<"xmlns">>, ?NS_INTERCEPT} | Attrs], children = Children}.

attr(Name, #xmlel{attrs = Attrs}) ->
    case lists:keyfind(Name, 1, Attrs) of
        {_, Value} -> Value;
        false -> undefined
    end.

%% With that namespace, its own or the one that it inherits: the protocol's elements declare theirs
%% only once.
child(Name, NS, El) ->
    case children(Name, NS, El) of
        [Child | _] -> Child;
        [] -> undefined
    end.

children(Name, NS, #xmlel{children = Children}) ->
    [C || #xmlel{name = N} = C <- Children, N == Name, is_ns(attr(<<"xmlns">>, C), NS)].

is_ns(NS, NS) -> true;
is_ns(undefined, ?NS_INTERCEPT) -> true;
is_ns(_, _) -> false.

%%% ------------------------------------------------------------------ messages

%% A message as it stands alone, with the namespace that it has in a client's stream.
encode(#message{} = Message) ->
    qualify(xmpp:encode(Message)).

qualify(#xmlel{attrs = Attrs} = El) ->
    El#xmlel{attrs = [{<<"xmlns">>, ?NS_CLIENT} | lists:keydelete(<<"xmlns">>, 1, Attrs)]}.

%% The message in such an element, or error.
-spec decode(#xmlel{} | undefined) -> {ok, message()} | error.
decode(#xmlel{name = <<"message">>} = El) ->
    try xmpp:decode(El, ?NS_CLIENT, [ignore_els]) of
        #message{} = Message -> {ok, Message};
        _ -> error
    catch
        _:_ -> error
    end;
decode(_) ->
    error.

%% A measure of its size, not less than two thirds of its bytes for what people write.
bytes(El) -> erlang:external_size(El).

%% Has it more levels of elements than that? It counts as one itself.
deeper_than(_El, 0) -> true;
deeper_than(#xmlel{children = Children}, Levels) -> lists:any(fun(C) -> deeper_than(C, Levels - 1) end, Children);
deeper_than(_, _) -> false.

is_amp(El) -> xmpp:get_name(El) == <<"amp">> andalso xmpp:get_ns(El) == ?NS_AMP_URI.

amp(#message{sub_els = Els}) -> amp(Els);
amp([#xmlel{name = <<"amp">>} = El | Els]) ->
    case is_amp(El) of
        true -> El;
        false -> amp(Els)
    end;
amp([_ | Els]) -> amp(Els);
amp([]) -> none.

%% Does the message carry rules that are to be looked at here? Not those from or about a room: an
%% error in answer would throw the recipient out of it.
has_rules(#message{sub_els = []}) -> false;
has_rules(#message{type = T}) when T == error; T == groupchat -> false;
has_rules(#message{} = Message) ->
    case amp(Message) of
        none -> false;
        El -> attr(<<"status">>, El) == undefined andalso not is_room(Message)
    end.

%% The status of an answer to a rule, or undefined.
notice_status(#message{sub_els = []}) -> undefined;
notice_status(#message{} = Message) ->
    case amp(Message) of
        none -> undefined;
        El -> attr(<<"status">>, El)
    end.

is_room(#message{sub_els = Els} = Message) ->
    lists:any(
        fun(El) ->
            xmpp:get_name(El) == <<"x">> andalso
                lists:member(xmpp:get_ns(El), [?NS_MUC_USER, <<"jabber:x:conference">>])
        end,
        Els
    ) orelse is_from_room(Message).

is_from_room(#message{from = #jid{lserver = Server}}) ->
    ejabberd_router:is_my_route(Server) andalso
        lists:any(
            fun(Host) -> gen_mod:is_loaded(Host, mod_muc) andalso lists:member(Server, mod_muc_hosts(Host)) end,
            ejabberd_option:hosts()
        ).

mod_muc_hosts(Host) ->
    try
        gen_mod:get_module_opt_hosts(Host, mod_muc)
    catch
        _:_ -> []
    end.

%% from and to of <amp/> are the message's own on everything that leaves this server with it.
address_rules(#message{sub_els = Els, from = From, to = To} = Message) ->
    Message#message{
        sub_els = [
            case is_amp(El) of
                true -> address(address(El, <<"from">>, From), <<"to">>, To);
                false -> El
            end
         || El <- Els
        ]
    }.

address(#xmlel{attrs = Attrs} = El, Name, JID) ->
    El#xmlel{attrs = lists:keystore(Name, 1, Attrs, {Name, jid:encode(JID)})};
address(El, _Name, _JID) ->
    El.

%% A result of a search of an archive.
is_result(#message{sub_els = []}) ->
    false;
is_result(#message{sub_els = Els}) ->
    lists:any(
        fun
            (#mam_result{}) -> true;
            (#xmlel{name = <<"result">>} = El) ->
                case attr(<<"xmlns">>, El) of
                    <<"urn:xmpp:mam:", _/binary>> -> true;
                    _ -> false
                end;
            (_) -> false
        end,
        Els
    ).

%% What a gate holds up: chat and normal messages, carbons included.
is_chat(#message{type = Type, sub_els = []}) -> Type == chat orelse Type == normal;
is_chat(#message{type = Type} = Message) -> (Type == chat orelse Type == normal) andalso not is_result(Message);
is_chat(_) -> false.

%%% ------------------------------------------------------------------ stanza ids (XEP-0359)

%% Those by that bare JID, in whatever spelling, in their order.
stanza_ids(#message{sub_els = []}, _Bare) -> [];
stanza_ids(#message{sub_els = Els}, Bare) -> [El || El <- Els, is_id_by(El, Bare)].

is_id_by(#stanza_id{by = By}, Bare) -> is_same(By, Bare);
is_id_by(#xmlel{name = <<"stanza-id">>} = El, Bare) ->
    attr(<<"xmlns">>, El) == ?NS_SID andalso
        try jid:decode(attr(<<"by">>, El)) of
            By -> is_same(By, Bare)
        catch
            _:_ -> false
        end;
is_id_by(_, _) ->
    false.

is_same(#jid{} = By, Bare) -> jid:encode(jid:tolower(By)) == Bare.

%% An id of this interceptor's, which is no sign of an archive.
own_id(Bare, Key) ->
    #xmlel{
        name = <<"stanza-id">>,
        attrs = [{<<"xmlns">>, ?NS_SID}, {<<"by">>, Bare}, {<<"id">>, <<"amphora-", Key/binary>>}]
    }.

%% With that one id by the JID, and no other.
with_ids(#message{sub_els = Els} = Message, {Bare, Id}) ->
    Message#message{sub_els = [El || El <- Els, not is_id_by(El, Bare)] ++ [Id]}.

%%% ------------------------------------------------------------------ delay (XEP-0203)

add_delay(#message{sub_els = Els} = Message, Host, Stamp) ->
    case lists:any(fun(El) -> xmpp:get_name(El) == <<"delay">> andalso xmpp:get_ns(El) == ?NS_DELAY_URI end, Els) of
        true ->
            Message;
        false ->
            Delay = #xmlel{
                name = <<"delay">>,
                attrs = [{<<"xmlns">>, ?NS_DELAY_URI}, {<<"from">>, Host}, {<<"stamp">>, Stamp}],
                children = [{xmlcdata, <<"Offline Storage">>}]
            },
            Message#message{sub_els = Els ++ [Delay]}
    end.

%% Answers a message with an error, and without what its sender wrote.
-spec bounce(message(), stanza_error()) -> ok.
bounce(#message{type = error}, _Error) -> ok;
bounce(Message, Error) -> ejabberd_router:route(error_message(Message, Error)).

%% That answer.
-spec error_message(message(), stanza_error()) -> message().
error_message(#message{id = Id, lang = Lang, from = From, to = To}, Error) ->
    #message{type = error, id = Id, lang = Lang, from = To, to = From, sub_els = [with_code(Error)]}.

%% With the code that XEP-0079 section 6 gives it.
with_code(#stanza_error{reason = 'service-unavailable'} = Error) ->
    #xmlel{attrs = Attrs} = El = xmpp:encode(Error, ?NS_CLIENT),
    El#xmlel{attrs = [{<<"code">>, <<"503">>} | Attrs]};
with_code(Error) ->
    Error.

forwarded(Stamp, El) ->
    #xmlel{
        name = <<"forwarded">>,
        attrs = [{<<"xmlns">>, ?NS_FORWARDED}],
        children = [
            #xmlel{name = <<"delay">>, attrs = [{<<"xmlns">>, ?NS_DELAY_URI}, {<<"stamp">>, Stamp}]},
            El
        ]
    }.

%% A stanza of the host's own, out of <send><forwarded/></send>.
-spec own_stanza(binary(), #xmlel{}) -> {ok, message()} | {error, binary()}.
own_stanza(Host, Element) ->
    Forwarded = child(<<"forwarded">>, ?NS_FORWARDED, Element),
    Message =
        case Forwarded of
            undefined -> undefined;
            _ -> child(<<"message">>, ?NS_CLIENT, Forwarded)
        end,
    case decode(Message) of
        {ok, #message{from = #jid{lserver = Host}, to = #jid{}} = Own} -> {ok, Own};
        {ok, #message{to = #jid{}}} -> {error, <<"Its sender is not this host">>};
        {ok, _} -> {error, <<"Its recipient is no address">>};
        error -> {error, <<"It holds no message">>}
    end.
