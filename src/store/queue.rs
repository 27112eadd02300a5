//! What waits for the next transaction.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::broadcast::BroadcastChange;
use super::job::{Done, NewMessage, Outcome, Write};
use super::metrics::Metrics;
use crate::words::{Bare, Expiry, MessageId};

/// Appends that may wait: what the full windows of 16 links amount to, half a second of work
/// for the slowest database, so that what is taken can be done well within the append limit.
/// What is beyond is answered `Retry`.
const APPENDS: usize = 16 * 1024;

/// Bytes of stanzas that may wait, for the same 16 windows of 16 MiB.
const BYTES: usize = 16 * 16 * 1024 * 1024;

/// Rows of a transaction at most, so that the answers come soon. More did not raise the
/// throughput.
pub(super) const BATCH_ROWS: usize = 1024;

/// Bytes of stanzas of a transaction at most.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// How much waits: counted up where jobs are submitted, down where they are answered.
pub(super) struct Load {
    appends: AtomicUsize,
    bytes: AtomicUsize,
    pub(super) metrics: Metrics,
}

impl Load {
    pub(super) fn new(metrics: Metrics) -> Self {
        Load { appends: AtomicUsize::new(0), bytes: AtomicUsize::new(0), metrics }
    }

    /// Takes the job in, or says that it is too much. A job that alone is too much is taken
    /// when nothing else waits.
    pub(super) fn admit(&self, writes: &[Write]) -> bool {
        let (appends, bytes) = writes
            .iter()
            .filter_map(append)
            .fold((0, 0), |(n, sum), message| (n + 1, sum + message.stanza.len()));
        let before = self.appends.fetch_add(appends, Ordering::Relaxed);
        let bytes_before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        before == 0 || (before + appends <= APPENDS && bytes_before + bytes <= BYTES)
    }

    fn leave(&self, message: &NewMessage) {
        self.appends.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(message.stanza.len(), Ordering::Relaxed);
    }

    /// Appends that were admitted and are not answered.
    pub(super) fn appends(&self) -> usize {
        self.appends.load(Ordering::Relaxed)
    }
}

fn append(write: &Write) -> Option<&NewMessage> {
    match write {
        Write::Append(message) => Some(message),
        _ => None,
    }
}

/// One thing to do: a write, or one of the store's own.
#[derive(Clone, Debug)]
pub(super) enum Task {
    Append(NewMessage),
    Delete {
        recipient: Bare,
        ids: Vec<MessageId>,
    },
    SetExpiry {
        recipient: Bare,
        id: MessageId,
        expiry: Option<Expiry>,
    },
    /// In steps of up to [`BATCH_ROWS`], each a transaction of its own: those after this id, where so
    /// many are gone.
    RemoveAccount {
        recipient: Bare,
        after: MessageId,
        removed: u64,
    },
    /// A change to a broadcast.
    Broadcast(BroadcastChange),
    /// Removes the marks that end from `first` to `last`, microseconds since the Unix epoch: about so
    /// many `rows`.
    PurgeMarks {
        first: i64,
        last: i64,
        rows: usize,
    },
}

impl Task {
    /// Whose messages it changes; empty for none.
    pub(super) fn recipient(&self) -> &str {
        match self {
            Task::Append(message) => &message.recipient,
            Task::Delete { recipient, .. }
            | Task::SetExpiry { recipient, .. }
            | Task::RemoveAccount { recipient, .. } => recipient,
            Task::PurgeMarks { .. } | Task::Broadcast(_) => "",
        }
    }

    fn size(&self) -> (usize, usize) {
        match self {
            Task::Append(message) => (1, message.stanza.len()),
            Task::Delete { ids, .. } => (ids.len(), 0),
            Task::SetExpiry { .. } => (1, 0),
            Task::RemoveAccount { .. } => (BATCH_ROWS, 0),
            Task::Broadcast(change) => (change.rows(), 0),
            Task::PurgeMarks { rows, .. } => (*rows, 0),
        }
    }

    pub(super) fn is_append(&self) -> bool {
        matches!(self, Task::Append(_))
    }

    /// The smallest tasks that together do the same.
    pub(super) fn parts(&self) -> Vec<Task> {
        match self {
            Task::Delete { recipient, ids } => {
                let part = |id: &MessageId| (recipient.clone(), vec![*id]);
                let parts = ids.iter().map(part);
                parts.map(|(recipient, ids)| Task::Delete { recipient, ids }).collect()
            }
            _ => vec![self.clone()],
        }
    }
}

impl From<Write> for Task {
    fn from(write: Write) -> Self {
        match write {
            Write::Append(message) => Task::Append(message),
            Write::Delete { recipient, ids } => Task::Delete { recipient, ids },
            Write::SetExpiry { recipient, id, expiry } => Task::SetExpiry { recipient, id, expiry },
            Write::RemoveAccount { recipient } => {
                Task::RemoveAccount { recipient, after: MessageId(i64::MIN), removed: 0 }
            }
        }
    }
}

/// A job on its way to the committer.
pub(super) struct Submitted {
    pub(super) tasks: Vec<Task>,
    pub(super) done: Done,
    /// Whether its appends were admitted.
    pub(super) admitted: bool,
    pub(super) since: Instant,
}

impl Submitted {
    /// Answers `Retry` to all of it: the store is closed.
    pub(super) fn refuse(self, load: &Load) {
        for task in &self.tasks {
            if let Task::Append(message) = task {
                load.leave(message);
                message.run.give_up();
            }
            load.metrics.count(&Outcome::Retry);
        }
        (self.done)(vec![Outcome::Retry; self.tasks.len()]);
    }
}

/// The answers of one job as they come in. Whatever happens, `done` is called once: a write
/// that nobody decides is not done.
struct Answers {
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    done: Option<Done>,
}

impl Answers {
    fn give(&mut self, place: usize, outcome: Outcome) {
        if self.outcomes[place].replace(outcome).is_none() {
            self.missing -= 1;
        }
        if self.missing == 0 {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(done) = self.done.take() {
            let outcomes = self.outcomes.drain(..);
            let outcomes = outcomes.map(|outcome| outcome.unwrap_or(Outcome::Retry)).collect();
            // One caller's mistake must not end the store for the others.
            if catch_unwind(AssertUnwindSafe(|| done(outcomes))).is_err() {
                tracing::error!("whoever was told the outcomes of a job panicked");
            }
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A task that waits, and where its answer goes.
pub(super) struct Waiting {
    pub(super) task: Task,
    since: Instant,
    place: usize,
    answers: Rc<RefCell<Answers>>,
    load: Arc<Load>,
}

impl Waiting {
    /// Tells what became of it.
    pub(super) fn answer(self, outcome: Outcome) {
        if let Task::Append(message) = &self.task {
            self.load.leave(message);
            if outcome.is_retry() {
                message.run.give_up();
            }
        }
        self.load.metrics.count(&outcome);
        self.answers.borrow_mut().give(self.place, outcome);
    }
}

/// All that waits, oldest first.
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// Accounts that are being removed: what waits for these recipients comes after it.
    removing: VecDeque<Waiting>,
    /// Whether the next step of a removal may come before what waits.
    next_removes: bool,
    load: Arc<Load>,
    append_limit: Duration,
    /// No append must be given up before.
    deadline: Option<Instant>,
}

impl Queue {
    pub(super) fn new(load: Arc<Load>, append_limit: Duration) -> Self {
        let (waiting, removing) = (VecDeque::new(), VecDeque::new());
        Queue { waiting, removing, next_removes: false, load, append_limit, deadline: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.removing.is_empty()
    }

    /// Takes a job in. Appends that were not admitted are answered at once.
    pub(super) fn push(&mut self, job: Submitted) {
        let Submitted { tasks, done, admitted, since } = job;
        let answers = Rc::new(RefCell::new(Answers {
            outcomes: tasks.iter().map(|_| None).collect(),
            missing: tasks.len(),
            done: Some(done),
        }));
        if tasks.is_empty() {
            answers.borrow_mut().finish();
        }
        for (place, task) in tasks.into_iter().enumerate() {
            let append = task.is_append();
            let (answers, load) = (answers.clone(), self.load.clone());
            let waiting = Waiting { task, since, place, answers, load };
            if append && !admitted {
                waiting.answer(Outcome::Retry);
                continue;
            }
            if append && self.deadline.is_none() {
                self.deadline = Some(since + self.append_limit);
            }
            self.waiting.push_back(waiting);
        }
    }

    /// What the next transaction carries out. `apart`: appends and other writes not in one,
    /// so that a full database can still be emptied. A removal takes turns with what waits for
    /// others.
    pub(super) fn take(&mut self, apart: bool) -> Vec<Waiting> {
        if !std::mem::take(&mut self.next_removes) {
            let batch = self.take_waiting(apart);
            let first = batch.first().map(|waiting| &waiting.task);
            self.next_removes =
                first.is_some_and(|task| !matches!(task, Task::RemoveAccount { .. }));
            if !batch.is_empty() {
                return batch;
            }
        }
        match self.removing.pop_front() {
            Some(removal) => vec![removal],
            None => self.take_waiting(apart),
        }
    }

    fn take_waiting(&mut self, apart: bool) -> Vec<Waiting> {
        let (mut batch, mut later) = (Vec::new(), Vec::new());
        let (mut rows, mut bytes) = (0, 0);
        let mut appends = None;
        while let Some(next) = self.waiting.pop_front() {
            if given_up(&next) {
                next.answer(Outcome::Retry);
                continue;
            }
            if self.removing.iter().any(|one| one.task.recipient() == next.task.recipient()) {
                later.push(next);
                continue;
            }
            let (more_rows, more_bytes) = next.task.size();
            let full = rows + more_rows > BATCH_ROWS || bytes + more_bytes > BATCH_BYTES;
            let mixed = apart && appends.is_some_and(|appends| appends != next.task.is_append());
            if !batch.is_empty() && (full || mixed) {
                self.waiting.push_front(next);
                break;
            }
            (rows, bytes) = (rows + more_rows, bytes + more_bytes);
            appends = Some(next.task.is_append());
            batch.push(next);
        }
        later.into_iter().rev().for_each(|one| self.waiting.push_front(one));
        self.find_deadline();
        batch
    }

    /// Puts back what a transaction could not do, in its old place.
    pub(super) fn put_back(&mut self, batch: Vec<Waiting>) {
        for waiting in batch.into_iter().rev() {
            match waiting.task {
                Task::RemoveAccount { .. } => self.go_on_removing(waiting),
                _ => self.waiting.push_front(waiting),
            }
        }
    }

    /// Goes on with the removal of an account, when others have had their turn.
    pub(super) fn go_on_removing(&mut self, removal: Waiting) {
        self.removing.push_back(removal);
    }

    /// Answers `Retry` to the appends that have waited too long, and to all later ones of
    /// their recipients.
    pub(super) fn give_up_late(&mut self) {
        let now = Instant::now();
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let late: HashSet<Bare> = self
            .waiting
            .iter()
            .filter(|waiting| now >= waiting.since + self.append_limit)
            .filter_map(|waiting| match &waiting.task {
                Task::Append(message) => Some(message.recipient.clone()),
                _ => None,
            })
            .collect();
        self.give_up(&late);
    }

    /// Answers `Retry` to all waiting appends of these recipients.
    pub(super) fn give_up(&mut self, recipients: &HashSet<Bare>) {
        if !recipients.is_empty() {
            self.retry_where(|task| task.is_append() && recipients.contains(task.recipient()));
        }
        self.find_deadline();
    }

    /// Answers `Retry` to everything.
    pub(super) fn give_up_all(&mut self) {
        self.retry_where(|_| true);
        self.deadline = None;
    }

    fn retry_where(&mut self, gone: impl Fn(&Task) -> bool) {
        for all in [&mut self.removing, &mut self.waiting] {
            for waiting in std::mem::take(all) {
                if gone(&waiting.task) {
                    waiting.answer(Outcome::Retry);
                } else {
                    all.push_back(waiting);
                }
            }
        }
    }

    fn find_deadline(&mut self) {
        let first = self.waiting.iter().find(|waiting| waiting.task.is_append());
        self.deadline = first.map(|waiting| waiting.since + self.append_limit);
    }
}

fn given_up(waiting: &Waiting) -> bool {
    matches!(&waiting.task, Task::Append(message) if message.run.is_given_up())
}

#[cfg(test)]
mod tests;
