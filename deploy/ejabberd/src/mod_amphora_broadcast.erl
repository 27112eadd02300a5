%%% Messages to many: settled sends and their outcomes, accounts, commands of administrators.
-module(mod_amphora_broadcast).

-export([start_link/1, hooks/1, start/1, stop/1, send/4, accounts/3, answer/2]).
-export([is_key/1, settled/3, dropped/2, links/2]).

-include("fxml.hrl").
-include("mod_amphora.hrl").

-spec start_link(binary()) -> {ok, pid()} | ignore | {error, term()}.
start_link(_Host) -> ignore.

-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) -> [].

-spec start(binary()) -> ok.
start(_Host) -> ok.

-spec stop(binary()) -> ok.
stop(_Host) -> ok.

%% A <send settle='true'/>: `IQ` (an #iq{}) is answered by and by. The message goes to
%% mod_amphora_queue:hold_own/5, which tells of its end by settled/3 or dropped/2.
-spec send(binary(), tuple(), #xmlel{}, #link{}) -> ok.
send(_Host, _IQ, _Element, _Link) -> ok.

%% An <accounts/>.
-spec accounts(binary(), tuple(), #xmlel{}) -> ok.
accounts(_Host, _IQ, _Element) -> ok.

%% A result or an error of a node. True if it was for a request.
-spec answer(binary(), tuple()) -> boolean().
answer(_Host, _IQ) -> false.

%% Is that the key of a settled send?
-spec is_key(binary()) -> boolean().
is_key(<<"send-", _/binary>>) -> true;
is_key(_) -> false.

%% It is resolved: delivered, stored, discarded.
-spec settled(binary(), binary(), binary()) -> ok.
settled(_Host, _Key, _Outcome) -> ok.

%% It is held no more, and nothing became of it: whoever asked may ask again.
-spec dropped(binary(), binary()) -> ok.
dropped(_Host, _Key) -> ok.

-spec links(binary(), [#link{}]) -> ok.
links(_Host, _Links) -> ok.
