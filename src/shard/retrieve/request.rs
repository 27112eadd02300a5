//! What a user asks about his stored messages, and what he is answered.

use std::sync::Arc;

use crate::store::{Header, PageLimit, StoredMessage};
use crate::time::Timestamp;
use crate::words::{Bare, LinkId, MessageId};

/// Messages that one request may name.
pub const MAX_ITEMS: usize = 1_000;

/// Who asks, and how the answer finds him.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asker {
    /// The link that the request came on.
    pub link: LinkId,
    /// The user's virtual host.
    pub host: Arc<str>,
    /// The id of the interceptor's request.
    pub request: String,
    /// The name of this retrieval, for ever: its hand-overs go to it.
    pub name: Arc<str>,
    /// The user.
    pub user: Bare,
    /// His full JID, where the answer goes.
    pub jid: String,
    /// The id of his request.
    pub id: String,
}

/// What is asked (XEP-0013 sections 2.2 to 2.7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// How many messages there are.
    Count,
    /// Which ones, and from whom.
    List,
    /// These messages, which stay stored.
    View(Vec<MessageId>),
    /// All messages, which stay stored.
    Fetch,
    /// These are to be removed.
    Remove(Vec<MessageId>),
    /// All are to be removed.
    Purge,
}

/// A request of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retrieve {
    /// Who asks.
    pub asker: Asker,
    /// What.
    pub ask: Ask,
    /// Bytes that one batch may have: half of what the server takes.
    pub batch_bytes: usize,
}

/// The answer to a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retrieved {
    /// Who asked.
    pub asker: Asker,
    /// What he is told.
    pub answer: Answer,
}

/// What a user is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// So many messages are stored.
    Count(u64),
    /// These are, in order.
    List(Vec<Listed>),
    /// All that was asked for is sent, or is removed for good.
    Done,
    /// It can't be had.
    Refused(Refused),
}

/// One message in a list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its place, the node's name to the client.
    pub id: MessageId,
    /// The full JID of its sender.
    pub sender: String,
}

/// A stanza error (RFC 6120 section 8.3), with a text for the client's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The `type` attribute.
    pub kind: &'static str,
    /// The element that names it.
    pub condition: &'static str,
    /// What is wrong, and what can be done.
    pub text: &'static str,
}

impl Refused {
    /// A message that is not there (F5).
    pub const NOT_FOUND: Self =
        Self::new("cancel", "item-not-found", "There is no such message (any more)");
    /// Somebody else's messages (F5, F9).
    pub const FORBIDDEN: Self =
        Self::new("auth", "forbidden", "Offline messages are shown to their recipient alone");
    /// More requests of a user than wait at once.
    pub const TOO_MANY_REQUESTS: Self = Self::new(
        "wait",
        "resource-constraint",
        "Too many requests for offline messages are under way",
    );
    /// A list that is larger than a stanza may be.
    pub const LIST_TOO_LARGE: Self = Self::new(
        "modify",
        "policy-violation",
        "There are more messages than a list may have: fetch them all, then remove or purge them",
    );
    /// More items than [`MAX_ITEMS`].
    pub const TOO_MANY_ITEMS: Self = Self::new(
        "modify",
        "policy-violation",
        "One request may name 1000 messages: ask for fewer at once",
    );
    /// The store can't be read or written now.
    pub const STORE_FAILED: Self =
        Self::new("wait", "internal-server-error", "The messages can't be reached now: ask again");
    /// A request that XEP-0013 does not know.
    pub const NOT_IMPLEMENTED: Self =
        Self::new("cancel", "feature-not-implemented", "This is no request of XEP-0013");

    /// The node that carried it out, and had shown or removed something, does so no more.
    pub const INTERRUPTED: Self =
        Self::new("wait", "service-unavailable", "The request was interrupted: ask again");
    /// What a shard may answer; each keeps its place, by which nodes name it to each other.
    pub const BY_SHARDS: [Self; 5] = [
        Self::STORE_FAILED,
        Self::NOT_FOUND,
        Self::TOO_MANY_REQUESTS,
        Self::LIST_TOO_LARGE,
        Self::INTERRUPTED,
    ];

    /// A request that says what XEP-0013 does not allow.
    pub const fn bad_request(text: &'static str) -> Self {
        Self::new("modify", "bad-request", text)
    }

    const fn new(kind: &'static str, condition: &'static str, text: &'static str) -> Self {
        Refused { kind, condition, text }
    }
}

/// What the store is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Messages without their stanzas.
    Headers {
        /// After this one.
        after: MessageId,
        /// How many at the most.
        rows: usize,
    },
    /// Whole messages.
    Messages {
        /// After this one.
        after: MessageId,
        /// How much at the most.
        limit: PageLimit,
    },
}

/// What it showed. Empty: there are no more.
#[derive(Debug)]
pub enum Found {
    /// Messages without their stanzas, in order.
    Headers(Vec<Header>),
    /// Whole messages, in order.
    Messages(Vec<StoredMessage>),
}

/// What makes a row one that is shown.
pub(super) trait Row {
    fn id(&self) -> MessageId;
    fn expires_at(&self) -> Option<Timestamp>;
}

impl Row for Header {
    fn id(&self) -> MessageId {
        self.id
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }
}

impl Row for StoredMessage {
    fn id(&self) -> MessageId {
        self.id
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.expiry.map(|expiry| expiry.at)
    }
}
