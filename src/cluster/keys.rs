//! The bucket with the keys of nodes: written and watched, each by a task of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamError, CreateStreamErrorKind};
use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::{self, ErrorCode, stream};
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::member::{self, Says};
use super::nats::Nats;
use super::presence::Key;

/// How long a key stays after it was last renewed: longer than any lease, as nobody tells by it
/// who lives. It is there to be gone one day.
const KEPT: Duration = Duration::from_secs(120);

/// Keys that may wait to be looked at. A watch that has more waits; far more than nodes renew
/// in a moment.
const WAITING: usize = 1024;

/// Copies of the bucket, where NATS has so many servers.
const COPIES: usize = 3;

/// A key that is heard: the node, its number, and what it says; none: it was taken back.
pub(super) type Heard = (Arc<str>, u64, Option<Key<Says>>);

/// Who writes the own key.
pub(super) struct Keys {
    nats: Nats,
    node: Arc<str>,
    lease: Duration,
    servers: usize,
    publish: watch::Sender<Option<Vec<u8>>>,
    /// The number of the last own key.
    own: Arc<Mutex<Option<u64>>>,
    /// Whether NATS has taken the last own key.
    taken: Arc<AtomicBool>,
}

impl Keys {
    /// `servers`: how many NATS servers the settings name.
    pub(super) fn new(nats: Nats, node: Arc<str>, lease: Duration, servers: usize) -> Self {
        let (publish, published) = watch::channel(None);
        let (own, taken) = (Arc::new(Mutex::new(None)), Arc::new(AtomicBool::new(false)));
        let keys = Keys { nats, node, lease, servers, publish, own, taken };
        let (own, taken) = (keys.own.clone(), keys.taken.clone());
        let writing = Writing { bucket: keys.bucket(), node: keys.node.clone(), own, taken };
        keys.nats.spawn(writing.write_all(published));
        keys
    }

    /// Writes the own key, one after the other; of those that wait, the last.
    pub(super) fn publish(&self, key: &Key<Says>) {
        self.publish.send_replace(Some(member::to_bytes(key)));
    }

    /// Begins to watch, from the last of each key. A watch that ends, or can't begin, is begun again: the
    /// server of NATS that is to serve it may be parted from the rest.
    pub(super) fn watch(&self) -> (mpsc::Receiver<Heard>, JoinHandle<()>) {
        let (tell, heard) = mpsc::channel(WAITING);
        let bucket = self.bucket();
        let task = self.nats.spawn(async move {
            while !tell.is_closed() {
                if let Err(error) = watch_all(&bucket, &tell).await {
                    tracing::debug!("cannot watch the keys of the nodes: {error}");
                }
                sleep(bucket.patience()).await;
            }
        });
        (heard, task)
    }

    /// Connects to another server of NATS, if this one has not taken the last own key and there is
    /// another; whether it does so.
    pub(super) fn elsewhere(&self) -> bool {
        let leaves = !self.taken.load(Ordering::Relaxed) && self.bucket().servers() > 1;
        if leaves {
            tracing::warn!("NATS does not take the key of this node; trying another server of it");
            let nats = self.nats.clone();
            self.nats.spawn(async move { nats.elsewhere().await });
        }
        leaves
    }

    /// Takes the own key back, unless a successor has written it.
    pub(super) async fn take_back(self) {
        let Keys { publish, own, node, lease, .. } = &self;
        publish.send_replace(None);
        let number = own.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(number) = number else { return };
        let bucket = self.bucket();
        let deleted = async {
            let store = bucket.open().await?;
            store.delete_expect_revision(&**node, Some(number)).await?;
            Ok::<(), async_nats::Error>(())
        };
        match timeout(*lease, deleted).await {
            Ok(Ok(())) => {}
            // It is dead to the others when its lease is over.
            Ok(Err(error)) => tracing::debug!(%error, "cannot take the key of this node back"),
            Err(_) => tracing::debug!("cannot take the key of this node back in time"),
        }
    }

    fn bucket(&self) -> Bucket {
        Bucket { nats: self.nats.clone(), lease: self.lease, servers: self.servers }
    }
}

/// Where keys are.
struct Bucket {
    nats: Nats,
    lease: Duration,
    servers: usize,
}

impl Bucket {
    /// How long a watch may take to begin, and rests before it is begun again.
    fn patience(&self) -> Duration {
        self.lease / 6
    }

    /// How many servers NATS has, as far as is known.
    fn servers(&self) -> usize {
        self.servers.max(self.nats.client().server_info().connect_urls.len())
    }

    /// The bucket; made if it is not there, with as many copies as NATS has servers for.
    async fn open(&self) -> Result<Store, async_nats::Error> {
        let client = self.nats.client().clone();
        let mut context = jetstream::new(client);
        context.set_timeout(self.lease);
        let name = format!("amphora-{}", self.nats.cluster());
        if let Ok(store) = context.get_key_value(&name).await {
            return Ok(store);
        }
        let copies = if self.servers() >= COPIES { COPIES } else { 1 };
        // What `create_key_value` makes; that asks old servers what they can't answer.
        let config = stream::Config {
            name: format!("KV_{name}"),
            subjects: vec![format!("$KV.{name}.>")],
            description: Some("the nodes of an Amphora cluster".to_owned()),
            max_messages_per_subject: 1,
            max_age: KEPT,
            max_message_size: i32::try_from(member::MAX_KEY).unwrap_or(i32::MAX),
            discard: stream::DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            allow_direct: true,
            num_replicas: copies,
            max_messages: -1,
            max_bytes: -1,
            max_consumers: -1,
            ..stream::Config::default()
        };
        match context.create_stream(config.clone()).await {
            Err(error) if copies > 1 && is_too_small(&error) => {
                tracing::warn!(%error, "NATS keeps the nodes' keys on one server only, not on three");
                context.create_stream(stream::Config { num_replicas: 1, ..config }).await?;
            }
            // Another node may have made it at the same moment.
            Err(error) => tracing::debug!(%error, "cannot make the bucket for the nodes' keys"),
            Ok(_) => {}
        }
        Ok(context.get_key_value(&name).await?)
    }
}

/// Whether NATS has not the servers for so many copies: not that they don't answer now.
fn is_too_small(error: &CreateStreamError) -> bool {
    let small = [
        ErrorCode::CLUSTER_NO_PEERS,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED,
    ];
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => small.contains(&error.error_code()),
        _ => false,
    }
}

/// What it takes to write the own key.
struct Writing {
    bucket: Bucket,
    node: Arc<str>,
    own: Arc<Mutex<Option<u64>>>,
    taken: Arc<AtomicBool>,
}

impl Writing {
    /// Writes what is to be published, until nobody has anything to publish.
    async fn write_all(self, mut published: watch::Receiver<Option<Vec<u8>>>) {
        let mut store: Option<Store> = None;
        while published.changed().await.is_ok() {
            let Some(bytes) = published.borrow_and_update().clone() else { continue };
            self.taken.store(false, Ordering::Relaxed);
            let write = async {
                let bytes = Bytes::from(bytes);
                if let Some(open) = &store {
                    match open.put(&*self.node, bytes.clone()).await {
                        Ok(number) => return Ok((None, number)),
                        Err(error) => tracing::debug!(%error, "looking for the bucket again"),
                    }
                }
                let open = self.bucket.open().await?;
                let number = open.put(&*self.node, bytes).await?;
                Ok::<_, async_nats::Error>((Some(open), number))
            };
            let written = tokio::select! {
                biased;
                written = timeout(self.bucket.lease, write) => written,
                // What is not answered by now is not worth waiting for: the connection may be another.
                Ok(()) = published.changed() => {
                    published.mark_changed();
                    tracing::debug!("NATS has not answered to the last key of this node");
                    continue;
                }
            };
            match written {
                Ok(Ok((open, number))) => {
                    // It stays open: while NATS chooses its leader it may take a key, but not say
                    // where keys are.
                    store = open.or(store);
                    self.taken.store(true, Ordering::Relaxed);
                    *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot write the key of this node to NATS");
                }
                Err(_) => {
                    tracing::warn!("NATS does not answer; the key of this node is not written");
                }
            }
        }
    }
}

async fn watch_all(bucket: &Bucket, tell: &mpsc::Sender<Heard>) -> Result<(), async_nats::Error> {
    let store = timeout(bucket.lease, bucket.open()).await??;
    let mut keys = timeout(bucket.patience(), store.watch_with_history(">")).await??;
    while let Some(entry) = keys.next().await {
        let entry = entry?;
        let key = match entry.operation {
            Operation::Put => match member::from_bytes(&entry.value) {
                Ok(key) => Some(key),
                Err(error) => {
                    tracing::warn!(node = entry.key, "the key of a node can't be read: {error}");
                    continue;
                }
            },
            Operation::Delete | Operation::Purge => None,
        };
        if tell.send((entry.key.as_str().into(), entry.revision, key)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
