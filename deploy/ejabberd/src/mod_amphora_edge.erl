%%% The sender's edge: messages with rules that are about to leave for another server.
%%%
%%% One process per virtual host. Its keys come from mod_amphora:new_key(Host, edge); what a node says
%%% about them arrives at it as a message
%%%   {amphora_verdict, Component, Gen, #xmlel{}}   one <verdict/>
%%% To send, mod_amphora_link:emit(Link, #xmlel{}). It is told of links as workers are:
%%%   {amphora_links, [#link{}]}                    those that are there now
-module(mod_amphora_edge).

-export([start_link/1, hooks/1, stop_all/1]).

%% Registered as mod_amphora:edge(Host).
-spec start_link(binary()) -> {ok, pid()} | ignore | {error, term()}.
start_link(_Host) -> ignore.

%% Hooks of the host: {Hook, Module, Function, Sequence}.
-spec hooks(binary()) -> [{atom(), module(), atom(), integer()}].
hooks(_Host) -> [].

%% The server stops or the module is unloaded: what waits goes back to its senders.
-spec stop_all(binary()) -> ok.
stop_all(_Host) -> ok.
