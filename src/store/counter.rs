//! The counter that all epochs and incarnations come from.
//!
//! One for all shards: the lock of its row lets one start or move happen at a time, and an epoch is
//! greater than all before in whichever shard, so that ids grow also for a recipient whose shard
//! is another one since the database was divided anew.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, Statement};

use super::sql::{number, statement};
use crate::words::MessageId;

/// The next epoch, when all other starts and moves have ended; none if none is left.
pub(super) async fn next(begun: &DatabaseTransaction) -> Result<Option<u32>, DbErr> {
    let value = Statement::from_string(
        begun.get_database_backend(),
        "SELECT value FROM epoch WHERE id = 1 FOR UPDATE",
    );
    let row = begun.query_one_raw(value).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the row of the epoch".to_owned()))?;
    let next = number(row.try_get_by_index::<i64>(0)? + 1)?;
    Ok((next <= MessageId::MAX_EPOCH).then_some(next))
}

/// Uses the epoch that was next.
pub(super) async fn raise(begun: &DatabaseTransaction, epoch: u32) -> Result<(), DbErr> {
    const RAISE: &str = "UPDATE epoch SET value = ?, beat = 0";
    let raise = statement(begun.get_database_backend(), RAISE, [i64::from(epoch).into()]);
    begun.execute_raw(raise).await.map(|_| ())
}
