%%% What mod_offline had stored, before this module was loaded or while it was not, moves into the
%%% spool when the module starts. Keys are made of what the table says of a message, so that an
%%% import that is cut off and begun again adds nothing twice; and the table is emptied only when
%%% the disk has what was added.
-module(mod_amphora_import).

-export([run/1]).

-include_lib("kernel/include/logger.hrl").
-include("xmpp.hrl").
-include("mod_offline.hrl").
-include("mod_amphora.hrl").

-define(USERS, 500). % users whose messages are copied before one wait for the disk

%% Called when the spool is open, and before any worker starts.
-spec run(binary()) -> ok.
run(Host) ->
    Mod = gen_mod:db_mod(Host, mod_offline),
    try users(Mod, Host) of
        Users -> import(Users, Mod, Host, mod_amphora_spool:max_ord(Host))
    catch
        Class:Reason ->
            ?LOG_ERROR("Amphora: the offline messages of ~ts can't be listed and stay where they are: ~p",
                       [Host, {Class, Reason}])
    end.

%%% ------------------------------------------------------------------ who has any

users(mod_offline_mnesia, Host) ->
    lists:usort([User || {User, Server} <- mnesia:dirty_all_keys(offline_msg), Server =:= Host]);
users(mod_offline_sql, Host) ->
    case ejabberd_sql:sql_query(Host, [<<"select distinct username from spool">>, of_host(Host)]) of
        {selected, _, Rows} -> [User || [User] <- Rows];
        Wrong -> error(Wrong)
    end;
users(_Other, Host) ->
    [User || {User, _} <- ejabberd_auth:get_users(Host)].

%% Where the tables are shared by all hosts. The name of the question differs between releases.
-dialyzer({no_missing_calls, of_host/1}).
of_host(Host) ->
    Question = case erlang:function_exported(ejabberd_sql, use_multihost_schema, 0) of
                   true -> use_multihost_schema;
                   false -> use_new_schema
               end,
    case ejabberd_sql:Question() of
        true -> [<<" where server_host='">>, ejabberd_sql:escape(Host), <<"'">>];
        false -> []
    end.

%%% ------------------------------------------------------------------ some users at a time

import([], _Mod, _Host, _Ord) ->
    ok;
import(Users, Mod, Host, Ord) ->
    {Some, Others} = lists:split(min(length(Users), ?USERS), Users),
    {Copied, Next} = lists:foldl(
        fun(User, {Done, Place}) ->
            case copy(User, Mod, Host, Place) of
                {0, Same} -> {Done, Same};
                {Count, Further} -> {[{User, Count} | Done], Further}
            end
        end, {[], Ord}, Some),
    case Copied =:= [] orelse mod_amphora_spool:sync(Host) of
        {error, Reason} -> ?LOG_ERROR("Amphora: the offline messages of ~ts stay where they are: ~ts", [Host, Reason]);
        _ ->
            lists:foreach(fun({User, Count}) -> empty(User, Mod, Host, Count) end, lists:reverse(Copied)),
            import(Others, Mod, Host, Next)
    end.

%% Copies a user's messages. How many there are, and the place in the order after them.
copy(User, Mod, Host, Ord) ->
    Bare = <<User/binary, $@, Host/binary>>,
    try
        Rows = rows(User, Mod, Host),
        {Records, _} = lists:mapfoldl(fun(Row, Seen) -> record(Row, Bare, Seen) end, #{}, Rows),
        New = [Record || #{key := Key} = Record <- Records, not mod_amphora_spool:known(Host, Key)],
        {count(User, Mod, Host), lists:foldl(fun(Record, Place) -> append(Record, Place, Host, Bare) end, Ord, New)}
    catch
        Class:Reason:Stack ->
            ?LOG_ERROR("Amphora: the offline messages of ~ts stay where they are: ~p", [Bare, {Class, Reason, Stack}]),
            {0, mod_amphora_spool:max_ord(Host)}
    end.

count(User, Mod, Host) -> length(Mod:read_message_headers(User, Host)).

append(Record, Ord, Host, Bare) ->
    {ok, Handle} = mod_amphora_spool:append(Host, Bare, Record#{ord => Ord + 1}),
    ok = mod_amphora_spool:release(Host, Bare, Handle),
    Ord + 1.

%% What is there for the user, in order, without what has expired (XEP-0023): mod_offline does not
%% deliver that either. {Time or undefined, #xmlel{}}.
rows(User, Mod, Host) ->
    case Mod:read_message_headers(User, Host) of
        Headers when is_list(Headers) ->
            case mod_offline_opt:use_mam_for_storage(Host) andalso Headers =/= [] of
                true -> archived_rows(User, Host);
                false -> live_rows(Headers, Mod:read_all_messages(User, Host))
            end;
        Wrong ->
            error({read_message_headers, Wrong})
    end.

live_rows(Headers, Messages) when length(Headers) =:= length(Messages) ->
    Now = erlang:timestamp(),
    [{Time, addressed(El, From, To)}
     || {{_, From, To, Time, El}, #offline_msg{expire = Expire}} <- lists:zip(Headers, Messages),
        not (is_tuple(Expire) andalso Expire < Now)];
live_rows(Headers, _Messages) ->
    [{Time, addressed(El, From, To)} || {_, From, To, Time, El} <- Headers].

%% The table has only the oldest of them, and marks; the others are the archive's.
archived_rows(User, Host) ->
    [{undefined, mod_amphora_xml:encode(Message)}
     || #message{type = Type} = Message <- mod_offline:get_offline_els(User, Host), Type =/= error].

addressed(#xmlel{attrs = Attrs} = El, From, To) ->
    Named = [{<<"from">>, jid:encode(From)}, {<<"to">>, jid:encode(To)}],
    El#xmlel{attrs = Named ++ [Attr || {Name, _} = Attr <- Attrs, Name =/= <<"from">>, Name =/= <<"to">>]}.

%% The same message with the same time may be there twice: the second is told from the first by its number.
record({Time, El}, Bare, Seen) ->
    Text = fxml:element_to_binary(El),
    Count = maps:get({Time, Text}, Seen, 0),
    Sum = crypto:hash(sha, [Bare, 0, integer_to_binary(Count), 0, io_lib:format("~w", [Time]), 0, Text]),
    Key = <<"import-", (binary:encode_hex(Sum))/binary>>,
    {ok, #message{from = From, to = To} = Message} = mod_amphora_xml:decode(El),
    Archived = is_archived(Message, Bare),
    {Sealed, _} = mod_amphora_facts:seal(Message, Bare, Key, Archived),
    {#{key => Key, stage => offline, stamp => stamp(Time, Message), archived => Archived,
       from => jid:encode(From), addressed => jid:encode(To), el => Sealed}, Seen#{{Time, Text} => Count + 1}}.

%% mod_mam gives what it archives an id by the recipient, and takes forged ones away.
is_archived(#message{to = #jid{lserver = Host}} = Message, Bare) ->
    mod_amphora_facts:archives(Host) andalso mod_amphora_xml:stanza_ids(Message, Bare) =/= [].

%% When the server stored it: beside the message, or written into it.
stamp({_, _, _} = Time, _Message) -> mod_amphora_xml:stamp(Time);
stamp(undefined, #message{to = #jid{lserver = Host}} = Message) ->
    case [Stamp || #delay{stamp = Stamp, from = #jid{lserver = By}} <- delays(Message), By =:= Host] of
        [] -> mod_amphora_xml:stamp();
        Stamps -> mod_amphora_xml:stamp(lists:last(Stamps))
    end.

delays(Message) ->
    lists:flatmap(fun(El) ->
        try xmpp:decode(El) of
            #delay{} = Delay -> [Delay];
            _ -> []
        catch _:_ -> []
        end
    end, [El || El <- xmpp:get_els(Message), xmpp:get_name(El) =:= <<"delay">>]).

%% mod_offline's own way to forget a user's messages, which takes its counters along.
empty(User, Mod, Host, Count) ->
    _ = mod_offline:remove_user(User, Host),
    case Mod:read_message_headers(User, Host) of
        [] ->
            ?LOG_INFO("Amphora: ~b offline messages of ~ts@~ts moved into the spool", [Count, User, Host]);
        _ ->
            ?LOG_ERROR("Amphora: ~b offline messages of ~ts@~ts were copied into the spool, but can't be deleted where "
                       "they were. They come again after a restart unless somebody deletes them", [Count, User, Host])
    end.
