//! The connection to NATS: one a process, and the thread that it lives on.
//!
//! A busy main thread must not keep a node from saying that it lives, so the connection and all
//! that says so run on a thread of their own.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long a server may take to answer a new connection.
const CONNECT: Duration = Duration::from_secs(2);

/// The pauses between attempts to connect: short, as nothing can be taken over meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How a node reaches NATS.
#[derive(Clone)]
pub struct NatsSettings {
    /// URLs of servers; one at least.
    pub servers: Vec<String>,
    /// The name of the cluster: part of each subject and of the bucket.
    pub cluster: Arc<str>,
    /// The name of the node, for the administrator of NATS.
    pub node: Arc<str>,
    /// How long a node may be silent.
    pub lease: Duration,
    /// The text of a `.creds` file, with a JWT and a seed; none: none are needed, or they stand
    /// in the URLs.
    pub credentials: Option<Arc<str>>,
    /// A PEM file with the certificates that may have signed those of the servers; none: those
    /// that the system trusts.
    pub root_certificate: Option<PathBuf>,
    /// PEM files with a certificate for the servers to see, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What waiting does not heal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NatsError {
    /// A URL, the credentials or a certificate can't be used.
    #[error("the settings for NATS can't be used; check [cluster]: {0}")]
    Settings(String),
    /// NATS does not let the node in.
    #[error(
        "NATS refuses this node; check cluster.credentials, or user and password in cluster.nats: {0}"
    )]
    Refused(ConnectError),
    /// There is no trust between the two.
    #[error(
        "there is no TLS with NATS; check cluster.root_certificate, cluster.certificate and the names in the servers' certificates: {0}"
    )]
    Tls(ConnectError),
    /// The thread can't be started.
    #[error("cannot start a thread for NATS")]
    Thread(#[source] std::io::Error),
}

/// A connection that is there, or comes back by itself. Cheap to clone.
#[derive(Clone)]
pub struct Nats {
    client: Client,
    cluster: Arc<str>,
    up: watch::Receiver<bool>,
    home: Arc<Home>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nats").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// The thread; it ends with the last that has this.
struct Home {
    runtime: Handle,
    _open: oneshot::Sender<()>,
}

impl Home {
    fn new() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("amphora-cluster".to_owned());
        thread.spawn(move || {
            // An error: it was dropped, which is the sign.
            let _ = runtime.block_on(closed);
        })?;
        Ok(Home { runtime: handle, _open: open })
    }
}

impl Nats {
    /// Connects. Servers that can't be reached are no error: the connection comes when they
    /// can be.
    ///
    /// # Errors
    ///
    /// What waiting does not heal.
    pub async fn connect(settings: &NatsSettings) -> Result<Nats, NatsError> {
        let home = Home::new().map_err(NatsError::Thread)?;
        let wrong = |error: std::io::Error| NatsError::Settings(error.to_string());
        let servers: Vec<ServerAddr> = settings
            .servers
            .iter()
            .map(|url| url.parse())
            .collect::<Result<_, _>>()
            .map_err(wrong)?;
        let (tell, up) = watch::channel(false);
        let options = options(settings, tell).map_err(wrong)?;
        let connecting = home.runtime.spawn(connect(servers, options));
        let client = match connecting.await {
            Ok(connected) => connected?,
            Err(error) => return Err(NatsError::Settings(error.to_string())),
        };
        Ok(Nats { client, cluster: settings.cluster.clone(), up, home: Arc::new(home) })
    }

    /// What sends and listens. What is published while there is no connection waits for it, up
    /// to 2,048 messages; whoever publishes more waits himself.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether there is a connection, and each change of that. What was sent before a change
    /// may be lost.
    pub fn up(&self) -> watch::Receiver<bool> {
        self.up.clone()
    }

    /// `amphora.CLUSTER.rest`.
    pub fn subject(&self, rest: &str) -> String {
        format!("amphora.{}.{rest}", self.cluster)
    }

    /// The name of the cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Runs a task on the thread of the connection. It must not block.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.home.runtime.spawn(task)
    }
}

/// The first time an error is an error; after that the client tries for ever.
async fn connect(servers: Vec<ServerAddr>, options: ConnectOptions) -> Result<Client, NatsError> {
    match options.clone().connect(&servers[..]).await {
        Ok(client) => Ok(client),
        Err(error) => match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Err(NatsError::Refused(error))
            }
            ConnectErrorKind::Tls => Err(NatsError::Tls(error)),
            ConnectErrorKind::ServerParse => Err(NatsError::Settings(error.to_string())),
            _ => {
                tracing::warn!(%error, "no NATS server answers; this node goes on alone until one does");
                let retried = options.retry_on_initial_connect().connect(&servers[..]).await;
                retried.map_err(|error| NatsError::Settings(error.to_string()))
            }
        },
    }
}

fn options(settings: &NatsSettings, up: watch::Sender<bool>) -> std::io::Result<ConnectOptions> {
    let mut options = match &settings.credentials {
        Some(credentials) => ConnectOptions::with_credentials(credentials)?,
        None => ConnectOptions::new(),
    };
    if let Some(path) = &settings.root_certificate {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &settings.identity {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    let up = Arc::new(up);
    Ok(options
        .name(format!("amphora {}", settings.node))
        .connection_timeout(CONNECT)
        // A connection that died without a word is noticed after two of them.
        .ping_interval(settings.lease)
        .request_timeout(Some(settings.lease))
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            n => (FIRST_PAUSE * 2u32.saturating_pow(n.min(8) as u32 - 2)).min(LONGEST_PAUSE),
        })
        .event_callback(move |event| {
            let up = up.clone();
            async move { hear(&event, &up) }
        }))
}

fn hear(event: &Event, up: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            up.send_replace(true);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected => {
            // Said once: attempts to connect again say it too.
            if up.send_replace(false) {
                tracing::warn!("the connection to NATS is lost; connecting again");
            }
        }
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "messages from NATS were dropped: nobody took them in time"
            );
        }
        Event::ServerError(error) => tracing::warn!(%error, "NATS says"),
        Event::ClientError(error) => tracing::debug!(%error, "no connection to NATS"),
        Event::LameDuckMode => tracing::info!("the NATS server is about to stop"),
        Event::Draining | Event::Closed => {
            up.send_replace(false);
        }
    }
}
