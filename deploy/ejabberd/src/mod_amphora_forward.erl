%%% What is sent on to other addresses and gateways.
-module(mod_amphora_forward).

-export([start/1, greeted/2, target/3, redirect/3, any/1]).

-include("fxml.hrl").
-include("mod_amphora.hrl").

%% Restores the entries. Called once, before any worker starts.
-spec start(binary()) -> ok.
start(_Host) -> ok.

%% Takes the entries out of a greeting, in place of those before.
-spec greeted(binary(), #xmlel{}) -> ok.
greeted(_Host, _Greeting) -> ok.

%% Is anything sent on at all? Asked for every message: a look into a table.
-spec any(binary()) -> boolean().
any(_Host) -> false.

%% Where the server would send a message with rules on: the attribute of its intercept.
-spec target(binary(), binary(), tuple()) -> none | {binary(), binary()}.
target(_Host, _Bare, _Message) -> none.

%% Sends a message on, if it is to be: true. Called in place of its delivery, behind the block list.
-spec redirect(binary(), binary(), tuple()) -> boolean().
redirect(_Host, _Bare, _Message) -> false.
