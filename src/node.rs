//! One node: the store, the shards, the router and the links, put together; and its end.

mod join;
mod shards;
mod stores;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix::{Actor, Addr};
use actix_rt::{Arbiter, System};
use futures::future::{BoxFuture, pending};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::amp::SecurityLevel;
use crate::broadcast::{self, BroadcastContext, BroadcastHandle};
use crate::cluster::transport::{self, TransportContext};
use crate::cluster::{Cluster, ClusterContext, Nats, NatsError};
use crate::config::{self, ControlSocket, QuotaLimits, QuotaOver, Settings};
use crate::control::{self, Control, ControlError};
use crate::http::{self, Health};
use crate::link::{self, LinkContext, LinkSettings, Redirect, Stop};
use crate::router::{Router, Settle, Sharing, run_due_clock};
use crate::shard::{Limits, Outbox, Over, Quotas, ShardContext};
use crate::store::{Division, Moved, Store, StoreError, StoreSettings, database_path};
use crate::telemetry;
use crate::words::ShardId;

use join::Again;
use shards::{Nursery, SharedShards};
use stores::Stores;

/// How long a node that stops waits for what it holds: twice the append limit.
const DRAIN: Duration = Duration::from_secs(10);

/// How long a process that was superseded may take to notice it, and to end.
const SUPERSEDED: Duration = Duration::from_secs(10);

/// How long links may take to write their last words.
const CLOSE: Duration = Duration::from_secs(5);

/// How often old marks are removed from the store.
const PURGE: Duration = Duration::from_secs(60);

/// How long after a round messages past the retention are looked for again: that looks at every
/// row.
const RETENTION: Duration = Duration::from_secs(60 * 60);

/// Why a node could not run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The address of `[http]` can't be listened on.
    #[error(transparent)]
    Http(std::io::Error),
    /// Another process has the database now.
    #[error(
        "another process of this name, or one that found this one silent, has taken the database over: do not start this one again before that one has ended"
    )]
    Superseded,
    /// Other nodes have found this one silent, and have taken its shards.
    #[error(
        "the other nodes of the cluster heard nothing of this one for a lease, and have taken its shards: start it again, and it joins anew"
    )]
    Fenced,
    /// It must not join.
    #[error(
        "this node can't join the cluster '{0}': node {1}; give it the same processor.shards, version and cluster.name, or stop all others first"
    )]
    Refused(String, String),
    /// NATS can't be used.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The schema of this part is as it was: the part, and why.
    #[error("the database of part '{0}' can't be opened: {1}")]
    Away(String, String),
    /// The control socket can't be had.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Opens the store, which brings its schema up to date, and closes it again.
///
/// # Errors
///
/// [`NodeError::Store`].
pub fn migrate(settings: &Settings) -> Result<(), NodeError> {
    System::new().block_on(async {
        // Not in the node's own name: that would supersede a node that runs.
        let node = format!("{}/migrate", settings.node.name);
        let stores = Stores::open(settings, &node, false).await?;
        let away = stores.away();
        stores.messages.close().await;
        if let Some((part, why)) = away {
            return Err(NodeError::Away(part.to_string(), why));
        }
        tracing::info!("the schema is up to date");
        Ok(())
    })
}

/// Brings each message into the database that the settings give its recipient's shard to, also
/// from the databases of `old` settings. `tell` hears after each user what was moved so far.
///
/// # Errors
///
/// [`NodeError::Store`].
pub fn move_messages(
    settings: &Settings,
    old: Option<&Settings>,
    tell: impl Fn(&Moved),
) -> Result<Moved, NodeError> {
    System::new().block_on(async {
        // Not in the node's own name: a node that runs must not lose its databases.
        let node = format!("{}/move", settings.node.name);
        Ok(stores::move_all(settings, old, &node, tell).await?)
    })
}

/// Runs a node until SIGTERM or SIGINT. Then it takes nothing new, decides and writes what
/// it holds, and returns.
///
/// # Errors
///
/// The store or the HTTP address can't be had.
pub fn run(settings: Settings) -> Result<(), NodeError> {
    System::new().block_on(async {
        let cluster = settings.cluster.name.clone();
        let mut node = Node::start(settings).await?;
        tokio::select! {
            signal = wait_for_signal() => signal?,
            // What is held goes to the other process, by the interceptors.
            () = &mut node.superseded => return Err(node.why_fenced().await),
            why = refused(&node.cluster) => {
                node.stop().await;
                return Err(NodeError::Refused(cluster, why));
            }
        }
        node.stop().await;
        Ok(())
    })
}

/// Where a node with these settings takes commands; none: nowhere.
///
/// # Errors
///
/// [`NodeError::Store`]: the database's URL names no file.
pub fn control_path(settings: &Settings) -> Result<Option<PathBuf>, NodeError> {
    Ok(match &settings.node.control {
        ControlSocket::Off => None,
        ControlSocket::At(path) => Some(path.clone()),
        ControlSocket::Auto => {
            let file = match settings.store.parts.is_empty() {
                true => database_path(settings.store.url.expose())?,
                false => None,
            };
            let mut path =
                file.unwrap_or_else(|| settings.node.name.clone().into()).into_os_string();
            path.push(".sock");
            Some(path.into())
        }
    })
}

/// Without a word about it in the settings, a socket that can't be made is no reason not to
/// run: its path may be too long for the system. A process that this one has superseded may
/// still have it, until it has noticed.
async fn serve_control(
    settings: &Settings,
    broadcasts: &BroadcastHandle,
    cluster: &Option<Cluster>,
) -> Result<Option<Control>, NodeError> {
    let Some(path) = control_path(settings)? else { return Ok(None) };
    let deadline = Instant::now() + SUPERSEDED;
    loop {
        match control::serve(&path, broadcasts.clone(), cluster.clone()) {
            Ok(control) => return Ok(Some(control)),
            Err(ControlError::InUse(_)) if Instant::now() < deadline => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error @ ControlError::Listen { .. })
                if settings.node.control == ControlSocket::Auto =>
            {
                tracing::warn!("no commands are taken: {error}");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// A node that runs.
struct Node {
    store: Arc<dyn Store>,
    superseded: BoxFuture<'static, ()>,
    divisions: Vec<Division>,
    cluster: Option<Cluster>,
    broadcasts: BroadcastHandle,
    router: Addr<Router>,
    arbiters: Vec<Arbiter>,
    links: Vec<JoinHandle<()>>,
    http: Option<http::Http>,
    control: Option<Control>,
    stop: watch::Sender<Stop>,
}

impl Node {
    async fn start(settings: Settings) -> Result<Node, NodeError> {
        let metrics = telemetry::start_metrics().map_err(|e| NodeError::Other(e.to_string()))?;
        let health = Health::new();
        // Before the store: once that is open, the others wait no longer than a lease for this node.
        let nats = join::connect(&settings).await?;
        let stores = Stores::open(&settings, &settings.node.name, nats.is_some()).await?;
        stores.report_to(&health);
        let Stores { messages: store, broadcasts: kept, superseded, divisions, .. } = stores;
        let http = match settings.http.listen {
            Some(listen) => {
                let http = http::serve(listen, health.clone(), metrics).map_err(NodeError::Http)?;
                tracing::info!(address = %http.address, "http: /healthz /readyz /metrics");
                Some(http)
            }
            None => None,
        };

        let clock = StoreSettings::new("").clock;
        let outbox = Outbox::default();
        let (due, due_events) = mpsc::unbounded_channel();
        let context = ShardContext {
            store: store.clone(),
            outbox: outbox.clone(),
            clock: clock.clone(),
            due: due.clone(),
        };
        let shards = settings.processor.shards;
        let (nursery, arbiters) = Nursery::new(shards, quotas(&settings.quota), context);
        let (broadcasts, inbox) = BroadcastHandle::new();
        let (router, cluster) = match nats {
            None => {
                let all = (0..shards).map(|shard| nursery.start(ShardId(shard))).collect();
                (Router::new(all).start(), None)
            }
            Some(nats) => {
                let look_again = Arc::new(Notify::new());
                let sharing = Sharing {
                    ownership: Box::new(Again(look_again.clone())),
                    outbox: outbox.clone(),
                    due: due.clone(),
                    broadcasts: broadcasts.clone(),
                };
                let router = Router::shared(shards, sharing).start();
                let home = Arc::new(SharedShards::new(nursery, router.clone()));
                let context = cluster_context(&settings, nats, divisions.clone(), home, look_again);
                let cluster = Cluster::start(context);
                transport::start(TransportContext {
                    nats: cluster.nats().clone(),
                    own: cluster.own().clone(),
                    members: cluster.members(),
                    lease: settings.cluster.lease,
                    router: router.clone(),
                });
                health.set_cluster({
                    let cluster = cluster.clone();
                    move || cluster.status()
                });
                (router, Some(cluster))
            }
        };
        actix_rt::spawn(run_due_clock(store.clone(), router.clone(), clock.clone(), due_events));
        actix_rt::spawn(purge_marks(store.clone(), clock.clone()));
        if let Some(retention) = settings.store.retention {
            actix_rt::spawn(purge_messages(store.clone(), retention, clock.clone()));
        }

        let context = BroadcastContext {
            broadcasts: kept,
            messages: store.clone(),
            outbox: outbox.clone(),
            clock: clock.clone(),
            hosts: settings.servers.iter().flat_map(hosts).collect(),
            shared: cluster.is_some(),
        };
        actix_rt::spawn(broadcast::run(context, inbox));
        let control = serve_control(&settings, &broadcasts, &cluster).await?;

        let (stop, stopped) = watch::channel(Stop::No);
        let context = LinkContext {
            node: settings.node.name.as_str().into(),
            security: security(settings.processor.security_level),
            router: router.clone(),
            broadcasts: broadcasts.clone(),
            outbox,
            health: health.clone(),
            due,
            clock,
            numbers: Arc::new(AtomicU64::new(1)),
            stop: stopped,
            useful: join::useful(&cluster, settings.cluster.lease),
        };
        let links = settings.servers.iter().map(|server| {
            let link = link_settings(server, &settings.forward);
            health.add_link(&link.component, link.hosts.iter().map(|host| host.to_string()));
            actix_rt::spawn(link::run(link, context.clone()))
        });
        Ok(Node {
            store,
            superseded,
            divisions,
            cluster,
            broadcasts,
            router,
            arbiters,
            links: links.collect(),
            http,
            control,
            stop,
        })
    }

    /// Another process has the database: why.
    async fn why_fenced(&self) -> NodeError {
        match self.cluster {
            Some(_) => join::why_fenced(&self.divisions).await,
            None => NodeError::Superseded,
        }
    }

    /// Decides and writes what is held, then lets everything go.
    async fn stop(self) {
        tracing::info!("stopping: finishing what is held");
        if let Some(control) = &self.control {
            control.stop();
        }
        self.broadcasts.stop();
        if let Some(cluster) = &self.cluster {
            join::give_all(cluster).await;
        }
        self.stop.send_replace(Stop::Drain);
        let deadline = Instant::now() + DRAIN;
        loop {
            let busy = self.router.send(Settle).await.unwrap_or(0);
            if busy == 0 {
                break;
            }
            if Instant::now() >= deadline {
                tracing::warn!(busy, "some of what is held is left to the interceptors");
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.stop.send_replace(Stop::Close);
        for link in self.links {
            // A link that does not end in time is cut off with the process.
            let _ = timeout(CLOSE, link).await;
        }
        if let Some(http) = &self.http {
            http.stop().await;
        }
        if let Some(cluster) = &self.cluster {
            cluster.leave().await;
        }
        self.store.close().await;
        if let Some(cluster) = &self.cluster {
            cluster.hint().await;
        }
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
        tracing::info!("stopped");
    }
}

fn cluster_context(
    settings: &Settings,
    nats: Nats,
    databases: Vec<Division>,
    home: Arc<SharedShards>,
    look_again: Arc<Notify>,
) -> ClusterContext {
    ClusterContext {
        nats,
        servers: settings.cluster.nats.len(),
        node: settings.node.name.as_str().into(),
        lease: settings.cluster.lease,
        shards: settings.processor.shards,
        databases,
        components: settings
            .servers
            .iter()
            .map(|server| server.component.as_str().into())
            .collect(),
        hosts: settings.servers.iter().flat_map(hosts).collect(),
        home,
        look_again,
    }
}

/// Ends when the node must not be in its cluster; why.
async fn refused(cluster: &Option<Cluster>) -> String {
    match cluster {
        Some(cluster) => cluster.refused().await,
        None => pending().await,
    }
}

/// Removes old marks.
async fn purge_marks(store: Arc<dyn Store>, clock: crate::store::Clock) {
    loop {
        sleep(PURGE).await;
        if let Err(error) = store.purge(None, clock()).await {
            tracing::warn!("cannot remove old marks: {error}");
        }
    }
}

/// Removes messages older than the retention. Beside the marks: a round may take long.
async fn purge_messages(store: Arc<dyn Store>, retention: Duration, clock: crate::store::Clock) {
    loop {
        sleep(PURGE).await;
        let now = clock();
        let before = i64::try_from(retention.as_micros()).ok();
        let before = before.and_then(|micros| now.as_micros().checked_sub(micros));
        match store.purge(before.map(crate::time::Timestamp::from_micros), now).await {
            Ok(purged) if purged.messages > 0 => {
                tracing::info!(messages = purged.messages, "removed messages past the retention");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!("cannot remove messages past the retention: {error}"),
        }
        sleep(RETENTION).await;
    }
}

async fn wait_for_signal() -> Result<(), NodeError> {
    let listen = |kind| signal(kind).map_err(|e| NodeError::Other(e.to_string()));
    let (mut terminate, mut interrupt) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn quotas(settings: &config::QuotaSettings) -> Quotas {
    let limits = |limits: QuotaLimits| Limits {
        messages_per_user: limits.messages_per_user,
        bytes_per_user: limits.bytes_per_user.0,
        messages_per_sender: limits.messages_per_sender,
        bytes_per_sender: limits.bytes_per_sender.0,
        over: match limits.over {
            QuotaOver::Error => Over::Error,
            QuotaOver::Drop => Over::Drop,
        },
    };
    let of = settings.by_name().into_iter().map(|(name, own)| (name, limits(own)));
    Quotas::new(limits(settings.general), of.collect())
}

fn security(level: config::SecurityLevel) -> SecurityLevel {
    match level {
        config::SecurityLevel::Strict => SecurityLevel::Strict,
        config::SecurityLevel::Performance => SecurityLevel::Performance,
        config::SecurityLevel::None => SecurityLevel::None,
    }
}

fn hosts(server: &config::ServerSettings) -> impl Iterator<Item = Arc<str>> {
    server.hosts.iter().map(|host| host.as_str().into())
}

fn link_settings(
    server: &config::ServerSettings,
    forward: &[config::ForwardSettings],
) -> LinkSettings {
    let redirect = |entry: &config::ForwardSettings| Redirect {
        host: entry.from.domain().as_str().into(),
        from: entry.from.to_string(),
        to: entry.to.to_string(),
    };
    LinkSettings {
        host: server.address.host.clone(),
        port: server.address.port,
        component: server.component.as_str().into(),
        secret: server.secret.expose().to_owned(),
        hosts: hosts(server).collect(),
        redirects: forward.iter().map(redirect).collect(),
    }
}
