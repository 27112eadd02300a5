%%% What the spool keeps, over kills, torn lines and its own cleaning.

-module(mod_amphora_spool_file_tests).

-compile([export_all, nowarn_export_all]). % EUnit runs what ends in _test

-define(assert(What), true = What).
-define(assertNot(What), false = What).
-define(assertEqual(Expected, What), equal(Expected, What)).
-define(assertMatch(Pattern, What), Pattern = What).

-define(SPOOL, mod_amphora_spool_file).

equal(Same, Same) -> ok;
equal(Expected, What) -> error({expected, Expected, got, What}).

folder() ->
    Number = integer_to_list(erlang:unique_integer([positive])),
    Dir = filename:join("/tmp", "amphora-spool-" ++ os:getpid() ++ "-" ++ Number),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Dir.

with_folder(Test) ->
    Dir = folder(),
    try Test(Dir) after file:del_dir_r(Dir) end.

open(Dir) ->
    {ok, Spool} = ?SPOOL:open(Dir),
    Spool.

entry(N) -> entry(N, <<"bob@example.org">>).

entry(N, Bare) ->
    Number = integer_to_binary(N),
    #{key => <<"t-", Number/binary>>, bare => Bare, ord => N, stage => offline, stamp => <<"2026-11-22T05:00:00.123Z">>,
      archived => N rem 2 =:= 0, from => <<"alice@example.org/desk">>, addressed => Bare,
      xml => <<"<message><body>line\n\ttab \\ ", Number/binary, "\r</body></message>">>}.

add(Entries, Spool) ->
    {ok, Added} = ?SPOOL:add(Entries, Spool),
    Added.

load_all(Bare, Spool) ->
    case ?SPOOL:load(Bare, Spool) of
        {ok, Entry, Loaded} -> [maps:remove(gen, Entry) | load_all(Bare, Loaded)];
        {none, _} -> []
    end.

files(Dir) -> lists:sort(filelib:wildcard(filename:join(Dir, "*.log"))).

survives_a_kill_test() ->
    with_folder(fun(Dir) ->
        _ = add([entry(1), entry(2)], add([entry(3)], open(Dir))), % never closed
        ?assertEqual([entry(1), entry(2), entry(3)], load_all(<<"bob@example.org">>, open(Dir)))
    end).

in_memory_until_released_test() ->
    with_folder(fun(Dir) ->
        Spool = add([entry(1), entry(2)], open(Dir)),
        ?assertEqual(none, ?SPOOL:next_pending(<<"bob@example.org">>, ?SPOOL:tables(Spool))),
        ?assertEqual([], ?SPOOL:users(?SPOOL:tables(Spool))),
        true = ?SPOOL:release({<<"t-2">>, 0}, Spool),
        ?assertEqual([<<"bob@example.org">>], ?SPOOL:users(?SPOOL:tables(Spool))),
        ?assertMatch({_, 2, <<"t-2">>}, ?SPOOL:next_pending(<<"bob@example.org">>, ?SPOOL:tables(Spool))),
        ?assertEqual([entry(2)], load_all(<<"bob@example.org">>, Spool))
    end).

settled_is_gone_test() ->
    with_folder(fun(Dir) ->
        Spool = ?SPOOL:done({<<"t-1">>, 0}, add([entry(1), entry(2)], open(Dir))),
        ?assertNot(?SPOOL:known(<<"t-1">>, ?SPOOL:tables(Spool))),
        {ok, _} = ?SPOOL:flush(Spool),
        ?assertEqual([entry(2)], load_all(<<"bob@example.org">>, open(Dir)))
    end).

another_stage_replaces_test() ->
    with_folder(fun(Dir) ->
        Spool = add([entry(1)], add([(entry(1))#{stage := rules}], open(Dir))),
        ?assertEqual(1, ?SPOOL:count(Spool)),
        ?assertEqual([entry(1)], load_all(<<"bob@example.org">>, open(Dir)))
    end).

what_is_said_of_an_earlier_writing_does_not_count_test() ->
    with_folder(fun(Dir) ->
        Spool = add([(entry(1))#{gen => 2}], add([(entry(1))#{gen => 1}], open(Dir))),
        Settled = ?SPOOL:done({<<"t-1">>, 1}, Spool),
        ?assertEqual(1, ?SPOOL:count(Settled)),
        ?assertNot(?SPOOL:release({<<"t-1">>, 1}, Settled)),
        ?assertEqual(0, ?SPOOL:count(?SPOOL:done({<<"t-1">>, 2}, Settled)))
    end).

a_torn_line_costs_that_line_test() ->
    with_folder(fun(Dir) ->
        _ = add([entry(N) || N <- lists:seq(1, 5)], open(Dir)),
        [File] = files(Dir),
        {ok, Bytes} = file:read_file(File),
        ok = file:write_file(File, binary:part(Bytes, 0, byte_size(Bytes) - 20)),
        Spool = add([entry(6)], open(Dir)),
        ?assertEqual(5, ?SPOOL:count(Spool)),
        ?assertEqual([entry(N) || N <- [1, 2, 3, 4, 6]], load_all(<<"bob@example.org">>, open(Dir)))
    end).

a_damaged_line_in_the_middle_costs_that_line_test() ->
    with_folder(fun(Dir) ->
        _ = add([entry(N) || N <- lists:seq(1, 3)], open(Dir)),
        [File] = files(Dir),
        {ok, Bytes} = file:read_file(File),
        ok = file:write_file(File, binary:replace(Bytes, <<"tab \\\\ 2">>, <<"tab \\\\ 7">>)),
        ?assertEqual([entry(1), entry(3)], load_all(<<"bob@example.org">>, open(Dir))),
        ?assert(filelib:is_regular(File ++ ".bad"))
    end).

%% It writes a lot: EUnit's five seconds are not enough on a busy machine.
segments_go_and_what_is_needed_stays_test_() ->
    {timeout, 120, fun segments_go_and_what_is_needed_stays/0}.

segments_go_and_what_is_needed_stays() ->
    with_folder(fun(Dir) ->
        Large = binary:copy(<<"x">>, 100000),
        Fill = fun(N, Spool) ->
            Added = add([(entry(N))#{xml := Large}], Spool),
            ?SPOOL:tidy(?SPOOL:done({maps:get(key, entry(N)), 0}, Added))
        end,
        First = ?SPOOL:add_removal(<<"carol@example.org">>, <<"2026-11-22T05:00:00.000Z">>, add([entry(1)], open(Dir))),
        Spool = lists:foldl(Fill, First, lists:seq(2, 300)), % 30 MB, of which one message is live
        Bytes = lists:sum([filelib:file_size(File) || File <- files(Dir)]),
        ?assert(Bytes < 16000000),
        ?assertEqual(1, ?SPOOL:count(Spool)),
        Again = open(Dir),
        ?assertEqual(#{<<"carol@example.org">> => <<"2026-11-22T05:00:00.000Z">>}, ?SPOOL:removals(Again)),
        ?assertEqual([entry(1)], load_all(<<"bob@example.org">>, Again)),
        ?assertEqual([entry(1)], load_all(<<"bob@example.org">>, open(Dir)))
    end).

an_empty_spool_keeps_no_files_test() ->
    with_folder(fun(Dir) ->
        Spool = ?SPOOL:done({<<"t-1">>, 0}, add([entry(1)], open(Dir))),
        ok = ?SPOOL:close(Spool),
        Again = open(Dir),
        ?assertEqual(0, lists:sum([filelib:file_size(File) || File <- files(Dir)])),
        ok = ?SPOOL:close(Again)
    end).

removed_accounts_test() ->
    with_folder(fun(Dir) ->
        Spool = add([entry(1), entry(2), entry(3, <<"carol@example.org">>)], open(Dir)),
        {2, Deleted} = ?SPOOL:delete_user(<<"bob@example.org">>, Spool),
        {ok, _} = ?SPOOL:flush(?SPOOL:add_removal(<<"bob@example.org">>, <<"s">>, Deleted)),
        Again = open(Dir),
        ?assertEqual([<<"carol@example.org">>], ?SPOOL:users(?SPOOL:tables(Again))),
        ?assertEqual(#{<<"bob@example.org">> => <<"s">>}, ?SPOOL:removals(Again)),
        {ok, _} = ?SPOOL:flush(?SPOOL:removal_done(<<"bob@example.org">>, Again)),
        ?assertEqual(#{}, ?SPOOL:removals(open(Dir)))
    end).

what_cannot_be_written_is_told_test() ->
    with_folder(fun(Dir) ->
        {error, Text} = ?SPOOL:open("/proc/amphora"),
        ?assertMatch({match, _}, re:run(Text, "/proc/amphora")),
        ok = ?SPOOL:close(open(Dir))
    end).
