//! One node at a time brings the tables of a server's database up to date.

use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use tokio::time::{Instant, sleep};

/// How long another may take for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before it is looked again whether he has ended.
const PAUSE: Duration = Duration::from_millis(100);

/// A lock of the session, on this database: it ends with the session at the latest.
fn lock(backend: DbBackend) -> &'static str {
    match backend {
        // "amphora", as a number.
        DbBackend::Postgres => {
            "SELECT CASE WHEN pg_try_advisory_lock(27423402296832609) THEN 1 ELSE 0 END"
        }
        _ => "SELECT CAST(GET_LOCK(CONCAT('amphora ', MD5(DATABASE())), 0) AS SIGNED)",
    }
}

fn unlock(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "SELECT pg_advisory_unlock(27423402296832609)",
        _ => "SELECT RELEASE_LOCK(CONCAT('amphora ', MD5(DATABASE())))",
    }
}

/// Waits until no other node is at the tables. The connection has one session.
pub(super) async fn begin(database: &DatabaseConnection) -> Result<(), DbErr> {
    let backend = database.get_database_backend();
    let end = Instant::now() + PATIENCE;
    loop {
        let row = database.query_one_raw(Statement::from_string(backend, lock(backend))).await?;
        let got = row.map(|row| match backend {
            DbBackend::Postgres => row.try_get_by_index::<i32>(0).map(i64::from),
            _ => row.try_get_by_index::<i64>(0),
        });
        if got.transpose()? == Some(1) {
            return Ok(());
        }
        if Instant::now() >= end {
            let says = "another node has been at the tables for a minute; is it standing still?";
            return Err(DbErr::Custom(says.to_owned()));
        }
        sleep(PAUSE).await;
    }
}

/// Lets the next one.
pub(super) async fn end(database: &DatabaseConnection) -> Result<(), DbErr> {
    let backend = database.get_database_backend();
    database.query_one_raw(Statement::from_string(backend, unlock(backend))).await.map(|_| ())
}
