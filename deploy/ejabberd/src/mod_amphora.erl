%%% The interceptor of Amphora for ejabberd (23.01 and later): it holds messages, reports them to a
%%% node over an external component's stream, and carries out what the node decides. It decides
%%% nothing. The protocol is described in docs/intercept.md. What is where:
%%%
%%%   mod_amphora            options, hooks, the tree of processes, what they share
%%%   mod_amphora_link       greeting, which nodes are there, elements from and to them, the cluster
%%%   mod_amphora_queue      the workers: held messages, their order, intercepts, verdicts
%%%   mod_amphora_seats      in the workers: when sessions are announced and their gates open
%%%   mod_amphora_gate       in the sessions' own processes: gates, hand-over, acknowledgements
%%%   mod_amphora_facts      rights, accounts, sessions
%%%   mod_amphora_xml        building and reading the elements of the protocol
%%%   mod_amphora_spool      the file for what no node can take now
%%%   mod_amphora_journal    what is held is in there too, before its sender hears that the server has it
%%%   mod_amphora_import     mod_offline's messages, moved into the spool
%%%   mod_amphora_edge       messages with rules on their way to another server
%%%   mod_amphora_forward    what is sent on to other addresses and gateways
%%%   mod_amphora_retrieve   what users ask about their stored messages
%%%   mod_amphora_broadcast  messages to many: their outcomes, accounts, commands
%%%
%%% Everything of a user is in one worker, found by the hash of his bare JID; there is such a set of
%%% workers on every node of an ejabberd cluster, and each holds what was taken on its own. Names that
%%% go to a node (keys, sessions) begin with the random token of this start and the number of the
%%% process that they belong to, so an answer finds its way from whichever ejabberd node the
%%% component's stream ends at.
-module(mod_amphora).

-behaviour(gen_mod).

-export([start/2, stop/1, reload/3, depends/2, mod_opt_type/1, mod_options/1, mod_doc/0]).
-export([ctx/1, opt/2, loaded/1, now_ms/0, new_key/2, new_ord/1, ord_before/2, owner_of/2]).
-export([worker/2, worker_at/2, edge/1, link_process/1]).
-export([config_reloaded/0, host_config_reloaded/1, stopping/0]).

-include("logger.hrl").
-include("xmpp.hrl").
-include("translate.hrl").
-include("mod_amphora.hrl").

-define(EDGE, 254).
-define(RETRIEVE, 255).

%%% ------------------------------------------------------------------ gen_mod

start(Host, Opts) ->
    case mod_amphora_sup:start_host(Host, Opts) of
        {ok, Pid} ->
            add_hooks(Host),
            mod_amphora_retrieve:start(Host),
            mod_amphora_broadcast:start(Host),
            set_aside_mod_offline(Host),
            mod_amphora_gate:adopt(Host),
            mod_amphora_link:hello(Host),
            mod_amphora_check:settings(Host),
            {ok, Pid};
        {error, Reason} = Error ->
            ?ERROR_MSG("The interceptor of ~ts can't start: ~p", [Host, Reason]),
            Error
    end.

stop(Host) ->
    case loaded(Host) of
        true ->
            %% first, so that what waited for its pair goes into the gates and not past them; and once more for
            %% what was in the gates
            mod_amphora_queue:stop_all(Host, <<"The module is unloaded">>),
            mod_amphora_edge:stop_all(Host),
            mod_amphora_retrieve:stop(Host),
            mod_amphora_broadcast:stop(Host),
            mod_amphora_gate:let_go(Host),
            mod_amphora_queue:stop_all(Host, <<"The module is unloaded">>),
            remove_hooks(Host),
            mod_amphora_sup:stop_host(Host),
            restore_mod_offline(Host);
        false ->
            ok
    end.

reload(Host, NewOpts, _OldOpts) ->
    mod_amphora_sup:set_options(Host, NewOpts),
    set_aside_mod_offline(Host),
    mod_amphora_link:look(Host),
    mod_amphora_check:settings(Host).

%% mod_offline stays loaded, because mod_stream_mgmt drops archived messages where it is not; and it
%% is started first, so that its hooks are there to be removed.
depends(_Host, _Opts) ->
    [{mod_offline, hard}, {mod_stream_mgmt, soft}, {mod_mam, soft}].

%%% ------------------------------------------------------------------ hooks

hooks(Host) ->
    [
        %% before everything that leaves a trace: mod_mam is at 50
        {sm_receive_packet, mod_amphora_queue, sm_receive_packet, 30},
        %% after mod_mam (49), in place of mod_offline (50), before mod_push (55)
        {offline_message_hook, mod_amphora_queue, offline_message, 52},
        {c2s_post_auth_features, mod_amphora_link, stream_features, 50},
        {disco_local_features, mod_amphora_link, disco_features, 75},
        {disco_local_identity, mod_amphora_link, disco_identity, 75},
        {remove_user, mod_amphora_queue, remove_user, 40}
    ] ++ mod_amphora_gate:hooks(Host) ++ mod_amphora_edge:hooks(Host) ++
        mod_amphora_journal:hooks() ++ mod_amphora_retrieve:hooks(Host) ++ mod_amphora_broadcast:hooks(Host).

global_hooks() ->
    [
        {component_send_packet, mod_amphora_link, component_send_packet, 50},
        {component_connected, mod_amphora_link, component_connected, 50},
        {component_disconnected, mod_amphora_link, component_disconnected, 50},
        {filter_packet, mod_amphora_queue, filter_packet, 10},
        {config_reloaded, ?MODULE, config_reloaded, 90},
        %% while sessions and connections to other servers are there
        {ejabberd_stopping, ?MODULE, stopping, 50}
    ].

%% ejabberd_hooks:add does nothing for a hook that is there, so several hosts may do this.
add_hooks(Host) ->
    [ejabberd_hooks:add(Hook, Host, M, F, Seq) || {Hook, M, F, Seq} <- hooks(Host)],
    [ejabberd_hooks:add(Hook, M, F, Seq) || {Hook, M, F, Seq} <- global_hooks()],
    ok.

remove_hooks(Host) ->
    [ejabberd_hooks:delete(Hook, Host, M, F, Seq) || {Hook, M, F, Seq} <- hooks(Host)],
    case [H || H <- ejabberd_option:hosts(), H /= Host, loaded(H)] of
        [] -> [ejabberd_hooks:delete(Hook, M, F, Seq) || {Hook, M, F, Seq} <- global_hooks()];
        _ -> ok
    end,
    ok.

%% What is stored is a node's: mod_offline neither stores nor delivers.
set_aside_mod_offline(Host) ->
    ejabberd_hooks:delete(offline_message_hook, Host, mod_offline, store_packet, 50),
    ejabberd_hooks:delete(c2s_self_presence, Host, mod_offline, c2s_self_presence, 50).

restore_mod_offline(Host) ->
    case gen_mod:is_loaded(Host, mod_offline) of
        true ->
            ejabberd_hooks:add(offline_message_hook, Host, mod_offline, store_packet, 50),
            ejabberd_hooks:add(c2s_self_presence, Host, mod_offline, c2s_self_presence, 50);
        false ->
            ok
    end.

%% After modules were reloaded: mod_offline may have been started anew.
config_reloaded() ->
    lists:foreach(fun host_config_reloaded/1, [H || H <- ejabberd_option:hosts(), loaded(H)]).

%% What is on its way out goes back to its senders; what sessions have in hand comes back, while there is
%% somebody to keep it: the server would end them all at a time, and some before they could say anything.
stopping() ->
    Hosts = [H || H <- ejabberd_option:hosts(), loaded(H)],
    lists:foreach(fun mod_amphora_edge:stop_all/1, Hosts),
    lists:foreach(fun mod_amphora_gate:end_all/1, Hosts).

host_config_reloaded(Host) ->
    set_aside_mod_offline(Host),
    mod_amphora_retrieve:start(Host),
    mod_amphora_check:settings(Host).

%%% ------------------------------------------------------------------ what the processes share

%% The context of a virtual host, a constant map; see mod_amphora_sup:make_ctx/2. Fails if the module is
%% not loaded there.
-spec ctx(binary()) -> map().
ctx(Host) -> persistent_term:get({?MODULE, Host}).

-spec loaded(binary()) -> boolean().
loaded(Host) -> persistent_term:get({?MODULE, Host}, none) /= none.

%% An option; times in milliseconds.
-spec opt(binary(), atom()) -> term().
opt(Host, Name) -> map_get(Name, map_get(opts, ctx(Host))).

%% Of a clock that never goes back.
-spec now_ms() -> integer().
now_ms() -> erlang:monotonic_time(millisecond).

%% A name that is unique for ever and leads back to its process: a worker (by number), edge, retrieve.
-spec new_key(map() | binary(), 0..255 | edge | retrieve) -> binary().
new_key(Host, Who) when is_binary(Host) -> new_key(ctx(Host), Who);
new_key(Ctx, edge) -> new_key(Ctx, ?EDGE);
new_key(Ctx, retrieve) -> new_key(Ctx, ?RETRIEVE);
new_key(#{token := Token, counters := Counters}, Index) ->
    N = atomics:add_get(Counters, 1, 1),
    <<Token/binary, (hex2(Index))/binary, $-, (integer_to_binary(N))/binary>>.

%% Place in the order of arrival. Between two of them is room for 2^32 messages that come back and are older
%% than the second.
-spec new_ord(map()) -> integer().
new_ord(#{counters := Counters}) -> atomics:add_get(Counters, 2, 1) bsl 32.

%% The last place before a fresh one, for what came at `Came`: behind all that took such a place before.
-spec ord_before(integer(), integer()) -> integer().
ord_before(Fresh, Came) -> (((Fresh bsr 32) - 1) bsl 32) + ((Came bsr 32) band 16#FFFFFFFF).

%% Whose name it is: {Token, Index}, or unknown for one of an earlier start or of a node's own.
-spec owner_of(map(), binary()) -> {binary(), 0..253 | edge | retrieve} | unknown.
owner_of(_Ctx, <<Token:12/binary, Hex:2/binary, $-, _/binary>>) ->
    try binary_to_integer(Hex, 16) of
        ?EDGE -> {Token, edge};
        ?RETRIEVE -> {Token, retrieve};
        Index -> {Token, Index}
    catch
        error:badarg -> unknown
    end;
owner_of(_Ctx, _Name) ->
    unknown.

hex2(N) when N < 16 -> <<$0, (integer_to_binary(N, 16))/binary>>;
hex2(N) -> integer_to_binary(N, 16).

%% The worker of a user on this node, its number and its registered name.
-spec worker(map(), binary()) -> {non_neg_integer(), atom()}.
worker(#{workers := Workers}, Bare) ->
    Index = erlang:phash2(Bare, tuple_size(Workers)),
    {Index, element(Index + 1, Workers)}.

-spec worker_at(map(), non_neg_integer()) -> atom() | undefined.
worker_at(#{workers := Workers}, Index) when Index < tuple_size(Workers) -> element(Index + 1, Workers);
worker_at(_Ctx, _Index) -> undefined.

-spec edge(binary()) -> atom().
edge(Host) -> gen_mod:get_module_proc(Host, mod_amphora_edge).

-spec link_process(binary()) -> atom().
link_process(Host) -> gen_mod:get_module_proc(Host, mod_amphora_link).

%%% ------------------------------------------------------------------ options

-define(DAY, 24 * 60 * 60).

mod_opt_type(components) ->
    econf:list(econf:domain(), [unique]);
mod_opt_type(Name) when
    Name == resend; Name == hold; Name == memory_of_keys; Name == repeat; Name == gate_limit;
    Name == retrieve_timeout; Name == disco_timeout
->
    econf:number(0);
mod_opt_type(Name) when Name == disco_cache; Name == disco_retry ->
    %% not longer: XEP-0079, section 2.1.1
    econf:and_then(
        econf:number(0),
        fun(N) when N =< ?DAY -> N;
           (_) -> econf:fail({bad_int, 0, ?DAY})
        end
    );
mod_opt_type(journal) ->
    econf:bool();
mod_opt_type(workers) ->
    econf:int(1, 128);
mod_opt_type(Name) when
    Name == window; Name == window_bytes; Name == available_window; Name == session_window;
    Name == gate_messages; Name == gate_bytes; Name == held_messages; Name == held_bytes;
    Name == spool_limit; Name == edge_messages; Name == edge_bytes
->
    econf:pos_int();
mod_opt_type(max_stanza) ->
    econf:int(10000, 4 * 1024 * 1024 - 64 * 1024).

mod_options(_Host) ->
    [
        {components, []},
        {resend, 10},
        {hold, 30},
        {memory_of_keys, 600},
        {repeat, 5},
        {gate_limit, 60},
        {window, 1024},
        {window_bytes, 16 * 1024 * 1024},
        {available_window, 256},
        {session_window, 100},
        {gate_messages, 100},
        {gate_bytes, 1024 * 1024},
        {held_messages, 10000},
        {held_bytes, 64 * 1024 * 1024},
        {retrieve_timeout, 30},
        {spool_limit, 1024 * 1024 * 1024},
        {journal, true},
        {edge_messages, 1000},
        {edge_bytes, 8 * 1024 * 1024},
        {disco_cache, ?DAY},
        {disco_retry, 60},
        {disco_timeout, 10},
        {workers, 8},
        {max_stanza, 512 * 1024}
    ].

mod_doc() ->
    #{
        desc => [
            ?T(
                "The interceptor of Amphora, which evaluates the rules of "
                "https://xmpp.org/extensions/xep-0079.html[XEP-0079: Advanced Message Processing] and "
                "stores the messages of users who are away. It hands both kinds of messages to an "
                "external component ('ejabberd_service') and carries out what that decides."
            ),
            "",
            ?T(
                "'mod_offline' must be loaded, and neither stores nor delivers while this module is "
                "there; what it had stored moves into this module's spool when it is first loaded."
            )
        ],
        opts => [
            {components, doc("[Domain, ...]", "The components that the nodes of Amphora connect as. At least one.")},
            {resend, doc("Seconds", "An unanswered intercept is sent again.")},
            {hold, doc("Seconds", "Without a node for so long, what is held goes to the spool.")},
            {memory_of_keys, doc("Seconds", "How long the keys of sends are known again.")},
            {repeat, doc("Seconds", "Until an announcement, or what was taken, is said again.")},
            {gate_limit, doc("Seconds", "For so long live messages wait for a hand-over that does not come.")},
            {window, doc("Number", "Intercepts that a node has not answered, at most.")},
            {window_bytes, doc("Bytes", "The same, by size.")},
            {available_window, doc("Number", "Announcements of sessions that a node has not answered.")},
            {session_window, doc("Number", "Messages on their way to one client, not acknowledged.")},
            {gate_messages, doc("Number", "Messages that wait for one session. If there are more, all are stored.")},
            {gate_bytes, doc("Bytes", "The same, by size.")},
            {held_messages, doc("Number", "Messages in memory. What comes then goes to the spool.")},
            {held_bytes, doc("Bytes", "The same, by size.")},
            {retrieve_timeout, doc("Seconds", "For so long a user's request waits for the node.")},
            {spool_limit, doc("Bytes", "Size of the spool. What comes then is refused with an error.")},
            {journal,
                doc(
                    "true | false",
                    "What is held in memory is in the spool too, so that it outlives the server, however that ends."
                )},
            {edge_messages, doc("Number", "Messages with rules on their way to other servers, waiting here.")},
            {edge_bytes, doc("Bytes", "The same, by size.")},
            {disco_cache, doc("Seconds", "How long it is remembered that a server supports rules. A day at most.")},
            {disco_retry, doc("Seconds", "How long it is remembered that one does not.")},
            {disco_timeout, doc("Seconds", "How long the answer of a server is waited for.")},
            {workers, doc("Number", "Processes that hold messages. Read when the module starts.")},
            {max_stanza, doc("Bytes", "What the component may send in a stanza.")}
        ],
        example => [
            "listen:",
            "  -",
            "    port: 5347",
            "    ip: \"127.0.0.1\"",
            "    module: ejabberd_service",
            "    max_fsm_queue: 100000",
            "    global_routes: false",
            "    hosts:",
            "      amp.example.org:",
            "        password: \"secret\"",
            "modules:",
            "  mod_offline: {}",
            "  mod_amphora:",
            "    components: [amp.example.org]"
        ]
    }.

doc(Value, Desc) -> #{value => list_to_binary(Value), desc => list_to_binary(Desc)}.
