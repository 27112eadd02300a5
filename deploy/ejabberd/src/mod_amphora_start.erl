%%% What is done once when the host's processes start, between the spool and the workers.
-module(mod_amphora_start).

-export([start_link/1]).

start_link(Host) ->
    Ctx = mod_amphora:ctx(Host),
    mod_amphora_import:run(Host),
    mod_amphora_forward:start(Host),
    atomics:put(map_get(counters, Ctx), 2, (trunc(mod_amphora_spool:max_ord(Host)) bsr 32) + 1),
    ignore.
