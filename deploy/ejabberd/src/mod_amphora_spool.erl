%%% The spool: what the interceptor keeps on disk, so that it outlives the server. Bounded.
%%%
%%% One process per virtual host, under the host's supervisor. What it says about users is read from
%%% tables, without a call. A record is a map:
%%%   key, stage (rules, turn, offline or undelivered), ord (its place in the order of arrival, a number),
%%%   stamp, archived (boolean), from, addressed (JIDs as text), el (the message, #xmlel{})
%%% A handle names one writing of a record's key: what is said of it does not count for a later one.
%%%
%%% What is appended at a time is one write, so that it can serve as the journal of all that is held
%%% (mod_amphora_journal). append/3 and written/1 return when the operating system has it: it survives
%%% the end of ejabberd, however it ends, not a power cut in the seconds after. append_behind/3 and
%%% replace/4 do not wait; what they gave is written within two milliseconds. That a record is settled is
%%% written with what comes next, or within a moment.

-module(mod_amphora_spool).

-behaviour(gen_server).

-export([
    start_link/1,
    folder/1,
    pending/2, pending/3,
    append/3, append_behind/3,
    written/1,
    load/2,
    release/3,
    replace/4,
    delete/3, delete_all/2,
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
-define(LINGER, 2). % milliseconds that a record for which nobody waits may wait for others
-define(OWED, 20). % milliseconds that the lines of settled records wait for others
-define(MOST_OWED, 1024). % so many settled records are not waited for
-define(TIDY, 1000). % milliseconds between two looks at what can be given back
-define(MESSAGES, 2000000). % records at most: each takes some 250 bytes of memory
-define(TIMEOUT, 60000). % milliseconds: a disk may be slow

-type handle() :: ?STORE:handle().
-type spooled() :: map().
-export_type([handle/0, spooled/0]).

-record(state, {
    host :: binary(),
    spool :: ?STORE:spool(),
    %% what is to be written, newest first, and who waits for it
    appending = [] :: [{none | {pid(), term()}, ?STORE:prepared()}],
    count = 0 :: non_neg_integer(),
    waited_for = false :: boolean(),
    %% what is settled, of this and of what was written; how many since the last write
    settled = [] :: [[handle()]],
    owed = 0 :: non_neg_integer(),
    %% is a timer running?
    write_soon = false :: boolean(),
    flush_soon = false :: boolean()
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

%% {tables, counters of bytes, messages and failures, limit of bytes, process, what prepare/2 wants}
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
    case call(Host, {append, prepared(Host, Bare, Gen, Record)}) of
        ok -> {ok, {Key, Gen}};
        {error, _} = Error -> Error
    end.

%% Not durable yet when it returns. If it can't be written, the handle is that of nothing.
-spec append_behind(binary(), binary(), spooled()) -> handle().
append_behind(Host, Bare, #{key := Key} = Record) ->
    Gen = erlang:unique_integer([positive]),
    give(Host, Bare, Gen, Record),
    {Key, Gen}.

%% Waits until all is written, or could not be, that the caller gave to append_behind/3.
-spec written(binary()) -> ok.
written(Host) ->
    try
        gen_server:call(element(4, shared(Host)), written, ?TIMEOUT)
    catch
        exit:_ -> ok
    end.

prepared(Host, Bare, Gen, #{el := El} = Record) ->
    Entry = (maps:remove(el, Record))#{bare => Bare, gen => Gen, xml => fxml:element_to_binary(El)},
    ?STORE:prepare(Entry, element(5, shared(Host))).

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

%% It is at another stage now. The handle stays. Does not wait: if that can't be written, it is asked about
%% once more after a restart.
-spec replace(binary(), binary(), handle(), spooled()) -> ok.
replace(Host, Bare, {_, Gen}, Record) ->
    give(Host, Bare, Gen, Record).

give(Host, Bare, Gen, Record) ->
    element(4, shared(Host)) ! {amphora_append, prepared(Host, Bare, Gen, Record)},
    ok.

-spec delete(binary(), binary(), handle()) -> ok.
delete(Host, _Bare, Handle) -> delete_all(Host, [Handle]).

-spec delete_all(binary(), [handle()]) -> ok.
delete_all(_Host, []) ->
    ok;
delete_all(Host, Handles) ->
    element(4, shared(Host)) ! {amphora_settled, Handles},
    ok.

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
    {_, Counters, Bytes, _, _} = shared(Host),
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
            Limit = mod_amphora:opt(Host, spool_limit),
            Shared = {?STORE:tables(Spool), Counters, Limit, self(), ?STORE:escapes(Spool)},
            persistent_term:put({?MODULE, Host}, Shared),
            erlang:send_after(?TIDY, self(), tidy),
            {ok, count(#state{host = Host, spool = Spool})};
        {error, Reason} ->
            {stop, Reason}
    end.

handle_call({append, Prepared}, From, State) ->
    next(take(From, Prepared, State#state{waited_for = true}));
handle_call(written, _From, State) ->
    {reply, ok, write(State)};
handle_call(Request, _From, State) ->
    {Reply, Handled} = handle(Request, write(State)),
    {reply, Reply, flush_soon(count(Handled))}.

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

handle_cast(_Other, State) ->
    next(State).

handle_info({amphora_append, Prepared}, State) ->
    next(write_soon(take(none, Prepared, State)));
handle_info({amphora_settled, Handles}, #state{settled = Settled, owed = Owed} = State) ->
    Noted = State#state{settled = [Handles | Settled], owed = Owed + length(Handles)},
    case Noted#state.owed of
        N when N > ?MOST_OWED -> next(flush(Noted));
        _ -> next(flush_soon(Noted))
    end;
%% the mailbox is empty, and somebody waits
handle_info(timeout, State) ->
    {noreply, write(State)};
handle_info(write, State) ->
    next(write(State#state{write_soon = false}));
handle_info(flush, State) ->
    next(flush(State#state{flush_soon = false}));
handle_info(tidy, State) ->
    #state{spool = Spool} = Written = write(State),
    erlang:send_after(?TIDY, self(), tidy),
    {noreply, count(Written#state{spool = ?STORE:tidy(Spool)})};
handle_info(_Other, State) ->
    next(State).

next(#state{waited_for = true} = State) -> {noreply, State, 0};
next(State) -> {noreply, State}.

terminate(_Reason, State) ->
    #state{spool = Spool} = write(State),
    ?STORE:close(Spool).

take(From, Prepared, #state{count = Count} = State) when Count >= ?BATCH ->
    take(From, Prepared, (write(State))#state{waited_for = is_tuple(From)});
take(From, Prepared, #state{appending = Appending, count = Count} = State) ->
    State#state{appending = [{From, Prepared} | Appending], count = Count + 1}.

write_soon(#state{write_soon = true} = State) ->
    State;
write_soon(State) ->
    erlang:send_after(?LINGER, self(), write),
    State#state{write_soon = true}.

flush_soon(#state{flush_soon = true} = State) ->
    State;
flush_soon(State) ->
    erlang:send_after(?OWED, self(), flush),
    State#state{flush_soon = true}.

%% Writes what is to be appended, and answers who waits for it. What is settled of it, and of what was
%% there before, is owed after that.
write(#state{appending = [], settled = []} = State) ->
    State#state{waited_for = false};
write(#state{appending = Appending, settled = Settled, spool = Spool} = State) ->
    InOrder = lists:reverse(Appending),
    {Result, Added} = ?STORE:add_lines([Prepared || {_, Prepared} <- InOrder], Spool),
    Done = lists:foldl(
        fun(Handles, Acc) -> lists:foldl(fun ?STORE:done/2, Acc, Handles) end, Added, lists:reverse(Settled)
    ),
    Written = count(State#state{
        spool = Done, appending = [], count = 0, waited_for = false, settled = []
    }),
    [gen_server:reply(From, Result) || {From, _} <- InOrder, From /= none],
    Written.

%% And what is owed.
flush(State) ->
    #state{spool = Spool} = Written = write(State),
    {_, Flushed} = ?STORE:flush(Spool),
    count(Written#state{spool = Flushed, owed = 0}).

count(#state{host = Host, spool = Spool} = State) ->
    Counters = element(2, shared(Host)),
    counters:put(Counters, 1, ?STORE:bytes(Spool)),
    counters:put(Counters, 2, ?STORE:count(Spool)),
    counters:put(Counters, 3, case ?STORE:is_failing(Spool) of true -> 1; false -> 0 end),
    State.
