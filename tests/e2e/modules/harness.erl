%% Lets a test look into an ejabberd and change what is in it: expressions come over a socket of
%% the loopback interface, and their values go back.
-module(harness).

-export([start/1, account/4]).

-include("mod_roster.hrl").

%% Listen on a free port, and write its number into that file.
start(File) ->
    spawn(fun() -> listen(File) end),
    ok.

listen(File) ->
    {ok, Listener} = gen_tcp:listen(0, [binary, {packet, 4}, {active, false}, {ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Listener),
    ok = file:write_file(File ++ ".new", integer_to_list(Port)),
    ok = file:rename(File ++ ".new", File),
    accept(Listener).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn(fun() -> serve(Socket) end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    accept(Listener).

serve(Socket) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Text} ->
            ok = gen_tcp:send(Socket, answer(Text)),
            serve(Socket);
        {error, closed} ->
            ok
    end.

answer(Text) ->
    try
        ["ok ", print(value(Text))]
    catch
        Class:Reason:Stack ->
            ["error ", print({Class, Reason, Stack})]
    end.

print(Value) ->
    unicode:characters_to_binary(io_lib:format("~0tp", [Value])).

value(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, erl_eval:new_bindings()),
    Value.

%% An account and its roster, [{BareJid, Subscription}], in place of the one that it had.
account(User, Host, Password, Contacts) ->
    _ = ejabberd_auth:try_register(User, Host, Password),
    lists:foreach(
        fun mnesia:dirty_delete_object/1,
        mnesia:dirty_index_read(roster, {User, Host}, #roster.us)
    ),
    lists:foreach(fun(Contact) -> write(User, Host, Contact) end, Contacts).

write(User, Host, {Contact, Subscription}) ->
    Jid = jid:tolower(jid:remove_resource(jid:decode(Contact))),
    mnesia:dirty_write(#roster{
        usj = {User, Host, Jid},
        us = {User, Host},
        jid = Jid,
        subscription = Subscription
    }).
