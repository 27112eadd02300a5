//! Keys that the link refused by itself: no shard has seen them, so what names one as its
//! predecessor is given that key's own predecessor instead.

use std::collections::{HashMap, VecDeque};

use crate::words::Key;

/// How many refused keys are remembered: four windows. An older one makes its successor
/// wait for the verdict (`retry`), which costs time and never order.
const CAPACITY: usize = 4 * super::window::INTERCEPTS;

/// The refused keys of one link.
#[derive(Debug, Default)]
pub struct Refused {
    after: HashMap<Key, Option<Key>>,
    oldest: VecDeque<Key>,
}

impl Refused {
    /// Remembers a refused key and the one that it came after.
    pub fn insert(&mut self, key: Key, after: Option<Key>) {
        let after = self.resolve(after);
        if self.after.insert(key.clone(), after).is_none() {
            self.oldest.push_back(key);
        }
        if self.oldest.len() > CAPACITY
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.after.remove(&oldest);
        }
    }

    /// The last key before, that a shard has seen.
    pub fn resolve(&self, after: Option<Key>) -> Option<Key> {
        let key = after?;
        match self.after.get(&key) {
            Some(before) => before.clone(),
            None => Some(key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_keys_are_stepped_over() {
        let mut refused = Refused::default();
        refused.insert("b".into(), Some("a".into()));
        refused.insert("c".into(), Some("b".into()));
        refused.insert("x".into(), None);
        assert_eq!(refused.resolve(Some("c".into())), Some("a".into()));
        assert_eq!(refused.resolve(Some("a".into())), Some("a".into()));
        assert_eq!(refused.resolve(Some("x".into())), None);
        assert_eq!(refused.resolve(None), None);
    }

    #[test]
    fn they_are_bounded() {
        let mut refused = Refused::default();
        for i in 0..CAPACITY + 10 {
            refused.insert(format!("k{i}").into(), None);
        }
        assert_eq!(refused.after.len(), CAPACITY);
        assert_eq!(refused.oldest.len(), CAPACITY);
    }
}
