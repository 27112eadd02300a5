%%% Which other servers support rules: asked by service discovery (XEP-0030), and remembered
%%% (XEP-0079, sections 2.1.1 and 2.2.4). A part of the process of mod_amphora_edge.
-module(mod_amphora_servers).

-export([new/1, support_amp/3, answer/3]).

-export_type([servers/0]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_amphora.hrl").

%% Remembered at most. One that was not asked about for long is forgotten, and asked again.
-define(DOMAINS, 1024).
%% Under way at once; further domains wait for their turn.
-define(QUERIES, 128).

-record(servers, {
    host :: binary(),
    known = #{} :: #{binary() => {Supports :: boolean(), Ends :: integer(), Used :: integer()}},
    asking = #{} :: #{binary() => [term()]}, % who waits for the answer, newest first
    turn = queue:new() :: queue:queue(binary()), % domains that are not asked yet
    under_way = 0 :: non_neg_integer()
}).

-opaque servers() :: #servers{}.

-spec new(binary()) -> servers().
new(Host) -> #servers{host = Host}.

%% Does the server of that domain support rules? If that is not known, the domain is asked, once
%% whoever waits, and answer/3 names `Who` then.
-spec support_amp(binary(), term(), servers()) -> {boolean() | unknown, servers()}.
support_amp(Domain, Who, #servers{known = Known, asking = Asking} = Servers) ->
    Now = mod_amphora:now_ms(),
    case Known of
        #{Domain := {Supports, Ends, _}} when Now < Ends ->
            {Supports, Servers#servers{known = Known#{Domain := {Supports, Ends, Now}}}};
        _ ->
            case Asking of
                #{Domain := Waiting} ->
                    {unknown, Servers#servers{asking = Asking#{Domain := [Who | Waiting]}}};
                _ ->
                    {unknown, start_or_wait(Domain, Servers#servers{asking = Asking#{Domain => [Who]}})}
            end
    end.

start_or_wait(Domain, #servers{under_way = N, turn = Turn} = Servers) when N >= ?QUERIES ->
    Servers#servers{turn = queue:in(Domain, Turn)};
start_or_wait(Domain, #servers{host = Host, under_way = N} = Servers) ->
    Query = #iq{type = get, from = jid:make(Host), to = jid:make(Domain), sub_els = [#disco_info{}]},
    ejabberd_router:route_iq(Query, {amphora_disco, Domain}, self(), mod_amphora:opt(Host, disco_timeout)),
    Servers#servers{under_way = N + 1}.

%% The answer to a query: who waited for it, in order, and what it says. An error, silence, or an
%% answer of somebody else is a no, and asked again soon, whatever the reason: the server's node may
%% only be away for a moment.
-spec answer(binary(), #iq{} | timeout, servers()) -> {boolean(), [term()], servers()}.
answer(Domain, Answer, #servers{host = Host, known = Known, asking = Asking, under_way = N} = Servers) ->
    Supports = lists_amp(Domain, Answer),
    ?LOG_DEBUG("Amphora: ~ts ~ts rules", [Domain, case Supports of true -> supports; false -> "does not support" end]),
    Lasts = mod_amphora:opt(Host, case Supports of true -> disco_cache; false -> disco_retry end),
    Now = mod_amphora:now_ms(),
    {Waiting, Others} = case maps:take(Domain, Asking) of
                            {Who, Rest} -> {lists:reverse(Who), Rest};
                            error -> {[], Asking}
                        end,
    Learned = Servers#servers{known = remember(Domain, {Supports, Now + Lasts, Now}, Known), asking = Others,
                              under_way = N - 1},
    {Supports, Waiting, start_next(Learned)}.

start_next(#servers{turn = Turn} = Servers) ->
    case queue:out(Turn) of
        {{value, Domain}, Rest} -> start_or_wait(Domain, Servers#servers{turn = Rest});
        {empty, _} -> Servers
    end.

remember(Domain, What, Known) when map_size(Known) < ?DOMAINS; is_map_key(Domain, Known) ->
    Known#{Domain => What};
remember(Domain, What, Known) ->
    {_, Oldest} = lists:min([{Used, Other} || {Other, {_, _, Used}} <- maps:to_list(Known)]),
    (maps:remove(Oldest, Known))#{Domain => What}.

lists_amp(Domain, #iq{type = result, from = #jid{lserver = Domain}, sub_els = Els}) ->
    lists:any(fun(El) -> is_info(El) andalso has_feature(xmpp:encode(El)) end, Els);
lists_amp(_Domain, _Answer) ->
    false.

is_info(El) -> xmpp:get_ns(El) =:= ?NS_DISCO_INFO.

has_feature(#xmlel{children = Children}) ->
    lists:any(fun(#xmlel{name = <<"feature">>} = El) -> fxml:get_tag_attr_s(<<"var">>, El) =:= ?NS_AMP_URI;
                 (_) -> false
              end, Children).
