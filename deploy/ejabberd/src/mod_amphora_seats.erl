%%% In the workers: when sessions are announced to a node, and when their gates open. What the sessions
%%% themselves hold and write is in their own processes (mod_amphora_gate).
%%%
%%% A session is announced when all is decided that was sent to its user's storage before its reason, on
%%% every node of the cluster; its gate opens when the hand-over is done and all is decided that was sent
%%% there before that.
-module(mod_amphora_seats).

-export([renew/2, not_renewed/2, settle/3, reason/2, left/2, ended/4, answered/2, handed_over/4]).
-export([is_of_link/3]).
-export([down/2, deleted/3, late_hand_over/3]).
-export([wait/3, wait_for_peers/3, check/2, settle_for/4, peer_settled/3, node_down/2]).
-export([links/2, pump/1, sweep/2]).

-include("mod_amphora.hrl").
-include("mod_amphora_worker.hrl").

%% Something was stored that it could take: it is asked to close its gate and be announced for it, unless
%% its announcement is still to come and covers this.
renew(#w{seats = Seats, ctx = #{sessions := Sessions}} = W, Id) ->
    case Seats of
        #{Id := #seat{renewing = true}} ->
            W;
        #{Id := #seat{n = N, done = Done, announced = Announced}} when N /= Done, Announced /= N ->
            W;
        #{Id := #seat{pid = Pid} = Seat} ->
            Pid ! {amphora_gate, renew},
            put_seat(W, Seat, Seat#seat{renewing = true});
        _ ->
            [Pid ! {amphora_gate, renew} || {_, Pid} <- ets:lookup(Sessions, Id)],
            W
    end.

%%% ------------------------------------------------------------------ what sessions say

%% A reason to announce: its gate is closed, under the number `n`.
reason(#w{seats = Seats, monitors = Monitors} = W, #{id := Id, pid := Pid, bare := Bare, n := N} = Reason) ->
    {Seat, Monitors1} =
        case Seats of
            #{Id := #seat{pid = Pid} = Known} ->
                {Known, Monitors};
            #{Id := #seat{monitor = Ref} = Known} ->
                is_reference(Ref) andalso erlang:demonitor(Ref, [flush]),
                New = erlang:monitor(process, Pid),
                {Known#seat{pid = Pid, monitor = New}, maps:put(New, Id, maps:remove(Ref, Monitors))};
            _ ->
                Ref = erlang:monitor(process, Pid),
                {#seat{id = Id, pid = Pid, monitor = Ref, bare = Bare}, maps:put(Ref, Id, Monitors)}
        end,
    Seat1 = uncount(Seat#seat{
        jid = map_get(jid, Reason),
        n = N,
        priority = map_get(priority, Reason),
        acks = map_get(acks, Reason),
        read = map_get(read, Reason),
        ready = false,
        renewing = false,
        ended = undefined
    }),
    W1 = put_seat(W#w{monitors = Monitors1}, Seat, Seat1),
    wait(W1, Bare, {announce, Id, N}).

%% It is not to be announced now.
not_renewed(W, Id) -> with_seat(W, Id, fun(Seat) -> Seat#seat{renewing = false} end).

%% It takes no more for now, and nothing need be said of it.
left(W, Id) ->
    with_seat(W, Id, fun(Seat) -> uncount(Seat#seat{ready = false, renewing = false, done = Seat#seat.n}) end).

%% The session takes no more of a hand-over, and the node keeps what was not acknowledged.
ended(#w{seats = Seats} = W, Bare, Id, {Batch, Ids, Pid}) ->
    Seat =
        case Seats of
            #{Id := Known} -> Known;
            _ -> #seat{id = Id, pid = Pid, bare = Bare}
        end,
    %% A node forgets with its link which sessions there are: it need only know of the end of one that
    %% was announced to it, and of what was acknowledged.
    case Seat#seat.told /= false orelse Batch /= undefined orelse Ids /= [] of
        true ->
            N =
                case Batch of
                    undefined -> <<"0">>;
                    _ -> Batch
                end,
            Seat1 = uncount(Seat#seat{
                ready = false,
                renewing = false,
                done = Seat#seat.n,
                told = false,
                ended = {N, Ids, mod_amphora:now_ms()}
            }),
            report_end(put_seat(W, Seat, Seat1), Seat1);
        false ->
            left(W, Id)
    end.

%% A batch for it came: it is being handed over.
answered(W, Id) -> with_seat(W, Id, fun uncount/1).

handed_over(#w{seats = Seats} = W, Id, El, Gen) ->
    case Seats of
        #{Id := #seat{n = N, announced = N, done = Done, told = {_, Gen}} = Seat} when Done /= N ->
            case mod_amphora_xml:attr(<<"n">>, El) == integer_to_binary(N + Seat#seat.moved) of
                true ->
                    W1 = put_seat(W, Seat, uncount(Seat#seat{ready = false, done = N})),
                    wait(W1, Seat#seat.bare, {release, Id, N});
                false ->
                    W
            end;
        _ ->
            W
    end.

%% It gave messages back before it was told to open its gate: once more, when those are decided.
settle(#w{seats = Seats} = W, Id, N) ->
    case Seats of
        #{Id := #seat{n = N, bare = Bare}} -> wait(W, Bare, {release, Id, N});
        _ -> W
    end.

%% Its process is gone. It said what was to be said, or could not.
down(#w{seats = Seats, monitors = Monitors} = W, Ref) ->
    case maps:take(Ref, Monitors) of
        {Id, Rest} ->
            W1 = W#w{monitors = Rest},
            case Seats of
                #{Id := #seat{ended = undefined, told = {_, _}, bare = Bare, pid = Pid, monitor = Ref}} ->
                    ended(W1, Bare, Id, {undefined, [], Pid});
                #{Id := #seat{ended = undefined, monitor = Ref} = Seat} ->
                    forget(W1, Seat);
                _ ->
                    W1
            end;
        error ->
            W
    end.

%% The node has deleted what a session that ended had acknowledged.
deleted(#w{seats = Seats} = W, Id, El) ->
    Batch = mod_amphora_xml:attr(<<"batch">>, El),
    case Seats of
        #{Id := #seat{ended = {Batch, _, _}} = Seat} ->
            case is_process_here(Seat#seat.pid) of
                true -> put_seat(W, Seat, Seat#seat{ended = undefined});
                false -> forget(W, Seat)
            end;
        _ ->
            W
    end.

%% A batch for a session that is gone.
late_hand_over(#w{seats = Seats} = W, Id, El) ->
    Batch = mod_amphora_xml:attr(<<"batch">>, El),
    case Seats of
        #{Id := #seat{bare = Bare, ended = {_, Ids, _}, pid = Pid}} -> ended(W, Bare, Id, {Batch, Ids, Pid});
        #{Id := #seat{bare = Bare, pid = Pid}} -> ended(W, Bare, Id, {Batch, [], Pid});
        _ -> unknown
    end.

is_process_here(Pid) when node(Pid) == node() -> is_process_alive(Pid);
is_process_here(_) -> false.

forget(#w{seats = Seats, monitors = Monitors} = W, #seat{id = Id, monitor = Ref} = Seat) ->
    is_reference(Ref) andalso erlang:demonitor(Ref, [flush]),
    W1 = put_seat(W, Seat, uncount(Seat)),
    W1#w{seats = maps:remove(Id, Seats), monitors = maps:remove(Ref, Monitors)}.

with_seat(#w{seats = Seats} = W, Id, Fun) ->
    case Seats of
        #{Id := Seat} -> put_seat(W, Seat, Fun(Seat));
        _ -> W
    end.

put_seat(#w{seats = Seats, announcements = Counts} = W, #seat{counted = Before}, #seat{counted = After} = Seat) ->
    W#w{seats = maps:put(Seat#seat.id, Seat, Seats), announcements = count(After, 1, count(Before, -1, Counts))}.

count(false, _, Counts) -> Counts;
count(Component, Change, Counts) -> maps:update_with(Component, fun(Count) -> Count + Change end, Change, Counts).

uncount(Seat) -> Seat#seat{counted = false}.

%%% ------------------------------------------------------------------ waiting until all is decided

%% Does it when all is decided for the user that is there now, here and on the other nodes.
wait(#w{seq = Seq} = W, Bare, Done) -> wait_from(W, Seq, Bare, Done).

%% The same, whatever is undecided here.
wait_for_peers(W, Bare, Done) -> wait_from(W, -1, Bare, Done).

wait_from(#w{peers = Peers, name = Name} = W, Seq, Bare, Done) ->
    Asked = maps:from_list([{Node, make_ref()} || Node <- Peers]),
    maps:foreach(
        fun(Node, Ref) -> erlang:send({Name, Node}, {amphora_settle, Bare, self(), Ref}, [noconnect]) end, Asked
    ),
    add_waiter(W, Bare, #wait{seq = Seq, peers = Asked, done = Done}).

%% Another node asks.
settle_for(#w{seq = Seq} = W, Bare, Pid, Ref) ->
    add_waiter(W, Bare, #wait{seq = Seq, done = {tell, Pid, {amphora_peer_settled, Bare, node(), Ref}}}).

peer_settled(W, Bare, {Node, Ref}) ->
    change_waiters(W, Bare, fun(#wait{peers = Peers} = Wait) ->
        case Peers of
            #{Node := Ref} -> Wait#wait{peers = maps:remove(Node, Peers)};
            _ -> Wait
        end
    end).

%% What it had is in its own spool, and comes when it does.
node_down(#w{users = Users} = W, Node) ->
    lists:foldl(
        fun(Bare, Acc) ->
            change_waiters(Acc, Bare, fun(#wait{peers = P} = Wait) -> Wait#wait{peers = maps:remove(Node, P)} end)
        end,
        W#w{peers = lists:delete(Node, W#w.peers)},
        [B || {B, #user{waiters = [_ | _]}} <- maps:to_list(Users)]
    ).

add_waiter(#w{users = Users} = W, Bare, Wait) ->
    User = mod_amphora_queue:user(W, Bare),
    Waiters = User#user.waiters ++ [Wait],
    check(W#w{users = maps:put(Bare, User#user{waiters = Waiters}, Users)}, Bare).

change_waiters(#w{users = Users} = W, Bare, Fun) ->
    case Users of
        #{Bare := #user{waiters = Waiters} = User} ->
            check(W#w{users = maps:put(Bare, User#user{waiters = lists:map(Fun, Waiters)}, Users)}, Bare);
        _ ->
            W
    end.

%% Something of the user's was decided.
check(#w{users = Users} = W, Bare) ->
    case Users of
        #{Bare := #user{waiters = [_ | _] = Waiters} = User} ->
            First =
                case mod_amphora_queue:unsettled(W, User) of
                    none -> infinity;
                    Seq -> Seq
                end,
            IsDone = fun(#wait{seq = Seq, peers = Peers}) -> First > Seq andalso map_size(Peers) == 0 end,
            {Done, Rest} = lists:partition(IsDone, Waiters),
            W1 = W#w{users = maps:put(Bare, User#user{waiters = Rest}, Users)},
            mod_amphora_queue:release_user(lists:foldl(fun carry_out/2, W1, Done), Bare);
        _ ->
            W
    end.

carry_out(#wait{done = {tell, Pid, Message}}, W) ->
    erlang:send(Pid, Message, [noconnect]),
    W;
carry_out(#wait{done = {announce, Id, N}}, #w{seats = Seats} = W) ->
    case Seats of
        #{Id := #seat{n = N, done = Done} = Seat} when Done /= N ->
            Ready = Seat#seat{ready = true},
            stand_in_line(put_seat(W, Seat, Ready), Ready);
        _ ->
            W
    end;
carry_out(#wait{done = {release, Id, N}}, #w{seats = Seats} = W) ->
    case Seats of
        #{Id := #seat{n = N, pid = Pid}} -> Pid ! {amphora_gate, {release, N}};
        _ -> ok
    end,
    W.

%%% ------------------------------------------------------------------ announcing

%% It waits for room on its user's link; without any, for a link.
stand_in_line(#w{ctx = Ctx, links = Links, to_announce = Lines} = W, #seat{id = Id, bare = Bare}) ->
    case mod_amphora_link:of_user(Ctx, Bare, Links) of
        none ->
            W;
        #link{id = {_, C}} ->
            W#w{to_announce = maps:update_with(C, fun(L) -> queue:in(Id, L) end, queue:from_list([Id]), Lines)}
    end.

pump(#w{links = Links} = W) -> lists:foldl(fun pump_link/2, W, Links).

pump_link(#link{id = {_, C}} = Link, #w{to_announce = Lines, announcements = Counts, ctx = Ctx} = W) ->
    #{opts := Opts, workers := Workers} = Ctx,
    Room = max(1, map_get(available_window, Opts) div tuple_size(Workers)),
    case maps:get(C, Counts, 0) < Room andalso queue:out(maps:get(C, Lines, queue:new())) of
        {{value, Id}, Rest} ->
            W1 = W#w{to_announce = maps:put(C, Rest, Lines)},
            case W1#w.seats of
                #{Id := #seat{ready = true, n = N, announced = A} = Seat} when A /= N ->
                    pump_link(Link, announce(W1, Seat, C));
                _ ->
                    pump_link(Link, W1)
            end;
        _ ->
            W
    end.

%% By the link of that component, or the user's, if he has come to another since.
announce(#w{ctx = Ctx, links = Links} = W, #seat{n = N, read = Read} = Seat, Component) ->
    case mod_amphora_link:of_user(Ctx, Seat#seat.bare, Links) of
        #link{id = {_, C}} = Link when Component == any; Component == C ->
            Archive =
                case Read of
                    undefined -> [{<<"archive">>, <<"false">>}];
                    _ -> [{<<"archive">>, <<"true">>}, {<<"read">>, Read}]
                end,
            El = mod_amphora_xml:el(
                <<"available">>,
                [
                    {<<"session">>, Seat#seat.id},
                    {<<"n">>, integer_to_binary(N + Seat#seat.moved)},
                    {<<"jid">>, Seat#seat.jid},
                    {<<"priority">>, integer_to_binary(Seat#seat.priority)},
                    {<<"acks">>, atom_to_binary(Seat#seat.acks, utf8)}
                ] ++ Archive
            ),
            Announced = Seat#seat{
                announced = N, announced_at = mod_amphora:now_ms(), told = {C, Link#link.gen}, counted = C
            },
            mod_amphora_queue:put_out(put_seat(W, Seat, Announced), Link, El, 200);
        _ ->
            W
    end.

report_end(#w{ctx = Ctx, links = Links} = W, #seat{bare = Bare, id = Id, ended = {Batch, Ids, _}}) ->
    case mod_amphora_link:of_user(Ctx, Bare, Links) of
        none ->
            W;
        Link ->
            El = mod_amphora_xml:el(<<"taken">>, [
                {<<"for">>, Bare},
                {<<"session">>, Id},
                {<<"batch">>, Batch},
                {<<"ids">>, iolist_to_binary(lists:join($\s, Ids))},
                {<<"ended">>, <<"true">>}
            ]),
            mod_amphora_queue:put_out(W, Link, El, 200 + 32 * length(Ids))
    end.

%% What a link says of a session counts while it is its user's. True of one that is not known.
is_of_link(#w{ctx = Ctx, links = Links, seats = Seats}, Session, #link{id = Id, gen = Gen}) ->
    case Seats of
        #{Session := #seat{bare = Bare}} ->
            case mod_amphora_link:of_user(Ctx, Bare, Links) of
                #link{id = Id, gen = Gen} -> true;
                _ -> false
            end;
        _ ->
            true
    end.

%% The links changed. Whoever is not answered is announced again, and what was not confirmed is said again.
links(#w{seats = Seats, links = Links, to_announce = Lines} = W, Changed) ->
    Moved = fun(#seat{bare = Bare}) -> Changed(Bare) end,
    maps:fold(
        fun(_, Seat, Acc) ->
            case Moved(Seat) of
                true -> link_of_seat(Acc, Seat);
                false -> Acc
            end
        end,
        W#w{to_announce = maps:with([C || #link{id = {_, C}} <- Links], Lines)},
        Seats
    ).

link_of_seat(W, #seat{ended = {_, [], _}} = Seat) ->
    forget_or_keep(W, Seat);
link_of_seat(W, #seat{ended = {_, _, _}} = Seat) ->
    report_end(W, Seat);
link_of_seat(W, #seat{pid = Pid, ready = Ready, moved = Moved} = Seat) ->
    Left = leave_link(W, Seat),
    Pid ! {amphora_gate, links},
    Anew = uncount(Seat#seat{announced = 0, told = false, moved = Moved + 1}),
    W1 = put_seat(Left, Seat, Anew),
    case Ready of
        true -> stand_in_line(W1, Anew);
        false -> W1
    end.

%% The node that knows it, if its link is there still, is told that it takes no more by that: what it has
%% not confirmed comes by the new one.
leave_link(#w{links = Links} = W, #seat{id = Id, bare = Bare, told = Told}) ->
    case [Link || #link{id = {_, C}, gen = Gen} = Link <- Links, {C, Gen} == Told] of
        [Link] ->
            Attrs = [{<<"for">>, Bare}, {<<"session">>, Id}, {<<"batch">>, <<"0">>}, {<<"ids">>, <<>>}],
            El = mod_amphora_xml:el(<<"taken">>, Attrs ++ [{<<"ended">>, <<"true">>}]),
            mod_amphora_queue:put_out(W, Link, El, 200);
        [] ->
            W
    end.

forget_or_keep(W, #seat{pid = Pid} = Seat) ->
    case is_process_here(Pid) of
        true -> put_seat(W, Seat, uncount(Seat#seat{ended = undefined, told = false, announced = 0}));
        false -> forget(W, Seat)
    end.

sweep(#w{seats = Seats, ctx = #{opts := #{repeat := Repeat}}} = W, Now) ->
    maps:fold(
        fun
            (_, #seat{ended = {B, Ids, At}} = Seat, Acc) when Now - At >= Repeat ->
                Again = Seat#seat{ended = {B, Ids, Now}},
                report_end(put_seat(Acc, Seat, Again), Again);
            (_, #seat{ready = true, n = N, announced = N, announced_at = At} = Seat, Acc) when Now - At >= Repeat ->
                announce(Acc, Seat, any);
            (_, _, Acc) ->
                Acc
        end,
        W,
        Seats
    ).
