//! What an interceptor says, read from one stanza.
//!
//! The messages that carry the load are read in one pass, and the intercepted message is
//! cut out of the bytes as it came. Unknown elements and attributes are ignored.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

use crate::amp::Session;
use crate::ns;
use crate::shard::{Leg, Stage};
use crate::stanza::Message;
use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, bare};
use crate::xml::{Element, XmlError};

/// One thing that a server said.
#[derive(Debug)]
pub enum Incoming {
    /// A message that the interceptor of that host holds.
    Intercept {
        /// The host.
        host: String,
        /// The message and what is known about it.
        held: Box<Held>,
    },
    /// An intercept that can't be understood.
    Malformed(Malformed),
    /// A session can take messages.
    Available {
        /// The host.
        host: String,
        /// The session for ever.
        session: Arc<str>,
        /// The reason's number.
        n: u64,
        /// The user.
        user: Bare,
        /// Until when the client has read the archive itself; none if it does not.
        archive: Option<Timestamp>,
    },
    /// A session has taken a batch, or has ended.
    Taken {
        /// The host.
        host: String,
        /// The session.
        session: Arc<str>,
        /// The user; empty for a session that the server does not know.
        user: Bare,
        /// The batch.
        batch: u64,
        /// What was acknowledged.
        ids: Vec<MessageId>,
        /// The session is gone.
        ended: bool,
    },
    /// The interceptor of that host has been loaded anew and wants to be greeted.
    Hello {
        /// The host.
        host: String,
    },
    /// An IQ, whole.
    Iq(Element),
    /// An IQ of a host that can't be read.
    Unreadable(XmlError),
    /// Something else; nothing is done about it.
    Other,
}

/// An intercept as it stands on the wire (section 2 of the intercept protocol).
#[derive(Debug)]
pub struct Held {
    /// Names the message for ever.
    pub key: Key,
    /// The last unresolved key of its pair.
    pub after: Option<Key>,
    /// It may have been sent before.
    pub again: bool,
    /// Where it is held.
    pub stage: Stage,
    /// Whose server holds it.
    pub leg: Leg,
    /// The recipient.
    pub to: Bare,
    /// The recipient's account exists.
    pub account: bool,
    /// The sender may see the recipient's presence.
    pub may_see_presence: bool,
    /// The recipient's archive has it.
    pub archived: bool,
    /// The server would send it on.
    pub forwards_to: bool,
    /// The server would send it through a gateway.
    pub gateway: bool,
    /// Available sessions.
    pub sessions: Vec<Session>,
    /// When the server received it.
    pub stamp: Option<Timestamp>,
    /// The message.
    pub message: Message,
}

/// An intercept whose message can't be read. The interceptor is told to drop it, the
/// sender gets an error if his address could be read.
#[derive(Debug)]
pub struct Malformed {
    /// The host.
    pub host: String,
    /// Its key; without one nobody can be answered.
    pub key: Option<Key>,
    /// Where it is held.
    pub stage: Stage,
    /// The sender may see the recipient's presence.
    pub may_see_presence: bool,
    /// The message's `from`, `to` and `id`, as far as they could be read.
    pub from: Option<String>,
    /// The message's `to`.
    pub to: Option<String>,
    /// The message's `id`.
    pub id: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl From<quick_xml::Error> for XmlError {
    fn from(error: quick_xml::Error) -> Self {
        XmlError(error.to_string())
    }
}

/// Reads one stanza for `component`. What is not from one of `hosts` is left out.
///
/// # Errors
///
/// The stanza is not well-formed: the stream has to be closed.
pub fn read(
    stanza: &Bytes,
    component: &str,
    hosts: &[Arc<str>],
) -> Result<Vec<Incoming>, XmlError> {
    let text = std::str::from_utf8(stanza).map_err(|e| XmlError(e.to_string()))?;
    let mut reader = Reader { xml: NsReader::from_str(text), stanza };
    let (start, empty) = reader.root()?;
    let attrs = Attributes::of(&start)?;
    let host = attrs.get("from").unwrap_or_default();
    // Anybody can have the server send something here: what is not from a host is not read,
    // so that nothing in it can end the link.
    if !hosts.iter().any(|h| **h == *host) || attrs.get("to") != Some(component) {
        return Ok(vec![Incoming::Other]);
    }
    match start.local_name().as_ref() {
        "message" if !empty && attrs.get("type") != Some("error") => {}
        "iq" => {
            let iq = Element::parse_in(text, ns::COMPONENT);
            return Ok(vec![iq.map_or_else(Incoming::Unreadable, Incoming::Iq)]);
        }
        _ => return Ok(vec![Incoming::Other]),
    }
    let mut said = Vec::new();
    while let Some((child, namespace, empty)) = reader.child()? {
        let known = namespace == Space::Intercept;
        match child.local_name().as_ref() {
            "intercept" if known => said.push(reader.intercept(host, &child, empty)?),
            "available" if known => said.extend(available(host, &child)?),
            "hello" if known => said.push(Incoming::Hello { host: host.to_owned() }),
            "taken" if known => said.extend(taken(host, &child)?),
            _ => {}
        }
        let read_whole = known && child.local_name().as_ref() == "intercept";
        if !empty && !read_whole {
            reader.xml.read_to_end(child.name())?;
        }
    }
    reader.end()?;
    Ok(said)
}

/// The namespaces that matter here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Intercept,
    Forward,
    Delay,
    Client,
    Other,
}

struct Reader<'a> {
    xml: NsReader<&'a [u8]>,
    stanza: &'a Bytes,
}

impl<'a> Reader<'a> {
    fn root(&mut self) -> Result<(BytesStart<'a>, bool), XmlError> {
        match self.xml.read_event()? {
            Event::Start(start) => Ok((start, false)),
            Event::Empty(start) => Ok((start, true)),
            _ => Err(XmlError("a stanza begins with its start tag".into())),
        }
    }

    fn end(&mut self) -> Result<(), XmlError> {
        match self.xml.read_event()? {
            Event::Eof => Ok(()),
            _ => Err(XmlError("more than one element".into())),
        }
    }

    /// The next child of the current element, or `None` at its end.
    fn child(&mut self) -> Result<Option<(BytesStart<'a>, Space, bool)>, XmlError> {
        loop {
            let (namespace, event) = self.xml.read_resolved_event()?;
            let space = match namespace {
                ResolveResult::Bound(n) if n.0 == ns::INTERCEPT => Space::Intercept,
                ResolveResult::Bound(n) if n.0 == ns::FORWARD => Space::Forward,
                ResolveResult::Bound(n) if n.0 == ns::DELAY => Space::Delay,
                ResolveResult::Bound(n) if n.0 == ns::CLIENT => Space::Client,
                _ => Space::Other,
            };
            match event {
                Event::Start(start) => return Ok(Some((start, space, false))),
                Event::Empty(start) => return Ok(Some((start, space, true))),
                Event::End(_) => return Ok(None),
                Event::Eof => return Err(XmlError("the stanza ends too early".into())),
                _ => {}
            }
        }
    }

    fn intercept(
        &mut self,
        host: &str,
        start: &BytesStart<'a>,
        empty: bool,
    ) -> Result<Incoming, XmlError> {
        let attrs = Attributes::of(start)?;
        let mut inside = Inside::default();
        if !empty {
            self.inside_intercept(host, &mut inside)?;
        }
        let stage = stage(attrs.get("stage"));
        let malformed = |reason: String, inside: Inside| {
            Incoming::Malformed(Malformed {
                host: host.to_owned(),
                key: attrs.get("key").map(Key::from),
                stage: stage.unwrap_or(Stage::Offline),
                may_see_presence: attrs.is_true("may-see-presence"),
                from: inside.from,
                to: inside.to,
                id: inside.id,
                reason,
            })
        };
        let (Some(key), Some(to), Some(at)) = (attrs.get("key"), attrs.get("to"), stage) else {
            return Ok(malformed("key, to or stage is missing or unknown".into(), inside));
        };
        let Some(leg) = leg(&attrs, at) else {
            return Ok(malformed("its leg is unknown, or has no such stage".into(), inside));
        };
        let message = match inside.message.take() {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Ok(malformed(error.to_string(), inside)),
            None => return Ok(malformed("there is no message in it".into(), inside)),
        };
        let held = Held {
            key: key.into(),
            after: attrs.get("after").map(Key::from),
            again: attrs.is_true("again"),
            stage: at,
            leg,
            to: to.into(),
            account: attrs.is_true("account"),
            may_see_presence: attrs.is_true("may-see-presence"),
            archived: attrs.is_true("archived"),
            forwards_to: attrs.get("forwards-to").is_some(),
            gateway: attrs.get("gateway").is_some(),
            sessions: inside.sessions,
            stamp: inside.stamp,
            message,
        };
        Ok(Incoming::Intercept { host: host.to_owned(), held: Box::new(held) })
    }

    fn inside_intercept(&mut self, host: &str, inside: &mut Inside) -> Result<(), XmlError> {
        while let Some((child, space, empty)) = self.child()? {
            match (child.local_name().as_ref(), space) {
                ("session", Space::Intercept) => {
                    inside.sessions.extend(session(&child)?);
                    if !empty {
                        self.xml.read_to_end(child.name())?;
                    }
                }
                ("forwarded", Space::Forward) if !empty => self.forwarded(host, inside)?,
                _ if !empty => {
                    self.xml.read_to_end(child.name())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn forwarded(&mut self, host: &str, inside: &mut Inside) -> Result<(), XmlError> {
        loop {
            let begin = self.position();
            let Some((child, space, empty)) = self.child()? else {
                return Ok(());
            };
            if !empty {
                self.xml.read_to_end(child.name())?;
            }
            match (child.local_name().as_ref(), space) {
                ("delay", Space::Delay) => {
                    let attrs = Attributes::of(&child)?;
                    inside.stamp = attrs.get("stamp").and_then(|stamp| stamp.parse().ok());
                }
                ("message", Space::Client) if inside.message.is_none() => {
                    let end = self.position();
                    let bytes = self.stanza.slice(begin..end);
                    let begin = bytes.iter().position(|b| *b == b'<').unwrap_or(0);
                    let message = Message::parse(bytes.slice(begin..), host);
                    if message.is_err() {
                        let attrs = Attributes::of(&child)?;
                        inside.from = attrs.get("from").map(str::to_owned);
                        inside.to = attrs.get("to").map(str::to_owned);
                        inside.id = attrs.get("id").map(str::to_owned);
                    }
                    inside.message = Some(message);
                }
                _ => {}
            }
        }
    }

    fn position(&self) -> usize {
        usize::try_from(self.xml.buffer_position()).unwrap_or(usize::MAX)
    }
}

/// What was found inside an intercept.
#[derive(Default)]
struct Inside {
    sessions: Vec<Session>,
    stamp: Option<Timestamp>,
    message: Option<Result<Message, XmlError>>,
    from: Option<String>,
    to: Option<String>,
    id: Option<String>,
}

/// The attributes of one tag, unescaped.
struct Attributes<'a>(Vec<(&'a str, Cow<'a, str>)>);

impl<'a> Attributes<'a> {
    fn of(start: &'a BytesStart<'_>) -> Result<Self, XmlError> {
        let mut all = Vec::with_capacity(8);
        for attribute in start.attributes() {
            let attribute = attribute.map_err(|e| XmlError(e.to_string()))?;
            let value = attribute.normalized_value(XmlVersion::Implicit1_0)?;
            all.push((attribute.key.0, value));
        }
        Ok(Attributes(all))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_ref())
    }

    /// A missing fact means the careful answer.
    fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1"))
    }
}

fn stage(text: Option<&str>) -> Option<Stage> {
    match text? {
        "rules" => Some(Stage::Rules),
        "offline" => Some(Stage::Offline),
        "undelivered" => Some(Stage::Undelivered),
        _ => None,
    }
}

/// `None` for one that is unknown. A message on its way out is held at stage `rules` alone.
fn leg(attrs: &Attributes, stage: Stage) -> Option<Leg> {
    match (attrs.get("leg"), stage) {
        (None | Some("recipient"), _) => Some(Leg::Recipient),
        (Some("sender"), Stage::Rules) => {
            Some(Leg::Sender { next_supports_amp: attrs.is_true("next-supports-amp") })
        }
        _ => None,
    }
}

fn session(start: &BytesStart) -> Result<Option<Session>, XmlError> {
    let attrs = Attributes::of(start)?;
    Ok(attrs.get("resource").map(|resource| Session {
        resource: resource.to_owned(),
        // Without a priority it is nobody to send anything to.
        priority: attrs.get("priority").and_then(|p| p.parse().ok()).unwrap_or(-128),
        hibernating: attrs.is_true("hibernating"),
    }))
}

fn available(host: &str, start: &BytesStart) -> Result<Option<Incoming>, XmlError> {
    let attrs = Attributes::of(start)?;
    let (Some(session), Some(jid)) = (attrs.get("session"), attrs.get("jid")) else {
        return Ok(None);
    };
    Ok(Some(Incoming::Available {
        host: host.to_owned(),
        session: session.into(),
        n: attrs.get("n").and_then(|n| n.parse().ok()).unwrap_or(0),
        user: bare(jid).into(),
        archive: archive(&attrs),
    }))
}

/// Until when the client has read its archive. Without `read` that is now; one that is no
/// time leaves the fact out.
fn archive(attrs: &Attributes) -> Option<Timestamp> {
    match attrs.get("read") {
        _ if !attrs.is_true("archive") => None,
        Some(read) => read.parse().ok(),
        None => Some(Timestamp::MAX),
    }
}

fn taken(host: &str, start: &BytesStart) -> Result<Option<Incoming>, XmlError> {
    let attrs = Attributes::of(start)?;
    let (Some(session), Some(batch)) =
        (attrs.get("session"), attrs.get("batch").and_then(|b| b.parse().ok()))
    else {
        return Ok(None);
    };
    let ids = attrs.get("ids").unwrap_or_default();
    Ok(Some(Incoming::Taken {
        host: host.to_owned(),
        session: session.into(),
        user: attrs.get("for").unwrap_or_default().into(),
        batch,
        ids: ids.split_ascii_whitespace().filter_map(|id| id.parse().ok()).collect(),
        ended: attrs.is_true("ended"),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Vec<Arc<str>> {
        vec!["h".into()]
    }

    fn said(stanza: &str) -> Vec<Incoming> {
        read(&Bytes::copy_from_slice(stanza.as_bytes()), "amp.h", &hosts()).unwrap()
    }

    fn message(inside: &str) -> String {
        format!("<message from='h' to='amp.h'>{inside}</message>")
    }

    const MESSAGE: &str = "<message xmlns='jabber:client' from='a@h/r' to='b@h' id='1'>\
        <body>x &amp; <![CDATA[<y>]]></body><x xmlns='u'/> </message>";

    fn intercept(attrs: &str, inside: &str) -> String {
        format!("<intercept xmlns='urn:amphora:intercept:1' {attrs}>{inside}</intercept>")
    }

    fn forwarded(inside: &str) -> String {
        format!("<forwarded xmlns='urn:xmpp:forward:0'>{inside}</forwarded>")
    }

    fn only(stanza: &str) -> Incoming {
        let mut said = said(stanza);
        assert_eq!(said.len(), 1, "{said:?}");
        said.pop().unwrap()
    }

    #[test]
    fn an_intercept_keeps_the_bytes_of_its_message() {
        let delay = "<delay xmlns='urn:xmpp:delay' stamp='2026-11-22T05:00:00.123Z'/>";
        let inside = format!(
            "<session resource='phone' priority='5'/><session resource='pad' priority='-1' hibernating='true'/>{}",
            forwarded(&format!(" {delay}\n {MESSAGE} "))
        );
        let attrs = "key='Z-2' after='Z-1' stage='rules' to='b@h' account='true' \
            may-see-presence='true' archived='false' new='thing'";
        let Incoming::Intercept { host, held } = only(&message(&intercept(attrs, &inside))) else {
            panic!("no intercept")
        };
        assert_eq!(host, "h");
        assert_eq!((&*held.key, held.after.as_deref()), ("Z-2", Some("Z-1")));
        assert_eq!(held.message.raw, MESSAGE.as_bytes());
        assert!(held.account && held.may_see_presence && !held.archived && !held.again);
        let sessions: Vec<_> =
            held.sessions.iter().map(|s| (&*s.resource, s.priority, s.hibernating)).collect();
        assert_eq!(sessions, [("phone", 5, false), ("pad", -1, true)]);
        assert_eq!(held.stamp.unwrap().to_string(), "2026-11-22T05:00:00.123Z");
    }

    #[test]
    fn missing_facts_mean_the_careful_answer() {
        let stanza = message(&intercept("key='k' stage='offline' to='b@h'", &forwarded(MESSAGE)));
        let Incoming::Intercept { held, .. } = only(&stanza) else { panic!("no intercept") };
        assert!(!held.account && !held.may_see_presence && !held.archived);
        assert!(held.sessions.is_empty() && held.stamp.is_none());
    }

    #[test]
    fn r23_the_leg_and_whether_the_next_server_supports_the_rules() {
        let sender = |next_supports_amp| Leg::Sender { next_supports_amp };
        for (attrs, leg) in [
            ("", Leg::Recipient),
            ("leg='recipient' next-supports-amp='true'", Leg::Recipient),
            ("leg='sender' next-supports-amp='true'", sender(true)),
            ("leg='sender' next-supports-amp='false'", sender(false)),
            ("leg='sender'", sender(false)),
        ] {
            let attrs = format!("key='k' stage='rules' to='b@h' {attrs}");
            let stanza = message(&intercept(&attrs, &forwarded(MESSAGE)));
            let Incoming::Intercept { held, .. } = only(&stanza) else { panic!("{attrs}") };
            assert_eq!(held.leg, leg, "{attrs}");
        }
    }

    #[test]
    fn what_cannot_be_read_keeps_its_key_and_addresses() {
        for (attrs, inside, key) in [
            ("key='k' stage='offline' to='b@h'", forwarded(""), Some("k")),
            ("key='k' stage='later' to='b@h'", forwarded(MESSAGE), Some("k")),
            ("stage='offline' to='b@h'", forwarded(MESSAGE), None),
            ("key='k' stage='offline' to='b@h'", String::new(), Some("k")),
            ("key='k' stage='rules' leg='middle' to='b@h'", forwarded(MESSAGE), Some("k")),
            ("key='k' stage='offline' leg='sender' to='b@h'", forwarded(MESSAGE), Some("k")),
        ] {
            let Incoming::Malformed(malformed) = only(&message(&intercept(attrs, &inside))) else {
                panic!("{attrs}")
            };
            assert_eq!(malformed.key.as_deref(), key);
        }
        // A prefix that is declared outside of the message: it could not stand alone.
        let inside = "<message xmlns='jabber:client' from='a@h/r' to='b@h' id='1'><p:x/></message>";
        let stanza = format!(
            "<message xmlns:p='u' from='h' to='amp.h'>{}</message>",
            intercept("key='k' stage='offline' to='b@h'", &forwarded(inside))
        );
        let Incoming::Malformed(malformed) = only(&stanza) else { panic!("it was taken") };
        assert_eq!(malformed.from.as_deref(), Some("a@h/r"));
    }

    #[test]
    fn several_things_in_one_message_keep_their_order() {
        let ns = "xmlns='urn:amphora:intercept:1'";
        let stanza = message(&format!(
            "{}<unknown {ns}><intercept/></unknown><available {ns} session='s' n='2' jid='b@h/p' priority='1' archive='true'/>\
             <taken {ns} for='b@h' session='s' batch='4294967297' ids='0000001-0000000000001  x 0000001-0000000000002' ended='true'/>",
            intercept("key='k' stage='offline' to='b@h'", &forwarded(MESSAGE))
        ));
        let all = said(&stanza);
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(matches!(&all[0], Incoming::Intercept { .. }));
        assert!(
            matches!(&all[1], Incoming::Available { session, n: 2, user, archive: Some(Timestamp::MAX), .. }
            if &**session == "s" && &**user == "b@h")
        );
        assert!(matches!(&all[2], Incoming::Taken { batch: 4_294_967_297, ids, ended: true, .. }
            if ids.len() == 2));
    }

    #[test]
    fn how_far_the_client_has_read_its_archive() {
        let cases = [
            ("", None),
            ("archive='false' read='2026-11-22T05:00:00Z'", None),
            ("archive='true'", Some(Timestamp::MAX)),
            ("archive='true' read='1970-01-01T00:00:01Z'", Some(Timestamp::from_micros(1_000_000))),
            ("archive='true' read='yesterday'", None),
        ];
        for (attrs, read) in cases {
            let available = format!(
                "<available xmlns='urn:amphora:intercept:1' session='s' n='1' jid='b@h/p' {attrs}/>"
            );
            let Incoming::Available { archive, .. } = only(&message(&available)) else {
                panic!("{attrs}")
            };
            assert_eq!(archive, read, "{attrs}");
        }
    }

    #[test]
    fn nobody_but_a_configured_host_is_listened_to() {
        for (from, to) in [("evil", "amp.h"), ("h", "other.h"), ("a@h", "amp.h")] {
            let inside = intercept("key='k' stage='offline' to='b@h'", &forwarded(MESSAGE));
            let stanza = format!("<message from='{from}' to='{to}'>{inside}</message>");
            assert!(matches!(only(&stanza), Incoming::Other), "{from} {to}");
        }
        let iq = "<iq type='result' from='evil' to='amp.h' id='g1'/>";
        assert!(matches!(only(iq), Incoming::Other));
        // Another namespace is another language.
        let stanza = message("<intercept xmlns='urn:other' key='k' stage='offline' to='b@h'/>");
        assert!(said(&stanza).is_empty());
    }

    #[test]
    fn i7_what_strangers_write_is_not_read() {
        let deep = "<a>".repeat(300) + &"</a>".repeat(300);
        let wide: String = (0..300).map(|i| format!(" a{i}='1'")).collect();
        for inside in [deep, format!("<a{wide}/>"), "<a xmlns:xmlns='u'/>".to_owned()] {
            for name in ["message", "iq", "presence"] {
                let stanza = format!("<{name} from='eve@h/r' to='amp.h'>{inside}</{name}>");
                assert!(matches!(only(&stanza), Incoming::Other), "{stanza}");
            }
            let iq = format!("<iq from='h' to='amp.h' type='get' id='1'>{inside}</iq>");
            assert!(matches!(only(&iq), Incoming::Unreadable(_)), "{iq}");
        }
    }

    #[test]
    fn i7_a_message_that_is_too_deep_is_refused_and_the_link_stays() {
        let deep = "<a>".repeat(300) + &"</a>".repeat(300);
        let inside =
            format!("<message xmlns='jabber:client' from='a@h/r' to='b@h' id='1'>{deep}</message>");
        let stanza = message(&intercept("key='k' stage='offline' to='b@h'", &forwarded(&inside)));
        let Incoming::Malformed(malformed) = only(&stanza) else { panic!("it was taken") };
        assert_eq!(malformed.from.as_deref(), Some("a@h/r"));
    }

    #[test]
    fn r33_where_the_server_would_send_it_on() {
        for (attrs, forwards_to, gateway) in [
            ("", false, false),
            ("forwards-to='b@other'", true, false),
            ("gateway='b@gw.h'", false, true),
        ] {
            let attrs = format!("key='k' stage='rules' to='b@h' {attrs}");
            let stanza = message(&intercept(&attrs, &forwarded(MESSAGE)));
            let Incoming::Intercept { held, .. } = only(&stanza) else { panic!("no intercept") };
            assert_eq!((held.forwards_to, held.gateway), (forwards_to, gateway), "{attrs}");
        }
    }

    #[test]
    fn broken_stanzas_close_the_stream() {
        for broken in
            ["<message from='h' to='amp.h'><a></message>", "<message from='h' to='amp.h'>"]
        {
            assert!(read(&Bytes::from_static(broken.as_bytes()), "amp.h", &hosts()).is_err());
        }
    }

    proptest! {
        #[test]
        fn i7_no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut stanza = b"<message from='h' to='amp.h'><intercept xmlns='urn:amphora:intercept:1' ".to_vec();
            stanza.extend(&bytes);
            let _ = read(&Bytes::from(stanza), "amp.h", &hosts());
            let _ = read(&Bytes::from(bytes), "amp.h", &hosts());
        }

        #[test]
        fn i7_no_cut_panics(cut in 0usize..400, junk in "[<>/'a=&; ]{0,6}") {
            let inside = forwarded(MESSAGE);
            let stanza = message(&intercept("key='k' stage='offline' to='b@h'", &inside));
            let cut = cut.min(stanza.len());
            let stanza = format!("{}{junk}{}", &stanza[..cut], &stanza[cut..]);
            let _ = read(&Bytes::from(stanza), "amp.h", &hosts());
        }
    }
}
