//! A node's way into its cluster, and out of it.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::NodeError;
use crate::cluster::{Cluster, Nats, NatsSettings, Status};
use crate::config::Settings;
use crate::router::Ownership;
use crate::store::Division;

/// How long a node that stops may take to give its shards away: some rounds, each of which waits
/// for what is under way.
const GIVE: Duration = Duration::from_secs(10);

/// How long the database may take to say who has taken it over.
const ASK: Duration = Duration::from_secs(5);

/// Tells the cluster that shards may have moved; many times in a moment are one.
pub(super) struct Again(pub(super) Arc<Notify>);

impl Ownership for Again {
    fn look_again(&self) {
        self.0.notify_one();
    }
}

/// Connects to NATS; none: the settings know no cluster.
pub(super) async fn connect(settings: &Settings) -> Result<Option<Nats>, NodeError> {
    let cluster = &settings.cluster;
    if !cluster.is_on() {
        return Ok(None);
    }
    let nats = NatsSettings {
        servers: cluster.nats.iter().map(|url| url.expose().to_owned()).collect(),
        cluster: cluster.name.as_str().into(),
        node: settings.node.name.as_str().into(),
        lease: cluster.lease,
        credentials: cluster.credentials.as_ref().map(|text| text.expose().into()),
        root_certificate: cluster.root_certificate.clone(),
        identity: cluster.identity.clone(),
    };
    Ok(Some(Nats::connect(&nats).await?))
}

/// Whether the node can do anything for a server: a node of a cluster that has no shard, and hears
/// no node that has some, can't. It has a lease to find some. Alone, it always can.
pub(super) fn useful(cluster: &Option<Cluster>, lease: Duration) -> watch::Receiver<bool> {
    let (tell, useful) = watch::channel(cluster.is_none());
    if let Some(cluster) = cluster {
        actix_rt::spawn(tell_use(cluster.watch(), lease, tell));
    }
    useful
}

async fn tell_use(
    mut status: watch::Receiver<Arc<Status>>,
    lease: Duration,
    tell: watch::Sender<bool>,
) {
    let is_of_use = |status: &Arc<Status>| status.hears || status.own > 0;
    loop {
        if status.wait_for(is_of_use).await.is_err() {
            return;
        }
        tell.send_replace(true);
        if status.wait_for(|status| !is_of_use(status)).await.is_err() {
            return;
        }
        if timeout(lease, status.wait_for(is_of_use)).await.is_err() {
            tracing::warn!(
                "this node has no shards and hears no others: it has no links until it does"
            );
            tell.send_replace(false);
        }
    }
}

/// Gives the shards away, as far as there is somebody and time.
pub(super) async fn give_all(cluster: &Cluster) {
    let left = match timeout(GIVE, cluster.drain(true)).await {
        Ok(status) => status.own,
        Err(_) => cluster.status().own,
    };
    if left > 0 {
        tracing::info!(left, "the shards of this node are left to whoever takes them");
    }
}

/// Why another process writes in the place of this one: it has its name, or has found it silent.
pub(super) async fn why_fenced(databases: &[Division]) -> NodeError {
    let asked = databases.iter().map(|database| timeout(ASK, database.has_successor()));
    let answers = join_all(asked).await;
    let sure = answers.iter().all(|answer| matches!(answer, Ok(Some(false))));
    if sure { NodeError::Fenced } else { NodeError::Superseded }
}
