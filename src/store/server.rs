//! What the servers have in common: a session that writes, sessions that read.

use std::future::Future;
use std::time::Duration;

use sea_orm::sqlx::{self, Connection};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, QueryResult, Statement};
use tokio::time::timeout;

use super::error::StoreError;
use super::fault::{self, Code};
use super::place::{Kind, Server};
use super::{mysql, postgres, remedy};

/// How long a connection may take to be made.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// How long the server may be silent: longer than any statement of the store takes. After it
/// the connection is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that was not used for so long is asked whether it is still there.
const UNSURE: Duration = Duration::from_secs(1);

/// A session of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Session {
    /// As the server counts them.
    pub(super) id: i64,
    /// Tells it from another of the same number; empty where that can't be.
    pub(super) since: String,
}

/// Why a server can't be used.
pub(super) enum Unfit {
    /// Its version or its settings; the text says which would do.
    Server(String),
    /// It could not be asked.
    Failed(DbErr),
}

impl From<DbErr> for Unfit {
    fn from(error: DbErr) -> Self {
        Unfit::Failed(error)
    }
}

/// A session for writing.
pub(super) struct WriterSession {
    pub(super) database: DatabaseConnection,
    pub(super) session: Session,
}

impl Server {
    /// Connects for writing. The node's own former session may still hold locks, when the
    /// connection was lost and the server has not noticed: that one is ended.
    pub(super) async fn connect_writer(
        &self,
        former: Option<&Session>,
    ) -> Result<WriterSession, DbErr> {
        answered(self.probe()).await?;
        let database = answered(self.writer()).await?;
        if let Some(former) = former {
            answered(self.end(&database, former)).await?;
        }
        let session = answered(self.session(&database)).await?;
        Ok(WriterSession { database, session })
    }

    async fn probe(&self) -> Result<(), DbErr> {
        let probe = async {
            match self.kind {
                Kind::Postgres => postgres::probe(self).await,
                Kind::MySql => mysql::probe(self).await,
            }
        };
        match timeout(CONNECT, probe).await {
            Ok(probed) => probed,
            Err(_) => Err(fault::connecting(sqlx::Error::PoolTimedOut)),
        }
    }

    async fn writer(&self) -> Result<DatabaseConnection, DbErr> {
        match self.kind {
            Kind::Postgres => postgres::writer(self).await,
            Kind::MySql => mysql::writer(self).await,
        }
    }

    /// Sessions that read, made when they are needed.
    pub(super) fn readers(&self, count: u32) -> DatabaseConnection {
        match self.kind {
            Kind::Postgres => postgres::readers(self, count),
            Kind::MySql => mysql::readers(self, count),
        }
    }

    async fn session(&self, database: &DatabaseConnection) -> Result<Session, DbErr> {
        match self.kind {
            Kind::Postgres => postgres::session(database).await,
            Kind::MySql => mysql::session(database).await,
        }
    }

    /// Ends another session of the same user, if it is still there.
    pub(super) async fn end(
        &self,
        database: &DatabaseConnection,
        former: &Session,
    ) -> Result<(), DbErr> {
        match self.kind {
            Kind::Postgres => postgres::end(database, former).await,
            Kind::MySql => mysql::end(database, former).await,
        }
    }

    /// Refuses a server that can't hold the store; warns of one that may lose what it holds.
    pub(super) async fn check(
        &self,
        url: &str,
        database: &DatabaseConnection,
    ) -> Result<(), StoreError> {
        let checked = match self.kind {
            Kind::Postgres => postgres::check(database).await,
            Kind::MySql => mysql::check(database).await,
        };
        match checked {
            Ok(warnings) => {
                for warning in warnings {
                    tracing::warn!("the database '{url}' is not durable: {warning}");
                }
                Ok(())
            }
            Err(Unfit::Server(reason)) => Err(StoreError::Unfit { url: url.to_owned(), reason }),
            Err(Unfit::Failed(source)) => {
                Err(StoreError::Open { url: url.to_owned(), remedy: remedy_of(&source), source })
            }
        }
    }
}

/// What to do about a database that can't be opened.
pub(super) fn remedy_of(error: &DbErr) -> &'static str {
    match fault::code(error) {
        Some(Code::Postgres(code)) => postgres::remedy_of(&code),
        Some(Code::MySql(code)) => mysql::remedy_of(code),
        _ => match fault::sqlx_error(error) {
            Some(sqlx::Error::Io(error)) => remedy::of_connecting(error),
            Some(sqlx::Error::PoolTimedOut) => {
                "nothing answers there: check host and port, and what stands between"
            }
            Some(sqlx::Error::Tls(_)) => {
                "there is no TLS with it: check its certificate, sslmode and sslrootcert"
            }
            _ => "see the cause",
        },
    }
}

/// Gives a server up that is silent for too long.
pub(super) async fn answered<T>(work: impl Future<Output = Result<T, DbErr>>) -> Result<T, DbErr> {
    match timeout(PATIENCE, work).await {
        Ok(answer) => answer,
        Err(_) => Err(silent()),
    }
}

const SILENT: &str = "the database does not answer";

/// What is said of a server that does not answer in time.
pub(super) fn silent() -> DbErr {
    DbErr::Custom(SILENT.to_owned())
}

/// Whether that was said.
pub(super) fn is_silent(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(text) if text == SILENT)
}

/// Closes a session, whatever state it is in.
pub(super) async fn let_go(database: DatabaseConnection) {
    // What it says at its end, and whether it says anything, changes nothing.
    let _ = timeout(Duration::from_millis(500), database.close()).await;
}

/// Whether a connection that lay idle can be used.
pub(super) async fn still_there<C: Connection>(
    connection: &mut C,
    idle_for: Duration,
) -> Result<bool, sqlx::Error> {
    Ok(idle_for < UNSURE || connection.ping().await.is_ok())
}

/// The one row of a question that has no parameters.
pub(super) async fn one(
    database: &DatabaseConnection,
    question: &str,
) -> Result<QueryResult, DbErr> {
    let statement = Statement::from_string(database.get_database_backend(), question);
    let row = database.query_one_raw(statement).await?;
    row.ok_or_else(|| DbErr::RecordNotFound("an answer of one row".to_owned()))
}
