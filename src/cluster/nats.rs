//! The connection to NATS: one a process, and the thread that it lives on.
//!
//! A busy main thread must not keep a node from saying that it lives, so the connection and all
//! that says so run on a thread of their own.

use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ReconnectToServer, Server,
    ServerAddr,
};
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
        let options = log_in(options(settings, tell).map_err(wrong)?, settings, &servers);
        let servers =
            servers.into_iter().map(without_user).collect::<Result<_, _>>().map_err(wrong)?;
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

    /// Leaves this server for another, if there is one. What is under way may be lost.
    pub async fn elsewhere(&self) {
        // An error: the connection is closed, for the process ends.
        let _ = self.client.force_reconnect().await;
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
            ConnectErrorKind::Io if is_tls(&error) => Err(NatsError::Tls(error)),
            ConnectErrorKind::ServerParse => Err(NatsError::Settings(error.to_string())),
            _ => {
                tracing::warn!(%error, "no NATS server answers; this node goes on alone until one does");
                let retried = options.retry_on_initial_connect().connect(&servers[..]).await;
                retried.map_err(|error| NatsError::Settings(error.to_string()))
            }
        },
    }
}

/// Whether the two sides did not like each other's certificates.
fn is_tls(error: &ConnectError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData) {
            return true;
        }
        cause = error.source();
    }
    false
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
        .reconnect_to_server_callback({
            let last = Arc::new(Mutex::new(None));
            move |servers, _| {
                let next = next(&servers, &last);
                async move { next }
            }
        })
        .event_callback(move |event| {
            let up = up.clone();
            async move { hear(&event, &up) }
        }))
}

/// Another server than the last, if there is one: of those that failed the least often, any, but rather one
/// of the settings than one that NATS has told of, which may have no address for this node. None: nobody
/// was reached yet, so all are to be tried at once.
fn next(servers: &[Server], last: &Mutex<Option<ServerAddr>>) -> Option<ReconnectToServer> {
    let reached = servers.iter().find(|server| server.did_connect)?;
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let last = last.get_or_insert_with(|| reached.addr.clone());
    let others = servers.iter().filter(|server| server.addr != *last);
    // Not the same for all nodes.
    let any = RandomState::new();
    let next = others.min_by_key(|server| {
        (server.failed_attempts, server.is_discovered, any.hash_one(&server.addr))
    });
    let addr = next.unwrap_or(reached).addr.clone();
    last.clone_from(&addr);
    Some(ReconnectToServer { addr, delay: None })
}

/// With user and password, or a token, of the first URL that has any. Credentials come over them.
fn log_in(
    options: ConnectOptions,
    settings: &NatsSettings,
    servers: &[ServerAddr],
) -> ConnectOptions {
    let named = servers.iter().find_map(|server| Some((server.username()?, server.password())));
    match named {
        Some((user, Some(password))) if settings.credentials.is_none() => {
            options.user_and_password(decoded(user), decoded(password))
        }
        Some((token, None)) if settings.credentials.is_none() => options.token(decoded(token)),
        _ => options,
    }
}

/// The address alone: it may be logged.
fn without_user(server: ServerAddr) -> std::io::Result<ServerAddr> {
    let mut url = server.into_inner();
    // They fail for URLs without a host, which have no user either.
    let _ = url.set_password(None);
    let _ = url.set_username("");
    ServerAddr::from_url(url)
}

/// A part of a URL as it was meant: `%40` is '@'.
fn decoded(text: &str) -> String {
    let hex = |digits: &[u8]| {
        let digits = std::str::from_utf8(digits).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match after.get(..2).filter(|_| *first == b'%').and_then(hex) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_urls_are_read_as_they_were_meant() {
        for (text, meant) in
            [("a%40b", "a@b"), ("100%", "100%"), ("%zz%2", "%zz%2"), ("%C3%A9", "\u{e9}")]
        {
            assert_eq!(decoded(text), meant);
        }
        let server: ServerAddr = "tls://a:hunter2@nats1:4222".parse().unwrap();
        assert_eq!((server.username(), server.password()), (Some("a"), Some("hunter2")));
        let shown = format!("{:?}", without_user(server).unwrap());
        assert!(shown.contains("nats1") && !shown.contains("hunter2"), "{shown}");
    }
}
