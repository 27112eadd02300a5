%%% For a server that goes on without Amphora: in place of mod_amphora in the settings, this module
%%% moves what is in the spool to where mod_offline keeps its messages, when it starts.
-module(mod_amphora_unspool).

-behaviour(gen_mod).

-export([start/2, stop/1, reload/3, depends/2, mod_options/1, mod_opt_type/1, mod_doc/0]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_offline.hrl").
-include("translate.hrl").
-include("mod_amphora.hrl").

start(Host, _Opts) ->
    case lists:keymember(mod_amphora, 1, ejabberd_option:modules(Host)) of
        true -> {error, <<"mod_amphora_unspool: mod_amphora is there too, and has the spool. "
                          "Remedy: take it out of the modules of ", Host/binary>>};
        false -> unspool(Host)
    end.

stop(_Host) -> ok.

reload(_Host, _New, _Old) -> ok.

depends(_Host, _Opts) -> [{mod_offline, hard}].

mod_opt_type(_) -> erlang:error(badarg).

mod_options(_Host) -> [].

mod_doc() ->
    #{desc => ?T("Moves what the spool of 'mod_amphora' holds to the offline messages of 'mod_offline', for a server "
                 "that goes on without Amphora. To be loaded in place of 'mod_amphora'.")}.

unspool(Host) ->
    case mod_amphora_spool_file:open(mod_amphora_spool:folder(Host)) of
        {ok, Spool} ->
            Users = mod_amphora_spool_file:users(mod_amphora_spool_file:tables(Spool)),
            {Moved, Left, Done} = lists:foldl(fun(Bare, Acc) -> user(Host, Bare, Acc) end, {0, 0, Spool}, Users),
            mod_amphora_spool_file:close(mod_amphora_spool_file:tidy(Done)),
            ?LOG_NOTICE("Amphora: ~b messages moved to the offline messages of ~ts, ~b stay in the spool",
                        [Moved, Host, Left]),
            ok;
        {error, Text} ->
            {error, Text}
    end.

%% They are taken out of the spool when the disk has them elsewhere: a server that is killed in between
%% has them twice.
user(Host, Bare, {Moved, Left, Spool}) ->
    {Handles, Errors, Loaded} = move(Host, Bare, 0, {[], [], Spool}),
    on_disk(gen_mod:db_mod(Host, mod_offline)),
    {_, Settled} = mod_amphora_spool_file:flush(lists:foldl(fun mod_amphora_spool_file:done/2, Loaded, Handles)),
    case Errors of
        [] -> ok;
        [Reason | _] -> ?LOG_ERROR("Amphora: ~b messages for ~ts stay in the spool: ~p", [length(Errors), Bare, Reason])
    end,
    {Moved + length(Handles), Left + length(Errors), Settled}.

on_disk(mod_offline_mnesia) -> _ = dets:sync(offline_msg), ok;
on_disk(_) -> ok.

%% In order. mod_offline knows and sorts messages by their time: no two of a user's have the same.
move(Host, Bare, Last, {Handles, Errors, Spool}) ->
    case mod_amphora_spool_file:load(Bare, Spool) of
        {ok, #{key := Key, gen := Gen, stamp := Stamp} = Entry, Loaded} ->
            Time = max(microseconds(Stamp), Last + 1),
            case store(Host, Bare, Time, Entry) of
                ok -> move(Host, Bare, Time, {[{Key, Gen} | Handles], Errors, Loaded});
                {error, Reason} -> move(Host, Bare, Last, {Handles, [Reason | Errors], Loaded})
            end;
        {_, Loaded} ->
            {Handles, Errors, Loaded}
    end.

microseconds(Stamp) -> misc:now_to_usec(xmpp_util:decode_timestamp(Stamp)).

store(Host, Bare, Time, #{xml := Xml}) ->
    try
        #xmlel{} = El = fxml_stream:parse_element(Xml),
        {ok, #message{from = From} = Message} = mod_amphora_xml:decode(El),
        #jid{luser = User} = To = jid:decode(Bare),
        mod_offline:store_offline_msg(#offline_msg{
            us = {User, Host}, timestamp = misc:usec_to_now(Time), expire = never,
            from = From, to = To, packet = Message})
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.
