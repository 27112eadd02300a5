%%% The sender's edge: messages with rules that are about to leave for another server. They wait
%%% here for what that server supports and for a node's verdict, and nothing is kept of them: a
%%% verdict comes with all that it sends, so a message can be given back to its sender at any time.
%%%
%%% One process per virtual host. Sessions ask it about what their users send, and go on when it
%%% has taken or refused the message. What it lets go passes the rest of the hooks of
%%% user_send_packet here: archive and carbons see what leaves, and as it leaves.
%%%
%%% Its keys come from mod_amphora:new_key(Host, edge); what a node says about them arrives as
%%%   {amphora_verdicts, Component, Gen, [#xmlel{}]}
%%% and the links that are there as
%%%   {amphora_links, [#link{}]}
-module(mod_amphora_edge).

-behaviour(gen_server).

-export([start_link/1, hooks/1, stop_all/1, user_send_packet/1, relay/3, held/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% Behind mod_privacy (50), whose lists are asked here; before mod_mam (88) and carbons (89).
-define(SEQ, 80).
-define(SWEEP, 250). % milliseconds between two looks at everything that has a time
-define(SHARE, 4). % one sender has a quarter of the room, so that others have some whatever he does
-define(RETRY_FIRST, 250). % milliseconds until it is asked again after retry, doubled each time
-define(RETRY_LAST, 30000).
-define(CALL, 60000). % milliseconds that a session waits for this process
-define(WINDOW, 4). % it has a quarter of a link's window, the workers have the rest

-type pair() :: {From :: binary(), To :: binary()}. % sender's full JID, recipient's bare JID

%% A message that waits, in the order of its pair.
-record(held, {
    id :: integer(),
    pair :: pair(),
    sender :: binary(), % bare JID
    domain :: binary(),
    message :: message(),
    state :: map() | undefined, % of the session that sent it; none if this host sends it on
    bytes :: non_neg_integer(),
    since :: integer(),
    %% of a message with rules that a node is asked about
    key :: binary() | undefined,
    stamp = <<>> :: binary(),
    el :: #xmlel{} | undefined,
    %% a message without rules, which goes when it is first or has waited long enough
    follows = false :: boolean(),
    silent = false :: boolean(), % nothing goes back to its sender
    supports = unknown :: boolean() | unknown,
    asking = false :: boolean(),
    verdict :: undefined | deliver | discarded | unavailable,
    sends = [] :: [#xmlel{}],
    decided_on :: {Component :: binary(), Gen :: integer()} | undefined, % the link of its verdict
    %% the link on which it was sent last
    link :: {Component :: binary(), Gen :: integer()} | undefined,
    sent_at = 0 :: integer(),
    again = false :: boolean(),
    tries = 0 :: non_neg_integer(),
    resume_at :: integer() | undefined
}).

-record(state, {
    host :: binary(),
    active :: ets:tid(), % {pair()}: those with a message that waits
    servers :: mod_amphora_servers:servers(),
    held = #{} :: #{integer() => #held{}},
    keys = #{} :: #{binary() => integer()},
    pairs = #{} :: #{pair() => queue:queue(integer())},
    shares = #{} :: #{binary() => {non_neg_integer(), non_neg_integer()}},
    %% component -> those of its link, in the order in which they could go to its node
    ready = #{} :: #{binary() => queue:queue(integer())},
    links = [] :: [#link{}],
    outstanding = #{} :: #{binary() => non_neg_integer()}, % component -> not answered
    lost_at :: integer(),
    bytes = 0 :: non_neg_integer(),
    next_id = 1 :: integer(),
    stopping = false :: boolean()
}).

%%% ------------------------------------------------------------------ interface

%% Registered as mod_amphora:edge(Host).
-spec start_link(binary()) -> {ok, pid()} | {error, term()}.
start_link(Host) -> gen_server:start_link({local, mod_amphora:edge(Host)}, ?MODULE, Host, []).

%% Hooks of the host: {Hook, Module, Function, Sequence}.
-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) -> [{user_send_packet, ?MODULE, user_send_packet, ?SEQ}].

%% The server stops or the module is unloaded: what waits goes back to its senders.
-spec stop_all(binary()) -> ok.
stop_all(Host) ->
    try gen_server:call(mod_amphora:edge(Host), stop_all, ?CALL)
    catch exit:_ -> ok
    end.

%% Routes a message that this host itself sends on, in the order of its pair. If it carries rules
%% and goes to another server, that one is asked first whether it supports them, and an error goes
%% back if it does not, unless `Silent`. No node is asked: one has decided about it already.
-spec relay(binary(), message(), boolean()) -> ok.
relay(Host, Message, Silent) ->
    gen_server:cast(mod_amphora:edge(Host), {relay, Message, Silent}).

%% How many messages wait, and their bytes.
-spec held(binary()) -> {non_neg_integer(), non_neg_integer()}.
held(Host) -> gen_server:call(mod_amphora:edge(Host), held, ?CALL).

%%% ------------------------------------------------------------------ in the session's process

user_send_packet({#message{meta = #{amphora_edge := passed}}, _} = Acc) ->
    Acc;
user_send_packet({#message{to = #jid{lserver = Domain} = To} = Message, #{lserver := Host} = State} = Acc) ->
    HasRules = mod_amphora_xml:has_rules(Message),
    case HasRules orelse follows(Host, Message) of
        false ->
            Acc;
        true ->
            case ejabberd_router:is_my_route(Domain) of
                %% Those for our own users are addressed once they were looked at.
                true when Domain =/= Host, HasRules -> {mod_amphora_xml:address_rules(Message), State};
                true -> Acc;
                false -> leaving(Host, HasRules, Message#message{to = To}, State)
            end
    end;
user_send_packet(Acc) ->
    Acc.

follows(Host, #message{from = From, to = To}) ->
    Active = persistent_term:get({?MODULE, Host}, none),
    case ets:info(Active, size) of
        Size when is_integer(Size), Size > 0 -> ets:member(Active, pair_of(From, To));
        _ -> false
    end.

pair_of(From, To) -> {jid:encode(jid:tolower(From)), jid:encode(jid:remove_resource(jid:tolower(To)))}.

%% What privacy and block lists refuse does not leave, and leaves no trace.
leaving(Host, HasRules, Message, State) ->
    case ejabberd_hooks:run_fold(privacy_check_packet, Host, allow, [State, Message, out]) of
        deny when HasRules ->
            {stop, {drop, ejabberd_c2s:send(State, mod_amphora_xml:error_message(Message, denied(State)))}};
        deny ->
            {Message, State};
        allow ->
            ask(Host, HasRules, Message, State)
    end.

%% As the server says it.
denied(State) ->
    xmpp:err_not_acceptable(
        <<"Your active privacy list has denied the routing of this stanza.">>, maps:get(lang, State, <<"en">>)
    ).

ask(Host, HasRules, Message, State) ->
    try gen_server:call(mod_amphora:edge(Host), {send, HasRules, Message, snapshot(State)}, ?CALL) of
        held -> {stop, {drop, State}};
        pass -> {Message, State}
    catch
        exit:_ when HasRules ->
            bounce(Message, unavailable()),
            {stop, {drop, State}};
        exit:_ ->
            {Message, State}
    end.

%% What handlers of outgoing messages look at, also when the session has ended.
snapshot(State) ->
    maps:with([jid, user, server, resource, lserver, lang, ip, sid, auth_module, privacy_active_list], State).

%%% ------------------------------------------------------------------ the process

init(Host) ->
    process_flag(trap_exit, true),
    Active = ets:new(amphora_edge, [set, protected, {read_concurrency, true}]),
    persistent_term:put({?MODULE, Host}, Active),
    erlang:send_after(?SWEEP, self(), sweep),
    {ok, #state{host = Host, active = Active, servers = mod_amphora_servers:new(Host), lost_at = mod_amphora:now_ms(),
                links = ets:tab2list(map_get(links, mod_amphora:ctx(Host)))}}.

handle_call({send, true, Message, Session}, _From, State) ->
    {reply, held, pump(take(Message, Session, State))};
handle_call({send, false, #message{from = From, to = To} = Message, Session}, _From, State) ->
    case maps:is_key(pair_of(From, To), State#state.pairs) of
        true -> {reply, held, follow(Message, Session, false, State)};
        false -> {reply, pass, State}
    end;
handle_call(held, _From, #state{held = Held, bytes = Bytes} = State) ->
    {reply, {map_size(Held), Bytes}, State};
handle_call(stop_all, _From, State) ->
    {reply, ok, give_back("The module is unloaded", State#state{stopping = true})}.

handle_cast({relay, Message, Silent}, State) ->
    {noreply, take_relayed(Message, Silent, State)};
handle_cast(_Other, State) ->
    {noreply, State}.

handle_info({amphora_verdicts, Component, Gen, Elements}, State) ->
    {noreply, pump(lists:foldl(fun(Element, Acc) -> verdict(Component, Gen, Element, Acc) end, State, Elements))};
handle_info({amphora_links, Links}, State) ->
    {noreply, pump(links(Links, State))};
handle_info({iq_reply, Answer, {amphora_disco, Domain}}, #state{servers = Servers} = State) ->
    {Supports, Waiting, Learned} = mod_amphora_servers:answer(Domain, Answer, Servers),
    Told = lists:foldl(fun(Id, Acc) -> consulted(Id, Supports, Acc) end, State#state{servers = Learned}, Waiting),
    {noreply, pump(Told)};
handle_info(sweep, State) ->
    erlang:send_after(?SWEEP, self(), sweep),
    {noreply, pump(sweep(mod_amphora:now_ms(), State))};
handle_info(_Other, State) ->
    {noreply, State}.

terminate(_Reason, State) ->
    _ = give_back("The server stops", State#state{stopping = true}),
    ok.

option(Name, #state{host = Host}) -> mod_amphora:opt(Host, Name).

%%% ------------------------------------------------------------------ intake

take(Message, Session, #state{host = Host} = State) ->
    El = mod_amphora_xml:encode(Message),
    case mod_amphora_facts:too_large(El, option(max_stanza, State)) of
        true ->
            bounce(Message, xmpp:err_policy_violation(
                <<"The message is too large for its rules to be processed">>, <<"en">>)),
            State;
        false ->
            case without_node(State) of
                true ->
                    bounce(Message, unavailable()),
                    State;
                false ->
                    Held = new_held(Message, Session, mod_amphora_xml:bytes(El), State),
                    Key = mod_amphora:new_key(Host, edge),
                    admit(Held#held{key = Key, stamp = mod_amphora_xml:stamp(), el = El}, State)
            end
    end.

take_relayed(#message{from = From, to = #jid{lserver = Domain} = To} = Message, Silent, State) ->
    HasRules = mod_amphora_xml:has_rules(Message),
    Held = new_held(Message, undefined, mod_amphora_xml:bytes(xmpp:encode(Message)), State),
    Silenced = Held#held{silent = Silent},
    case ejabberd_router:is_my_route(Domain) of
        true ->
            ejabberd_router:route(Message),
            State;
        false when HasRules, State#state.stopping ->
            bounce(Silenced, unavailable()),
            State;
        false when HasRules ->
            admit(Silenced, State);
        false ->
            case maps:is_key(pair_of(From, To), State#state.pairs) of
                true -> follow(Message, undefined, Silent, State);
                false -> ejabberd_router:route(Message), State
            end
    end.

follow(Message, Session, Silent, State) ->
    Held = new_held(Message, Session, mod_amphora_xml:bytes(xmpp:encode(Message)), State),
    admit(Held#held{follows = true, silent = Silent}, State).

new_held(#message{from = From, to = #jid{lserver = Domain} = To} = Message, Session, Bytes, #state{next_id = Id}) ->
    #held{id = Id, pair = pair_of(From, To), sender = jid:encode(jid:remove_resource(jid:tolower(From))),
          domain = Domain, message = Message, state = Session, bytes = Bytes, since = mod_amphora:now_ms()}.

%% Holds it if there is room. What there is no room for is refused.
admit(#held{sender = Sender} = Held, State) ->
    case is_full(Sender, State) of
        true ->
            bounce(Held, xmpp:err_resource_constraint(<<"Too many messages wait to leave this server">>, <<"en">>)),
            State;
        false ->
            consult(Held#held.id, hold(Held, State))
    end.

is_full(Sender, #state{held = Held, bytes = Bytes, shares = Shares} = State) ->
    {Messages, Size} = maps:get(Sender, Shares, {0, 0}),
    MaxMessages = option(edge_messages, State),
    MaxBytes = option(edge_bytes, State),
    map_size(Held) >= MaxMessages orelse Bytes >= MaxBytes orelse
        Messages >= MaxMessages / ?SHARE orelse Size >= MaxBytes / ?SHARE.

hold(#held{id = Id, pair = Pair, sender = Sender, bytes = Size, key = Key} = Held,
     #state{held = All, pairs = Pairs, shares = Shares, keys = Keys} = State) ->
    ets:insert(State#state.active, {Pair}),
    State#state{
        held = All#{Id => Held},
        pairs = Pairs#{Pair => queue:in(Id, maps:get(Pair, Pairs, queue:new()))},
        keys = case Key of undefined -> Keys; _ -> Keys#{Key => Id} end,
        shares = maps:update_with(Sender, fun({N, B}) -> {N + 1, B + Size} end, {1, Size}, Shares),
        bytes = State#state.bytes + Size,
        next_id = Id + 1
    }.

%% Without a node for so long, or with the server about to end, nothing is held.
without_node(#state{stopping = true}) -> true;
without_node(#state{links = [], lost_at = Lost} = State) -> mod_amphora:now_ms() - Lost >= option(hold, State);
without_node(_State) -> false.

%%% ------------------------------------------------------------------ what the next server supports

%% Asks whether its next server supports rules.
consult(Id, #state{held = All, servers = Servers} = State) ->
    case All of
        #{Id := #held{follows = false, asking = false, verdict = undefined, domain = Domain} = Held} ->
            case mod_amphora_servers:support_amp(Domain, Id, Servers) of
                {unknown, Asked} ->
                    State#state{held = All#{Id := Held#held{asking = true}}, servers = Asked};
                {Supports, Known} ->
                    consulted(Id, Supports, State#state{servers = Known})
            end;
        _ ->
            State
    end.

%% It goes on to the node, or, if no node is to be asked, wherever the answer says.
consulted(Id, Supports, #state{held = All} = State) ->
    case All of
        #{Id := #held{verdict = undefined, key = undefined, pair = Pair} = Held} ->
            Verdict = case Supports of true -> deliver; false -> unavailable end,
            advance(Pair, State#state{held = All#{Id := Held#held{asking = false, verdict = Verdict}}});
        #{Id := #held{verdict = undefined} = Held} ->
            enqueue(Id, State#state{held = All#{Id := Held#held{asking = false, supports = Supports}}});
        _ ->
            State
    end.

%%% ------------------------------------------------------------------ sending

%% By the link of whom it is for; without any, all is enqueued when one is there.
enqueue(Id, #state{ready = Ready, held = All, host = Host, links = Links} = State) ->
    #{Id := #held{pair = {_, Bare}}} = All,
    case mod_amphora_link:of_user(mod_amphora:ctx(Host), Bare, Links) of
        none ->
            State;
        #link{id = {_, Component}} ->
            Line = maps:get(Component, Ready, queue:new()),
            State#state{ready = Ready#{Component => queue:in(Id, Line)}}
    end.

pump(#state{links = Links} = State) -> lists:foldl(fun pump_link/2, State, Links).

pump_link(#link{id = {_, Component}} = Link, #state{ready = Ready} = State) ->
    case outstanding(Component, State) < window(Link, State) andalso queue:out(maps:get(Component, Ready, queue:new())) of
        {{value, Id}, Rest} -> pump_link(Link, send(Id, Link, State#state{ready = Ready#{Component => Rest}}));
        _ -> State
    end.

outstanding(Component, #state{outstanding = Outstanding}) -> maps:get(Component, Outstanding, 0).

count(Change, {Component, _}, #state{outstanding = Outstanding} = State) ->
    State#state{outstanding = Outstanding#{Component => outstanding(Component, State) + Change}}.

window(#link{window = Window}, #state{host = Host}) ->
    max(1, Window div ?WINDOW div mod_amphora_link:peers(mod_amphora:ctx(Host))).

send(Id, #link{id = {_, Component}, gen = Gen} = Link, #state{held = All, host = Host} = State) ->
    case All of
        #{Id := #held{verdict = undefined, link = undefined, supports = Supports} = Held} when Supports =/= unknown ->
            mod_amphora_link:emit(Link, [intercept(Held)]),
            Sent = Held#held{link = {Component, Gen}, sent_at = mod_amphora:now_ms(), again = true},
            ?LOG_DEBUG("Amphora: ~ts asks ~ts about ~ts on its way out", [Host, Component, Held#held.key]),
            count(1, {Component, Gen}, State#state{held = All#{Id := Sent}});
        _ ->
            State
    end.

intercept(#held{key = Key, again = Again, pair = {_, Bare}, supports = Supports, stamp = Stamp, el = El}) ->
    mod_amphora_xml:el(<<"intercept">>,
        [{<<"key">>, Key}] ++ [{<<"again">>, <<"true">>} || Again] ++
        [{<<"stage">>, <<"rules">>}, {<<"leg">>, <<"sender">>}, {<<"to">>, Bare},
         {<<"next-supports-amp">>, atom_to_binary(Supports, utf8)}],
        [mod_amphora_xml:forwarded(Stamp, El)]).

%%% ------------------------------------------------------------------ verdicts

verdict(Component, Gen, Element, #state{keys = Keys, held = All} = State) ->
    Key = mod_amphora_xml:attr(<<"key">>, Element),
    Stage = mod_amphora_xml:attr(<<"stage">>, Element),
    Held = maps:get(maps:get(Key, Keys, none), All, none),
    case Held of
        #held{link = {Component, Gen}, verdict = undefined} when Stage =:= <<"rules">> ->
            decided(mod_amphora_xml:attr(<<"do">>, Element), Element, Held, answered(Held, State));
        _ ->
            ?LOG_DEBUG("Amphora: verdict for ~ts at ~ts counts no more", [Key, Stage]),
            State
    end.

answered(#held{link = undefined}, State) -> State;
answered(#held{link = Link}, State) -> count(-1, Link, State).

decided(<<"retry">>, _Element, #held{tries = Tries} = Held, State) ->
    Pause = min(?RETRY_FIRST bsl min(Tries, 20), ?RETRY_LAST),
    update(Held#held{link = undefined, tries = Tries + 1, resume_at = mod_amphora:now_ms() + Pause}, State);
decided(What, Element, #held{pair = Pair} = Held, State) when What =:= <<"deliver">>; What =:= <<"discarded">> ->
    Sends = mod_amphora_xml:children(<<"send">>, ?NS_INTERCEPT, Element),
    Verdict = case What of <<"deliver">> -> deliver; <<"discarded">> -> discarded end,
    Decided = Held#held{link = undefined, decided_on = Held#held.link, verdict = Verdict, sends = Sends},
    advance(Pair, update(Decided, State));
decided(What, _Element, Held, State) ->
    ?LOG_WARNING("Amphora: verdict ~ts for ~ts on its way out has no meaning, it is left out", [What, Held#held.key]),
    count(1, Held#held.link, State).

update(#held{id = Id} = Held, #state{held = All} = State) -> State#state{held = All#{Id := Held}}.

%% Carries out what can be carried out, in the pair's order.
advance(Pair, #state{pairs = Pairs, held = All, active = Active} = State) ->
    case Pairs of
        #{Pair := Line} ->
            case queue:out(Line) of
                {empty, _} ->
                    ets:delete(Active, Pair),
                    State#state{pairs = maps:remove(Pair, Pairs)};
                {{value, Id}, Rest} ->
                    case maps:get(Id, All, gone) of
                        #held{verdict = undefined, follows = false} ->
                            State;
                        gone ->
                            advance(Pair, State#state{pairs = Pairs#{Pair := Rest}});
                        Held ->
                            Left = leave(Held, State#state{pairs = Pairs#{Pair := Rest}}),
                            carry_out(Held, Left),
                            advance(Pair, Left)
                    end
            end;
        _ ->
            State
    end.

leave(#held{id = Id, key = Key, sender = Sender, bytes = Size} = Held,
      #state{held = All, keys = Keys, shares = Shares} = State) ->
    Answered = answered(Held, State),
    Answered#state{
        held = maps:remove(Id, All),
        keys = maps:remove(Key, Keys),
        shares = case maps:get(Sender, Shares) of
                     {1, _} -> maps:remove(Sender, Shares);
                     {N, B} -> Shares#{Sender := {N - 1, B - Size}}
                 end,
        bytes = State#state.bytes - Size
    }.

carry_out(#held{verdict = Verdict} = Held, #state{host = Host}) ->
    try
        case Verdict of
            unavailable -> bounce(Held, unavailable());
            discarded -> ok;
            _ -> go_on(Held)
        end,
        lists:foreach(fun(Send) -> route_send(Host, Held, Send) end, Held#held.sends)
    catch
        Class:Reason:Stack ->
            ?LOG_ERROR("Amphora: while a message for another server went on: ~p", [{Class, Reason, Stack}])
    end.

route_send(Host, Held, Send) ->
    case mod_amphora_xml:own_stanza(Host, Send) of
        {ok, Message} -> ejabberd_router:route(Message);
        {error, Why} -> ?LOG_WARNING("Amphora: verdict for ~ts: a send was left out: ~ts", [Held#held.key, Why])
    end.

%% Goes on as if the message had not been held. What comes before us in its hook looks at it once
%% more, as do privacy and block lists, with what holds by now.
go_on(#held{state = undefined, message = Message}) ->
    ejabberd_router:route(Message);
go_on(#held{state = #{lserver := Host} = Session, message = Message, key = Key}) ->
    Addressed = case Key of
                    undefined -> Message;
                    _ -> mod_amphora_xml:address_rules(Message)
                end,
    Passed = xmpp:put_meta(Addressed, amphora_edge, passed),
    case ejabberd_hooks:run_fold(user_send_packet, Host, {Passed, Session}, []) of
        {drop, _} ->
            ok;
        {Packet, _} ->
            case ejabberd_hooks:run_fold(privacy_check_packet, Host, allow, [Session, Packet, out]) of
                deny ->
                    bounce(Packet, denied(Session));
                allow ->
                    ejabberd_router:route(xmpp:del_meta(Packet, amphora_edge))
            end
    end.

unavailable() -> xmpp:err_service_unavailable().

%% Of what this host sends on, its rules say who sent it first, and to whom (section 4.1 of
%% XEP-0079): the error is his, and tells nothing of where it was sent on to.
bounce(#held{silent = true}, _Error) ->
    ok;
bounce(#held{state = undefined, message = Message}, Error) ->
    bounce(as_written(Message), Error);
bounce(#held{message = Message}, Error) ->
    bounce(Message, Error);
bounce(#message{} = Message, Error) ->
    mod_amphora_xml:bounce(Message, Error).

as_written(#message{sub_els = Els} = Message) ->
    try
        [Amp | _] = [El || #xmlel{name = <<"amp">>} = El <- Els, mod_amphora_xml:attr(<<"xmlns">>, El) =:= ?NS_AMP_URI],
        Message#message{from = jid:decode(mod_amphora_xml:attr(<<"from">>, Amp)),
                        to = jid:decode(mod_amphora_xml:attr(<<"to">>, Amp))}
    catch
        _:_ -> Message
    end.

%%% ------------------------------------------------------------------ links and time

%% What was sent on a link that is no more counts as not sent, and what was decided there as undecided.
links(Links, #state{held = All, links = Before} = State) ->
    Live = [{Component, Gen} || #link{id = {_, Component}, gen = Gen} <- Links],
    Lost = [Held || Held <- maps:values(All), is_lost(Held#held.link, Live) orelse is_lost(Held#held.decided_on, Live)],
    Freed = lists:foldl(fun(Held, Acc) ->
                            Undecided = Held#held{link = undefined, decided_on = undefined, verdict = undefined,
                                                  sends = []},
                            update(Undecided, answered(Held, Acc))
                        end, State, Lost),
    LostAt = case {Links, Before} of
                 {[], [_ | _]} -> mod_amphora:now_ms();
                 _ -> State#state.lost_at
             end,
    Fresh = begin_anew(Freed#state{links = Links, lost_at = LostAt}),
    case Links of
        [] -> Fresh;
        _ -> lists:foldl(fun(#held{id = Id}, Acc) -> consult(Id, Acc) end, Fresh, in_order(unasked(Fresh)))
    end.

%% All that is not under way is asked for again, in the order in which it came: a pause was for a link that is
%% no more.
begin_anew(#state{held = All} = State) ->
    Anew = fun(_, #held{link = undefined, verdict = undefined} = Held) ->
                  Held#held{supports = unknown, resume_at = undefined, tries = 0};
              (_, Held) -> Held
           end,
    State#state{held = maps:map(Anew, All), ready = #{}}.

is_lost(Link, Live) -> Link =/= undefined andalso not lists:member(Link, Live).

%% Those that go to a node when it is known again what their server supports.
unasked(#state{held = All}) ->
    [Held || #held{key = Key, link = undefined, verdict = undefined, supports = unknown, resume_at = undefined} = Held
                 <- maps:values(All), Key =/= undefined].

in_order(Held) -> lists:keysort(#held.id, Held).

%% No node will look at what is held. In each pair's order it goes back to its sender, and what
%% waited behind it goes on.
give_back(Why, #state{held = All, stopping = Stopping} = State) ->
    Back = [Held || #held{follows = false} = Held <- maps:values(All), Stopping orelse Held#held.key =/= undefined],
    case Back of
        [] -> ok;
        _ -> ?LOG_INFO("Amphora: ~ts: ~b messages with rules for other servers go back to their senders",
                       [Why, length(Back)])
    end,
    Given = lists:foldl(fun(Held, Acc) ->
                            update(Held#held{verdict = unavailable, sends = []}, Acc)
                        end, State, Back),
    lists:foldl(fun advance/2, Given, maps:keys(Given#state.pairs)).

sweep(Now, State) ->
    Resend = option(resend, State),
    Hold = option(hold, State),
    Swept = lists:foldl(
        fun(#held{resume_at = At} = Held, Acc) when is_integer(At), Now >= At ->
                consult(Held#held.id, update(Held#held{resume_at = undefined, supports = unknown}, Acc));
           (#held{link = Link, sent_at = At} = Held, Acc) when Link =/= undefined, Now - At >= Resend ->
                enqueue(Held#held.id, update(Held#held{link = undefined}, answered(Held, Acc)));
           (#held{follows = true, since = At} = Held, Acc) when Now - At >= Hold ->
                pass_by(Held, Acc);
           (_Held, Acc) ->
                Acc
        end, State, in_order(maps:values(State#state.held))),
    case without_node(Swept) of
        true -> give_back("No node", Swept);
        false -> Swept
    end.

%% What waited for order long enough goes on.
pass_by(#held{id = Id, pair = Pair} = Held, #state{held = All} = State) ->
    case All of
        #{Id := _} ->
            Left = leave(Held, State),
            carry_out(Held, Left),
            advance(Pair, Left);
        _ ->
            State
    end.
