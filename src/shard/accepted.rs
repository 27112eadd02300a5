//! Which keys were accepted lately: what an intercept's `after` is checked against.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::time::Timestamp;
use crate::words::Key;

/// How many keys a shard remembers. A link has at most 1,024 unanswered intercepts
/// over all shards, so this covers several links whose load falls into one shard. A key
/// that has fallen out makes the intercept that names it wait for its predecessor's
/// verdict (`retry`), which costs time and never order.
const CAPACITY: usize = 4_096;

/// How long a key is remembered.
const MEMORY: Duration = Duration::from_secs(60);

/// The accepted keys of a shard, oldest first.
#[derive(Debug, Default)]
pub struct Accepted {
    order: VecDeque<(Timestamp, Key)>,
    /// Each with whether it was accepted at a stage after that of its rules.
    keys: HashMap<Key, bool>,
}

impl Accepted {
    /// Remembers a key.
    pub fn insert(&mut self, now: Timestamp, key: Key) {
        self.remember(now, key, false);
    }

    /// Remembers a key that was accepted after the stage of its rules. False if it is remembered that
    /// it was before.
    pub fn insert_last(&mut self, now: Timestamp, key: Key) -> bool {
        !self.remember(now, key, true)
    }

    /// Whether it was accepted after the stage of its rules before.
    fn remember(&mut self, now: Timestamp, key: Key, last: bool) -> bool {
        if let Some(known) = self.keys.get_mut(&key) {
            return std::mem::replace(known, *known || last);
        }
        self.keys.insert(key.clone(), last);
        self.order.push_back((now, key));
        while self.order.len() > CAPACITY {
            self.drop_oldest();
        }
        false
    }

    /// Whether a key is remembered.
    pub fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Forgets a key: it was given up after all.
    pub fn remove(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// Forgets what is too old.
    pub fn tick(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(at, _)| now.since(*at) > MEMORY) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.keys.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn it_is_known_what_was_accepted_after_its_rules() {
        let mut accepted = Accepted::default();
        accepted.insert(at(0), "k".into());
        assert!(accepted.insert_last(at(0), "k".into()), "it was at its rules only");
        accepted.insert(at(0), "k".into());
        assert!(!accepted.insert_last(at(0), "k".into()));
        accepted.remove("k");
        assert!(accepted.insert_last(at(0), "k".into()), "the append was given up");
    }

    #[test]
    fn keys_are_bounded_in_number_and_age() {
        let mut accepted = Accepted::default();
        for i in 0..CAPACITY + 1 {
            accepted.insert(at(0), format!("k-{i}").into());
        }
        assert!(!accepted.contains("k-0"));
        assert!(accepted.contains("k-1"));
        accepted.remove("k-1");
        assert!(!accepted.contains("k-1"));
        accepted.tick(at(61));
        assert!(!accepted.contains("k-2"));
        assert!(accepted.order.is_empty());
    }
}
