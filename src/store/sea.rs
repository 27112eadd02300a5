//! The store in a database that sea-orm knows.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::Store;
use super::broadcast::{Broadcast, BroadcastChange, BroadcastStore, Recipient};
use super::broadcast_rows;
use super::committer::Committer;
use super::error::StoreError;
use super::held::HeldNow;
use super::job::{Done, Job, Outcome};
use super::joint::divide;
use super::lane;
use super::message::{DueMessage, DuePosition, Header, PageLimit, Purged, StoredMessage};
use super::metrics::Metrics;
use super::moves::{self, Move, Moving};
use super::open;
use super::open::Ready;
use super::ownership::{Holding, Incarnation, Member, MoveError, Ownership};
use super::pages;
use super::purge;
use super::queue::{Submitted, Task};
use super::readers::Readers;
use super::remedy;
use super::settings::StoreSettings;
use super::shards;
use super::shared::Shared;
use super::usage::{Detail, Usage};
use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, ShardId};

/// Offline messages in SQLite, PostgreSQL, MySQL or MariaDB.
///
/// Dropped without [`Store::close`], it finishes what is queued on its own.
pub struct SeaStore {
    inlet: Inlet,
    moves: mpsc::Sender<Moving>,
    readers: Arc<Readers>,
    held: Arc<HeldNow>,
    ended: watch::Receiver<()>,
}

impl fmt::Debug for SeaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeaStore").field("incarnation", &self.incarnation()).finish_non_exhaustive()
    }
}

impl SeaStore {
    /// Opens the database, makes it if it is not there, brings its tables up to date, and
    /// raises the epoch.
    pub async fn open(settings: StoreSettings) -> Result<SeaStore, StoreError> {
        let (metrics, committers) = (Metrics::of(settings.part.as_ref()), open::writers(&settings));
        let shared = Arc::new(Shared::new(metrics, committers as usize));
        let (ending, ended) = watch::channel(());
        let (append_limit, url) = (settings.append_limit, remedy::shown(&settings.url));
        let committer = |number, jobs, moves| {
            let (shared, ending) = (shared.clone(), ending.clone());
            Committer { number, shared, append_limit, jobs, moves, ending }
        };
        let (sender, jobs) = mpsc::unbounded_channel();
        let (moves, moving) = mpsc::channel(moves::WAITING);
        let (tell, told) = oneshot::channel();
        committer(0, jobs, moving).open(settings, tell).map_err(StoreError::Thread)?;
        let (Ready { readers, held }, others) = told.await.map_err(|_| StoreError::Closed)??;
        let mut senders = vec![sender];
        for (number, writer) in (1..).zip(others) {
            let (sender, jobs) = mpsc::unbounded_channel();
            let (tell, told) = oneshot::channel();
            // It is never told to move a shard.
            let (_, moving) = mpsc::channel(1);
            let joined = match committer(number, jobs, moving).join(writer, tell) {
                Ok(()) => told.await.map_err(|_| StoreError::Closed),
                Err(error) => Err(StoreError::Thread(error)),
            };
            let joined = joined.and_then(|joined| joined.map_err(|e| open::failed(&url, e)));
            if let Err(error) = joined {
                // The database is let go before it may be tried again.
                drop((senders, ending));
                all_ended(ended).await;
                return Err(error);
            }
            senders.push(sender);
        }
        let inlet = Inlet { senders: Arc::new(RwLock::new(senders)), committers, shared };
        Ok(SeaStore { inlet, moves, readers: Arc::new(readers), held, ended })
    }
}

/// Waits for the end of all committers.
async fn all_ended(mut ended: watch::Receiver<()>) {
    // Nothing is ever sent.
    while ended.changed().await.is_ok() {}
}

impl SeaStore {
    /// Ends when another process has taken the database of a server over. This store is closed
    /// by then.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let (ended, shared) = (self.ended.clone(), self.inlet.shared.clone());
        async move {
            all_ended(ended).await;
            if !shared.is_fenced() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Shards of a server's database that nodes share.
impl SeaStore {
    /// Who this process is to the others; none: the database is a file.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.readers.owner().map(|owner| owner.incarnation)
    }

    /// Who owns what, by the database. What this process was given meanwhile is known to it after
    /// that: [`Store::epoch`] tells of it.
    pub async fn ownership(&self) -> Result<Ownership, MoveError> {
        let Some(owner) = self.readers.owner() else {
            return Err(MoveError::Alone);
        };
        let look = move |database| {
            let owner = owner.clone();
            async move {
                let mut members = lane::all(&database).await.map_err(pages::failed)?;
                // One that had the database alone may have left several rows.
                members.dedup_by(|row, first| row.node == first.node);
                let members = members.iter().filter_map(member).collect();
                let shards = shards::all(&database).await.map_err(pages::failed)?;
                // At the end: whatever is seen to be this process's is known to be.
                owner.look(&database).await?;
                Ok(Ownership { members, shards })
            }
        };
        self.readers.read(look).await.map_err(|error| match error {
            StoreError::Fenced => MoveError::Fenced,
            StoreError::Read(error) => MoveError::Failed(error),
            _ => MoveError::Closed,
        })
    }

    /// Takes shards: all of them, if each is still owned as it was seen. Their owners are fenced:
    /// what they have under way is waited for, or its session is ended when that stands still,
    /// and after that they write and hand over nothing, of other shards neither. So this is for
    /// shards of nobody, of nodes that have ended or were superseded, and of those believed dead.
    ///
    /// Ids made with the new epoch ([`Store::epoch`]) are greater than all before. What waits here
    /// for other shards waits meanwhile.
    pub async fn take(&self, seen: Vec<Holding>) -> Result<(), MoveError> {
        if seen.is_empty() {
            return Ok(());
        }
        self.move_shards(Move::Take(seen)).await
    }

    /// Gives shards of this process to another that lives. What was submitted for them and has not
    /// been carried out is answered [`Outcome::NotMine`]. The receiver learns of it with its next
    /// transaction or [`SeaStore::ownership`].
    pub async fn give(&self, shards: Vec<ShardId>, to: Incarnation) -> Result<(), MoveError> {
        if shards.is_empty() || self.incarnation().as_ref() == Some(&to) {
            return Ok(());
        }
        self.move_shards(Move::Give(shards, to)).await
    }

    /// Whether a later process of the same name has the database; asked by one that was fenced.
    /// None: it is not known.
    pub async fn has_successor(&self) -> Option<bool> {
        let own = self.incarnation()?;
        let look = |database| async move { lane::all(&database).await.map_err(pages::failed) };
        let lanes = self.readers.read(look).await.ok()?;
        let latest = lanes.iter().find(|lane| lane.node == own.node)?.incarnation()?;
        Some(latest.number != own.number)
    }

    async fn move_shards(&self, what: Move) -> Result<(), MoveError> {
        if !self.readers.owner().is_some_and(|owner| owner.shared) {
            return Err(MoveError::Alone);
        }
        let (tell, told) = oneshot::channel();
        let closed = || match self.inlet.shared.is_fenced() {
            true => MoveError::Fenced,
            false => MoveError::Closed,
        };
        self.moves.send(Moving { what, tell }).await.map_err(|_| closed())?;
        told.await.map_err(|_| closed())?
    }
}

fn member(lane: &lane::Found) -> Option<Member> {
    let incarnation = lane.incarnation()?;
    let unseen = Duration::from_micros(u64::try_from(lane.age).unwrap_or(0));
    Some(Member { incarnation, fenced: lane.fenced, unseen })
}

/// Where jobs go in, until the store closes.
#[derive(Clone)]
pub(super) struct Inlet {
    /// Of each committer; none: it is closed.
    senders: Arc<RwLock<Vec<mpsc::UnboundedSender<Submitted>>>>,
    /// How many there were.
    committers: u32,
    shared: Arc<Shared>,
}

impl Inlet {
    fn submit(&self, job: Job) {
        let admitted = self.shared.load.admit(&job.writes);
        let tasks = job.writes.into_iter().map(Task::from).collect();
        self.send(tasks, job.done, admitted);
    }

    fn send(&self, tasks: Vec<Task>, done: Done, admitted: bool) {
        let committer = |task: &Task| committer_of(task.recipient(), self.committers);
        let (first, rest) = match tasks.split_first() {
            Some((first, rest)) => (committer(first), rest),
            None => (0, &[][..]),
        };
        // Most have one task.
        if rest.iter().all(|task| committer(task) == first) {
            return self.send_to(first, tasks, done, admitted);
        }
        for (committer, tasks, done) in divide(tasks, done, committer) {
            self.send_to(committer, tasks, done, admitted);
        }
    }

    fn send_to(&self, committer: usize, tasks: Vec<Task>, done: Done, admitted: bool) {
        let submitted = Submitted { tasks, done, admitted, since: Instant::now() };
        let senders = self.senders.read().unwrap_or_else(PoisonError::into_inner);
        let refused = match senders.get(committer) {
            Some(sender) => sender.send(submitted).err().map(|error| error.0),
            None => Some(submitted),
        };
        drop(senders);
        if let Some(job) = refused {
            job.refuse(&self.shared.load);
        }
    }

    /// Carries tasks out that are never answered `Retry` but by a store that closes. What is
    /// another node's is left to it.
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
        self.senders.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Who carries out what concerns a recipient, always the same; what concerns none, the first.
fn committer_of(recipient: &str, committers: u32) -> usize {
    if committers < 2 || recipient.is_empty() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    recipient.hash(&mut hasher);
    // Less than the number of committers.
    (hasher.finish() % u64::from(committers)) as usize
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
        let owner = self.readers.owner();
        let headers =
            move |database| pages::headers(database, owner.clone(), recipient.clone(), after, rows);
        Box::pin(self.readers.read(headers))
    }

    fn usage(
        &self,
        recipient: Bare,
        detail: Detail,
    ) -> BoxFuture<'static, Result<Usage, StoreError>> {
        let owner = self.readers.owner();
        let usage =
            move |database| pages::usage(database, owner.clone(), recipient.clone(), detail);
        Box::pin(self.readers.read(usage))
    }

    fn due(
        &self,
        from: DuePosition,
        until: Timestamp,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<DueMessage>, StoreError>> {
        let owner = self.readers.owner();
        let due = move |database| pages::due(database, owner.clone(), from.clone(), until, limit);
        Box::pin(self.readers.read(due))
    }

    fn next_due(
        &self,
        from: DuePosition,
    ) -> BoxFuture<'static, Result<Option<Timestamp>, StoreError>> {
        let owner = self.readers.owner();
        let next = move |database| pages::next_due(database, owner.clone(), from.clone());
        Box::pin(self.readers.read(next))
    }

    fn purge(
        &self,
        stored_before: Option<Timestamp>,
        marks_before: Timestamp,
    ) -> BoxFuture<'static, Result<Purged, StoreError>> {
        let (inlet, readers) = (self.inlet.clone(), self.readers.clone());
        let held = self.held.clone();
        Box::pin(
            async move { purge::purge(&inlet, &readers, &held, stored_before, marks_before).await },
        )
    }

    fn find(
        &self,
        _: Bare,
        key: Key,
    ) -> BoxFuture<'static, Result<Option<Option<u16>>, StoreError>> {
        Box::pin(self.readers.read(move |database| pages::find(database, key.clone())))
    }

    fn epoch(&self, shard: ShardId) -> u32 {
        self.held.get().epoch(shard).unwrap_or(0)
    }

    fn healthy(&self) -> bool {
        self.inlet.shared.is_healthy()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inlet.close();
        let (ended, readers) = (self.ended.clone(), self.readers.clone());
        Box::pin(async move {
            all_ended(ended).await;
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
