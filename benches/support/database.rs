//! A database for a run: empty, with the store's tables.

use std::time::{Duration, Instant};

use amphora::store::{SeaStore, Store, StoreSettings};
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{Connection, MySqlConnection, PgConnection, SqliteConnection};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use tempfile::TempDir;

/// Transactions of MariaDB whose removed rows are still there.
const UNCLEARED: &str = "SELECT CAST(variable_value AS SIGNED) FROM information_schema.global_status \
                         WHERE variable_name = 'INNODB_HISTORY_LIST_LENGTH'";

/// How long that is waited for.
const CLEARED_BY: Duration = Duration::from_secs(300);

/// An empty database with the store's tables.
pub struct Place {
    pub url: String,
    _dir: Option<TempDir>,
}

/// A bare connection to one of the three.
pub enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

impl Place {
    /// The database of the URL, emptied; without one a new file of SQLite.
    pub async fn new(url: Option<&str>) -> Self {
        let (url, dir) = match url {
            Some(url) => (url.to_owned(), None),
            None => {
                let dir = tempfile::tempdir().expect("a temporary folder");
                (format!("sqlite://{}/amphora.db", dir.path().display()), Some(dir))
            }
        };
        SeaStore::open(StoreSettings::new(&url)).await.expect("opens").close().await;
        let place = Place { url, _dir: dir };
        let database = place.database().await;
        for table in ["offline_message", "mark"] {
            let empty = match place.is_file() {
                true => format!("DELETE FROM {table}"),
                false => format!("TRUNCATE TABLE {table}"),
            };
            database.execute_unprepared(&empty).await.expect("empties");
        }
        database.close().await.expect("closes");
        place
    }

    /// The database of the URL, as another run has left it. (Only `load.rs` asks for it.)
    #[allow(dead_code)]
    pub fn left_by_another(url: &str) -> Self {
        Place { url: url.to_owned(), _dir: None }
    }

    fn is_file(&self) -> bool {
        self.url.starts_with("sqlite")
    }

    /// The name of the database in tables of figures.
    pub fn name(&self) -> &'static str {
        match self.url.split(':').next() {
            Some("postgres") => "PostgreSQL",
            Some("mysql" | "mariadb") => "MariaDB",
            _ => "SQLite",
        }
    }

    /// As the driver spells it.
    pub fn driver_url(&self) -> String {
        match self.url.starts_with("mysql") {
            true => self.url.replace("sslmode=disable", "ssl-mode=disabled"),
            false => self.url.clone(),
        }
    }

    /// The database through sea-orm.
    pub async fn database(&self) -> DatabaseConnection {
        Database::connect(self.driver_url()).await.expect("connects")
    }

    /// A connection set as the store's is.
    pub async fn connect(&self) -> Raw {
        let url = self.driver_url();
        if url.starts_with("postgres") {
            return Raw::Postgres(PgConnection::connect(&url).await.expect("connects"));
        }
        if url.starts_with("mysql") {
            return Raw::MySql(MySqlConnection::connect(&url).await.expect("connects"));
        }
        let options: SqliteConnectOptions = url.parse().expect("a url");
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "20000")
            .pragma("cache_size", "-131072");
        Raw::Sqlite(SqliteConnection::connect_with(&options).await.expect("connects"))
    }

    /// Brings the statistics up to date and waits until removed rows are cleared away, as a server
    /// does by itself in time.
    pub async fn settle(&self) {
        let words = match self.url.split(':').next() {
            Some("postgres") => "VACUUM ANALYZE offline_message",
            Some("mysql") => "ANALYZE TABLE offline_message",
            _ => "PRAGMA wal_checkpoint(TRUNCATE)",
        };
        let database = self.database().await;
        database.execute_unprepared(words).await.expect("settles");
        database.close().await.expect("closes");
        if self.url.starts_with("mysql") {
            let ends = Instant::now() + CLEARED_BY;
            while self.number(UNCLEARED).await > 10 && Instant::now() < ends {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    /// Bytes of the table of messages with its indexes; of a file all of it, with its log.
    pub async fn size(&self) -> u64 {
        if let Some(path) = self.url.strip_prefix("sqlite://") {
            let of = |path: String| std::fs::metadata(path).map_or(0, |file| file.len());
            return of(path.to_owned()) + of(format!("{path}-wal"));
        }
        let size = match self.url.starts_with("postgres") {
            true => "SELECT pg_total_relation_size('offline_message')",
            false => {
                "SELECT CAST(FILE_SIZE AS SIGNED) FROM information_schema.INNODB_SYS_TABLESPACES \
                 WHERE NAME = CONCAT(DATABASE(), '/offline_message')"
            }
        };
        self.number(size).await.unsigned_abs()
    }

    /// The number that answers a question.
    pub async fn number(&self, question: &str) -> i64 {
        let database = self.database().await;
        let statement =
            sea_orm::Statement::from_string(database.get_database_backend(), question.to_owned());
        let row = database.query_one_raw(statement).await.expect("answers").expect("a row");
        let number = row.try_get_by_index(0).expect("a number");
        database.close().await.expect("closes");
        number
    }
}
