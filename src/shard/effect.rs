//! What a shard wants done. Tests compare whole lists of these.

use std::sync::Arc;

use bytes::Bytes;

use crate::store::{Detail, PageLimit, Write};
use crate::time::Timestamp;
use crate::words::{Bare, Key, LinkId, MessageId};

use super::input::Stage;
use super::quota::Over;
use super::request::{Request, Response};
use super::retrieve::{Look, Retrieved};

/// Ties the outcome of a write to what waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(pub u64);

/// What the interceptor is to do with a message that it holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Do {
    /// Go on as if it had not been held.
    Deliver,
    /// It is durable here.
    Stored,
    /// Nothing remains of it.
    Discarded,
    /// Keep it, ask again later.
    Retry,
}

impl Do {
    /// As the protocol writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Do::Deliver => "deliver",
            Do::Stored => "stored",
            Do::Discarded => "discarded",
            Do::Retry => "retry",
        }
    }
}

/// The answer to one intercept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The virtual host that asked.
    pub host: Arc<str>,
    /// The intercept's key.
    pub key: Key,
    /// The stage that this is for.
    pub stage: Stage,
    /// What to do.
    pub what: Do,
    /// With `Deliver`: what the server answers to the sender, if anything, is dropped.
    pub silent: bool,
    /// Stanzas to route once that is done.
    pub sends: Vec<String>,
}

/// One stored message on its way to a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Item {
    /// The row.
    pub id: MessageId,
    /// When the server received it.
    pub stamp: Timestamp,
    /// The stanza as received.
    pub stanza: Bytes,
}

/// A batch for one session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandOver {
    /// The session's virtual host.
    pub host: Arc<str>,
    /// The session.
    pub session: Arc<str>,
    /// Its number, unique on this node for ever.
    pub batch: u64,
    /// Shown because they were asked for (section 6): they stay stored when taken.
    pub view: bool,
    /// In order.
    pub items: Vec<Item>,
}

/// What goes out on a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ToLink {
    /// The answer to an intercept.
    Verdict(Verdict),
    /// Stored messages for a session.
    HandOver(HandOver),
    /// A session has got all that was stored.
    HandedOver {
        /// The session's virtual host.
        host: Arc<str>,
        /// The session.
        session: Arc<str>,
        /// The reason that this answers.
        n: u64,
        /// How many items it got.
        count: u64,
    },
    /// The rows of a batch are gone.
    Deleted {
        /// The session's virtual host.
        host: Arc<str>,
        /// The session.
        session: Arc<str>,
        /// The batch.
        batch: u64,
    },
    /// An account's messages are gone, or the store could not remove them now.
    AccountRemoved {
        /// The account's virtual host.
        host: Arc<str>,
        /// The request's id.
        request: String,
        /// Whether it is done.
        done: bool,
    },
    /// A stanza of the host's own to be routed: the notice of an expiry.
    Send(Send),
    /// A question for somebody else than a shard.
    Request(Request),
    /// The answer to a request of an interceptor.
    Response(Response),
    /// The answer to a user who asked for his messages.
    Retrieved(Retrieved),
}

/// A stanza that answers no intercept (section 5 of the intercept protocol).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// Comes back with the outcome: whose message expired.
    pub user: Bare,
    /// Comes back with the outcome: the message.
    pub id: MessageId,
    /// Routed once for this key.
    pub key: String,
    /// The stanza.
    pub stanza: String,
}

/// A write and what waits for it.
#[derive(Clone, Debug)]
pub struct WriteFor {
    /// Comes back with the outcome.
    pub token: Token,
    /// The write.
    pub write: Write,
}

/// Everything that a shard can ask for.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Say something on a link.
    Link(LinkId, ToLink),
    /// Write to the store.
    Write(WriteFor),
    /// Read a page of a recipient's messages, in order, after an id.
    ReadPage {
        /// Whose.
        user: Bare,
        /// After this one.
        after: MessageId,
        /// How much at the most.
        limit: PageLimit,
    },
    /// Show a recipient's messages to himself.
    Look {
        /// Whose.
        user: Bare,
        /// Which of them, and how much of each.
        look: Look,
    },
    /// Ask how much is stored for a recipient.
    Usage {
        /// Whose.
        user: Bare,
        /// Comes back with the answer.
        question: u64,
        /// How much of it has to be known.
        detail: Detail,
    },
    /// A message was not kept because of a quota; its sender was told so or not.
    OverQuota(Over),
    /// Look for a key among rows and marks.
    Find {
        /// Whose message.
        user: Bare,
        /// The key.
        key: Key,
    },
    /// Have a stanza of the host's own routed: the notice of an expiry.
    Send(Send),
    /// A message with an expiry is stored, or free again: look at the clock anew.
    Scheduled(Timestamp),
    /// A stored message is larger than the server takes (now): it stays where it is.
    Oversized {
        /// Whose.
        user: Bare,
        /// The message.
        id: MessageId,
        /// Its bytes.
        bytes: usize,
    },
    /// A due message was dealt with, or is held by something that will see to it.
    DueTaken,
}
