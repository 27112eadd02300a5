%%% The spool: what the interceptor keeps on disk, so that it outlives the server. Bounded.
%%%
%%% One process per virtual host, under the host's supervisor. What it says about users is read from
%%% tables, without a call. A record is a map:
%%%   key, stage (rules, turn, offline or undelivered), ord (its place in the order of arrival, a number),
%%%   stamp, archived (boolean), from, addressed (JIDs as text), el (the message, #xmlel{})
%%% A handle names one writing of a record's key: what is said of it does not count for a later one.
%%%
%%% What several processes append at a time is one write, so that it can serve as the journal of
%%% all that is held. append/3 returns when the operating system has it: it survives the end of
%%% ejabberd, however it ends, not a power cut in the seconds after. That a record is settled is
%%% written when there is nothing else to do, within a moment.

-module(mod_amphora_spool).

-behaviour(gen_server).

-export([
    start_link/1,
    folder/1,
    pending/2, pending/3,
    append/3,
    load/2,
    release/3,
    replace/4,
    delete/3,
    delete_user/2,
    keys/2, known/2,
    users/1,
    max_ord/1,
    status/1,
    sync/1,
    add_removal/3,
    remove_removal/2,
    removals/1
]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-include("fxml.hrl").
-include("mod_amphora.hrl").

-define(STORE, mod_amphora_spool_file).
-define(BATCH, 256). % records in one write at most
-define(TIDY, 1000). % milliseconds between two looks at what can be given back
-define(MESSAGES, 2000000). % records at most: each takes some 250 bytes of memory
-define(TIMEOUT, 60000). % milliseconds: a disk may be slow

-type handle() :: ?STORE:handle().
-type spooled() :: map().
-export_type([handle/0, spooled/0]).

-record(state, {
    host :: binary(),
    spool :: ?STORE:spool(),
    appending = [] :: [{{pid(), term()}, ?STORE:entry()}] % newest first, and who waits for it
}).

%% ------------------------------------------------------------------------------ interface

%% Opens the files and reads them once. {error, Reason} ends the start of the module.
-spec start_link(binary()) -> {ok, pid()} | {error, term()}.
start_link(Host) ->
    gen_server:start_link({local, name(Host)}, ?MODULE, Host, []).

%% Where the files of a host are.
-spec folder(binary()) -> file:filename_all().
folder(Host) -> filename:join([mnesia:system_info(directory), "amphora", Host]).

name(Host) -> gen_mod:get_module_proc(Host, ?MODULE).

%% {tables, counters of bytes, messages and failures, limit of bytes}
shared(Host) -> persistent_term:get({?MODULE, Host}).

tables(Host) -> element(1, shared(Host)).

call(Host, Request) -> gen_server:call(name(Host), Request, ?TIMEOUT).

%% Is anything there for the user that is not loaded (or was released)?
-spec pending(binary(), binary()) -> boolean().
pending(Host, Bare) ->
    ?STORE:next_pending(Bare, tables(Host)) =/= none.

%% The same, and it comes before `Ord`.
-spec pending(binary(), binary(), number()) -> boolean().
pending(Host, Bare, Ord) ->
    case ?STORE:next_pending(Bare, tables(Host)) of
        {_, First, _} -> First < Ord;
        none -> false
    end.

%% Durable when it returns. A record appended is loaded (its holder has it) until it is released.
%% Whether there is room is for the caller to ask: status/1.
-spec append(binary(), binary(), spooled()) -> {ok, handle()} | {error, term()}.
append(Host, Bare, #{key := Key} = Record) ->
    Gen = erlang:unique_integer([positive]),
    case call(Host, {append, entry(Bare, Gen, Record)}) of
        ok -> {ok, {Key, Gen}};
        {error, _} = Error -> Error
    end.

entry(Bare, Gen, #{el := El} = Record) ->
    Entry = maps:with([key, stage, ord, stamp, archived, from, addressed], Record),
    Entry#{bare => Bare, gen => Gen, xml => fxml:element_to_binary(El)}.

%% The user's next record, by ord.
-spec load(binary(), binary()) -> {spooled(), handle()} | none.
load(Host, Bare) ->
    case pending(Host, Bare) andalso call(Host, {load, Bare}) of
        {ok, #{key := Key, gen := Gen, xml := Xml} = Entry} ->
            case fxml_stream:parse_element(Xml) of
                #xmlel{} = El ->
                    {(maps:without([bare, gen, xml], Entry))#{el => El}, {Key, Gen}};
                {error, Reason} ->
                    logger:error("Amphora: message ~ts for ~ts can't be read, it is left out: ~p", [Key, Bare, Reason]),
                    delete(Host, Bare, {Key, Gen}),
                    load(Host, Bare)
            end;
        _ ->
            none
    end.

%% Its holder has it no more: it is loaded again in its turn. `gone` if it is not there.
-spec release(binary(), binary(), handle()) -> ok | gone.
release(Host, _Bare, Handle) ->
    call(Host, {release, Handle}).

%% It is at another stage now. The handle stays. If that can't be written, it is asked about once
%% more after a restart.
-spec replace(binary(), binary(), handle(), spooled()) -> ok.
replace(Host, Bare, {_, Gen}, Record) ->
    _ = call(Host, {append, entry(Bare, Gen, Record)}),
    ok.

-spec delete(binary(), binary(), handle()) -> ok.
delete(Host, _Bare, Handle) ->
    gen_server:cast(name(Host), {delete, Handle}).

%% All of a user's; how many.
-spec delete_user(binary(), binary()) -> non_neg_integer().
delete_user(Host, Bare) ->
    call(Host, {delete_user, Bare}).

-spec keys(binary(), binary()) -> #{binary() => true}.
keys(Host, Bare) ->
    maps:from_list([{Key, true} || Key <- ?STORE:keys(Bare, tables(Host))]).

%% Is a record of that key there, loaded or not?
-spec known(binary(), binary()) -> boolean().
known(Host, Key) ->
    ?STORE:known(Key, tables(Host)).

%% Those with something pending.
-spec users(binary()) -> [binary()].
users(Host) ->
    ?STORE:users(tables(Host)).

%% The highest ord that was ever there.
-spec max_ord(binary()) -> number().
max_ord(Host) ->
    call(Host, max_ord).

%% size: bytes of what is live; limit: of them, which counts as reached with too many messages as
%% well; live: messages; failing: the last write failed
-spec status(binary()) -> #{size := integer(), limit := integer(), live := integer(), failing := boolean()}.
status(Host) ->
    {_, Counters, Bytes} = shared(Host),
    Live = counters:get(Counters, 2),
    Size = case Live >= ?MESSAGES of
               true -> max(Bytes, counters:get(Counters, 1));
               false -> counters:get(Counters, 1)
           end,
    #{size => Size, limit => Bytes, live => Live, failing => counters:get(Counters, 3) =/= 0}.

%% Waits until the disk has what was appended.
-spec sync(binary()) -> ok | {error, binary()}.
sync(Host) ->
    call(Host, sync).

-spec add_removal(binary(), binary(), binary()) -> ok.
add_removal(Host, Bare, Stamp) ->
    call(Host, {add_removal, Bare, Stamp}).

-spec remove_removal(binary(), binary()) -> ok.
remove_removal(Host, Bare) ->
    call(Host, {remove_removal, Bare}).

%% Bare JID and time of the removal of accounts that no node has confirmed.
-spec removals(binary()) -> [{binary(), binary()}].
removals(Host) ->
    call(Host, removals).

%% ------------------------------------------------------------------------------ the process

init(Host) ->
    process_flag(trap_exit, true), % so that what is owed is written at the end
    case ?STORE:open(folder(Host)) of
        {ok, Spool} ->
            Counters = counters:new(3, []),
            persistent_term:put({?MODULE, Host}, {?STORE:tables(Spool), Counters, mod_amphora:opt(Host, spool_limit)}),
            erlang:send_after(?TIDY, self(), tidy),
            {ok, count(#state{host = Host, spool = Spool})};
        {error, Reason} ->
            {stop, Reason}
    end.

handle_call({append, Entry}, From, #state{appending = Appending} = State) when length(Appending) < ?BATCH ->
    {noreply, State#state{appending = [{From, Entry} | Appending]}, 0};
handle_call({append, Entry}, From, State) ->
    {noreply, (write(State))#state{appending = [{From, Entry}]}, 0};
handle_call(Request, _From, State) ->
    {Reply, Handled} = handle(Request, write(State)),
    {reply, Reply, count(Handled), 0}.

handle({load, Bare}, #state{spool = Spool} = State) ->
    case ?STORE:load(Bare, Spool) of
        {ok, Entry, Loaded} -> {{ok, Entry}, State#state{spool = Loaded}};
        {Nothing, Loaded} -> {Nothing, State#state{spool = Loaded}}
    end;
handle({release, Handle}, #state{spool = Spool} = State) ->
    {case ?STORE:release(Handle, Spool) of true -> ok; false -> gone end, State};
handle({delete_user, Bare}, #state{spool = Spool} = State) ->
    {Count, Deleted} = ?STORE:delete_user(Bare, Spool),
    {Count, State#state{spool = Deleted}};
handle(max_ord, #state{spool = Spool} = State) ->
    {?STORE:max_ord(Spool), State};
handle(sync, #state{spool = Spool} = State) ->
    {Result, Synced} = ?STORE:sync(Spool),
    {Result, State#state{spool = Synced}};
handle({add_removal, Bare, Stamp}, #state{spool = Spool} = State) ->
    {_, Told} = ?STORE:flush(?STORE:add_removal(Bare, Stamp, Spool)),
    {ok, State#state{spool = Told}};
handle({remove_removal, Bare}, #state{spool = Spool} = State) ->
    {ok, State#state{spool = ?STORE:removal_done(Bare, Spool)}};
handle(removals, #state{spool = Spool} = State) ->
    {maps:to_list(?STORE:removals(Spool)), State}.

handle_cast({delete, Handle}, State) ->
    #state{spool = Spool} = Written = write(State),
    {noreply, Written#state{spool = ?STORE:done(Handle, Spool)}, 0};
handle_cast(_Other, State) ->
    {noreply, State, 0}.

handle_info(timeout, State) ->
    #state{spool = Spool} = Written = write(State),
    {_, Flushed} = ?STORE:flush(Spool),
    {noreply, count(Written#state{spool = Flushed})};
handle_info(tidy, State) ->
    #state{spool = Spool} = Written = write(State),
    erlang:send_after(?TIDY, self(), tidy),
    {noreply, count(Written#state{spool = ?STORE:tidy(Spool)})};
handle_info(_Other, State) ->
    {noreply, State, 0}.

terminate(_Reason, State) ->
    #state{spool = Spool} = write(State),
    ?STORE:close(Spool).

%% Writes what is to be appended, and answers who waits for it.
write(#state{appending = []} = State) ->
    State;
write(#state{appending = Appending, spool = Spool} = State) ->
    InOrder = lists:reverse(Appending),
    {Result, Added} = ?STORE:add([Entry || {_, Entry} <- InOrder], Spool),
    Written = count(State#state{spool = Added, appending = []}),
    lists:foreach(fun({From, _}) -> gen_server:reply(From, Result) end, InOrder),
    Written.

count(#state{host = Host, spool = Spool} = State) ->
    {_, Counters, _} = shared(Host),
    counters:put(Counters, 1, ?STORE:bytes(Spool)),
    counters:put(Counters, 2, ?STORE:count(Spool)),
    counters:put(Counters, 3, case ?STORE:is_failing(Spool) of true -> 1; false -> 0 end),
    State.
