%% Gives each message with a <relay xmlns='urn:example:relay' to=''/> to the interceptor's relay/3,
%% addressed anew: from the user whom it was for to the address in there.
-module(mod_relayer).

-behaviour(gen_mod).

-export([start/2, stop/1, depends/2, mod_options/1, mod_doc/0, relay/1]).

-include("xmpp.hrl").

start(Host, _Opts) ->
    ejabberd_hooks:add(sm_receive_packet, Host, ?MODULE, relay, 40).

stop(Host) ->
    ejabberd_hooks:delete(sm_receive_packet, Host, ?MODULE, relay, 40).

depends(_Host, _Opts) -> [].

mod_options(_Host) -> [].

mod_doc() -> #{}.

relay(#message{to = To} = Message) ->
    case [Attrs || #xmlel{name = <<"relay">>, attrs = Attrs} <- xmpp:get_els(Message)] of
        [Attrs] ->
            Silent = fxml:get_attr_s(<<"silent">>, Attrs) == <<"true">>,
            Next = jid:decode(fxml:get_attr_s(<<"to">>, Attrs)),
            Copy = Message#message{from = jid:remove_resource(To), to = Next},
            _ = mod_amphora_edge:relay(To#jid.lserver, Copy, Silent),
            drop;
        [] ->
            Message
    end;
relay(Stanza) ->
    Stanza.
