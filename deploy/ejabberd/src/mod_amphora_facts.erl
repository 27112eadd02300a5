%%% What the server knows and a node asks for: rights, block lists, accounts, sessions.
-module(mod_amphora_facts).

-export([may_see/3, is_blocked/3, account_exists/2, sessions/2, takers/3, archives/1, read_since/3]).
-export([is_storable/2, jid/1, bare/2, seal/4, too_large/2]).

-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% Bytes of all that a node wraps round a message to send it back.
-define(OVERHEAD, 4096).
%% Levels of elements in a message that a node reads.
-define(DEPTH, 60).

bare(LUser, Host) -> <<LUser/binary, $@, Host/binary>>.

jid(Text) ->
    try
        jid:decode(Text)
    catch
        _:_ -> error
    end.

%% From the recipient's own roster; false for one whom he blocks. Looked up alike whether the account
%% exists or not, and both are looked up, that a block takes no other time than a stranger.
-spec may_see(binary(), binary(), jid()) -> boolean().
may_see(LUser, Host, #jid{luser = LUser, lserver = Host}) -> true;
may_see(LUser, Host, From) ->
    Blocked = is_blocked(LUser, Host, From),
    {Subscription, _, _} = ejabberd_hooks:run_fold(
        roster_get_jid_info, Host, {none, none, []}, [LUser, Host, jid:remove_resource(From)]
    ),
    not Blocked andalso (Subscription == from orelse Subscription == both).

%% Does the user's own list, by which he is represented while he is away, refuse messages of this one?
-spec is_blocked(binary(), binary(), jid()) -> boolean().
is_blocked(LUser, Host, From) ->
    To = jid:make(LUser, Host),
    Message = #message{type = chat, from = From, to = To},
    ejabberd_hooks:run_fold(privacy_check_packet, Host, allow, [To, Message, in]) == deny.

account_exists(LUser, Host) -> ejabberd_auth:user_exists(LUser, Host).

archives(Host) -> gen_mod:is_loaded(Host, mod_mam).

%% Sessions of the user in the cluster: {Resource, Priority or undefined, Pid, Asleep}.
sessions(LUser, Host) ->
    [
        {Resource, proplists:get_value(priority, Info), proplists:get_value(pid, Info),
            lists:member(asleep, proplists:get_value(amphora, Info, []))}
     || {Resource, Info} <- ejabberd_sm:get_user_info(LUser, Host)
    ].

%% Has a session of the user's that is there read the archive since then, before it became available?
-spec read_since(binary(), binary(), binary()) -> boolean().
read_since(LUser, Host, Stamp) ->
    lists:any(
        fun({_, Info}) ->
            case lists:keyfind(read, 1, proplists:get_value(amphora, Info, [])) of
                {read, Read} -> Read >= Stamp;
                false -> false
            end
        end,
        ejabberd_sm:get_user_info(LUser, Host)
    ).

%% Who would get a message if it were routed now. A decision holds only as long as this.
takers(LUser, Host, #jid{lresource = LResource}) ->
    Sessions = sessions(LUser, Host),
    case [Pid || {R, _, Pid, _} <- Sessions, R == LResource] of
        [Pid | _] ->
            [Pid];
        [] ->
            Present = [{Priority, Pid} || {_, Priority, Pid, _} <- Sessions, is_integer(Priority), Priority >= 0],
            case Present of
                [] ->
                    [];
                _ ->
                    Highest = lists:max([Priority || {Priority, _} <- Present]),
                    lists:sort([Pid || {Priority, Pid} <- Present, Priority == Highest])
            end
    end.

%% Would mod_offline store it? The same questions as it asks, and one more.
is_storable(_Host, #message{type = Type}) when Type == error; Type == headline; Type == groupchat -> false;
%% what a client did not acknowledge of the archive's answer is still in the archive
is_storable(_Host, #message{sub_els = [#mam_result{} | _]}) -> false;
is_storable(Host, #message{sub_els = []} = Message) -> is_storable_body(Host, Message);
is_storable(Host, #message{sub_els = Els} = Message) ->
    Offline = lists:any(fun(El) -> xmpp:get_name(El) == <<"offline">> andalso xmpp:get_ns(El) == ?NS_FLEX end, Els),
    case {Offline, hint(Message)} of
        {true, _} -> false;
        {false, store} -> true;
        {false, no_store} -> false;
        {false, none} -> is_storable_body(Host, Message)
    end.

is_storable_body(Host, #message{body = Body} = Message) ->
    case mod_offline_opt:store_empty_body(Host) of
        true -> true;
        false -> Body /= [];
        unless_chat_state -> Body /= [] orelse not misc:is_standalone_chat_state(Message)
    end.

hint(Message) ->
    case xmpp:has_subtag(Message, #hint{type = store}) of
        true ->
            store;
        false ->
            case
                xmpp:has_subtag(Message, #hint{type = 'no-store'}) orelse
                    xmpp:has_subtag(Message, #hint{type = 'no-storage'})
            of
                true -> no_store;
                false -> none
            end
    end.

%% The message as it is stored, with one stanza id by the user, and whether his archive has it. The
%% first id that is there is the archive's where the archive has it: mod_mam puts it before the others.
-spec seal(message(), binary(), binary(), boolean()) -> {#xmlel{}, boolean()}.
seal(Message, Bare, Key, Archived) ->
    case mod_amphora_xml:stanza_ids(Message, Bare) of
        [Given] when Archived -> {mod_amphora_xml:encode(mod_amphora_xml:with_ids(Message, {Bare, Given})), true};
        [Given | _] when Archived -> {mod_amphora_xml:encode(mod_amphora_xml:with_ids(Message, {Bare, Given})), true};
        [] ->
            #xmlel{children = Children} = El = mod_amphora_xml:encode(Message),
            {El#xmlel{children = Children ++ [mod_amphora_xml:own_id(Bare, Key)]}, false};
        _ ->
            Id = mod_amphora_xml:own_id(Bare, Key),
            {mod_amphora_xml:encode(mod_amphora_xml:with_ids(Message, {Bare, Id})), false}
    end.

%% What could not come back from a node, or not be read by one. Written out only if it may be too large.
too_large(El, MaxStanza) ->
    mod_amphora_xml:deeper_than(El, ?DEPTH) orelse
        (mod_amphora_xml:bytes(El) * 6 + ?OVERHEAD > MaxStanza andalso
            byte_size(fxml:element_to_binary(El)) + ?OVERHEAD > MaxStanza).
