//! The words of the architecture that every layer uses: keys, recipients, ids.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::time::Timestamp;

/// The key of an intercept: unique for ever, chosen by the interceptor.
pub type Key = Arc<str>;

/// A bare JID as the server normalised it. Its bytes are hashed, compared and
/// stored; nothing here normalises it again.
pub type Bare = Arc<str>;

/// A full JID without its resource; a bare one as it is.
pub fn bare(jid: &str) -> &str {
    jid.split_once('/').map_or(jid, |(bare, _)| bare)
}

/// The slice of all recipients that one shard actor decides for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ShardId(pub u32);

/// Which link of this node, for ever: a link that reconnects gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u64);

/// The place of a stored message among its recipient's: shard epoch (21 bits) and
/// counter (42 bits: at 100,000 messages a second to one shard it lasts for more than a year). Ids of one recipient only grow, over restarts and owners.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct MessageId(pub i64);

impl MessageId {
    /// Before every id.
    pub const ZERO: MessageId = MessageId(0);
    /// The highest epoch that 21 bits hold.
    pub const MAX_EPOCH: u32 = (1 << 21) - 1;
    /// The highest counter that 42 bits hold.
    pub const MAX_COUNTER: u64 = (1 << COUNTER_BITS) - 1;

    /// The id of the `counter`th append in `epoch`.
    pub fn new(epoch: u32, counter: u64) -> Self {
        debug_assert!(epoch <= Self::MAX_EPOCH && counter <= Self::MAX_COUNTER);
        MessageId((i64::from(epoch) << COUNTER_BITS) | (counter & Self::MAX_COUNTER).cast_signed())
    }

    /// Its place among those of its epoch.
    pub fn counter(self) -> u64 {
        self.0.cast_unsigned() & Self::MAX_COUNTER
    }
}

/// See [`MessageId`].
const COUNTER_BITS: u32 = 42;

/// As `0000007-0000000000812`: epoch and counter, so that text sorts as numbers do.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:07}-{:013}", self.0 >> COUNTER_BITS, self.counter())
    }
}

/// The text is not `epoch-counter`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not the id of a stored message")]
pub struct BadMessageId(String);

impl FromStr for MessageId {
    type Err = BadMessageId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadMessageId(text.chars().take(64).collect());
        let (epoch, counter) = text.split_once('-').ok_or_else(bad)?;
        let digits =
            |s: &str| !s.is_empty() && s.len() <= 13 && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(epoch) || !digits(counter) {
            return Err(bad());
        }
        let epoch: u32 = epoch.parse().map_err(|_| bad())?;
        let counter: u64 = counter.parse().map_err(|_| bad())?;
        if epoch > Self::MAX_EPOCH || counter > Self::MAX_COUNTER {
            return Err(bad());
        }
        Ok(MessageId::new(epoch, counter))
    }
}

/// When a stored message's `expire-at` rule fires, and which rule it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expiry {
    /// The rule's value.
    pub at: Timestamp,
    /// The rule's place among the message's rules, from zero.
    pub rule: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_id_prints_and_parses() {
        let id = MessageId::new(7, 812);
        assert_eq!(id.to_string(), "0000007-0000000000812");
        assert_eq!("0000007-0000000000812".parse(), Ok(id));
        assert!(MessageId::new(1, MessageId::MAX_COUNTER) < MessageId::new(2, 0));
        for bad in ["", "-", "7", "a-1", "1-4398046511104", "2097152-1", "+1-1", "1-1-1"] {
            assert!(bad.parse::<MessageId>().is_err(), "{bad}");
        }
    }
}
