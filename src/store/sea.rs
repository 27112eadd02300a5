//! The store in a database that sea-orm knows.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Store;
use super::broadcast::{Broadcast, BroadcastChange, BroadcastStore, Recipient};
use super::broadcast_rows;
use super::committer::{Committer, Shared};
use super::error::StoreError;
use super::job::{Done, Job, Outcome};
use super::message::{DueMessage, DuePosition, Header, PageLimit, Purged, StoredMessage};
use super::pages;
use super::purge;
use super::queue::{Submitted, Task};
use super::readers::Readers;
use super::settings::StoreSettings;
use super::usage::{Detail, Usage};
use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, ShardId};

/// Offline messages in SQLite, PostgreSQL, MySQL or MariaDB.
///
/// Dropped without [`Store::close`], it finishes what is queued on its own.
pub struct SeaStore {
    inlet: Inlet,
    readers: Arc<Readers>,
    epoch: u32,
    ended: watch::Receiver<bool>,
}

impl fmt::Debug for SeaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeaStore").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl SeaStore {
    /// Opens the database, makes it if it is not there, brings its tables up to date, and
    /// raises the epoch.
    pub async fn open(settings: StoreSettings) -> Result<SeaStore, StoreError> {
        let shared = Arc::new(Shared::new());
        let (sender, jobs) = mpsc::unbounded_channel();
        let (ending, ended) = watch::channel(false);
        let (tell, told) = oneshot::channel();
        let committer = Committer { settings, shared: shared.clone(), jobs, ending };
        committer.spawn(tell).map_err(StoreError::Thread)?;
        let (readers, epoch) = told.await.map_err(|_| StoreError::Closed)??;
        let inlet = Inlet { sender: Arc::new(RwLock::new(Some(sender))), shared };
        Ok(SeaStore { inlet, readers: Arc::new(readers), epoch, ended })
    }
}

impl SeaStore {
    /// Ends when another process has taken the database of a server over. This store is closed
    /// by then.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut ended, shared) = (self.ended.clone(), self.inlet.shared.clone());
        async move {
            // An error: the thread is gone already.
            let _ = ended.wait_for(|ended| *ended).await;
            if !shared.fenced.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Where jobs go in, until the store closes.
#[derive(Clone)]
pub(super) struct Inlet {
    sender: Arc<RwLock<Option<mpsc::UnboundedSender<Submitted>>>>,
    shared: Arc<Shared>,
}

impl Inlet {
    fn submit(&self, job: Job) {
        let admitted = self.shared.load.admit(&job.writes);
        let tasks = job.writes.into_iter().map(Task::from).collect();
        self.send(tasks, job.done, admitted);
    }

    fn send(&self, tasks: Vec<Task>, done: Done, admitted: bool) {
        let submitted = Submitted { tasks, done, admitted, since: Instant::now() };
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        let refused = match &*sender {
            Some(sender) => sender.send(submitted).err().map(|error| error.0),
            None => Some(submitted),
        };
        drop(sender);
        if let Some(job) = refused {
            job.refuse(&self.shared.load);
        }
    }

    /// Carries tasks out that are never answered `Retry` but by a store that closes.
    pub(super) async fn run(&self, tasks: Vec<Task>) -> Result<u64, StoreError> {
        let outcomes = self.begin(tasks).await.map_err(|_| StoreError::Closed)?;
        outcomes.into_iter().try_fold(0, |sum, outcome| match outcome {
            Outcome::Done { rows } => Ok(sum + rows),
            Outcome::Retry => Err(StoreError::Closed),
            _ => Ok(sum),
        })
    }

    /// Hands such tasks over at once.
    fn begin(&self, tasks: Vec<Task>) -> oneshot::Receiver<Vec<Outcome>> {
        let (tell, told) = oneshot::channel();
        let done: Done = Box::new(move |outcomes| {
            // Whoever asked may be gone.
            let _ = tell.send(outcomes);
        });
        self.send(tasks, done, true);
        told
    }

    fn close(&self) {
        self.sender.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Store for SeaStore {
    fn submit(&self, job: Job) {
        self.inlet.submit(job);
    }

    fn page(
        &self,
        recipient: Bare,
        after: MessageId,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<StoredMessage>, StoreError>> {
        let owner = self.readers.owner();
        let page =
            move |database| pages::page(database, owner.clone(), recipient.clone(), after, limit);
        Box::pin(self.readers.read(page))
    }

    fn headers(
        &self,
        recipient: Bare,
        after: MessageId,
        rows: usize,
    ) -> BoxFuture<'static, Result<Vec<Header>, StoreError>> {
        let headers = move |database| pages::headers(database, recipient.clone(), after, rows);
        Box::pin(self.readers.read(headers))
    }

    fn usage(
        &self,
        recipient: Bare,
        detail: Detail,
    ) -> BoxFuture<'static, Result<Usage, StoreError>> {
        let usage = move |database| pages::usage(database, recipient.clone(), detail);
        Box::pin(self.readers.read(usage))
    }

    fn due(
        &self,
        from: DuePosition,
        until: Timestamp,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<DueMessage>, StoreError>> {
        let due = move |database| pages::due(database, from.clone(), until, limit);
        Box::pin(self.readers.read(due))
    }

    fn next_due(
        &self,
        from: DuePosition,
    ) -> BoxFuture<'static, Result<Option<Timestamp>, StoreError>> {
        Box::pin(self.readers.read(move |database| pages::next_due(database, from.clone())))
    }

    fn purge(
        &self,
        stored_before: Option<Timestamp>,
        marks_before: Timestamp,
    ) -> BoxFuture<'static, Result<Purged, StoreError>> {
        let (inlet, readers) = (self.inlet.clone(), self.readers.clone());
        Box::pin(async move { purge::purge(&inlet, &readers, stored_before, marks_before).await })
    }

    fn find(&self, key: Key) -> BoxFuture<'static, Result<Option<Option<u16>>, StoreError>> {
        Box::pin(self.readers.read(move |database| pages::find(database, key.clone())))
    }

    fn epoch(&self, _: ShardId) -> u32 {
        self.epoch
    }

    fn healthy(&self) -> bool {
        self.inlet.shared.healthy.load(Ordering::Relaxed)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inlet.close();
        let (mut ended, readers) = (self.ended.clone(), self.readers.clone());
        Box::pin(async move {
            // An error: the thread is gone already.
            let _ = ended.wait_for(|ended| *ended).await;
            readers.close().await;
        })
    }
}

impl BroadcastStore for SeaStore {
    fn broadcasts(&self) -> BoxFuture<'static, Result<Vec<Broadcast>, StoreError>> {
        Box::pin(self.readers.read(broadcast_rows::all))
    }

    fn recipients(
        &self,
        broadcast: i64,
        after: u64,
        limit: u64,
    ) -> BoxFuture<'static, Result<Vec<Recipient>, StoreError>> {
        let recipients =
            move |database| broadcast_rows::recipients(database, broadcast, after, limit);
        Box::pin(self.readers.read(recipients))
    }

    fn change(&self, change: BroadcastChange) -> BoxFuture<'static, Result<u64, StoreError>> {
        let begun = self.inlet.begin(vec![Task::Broadcast(change)]);
        Box::pin(async move {
            match begun.await.map(|mut outcomes| outcomes.pop()) {
                Ok(Some(Outcome::Done { rows })) => Ok(rows),
                Ok(Some(Outcome::Refused(reason))) => Err(StoreError::Refused(reason)),
                _ => Err(StoreError::Closed),
            }
        })
    }
}
