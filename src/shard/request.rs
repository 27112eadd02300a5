//! What is asked of a server, and answered to it, for somebody else than a shard. It goes out
//! on the links beside what shards say.

use std::sync::Arc;

use crate::store::Fate;
use crate::words::Bare;

/// A question to the server of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Comes back with the answer. A node uses 32 bits of it.
    pub number: u64,
    /// The host.
    pub host: Arc<str>,
    /// The question.
    pub ask: Errand,
}

impl Request {
    /// The same, as another node has asked it: that its incarnation's number stands in the upper
    /// half of the number lets the answer find its way.
    pub fn of_peer(self, peer: u32) -> Self {
        let number = (u64::from(peer) << 32) | (self.number & u64::from(u32::MAX));
        Request { number, ..self }
    }

    /// Who has asked, zero for this node, and by which number.
    pub fn asked_by(number: u64) -> (u32, u64) {
        ((number >> 32) as u32, number & u64::from(u32::MAX))
    }
}

/// What a server is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Errand {
    /// To send a message of the host's own, and say what became of it (section 5 of the
    /// intercept protocol).
    Settle {
        /// Its key.
        key: String,
        /// To whom.
        to: Bare,
        /// It may have been asked before.
        again: bool,
        /// The message.
        stanza: String,
    },
    /// For the names of its accounts, in order (section 9).
    Accounts {
        /// After this one; empty: from the first.
        after: String,
        /// How many at most.
        max: usize,
    },
}

/// What a server answers to that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answered {
    /// What became of the message.
    Settled(Fate),
    /// Names of accounts.
    Accounts {
        /// In order.
        names: Vec<String>,
        /// There are no more.
        complete: bool,
    },
    /// It can't be done, now or later.
    Refused(String),
    /// Not now: no link, no answer, no room.
    Failed(String),
}

/// The answer to a request of an interceptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The virtual host that asked.
    pub host: Arc<str>,
    /// The request's id.
    pub request: String,
    /// What its result holds, or the error: type, condition, text.
    pub answer: Result<String, (&'static str, &'static str, String)>,
}
