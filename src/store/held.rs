//! The shards that this process holds, as far as it knows.

use std::sync::{Arc, PoisonError, RwLock};

use crate::shard_map::ShardMap;
use crate::words::ShardId;

/// What is held, as of a term of the lane. While the lane has that term it is exactly what the
/// database says.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) term: i64,
    /// An epoch a shard; zero: not held.
    epochs: Vec<u32>,
    map: ShardMap,
    /// Each of them: nobody's shard need be looked up.
    all: bool,
    /// That of any other number, where one process has everything.
    beyond: Option<u32>,
}

impl Held {
    /// Of so many shards those that are named, with their epochs.
    pub(super) fn of(
        term: i64,
        shards: u32,
        held: impl IntoIterator<Item = (ShardId, u32)>,
    ) -> Self {
        let map = ShardMap::new(shards);
        let epochs = vec![0; map.len() as usize];
        Held { term, epochs, map, all: false, beyond: None }.with(term, held)
    }

    /// All shards, for a process that has the database alone.
    pub(super) fn all(shards: u32, epoch: u32) -> Self {
        let all = (0..shards.max(1)).map(|shard| (ShardId(shard), epoch));
        Held { beyond: Some(epoch), ..Self::of(0, shards, all) }
    }

    /// The same but for these shards; zero: not held any more.
    pub(super) fn with(
        &self,
        term: i64,
        changes: impl IntoIterator<Item = (ShardId, u32)>,
    ) -> Self {
        let mut held = Held { term, ..self.clone() };
        for (shard, epoch) in changes {
            if let Some(known) = held.epochs.get_mut(shard.0 as usize) {
                *known = epoch;
            }
        }
        held.all = held.epochs.iter().all(|epoch| *epoch > 0);
        held
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> u32 {
        self.map.len()
    }

    /// The epoch of a shard that is held.
    pub(super) fn epoch(&self, shard: ShardId) -> Option<u32> {
        match self.epochs.get(shard.0 as usize) {
            Some(epoch) => Some(*epoch).filter(|epoch| *epoch > 0),
            None => self.beyond,
        }
    }

    /// The shard of a bare JID.
    pub(super) fn shard(&self, recipient: &str) -> ShardId {
        self.map.shard(recipient)
    }

    /// Whether what belongs to a recipient may be written; nobody (empty) is everybody's.
    pub(super) fn has(&self, recipient: &str) -> bool {
        self.all || recipient.is_empty() || self.epoch(self.shard(recipient)).is_some()
    }
}

/// What is held now. Whoever learns of a later term puts it here.
#[derive(Debug)]
pub(super) struct HeldNow(RwLock<Arc<Held>>);

impl HeldNow {
    pub(super) fn new(held: Held) -> Arc<Self> {
        Arc::new(HeldNow(RwLock::new(Arc::new(held))))
    }

    pub(super) fn get(&self) -> Arc<Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An earlier term is passed over: it was read before, and comes late.
    pub(super) fn learn(&self, held: Held) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if held.term > now.term {
            *now = Arc::new(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_held_is_nobodys_but_what_belongs_to_no_recipient() {
        let held = Held::all(4, 7);
        assert!(held.has("bob@example.org") && held.epoch(ShardId(3)) == Some(7));
        assert_eq!(held.epoch(ShardId(4)), Some(7));
        assert_eq!(Held::of(0, 4, []).epoch(ShardId(4)), None);
        let bobs = held.shard("bob@example.org");
        let less = held.with(1, [(bobs, 0)]);
        assert!(!less.has("bob@example.org") && less.has(""));
        assert!(less.with(2, [(bobs, 9)]).has("bob@example.org"));
    }

    #[test]
    fn a_term_that_comes_late_is_passed_over() {
        let now = HeldNow::new(Held::all(1, 7));
        now.learn(Held::of(2, 1, [(ShardId(0), 9)]));
        now.learn(Held::of(1, 1, []));
        assert_eq!((now.get().term, now.get().epoch(ShardId(0))), (2, Some(9)));
    }
}
