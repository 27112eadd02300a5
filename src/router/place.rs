//! Where shards are decided, when several nodes share them: what the router is told.

use actix::{Addr, Message};

use crate::shard::ShardActor;
use crate::store::Incarnation;
use crate::words::ShardId;

/// Where a shard is decided.
#[derive(Clone, Debug)]
pub enum Place {
    /// In this node.
    Here {
        /// Who decides. A shard that comes back gets a new one.
        actor: Addr<ShardActor>,
        /// With which epoch it was taken, or given to this node.
        epoch: u32,
    },
    /// In another node.
    Peer {
        /// Which start of it.
        node: Incarnation,
        /// With which epoch it was taken, or given to that node.
        epoch: u32,
    },
    /// Nobody is known to decide. What comes for it waits.
    Nowhere,
}

/// To the router: shards have moved. One that leaves this node is asked what it has not answered
/// to links of this node; that goes to the new place, then what came while it was held.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Moved(pub Vec<(ShardId, Place)>);

/// To the router: these leave this node. What comes for them waits until they have [`Moved`],
/// or are said to be here after all. It is bounded by the windows of the links.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct Hold(pub Vec<ShardId>);

/// Who knows the places. Called by the router, which is told by [`Moved`]; must not block.
pub trait Ownership: Send + 'static {
    /// Another node says that a shard is not its own, or asks for one that is not here, with an
    /// epoch that is not known here: the database should be asked now. Nothing has to be told if
    /// nothing has changed. It may be called often; once a moment is enough.
    fn look_again(&self);
}
