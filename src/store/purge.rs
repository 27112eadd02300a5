//! Removing what is old, in steps that the traffic does not feel.
//!
//! A step is one transaction of few rows among the others. After it there is a rest, as long as
//! some of such steps: however slow the database, the purge takes but a part of its time.

use std::time::Duration;

use entities::mark;
use sea_orm::{ColumnTrait, DatabaseConnection, EntityTrait, QueryFilter, QueryOrder, QuerySelect};
use tokio::time::{Instant, sleep};

use super::error::StoreError;
use super::held::HeldNow;
use super::message::Purged;
use super::pages::{self, Place};
use super::queue::Task;
use super::readers::Readers;
use super::sea::Inlet;
use crate::time::Timestamp;
use crate::words::{Bare, MessageId};

/// Marks that are removed in one step, and those that end at the same moment as the last: they leave
/// as fast as messages come, and each is small.
const MARKS: u64 = 500;

/// The rest after some marks were removed, in times of that step.
const REST_OF_MARKS: u32 = 1;

/// The rest after a look at some messages, in times of that step: a round may take long.
const REST_OF_MESSAGES: u32 = 4;

/// No rest is longer, however slow the database is at the moment.
const LONGEST_REST: Duration = Duration::from_secs(10);

/// See [`super::Store::purge`].
pub(super) async fn purge(
    inlet: &Inlet,
    readers: &Readers,
    held: &HeldNow,
    stored_before: Option<Timestamp>,
    marks_before: Timestamp,
) -> Result<Purged, StoreError> {
    let marks = purge_marks(inlet, readers, marks_before).await?;
    let messages = match stored_before {
        Some(before) => purge_messages(inlet, readers, held, before).await?,
        None => 0,
    };
    Ok(Purged { messages, marks })
}

/// A reader looks for them first. Where rows that were removed stay for as long as somebody may
/// see them, as during a backup, whoever looks for the first goes past all of these: that must not
/// be the connection that writes.
async fn purge_marks(
    inlet: &Inlet,
    readers: &Readers,
    before: Timestamp,
) -> Result<u64, StoreError> {
    let (mut removed, mut from) = (0, i64::MIN);
    loop {
        let began = Instant::now();
        let ends = readers.read(move |database| marks(database, from, before)).await?;
        let (Some(&first), Some(&last)) = (ends.first(), ends.last()) else {
            return Ok(removed);
        };
        removed += inlet.run(vec![Task::PurgeMarks { first, last, rows: ends.len() }]).await?;
        from = last.saturating_add(1);
        rest(began, REST_OF_MARKS).await;
    }
}

/// When the next marks end, from a time on and before another, in their order: microseconds since the
/// Unix epoch.
pub(super) async fn marks(
    database: DatabaseConnection,
    from: i64,
    before: Timestamp,
) -> Result<Vec<i64>, StoreError> {
    mark::Entity::find()
        .select_only()
        .column(mark::Column::Until)
        .filter(mark::Column::Until.gte(from))
        .filter(mark::Column::Until.lt(before.as_micros()))
        .order_by_asc(mark::Column::Until)
        .limit(MARKS)
        .into_tuple()
        .all(&database)
        .await
        .map_err(pages::failed)
}

/// Looks at every row, in the order of the primary key: an index for the retention would have to
/// be kept by every append.
async fn purge_messages(
    inlet: &Inlet,
    readers: &Readers,
    held: &HeldNow,
    before: Timestamp,
) -> Result<u64, StoreError> {
    let mut from: Place = (Bare::from(""), MessageId::ZERO);
    let mut removed = 0;
    loop {
        let began = Instant::now();
        let place = from.clone();
        let older = move |database| pages::older(database, place.clone(), before);
        let (mut old, next) = readers.read(older).await?;
        let now = held.get();
        old.retain(|place| now.has(&place.0));
        let deletes = old.chunk_by(|a, b| a.0 == b.0).map(|places| Task::Delete {
            recipient: places[0].0.clone(),
            ids: places.iter().map(|place| place.1).collect(),
        });
        let deletes: Vec<Task> = deletes.collect();
        if !deletes.is_empty() {
            removed += inlet.run(deletes).await?;
        }
        match next {
            Some(next) => from = next,
            None => return Ok(removed),
        }
        rest(began, REST_OF_MESSAGES).await;
    }
}

async fn rest(began: Instant, times: u32) {
    sleep((began.elapsed() * times).min(LONGEST_REST)).await;
}
