//! Quotas: how much may be kept for one user, and what is known of how much is.

use std::collections::HashMap;

use crate::store::{Amount, Detail, Usage};
use crate::time::Timestamp;
use crate::words::{Bare, bare};

/// What becomes of a message that there is no room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Over {
    /// Its sender gets an error (XEP-0160 section 3).
    #[default]
    Error,
    /// It is dropped in silence.
    Drop,
}

/// How much may be kept for one user. Zero is no limit, everywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Messages.
    pub messages_per_user: u64,
    /// Bytes of stanzas.
    pub bytes_per_user: u64,
    /// Messages of one sender, all his resources together.
    pub messages_per_sender: u64,
    /// Bytes of stanzas of one sender.
    pub bytes_per_sender: u64,
    /// What becomes of the rest.
    pub over: Over,
}

impl Limits {
    fn limit_anything(&self) -> bool {
        self.bytes_per_user > 0 || self.messages_per_user > 0 || self.limit_senders()
    }

    fn limit_senders(&self) -> bool {
        self.messages_per_sender > 0 || self.bytes_per_sender > 0
    }

    /// What has to be known of what is stored.
    pub(super) fn detail(&self) -> Detail {
        if self.limit_senders() {
            Detail::Senders
        } else if self.bytes_per_user > 0 {
            Detail::Bytes
        } else {
            Detail::Messages
        }
    }

    /// Whether another message of that size fits. Limits of senders are not for the host
    /// itself, whose notices of many messages are from one address.
    pub(super) fn leave_room(&self, usage: &Usage, host: &str, sender: &str, bytes: u64) -> bool {
        let mut all = usage.all;
        all.add(Amount::one(bytes));
        if !within(all, self.messages_per_user, self.bytes_per_user) {
            return false;
        }
        let sender = bare(sender);
        if !self.limit_senders() || sender == host {
            return true;
        }
        let mut his = usage.senders.get(sender).copied().unwrap_or_default();
        his.add(Amount::one(bytes));
        within(his, self.messages_per_sender, self.bytes_per_sender)
    }
}

fn within(amount: Amount, messages: u64, bytes: u64) -> bool {
    (messages == 0 || amount.messages <= messages) && (bytes == 0 || amount.bytes <= bytes)
}

/// The limits of every user.
#[derive(Clone, Debug, Default)]
pub struct Quotas {
    general: Limits,
    /// By bare JID or by domain, each complete.
    of: HashMap<String, Limits>,
    limit_anybody: bool,
}

impl Quotas {
    /// `of` has the limits of some users and domains, by bare JID or domain as the server
    /// writes them; the user comes before his domain, and it before the `general` ones.
    pub fn new(general: Limits, of: HashMap<String, Limits>) -> Self {
        let limit_anybody = general.limit_anything() || of.values().any(Limits::limit_anything);
        Quotas { general, of, limit_anybody }
    }

    /// A user's limits; none if nothing is limited for him. Two look-ups at most, and none
    /// where nobody has a limit.
    pub(super) fn of(&self, user: &str) -> Option<&Limits> {
        if !self.limit_anybody {
            return None;
        }
        let own = (!self.of.is_empty()).then(|| self.overrides(user)).flatten();
        Some(own.unwrap_or(&self.general)).filter(|limits| limits.limit_anything())
    }

    fn overrides(&self, user: &str) -> Option<&Limits> {
        let domain = || user.rsplit_once('@').map_or(user, |(_, domain)| domain);
        self.of.get(user).or_else(|| self.of.get(domain()))
    }
}

/// What is known of how much is stored for a recipient: never less than there is.
///
/// It is read while no append is under way. Each append adds to it before it is submitted,
/// and takes that back if it comes to nothing. What is deleted is not taken off: the store
/// is asked anew where that could make room.
#[derive(Clone, Debug)]
pub struct Used {
    /// Stored, or under way.
    pub usage: Usage,
    /// When the store said so.
    pub read_at: Timestamp,
    /// Something was deleted since.
    pub freed: bool,
}

impl Used {
    /// An append begins.
    pub fn reserve(&mut self, limits: &Limits, sender: &str, bytes: usize) {
        let one = Amount::one(bytes as u64);
        self.usage.all.add(one);
        if limits.limit_senders() {
            let sender = bare(sender);
            match self.usage.senders.get_mut(sender) {
                Some(his) => his.add(one),
                None => {
                    self.usage.senders.insert(Bare::from(sender), one);
                }
            }
        }
    }

    /// It came to nothing.
    pub fn give_back(&mut self, sender: &str, bytes: usize) {
        let one = Amount::one(bytes as u64);
        self.usage.all.take(one);
        let sender = bare(sender);
        if let Some(his) = self.usage.senders.get_mut(sender) {
            his.take(one);
            if his.messages == 0 {
                self.usage.senders.remove(sender);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(messages_per_user: u64) -> Limits {
        Limits { messages_per_user, ..Limits::default() }
    }

    #[test]
    fn a_user_comes_before_his_domain_and_it_before_the_rest() {
        let of = [("bob@h", limits(1)), ("h", limits(2)), ("free", limits(0))];
        let of = of.map(|(name, limits)| (name.to_owned(), limits));
        let quotas = Quotas::new(limits(3), of.into());
        for (user, expected) in
            [("bob@h", Some(1)), ("eve@h", Some(2)), ("bob@x", Some(3)), ("a@free", None)]
        {
            let found = quotas.of(user).map(|limits| limits.messages_per_user);
            assert_eq!(found, expected, "{user}");
        }
        assert!(Quotas::new(limits(0), HashMap::new()).of("bob@h").is_none());
    }

    #[test]
    fn every_limit_holds_to_the_last_message_and_byte() {
        let used = |messages, bytes| Usage {
            all: Amount { messages, bytes },
            senders: [("eve@h".into(), Amount { messages: messages - 1, bytes: bytes - 1 })].into(),
        };
        for (limits, fits, does_not) in [
            (Limits { messages_per_user: 3, ..limits(0) }, (2, 99), (3, 99)),
            (Limits { bytes_per_user: 20, ..limits(0) }, (2, 10), (2, 11)),
            (Limits { messages_per_sender: 3, ..limits(0) }, (3, 99), (4, 99)),
            (Limits { bytes_per_sender: 20, ..limits(0) }, (2, 11), (2, 12)),
        ] {
            let room = |(m, b), sender| limits.leave_room(&used(m, b), "h", sender, 10);
            assert!(room(fits, "eve@h/desk"), "{limits:?}");
            assert!(!room(does_not, "eve@h/phone"), "{limits:?}");
            let of_senders = limits.limit_senders();
            assert_eq!(room(does_not, "bob@h"), of_senders, "{limits:?}");
            assert_eq!(room(does_not, "h"), of_senders, "{limits:?}");
        }
    }

    #[test]
    fn what_is_given_back_leaves_nothing_behind() {
        let limits = Limits { bytes_per_sender: 1, ..limits(1) };
        let usage = Usage::default();
        let mut used = Used { usage, read_at: Timestamp::from_micros(0), freed: false };
        used.reserve(&limits, "eve@h/a", 7);
        used.reserve(&limits, "eve@h/b", 5);
        assert_eq!(used.usage.senders["eve@h"], Amount { messages: 2, bytes: 12 });
        used.give_back("eve@h/c", 5);
        used.give_back("eve@h/c", 7);
        assert_eq!(used.usage, Usage::default());
    }
}
