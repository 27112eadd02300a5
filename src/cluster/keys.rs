//! The bucket with the keys of nodes: written and watched, each by a task of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::kv::{Operation, Store};
use async_nats::jetstream::{self, stream};
use futures::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

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

/// What is heard over a watch.
pub(super) enum Heard {
    /// A key: the node, its number, and what it says; none: it was taken back.
    Key(Arc<str>, u64, Option<Key<Says>>),
    /// The watch has ended, and says nothing any more.
    End,
}

/// Who writes the own key.
pub(super) struct Keys {
    nats: Nats,
    node: Arc<str>,
    lease: Duration,
    servers: usize,
    publish: watch::Sender<Option<Vec<u8>>>,
    /// The number of the last own key.
    own: Arc<Mutex<Option<u64>>>,
}

impl Keys {
    /// `servers`: how many NATS servers the settings name.
    pub(super) fn new(nats: Nats, node: Arc<str>, lease: Duration, servers: usize) -> Self {
        let (publish, published) = watch::channel(None);
        let own = Arc::new(Mutex::new(None));
        let keys = Keys { nats, node, lease, servers, publish, own };
        keys.nats.spawn(write_all(keys.bucket(), keys.node.clone(), published, keys.own.clone()));
        keys
    }

    /// Writes the own key, one after the other; of those that wait, the last.
    pub(super) fn publish(&self, key: &Key<Says>) {
        self.publish.send_replace(Some(member::to_bytes(key)));
    }

    /// Begins to watch, from the last of each key.
    pub(super) fn watch(&self) -> (mpsc::Receiver<Heard>, JoinHandle<()>) {
        let (tell, heard) = mpsc::channel(WAITING);
        let bucket = self.bucket();
        let task = self.nats.spawn(async move {
            if let Err(error) = watch_all(&bucket, &tell).await {
                tracing::debug!("cannot watch the keys of the nodes: {error}");
            }
            // Whoever watched may be gone.
            let _ = tell.send(Heard::End).await;
        });
        (heard, task)
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
    /// The bucket; made if it is not there, with as many copies as NATS has servers for.
    async fn open(&self) -> Result<Store, async_nats::Error> {
        let client = self.nats.client().clone();
        let mut context = jetstream::new(client);
        context.set_timeout(self.lease);
        let name = format!("amphora-{}", self.nats.cluster());
        if let Ok(store) = context.get_key_value(&name).await {
            return Ok(store);
        }
        let servers = self.servers.max(self.nats.client().server_info().connect_urls.len());
        let copies = if servers >= COPIES { COPIES } else { 1 };
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
        let made = context.create_stream(config.clone()).await;
        if let Err(error) = made
            && copies > 1
        {
            tracing::warn!(%error, "NATS keeps the nodes' keys on one server only, not on three");
            context.create_stream(stream::Config { num_replicas: 1, ..config }).await?;
        }
        Ok(context.get_key_value(&name).await?)
    }
}

/// Writes what is to be published, until nobody has anything to publish.
async fn write_all(
    bucket: Bucket,
    node: Arc<str>,
    mut published: watch::Receiver<Option<Vec<u8>>>,
    own: Arc<Mutex<Option<u64>>>,
) {
    let mut store = None;
    while published.changed().await.is_ok() {
        let Some(bytes) = published.borrow_and_update().clone() else { continue };
        let write = async {
            let open = match store.take() {
                Some(open) => open,
                None => bucket.open().await?,
            };
            let number = open.put(&*node, bytes.into()).await?;
            Ok::<_, async_nats::Error>((open, number))
        };
        match timeout(bucket.lease, write).await {
            Ok(Ok((open, number))) => {
                store = Some(open);
                *own.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
            }
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the key of this node to NATS"),
            Err(_) => tracing::warn!("NATS does not answer; the key of this node is not written"),
        }
    }
}

async fn watch_all(bucket: &Bucket, tell: &mpsc::Sender<Heard>) -> Result<(), async_nats::Error> {
    let store = timeout(bucket.lease, bucket.open()).await??;
    let mut keys = timeout(bucket.lease, store.watch_with_history(">")).await??;
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
        let heard = Heard::Key(entry.key.as_str().into(), entry.revision, key);
        if tell.send(heard).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
