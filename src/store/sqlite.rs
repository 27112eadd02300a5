//! All that only SQLite needs: opening it, the statements in its own words, its error codes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, ConnectOptions, Sqlite};
use sea_orm::{DatabaseConnection, DbErr, RuntimeErr, SqlxSqliteConnector};

use super::error::StoreError;
use super::remedy;

/// How long a statement waits for a lock that another program holds. Short: the committer
/// asks again, and meanwhile answers appends that have waited too long.
const BUSY_TIMEOUT: Duration = Duration::from_millis(200);

/// Pages of the log after which it is written into the database: 80 MiB. Rare, because each
/// time the pages that changed most often are written once only.
const CHECKPOINT_PAGES: &str = "20000";

/// KiB of pages that the writer keeps in memory, as SQLite writes it.
const WRITER_CACHE: &str = "-131072";

/// The same for each reader.
const READER_CACHE: &str = "-16384";

/// A database file, as a URL names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DatabaseFile {
    pub(super) path: PathBuf,
    /// Whether a missing file is made.
    create: bool,
}

impl DatabaseFile {
    /// Reads `sqlite://path?mode=rwc` and `sqlite:path`.
    pub(super) fn of(url: &str) -> Result<Self, StoreError> {
        let bad =
            |reason: &str| StoreError::Url { url: remedy::shown(url), reason: reason.to_owned() };
        let rest = url.strip_prefix("sqlite:").ok_or_else(|| {
            bad("it does not begin with 'sqlite:', as in sqlite:///var/lib/amphora/amphora.db")
        })?;
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.trim_start_matches('/').is_empty() {
            return Err(bad("it names no file, as sqlite:///var/lib/amphora/amphora.db does"));
        }
        let mut create = true;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair {
                "mode=rwc" => create = true,
                "mode=rw" => create = false,
                "mode=ro" => return Err(bad("a store must be written: use mode=rw or mode=rwc")),
                "mode=memory" => return Err(bad(IN_MEMORY)),
                _ => return Err(bad("of the parameters only mode=rw and mode=rwc are known")),
            }
        }
        // sqlx undoes the escapes (%20).
        let parsed: SqliteConnectOptions = match format!("sqlite:{path}").parse() {
            Ok(parsed) => parsed,
            Err(_) => return Err(bad("its path is not valid")),
        };
        if path == ":memory:" || path == "//:memory:" {
            return Err(bad(IN_MEMORY));
        }
        Ok(DatabaseFile { path: parsed.get_filename().to_owned(), create })
    }

    fn options(&self, cache: &'static str) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(self.create)
            .busy_timeout(BUSY_TIMEOUT)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("cache_size", cache)
            // No mmap: it was no faster, and an unreadable disk would end the process.
            .disable_statement_logging()
    }

    /// The connection that writes.
    pub(super) async fn connect_writer(&self) -> Result<DatabaseConnection, DbErr> {
        connect(self.options(WRITER_CACHE), 1).await
    }

    /// Connections that read, made when they are needed.
    pub(super) async fn connect_readers(&self, count: u32) -> Result<DatabaseConnection, DbErr> {
        connect(self.options(READER_CACHE).pragma("query_only", "on"), count.max(1)).await
    }
}

/// The file of the database that a URL names.
///
/// # Errors
///
/// [`StoreError::Url`].
pub fn database_path(url: &str) -> Result<PathBuf, StoreError> {
    Ok(DatabaseFile::of(url)?.path)
}

const IN_MEMORY: &str = "a database in memory would lose messages: name a file";

async fn connect(options: SqliteConnectOptions, most: u32) -> Result<DatabaseConnection, DbErr> {
    let pool = PoolOptions::<Sqlite>::new()
        .max_connections(most)
        .idle_timeout(None)
        .max_lifetime(None)
        // A file does not go away as a server does; a connection that fails is dropped.
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|error| DbErr::Conn(RuntimeErr::SqlxError(error.into())))?;
    Ok(SqlxSqliteConnector::from_sqlx_sqlite_pool(pool))
}

/// Closes the one connection of the writer, whatever state it is in. The next use opens a
/// new one.
pub(super) async fn drop_connection(writer: &DatabaseConnection) {
    if let Ok(connection) = writer.get_sqlite_connection_pool().acquire().await {
        // What a broken connection says at its end changes nothing.
        let _ = connection.close().await;
    }
}

/// Writes the log into the database, as far as readers let it.
pub(super) const CHECKPOINT: &str = "PRAGMA wal_checkpoint(TRUNCATE)";

/// Raises the beat after the first parameter, in the epoch of the second.
pub(super) const RAISE_BEAT: &str = "UPDATE epoch SET beat = beat + 1 WHERE beat = ? AND value = ?";

/// Statements of many rows, written out for a few fixed numbers of rows. Their texts stay the
/// same, so that SQLite prepares each once; building them anew cost more than the insert.
pub(super) struct Texts(Vec<Text>);

struct Text {
    rows: usize,
    insert: String,
    mark: String,
    delete: String,
}

impl Texts {
    /// Numbers of rows. Beyond the largest more rows a statement gain nothing; between them,
    /// few statements make up any number.
    const ROWS: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

    pub(super) fn new() -> Self {
        Texts(Self::ROWS.map(Text::new).into())
    }

    /// The statement that inserts the most of `rows`, and how many it takes. Only a conflict
    /// on the key leaves a row out, any other is an error.
    pub(super) fn insert(&self, rows: usize) -> (&str, usize) {
        let text = self.at_most(rows);
        (&text.insert, text.rows)
    }

    /// The same for marks.
    pub(super) fn mark(&self, rows: usize) -> (&str, usize) {
        let text = self.at_most(rows);
        (&text.mark, text.rows)
    }

    /// The statement that deletes the most of `pairs` (recipient, id) and tells what was there.
    pub(super) fn delete(&self, pairs: usize) -> (&str, usize) {
        let text = self.at_most(pairs);
        (&text.delete, text.rows)
    }

    fn at_most(&self, rows: usize) -> &Text {
        let last = self.0.len() - 1;
        self.0.iter().find(|text| text.rows <= rows).unwrap_or(&self.0[last])
    }
}

impl Text {
    fn new(rows: usize) -> Self {
        Text {
            rows,
            insert: format!(
                "INSERT INTO offline_message (recipient, id, \"key\", sender, kind, size, stored_at, \
                 appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES {} \
                 ON CONFLICT (\"key\") DO NOTHING",
                tuples(rows, 13)
            ),
            mark: format!(
                "INSERT INTO mark (\"key\", met_rule, until) VALUES {} ON CONFLICT (\"key\") \
                 DO UPDATE SET met_rule = excluded.met_rule, until = max(until, excluded.until)",
                tuples(rows, 3)
            ),
            // '(recipient, id) IN (VALUES ...)' would scan the whole table; the join looks
            // each pair up.
            delete: format!(
                "DELETE FROM offline_message WHERE rowid IN (SELECT m.rowid FROM (VALUES {}) AS v \
                 CROSS JOIN offline_message AS m ON m.recipient = v.column1 AND m.id = v.column2) \
                 RETURNING recipient, id, \"key\", met_rule, appended_at",
                tuples(rows, 2)
            ),
        }
    }
}

fn tuples(rows: usize, columns: usize) -> String {
    let tuple = format!("({})", vec!["?"; columns].join(","));
    vec![tuple; rows].join(",")
}

/// What an error says about the rows of the statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// One of them can't be stored, now or later.
    Row,
    /// A part of the database that one of them needs is damaged.
    Damage,
    /// Nothing: another program holds a lock.
    Busy,
    /// Nothing: the database is full, or away, or failed.
    Other,
}

/// The primary result code of SQLite: https://sqlite.org/rescode.html
fn code(error: &DbErr) -> Option<i32> {
    let (DbErr::Conn(RuntimeErr::SqlxError(error))
    | DbErr::Exec(RuntimeErr::SqlxError(error))
    | DbErr::Query(RuntimeErr::SqlxError(error))) = error
    else {
        return None;
    };
    let code = error.as_database_error()?.code()?;
    code.parse::<i32>().ok().map(|extended| extended & 0xff)
}

pub(super) fn fault(error: &DbErr) -> Fault {
    match code(error) {
        // TOOBIG, CONSTRAINT, MISMATCH
        Some(18..=20) => Fault::Row,
        // CORRUPT
        Some(11) => Fault::Damage,
        // BUSY, LOCKED
        Some(5 | 6) => Fault::Busy,
        _ => Fault::Other,
    }
}

/// What to do about a database that can't be opened.
pub(super) fn remedy_of(error: &DbErr, path: &Path) -> &'static str {
    match code(error) {
        Some(3 | 23) => "let the user that amphora runs as read and write it and its directory",
        Some(5 | 6) => "another program holds it locked: end that program",
        Some(8) => "it is read-only: let the user that amphora runs as write it and its directory",
        Some(11) => "it is damaged: restore a backup, or move it away to begin a new one",
        Some(13) => "the disk is full: make room",
        Some(14) if path.is_dir() => "it is a directory: name a file",
        Some(14) => "make its directory, or let the user that amphora runs as write there",
        Some(26) => "it is no SQLite database, or damaged: move it away, or change the url",
        _ => "see the cause",
    }
}

/// Whether an error says that the connections were closed.
pub(super) fn is_closed(error: &DbErr) -> bool {
    let closed = |error: &sqlx::Error| matches!(error, sqlx::Error::PoolClosed);
    match error {
        DbErr::ConnectionAcquire(sea_orm::ConnAcquireErr::ConnectionClosed) => true,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => closed(error),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let file = |url: &str| DatabaseFile::of(url).map(|file| (file.path, file.create)).ok();
        assert_eq!(file("sqlite:///a/b.db?mode=rwc"), Some(("/a/b.db".into(), true)));
        assert_eq!(file("sqlite:///a/b.db"), Some(("/a/b.db".into(), true)));
        assert_eq!(file("sqlite://b.db"), Some(("b.db".into(), true)));
        assert_eq!(file("sqlite:b.db?mode=rw"), Some(("b.db".into(), false)));
        assert_eq!(file("sqlite:/a%20b.db"), Some(("/a b.db".into(), true)));
        for bad in [
            "postgres://h/db",
            "/a/b.db",
            "sqlite:",
            "sqlite://",
            "sqlite:///",
            "sqlite::memory:",
            "sqlite://:memory:",
            "sqlite://b?mode=memory",
            "sqlite:b.db?mode=ro",
            "sqlite:b.db?cache=shared",
        ] {
            assert_eq!(file(bad), None, "{bad}");
        }
    }
}
