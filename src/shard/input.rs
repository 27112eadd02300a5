//! What a shard is told: facts travel beside the message, never inside it.

use std::sync::Arc;

use crate::amp::{Refusal, RuleSet, Session};
use crate::stanza::Message;
use crate::store::{Outcome, StoreError, StoredMessage, Usage};
use crate::time::Timestamp;
use crate::words::{Bare, Key, LinkId, MessageId};

use super::effect::Token;
use super::retrieve::{Found, Retrieve};

/// Where in the server the message is held (section 2 of the intercept protocol).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// It carries rules; archive, carbons and push have not seen it.
    Rules,
    /// The server would give it to its offline storage; archive and push have seen it.
    Offline,
    /// It comes back from sessions that ended without acknowledging it.
    Undelivered,
}

impl Stage {
    /// As the protocol writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Rules => "rules",
            Stage::Offline => "offline",
            Stage::Undelivered => "undelivered",
        }
    }
}

/// Whose server asks: the two edges that rules are for (XEP-0079 section 2.1.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Leg {
    /// The recipient's; he is a user of the host that asks.
    Recipient,
    /// The sender's; the message is about to leave for another server.
    Sender {
        /// That server supports Advanced Message Processing (section 2.2.4).
        next_supports_amp: bool,
    },
}

/// A message that the interceptor holds, with what the server knows.
#[derive(Clone, Debug)]
pub struct Intercept {
    /// The link that asks; the verdict goes there.
    pub link: LinkId,
    /// The virtual host that asks, the recipient's or the sender's: where replies come from.
    pub host: Arc<str>,
    /// Stays with the message through resending, spool and all stages.
    pub key: Key,
    /// The last unresolved key of the pair, at this sending.
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
    /// The recipient's own archive has the message.
    pub archived: bool,
    /// Sessions that are available now.
    pub sessions: Vec<Session>,
    /// The server would send it on to another address.
    pub forwards_to: bool,
    /// The server would send it through a gateway.
    pub gateway: bool,
    /// When the server received it.
    pub stamp: Timestamp,
    /// The message itself.
    pub message: Message,
    /// It has rules, and its sender may not learn what becomes of it: nothing about it goes
    /// back to him (section 2 of the intercept protocol, Strict).
    pub silent: bool,
    /// Its rules, validated; `None` where there are none to look at.
    pub rules: Option<Result<RuleSet, Refusal>>,
}

/// A session can take messages: its user became available (section 3).
#[derive(Clone, Debug)]
pub struct Available {
    /// The link that the session is reached through.
    pub link: LinkId,
    /// The session's virtual host.
    pub host: Arc<str>,
    /// This session for ever, not the resource.
    pub session: Arc<str>,
    /// Rises with each new reason.
    pub n: u64,
    /// The user.
    pub user: Bare,
    /// Until when the client has read the archive itself; none if it does not. What is
    /// archived and older is not handed over.
    pub archive: Option<Timestamp>,
    /// Bytes that one batch may have: half of what the server takes.
    pub batch_bytes: usize,
}

/// Items that a client has taken (section 4).
#[derive(Clone, Debug)]
pub struct Taken {
    /// The link that says so.
    pub link: LinkId,
    /// The session's virtual host.
    pub host: Arc<str>,
    /// The session that took them.
    pub session: Arc<str>,
    /// The user.
    pub user: Bare,
    /// The batch, as handed over.
    pub batch: u64,
    /// What was acknowledged.
    pub ids: Vec<MessageId>,
    /// The session is gone, or can't take more.
    pub ended: bool,
}

/// What became of a stanza that the node asked a server to send (section 5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// Routed, or withheld by the server: done with.
    Done,
    /// No link, or no answer: try again when there is one.
    Failed,
}

/// A request whose result a link waits for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The link.
    pub link: LinkId,
    /// The virtual host that asked.
    pub host: Arc<str>,
    /// The request's id on that link.
    pub request: String,
}

/// Everything that a shard reacts to.
#[derive(Debug)]
pub enum Input {
    /// A held message.
    Intercept(Box<Intercept>),
    /// A session that can take messages.
    Available(Available),
    /// Items that a session has taken.
    Taken(Taken),
    /// An account is gone; its messages go too (section 7).
    AccountRemoved {
        /// The account.
        user: Bare,
        /// When the server removed it; what was sent later is for a new account.
        at: Timestamp,
        /// Who is told when it is done.
        asked: Asked,
    },
    /// A link has closed, or all of a node have: their sessions and their undecided intercepts are
    /// forgotten.
    LinkDown(LinkId),
    /// The interceptor of a host on a link was loaded anew: the same for that host.
    HostDown {
        /// The link.
        link: LinkId,
        /// The host.
        host: Arc<str>,
    },
    /// Writes that the store has decided.
    Written(Vec<(Token, Outcome)>),
    /// A page of a recipient's messages.
    Page {
        /// Whose.
        user: Bare,
        /// After which id it was read.
        after: MessageId,
        /// The rows, in order of their ids.
        rows: Result<Vec<StoredMessage>, StoreError>,
    },
    /// How much is stored for a recipient.
    Usage {
        /// Whose.
        user: Bare,
        /// The question's number.
        question: u64,
        /// The answer.
        usage: Result<Usage, StoreError>,
    },
    /// Whether a key is known to the store.
    Found {
        /// Whose message.
        user: Bare,
        /// The key that was looked for.
        key: Key,
        /// `None`: not known. `Some(rule)`: stored before, with the rule that was met.
        known: Result<Option<Option<u16>>, StoreError>,
    },
    /// A stored message whose time has passed.
    Due {
        /// Whose.
        user: Bare,
        /// The row.
        row: StoredMessage,
    },
    /// A user asks for his stored messages (XEP-0013, section 6).
    Retrieve(Retrieve),
    /// What the store showed for the sake of that.
    Looked {
        /// Whose messages.
        user: Bare,
        /// What it found.
        found: Result<Found, StoreError>,
    },
    /// What became of a notice about an expiry.
    Sent {
        /// Whose message had expired.
        user: Bare,
        /// The message.
        id: MessageId,
        /// The outcome.
        sent: Sent,
    },
    /// Time passes.
    Tick,
}
