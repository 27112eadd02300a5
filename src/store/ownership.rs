//! Who owns which shard of a database that several nodes share.

use std::fmt;
use std::time::Duration;

use sea_orm::DbErr;

use crate::words::ShardId;

/// One start of one node, as the database numbers it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation {
    /// The name of the node.
    pub node: String,
    /// Which start; a later one has a greater number, whichever node it is of.
    pub number: u32,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.number)
    }
}

/// A shard and who owns it, as it was seen. To take it names all of this, and fails when any of it
/// has changed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Holding {
    /// Which shard.
    pub shard: ShardId,
    /// None: nobody has owned it since the database was divided.
    pub owner: Option<Incarnation>,
    /// How often the database was opened, or a shard of it moved, when this one was.
    pub epoch: u32,
}

/// A node that has a lane in the database, as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which start of it is the latest.
    pub incarnation: Incarnation,
    /// It can't write any more: it has ended, or its shards were taken.
    pub fenced: bool,
    /// Since when it has not shown that it lives, by the clock of the database. A node does so
    /// every 3 s at least.
    pub unseen: Duration,
}

/// The whole of it. It may have changed since.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ownership {
    /// By name.
    pub members: Vec<Member>,
    /// Every shard, in order.
    pub shards: Vec<Holding>,
}

/// Why shards did not move. None of them did, and nobody was fenced for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// One of the shards is not owned as it was said to be: look again.
    #[error("a shard is not owned as it was when it was looked at")]
    Changed,
    /// The receiver can't write any more, or was never there.
    #[error("{0} is fenced, and can be given no shard")]
    ReceiverFenced(Incarnation),
    /// This process can't write any more.
    #[error("another process has taken the database over")]
    Fenced,
    /// No epoch is left (2,097,151 starts and moves).
    #[error("the database has no epoch left: let its messages be delivered, then begin a new one")]
    EpochsUsedUp,
    /// One process has all shards: the database is a file, or was not opened to be shared.
    #[error("the database is not shared: one process has all shards")]
    Alone,
    /// The database failed, or another session was in the way for too long.
    #[error("cannot move shards")]
    Failed(#[source] DbErr),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}
