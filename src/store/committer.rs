//! Group commit: one task, one connection, one transaction after the other.
//!
//! It runs on a thread of its own: the actors' threads are busy with decisions, and a commit
//! that waited for them would make every append of the node wait.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sea_orm::{DatabaseTransaction, DbErr};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep, sleep_until};

use super::job::Outcome;
use super::lock::Lock;
use super::metrics;
use super::queue::{Load, Queue, Submitted, Task, Waiting};
use super::sqlite::{self, Fault};
use super::writer::{End, Writer};
use crate::words::Bare;

/// The pause after a failure, doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Short enough that appends which just began to wait get their chance.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What all parts of a store see.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) load: Arc<Load>,
    pub(super) healthy: AtomicBool,
}

/// Owns the connection that writes.
pub(super) struct Committer {
    pub(super) writer: Writer,
    pub(super) shared: Arc<Shared>,
    pub(super) jobs: UnboundedReceiver<Submitted>,
    pub(super) append_limit: Duration,
    /// Let go last.
    pub(super) lock: Lock,
}

impl Committer {
    /// Runs on a new thread until every sender of jobs is gone, then carries out what waits.
    pub(super) fn spawn(self, ended: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("amphora-store".to_owned());
        thread.spawn(move || {
            runtime.block_on(self.run());
            ended();
        })?;
        Ok(())
    }

    async fn run(self) {
        let Committer { writer, shared, jobs, append_limit, lock } = self;
        let queue = Queue::new(shared.load.clone(), append_limit);
        let inbox = Inbox { jobs, queue, open: true };
        // Also when this thread panics, nobody is told that all is well.
        let _unhealthy = Unhealthy(shared.clone());
        let mut run = Run { writer, shared, inbox, append_limit, pause: FIRST_PAUSE, end: None };
        run.until_closed().await;
        run.writer.close().await;
        drop(lock);
    }
}

/// Marks the store as unhealthy when it ends.
struct Unhealthy(Arc<Shared>);

impl Drop for Unhealthy {
    fn drop(&mut self) {
        self.0.healthy.store(false, Ordering::Relaxed);
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
        while let Ok(job) = self.jobs.try_recv() {
            self.queue.push(job);
        }
    }

    /// Awaits `work`; meanwhile takes jobs in and gives up appends that are late.
    async fn during<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        loop {
            let deadline = self.queue.deadline();
            tokio::select! {
                biased;
                output = &mut work => return output,
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.queue.give_up_late();
                }
                job = self.jobs.recv(), if self.open => match job {
                    Some(job) => self.queue.push(job),
                    None => self.open = false,
                },
            }
        }
    }
}

struct Run {
    writer: Writer,
    shared: Arc<Shared>,
    inbox: Inbox,
    append_limit: Duration,
    pause: Duration,
    /// When to stop trying, once the store closes.
    end: Option<Instant>,
}

impl Run {
    async fn until_closed(&mut self) {
        loop {
            self.inbox.push_all();
            self.inbox.queue.give_up_late();
            metrics::waiting(self.shared.load.appends());
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

    async fn wait_for_job(&mut self) {
        match self.inbox.jobs.recv().await {
            Some(job) => self.inbox.queue.push(job),
            None => self.inbox.open = false,
        }
    }

    /// One transaction with what waits when it begins. With nothing waiting it shows whether
    /// an unhealthy store has recovered.
    async fn transact(&mut self) {
        let begun = match self.inbox.during(self.writer.begin()).await {
            Ok(begun) => begun,
            Err(error) => return self.failed(&error).await,
        };
        self.inbox.push_all();
        let batch = self.inbox.queue.take(!self.is_healthy());
        match self.commit(begun, &batch).await {
            Ok(outcomes) => {
                self.recovered();
                self.answer(batch, outcomes);
            }
            Err(error) => {
                self.put_back(batch);
                self.failed(&error).await;
            }
        }
    }

    /// The outcomes, if the batch is committed; an error if it is known not to be.
    async fn commit(
        &mut self,
        begun: DatabaseTransaction,
        batch: &[Waiting],
    ) -> Result<Vec<Outcome>, DbErr> {
        let tasks: Vec<&Task> = batch.iter().map(|waiting| &waiting.task).collect();
        match self.inbox.during(self.writer.commit(begun, &tasks)).await {
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
                Err(error) => self.failed(&error).await,
            }
            if !self.inbox.open && self.is_over() {
                tracing::error!("closed without knowing whether the last writes are stored");
                return false;
            }
        }
    }

    fn answer(&mut self, batch: Vec<Waiting>, outcomes: Vec<Outcome>) {
        let mut stuck: HashSet<Bare> = HashSet::new();
        for (waiting, outcome) in batch.into_iter().zip(outcomes) {
            match (&waiting.task, &outcome) {
                (Task::Append(message), Outcome::Retry) => {
                    stuck.insert(message.recipient.clone());
                }
                (Task::Delete { .. } | Task::RemoveAccount { .. }, Outcome::Done { rows }) => {
                    metrics::deleted(*rows);
                }
                _ => {}
            }
            waiting.answer(outcome);
        }
        if !stuck.is_empty() {
            self.inbox.queue.give_up(&stuck);
        }
    }

    /// Answers `Retry` to the appends, and to those of their recipients that wait; the rest is
    /// tried again.
    fn put_back(&mut self, batch: Vec<Waiting>) {
        let (appends, rest): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|waiting| matches!(waiting.task, Task::Append(_)));
        self.inbox.queue.put_back(rest);
        let recipients =
            appends.iter().map(|waiting| Bare::from(waiting.task.recipient())).collect();
        for waiting in appends {
            waiting.answer(Outcome::Retry);
        }
        self.inbox.queue.give_up(&recipients);
    }

    /// Pauses after a failure; begins with a new connection, unless this one only had to wait
    /// for another program.
    async fn failed(&mut self, error: &DbErr) {
        if self.is_healthy() {
            tracing::error!(%error, "cannot write to the store; trying again");
            self.set_healthy(false);
        }
        if sqlite::fault(error) == Fault::Busy {
            self.pause = FIRST_PAUSE;
        } else {
            self.inbox.during(self.writer.renew()).await;
        }
        self.inbox.during(sleep(self.pause)).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn recovered(&mut self) {
        self.pause = FIRST_PAUSE;
        if !self.is_healthy() {
            tracing::info!("the store can be written again");
            self.set_healthy(true);
        }
    }

    fn is_healthy(&self) -> bool {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    fn set_healthy(&self, healthy: bool) {
        self.shared.healthy.store(healthy, Ordering::Relaxed);
        metrics::healthy(healthy);
    }
}
