%%% The workers: the messages that are held, per pair of sender and recipient in order, per user in the
%%% spool. Intercepts go out from here and verdicts are carried out here.
%%%
%%% A message is written into the table `held`, and its pair noted in `pairs`, by the process that routes
%%% it (the sender's session, a connection of another server, a component), before its worker hears of
%%% it. So it outlives a worker that fails, and a later message of the pair, which the same process
%%% routes, sees that it must wait. When more is held than the limit says, that process waits for the
%%% worker, so that no queue grows without bound.
%%%
%%% What closes which race:
%%%  - Nobody was there when the message was routed, and the user logs in before it is stored: his
%%%    session is announced only after what came before it is decided; what comes after is decided
%%%    'stored', and the worker tells a session that could take it to close its gate and be announced
%%%    anew before the pair counts as decided. Until then later messages of the pair wait here.
%%%  - A session comes between a look at who is there and the routing: its gate is closed as long as
%%%    anything of its user's is undecided (see mod_amphora_gate).
%%%  - A session ends with messages in its mailbox, which its process routes once more when the server has
%%%    forgotten the session: until that process is gone, what comes for its user waits for its turn here
%%%    (session_ends/2), and what comes out of the mailbox goes before that.
%%%  - Re-routing runs in the worker's own process, hooks included, so what comes to the storage of it is
%%%    caught with its key.
-module(mod_amphora_queue).

-behaviour(gen_server).

-export([start_link/2, stop_all/2]).
-export([sm_receive_packet/1, offline_message/1, filter_packet/1, remove_user/2]).
-export([hold_own/5, holds/3, undelivered/3, keep/3, when_settled/3, route_own/1, held/1]).
-export([options/1, remove_account/2, removal_done/2, links/2, peers/2, node_down/2]).
-export([seat/3, session_ends/2, put_out/4, user/2, unsettled/2, release_user/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include("logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").
-include("mod_amphora_worker.hrl").

-define(SWEEP, 250).
%% Of elements for a node in one message.
-define(BATCH_BYTES, 64 * 1024).
%% Milliseconds that an intercept waits for others while some are unanswered: each stanza costs the server
%% and the node more than the element in it.
-define(LINGER, 4).
%% For so long a session that ends waits for the other nodes of the cluster to hear it, and they then for what
%% was in its mailbox to be decided: two that end on two nodes could wait for each other.
-define(PEERS_MS, 2000).
%% A pair pauses for so long after retry: doubled each time.
-define(RETRY_FIRST, 250).
-define(RETRY_LAST, 30000).

start_link(Host, Index) ->
    Options = [{spawn_opt, [{min_heap_size, 65536}]}],
    gen_server:start_link({local, mod_amphora_sup:worker_name(Host, Index)}, ?MODULE, [Host, Index], Options).

%%% ------------------------------------------------------------------ hooks, in the routing process

%% Before anything of the server that leaves a trace has seen a message.
sm_receive_packet(#message{meta = #{amphora := _}} = Message) ->
    Message;
%% It was here before, and comes back out of the mailbox of a session that ended: older than what waits.
sm_receive_packet(#message{meta = #{amphora_ord := _}} = Message) ->
    xmpp:put_meta(Message, amphora_back, true);
sm_receive_packet(#message{to = #jid{luser = <<>>}} = Message) ->
    Message;
sm_receive_packet(#message{type = error, sub_els = Els} = Message) when Els /= [] ->
    keep_notice(Message);
sm_receive_packet(#message{type = Type} = Message) when Type == error; Type == groupchat ->
    Message;
sm_receive_packet(#message{meta = #{carbon_copy := true}} = Message) ->
    Message;
sm_receive_packet(#message{to = #jid{luser = LUser, lserver = Host}, from = #jid{} = From} = Message) ->
    Ctx = mod_amphora:ctx(Host),
    case mod_amphora_xml:has_rules(Message) of
        true ->
            intercept_rules(Ctx, Message);
        false ->
            %% what an archive found is not held up, for the end of the search is not
            case mod_amphora_xml:is_result(Message) of
                true -> Message;
                false -> follow_or_go_on(Ctx, mod_amphora_facts:bare(LUser, Host), jid:encode(From), Message)
            end
    end;
sm_receive_packet(Packet) ->
    Packet.

intercept_rules(#{host := Host} = Ctx, #message{to = #jid{luser = LUser}, from = From} = Message) ->
    Bare = mod_amphora_facts:bare(LUser, Host),
    {Index, Worker} = mod_amphora:worker(Ctx, Bare),
    Key = mod_amphora:new_key(Ctx, Index),
    Marked = identify(Host, Message, Bare, Key),
    El = mod_amphora_xml:encode(Marked),
    case mod_amphora_facts:too_large(El, mod_amphora:opt(Host, max_stanza)) of
        true ->
            Text = <<"The message is too large for its rules to be processed">>,
            mod_amphora_xml:bounce(Message, xmpp:err_policy_violation(Text, <<"en">>)),
            drop;
        false ->
            hold(Ctx, Index, Worker, held_of(Ctx, Bare, Key, Message, El, rules, #h{
                has_rules = true, may_see = mod_amphora_facts:may_see(LUser, Host, From)
            }), El),
            drop
    end.

%% A message that the archive has not seen gets the id that lets a client know it again, unless there is
%% an archive: that has the first word then. One that is there already is forged.
identify(Host, Message, Bare, Key) ->
    case mod_amphora_facts:archives(Host) of
        true -> Message;
        false -> mod_amphora_xml:with_ids(Message, {Bare, mod_amphora_xml:own_id(Bare, Key)})
    end.

held_of(Ctx, Bare, Key, #message{to = To, from = From}, El, Stage, H) ->
    H#h{
        key = Key,
        bare = Bare,
        luser = To#jid.luser,
        from = jid:encode(From),
        from_jid = From,
        to = To,
        stage = Stage,
        stamp =
            case H#h.stamp of
                undefined -> mod_amphora_xml:stamp();
                Stamp -> Stamp
            end,
        bytes = mod_amphora_xml:bytes(El),
        ord =
            case H#h.ord of
                undefined -> mod_amphora:new_ord(Ctx);
                Ord -> Ord
            end
    }.

%% Into the journal and the tables, then to the worker. Waits for it when too much is held.
hold(#{held := Held, counters := Counters, opts := Opts} = Ctx, Index, Worker, H0, El) ->
    H = journal_anew(Ctx, H0, El),
    count_pair(Ctx, H, 1),
    ets:insert(Held, {H#h.key, Index, H, El}),
    Count = atomics:add_get(Counters, 3, 1),
    Bytes = atomics:add_get(Counters, 4, H#h.bytes),
    Worker ! {amphora_hold, H},
    case Count > map_get(held_messages, Opts) orelse Bytes > map_get(held_bytes, Opts) of
        true -> wait_for(Worker);
        false -> ok
    end.

%% So that it outlives the server, however that ends. It stays in memory. A settled send is not kept at
%% rules: who asked for it asks again.
journal(_Ctx, #h{stage = rules, settle = true} = H, _El) ->
    H;
journal(#{opts := #{journal := true}} = Ctx, #h{bare = Bare, spooled = undefined} = H, El) ->
    H#h{spooled = append(Ctx, Bare, record_of(H, El))};
journal(_Ctx, H, _El) ->
    H.

%% The handle of what is in the journal now; undefined if it can't be.
append(#{host := Host} = Ctx, Bare, Record) ->
    try is_spool_open(Ctx) andalso mod_amphora_journal:append(Host, Bare, Record) of
        {ok, Handle} -> Handle;
        _ -> undefined
    catch
        exit:_ -> undefined
    end.

is_spool_open(#{host := Host, opts := #{spool_limit := Limit}}) ->
    #{failing := Failing, size := Size} = mod_amphora_spool:status(Host),
    not Failing andalso Size < Limit.

%% What is held is at another stage than the one under which it is in the journal.
journal_anew(#{host := Host}, #h{bare = Bare, spooled = Handle} = H, El) when Handle /= undefined ->
    mod_amphora_spool:replace(Host, Bare, Handle, record_of(H, El)),
    H;
journal_anew(Ctx, H, El) ->
    journal(Ctx, H, El).

%% What waits for its turn is in the journal as well, if it could come to be stored.
journal_turn(#{host := Host, opts := #{journal := true}} = Ctx, Index, Bare, From, #f{message = Message, ord = Ord} = F) ->
    case mod_amphora_facts:is_storable(Host, Message) of
        true ->
            Key = mod_amphora:new_key(Ctx, Index),
            Stamp = mod_amphora_xml:stamp(),
            Record = #{
                key => Key,
                stage => turn,
                ord => Ord,
                stamp => Stamp,
                archived => false,
                from => From,
                addressed => jid:encode(Message#message.to),
                el => mod_amphora_xml:encode(Message)
            },
            F#f{key = Key, stamp = Stamp, spooled = append(Ctx, Bare, Record)};
        false ->
            F
    end;
journal_turn(_Ctx, _Index, _Bare, _From, F) ->
    F.

wait_for(Worker) ->
    case whereis(Worker) of
        Pid when Pid == self(); Pid == undefined ->
            ok;
        Pid ->
            try
                gen_server:call(Pid, sync, 30000)
            catch
                _:_ -> ok
            end
    end.

%% How much of a pair is undecided, and how much of that is at rules or waits for its turn.
count_pair(#{pairs := Pairs}, #h{bare = Bare, from = From, stage = rules}, N) -> count_pair(Pairs, Bare, From, N, N);
count_pair(#{pairs := Pairs}, #h{bare = Bare, from = From}, N) -> count_pair(Pairs, Bare, From, N, 0).

count_pair(Pairs, Bare, From, All, Open) ->
    Id = {Bare, From},
    case ets:update_counter(Pairs, Id, [{2, All}, {3, Open}], {Id, 0, 0}) of
        [0, _] when All < 0 -> ets:delete_object(Pairs, {Id, 0, 0});
        _ -> ok
    end.

%% Something of its pair is undecided: it waits behind that, unless it goes the same way to the storage.
follow_or_go_on(#{pairs := Pairs} = Ctx, Bare, From, Message) ->
    case ets:lookup(Pairs, {Bare, From}) of
        [{_, All, Open}] when All > 0 ->
            case Open =< 0 andalso not is_one_ending(Ctx, Bare) andalso is_nobody_there(Message) of
                true -> redirect_or_go_on(Ctx, Bare, Message);
                false -> follow(Ctx, Bare, From, Message)
            end;
        _ ->
            case is_one_ending(Ctx, Bare) of
                true -> follow(Ctx, Bare, From, Message);
                false -> redirect_or_go_on(Ctx, Bare, Message)
            end
    end.

is_one_ending(#{counters := Counters, pairs := Pairs}, Bare) ->
    atomics:get(Counters, 9) > 0 andalso ets:member(Pairs, {Bare, ending}).

is_nobody_there(#message{to = #jid{luser = LUser, lserver = Host, lresource = LResource}}) ->
    not lists:any(
        fun({Priority, Resource}) -> Priority >= 0 orelse Resource == LResource end,
        ejabberd_sm:get_user_present_resources(LUser, Host)
    ) andalso (LResource == <<>> orelse ejabberd_sm:get_session_pid(LUser, Host, LResource) == none).

follow(#{counters := Counters, opts := Opts, pairs := Pairs} = Ctx, Bare, From, Message) ->
    {Index, Worker} = mod_amphora:worker(Ctx, Bare),
    case
        atomics:get(Counters, 3) >= 2 * map_get(held_messages, Opts) orelse
            atomics:get(Counters, 4) >= 2 * map_get(held_bytes, Opts)
    of
        true ->
            mod_amphora_xml:bounce(Message, xmpp:err_resource_constraint()),
            drop;
        false ->
            count_pair(Pairs, Bare, From, 1, 1),
            Bytes = erlang:external_size(Message),
            atomics:add(Counters, 3, 1),
            atomics:add(Counters, 4, Bytes),
            F = #f{ord = mod_amphora:new_ord(Ctx), message = Message, since = mod_amphora:now_ms(), bytes = Bytes},
            Worker ! {amphora_follow, Bare, From, journal_turn(Ctx, Index, Bare, From, F)},
            drop
    end.

redirect_or_go_on(#{host := Host} = Ctx, Bare, #message{from = From, to = To} = Message) ->
    case mod_amphora_forward:any(Host) of
        false ->
            mark_copies(Ctx, Message);
        true ->
            case
                mod_amphora_facts:is_blocked(To#jid.luser, Host, From) orelse
                    not mod_amphora_forward:redirect(Host, Bare, Message)
            of
                true -> mark_copies(Ctx, Message);
                false -> drop
            end
    end.

%% Its place in the order of arrival, for a session that is resumed; and where several sessions may get it,
%% the name of their copies, see mod_amphora_gate.
mark_copies(_Ctx, #message{meta = #{amphora_ord := _}} = Message) ->
    Message;
mark_copies(Ctx, #message{type = Type} = Message) when Type == chat; Type == normal ->
    mark_several(Ctx, xmpp:put_meta(Message, amphora_ord, mod_amphora:new_ord(Ctx)));
mark_copies(Ctx, Message) ->
    mark_several(Ctx, Message).

mark_several(Ctx, #message{to = #jid{luser = LUser, lserver = Host}} = Message) ->
    case ejabberd_sm:get_user_present_resources(LUser, Host) of
        [_, _ | _] -> xmpp:put_meta(Message, amphora_copy, mod_amphora_gate:new_copy(Ctx));
        _ -> Message
    end.

%% The server would discard an error to someone who is away. If it is the answer to a rule, it is kept
%% for the sender like a message.
keep_notice(#message{to = #jid{luser = LUser, lserver = Host, lresource = LResource}} = Message) ->
    case mod_amphora_xml:notice_status(Message) of
        undefined ->
            Message;
        _ ->
            case
                (LResource == <<>> orelse ejabberd_sm:get_session_pid(LUser, Host, LResource) == none) andalso
                    mod_amphora_facts:account_exists(LUser, Host)
            of
                true ->
                    for_storage(mod_amphora:ctx(Host), Message, false, #h{}),
                    drop;
                false ->
                    Message
            end
    end.

%% Whatever would go to offline storage. In a worker that routes a message again it is caught with its key.
offline_message({_, #message{meta = #{amphora_kept := true}} = Message}) ->
    {offlined, Message};
offline_message({Action, #message{to = #jid{lserver = Host}} = Message} = Acc) when
    Action == bounce; Action == archived
->
    case mod_amphora_facts:is_storable(Host, Message) of
        false ->
            Acc;
        true ->
            Archived = Action == archived,
            case get(amphora_routing) of
                undefined -> store(mod_amphora:ctx(Host), Message, Archived);
                Routing -> capture(Routing, Message, Archived)
            end,
            {offlined, Message}
    end;
offline_message(Acc) ->
    Acc.

%% What was written to a session before and comes back out of its process comes under its key.
store(Ctx, #message{meta = #{amphora := #{key := Key, stamp := Stamp}}} = Message, Archived) ->
    undelivered(Ctx, Message, #{key => Key, stamp => Stamp, archived => Archived});
%% It was in the mailbox of a session that ended: older than what waits for its turn.
store(Ctx, #message{meta = #{amphora_back := true}} = Message, Archived) ->
    undelivered(Ctx, Message, #{archived => Archived});
store(Ctx, Message, Archived) ->
    for_storage(Ctx, Message, Archived, #h{}).

capture({Bare, From, Ord}, #message{to = #jid{luser = LUser, lserver = Host}, from = FromJID} = Message, Archived) ->
    case {mod_amphora_facts:bare(LUser, Host), jid:encode(FromJID)} of
        {Bare, From} -> put(amphora_captured, {Message, Archived});
        _ -> for_storage(mod_amphora:ctx(Host), Message, Archived, #h{})
    end,
    _ = Ord,
    ok.

%% Holds a message at stage offline, or at undelivered if `H` says so.
for_storage(#{host := Host} = Ctx, #message{to = #jid{luser = LUser}} = Message, Archived, H0) ->
    Bare = mod_amphora_facts:bare(LUser, Host),
    {Index, Worker} = mod_amphora:worker(Ctx, Bare),
    Key =
        case H0#h.key of
            undefined -> mod_amphora:new_key(Ctx, Index);
            Known -> Known
        end,
    {El, IsArchived} = mod_amphora_facts:seal(Message, Bare, Key, Archived),
    Stage =
        case H0#h.stage of
            undefined -> offline;
            Given -> Given
        end,
    H = held_of(Ctx, Bare, Key, Message, El, Stage, H0#h{
        archived = IsArchived, has_rules = mod_amphora_xml:has_rules(Message)
    }),
    case mod_amphora_facts:too_large(El, mod_amphora:opt(Host, max_stanza)) of
        true ->
            H#h.spooled == undefined orelse mod_amphora_spool:delete(Host, Bare, H#h.spooled),
            refuse(Ctx, H, Message, too_large_to_store());
        false ->
            hold(Ctx, Index, Worker, H, El)
    end.

too_large_to_store() -> xmpp:err_policy_violation(<<"The message is too large to be stored">>, <<"en">>).

%% It can't be kept. Whoever asked for it is told so; not a sender who may not know.
refuse(#{host := Host} = Ctx, #h{key = Key, settle = Settle} = H, Message, Error) ->
    case Settle orelse mod_amphora_broadcast:is_key(Key) of
        true ->
            mod_amphora_broadcast:settled(Host, Key, <<"discarded">>);
        false ->
            case is_silent(Ctx, H) of
                true -> ok;
                false -> mod_amphora_xml:bounce(Message, Error)
            end
    end.

%% Where rules are not for everybody, an error that depends on where the recipient is would tell the
%% sender of a message with rules what he may not know.
is_silent(#{host := Host} = Ctx, #h{has_rules = true, luser = LUser, from_jid = From}) ->
    mod_amphora_link:security(Ctx) == strict andalso not mod_amphora_facts:may_see(LUser, Host, From);
is_silent(_Ctx, _H) ->
    false.

filter_packet(Packet) ->
    mod_amphora_journal:routes(Packet),
    filter(Packet).

%% What the server answers to a message that goes on: nothing, if that is in silence; and without what the
%% sender wrote.
filter(#message{type = error, meta = #{amphora := #{silent := true}}}) ->
    drop;
%% of one that was sent on in silence
filter(#message{type = error, meta = #{amphora_silent := true}}) ->
    drop;
filter(#message{type = error, meta = #{amphora := #{key := _}}, sub_els = Els} = Message) ->
    Message#message{body = [], subject = [], thread = undefined, sub_els = [E || #stanza_error{} = E <- Els]};
filter(Packet) ->
    Packet.

remove_user(User, Server) ->
    Host = jid:nameprep(Server),
    mod_amphora:loaded(Host) andalso remove_account(Host, mod_amphora_facts:bare(jid:nodeprep(User), Host)).

%%% ------------------------------------------------------------------ what other modules ask

%% A message of the host's own, under a key that came with it: a settled send. It is told of by
%% mod_amphora_broadcast:settled/3 or dropped/2.
-spec hold_own(binary(), binary(), message(), binary(), boolean()) -> ok | {error, stanza_error()}.
hold_own(Host, Bare, Message, Key, Again) ->
    #{counters := Counters, opts := Opts} = Ctx = mod_amphora:ctx(Host),
    {Index, Worker} = mod_amphora:worker(Ctx, Bare),
    Marked = identify(Host, Message, Bare, Key),
    El = mod_amphora_xml:encode(Marked),
    Full =
        is_spooling(Ctx) orelse atomics:get(Counters, 3) >= map_get(held_messages, Opts) orelse
            atomics:get(Counters, 4) >= map_get(held_bytes, Opts),
    case mod_amphora_facts:too_large(El, map_get(max_stanza, Opts)) of
        true ->
            {error, xmpp:err_policy_violation(<<"The message is too large">>, <<"en">>)};
        false when Full ->
            {error, xmpp:err_resource_constraint(<<"The server can hold no more messages now">>, <<"en">>)};
        false ->
            ets:insert(map_get(foreign, Ctx), {Key, Worker}),
            H = held_of(Ctx, Bare, Key, Marked, El, rules, #h{settle = true, again = Again, may_see = true}),
            hold(Ctx, Index, Worker, H, El)
    end.

%% Is the message of that key held, in memory or in the spool?
-spec holds(binary(), binary(), binary()) -> boolean().
holds(Host, Bare, Key) ->
    ets:member(map_get(held, mod_amphora:ctx(Host)), Key) orelse
        (mod_amphora_spool:pending(Host, Bare) andalso mod_amphora_spool:known(Host, Key)).

%% Puts a message that waits in a session's gate into the journal: its key and its handle, or none. `What` as
%% below, and copy: the name of its copies, which is the key of one that was never intercepted. It does not
%% wait until that is written: its client's acknowledgements are behind this in the session's mailbox.
-spec keep(map(), message(), map()) -> {binary(), mod_amphora_spool:handle()} | none.
keep(#{host := Host, opts := #{journal := true, max_stanza := Max}} = Ctx, #message{to = To} = Message, What) ->
    Bare = mod_amphora_facts:bare(To#jid.luser, Host),
    {Index, _} = mod_amphora:worker(Ctx, Bare),
    Key =
        case What of
            #{key := Given} -> Given;
            #{copy := Name} -> Name;
            _ -> mod_amphora:new_key(Ctx, Index)
        end,
    {El, IsArchived} = mod_amphora_facts:seal(Message, Bare, Key, map_get(archived, What)),
    H = held_of(Ctx, Bare, Key, Message, El, undelivered, #h{
        archived = IsArchived, stamp = map_get(stamp, What), ord = xmpp:get_meta(Message, amphora_ord, undefined)
    }),
    case mod_amphora_facts:too_large(El, Max) orelse not is_spool_open(Ctx) of
        true -> none;
        false -> {Key, mod_amphora_spool:append_behind(Host, Bare, record_of(H, El))}
    end;
keep(_Ctx, _Message, _What) ->
    none.

%% A message that a session did not acknowledge, or that waited in its gate. `What`: key (if it was
%% intercepted before), stamp, archived, session (its full JID, if that is still there), spooled (its handle).
-spec undelivered(map(), message(), map()) -> ok.
undelivered(#{host := Host, held := Held, foreign := Foreign} = Ctx, #message{to = To} = Message, What) ->
    Key = maps:get(key, What, undefined),
    Bare = mod_amphora_facts:bare(To#jid.luser, Host),
    {_, Worker} = mod_amphora:worker(Ctx, Bare),
    case Key /= undefined andalso is_held(Held, Key, Worker) of
        true ->
            ok;
        false ->
            [ets:insert(Foreign, {Key, Worker}) || Key /= undefined, is_foreign(Ctx, Key, Bare)],
            Settle = Key /= undefined andalso mod_amphora_broadcast:is_key(Key),
            _ = Settle andalso mod_amphora_broadcast:returned(Host, Key),
            for_storage(Ctx, Message#message{to = maps:get(session, What, To)}, maps:get(archived, What, false), #h{
                key = Key,
                stage = undelivered,
                again = true,
                stamp = maps:get(stamp, What, undefined),
                settle = Settle,
                spooled = maps:get(spooled, What, undefined)
            }),
            ok
    end.

%% The worker may be about to note that a session has it.
is_held(Held, Key, Worker) ->
    ets:member(Held, Key) andalso
        begin
            _ = wait_for(Worker),
            ets:member(Held, Key)
        end.

is_foreign(#{token := Token} = Ctx, Key, Bare) ->
    {Index, _} = mod_amphora:worker(Ctx, Bare),
    mod_amphora:owner_of(Ctx, Key) /= {Token, Index}.

%% Sends {amphora_settled, Ref} to the caller when all is decided that is undecided now.
-spec when_settled(binary(), binary(), term()) -> ok.
when_settled(Host, Bare, Ref) ->
    {_, Worker} = mod_amphora:worker(mod_amphora:ctx(Host), Bare),
    Worker ! {amphora_tell, Bare, self(), {amphora_settled, Ref}},
    ok.

%% Routes a stanza of the host's own.
route_own(Message) ->
    try
        ejabberd_router:route(Message)
    catch
        Class:Reason:Stack -> ?ERROR_MSG("A stanza could not be routed: ~p", [{Class, Reason, Stack}])
    end.

%% Messages that are held, and their size.
held(#{counters := Counters}) -> {atomics:get(Counters, 3), atomics:get(Counters, 4)}.

%% What is held for the account is dropped; the node is told before anything else about it.
remove_account(Host, Bare) ->
    Ctx = mod_amphora:ctx(Host),
    {_, Worker} = mod_amphora:worker(Ctx, Bare),
    Stamp = mod_amphora_xml:stamp(),
    try
        gen_server:call(Worker, {remove_account, Bare, Stamp}, 30000)
    catch
        _:_ -> ok
    end,
    gen_server:cast(mod_amphora:link_process(Host), {removed, Bare, Stamp}).

removal_done(Host, Bare) ->
    {_, Worker} = mod_amphora:worker(mod_amphora:ctx(Host), Bare),
    gen_server:cast(Worker, {removal_done, Bare}).

%% They were read anew.
options(Host) -> everyone(mod_amphora:ctx(Host), amphora_options).

%% The links that are there now.
links(Ctx, Links) -> everyone(Ctx, {amphora_links, Links}).

peers(Host, Nodes) -> everyone(mod_amphora:ctx(Host), {amphora_peers, Nodes}).

node_down(Host, Node) -> everyone(mod_amphora:ctx(Host), {amphora_node_down, Node}).

everyone(#{workers := Workers}, Message) ->
    [erlang:send(Pid, Message) || Name <- tuple_to_list(Workers), Pid <- [whereis(Name)], is_pid(Pid)],
    ok.

%% From sessions: see mod_amphora_seats.
seat(Ctx, Bare, Message) ->
    {_, Worker} = mod_amphora:worker(Ctx, Bare),
    case whereis(Worker) of
        undefined -> ok;
        Pid -> Pid ! {amphora_seat, Message}
    end,
    ok.

%% A session of the user's ends in this process. Returns when what is sent to him waits until the process is
%% gone, on each node of the cluster: what is in its mailbox by then is older.
-spec session_ends(map(), binary()) -> ok.
session_ends(Ctx, Bare) ->
    {_, Worker} = mod_amphora:worker(Ctx, Bare),
    Request = {session_ends, Bare, self()},
    try gen_server:call(Worker, Request) of
        {ok, Peers} ->
            _ = gen_server:multi_call(Peers, Worker, Request, ?PEERS_MS),
            ok
    catch
        exit:_ -> ok
    end.

%% Everything goes to the spool, and stays there until the module is started again.
stop_all(Host, Why) ->
    [
        try
            gen_server:call(Name, {stop_all, Why}, 60000)
        catch
            _:_ -> ok
        end
     || Name <- tuple_to_list(map_get(workers, mod_amphora:ctx(Host)))
    ],
    ok.

%%% ------------------------------------------------------------------ the process

init([Host, Index]) ->
    process_flag(trap_exit, true),
    Ctx = mod_amphora:ctx(Host),
    W = #w{ctx = Ctx, host = Host, index = Index, name = element(Index + 1, map_get(workers, Ctx))},
    erlang:send_after(?SWEEP, self(), sweep),
    forget_endings(Ctx, Index),
    self() ! restore,
    {ok, W}.

%% What an earlier process of this name held, and accounts that a node does not know of yet.
restore_held(#w{ctx = #{held := Held}, index = Index} = W) ->
    Rows = ets:match_object(Held, {'_', Index, '_', '_'}),
    lists:foldl(
        fun({_, _, H, _}, Acc) -> take_in(Acc, H#h{again = true, ever_sent = true, gen = undefined}) end,
        W,
        lists:sort(fun({_, _, A, _}, {_, _, B, _}) -> A#h.ord =< B#h.ord end, Rows)
    ).

restore_removals(#w{host = Host, ctx = Ctx, index = Index} = W) ->
    lists:foldl(
        fun({Bare, Stamp}, Acc) -> put_user(Acc, (user(Acc, Bare))#user{removal = Stamp}) end,
        W,
        [R || {Bare, _} = R <- mod_amphora_spool:removals(Host), element(1, mod_amphora:worker(Ctx, Bare)) == Index]
    ).

handle_continue_restore(W) ->
    set_links(restore_held(restore_removals(W)), mod_amphora_link:links(W#w.ctx)).

handle_call(sync, _From, W) ->
    {reply, ok, W, 0};
handle_call({remove_account, Bare, Stamp}, _From, W) ->
    {reply, ok, do_remove_account(W, Bare, Stamp), 0};
handle_call({session_ends, Bare, Pid}, _From, W) ->
    {reply, {ok, W#w.peers}, session_ending(W, Bare, Pid), 0};
handle_call({stop_all, Why}, _From, W) ->
    {reply, ok, cross_out(flush(spool_all(W#w{stopping = true}, Why))), 0};
handle_call(_Request, _From, W) ->
    {reply, ok, W, 0}.

handle_cast({removal_done, Bare}, W) ->
    User = user(W, Bare),
    W1 = lists:foldl(
        fun(From, Acc) -> enqueue(Acc, Bare, From) end,
        put_user(W, User#user{removal = undefined}),
        maps:keys(User#user.pairs)
    ),
    {noreply, release_user(mod_amphora_seats:check(W1, Bare), Bare), 0};
handle_cast(_Message, W) ->
    {noreply, W, 0}.

handle_info(Message, W) ->
    W1 =
        try
            on_info(Message, W)
        catch
            Class:Reason:Stack ->
                ?ERROR_MSG("A worker of ~ts failed at ~P: ~p", [W#w.host, Message, 20, {Class, Reason, Stack}]),
                W
        end,
    case Message of
        timeout -> {noreply, W1};
        _ when W1#w.out_bytes > ?BATCH_BYTES -> {noreply, flush(W1), 0};
        _ -> {noreply, W1, 0}
    end.

%% The mailbox is empty: what one turn brought goes out together.
on_info(timeout, W) -> flush_or_linger(cross_out(pump(W)));
on_info(amphora_flush, W) -> flush(W#w{lingers = false});
on_info({amphora_hold, H}, W) -> pump(take_in(W, H));
on_info({amphora_follow, Bare, From, F}, W) -> add_follower(W, Bare, From, F);
on_info({amphora_verdicts, Component, Gen, Verdicts}, W) -> pump(verdicts(W, {Component, Gen}, Verdicts));
on_info({amphora_verdict, _, _, _}, W) -> W;
on_info({amphora_written, Key}, W) -> written(W, Key);
on_info({amphora_unwritten, Key}, W) -> unwritten_by_one(W, Key);
on_info({amphora_seat, {reason, Reason}}, W) -> mod_amphora_seats:reason(W, Reason);
on_info({amphora_seat, {left, Id}}, W) -> mod_amphora_seats:left(W, Id);
on_info({amphora_seat, {ended, Bare, Id, What}}, W) -> mod_amphora_seats:ended(W, Bare, Id, What);
on_info({amphora_seat, {answered, Id}}, W) -> mod_amphora_seats:answered(W, Id);
on_info({amphora_seat, {stored, Bare}}, W) -> renew(W, Bare);
on_info({amphora_seat, {settle, Id, N}}, W) -> mod_amphora_seats:settle(W, Id, N);
on_info({amphora_seat, {not_renewed, Id}}, W) -> mod_amphora_seats:not_renewed(W, Id);
on_info({amphora_seat, {renew, Id, _Pid}}, W) -> mod_amphora_seats:renew(W, Id);
on_info({amphora_seat, {deleted, Id, El}}, W) -> mod_amphora_seats:deleted(W, Id, El);
on_info({amphora_handed_over, Gen, El}, W) ->
    mod_amphora_seats:handed_over(W, mod_amphora_xml:attr(<<"session">>, El), El, Gen);
on_info({amphora_left, Link, El}, W) -> for_one_who_left(W, Link, El);
on_info({amphora_tell, Bare, Pid, Message}, W) -> mod_amphora_seats:wait(W, Bare, {tell, Pid, Message});
on_info({amphora_settle, Bare, Pid, Ref}, W) -> mod_amphora_seats:settle_for(W, Bare, Pid, Ref);
on_info({amphora_peer_settled, Bare, Node, Ref}, W) -> mod_amphora_seats:peer_settled(W, Bare, {Node, Ref});
on_info({amphora_links, Links}, W) -> pump(set_links(W, Links));
on_info({amphora_peers, Nodes}, W) -> W#w{peers = Nodes};
on_info({amphora_node_down, Node}, W) -> mod_amphora_seats:node_down(W, Node);
on_info({'DOWN', Ref, process, Pid, _}, #w{endings = Endings} = W) when is_map_key(Ref, Endings) ->
    case node(Pid) == node() of
        true -> pump(session_ended(W, Ref));
        %% what came out of its mailbox is decided on its node
        false ->
            Ended = {amphora_session_ended, Ref},
            erlang:send_after(?PEERS_MS, self(), Ended),
            mod_amphora_seats:wait_for_peers(W, map_get(Ref, Endings), {tell, self(), Ended})
    end;
on_info({'DOWN', Ref, process, _, _}, W) -> mod_amphora_seats:down(W, Ref);
on_info({amphora_session_ended, Ref}, #w{endings = Endings} = W) when is_map_key(Ref, Endings) ->
    pump(session_ended(W, Ref));
on_info(amphora_options, W) -> W#w{ctx = mod_amphora:ctx(W#w.host)};
on_info(restore, W) -> handle_continue_restore(W);
on_info(sweep, W) ->
    erlang:send_after(?SWEEP, self(), sweep),
    pump(sweep(W));
on_info(_Message, W) -> W.

for_one_who_left(W, Link, #xmlel{name = Name} = El) ->
    Id = mod_amphora_xml:attr(<<"session">>, El),
    case mod_amphora_seats:is_of_link(W, Id, Link) andalso Name of
        false ->
            W;
        <<"deleted">> ->
            mod_amphora_seats:deleted(W, Id, El);
        <<"hand-over">> ->
            case mod_amphora_seats:late_hand_over(W, Id, El) of
                unknown ->
                    Batch = mod_amphora_xml:attr(<<"batch">>, El),
                    Taken = mod_amphora_xml:el(<<"taken">>, [
                        {<<"for">>, <<>>}, {<<"session">>, Id}, {<<"batch">>, Batch}, {<<"ids">>, <<>>},
                        {<<"ended">>, <<"true">>}
                    ]),
                    put_out(W, Link, Taken, 200);
                W1 ->
                    W1
            end
    end.

terminate(_Reason, _W) ->
    ok.

%%% ------------------------------------------------------------------ users and pairs

user(#w{users = Users}, Bare) ->
    case Users of
        #{Bare := User} ->
            User;
        _ ->
            [LUser, _] = binary:split(Bare, <<"@">>),
            #user{bare = Bare, luser = LUser}
    end.

put_user(#w{users = Users} = W, #user{bare = Bare} = User) -> W#w{users = maps:put(Bare, User, Users)}.

release_user(#w{users = Users} = W, Bare) ->
    case Users of
        #{Bare := #user{pairs = Pairs, waiters = [], removal = undefined, draining = false}} when
            map_size(Pairs) == 0
        ->
            W#w{users = maps:remove(Bare, Users)};
        _ ->
            W
    end.

pair(#w{users = Users}, Bare, From) ->
    case Users of
        #{Bare := #user{pairs = #{From := Pair}}} -> Pair;
        _ -> #pair{}
    end.

put_pair(W, Bare, From, Pair) -> put_pair(W, user(W, Bare), Bare, From, Pair).

put_pair(W, #user{pairs = Pairs} = User, Bare, From, #pair{q = Q, followers = Followers} = Pair) ->
    case gb_trees:is_empty(Q) andalso queue:is_empty(Followers) of
        true ->
            W1 = put_user(W, User#user{pairs = maps:remove(From, Pairs)}),
            release_user(unpause(W1, {Bare, From}), Bare);
        false ->
            put_user(W, User#user{pairs = Pairs#{From => Pair}})
    end.

unpause(#w{paused = Paused} = W, Id) when is_map_key(Id, Paused) -> W#w{paused = maps:remove(Id, Paused)};
unpause(W, _Id) -> W.

put_held(#w{held = Held} = W, #h{key = Key} = H) -> W#w{held = maps:put(Key, H, Held)}.

element_of(#w{ctx = #{held := Held}}, #h{key = Key}) -> ets:lookup_element(Held, Key, 4).

message_of(W, H) ->
    case mod_amphora_xml:decode(element_of(W, H)) of
        {ok, Message} ->
            {ok, Message#message{to = H#h.to}};
        error ->
            ?ERROR_MSG("Held message ~ts can't be read", [H#h.key]),
            error
    end.

%% A refusal is outside the pair's order: who must not know what the recipient does must not notice
%% either when the pair pauses.
is_outside(#h{stage = rules, may_see = false}) -> true;
is_outside(_) -> false.

%% Into its pair, by ord.
insert(W, #h{bare = Bare, from = From} = H0) ->
    Pair = pair(W, Bare, From),
    H = H0#h{ord = free_ord(H0, Pair), came = H0#h.ord},
    #h{ord = Ord, key = Key, stage = Stage} = H,
    Rules =
        case Stage of
            rules -> gb_sets:add(Ord, Pair#pair.rules);
            _ -> Pair#pair.rules
        end,
    Pair1 = Pair#pair{
        q = gb_trees:enter(Ord, Key, Pair#pair.q), unsent = gb_sets:add(Ord, Pair#pair.unsent), rules = Rules
    },
    {put_held(put_pair(W, Bare, From, Pair1), H), H}.

%% The place of a message that comes back: it is older than what waits in its pair, at rules or for its
%% turn, and must not come after that.
free_ord(#h{stage = undelivered, ord = Ord, loaded = false}, #pair{rules = Rules, followers = Followers, q = Q}) ->
    Limits =
        [gb_sets:smallest(Rules) || not gb_sets:is_empty(Rules)] ++
            [F#f.ord || {value, F} <- [queue:peek(Followers)]],
    case Limits of
        [] -> free(Ord, Q);
        _ -> free(mod_amphora:ord_before(lists:min(Limits), Ord), Q)
    end;
free_ord(#h{ord = Ord}, #pair{q = Q}) ->
    free(Ord, Q).

free(Ord, Q) ->
    case gb_trees:is_defined(Ord, Q) of
        true -> free(Ord + 1, Q);
        false -> Ord
    end.

%% The list of what was sent to the user's storage and is undecided. What the spool held comes before
%% anything that has a number: it was not settled for anybody while it was there.
enter_storage(W, #h{seq = undefined, bare = Bare, key = Key, loaded = Loaded} = H) ->
    {W1, Seq} =
        case Loaded of
            true -> {W, 0};
            false -> {W#w{seq = W#w.seq + 1}, W#w.seq + 1}
        end,
    User = user(W1, Bare),
    W2 = put_user(W1, User#user{storage = gb_sets:add({Seq, Key}, User#user.storage)}),
    H1 = H#h{seq = Seq},
    {put_held(W2, H1), H1};
enter_storage(W, H) ->
    {W, H}.

%% The smallest number of what is undecided for the user's storage, 0 for what the spool has; none.
unsettled(#w{host = Host}, #user{bare = Bare, storage = Storage, removal = Removal}) ->
    case Removal /= undefined orelse mod_amphora_spool:pending(Host, Bare) of
        true ->
            0;
        false ->
            case gb_sets:is_empty(Storage) of
                true -> none;
                false -> element(1, gb_sets:smallest(Storage))
            end
    end.

%% Takes a message out of all lists. What it was decided to be is the caller's.
leave(#w{ctx = #{held := Held, counters := Counters, foreign := Foreign} = Ctx} = W, #h{key = Key} = H0) ->
    W0 = answered(W, H0),
    H = maps:get(Key, W0#w.held),
    #h{bare = Bare, from = From, ord = Ord, seq = Seq, bytes = Bytes} = H,
    Pair = pair(W0, Bare, From),
    User0 = user(W0, Bare),
    User =
        case Seq of
            undefined -> User0;
            _ -> User0#user{storage = gb_sets:delete_any({Seq, Key}, User0#user.storage)}
        end,
    ets:delete(Held, Key),
    ets:delete(Foreign, Key),
    atomics:sub(Counters, 3, 1),
    atomics:sub(Counters, 4, Bytes),
    count_pair(Ctx, H, -1),
    put_pair(W0#w{held = maps:remove(Key, W0#w.held)}, User, Bare, From, Pair#pair{
        q = gb_trees:delete_any(Ord, Pair#pair.q),
        unsent = gb_sets:delete_any(Ord, Pair#pair.unsent),
        rules = gb_sets:delete_any(Ord, Pair#pair.rules)
    }).

%%% ------------------------------------------------------------------ taking in

is_spooling(Ctx) ->
    mod_amphora_link:links(Ctx) == [] andalso
        mod_amphora:now_ms() - mod_amphora_link:lost_at(Ctx) >= map_get(hold, map_get(opts, Ctx)).

%% Without a node for so long, or with the server about to end, nothing is kept in memory.
straight_to_spool(#w{stopping = true}) -> true;
straight_to_spool(#w{links = [], ctx = Ctx}) -> is_spooling(Ctx);
straight_to_spool(_) -> false.

memory_short(#w{ctx = #{counters := Counters, opts := Opts}}) ->
    atomics:get(Counters, 3) > map_get(held_messages, Opts) orelse
        atomics:get(Counters, 4) > map_get(held_bytes, Opts).

%% For one more out of the spool.
has_room(#w{ctx = #{counters := Counters, opts := Opts}}) ->
    atomics:get(Counters, 3) < map_get(held_messages, Opts) andalso
        atomics:get(Counters, 4) < map_get(held_bytes, Opts).

spool_full(#w{host = Host, ctx = #{opts := Opts}}) ->
    #{size := Size, failing := Failing} = mod_amphora_spool:status(Host),
    Failing orelse Size >= map_get(spool_limit, Opts).

%% For one that is not in the journal. While the spool can't be written, memory keeps what it can.
no_place(#w{stopping = Stopping} = W) ->
    case Stopping orelse memory_short(W) of
        true -> spool_full(W);
        false -> straight_to_spool(W) andalso spool_over(W)
    end.

spool_over(#w{host = Host, ctx = #{opts := Opts}}) ->
    #{size := Size, failing := Failing} = mod_amphora_spool:status(Host),
    not Failing andalso Size >= map_get(spool_limit, Opts).

take_in(W, #h{stage = rules} = H) ->
    W1 = make_room(W),
    case straight_to_spool(W1) orelse memory_short(W1) of
        true when H#h.settle ->
            not_held(W1, H),
            mod_amphora_broadcast:dropped(W1#w.host, H#h.key),
            W1;
        true when not H#h.ever_sent ->
            bounce(W1, H, xmpp:err_service_unavailable()),
            not_held(W1, H),
            W1;
        _ ->
            {W2, H1} = insert(W1, H),
            case is_outside(H1) of
                %% At once, so that a refusal takes as long whatever the recipient does.
                true -> W2#w{urgent = queue:in(H1#h.key, W2#w.urgent)};
                false -> admit(W2, H1)
            end
    end;
take_in(W, H) ->
    W1 = make_room(W),
    %% what is in the journal has its room already
    IsSpooled = H#h.spooled /= undefined,
    case not IsSpooled andalso no_place(W1) of
        true ->
            case message_of(W1, H) of
                {ok, Message} ->
                    Text = <<"The server can keep no more messages">>,
                    refuse(W1#w.ctx, H, Message, xmpp:err_resource_constraint(Text, <<"en">>));
                error ->
                    ok
            end,
            not_held(W1, H),
            W1;
        _ ->
            {W2, H1} = insert(W1, H),
            keep_place(W2, H, H1),
            {W3, H2} = enter_storage(W2, H1),
            admit(W3, H2)
    end.

%% It got another place in its pair than the one under which it is in the journal.
keep_place(#w{host = Host} = W, #h{ord = Came}, #h{ord = Ord, bare = Bare, spooled = Handle} = H) when
    Ord /= Came, Handle /= undefined
->
    mod_amphora_spool:replace(Host, Bare, Handle, record_of(H, element_of(W, H)));
keep_place(_W, _Came, _H) ->
    ok.

%% It was never in a list of ours.
not_held(#w{ctx = #{held := Held, counters := Counters, foreign := Foreign} = Ctx} = W, H) ->
    #h{key = Key, bytes = Bytes} = H,
    unspool(W, H),
    ets:delete(Held, Key),
    ets:delete(Foreign, Key),
    atomics:sub(Counters, 3, 1),
    atomics:sub(Counters, 4, Bytes),
    count_pair(Ctx, H, -1).

bounce(#w{} = W, H, Error) ->
    case message_of(W, H) of
        {ok, #message{type = error}} -> ok;
        {ok, Message} -> mod_amphora_xml:bounce(Message, Error);
        error -> ok
    end.

%% Without a node and with too much in memory, the spool takes all of it, so that what comes next finds
%% room.
make_room(#w{links = [], stopping = false} = W) ->
    case memory_short(W) andalso not spool_full(W) of
        true -> spool_all(W, <<"Memory is short">>);
        false -> W
    end;
make_room(W) ->
    W.

%% A message that waits at its stage goes to the link, or behind what the spool has for the user. It stays
%% in memory before others of its pair that are there.
admit(#w{host = Host} = W, #h{stage = Stage, loaded = Loaded, bare = Bare, from = From, ord = Ord} = H) ->
    Pair = pair(W, Bare, From),
    IsLast = not gb_trees:is_empty(Pair#pair.q) andalso element(1, gb_trees:largest(Pair#pair.q)) == Ord,
    Spool =
        Stage /= rules andalso not Loaded andalso
            not is_behind_rules(Pair, Ord) andalso
            (mod_amphora_spool:pending(Host, Bare, Ord) orelse
                (IsLast andalso (straight_to_spool(W) orelse memory_short(W)))),
    case Spool andalso to_spool(W, H) of
        {ok, W1} -> run_followers(W1, Bare, From);
        _ -> enqueue(W, Bare, From)
    end.

is_behind_rules(#pair{rules = Rules}, Ord) -> not gb_sets:is_empty(Rules) andalso gb_sets:smallest(Rules) < Ord.

%%% ------------------------------------------------------------------ the spool

record_of(#h{} = H, El) ->
    #{
        key => H#h.key,
        stage => H#h.stage,
        ord => H#h.ord,
        stamp => H#h.stamp,
        archived => H#h.archived,
        from => H#h.from,
        addressed => jid:encode(H#h.to),
        el => El
    }.

%% Moves a message of a pair to the spool. error if it can't be written: then it stays.
to_spool(W, #h{bare = Bare} = H) ->
    case is_released(W, H) of
        true ->
            W1 = leave(W, H),
            {ok,
                case W1#w.links of
                    [] -> W1;
                    _ -> drain(W1, Bare)
                end};
        false ->
            error
    end.

is_released(#w{host = Host} = W, #h{bare = Bare, spooled = undefined} = H) ->
    case mod_amphora_spool:append(Host, Bare, record_of(H, element_of(W, H))) of
        {ok, Handle} -> mod_amphora_spool:release(Host, Bare, Handle) == ok;
        {error, _} -> false
    end;
is_released(#w{host = Host} = W, #h{bare = Bare, spooled = Handle} = H) ->
    mod_amphora_spool:release(Host, Bare, Handle) == ok orelse is_released(W, H#h{spooled = undefined}).

%% It is nothing that need be kept.
unspool(_W, #h{spooled = undefined}) -> ok;
unspool(#w{host = Host}, #h{bare = Bare, spooled = Handle}) -> mod_amphora_spool:delete(Host, Bare, Handle).

drain(#w{host = Host} = W, Bare) ->
    User = user(W, Bare),
    case not User#user.draining andalso mod_amphora_spool:pending(Host, Bare) of
        true -> drain_by(mod_amphora_link:of_user(W#w.ctx, Bare, W#w.links), W, User);
        false -> W
    end.

%% Without a link it begins when one is there.
drain_by(none, W, _User) ->
    W;
drain_by(#link{id = {_, C}}, #w{draining = Lines} = W, #user{bare = Bare} = User) ->
    Longer = maps:update_with(C, fun(Line) -> queue:in(Bare, Line) end, queue:from_list([Bare]), Lines),
    (put_user(W, User#user{draining = true}))#w{draining = Longer}.

%% The spool's next message of a user whose turn it is, back in its pair.
load_next(#w{draining = Draining, host = Host, ctx = Ctx} = W, Component) ->
    case queue:out(maps:get(Component, Draining, queue:new())) of
        {empty, _} ->
            W;
        {{value, Bare}, Rest} ->
            W1 = put_user(W#w{draining = maps:put(Component, Rest, Draining)}, (user(W, Bare))#user{draining = false}),
            case mod_amphora_spool:load(Host, Bare) of
                {#{key := Key} = Record, Handle} ->
                    case maps:is_key(Key, W1#w.held) of
                        true ->
                            %% the spool was left with two stages of it
                            mod_amphora_spool:delete(Host, Bare, Handle),
                            drain(W1, Bare);
                        false ->
                            drain(load(W1, Ctx, Bare, Record, Handle), Bare)
                    end;
                none ->
                    mod_amphora_seats:check(release_user(W1, Bare), Bare)
            end
    end.

load(W, _Ctx, Bare, #{stage := turn} = R, Handle) ->
    restore_turn(W, Bare, R, Handle);
load(#w{index = Index, name = Name} = W, Ctx, Bare, R, Handle) ->
    #{held := Held, foreign := Foreign, counters := Counters} = Ctx,
    #{key := Key, stage := Stage, el := El, from := From} = R,
    User = user(W, Bare),
    H = #h{
        key = Key,
        bare = Bare,
        luser = User#user.luser,
        from = From,
        from_jid = mod_amphora_facts:jid(From),
        to = mod_amphora_facts:jid(map_get(addressed, R)),
        stage = Stage,
        stamp = map_get(stamp, R),
        bytes = mod_amphora_xml:bytes(El),
        ord = map_get(ord, R),
        archived = map_get(archived, R),
        has_rules = Stage == rules,
        again = true,
        ever_sent = true,
        loaded = true,
        spooled = Handle,
        settle = Stage /= rules andalso mod_amphora_broadcast:is_key(Key)
    },
    H1 = H#h{may_see = Stage == rules andalso mod_amphora_facts:may_see(H#h.luser, W#w.host, H#h.from_jid)},
    count_pair(Ctx, H1, 1),
    ets:insert(Held, {Key, Index, H1, El}),
    [ets:insert(Foreign, {Key, Name}) || is_foreign(Ctx, Key, Bare)],
    atomics:add(Counters, 3, 1),
    atomics:add(Counters, 4, H1#h.bytes),
    {W1, H2} = insert(W, H1),
    {W2, H3} =
        case Stage of
            rules -> {W1, H2};
            _ -> enter_storage(W1, H2)
        end,
    enqueue(W2, Bare, H3#h.from).

%% Everything that is held goes to the spool, or back if it is a message with rules that no node ever saw.
%% What waited only for order goes on.
spool_all(W, Why) ->
    Before = map_size(W#w.held),
    W1 = lists:foldl(
        fun({Bare, From}, Acc) -> spool_pair(Acc, Bare, From) end,
        W,
        [{B, F} || {B, #user{pairs = Pairs}} <- maps:to_list(W#w.users), F <- maps:keys(Pairs)]
    ),
    After = map_size(W1#w.held),
    [
        ?INFO_MSG("~ts: ~b held messages went to the spool or back to their senders", [Why, Before - After])
     || Before > After
    ],
    [
        ?ERROR_MSG("~ts: ~b held messages could not be written to the spool", [Why, After])
     || W1#w.stopping, After > 0
    ],
    W1.

%% In the pair's order: who waits behind a message goes on when it is gone, before the next one.
spool_pair(W, Bare, From) ->
    Pair = pair(W, Bare, From),
    case gb_trees:is_empty(Pair#pair.q) of
        true ->
            run_followers(W, Bare, From);
        false ->
            {_, Key, _} = gb_trees:take_smallest(Pair#pair.q),
            H = maps:get(Key, W#w.held),
            Left =
                case H of
                    #h{stage = rules, settle = true} ->
                        mod_amphora_broadcast:dropped(W#w.host, Key),
                        {ok, leave(W, H)};
                    #h{stage = rules, ever_sent = false} ->
                        bounce(W, H, xmpp:err_service_unavailable()),
                        unspool(W, H),
                        {ok, leave(W, H)};
                    _ ->
                        to_spool(W, H)
                end,
            case Left of
                {ok, W1} -> spool_pair(run_followers(W1, Bare, From), Bare, From);
                error -> W
            end
    end.

%%% ------------------------------------------------------------------ who waits for his turn

add_follower(#w{followers = All} = W, Bare, From, F) ->
    Pair = pair(W, Bare, From),
    W1 = put_pair(W, Bare, From, Pair#pair{followers = in_line(F, Pair#pair.followers)}),
    run_followers(W1#w{followers = queue:in({Bare, From, F#f.ord, F#f.since}, All)}, Bare, From).

%% What comes out of the spool may be older than what is there.
in_line(#f{ord = Ord} = F, Followers) ->
    case queue:peek_r(Followers) of
        {value, #f{ord = Last}} when Last > Ord ->
            {Before, After} = lists:splitwith(fun(#f{ord = O}) -> O =< Ord end, queue:to_list(Followers)),
            queue:from_list(Before ++ [F | After]);
        _ ->
            queue:in(F, Followers)
    end.

%% Those with nothing undecided before them go on, and none while a session of their user's is ending.
run_followers(#w{ending = Ending, stopping = false} = W, Bare, _From) when is_map_key(Bare, Ending) ->
    W;
run_followers(W, Bare, From) ->
    #pair{q = Q, followers = Followers} = pair(W, Bare, From),
    case queue:peek(Followers) of
        {value, #f{ord = Ord}} ->
            case waits_for_one(W, gb_trees:next(gb_trees:iterator(Q)), Ord) of
                false -> run_followers(go_on(W, Bare, From), Bare, From);
                true -> W
            end;
        empty ->
            W
    end.

%% Is one undecided that was there when it came?
waits_for_one(#w{held = Held} = W, {Ord, Key, Next}, Limit) when Ord < Limit ->
    #h{came = Came} = maps:get(Key, Held),
    Came < Limit orelse waits_for_one(W, gb_trees:next(Next), Limit);
waits_for_one(_W, _, _Limit) ->
    false.

session_ending(#w{ending = Ending, endings = Endings, ctx = #{pairs := Pairs, counters := Counters}} = W, Bare, Pid) ->
    Count = maps:get(Bare, Ending, 0),
    case Count of
        0 ->
            ets:insert(Pairs, {{Bare, ending}, 1, 1}),
            atomics:add(Counters, 9, 1);
        _ ->
            ok
    end,
    Ref = erlang:monitor(process, Pid),
    W#w{ending = maps:put(Bare, Count + 1, Ending), endings = maps:put(Ref, Bare, Endings)}.

session_ended(#w{ending = Ending, endings = Endings, ctx = #{pairs := Pairs, counters := Counters}} = W, Ref) ->
    {Bare, Rest} = maps:take(Ref, Endings),
    case maps:get(Bare, Ending) of
        1 ->
            ets:delete(Pairs, {Bare, ending}),
            atomics:sub(Counters, 9, 1),
            W1 = W#w{ending = maps:remove(Bare, Ending), endings = Rest},
            lists:foldl(
                fun(From, Acc) -> advance(run_followers(Acc, Bare, From), Bare, From) end,
                W1,
                maps:keys((user(W1, Bare))#user.pairs)
            );
        Count ->
            W#w{ending = maps:put(Bare, Count - 1, Ending), endings = Rest}
    end.

%% Those that an earlier process of this name waited for.
forget_endings(#{pairs := Pairs, counters := Counters} = Ctx, Index) ->
    [
        begin
            ets:delete(Pairs, Id),
            atomics:sub(Counters, 9, 1)
        end
     || {{Bare, _} = Id, _, _} <- ets:match_object(Pairs, {{'_', ending}, '_', '_'}),
        element(1, mod_amphora:worker(Ctx, Bare)) == Index
    ],
    ok.

%% The first of the pair's followers goes on as if it had not waited. If it comes to the storage, it keeps
%% its place.
go_on(#w{ctx = #{counters := Counters, pairs := Pairs} = Ctx} = W, Bare, From) ->
    #pair{followers = Followers} = Pair = pair(W, Bare, From),
    {{value, #f{message = Message, ord = Ord, bytes = Bytes} = F}, Rest} = queue:out(Followers),
    atomics:sub(Counters, 3, 1),
    atomics:sub(Counters, 4, Bytes),
    W1 = put_pair(W, Bare, From, Pair#pair{followers = Rest}),
    Captured =
        case redirect_or_go_on(Ctx, Bare, Message) of
            drop -> none;
            Marked -> route_again({Bare, From, Ord}, xmpp:put_meta(Marked, amphora, #{}))
        end,
    W2 =
        case Captured of
            none ->
                forget_turn(W1, Bare, F),
                W1;
            {Stored, Archived} ->
                hold_captured(W1, Bare, Stored, F, #h{archived = Archived, stamp = F#f.stamp})
        end,
    count_pair(Pairs, Bare, From, -1, -1),
    W2.

forget_turn(_W, _Bare, #f{spooled = undefined}) -> ok;
forget_turn(#w{host = Host}, Bare, #f{spooled = Handle}) -> mod_amphora_spool:delete(Host, Bare, Handle).

%% A follower comes to the storage, in its place.
hold_captured(#w{ctx = Ctx, index = Index, host = Host} = W, Bare, Message, #f{key = Given, ord = Ord} = F, H0) ->
    #{held := Held, counters := Counters} = Ctx,
    Key =
        case Given of
            undefined -> mod_amphora:new_key(Ctx, Index);
            _ -> Given
        end,
    {El, Sealed} = mod_amphora_facts:seal(Message, Bare, Key, H0#h.archived),
    H1 = held_of(Ctx, Bare, Key, Message, El, offline, H0#h{ord = Ord, spooled = F#f.spooled}),
    %% the archive has it only now, as in to_offline_stage/4
    H = H1#h{archived = Sealed andalso not mod_amphora_facts:read_since(H1#h.luser, Host, H1#h.stamp)},
    case mod_amphora_facts:too_large(El, mod_amphora:opt(Host, max_stanza)) of
        true ->
            forget_turn(W, Bare, F),
            refuse(Ctx, H, Message, too_large_to_store()),
            W;
        false ->
            Kept = journal_anew(Ctx, H, El),
            count_pair(Ctx, Kept, 1),
            ets:insert(Held, {Key, Index, Kept, El}),
            [ets:insert(map_get(foreign, Ctx), {Key, W#w.name}) || is_foreign(Ctx, Key, Bare)],
            atomics:add(Counters, 3, 1),
            atomics:add(Counters, 4, Kept#h.bytes),
            take_in(W, Kept)
    end.

%% One that waited when the server died, out of the spool. If somebody is there for it by now and nothing with
%% rules is before it, it must not come behind what has come since: it is stored, and handed over before that.
restore_turn(#w{ctx = #{counters := Counters, pairs := Pairs}} = W, Bare, #{key := Key, from := From, ord := Ord} = R, Handle) ->
    F = #f{ord = Ord, since = mod_amphora:now_ms(), key = Key, stamp = map_get(stamp, R), spooled = Handle},
    case mod_amphora_xml:decode(map_get(el, R)) of
        {ok, Message0} ->
            Message = Message0#message{to = mod_amphora_facts:jid(map_get(addressed, R))},
            case is_behind_rules(pair(W, Bare, From), Ord) orelse is_nobody_there(Message) of
                true ->
                    Bytes = erlang:external_size(Message),
                    count_pair(Pairs, Bare, From, 1, 1),
                    atomics:add(Counters, 3, 1),
                    atomics:add(Counters, 4, Bytes),
                    add_follower(W, Bare, From, F#f{message = Message, bytes = Bytes});
                false ->
                    H = #h{stamp = F#f.stamp, again = true, ever_sent = true, loaded = true},
                    hold_captured(W, Bare, Message, F, H)
            end;
        error ->
            ?ERROR_MSG("Held message ~ts can't be read", [Key]),
            forget_turn(W, Bare, F),
            W
    end.

%% Routes a message in this process. What comes to the storage of it: {Message, Archived}, or none.
route_again(Routing, Message) ->
    put(amphora_routing, Routing),
    erase(amphora_captured),
    try
        ejabberd_sm:route(Message)
    catch
        Class:Reason:Stack -> ?ERROR_MSG("While a held message was routed: ~p", [{Class, Reason, Stack}])
    end,
    erase(amphora_routing),
    case erase(amphora_captured) of
        undefined -> none;
        Captured -> Captured
    end.

%%% ------------------------------------------------------------------ sending

enqueue(#w{links = []} = W, _Bare, _From) ->
    W;
enqueue(#w{ctx = Ctx, links = Links, ready = Ready} = W, Bare, From) ->
    case pair(W, Bare, From) of
        #pair{queued = false, unsent = Unsent} = Pair ->
            case gb_sets:is_empty(Unsent) of
                true ->
                    W;
                false ->
                    #link{id = {_, Component}} = mod_amphora_link:of_user(Ctx, Bare, Links),
                    Line = maps:get(Component, Ready, queue:new()),
                    W1 = put_pair(W, Bare, From, Pair#pair{queued = true}),
                    W1#w{ready = maps:put(Component, queue:in({Bare, From}, Line), Ready)}
            end;
        _ ->
            W
    end.

%% This worker's share of the link's window. One message always fits.
is_open(#w{ctx = #{opts := Opts, workers := Workers} = Ctx, flight = Flight}, #link{id = {_, C}, window = Window}) ->
    Shares = tuple_size(Workers) * mod_amphora_link:peers(Ctx),
    {Count, Bytes} = maps:get(C, Flight, {0, 0}),
    Count == 0 orelse (Count < Window div Shares andalso Bytes < map_get(window_bytes, Opts) div Shares).

pump(#w{links = []} = W) ->
    W;
pump(W0) ->
    W = mod_amphora_seats:pump(W0),
    W1 = send_urgent(W),
    W2 = lists:foldl(fun(Link, Acc) -> pump_link(Acc, Link) end, W1, W1#w.links),
    case [C || #link{id = {_, C}} = Link <- W2#w.links, is_idle(W2, Link)] of
        [Component | _] -> pump(load_next(W2, Component));
        [] -> W2
    end.

%% Has it nothing to send but what is in the spool, and room for that?
is_idle(#w{ready = Ready, draining = Draining} = W, #link{id = {_, C}} = Link) ->
    not queue:is_empty(maps:get(C, Draining, queue:new())) andalso has_room(W) andalso
        queue:is_empty(maps:get(C, Ready, queue:new())) andalso is_open(W, Link).

send_urgent(#w{urgent = Urgent, ctx = Ctx, links = Links} = W) ->
    case queue:out(Urgent) of
        {empty, _} ->
            W;
        {{value, Key}, Rest} ->
            case W#w.held of
                #{Key := #h{gen = undefined, verdict = undefined} = H} ->
                    case mod_amphora_link:of_user(Ctx, H#h.bare, Links) of
                        none ->
                            W;
                        Link ->
                            case is_open(W, Link) of
                                true -> send_urgent(send(W#w{urgent = Rest}, Link, H));
                                false -> W
                            end
                    end;
                _ ->
                    send_urgent(W#w{urgent = Rest})
            end
    end.

pump_link(#w{ready = Ready} = W, #link{id = {_, Component}} = Link) ->
    Line = maps:get(Component, Ready, queue:new()),
    case is_open(W, Link) andalso queue:out(Line) of
        {{value, {Bare, From}}, Rest} ->
            W1 = W#w{ready = maps:put(Component, Rest, Ready)},
            pump_link(send_pair(W1, Link, Bare, From), Link);
        _ ->
            W
    end.

%% Sends what the pair has, in its order, as far as the window allows.
send_pair(W, Link, Bare, From) ->
    User = user(W, Bare),
    case maps:find(From, User#user.pairs) of
        error ->
            W;
        {ok, Pair} ->
            W1 = put_pair(W, Bare, From, Pair#pair{queued = false}),
            case User#user.removal of
                undefined -> send_first(W1, Link, Bare, From);
                _ -> W1
            end
    end.

send_first(W, Link, Bare, From) ->
    Pair = pair(W, Bare, From),
    case next_to_send(W, Pair) of
        none ->
            W;
        H ->
            case is_open(W, Link) of
                true -> send_first(send(W, Link, H), Link, Bare, From);
                false -> enqueue(W, Bare, From)
            end
    end.

next_to_send(#w{held = Held}, #pair{unsent = Unsent, q = Q, paused_from = Paused} = Pair) ->
    case gb_sets:is_empty(Unsent) of
        true ->
            none;
        false ->
            Ord = gb_sets:smallest(Unsent),
            H = maps:get(gb_trees:get(Ord, Q), Held),
            IsPaused = Paused /= undefined andalso Ord >= Paused,
            case IsPaused orelse (H#h.stage /= rules andalso is_behind_rules(Pair, Ord)) of
                true -> none;
                false -> H
            end
    end.

send(#w{host = Host, ctx = Ctx} = W, #link{id = {_, Component}, gen = Gen}, #h{bare = Bare, from = From} = H0) ->
    Now = mod_amphora:now_ms(),
    H1 = look_up(W, H0),
    Pair = pair(W, Bare, From),
    {Sessions, Listed} = sessions_of(Ctx, H1),
    Target = target(W, H1),
    El = mod_amphora_xml:el(
        <<"intercept">>,
        [{<<"key">>, H1#h.key}] ++
            [{<<"after">>, Key} || Key <- before(Pair, H1#h.ord)] ++
            [{<<"again">>, <<"true">>} || H1#h.again] ++
            [
                {<<"stage">>, atom_to_binary(H1#h.stage, utf8)},
                {<<"leg">>, <<"recipient">>},
                {<<"to">>, Bare},
                {<<"account">>, atom_to_binary(account_exists(Host, H1), utf8)},
                {<<"may-see-presence">>, atom_to_binary(H1#h.may_see, utf8)},
                {<<"archived">>, atom_to_binary(H1#h.archived, utf8)}
            ] ++ [T || T <- [Target], T /= none],
        Sessions ++ [mod_amphora_xml:forwarded(H1#h.stamp, element_of(W, H1))]
    ),
    {Count, Bytes} = maps:get(Component, W#w.flight, {0, 0}),
    H2 = H1#h{
        gen = {Component, Gen}, again = true, ever_sent = true, at = Now, outstanding = true, listed = Listed
    },
    W1 = put_held(
        W#w{
            flight = maps:put(Component, {Count + 1, Bytes + H2#h.bytes}, W#w.flight),
            in_flight = queue:in({H2#h.key, Now}, W#w.in_flight)
        },
        H2
    ),
    W2 = put_pair(W1, Bare, From, Pair#pair{
        unsent = gb_sets:delete_any(H2#h.ord, Pair#pair.unsent), last = later({H2#h.ord, H2#h.key}, Pair#pair.last)
    }),
    W3 = W2#w{out_count = W2#w.out_count + 1, out_now = W2#w.out_now orelse is_outside(H2)},
    put_out(W3, {Component, Gen}, El, H2#h.bytes).

later(Sent, undefined) -> Sent;
later(Sent, Last) -> max(Sent, Last).

%% The key of the one before it in the pair, if that is undecided. That is the last one sent, while that is
%% held and all before this one were sent: they are not looked through then.
before(#pair{q = Q, unsent = Unsent, last = Last}, Ord) ->
    case gb_trees:smallest(Q) of
        {Ord, _} ->
            [];
        _ ->
            case Last of
                {Before, Key} when Before < Ord ->
                    case gb_trees:is_defined(Before, Q) andalso not is_unsent_before(Ord, Unsent) of
                        true -> [Key];
                        false -> largest_below(Ord, gb_trees:iterator(Q), [])
                    end;
                _ ->
                    largest_below(Ord, gb_trees:iterator(Q), [])
            end
    end.

is_unsent_before(Ord, Unsent) -> not gb_sets:is_empty(Unsent) andalso gb_sets:smallest(Unsent) < Ord.

largest_below(Ord, Iterator, Best) ->
    case gb_trees:next(Iterator) of
        {Other, Key, Next} when Other < Ord -> largest_below(Ord, Next, [Key]);
        _ -> Best
    end.

%% Rights of a message with rules, as they are when a node is asked, and who would get it.
look_up(#w{host = Host} = W, #h{has_rules = true, settle = false} = H) ->
    with_takers(W, H#h{may_see = mod_amphora_facts:may_see(H#h.luser, Host, H#h.from_jid)});
look_up(W, H) ->
    with_takers(W, H).

with_takers(W, #h{stage = rules} = H) -> H#h{takers = takers(W, H)};
with_takers(_W, H) -> H.

%% For one who is sent on, his sessions change nothing.
takers(#w{host = Host} = W, #h{luser = LUser, to = To} = H) ->
    case target(W, H) of
        none -> mod_amphora_facts:takers(LUser, Host, To);
        Target -> Target
    end.

%% The server asked before it came to storage; after that it may have become untrue.
account_exists(_Host, #h{stage = offline, again = false}) -> true;
account_exists(Host, #h{luser = LUser}) -> mod_amphora_facts:account_exists(LUser, Host).

target(#w{host = Host} = W, #h{stage = rules, bare = Bare} = H) ->
    case mod_amphora_forward:any(Host) of
        false ->
            none;
        true ->
            case message_of(W, H) of
                {ok, Message} -> mod_amphora_forward:target(Host, Bare, Message);
                error -> none
            end
    end;
target(_W, _H) ->
    none.

%% The elements, and the processes that would write it.
sessions_of(#{host := Host}, #h{stage = rules, luser = LUser, to = To}) ->
    Listed = [
        session_element(R, P, Asleep)
     || {R, Priority, _, Asleep} <- mod_amphora_facts:sessions(LUser, Host),
        P <- priority(Priority, R == To#jid.lresource)
    ],
    {Listed, []};
sessions_of(#{host := Host} = Ctx, #h{luser = LUser, stage = Stage, to = To}) ->
    case ejabberd_sm:get_user_present_resources(LUser, Host) of
        [] ->
            {[], []};
        _ ->
            Present = [S || {_, Priority, _, _} = S <- mod_amphora_facts:sessions(LUser, Host), is_integer(Priority)],
            %% what comes back from a session that is still there is for that one, and no other
            Own = [S || {R, Priority, _, _} = S <- Present, Stage == undelivered, R == To#jid.lresource, Priority >= 0],
            Candidates =
                case Own of
                    [] -> Present;
                    _ -> Own
                end,
            Used = [S || {_, _, Pid, _} = S <- Candidates, mod_amphora_gate:is_open(Ctx, Pid)],
            {[session_element(R, P, A) || {R, P, _, A} <- Used], [Pid || {_, P, Pid, _} <- Used, P >= 0]}
    end.

%% One without presence gets what is addressed to itself.
priority(Priority, _) when is_integer(Priority) -> [Priority];
priority(_, true) -> [-128];
priority(_, false) -> [].

session_element(Resource, Priority, Asleep) ->
    mod_amphora_xml:el(
        <<"session">>,
        [{<<"resource">>, Resource}, {<<"priority">>, integer_to_binary(Priority)}] ++
            [{<<"hibernating">>, <<"true">>} || Asleep]
    ).

%% Elements for a node are collected, for a stanza costs more than an element in one.
put_out(W, #link{id = {_, Component}, gen = Gen}, El, Bytes) ->
    put_out(W#w{out_now = true}, {Component, Gen}, El, Bytes);
put_out(#w{out = Out, out_bytes = Sum} = W, To, El, Bytes) ->
    W#w{out = maps:update_with(To, fun(L) -> [El | L] end, [El], Out), out_bytes = Sum + Bytes}.

flush_or_linger(#w{out_bytes = 0} = W) ->
    W;
flush_or_linger(#w{out_now = Now, out_count = Count, flight = Flight, lingers = Lingers} = W) ->
    Unanswered = maps:fold(fun(_, {N, _}, Sum) -> Sum + N end, 0, Flight),
    case Now orelse Unanswered =< Count of
        true ->
            flush(W);
        false when Lingers ->
            W;
        false ->
            erlang:send_after(?LINGER, self(), amphora_flush),
            W#w{lingers = true}
    end.

flush(#w{out_bytes = 0} = W) ->
    W;
flush(#w{out = Out, ctx = Ctx} = W) ->
    maps:foreach(
        fun({Component, Gen}, Elements) ->
            case mod_amphora_link:get(Ctx, Component) of
                #link{gen = Gen} = Link -> mod_amphora_link:emit(Link, lists:reverse(Elements));
                _ -> ok
            end
        end,
        Out
    ),
    W#w{out = #{}, out_bytes = 0, out_count = 0, out_now = false}.

%% It is in the window no more.
answered(#w{flight = Flight} = W, #h{key = Key, outstanding = true, gen = {Component, _}, bytes = Bytes} = H) ->
    {Count, Sum} = maps:get(Component, Flight, {1, Bytes}),
    W1 = W#w{flight = maps:put(Component, {max(0, Count - 1), max(0, Sum - Bytes)}, Flight)},
    case W1#w.held of
        #{Key := _} -> put_held(W1, H#h{outstanding = false});
        _ -> W1
    end;
answered(W, _H) ->
    W.

%%% ------------------------------------------------------------------ verdicts

verdicts(W, Gen, Verdicts) -> lists:foldl(fun(V, Acc) -> verdict(Acc, Gen, V) end, W, Verdicts).

verdict(#w{held = Held} = W, Gen, El) ->
    Key = mod_amphora_xml:attr(<<"key">>, El),
    Stage = mod_amphora_xml:attr(<<"stage">>, El),
    What = mod_amphora_xml:attr(<<"do">>, El),
    case Held of
        #{Key := #h{gen = Gen, verdict = undefined, writing = undefined} = H} ->
            case atom_to_binary(H#h.stage, utf8) == Stage andalso is_allowed(What, H#h.stage) of
                true -> take_verdict(W, H, What, El);
                false -> W
            end;
        _ ->
            W
    end.

is_allowed(<<"deliver">>, _) -> true;
is_allowed(<<"stored">>, Stage) -> Stage /= rules;
is_allowed(<<"discarded">>, _) -> true;
is_allowed(<<"retry">>, _) -> true;
is_allowed(_, _) -> false.

take_verdict(W, #h{bare = Bare, from = From} = H, <<"retry">>, _El) ->
    advance(pause_from(W, H), Bare, From);
take_verdict(W, #h{key = Key, bare = Bare, from = From} = H, What, El) ->
    W1 = answered(W, H),
    H1 = maps:get(Key, W1#w.held),
    Sends = mod_amphora_xml:children(<<"send">>, ?NS_INTERCEPT, El),
    Silent = mod_amphora_xml:attr(<<"silent">>, El) == <<"true">>,
    H2 = H1#h{verdict = {What, Sends, Silent}},
    W2 = put_held(W1, H2),
    case What == <<"discarded">> andalso is_outside(H2) of
        %% a refusal is outside the pair's order
        true -> advance(carry_out(W2, H2), Bare, From);
        false -> advance(W2, Bare, From)
    end.

%% Carries out what can be carried out, in the pair's order.
advance(W, Bare, From) ->
    #pair{followers = Followers} = Pair = pair(W, Bare, From),
    case next_to_carry_out(W, Pair) of
        none ->
            run_followers(W, Bare, From);
        H ->
            case is_map_key(Bare, W#w.ending) andalso (is_routed(H) orelse would_pass(H, Followers)) of
                true -> W;
                false -> advance(run_followers(carry_out(W, H), Bare, From), Bare, From)
            end
    end.

next_to_carry_out(#w{held = Held}, #pair{q = Q, rules = Rules, followers = Followers}) ->
    case gb_trees:is_empty(Q) of
        true ->
            none;
        false ->
            {_, Key} = gb_trees:smallest(Q),
            case Held of
                #{Key := #h{verdict = {_, _, _}} = H} ->
                    H;
                _ ->
                    case gb_sets:is_empty(Rules) of
                        true ->
                            none;
                        false ->
                            H = maps:get(gb_trees:get(gb_sets:smallest(Rules), Q), Held),
                            case H#h.verdict /= undefined andalso not would_pass(H, Followers) of
                                true -> H;
                                false -> none
                            end
                    end
            end
    end.

%% It goes to sessions or to the storage: not before what comes out of the mailbox of one that is ending.
is_routed(#h{verdict = {What, _, _}}) -> What == <<"deliver">>.

%% A message that the server is told to go on with may pass those of its pair that are being stored, for
%% then the gates are closed. It may not pass one that waits for them openly.
would_pass(#h{ord = Ord}, Followers) ->
    case queue:peek(Followers) of
        {value, #f{ord = First}} -> First < Ord;
        empty -> false
    end.

carry_out(W, #h{verdict = {What, Sends, Silent}, bare = Bare, from = From} = H0) ->
    Pair = pair(W, Bare, From),
    H = H0#h{verdict = undefined},
    W1 = put_held(put_pair(W, Bare, From, Pair#pair{tries = 0}), H),
    case {What, H#h.stage} of
        {<<"deliver">>, rules} ->
            case takers(W1, H) == H#h.takers of
                true -> check_user(sends(deliver_rules(W1, H, Silent), H, Sends), Bare);
                false -> ask_again(W1, H)
            end;
        {<<"deliver">>, _} ->
            deliver_to_sessions(W1, H, Sends);
        {<<"stored">>, _} ->
            %% first, so that no later message of the pair passes it at an open gate
            W2 = renew(W1, Bare),
            check_user(sends(finish(W2, H, <<"stored">>), H, Sends), Bare);
        _ ->
            check_user(sends(finish(W1, H, What), H, Sends), Bare)
    end.

check_user(W, Bare) -> mod_amphora_seats:check(W, Bare).

sends(#w{host = Host} = W, H, Sends) ->
    lists:foreach(
        fun(Send) ->
            case mod_amphora_xml:own_stanza(Host, Send) of
                {ok, Message} -> route_own(Message);
                {error, Text} -> ?WARNING_MSG("Verdict for ~ts: a send was left out: ~ts", [H#h.key, Text])
            end
        end,
        Sends
    ),
    W.

%% Not answered, or not to be carried out: asked again, with what is true then.
ask_again(W, #h{voided = N} = H) when N >= 3 -> pause_from(W, H);
ask_again(W, #h{bare = Bare, from = From} = H) ->
    W1 = answered(W, H),
    H1 = (maps:get(H#h.key, W1#w.held))#h{
        gen = undefined, verdict = undefined, writing = undefined, voided = H#h.voided + 1
    },
    Pair = pair(W1, Bare, From),
    W2 = put_held(
        put_pair(W1, Bare, From, Pair#pair{unsent = gb_sets:add(H1#h.ord, Pair#pair.unsent)}), H1
    ),
    case is_outside(H1) of
        true -> W2#w{urgent = queue:in(H1#h.key, W2#w.urgent)};
        false -> enqueue(W2, Bare, From)
    end.

finish(#w{host = Host} = W, H, Outcome) ->
    [
        mod_amphora_broadcast:settled(Host, H#h.key, outcome(Outcome))
     || H#h.settle
    ],
    leave(crossed(W, H), H).

%% The spool need not keep it: said of several at a time.
crossed(W, #h{spooled = undefined}) -> W;
crossed(#w{crossed = Crossed} = W, #h{spooled = Handle}) -> W#w{crossed = [Handle | Crossed]}.

cross_out(#w{crossed = []} = W) ->
    W;
cross_out(#w{crossed = Crossed, host = Host} = W) ->
    mod_amphora_spool:delete_all(Host, lists:reverse(Crossed)),
    W#w{crossed = []}.

outcome(<<"deliver">>) -> <<"delivered">>;
outcome(Outcome) -> Outcome.

%% Something was stored for the user: if a session could take it, it is asked for again.
renew(#w{host = Host, ctx = Ctx} = W, Bare) ->
    #user{luser = LUser} = user(W, Bare),
    case ejabberd_sm:get_user_present_resources(LUser, Host) of
        [] ->
            W;
        _ ->
            case mod_amphora_gate:renew(Ctx, LUser) of
                none -> W;
                Id -> mod_amphora_seats:renew(W, Id)
            end
    end.

deliver_rules(#w{host = Host} = W, #h{bare = Bare, from = From, ord = Ord, key = Key} = H, Silent) ->
    case message_of(W, H) of
        error ->
            finish(W, H, <<"discarded">>);
        {ok, Message0} ->
            Message = mod_amphora_xml:address_rules(Message0),
            Meta = #{key => Key, stamp => H#h.stamp, silent => Silent},
            Marked = marked(W, Message, Meta),
            Redirected =
                mod_amphora_forward:any(Host) andalso
                    not mod_amphora_facts:is_blocked(H#h.luser, Host, H#h.from_jid) andalso
                    mod_amphora_forward:redirect(Host, Bare, Message, Silent),
            Captured =
                case Redirected of
                    true -> none;
                    false -> route_again({Bare, From, Ord}, Marked)
                end,
            case Captured of
                none when H#h.settle, not Redirected -> routed(W, H);
                none -> finish(W, H, <<"delivered">>);
                {Stored, Archived} -> to_offline_stage(W, H, Stored, Archived)
            end
    end.

%% With its key, the name of its copies and its place in the order in which sessions get what is for them.
marked(#w{ctx = Ctx}, Message, #{key := Key} = Meta) ->
    Marks = #{amphora => Meta, amphora_copy => {node(), Key}, amphora_ord => mod_amphora:new_ord(Ctx)},
    Message#message{meta = maps:merge(Message#message.meta, Marks)}.

%% A settled send went to sessions, or to nobody. They say whether it was written, or waits in a gate.
routed(#w{host = Host} = W, #h{key = Key, luser = LUser, to = To} = H) ->
    case mod_amphora_facts:takers(LUser, Host, To) of
        [] ->
            finish(W, H, <<"discarded">>);
        Takers ->
            mod_amphora_broadcast:routed(Host, Key, Takers),
            finish(W, H#h{settle = false}, <<"delivered">>)
    end.

%% The server was told to go on with a message, and found nobody: the second stage.
to_offline_stage(#w{ctx = Ctx, host = Host} = W, H, Message, Archived) ->
    #{held := Held, counters := Counters, pairs := Pairs} = Ctx,
    #h{bare = Bare, from = From, key = Key, ord = Ord} = H,
    {El, Sealed} = reseal(Host, Message, Bare, Key, Archived),
    %% the archive has it only now: who read it since the stamp has not seen this one
    IsArchived = Sealed andalso not mod_amphora_facts:read_since(H#h.luser, Host, H#h.stamp),
    Bytes = mod_amphora_xml:bytes(El),
    atomics:add(Counters, 4, Bytes - H#h.bytes),
    H1 = H#h{
        stage = offline,
        gen = undefined,
        again = H#h.loaded,
        bytes = Bytes,
        archived = IsArchived,
        takers = undefined
    },
    W1 = answered(W, H),
    ets:insert(Held, {Key, W#w.index, H1, El}),
    count_pair(Pairs, Bare, From, 0, -1),
    Pair = pair(W1, Bare, From),
    W2 = put_pair(put_held(W1, H1), Bare, From, Pair#pair{
        rules = gb_sets:delete_any(Ord, Pair#pair.rules), unsent = gb_sets:add(Ord, Pair#pair.unsent)
    }),
    H2 = journal_anew(W#w.ctx, H1, El),
    {W3, H3} = enter_storage(put_held(W2, H2), H2),
    W4 = admit(W3, H3),
    enqueue(W4, Bare, From).

%% Its own id, put in at the first stage, stays.
reseal(_Host, Message, Bare, Key, Archived) -> mod_amphora_facts:seal(Message, Bare, Key, Archived).

%% Nothing but writing it to the sessions that were listed. Each answers when it has it.
deliver_to_sessions(#w{host = Host} = W, #h{listed = Listed, key = Key} = H, Sends) ->
    Alive = [Pid || Pid <- Listed, is_process_alive(Pid)],
    case Alive /= [] andalso message_of(W, H) of
        {ok, Message0} ->
            Message =
                case H#h.stage == undelivered orelse H#h.loaded of
                    true -> mod_amphora_xml:add_delay(Message0, Host, H#h.stamp);
                    false -> Message0
                end,
            Marked = marked(W, Message, #{key => Key, stamp => H#h.stamp}),
            [Pid ! {amphora_gate, {write, Marked, self()}} || Pid <- Alive],
            put_held(W, H#h{writing = {mod_amphora:now_ms(), Sends}});
        _ ->
            ask_again(W, H)
    end.

written(#w{held = Held} = W, Key) ->
    case Held of
        #{Key := #h{writing = {_, Sends}, bare = Bare, from = From} = H} ->
            W1 = check_user(sends(finish(W, H#h{writing = undefined}, <<"delivered">>), H, Sends), Bare),
            advance(W1, Bare, From);
        _ ->
            W
    end.

%% A session ended before it wrote it. Where others were to write it as well, they say so, or are not heard of.
unwritten_by_one(#w{held = Held} = W, Key) ->
    case Held of
        #{Key := #h{writing = {_, _}, listed = [_]} = H} -> pump(ask_again(W, H));
        _ -> W
    end.

pause_from(W, #h{bare = Bare, from = From, ord = Ord} = H) ->
    Pair = pair(W, Bare, From),
    Pause = min(?RETRY_FIRST bsl min(Pair#pair.tries, 10), ?RETRY_LAST),
    Resume = mod_amphora:now_ms() + Pause,
    ?DEBUG("From ~ts to ~ts: paused from ~ts on for ~b ms", [From, Bare, H#h.key, Pause]),
    Later = [K || {O, K} <- gb_trees:to_list(Pair#pair.q), O >= Ord],
    {W1, Orders} = lists:foldl(
        fun(Key, {Acc, Os}) ->
            Other = maps:get(Key, Acc#w.held),
            case Key == H#h.key orelse not is_outside(Other) of
                true ->
                    Acc1 = answered(Acc, Other),
                    Fresh = (maps:get(Key, Acc1#w.held))#h{gen = undefined, verdict = undefined},
                    {put_held(Acc1, Fresh), [Fresh#h.ord | Os]};
                false ->
                    {Acc, Os}
            end
        end,
        {W, []},
        Later
    ),
    W2 = put_pair(W1, Bare, From, Pair#pair{
        tries = Pair#pair.tries + 1,
        resume_at = Resume,
        paused_from =
            case Pair#pair.paused_from of
                undefined -> Ord;
                Earlier -> min(Earlier, Ord)
            end,
        last = undefined,
        unsent = gb_sets:union(Pair#pair.unsent, gb_sets:from_list(Orders))
    }),
    W2#w{paused = maps:put({Bare, From}, Resume, W2#w.paused)}.

resume(#w{paused = Paused} = W, {Bare, From} = Id) ->
    W1 = W#w{paused = maps:remove(Id, Paused)},
    case maps:find(From, (user(W1, Bare))#user.pairs) of
        {ok, Pair} ->
            W2 = put_pair(W1, Bare, From, Pair#pair{resume_at = undefined, paused_from = undefined}),
            enqueue(urgent_of(W2, Pair), Bare, From);
        error ->
            W1
    end.

%% What is outside the order goes the quick way again.
urgent_of(#w{held = Held} = W, #pair{q = Q}) ->
    Keys = [K || K <- gb_trees:values(Q), is_outside(maps:get(K, Held)), (maps:get(K, Held))#h.gen == undefined],
    W#w{urgent = lists:foldl(fun queue:in/2, W#w.urgent, Keys)}.

%%% ------------------------------------------------------------------ links and time

%% Nothing that was sent on a link that is gone counts as sent. A user moves to another link whole.
set_links(#w{ctx = Ctx, links = Old, host = Host} = W0, Links) ->
    Gens = [{C, G} || #link{id = {_, C}, gen = G} <- Links],
    OldGens = [{C, G} || #link{id = {_, C}, gen = G} <- Old],
    Changed = fun(Bare) -> link_of(Ctx, Bare, Old) /= link_of(Ctx, Bare, Links) end,
    case lists:sort(Gens) == lists:sort(OldGens) of
        true ->
            W0;
        false ->
            W = W0#w{
                links = Links,
                ready = #{},
                draining = #{},
                out = maps:with(Gens, W0#w.out),
                flight = maps:with([C || {C, _} = G <- Gens, lists:member(G, OldGens)], W0#w.flight)
            },
            W1 = maps:fold(fun(_, User, Acc) -> relink_user(Acc, User, Changed) end, W, W#w.users),
            W2 = mod_amphora_seats:links(W1, Changed),
            case Links of
                [] -> W2;
                _ ->
                    Spooled = my_users(W2, mod_amphora_spool:users(Host)),
                    lists:foldl(fun(Bare, Acc) -> drain(Acc, Bare) end, W2, Spooled)
            end
    end.

my_users(#w{ctx = Ctx, index = Index}, Bares) -> [B || B <- Bares, element(1, mod_amphora:worker(Ctx, B)) == Index].

link_of(Ctx, Bare, Links) ->
    case mod_amphora_link:of_user(Ctx, Bare, Links) of
        none -> none;
        #link{id = {_, C}, gen = Gen} -> {C, Gen}
    end.

relink_user(W, #user{bare = Bare, pairs = Pairs} = User, Changed) ->
    Moves = Changed(Bare),
    W1 = put_user(W, User#user{draining = false}),
    maps:fold(fun(From, _, Acc) -> relink_pair(Acc, Bare, From, Moves) end, W1, Pairs).

relink_pair(W, Bare, From, false) ->
    Pair = pair(W, Bare, From),
    enqueue(put_pair(W, Bare, From, Pair#pair{queued = false}), Bare, From);
relink_pair(W, Bare, From, true) ->
    Pair = pair(W, Bare, From),
    Keys = gb_trees:values(Pair#pair.q),
    W1 = lists:foldl(
        fun(Key, Acc) ->
            Acc1 = answered(Acc, maps:get(Key, Acc#w.held)),
            put_held(Acc1, (maps:get(Key, Acc1#w.held))#h{gen = undefined, verdict = undefined})
        end,
        W,
        Keys
    ),
    Unsent = [O || {O, K} <- gb_trees:to_list(Pair#pair.q), (maps:get(K, W1#w.held))#h.writing == undefined],
    Pair1 = Pair#pair{
        queued = false, tries = 0, resume_at = undefined, paused_from = undefined, last = undefined,
        unsent = gb_sets:from_list(Unsent)
    },
    W2 = put_pair(W1#w{paused = maps:remove({Bare, From}, W1#w.paused)}, Bare, From, Pair1),
    enqueue(urgent_of(W2, Pair1), Bare, From).

sweep(W) ->
    Now = mod_amphora:now_ms(),
    W1 = lists:foldl(fun(Id, Acc) -> resume(Acc, Id) end, W, [Id || {Id, At} <- maps:to_list(W#w.paused), Now >= At]),
    W2 = resend(W1, Now),
    W3 = unwritten(W2, Now),
    W4 =
        case map_size(W3#w.held) > 0 andalso straight_to_spool(W3) of
            true -> spool_all(W3, <<"No node">>);
            false -> W3
        end,
    mod_amphora_seats:sweep(old_followers(W4, Now), Now).

resend(#w{in_flight = InFlight, ctx = #{opts := #{resend := Resend}}} = W, Now) ->
    case queue:peek(InFlight) of
        {value, {Key, At}} ->
            case W#w.held of
                #{Key := #h{outstanding = true, at = At} = H} when Now - At >= Resend ->
                    resend(again(W#w{in_flight = queue:drop(InFlight)}, H), Now);
                #{Key := #h{outstanding = true, at = At}} ->
                    W;
                _ ->
                    resend(W#w{in_flight = queue:drop(InFlight)}, Now)
            end;
        empty ->
            W
    end.

%% Still in the window: it is sent once more.
again(#w{ctx = Ctx} = W, #h{gen = {Component, Gen}} = H) ->
    ?DEBUG("No verdict for ~ts, asking again", [H#h.key]),
    case mod_amphora_link:get(Ctx, Component) of
        #link{gen = Gen} = Link ->
            W1 = answered(W, H),
            send(W1, Link, maps:get(H#h.key, W1#w.held));
        _ ->
            W
    end.

%% Sessions that were to write something, and do not say that they did.
unwritten(#w{held = Held, ctx = #{opts := #{resend := Resend}}} = W, Now) ->
    lists:foldl(
        fun(H, Acc) -> ask_again(Acc, H) end,
        W,
        [H || #h{writing = {At, _}} = H <- maps:values(Held), Now - At >= Resend]
    ).

old_followers(#w{followers = All, ctx = #{opts := #{hold := Hold}}} = W, Now) ->
    case queue:peek(All) of
        {value, {Bare, From, Ord, Since}} ->
            case queue:peek((pair(W, Bare, From))#pair.followers) of
                {value, #f{ord = Ord}} when Now - Since >= Hold ->
                    W1 = go_on(W#w{followers = queue:drop(All)}, Bare, From),
                    old_followers(advance(W1, Bare, From), Now);
                {value, #f{ord = Ord}} ->
                    W;
                {value, #f{ord = First}} when First < Ord ->
                    %% one out of the spool, which came later, is before it
                    old_followers(W#w{followers = queue:in(queue:get(All), queue:drop(All))}, Now);
                _ ->
                    old_followers(W#w{followers = queue:drop(All)}, Now)
            end;
        empty ->
            W
    end.

%%% ------------------------------------------------------------------ accounts removed

do_remove_account(#w{host = Host, ctx = #{counters := Counters, pairs := Pairs}} = W, Bare, Stamp) ->
    N = mod_amphora_spool:delete_user(Host, Bare),
    Held = [H || #h{bare = B} = H <- maps:values(W#w.held), B == Bare],
    W1 = lists:foldl(
        fun(H, Acc) ->
            [mod_amphora_broadcast:settled(Host, H#h.key, <<"discarded">>) || H#h.settle],
            leave(Acc, H)
        end,
        W,
        Held
    ),
    User = user(W1, Bare),
    maps:foreach(
        fun(From, #pair{followers = Followers}) ->
            lists:foreach(
                fun(#f{bytes = Bytes}) ->
                    atomics:sub(Counters, 3, 1),
                    atomics:sub(Counters, 4, Bytes),
                    count_pair(Pairs, Bare, From, -1, -1)
                end,
                queue:to_list(Followers)
            )
        end,
        User#user.pairs
    ),
    mod_amphora_spool:add_removal(Host, Bare, Stamp),
    ?INFO_MSG("Account ~ts was removed: ~b messages held for it were dropped", [Bare, N + length(Held)]),
    put_user(W1, User#user{pairs = #{}, removal = Stamp}).
