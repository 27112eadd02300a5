//! Group commit: one task, one connection, one transaction after the other.
//!
//! Where a database has several, each has the writes of some recipients, and they know of each other
//! only that another process has taken the database over.
//!
//! It runs on a thread of its own: the actors' threads are busy with decisions, and a commit
//! that waited for them would make every append of the node wait.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};

use super::error::StoreError;
use super::fault::{self, Fault};
use super::job::Outcome;
use super::lock::Lock;
use super::moves::{Move, Moving};
use super::open::{Opened, Ready, open};
use super::ownership::MoveError;
use super::queue::{Queue, Submitted, Task, Waiting};
use super::settings::StoreSettings;
use super::shared::{Shared, Unhealthy};
use super::start::{self, PAUSE};
use super::writer::{End, MoveEnd, Writer};
use crate::words::Bare;

/// The pause after a failure, doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Short enough that appends which just began to wait get their chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How often jobs are looked at while a transaction takes long: how late one may be answered
/// `Retry`.
const LOOK: Duration = Duration::from_millis(20);

/// How often in a row a batch is tried again at once that met another transaction.
const MEETINGS: u32 = 8;

/// Owns a connection that writes, from its opening to its end.
pub(super) struct Committer {
    /// Which one of the store.
    pub(super) number: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) append_limit: Duration,
    /// Closed: carry out what waits, then end.
    pub(super) jobs: UnboundedReceiver<Submitted>,
    /// Shards that are to move, between the other transactions. Closed: by another committer.
    pub(super) moves: Receiver<Moving>,
    /// Dropped at the end.
    pub(super) ending: watch::Sender<()>,
}

impl Committer {
    /// Opens the database on a new thread; tells when it is open, and which writers it has
    /// beside the one of this committer.
    pub(super) fn open(
        self,
        settings: StoreSettings,
        ready: oneshot::Sender<Result<(Ready, Vec<Writer>), StoreError>>,
    ) -> io::Result<()> {
        // Whoever asked may be gone.
        self.spawn(move |this| async move {
            match open(&settings).await {
                Ok(Opened { writer, others, ready: opened, lock }) => {
                    let tell = || drop(ready.send(Ok((opened, others))));
                    this.run(writer, lock, tell).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })
    }

    /// Writes to a database that is open, on a new thread; tells when the connection is there.
    pub(super) fn join(
        self,
        mut writer: Writer,
        ready: oneshot::Sender<Result<(), DbErr>>,
    ) -> io::Result<()> {
        self.spawn(move |this| async move {
            match writer.connect().await {
                Ok(()) => this.run(writer, None, || drop(ready.send(Ok(())))).await,
                Err(error) => drop(ready.send(Err(error))),
            }
        })
    }

    fn spawn<F: Future<Output = ()>>(
        self,
        work: impl FnOnce(Self) -> F + Send + 'static,
    ) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("amphora-store".to_owned());
        thread.spawn(move || runtime.block_on(work(self)))?;
        Ok(())
    }

    async fn run(self, writer: Writer, lock: Option<Lock>, tell: impl FnOnce()) {
        let Committer { number, shared, append_limit, jobs, moves, ending } = self;
        let unhealthy = Unhealthy(shared.clone(), number);
        shared.set_healthy(number, true);
        tell();
        let queue = Queue::new(shared.load.clone(), append_limit);
        let inbox = Inbox { jobs, queue, open: true };
        let (pause, met, end) = (FIRST_PAUSE, 0, None);
        let mut run = Run { number, writer, shared, inbox, moves, append_limit, pause, met, end };
        run.until_closed().await;
        run.writer.close().await;
        drop((lock, unhealthy, ending));
    }
}

/// Where jobs come in and wait.
struct Inbox {
    jobs: UnboundedReceiver<Submitted>,
    queue: Queue,
    open: bool,
}

impl Inbox {
    fn push_all(&mut self) {
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.queue.push(job),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.open = false;
                    return;
                }
            }
        }
    }

    /// Awaits `work`; if that takes long, takes jobs in and gives up appends that are late. Jobs
    /// do not wake it: most come while a transaction is under way, and wait for its end anyway.
    async fn during<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                output = &mut work => return output,
                () = sleep(LOOK) => {
                    self.push_all();
                    self.queue.give_up_late();
                }
            }
        }
    }
}

/// Whether other rows may fare better.
fn concerns_rows(error: &DbErr) -> bool {
    matches!(fault::fault(error), Fault::Row | Fault::Damage)
}

struct Run {
    number: usize,
    writer: Writer,
    shared: Arc<Shared>,
    inbox: Inbox,
    moves: Receiver<Moving>,
    append_limit: Duration,
    pause: Duration,
    /// How many transactions in a row met another one.
    met: u32,
    /// When to stop trying, once the store closes.
    end: Option<Instant>,
}

impl Run {
    async fn until_closed(&mut self) {
        loop {
            if self.writer.is_fenced() || self.shared.is_fenced() {
                return self.fenced();
            }
            while let Ok(moving) = self.moves.try_recv() {
                self.carry_out(moving).await;
            }
            self.inbox.push_all();
            self.inbox.queue.give_up_late();
            self.shared.load.metrics.waiting(self.shared.load.appends());
            if !self.inbox.open && self.is_over() {
                self.inbox.queue.give_up_all();
                return;
            }
            if self.inbox.queue.is_empty() && self.is_healthy() {
                self.wait_for_job().await;
            } else {
                self.transact().await;
            }
        }
    }

    /// Whether nothing is left, or too long tried, since the store was closed.
    fn is_over(&mut self) -> bool {
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + self.append_limit);
        self.inbox.queue.is_empty() || now >= end
    }

    /// Waits until there is something to do, or until it is time to show that this node lives.
    async fn wait_for_job(&mut self) {
        let rest = self.writer.heartbeat();
        tokio::select! {
            biased;
            job = self.inbox.jobs.recv() => match job {
                Some(job) => self.inbox.queue.push(job),
                None => self.inbox.open = false,
            },
            Some(moving) = self.moves.recv() => self.carry_out(moving).await,
            () = self.shared.until_fenced() => {}
            () = sleep(rest.unwrap_or_default()), if rest.is_some() => self.transact().await,
        }
    }

    /// Moves shards; what waits meanwhile goes on waiting.
    async fn carry_out(&mut self, moving: Moving) {
        let moved = self.move_shards(&moving.what).await;
        // Whoever asked may be gone.
        let _ = moving.tell.send(moved);
    }

    async fn move_shards(&mut self, what: &Move) -> Result<(), MoveError> {
        let mut tries = 0;
        loop {
            let error = match self.inbox.during(self.writer.move_shards(what)).await {
                MoveEnd::Done => return Ok(()),
                MoveEnd::Not(error) => return Err(error),
                MoveEnd::Failed(error) => error,
                MoveEnd::Unknown(held, error) => {
                    if self.settle().await {
                        self.writer.moved(held);
                        return Ok(());
                    }
                    error
                }
            };
            if self.writer.is_fenced() {
                return Err(MoveError::Fenced);
            }
            tries += 1;
            if !start::is_in_the_way(&error) || tries >= what.tries() {
                // Whatever it is, the next transaction finds out.
                self.inbox.during(self.writer.renew()).await;
                return Err(MoveError::Failed(error));
            }
            if let Err(error) = self.inbox.during(self.writer.clear_the_way(what)).await {
                return Err(MoveError::Failed(error));
            }
            self.inbox.during(sleep(PAUSE)).await;
        }
    }

    /// Another process has the right to write, for good: answers `Retry` to all. What this one
    /// still holds, the interceptors send to the other.
    fn fenced(&mut self) {
        if self.shared.fence() {
            tracing::error!("another process has taken the database over; this one writes no more");
        }
        self.set_healthy(false);
        self.inbox.jobs.close();
        self.inbox.push_all();
        self.inbox.queue.give_up_all();
    }

    /// One transaction with what waits when it begins. With nothing waiting it shows whether
    /// an unhealthy store has recovered.
    async fn transact(&mut self) {
        let begun = match self.inbox.during(self.writer.begin()).await {
            Ok(begun) => begun,
            Err(error) => {
                self.failed(&error);
                return self.pause(&error).await;
            }
        };
        self.inbox.push_all();
        let batch = self.inbox.queue.take(!self.is_healthy());
        let tasks: Vec<&Task> = batch.iter().map(|waiting| &waiting.task).collect();
        match self.commit(begun, &tasks).await {
            Ok(outcomes) => {
                self.recovered();
                self.answer(batch.into_iter().zip(outcomes));
            }
            Err(error) if concerns_rows(&error) && !batch.is_empty() => {
                tracing::error!(%error, "a transaction failed; finding out for which write");
                self.transact_one_by_one(batch).await;
            }
            Err(error) if fault::fault(&error) == Fault::Met && self.met < MEETINGS => {
                tracing::debug!(%error, "trying a transaction again");
                self.met += 1;
                self.inbox.queue.put_back(batch);
            }
            Err(error) => self.put_back(batch, &error).await,
        }
    }

    /// Each write in a transaction of its own. What meets damage alone is not done, so that the
    /// rest can go on: appends are answered `Retry`, the others `Refused`. (A savepoint would
    /// not do: after damage SQLite fails the whole transaction.)
    async fn transact_one_by_one(&mut self, batch: Vec<Waiting>) {
        let mut stuck: HashSet<Bare> = HashSet::new();
        let before = self.writer.committed();
        let mut left = VecDeque::from(batch);
        while let Some(waiting) = left.pop_front() {
            let outcome = match &waiting.task {
                Task::Append(message) if stuck.contains(&message.recipient) => Ok(Outcome::Retry),
                task => self.transact_alone(task).await,
            };
            match outcome {
                Ok(outcome) => {
                    if outcome.is_retry() {
                        stuck.insert(Bare::from(waiting.task.recipient()));
                    }
                    self.answer([(waiting, outcome)]);
                }
                Err(error) => {
                    left.push_front(waiting);
                    return self.put_back(left.into(), &error).await;
                }
            }
        }
        self.set_healthy(self.writer.committed() > before);
    }

    async fn transact_alone(&mut self, task: &Task) -> Result<Outcome, DbErr> {
        let mut rows = 0;
        let mut refused = None;
        for part in task.parts() {
            let begun = self.inbox.during(self.writer.begin()).await?;
            match self.commit(begun, &[&part]).await.as_deref() {
                Ok([Outcome::Done { rows: more }]) => rows += more,
                Ok([outcome, ..]) => return Ok(outcome.clone()),
                Ok([]) => {}
                Err(error) if concerns_rows(error) => {
                    tracing::error!(%error, recipient = part.recipient(), "a write failed");
                    if part.is_append() && fault::fault(error) == Fault::Damage {
                        return Ok(Outcome::Retry);
                    }
                    refused = Some(Outcome::Refused(error.to_string()));
                }
                Err(error) => return Err(error.clone()),
            }
        }
        Ok(refused.unwrap_or(Outcome::Done { rows }))
    }

    /// The outcomes, if the batch is committed; an error if it is known not to be.
    async fn commit(
        &mut self,
        begun: DatabaseTransaction,
        batch: &[&Task],
    ) -> Result<Vec<Outcome>, DbErr> {
        match self.inbox.during(self.writer.commit(begun, batch)).await {
            End::Committed(outcomes) => Ok(outcomes),
            End::Failed(error) => Err(error),
            End::Unknown(outcomes, error) => match self.settle().await {
                true => Ok(outcomes),
                false => Err(error),
            },
        }
    }

    /// Asks until it is known whether the last transaction was committed. A store that closes
    /// asks no longer than an append may wait.
    async fn settle(&mut self) -> bool {
        loop {
            match self.inbox.during(self.writer.settle()).await {
                Ok(committed) => return committed,
                // Whether it was committed is for the other process to find out by the keys.
                Err(_) if self.writer.is_fenced() || self.shared.is_fenced() => return false,
                Err(error) => {
                    self.failed(&error);
                    self.pause(&error).await;
                }
            }
            if !self.inbox.open && self.is_over() {
                tracing::error!("closed without knowing whether the last writes are stored");
                return false;
            }
        }
    }

    fn answer(&mut self, batch: impl IntoIterator<Item = (Waiting, Outcome)>) {
        let mut stuck: HashSet<Bare> = HashSet::new();
        for (mut waiting, mut outcome) in batch {
            if let (Task::RemoveAccount { after, removed, .. }, Outcome::Done { rows }) =
                (&mut waiting.task, &mut outcome)
            {
                self.shared.load.metrics.deleted(*rows);
                *removed += *rows;
                if let Some(last) = self.writer.removed_to() {
                    *after = last;
                    self.inbox.queue.go_on_removing(waiting);
                    continue;
                }
                *rows = *removed;
            }
            match (&waiting.task, &outcome) {
                (Task::Append(message), Outcome::Retry | Outcome::NotMine) => {
                    stuck.insert(message.recipient.clone());
                }
                (Task::Delete { .. }, Outcome::Done { rows }) => {
                    self.shared.load.metrics.deleted(*rows);
                }
                _ => {}
            }
            waiting.answer(outcome);
        }
        if !stuck.is_empty() {
            self.inbox.queue.give_up(&stuck);
        }
    }

    /// After a failure: answers `Retry` to the appends, and to those of their recipients that
    /// wait; the rest is tried again.
    async fn put_back(&mut self, batch: Vec<Waiting>, error: &DbErr) {
        self.failed(error);
        let (appends, rest): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|waiting| waiting.task.is_append());
        self.inbox.queue.put_back(rest);
        self.answer(appends.into_iter().map(|append| (append, Outcome::Retry)));
        self.pause(error).await;
    }

    fn failed(&self, error: &DbErr) {
        if self.is_healthy() {
            tracing::error!(%error, "cannot write to the store; trying again");
            self.set_healthy(false);
        }
    }

    /// Waits after a failure; begins with a new connection, unless this one only had to wait
    /// for another program.
    async fn pause(&mut self, error: &DbErr) {
        if self.writer.is_fenced() {
            return;
        }
        if fault::fault(error) == Fault::Busy {
            self.pause = FIRST_PAUSE;
        } else {
            self.inbox.during(self.writer.renew()).await;
        }
        self.inbox.during(sleep(self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn recovered(&mut self) {
        self.pause = FIRST_PAUSE;
        self.met = 0;
        if !self.is_healthy() {
            tracing::info!("the store can be written again");
            self.set_healthy(true);
        }
    }

    fn is_healthy(&self) -> bool {
        self.shared.can_write(self.number)
    }

    fn set_healthy(&self, healthy: bool) {
        self.shared.set_healthy(self.number, healthy);
    }
}
