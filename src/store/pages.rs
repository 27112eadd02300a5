//! Reads: which rows first, then the rows, so that no more is read than was asked for. Small rows
//! are read at once.

use entities::offline_message::{Column as C, Entity, Model};
use sea_orm::sea_query::{Expr, ExprTrait, SimpleExpr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, EntityTrait,
    FromQueryResult, Iterable, QueryFilter, QueryOrder, QueryResult, QuerySelect, QueryTrait,
    Select,
};

use super::error::StoreError;
use super::fault::{self, Fault};
use super::held::Held;
use super::message::{DueMessage, DuePosition, Header, PageLimit, StoredMessage};
use super::owner::{Owner, Right};
use super::usage::{Amount, Detail, Usage};
use super::{metrics, row};
use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, bare};

/// Rows that are looked at in one go when all are looked at: few, since what is too old among them
/// is deleted in one transaction, which appends wait for.
const SCAN: u64 = 250;

/// Rows that are read one by one where the database is damaged.
const DAMAGED: u64 = 64;

/// How often all that is due is looked for anew because shards have moved meanwhile. Each time is
/// a move of its own; whoever asks may ask again.
const MOVES: u32 = 16;

/// See [`super::Store::page`]. An `owner` that was fenced, or whose shard is another's by now, gets
/// nothing.
pub(super) async fn page(
    database: DatabaseConnection,
    owner: Option<Owner>,
    recipient: Bare,
    mut after: MessageId,
    limit: PageLimit,
) -> Result<Vec<StoredMessage>, StoreError> {
    let right = right_to(owner.as_ref(), &database, &recipient).await?;
    loop {
        let small = small(&database, right.as_ref(), &recipient, after, limit);
        let (last, rows) = match small.await.map_err(failed)? {
            Small::Rows(last, rows) => (last, rows),
            Small::Not => {
                let sized = sized(&database, right.as_ref(), &recipient, after, limit);
                let Some(rows) = sized.await.map_err(failed)? else {
                    return nothing(right.as_ref(), &database).await;
                };
                rows
            }
            Small::End => return nothing(right.as_ref(), &database).await,
        };
        let messages: Vec<StoredMessage> = rows.into_iter().filter_map(message).collect();
        if !messages.is_empty() {
            return Ok(messages);
        }
        after = last;
    }
}

async fn right_to<'a>(
    owner: Option<&'a Owner>,
    database: &DatabaseConnection,
    recipient: &str,
) -> Result<Option<Right<'a>>, StoreError> {
    match owner {
        Some(owner) => owner.right_to(database, recipient).await.map(Some),
        None => Ok(None),
    }
}

/// There is nothing, or nothing for this process.
async fn nothing<T: Default>(
    right: Option<&Right<'_>>,
    database: &DatabaseConnection,
) -> Result<T, StoreError> {
    if let Some(right) = right {
        right.check(database).await?;
    }
    Ok(T::default())
}

fn with_right(select: Select<Entity>, right: Option<&Right<'_>>) -> Select<Entity> {
    match right {
        Some(right) => select.filter(right.condition()),
        None => select,
    }
}

/// See [`super::Store::headers`].
pub(super) async fn headers(
    database: DatabaseConnection,
    owner: Option<Owner>,
    recipient: Bare,
    mut after: MessageId,
    rows: usize,
) -> Result<Vec<Header>, StoreError> {
    let right = right_to(owner.as_ref(), &database, &recipient).await?;
    loop {
        let next = header_rows(&recipient, after, rows);
        let found = query(&database, with_right(next, right.as_ref())).await.map_err(failed)?;
        let headers: Vec<Header> = found.iter().filter_map(header).collect();
        let last = found.last().and_then(|row| row.try_get("", "id").ok()).map(MessageId);
        match last {
            Some(last) if headers.is_empty() => after = last,
            None => return nothing(right.as_ref(), &database).await,
            _ => return Ok(headers),
        }
    }
}

fn header_rows(recipient: &str, after: MessageId, rows: usize) -> Select<Entity> {
    let all = [C::Recipient, C::Id, C::Sender, C::ExpiresAt];
    let next = Entity::find().select_only().columns(all);
    after_id(next, recipient, after).limit(most(rows))
}

fn header(row: &QueryResult) -> Option<Header> {
    let id = MessageId(row.try_get("", "id").unwrap_or_default());
    let read = || {
        let expires_at: Option<i64> = row.try_get("", "expires_at")?;
        let expires_at = expires_at.map(Timestamp::from_micros);
        Ok::<_, DbErr>(Header { id, sender: row.try_get("", "sender")?, expires_at })
    };
    read()
        .inspect_err(|error| {
            let recipient: String = row.try_get("", "recipient").unwrap_or_default();
            set_aside(&recipient, id, &error.to_string());
        })
        .ok()
}

/// See [`super::Store::usage`].
pub(super) async fn usage(
    database: DatabaseConnection,
    owner: Option<Owner>,
    recipient: Bare,
    detail: Detail,
) -> Result<Usage, StoreError> {
    let right = right_to(owner.as_ref(), &database, &recipient).await?;
    let right = right.as_ref();
    let own = right.map_or(Expr::value(1_i64), Right::number);
    let sums = sums(database.get_database_backend(), &recipient, detail).expr_as(own, "own");
    let rows = query(&database, sums).await.map_err(failed)?;
    let all = rows.iter().map(|row| sum(row, detail)).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(failed)?;
    if all.is_empty() || all.iter().any(|sum| !sum.own) {
        nothing::<()>(right, &database).await?;
    }
    let mut usage = Usage::default();
    for Sum { amount, sender, .. } in all {
        usage.all.add(amount);
        if let Some(sender) = sender {
            usage.senders.entry(bare(&sender).into()).or_default().add(amount);
        }
    }
    Ok(usage)
}

/// A row of a sum.
struct Sum {
    amount: Amount,
    /// This process had the right to it.
    own: bool,
    sender: Option<String>,
}

fn sum(row: &QueryResult, detail: Detail) -> Result<Sum, DbErr> {
    let bytes: Option<i64> = match detail {
        Detail::Messages => None,
        _ => row.try_get("", "bytes")?,
    };
    let sender = match detail {
        Detail::Senders => Some(row.try_get("", "sender")?),
        _ => None,
    };
    let own = row.try_get::<i64>("", "own")? == 1;
    Ok(Sum { amount: amount(row.try_get("", "messages")?, bytes), own, sender })
}

/// Of the rows of one recipient, which an index finds.
fn sums(backend: DbBackend, recipient: &str, detail: Detail) -> Select<Entity> {
    let count = Entity::find()
        .select_only()
        .expr_as(C::Id.count(), "messages")
        .filter(C::Recipient.eq(recipient));
    if detail == Detail::Messages {
        return count;
    }
    let bigint = if backend == DbBackend::MySql { "signed" } else { "bigint" };
    let sums = count.expr_as(C::Size.sum().cast_as(bigint), "bytes");
    match detail {
        Detail::Senders => sums.column(C::Sender).group_by(C::Sender),
        _ => sums,
    }
}

fn amount(messages: i64, bytes: Option<i64>) -> Amount {
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    Amount { messages: number(messages), bytes: number(bytes.unwrap_or(0)) }
}

/// See [`super::Store::find`]. A row that is deleted leaves its mark in the same transaction,
/// so that a look at the rows first misses nothing.
pub(super) async fn find(
    database: DatabaseConnection,
    key: Key,
) -> Result<Option<Option<u16>>, StoreError> {
    use entities::mark;
    let of_rows = Entity::find().select_only().column(C::MetRule).filter(C::Key.eq(&*key));
    let of_marks = mark::Entity::find()
        .select_only()
        .column(mark::Column::MetRule)
        .filter(mark::Column::Key.eq(&*key));
    let row: Option<Option<i32>> = of_rows.into_tuple().one(&database).await.map_err(failed)?;
    let known = match row {
        Some(met_rule) => Some(met_rule),
        None => of_marks.into_tuple().one(&database).await.map_err(failed)?,
    };
    Ok(known.map(|met_rule| met_rule.and_then(|rule| u16::try_from(rule).ok())))
}

/// See [`super::Store::due`]. The rows of all shards lie together; those of others are passed over.
pub(super) async fn due(
    database: DatabaseConnection,
    owner: Option<Owner>,
    mut from: DuePosition,
    until: Timestamp,
    limit: PageLimit,
) -> Result<Vec<DueMessage>, StoreError> {
    let mut moves = 0;
    loop {
        let held = owner.as_ref().map(|owner| owner.held.get());
        let right = owner.as_ref().zip(held.as_ref()).map(|(owner, held)| owner.right_to_all(held));
        let found = positions(&database, right.as_ref(), &from, Some(until), limit);
        let mut positions = found.await.map_err(failed)?;
        let Some(last) = positions.last().cloned() else {
            match nothing(right.as_ref(), &database).await {
                Err(StoreError::NotMine) if moves < MOVES => moves += 1,
                answer => return answer,
            }
            continue;
        };
        positions.retain(|position| is_held(held.as_deref(), position));
        if positions.is_empty() {
            from = last;
            continue;
        }
        let backend = database.get_database_backend();
        let all = expiring_after(backend, &from).filter(until_place(backend, &last));
        let each = positions.iter().map(|position| (&*position.recipient, position.id));
        let rows = rows(&database, all, each).await.map_err(failed)?;
        let messages: Vec<DueMessage> = rows
            .into_iter()
            .filter(|row| held.as_ref().is_none_or(|held| held.has(&row.recipient)))
            .filter_map(due_message)
            .collect();
        if !messages.is_empty() {
            return Ok(messages);
        }
        from = last;
    }
}

fn is_held(held: Option<&Held>, position: &DuePosition) -> bool {
    held.is_none_or(|held| held.has(&position.recipient))
}

/// See [`super::Store::next_due`]. Those of others are passed over, some at a time.
pub(super) async fn next_due(
    database: DatabaseConnection,
    owner: Option<Owner>,
    mut from: DuePosition,
) -> Result<Option<Timestamp>, StoreError> {
    let held = owner.as_ref().map(|owner| owner.held.get());
    let mut limit = PageLimit { rows: 1, bytes: usize::MAX };
    loop {
        let positions = positions(&database, None, &from, None, limit).await.map_err(failed)?;
        let Some(last) = positions.last() else {
            return Ok(None);
        };
        let first = positions.iter().find(|position| is_held(held.as_deref(), position));
        if let Some(first) = first {
            return Ok(Some(first.at));
        }
        from = last.clone();
        limit.rows = (limit.rows * 4).min(SCAN as usize);
    }
}

/// A place in the order of the primary key.
pub(super) type Place = (Bare, MessageId);

/// Of the rows next after `from`, those stored before `before`; and where to go on.
pub(super) async fn older(
    database: DatabaseConnection,
    from: Place,
    before: Timestamp,
) -> Result<(Vec<Place>, Option<Place>), StoreError> {
    let next = next_rows(database.get_database_backend(), &from);
    let rows: Vec<(String, i64, i64)> = next.into_tuple().all(&database).await.map_err(failed)?;
    let place =
        |(recipient, id, _): &(String, i64, i64)| (Bare::from(&**recipient), MessageId(*id));
    let next = rows.last().map(place);
    let old = rows.iter().filter(|(_, _, stored_at)| *stored_at < before.as_micros());
    Ok((old.map(place).collect(), next))
}

/// The rows after a place, and when each was stored.
fn next_rows(backend: DbBackend, from: &Place) -> Select<Entity> {
    let key = [C::Recipient, C::Id];
    Entity::find()
        .select_only()
        .columns([C::Recipient, C::Id, C::StoredAt])
        .filter(beyond(backend, key, [Expr::value(&*from.0), Expr::value(from.1.0)]))
        .order_by_asc(C::Recipient)
        .order_by_asc(C::Id)
        .limit(SCAN)
}

/// What was read without a look at the sizes before.
enum Small {
    /// The last row, and those that can be read.
    Rows(MessageId, Vec<Model>),
    /// One is larger than an even share of the limit, or there is damage to get round.
    Not,
    /// There are no more.
    End,
}

/// The next messages, in one question: few pages have a large one.
async fn small(
    database: &DatabaseConnection,
    right: Option<&Right<'_>>,
    recipient: &str,
    after: MessageId,
    limit: PageLimit,
) -> Result<Small, DbErr> {
    let share = i64::try_from(limit.bytes / limit.rows.max(1)).unwrap_or(i64::MAX);
    let next = with_right(small_rows(recipient, after, limit.rows, share), right);
    let rows = match query(database, next).await {
        Err(error) if fault::fault(&error) == Fault::Damage => return Ok(Small::Not),
        rows => rows?,
    };
    // A size that can't be read is a row that can't.
    let is_large = |row: &QueryResult| row.try_get("", "size").unwrap_or(0_i64) > share;
    match rows.last() {
        Some(_) if rows.iter().any(is_large) => Ok(Small::Not),
        Some(last) => {
            let last = MessageId(last.try_get("", "id")?);
            Ok(Small::Rows(last, rows.iter().filter_map(model).collect()))
        }
        None => Ok(Small::End),
    }
}

/// The next messages that stay within the limit, at least one: their sizes first. The last, and
/// those that can be read; none: there are no more.
async fn sized(
    database: &DatabaseConnection,
    right: Option<&Right<'_>>,
    recipient: &str,
    after: MessageId,
    limit: PageLimit,
) -> Result<Option<(MessageId, Vec<Model>)>, DbErr> {
    let ids = ids(database, right, recipient, after, limit).await?;
    let (Some(first), Some(last)) = (ids.first(), ids.last()) else {
        return Ok(None);
    };
    let all = Entity::find()
        .filter(C::Recipient.eq(recipient))
        .filter(C::Id.between(first.0, last.0))
        .order_by_asc(C::Id);
    let each = ids.iter().map(|id| (recipient, *id));
    Ok(Some((*last, rows(database, all, each).await?)))
}

/// The next rows of a recipient; those larger than `share` without their stanzas.
fn small_rows(recipient: &str, after: MessageId, rows: usize, share: i64) -> Select<Entity> {
    let stanza = Expr::case(C::Size.lte(share), C::Stanza.into_expr());
    let all = C::iter().filter(|column| !matches!(column, C::Stanza));
    let next = Entity::find().select_only().columns(all).expr_as(stanza, "stanza");
    after_id(next, recipient, after).limit(most(rows))
}

/// Of these, the rows of the recipient after this id.
fn after_id(select: Select<Entity>, recipient: &str, after: MessageId) -> Select<Entity> {
    select.filter(C::Recipient.eq(recipient)).filter(C::Id.gt(after.0)).order_by_asc(C::Id)
}

/// A number of rows as databases take it.
fn most(rows: usize) -> u64 {
    u64::try_from(rows).unwrap_or(u64::MAX).clamp(1, i64::MAX as u64)
}

/// The ids of the next messages that stay within the limit.
async fn ids(
    database: &DatabaseConnection,
    right: Option<&Right<'_>>,
    recipient: &str,
    after: MessageId,
    limit: PageLimit,
) -> Result<Vec<MessageId>, DbErr> {
    let next = Entity::find().select_only().column(C::Id);
    let next = with_right(after_id(next, recipient, after), right);
    within(database, next, limit, |row| Ok(MessageId(row.try_get("", "id")?))).await
}

/// The places of the next messages that expire and stay within the limit.
async fn positions(
    database: &DatabaseConnection,
    right: Option<&Right<'_>>,
    from: &DuePosition,
    until: Option<Timestamp>,
    limit: PageLimit,
) -> Result<Vec<DuePosition>, DbErr> {
    let next = with_right(expiring_by(database.get_database_backend(), from, until), right);
    let position = |row: &QueryResult| {
        let recipient: String = row.try_get("", "recipient")?;
        Ok(DuePosition {
            at: Timestamp::from_micros(row.try_get("", "expires_at")?),
            recipient: recipient.into(),
            id: MessageId(row.try_get("", "id")?),
        })
    };
    within(database, next, limit, position).await
}

/// The places of those that expire after `from`, at `until` or before, if there is one.
fn expiring_by(backend: DbBackend, from: &DuePosition, until: Option<Timestamp>) -> Select<Entity> {
    let next = expiring_after(backend, from).select_only();
    let next = next.columns([C::ExpiresAt, C::Recipient, C::Id]);
    match until {
        Some(until) => next.filter(C::ExpiresAt.lte(until.as_micros())),
        None => next,
    }
}

/// The first rows of `next` whose stanzas stay within the limit, at least one. `next` selects
/// what an index has, which may be whole where the table is damaged.
async fn within<T>(
    database: &DatabaseConnection,
    next: Select<Entity>,
    limit: PageLimit,
    read: impl Fn(&QueryResult) -> Result<T, DbErr>,
) -> Result<Vec<T>, DbErr> {
    let sized = next.clone().column(C::Size).limit(most(limit.rows));
    let rows = match query(database, sized).await {
        Err(error) if fault::fault(&error) == Fault::Damage => {
            query(database, next.limit(DAMAGED)).await?
        }
        rows => rows?,
    };
    let mut left = Some(limit.bytes);
    let fitting = rows.iter().enumerate().take_while(|(place, row)| {
        // A size that can't be read is a row that can't.
        let size: i64 = row.try_get("", "size").unwrap_or(0);
        left = left.and_then(|left| left.checked_sub(usize::try_from(size).unwrap_or(0)));
        left.is_some() || *place == 0
    });
    fitting.map(|(_, row)| read(row)).collect()
}

/// All that expire after `from`, in that order.
fn expiring_after(backend: DbBackend, from: &DuePosition) -> Select<Entity> {
    Entity::find()
        .filter(C::ExpiresAt.is_not_null())
        // The second condition implies this one, but only this one finds its place in the index.
        .filter(C::ExpiresAt.gte(from.at.as_micros()))
        .filter(beyond(backend, POSITION, values(from)))
        .order_by_asc(C::ExpiresAt)
        .order_by_asc(C::Recipient)
        .order_by_asc(C::Id)
}

const POSITION: [C; 3] = [C::ExpiresAt, C::Recipient, C::Id];

fn values(position: &DuePosition) -> [SimpleExpr; 3] {
    [
        Expr::value(position.at.as_micros()),
        Expr::value(&*position.recipient),
        Expr::value(position.id.0),
    ]
}

/// At `last` or before, in the order in which messages expire.
fn until_place(backend: DbBackend, last: &DuePosition) -> SimpleExpr {
    match backend {
        DbBackend::MySql => {
            C::ExpiresAt.lte(last.at.as_micros()).and(beyond(backend, POSITION, values(last)).not())
        }
        _ => tuple(POSITION).lte(Expr::tuple(values(last))),
    }
}

/// The columns, in this order, come after the values. MySQL finds no place in an index by a
/// comparison of tuples; the others find none by its parts.
fn beyond<const N: usize>(
    backend: DbBackend,
    columns: [C; N],
    values: [SimpleExpr; N],
) -> SimpleExpr {
    if backend != DbBackend::MySql {
        return tuple(columns).gt(Expr::tuple(values));
    }
    // The last first: (a, b) > (x, y) is a > x OR (a = x AND b > y).
    let pairs = columns.into_iter().zip(values).rev();
    let parts = pairs.fold(None, |rest: Option<SimpleExpr>, (column, value)| {
        let greater = column.into_expr().gt(value.clone());
        Some(match rest {
            Some(rest) => greater.or(column.into_expr().eq(value).and(rest)),
            None => greater,
        })
    });
    parts.unwrap_or_else(|| Expr::value(false))
}

fn tuple<const N: usize>(columns: [C; N]) -> SimpleExpr {
    Expr::tuple(columns.map(|column| column.into_expr()))
}

/// The rows of `all`; where the database is damaged, those of `each` that can be read. Rows
/// that can't are left out, and counted.
async fn rows<'a>(
    database: &DatabaseConnection,
    all: Select<Entity>,
    each: impl Iterator<Item = (&'a str, MessageId)>,
) -> Result<Vec<Model>, DbErr> {
    match query(database, all).await {
        Err(error) if fault::fault(&error) == Fault::Damage => {}
        rows => return Ok(rows?.iter().filter_map(model).collect()),
    }
    let mut rows = Vec::new();
    for (recipient, id) in each {
        let one = Entity::find_by_id((recipient.to_owned(), id.0));
        match query(database, one).await {
            Ok(found) => rows.extend(found.iter().filter_map(model)),
            Err(error) if fault::fault(&error) == Fault::Damage => {
                set_aside(recipient, id, &error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(rows)
}

async fn query(
    database: &DatabaseConnection,
    select: Select<Entity>,
) -> Result<Vec<QueryResult>, DbErr> {
    let statement = select.build(database.get_database_backend());
    database.query_all_raw(statement).await
}

fn model(row: &QueryResult) -> Option<Model> {
    match Model::from_query_result(row, "") {
        Ok(model) => Some(model),
        Err(error) => {
            let recipient: String = row.try_get("", "recipient").unwrap_or_default();
            let id: i64 = row.try_get("", "id").unwrap_or_default();
            set_aside(&recipient, MessageId(id), &error.to_string());
            None
        }
    }
}

fn message(row: Model) -> Option<StoredMessage> {
    let (recipient, id) = (row.recipient.clone(), MessageId(row.id));
    let message = row::message(row);
    if message.is_none() {
        set_aside(&recipient, id, "a value is out of its range");
    }
    message
}

fn due_message(row: Model) -> Option<DueMessage> {
    let recipient = Bare::from(&*row.recipient);
    let message = message(row)?;
    Some(DueMessage { recipient, expiry: message.expiry?, message })
}

/// Counts a row that can't be read. It stays where it is, for whoever repairs it.
fn set_aside(recipient: &str, id: MessageId, error: &str) {
    metrics::unreadable();
    tracing::error!(recipient, %id, error, "a stored message can't be read, and is left out");
}

pub(super) fn failed(error: DbErr) -> StoreError {
    if fault::is_closed(&error) { StoreError::Closed } else { StoreError::Read(error) }
}

#[cfg(test)]
mod tests;
