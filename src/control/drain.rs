//! Commands about the node's part in its cluster.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::broadcast::{Problem, ProblemKind};
use crate::cluster::{Cluster, Status};

/// How long a drain is waited for, before the reply says how far it has come. Whoever asked asks
/// again.
const WAIT: Duration = Duration::from_secs(20);

/// A command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ClusterCommand {
    /// Give all shards away, and take none. Given again, it goes on.
    Drain {},
    /// Take shards again.
    Undrain {},
}

/// The answer to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClusterReply {
    /// How the node stands in its cluster.
    Cluster(ClusterReport),
    /// It can't be done.
    Problem(Problem),
}

/// How a node stands in its cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterReport {
    /// The cluster's name.
    pub cluster: String,
    /// The nodes that live, this one among them.
    pub members: Vec<String>,
    /// The shards that it has.
    pub shards: usize,
    /// It gives its shards away, or has.
    pub draining: bool,
    /// It has given away what it can.
    pub drained: bool,
}

impl From<&Status> for ClusterReport {
    fn from(status: &Status) -> Self {
        ClusterReport {
            cluster: status.cluster.to_string(),
            members: status.members.iter().map(|member| member.node.to_string()).collect(),
            shards: status.own,
            draining: status.draining,
            drained: status.drained,
        }
    }
}

/// Whether a line is for the cluster.
pub(super) fn is_cluster(line: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Word {
        #[serde(rename = "do")]
        what: String,
    }
    let word = serde_json::from_slice::<Word>(line).map(|word| word.what);
    word.is_ok_and(|word| word == "drain" || word == "undrain")
}

/// Carries a command out.
pub(super) async fn carry_out(line: &[u8], cluster: Option<&Cluster>) -> ClusterReply {
    let problem = |kind, says: String| ClusterReply::Problem(Problem { kind, says });
    let command = match super::protocol::parse_cluster_command(line) {
        Ok(command) => command,
        Err(problem) => return ClusterReply::Problem(problem),
    };
    let Some(cluster) = cluster else {
        let says = "this node is alone: its configuration names no cluster.nats".to_owned();
        return problem(ProblemKind::State, says);
    };
    let done = async {
        match command {
            ClusterCommand::Drain {} => cluster.drain(false).await,
            ClusterCommand::Undrain {} => cluster.undrain().await,
        }
    };
    let status = timeout(WAIT, done).await.unwrap_or_else(|_| cluster.status());
    ClusterReply::Cluster(ClusterReport::from(&*status))
}
