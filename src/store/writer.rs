//! A connection that writes, and what is durable through it.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entities::epoch;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, EntityTrait,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};

use super::fault::{self, Fault};
use super::held::{Held, HeldNow};
use super::job::Outcome;
use super::lane::{self, Beat, Lane};
use super::metrics::Metrics;
use super::moves::{Move, Moved};
use super::ownership::MoveError;
use super::place::Server;
use super::queue::Task;
use super::server::{self, Session, WriterSession};
use super::settings::Clock;
use super::sqlite;
use super::statements::Statements;
use super::transaction::Transaction;
use crate::words::MessageId;

/// Begins and commits transactions. Each raises the beat, so that one whose commit was not
/// answered can be asked about.
pub(super) struct Writer {
    /// None: it was lost, and the next transaction makes a new one.
    database: Option<DatabaseConnection>,
    /// Where to connect again, and the right to write; none: a file, whose connection makes
    /// itself anew, and which has a lock beside it.
    server: Option<OnServer>,
    /// Another process has taken the right to write.
    fenced: bool,
    statements: Statements,
    clock: Clock,
    memory: Duration,
    metrics: Metrics,
    epoch: u32,
    /// What this process may write, as far as it knows.
    held: Arc<HeldNow>,
    /// The beat of the last transaction that is known to be committed.
    beat: i64,
    /// See [`Transaction::removed_to`]; of the removal that was tried last.
    removed_to: Cell<Option<MessageId>>,
}

/// What a writer needs on a server.
pub(super) struct OnServer {
    pub(super) server: Server,
    pub(super) lane: Lane,
    pub(super) session: Session,
}

/// How a transaction ended.
pub(super) enum End {
    /// Committed, with these outcomes.
    Committed(Vec<Outcome>),
    /// Not committed.
    Failed(DbErr),
    /// The commit failed, or was not answered; [`Writer::settle`] finds out. The outcomes, if
    /// it was committed.
    Unknown(Vec<Outcome>, DbErr),
}

/// How a move ended.
pub(super) enum MoveEnd {
    /// Committed.
    Done,
    /// Not done, for good.
    Not(MoveError),
    /// Not done, for the database failed.
    Failed(DbErr),
    /// As [`End::Unknown`]. What is held if it was committed.
    Unknown(Held, DbErr),
}

impl Writer {
    /// For a database whose epoch was just raised.
    pub(super) fn new(
        database: DatabaseConnection,
        server: Option<OnServer>,
        epoch: u32,
        held: Arc<HeldNow>,
        clock: Clock,
        memory: Duration,
        metrics: Metrics,
    ) -> Self {
        let statements = Statements::of(database.get_database_backend());
        let database = Some(database);
        Writer {
            database,
            server,
            fenced: false,
            statements,
            clock,
            memory,
            metrics,
            epoch,
            held,
            beat: 0,
            removed_to: Cell::new(None),
        }
    }

    /// One more on the same server, with a connection of its own, which is not there yet.
    pub(super) fn another(&self, number: u32) -> Option<Writer> {
        let (on, database) = (self.server.as_ref()?, self.database.as_ref()?);
        let (backend, incarnation) = (database.get_database_backend(), on.lane.incarnation.clone());
        let session = Session { id: 0, since: String::new() };
        let lane = Lane::new(backend, incarnation, number);
        Some(Writer {
            database: None,
            server: Some(OnServer { server: on.server.clone(), lane, session }),
            fenced: false,
            statements: Statements::of(backend),
            clock: self.clock.clone(),
            memory: self.memory,
            metrics: self.metrics.clone(),
            epoch: self.epoch,
            held: self.held.clone(),
            beat: 0,
            removed_to: Cell::new(None),
        })
    }

    /// Makes the connection, if it is not there.
    pub(super) async fn connect(&mut self) -> Result<(), DbErr> {
        self.connected().await.map(|_| ())
    }

    /// How many transactions are known to be committed.
    pub(super) fn committed(&self) -> i64 {
        self.beat
    }

    /// Where the step of the removal of an account ended that was committed last; none: nothing of it
    /// is left.
    pub(super) fn removed_to(&self) -> Option<MessageId> {
        self.removed_to.get()
    }

    /// Takes the right to write.
    pub(super) async fn begin(&mut self) -> Result<DatabaseTransaction, DbErr> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        let limited = self.server.is_some();
        let database = self.connected().await?;
        match limited {
            true => server::answered(database.begin_with_options(options)).await,
            false => database.begin_with_options(options).await,
        }
    }

    async fn connected(&mut self) -> Result<&DatabaseConnection, DbErr> {
        if self.database.is_none()
            && let Some(on) = &mut self.server
        {
            let WriterSession { database, session } =
                on.server.connect_writer(Some(&on.session)).await?;
            on.session = session;
            if !server::answered(on.lane.enter(&database, &on.session)).await? {
                self.fenced = true;
                server::let_go(database).await;
                return Err(taken_over());
            }
            self.database = Some(database);
        }
        self.database.as_ref().ok_or_else(|| DbErr::Custom("the store is closed".to_owned()))
    }

    /// Whether another process has taken the right to write, for good.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// How often there must be a transaction, needed or not; none: never.
    pub(super) fn heartbeat(&self) -> Option<Duration> {
        self.server.as_ref().map(|_| lane::BEAT)
    }

    /// Carries out the batch and commits it.
    pub(super) async fn commit(&mut self, begun: DatabaseTransaction, batch: &[&Task]) -> End {
        let began = Instant::now();
        let (begun, outcomes) = match self.carry_out(begun, batch).await {
            Ok(done) => done,
            Err(error) => return End::Failed(error),
        };
        match self.answered(begun.commit()).await {
            Ok(()) => {
                self.beat += 1;
                self.metrics.committed(batch.len(), began.elapsed());
                End::Committed(outcomes)
            }
            Err(error) => End::Unknown(outcomes, error),
        }
    }

    /// An error: it is rolled back.
    async fn carry_out(
        &mut self,
        mut begun: DatabaseTransaction,
        batch: &[&Task],
    ) -> Result<(DatabaseTransaction, Vec<Outcome>), DbErr> {
        // Where one statement that fails takes the transaction with it, savepoints are needed
        // to find the row, and cost too much to be set always.
        let fragile = begun.get_database_backend() == DbBackend::Postgres;
        let mut goes_on = !fragile;
        loop {
            let held = self.held.get();
            match self.answered(self.try_out(&begun, batch, &held, goes_on)).await {
                Ok(Some(outcomes)) => return Ok((begun, outcomes)),
                Ok(None) => {
                    self.roll_back(begun).await;
                    self.look_again(&held).await?;
                }
                Err(error) => {
                    self.roll_back(begun).await;
                    if goes_on || fault::fault(&error) != Fault::Row {
                        return Err(error);
                    }
                    goes_on = true;
                }
            }
            begun = self.begin().await?;
        }
    }

    async fn roll_back(&self, begun: DatabaseTransaction) {
        // If this fails too, the connection is closed, and that rolls back.
        let _ = self.answered(begun.rollback()).await;
    }

    /// None: this process may not write, or not what it took for its own.
    async fn try_out(
        &self,
        begun: &DatabaseTransaction,
        batch: &[&Task],
        held: &Held,
        goes_on: bool,
    ) -> Result<Option<Vec<Outcome>>, DbErr> {
        if !self.raise_beat(begun, held).await? {
            return Ok(None);
        }
        let (statements, now, memory) = (&self.statements, (self.clock)(), self.memory);
        let (connection, removed_to) = (begun, &self.removed_to);
        let transaction = Transaction { connection, statements, now, memory, goes_on, removed_to };
        let own = |task: &Task| held.has(task.recipient());
        if batch.iter().all(|task| own(task)) {
            return transaction.carry_out(batch).await.map(Some);
        }
        let part: Vec<&Task> = batch.iter().copied().filter(|task| own(task)).collect();
        let mut outcomes = transaction.carry_out(&part).await?.into_iter();
        let outcome = |task: &&Task| match own(task) {
            true => outcomes.next().unwrap_or(Outcome::Retry),
            false => Outcome::NotMine,
        };
        Ok(Some(batch.iter().map(outcome).collect()))
    }

    /// False: another process has taken the right to write, or what is held is not that.
    async fn raise_beat(&self, begun: &DatabaseTransaction, held: &Held) -> Result<bool, DbErr> {
        if let Some(on) = &self.server {
            return on.lane.raise(begun, &Beat { beat: self.beat, term: held.term }).await;
        }
        let values = [self.beat.into(), i64::from(self.epoch).into()];
        let backend = begun.get_database_backend();
        let raise = Statement::from_sql_and_values(backend, sqlite::RAISE_BEAT, values);
        Ok(begun.execute_raw(raise).await?.rows_affected() == 1)
    }

    /// Learns what is held, when it is not what it was; an error if that is not why the lane could
    /// not be raised.
    async fn look_again(&mut self, known: &Held) -> Result<(), DbErr> {
        let (Some(on), Some(database)) = (&self.server, &self.database) else {
            return Err(taken_over());
        };
        let look = lane::held(database, &on.lane.incarnation, known.shards());
        match server::answered(look).await? {
            Some(held) if held.term > known.term => {
                tracing::info!(term = held.term, "shards have moved");
                self.held.learn(held);
                Ok(())
            }
            Some(held) if held.term < known.term => {
                // Others know of them, too. Whoever starts anew goes by what is there.
                tracing::error!(
                    "the database has lost what it had committed, moves of shards with it"
                );
                self.fenced = true;
                Err(taken_over())
            }
            Some(_) => match server::answered(on.lane.last_beat(database, self.beat)).await? {
                Some(beat) if beat < self.beat => {
                    self.went_back(beat);
                    Ok(())
                }
                // It may be the session only; a new one will tell.
                _ => Err(taken_over()),
            },
            None => {
                self.fenced = true;
                Err(taken_over())
            }
        }
    }

    /// The server has lost what it had committed: after a crash that its settings do not outlive, or
    /// on a replica that had not got all. The right to write is the same.
    fn went_back(&mut self, beat: i64) {
        let transactions = self.beat - beat;
        tracing::error!(transactions, "the database has lost what it had committed");
        self.beat = beat;
    }

    /// Moves shards, in a transaction of its own.
    pub(super) async fn move_shards(&mut self, what: &Move) -> MoveEnd {
        loop {
            let held = self.held.get();
            let begun = match self.begin().await {
                Ok(begun) => begun,
                Err(error) => return MoveEnd::Failed(error),
            };
            let Some(on) = &self.server else {
                return MoveEnd::Not(MoveError::Alone);
            };
            let beat = Beat { beat: self.beat, term: held.term };
            match self.answered(what.carry_out(&begun, &on.lane, &beat)).await {
                Ok(Moved::Yes(epoch)) => {
                    let next = held.with(held.term + 1, what.changes(epoch));
                    return match self.answered(begun.commit()).await {
                        Ok(()) => {
                            self.moved(next);
                            self.beat += 1;
                            MoveEnd::Done
                        }
                        Err(error) => MoveEnd::Unknown(next, error),
                    };
                }
                Ok(Moved::No(error)) => {
                    self.roll_back(begun).await;
                    return MoveEnd::Not(error);
                }
                Ok(Moved::Stale) => {
                    self.roll_back(begun).await;
                    if let Err(error) = self.look_again(&held).await {
                        return MoveEnd::Failed(error);
                    }
                }
                Err(error) => {
                    self.roll_back(begun).await;
                    return MoveEnd::Failed(error);
                }
            }
        }
    }

    /// What is held after a move that is known to be committed.
    pub(super) fn moved(&self, held: Held) {
        self.held.learn(held);
    }

    /// Ends the sessions that a move may end because they are in its way: of those that it fences,
    /// and of those that stand still, perhaps within a move of their own.
    pub(super) async fn clear_the_way(&self, what: &Move) -> Result<(), DbErr> {
        let (Some(on), Some(database)) = (&self.server, &self.database) else {
            return Ok(());
        };
        for found in server::answered(lane::all(database)).await? {
            let fenced = found.incarnation().is_some_and(|incarnation| what.fences(&incarnation));
            if !found.fenced && found.session != on.session && (fenced || !found.is_seen()) {
                server::answered(on.server.end(database, &found.session)).await?;
            }
        }
        Ok(())
    }

    /// Whether the transaction was committed whose end is unknown. On a server this waits until
    /// that transaction has ended, which holds the row.
    pub(super) async fn settle(&mut self) -> Result<bool, DbErr> {
        self.renew().await;
        let epoch = i64::from(self.epoch);
        self.connected().await?;
        let Some(database) = &self.database else {
            return Err(taken_over());
        };
        let last = match &self.server {
            Some(on) => server::answered(on.lane.last_beat(database, self.beat)).await?,
            None => {
                let row = epoch::Entity::find().one(database).await?;
                row.filter(|row| row.value == epoch).map(|row| row.beat)
            }
        };
        match last {
            Some(found) if found < self.beat => {
                self.went_back(found);
                Ok(false)
            }
            Some(found) if found <= self.beat + 1 => {
                let committed = found > self.beat;
                self.beat = found;
                Ok(committed)
            }
            _ => {
                self.fenced = self.server.is_some();
                Err(taken_over())
            }
        }
    }

    /// Begins anew with a fresh connection, after an error.
    pub(super) async fn renew(&mut self) {
        match (&self.server, &self.database) {
            (None, Some(database)) => sqlite::drop_connection(database).await,
            (None, None) => {}
            (Some(_), _) => {
                if let Some(database) = self.database.take() {
                    server::let_go(database).await;
                }
            }
        }
    }

    /// Leaves the database tidy, and lets it go.
    pub(super) async fn close(mut self) {
        let Some(database) = self.database.take() else {
            return;
        };
        if let Some(on) = &self.server {
            if !self.fenced
                && let Err(error) = self.answered(on.lane.leave(&database)).await
            {
                tracing::warn!(%error, "cannot give the database up; another node has to wait");
            }
            return server::let_go(database).await;
        }
        if let Err(error) = database.execute_unprepared(sqlite::CHECKPOINT).await {
            tracing::warn!(%error, "cannot write the log into the database; the next start will");
        }
        if let Err(error) = database.close().await {
            tracing::warn!(%error, "cannot close the database");
        }
    }

    /// A server that is silent for too long is given up; a file is waited for.
    async fn answered<T>(&self, work: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
        match &self.server {
            Some(_) => server::answered(work).await,
            None => work.await,
        }
    }
}

fn taken_over() -> DbErr {
    DbErr::Custom("another process has taken the database over".to_owned())
}

#[cfg(test)]
mod tests;
