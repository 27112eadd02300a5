%%% What users ask about their stored messages (XEP-0013).
%%%
%%% It may be a process per virtual host (start_link/1; `ignore` if it needs none). Names of its
%%% requests come from mod_amphora:new_key(Host, retrieve), with "r" before the number; elements of a
%%% node under such a name come here. What a session is to be shown is written by
%%% mod_amphora_gate:write(SessionPid, [Entry]); that it fetches for itself is said by
%%% mod_amphora_gate:fetches(SessionPid). mod_amphora_queue:when_settled(Host, Bare, Ref) sends
%%% {amphora_settled, Ref} when all is decided that was undecided then, on every node of the cluster.
-module(mod_amphora_retrieve).

-export([start_link/1, hooks/1, start/1, stop/1, answer/2, hand_over/2, deleted/2, links/2]).

-include("fxml.hrl").
-include("mod_amphora.hrl").

-spec start_link(binary()) -> {ok, pid()} | ignore | {error, term()}.
start_link(_Host) -> ignore.

-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) -> [].

%% IQ handlers, over mod_offline's; again after each reload of the configuration.
-spec start(binary()) -> ok.
start(_Host) -> ok.

-spec stop(binary()) -> ok.
stop(_Host) -> ok.

%% A result or an error (an #iq{}) of a node. True if it was for a request.
-spec answer(binary(), tuple()) -> boolean().
answer(_Host, _IQ) -> false.

%% A <hand-over view='true'/>.
-spec hand_over(binary(), #xmlel{}) -> ok.
hand_over(_Host, _Element) -> ok.

%% A <deleted/>. True if it was for a request.
-spec deleted(binary(), #xmlel{}) -> boolean().
deleted(_Host, _Element) -> false.

%% The links that are there now.
-spec links(binary(), [#link{}]) -> ok.
links(_Host, _Links) -> ok.
