//! Shards change their owners: what one move does within a transaction.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::sync::oneshot;

use super::lane::{self, Beat, Lane};
use super::ownership::{Holding, Incarnation, MoveError};
use super::{counter, shards};
use crate::words::ShardId;

/// Moves that may wait; whoever has more waits himself.
pub(super) const WAITING: usize = 16;

/// What is to move.
#[derive(Clone, Debug)]
pub(super) enum Move {
    /// These to this process, if all of them are as they were seen. Whoever owns one is fenced.
    Take(Vec<Holding>),
    /// These from this process to another that lives.
    Give(Vec<ShardId>, Incarnation),
}

/// A move, and who is told.
pub(super) struct Moving {
    pub(super) what: Move,
    pub(super) tell: oneshot::Sender<Result<(), MoveError>>,
}

/// What came of it, within the transaction.
pub(super) enum Moved {
    /// To be committed; it has made this epoch.
    Yes(u32),
    /// To be rolled back, for good.
    No(MoveError),
    /// To be rolled back: the own lane is not as it was known.
    Stale,
}

impl Move {
    /// Whose sessions may be ended when they are in the way: those that lose all they have.
    pub(super) fn fences(&self, incarnation: &Incarnation) -> bool {
        match self {
            Move::Take(seen) => seen.iter().any(|one| one.owner.as_ref() == Some(incarnation)),
            Move::Give(..) => false,
        }
    }

    /// How often it is tried, when another session is in the way.
    pub(super) fn tries(&self) -> u32 {
        match self {
            // Who is in the way is ended after the first. What waits here waits no longer than an
            // append may.
            Move::Take(_) => 5,
            // The receiver lives: whoever gives can choose another moment.
            Move::Give(..) => 3,
        }
    }

    /// What this process holds by it, when it made this epoch.
    pub(super) fn changes(&self, epoch: u32) -> Vec<(ShardId, u32)> {
        match self {
            Move::Take(seen) => seen.iter().map(|one| (one.shard, epoch)).collect(),
            Move::Give(shards, _) => shards.iter().map(|shard| (*shard, 0)).collect(),
        }
    }

    /// Locks in this order: the counter, the lanes by name, the shards. Who writes holds no more
    /// than his own lane.
    pub(super) async fn carry_out(
        &self,
        begun: &DatabaseTransaction,
        own: &Lane,
        beat: &Beat,
    ) -> Result<Moved, DbErr> {
        let Some(epoch) = counter::next(begun).await? else {
            return Ok(Moved::No(MoveError::EpochsUsedUp));
        };
        let mut lanes = self.others();
        lanes.insert(&own.incarnation);
        for lane in lanes {
            if *lane == own.incarnation {
                if !own.raise_term(begun, beat).await? {
                    return Ok(Moved::Stale);
                }
            } else if !self.change_lane(begun, lane).await? {
                return Ok(Moved::No(MoveError::ReceiverFenced(lane.clone())));
            }
        }
        if !self.change_owners(begun, &own.incarnation, epoch).await? {
            return Ok(Moved::No(MoveError::Changed));
        }
        counter::raise(begun, epoch).await?;
        Ok(Moved::Yes(epoch))
    }

    /// Whose lanes are changed, beside the own one.
    fn others(&self) -> BTreeSet<&Incarnation> {
        match self {
            Move::Take(seen) => seen.iter().filter_map(|one| one.owner.as_ref()).collect(),
            Move::Give(_, to) => BTreeSet::from([to]),
        }
    }

    /// False: it is fenced, where it must not be.
    async fn change_lane(
        &self,
        begun: &DatabaseTransaction,
        lane: &Incarnation,
    ) -> Result<bool, DbErr> {
        match self {
            Move::Take(_) => {
                if lane::fence(begun, lane).await? {
                    tracing::warn!(node = %lane, "fencing a node whose shards are taken");
                }
                Ok(true)
            }
            Move::Give(..) => lane::raise_term_of(begun, lane).await,
        }
    }

    /// False: they are not owned as they should be.
    async fn change_owners(
        &self,
        begun: &DatabaseTransaction,
        own: &Incarnation,
        epoch: u32,
    ) -> Result<bool, DbErr> {
        let (moved, all) = match self {
            Move::Take(seen) if seen.iter().any(|one| one.owner.as_ref() == Some(own)) => {
                return Ok(false);
            }
            Move::Take(seen) => {
                let mut groups: BTreeMap<(Option<&Incarnation>, u32), Vec<ShardId>> =
                    BTreeMap::new();
                for one in seen {
                    groups.entry((one.owner.as_ref(), one.epoch)).or_default().push(one.shard);
                }
                let mut moved = 0;
                for ((from, seen), some) in groups {
                    moved +=
                        shards::change_owner(begun, &some, from, Some(seen), own, epoch).await?;
                }
                (moved, seen.len())
            }
            Move::Give(some, to) => {
                (shards::change_owner(begun, some, Some(own), None, to, epoch).await?, some.len())
            }
        };
        Ok(usize::try_from(moved) == Ok(all))
    }
}
