//! How much is stored for one recipient: what quotas are held against.

use std::collections::HashMap;

use crate::words::Bare;

/// Messages and the bytes of their stanzas.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amount {
    /// Messages.
    pub messages: u64,
    /// Bytes of their stanzas, as stored.
    pub bytes: u64,
}

impl Amount {
    /// One message of that many bytes.
    pub fn one(bytes: u64) -> Self {
        Amount { messages: 1, bytes }
    }

    /// So much more.
    pub fn add(&mut self, more: Amount) {
        self.messages = self.messages.saturating_add(more.messages);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }

    /// So much less.
    pub fn take(&mut self, less: Amount) {
        self.messages = self.messages.saturating_sub(less.messages);
        self.bytes = self.bytes.saturating_sub(less.bytes);
    }
}

/// How much of the usage is asked for. The first is answered from an index alone, the
/// others look at each of the recipient's rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// The number of messages; `bytes` are zero.
    Messages,
    /// Messages and bytes.
    Bytes,
    /// Both, also for each sender.
    Senders,
}

/// What is stored for one recipient.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All of it.
    pub all: Amount,
    /// By the sender's bare JID; empty unless it was asked for. At most as many as there
    /// are messages.
    pub senders: HashMap<Bare, Amount>,
}
