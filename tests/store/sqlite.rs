//! The store in SQLite.

mod disk;
mod files;
mod foreign;
mod killed;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use amphora::store::{BroadcastStore, SeaStore, Store, StoreSettings};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TryGetable};
use tempfile::TempDir;

use crate::bed::*;

async fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = TestClock::new();
    let mut settings = settings(dir.path());
    let hands = clock.clone();
    settings.clock = Arc::new(move || hands.now());
    Bed {
        settings,
        clock,
        open: |settings| {
            Box::pin(async { Ok(Arc::new(SeaStore::open(settings).await?) as Arc<dyn Store>) })
        },
        _keep: Box::new(dir),
    }
}

crate::conformance!(bed);

async fn both() -> crate::broadcast::Both {
    crate::broadcast::Both {
        bed: bed().await,
        open: |settings| {
            Box::pin(async {
                let store = Arc::new(SeaStore::open(settings).await.expect("opens"));
                (store.clone() as Arc<dyn BroadcastStore>, store as Arc<dyn Store>)
            })
        },
    }
}

crate::broadcasts!(both);

fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn file(dir: &Path) -> PathBuf {
    dir.join("amphora.db")
}

/// With a limit that no machine is too slow for.
fn settings(dir: &Path) -> StoreSettings {
    let url = format!("sqlite://{}", file(dir).display());
    StoreSettings { append_limit: Duration::from_secs(600), ..StoreSettings::new(url) }
}

/// The database as another program sees it, on one connection.
async fn raw(dir: &Path) -> DatabaseConnection {
    let mut options = ConnectOptions::new(format!("sqlite://{}", file(dir).display()));
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.expect("connects")
}

async fn execute(database: &DatabaseConnection, sql: &str) {
    database.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The one value that a query has.
async fn value<T: TryGetable>(database: &DatabaseConnection, sql: &str) -> T {
    let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Sqlite, sql);
    let row = database.query_one_raw(statement).await.expect("a row").expect("a row");
    row.try_get_by_index(0).expect("a value")
}

/// Why the store can't be opened: the whole chain of causes.
async fn refusal(settings: StoreSettings) -> String {
    let error = SeaStore::open(settings).await.expect_err("does not open");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
