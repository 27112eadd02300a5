//! The one connection that writes, and what is durable through it.

use std::time::{Duration, Instant};

use entities::epoch;
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, EntityTrait,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};

use super::job::Outcome;
use super::metrics;
use super::queue::Task;
use super::settings::Clock;
use super::sqlite::{self, Texts};
use super::transaction::Transaction;

/// Begins and commits transactions. Each raises the beat, so that one whose commit was not
/// answered can be asked about.
pub(super) struct Writer {
    database: DatabaseConnection,
    texts: Texts,
    clock: Clock,
    memory: Duration,
    epoch: u32,
    /// The beat of the last transaction that is known to be committed.
    beat: i64,
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

impl Writer {
    /// For a database whose epoch was just raised.
    pub(super) fn new(
        database: DatabaseConnection,
        epoch: u32,
        clock: Clock,
        memory: Duration,
    ) -> Self {
        Writer { database, texts: Texts::new(), clock, memory, epoch, beat: 0 }
    }

    /// How many transactions are known to be committed.
    pub(super) fn committed(&self) -> i64 {
        self.beat
    }

    /// Takes the right to write.
    pub(super) async fn begin(&self) -> Result<DatabaseTransaction, DbErr> {
        let options = TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        };
        self.database.begin_with_options(options).await
    }

    /// Carries out the batch and commits it.
    pub(super) async fn commit(&mut self, begun: DatabaseTransaction, batch: &[&Task]) -> End {
        let began = Instant::now();
        let outcomes = match self.carry_out(&begun, batch).await {
            Ok(outcomes) => outcomes,
            Err(error) => {
                // If this fails too, the connection is closed, and that rolls back.
                let _ = begun.rollback().await;
                return End::Failed(error);
            }
        };
        match begun.commit().await {
            Ok(()) => {
                self.beat += 1;
                metrics::committed(batch.len(), began.elapsed());
                End::Committed(outcomes)
            }
            Err(error) => End::Unknown(outcomes, error),
        }
    }

    async fn carry_out(
        &self,
        begun: &DatabaseTransaction,
        batch: &[&Task],
    ) -> Result<Vec<Outcome>, DbErr> {
        self.raise_beat(begun).await?;
        let (texts, now, memory) = (&self.texts, (self.clock)(), self.memory);
        Transaction { connection: begun, texts, now, memory }.carry_out(batch).await
    }

    /// Fails if another process has raised the epoch, lock file or not.
    async fn raise_beat(&self, begun: &DatabaseTransaction) -> Result<(), DbErr> {
        let values = [self.beat.into(), i64::from(self.epoch).into()];
        let backend = begun.get_database_backend();
        let raise = Statement::from_sql_and_values(backend, sqlite::RAISE_BEAT, values);
        match begun.execute_raw(raise).await?.rows_affected() {
            1 => Ok(()),
            _ => Err(DbErr::Custom("another process has taken the database over".to_owned())),
        }
    }

    /// Whether the transaction was committed whose end is unknown.
    pub(super) async fn settle(&mut self) -> Result<bool, DbErr> {
        self.renew().await;
        let row = epoch::Entity::find().one(&self.database).await?;
        let beat = row.filter(|row| row.value == i64::from(self.epoch)).map(|row| row.beat);
        match beat {
            Some(beat) if beat == self.beat + 1 => {
                self.beat = beat;
                Ok(true)
            }
            Some(beat) if beat == self.beat => Ok(false),
            _ => Err(DbErr::Custom("another process has taken the database over".to_owned())),
        }
    }

    /// Begins anew with a fresh connection, after an error.
    pub(super) async fn renew(&self) {
        sqlite::drop_connection(&self.database).await;
    }

    /// Leaves the database tidy, and lets it go.
    pub(super) async fn close(self) {
        if let Err(error) = self.database.execute_unprepared(sqlite::CHECKPOINT).await {
            tracing::warn!(%error, "cannot write the log into the database; the next start will");
        }
        if let Err(error) = self.database.close().await {
            tracing::warn!(%error, "cannot close the database");
        }
    }
}
