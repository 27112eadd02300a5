//! Broadcasts, as they are kept: what is sent, how far it is, and who is still to get it.

use futures::future::BoxFuture;

use super::error::StoreError;
use crate::time::Timestamp;
use crate::words::Bare;

/// Where broadcasts are kept: in the database of the messages, through the same committer.
pub trait BroadcastStore: Send + Sync + 'static {
    /// All broadcasts, by id. One that can't be read is left out, and told in the log.
    fn broadcasts(&self) -> BoxFuture<'static, Result<Vec<Broadcast>, StoreError>>;

    /// The recipients after the `after`th who are not settled, in order, `limit` at most.
    /// Fewer: there are no more.
    fn recipients(
        &self,
        broadcast: i64,
        after: u64,
        limit: u64,
    ) -> BoxFuture<'static, Result<Vec<Recipient>, StoreError>>;

    /// Carries a change out, in one transaction; the number of recipients that it touched.
    /// Changes take effect in the order of the calls; a future that is dropped takes nothing
    /// back. While the database can't be written it waits.
    fn change(&self, change: BroadcastChange) -> BoxFuture<'static, Result<u64, StoreError>>;
}

/// A broadcast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broadcast {
    /// Counts up from 1.
    pub id: i64,
    /// Part of the keys of its messages, so that no other database has the same.
    pub token: String,
    /// The virtual host that sends it, and whose users get it.
    pub host: String,
    /// It is for all users of the host, and not for a list of them.
    pub everyone: bool,
    /// The message without addresses; the store does not look into it.
    pub payload: String,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Messages a second at most.
    pub rate: u32,
    /// Where it stands.
    pub state: BroadcastState,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it came to its end.
    pub ended_at: Option<Timestamp>,
    /// The name of the last account that is among the recipients, empty before the first.
    /// None: all are.
    pub counted_to: Option<String>,
    /// The highest place that a recipient was given.
    pub last_n: u64,
    /// How many recipients there are, and what became of them.
    pub counts: Counts,
}

/// Where a broadcast stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BroadcastState {
    /// Its list is being told.
    Filling,
    /// It is sent.
    Running,
    /// It waits to be resumed.
    Paused,
    /// It was cancelled; who is left does not get it.
    Cancelled,
    /// Everybody is settled.
    Done,
}

/// Recipients, by what became of them. Who is in none of the others is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// A session got it.
    pub delivered: u64,
    /// It is kept for him, or was.
    pub stored: u64,
    /// He does not get it: no account, or the message was refused.
    pub discarded: u64,
    /// It was not sent to him in time.
    pub expired: u64,
    /// It was not sent to him because it was cancelled.
    pub cancelled: u64,
}

impl Counts {
    /// Counts so many more.
    pub fn add(&mut self, fate: Fate, recipients: u64) {
        *match fate {
            Fate::Delivered => &mut self.delivered,
            Fate::Stored => &mut self.stored,
            Fate::Discarded => &mut self.discarded,
            Fate::Expired => &mut self.expired,
            Fate::Cancelled => &mut self.cancelled,
        } += recipients;
    }

    /// Who is settled.
    pub fn settled(&self) -> u64 {
        self.delivered + self.stored + self.discarded + self.expired + self.cancelled
    }

    /// Who is not settled.
    pub fn left(&self) -> u64 {
        self.total.saturating_sub(self.settled())
    }
}

/// What became of a recipient's message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Fate {
    /// A session got it.
    Delivered,
    /// It is kept.
    Stored,
    /// Nothing remains of it.
    Discarded,
    /// It was not sent in time.
    Expired,
    /// It was not sent, for the broadcast was cancelled.
    Cancelled,
}

/// One who is to get it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// His place, from 1.
    pub n: u64,
    /// Who.
    pub bare: Bare,
}

/// A change to a broadcast. One that is not there is not changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BroadcastChange {
    /// A new one.
    Create(Broadcast),
    /// More recipients; who is among those not settled already is left out. `counted_to`
    /// replaces the broadcast's, if it says something.
    Add {
        /// Which one.
        broadcast: i64,
        /// They.
        recipients: Vec<Recipient>,
        /// How far its accounts are counted now.
        counted_to: Option<Option<String>>,
    },
    /// Another state.
    SetState {
        /// Which one.
        broadcast: i64,
        /// The state.
        state: BroadcastState,
        /// When it came to its end.
        ended_at: Option<Timestamp>,
    },
    /// It is known what became of these; the counts say so, the rows go. Who is settled
    /// already is not counted again.
    Settle {
        /// Which one.
        broadcast: i64,
        /// Places and fates.
        settled: Vec<(u64, Fate)>,
    },
    /// The first so many who are left do not get it.
    GiveUp {
        /// Which one.
        broadcast: i64,
        /// Why.
        fate: Fate,
        /// How many at most, so that messages need not wait for it.
        limit: u64,
    },
    /// Forgets one that has no recipients left.
    Forget {
        /// Which one.
        broadcast: i64,
    },
}

impl BroadcastChange {
    /// Rows that it touches, roughly and not less.
    pub(super) fn rows(&self) -> usize {
        match self {
            BroadcastChange::Add { recipients, .. } => recipients.len() + 1,
            BroadcastChange::Settle { settled, .. } => settled.len() + 1,
            BroadcastChange::GiveUp { limit, .. } => {
                usize::try_from(*limit).unwrap_or(usize::MAX).saturating_add(1)
            }
            _ => 1,
        }
    }
}
