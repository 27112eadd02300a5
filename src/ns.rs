//! XML namespaces, named once.

/// XEP-0079: the rules and their replies.
pub const AMP: &str = "http://jabber.org/protocol/amp";
/// XEP-0079 section 6.2.5: rules whose error action was triggered.
pub const AMP_ERRORS: &str = "http://jabber.org/protocol/amp#errors";
/// RFC 6120 section 8.3: stanza error conditions.
pub const STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// RFC 6120 section 4.9: stream error conditions.
pub const STREAM_ERRORS: &str = "urn:ietf:params:xml:ns:xmpp-streams";
/// RFC 6120 section 4.8.1: the stream itself.
pub const STREAMS: &str = "http://etherx.jabber.org/streams";
/// RFC 6120: stanzas between client and server.
pub const CLIENT: &str = "jabber:client";
/// XEP-0114: stanzas between component and server.
pub const COMPONENT: &str = "jabber:component:accept";
/// XEP-0203: when a stanza was first sent.
pub const DELAY: &str = "urn:xmpp:delay";
/// XEP-0297: a stanza inside a stanza.
pub const FORWARD: &str = "urn:xmpp:forward:0";
/// XEP-0334: message processing hints.
pub const HINTS: &str = "urn:xmpp:hints";
/// XEP-0085: chat states.
pub const CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";
/// XEP-0013: offline messages, one by one.
pub const OFFLINE: &str = "http://jabber.org/protocol/offline";
/// XEP-0030: what an entity is and can do.
pub const DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
/// XEP-0030: what an entity has.
pub const DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
/// XEP-0004: forms.
pub const FORMS: &str = "jabber:x:data";
/// The protocol between interceptor and node; see `docs/intercept.md`.
pub const INTERCEPT: &str = "urn:amphora:intercept:1";
/// The `xml` prefix, bound for ever.
pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
