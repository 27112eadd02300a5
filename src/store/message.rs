//! What the store gives back: messages, page by page, and those that are due.

use bytes::Bytes;

use crate::stanza::MessageType;
use crate::time::Timestamp;
use crate::words::{Bare, Expiry, Key, MessageId};

/// A message as it is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMessage {
    /// Its place among the recipient's.
    pub id: MessageId,
    /// The key of its intercept.
    pub key: Key,
    /// The full JID of the original sender.
    pub sender: String,
    /// The stanza's type.
    pub kind: MessageType,
    /// When it first reached a server.
    pub stored_at: Timestamp,
    /// The recipient's archive has it.
    pub archived: bool,
    /// The next `expire-at` rule that may fire.
    pub expiry: Option<Expiry>,
    /// The rule that was met when it was stored.
    pub met_rule: Option<u16>,
    /// The `<message/>` as received.
    pub stanza: Bytes,
}

/// What a list of messages shows of one, without its stanza.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    /// Its place among the recipient's.
    pub id: MessageId,
    /// The full JID of the original sender.
    pub sender: String,
    /// When the next `expire-at` rule may fire.
    pub expires_at: Option<Timestamp>,
}

/// How much is read at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageLimit {
    /// Messages at most; 0 counts as 1.
    pub rows: usize,
    /// Bytes of stanzas at most; the first message comes whatever its size.
    pub bytes: usize,
}

/// A message whose `expire-at` rule may fire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DueMessage {
    /// Whose message it is.
    pub recipient: Bare,
    /// When, and which rule.
    pub expiry: Expiry,
    /// The message.
    pub message: StoredMessage,
}

impl DueMessage {
    /// Where it stands; what comes after it is read from here.
    pub fn position(&self) -> DuePosition {
        DuePosition { at: self.expiry.at, recipient: self.recipient.clone(), id: self.message.id }
    }
}

/// A place in the order in which messages expire: time, then recipient, then id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DuePosition {
    /// The time.
    pub at: Timestamp,
    /// Among those of the same time.
    pub recipient: Bare,
    /// Among those of the same recipient.
    pub id: MessageId,
}

impl DuePosition {
    /// Before every message that expires.
    pub fn start() -> Self {
        Self::before(Timestamp::from_micros(i64::MIN))
    }

    /// Before all that expire at `at` or later.
    pub fn before(at: Timestamp) -> Self {
        DuePosition { at, recipient: Bare::from(""), id: MessageId::ZERO }
    }
}

/// What a purge removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Purged {
    /// Messages older than the retention.
    pub messages: u64,
    /// Marks that were over.
    pub marks: u64,
}
