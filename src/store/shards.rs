//! The rows of the table `shard`: how the database is divided, and who owns what.

use sea_orm::{ConnectionTrait, DatabaseTransaction, DbErr, QueryResult, Statement, Value};

use super::ownership::{Holding, Incarnation};
use super::sql::{number, statement};
use crate::words::ShardId;

/// Rows that one statement names at most.
const ROWS: usize = 1024;

/// How many shards the database is divided by; zero: it is not.
pub(super) async fn count(begun: &impl ConnectionTrait) -> Result<u32, DbErr> {
    let count = Statement::from_string(
        begun.get_database_backend(),
        "SELECT shards FROM epoch WHERE id = 1",
    );
    let row = begun.query_one_raw(count).await?;
    row.map_or(Ok(0), |row| number(row.try_get_by_index(0)?))
}

/// Divides the database anew. Nobody owns a shard then.
pub(super) async fn divide(
    begun: &DatabaseTransaction,
    shards: u32,
    epoch: u32,
) -> Result<(), DbErr> {
    let backend = begun.get_database_backend();
    begun.execute_raw(statement(backend, "DELETE FROM shard", [])).await?;
    let all: Vec<u32> = (0..shards).collect();
    for some in all.chunks(ROWS) {
        let rows: Vec<String> =
            some.iter().map(|shard| format!("({shard}, '', 0, {epoch})")).collect();
        let insert = format!(
            "INSERT INTO shard (shard, owner, incarnation, epoch) VALUES {}",
            rows.join(", ")
        );
        begun.execute_raw(Statement::from_string(backend, insert)).await?;
    }
    let count = statement(backend, "UPDATE epoch SET shards = ?", [i64::from(shards).into()]);
    begun.execute_raw(count).await.map(|_| ())
}

/// Makes all shards those of one node.
pub(super) async fn take_all(
    begun: &DatabaseTransaction,
    owner: &Incarnation,
) -> Result<(), DbErr> {
    const TAKE: &str = "UPDATE shard SET owner = ?, incarnation = ?, epoch = ?";
    let [node, number] = values(Some(owner));
    let take = statement(begun.get_database_backend(), TAKE, [node, number.clone(), number]);
    begun.execute_raw(take).await.map(|_| ())
}

/// Makes those of the earlier processes of a name those of the latest.
pub(super) async fn inherit(begun: &DatabaseTransaction, owner: &Incarnation) -> Result<(), DbErr> {
    const INHERIT: &str = "UPDATE shard SET incarnation = ?, epoch = ? WHERE owner = ?";
    let [node, number] = values(Some(owner));
    let inherit = statement(begun.get_database_backend(), INHERIT, [number.clone(), number, node]);
    begun.execute_raw(inherit).await.map(|_| ())
}

/// Moves shards that are owned so, and have this epoch if one is named. How many there were.
pub(super) async fn change_owner(
    begun: &DatabaseTransaction,
    shards: &[ShardId],
    from: Option<&Incarnation>,
    from_epoch: Option<u32>,
    to: &Incarnation,
    epoch: u32,
) -> Result<u64, DbErr> {
    let mut moved = 0;
    for some in shards.chunks(ROWS) {
        let some: Vec<String> = some.iter().map(|shard| shard.0.to_string()).collect();
        let also = from_epoch.map_or(String::new(), |epoch| format!(" AND epoch = {epoch}"));
        let change = format!(
            "UPDATE shard SET owner = ?, incarnation = ?, epoch = ? \
             WHERE owner = ? AND incarnation = ? AND shard IN ({}){also}",
            some.join(", ")
        );
        let [node, number] = values(Some(to));
        let [from_node, from_number] = values(from);
        let values = [node, number, i64::from(epoch).into(), from_node, from_number];
        let change = statement(begun.get_database_backend(), &change, values);
        moved += begun.execute_raw(change).await?.rows_affected();
    }
    Ok(moved)
}

/// Every shard, in order.
pub(super) async fn all(database: &impl ConnectionTrait) -> Result<Vec<Holding>, DbErr> {
    const ALL: &str = "SELECT shard, owner, incarnation, epoch FROM shard ORDER BY shard";
    let rows = database
        .query_all_raw(Statement::from_string(database.get_database_backend(), ALL))
        .await?;
    rows.iter().map(holding).collect()
}

fn holding(row: &QueryResult) -> Result<Holding, DbErr> {
    let (shard, node): (i32, String) = (row.try_get_by_index(0)?, row.try_get_by_index(1)?);
    let incarnation = number(row.try_get_by_index(2)?)?;
    let owner = (!node.is_empty()).then_some(Incarnation { node, number: incarnation });
    Ok(Holding {
        shard: ShardId(number(shard.into())?),
        owner,
        epoch: number(row.try_get_by_index(3)?)?,
    })
}

/// An owner as its row has it.
fn values(owner: Option<&Incarnation>) -> [Value; 2] {
    match owner {
        Some(owner) => [owner.node.as_str().into(), i64::from(owner.number).into()],
        None => ["".into(), 0_i64.into()],
    }
}
