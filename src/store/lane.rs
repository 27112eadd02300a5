//! The fence: who may write to the database of a server.
//!
//! A node has a row of the table `lane`. Each transaction that writes updates it first, and
//! goes on only if it is still the row of this process, and of the term that it knows. Whoever
//! takes its shards changes the row; the lock of the row makes it wait for what the other still
//! has under way, and after that nothing of the other can be committed, however long it stood
//! still. It is one row a transaction, however many shards that writes to.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult,
    Statement, Value,
};

use super::held::Held;
use super::ownership::Incarnation;
use super::server::Session;
use super::sql::{now, number, numbered, statement};
use crate::words::ShardId;

/// How often a node shows that it lives, at least.
pub(super) const BEAT: Duration = Duration::from_secs(3);

/// A node that was not seen for so long may be taken for dead: some beats, so that a slow one
/// is not.
pub(super) const LEASE: Duration = Duration::from_secs(15);

/// The right to write, as this process has it.
pub(super) struct Lane {
    backend: DbBackend,
    pub(super) incarnation: Incarnation,
    raise: String,
    raise_term: String,
}

/// What a lane says of the last transaction.
pub(super) struct Beat {
    pub(super) beat: i64,
    pub(super) term: i64,
}

impl Lane {
    pub(super) fn new(backend: DbBackend, incarnation: Incarnation) -> Self {
        let raise = |more: &str| {
            let raise = format!(
                "UPDATE lane SET beat = beat + 1, {more}seen_at = {} WHERE node = ? \
                 AND incarnation = ? AND beat = ? AND term = ? AND NOT fenced AND {}",
                now(backend),
                set_up(backend),
            );
            numbered(backend, &raise)
        };
        let (raise, raise_term) = (raise(""), raise("term = term + 1, "));
        Lane { backend, incarnation, raise, raise_term }
    }

    /// Raises the beat after this one. No row: this process, or this session, may not write, or
    /// what it holds has changed.
    pub(super) fn raise(&self, beat: &Beat) -> Statement {
        self.raised(&self.raise, beat)
    }

    /// The same, and the term: what this process holds changes with it.
    pub(super) fn raise_term(&self, beat: &Beat) -> Statement {
        self.raised(&self.raise_term, beat)
    }

    fn raised(&self, text: &str, beat: &Beat) -> Statement {
        let [node, incarnation] = own(&self.incarnation);
        let values = [node, incarnation, beat.beat.into(), beat.term.into()];
        Statement::from_sql_and_values(self.backend, text, values)
    }

    /// The beat, when what a former session had under way has ended; none if this process was
    /// fenced.
    pub(super) async fn beat(&self, database: &DatabaseConnection) -> Result<Option<i64>, DbErr> {
        const BEAT: &str = "SELECT beat FROM lane WHERE node = ? AND incarnation = ? AND NOT fenced \
                            FOR UPDATE";
        let row = database.query_one_raw(self.statement(BEAT)).await?;
        row.map(|row| row.try_get_by_index(0)).transpose()
    }

    /// Says which session writes, so that a taker can end it. False: this process was fenced.
    pub(super) async fn enter(
        &self,
        database: &DatabaseConnection,
        session: &Session,
    ) -> Result<bool, DbErr> {
        const ENTER: &str = "UPDATE lane SET session = ?, since = ? \
                             WHERE node = ? AND incarnation = ? AND NOT fenced";
        let [node, incarnation] = own(&self.incarnation);
        let values = [session.id.into(), session.since.as_str().into(), node, incarnation];
        let enter = statement(self.backend, ENTER, values);
        Ok(database.execute_raw(enter).await?.rows_affected() == 1)
    }

    /// Gives the right up: another node need not wait.
    pub(super) async fn leave(&self, database: &DatabaseConnection) -> Result<(), DbErr> {
        const LEAVE: &str = "UPDATE lane SET fenced = TRUE WHERE node = ? AND incarnation = ?";
        database.execute_raw(self.statement(LEAVE)).await.map(|_| ())
    }

    fn statement(&self, text: &str) -> Statement {
        statement(self.backend, text, own(&self.incarnation))
    }
}

/// What a process holds, of so many shards, and the term: of one moment. None if it was fenced.
pub(super) async fn held(
    database: &impl ConnectionTrait,
    incarnation: &Incarnation,
    shards: u32,
) -> Result<Option<Held>, DbErr> {
    const HELD: &str = "SELECT lane.term, shard.shard, shard.epoch FROM lane \
                        LEFT JOIN shard ON shard.owner = lane.node \
                        AND shard.incarnation = lane.incarnation \
                        WHERE lane.node = ? AND lane.incarnation = ? AND NOT lane.fenced";
    let held = statement(database.get_database_backend(), HELD, own(incarnation));
    let rows = database.query_all_raw(held).await?;
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    let mut known = Vec::new();
    for row in &rows {
        if let Some(shard) = row.try_get_by_index::<Option<i32>>(1)? {
            let epoch = number(row.try_get_by_index(2)?)?;
            known.push((ShardId(number(shard.into())?), epoch));
        }
    }
    Ok(Some(Held::of(first.try_get_by_index(0)?, shards, known)))
}

/// A row of the table.
pub(super) struct Found {
    pub(super) node: String,
    incarnation: i64,
    pub(super) fenced: bool,
    pub(super) session: Session,
    /// Microseconds since it was seen.
    pub(super) age: i64,
}

impl Found {
    /// None: its number makes no sense.
    pub(super) fn incarnation(&self) -> Option<Incarnation> {
        let number = u32::try_from(self.incarnation).ok()?;
        Some(Incarnation { node: self.node.clone(), number })
    }

    /// It has shown for a while that it lives.
    pub(super) fn is_seen(&self) -> bool {
        self.age < i64::try_from(LEASE.as_micros()).unwrap_or(i64::MAX)
    }
}

pub(super) async fn all(database: &impl ConnectionTrait) -> Result<Vec<Found>, DbErr> {
    let backend = database.get_database_backend();
    let lanes = format!(
        "SELECT node, incarnation, fenced, session, since, {} - seen_at FROM lane ORDER BY node",
        now(backend)
    );
    let rows = database.query_all_raw(Statement::from_string(backend, lanes)).await?;
    rows.iter().map(found).collect()
}

fn found(row: &QueryResult) -> Result<Found, DbErr> {
    Ok(Found {
        node: row.try_get_by_index(0)?,
        incarnation: row.try_get_by_index(1)?,
        fenced: row.try_get_by_index(2)?,
        session: Session { id: row.try_get_by_index(3)?, since: row.try_get_by_index(4)? },
        age: row.try_get_by_index(5)?,
    })
}

/// Waits for what a process has under way; after that it writes no more. False: it was fenced
/// already, or superseded. The one that is fenced is the one that was seen: a later start of it is
/// not.
pub(super) async fn fence(
    begun: &DatabaseTransaction,
    incarnation: &Incarnation,
) -> Result<bool, DbErr> {
    const FENCE: &str =
        "UPDATE lane SET fenced = TRUE WHERE node = ? AND incarnation = ? AND NOT fenced";
    let fence = statement(begun.get_database_backend(), FENCE, own(incarnation));
    Ok(begun.execute_raw(fence).await?.rows_affected() == 1)
}

/// Waits for what a process has under way; after that it must look what it holds. False: it is
/// fenced, or superseded.
pub(super) async fn raise_term_of(
    begun: &DatabaseTransaction,
    incarnation: &Incarnation,
) -> Result<bool, DbErr> {
    const RAISE: &str =
        "UPDATE lane SET term = term + 1 WHERE node = ? AND incarnation = ? AND NOT fenced";
    let raise = statement(begun.get_database_backend(), RAISE, own(incarnation));
    Ok(begun.execute_raw(raise).await?.rows_affected() == 1)
}

/// Makes the lane of a process that starts, in the place of the one before of its name.
pub(super) async fn replace(
    begun: &DatabaseTransaction,
    incarnation: &Incarnation,
    session: &Session,
) -> Result<(), DbErr> {
    let backend = begun.get_database_backend();
    let [node, number] = own(incarnation);
    let delete = statement(backend, "DELETE FROM lane WHERE node = ?", [node.clone()]);
    begun.execute_raw(delete).await?;
    let insert = format!(
        "INSERT INTO lane (node, incarnation, fenced, beat, term, seen_at, session, since) \
         VALUES (?, ?, FALSE, 0, 0, {}, ?, ?)",
        now(backend)
    );
    let values = [node, number, session.id.into(), session.since.as_str().into()];
    begun.execute_raw(statement(backend, &insert, values)).await.map(|_| ())
}

/// The columns that say whose a row is.
pub(super) fn own(incarnation: &Incarnation) -> [Value; 2] {
    [incarnation.node.as_str().into(), i64::from(incarnation.number).into()]
}

/// Holds only in a session that was set up: a pool may connect anew by itself.
fn set_up(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "current_setting('amphora.writer', true) = 'yes'",
        _ => "@amphora_writer = 1",
    }
}
