//! Which nodes are there, as far as this one knows.

use std::sync::Arc;

use tokio::sync::watch;

use crate::store::Incarnation;

/// A node that lives, as its key says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberInfo {
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The hosts that it has links to. Who sends is told anew by the node itself.
    pub hosts: Vec<Arc<str>>,
}

/// The nodes that live, this one not among them. The transport opens a way to each, and gives it up
/// when it is not among them any more.
pub type Members = watch::Receiver<Arc<Vec<MemberInfo>>>;
