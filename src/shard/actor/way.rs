//! The way to another node, as those use it who have something to say to it.

use tokio::sync::mpsc::UnboundedSender;

use crate::shard::wire::Entry;

/// Things on their way to another node, in order.
#[derive(Debug)]
pub struct Parcel {
    /// The number of its incarnation.
    pub peer: u32,
    /// For which life of the way they are meant. What comes after its end goes nowhere.
    pub life: u64,
    /// What.
    pub entries: Vec<Entry>,
}

/// One life of the way to another node: it ends when the node is out of reach for too long, and
/// what was put on it may not have arrived. A new one is told to the router.
///
/// Its queue has no bound in number: what is in it is unanswered on some link, or was asked by one,
/// and so bounded by the links' windows. A way that has too many bytes waiting ends.
#[derive(Clone, Debug)]
pub struct Way {
    peer: u32,
    life: u64,
    sender: UnboundedSender<Parcel>,
}

impl Way {
    /// A way that begins.
    pub fn new(peer: u32, life: u64, sender: UnboundedSender<Parcel>) -> Self {
        Way { peer, life, sender }
    }

    /// The number of the other node's incarnation.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Puts things on it, in order.
    pub fn put(&self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            // The transport ends with the node.
            let _ = self.sender.send(Parcel { peer: self.peer, life: self.life, entries });
        }
    }
}
