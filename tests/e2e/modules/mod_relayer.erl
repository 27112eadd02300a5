%% Gives each message with a <relay xmlns='urn:example:relay' to=''/> to the interceptor's relay/3,
%% addressed anew: from the user whom it was for to the address in there.
-module(mod_relayer).

-behaviour(gen_mod).

-export([start/2, stop/1, depends/2, mod_options/1, mod_doc/0, relay/1]).

-include("xmpp.hrl").

start(Host, _Opts) ->
    ejabberd_hooks:add(sm_receive_packet, Host, ?MODULE, relay, 10).

stop(Host) ->
    ejabberd_hooks:delete(sm_receive_packet, Host, ?MODULE, relay, 10).

depends(_Host, _Opts) -> [].

mod_options(_Host) -> [].

mod_doc() -> #{}.

relay(#message{to = To} = Message) ->
    case xmpp:get_subtag(Message, #xmlel{name = <<"relay">>, attrs = [{<<"xmlns">>, <<"urn:example:relay">>}]}) of
        #xmlel{attrs = Attrs} ->
            {_, Next} = lists:keyfind(<<"to">>, 1, Attrs),
            Silent = lists:keyfind(<<"silent">>, 1, Attrs) == {<<"silent">>, <<"true">>},
            Copy = Message#message{from = jid:remove_resource(To), to = jid:decode(Next)},
            _ = mod_amphora_edge:relay(To#jid.lserver, Copy, Silent),
            drop;
        _ ->
            Message
    end;
relay(Stanza) ->
    Stanza.
