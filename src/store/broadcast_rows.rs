//! Between broadcasts and their rows: what a change does within a transaction, and reads.

use std::collections::HashSet;

use entities::{broadcast, broadcast_recipient};
use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, ConnectionTrait, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait,
};

use super::broadcast::{Broadcast, BroadcastChange, BroadcastState, Counts, Fate, Recipient};
use super::error::StoreError;
use super::fault;
use crate::time::Timestamp;

use broadcast::Column as B;
use broadcast_recipient::Column as R;

/// Rows that one statement inserts or names at most.
const ROWS: usize = 256;

/// Carries the change out; how many recipients it touched.
pub(super) async fn change(
    connection: &DatabaseTransaction,
    change: &BroadcastChange,
) -> Result<u64, DbErr> {
    match change {
        BroadcastChange::Create(new) => {
            broadcast::Entity::insert(model(new)).exec_without_returning(connection).await?;
            Ok(0)
        }
        BroadcastChange::Add { broadcast, recipients, counted_to } => {
            add(connection, *broadcast, recipients, counted_to.as_ref()).await
        }
        BroadcastChange::SetState { broadcast, state, ended_at } => {
            let ended_at = ended_at.map(Timestamp::as_micros);
            let update = broadcast::Entity::update_many()
                .col_expr(B::State, state_number(*state).into())
                .col_expr(B::EndedAt, Expr::value(ended_at))
                .filter(B::Id.eq(*broadcast));
            update.exec(connection).await?;
            Ok(0)
        }
        BroadcastChange::Settle { broadcast, settled } => {
            settle(connection, *broadcast, settled).await
        }
        BroadcastChange::GiveUp { broadcast, fate, limit } => {
            give_up(connection, *broadcast, *fate, *limit).await
        }
        BroadcastChange::Forget { broadcast } => {
            let left = Query::select()
                .expr(Expr::val(1))
                .from(broadcast_recipient::Entity)
                .and_where(R::Broadcast.eq(*broadcast))
                .take();
            let forget = broadcast::Entity::delete_many()
                .filter(B::Id.eq(*broadcast))
                .filter(Expr::not_exists(left));
            forget.exec(connection).await?;
            Ok(0)
        }
    }
}

async fn add(
    connection: &DatabaseTransaction,
    broadcast: i64,
    recipients: &[Recipient],
    counted_to: Option<&Option<String>>,
) -> Result<u64, DbErr> {
    let known = broadcast::Entity::find_by_id(broadcast).select_only().column(B::LastN);
    let known: Option<i64> = known.into_tuple().one(connection).await?;
    if known.is_none() {
        return Ok(0);
    }
    let mut added = 0;
    for some in recipients.chunks(ROWS) {
        added += insert(connection, broadcast, some).await?;
    }
    let last_n = recipients.iter().map(|recipient| recipient.n).max().unwrap_or(0);
    let last_n = Ord::max(last_n.cast_signed(), known.unwrap_or(0));
    let mut update = broadcast::Entity::update_many()
        .col_expr(B::Total, B::Total.into_expr().add(added.cast_signed()))
        .col_expr(B::LastN, last_n.into())
        .filter(B::Id.eq(broadcast));
    if let Some(counted_to) = counted_to {
        update = update.col_expr(B::CountedTo, Expr::value(counted_to.clone()));
    }
    update.exec(connection).await?;
    Ok(added)
}

/// Inserts those who are not there, and tells how many.
async fn insert(
    connection: &DatabaseTransaction,
    broadcast: i64,
    recipients: &[Recipient],
) -> Result<u64, DbErr> {
    let backend = connection.get_database_backend();
    // MySQL can leave a row out only for any error, or tell that it did not: it is asked first.
    let mut known = match backend {
        DbBackend::MySql => known(connection, broadcast, recipients).await?,
        _ => HashSet::new(),
    };
    let ask = backend == DbBackend::MySql;
    let new = recipients.iter().filter(|one| !ask || known.insert(one.bare.to_string()));
    let rows: Vec<_> = new
        .map(|recipient| broadcast_recipient::ActiveModel {
            broadcast: Set(broadcast),
            n: Set(recipient.n.cast_signed()),
            bare: Set(recipient.bare.to_string()),
        })
        .collect();
    if rows.is_empty() {
        return Ok(0);
    }
    let mut insert = broadcast_recipient::Entity::insert_many(rows);
    if !ask {
        insert = insert
            .on_conflict(OnConflict::columns([R::Broadcast, R::Bare]).do_nothing().to_owned());
    }
    Ok(connection.execute_raw(insert.build(backend)).await?.rows_affected())
}

/// Those of them who are there.
async fn known(
    connection: &DatabaseTransaction,
    broadcast: i64,
    recipients: &[Recipient],
) -> Result<HashSet<String>, DbErr> {
    let known: Vec<String> = broadcast_recipient::Entity::find()
        .select_only()
        .column(R::Bare)
        .filter(R::Broadcast.eq(broadcast))
        .filter(R::Bare.is_in(recipients.iter().map(|recipient| &*recipient.bare)))
        .into_tuple()
        .all(connection)
        .await?;
    Ok(known.into_iter().collect())
}

async fn settle(
    connection: &DatabaseTransaction,
    broadcast: i64,
    settled: &[(u64, Fate)],
) -> Result<u64, DbErr> {
    let mut sorted = settled.to_vec();
    sorted.sort_by_key(|(n, fate)| (*fate, *n));
    let mut gone = 0;
    for of_fate in sorted.chunk_by(|a, b| a.1 == b.1) {
        for some in of_fate.chunks(ROWS) {
            let places = some.iter().map(|(n, _)| n.cast_signed());
            let delete = broadcast_recipient::Entity::delete_many()
                .filter(R::Broadcast.eq(broadcast))
                .filter(R::N.is_in(places));
            let rows = delete.exec(connection).await?.rows_affected;
            count(connection, broadcast, some[0].1, rows).await?;
            gone += rows;
        }
    }
    Ok(gone)
}

async fn give_up(
    connection: &DatabaseTransaction,
    broadcast: i64,
    fate: Fate,
    limit: u64,
) -> Result<u64, DbErr> {
    let backend = connection.get_database_backend();
    let mut delete = Query::delete();
    delete.from_table(broadcast_recipient::Entity).and_where(R::Broadcast.eq(broadcast));
    if backend == DbBackend::MySql {
        // It takes no limit in a query within, and the others take none here.
        delete.order_by(R::N, sea_orm::Order::Asc).limit(limit);
    } else {
        let first = Query::select()
            .column(R::N)
            .from(broadcast_recipient::Entity)
            .and_where(R::Broadcast.eq(broadcast))
            .order_by(R::N, sea_orm::Order::Asc)
            .limit(limit)
            .take();
        delete.and_where(R::N.in_subquery(first));
    }
    let rows = connection.execute_raw(backend.build(&delete)).await?.rows_affected();
    count(connection, broadcast, fate, rows).await?;
    Ok(rows)
}

async fn count(
    connection: &DatabaseTransaction,
    broadcast: i64,
    fate: Fate,
    rows: u64,
) -> Result<(), DbErr> {
    if rows == 0 {
        return Ok(());
    }
    let column = match fate {
        Fate::Delivered => B::Delivered,
        Fate::Stored => B::Stored,
        Fate::Discarded => B::Discarded,
        Fate::Expired => B::Expired,
        Fate::Cancelled => B::Cancelled,
    };
    let update = broadcast::Entity::update_many()
        .col_expr(column, column.into_expr().add(rows.cast_signed()))
        .filter(B::Id.eq(broadcast));
    update.exec(connection).await?;
    Ok(())
}

/// See [`super::BroadcastStore::broadcasts`].
pub(super) async fn all(database: DatabaseConnection) -> Result<Vec<Broadcast>, StoreError> {
    let rows =
        broadcast::Entity::find().order_by_asc(B::Id).all(&database).await.map_err(failed)?;
    Ok(rows.into_iter().filter_map(broadcast_of).collect())
}

/// See [`super::BroadcastStore::recipients`].
pub(super) async fn recipients(
    database: DatabaseConnection,
    broadcast: i64,
    after: u64,
    limit: u64,
) -> Result<Vec<Recipient>, StoreError> {
    let rows = broadcast_recipient::Entity::find()
        .filter(R::Broadcast.eq(broadcast))
        .filter(R::N.gt(after.cast_signed()))
        .order_by_asc(R::N)
        .limit(limit)
        .all(&database)
        .await
        .map_err(failed)?;
    let recipient = |row: broadcast_recipient::Model| Recipient {
        n: row.n.cast_unsigned(),
        bare: row.bare.into(),
    };
    Ok(rows.into_iter().map(recipient).collect())
}

fn failed(error: DbErr) -> StoreError {
    if fault::is_closed(&error) { StoreError::Closed } else { StoreError::Read(error) }
}

fn model(new: &Broadcast) -> broadcast::ActiveModel {
    let Counts { total, delivered, stored, discarded, expired, cancelled } = new.counts;
    broadcast::ActiveModel {
        id: Set(new.id),
        token: Set(new.token.clone()),
        host: Set(new.host.clone()),
        everyone: Set(new.everyone),
        payload: Set(new.payload.clone()),
        expires_at: Set(new.expires_at.as_micros()),
        rate: Set(i32::try_from(new.rate).unwrap_or(i32::MAX)),
        state: Set(state_number(new.state)),
        created_at: Set(new.created_at.as_micros()),
        ended_at: Set(new.ended_at.map(Timestamp::as_micros)),
        counted_to: Set(new.counted_to.clone()),
        last_n: Set(new.last_n.cast_signed()),
        total: Set(total.cast_signed()),
        delivered: Set(delivered.cast_signed()),
        stored: Set(stored.cast_signed()),
        discarded: Set(discarded.cast_signed()),
        expired: Set(expired.cast_signed()),
        cancelled: Set(cancelled.cast_signed()),
    }
}

/// The broadcast in a row; none if the row makes no sense.
fn broadcast_of(row: broadcast::Model) -> Option<Broadcast> {
    let (Some(state), Ok(rate)) = (state_of(row.state), u32::try_from(row.rate)) else {
        tracing::error!(id = row.id, "a broadcast in the store makes no sense, and is left out");
        return None;
    };
    Some(Broadcast {
        id: row.id,
        token: row.token,
        host: row.host,
        everyone: row.everyone,
        payload: row.payload,
        expires_at: Timestamp::from_micros(row.expires_at),
        rate,
        state,
        created_at: Timestamp::from_micros(row.created_at),
        ended_at: row.ended_at.map(Timestamp::from_micros),
        counted_to: row.counted_to,
        last_n: row.last_n.cast_unsigned(),
        counts: Counts {
            total: row.total.cast_unsigned(),
            delivered: row.delivered.cast_unsigned(),
            stored: row.stored.cast_unsigned(),
            discarded: row.discarded.cast_unsigned(),
            expired: row.expired.cast_unsigned(),
            cancelled: row.cancelled.cast_unsigned(),
        },
    })
}

const STATES: [BroadcastState; 5] = [
    BroadcastState::Filling,
    BroadcastState::Running,
    BroadcastState::Paused,
    BroadcastState::Cancelled,
    BroadcastState::Done,
];

fn state_number(state: BroadcastState) -> i32 {
    state as i32
}

fn state_of(number: i32) -> Option<BroadcastState> {
    STATES.get(usize::try_from(number).ok()?).copied()
}
