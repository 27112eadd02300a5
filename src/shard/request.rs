//! What is asked of a server, and answered to it, for somebody else than a shard. It goes out
//! on the links beside what shards say.

use std::sync::Arc;

use crate::words::Bare;

/// A question to the server of a host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// Comes back with the answer.
    pub number: u64,
    /// The host.
    pub host: Arc<str>,
    /// The question.
    pub ask: Errand,
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
