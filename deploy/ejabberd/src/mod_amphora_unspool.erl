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
    case gen_mod:is_loaded(Host, mod_amphora) of
        true -> {error, <<"mod_amphora_unspool: mod_amphora is loaded, and has the spool. "
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

user(Host, Bare, {Moved, Left, Spool}) ->
    case mod_amphora_spool_file:load(Bare, Spool) of
        {ok, #{key := Key, gen := Gen} = Entry, Loaded} ->
            case store(Host, Bare, Entry) of
                ok ->
                    {_, Settled} = mod_amphora_spool_file:flush(mod_amphora_spool_file:done({Key, Gen}, Loaded)),
                    user(Host, Bare, {Moved + 1, Left, Settled});
                {error, Reason} ->
                    ?LOG_ERROR("Amphora: a message for ~ts stays in the spool: ~p", [Bare, Reason]),
                    user(Host, Bare, {Moved, Left + 1, Loaded})
            end;
        {_, Loaded} ->
            {Moved, Left, Loaded}
    end.

store(Host, Bare, #{xml := Xml, stamp := Stamp}) ->
    try
        #xmlel{} = El = fxml_stream:parse_element(Xml),
        {ok, #message{from = From} = Message} = mod_amphora_xml:decode(El),
        #jid{luser = User} = To = jid:decode(Bare),
        mod_offline:store_offline_msg(#offline_msg{
            us = {User, Host}, timestamp = xmpp_util:decode_timestamp(Stamp), expire = never,
            from = From, to = To, packet = Message})
    catch
        Class:Reason -> {error, {Class, Reason}}
    end.
