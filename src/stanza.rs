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
    /// From or about a room: has a child `<x/>` of `muc#user`.
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
    /// room has to learn that its occupant is gone. Otherwise `<no-store/>` wins over
    /// `<store/>`, which wins over type and content.
    pub fn storable(&self) -> bool {
        match self.kind {
            MessageType::Error => self.is_amp_reply(),
            MessageType::Groupchat => false,
            _ if self.no_store => false,
            MessageType::Headline => self.store,
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
            (ns::DELAY, "delay") if tag.attr("from").is_some_and(|from| is_host(from, self.host)) => {
                reader.skip()?;
                self.forged.push(start..reader.place());
                return Ok(());
            }
            (ns::HINTS, "no-store") => message.no_store = true,
            (ns::HINTS, "store") => message.store = true,
            (MUC_USER, "x") => {
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
    !address.is_ascii() && address.len() <= MAX_JID && Jid::new(address).is_ok_and(|jid| jid.as_str() == host)
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
