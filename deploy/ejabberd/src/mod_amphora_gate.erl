%%% In the sessions' own processes: the gate, what is handed over, what is acknowledged.
%%%
%%% Everything that goes to a client passes its session's process (c2s), one after the other, and the
%%% gate is part of that process's state. So there is no moment between a look at it and the writing:
%%%  - It closes in the handler of the presence that makes the session available. Who looked the session
%%%    up in between has only put a message into its mailbox, which is read after that.
%%%  - Where something was stored while it was open (nobody was there when it was routed), the user's
%%%    worker tells the session to close before it lets later messages of the pair go on, and the order
%%%    of messages to one process does the rest.
%%%  - A resumed session takes the state over from the process that it replaces. What that one still has in
%%%    its mailbox it sends here, and the gate opens only when it is gone; what came here straight in the
%%%    meantime is put behind that by its place in the order of arrival. mod_stream_mgmt waits 15 s for the
%%%    state: a process that gives it away later asks whether it was taken, and ends like any other if not.
%%%  - A session that ends writes down, in its last handler, what was not acknowledged, what waits in the
%%%    gate and what is in its mailbox of ours, and only then the server takes it out of its tables.
%%% The acknowledgements are XEP-0198's, by position in the stream: each message of ours is noted with the
%%% number that mod_stream_mgmt gave it. Without XEP-0198 a message is taken when the socket has it.
%%%
%%% Copies: a message, or carbon, that several sessions may get has a copy's name, {node, key}, and in the
%%% table `copies` of that node {name, how many have it and may acknowledge it, 1 if one has, time, how often it
%%% was stored}. It comes back from a session only if no other has it or may still acknowledge it.
-module(mod_amphora_gate).

-export([hooks/1, adopt/1, let_go/1, end_all/1]).
-export([is_open/2, renew/2, write/2, fetches/1, fetched_by_one/2, new_copy/1, copy/3, forget_copies/1]).
-export([
    c2s_session_opened/1,
    c2s_copy_session/2,
    c2s_session_resumed/1,
    c2s_session_pending/1,
    c2s_closed/2,
    c2s_self_presence/1,
    c2s_filter_send/1,
    c2s_handle_send/3,
    c2s_authenticated_packet/2,
    user_send_packet/1,
    c2s_handle_info/2,
    c2s_handle_call/3,
    c2s_terminated/2
]).

-include("logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% Of mod_stream_mgmt's queue, left to stanzas that do not wait: presence, iq, rooms.
-define(SPARE, 50).

%% A copy that nobody has is remembered so long; any copy at most. A session that sleeps longer may bring
%% a message back that another has.
-define(COPY_MS, 60000).
-define(COPY_LAST_MS, 24 * 60 * 60 * 1000).

%% For so long a session that was resumed waits for the one that replaces it to say that it does.
-define(SUCCESSOR_MS, 5000).

%% For so long the server's stop waits for sessions to end.
-define(END_MS, 20000).

-record(g, {
    %% name on the link, for ever
    id,
    bare,
    jid,
    %% number of the last reason to announce, and of the last hand-over that was done
    n = 0,
    done = 0,
    %% open; closed: chat and normal messages wait; releasing: they are being written; gone: there is no
    %% connection to write them to, and they wait for the end of the session
    gate = open,
    limited = false,
    priority,
    %% {Message, Bytes, Stamp} in order
    waiting = queue:new(),
    waiting_count = 0,
    waiting_bytes = 0,
    %% what is to be written next: {item, Id, Message}, {live, Message, Stamp}, {own, Entry}
    out = queue:new(),
    %% id -> {acknowledged, numbers of batches}, until the node has deleted its row
    items = #{},
    %% number -> {ids, how many are not acknowledged, time it was said}
    batches = #{},
    last_batch,
    %% {Position, What} of what was written and is not acknowledged
    track = queue:new(),
    in_flight = 0,
    answer_at = 0,
    fetches = false,
    parked = false,
    %% key of the settled send that was written last; of those that wait here, who wants to know
    settled_key,
    settling = #{},
    %% something was given back to the worker since it was last asked whether all is decided
    gave = false,
    %% the processes that this one has replaced, while they are there: monitor -> pid; the gate is told to open
    replaced = #{},
    may_open = false,
    %% the process that asked for this one's state, to resume the session; {took, Pid}: it has it; none: it did
    %% not wait for it
    heir,
    %% when the client read the archive, before it became available
    read,
    repeating = false
}).

hooks(_Host) ->
    [
        {c2s_session_opened, ?MODULE, c2s_session_opened, 50},
        {c2s_copy_session, ?MODULE, c2s_copy_session, 50},
        {c2s_session_resumed, ?MODULE, c2s_session_resumed, 60},
        {c2s_session_pending, ?MODULE, c2s_session_pending, 60},
        %% after mod_stream_mgmt (50), which stops there if the session may be resumed
        {c2s_closed, ?MODULE, c2s_closed, 60},
        {c2s_self_presence, ?MODULE, c2s_self_presence, 40},
        %% before mod_client_state (75), so that what waits is not queued there
        {c2s_filter_send, ?MODULE, c2s_filter_send, 10},
        %% after mod_stream_mgmt (50), which numbers what is sent
        {c2s_handle_send, ?MODULE, c2s_handle_send, 60},
        %% before mod_stream_mgmt (50), which stops there
        {c2s_authenticated_packet, ?MODULE, c2s_authenticated_packet, 40},
        {user_send_packet, ?MODULE, user_send_packet, 80},
        {c2s_handle_info, ?MODULE, c2s_handle_info, 40},
        {c2s_handle_call, ?MODULE, c2s_handle_call, 40},
        %% before mod_stream_mgmt (50), which routes or bounces what was not acknowledged
        {c2s_terminated, ?MODULE, c2s_terminated, 40}
    ].

%%% ------------------------------------------------------------------ what other processes ask

%% Is a session of this node there whose gate is open? One of another node is not known to be.
is_open(#{seats := Seats}, Pid) ->
    case ets:lookup(Seats, Pid) of
        [{_, _, open}] -> true;
        _ -> false
    end.

%% Something was stored: the session that is to get it is asked to be announced for it. Of those that wait
%% for what is stored already, or else of those that are awake, the one with the highest priority.
%% The process of a session of this node, or none: one of another node is asked through its worker there.
renew(#{host := Host, seats := Seats}, LUser) ->
    Sessions = [
        {{Gate /= open, not Asleep, Priority}, Pid, Id}
     || {_, Priority, Pid, Asleep} <- mod_amphora_facts:sessions(LUser, Host),
        is_integer(Priority),
        Priority >= 0,
        {Id, Gate} <- seat_of(Seats, Pid),
        Gate /= gone
    ],
    case Sessions of
        [] ->
            none;
        _ ->
            case lists:max(Sessions) of
                {_, Pid, undefined} ->
                    Pid ! {amphora_gate, renew_there},
                    none;
                {_, _, Id} ->
                    Id
            end
    end.

seat_of(Seats, Pid) when node(Pid) == node() -> [{Id, Gate} || {_, Id, Gate} <- ets:lookup(Seats, Pid)];
seat_of(_Seats, _Pid) -> [{undefined, open}].

%% Writes stanzas to a session, behind what is to be written already. Each is {Stanza, Pid, Ref}: the process
%% gets {amphora_written, Ref} when it is written, and {amphora_shown, Ref} when the client has acknowledged
%% it, or without XEP-0198 when it is on the wire.
-spec write(pid(), [{stanza(), pid(), term()}]) -> ok.
write(Pid, Entries) ->
    Pid ! {amphora_gate, {own, Entries}},
    ok.

%% The session fetches for itself from now on.
-spec fetches(pid()) -> ok.
fetches(Pid) ->
    Pid ! {amphora_gate, fetches},
    ok.

%% Does a session of the user's fetch for itself? Then nothing is handed over to any of them that was not
%% announced before.
fetched_by_one(Host, LUser) ->
    lists:any(
        fun({_, Info}) -> lists:member(fetches, proplists:get_value(amphora, Info, [])) end,
        ejabberd_sm:get_user_info(LUser, Host)
    ).

%% Sessions that were there before the module.
adopt(Host) -> [Pid ! {amphora_gate, adopt} || Pid <- local_sessions(Host)], ok.

%% The module goes: what waits in a gate is behind what is stored, and goes to the spool.
let_go(Host) ->
    [
        try
            ejabberd_c2s:call(Pid, amphora_let_go, 5000)
        catch
            _:_ -> ok
        end
     || Pid <- local_sessions(Host)
    ],
    ok.

%% Ends the sessions of this node, as the server is about to, and waits until each has said what it leaves.
end_all(Host) ->
    Pids = local_sessions(Host),
    Refs = [erlang:monitor(process, Pid) || Pid <- Pids],
    lists:foreach(
        fun(Pid) ->
            ejabberd_c2s:send(Pid, xmpp:serr_system_shutdown()),
            ejabberd_c2s:stop_async(Pid)
        end,
        Pids
    ),
    Timer = erlang:start_timer(?END_MS, self(), ended),
    case await_ends(Refs, Timer) of
        0 -> ok;
        N -> ?WARNING_MSG("~b sessions of ~ts did not end within ~b ms", [N, Host, ?END_MS])
    end.

await_ends([], Timer) ->
    _ = erlang:cancel_timer(Timer),
    0;
await_ends([Ref | Rest] = Refs, Timer) ->
    receive
        {'DOWN', Ref, process, _, _} -> await_ends(Rest, Timer);
        {timeout, Timer, ended} -> length(Refs)
    end.

local_sessions(Host) ->
    [
        Pid
     || {U, S, R} <- ejabberd_sm:get_vh_session_list(Host),
        Pid <- [ejabberd_sm:get_session_pid(U, S, R)],
        is_pid(Pid),
        node(Pid) == node()
    ].

%%% ------------------------------------------------------------------ copies

new_copy(#{counters := Counters, token := Token}) ->
    {node(), <<Token/binary, $c, (integer_to_binary(atomics:add_get(Counters, 8, 1)))/binary>>}.

%% What a session did with a copy: have, ack, lose, keep, keep_unless_elsewhere. Whether it is to come back.
copy(#{host := Host}, {Node, _} = Id, What) when Node /= node() ->
    try
        erpc:call(Node, ?MODULE, copy, [mod_amphora:ctx(Host), Id, What], 2000)
    catch
        _:_ -> true
    end;
copy(#{host := Host}, {_, Name}, What) ->
    %% by its own context, for the tables are this node's
    #{copies := Copies} = mod_amphora:ctx(Host),
    case What of
        have ->
            ets:update_counter(Copies, Name, {2, 1}, {Name, 0, 0, mod_amphora:now_ms(), 0}),
            true;
        ack ->
            _ = update(Copies, Name, [{2, -1}, {3, 1, 1, 1}]),
            false;
        lose ->
            case update(Copies, Name, [{2, -1}, {3, 0}]) of
                [Count, 0] when Count =< 0 -> true;
                _ -> false
            end;
        keep ->
            %% it goes to the storage from here, once: no other need bring it back
            case update(Copies, Name, [{2, -1}, {3, 1, 1, 1}, {5, 1}]) of
                [_, _, 1] -> true;
                _ -> false
            end;
        keep_unless_elsewhere ->
            %% what is stored goes to a session that is awake: not what another has already
            case update(Copies, Name, [{2, -1}, {3, 0}]) of
                [Count, 0] when Count =< 0 -> update(Copies, Name, [{3, 1, 1, 1}, {5, 1}]) == [1, 1];
                _ -> false
            end
    end.

update(Copies, Name, Operations) ->
    ets:update_counter(Copies, Name, Operations, {Name, 1, 0, mod_amphora:now_ms(), 0}).

%% Those that nobody has any more, when all have had the time to get theirs; and those that nobody will ever
%% speak of.
forget_copies(#{copies := Copies}) ->
    Now = mod_amphora:now_ms(),
    ets:select_delete(Copies, [
        {{'_', '$1', '_', '$2', '_'}, [{'=<', '$1', 0}, {'<', '$2', Now - ?COPY_MS}], [true]},
        {{'_', '_', '_', '$2', '_'}, [{'<', '$2', Now - ?COPY_LAST_MS}], [true]}
    ]).

copy_of(#message{meta = #{amphora_copy := Id}}) ->
    Id;
copy_of(#message{meta = #{carbon_copy := true}} = Carbon) ->
    case without_carbon(Carbon) of
        {received, #message{meta = #{amphora_copy := Id}}} -> Id;
        _ -> none
    end;
copy_of(_) ->
    none.

%% The message that a carbon was made of, or the carbon of what the user sent himself.
without_carbon(#message{sub_els = [#carbons_received{forwarded = #forwarded{sub_els = [#message{} = M]}}]}) ->
    {received, M};
without_carbon(#message{sub_els = [#carbons_sent{}]} = M) -> {sent, M};
without_carbon(M) -> {none, M}.

have(Ctx, Message) ->
    case copy_of(Message) of
        none -> ok;
        Id -> copy(Ctx, Id, have)
    end.

%%% ------------------------------------------------------------------ life of a session

c2s_session_opened(#{lserver := Host} = State) ->
    case mod_amphora:loaded(Host) of
        true -> new(State);
        false -> State
    end.

new(#{lserver := Host, jid := #jid{luser = LUser} = JID} = State) ->
    Ctx = mod_amphora:ctx(Host),
    Bare = mod_amphora_facts:bare(LUser, Host),
    {Index, _} = mod_amphora:worker(Ctx, Bare),
    <<Prefix:14/binary, $-, Number/binary>> = mod_amphora:new_key(Ctx, Index),
    G = #g{id = <<Prefix/binary, "-s", Number/binary>>, bare = Bare, jid = jid:encode(JID)},
    put_g(State, register_g(Ctx, G)).

register_g(#{sessions := Sessions, seats := Seats}, #g{id = Id, gate = Gate} = G) ->
    ets:insert(Sessions, {Id, self()}),
    ets:insert(Seats, {self(), Id, Gate}),
    G.

unregister_g(#{sessions := Sessions, seats := Seats}, #g{id = Id}) ->
    ets:delete_object(Sessions, {Id, self()}),
    ets:delete(Seats, self()).

put_g(State, G) -> State#{amphora => G}.

ctx(#{lserver := Host}) -> mod_amphora:ctx(Host).

set_gate(State, #g{id = Id} = G, Gate) ->
    ets:insert(map_get(seats, ctx(State)), {self(), Id, Gate}),
    G#g{gate = Gate}.

%% It has the name from now on, and before the one that it replaces is told to end: what that one still gets
%% finds its way.
c2s_copy_session(State, #{amphora := #g{id = Id} = G, sid := {_, Old}}) ->
    ets:insert(map_get(sessions, ctx(State)), {Id, self()}),
    Before = [Old | maps:values(G#g.replaced)],
    Replaced = maps:from_list([{erlang:monitor(process, Pid), Pid} || Pid <- Before]),
    G1 =
        case node(Old) == node() of
            true -> G;
            false -> kept_here(G, State)
        end,
    put_g(State, G1#g{replaced = Replaced, may_open = false, repeating = false, heir = undefined});
c2s_copy_session(State, _OldState) -> State.

%% What waits was in the journal of another node of the cluster, and is in this one's from now on.
kept_here(#g{waiting = Waiting, out = Out} = G, State) ->
    Here = fun(Message, Stamp) -> keep(xmpp:del_meta(Message, amphora_spooled), Stamp, State) end,
    G#g{
        waiting = queue:from_list([{Here(M, Stamp), Bytes, Stamp} || {M, Bytes, Stamp} <- queue:to_list(Waiting)]),
        out = queue:from_list([
            case Entry of
                {live, M, Stamp} -> {live, Here(M, Stamp), Stamp};
                _ -> Entry
            end
         || Entry <- queue:to_list(Out)
        ])
    }.

c2s_session_resumed(#{amphora := #g{} = G} = State) ->
    Ctx = ctx(State),
    register_g(Ctx, G),
    say_flags(State, G),
    State1 = acknowledged(State, acked_position(State)),
    case can_take(State1) of
        true ->
            pass_sleeping(State1),
            start_repeating(close_gate(State1));
        false ->
            start_repeating(State1)
    end;
c2s_session_resumed(State) ->
    State.

%% It has lost its connection, and may be resumed.
c2s_session_pending(#{amphora := #g{}} = State0) ->
    #{amphora := G} = State = tell_waiting(State0),
    say_flags(State, G),
    %% what it has completely stays with it
    case G#g.done /= G#g.n andalso is_other_awake(State) of
        true ->
            State1 = park(State, undefined),
            mod_amphora_queue:seat(ctx(State), G#g.bare, {stored, G#g.bare}),
            State1;
        false ->
            State
    end;
c2s_session_pending(State) ->
    State.

%% It has lost its connection, and is about to end. What it is still given goes back in order at its end, and
%% nobody takes it for one that could be written to.
c2s_closed(#{amphora := #g{}} = State, _Reason) -> gone(State);
c2s_closed(State, _Reason) -> State.

gone(#{amphora := #g{gate = gone}} = State) -> State;
gone(#{amphora := #g{} = G} = State) -> put_g(State, set_gate(State, G, gone)).

%% What others want to know of it: whether it sleeps, fetches for itself, and has read the archive.
say_flags(#{jid := #jid{luser = U, lserver = S, lresource = R}} = State, #g{fetches = Fetches, read = Read}) ->
    Flags =
        [asleep || maps:get(mgmt_state, State, inactive) == pending] ++ [fetches || Fetches] ++
            [{read, Read} || Read /= undefined],
    _ = ejabberd_sm:set_user_info(U, S, R, amphora, Flags),
    ok.

others(#{jid := #jid{luser = LUser, lserver = Host}}) ->
    [S || {_, _, Pid, _} = S <- mod_amphora_facts:sessions(LUser, Host), Pid /= self()].

is_other_awake(State) ->
    lists:any(fun({_, P, _, Asleep}) -> is_integer(P) andalso P >= 0 andalso not Asleep end, others(State)).

%% A session that becomes available does not wait for those that sleep. They have said what they give back
%% before it is announced: a process that sleeps waits for nobody, so it may be waited for.
pass_sleeping(State) ->
    [
        try
            ejabberd_c2s:call(Pid, amphora_other_awake, 2000)
        catch
            _:_ -> ok
        end
     || {_, _, Pid, true} <- others(State)
    ],
    ok.

can_take(#{amphora := #g{priority = P}}) -> is_integer(P) andalso P >= 0.

%% The server's table says already what the presence says, and what was routed since then is behind this
%% in the mailbox.
c2s_self_presence({_, #{mgmt_state := resumed}} = Acc) ->
    Acc;
c2s_self_presence({#presence{type = Type} = Presence, #{amphora := #g{priority = Before} = G} = State}) when
    Type == available; Type == unavailable
->
    After =
        case Presence of
            #presence{type = unavailable} -> undefined;
            #presence{priority = undefined} -> 0;
            #presence{priority = P} -> P
        end,
    State1 = put_g(State, G#g{priority = After}),
    WasThere = is_integer(Before) andalso Before >= 0,
    State2 =
        case can_take(State1) of
            true when not WasThere ->
                pass_sleeping(State1),
                close_gate(State1);
            false when WasThere ->
                stand_down(State1, undefined);
            _ ->
                State1
        end,
    {Presence, State2};
c2s_self_presence(Acc) ->
    Acc.

%% A client that reads the archive before it becomes available is not handed what it found there.
user_send_packet({#iq{type = Type, sub_els = [Query]} = IQ, #{amphora := #g{} = G, lserver := Host} = State} = Acc) when
    Type == set; Type == get
->
    case is_archive_query(Query) andalso not can_take(State) andalso mod_amphora_facts:archives(Host) of
        true ->
            G1 = G#g{read = mod_amphora_xml:stamp()},
            say_flags(State, G1),
            {IQ, put_g(State, G1)};
        false -> Acc
    end;
user_send_packet(Acc) ->
    Acc.

is_archive_query(#mam_query{}) -> true;
is_archive_query(#xmlel{name = <<"query">>} = El) ->
    case mod_amphora_xml:attr(<<"xmlns">>, El) of
        <<"urn:xmpp:mam:", _/binary>> -> true;
        _ -> false
    end;
is_archive_query(_) ->
    false.

%%% ------------------------------------------------------------------ the gate

%% A reason to announce the session. None where one fetches for itself.
close_gate(#{amphora := #g{bare = Bare} = G, jid := #jid{luser = LUser}, lserver := Host} = State) ->
    case fetched_by_one(Host, LUser) of
        true ->
            State;
        false ->
            Ctx = ctx(State),
            N = G#g.n + 1,
            G1 = G#g{gave = false, may_open = false, n = N, answer_at = mod_amphora:now_ms(), parked = false},
            G2 =
                case G1#g.limited of
                    true -> G1;
                    false -> set_gate(State, G1, closed)
                end,
            mod_amphora_queue:seat(Ctx, Bare, {reason, #{
                id => G#g.id,
                pid => self(),
                bare => Bare,
                jid => G#g.jid,
                n => N,
                priority => priority(G),
                acks => has_sm(State),
                read => G#g.read
            }}),
            watch_limit(Ctx, N),
            put_g(State, G2)
    end.

priority(#g{priority = P}) when is_integer(P) -> P;
priority(_) -> 0.

watch_limit(#{opts := #{gate_limit := Limit}}, N) ->
    erlang:send_after(max(100, Limit div 4), self(), {amphora_gate, {limit, N}}).

%% For so long there was no answer, and nothing of a hand-over is under way.
limit_reached(#{amphora := #g{in_flight = InFlight, answer_at = At}} = State) ->
    #{opts := #{gate_limit := Limit}} = Ctx = ctx(State),
    Now = mod_amphora:now_ms(),
    case mod_amphora_link:links(Ctx) of
        [] -> Now - max(mod_amphora_link:lost_at(Ctx), 0 + min_time(At)) >= Limit;
        _ -> InFlight == 0 andalso Now - At >= Limit
    end.

min_time(At) -> At.

release(#{amphora := #g{replaced = Replaced} = G} = State) when map_size(Replaced) == 0 ->
    write_on(put_g(State, set_gate(State, G#g{may_open = false}, releasing)));
release(#{amphora := G} = State) ->
    put_g(State, G#g{may_open = true}).

%% The processes that this one replaced are gone: all that they had is here. Until then nothing was given back,
%% for it would have been in no order; it is not for long, and no more than comes meanwhile.
alone(#{amphora := #g{waiting = Waiting, may_open = MayOpen, gate = Gate} = G} = State) ->
    #{opts := #{gate_messages := MaxCount, gate_bytes := MaxBytes}} = ctx(State),
    Sorted = in_order(queue:to_list(Waiting), fun({Message, _, _}) -> Message end),
    State1 = put_g(State, G#g{waiting = queue:from_list(Sorted)}),
    case MayOpen orelse Gate /= closed of
        true -> release(State1);
        false when G#g.waiting_count > MaxCount; G#g.waiting_bytes > MaxBytes -> empty_gate(State1);
        false -> State1
    end.

%% In the order of arrival. One that does not say it keeps the place that it has.
in_order(Entries, MessageOf) ->
    {Placed, _} = lists:mapfoldl(
        fun(Entry, Last) ->
            Place = place(MessageOf(Entry), Last),
            {{Place, Entry}, Place}
        end,
        0,
        Entries
    ),
    [Entry || {_, Entry} <- lists:keysort(1, Placed)].

place(#message{} = Message, Last) ->
    {_, Inner} = without_carbon(Message),
    xmpp:get_meta(Inner, amphora_ord, Last);
place(_, Last) ->
    Last.

has_sm(#{mgmt_state := S}) when S == active; S == pending -> true;
has_sm(_) -> false.

%% Is there room for a message in the queue of mod_stream_mgmt?
has_room(#{mgmt_max_queue := Max, mgmt_queue := Queue, mgmt_state := S}) when is_integer(Max), S /= inactive ->
    p1_queue:len(Queue) < max(1, Max - ?SPARE);
has_room(_) ->
    true.

%% The one place where what goes to a client is held up.
c2s_filter_send({#message{meta = #{mgmt_is_resent := true}}, _} = Acc) -> Acc;
c2s_filter_send({#message{meta = #{amphora_written := _}}, _} = Acc) -> Acc;
c2s_filter_send({#message{} = Message, #{amphora := #g{} = G} = State} = Acc) ->
    case {mod_amphora_xml:is_chat(Message), State} of
        {true, #{mgmt_state := resumed}} ->
            case with_heir(State) of
                #{amphora := #g{heir = none}} = State1 ->
                    have(ctx(State1), Message),
                    {stop, {drop, wait(Message, gone(State1))}};
                State1 ->
                    send_on(G, State1, {late, Message}),
                    {stop, {drop, State1}}
            end;
        {true, _} ->
            live(Message, G, State);
        {false, _} ->
            Acc
    end;
c2s_filter_send(Acc) ->
    Acc.

live(Message, #g{gate = open, replaced = Replaced} = G, State) when map_size(Replaced) == 0 ->
    case has_room(State) orelse not can_take(State) of
        true ->
            have(ctx(State), Message),
            {xmpp:put_meta(Message, amphora_written, live), State};
        false ->
            Unacknowledged = p1_queue:len(map_get(mgmt_queue, State)),
            ?INFO_MSG("~ts has not acknowledged ~b stanzas, messages wait", [G#g.jid, Unacknowledged]),
            %% Where nothing is handed over, they wait for room alone.
            State1 =
                case close_gate(State) of
                    #{amphora := #g{gate = open} = G1} = Same -> put_g(Same, set_gate(Same, G1, releasing));
                    Closed -> Closed
                end,
            have(ctx(State), Message),
            {stop, {drop, wait(Message, State1)}}
    end;
live(Message, _G, State) ->
    have(ctx(State), Message),
    {stop, {drop, wait(Message, State)}}.

wait(Message, #{amphora := #g{waiting_count = Count, waiting_bytes = Sum} = G} = State) ->
    #{opts := #{gate_messages := MaxCount, gate_bytes := MaxBytes}} = ctx(State),
    Bytes = erlang:external_size(Message),
    IsFull = Count >= MaxCount orelse (Count > 0 andalso Sum + Bytes > MaxBytes),
    case IsFull andalso map_size(G#g.replaced) == 0 andalso G#g.gate /= gone of
        true ->
            ?INFO_MSG("The gate of ~ts is full, its ~b messages are intercepted", [G#g.jid, Count]),
            [Pid ! {amphora_gate, empty} || {_, _, Pid, _} <- others(State)],
            add_waiting(Message, Bytes, empty_gate(State));
        false ->
            add_waiting(Message, Bytes, State)
    end.

add_waiting(Message0, Bytes, #{amphora := #g{} = G} = State) ->
    Stamp = mod_amphora_xml:stamp(),
    Message = keep(tell_sleeper(Message0, State), Stamp, State),
    put_g(State, G#g{
        waiting = queue:in({Message, Bytes, Stamp}, G#g.waiting),
        waiting_count = G#g.waiting_count + 1,
        waiting_bytes = G#g.waiting_bytes + Bytes
    }).

%% What waits is in the journal until it is written. It may wait in several gates, and is there once then.
keep(Message, Stamp, State) ->
    case without_carbon(Message) of
        {sent, _} ->
            Message;
        {_, Inner} ->
            case mod_amphora_queue:keep(ctx(State), without_resent(Inner), what_comes_back(State, Inner, Stamp)) of
                none -> Message;
                Kept -> xmpp:put_meta(Message, amphora_spooled, Kept)
            end
    end.

%% It need not be there any more.
forget(#{lserver := Host, jid := #jid{luser = LUser}}, #message{meta = #{amphora_spooled := {_, Handle}}} = Message) ->
    mod_amphora_spool:delete(Host, mod_amphora_facts:bare(LUser, Host), Handle),
    xmpp:del_meta(Message, amphora_spooled);
forget(_State, Message) ->
    Message.

%% One who sleeps is told of what waits for him as of what is written to him, and once.
tell_sleeper(Message, #{lserver := Host, push_enabled := true, mgmt_state := pending} = State) ->
    case gen_mod:is_loaded(Host, mod_push) of
        true ->
            _ = mod_push:c2s_stanza(State, Message, ok),
            xmpp:put_meta(Message, amphora_told, true);
        false ->
            Message
    end;
tell_sleeper(Message, _State) ->
    Message.

%% He falls asleep, and was told of what he has not acknowledged. That stands for all.
tell_waiting(#{push_enabled := true, mgmt_queue := Queue, amphora := #g{waiting = Waiting} = G} = State) ->
    case queue:to_list(Waiting) of
        [] ->
            State;
        [{First, Bytes, Stamp} | Rest] ->
            IsTold = lists:any(fun({_, _, Packet}) -> mod_push:is_incoming_chat_msg(Packet) end, p1_queue:to_list(Queue)),
            Told =
                case IsTold of
                    true -> First;
                    false -> tell_sleeper(First, State)
                end,
            Marked = [{xmpp:put_meta(M, amphora_told, true), B, S} || {M, B, S} <- [{Told, Bytes, Stamp} | Rest]],
            put_g(State, G#g{waiting = queue:from_list(Marked)})
    end;
tell_waiting(State) ->
    State.

%% All in it is intercepted, in order. What several gates hold is stored once.
empty_gate(#{amphora := #g{waiting = Waiting, parked = Parked} = G} = State) ->
    Ctx = ctx(State),
    Parked andalso hear_others(State),
    lists:foreach(
        fun({Message, _, Stamp}) ->
            case copy_of(Message) of
                none ->
                    comes_back(State, Message, Stamp, G#g.jid);
                Id ->
                    Op =
                        case Parked of
                            true -> keep_unless_elsewhere;
                            false -> keep
                        end,
                    case copy(Ctx, Id, Op) of
                        true -> comes_back(State, Message, Stamp, G#g.jid);
                        false -> forget(State, Message)
                    end
            end
        end,
        queue:to_list(Waiting)
    ),
    State1 = put_g(State, G#g{waiting = queue:new(), waiting_count = 0, waiting_bytes = 0, gave = true}),
    case G#g.done == G#g.n andalso not Parked of
        true -> close_gate(State1);
        false -> State1
    end.

%% Waits until the other sessions have noted what they have by now.
hear_others(State) ->
    [
        try
            ejabberd_c2s:call(Pid, amphora_hear, 2000)
        catch
            _:_ -> ok
        end
     || {_, _, Pid, false} <- others(State)
    ],
    ok.

%%% ------------------------------------------------------------------ writing

%% Writes what is next as far as the window allows, and opens a gate that has nothing left.
write_on(#{amphora := #g{out = Out} = G} = State) ->
    case queue:out(Out) of
        {empty, _} when G#g.gate == releasing ->
            case queue:out(G#g.waiting) of
                {empty, _} ->
                    put_g(State, set_gate(State, G, open));
                {{value, {Message, Bytes, Stamp}}, Rest} ->
                    G1 = G#g{
                        waiting = Rest,
                        waiting_count = G#g.waiting_count - 1,
                        waiting_bytes = G#g.waiting_bytes - Bytes,
                        out = queue:in({live, Message, Stamp}, Out)
                    },
                    write_on(put_g(State, G1))
            end;
        {empty, _} ->
            State;
        {{value, Entry}, Rest} ->
            case may_write(State) of
                true -> write_on(write_one(put_g(State, G#g{out = Rest}), Entry));
                false -> State
            end
    end;
write_on(State) ->
    State.

may_write(#{amphora := #g{in_flight = InFlight}} = State) ->
    #{opts := #{session_window := Window}} = ctx(State),
    InFlight < Window andalso has_room(State) andalso is_connected(State).

%% Without a connection only mod_stream_mgmt's queue can take a stanza.
is_connected(#{stream_state := disconnected} = State) -> has_sm(State);
is_connected(_) -> true.

write_one(State, {item, Id, Message}) ->
    ejabberd_c2s:send(State, xmpp:put_meta(Message, amphora_written, {item, Id}));
write_one(State, {live, #message{meta = #{amphora_spooled := _}} = Message, Stamp}) ->
    write_one(State, {live, forget(State, Message), Stamp});
write_one(#{push_enabled := true} = State, {live, #message{meta = #{amphora_told := true}} = Message, Stamp}) ->
    State1 = write_one(maps:remove(push_enabled, State), {live, xmpp:del_meta(Message, amphora_told), Stamp}),
    State1#{push_enabled => true};
write_one(State, {live, Message, Stamp}) ->
    ejabberd_c2s:send(State, xmpp:put_meta(Message, amphora_written, {waited, Stamp}));
write_one(State, {own, {Stanza, Pid, Ref}}) ->
    Pid ! {amphora_written, Ref},
    ejabberd_c2s:send(State, xmpp:put_meta(Stanza, amphora_written, {own, {Pid, Ref}})).

%% After mod_stream_mgmt has numbered it.
c2s_handle_send(#{amphora := #g{}} = State, Packet, Result) when
    is_record(Packet, message); is_record(Packet, iq)
->
    case xmpp:get_meta(Packet, amphora_written, none) of
        none ->
            State;
        What ->
            case xmpp:get_meta(Packet, mgmt_is_resent, false) of
                true -> State;
                false -> was_sent(State, Packet, What, Result)
            end
    end;
c2s_handle_send(State, _Packet, _Result) ->
    State.

was_sent(State0, Packet, What, Result) ->
    #{amphora := #g{track = Track, in_flight = InFlight} = G} = State = let_out(State0, Packet),
    case has_sm(State) of
        true ->
            case is_tracked(What, Packet) of
                false ->
                    State;
                Tracked ->
                    #{mgmt_stanzas_out := Position} = State,
                    put_g(State, G#g{
                        track = queue:in({Position, Tracked}, Track), in_flight = InFlight + counts(Tracked)
                    })
            end;
        false when Result == ok ->
            acknowledge(State, is_tracked(What, Packet));
        false ->
            never_sent(State, Packet, What)
    end.

%% A settled send left the gate.
let_out(#{amphora := #g{settling = Settling} = G} = State, #message{meta = #{amphora := #{key := Key}}}) ->
    case mod_amphora_broadcast:is_key(Key) andalso maps:take(Key, Settling) of
        false ->
            State;
        {Who, Rest} ->
            Who ! {amphora_where, Key, written},
            put_g(State, G#g{settling = Rest});
        error ->
            put_g(State, G#g{settled_key = Key})
    end;
let_out(State, _Packet) ->
    State.

%% Where is the settled send that was routed to this session just before it was asked?
where(Key, #g{settled_key = Key}) ->
    written;
where(Key, #g{waiting = Waiting, out = Out}) ->
    Messages = [M || {M, _, _} <- queue:to_list(Waiting)] ++ [M || {live, M, _} <- queue:to_list(Out)],
    case [M || #message{meta = #{amphora := #{key := K}}} = M <- Messages, K == Key] of
        [] -> nowhere;
        _ -> waiting
    end.

%% What is to be known of its acknowledgement: {item, Id}, {own, Who}, {waited, Copy}, {copy, Copy}.
is_tracked({item, Id}, _) -> {item, Id};
is_tracked({own, Who}, _) -> {own, Who};
is_tracked({waited, _}, Message) -> {waited, copy_of(Message)};
is_tracked(live, Message) ->
    case copy_of(Message) of
        none -> false;
        Id -> {copy, Id}
    end.

%% In the window of what we write ourselves.
counts({copy, _}) -> 0;
counts(_) -> 1.

acknowledge(State, false) ->
    State;
acknowledge(State, {own, {Pid, Ref}}) ->
    Pid ! {amphora_shown, Ref},
    State;
acknowledge(State, {Kind, Id}) when Kind == copy; Kind == waited ->
    Id /= none andalso copy(ctx(State), Id, ack),
    State;
acknowledge(#{amphora := #g{items = Items} = G} = State, {item, Id}) ->
    case Items of
        #{Id := {false, Numbers}} ->
            State1 = put_g(State, G#g{items = maps:put(Id, {true, []}, Items)}),
            lists:foldl(fun(N, Acc) -> one_less(Acc, N) end, State1, Numbers);
        _ ->
            State
    end.

one_less(#{amphora := #g{batches = Batches} = G} = State, N) ->
    case Batches of
        #{N := {Ids, Left, At}} ->
            State1 = put_g(State, G#g{batches = maps:put(N, {Ids, Left - 1, At}, Batches)}),
            case Left - 1 of
                0 -> report(State1, N);
                _ -> State1
            end;
        _ ->
            State
    end.

%% The socket did not take it, and nobody will acknowledge it: an item stays with the node. The rest is older
%% than all that waits here, and waits for the end of the session.
never_sent(State, _Packet, {Kind, _}) when Kind == item; Kind == own ->
    gone(State);
never_sent(State, #message{} = Message, What) ->
    Stamp =
        case What of
            {waited, At} -> At;
            live -> mod_amphora_xml:stamp()
        end,
    #{amphora := #g{waiting = Waiting, waiting_count = Count, waiting_bytes = Sum} = G} = State1 = gone(State),
    Bytes = erlang:external_size(Message),
    put_g(State1, G#g{
        waiting = queue:in_r({xmpp:del_meta(Message, amphora_written), Bytes, Stamp}, Waiting),
        waiting_count = Count + 1,
        waiting_bytes = Sum + Bytes
    });
never_sent(State, _Packet, _What) ->
    gone(State).

%%% ------------------------------------------------------------------ acknowledgements

c2s_authenticated_packet(#{mgmt_state := resumed} = State, _Packet) ->
    State;
c2s_authenticated_packet(#{amphora := #g{}, mgmt_stanzas_out := Sent} = State, #sm_a{h = H}) when H =< Sent ->
    %% mod_stream_mgmt makes room in its queue only after this
    has_room(State) orelse (self() ! {amphora_gate, write}),
    write_on(acknowledged(State, H));
c2s_authenticated_packet(State, _Packet) ->
    State.

acked_position(#{mgmt_stanzas_out := Sent, mgmt_queue := Queue}) -> Sent - p1_queue:len(Queue);
acked_position(_) -> 0.

acknowledged(#{amphora := #g{track = Track, in_flight = InFlight} = G} = State, Position) ->
    case queue:peek(Track) of
        {value, {At, What}} when At =< Position ->
            G1 = G#g{track = queue:drop(Track), in_flight = InFlight - counts(What)},
            acknowledged(acknowledge(put_g(State, G1), What), Position);
        _ ->
            State
    end.

report(#{amphora := #g{id = Id, bare = Bare, batches = Batches} = G} = State, N) ->
    {Ids, 0, _} = maps:get(N, Batches),
    say_taken(State, Bare, Id, N, Ids, []),
    start_repeating(put_g(State, G#g{batches = maps:put(N, {Ids, 0, mod_amphora:now_ms()}, Batches)})).

say_taken(State, Bare, Id, N, Ids, More) ->
    Ctx = ctx(State),
    case mod_amphora_link:of_user(Ctx, Bare) of
        none ->
            ok;
        Link ->
            mod_amphora_link:emit(Link, [
                mod_amphora_xml:el(
                    <<"taken">>,
                    [
                        {<<"for">>, Bare},
                        {<<"session">>, Id},
                        {<<"batch">>, N},
                        {<<"ids">>, iolist_to_binary(lists:join($\s, Ids))}
                    ] ++ More
                )
            ])
    end.

start_repeating(#{amphora := #g{repeating = true}} = State) ->
    State;
start_repeating(#{amphora := #g{} = G} = State) ->
    #{opts := #{repeat := Repeat}} = ctx(State),
    erlang:send_after(Repeat, self(), {amphora_gate, repeat}),
    put_g(State, G#g{repeating = true}).

%% What the node has not confirmed is said again.
repeat(#{amphora := #g{batches = Batches, id = Id, bare = Bare} = G} = State, Age) ->
    Now = mod_amphora:now_ms(),
    Said = [{N, Ids} || {N, {Ids, 0, At}} <- maps:to_list(Batches), is_integer(At), Now - At >= Age],
    [say_taken(State, Bare, Id, N, Ids, []) || {N, Ids} <- Said],
    Again = maps:map(
        fun
            (N, {Ids, 0, _}) ->
                {Ids, 0,
                    case lists:keymember(N, 1, Said) of
                        true -> Now;
                        false -> element(3, maps:get(N, Batches))
                    end};
            (_, Batch) ->
                Batch
        end,
        Batches
    ),
    State1 = put_g(State, G#g{batches = Again, repeating = false}),
    case maps:size(maps:filter(fun(_, {_, Left, _}) -> Left == 0 end, Again)) of
        0 -> State1;
        _ -> start_repeating(State1)
    end.

%%% ------------------------------------------------------------------ hand-over

%% What a link says of a session counts while it is its user's. What it had on its way besides comes again
%% by the next one.
is_of_link(#{amphora := #g{bare = Bare}} = State, #link{id = Id, gen = Gen}) ->
    case mod_amphora_link:of_user(ctx(State), Bare) of
        #link{id = Id, gen = Gen} -> true;
        _ -> false
    end.

hand_over(#{amphora := #g{parked = Parked} = G} = State, El) ->
    N = mod_amphora_xml:attr(<<"batch">>, El),
    case {is_binary(N), can_take(State) andalso not Parked} of
        {false, _} ->
            ?WARNING_MSG("A hand-over to ~ts without a batch was left out", [G#g.jid]),
            State;
        {true, true} ->
            mod_amphora_queue:seat(ctx(State), G#g.bare, {answered, G#g.id}),
            take_batch(State, N, El);
        {true, false} when Parked ->
            park(State, N);
        {true, false} ->
            stand_down(State, N)
    end.

take_batch(#{amphora := #g{} = G0, lserver := Host, jid := #jid{luser = LUser}} = State, N, El) ->
    G = G0#g{answer_at = mod_amphora:now_ms(), last_batch = N},
    {G1, Ids, Left, _} = lists:foldl(
        fun(Item, {Acc, Known, Count, Blocked}) ->
            Id = mod_amphora_xml:attr(<<"id">>, Item),
            case maps:find(Id, Acc#g.items) of
                {ok, {true, _}} ->
                    {Acc, [Id | Known], Count, Blocked};
                {ok, {false, Numbers}} ->
                    {Acc#g{items = maps:put(Id, {false, [N | lists:delete(N, Numbers)]}, Acc#g.items)}, [Id | Known],
                        Count + 1, Blocked};
                error ->
                    new_item(Acc, N, Id, item_message(Host, Item), {Known, Count, Blocked}, {LUser, Host})
            end
        end,
        {G, [], 0, #{}},
        mod_amphora_xml:children(<<"item">>, ?NS_INTERCEPT, El)
    ),
    %% The same batch again, or a node that counts anew: its taken covers both.
    Old =
        case G1#g.batches of
            #{N := {OldIds, _, _}} -> [I || I <- OldIds, not lists:member(I, Ids), is_acknowledged(I, G1)];
            _ -> []
        end,
    G2 = G1#g{batches = maps:put(N, {lists:reverse(Ids) ++ Old, Left, none}, G1#g.batches)},
    State1 = write_on(put_g(State, G2)),
    case State1 of
        #{amphora := #g{batches = #{N := {_, 0, none}}}} -> report(State1, N);
        _ -> State1
    end.

is_acknowledged(Id, #g{items = Items}) ->
    case Items of
        #{Id := {true, _}} -> true;
        _ -> false
    end.

new_item(G, _N, Id, error, {Known, Count, Blocked}, _User) ->
    %% Not taken, so that it stays where it is and someone can look at it.
    ?ERROR_MSG("Item ~ts for ~ts can't be read", [Id, G#g.jid]),
    {G, Known, Count, Blocked};
new_item(G, N, Id, {ok, #message{from = From} = Message}, {Known, Count, Blocked}, {LUser, Host}) ->
    IsBlocked =
        case Blocked of
            #{From := B} -> B;
            _ -> From /= undefined andalso mod_amphora_facts:is_blocked(LUser, Host, From)
        end,
    Blocked1 = maps:put(From, IsBlocked, Blocked),
    case IsBlocked of
        true ->
            {G#g{items = maps:put(Id, {true, []}, G#g.items)}, [Id | Known], Count, Blocked1};
        false ->
            G1 = G#g{
                items = maps:put(Id, {false, [N]}, G#g.items), out = queue:in({item, Id, Message}, G#g.out)
            },
            {G1, [Id | Known], Count + 1, Blocked1}
    end.

%% The message as mod_offline would write it: no archive sees it again.
item_message(Host, Item) ->
    case mod_amphora_xml:child(<<"forwarded">>, ?NS_FORWARDED, Item) of
        undefined ->
            error;
        Forwarded ->
            case mod_amphora_xml:decode(mod_amphora_xml:child(<<"message">>, ?NS_CLIENT, Forwarded)) of
                {ok, Message} ->
                    Marked = xmpp:put_meta(Message, from_offline, true),
                    case mod_amphora_xml:child(<<"delay">>, ?NS_DELAY_URI, Forwarded) of
                        undefined ->
                            {ok, Marked};
                        Delay ->
                            {ok, mod_amphora_xml:add_delay(Marked, Host, mod_amphora_xml:attr(<<"stamp">>, Delay))}
                    end;
                error ->
                    error
            end
    end.

%% The node has deleted the rows of a batch.
deleted(#{amphora := #g{batches = Batches, items = Items} = G} = State, El) ->
    N = mod_amphora_xml:attr(<<"batch">>, El),
    case Batches of
        #{N := {Ids, 0, At}} when is_integer(At) ->
            Left = maps:without([I || I <- Ids, is_acknowledged(I, G)], Items),
            put_g(State, G#g{batches = maps:remove(N, Batches), items = Left});
        _ ->
            %% it may be of an end that was said
            mod_amphora_queue:seat(ctx(State), G#g.bare, {deleted, G#g.id, El}),
            State
    end.

%% The session takes no more of a hand-over, and the node keeps what was not acknowledged. Says whether
%% that may be something.
give_back(#{amphora := #g{items = Items, bare = Bare, id = Id} = G} = State, N) ->
    Ids = [I || {I, {true, _}} <- maps:to_list(Items)],
    Left = G#g.done /= G#g.n orelse length(Ids) < maps:size(Items),
    Batch =
        case N of
            undefined -> G#g.last_batch;
            _ -> N
        end,
    mod_amphora_queue:seat(ctx(State), Bare, {ended, Bare, Id, {Batch, Ids, self()}}),
    Kept = queue:filter(
        fun
            ({item, _, _}) -> false;
            (_) -> true
        end,
        G#g.out
    ),
    Unwritten = [I || {item, I, _} <- queue:to_list(G#g.out)],
    {Left,
        put_g(State, G#g{
            batches = #{}, last_batch = undefined, out = Kept, items = maps:without(Unwritten ++ Ids, Items)
        })}.

%% It fell below zero: what waits in its gate is intercepted.
stand_down(State, N) ->
    {Left, #{amphora := #g{out = Out, waiting = Waiting} = G} = State1} = give_back(State, N),
    [lost(State1, M, Stamp) || {live, M, Stamp} <- queue:to_list(Out)],
    [lost(State1, M, Stamp) || {M, _, Stamp} <- queue:to_list(Waiting)],
    Own = queue:filter(
        fun
            ({own, _}) -> true;
            (_) -> false
        end,
        Out
    ),
    G1 = set_gate(State1, G, open),
    Left andalso mod_amphora_queue:seat(ctx(State), G#g.bare, {stored, G#g.bare}),
    put_g(State1, G1#g{
        out = Own,
        waiting = queue:new(),
        waiting_count = 0,
        waiting_bytes = 0,
        parked = false,
        limited = false,
        done = G#g.n
    }).

%% It sleeps while another is awake, which is to have what it left. Its gate stays closed, for what waits
%% there is newer: it is announced again when it wakes, or when nobody else is there.
park(State, N) ->
    {_, #{amphora := G} = State1} = give_back(State, N),
    put_g(State1, G#g{parked = true}).

has_unacknowledged(#g{items = Items}) -> lists:any(fun({Acked, _}) -> not Acked end, maps:values(Items)).

%%% ------------------------------------------------------------------ messages of ours to the session

%% To a process that was replaced: the one that replaced it is meant.
c2s_handle_info(#{mgmt_state := resumed, amphora := #g{} = G} = State, {amphora_gate, What}) ->
    case with_heir(State) of
        #{amphora := #g{heir = none}} = State1 ->
            send_back(State1, What),
            {stop, State1};
        State1 ->
            send_on(G, State1, What),
            {stop, State1}
    end;
c2s_handle_info(#{mgmt_state := resumed} = State, _Info) ->
    State;
c2s_handle_info(#{amphora := #g{replaced = Replaced} = G} = State, {'DOWN', Ref, process, _, _}) when
    is_map_key(Ref, Replaced)
->
    State1 = put_g(State, G#g{replaced = maps:remove(Ref, Replaced)}),
    case map_size(Replaced) of
        1 -> {stop, alone(State1)};
        _ -> {stop, State1}
    end;
c2s_handle_info(#{amphora := #g{}} = State, {amphora_gate, What}) ->
    {stop, on_info(What, State)};
c2s_handle_info(#{jid := _, lserver := Host} = State, {amphora_gate, adopt}) ->
    case mod_amphora:loaded(Host) of
        true -> {stop, adopted(State)};
        false -> {stop, State}
    end;
c2s_handle_info(State, {amphora_gate, _}) ->
    {stop, State};
c2s_handle_info(State, _Info) ->
    State.

on_info({late, Message}, #{amphora := #g{} = G} = State) ->
    case live(Message, G, State) of
        {stop, {drop, State1}} -> State1;
        {Marked, State1} -> ejabberd_c2s:send(State1, Marked)
    end;
on_info({hand_over, Link, El}, State) ->
    case is_of_link(State, Link) of
        true -> hand_over(State, El);
        false -> State
    end;
on_info({deleted, Link, El}, State) ->
    case is_of_link(State, Link) of
        true -> deleted(State, El);
        false -> State
    end;
on_info({release, N}, #{amphora := #g{n = N, gate = closed, gave = true, id = Id, bare = Bare} = G} = State) ->
    %% the worker may not have known of that when it said so: it is behind it in its mailbox, as this is
    mod_amphora_queue:seat(ctx(State), Bare, {settle, Id, N}),
    put_g(State, G#g{gave = false});
on_info({release, N}, #{amphora := #g{n = N, gate = Gate} = G} = State) ->
    State1 = put_g(State, G#g{done = N, limited = false, answer_at = mod_amphora:now_ms()}),
    case Gate of
        closed -> release(State1);
        _ -> State1
    end;
on_info(renew, #{amphora := #g{parked = Parked, n = N, id = Id, bare = Bare}} = State) ->
    State1 =
        case can_take(State) andalso (not Parked orelse not is_other_awake(State)) of
            true -> close_gate(State);
            false -> State
        end,
    [mod_amphora_queue:seat(ctx(State), Bare, {not_renewed, Id}) || (map_get(amphora, State1))#g.n == N],
    State1;
on_info(renew_there, #{amphora := #g{id = Id, bare = Bare}} = State) ->
    mod_amphora_queue:seat(ctx(State), Bare, {renew, Id, self()}),
    State;
on_info({write, Message, Worker}, State) ->
    #{key := Key} = xmpp:get_meta(Message, amphora),
    case State of
        #{amphora := #g{gate = gone}} ->
            Worker ! {amphora_unwritten, Key},
            State;
        _ ->
            Worker ! {amphora_written, Key},
            ejabberd_c2s:send(State, Message)
    end;
on_info({where, Key, Who}, #{amphora := #g{settling = Settling} = G} = State) ->
    Where = where(Key, G),
    Who ! {amphora_where, Key, Where},
    case Where of
        waiting -> put_g(State, G#g{settling = maps:put(Key, Who, Settling)});
        _ -> State
    end;
on_info({own, Entries}, #{amphora := #g{out = Out} = G} = State) ->
    write_on(put_g(State, G#g{out = lists:foldl(fun(E, Q) -> queue:in({own, E}, Q) end, Out, Entries)}));
on_info(write, State) ->
    write_on(State);
on_info(fetches, #{amphora := #g{} = G} = State) ->
    G1 = G#g{fetches = true},
    say_flags(State, G1),
    put_g(State, G1);
on_info({limit, N}, #{amphora := #g{n = N, gate = closed, parked = false} = G} = State) ->
    case limit_reached(State) of
        true ->
            ?WARNING_MSG("~ts: no hand-over in time, live messages go on", [G#g.jid]),
            release(put_g(State, G#g{limited = true}));
        false ->
            watch_limit(ctx(State), N),
            State
    end;
on_info(empty, #{amphora := #g{waiting_count = Count}} = State) when Count > 0 ->
    empty_gate(State);
on_info(links, State) ->
    repeat(State, 0);
on_info(repeat, State) ->
    #{opts := #{repeat := Repeat}} = ctx(State),
    repeat(State, Repeat div 2);
on_info(_What, State) ->
    State.

%% Whether the one that asked for the state has it, which is asked once.
with_heir(#{amphora := #g{heir = Pid, id = Id} = G} = State) when is_pid(Pid) ->
    Took =
        try
            ejabberd_c2s:call(Pid, {amphora_took, Id}, ?SUCCESSOR_MS)
        catch
            %% it is gone: it had the name if anybody took that since
            exit:_ -> ets:lookup(map_get(sessions, ctx(State)), Id) /= [{Id, self()}]
        end,
    case Took of
        true -> put_g(State, G#g{heir = {took, Pid}});
        false -> put_g(State, G#g{heir = none})
    end;
with_heir(State) ->
    State.

%% To whoever has the name by now.
send_on(#g{id = Id}, #{amphora := #g{heir = Heir}} = State, What) ->
    case {ets:lookup(map_get(sessions, ctx(State)), Id), Heir} of
        {[{_, Pid}], _} when Pid /= self() -> Pid ! {amphora_gate, What};
        {[{_, _}], {took, Pid}} -> Pid ! {amphora_gate, What};
        _ -> send_back(State, What)
    end,
    ok.

%% It has ended already, or was never there.
send_back(State, {late, Message}) -> lost(State, Message, mod_amphora_xml:stamp());
send_back(_State, {write, Message, Worker}) -> Worker ! {amphora_unwritten, key_of(Message)};
send_back(_State, {where, Key, Who}) -> Who ! {amphora_where, Key, nowhere};
send_back(_State, _What) -> ok.

key_of(Message) -> map_get(key, xmpp:get_meta(Message, amphora)).

%% What a session knows while the module is not there: a module that is loaded again, and hands over to it anew,
%% must not write once more what is on its way. The numbers of batches are another session's then.
keep(#g{items = Items, out = Out} = G, State) ->
    Unwritten = [Id || {item, Id, _} <- queue:to_list(Out)],
    Known = maps:map(fun(_, {Acked, _}) -> {Acked, []} end, maps:without(Unwritten, Items)),
    State#{amphora_kept => G#g{items = Known}}.

with_kept(#{amphora := G, amphora_kept := #g{items = Items, track = Track, in_flight = InFlight} = Kept} = State) ->
    State1 = put_g(maps:remove(amphora_kept, State), G#g{
        items = Items, track = Track, in_flight = InFlight, read = Kept#g.read, fetches = Kept#g.fetches
    }),
    acknowledged(State1, acked_position(State1));
with_kept(State) ->
    State.

adopted(State) ->
    %% nothing of its gate was ever promised, unless one was closed before
    Limited =
        case State of
            #{amphora_kept := #g{gate = Gate}} -> Gate == open;
            _ -> true
        end,
    #{amphora := G} = State1 = with_kept(new(State)),
    Priority =
        case State of
            #{pres_last := #presence{priority = undefined}} -> 0;
            #{pres_last := #presence{priority = P}} -> P;
            _ -> undefined
        end,
    State2 = put_g(State1, G#g{limited = Limited, priority = Priority}),
    case can_take(State2) of
        true -> close_gate(State2);
        false -> State2
    end.

c2s_handle_call(#{mgmt_state := resumed} = State, Call, From) when
    Call == amphora_let_go; Call == amphora_other_awake; Call == amphora_hear
->
    ejabberd_c2s:reply(From, ok),
    {stop, State};
c2s_handle_call(#{amphora := #g{out = Out, waiting = Waiting} = G} = State, amphora_let_go, From) ->
    [lost(State, M, Stamp) || {live, M, Stamp} <- queue:to_list(Out)],
    [lost(State, M, Stamp) || {M, _, Stamp} <- queue:to_list(Waiting)],
    unregister_g(ctx(State), G),
    ejabberd_c2s:reply(From, ok),
    {stop, keep(G, maps:remove(amphora, State))};
c2s_handle_call(#{amphora := #g{parked = false} = G, mgmt_state := pending} = State, amphora_other_awake, From) ->
    State1 =
        case G#g.done /= G#g.n orelse has_unacknowledged(G) of
            true -> park(State, undefined);
            false -> State
        end,
    ejabberd_c2s:reply(From, ok),
    {stop, State1};
c2s_handle_call(State, Call, From) when
    Call == amphora_let_go; Call == amphora_other_awake; Call == amphora_hear
->
    ejabberd_c2s:reply(From, ok),
    {stop, State};
c2s_handle_call(State, {amphora_took, Id}, From) ->
    Took =
        case State of
            #{amphora := #g{id = Id}} -> true;
            _ -> false
        end,
    ejabberd_c2s:reply(From, Took),
    {stop, State};
c2s_handle_call(#{amphora := #g{heir = undefined} = G, mgmt_queue := Queue} = State, {resume_session, _}, {Pid, _}) ->
    %% mod_stream_mgmt empties it when it has given a copy away
    put(amphora_unacknowledged, p1_queue:file_to_ram(Queue)),
    put_g(State, G#g{heir = Pid});
c2s_handle_call(State, _Request, _From) ->
    State.

%%% ------------------------------------------------------------------ the end of a session

c2s_terminated(#{amphora := #g{} = G, mgmt_state := resumed, lserver := Host} = State, _Reason) ->
    case mod_amphora:loaded(Host) andalso with_heir(State) of
        #{amphora := #g{heir = none}} ->
            ?INFO_MSG("~ts was asked for its state and could not give it in time", [G#g.jid]),
            give_all_back(State#{mgmt_state => timeout, mgmt_queue => get(amphora_unacknowledged)});
        #{} = State1 ->
            ets:delete(map_get(seats, ctx(State)), self()),
            forget_elsewhere(State1),
            send_rest_on(G, State1);
        false ->
            ok
    end,
    State;
c2s_terminated(#{amphora := #g{}, lserver := Host} = State, _Reason) ->
    case mod_amphora:loaded(Host) of
        true -> give_all_back(State);
        false -> State
    end;
c2s_terminated(State, _Reason) ->
    State.

%% What waits here is in the journal of the node where it waits now.
forget_elsewhere(#{amphora := #g{heir = {took, Pid}, waiting = Waiting, out = Out}} = State) when node(Pid) /= node() ->
    [forget(State, M) || {M, _, _} <- queue:to_list(Waiting)],
    [forget(State, M) || {live, M, _} <- queue:to_list(Out)],
    ok;
forget_elsewhere(_State) ->
    ok.

give_all_back(#{amphora := G} = State) ->
    Ctx = ctx(State),
    mod_amphora_queue:session_ends(Ctx, G#g.bare),
    put_mailbox_in_order(),
    unregister_g(Ctx, G),
    mod_amphora_retrieve:ended(map_get(host, Ctx), G#g.id),
    State1 = acknowledged(State, acked_position(State)),
    {Unacked, State2} = take_queue(State1),
    N = drain_hand_overs(undefined),
    [lost(State2, M, Stamp) || {M, Stamp} <- Unacked],
    State3 = stand_down(State2, N),
    drain_writes(State3),
    ets:delete(map_get(seats, Ctx), self()),
    G#g.fetches andalso mod_amphora_queue:seat(Ctx, G#g.bare, {stored, G#g.bare}),
    maps:remove(amphora, State3).

%% p1_server reads its mailbox into a queue of its own, and at the end puts what is in that behind what has come
%% since. Nothing comes any more but what was on its way when the session was said to end.
put_mailbox_in_order() ->
    [self() ! {route, Packet} || Packet <- in_order(routed(), fun(Packet) -> Packet end)],
    ok.

routed() ->
    receive
        {route, Packet} -> [Packet | routed()]
    after 0 -> []
    end.

send_rest_on(G, State) ->
    receive
        {amphora_gate, What} ->
            send_on(G, State, What),
            send_rest_on(G, State)
    after 0 -> ok
    end.

%% Chat and normal messages of mod_stream_mgmt's queue, each with the time at which it was written; what is
%% left is mod_stream_mgmt's. Of an item handed over nothing comes back: the node still has it.
take_queue(#{mgmt_queue := Queue, mgmt_state := S} = State) when S == active; S == pending; S == timeout ->
    {Ours, Others} = lists:partition(
        fun({_, _, Packet}) -> is_ours(Packet) end, p1_queue:to_list(Queue)
    ),
    Rest = lists:foldl(fun p1_queue:in/2, p1_queue:clear(Queue), Others),
    Messages = [
        {M, mod_amphora_xml:stamp(Time)}
     || {_, Time, M} <- Ours,
        not is_item(M)
    ],
    {Messages, State#{mgmt_queue => Rest}};
take_queue(State) ->
    {[], State}.

is_ours(#message{meta = #{amphora_written := _}}) -> true;
is_ours(#message{} = Message) -> mod_amphora_xml:is_chat(Message);
is_ours(_) -> false.

is_item(#message{meta = #{amphora_written := {Kind, _}}}) -> Kind == item orelse Kind == own;
is_item(_) -> false.

%% The highest batch that is still in the mailbox.
drain_hand_overs(Last) ->
    receive
        {amphora_gate, {hand_over, _, El}} -> drain_hand_overs(mod_amphora_xml:attr(<<"batch">>, El))
    after 0 -> Last
    end.

%% What came for it and was not read yet.
drain_writes(State) ->
    receive
        {amphora_gate, {late, _} = What} -> send_back(State, What), drain_writes(State);
        {amphora_gate, {write, _, _} = What} -> send_back(State, What), drain_writes(State);
        {amphora_gate, {where, _, _} = What} -> send_back(State, What), drain_writes(State)
    after 0 -> ok
    end.

%% A message that this session did not acknowledge, or that waited in its gate. It comes back only if no
%% other has it or may still acknowledge it; a copy of what the user sent never does, for the session that
%% sent it has it.
lost(State, Message, Stamp) ->
    case copy_of(Message) of
        none -> comes_back(State, Message, Stamp, undefined);
        Id ->
            case copy(ctx(State), Id, lose) of
                true -> comes_back(State, Message, Stamp, undefined);
                false -> forget(State, Message)
            end
    end.

comes_back(State, Message0, Stamp, Session) ->
    case without_carbon(Message0) of
        {sent, _} ->
            ok;
        {_, Message} ->
            What0 = what_comes_back(State, Message, Stamp),
            What1 =
                case Message0 of
                    #message{meta = #{amphora_spooled := {Key, Handle}}} -> What0#{key => Key, spooled => Handle};
                    _ -> maps:remove(copy, What0)
                end,
            What =
                case Session of
                    undefined -> What1;
                    _ -> What1#{session => jid:decode(Session)}
                end,
            mod_amphora_queue:undelivered(ctx(State), without_resent(Message), What),
            push(State, Message)
    end.

%% What is to be said of it: its key, if it has one, and the name of its copies.
what_comes_back(#{lserver := Host, jid := #jid{luser = LUser}}, Message, Stamp) ->
    Meta = xmpp:get_meta(Message, amphora, #{}),
    Ids = mod_amphora_xml:stanza_ids(Message, mod_amphora_facts:bare(LUser, Host)),
    What = #{
        stamp => maps:get(stamp, Meta, Stamp),
        archived => mod_amphora_facts:archives(Host) andalso is_archives(Ids)
    },
    Named =
        case copy_of(Message) of
            none -> What;
            {_, Name} -> What#{copy => Name}
        end,
    maps:merge(Named, maps:with([key], Meta)).

is_archives([#stanza_id{id = <<"amphora-", _/binary>>} | _]) -> false;
is_archives([#stanza_id{} | _]) -> true;
is_archives([#xmlel{} = El | _]) ->
    case mod_amphora_xml:attr(<<"id">>, El) of
        <<"amphora-", _/binary>> -> false;
        _ -> true
    end;
is_archives([]) -> false.

%% mod_stream_mgmt marks what it sends again with a time of its own.
without_resent(#message{sub_els = Els} = Message) ->
    Message#message{sub_els = [El || El <- Els, not is_resent_mark(El)]}.

is_resent_mark(#delay{desc = <<"Resent">>}) -> true;
is_resent_mark(_) -> false.

%% Nobody is there and nobody was told: the same hook as for any message to someone who is away, for push.
push(#{lserver := Host, jid := #jid{luser = LUser}, mgmt_state := active}, Message) ->
    case [P || {P, _} <- ejabberd_sm:get_user_present_resources(LUser, Host), P >= 0] of
        [_, _ | _] ->
            ok;
        _ ->
            Kept = xmpp:put_meta(xmpp:put_meta(Message, from_offline, true), amphora_kept, true),
            To = (Message#message.to)#jid{luser = LUser, lserver = Host},
            _ = ejabberd_hooks:run_fold(offline_message_hook, Host, {bounce, Kept#message{to = To}}, []),
            ok
    end;
push(_State, _Message) ->
    ok.
