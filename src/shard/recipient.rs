//! What a shard remembers of one recipient while something is under way for him.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::time::Timestamp;
use crate::words::{Expiry, Key, LinkId, MessageId};

use super::input::Intercept;
use super::quota::Used;
use super::retrieve::Retrievals;

/// Batches that a session may have unconfirmed at first: the next is sent before the first is
/// confirmed, and little is under way to one that does not answer.
const FIRST_OPEN: usize = 2;

/// Batches that a session may have unconfirmed at the most. Then its client, the link and the store
/// are at work at the same time. What does not fit into a client's stream management queue waits in
/// the interceptor.
const MOST_OPEN: usize = 8;

/// The batches that a session has unconfirmed. Each that it confirms lets it have one more.
#[derive(Debug)]
pub struct OpenBatches {
    numbers: Vec<u64>,
    most: usize,
}

impl Default for OpenBatches {
    fn default() -> Self {
        Self { numbers: Vec::new(), most: FIRST_OPEN }
    }
}

impl OpenBatches {
    /// Whether all are confirmed.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Whether another one may be sent.
    pub fn has_room(&self) -> bool {
        self.numbers.len() < self.most
    }

    /// How many more may be sent, once that is half of what may be open: several are read at a
    /// time, while the rest are on their way. Before that, zero.
    pub fn worth_reading(&self) -> usize {
        let room = self.most.saturating_sub(self.numbers.len());
        if 2 * room >= self.most { room } else { 0 }
    }

    /// One is sent.
    pub fn push(&mut self, batch: u64) {
        self.numbers.push(batch);
    }

    /// One was confirmed; again, perhaps.
    pub fn taken(&mut self, batch: u64) {
        let before = self.numbers.len();
        self.numbers.retain(|b| *b != batch);
        if self.numbers.len() < before {
            self.most = (self.most + 1).min(MOST_OPEN);
        }
    }
}

/// One recipient. Dropped as soon as nothing of it is needed.
#[derive(Debug, Default)]
pub struct Recipient {
    /// Intercepts that wait, in order, for the answer to `asking`.
    pub waiting: VecDeque<Box<Intercept>>,
    /// The key of the intercept for whose sake the store was asked.
    pub asking: Option<Key>,
    /// How much is stored; known only where a quota asks for it.
    pub used: Option<Used>,
    /// How much is stored has to be asked, once no append and no deletion is under way.
    pub wants_usage: bool,
    /// How much is stored was asked, and is not answered.
    pub question: Option<Question>,
    /// Appends that the store has not decided; counted only where there is a quota.
    pub appends: u32,
    /// Deletions that the store has not carried out: room is about to be made.
    pub deletions: u32,
    /// Sessions that are to get what is stored, in the order of their announcement.
    pub sessions: Vec<Session>,
    /// The session for which a page is being read, and after which id.
    pub reading: Option<(Arc<str>, MessageId)>,
    /// Rows that no page may hand over (again).
    pub held: BTreeMap<MessageId, Held>,
    /// What the recipient has asked to see, or to be removed.
    pub retrievals: Retrievals,
}

/// A question how much is stored.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// Comes back with the answer.
    pub number: u64,
    /// Something was deleted since it was asked: the answer may not know that.
    pub freed: bool,
}

/// Why a row is not to be handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Held {
    /// A session has it, unconfirmed.
    HandedOver {
        /// Which session.
        session: Arc<str>,
        /// Its rule, looked at again when the session ends.
        expiry: Option<Expiry>,
    },
    /// A client has it, or its expiry is carried out; the row is being deleted.
    Deleting {
        /// It has a rule that may be due.
        expires: bool,
    },
    /// The same, but the store could not delete it; tried again when time passes.
    Undeleted,
    /// The notice of its expiry is under way.
    Expiring {
        /// The rule that was met.
        expiry: Expiry,
        /// After it, delete the row (`None`) or go on with the next rule, if any.
        then: Option<Option<Expiry>>,
        /// The expiry clock waits for the end of it.
        clocked: bool,
    },
    /// Gone from the store, but what was read before that may still show it: a page until
    /// it is read, the expiry clock for so many ticks.
    Gone {
        /// Ticks to go.
        ticks: u8,
    },
}

/// A session that is to get what is stored.
#[derive(Debug)]
pub struct Session {
    /// Its name for ever.
    pub id: Arc<str>,
    /// How it is reached.
    pub link: LinkId,
    /// The link by which it was reached before, if it has come from another.
    pub left: Option<LinkId>,
    /// Its virtual host.
    pub host: Arc<str>,
    /// The newest reason.
    pub n: u64,
    /// Archived messages from before this are not handed over.
    pub archive: Option<Timestamp>,
    /// Bytes a batch.
    pub batch_bytes: usize,
    /// The last row that was looked at.
    pub cursor: MessageId,
    /// A new reason came while a page was read for it: look from the start once more.
    pub again: bool,
    /// All was handed over; only confirmations are missing.
    pub drained: bool,
    /// Items handed over.
    pub count: u64,
    /// Unconfirmed batches.
    pub batches: OpenBatches,
}

impl Recipient {
    /// Whether nothing is left to remember.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.used.is_none()
            && self.appends == 0
            && self.sessions.is_empty()
            && self.reading.is_none()
            && self.held.is_empty()
            && self.retrievals.is_idle()
    }

    /// Nobody waits for an answer any more.
    pub fn ask_nothing(&mut self) {
        self.asking = None;
        self.wants_usage = false;
        self.question = None;
    }

    /// Something was deleted.
    pub fn freed(&mut self) {
        if let Some(used) = &mut self.used {
            used.freed = true;
        }
        if let Some(question) = &mut self.question {
            question.freed = true;
        }
    }

    /// The session whose turn it is.
    pub fn draining(&mut self) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| !s.drained)
    }

    /// The session of that name.
    pub fn session(&mut self, id: &str) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| &*s.id == id)
    }

    /// Takes a session out, and gives back the rows that it had; returns when the
    /// earliest of these expires.
    pub fn remove_session(&mut self, id: &str) -> Option<Timestamp> {
        self.sessions.retain(|s| &*s.id != id);
        let mut earliest: Option<Timestamp> = None;
        self.held.retain(|_, held| match held {
            Held::HandedOver { session, expiry } if &**session == id => {
                if let Some(expiry) = expiry {
                    earliest = Some(earliest.map_or(expiry.at, |at| at.min(expiry.at)));
                }
                false
            }
            _ => true,
        });
        earliest
    }

    /// The store no longer has a row.
    pub fn gone(&mut self, id: MessageId) {
        self.retrievals.gone(id);
        let expires = self.held.get(&id) == Some(&Held::Deleting { expires: true });
        if expires || self.reading.is_some() {
            self.held.insert(id, Held::Gone { ticks: if expires { GONE_TICKS } else { 0 } });
        } else {
            self.held.remove(&id);
        }
    }

    /// A page has been looked at: what was gone before it was read is gone for good.
    pub fn page_read(&mut self) {
        self.reading = None;
        self.held.retain(|_, held| *held != Held::Gone { ticks: 0 });
    }

    /// Time passes for what is gone.
    pub fn tick(&mut self) {
        for held in self.held.values_mut() {
            if let Held::Gone { ticks } = held {
                *ticks = ticks.saturating_sub(1);
            }
        }
        if self.reading.is_none() {
            self.page_read();
        }
    }
}

/// How many ticks of a shard pass before the expiry clock has surely forgotten a row.
const GONE_TICKS: u8 = 2;
