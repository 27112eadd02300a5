%%% The spool: what the interceptor keeps when no node can take it. Durable and bounded.
%%%
%%% One process per virtual host, under the host's supervisor. What it says about users is read from
%%% a table, without a call. A record is a map:
%%%   key, stage (rules, offline or undelivered), ord (its place in the order of arrival, a number),
%%%   stamp, archived (boolean), from, addressed (JIDs as text), el (the message, #xmlel{})
%%% A handle is the spool's own term for a record that is there.
-module(mod_amphora_spool).

-export([
    start_link/1,
    pending/2, pending/3,
    append/3,
    load/2,
    release/3,
    replace/4,
    delete/3,
    delete_user/2,
    keys/2,
    users/1,
    max_ord/1,
    status/1,
    add_removal/3,
    remove_removal/2,
    removals/1
]).

-include("mod_amphora.hrl").

-type handle() :: term().
-type spooled() :: map().
-export_type([handle/0, spooled/0]).

%% Opens the files and reads them once. {error, Reason} ends the start of the module.
-spec start_link(binary()) -> {ok, pid()} | ignore | {error, term()}.
start_link(_Host) -> ignore.

%% Is anything there for the user that is not loaded (or was released)?
-spec pending(binary(), binary()) -> boolean().
pending(_Host, _Bare) -> false.

%% The same, and it comes before `Ord`.
-spec pending(binary(), binary(), number()) -> boolean().
pending(_Host, _Bare, _Ord) -> false.

%% Durable when it returns. A record appended is loaded (its holder has it) until it is released.
-spec append(binary(), binary(), spooled()) -> {ok, handle()} | {error, term()}.
append(_Host, _Bare, _Record) -> {error, no_spool}.

%% The user's next record, by ord.
-spec load(binary(), binary()) -> {spooled(), handle()} | none.
load(_Host, _Bare) -> none.

%% Its holder has it no more: it is loaded again in its turn.
-spec release(binary(), binary(), handle()) -> ok.
release(_Host, _Bare, _Handle) -> ok.

%% It is at another stage now. The handle stays.
-spec replace(binary(), binary(), handle(), spooled()) -> ok.
replace(_Host, _Bare, _Handle, _Record) -> ok.

-spec delete(binary(), binary(), handle()) -> ok.
delete(_Host, _Bare, _Handle) -> ok.

%% All of a user's; how many.
-spec delete_user(binary(), binary()) -> non_neg_integer().
delete_user(_Host, _Bare) -> 0.

-spec keys(binary(), binary()) -> #{binary() => true}.
keys(_Host, _Bare) -> #{}.

%% Those with something pending.
-spec users(binary()) -> [binary()].
users(_Host) -> [].

%% The highest ord that was ever there.
-spec max_ord(binary()) -> number().
max_ord(_Host) -> 0.

%% size: bytes; limit: of them; live: messages; failing: the last write failed
-spec status(binary()) -> #{size := integer(), limit := integer(), live := integer(), failing := boolean()}.
status(_Host) -> #{size => 0, limit => 0, live => 0, failing => true}.

-spec add_removal(binary(), binary(), binary()) -> ok.
add_removal(_Host, _Bare, _Stamp) -> ok.

-spec remove_removal(binary(), binary()) -> ok.
remove_removal(_Host, _Bare) -> ok.

%% Bare JID and time of the removal of accounts that no node has confirmed.
-spec removals(binary()) -> [{binary(), binary()}].
removals(_Host) -> [].
