//! How far the requests of one user have come.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::shard::drain::BATCH_ITEMS;
use crate::shard::recipient::OpenBatches;
use crate::store::PageLimit;
use crate::words::MessageId;

use super::request::{Ask, Asker, Listed, Look, Retrieve};

/// A request that is left to another node: who asks, the bytes of a batch, and what; none: it was
/// begun, and can't be done twice.
pub type LeftOver = (Asker, usize, Option<Ask>);

/// Requests of one user that are under way at once; one more is refused. The interceptor
/// sends one for each session, and has a bound of its own.
pub(super) const MAX_RETRIEVALS: usize = 8;

/// Rows without stanzas that are read at once.
const HEADERS: usize = 1_000;

/// Of those, where single messages are looked for: they may lie far from each other.
const SCATTERED: usize = 32;

/// Rows that are removed in one write.
const REMOVED: usize = 500;

/// The requests of one user. One at a time reads, the first that may; one that waits for
/// its client does not hold up those of other sessions.
#[derive(Debug, Default)]
pub struct Retrievals {
    pub(super) under_way: Vec<Retrieval>,
    /// For which one the store was asked. It may have been given up since.
    pub(super) looking: Option<Arc<str>>,
    /// Rows that went while the store was asked: what it shows may still have them.
    pub(super) gone: BTreeSet<MessageId>,
}

/// A request that is being carried out.
#[derive(Debug)]
pub(super) struct Retrieval {
    pub asker: Asker,
    pub batch_bytes: usize,
    /// Later messages are not part of it.
    pub until: MessageId,
    pub step: Step,
    /// Batches that are not confirmed.
    pub batches: OpenBatches,
}

/// What is done next.
#[derive(Debug)]
pub(super) enum Step {
    Count {
        after: MessageId,
        messages: u64,
    },
    List {
        after: MessageId,
        listed: Vec<Listed>,
        /// Bytes that the list will have.
        bytes: usize,
    },
    /// Named messages are looked for before anything is done with them.
    Check {
        named: Named,
        /// Those found, and whether they may expire.
        found: Vec<(MessageId, bool)>,
        then: Then,
    },
    View {
        named: Named,
        /// One of them has gone since it was found.
        missing: bool,
    },
    Fetch {
        after: MessageId,
    },
    Purge {
        after: MessageId,
    },
    /// Rows are being removed.
    Removing {
        /// Where a purge goes on; the removal of named messages is done then.
        after: Option<MessageId>,
    },
}

/// What is done with messages that are all there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Then {
    View,
    Remove,
}

/// Messages that a request names, in order, each once.
#[derive(Clone, Debug)]
pub(super) struct Named {
    ids: Vec<MessageId>,
    /// How many of them are done with.
    at: usize,
}

impl Named {
    fn new(mut ids: Vec<MessageId>) -> Self {
        ids.sort_unstable();
        ids.dedup();
        Named { ids, at: 0 }
    }

    /// The next ones; empty when all are done with.
    fn left(&self) -> &[MessageId] {
        &self.ids[self.at..]
    }

    /// After which row the next one may come.
    fn after(&self) -> MessageId {
        self.left().first().map_or(MessageId::ZERO, |id| MessageId(id.0 - 1))
    }

    /// Takes those that a look which ended with `last` has, or would have, shown; all of
    /// them if it showed nothing.
    pub fn pass(&mut self, last: Option<MessageId>) -> Vec<MessageId> {
        let left = self.left();
        let seen = last.map_or(left.len(), |last| left.partition_point(|id| *id <= last));
        let passed = left[..seen].to_vec();
        self.at += seen;
        passed
    }

    pub fn is_done(&self) -> bool {
        self.left().is_empty()
    }

    /// The same once more from the start.
    pub fn again(&self) -> Self {
        Named { ids: self.ids.clone(), at: 0 }
    }
}

impl Retrieval {
    /// Nothing is done yet. `until` is the last id that was given so far.
    pub fn new(retrieve: Retrieve, until: MessageId) -> Self {
        let check = |ids, then| Step::Check { named: Named::new(ids), found: Vec::new(), then };
        let step = match retrieve.ask {
            Ask::Count => Step::Count { after: MessageId::ZERO, messages: 0 },
            Ask::List => Step::List { after: MessageId::ZERO, listed: Vec::new(), bytes: 0 },
            Ask::View(ids) => check(ids, Then::View),
            Ask::Remove(ids) => check(ids, Then::Remove),
            Ask::Fetch => Step::Fetch { after: MessageId::ZERO },
            Ask::Purge => Step::Purge { after: MessageId::ZERO },
        };
        let Retrieve { asker, batch_bytes, .. } = retrieve;
        Retrieval { asker, batch_bytes, until, step, batches: OpenBatches::default() }
    }

    /// The request as it came, if nothing was shown or removed for it that matters.
    fn ask_again(&self) -> Option<Ask> {
        match &self.step {
            Step::Count { .. } => Some(Ask::Count),
            Step::List { .. } => Some(Ask::List),
            Step::Check { named, then: Then::View, .. } => Some(Ask::View(named.ids.clone())),
            Step::Check { named, then: Then::Remove, .. } => Some(Ask::Remove(named.ids.clone())),
            Step::View { named, .. } => (named.at == 0).then(|| Ask::View(named.ids.clone())),
            Step::Fetch { after } => (*after == MessageId::ZERO).then_some(Ask::Fetch),
            // What is gone is gone, and what is left goes.
            Step::Purge { .. } | Step::Removing { after: Some(_) } => Some(Ask::Purge),
            Step::Removing { after: None } => None,
        }
    }

    /// What the store has to show for it to go on; nothing while it waits for something
    /// else.
    pub fn wants(&self) -> Option<Look> {
        let headers = |after, rows| Some(Look::Headers { after, rows });
        let messages = |after, rows| {
            let limit = PageLimit { rows, bytes: self.batch_bytes };
            self.batches.has_room().then_some(Look::Messages { after, limit })
        };
        match &self.step {
            Step::Count { after, .. } | Step::List { after, .. } => headers(*after, HEADERS),
            Step::Check { named, .. } => headers(named.after(), named.left().len().min(SCATTERED)),
            Step::View { named, .. } => {
                messages(named.after(), named.left().len().min(BATCH_ITEMS))
            }
            Step::Fetch { after } => messages(*after, BATCH_ITEMS),
            Step::Purge { after } => headers(*after, REMOVED),
            Step::Removing { .. } => None,
        }
    }
}

impl Retrievals {
    /// Whether nothing is left to remember.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.looking.is_none()
    }

    /// The store no longer has a row.
    pub fn gone(&mut self, id: MessageId) {
        if self.looking.is_some() {
            self.gone.insert(id);
        }
    }

    /// Gives up those whose asker is not to be kept. Nobody waits for their answers.
    pub fn retain(&mut self, keep: impl Fn(&Asker) -> bool) {
        self.under_way.retain(|retrieval| keep(&retrieval.asker));
    }

    /// All of them, to be carried out elsewhere.
    pub fn leave(self) -> impl Iterator<Item = LeftOver> {
        self.under_way.into_iter().map(|retrieval| {
            let ask = retrieval.ask_again();
            (retrieval.asker, retrieval.batch_bytes, ask)
        })
    }

    /// A batch was acknowledged, or whoever it was for has ended.
    pub fn taken(&mut self, name: &str, batch: u64, ended: bool) {
        if ended {
            self.retain(|asker| &*asker.name != name);
        } else if let Some(retrieval) = self.named(name) {
            retrieval.batches.taken(batch);
        }
    }

    /// The one of that name.
    pub(super) fn named(&mut self, name: &str) -> Option<&mut Retrieval> {
        self.under_way.iter_mut().find(|retrieval| &*retrieval.asker.name == name)
    }
}
