//! What the machine is told, and what it asks for.

use std::sync::Arc;
use std::time::Duration;

pub use crate::shard::Answered;
use crate::shard::Request;
use crate::store::{Broadcast, BroadcastChange, Recipient};
use crate::time::Timestamp;

use super::{Command, Reply};

/// The time, by both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// What expires, expires by this.
    pub wall: Timestamp,
    /// What waits, waits by this: it is never set.
    pub steady: Duration,
}

/// What a machine is set to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts that this node serves.
    pub hosts: Vec<Arc<str>>,
}

/// Who waits for a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Asker(pub u64);

/// Ties the outcome of a change to what waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Write(pub u64);

/// Everything that the machine reacts to.
#[derive(Debug)]
pub enum Input {
    /// What the store has; the first of all.
    Loaded(Vec<Broadcast>),
    /// An administrator's command.
    Command {
        /// Who asks.
        asker: Asker,
        /// What for.
        command: Command,
        /// The only host that he may ask for; none: any.
        host: Option<Arc<str>>,
        /// Something random, for a broadcast that begins with it.
        token: String,
    },
    /// The interceptor of a host is there, with what its server takes in one stanza.
    HostUp {
        /// The host.
        host: Arc<str>,
        /// Bytes.
        max_stanza: usize,
    },
    /// It is not.
    HostDown {
        /// The host.
        host: Arc<str>,
    },
    /// A server's answer to [`Effect::Ask`].
    Answered {
        /// The question.
        number: u64,
        /// The answer.
        answer: Answered,
    },
    /// The outcome of [`Effect::Change`].
    Changed {
        /// Which one.
        write: Write,
        /// Recipients touched.
        rows: Result<u64, String>,
    },
    /// The answer to [`Effect::Read`].
    Page {
        /// Whose.
        broadcast: i64,
        /// The recipients.
        rows: Result<Vec<Recipient>, String>,
    },
    /// The answer to [`Effect::Find`].
    Found {
        /// Of which broadcast.
        broadcast: i64,
        /// Who.
        recipient: Recipient,
        /// Whether the store has, or had, a message of that key.
        known: Result<bool, String>,
    },
    /// It is time for something.
    Wake,
    /// The node stops: nothing more is sent.
    Stop,
}

/// Everything that the machine can ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the server of a host.
    Ask(Request),
    /// Change what is kept.
    Change {
        /// Comes back with the outcome.
        write: Write,
        /// How.
        change: BroadcastChange,
    },
    /// Read recipients that are not settled.
    Read {
        /// Whose.
        broadcast: i64,
        /// After this place.
        after: u64,
        /// How many at most.
        limit: u64,
    },
    /// Look for a key among the stored messages.
    Find {
        /// Comes back with the answer.
        broadcast: i64,
        /// Comes back with the answer.
        recipient: Recipient,
        /// The key.
        key: String,
    },
    /// Answer a command.
    Reply {
        /// Who asked.
        asker: Asker,
        /// What he is told.
        reply: Reply,
    },
}
