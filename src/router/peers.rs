//! What the router is told about other nodes.

use actix::Message;

use crate::shard::Way;
use crate::shard::wire::Crossing;
use crate::store::Incarnation;

/// A way to another node begins. The one before, if there was one, has ended.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct PeerUp {
    /// The node.
    pub node: Incarnation,
    /// The way there.
    pub way: Way,
}

/// The way to the node of that number has ended; what was put on it may not have arrived. To both,
/// the links behind it are as good as closed.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct PeerDown(pub u32);

/// The node of that number has begun anew to talk to this one: what it had said before may not have
/// arrived, and what it was asked it has forgotten.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct PeerForgot(pub u32);

/// What the node of that number says, in order.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct FromPeer {
    /// The number of its incarnation.
    pub peer: u32,
    /// What it says.
    pub crossings: Vec<Crossing>,
}

/// The interceptor of a host on a link of this node is there, or is not any more: other nodes are
/// told which are.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub struct HostsChanged;
