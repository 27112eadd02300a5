//! The fence: who may write to the database of a server.
//!
//! A node has a row of the table `lane` for each connection that writes (the first has number 0).
//! Each transaction that writes locks its row first, and goes on only if it is still that of this
//! process, and of the term that it knows. Whoever takes its shards changes all of its rows; the
//! locks of the rows make it wait for what the other still has under way, and after that nothing of
//! the other can be committed, however long it stood still. It is one row a transaction, however
//! many shards that writes to.
//!
//! Each transaction leaves its number, the beat, so that one whose commit was not answered can be
//! asked about: in MySQL in that row. PostgreSQL keeps every version of a row for as long as a dump
//! may see it, and whoever looks for the row goes past them all: there the row is locked only, and
//! changed once a second, and the beat is in the table `beat`, in one of many rows in turn.

use std::cell::Cell;
use std::time::{Duration, Instant};

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

/// PostgreSQL: how often a node that writes shows that it lives.
const SHOW: Duration = Duration::from_secs(1);

/// PostgreSQL: rows of beats of a row of `lane`. A dump of ten hours beside a hundred transactions a
/// second finds some thousand versions of each.
const SLOTS: i64 = 1024;

/// The right to write, as this process has it.
pub(super) struct Lane {
    backend: DbBackend,
    pub(super) incarnation: Incarnation,
    /// Which of its connections this is for.
    writer: u32,
    words: Words,
    /// PostgreSQL: when it was last shown that this process lives.
    shown: Cell<Option<Instant>>,
}

/// Statements of which each transaction has one or more.
struct Words {
    /// Shows that this process lives. MySQL: and raises the beat.
    show: String,
    /// The same, and raises the term.
    raise_term: String,
    /// PostgreSQL: locks the row and writes the beat.
    lock: String,
}

/// What a lane says of the last transaction.
pub(super) struct Beat {
    pub(super) beat: i64,
    pub(super) term: i64,
}

impl Lane {
    pub(super) fn new(backend: DbBackend, incarnation: Incarnation, writer: u32) -> Self {
        let (now, set_up) = (now(backend), set_up(backend));
        let text = |text: &str| numbered(backend, text);
        let is_own = format!(
            "node = ? AND incarnation = ? AND writer = ? AND term = ? AND NOT fenced AND {set_up}"
        );
        let (beat, as_known) = match backend {
            DbBackend::Postgres => ("", ""),
            _ => ("beat = beat + 1, ", " AND beat = ?"),
        };
        let change = |more: &str| {
            text(&format!("UPDATE lane SET {beat}{more}seen_at = {now} WHERE {is_own}{as_known}"))
        };
        let words = Words {
            show: change(""),
            raise_term: change("term = term + 1, "),
            lock: text(&format!(
                "INSERT INTO beat (node, slot, beat) SELECT node, ?::int, ?::bigint FROM lane \
                 WHERE {is_own} FOR UPDATE \
                 ON CONFLICT (node, slot) DO UPDATE SET beat = excluded.beat \
                 WHERE beat.beat < excluded.beat"
            )),
        };
        Lane { backend, incarnation, writer, words, shown: Cell::new(None) }
    }

    /// Raises the beat after this one. False: this process, or this session, may not write, or
    /// what it holds has changed.
    pub(super) async fn raise(
        &self,
        begun: &DatabaseTransaction,
        beat: &Beat,
    ) -> Result<bool, DbErr> {
        if self.backend != DbBackend::Postgres {
            return self.change(begun, &self.words.show, beat).await;
        }
        if self.shown.get().is_none_or(|shown| shown.elapsed() >= SHOW) {
            if !self.change(begun, &self.words.show, beat).await? {
                return Ok(false);
            }
            self.shown.set(Some(Instant::now()));
        }
        self.lock(begun, beat).await
    }

    /// The same, and the term: what this process holds changes with it.
    pub(super) async fn raise_term(
        &self,
        begun: &DatabaseTransaction,
        beat: &Beat,
    ) -> Result<bool, DbErr> {
        let changed = self.change(begun, &self.words.raise_term, beat).await?;
        if !changed || self.backend != DbBackend::Postgres {
            return Ok(changed);
        }
        self.lock(begun, &Beat { term: beat.term + 1, ..*beat }).await
    }

    async fn change(
        &self,
        begun: &DatabaseTransaction,
        text: &str,
        beat: &Beat,
    ) -> Result<bool, DbErr> {
        let [node, incarnation, writer] = self.own();
        let mut values = vec![node, incarnation, writer, beat.term.into()];
        if self.backend != DbBackend::Postgres {
            values.push(beat.beat.into());
        }
        let change = Statement::from_sql_and_values(self.backend, text, values);
        Ok(begun.execute_raw(change).await?.rows_affected() == 1)
    }

    async fn lock(&self, begun: &DatabaseTransaction, beat: &Beat) -> Result<bool, DbErr> {
        let [node, incarnation, writer] = self.own();
        let next = beat.beat + 1;
        let values = [self.slot(next), next.into(), node, incarnation, writer, beat.term.into()];
        let lock = Statement::from_sql_and_values(self.backend, &self.words.lock, values);
        Ok(begun.execute_raw(lock).await?.rows_affected() == 1)
    }

    /// The beat of the last transaction that was committed, when what a former session had under way
    /// has ended; none if this process was fenced. PostgreSQL tells only of the one after this beat.
    pub(super) async fn last_beat(
        &self,
        database: &DatabaseConnection,
        beat: i64,
    ) -> Result<Option<i64>, DbErr> {
        const LOCK: &str = "SELECT beat FROM lane WHERE node = ? AND incarnation = ? AND writer = ? \
                            AND NOT fenced FOR UPDATE";
        const NEXT: &str = "SELECT beat FROM beat WHERE node = ? AND slot = ?";
        let Some(locked) = database.query_one_raw(self.statement(LOCK)).await? else {
            return Ok(None);
        };
        Ok(Some(match self.backend {
            // Only now: it sees what was committed before the lock was had.
            DbBackend::Postgres => {
                let [node, ..] = self.own();
                let next = statement(self.backend, NEXT, [node, self.slot(beat + 1)]);
                match database.query_one_raw(next).await? {
                    Some(row) if row.try_get_by_index::<i64>(0)? > beat => {
                        row.try_get_by_index(0)?
                    }
                    _ => beat,
                }
            }
            _ => locked.try_get_by_index(0)?,
        }))
    }

    /// Says which session writes, so that a taker can end it. False: this process was fenced.
    pub(super) async fn enter(
        &self,
        database: &DatabaseConnection,
        session: &Session,
    ) -> Result<bool, DbErr> {
        const ENTER: &str = "UPDATE lane SET session = ?, since = ? \
                             WHERE node = ? AND incarnation = ? AND writer = ? AND NOT fenced";
        let [node, incarnation, writer] = self.own();
        let values = [session.id.into(), session.since.as_str().into(), node, incarnation, writer];
        let enter = statement(self.backend, ENTER, values);
        Ok(database.execute_raw(enter).await?.rows_affected() == 1)
    }

    /// Gives the right up, and that of connections that never came: another node need not wait, when
    /// no connection of this one has it.
    pub(super) async fn leave(&self, database: &DatabaseConnection) -> Result<(), DbErr> {
        const LEAVE: &str = "UPDATE lane SET fenced = TRUE WHERE node = ? AND incarnation = ? \
                             AND (writer = ? OR session = 0)";
        database.execute_raw(self.statement(LEAVE)).await.map(|_| ())
    }

    fn statement(&self, text: &str) -> Statement {
        statement(self.backend, text, self.own())
    }

    /// The columns that say whose row it is.
    fn own(&self) -> [Value; 3] {
        let [node, incarnation] = own(&self.incarnation);
        [node, incarnation, i64::from(self.writer).into()]
    }

    /// PostgreSQL: where the beat is.
    fn slot(&self, beat: i64) -> Value {
        (i64::from(self.writer) * SLOTS + beat.rem_euclid(SLOTS)).into()
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

/// All rows; those of a node one after the other.
pub(super) async fn all(database: &impl ConnectionTrait) -> Result<Vec<Found>, DbErr> {
    let backend = database.get_database_backend();
    let lanes = format!(
        "SELECT node, incarnation, fenced, session, since, {} - seen_at FROM lane \
         ORDER BY node, writer",
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
    Ok(begun.execute_raw(fence).await?.rows_affected() > 0)
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
    Ok(begun.execute_raw(raise).await?.rows_affected() > 0)
}

/// Makes the rows of a process that starts, in the place of those of the one before of its name. The
/// session is that of the first; the others enter when they are there.
pub(super) async fn replace(
    begun: &DatabaseTransaction,
    incarnation: &Incarnation,
    session: &Session,
    writers: u32,
) -> Result<(), DbErr> {
    let backend = begun.get_database_backend();
    let [node, number] = own(incarnation);
    let tables: &[&str] =
        if backend == DbBackend::Postgres { &["lane", "beat"] } else { &["lane"] };
    for table in tables {
        let delete = format!("DELETE FROM {table} WHERE node = ?");
        begun.execute_raw(statement(backend, &delete, [node.clone()])).await?;
    }
    let insert = format!(
        "INSERT INTO lane (node, incarnation, writer, fenced, beat, term, seen_at, session, since) \
         VALUES (?, ?, ?, FALSE, 0, 0, {}, ?, ?)",
        now(backend)
    );
    for writer in 0..writers {
        let (id, since) = match writer {
            0 => (session.id, session.since.as_str()),
            _ => (0, ""),
        };
        let writer = i64::from(writer).into();
        let values = [node.clone(), number.clone(), writer, id.into(), since.into()];
        begun.execute_raw(statement(backend, &insert, values)).await?;
    }
    Ok(())
}

/// The columns that say whose the rows are.
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
