//! What an intercepted message says, read in one pass; its bytes stay as they came.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use jid::Jid;

use crate::ns;
use crate::xml::{Element, MAX_TREE, Reader, Tag, Token, XmlError};

/// Bytes of the longest JID (RFC 7622 section 3.1): three parts of 1,023, '@' and '/'.
pub const MAX_JID: usize = 3 * 1023 + 2;

/// XEP-0359: ids that a server or a client gives a stanza.
const STANZA_IDS: &str = "urn:xmpp:sid:0";
/// XEP-0045: what a room says to and about its occupants.
const MUC_USER: &str = "http://jabber.org/protocol/muc#user";
const INVITATION: &str = "jabber:x:conference";

/// The `type` of a message stanza (RFC 6121 section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageType {
    /// `normal`, absent, or a value that RFC 6121 does not know.
    Normal,
    /// `chat`
    Chat,
    /// `groupchat`
    Groupchat,
    /// `headline`
    Headline,
    /// `error`
    Error,
}

impl MessageType {
    fn of(value: Option<&str>) -> Self {
        match value {
            Some("chat") => MessageType::Chat,
            Some("groupchat") => MessageType::Groupchat,
            Some("headline") => MessageType::Headline,
            Some("error") => MessageType::Error,
            _ => MessageType::Normal,
        }
    }
}

/// What decides about a message, and its bytes. Only direct children of the stanza
/// count; what a payload holds is its own business.
#[derive(Clone, Debug)]
pub struct Message {
    /// The sender, as written.
    pub from: String,
    /// Whom it is for, as written.
    pub to: Option<String>,
    /// Its id; may be empty.
    pub id: Option<String>,
    /// Its `type`.
    pub kind: MessageType,
    /// Every `<amp/>` of XEP-0079, whole, with or without `status`.
    pub amp: Vec<Element>,
    /// Something worth keeping is in it (O6): a child other than chat states, thread,
    /// hints, delay, stanza and origin id, and rules. Receipts, markers, an `<amp/>` with
    /// `status` and payloads that nothing here knows count; a body counts even if empty.
    pub content: bool,
    /// Hint `<no-store/>` (H1). Never set in an error (H7).
    pub no_store: bool,
    /// Hint `<store/>` (H3). Never set in an error (H7).
    pub store: bool,
    /// From or about a room: has a child `<x/>` of `muc#user` or of a direct invitation
    /// (XEP-0249).
    pub muc: bool,
    /// The bytes as received, less forged delays.
    pub raw: Bytes,
}

impl Message {
    /// Reads a `<message/>` of `jabber:client` that stands alone.
    ///
    /// A `<delay/>` child that claims to come from `host` itself is forged, for only the
    /// host adds it, and later (D5): its bytes are cut out. Without one, `raw` is kept as
    /// it is and nothing is copied.
    ///
    /// Refused: what [`Element::parse`] refuses, another element, no `from`, addresses
    /// longer than [`MAX_JID`] bytes, bytes that are not UTF-8.
    pub fn parse(raw: Bytes, host: &str) -> Result<Message, XmlError> {
        let xml = std::str::from_utf8(&raw).map_err(|_| XmlError("not UTF-8".into()))?;
        let mut reader = Reader::new(xml, "")?;
        reader.read()?;
        let mut children = Children { host, room: MAX_TREE, ..Children::default() };
        let mut message = header(&reader.tag())?;
        loop {
            match reader.read()? {
                Token::Open => children.child(&mut reader, &mut message)?,
                Token::Close => break,
                _ => {}
            }
        }
        reader.read()?;
        if message.kind == MessageType::Error {
            (message.no_store, message.store) = (false, false);
        }
        message.raw = without(raw, &children.forged);
        Ok(message)
    }

    /// Whether it would be kept for someone who is away (O5 to O9, H1, H3, H7).
    ///
    /// Of errors only AMP's own replies (O9), of groupchat nothing, whatever it hints: a
    /// room has to learn that its occupant is gone. Nothing of headlines either, which servers
    /// do not offer to their storage. Otherwise `<no-store/>` wins over
    /// `<store/>`, which wins over type and content.
    pub fn storable(&self) -> bool {
        match self.kind {
            MessageType::Error => self.is_amp_reply(),
            MessageType::Groupchat | MessageType::Headline => false,
            _ if self.no_store => false,
            MessageType::Normal | MessageType::Chat => self.store || self.content,
        }
    }

    /// Whether it is an alert, error or notice of AMP: its rules are never evaluated.
    pub fn is_amp_reply(&self) -> bool {
        self.amp.iter().any(|amp| amp.attr("status").is_some())
    }
}

/// What the start tag says.
fn header(tag: &Tag<'_, '_>) -> Result<Message, XmlError> {
    if !tag.is("message", ns::CLIENT) {
        return Err(XmlError("not a message of jabber:client".into()));
    }
    let from = tag.attr("from").ok_or_else(|| XmlError("a message without 'from'".into()))?;
    let to = tag.attr("to");
    if from.len() > MAX_JID || to.is_some_and(|to| to.len() > MAX_JID) {
        return Err(XmlError("an address longer than any JID".into()));
    }
    Ok(Message {
        from: from.to_owned(),
        to: to.map(str::to_owned),
        id: tag.attr("id").map(str::to_owned),
        kind: MessageType::of(tag.attr("type")),
        amp: Vec::new(),
        content: false,
        no_store: false,
        store: false,
        muc: false,
        raw: Bytes::new(),
    })
}

/// What going through the children of a message needs.
#[derive(Default)]
struct Children<'h> {
    host: &'h str,
    /// Where forged delays stand, in order.
    forged: Vec<Range<usize>>,
    /// Memory that the trees of the rules may still take, in bytes.
    room: usize,
}

impl Children<'_> {
    /// The child whose start tag was read last, to its end.
    fn child(&mut self, reader: &mut Reader<'_>, message: &mut Message) -> Result<(), XmlError> {
        let tag = reader.tag();
        let start = tag.start;
        match (tag.ns, tag.name) {
            (ns::AMP, "amp") => {
                let amp = Element::read(reader, &mut self.room)?;
                message.content |= amp.attr("status").is_some();
                message.amp.push(amp);
                return Ok(());
            }
            (ns::DELAY, "delay")
                if tag.attr("from").is_some_and(|from| is_host(from, self.host)) =>
            {
                reader.skip()?;
                self.forged.push(start..reader.place());
                return Ok(());
            }
            (ns::HINTS, "no-store") => message.no_store = true,
            (ns::HINTS, "store") => message.store = true,
            (MUC_USER | INVITATION, "x") => {
                message.muc = true;
                message.content = true;
            }
            (ns, name) => message.content |= is_content(ns, name),
        }
        reader.skip()
    }
}

/// Whether a child makes its message worth keeping.
fn is_content(ns: &str, name: &str) -> bool {
    !matches!(
        (ns, name),
        (ns::CHAT_STATES | ns::HINTS, _)
            | (ns::CLIENT, "thread")
            | (ns::DELAY, "delay")
            | (STANZA_IDS, "stanza-id" | "origin-id")
    )
}

/// Whether an address is the host's own, also in an unusual spelling: the recipient's
/// client may normalise what it reads.
fn is_host(address: &str, host: &str) -> bool {
    let address = address.strip_suffix('.').unwrap_or(address);
    if address.eq_ignore_ascii_case(host) {
        return true;
    }
    // Only letters beyond ASCII have more spellings.
    !address.is_ascii()
        && address.len() <= MAX_JID
        && Jid::new(address).is_ok_and(|jid| jid.as_str() == host)
}

/// The bytes without those ranges, which are in order and apart.
fn without(raw: Bytes, cuts: &[Range<usize>]) -> Bytes {
    if cuts.is_empty() {
        return raw;
    }
    let mut kept = BytesMut::with_capacity(raw.len());
    let mut from = 0;
    for cut in cuts {
        kept.extend_from_slice(&raw[from..cut.start]);
        from = cut.end;
    }
    kept.extend_from_slice(&raw[from..]);
    kept.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "example.org";

    fn stanza(attributes: &str, children: &str) -> String {
        format!("<message xmlns='jabber:client' from='a@b/c' {attributes}>{children}</message>")
    }

    fn parse(xml: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(xml.as_bytes()), HOST)
            .unwrap_or_else(|error| panic!("{error}: {xml}"))
    }

    fn of(attributes: &str, children: &str) -> Message {
        parse(&stanza(attributes, children))
    }

    const BODY: &str = "<body>hi</body>";
    const CHAT_STATE: &str = "<active xmlns='http://jabber.org/protocol/chatstates'/>";
    const NO_STORE: &str = "<no-store xmlns='urn:xmpp:hints'/>";
    const STORE: &str = "<store xmlns='urn:xmpp:hints'/>";
    const RULES: &str = "<amp xmlns='http://jabber.org/protocol/amp'>\
                         <rule condition='deliver' value='stored' action='notify'/></amp>";
    const ALERT: &str = "<amp xmlns='http://jabber.org/protocol/amp' status='alert'/>";

    #[test]
    fn what_the_start_tag_says() {
        let message = parse(
            "<message xmlns='jabber:client' xml:lang='de' from='a&apos;@b' to='c@d' id='' type='chat'/>",
        );
        assert_eq!(message.from, "a'@b");
        assert_eq!((message.to.as_deref(), message.id.as_deref()), (Some("c@d"), Some("")));
        assert_eq!(message.kind, MessageType::Chat);
        let bare = of("", "");
        assert_eq!((bare.to, bare.id, bare.kind), (None, None, MessageType::Normal));
        assert!(!bare.muc && !bare.content && bare.amp.is_empty());
    }

    #[test]
    fn types_of_rfc6121() {
        let cases = [
            ("normal", MessageType::Normal),
            ("chat", MessageType::Chat),
            ("groupchat", MessageType::Groupchat),
            ("headline", MessageType::Headline),
            ("error", MessageType::Error),
            ("Chat", MessageType::Normal),
            ("", MessageType::Normal),
        ];
        for (written, kind) in cases {
            assert_eq!(of(&format!("type='{written}'"), "").kind, kind, "{written}");
        }
    }

    #[test]
    fn refused() {
        let long = format!("<message xmlns='jabber:client' from='{}'/>", "a".repeat(MAX_JID + 1));
        let cases = [
            "",
            "<message from='a@b'/>",
            "<message xmlns='jabber:server' from='a@b'/>",
            "<iq xmlns='jabber:client' from='a@b'/>",
            "<message xmlns='jabber:client'/>",
            "<message xmlns='jabber:client' from='a@b'><p:x/></message>",
            "<message xmlns='jabber:client' from='a@b' p:x='1'/>",
            "<message xmlns='jabber:client' from='a@b'><x></y></message>",
            "<message xmlns='jabber:client' from='a@b'/><message xmlns='jabber:client' from='a@b'/>",
            "<message xmlns='jabber:client' from='a@b'>&#0;</message>",
            &long,
        ];
        for xml in cases {
            assert!(Message::parse(Bytes::copy_from_slice(xml.as_bytes()), HOST).is_err(), "{xml}");
        }
        assert!(
            Message::parse(
                Bytes::from_static(b"<message xmlns='jabber:client' from='\xff'/>"),
                HOST
            )
            .is_err()
        );
    }

    #[test]
    fn w1_the_bytes_stay_as_they_came_and_are_not_copied() {
        let xml = stanza(
            "  type = \"chat\"",
            "<body >&#65;<![CDATA[x]]></body>\r\n<p:x xmlns:p='urn:p'/>",
        );
        let raw = Bytes::from(xml);
        let message = Message::parse(raw.clone(), HOST).expect("a message");
        assert_eq!(message.raw, raw);
        assert_eq!(message.raw.as_ptr(), raw.as_ptr());
    }

    #[test]
    fn d5_a_delay_from_the_host_itself_is_cut_out() {
        let forged = [
            "<delay xmlns='urn:xmpp:delay' from='example.org' stamp='2026-11-22T05:00:00Z'/>",
            "<delay xmlns='urn:xmpp:delay' from='example.org'>Offline Storage<x/></delay >",
            "<p:delay xmlns:p='urn:xmpp:delay' from='example.org'/>",
            "<delay xmlns='urn:xmpp:dela&#x79;' from='example&#46;org'/>",
            "<delay xmlns='urn:xmpp:delay' from='EXAMPLE.org'/>",
            "<delay xmlns='urn:xmpp:delay' from='example.org.'/>",
        ];
        for delay in forged {
            let message = of("", &format!("a{delay}{BODY}{delay}{delay}\n"));
            assert_eq!(message.raw, stanza("", &format!("a{BODY}\n")), "{delay}");
            assert!(message.content);
        }
        let prefix_above = "<message xmlns='jabber:client' xmlns:d='urn:xmpp:delay' from='a@b'><d:delay from='example.org'/></message>";
        let without =
            "<message xmlns='jabber:client' xmlns:d='urn:xmpp:delay' from='a@b'></message>";
        assert_eq!(parse(prefix_above).raw, without);
    }

    #[test]
    fn d5_other_delays_stay() {
        let honest = [
            "<delay xmlns='urn:xmpp:delay' from='other.example'/>",
            "<delay xmlns='urn:xmpp:delay' from='a@example.org'/>",
            "<delay xmlns='urn:xmpp:delay' from='example.org/x'/>",
            "<delay xmlns='urn:xmpp:delay'/>",
            "<delay xmlns='urn:other' from='example.org'/>",
            "<delay from='example.org'/>",
            "<forwarded xmlns='urn:xmpp:forward:0'><delay xmlns='urn:xmpp:delay' from='example.org'/></forwarded>",
        ];
        for delay in honest {
            let xml = stanza("", delay);
            assert_eq!(parse(&xml).raw, xml);
        }
    }

    #[test]
    fn d5_a_host_beyond_ascii_in_another_case() {
        let xml = stanza("", "<delay xmlns='urn:xmpp:delay' from='B\u{dc}CHER.example'/>");
        let message = Message::parse(Bytes::from(xml), "b\u{fc}cher.example").expect("a message");
        assert_eq!(message.raw, stanza("", ""));
    }

    #[test]
    fn o5_normal_messages_are_kept() {
        for kind in ["", "type='normal'", "type='chat'", "type='unheard-of'"] {
            assert!(of(kind, BODY).storable(), "{kind}");
        }
    }

    #[test]
    fn o6_only_chat_state_is_not_content() {
        let empty = [
            "",
            "\n",
            CHAT_STATE,
            "<thread>t</thread>",
            NO_STORE,
            STORE,
            "<no-copy xmlns='urn:xmpp:hints'/>",
            "<delay xmlns='urn:xmpp:delay' from='elsewhere.example' stamp=''/>",
            "<delay xmlns='urn:xmpp:delay' from='example.org'/>",
            "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='b'/>",
            "<origin-id xmlns='urn:xmpp:sid:0' id='1'/>",
            "<amp xmlns='http://jabber.org/protocol/amp'/>",
            RULES,
        ];
        for child in empty {
            let message = of("type='chat'", &format!("{CHAT_STATE}{child}"));
            assert!(!message.content, "{child}");
        }
        assert!(!of("type='chat'", &(empty.concat() + CHAT_STATE)).content);
        assert!(!of("type='chat'", CHAT_STATE).storable());
        assert!(!of("", "").storable());
    }

    #[test]
    fn o6_anything_else_is_content() {
        let full = [
            BODY,
            "<body/>",
            "<subject>s</subject>",
            "<body xmlns='urn:other'/>",
            "<thread xmlns='urn:other'/>",
            "<stanza-id xmlns='urn:other'/>",
            "<other xmlns='urn:xmpp:sid:0'/>",
            "<other xmlns='urn:xmpp:delay'/>",
            "<delay xmlns='urn:other'/>",
            "<amp xmlns='urn:other'/>",
            "<received xmlns='urn:xmpp:receipts' id='1'/>",
            "<request xmlns='urn:xmpp:receipts'/>",
            "<displayed xmlns='urn:xmpp:chat-markers:0' id='1'/>",
            "<encrypted xmlns='eu.siacs.conversations.axolotl'><active xmlns='http://jabber.org/protocol/chatstates'/></encrypted>",
            ALERT,
        ];
        for child in full {
            let message = of("type='chat'", &format!("{CHAT_STATE}{child}{CHAT_STATE}"));
            assert!(message.content && message.storable(), "{child}");
        }
    }

    #[test]
    fn o7_o8_groupchat_and_headline_are_not_kept() {
        assert!(!of("type='groupchat'", BODY).storable());
        assert!(!of("type='groupchat'", &format!("{BODY}{STORE}")).storable());
        assert!(!of("type='headline'", BODY).storable());
    }

    #[test]
    fn o9_of_errors_only_replies_of_amp() {
        assert!(!of("type='error'", BODY).storable());
        assert!(!of("type='error'", RULES).storable());
        assert!(of("type='error'", ALERT).storable());
    }

    #[test]
    fn h1_no_store_is_not_kept() {
        let message = of("type='chat'", &format!("{BODY}{NO_STORE}"));
        assert!(message.no_store && message.content && !message.storable());
        assert!(!of("", &format!("{BODY}{NO_STORE}{STORE}")).storable());
    }

    #[test]
    fn h2_no_permanent_store_is_kept() {
        let message = of("", &format!("{BODY}<no-permanent-store xmlns='urn:xmpp:hints'/>"));
        assert!(!message.no_store && message.storable());
    }

    #[test]
    fn h3_store_is_kept_without_body() {
        assert!(of("type='chat'", STORE).storable());
        assert!(!of("type='headline'", STORE).storable());
    }

    #[test]
    fn h7_hints_in_errors_are_ignored() {
        let message = of("type='error'", &format!("{ALERT}{NO_STORE}{STORE}"));
        assert!(!message.no_store && !message.store && message.storable());
        assert!(!of("type='error'", &format!("{BODY}{STORE}")).storable());
    }

    #[test]
    fn r52_r53_a_status_makes_a_reply() {
        assert!(!of("", RULES).is_amp_reply());
        assert!(of("", ALERT).is_amp_reply());
        assert!(of("", &format!("{RULES}{ALERT}")).is_amp_reply());
        assert!(of("", &ALERT.replace("alert", "")).is_amp_reply(), "an empty one too");
        assert!(!of("", &ALERT.replace("status", "xml:status")).is_amp_reply());
    }

    #[test]
    fn rules_come_whole_and_all_of_them() {
        let message = of("", &format!("{RULES}{BODY}{RULES}"));
        assert_eq!(message.amp.len(), 2);
        assert_eq!(message.amp[0], Element::parse(RULES).expect("an element"));
        assert_eq!(message.amp[1].children[0].attr("action"), Some("notify"));
    }

    #[test]
    fn w5_only_direct_children_count() {
        let payload =
            format!("<x xmlns='urn:x'>{ALERT}{NO_STORE}{STORE}<x xmlns='{MUC_USER}'/></x>");
        let message = of("", &payload);
        assert!(message.content && message.amp.is_empty());
        assert!(!message.no_store && !message.store && !message.muc);
    }

    #[test]
    fn from_a_room() {
        assert!(of("", &format!("<x xmlns='{MUC_USER}'><invite/></x>")).muc);
        assert!(of("", "<x xmlns='jabber:x:conference' jid='r@h'/>").muc);
        assert!(!of("", "<x xmlns='http://jabber.org/protocol/muc'/>").muc);
        assert!(!of("", &format!("<y xmlns='{MUC_USER}'/>")).muc);
    }

    #[test]
    fn i7_rules_take_bounded_memory() {
        let long = "n".repeat(100_000);
        let xml = stanza(
            "",
            &format!(
                "<p:amp xmlns:p='{}' xmlns='{long}'>{}</p:amp>",
                ns::AMP,
                "<b/>".repeat(1_000)
            ),
        );
        assert!(Message::parse(Bytes::from(xml), HOST).is_err());
    }
}
