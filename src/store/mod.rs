//! Offline messages, durable.
//!
//! A [`Store`] takes jobs of writes and answers each once, after the commit. Many jobs share
//! a transaction. Reads go by page. What is told is durable; what could not be decided in
//! time is answered `Retry`, and known not to be stored.

mod broadcast;
mod broadcast_rows;
mod committer;
mod counter;
mod division;
mod error;
mod fault;
mod held;
mod job;
mod joint;
mod lane;
mod layout;
mod lock;
mod message;
mod metrics;
mod migrating;
mod moves;
mod moving;
mod mysql;
mod nodelay;
mod open;
mod owner;
mod ownership;
mod pages;
mod parts;
mod place;
mod plan;
mod postgres;
mod purge;
mod queue;
mod readers;
mod remedy;
mod row;
mod sea;
mod server;
mod settings;
mod shards;
mod shared;
mod sql;
mod sqlite;
mod start;
mod statements;
mod transaction;
mod usage;
mod writer;

use futures::future::BoxFuture;

use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, ShardId};

pub use broadcast::{
    Broadcast, BroadcastChange, BroadcastState, BroadcastStore, Counts, Fate, Recipient,
};
pub use division::Division;
pub use error::StoreError;
pub use job::{Done, Job, NewMessage, Outcome, Run, Write};
pub use layout::Layout;
pub use message::{DueMessage, DuePosition, Header, PageLimit, Purged, StoredMessage};
pub use moving::{Moved, move_messages};
pub use ownership::{Holding, Incarnation, Member, MoveError, Ownership};
pub use parts::{PartSettings, PartState, PartedStore};
pub use place::{check_url, database_path, same_database, shown_url, url_has_password};
pub use sea::SeaStore;
pub use settings::{Clock, StoreSettings};
pub use usage::{Amount, Detail, Usage};

/// Where offline messages are kept.
///
/// Futures of reads may be dropped at any time.
pub trait Store: Send + Sync + 'static {
    /// Hands over writes; never blocks. Appends beyond the queue's bound are answered
    /// `Retry` soon, other writes are always taken. A closed store answers `Retry` to all.
    fn submit(&self, job: Job);

    /// The messages of a recipient with ids greater than `after`, by id. Empty: there are no
    /// more. A row that can't be read is left out, where it is, and counted.
    fn page(
        &self,
        recipient: Bare,
        after: MessageId,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<StoredMessage>, StoreError>>;

    /// The same without their stanzas: `rows` of them at most, and at least one if there is
    /// one. A message is among them even if its stanza can't be read.
    fn headers(
        &self,
        recipient: Bare,
        after: MessageId,
        rows: usize,
    ) -> BoxFuture<'static, Result<Vec<Header>, StoreError>>;

    /// How much is stored for a recipient. Rows that can't be read count.
    fn usage(
        &self,
        recipient: Bare,
        detail: Detail,
    ) -> BoxFuture<'static, Result<Usage, StoreError>>;

    /// The messages after `from` that expire at `until` or before, in their order. Empty:
    /// there are no more.
    fn due(
        &self,
        from: DuePosition,
        until: Timestamp,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<DueMessage>, StoreError>>;

    /// When the first message after `from` expires.
    fn next_due(
        &self,
        from: DuePosition,
    ) -> BoxFuture<'static, Result<Option<Timestamp>, StoreError>>;

    /// Removes marks that end before `marks_before`, and messages stored before
    /// `stored_before`, in small batches between the other writes, with rests between them: a
    /// round over many messages may take long. Dropped, it stops after the batch under way.
    fn purge(
        &self,
        stored_before: Option<Timestamp>,
        marks_before: Timestamp,
    ) -> BoxFuture<'static, Result<Purged, StoreError>>;

    /// Whether a message of this key was stored for a recipient, and may have been deleted since (rows and
    /// marks). `Some(rule)`: it was, with the rule that was met then.
    fn find(
        &self,
        recipient: Bare,
        key: Key,
    ) -> BoxFuture<'static, Result<Option<Option<u16>>, StoreError>>;

    /// How often the database of a shard's messages was opened, or a shard of it moved, when this
    /// one became ours; ids made with it are greater than all before. Zero: it is another node's,
    /// or could not be opened yet.
    fn epoch(&self, shard: ShardId) -> u32;

    /// Whether the last transaction could be committed, or was refused for its own content.
    fn healthy(&self) -> bool;

    /// Takes nothing more, finishes what is queued, and lets the database go.
    fn close(&self) -> BoxFuture<'static, ()>;
}
