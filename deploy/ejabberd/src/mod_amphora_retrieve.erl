%%% What users ask about their stored messages (XEP-0013): each request is passed to the node, and
%%% its answer to the session that asked, behind the messages that it shows.
%%%
%%% One process per virtual host and ejabberd node, for the sessions on that node. A request lives
%%% until it is answered and the node has been told what became of the messages it showed. Its name
%%% says whose it is, so that what a node says of it finds its way in a cluster.
-module(mod_amphora_retrieve).

-behaviour(gen_server).

-export([start_link/1, hooks/1, start/1, stop/1, answer/2, hand_over/2, deleted/2, links/2, ended/2]).
-export([process_offline/1, process_info/1, process_items/1, decode_iq_subel/1, features/5]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% Requests that are not answered. One session's are passed on one at a time, so that what a client
%% removes is not removed before it was shown what it asked for earlier; the others wait. More than
%% this are refused with resource-constraint.
-define(USER_REQUESTS, 8).
-define(HOST_REQUESTS, 1000).
-define(REQUEST_BYTES, 64 * 1024). % of a request; a thousand names fit
-define(MAX_DEPTH, 32). % levels of elements in a request
-define(SWEEP, 250).
-define(PREFIX, "amphora-retrieve-").

-record(batch, {
    pending = 0 :: non_neg_integer(), % messages that the client has not acknowledged
    taken_at :: integer() | undefined % when the node was told that it was taken
}).

-record(request, {
    name :: binary(), % for the node, for ever: what it is shown comes under this name
    session :: binary(), % the session's own name, over resumptions
    jid :: binary(),
    bare :: binary(),
    iq :: iq(),
    %% waiting; asked: of the node; answering: the answer is in the session's line; over: answered,
    %% or nobody is there to be answered
    state = waiting :: waiting | asked | answering | over,
    settled = false :: boolean(), % what was undecided when it came
    since :: integer(),
    at :: integer(), % when the node was heard of last
    link :: #link{} | undefined,
    shown = false :: boolean(),
    batches = #{} :: #{binary() => #batch{}}, % what the node does not know as taken
    last = <<"0">> :: binary(), % the last batch that came
    ended :: integer() | undefined % when the node was told that no more can be taken
}).

-record(state, {
    host :: binary(),
    requests = #{} :: #{binary() => #request{}},
    lines = #{} :: #{binary() => [binary()]}, % requests of a session that are not answered
    monitors = #{} :: #{reference() => binary()}, % of sessions with requests
    users = #{} :: #{binary() => pos_integer()},
    total = 0 :: non_neg_integer(),
    links = [] :: [#link{}]
}).

%%% ------------------------------------------------------------------ interface

-spec start_link(binary()) -> {ok, pid()} | {error, term()}.
start_link(Host) -> gen_server:start_link({local, name(Host)}, ?MODULE, Host, []).

name(Host) -> gen_mod:get_module_proc(Host, ?MODULE).

-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) ->
    [
        {disco_local_features, ?MODULE, features, 51},
        {disco_sm_features, ?MODULE, features, 51}
    ].

%% As mod_offline has it, but that the retrieval is there only while a node is.
features(Acc, _From, #jid{lserver = Host}, <<>>, _Lang) ->
    Before = case Acc of {result, Features} -> Features; _ -> [] end,
    case mod_amphora_link:links(mod_amphora:ctx(Host)) of
        [] -> {result, Before ++ [?NS_FEATURE_MSGOFFLINE]};
        _ -> {result, Before ++ [?NS_FEATURE_MSGOFFLINE, ?NS_FLEX]}
    end;
features(_Acc, _From, _To, ?NS_FEATURE_MSGOFFLINE, _Lang) ->
    {result, []};
features(Acc, _From, _To, _Node, _Lang) ->
    Acc.

%% IQ handlers, over mod_offline's, and mod_disco's for the one node; again after each reload of the
%% configuration.
-spec start(binary()) -> ok.
start(Host) ->
    ejabberd_hooks:delete(disco_local_features, Host, mod_offline, get_sm_features, 50),
    ejabberd_hooks:delete(disco_sm_features, Host, mod_offline, get_sm_features, 50),
    gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_FLEX, ?MODULE, process_offline),
    case gen_mod:is_loaded(Host, mod_disco) of
        true ->
            gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_DISCO_INFO, ?MODULE, process_info),
            gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_DISCO_ITEMS, ?MODULE, process_items);
        false ->
            ok
    end.

-spec stop(binary()) -> ok.
stop(Host) ->
    case gen_mod:is_loaded(Host, mod_offline) of
        true ->
            ejabberd_hooks:add(disco_local_features, Host, mod_offline, get_sm_features, 50),
            ejabberd_hooks:add(disco_sm_features, Host, mod_offline, get_sm_features, 50),
            gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_FLEX, mod_offline, handle_offline_query);
        false -> gen_iq_handler:remove_iq_handler(ejabberd_sm, Host, ?NS_FLEX)
    end,
    case gen_mod:is_loaded(Host, mod_disco) of
        true ->
            gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_DISCO_INFO, mod_disco, process_sm_iq_info),
            gen_iq_handler:add_iq_handler(ejabberd_sm, Host, ?NS_DISCO_ITEMS, mod_disco, process_sm_iq_items);
        false ->
            ok
    end.

%% A result or an error of a node. True if it was for a request.
-spec answer(binary(), iq()) -> boolean().
answer(Host, #iq{id = <<?PREFIX, Name/binary>>} = IQ) ->
    case process_of(Host, Name) of
        none -> ok;
        Process -> gen_server:cast(Process, {answer, Name, IQ})
    end,
    true;
answer(_Host, _IQ) ->
    false.

process_of(Host, Name) ->
    #{token := Own, foreign := Foreign} = Ctx = mod_amphora:ctx(Host),
    case mod_amphora:owner_of(Ctx, Name) of
        {Own, _} -> name(Host);
        {Token, _} ->
            case ets:lookup(Foreign, {token, Token}) of
                [{_, Node}] -> {name(Host), Node};
                [] -> none
            end;
        unknown -> none
    end.

%% A <hand-over view='true'/>.
-spec hand_over(binary(), #xmlel{}) -> ok.
hand_over(Host, Element) -> gen_server:cast(name(Host), {hand_over, Element}).

%% A <deleted/>. True if it was for a request.
-spec deleted(binary(), #xmlel{}) -> boolean().
deleted(Host, Element) ->
    gen_server:cast(name(Host), {deleted, Element}),
    true.

%% The links that are there now.
-spec links(binary(), [#link{}]) -> ok.
links(Host, Links) -> gen_server:cast(name(Host), {links, Links}).

%% A session ends. Its process is there for a while yet, and its requests must not count for the user's next
%% session meanwhile.
-spec ended(binary(), binary()) -> ok.
ended(Host, Session) -> gen_server:cast(name(Host), {ended, Session}).

%%% ------------------------------------------------------------------ in the process that routes the request

%% Requests for offline messages are forwarded as they are.
decode_iq_subel(El) ->
    case xmpp:get_ns(El) of
        ?NS_FLEX -> El;
        _ -> xmpp:decode(El)
    end.

%% A request about an account, by somebody.
process_offline(#iq{sub_els = [#xmlel{children = Children}]} = IQ) ->
    request(IQ, lists:any(fun(#xmlel{name = <<"fetch">>}) -> true; (_) -> false end, Children)).

process_info(#iq{type = get, sub_els = [#disco_info{node = ?NS_FLEX}]} = IQ) -> request(encoded(IQ), true);
process_info(IQ) -> mod_disco:process_sm_iq_info(IQ).

process_items(#iq{type = get, sub_els = [#disco_items{node = ?NS_FLEX}]} = IQ) -> request(encoded(IQ), true);
process_items(IQ) -> mod_disco:process_sm_iq_items(IQ).

encoded(#iq{sub_els = Els} = IQ) -> IQ#iq{sub_els = [xmpp:encode(El) || El <- Els]}.

request(#iq{from = #jid{luser = User, lserver = Host} = From, to = #jid{luser = User, lserver = Host}} = IQ, Fetches) ->
    case ejabberd_sm:get_session_pid(User, Host, From#jid.lresource) of
        none ->
            refuse(IQ, unavailable(<<"The storage is not there now">>));
        Pid ->
            _ = Fetches andalso mod_amphora_gate:fetches(Pid),
            try gen_server:call(name(Host), {request, IQ, Pid}, 10000) of
                ok -> ignore;
                {error, Error} -> refuse(IQ, Error)
            catch
                exit:_ -> refuse(IQ, unavailable(<<"The storage is not there now">>))
            end
    end;
request(IQ, _Fetches) ->
    refuse(IQ, xmpp:err_forbidden(<<"Offline messages are shown to their recipient alone">>, <<"en">>)).

refuse(IQ, Error) -> xmpp:make_error(IQ, Error).

unavailable(Text) -> (xmpp:err_service_unavailable(Text, <<"en">>))#stanza_error{type = wait}.

%%% ------------------------------------------------------------------ the process

init(Host) ->
    process_flag(trap_exit, true),
    erlang:send_after(?SWEEP, self(), sweep),
    {ok, #state{host = Host, links = mod_amphora_link:links(mod_amphora:ctx(Host))}}.

handle_call({request, IQ, Pid}, _From, #state{host = Host} = State) ->
    case {flaw(IQ, State), ets:lookup(map_get(seats, mod_amphora:ctx(Host)), Pid)} of
        {none, [{_, Session, _}]} -> {reply, ok, pump(take(IQ, Session, Pid, State))};
        {none, []} -> {reply, {error, unavailable(<<"The storage is not there now">>)}, State};
        {Error, _} -> {reply, {error, Error}, State}
    end.

handle_cast({answer, Name, IQ}, State) ->
    {noreply, with(Name, State, fun(Request) -> answered(Request, IQ, State) end)};
handle_cast({hand_over, Element}, State) ->
    {noreply, shown(Element, State)};
handle_cast({deleted, Element}, State) ->
    Name = mod_amphora_xml:attr(<<"session">>, Element),
    {noreply, with(Name, State, fun(Request) ->
        known(Request, mod_amphora_xml:attr(<<"batch">>, Element), State)
    end)};
handle_cast({ended, Session}, State) ->
    {noreply, pump(session_ended(Session, State))};
handle_cast({links, Links}, State) ->
    {noreply, pump(links_changed(Links, State))};
handle_cast(_Other, State) ->
    {noreply, State}.

handle_info({amphora_settled, Name}, State) ->
    {noreply, pump(with(Name, State, fun(Request) -> put_request(Request#request{settled = true}, State) end))};
handle_info({amphora_written, {Name, answer}}, State) ->
    {noreply, pump(with(Name, State, fun(Request) -> leave_line(Request, State) end))};
handle_info({amphora_shown, {Name, Batch}}, State) when is_binary(Batch) ->
    {noreply, with(Name, State, fun(Request) -> acknowledged(Request, Batch, State) end)};
handle_info({'DOWN', Ref, process, _Pid, _}, State) ->
    {noreply, session_left(Ref, State)};
handle_info(sweep, State) ->
    erlang:send_after(?SWEEP, self(), sweep),
    {noreply, pump(sweep(mod_amphora:now_ms(), State))};
handle_info(_Other, State) ->
    {noreply, State}.

terminate(_Reason, #state{requests = Requests}) ->
    %% what was behind messages that are shown is dropped with them
    Left = [IQ || #request{state = What, iq = IQ} <- maps:values(Requests), What =/= over],
    Error = unavailable(<<"The storage went away">>),
    lists:foreach(fun(IQ) -> ejabberd_router:route(refuse(IQ, Error)) end, Left).

with(Name, #state{requests = Requests} = State, What) ->
    case Requests of
        #{Name := Request} -> What(Request);
        _ -> State
    end.

put_request(#request{name = Name} = Request, #state{requests = Requests} = State) ->
    State#state{requests = Requests#{Name => Request}}.

%%% ------------------------------------------------------------------ requests

flaw(#iq{from = From, sub_els = [El]}, #state{users = Users, total = Total, links = Links}) ->
    Waiting = maps:get(bare(From), Users, 0),
    Large = mod_amphora_xml:deeper_than(El, ?MAX_DEPTH - 1) orelse
        byte_size(fxml:element_to_binary(El)) > ?REQUEST_BYTES,
    case Links of
        [] ->
            unavailable(<<"The storage is not there now">>);
        _ when Large ->
            xmpp:err_policy_violation(<<"The request is too large: ask for fewer messages at once">>, <<"en">>);
        _ when Waiting >= ?USER_REQUESTS; Total >= ?HOST_REQUESTS ->
            xmpp:err_resource_constraint(<<"Too many requests for offline messages are under way">>, <<"en">>);
        _ ->
            none
    end.

bare(JID) -> jid:encode(jid:remove_resource(jid:tolower(JID))).

take(#iq{from = From} = IQ, Session, Pid, #state{host = Host, lines = Lines, users = Users, total = Total} = State) ->
    Name = mod_amphora:new_key(Host, retrieve),
    Bare = bare(From),
    Now = mod_amphora:now_ms(),
    mod_amphora_queue:when_settled(Host, Bare, Name),
    watch(Session, Pid, put_request(
        #request{name = Name, session = Session, jid = jid:encode(From), bare = Bare, iq = IQ, since = Now, at = Now},
        State#state{lines = maps:update_with(Session, fun(Line) -> Line ++ [Name] end, [Name], Lines),
                    users = maps:update_with(Bare, fun(N) -> N + 1 end, 1, Users),
                    total = Total + 1})).

watch(Session, Pid, #state{monitors = Monitors} = State) ->
    case lists:member(Session, maps:values(Monitors)) of
        true -> State;
        false -> State#state{monitors = Monitors#{erlang:monitor(process, Pid) => Session}}
    end.

%% Its process, which is another one after a resumption.
process_of_session(Session, #state{host = Host}) ->
    case ets:lookup(map_get(sessions, mod_amphora:ctx(Host)), Session) of
        [{_, Pid}] -> Pid;
        [] -> none
    end.

write(Session, Entries, State) ->
    case process_of_session(Session, State) of
        none -> ok; % it has ended, or is being resumed: what was shown is not acknowledged
        Pid -> mod_amphora_gate:write(Pid, Entries)
    end.

%% The first request of each line that waits, and need not wait for what was undecided when it came.
%% A third of the time that the node has is waited for that.
pump(#state{links = []} = State) ->
    State;
pump(#state{lines = Lines, requests = Requests, host = Host} = State) ->
    Now = mod_amphora:now_ms(),
    Patience = mod_amphora:opt(Host, retrieve_timeout) div 3,
    maps:fold(fun(_Session, [Name | _], Acc) ->
                  case Requests of
                      #{Name := #request{state = waiting, settled = Settled, since = Since} = Request}
                        when Settled; Now - Since >= Patience -> ask(Request, Acc);
                      _ -> Acc
                  end
              end, State, Lines).

ask(#request{name = Name, jid = JID, bare = Bare, iq = IQ} = Request, #state{host = Host, links = Links} = State) ->
    #link{id = {_, Component}, pid = Stream} = Link = mod_amphora_link:of_user(mod_amphora:ctx(Host), Bare, Links),
    #xmlel{attrs = Attrs} = Asked = xmpp:encode(IQ#iq{to = undefined}),
    Forwarded = #xmlel{name = <<"forwarded">>, attrs = [{<<"xmlns">>, ?NS_FORWARDED}], children = [
        Asked#xmlel{attrs = [{<<"xmlns">>, ?NS_CLIENT} | lists:keydelete(<<"xmlns">>, 1, Attrs)]}]},
    %% behind what the node was told before
    xmpp_stream_in:send(Stream, #xmlel{
        name = <<"iq">>,
        attrs = [{<<"type">>, <<"get">>}, {<<"id">>, <<?PREFIX, Name/binary>>},
                 {<<"from">>, Host}, {<<"to">>, Component}],
        children = [mod_amphora_xml:el(<<"retrieve">>, [{<<"session">>, Name}, {<<"jid">>, JID}], [Forwarded])]
    }),
    put_request(Request#request{state = asked, at = mod_amphora:now_ms(), link = Link}, State).

%%% ------------------------------------------------------------------ what the node is told

tell(#request{link = Link} = Request, Batch, Ended, #state{links = Links}) ->
    case lists:member(Link, Links) of
        true ->
            mod_amphora_link:emit(Link, [mod_amphora_xml:el(<<"taken">>,
                [{<<"for">>, Request#request.bare}, {<<"session">>, Request#request.name}, {<<"batch">>, Batch},
                 {<<"ids">>, <<>>}] ++ [{<<"ended">>, <<"true">>} || Ended])]);
        false ->
            ok
    end.

%% A batch was acknowledged. Nothing is deleted for that, so it names no ids.
taken(Batch, #request{batches = Batches} = Request, State) ->
    Now = mod_amphora:now_ms(),
    tell(Request, Batch, false, State),
    Request#request{at = Now, batches = Batches#{Batch := #batch{taken_at = Now}}}.

%% Nobody takes any more of it.
tell_end(#request{last = Last} = Request, State) ->
    tell(Request, Last, true, State),
    Request#request{ended = mod_amphora:now_ms(), batches = #{}}.

%% Puts it back, unless nothing of it need be known any more.
keep_or_forget(#request{state = over, ended = undefined, batches = Batches, name = Name},
               #state{requests = Requests} = State)
  when map_size(Batches) =:= 0 ->
    State#state{requests = maps:remove(Name, Requests)};
keep_or_forget(Request, State) ->
    put_request(Request, State).

%%% ------------------------------------------------------------------ answers

%% The session has its answer, and may ask the next.
leave_line(#request{name = Name, session = Session, bare = Bare, state = What} = Request,
           #state{lines = Lines, users = Users, total = Total} = State) when What =/= over ->
    Left = case lists:delete(Name, maps:get(Session, Lines, [])) of
               [] -> maps:remove(Session, Lines);
               Line -> Lines#{Session => Line}
           end,
    Counted = case Users of
                  #{Bare := 1} -> maps:remove(Bare, Users);
                  #{Bare := N} -> Users#{Bare := N - 1}
              end,
    keep_or_forget(Request#request{state = over}, State#state{lines = Left, users = Counted, total = Total - 1});
leave_line(_Request, State) ->
    State.

finish(#request{shown = true, session = Session, name = Name} = Request, Reply, State) ->
    write(Session, [{Reply, self(), {Name, answer}}], State),
    put_request(Request#request{state = answering}, State);
finish(Request, Reply, State) ->
    ejabberd_router:route(Reply),
    leave_line(Request#request{state = answering}, State).

fail(#request{iq = IQ} = Request, Text, State) ->
    finish(Request, refuse(IQ, unavailable(Text)), State).

%% The node's answer to one of our requests.
answered(#request{state = asked, iq = Asked, jid = JID} = Request, #iq{type = Type, sub_els = Els} = IQ, State) ->
    case {Type, inner(Els)} of
        {result, #iq{type = result, sub_els = Children}} ->
            finish(Request, #iq{type = result, id = Asked#iq.id, lang = Asked#iq.lang, from = Asked#iq.to,
                                to = Asked#iq.from, sub_els = Children}, State);
        {error, _} ->
            ?LOG_ERROR("Amphora: the node refuses a request of ~ts for offline messages", [JID]),
            finish(Request, refuse(Asked, error_of(IQ)), State);
        {_, #iq{type = error} = Inner} ->
            finish(Request, refuse(Asked, error_of(Inner)), State);
        _ ->
            finish(Request, refuse(Asked, xmpp:err_internal_server_error()), State)
    end;
answered(_Request, _IQ, State) ->
    State.

inner(Els) ->
    try
        [#xmlel{} = Element | _] = [El || #xmlel{name = <<"retrieve">>} = El <- Els],
        #xmlel{} = Forwarded = mod_amphora_xml:child(<<"forwarded">>, ?NS_FORWARDED, Element),
        #xmlel{attrs = Attrs} = Found = mod_amphora_xml:child(<<"iq">>, ?NS_CLIENT, Forwarded),
        %% it goes to the client under the id of his request, and need have none
        Named = Found#xmlel{attrs = lists:keystore(<<"id">>, 1, Attrs, {<<"id">>, <<"reply">>})},
        xmpp:decode(Named, ?NS_CLIENT, [ignore_els])
    catch
        _:_ -> none
    end.

error_of(IQ) ->
    case xmpp:get_error(IQ) of
        #stanza_error{} = Error -> Error;
        _ -> xmpp:err_internal_server_error()
    end.

%%% ------------------------------------------------------------------ messages that are shown

shown(Element, #state{requests = Requests, host = Host} = State) ->
    Name = mod_amphora_xml:attr(<<"session">>, Element),
    Batch = mod_amphora_xml:attr(<<"batch">>, Element),
    case Requests of
        #{Name := #request{batches = #{Batch := _}}} ->
            State;
        #{Name := #request{state = asked, session = Session} = Request} ->
            Heard = Request#request{last = Batch, at = mod_amphora:now_ms(), shown = true},
            Messages = messages(Host, Request, Element),
            write(Session, [{Message, self(), {Name, Batch}} || Message <- Messages], State),
            Kept = Heard#request{batches = (Heard#request.batches)#{Batch => #batch{pending = length(Messages)}}},
            put_request(case Messages of
                            [] -> taken(Batch, Kept, State);
                            _ -> Kept
                        end, State);
        #{Name := Request} ->
            put_request(tell_end(Request#request{last = Batch}, State), State);
        _ when is_binary(Name), is_binary(Batch) ->
            Unknown = [mod_amphora_xml:el(<<"taken">>, [{<<"for">>, <<>>}, {<<"session">>, Name}, {<<"batch">>, Batch},
                                                        {<<"ids">>, <<>>}, {<<"ended">>, <<"true">>}])],
            lists:foreach(fun(Link) -> mod_amphora_link:emit(Link, Unknown) end, State#state.links),
            State;
        _ ->
            ?LOG_WARNING("Amphora: a hand-over without session or batch was left out", []),
            State
    end.

%% Those that can be read, and are not from somebody whom the user blocks by now.
messages(Host, #request{iq = #iq{from = #jid{luser = User}}, jid = JID}, Element) ->
    lists:flatmap(fun(Item) ->
        Id = mod_amphora_xml:attr(<<"id">>, Item),
        case item_message(Item) of
            {ok, #message{from = From} = Message} when is_binary(Id) ->
                [named(Message, Id, Host, stamp(Item))
                 || From =:= undefined orelse not mod_amphora_facts:is_blocked(User, Host, From)];
            _ ->
                ?LOG_ERROR("Amphora: item ~ts for ~ts can't be read", [Id, JID]),
                []
        end
    end, mod_amphora_xml:children(<<"item">>, ?NS_INTERCEPT, Element)).

item_message(Item) ->
    case mod_amphora_xml:child(<<"forwarded">>, ?NS_FORWARDED, Item) of
        #xmlel{} = Forwarded -> mod_amphora_xml:decode(mod_amphora_xml:child(<<"message">>, ?NS_CLIENT, Forwarded));
        undefined -> error
    end.

stamp(Item) ->
    Forwarded = mod_amphora_xml:child(<<"forwarded">>, ?NS_FORWARDED, Item),
    case mod_amphora_xml:child(<<"delay">>, ?NS_DELAY_URI, Forwarded) of
        #xmlel{} = Delay -> mod_amphora_xml:attr(<<"stamp">>, Delay);
        undefined -> undefined
    end.

%% The message with its name; one that a sender wrote into it is taken out.
named(Message, Id, Host, Stamp) ->
    #message{sub_els = Els} = Delayed = case Stamp of
                                            undefined -> Message;
                                            _ -> mod_amphora_xml:add_delay(Message, Host, Stamp)
                                        end,
    Others = [El || El <- Els, not (xmpp:get_name(El) =:= <<"offline">> andalso xmpp:get_ns(El) =:= ?NS_FLEX)],
    Delayed#message{sub_els = Others ++ [#xmlel{
        name = <<"offline">>, attrs = [{<<"xmlns">>, ?NS_FLEX}],
        children = [#xmlel{name = <<"item">>, attrs = [{<<"node">>, Id}]}]}]}.

%% The client acknowledged one message of a batch.
acknowledged(#request{batches = Batches} = Request, Batch, State) ->
    case Batches of
        #{Batch := #batch{pending = 1}} when Request#request.ended =:= undefined ->
            put_request(taken(Batch, Request, State), State);
        #{Batch := #batch{pending = N} = Kept} when N > 1 ->
            put_request(Request#request{batches = Batches#{Batch := Kept#batch{pending = N - 1}}}, State);
        _ ->
            State
    end.

%% The node knows that a batch was taken, or that no more can be.
known(#request{ended = Ended, last = Last} = Request, Batch, State) when Ended =/= undefined ->
    case Batch of
        Last -> keep_or_forget(Request#request{ended = undefined}, State);
        _ -> State
    end;
known(#request{batches = Batches} = Request, Batch, State) ->
    case Batches of
        #{Batch := #batch{taken_at = At}} when At =/= undefined ->
            keep_or_forget(Request#request{batches = maps:remove(Batch, Batches)}, State);
        _ ->
            State
    end.

%%% ------------------------------------------------------------------ ends

%% The process of a session is gone. If it was resumed, another one has its name already.
session_left(Ref, #state{monitors = Monitors} = State) ->
    case maps:take(Ref, Monitors) of
        {Session, Rest} ->
            Left = State#state{monitors = Rest},
            case has_requests(Session, Left) of
                true -> look_for(Session, Left);
                false -> Left
            end;
        error ->
            State
    end.

has_requests(Session, #state{requests = Requests}) ->
    lists:any(fun(#request{session = Of}) -> Of =:= Session end, maps:values(Requests)).

look_for(Session, State) ->
    case process_of_session(Session, State) of
        none ->
            session_ended(Session, State);
        Pid ->
            case is_process_alive(Pid) of
                true -> watch(Session, Pid, State);
                false -> session_ended(Session, State)
            end
    end.

%% Of what was answered the node keeps nothing.
session_ended(Session, #state{requests = Requests} = State) ->
    Mine = [Request || #request{session = Of} = Request <- maps:values(Requests), Of =:= Session],
    lists:foldl(fun(#request{state = asked} = Request, Acc) ->
                        leave_line(tell_end(Request, Acc), Acc);
                   (#request{state = over} = Request, Acc) ->
                        keep_or_forget(Request#request{batches = #{}}, Acc);
                   (Request, Acc) ->
                        leave_line(Request#request{batches = #{}}, Acc)
                end, State, Mine).

%% The node forgets with its link what it was asked. What it has shown is still written.
links_changed(Links, #state{requests = Requests} = State) ->
    Changed = State#state{links = Links},
    lists:foldl(fun(Request, Acc) -> link_changed(Request, Links, Acc) end, Changed, maps:values(Requests)).

link_changed(#request{state = waiting} = Request, [], State) ->
    fail(Request, <<"The storage went away, ask again">>, State);
link_changed(#request{link = Link} = Request, Links, State) when Link =/= undefined ->
    case lists:member(Link, Links) of
        true -> State;
        false ->
            Lost = Request#request{batches = #{}, ended = undefined},
            case Request#request.state of
                asked -> fail(Lost, <<"The storage went away, ask again">>, State);
                _ -> keep_or_forget(Lost, State)
            end
    end;
link_changed(_Request, _Links, State) ->
    State.

sweep(Now, #state{requests = Requests, host = Host} = State) ->
    Timeout = mod_amphora:opt(Host, retrieve_timeout),
    Repeat = mod_amphora:opt(Host, repeat),
    maps:fold(fun(_Name, Request, Acc) -> look(Request, Now, Timeout, Repeat, Acc) end, State, Requests).

look(#request{state = asked, batches = Batches} = Request, Now, Timeout, Repeat, State) ->
    case [Batch || #batch{pending = N} = Batch <- maps:values(Batches), N > 0] of
        [] when Now - Request#request.at >= Timeout ->
            ?LOG_WARNING("Amphora: ~ts: no answer about offline messages within ~b s",
                         [Request#request.jid, Timeout div 1000]),
            fail(tell_end(Request, State), <<"The storage does not answer, ask again">>, State);
        [] ->
            put_request(again(Request, Now, Repeat, State), State);
        _ ->
            put_request(again(Request#request{at = Now}, Now, Repeat, State), State) % it waits for the client
    end;
look(Request, Now, _Timeout, Repeat, State) ->
    put_request(again(Request, Now, Repeat, State), State).

%% What is repeated until the node has answered it.
again(#request{ended = At} = Request, Now, Repeat, State) when is_integer(At) ->
    case Now - At >= Repeat of
        true -> tell_end(Request, State);
        false -> Request
    end;
again(#request{batches = Batches} = Request, Now, Repeat, State) ->
    maps:fold(fun(Batch, #batch{taken_at = At}, Acc) when is_integer(At), Now - At >= Repeat ->
                      Before = Acc#request.at,
                      (taken(Batch, Acc, State))#request{at = Before};
                 (_Batch, _, Acc) ->
                      Acc
              end, Request, Batches).
