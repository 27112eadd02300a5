%%% The processes of the interceptor for one virtual host, and the tables that they share. The tables
%%% belong to the supervisor, so what is held outlives a worker that fails.
-module(mod_amphora_sup).

-behaviour(supervisor).

-export([start_host/2, stop_host/1, set_options/2, worker_name/2, start_link/2, init/1]).

-include("mod_amphora.hrl").

%% In milliseconds once they are read.
-define(TIMES, [
    resend, hold, memory_of_keys, repeat, gate_limit, retrieve_timeout, disco_cache, disco_retry,
    disco_timeout
]).

start_host(Host, Opts) ->
    Spec = #{
        id => name(Host),
        start => {?MODULE, start_link, [Host, Opts]},
        restart => transient,
        shutdown => infinity,
        type => supervisor
    },
    supervisor:start_child(ejabberd_gen_mod_sup, Spec).

stop_host(Host) ->
    _ = supervisor:terminate_child(ejabberd_gen_mod_sup, name(Host)),
    _ = supervisor:delete_child(ejabberd_gen_mod_sup, name(Host)),
    persistent_term:erase({mod_amphora, Host}),
    ok.

start_link(Host, Opts) ->
    case mod_amphora_check:options(Host, Opts) of
        ok -> supervisor:start_link({local, name(Host)}, ?MODULE, [Host, Opts]);
        {error, _} = Error -> Error
    end.

init([Host, Opts]) ->
    Ctx = make_ctx(Host, Opts),
    persistent_term:put({mod_amphora, Host}, Ctx),
    Children =
        [child(mod_amphora_spool, [Host])] ++
            [child(mod_amphora_start, [Host])] ++
            [child(mod_amphora_broadcast, [Host])] ++
            [child(mod_amphora_retrieve, [Host])] ++
            [
                (child(mod_amphora_queue, [Host, Index]))#{id => {mod_amphora_queue, Index}}
             || Index <- lists:seq(0, tuple_size(map_get(workers, Ctx)) - 1)
            ] ++
            [child(mod_amphora_edge, [Host]), child(mod_amphora_link, [Host])],
    {ok, {#{strategy => one_for_one, intensity => 10, period => 60}, Children}}.

child(Module, Args) ->
    #{id => Module, start => {Module, start_link, Args}, shutdown => 30000}.

%% What every process of the host knows:
%%   host, components, opts        options, times in milliseconds
%%   token                         12 letters, of this start
%%   workers                       their registered names
%%   counters                      1 keys, 2 order of arrival, 3 messages held, 4 their bytes, 9 users of whom
%%                                 a session is ending
%%   held                          key -> {Key, #xmlel{}}, the messages that are held
%%   pairs                         {bare, sender} -> true, while something of the pair is undecided; and
%%                                 {bare, ending} while a session of that user is ending
%%   links                         #link{}
%%   sessions                      {name, pid} of the sessions on this node
%%   seats                         {pid, name, gate} of the same
%%   foreign                       key -> worker, of keys that do not say whose they are
%%   copies                        see mod_amphora_gate
make_ctx(Host, Opts) ->
    Counters = atomics:new(9, [{signed, true}]),
    Table = fun(Options) -> ets:new(mod_amphora, [public, {write_concurrency, true} | Options]) end,
    Base = #{
        host => Host,
        components => gen_mod:get_opt(components, Opts),
        opts => options(Opts),
        token => binary:part(binary:encode_hex(crypto:strong_rand_bytes(6)), 0, 12),
        counters => Counters,
        held => Table([{read_concurrency, true}]),
        pairs => Table([{read_concurrency, true}]),
        links => Table([{keypos, #link.id}, {read_concurrency, true}]),
        sessions => Table([]),
        seats => Table([{read_concurrency, true}]),
        foreign => Table([]),
        copies => Table([])
    },
    Number = min(gen_mod:get_opt(workers, Opts), gen_mod:get_opt(window, Opts)),
    Names = [worker_name(Host, Index) || Index <- lists:seq(0, Number - 1)],
    Base#{workers => list_to_tuple(Names)}.

%% After a reload. Components and the number of workers stay as they were until the module is started again.
set_options(Host, Opts) ->
    Ctx = mod_amphora:ctx(Host),
    persistent_term:put({mod_amphora, Host}, Ctx#{
        opts => options(Opts)
    }),
    mod_amphora_queue:options(Host).

options(Opts) ->
    Values = [{Name, value(Name, gen_mod:get_opt(Name, Opts))} || {Name, _} <- mod_amphora:mod_options(<<>>)],
    #{max_stanza := Mine, components := Components} = Map = maps:from_list(Values),
    Map#{max_stanza := min(Mine, mod_amphora_check:stanza_limit(Components))}.

value(Name, Value) ->
    case lists:member(Name, ?TIMES) of
        true -> round(Value * 1000);
        false -> Value
    end.

name(Host) -> gen_mod:get_module_proc(Host, ?MODULE).

worker_name(Host, Index) ->
    gen_mod:get_module_proc(Host, list_to_atom("mod_amphora_queue_" ++ integer_to_list(Index))).
