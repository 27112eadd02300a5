%%% What the modules of the interceptor share.

-define(NS_INTERCEPT, <<"urn:amphora:intercept:1">>).
-define(NS_AMP_URI, <<"http://jabber.org/protocol/amp">>).
-define(NS_FORWARDED, <<"urn:xmpp:forward:0">>).
-define(NS_DELAY_URI, <<"urn:xmpp:delay">>).
-define(NS_SID, <<"urn:xmpp:sid:0">>).
-define(NS_FLEX, <<"http://jabber.org/protocol/offline">>).

-define(AMPHORA_VERSION, <<"0.1.0">>).
-define(AMPHORA_PROTOCOL, <<"1">>).

%% A node of Amphora that is there: its greeting was answered on the component's present stream.
-record(link, {
    %% {virtual host, component}
    id :: {binary(), binary()} | '_',
    %% the ejabberd_service process of its stream, on any node of the cluster
    pid :: pid() | '_',
    %% one more at each greeting; a verdict counts only on the link of its sending
    gen :: integer() | '_',
    node = <<"?">> :: binary() | '_',
    security = <<>> :: binary() | '_',
    %% unanswered intercepts that this ejabberd node may have with it
    window = 1024 :: pos_integer() | '_',
    actions = [] :: [binary()] | '_',
    conditions = [] :: [binary()] | '_'
}).
