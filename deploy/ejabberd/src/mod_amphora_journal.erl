%%% The journal, seen from the processes that route messages: what is held is in the spool before its
%%% sender can hear that the server has it.
%%%
%%% A process that reads a stream (of a client, a component, another server) takes one stanza after the
%%% other, and while these are messages it tells who sent them nothing. So it gives what is held to the spool
%%% and goes on to the next message, and many of a stream are one write. It waits until all is written before
%%% it goes on with anything else: a stanza that is no message (a request for an acknowledgement as in
%%% XEP-0198, a ping), an answer that it routes itself, anything that it writes to its client, a session that
%%% takes over from it, its own end. Any other process waits for each message.
-module(mod_amphora_journal).

-export([hooks/0, reads/1, routes/1, append/3]).
-export([c2s_authenticated_packet/2, c2s_filter_send/1, c2s_handle_call/3, c2s_terminated/2, s2s_receive_packet/1]).

-include("xmpp.hrl").

%% In the dictionary of a process that reads a stream: {how many it has not waited for, their hosts}.
-define(BEHIND, amphora_journal).
%% So many at most, for they are in memory only: about what is in the buffers of a socket, which are as
%% little safe. Then it waits.
-define(MOST, 128).

%% All before mod_stream_mgmt (50) and mod_amphora_gate.
hooks() ->
    [
        {c2s_authenticated_packet, ?MODULE, c2s_authenticated_packet, 10},
        {c2s_filter_send, ?MODULE, c2s_filter_send, 5},
        {c2s_handle_call, ?MODULE, c2s_handle_call, 10},
        {c2s_terminated, ?MODULE, c2s_terminated, 10},
        {s2s_receive_packet, ?MODULE, s2s_receive_packet, 50}
    ].

%% The process takes this stanza off its stream.
-spec reads(xmpp:stanza() | term()) -> ok.
reads(#message{}) ->
    case get(?BEHIND) of
        undefined -> put(?BEHIND, {0, []}), ok;
        _ -> ok
    end;
reads(_) ->
    settle().

%% It routes this one: what it sends back may tell its sender something.
-spec routes(xmpp:stanza()) -> ok.
routes(#message{type = Type}) when Type /= error -> ok;
routes(_) -> settle().

settle() ->
    case get(?BEHIND) of
        {N, Hosts} when N > 0 ->
            put(?BEHIND, {0, []}),
            lists:foreach(fun mod_amphora_spool:written/1, Hosts);
        _ ->
            ok
    end.

%% As mod_amphora_spool:append/3, but for when it waits.
-spec append(binary(), binary(), mod_amphora_spool:spooled()) -> {ok, mod_amphora_spool:handle()} | {error, term()}.
append(Host, Bare, Record) ->
    case get(?BEHIND) of
        undefined ->
            mod_amphora_spool:append(Host, Bare, Record);
        {N, Hosts} ->
            Handle = mod_amphora_spool:append_behind(Host, Bare, Record),
            put(?BEHIND, {N + 1, add(Host, Hosts)}),
            N + 1 >= ?MOST andalso settle(),
            {ok, Handle}
    end.

add(Host, [Host | _] = Hosts) -> Hosts;
add(Host, Hosts) -> [Host | lists:delete(Host, Hosts)].

c2s_authenticated_packet(State, Packet) ->
    reads(Packet),
    State.

c2s_filter_send(Acc) ->
    settle(),
    Acc.

%% A session that takes over says how much of the client's this one has.
c2s_handle_call(State, _Request, _From) ->
    settle(),
    State.

%% What it gives back when it ends is waited for, each.
c2s_terminated(State, _Reason) ->
    settle(),
    _ = erase(?BEHIND),
    State.

s2s_receive_packet({Packet, _} = Acc) ->
    reads(Packet),
    Acc.
