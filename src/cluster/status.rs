//! How a node stands in its cluster, for health, metrics and whoever waits for it.

use std::fmt;
use std::sync::Arc;

/// The state at one moment. `Display` gives the lines of `/readyz`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// The name of the cluster.
    pub cluster: Arc<str>,
    /// It hears itself over NATS, and so the others.
    pub hears: bool,
    /// The nodes that live, by name, this one among them.
    pub members: Vec<Member>,
    /// The shards that are decided here.
    pub own: usize,
    /// All of them.
    pub shards: u32,
    /// The shards that nobody decides about, or that are not known yet.
    pub nowhere: usize,
    /// It gives its shards away, or has.
    pub draining: bool,
    /// It has given away what it can.
    pub drained: bool,
}

/// A node that lives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub node: Arc<str>,
    /// The version of Amphora that it runs.
    pub version: Arc<str>,
    /// It gives its shards away.
    pub draining: bool,
}

impl Status {
    /// Whether messages for all users find their shard by this node, and may come here.
    pub fn is_ready(&self) -> bool {
        self.hears && self.nowhere == 0 && !self.draining
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nats = if self.hears { "heard" } else { "not heard" };
        writeln!(f, "cluster {}: NATS {nats}", self.cluster)?;
        for member in &self.members {
            let drains = if member.draining { ", draining" } else { "" };
            writeln!(f, "node {} {}{drains}", member.node, member.version)?;
        }
        let nowhere = match self.nowhere {
            0 => String::new(),
            n => format!(", {n} without an owner"),
        };
        writeln!(f, "shards: {} of {} here{nowhere}", self.own, self.shards)
    }
}

/// Metrics that follow the state.
pub(super) fn measure(status: &Status) {
    metrics::gauge!("amphora_cluster_members").set(status.members.len() as f64);
    metrics::gauge!("amphora_cluster_shards").set(status.own as f64);
    metrics::gauge!("amphora_cluster_shards_nowhere").set(status.nowhere as f64);
    metrics::gauge!("amphora_cluster_nats_heard").set(f64::from(u8::from(status.hears)));
    metrics::gauge!("amphora_cluster_draining").set(f64::from(u8::from(status.draining)));
}
