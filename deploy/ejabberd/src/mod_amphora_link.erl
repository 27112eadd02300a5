%%% The links: which nodes of Amphora are there, and what comes from them.
%%%
%%% One process per virtual host and ejabberd node. The table of links is the same on every node of a
%%% cluster, wherever the component's stream ends: a node's greeting is told to all of them, each watches
%%% the stream's process itself, and one that joins asks the others. Elements for a node go straight to
%%% the stream's process. Elements from it are read in that process, and sent on by the names in them to
%%% the process that they are for, on this node or another.
%%%
%%% A stream that is replaced, or greets again, is a new link: what was sent on the old one counts no more.
-module(mod_amphora_link).

-behaviour(gen_server).

-export([start_link/1, look/1, hello/1]).
-export([links/1, of_user/2, of_user/3, weight/2, get/2, emit/2, lost_at/1, peers/1, security/1]).
-export([component_send_packet/1, component_connected/1, component_disconnected/2]).
-export([stream_features/2, disco_features/5, disco_identity/5]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include("logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

-define(MAX_STANZA, 4 * 1024 * 1024 - 64 * 1024).

-record(state, {
    host,
    %% monitors of streams: Ref -> component
    monitors = #{},
    %% other nodes of the cluster with this module: node -> token
    peers = #{},
    %% keys of sends that were routed: {Key, Time}, oldest first
    sends = queue:new(),
    send_keys = #{},
    %% accounts removed: id of the request -> {bare, time it was sent}
    removals = #{}
}).

start_link(Host) ->
    gen_server:start_link({local, mod_amphora:link_process(Host)}, ?MODULE, Host, []).

%%% ------------------------------------------------------------------ what others ask

-spec links(map()) -> [#link{}].
links(#{links := Links}) -> ets:match_object(Links, #link{_ = '_'}).

-spec get(map(), binary()) -> #link{} | none.
get(#{links := Links, host := Host}, Component) ->
    case ets:lookup(Links, {Host, Component}) of
        [Link] -> Link;
        [] -> none
    end.

%% The link that a user belongs to, or none: of those that are there the one with the highest hash.
-spec of_user(map(), binary()) -> #link{} | none.
of_user(Ctx, Bare) -> of_user(Ctx, Bare, links(Ctx)).

-spec of_user(map(), binary(), [#link{}]) -> #link{} | none.
of_user(_Ctx, _Bare, []) -> none;
of_user(_Ctx, _Bare, [Link]) -> Link;
of_user(_Ctx, Bare, Links) ->
    {_, _, Link} = lists:max([{weight(Bare, C), C, L} || #link{id = {_, C}} = L <- Links]),
    Link.

%% Every interceptor and node counts it alike.
-spec weight(binary(), binary()) -> non_neg_integer().
weight(Bare, Component) ->
    <<Weight:32/unsigned-big, _/binary>> = crypto:hash(sha256, [Bare, 0, Component]),
    Weight.

%% Sends elements to a node, in one message.
-spec emit(#link{}, [#xmlel{}]) -> ok.
emit(_Link, []) -> ok;
emit(#link{id = {Host, Component}, pid = Pid}, Elements) ->
    xmpp_stream_in:send(Pid, #xmlel{
        name = <<"message">>,
        attrs = [{<<"from">>, Host}, {<<"to">>, Component}],
        children = Elements
    }).

%% Since when no node is there (milliseconds of mod_amphora:now_ms/0).
lost_at(#{counters := Counters}) -> atomics:get(Counters, 5).

%% How many ejabberd nodes share a link's window.
peers(#{counters := Counters}) -> max(1, atomics:get(Counters, 6)).

%% The strictest level of the nodes that are there; what was so last while none is.
security(#{counters := Counters}) ->
    case atomics:get(Counters, 7) of
        1 -> open;
        _ -> strict
    end.

%% A reload of the module's options.
look(Host) -> gen_server:cast(mod_amphora:link_process(Host), look).

%% The stream may be up already: its node greeted while nobody was there to answer.
hello(Host) ->
    Ctx = mod_amphora:ctx(Host),
    Routes = ejabberd_router:get_all_routes(),
    [
        ejabberd_router:route(#message{
            from = jid:make(Host), to = jid:make(Component), sub_els = [mod_amphora_xml:el(<<"hello">>, [])]
        })
     || Component <- map_get(components, Ctx), lists:member(Component, Routes), get(Ctx, Component) == none
    ],
    ok.

%%% ------------------------------------------------------------------ hooks

%% Everything that a component sends. What is for this module goes no further.
component_send_packet({Packet, State} = Acc) ->
    mod_amphora_journal:reads(Packet),
    case {jid_of(xmpp:get_from(Packet)), jid_of(xmpp:get_to(Packet))} of
        {{<<>>, Component}, {<<>>, Host}} ->
            case mod_amphora:loaded(Host) of
                true ->
                    Ctx = mod_amphora:ctx(Host),
                    case lists:member(Component, map_get(components, Ctx)) andalso handle(Ctx, Component, Packet) of
                        false -> Acc;
                        _ -> {drop, State}
                    end;
                false ->
                    Acc
            end;
        _ ->
            Acc
    end.

jid_of(#jid{luser = LUser, lserver = LServer}) -> {LUser, LServer};
jid_of(_) -> none.

component_connected(_Component) -> ok.

component_disconnected(_Component, _Reason) -> ok.

stream_features(Acc, Host) ->
    case mod_amphora:loaded(Host) andalso links(mod_amphora:ctx(Host)) of
        [_ | _] -> [#xmlel{name = <<"amp">>, attrs = [{<<"xmlns">>, <<"http://jabber.org/features/amp">>}]} | Acc];
        _ -> Acc
    end.

disco_features({error, _} = Acc, _From, _To, Node, _Lang) when Node /= ?NS_AMP_URI -> Acc;
disco_features(Acc, _From, #jid{lserver = Host}, Node, _Lang) when Node == <<>>; Node == ?NS_AMP_URI ->
    case mod_amphora:loaded(Host) andalso links(mod_amphora:ctx(Host)) of
        [_ | _] = Links when Node == ?NS_AMP_URI -> {result, amp_features(Links)};
        [_ | _] -> {result, [?NS_AMP_URI | so_far(Acc)]};
        _ -> Acc
    end;
disco_features(Acc, _From, _To, _Node, _Lang) ->
    Acc.

so_far({result, Features}) -> Features;
so_far(_) -> [].

%% Where nodes differ, what each of them supports.
amp_features(Links) ->
    Actions = by_all([A || #link{actions = A} <- Links]),
    Conditions = by_all([C || #link{conditions = C} <- Links]),
    [?NS_AMP_URI] ++ [<<?NS_AMP_URI/binary, "?action=", A/binary>> || A <- Actions] ++
        [<<?NS_AMP_URI/binary, "?condition=", C/binary>> || C <- Conditions].

by_all([First | Others]) ->
    [Name || Name <- First, lists:all(fun(Names) -> lists:member(Name, Names) end, Others)].

disco_identity(Acc, _From, #jid{lserver = Host}, ?NS_AMP_URI, _Lang) ->
    case mod_amphora:loaded(Host) andalso links(mod_amphora:ctx(Host)) of
        [_ | _] -> [#identity{category = <<"server">>, type = <<"im">>, name = <<"ejabberd">>} | Acc];
        _ -> Acc
    end;
disco_identity(Acc, _From, _To, _Node, _Lang) ->
    Acc.

%%% ------------------------------------------------------------------ from a node, in its stream's process

%% Errors are what comes back of our own messages after a stream broke: they go again anyway.
handle(_Ctx, _Component, #message{type = error}) -> ok;
handle(Ctx, Component, #message{sub_els = Elements}) ->
    case get(Ctx, Component) of
        #link{pid = Pid} = Link when Pid == self() ->
            [
                guarded(Ctx, Link, El)
             || #xmlel{} = El <- Elements, mod_amphora_xml:attr(<<"xmlns">>, El) == ?NS_INTERCEPT
            ],
            ok;
        _ ->
            ?WARNING_MSG("~ts sent a message without a greeting, it is left out", [Component])
    end;
handle(#{host := Host}, _Component, #iq{type = Type} = IQ) when Type == result; Type == error ->
    mod_amphora_retrieve:answer(Host, IQ) orelse mod_amphora_broadcast:answer(Host, IQ) orelse
        begin
            gen_server:cast(mod_amphora:link_process(Host), {answer, IQ}),
            is_ours(IQ)
        end;
handle(#{host := Host} = Ctx, Component, #iq{type = Type, sub_els = [#xmlel{} = El]} = IQ) ->
    case {Type, mod_amphora_xml:attr(<<"xmlns">>, El), El#xmlel.name} of
        {set, ?NS_INTERCEPT, <<"greeting">>} ->
            gen_server:call(mod_amphora:link_process(Host), {greeting, Component, self(), IQ, El}, 60000);
        {set, ?NS_INTERCEPT, <<"send">>} ->
            case get(Ctx, Component) of
                #link{pid = Pid} = Link when Pid == self() -> send(Ctx, Link, IQ, El);
                _ -> ejabberd_router:route(xmpp:make_error(IQ, greet_first()))
            end;
        {get, ?NS_INTERCEPT, <<"accounts">>} ->
            mod_amphora_broadcast:accounts(Host, IQ, El);
        {_, ?NS_INTERCEPT, _} ->
            ejabberd_router:route(xmpp:make_error(IQ, xmpp:err_feature_not_implemented()));
        _ ->
            false
    end;
handle(_Ctx, _Component, _Packet) ->
    false.

greet_first() -> xmpp:err_unexpected_request(<<"Greet first">>, <<"en">>).

is_ours(#iq{id = <<"amphora-", _/binary>>}) -> true;
is_ours(_) -> false.

guarded(Ctx, Link, #xmlel{name = Name} = El) ->
    try
        element_of(Ctx, Link, El)
    catch
        Class:Reason:Stack ->
            ?ERROR_MSG("While reading <~ts/> of a node: ~p", [Name, {Class, Reason, Stack}])
    end.

element_of(Ctx, Link, #xmlel{name = <<"verdicts">>} = El) ->
    Verdicts = mod_amphora_xml:children(<<"verdict">>, ?NS_INTERCEPT, El),
    Owned = lists:foldl(
        fun(Verdict, Acc) ->
            Who = process_of(Ctx, mod_amphora_xml:attr(<<"key">>, Verdict)),
            maps:update_with(Who, fun(L) -> [Verdict | L] end, [Verdict], Acc)
        end,
        #{},
        Verdicts
    ),
    maps:foreach(fun(Who, List) -> verdicts(Ctx, Link, Who, lists:reverse(List)) end, Owned);
element_of(#{host := Host} = Ctx, Link, #xmlel{name = <<"hand-over">>} = El) ->
    case mod_amphora_xml:attr(<<"view">>, El) of
        <<"true">> -> to_retrieve(Ctx, hand_over, El);
        _ -> to_session(Ctx, Link, El)
    end,
    Host;
element_of(Ctx, Link, #xmlel{name = Name} = El) when Name == <<"handed-over">>; Name == <<"deleted">> ->
    Session = mod_amphora_xml:attr(<<"session">>, El),
    case process_of(Ctx, Session) of
        {retrieve, _} -> to_retrieve(Ctx, deleted, El);
        {process, To} when Name == <<"handed-over">> -> To ! {amphora_handed_over, Link#link.gen, El};
        {process, _} -> to_session(Ctx, Link, El);
        unknown -> ok
    end;
element_of(_Ctx, _Link, _El) ->
    ok.

%% Whose is that name?
process_of(#{token := Own, host := Host, foreign := Foreign, workers := Workers} = Ctx, Name) when is_binary(Name) ->
    case mod_amphora:owner_of(Ctx, Name) of
        {Token, retrieve} ->
            {retrieve, node_of(Ctx, Token)};
        {Token, Who} ->
            Process =
                case Who of
                    edge -> mod_amphora:edge(Host);
                    Index when Index < tuple_size(Workers) -> element(Index + 1, Workers);
                    Index -> mod_amphora_sup:worker_name(Host, Index)
                end,
            case Token of
                Own ->
                    {process, Process};
                _ ->
                    case ets:lookup(Foreign, Name) of
                        [{_, Worker}] ->
                            {process, Worker};
                        [] ->
                            case node_of(Ctx, Token) of
                                none -> unknown;
                                Node -> {process, {Process, Node}}
                            end
                    end
            end;
        unknown ->
            case ets:lookup(Foreign, Name) of
                [{_, Worker}] -> {process, Worker};
                [] -> unknown
            end
    end;
process_of(_Ctx, _Name) ->
    unknown.

node_of(#{token := Token}, Token) -> node();
node_of(#{foreign := Foreign}, Token) ->
    case ets:lookup(Foreign, {token, Token}) of
        [{_, Node}] -> Node;
        [] -> none
    end.

verdicts(_Ctx, #link{id = {_, Component}, gen = Gen}, {process, Process}, Verdicts) ->
    send_to(Process, {amphora_verdicts, Component, Gen, Verdicts});
verdicts(#{host := Host}, #link{id = {_, Component}, gen = Gen}, unknown, Verdicts) ->
    %% of a key that another node of the cluster loaded from its spool, or of one held no more
    gen_server:cast(mod_amphora:link_process(Host), {unknown, Component, Gen, Verdicts});
verdicts(_Ctx, _Link, _Who, _Verdicts) ->
    ok.

send_to(Name, Message) when is_atom(Name) ->
    case whereis(Name) of
        undefined -> ok;
        Pid -> Pid ! Message
    end;
send_to({Name, Node}, Message) ->
    erlang:send({Name, Node}, Message, [noconnect]).

to_retrieve(#{host := Host} = Ctx, What, El) ->
    case process_of(Ctx, mod_amphora_xml:attr(<<"session">>, El)) of
        {retrieve, Node} when Node /= node(), Node /= none ->
            gen_server:cast({mod_amphora:link_process(Host), Node}, {retrieve, What, El});
        _ ->
            mod_amphora_retrieve:What(Host, El)
    end.

%% To the session's own process; to what is left of it, if it ended.
to_session(#{sessions := Sessions, host := Host} = Ctx, Link, El) ->
    Session = mod_amphora_xml:attr(<<"session">>, El),
    case is_binary(Session) andalso ets:lookup(Sessions, Session) of
        [{_, Pid}] ->
            Pid ! {amphora_gate, {element_name(El), Link, El}};
        _ ->
            case process_of(Ctx, Session) of
                {process, {_, Node}} when Node /= node() ->
                    gen_server:cast({mod_amphora:link_process(Host), Node}, {session, Link, El});
                {process, Worker} ->
                    send_to(Worker, {amphora_left, Link, El});
                unknown ->
                    unknown_session(Link, Session, El)
            end
    end.

element_name(#xmlel{name = <<"hand-over">>}) -> hand_over;
element_name(#xmlel{name = <<"deleted">>}) -> deleted.

unknown_session(Link, Session, #xmlel{name = <<"hand-over">>} = El) when is_binary(Session) ->
    case mod_amphora_xml:attr(<<"batch">>, El) of
        undefined ->
            ?WARNING_MSG("A hand-over without a batch was left out", []);
        Batch ->
            emit(Link, [
                mod_amphora_xml:el(<<"taken">>, [
                    {<<"for">>, <<>>},
                    {<<"session">>, Session},
                    {<<"batch">>, Batch},
                    {<<"ids">>, <<>>},
                    {<<"ended">>, <<"true">>}
                ])
            ])
    end;
unknown_session(_Link, _Session, _El) ->
    ok.

%%% ------------------------------------------------------------------ sends

send(#{host := Host} = Ctx, Link, IQ, El) ->
    Key = mod_amphora_xml:attr(<<"key">>, El),
    case mod_amphora_xml:own_stanza(Host, El) of
        _ when Key == undefined ->
            refuse(IQ, <<"It has no key">>);
        {error, Text} ->
            refuse(IQ, Text);
        {ok, Message} ->
            case mod_amphora_xml:attr(<<"settle">>, El) of
                <<"true">> -> mod_amphora_broadcast:send(Host, IQ, El, Link);
                _ -> gen_server:cast(mod_amphora:link_process(Host), {send, Key, IQ, El, Message})
            end
    end,
    _ = Ctx,
    ok.

refuse(IQ, Text) -> ejabberd_router:route(xmpp:make_error(IQ, xmpp:err_bad_request(Text, <<"en">>))).

route_send(#state{host = Host} = State, Key, IQ, El, Message) ->
    case maps:is_key(Key, State#state.send_keys) of
        true ->
            ejabberd_router:route(xmpp:make_iq_result(IQ)),
            State;
        false ->
            case security(mod_amphora:ctx(Host)) /= strict orelse may_know(Host, El, Message) of
                true ->
                    mod_amphora_queue:route_own(Message),
                    ejabberd_router:route(xmpp:make_iq_result(IQ)),
                    State#state{
                        sends = queue:in({Key, mod_amphora:now_ms()}, State#state.sends),
                        send_keys = maps:put(Key, true, State#state.send_keys)
                    };
                false ->
                    Withheld = mod_amphora_xml:el(<<"send">>, [{<<"withheld">>, <<"true">>}]),
                    ejabberd_router:route(xmpp:make_iq_result(IQ, Withheld)),
                    State
            end
    end.

may_know(Host, El, #message{to = To}) ->
    case mod_amphora_facts:jid(mod_amphora_xml:attr(<<"for">>, El)) of
        #jid{luser = LUser, lserver = Host} -> mod_amphora_facts:may_see(LUser, Host, To);
        _ -> false
    end.

forget_sends(#state{host = Host} = State) ->
    case queue:peek(State#state.sends) of
        {value, {Key, At}} ->
            case mod_amphora:now_ms() - At >= mod_amphora:opt(Host, memory_of_keys) of
                true ->
                    forget_sends(State#state{
                        sends = queue:drop(State#state.sends), send_keys = maps:remove(Key, State#state.send_keys)
                    });
                false ->
                    State
            end;
        empty ->
            State
    end.

%%% ------------------------------------------------------------------ the process

init(Host) ->
    process_flag(trap_exit, true),
    #{counters := Counters} = Ctx = mod_amphora:ctx(Host),
    ok = net_kernel:monitor_nodes(true),
    atomics:put(Counters, 5, mod_amphora:now_ms()),
    atomics:put(Counters, 6, 1),
    State = watch_all(Ctx, #state{host = Host}),
    [say_hello(State, Node) || Node <- ejabberd_cluster:get_nodes(), Node /= node()],
    erlang:send_after(1000, self(), sweep),
    {ok, State}.

%% Links that an earlier process of this name knew.
watch_all(Ctx, State) ->
    lists:foldl(fun(Link, Acc) -> watch(Link, Acc) end, State, links(Ctx)).

watch(#link{id = {_, Component}, pid = Pid}, #state{monitors = Monitors} = State) ->
    State#state{monitors = maps:put(erlang:monitor(process, Pid), {Component, Pid}, Monitors)}.

say_hello(#state{host = Host}, Node) ->
    Ctx = mod_amphora:ctx(Host),
    gen_server:cast(
        {mod_amphora:link_process(Host), Node}, {peer, node(), map_get(token, Ctx), links(Ctx), true}
    ).

handle_call({greeting, Component, Pid, IQ, El}, _From, State) ->
    {reply, ok, greeting(State, Component, Pid, IQ, El)};
handle_call(_Request, _From, State) ->
    {reply, ok, State}.

handle_cast({link, Link}, State) ->
    {noreply, came(State, Link)};
handle_cast({greeted, El}, #state{host = Host} = State) ->
    mod_amphora_forward:greeted(Host, El),
    {noreply, State};
handle_cast({peer, Node, Token, Links, Answer}, #state{host = Host, peers = Peers} = State) ->
    Ctx = mod_amphora:ctx(Host),
    ets:insert(map_get(foreign, Ctx), {{token, Token}, Node}),
    [say_hello_back(State, Node) || Answer],
    State1 = count_peers(State#state{peers = maps:put(Node, Token, Peers)}),
    {noreply, lists:foldl(fun(Link, Acc) -> learn(Ctx, Link, Acc) end, State1, Links)};
handle_cast({session, Link, El}, #state{host = Host} = State) ->
    to_session_here(mod_amphora:ctx(Host), Link, El),
    {noreply, State};
handle_cast({retrieve, What, El}, #state{host = Host} = State) ->
    mod_amphora_retrieve:What(Host, El),
    {noreply, State};
handle_cast({unknown, Component, Gen, Verdicts}, #state{host = Host, peers = Peers} = State) ->
    [
        gen_server:cast({mod_amphora:link_process(Host), Node}, {verdicts, Component, Gen, Verdicts})
     || Node <- maps:keys(Peers)
    ],
    {noreply, State};
handle_cast({verdicts, Component, Gen, Verdicts}, #state{host = Host} = State) ->
    Ctx = mod_amphora:ctx(Host),
    [
        send_to(Process, {amphora_verdicts, Component, Gen, [Verdict]})
     || Verdict <- Verdicts, {process, Process} <- [process_of(Ctx, mod_amphora_xml:attr(<<"key">>, Verdict))]
    ],
    {noreply, State};
handle_cast({send, Key, IQ, El, Message}, State) ->
    {noreply, route_send(State, Key, IQ, El, Message)};
handle_cast({answer, IQ}, State) ->
    {noreply, removal_answer(State, IQ)};
handle_cast({removed, Bare, Stamp}, State) ->
    {noreply, tell_removal(State, Bare, Stamp)};
handle_cast(look, State) ->
    {noreply, State};
handle_cast(_Message, State) ->
    {noreply, State}.

handle_info({'DOWN', Ref, process, _, _}, #state{monitors = Monitors} = State) ->
    case maps:take(Ref, Monitors) of
        {{Component, Pid}, Rest} -> {noreply, lost(State#state{monitors = Rest}, Component, Pid)};
        error -> {noreply, State}
    end;
handle_info({nodeup, Node}, State) ->
    erlang:send_after(1000, self(), {hello, Node}),
    {noreply, State};
handle_info({hello, Node}, State) ->
    [say_hello(State, Node) || lists:member(Node, ejabberd_cluster:get_nodes())],
    {noreply, State};
handle_info({nodedown, Node}, #state{host = Host, peers = Peers} = State) ->
    case maps:take(Node, Peers) of
        {Token, Rest} ->
            ets:delete(map_get(foreign, mod_amphora:ctx(Host)), {token, Token}),
            mod_amphora_queue:node_down(Host, Node),
            {noreply, count_peers(State#state{peers = Rest})};
        error ->
            {noreply, State}
    end;
handle_info(sweep, State) ->
    erlang:send_after(1000, self(), sweep),
    mod_amphora_gate:forget_copies(mod_amphora:ctx(State#state.host)),
    {noreply, repeat_removals(forget_sends(State))};
handle_info(_Message, State) ->
    {noreply, State}.

terminate(_Reason, #state{host = Host, peers = Peers}) ->
    [gen_server:cast({mod_amphora:link_process(Host), Node}, {gone, node()}) || Node <- maps:keys(Peers)],
    ok.

say_hello_back(#state{host = Host}, Node) ->
    Ctx = mod_amphora:ctx(Host),
    gen_server:cast(
        {mod_amphora:link_process(Host), Node}, {peer, node(), map_get(token, Ctx), links(Ctx), false}
    ).

count_peers(#state{host = Host, peers = Peers} = State) ->
    Ctx = mod_amphora:ctx(Host),
    atomics:put(map_get(counters, Ctx), 6, 1 + map_size(Peers)),
    mod_amphora_queue:peers(Host, maps:keys(Peers)),
    State.

learn(Ctx, #link{id = {_, Component}, gen = Gen} = Link, State) ->
    case get(Ctx, Component) of
        #link{gen = Known} when Known >= Gen -> State;
        _ -> came(State, Link)
    end.

to_session_here(#{sessions := Sessions} = Ctx, Link, El) ->
    Session = mod_amphora_xml:attr(<<"session">>, El),
    case ets:lookup(Sessions, Session) of
        [{_, Pid}] ->
            Pid ! {amphora_gate, {element_name(El), Link, El}};
        [] ->
            case process_of(Ctx, Session) of
                {process, Worker} when is_atom(Worker) -> send_to(Worker, {amphora_left, Link, El});
                _ -> unknown_session(Link, Session, El)
            end
    end.

%%% ------------------------------------------------------------------ greetings

greeting(#state{host = Host} = State, Component, Pid, IQ, El) ->
    case mod_amphora_xml:attr(<<"version">>, El) of
        ?AMPHORA_PROTOCOL ->
            Ctx = mod_amphora:ctx(Host),
            Link = link_of(Ctx, Component, Pid, El),
            mod_amphora_forward:greeted(Host, El),
            [gen_server:cast({mod_amphora:link_process(Host), N}, {greeted, El}) || N <- maps:keys(State#state.peers)],
            Answer = mod_amphora_xml:el(<<"greeting">>, [
                {<<"version">>, ?AMPHORA_PROTOCOL},
                {<<"server">>, iolist_to_binary(["ejabberd ", ejabberd_option:version()])},
                {<<"module">>, ?AMPHORA_VERSION},
                {<<"acks">>, atom_to_binary(gen_mod:is_loaded(Host, mod_stream_mgmt), utf8)},
                {<<"max-stanza">>, integer_to_binary(max_stanza(Ctx))}
            ]),
            ejabberd_router:route(xmpp:make_iq_result(IQ, Answer)),
            [gen_server:cast({mod_amphora:link_process(Host), N}, {link, Link}) || N <- maps:keys(State#state.peers)],
            came(State, Link);
        Version ->
            ?ERROR_MSG("The node at ~ts speaks version ~ts of the protocol, this module ~ts", [
                Component, Version, ?AMPHORA_PROTOCOL
            ]),
            Error = xmpp:err_not_acceptable(<<"This is version ", ?AMPHORA_PROTOCOL/binary>>, <<"en">>),
            %% RFC 6120 says modify, as the other interceptor does
            ejabberd_router:route(xmpp:make_error(IQ, Error)),
            State
    end.

link_of(#{host := Host} = Ctx, Component, Pid, El) ->
    Mine = mod_amphora:opt(Host, window),
    Window =
        try binary_to_integer(mod_amphora_xml:attr(<<"window">>, El)) of
            N -> max(1, min(N, Mine))
        catch
            error:_ -> Mine
        end,
    _ = Ctx,
    #link{
        id = {Host, Component},
        pid = Pid,
        gen = erlang:system_time(microsecond),
        node = text(<<"node">>, El),
        security = text(<<"security">>, El),
        window = Window,
        actions = names(<<"action">>, El),
        conditions = names(<<"condition">>, El)
    }.

text(Name, El) ->
    case mod_amphora_xml:attr(Name, El) of
        undefined -> <<"?">>;
        Text -> Text
    end.

names(Kind, El) ->
    Names = [mod_amphora_xml:attr(<<"name">>, C) || C <- mod_amphora_xml:children(Kind, ?NS_INTERCEPT, El)],
    [Name || Name <- Names, is_binary(Name)].

%% What a message may have of the listener's limit and of ours.
max_stanza(#{host := Host}) -> min(?MAX_STANZA, mod_amphora:opt(Host, max_stanza)).

came(#state{host = Host} = State, #link{id = {_, Component} = Id} = Link) ->
    #{links := Links} = Ctx = mod_amphora:ctx(Host),
    %% what belonged to the old one is the new one's at once
    [warn_lost(Ctx, Old, <<"it greeted again">>) || Old <- ets:lookup(Links, Id)],
    ets:insert(Links, Link),
    put_level(Ctx),
    {Held, _} = mod_amphora_queue:held(Ctx),
    ?INFO_MSG("Node ~ts is there at ~ts (~ts); ~b messages are held", [
        Link#link.node, Component, Link#link.security, Held
    ]),
    State1 = tell_removals(watch(Link, State)),
    tell(Ctx),
    State1.

put_level(#{counters := Counters} = Ctx) ->
    case [level(Security) || #link{security = Security} <- links(Ctx)] of
        [] -> ok;
        Levels -> atomics:put(Counters, 7, lists:max(Levels))
    end.

level(<<"none">>) -> 1;
level(<<"performance">>) -> 1;
level(_) -> 2.

lost(State, Component, Pid) -> lost(State, Component, Pid, <<"its stream was closed">>).

lost(#state{host = Host} = State, Component, Pid, Reason) ->
    #{links := Links, counters := Counters} = Ctx = mod_amphora:ctx(Host),
    case ets:lookup(Links, {Host, Component}) of
        [#link{pid = Pid} = Link] ->
            ets:delete(Links, {Host, Component}),
            warn_lost(Ctx, Link, Reason),
            [atomics:put(Counters, 5, mod_amphora:now_ms()) || links(Ctx) == []],
            put_level(Ctx),
            State1 = tell_removals(State),
            tell(Ctx),
            State1;
        _ ->
            State
    end.

warn_lost(Ctx, #link{id = {_, Component}, node = Node}, Reason) ->
    {Held, _} = mod_amphora_queue:held(Ctx),
    ?WARNING_MSG("Node ~ts at ~ts is gone: ~ts; ~b messages are held", [Node, Component, Reason, Held]).

%% Whoever depends on the links is told which are there.
tell(#{host := Host} = Ctx) ->
    Links = links(Ctx),
    mod_amphora_queue:links(Ctx, Links),
    send_to(mod_amphora:edge(Host), {amphora_links, Links}),
    mod_amphora_retrieve:links(Host, Links),
    mod_amphora_broadcast:links(Host, Links).

%%% ------------------------------------------------------------------ accounts removed

tell_removals(#state{host = Host} = State) ->
    lists:foldl(
        fun({Bare, Stamp}, Acc) -> tell_removal(Acc, Bare, Stamp) end, State, mod_amphora_spool:removals(Host)
    ).

tell_removal(#state{host = Host, removals = Removals} = State, Bare, Stamp) ->
    Ctx = mod_amphora:ctx(Host),
    case of_user(Ctx, Bare) of
        none ->
            State;
        #link{id = {_, Component}} ->
            Id = <<"amphora-removed-", (p1_rand:get_string())/binary>>,
            ejabberd_router:route(#iq{
                type = set,
                id = Id,
                from = jid:make(Host),
                to = jid:make(Component),
                sub_els = [mod_amphora_xml:el(<<"account-removed">>, [{<<"jid">>, Bare}, {<<"stamp">>, Stamp}])]
            }),
            Others = maps:filter(fun(_, {B, _}) -> B /= Bare end, Removals),
            State#state{removals = maps:put(Id, {Bare, mod_amphora:now_ms()}, Others)}
    end.

repeat_removals(#state{host = Host, removals = Removals} = State) ->
    Now = mod_amphora:now_ms(),
    Resend = mod_amphora:opt(Host, resend),
    Old = [B || {B, At} <- maps:values(Removals), Now - At >= Resend],
    Known = [B || {B, _} <- maps:values(Removals)],
    lists:foldl(
        fun({Bare, Stamp}, Acc) -> tell_removal(Acc, Bare, Stamp) end,
        State,
        [{B, S} || {B, S} <- mod_amphora_spool:removals(Host), lists:member(B, Old) orelse not lists:member(B, Known)]
    ).

removal_answer(#state{host = Host, removals = Removals} = State, #iq{id = Id, type = Type}) ->
    case maps:find(Id, Removals) of
        {ok, {Bare, _}} when Type == result ->
            mod_amphora_spool:remove_removal(Host, Bare),
            mod_amphora_queue:removal_done(Host, Bare),
            State#state{removals = maps:remove(Id, Removals)};
        _ ->
            %% an error is a reason to ask again later
            State
    end.
