%%% Broadcasts: messages of the host's own whose outcome a node wants to know, and the names of the
%%% accounts. The commands of administrators are in mod_amphora_command.
%%%
%%% One process per virtual host.
-module(mod_amphora_broadcast).

-behaviour(gen_server).

-export([start_link/1, hooks/1, start/1, stop/1, send/4, accounts/3, answer/2, ask/4]).
-export([is_key/1, settled/3, routed/3, returned/2, dropped/2, links/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

-define(REMEMBERED, 20000). % outcomes at most; the oldest is forgotten
-define(LISTING, 60000). % milliseconds for which the names of the accounts are kept, since they were asked for
-define(PAGE, 500). % names in one answer at most
-define(PATIENCE, 10000). % milliseconds that a command waits for the node
-define(KEY_BYTES, 200).
-define(SWEEP, 1000).

-record(state, {
    host :: binary(),
    %% the newest request for each key, and the link that it came from
    waiting = #{} :: #{binary() => {iq(), {binary(), integer()}}},
    %% those that were routed to sessions: how many have not said where it is, how many have it in their
    %% gate, and since when
    gates = #{} :: #{binary() => {non_neg_integer(), non_neg_integer(), integer()}},
    outcomes = #{} :: #{binary() => binary()},
    order = queue:new() :: queue:queue({binary(), integer()}), % keys of those, and when they became known
    %% none, who waits while the accounts are listed, or their names and when they were asked for
    listing = none :: none | {loading, {reference(), reference()}, [{iq(), #xmlel{}}]} | {tuple(), integer()}
}).

%%% ------------------------------------------------------------------ interface

-spec start_link(binary()) -> {ok, pid()} | {error, term()}.
start_link(Host) -> gen_server:start_link({local, name(Host)}, ?MODULE, Host, []).

name(Host) -> gen_mod:get_module_proc(Host, ?MODULE).

-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(Host) -> mod_amphora_command:hooks(Host).

-spec start(binary()) -> ok.
start(_Host) -> ok.

-spec stop(binary()) -> ok.
stop(_Host) -> ok.

%% A <send settle='true'/>: `IQ` is answered by and by. The message goes to the queue, which tells
%% of its end by settled/3 or dropped/2.
-spec send(binary(), iq(), #xmlel{}, #link{}) -> ok.
send(Host, IQ, Element, #link{id = {_, Component}, gen = Gen}) ->
    gen_server:cast(name(Host), {send, IQ, Element, {Component, Gen}}).

%% An <accounts/>.
-spec accounts(binary(), iq(), #xmlel{}) -> ok.
accounts(Host, IQ, Element) -> gen_server:cast(name(Host), {accounts, IQ, Element}).

%% A result or an error of a node: what was asked here comes back by itself.
-spec answer(binary(), iq()) -> boolean().
answer(_Host, _IQ) -> false.

%% Asks a node about broadcasts, and waits for it. Its <broadcasts/>, or what is wrong.
-spec ask(binary(), get | set, [{binary(), binary()}], [#xmlel{}]) -> {ok, #xmlel{}} | {error, binary()}.
ask(Host, Type, Attrs, Children) ->
    try gen_server:call(name(Host), {ask, Type, mod_amphora_xml:el(<<"broadcast">>, Attrs, Children)}, 2 * ?PATIENCE)
    catch exit:_ -> {error, <<"No answer">>}
    end.

%% Is that the key of a settled send?
-spec is_key(binary()) -> boolean().
is_key(<<"send-", _/binary>>) -> true;
is_key(_) -> false.

%% It is resolved: delivered, stored, discarded.
-spec settled(binary(), binary(), binary()) -> ok.
settled(Host, Key, Outcome) -> gen_server:cast(name(Host), {settled, Key, Outcome}).

%% It was routed to these sessions: each says whether it has written it, or whether it waits in its gate.
-spec routed(binary(), binary(), [pid()]) -> ok.
routed(Host, Key, Sessions) ->
    Process = whereis(name(Host)),
    gen_server:cast(Process, {routed, Key, length(Sessions)}),
    lists:foreach(fun(Session) -> Session ! {amphora_gate, {where, Key, Process}} end, Sessions).

%% It came back from a session, and is held again.
-spec returned(binary(), binary()) -> ok.
returned(Host, Key) -> gen_server:cast(name(Host), {returned, Key}).

%% It is held no more, and nothing became of it: whoever asked may ask again.
-spec dropped(binary(), binary()) -> ok.
dropped(Host, Key) -> gen_server:cast(name(Host), {dropped, Key}).

%% The links that are there now.
-spec links(binary(), [#link{}]) -> ok.
links(Host, Links) -> gen_server:cast(name(Host), {links, Links}).

%%% ------------------------------------------------------------------ the process

init(Host) ->
    process_flag(trap_exit, true),
    erlang:send_after(?SWEEP, self(), sweep),
    {ok, restore(#state{host = Host})}.

handle_call({ask, Type, Element}, From, #state{host = Host} = State) ->
    case mod_amphora_link:of_user(mod_amphora:ctx(Host), Host) of
        none ->
            {reply, {error, <<"No node of Amphora is connected to this host now">>}, State};
        #link{id = {_, Component}} ->
            IQ = #iq{type = Type, from = jid:make(Host), to = jid:make(Component), sub_els = [Element]},
            ejabberd_router:route_iq(IQ, {ask, From}, self(), ?PATIENCE),
            {noreply, State}
    end.

handle_cast({send, IQ, Element, Link}, #state{host = Host} = State) ->
    case mod_amphora_xml:own_stanza(Host, Element) of
        {ok, Message} -> {noreply, take(IQ, Element, Message, Link, State)};
        {error, Text} -> refuse(IQ, xmpp:err_bad_request(Text, <<"en">>)), {noreply, State}
    end;
handle_cast({settled, Key, Outcome}, State) ->
    {noreply, settle(Key, Outcome, State)};
handle_cast({routed, Key, Count}, State) ->
    {noreply, sent_to(Key, Count, State)};
handle_cast({returned, Key}, #state{gates = Gates} = State) ->
    {noreply, State#state{gates = maps:remove(Key, Gates)}};
handle_cast({dropped, Key}, #state{waiting = Waiting} = State) ->
    case maps:take(Key, Waiting) of
        {{IQ, _}, Rest} ->
            put_off(IQ, <<"The server can't hold the message now">>),
            {noreply, State#state{waiting = Rest}};
        error ->
            {noreply, State}
    end;
handle_cast({links, Links}, #state{waiting = Waiting} = State) ->
    %% Who asked on a stream that is gone asks again.
    Live = [{Component, Gen} || #link{id = {_, Component}, gen = Gen} <- Links],
    {noreply, State#state{waiting = maps:filter(fun(_, {_, Link}) -> lists:member(Link, Live) end, Waiting)}};
handle_cast({accounts, IQ, Element}, State) ->
    {noreply, list(IQ, Element, State)};
handle_cast(_Other, State) ->
    {noreply, State}.

handle_info({iq_reply, Answer, {ask, From}}, State) ->
    gen_server:reply(From, read_answer(Answer)),
    {noreply, State};
handle_info({amphora_where, Key, Where}, State) ->
    {noreply, where(Key, Where, State)};
handle_info({listed, Ref, Names}, #state{listing = {loading, {Ref, Down}, Waiting}} = State) ->
    erlang:demonitor(Down, [flush]),
    Listed = State#state{listing = {Names, mod_amphora:now_ms()}},
    lists:foreach(fun({IQ, Element}) -> page(IQ, Element, Names) end, lists:reverse(Waiting)),
    {noreply, Listed};
handle_info({'DOWN', Ref, process, _, Reason}, #state{listing = {loading, {_, Ref}, Waiting}, host = Host} = State) ->
    ?LOG_ERROR("Amphora: the accounts of ~ts can't be listed: ~p", [Host, Reason]),
    Error = xmpp:err_internal_server_error(<<"The accounts can't be listed now">>, <<"en">>),
    lists:foreach(fun({IQ, _}) -> refuse(IQ, Error) end, Waiting),
    {noreply, State#state{listing = none}};
handle_info(sweep, State) ->
    erlang:send_after(?SWEEP, self(), sweep),
    {noreply, forget_listing(forget_gates(forget_old(State)))};
handle_info(_Other, State) ->
    {noreply, State}.

%% Outcomes outlive a restart, so that who was asked for before it is not sent his message again.
%% What is held has gone to the spool, or is held no more: whoever waits asks again.
terminate(_Reason, State) ->
    #state{waiting = Waiting} = Final = drain(State),
    lists:foreach(fun({IQ, _}) -> put_off(IQ, <<"The module is unloaded">>) end, maps:values(Waiting)),
    keep(Final).

%% What the queue said by now.
drain(State) ->
    receive
        {'$gen_cast', {settled, Key, Outcome}} -> drain(settle(Key, Outcome, State));
        {'$gen_cast', {routed, Key, Count}} -> drain(sent_to(Key, Count, State));
        {amphora_where, Key, Where} -> drain(where(Key, Where, State))
    after 0 -> State
    end.

sent_to(Key, Count, #state{gates = Gates} = State) ->
    State#state{gates = Gates#{Key => {Count, 0, mod_amphora:now_ms()}}}.

%% It is delivered when one of its sessions has written it, and discarded if it is with none of them.
where(Key, Where, #state{gates = Gates} = State) ->
    case {Where, Gates} of
        {written, #{Key := _}} -> settle(Key, <<"delivered">>, State);
        {nowhere, #{Key := {1, 0, _}}} -> settle(Key, <<"discarded">>, State);
        {nowhere, #{Key := {N, Waiting, At}}} -> State#state{gates = Gates#{Key := {N - 1, Waiting, At}}};
        {waiting, #{Key := {N, Waiting, At}}} -> State#state{gates = Gates#{Key := {N - 1, Waiting + 1, At}}};
        _ -> State
    end.

put_off(IQ, Text) -> refuse(IQ, xmpp:err_resource_constraint(Text, <<"en">>)).

refuse(IQ, Error) -> ejabberd_router:route(xmpp:make_error(IQ, Error)).

%%% ------------------------------------------------------------------ settled sends

take(IQ, Element, Message, Link, #state{host = Host} = State) ->
    Key = mod_amphora_xml:attr(<<"key">>, Element),
    case flaw(Key, Message, Host) of
        none ->
            case State#state.outcomes of
                #{Key := Outcome} ->
                    answer_send(IQ, Outcome),
                    State;
                _ when is_map_key(Key, State#state.gates) ->
                    State#state{waiting = (State#state.waiting)#{Key => {IQ, Link}}};
                _ ->
                    hold(Key, Message, mod_amphora_xml:attr(<<"again">>, Element) =:= <<"true">>,
                          State#state{waiting = (State#state.waiting)#{Key => {IQ, Link}}})
            end;
        Text ->
            refuse(IQ, xmpp:err_bad_request(Text, <<"en">>)),
            State
    end.

%% Is that a message from the host to one of its users?
flaw(Key, #message{from = From, to = To, type = Type}, Host) ->
    case {is_key(Key) andalso byte_size(Key) =< ?KEY_BYTES, From, To} of
        {false, _, _} ->
            <<"Its key does not begin with send-, or is too long">>;
        {_, #jid{luser = <<>>, lserver = Host, lresource = <<>>}, #jid{luser = User, lserver = Host, lresource = <<>>}}
          when User =/= <<>>, Type =:= normal orelse Type =:= chat ->
            none;
        {_, #jid{luser = <<>>, lserver = Host, lresource = <<>>}, #jid{luser = User, lserver = Host, lresource = <<>>}}
          when User =/= <<>> ->
            <<"Its type is neither normal nor chat">>;
        {_, #jid{luser = <<>>, lserver = Host, lresource = <<>>}, _} ->
            <<"Its recipient is no user of this host">>;
        _ ->
            <<"Its sender is not this host">>
    end.

%% Holds it, if it is not held. What the worker said of it before it answers is here when it has
%% answered: a message that has just been resolved is not held anew.
hold(Key, #message{to = To} = Message, Again, #state{host = Host} = State) ->
    Bare = jid:encode(jid:tolower(To)),
    case mod_amphora_queue:holds(Host, Bare, Key) of
        true ->
            State;
        false ->
            #state{waiting = Waiting} = Told = drain(State),
            case Waiting of
                #{Key := {IQ, _}} when not is_map_key(Key, Told#state.gates) ->
                    case mod_amphora_queue:hold_own(Host, Bare, Message, Key, Again) of
                        ok -> Told;
                        {error, Error} -> refuse(IQ, Error), Told#state{waiting = maps:remove(Key, Waiting)}
                    end;
                _ ->
                    Told
            end
    end.

settle(Key, Outcome, #state{waiting = Waiting, gates = Gates} = State) ->
    Settled = State#state{gates = maps:remove(Key, Gates)},
    Remembered = remember(Key, Outcome, os:system_time(millisecond), Settled),
    case maps:take(Key, Waiting) of
        {{IQ, _}, Rest} ->
            answer_send(IQ, Outcome),
            Remembered#state{waiting = Rest};
        error ->
            Remembered
    end.

answer_send(IQ, Outcome) ->
    ejabberd_router:route(xmpp:make_iq_result(IQ, mod_amphora_xml:el(<<"send">>, [{<<"outcome">>, Outcome}]))).

%%% ------------------------------------------------------------------ outcomes

remember(Key, Outcome, At, #state{outcomes = Outcomes, order = Order} = State) ->
    Listed = case maps:is_key(Key, Outcomes) of
                 true -> Order;
                 false -> queue:in({Key, At}, Order)
             end,
    limit(State#state{outcomes = Outcomes#{Key => Outcome}, order = Listed}).

limit(#state{outcomes = Outcomes} = State) when map_size(Outcomes) > ?REMEMBERED -> forget_oldest(State);
limit(State) -> State.

forget_oldest(#state{outcomes = Outcomes, order = Order} = State) ->
    {{value, {Key, _}}, Rest} = queue:out(Order),
    State#state{outcomes = maps:remove(Key, Outcomes), order = Rest}.

forget_old(#state{host = Host, order = Order} = State) ->
    case queue:peek(Order) of
        {value, {_, At}} ->
            case os:system_time(millisecond) - At >= mod_amphora:opt(Host, memory_of_keys) of
                true -> forget_old(forget_oldest(State));
                false -> State
            end;
        empty ->
            State
    end.

%% Of a session that went without a word.
forget_gates(#state{host = Host, gates = Gates} = State) ->
    Oldest = mod_amphora:now_ms() - mod_amphora:opt(Host, memory_of_keys),
    State#state{gates = maps:filter(fun(_, {_, _, At}) -> At > Oldest end, Gates)}.

path(Host) -> filename:join([mnesia:system_info(directory), "amphora", Host, "outcomes.term"]).

keep(#state{outcomes = Outcomes}) when map_size(Outcomes) =:= 0 ->
    ok;
keep(#state{host = Host, outcomes = Outcomes, order = Order}) ->
    Kept = [{Key, map_get(Key, Outcomes), At} || {Key, At} <- queue:to_list(Order)],
    Path = path(Host),
    _ = filelib:ensure_dir(Path),
    case file:write_file(Path, term_to_binary(Kept)) of
        ok -> ok;
        {error, Reason} ->
            ?LOG_ERROR("Amphora: outcomes of broadcasts can't be kept over a restart: ~ts: ~ts",
                       [Path, file:format_error(Reason)])
    end.

restore(#state{host = Host} = State) ->
    Path = path(Host),
    case file:read_file(Path) of
        {ok, Bytes} ->
            _ = file:delete(Path),
            try lists:foldl(fun({Key, Outcome, At}, Acc) -> remember(Key, Outcome, At, Acc) end, State,
                            binary_to_term(Bytes, [safe]))
            catch error:_ ->
                ?LOG_ERROR("Amphora: outcomes of broadcasts that were kept in ~ts can't be read", [Path]),
                State
            end;
        {error, enoent} ->
            State;
        {error, Reason} ->
            ?LOG_ERROR("Amphora: outcomes of broadcasts can't be read: ~ts: ~ts", [Path, file:format_error(Reason)]),
            State
    end.

%%% ------------------------------------------------------------------ accounts

%% A listing that begins sees the accounts as they are.
list(IQ, Element, #state{listing = Listing, host = Host} = State) ->
    After = mod_amphora_xml:attr(<<"after">>, Element),
    case Listing of
        {loading, Ref, Waiting} ->
            State#state{listing = {loading, Ref, [{IQ, Element} | Waiting]}};
        {Names, _} when After =/= undefined, After =/= <<>> ->
            page(IQ, Element, Names),
            State#state{listing = {Names, mod_amphora:now_ms()}};
        _ ->
            case can_list(Host) of
                true ->
                    State#state{listing = {loading, load(Host), [{IQ, Element}]}};
                false ->
                    refuse(IQ, xmpp:err_feature_not_implemented(
                        <<"The server's authentication can't list its accounts">>, <<"en">>)),
                    State
            end
    end.

can_list(Host) ->
    lists:any(fun(Module) ->
                  _ = code:ensure_loaded(Module),
                  erlang:function_exported(Module, get_users, 2)
              end, ejabberd_auth:auth_modules(Host)).

load(Host) ->
    Self = self(),
    Listed = make_ref(),
    {_, Down} = spawn_monitor(fun() ->
        Self ! {listed, Listed, list_to_tuple(lists:usort([User || {User, _} <- ejabberd_auth:get_users(Host)]))}
    end),
    {Listed, Down}.

page(IQ, Element, Names) ->
    After = case mod_amphora_xml:attr(<<"after">>, Element) of undefined -> <<>>; Name -> Name end,
    First = first_after(After, Names, 1, tuple_size(Names) + 1),
    Last = min(First + size_of_page(Element) - 1, tuple_size(Names)),
    Accounts = [#xmlel{name = <<"account">>, children = [{xmlcdata, element(Index, Names)}]}
                || Index <- lists:seq(First, Last)],
    Complete = [{<<"complete">>, <<"true">>} || Last =:= tuple_size(Names)],
    ejabberd_router:route(xmpp:make_iq_result(IQ, mod_amphora_xml:el(<<"accounts">>, Complete, Accounts))).

size_of_page(Element) ->
    try binary_to_integer(mod_amphora_xml:attr(<<"max">>, Element)) of
        Max -> max(1, min(Max, ?PAGE))
    catch error:_ -> ?PAGE
    end.

%% Where in the sorted names the first one after that is.
first_after(_After, _Names, Low, Low) -> Low;
first_after(After, Names, Low, High) ->
    Middle = (Low + High) div 2,
    case element(Middle, Names) =< After of
        true -> first_after(After, Names, Middle + 1, High);
        false -> first_after(After, Names, Low, Middle)
    end.

forget_listing(#state{listing = {_Names, At}} = State) ->
    case mod_amphora:now_ms() - At >= ?LISTING of
        true -> State#state{listing = none};
        false -> State
    end;
forget_listing(State) ->
    State.

%%% ------------------------------------------------------------------ a node's answer to a command

read_answer(#iq{type = result, sub_els = Els}) ->
    case [El || #xmlel{name = <<"broadcasts">>} = El <- Els] of
        [El | _] -> {ok, El};
        [] -> {ok, mod_amphora_xml:el(<<"broadcasts">>, [])}
    end;
read_answer(#iq{type = error} = IQ) ->
    case xmpp:get_error(IQ) of
        #stanza_error{text = [_ | _] = Text} -> {error, xmpp:get_text(Text)};
        #stanza_error{reason = Reason} when is_atom(Reason) -> {error, atom_to_binary(Reason, utf8)};
        _ -> {error, <<"The node refused it">>}
    end;
read_answer(_) ->
    {error, <<"No answer">>}.
