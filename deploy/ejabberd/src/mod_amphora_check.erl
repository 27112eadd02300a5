%%% Settings of ejabberd that the interceptor needs otherwise than they are by default: each that is
%%% wrong is warned about by name, with the remedy.
-module(mod_amphora_check).

-export([options/2, settings/1, stanza_limit/1]).

-include("logger.hrl").
-include("mod_amphora.hrl").

%% Of a listener for components: what a full window of intercepts may leave in its queue, many times over.
-define(SERVICE_QUEUE, 100000).
%% Of a listener for clients.
-define(C2S_QUEUE, 5000).

%% What makes a start impossible.
options(Host, Opts) ->
    case gen_mod:get_opt(components, Opts) of
        [] ->
            {error,
                <<"mod_amphora: 'components' of ", Host/binary,
                    " must name a component at least, as in components: [amp.", Host/binary, "]">>};
        Components ->
            case [C || C <- Components, lists:member(C, ejabberd_option:hosts())] of
                [] ->
                    ok;
                [C | _] ->
                    {error,
                        <<"mod_amphora: 'components' names ", C/binary,
                            ", which is a virtual host; it must be a domain of its own">>}
            end
    end.

settings(Host) ->
    lists:foreach(fun(Text) -> ?WARNING_MSG("mod_amphora of ~ts: ~ts", [Host, Text]) end, warnings(Host)).

warnings(Host) ->
    Components = map_get(components, mod_amphora:ctx(Host)),
    Listeners = ejabberd_option:listen(),
    Services = [{Id, Opts} || {Id, ejabberd_service, Opts} <- listeners(Listeners)],
    Clients = [{Id, Opts} || {Id, Module, Opts} <- listeners(Listeners), is_c2s(Module)],
    lists:append([
        lists:append([service(Id, Opts, Components) || {Id, Opts} <- Services]),
        [nobody_listens(C) || C <- Components, not lists:any(fun({_, O}) -> takes(C, O) end, Services)],
        [client_queue(Id, Opts) || {Id, Opts} <- Clients, queue(Opts) < ?C2S_QUEUE],
        stream_management(Host)
    ]).

%% What the listeners of these components take in a stanza: bytes, or infinity.
-spec stanza_limit([binary()]) -> pos_integer() | infinity.
stanza_limit(Components) ->
    Services = [Opts || {_, ejabberd_service, Opts} <- listeners(ejabberd_option:listen())],
    Limits = [
        proplists:get_value(max_stanza_size, Opts, infinity)
     || Opts <- Services, lists:any(fun(C) -> takes(C, Opts) end, Components)
    ],
    lists:min([infinity | Limits]).

listeners(Listeners) -> [{Id, map_get_module(Opts), Opts} || {Id, _Module, Opts} <- [listener(L) || L <- Listeners]].

listener({Id, Module, Opts}) -> {Id, Module, [{module, Module} | to_list(Opts)]}.

to_list(Opts) when is_map(Opts) -> maps:to_list(Opts);
to_list(Opts) -> Opts.

map_get_module(Opts) -> proplists:get_value(module, Opts).

is_c2s(ejabberd_c2s) -> true;
is_c2s(ejabberd_http) -> false;
is_c2s(_) -> false.

queue(Opts) -> proplists:get_value(max_fsm_queue, Opts, 10000).

hosts(Opts) -> [H || {H, _} <- to_list(proplists:get_value(hosts, Opts, []))].

%% Without `hosts`, it takes any domain.
takes(Component, Opts) ->
    case hosts(Opts) of
        [] -> true;
        Hosts -> lists:member(Component, Hosts)
    end.

service(Id, Opts, Components) ->
    case lists:any(fun(C) -> takes(C, Opts) end, Components) of
        false ->
            [];
        true ->
            lists:append([
                [
                    text(
                        "max_fsm_queue of the ejabberd_service listener at ~ts is ~ts. A node that is slow for a "
                        "moment is cut off by that. Remedy: max_fsm_queue: ~b",
                        [where(Id), print(queue(Opts)), ?SERVICE_QUEUE]
                    )
                 || queue(Opts) < ?SERVICE_QUEUE
                ],
                [
                    text(
                        "the ejabberd_service listener at ~ts has several hosts and global_routes: true: stanzas "
                        "for one component arrive at another. Remedy: global_routes: false",
                        [where(Id)]
                    )
                 || length(hosts(Opts)) > 1, proplists:get_value(global_routes, Opts, true)
                ]
            ])
    end.

nobody_listens(Component) ->
    text(
        "no ejabberd_service listener takes ~ts: no node can connect as it. Remedy: name it in 'hosts' of one",
        [Component]
    ).

client_queue(Id, Opts) ->
    text(
        "max_fsm_queue of the ejabberd_c2s listener at ~ts is ~ts. A client that is slow for a moment is cut off "
        "by that. Remedy: max_fsm_queue: ~b or more",
        [where(Id), print(queue(Opts)), ?C2S_QUEUE]
    ).

stream_management(Host) ->
    case gen_mod:is_loaded(Host, mod_stream_mgmt) of
        false ->
            [
                text(
                    "mod_stream_mgmt is not loaded: what a client did not get counts as delivered. "
                    "Remedy: mod_stream_mgmt: {resend_on_timeout: if_offline}",
                    []
                )
            ];
        true ->
            Window = mod_amphora:opt(Host, session_window),
            [
                text(
                    "resend_on_timeout of mod_stream_mgmt is false: headlines and messages of rooms that a client did "
                    "not acknowledge come back to their senders as errors. Remedy: resend_on_timeout: if_offline",
                    []
                )
             || gen_mod:get_module_opt(Host, mod_stream_mgmt, resend_on_timeout) == false
            ] ++
                [
                    text(
                        "max_ack_queue of mod_stream_mgmt is ~ts, and ~b messages may be on their way to a client. "
                        "Remedy: max_ack_queue: ~b or more",
                        [print(Max), Window, 2 * Window]
                    )
                 || Max <- [gen_mod:get_module_opt(Host, mod_stream_mgmt, max_ack_queue)], Max < 2 * Window
                ]
    end.

where({Port, IP, _Transport}) when is_integer(Port), is_tuple(IP) ->
    [misc:ip_to_list(IP), $:, integer_to_list(Port)];
where(Id) ->
    print(Id).

print(Term) -> io_lib:format("~p", [Term]).

text(Format, Args) -> iolist_to_binary(io_lib:format(Format, Args)).
