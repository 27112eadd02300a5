//! The fence: who may write to the database of a server.
//!
//! A node has a row of the table `lane`. Each transaction that writes updates it first, and
//! goes on only if it is still the row of this process. Whoever takes over changes the row; the
//! lock of the row makes it wait for what the other still has under way, and after that nothing
//! of the other can be committed, however long it stood still.

use std::time::Duration;

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, QueryResult,
    Statement, TransactionTrait, Value,
};
use tokio::time::sleep;

use super::fault::{self, Fault};
use super::place::Server;
use super::server::{self, Session};
use crate::words::MessageId;

/// How often a node shows that it lives, at least.
pub(super) const BEAT: Duration = Duration::from_secs(3);

/// A node that was not seen for so long may be taken for dead: some beats, so that a slow one
/// is not.
const LEASE: Duration = Duration::from_secs(15);

/// How often a take-over is tried that another session is in the way of.
const TRIES: u32 = 30;

/// The right to write, as this process has it.
pub(super) struct Lane {
    backend: DbBackend,
    node: String,
    /// Which start of which node: the epoch that this process has raised.
    incarnation: u32,
    raise: String,
}

/// What came of a try to take the right to write.
pub(super) enum Taken {
    /// With this epoch.
    Yes(u32),
    /// Another node lives; who, for an error.
    Alive(String),
    /// No epoch is left.
    UsedUp,
}

/// A row of the table.
struct Found {
    node: String,
    incarnation: i64,
    fenced: bool,
    session: Session,
    /// Microseconds since it was seen.
    age: i64,
}

impl Lane {
    pub(super) fn new(backend: DbBackend, node: &str, incarnation: u32) -> Self {
        let raise = format!(
            "UPDATE lane SET beat = beat + 1, seen_at = {} WHERE node = ? AND incarnation = ? \
             AND beat = ? AND NOT fenced AND {}",
            now(backend),
            set_up(backend),
        );
        let raise = numbered(backend, &raise);
        Lane { backend, node: node.to_owned(), incarnation, raise }
    }

    fn own(&self) -> [Value; 2] {
        [self.node.as_str().into(), i64::from(self.incarnation).into()]
    }

    /// Raises the beat after `beat`. No row: this process, or this session, may not write.
    pub(super) fn raise(&self, beat: i64) -> Statement {
        let [node, incarnation] = self.own();
        Statement::from_sql_and_values(self.backend, &self.raise, [node, incarnation, beat.into()])
    }

    /// The beat, when what a former session had under way has ended; none if this process was
    /// fenced.
    pub(super) async fn beat(&self, database: &DatabaseConnection) -> Result<Option<i64>, DbErr> {
        const BEAT: &str = "SELECT beat FROM lane WHERE node = ? AND incarnation = ? AND NOT fenced \
                            FOR UPDATE";
        let row = database.query_one_raw(self.statement(BEAT)).await?;
        row.map(|row| row.try_get_by_index(0)).transpose()
    }

    /// Whether this process may not write any more.
    pub(super) async fn is_fenced(&self, database: &impl ConnectionTrait) -> Result<bool, DbErr> {
        const LANE: &str =
            "SELECT beat FROM lane WHERE node = ? AND incarnation = ? AND NOT fenced";
        Ok(database.query_one_raw(self.statement(LANE)).await?.is_none())
    }

    /// Says which session writes, so that a taker can end it. False: this process was fenced.
    pub(super) async fn enter(
        &self,
        database: &DatabaseConnection,
        session: &Session,
    ) -> Result<bool, DbErr> {
        const ENTER: &str = "UPDATE lane SET session = ?, since = ? \
                             WHERE node = ? AND incarnation = ? AND NOT fenced";
        let [node, incarnation] = self.own();
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
        statement(self.backend, text, self.own())
    }
}

/// Takes the right to write, and raises the epoch. A process of the same name is superseded at
/// once; a node of another name only when it was not seen for a while.
pub(super) async fn take(
    server: &Server,
    database: &DatabaseConnection,
    node: &str,
    session: &Session,
) -> Result<Taken, DbErr> {
    let mut tries = 0;
    loop {
        let found = lanes(database).await?;
        if let Some(alive) = alive(&found, node) {
            return Ok(Taken::Alive(alive));
        }
        match try_take(database, node, session).await {
            Err(error) if is_in_the_way(&error) && tries < TRIES => {
                tries += 1;
                // It stands still within a transaction, or is busy: from now on it is not ours
                // to wait for.
                for lane in found.iter().filter(|lane| !lane.fenced) {
                    server.end(database, &lane.session).await?;
                }
                sleep(Duration::from_millis(100)).await;
            }
            taken => return taken,
        }
    }
}

fn is_in_the_way(error: &DbErr) -> bool {
    matches!(fault::fault(error), Fault::Busy | Fault::Met)
}

async fn try_take(
    database: &DatabaseConnection,
    node: &str,
    session: &Session,
) -> Result<Taken, DbErr> {
    let backend = database.get_database_backend();
    let begun = database.begin().await?;
    // One taker at a time.
    let epoch = numbered(backend, "SELECT value FROM epoch WHERE id = 1 FOR UPDATE");
    let row = begun.query_one_raw(Statement::from_string(backend, epoch)).await?;
    let row = row.ok_or_else(|| DbErr::RecordNotFound("the row of the epoch".to_owned()))?;
    let next = row.try_get_by_index::<i64>(0)? + 1;
    if next > i64::from(MessageId::MAX_EPOCH) {
        begun.rollback().await?;
        return Ok(Taken::UsedUp);
    }
    let found = lanes(&begun).await?;
    if let Some(alive) = alive(&found, node) {
        begun.rollback().await?;
        return Ok(Taken::Alive(alive));
    }
    for lane in found.iter().filter(|lane| !lane.fenced) {
        fence(&begun, lane).await?;
    }
    let raise = statement(backend, "UPDATE epoch SET value = ?, beat = 0", [next.into()]);
    begun.execute_raw(raise).await?;
    replace(&begun, node, next, session).await?;
    begun.commit().await?;
    for lane in found.iter().filter(|lane| !lane.fenced) {
        tracing::warn!(node = lane.node, "took over from a process that had not stopped");
    }
    let epoch = u32::try_from(next).map_err(|_| DbErr::Custom("no epoch".to_owned()))?;
    Ok(Taken::Yes(epoch))
}

/// The one that is fenced is the one that was seen: a later start of it is not.
async fn fence(begun: &DatabaseTransaction, lane: &Found) -> Result<(), DbErr> {
    const FENCE: &str = "UPDATE lane SET fenced = TRUE WHERE node = ? AND incarnation = ?";
    let values = [lane.node.as_str().into(), lane.incarnation.into()];
    begun.execute_raw(statement(begun.get_database_backend(), FENCE, values)).await.map(|_| ())
}

async fn replace(
    begun: &DatabaseTransaction,
    node: &str,
    incarnation: i64,
    session: &Session,
) -> Result<(), DbErr> {
    let backend = begun.get_database_backend();
    let delete = statement(backend, "DELETE FROM lane WHERE node = ?", [node.into()]);
    begun.execute_raw(delete).await?;
    let insert = format!(
        "INSERT INTO lane (node, incarnation, fenced, beat, seen_at, session, since) \
         VALUES (?, ?, FALSE, 0, {}, ?, ?)",
        now(backend)
    );
    let since = session.since.as_str().into();
    let values = [node.into(), incarnation.into(), session.id.into(), since];
    begun.execute_raw(statement(backend, &insert, values)).await.map(|_| ())
}

async fn lanes(database: &impl ConnectionTrait) -> Result<Vec<Found>, DbErr> {
    let backend = database.get_database_backend();
    let lanes = format!(
        "SELECT node, incarnation, fenced, session, since, {} - seen_at FROM lane",
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

/// Another node that lives, if there is one.
fn alive(found: &[Found], node: &str) -> Option<String> {
    let lease = i64::try_from(LEASE.as_micros()).unwrap_or(i64::MAX);
    let other = found.iter().find(|lane| !lane.fenced && lane.node != node && lane.age < lease);
    other
        .map(|lane| format!("node '{}', seen {:.1} s ago", lane.node, lane.age.max(0) as f64 / 1e6))
}

/// The time of the database, microseconds since the Unix epoch: that of the nodes may differ.
fn now(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        _ => "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    }
}

/// Holds only in a session that was set up: a pool may connect anew by itself.
fn set_up(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "current_setting('amphora.writer', true) = 'yes'",
        _ => "@amphora_writer = 1",
    }
}

fn statement(backend: DbBackend, text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(backend, numbered(backend, text), values)
}

/// Parameters as the database names them: `?` or `$1`.
fn numbered(backend: DbBackend, text: &str) -> String {
    if backend != DbBackend::Postgres {
        return text.to_owned();
    }
    let mut parts = text.split('?');
    let mut numbered = parts.next().unwrap_or_default().to_owned();
    for (number, part) in (1..).zip(parts) {
        numbered.push_str(&format!("${number}{part}"));
    }
    numbered
}

/// What a reader asks, so that a fenced process hands nothing over.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) node: String,
    pub(super) incarnation: u32,
}

impl Owner {
    /// A condition of the same statement: this process may still write.
    pub(super) fn condition(&self) -> sea_orm::sea_query::SimpleExpr {
        use sea_orm::sea_query::{Alias, Expr, ExprTrait, Query};
        let own = Query::select()
            .expr(Expr::val(1))
            .from(Alias::new("lane"))
            .and_where(Expr::col(Alias::new("node")).eq(self.node.as_str()))
            .and_where(Expr::col(Alias::new("incarnation")).eq(i64::from(self.incarnation)))
            .and_where(Expr::col(Alias::new("fenced")).eq(false))
            .take();
        Expr::exists(own)
    }

    pub(super) async fn is_fenced(&self, database: &DatabaseConnection) -> Result<bool, DbErr> {
        let backend = database.get_database_backend();
        Lane::new(backend, &self.node, self.incarnation).is_fenced(database).await
    }
}

/// As [`server::answered`], for all of a take-over.
pub(super) async fn take_in_time(
    server: &Server,
    database: &DatabaseConnection,
    node: &str,
    session: &Session,
) -> Result<Taken, DbErr> {
    server::answered(take(server, database, node, session)).await
}
