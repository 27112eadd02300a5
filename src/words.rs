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

/// Which link, for ever: a link that reconnects gets a new one. Those of this node are numbered
/// from 1; those of another node have, in the upper half, the number of its incarnation, which is
/// never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LinkId(pub u64);

impl LinkId {
    /// A link of another node: its incarnation's number, and how that node numbers the link.
    pub fn of_peer(incarnation: u32, number: u32) -> Self {
        LinkId((u64::from(incarnation) << 32) | u64::from(number))
    }

    /// All links of another node.
    pub fn all_of_peer(incarnation: u32) -> Self {
        Self::of_peer(incarnation, 0)
    }

    /// The number of the incarnation of the node whose link it is; zero: this one's.
    pub fn peer(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// How the node that has the link numbers it; zero: all of its links.
    pub fn number(self) -> u32 {
        self.0 as u32
    }

    /// Whether that link is this one, or one of these.
    pub fn covers(self, link: LinkId) -> bool {
        self == link || (self.number() == 0 && self.peer() != 0 && self.peer() == link.peer())
    }
}

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
    fn links_of_another_node_are_told_apart() {
        let link = LinkId::of_peer(7, 3);
        assert_eq!((link.peer(), link.number()), (7, 3));
        assert_eq!((LinkId(3).peer(), LinkId(3).number()), (0, 3));
        assert!(link.covers(link) && LinkId::all_of_peer(7).covers(link));
        for other in [LinkId(3), LinkId::of_peer(8, 3), LinkId::of_peer(7, 4)] {
            assert!(!link.covers(other), "{other:?}");
        }
        assert!(!LinkId::all_of_peer(8).covers(link) && !LinkId(0).covers(LinkId(1)));
    }

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
