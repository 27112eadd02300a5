%%% The files of a spool.
%%%
%%% A folder of segments, text files of one record a line, each with a checksum, only ever appended
%%% to. A torn or damaged line costs that line.
%%%
%%%   <sum> A <key> <bare> <ord> <stage> <stamp> <archived> <from> <addressed> <xml>   a message
%%%   <sum> D <key>                                        it is settled
%%%   <sum> R <bare> <stamp>                               an account was removed
%%%   <sum> X <bare>                                       ... and a node knows it
%%%
%%% A later line A of the same key replaces the earlier one: the message is at another stage. Oldest
%%% segments go first, once nothing in them is needed; what a few old messages keep is copied to the
%%% end. So a line D always outlives the line A that it settles.
%%%
%%% What is written is with the operating system before the caller goes on: it survives the end of
%%% ejabberd, however it ends, not a power cut in the seconds after. All lines of one call are one
%%% write(2).
%%%
%%% A spool belongs to the process that opened it. A message in it is "in memory" from add/2 or
%%% load/2 to release/2 or done/2; load/2 gives those that are not, in the order of their user's
%%% queue. Other processes may look into its tables: next_pending/2, users/1, keys/2, known/2.

-module(mod_amphora_spool_file).

-export([open/1, close/1, tables/1]).
-export([prepare/2, escapes/1, add/2, add_lines/2, done/2, release/2, flush/1, sync/1, tidy/1]).
-export([load/2, next_pending/2, users/1, keys/2, known/2, is_current/2]).
-export([delete_user/2, add_removal/3, removal_done/2, removals/1]).
-export([is_failing/1, count/1, bytes/1, max_ord/1]).

-export_type([spool/0, entry/0, prepared/0, handle/0, tables/0]).

-include_lib("kernel/include/logger.hrl").

-define(SEGMENT_BYTES, 4194304). % a segment that is larger is followed by another
-define(PREFIX, "amphora_spool-").
-define(SUFFIX, ".log").

-type entry() :: #{key := binary(),        % unique for ever
                   bare := binary(),       % the user whose queue it is in
                   ord := number(),        % place in that queue
                   stage := rules | turn | offline | undelivered,
                   stamp := binary(),      % XEP-0082, when the server received it
                   archived := boolean(),
                   from := binary(),
                   addressed := binary(),
                   gen => integer(),       % tells this writing of the key from others; 0 after a start
                   xml := iodata()}.       % load/2 gives a binary

%% A key and the gen of its writing: what was said of an earlier writing does not count for a later one.
-type handle() :: {Key :: binary(), Gen :: integer()}.

%% A message as it is to stand in the file: key, bare, ord, gen and line.
-type prepared() :: {binary(), binary(), number(), integer(), binary()}.

-type tables() :: {Live :: ets:tid(), Pending :: ets:tid()}.

-record(spool, {
    dir :: file:filename_all(),
    live :: ets:tid(),          % {Key, Bare, Ord, Segment, Offset, Size, Gen}
    pending :: ets:tid(),       % {{Bare, Ord, Key}}: those that are not in memory
    removals = #{} :: #{binary() => binary()},
    segments = #{} :: #{pos_integer() => {Bytes :: non_neg_integer(), Live :: non_neg_integer()}},
    first = 1 :: pos_integer(), % number of the oldest segment
    current = 0 :: non_neg_integer(),
    fd :: undefined | file:fd(),
    size = 0 :: non_neg_integer(),     % bytes of the current segment
    reader :: undefined | {pos_integer(), file:fd()},
    owed = [] :: iolist(),      % lines that are needed only after a restart
    live_bytes = 0 :: non_neg_integer(),
    total_bytes = 0 :: non_neg_integer(),
    max_ord = 0 :: number(),
    failing = false :: boolean(),
    escapes :: binary:cp()
}).

-opaque spool() :: #spool{}.

%% ------------------------------------------------------------------------------ open, close

%% Reads what is in the folder, which is made if it is not there. An error names the file.
-spec open(file:filename_all()) -> {ok, spool()} | {error, binary()}.
open(Dir) ->
    Spool = #spool{dir = Dir,
                   live = ets:new(amphora_spool, [set, protected, {read_concurrency, true}]),
                   pending = ets:new(amphora_spool_pending, [ordered_set, protected, {read_concurrency, true}]),
                   escapes = binary:compile_pattern([<<"\\">>, <<"\t">>, <<"\n">>, <<"\r">>])},
    case filelib:ensure_dir(filename:join(Dir, "x")) of
        ok -> open_segments(Spool, segment_numbers(Dir));
        {error, Reason} -> {error, problem(Dir, Reason)}
    end.

open_segments(Spool, []) ->
    start_segment(Spool, 1);
open_segments(Spool, [First | _] = Numbers) ->
    case scan(Numbers, Spool#spool{first = First}) of
        {ok, Scanned} -> start_segment(drop_dead(count_live(Scanned)), lists:last(Numbers) + 1);
        {error, _} = Error -> Error
    end.

segment_numbers(Dir) ->
    Names = filelib:wildcard(?PREFIX "*" ?SUFFIX, unicode:characters_to_list(iolist_to_binary([Dir]))),
    lists:sort(lists:flatmap(
        fun(?PREFIX ++ Name) ->
            try [list_to_integer(filename:basename(Name, ?SUFFIX))]
            catch error:badarg -> []
            end
        end, Names)).

path(#spool{dir = Dir}, Number) ->
    filename:join(Dir, io_lib:format(?PREFIX "~8..0b" ?SUFFIX, [Number])).

start_segment(Spool, Number) ->
    Path = path(Spool, Number),
    case file:open(Path, [raw, binary, append]) of
        {ok, Fd} ->
            First = case map_size(Spool#spool.segments) of
                        0 -> Number;
                        _ -> Spool#spool.first
                    end,
            {ok, Spool#spool{fd = Fd, current = Number, size = 0, first = First,
                             segments = (Spool#spool.segments)#{Number => {0, 0}}}};
        {error, Reason} ->
            {error, problem(Path, Reason)}
    end.

%% Writes what is owed and closes. What is in memory stays in the spool, for the next start.
-spec close(spool()) -> ok.
close(Spool) ->
    {_, #spool{fd = Fd, live = Live, pending = Pending} = Closed} = flush(Spool),
    close_file(Fd),
    _ = close_reader(Closed),
    ets:delete(Live),
    ets:delete(Pending),
    ok.

close_file(undefined) -> ok;
close_file(Fd) -> _ = file:close(Fd), ok.

close_reader(#spool{reader = {_, Fd}} = Spool) ->
    _ = file:close(Fd),
    Spool#spool{reader = undefined};
close_reader(Spool) ->
    Spool.

%% For other processes, as long as it is open.
-spec tables(spool()) -> tables().
tables(#spool{live = Live, pending = Pending}) -> {Live, Pending}.

problem(Path, Reason) ->
    iolist_to_binary([Path, ": ", file:format_error(Reason)]).

%% ------------------------------------------------------------------------------ reading it all

scan([], Spool) ->
    {ok, Spool};
scan([Number | Rest], Spool) ->
    Path = path(Spool, Number),
    case file:read_file(Path) of
        {ok, Bytes} ->
            Segments = (Spool#spool.segments)#{Number => {byte_size(Bytes), 0}},
            Scanned = scan_lines(Bytes, 0, Number, [], Spool#spool{segments = Segments}),
            scan(Rest, Scanned#spool{total_bytes = Scanned#spool.total_bytes + byte_size(Bytes)});
        {error, Reason} ->
            {error, problem(Path, Reason)}
    end.

scan_lines(Bytes, Offset, Number, Bad, Spool) ->
    case binary:match(Bytes, <<"\n">>, [{scope, {Offset, byte_size(Bytes) - Offset}}]) of
        {End, 1} ->
            Size = End + 1 - Offset,
            case take_line(fields(binary:part(Bytes, Offset, Size - 1)), Number, Offset, Size, Spool) of
                bad -> scan_lines(Bytes, End + 1, Number, [binary:part(Bytes, Offset, Size) | Bad], Spool);
                Taken -> scan_lines(Bytes, End + 1, Number, Bad, Taken)
            end;
        nomatch when Offset < byte_size(Bytes) ->
            Rest = binary:part(Bytes, Offset, byte_size(Bytes) - Offset),
            set_aside(Spool, Number, [[Rest, "\n"] | Bad]);
        nomatch ->
            set_aside(Spool, Number, Bad)
    end.

%% A line that can't be read is kept beside the file: someone may want to look at it.
set_aside(Spool, _Number, []) ->
    Spool;
set_aside(Spool, Number, Bad) ->
    Path = path(Spool, Number),
    Beside = iolist_to_binary([Path, ".bad"]),
    _ = filelib:is_regular(Beside) orelse file:write_file(Beside, lists:reverse(Bad)),
    ?LOG_WARNING("Amphora: ~ts: ~b torn or damaged lines were left out and copied to ~ts",
                 [Path, length(Bad), Beside]),
    Spool.

take_line([<<"A">>, Key, Bare, Ord, _Stage, _Stamp, _Archived, _From, _Addressed, _Xml], Number, Offset, Size, Spool) ->
    case parse_ord(Ord) of
        error ->
            bad;
        Place ->
            ets:insert(Spool#spool.live, {unescape(Key), unescape(Bare), Place, Number, Offset, Size, 0}),
            Spool#spool{max_ord = max(Place, Spool#spool.max_ord)}
    end;
take_line([<<"D">>, Key], _Number, _Offset, _Size, Spool) ->
    ets:delete(Spool#spool.live, unescape(Key)),
    Spool;
take_line([<<"R">>, Bare, Stamp], _Number, _Offset, _Size, #spool{removals = Removals} = Spool) ->
    Spool#spool{removals = Removals#{unescape(Bare) => unescape(Stamp)}};
take_line([<<"X">>, Bare], _Number, _Offset, _Size, #spool{removals = Removals} = Spool) ->
    Spool#spool{removals = maps:remove(unescape(Bare), Removals)};
take_line(_Fields, _Number, _Offset, _Size, _Spool) ->
    bad.

%% After the scan: counts what is left, none of which is in memory.
count_live(#spool{live = Live, pending = Pending} = Spool) ->
    {Segments, Bytes} =
        ets:foldl(
            fun({Key, Bare, Ord, Number, _, Size, _}, {Segments, Bytes}) ->
                ets:insert(Pending, {{Bare, Ord, Key}}),
                {add_live(Number, 1, Segments), Bytes + Size}
            end, {Spool#spool.segments, 0}, Live),
    Spool#spool{segments = Segments, live_bytes = Bytes}.

add_live(Number, N, Segments) ->
    maps:update_with(Number, fun({Bytes, Count}) -> {Bytes, Count + N} end, Segments).

%% ------------------------------------------------------------------------------ lines

line(Fields) ->
    Body = lists:join($\t, Fields),
    [integer_to_binary(erlang:crc32(Body), 16), $\t, Body, $\n].

%% The fields of a line without its end; none if its checksum is wrong.
fields(Line) ->
    case binary:split(Line, <<"\t">>) of
        [Sum, Body] ->
            case integer_to_binary(erlang:crc32(Body), 16) of
                Sum -> binary:split(Body, <<"\t">>, [global]);
                _ -> []
            end;
        _ ->
            []
    end.

%% What is to be added, made by whoever has it: so the process of the spool need only write it.
-spec prepare(entry(), binary:cp()) -> prepared().
prepare(#{key := Key, bare := Bare, ord := Ord} = Entry, Cp) ->
    {Key, Bare, Ord, maps:get(gen, Entry, 0), iolist_to_binary(message_line(Entry, Cp))}.

%% What prepare/2 wants to know.
-spec escapes(spool()) -> binary:cp().
escapes(#spool{escapes = Cp}) -> Cp.

message_line(#{key := Key, bare := Bare, ord := Ord, stage := Stage, stamp := Stamp, archived := Archived,
               from := From, addressed := Addressed, xml := Xml}, Cp) ->
    line([<<"A">>, escape(Key, Cp), escape(Bare, Cp), format_ord(Ord), atom_to_binary(Stage, utf8),
          escape(Stamp, Cp), case Archived of true -> <<"1">>; false -> <<"0">> end, escape(From, Cp),
          escape(Addressed, Cp), escape(iolist_to_binary(Xml), Cp)]).

escape(Bin, Cp) ->
    case binary:match(Bin, Cp) of
        nomatch -> Bin;
        _ -> << <<(escape_byte(B))/binary>> || <<B>> <= Bin >>
    end.

escape_byte($\\) -> <<"\\\\">>;
escape_byte($\t) -> <<"\\t">>;
escape_byte($\n) -> <<"\\n">>;
escape_byte($\r) -> <<"\\r">>;
escape_byte(B) -> <<B>>.

unescape(Bin) ->
    case binary:match(Bin, <<"\\">>) of
        nomatch -> binary:copy(Bin);
        _ -> unescape(Bin, <<>>)
    end.

unescape(<<"\\t", Rest/binary>>, Acc) -> unescape(Rest, <<Acc/binary, "\t">>);
unescape(<<"\\n", Rest/binary>>, Acc) -> unescape(Rest, <<Acc/binary, "\n">>);
unescape(<<"\\r", Rest/binary>>, Acc) -> unescape(Rest, <<Acc/binary, "\r">>);
unescape(<<"\\\\", Rest/binary>>, Acc) -> unescape(Rest, <<Acc/binary, "\\">>);
unescape(<<B, Rest/binary>>, Acc) -> unescape(Rest, <<Acc/binary, B>>);
unescape(<<>>, Acc) -> Acc.

format_ord(Ord) when is_integer(Ord) -> integer_to_binary(Ord);
format_ord(Ord) when is_float(Ord) -> float_to_binary(Ord, [{decimals, 6}, compact]).

parse_ord(Bin) ->
    try binary_to_integer(Bin)
    catch error:badarg ->
        try binary_to_float(Bin)
        catch error:badarg -> error
        end
    end.

%% ------------------------------------------------------------------------------ writing

%% Writes whole lines, and what is owed before them. Gives the offset of the first.
write(Lines, #spool{size = Size} = Spool) when Size >= ?SEGMENT_BYTES ->
    case next_segment(Spool) of
        {ok, Next} -> write_here(Lines, Next);
        {error, _} = Error -> {Error, Spool}
    end;
write(Lines, #spool{fd = undefined} = Spool) ->
    case next_segment(Spool) of
        {ok, Next} -> write_here(Lines, Next);
        {error, Reason} -> {{error, Reason}, note_failure(Reason, Spool)}
    end;
write(Lines, Spool) ->
    write_here(Lines, Spool).

write_here(Lines, #spool{fd = Fd, owed = Owed, size = Size, current = Current, segments = Segments} = Spool) ->
    Before = lists:reverse(Owed),
    case file:write(Fd, [Before, Lines]) of
        ok ->
            Written = iolist_size(Before) + iolist_size(Lines),
            Grown = maps:update_with(Current, fun({Bytes, Live}) -> {Bytes + Written, Live} end, Segments),
            {{ok, Size + iolist_size(Before)},
             note_success(Spool#spool{owed = [], size = Size + Written, segments = Grown,
                                      total_bytes = Spool#spool.total_bytes + Written})};
        {error, Reason} ->
            Why = problem(path(Spool, Current), Reason),
            {{error, Why}, note_failure(Why, cut_torn(Spool))}
    end.

%% Half a line may have been written. If it can't be cut off, another segment is begun: a torn line
%% is harmless at the end of a file.
cut_torn(#spool{fd = Fd, size = Size, current = Current} = Spool) ->
    Cut = case file:open(path(Spool, Current), [raw, binary, read, write]) of
              {ok, Whole} ->
                  Done = file:position(Whole, Size) =:= {ok, Size} andalso file:truncate(Whole) =:= ok,
                  _ = file:close(Whole),
                  Done;
              {error, _} ->
                  false
          end,
    case Cut of
        true -> Spool;
        false -> close_file(Fd), Spool#spool{fd = undefined}
    end.

next_segment(#spool{fd = Fd, current = Current} = Spool) ->
    case start_segment(Spool, Current + 1) of
        {ok, Next} -> close_file(Fd), {ok, Next};
        {error, _} = Error -> Error
    end.

note_failure(_Reason, #spool{failing = true} = Spool) ->
    Spool;
note_failure(Reason, Spool) ->
    ?LOG_ERROR("Amphora: the spool can't be written: ~ts", [Reason]),
    Spool#spool{failing = true}.

note_success(#spool{failing = true} = Spool) ->
    ?LOG_NOTICE("Amphora: ~ts can be written again", [Spool#spool.dir]),
    Spool#spool{failing = false};
note_success(Spool) ->
    Spool.

%% Adds messages, which count as in memory, in one write; all of them or none. One whose key is
%% there already is replaced. How much may be in it is the caller's question.
-spec add([entry()], spool()) -> {ok, spool()} | {{error, binary()}, spool()}.
add(Entries, #spool{escapes = Cp} = Spool) ->
    add_lines([prepare(Entry, Cp) || Entry <- Entries], Spool).

%% The same, of what is prepared.
-spec add_lines([prepared()], spool()) -> {ok, spool()} | {{error, binary()}, spool()}.
add_lines([], Spool) ->
    {ok, Spool};
add_lines(Prepared, Spool) ->
    case write([Line || {_, _, _, _, Line} <- Prepared], Spool) of
        {{ok, Offset}, Written} -> {ok, note_added(Prepared, Offset, Written)};
        {{error, _}, _} = Error -> Error
    end.

note_added([], _Offset, Spool) ->
    Spool;
note_added([{Key, Bare, Ord, Gen, Line} | Rest], Offset, #spool{live = Live, current = Current} = Spool) ->
    Size = byte_size(Line),
    Row = {Key, Bare, Ord, Current, Offset, Size, Gen},
    Noted = case ets:insert_new(Live, Row) of
                true -> Spool;
                false -> Forgotten = forget(Key, Spool), ets:insert(Live, Row), Forgotten
            end,
    #spool{segments = Segments, max_ord = Max, live_bytes = Bytes} = Noted,
    note_added(Rest, Offset + Size,
               Noted#spool{segments = add_live(Current, 1, Segments), max_ord = max(Max, Ord),
                           live_bytes = Bytes + Size}).

%% Takes a key out of the tables, not out of the file.
forget(Key, #spool{live = Live, pending = Pending} = Spool) ->
    case ets:take(Live, Key) of
        [{_, Bare, Ord, Number, _, Size, _}] ->
            ets:delete(Pending, {Bare, Ord, Key}),
            Spool#spool{segments = add_live(Number, -1, Spool#spool.segments),
                        live_bytes = Spool#spool.live_bytes - Size};
        [] ->
            Spool
    end.

%% The message is settled. The line that says so is written with the next ones, or by flush/1.
-spec done(handle(), spool()) -> spool().
done({Key, _} = Handle, Spool) ->
    case is_current(Handle, tables(Spool)) of
        true -> owe([<<"D">>, escape(Key, Spool#spool.escapes)], forget(Key, Spool));
        false -> Spool
    end.

%% Is it there, and not written anew since?
-spec is_current(handle(), tables()) -> boolean().
is_current({Key, Gen}, {Live, _}) ->
    case ets:lookup(Live, Key) of
        [{_, _, _, _, _, _, Gen}] -> true;
        _ -> false
    end.

handle_of(Key, #spool{live = Live}) -> {Key, ets:lookup_element(Live, Key, 7)}.

owe(Fields, #spool{owed = Owed} = Spool) ->
    Spool#spool{owed = [line(Fields) | Owed]}.

%% The message is no more in memory: from now on load/2 gives it. False if it is not there.
-spec release(handle(), spool()) -> boolean().
release({Key, Gen}, #spool{live = Live, pending = Pending}) ->
    case ets:lookup(Live, Key) of
        [{_, Bare, Ord, _, _, _, Gen}] -> ets:insert(Pending, {{Bare, Ord, Key}});
        _ -> false
    end.

%% Writes what is owed. After an error it is still owed.
-spec flush(spool()) -> {ok, spool()} | {{error, binary()}, spool()}.
flush(#spool{owed = []} = Spool) ->
    {ok, Spool};
flush(Spool) ->
    case write([], Spool) of
        {{ok, _}, Written} -> {ok, Written};
        {{error, _}, _} = Error -> Error
    end.

%% Flushes, and waits until the disk has it.
-spec sync(spool()) -> {ok, spool()} | {{error, binary()}, spool()}.
sync(Spool) ->
    case flush(Spool) of
        {ok, #spool{fd = Fd, current = Current} = Flushed} ->
            case Fd =:= undefined orelse file:datasync(Fd) of
                {error, Reason} -> {{error, problem(path(Flushed, Current), Reason)}, Flushed};
                _ -> {ok, Flushed}
            end;
        Error ->
            Error
    end.

%% ------------------------------------------------------------------------------ reading

%% The user's oldest message that is not in memory; it is from now on. After an error it is not,
%% and nothing of that user's can be had for now.
-spec load(binary(), spool()) -> {ok, entry(), spool()} | {none, spool()} | {error, spool()}.
load(Bare, #spool{pending = Pending} = Spool) ->
    case next_pending(Bare, tables(Spool)) of
        {_, Ord, Key} = Place ->
            case read(Key, Spool) of
                {ok, Entry, Read} ->
                    ets:delete(Pending, Place),
                    {ok, Entry#{ord := Ord, gen => element(2, handle_of(Key, Read))}, Read};
                {damaged, Read} ->
                    ?LOG_ERROR("Amphora: message ~ts for ~ts is damaged in the spool and left out", [Key, Bare]),
                    load(Bare, done(handle_of(Key, Read), Read));
                {error, Reason} ->
                    ?LOG_ERROR("Amphora: the spool can't be read, its messages stay in it: ~ts", [Reason]),
                    {error, Spool}
            end;
        none ->
            {none, Spool}
    end.

%% The place of the user's oldest message that is not in memory.
-spec next_pending(binary(), tables()) -> {Bare :: binary(), Ord :: number(), Key :: binary()} | none.
next_pending(Bare, {_, Pending}) ->
    case ets:next(Pending, {Bare, -1.0e300, <<>>}) of % before any place
        {Bare, _, _} = Place -> Place;
        _ -> none
    end.

read(Key, #spool{live = Live} = Spool) ->
    [{_, _, _, Number, Offset, Size, _}] = ets:lookup(Live, Key),
    case read_line(Number, Offset, Size, Spool) of
        {ok, Line, Read} ->
            case fields(Line) of
                [<<"A">> | Fields] -> {ok, entry(Fields), Read};
                _ -> {damaged, Read}
            end;
        {eof, Read} ->
            {damaged, Read};
        {error, _} = Error ->
            Error
    end.

read_line(Number, Offset, Size, Spool) ->
    case reader(Number, Spool) of
        {ok, Fd, Read} ->
            case file:pread(Fd, Offset, Size - 1) of
                {ok, Line} -> {ok, Line, Read};
                eof -> {eof, Read};
                {error, Reason} -> {error, problem(path(Spool, Number), Reason)}
            end;
        {error, Reason} ->
            {error, problem(path(Spool, Number), Reason)}
    end.

reader(Number, #spool{reader = {Number, Fd}} = Spool) ->
    {ok, Fd, Spool};
reader(Number, Spool) ->
    Closed = close_reader(Spool),
    case file:open(path(Spool, Number), [raw, binary, read]) of
        {ok, Fd} -> {ok, Fd, Closed#spool{reader = {Number, Fd}}};
        {error, _} = Error -> Error
    end.

entry([Key, Bare, Ord, Stage, Stamp, Archived, From, Addressed, Xml]) ->
    #{key => unescape(Key), bare => unescape(Bare), ord => parse_ord(Ord), stage => stage(Stage),
      stamp => unescape(Stamp), archived => Archived =:= <<"1">>, from => unescape(From),
      addressed => unescape(Addressed), xml => unescape(Xml)}.

stage(<<"rules">>) -> rules;
stage(<<"turn">>) -> turn;
stage(<<"undelivered">>) -> undelivered;
stage(_) -> offline.

%% The users of whom something is not in memory.
-spec users(tables()) -> [binary()].
users({_, Pending}) ->
    users(ets:first(Pending), Pending).

users('$end_of_table', _Pending) -> [];
users({Bare, _, _}, Pending) -> [Bare | users(ets:next(Pending, {Bare, past_numbers, <<>>}), Pending)].

%% Is the message in the spool, in memory or not?
-spec known(binary(), tables()) -> boolean().
known(Key, {Live, _}) ->
    ets:member(Live, Key).

%% Keys of a user's messages, in memory or not. It looks at all messages of all users.
-spec keys(binary(), tables()) -> [binary()].
keys(Bare, {Live, _}) ->
    ets:select(Live, [{{'$1', Bare, '_', '_', '_', '_', '_'}, [], ['$1']}]).

%% ------------------------------------------------------------------------------ accounts

%% Forgets all messages of a user. Gives their number.
-spec delete_user(binary(), spool()) -> {non_neg_integer(), spool()}.
delete_user(Bare, Spool) ->
    Keys = keys(Bare, tables(Spool)),
    {length(Keys), lists:foldl(fun(Key, Acc) -> done(handle_of(Key, Acc), Acc) end, Spool, Keys)}.

%% An account was removed, and no node has confirmed that yet.
-spec add_removal(binary(), binary(), spool()) -> spool().
add_removal(Bare, Stamp, #spool{removals = Removals, escapes = Cp} = Spool) ->
    owe([<<"R">>, escape(Bare, Cp), escape(Stamp, Cp)], Spool#spool{removals = Removals#{Bare => Stamp}}).

-spec removal_done(binary(), spool()) -> spool().
removal_done(Bare, #spool{removals = Removals, escapes = Cp} = Spool) ->
    case maps:is_key(Bare, Removals) of
        true -> owe([<<"X">>, escape(Bare, Cp)], Spool#spool{removals = maps:remove(Bare, Removals)});
        false -> Spool
    end.

-spec removals(spool()) -> #{binary() => Stamp :: binary()}.
removals(#spool{removals = Removals}) -> Removals.

%% ------------------------------------------------------------------------------ numbers

%% Did the last write fail?
-spec is_failing(spool()) -> boolean().
is_failing(#spool{failing = Failing}) -> Failing.

%% Messages in it, in memory or not.
-spec count(spool()) -> non_neg_integer().
count(#spool{live = Live}) -> ets:info(Live, size).

%% Bytes of their lines.
-spec bytes(spool()) -> non_neg_integer().
bytes(#spool{live_bytes = Bytes}) -> Bytes.

%% The greatest place that a message in it ever had.
-spec max_ord(spool()) -> number().
max_ord(#spool{max_ord = Max}) -> Max.

%% ------------------------------------------------------------------------------ giving back space

%% Called now and then: flushes, and gives back the space of what is settled. Of what is live at
%% most one segment is copied.
-spec tidy(spool()) -> spool().
tidy(#spool{failing = true, owed = []} = Spool) ->
    tidy(owe([<<"X">>, <<>>], Spool)); % to see whether it can be written again
tidy(Spool) ->
    case flush(Spool) of
        {ok, Flushed} -> compact(drop_dead(renew(Flushed)));
        {{error, _}, Failed} -> Failed
    end.

%% With nothing in it, it begins anew.
renew(#spool{live_bytes = 0, size = Size} = Spool) when Size > 0, Spool#spool.fd =/= undefined ->
    case next_segment(Spool) of
        {ok, Next} -> Next;
        {error, _} -> Spool
    end;
renew(Spool) ->
    Spool.

%% Deletes the oldest segments as long as nothing in them is needed. What is said of removed
%% accounts is said again in the current segment first.
drop_dead(#spool{first = First, current = Current, segments = Segments} = Spool) ->
    case Segments of
        #{First := {Bytes, 0}} when First =/= Current ->
            case repeat_removals(Spool) of
                {ok, Repeated} -> drop_dead(delete_segment(First, Bytes, Repeated));
                {error, Failed} -> Failed
            end;
        _ ->
            Spool
    end.

delete_segment(Number, Bytes, #spool{segments = Segments} = Spool) ->
    Closed = case Spool#spool.reader of
                 {Number, _} -> close_reader(Spool);
                 _ -> Spool
             end,
    _ = file:delete(path(Spool, Number)),
    Rest = maps:remove(Number, Segments),
    Closed#spool{segments = Rest, total_bytes = Spool#spool.total_bytes - Bytes, first = next_first(Number + 1, Rest)}.

next_first(Number, Segments) when map_size(Segments) > 0, not is_map_key(Number, Segments) ->
    next_first(Number + 1, Segments);
next_first(Number, _Segments) ->
    Number.

repeat_removals(#spool{removals = Removals} = Spool) when map_size(Removals) =:= 0 ->
    {ok, Spool};
repeat_removals(#spool{fd = undefined} = Spool) ->
    {error, Spool}; % it is being opened: the next tidy/1 does it
repeat_removals(#spool{removals = Removals, escapes = Cp} = Spool) ->
    Lines = [line([<<"R">>, escape(Bare, Cp), escape(Stamp, Cp)]) || {Bare, Stamp} <- maps:to_list(Removals)],
    case write(Lines, Spool) of
        {{ok, _}, Written} -> {ok, Written};
        {{error, _}, Failed} -> {error, Failed}
    end.

%% More than half of the files is of no use: the messages of the oldest segment move to the end.
compact(#spool{total_bytes = Total, live_bytes = Live, first = First, current = Current} = Spool)
    when First =/= Current, Total > 2 * Live + 2 * ?SEGMENT_BYTES ->
    drop_dead(copy_segment(First, Spool));
compact(Spool) ->
    Spool.

copy_segment(Number, #spool{live = Live} = Spool) ->
    Places = ets:select(Live, [{{'$1', '_', '_', Number, '$2', '$3', '_'}, [], [{{'$2', '$3', '$1'}}]}]),
    copy_lines(lists:sort(Places), [], Number, Spool).

copy_lines([], Moves, _Number, Spool) ->
    Lines = [[Line, "\n"] || {_, Line} <- lists:reverse(Moves)],
    case write(Lines, Spool) of
        {{ok, Offset}, Written} -> move(lists:reverse(Moves), Offset, Written);
        {{error, _}, Failed} -> Failed
    end;
copy_lines([{Offset, Size, Key} | Rest], Moves, Number, Spool) ->
    case read_line(Number, Offset, Size, Spool) of
        {ok, Line, Read} when byte_size(Line) =:= Size - 1 -> copy_lines(Rest, [{Key, Line} | Moves], Number, Read);
        {error, Reason} -> note_failure(Reason, Spool);
        _ -> copy_lines(Rest, Moves, Number, done(handle_of(Key, Spool), close_reader(Spool)))
    end.

move([], _Offset, Spool) ->
    Spool;
move([{Key, Line} | Rest], Offset, #spool{live = Live, current = Current, segments = Segments} = Spool) ->
    Size = byte_size(Line) + 1,
    [{_, _, _, Old, _, _, _}] = ets:lookup(Live, Key),
    ets:update_element(Live, Key, [{4, Current}, {5, Offset}]),
    move(Rest, Offset + Size,
         Spool#spool{segments = add_live(Current, 1, add_live(Old, -1, Segments))}).
