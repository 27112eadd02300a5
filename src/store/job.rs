//! What is asked of the store: writes, in jobs, each answered once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::stanza::MessageType;
use crate::time::Timestamp;
use crate::words::{Bare, Expiry, Key, MessageId};

/// A message to be kept.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Whose message it is.
    pub recipient: Bare,
    /// Its place among the recipient's. The caller makes ids that only grow; one that
    /// is taken already is refused.
    pub id: MessageId,
    /// The key of its intercept. One key is stored once.
    pub key: Key,
    /// It may have been sent before: the key is looked for in rows and marks first.
    pub again: bool,
    /// The appends that must not overtake each other, see [`Run`].
    pub run: Run,
    /// The full JID of the original sender.
    pub sender: String,
    /// The stanza's type.
    pub kind: MessageType,
    /// When the message first reached a server. For the clients' eyes; the store's own
    /// logic uses the time of the append.
    pub stored_at: Timestamp,
    /// The recipient's archive has it.
    pub archived: bool,
    /// The next `expire-at` rule that may fire.
    pub expiry: Option<Expiry>,
    /// The rule that was met when it was stored; an answer to the same key repeats it.
    pub met_rule: Option<u16>,
    /// The `<message/>` as received.
    pub stanza: Bytes,
}

/// Appends of one recipient that stand or fall together: once one of them is answered
/// [`Outcome::Retry`] or [`Outcome::NotMine`], every later one of the run is, whenever it is submitted.
///
/// The store gives up an append together with those of its recipient that wait. One that
/// is submitted before its sender has heard of that would overtake it all the same. So a
/// recipient's appends share a run, and whoever gets `Retry` begins a new one.
#[derive(Clone, Debug, Default)]
pub struct Run(Arc<AtomicBool>);

impl Run {
    /// A run to which nothing belongs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an append of this run was answered `Retry`.
    pub fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// From now on every append of this run is answered `Retry`. The store does this
    /// itself; a caller may, to take back what it submitted and what is not under way.
    pub fn give_up(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// One change. The writes of one recipient take effect in the order of their submission.
#[derive(Clone, Debug)]
pub enum Write {
    /// Keeps a message: `Stored`, `Already`, `Retry`, `NotMine` or `Refused`.
    Append(NewMessage),
    /// Removes messages; ids that are not there do no harm. `Done`, with the rows that
    /// were there.
    Delete {
        /// Whose messages.
        recipient: Bare,
        /// Which of them.
        ids: Vec<MessageId>,
    },
    /// Replaces the expiry of a message. `Done`, with 0 rows if it is not there.
    SetExpiry {
        /// Whose message.
        recipient: Bare,
        /// Which one.
        id: MessageId,
        /// None: it does not expire any more.
        expiry: Option<Expiry>,
    },
    /// Removes all messages of a recipient. `Done`, with their number. Leaves no marks. Many are
    /// removed in several transactions, oldest first, and others' writes come in between.
    RemoveAccount {
        /// Whose messages.
        recipient: Bare,
    },
}

impl Write {
    /// Whose messages are changed.
    pub fn recipient(&self) -> &Bare {
        match self {
            Write::Append(message) => &message.recipient,
            Write::Delete { recipient, .. }
            | Write::SetExpiry { recipient, .. }
            | Write::RemoveAccount { recipient } => recipient,
        }
    }
}

/// What became of a write. Whatever is told is durable.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The message is kept.
    Stored,
    /// A message of this key was stored before, and may have been deleted since.
    Already {
        /// The rule that was met then.
        met_rule: Option<u16>,
    },
    /// The change is made.
    Done {
        /// How many messages it touched.
        rows: u64,
    },
    /// Not done, and known not to be done: the store is slow, full or away. Writes other
    /// than appends get this only from a store that closes.
    Retry,
    /// As `Retry`, whatever the write is: the shard of its recipient is another node's by now.
    NotMine,
    /// This message can't be stored, now or later; the text says why.
    Refused(String),
}

impl Outcome {
    /// Not done, and known not to be done, here and now.
    pub fn is_retry(&self) -> bool {
        matches!(self, Outcome::Retry | Outcome::NotMine)
    }
}

/// Writes that are answered together.
///
/// `done` is called exactly once, on a thread of the store, when the last write is
/// decided, with the outcomes in the order of the writes. It must not block. Appends are
/// decided within the append limit, other writes when the database takes them: whoever
/// needs the answer to an append in time gives it a job without other writes.
pub struct Job {
    /// What to do, in order.
    pub writes: Vec<Write>,
    /// Who is told.
    pub done: Done,
}

/// Takes the outcomes of a job.
pub type Done = Box<dyn FnOnce(Vec<Outcome>) + Send>;

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job").field("writes", &self.writes).finish_non_exhaustive()
    }
}
