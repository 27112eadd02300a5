//! All that only SQLite needs: opening it, the statements in its own words, remedies.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{ConnectOptions, Sqlite};
use sea_orm::{DatabaseConnection, DbErr, SqlxSqliteConnector};

use super::fault;
use super::statements::Words;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DatabaseFile {
    pub(super) path: PathBuf,
    /// Whether a missing file is made.
    create: bool,
}

impl DatabaseFile {
    /// Reads what stands behind `sqlite:`, as `//path?mode=rwc`; the error says what would be
    /// right.
    pub(super) fn of(rest: &str) -> Result<Self, String> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path.trim_start_matches('/').is_empty() {
            return Err("it names no file, as sqlite:///var/lib/amphora/amphora.db does".to_owned());
        }
        let mut create = true;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair {
                "mode=rwc" => create = true,
                "mode=rw" => create = false,
                "mode=ro" => {
                    return Err("a store must be written: use mode=rw or mode=rwc".to_owned());
                }
                "mode=memory" => return Err(IN_MEMORY.to_owned()),
                _ => {
                    return Err("of the parameters only mode=rw and mode=rwc are known".to_owned());
                }
            }
        }
        // sqlx undoes the escapes (%20).
        let parsed: SqliteConnectOptions = match format!("sqlite:{path}").parse() {
            Ok(parsed) => parsed,
            Err(_) => return Err("its path is not valid".to_owned()),
        };
        if path == ":memory:" || path == "//:memory:" {
            return Err(IN_MEMORY.to_owned());
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
        .map_err(fault::connecting)?;
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

/// Only a conflict on the key leaves a row out, any other is an error.
pub(super) const WORDS: Words = Words {
    insert: (
        "INSERT INTO offline_message (recipient, id, \"key\", sender, kind, size, stored_at, \
         appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES ",
        " ON CONFLICT (\"key\") DO NOTHING",
    ),
    mark: (
        "INSERT INTO mark (\"key\", met_rule, until) VALUES ",
        " ON CONFLICT (\"key\") DO UPDATE SET met_rule = excluded.met_rule, \
         until = max(until, excluded.until)",
    ),
    find: None,
    // '(recipient, id) IN (VALUES ...)' would scan the whole table; the join looks each pair
    // up.
    delete: (
        "DELETE FROM offline_message WHERE rowid IN (SELECT m.rowid FROM (VALUES ",
        ") AS v CROSS JOIN offline_message AS m ON m.recipient = v.column1 AND m.id = v.column2) \
         RETURNING recipient, id, \"key\", met_rule, appended_at",
    ),
    of_one: None,
    purge_marks: "DELETE FROM mark WHERE until >= ? AND until <= ?",
};

/// What to do about a database that can't be opened.
pub(super) fn remedy_of(code: Option<i32>, path: &Path) -> &'static str {
    match code.map(|code| code & 0xff) {
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

#[cfg(test)]
mod tests {
    use super::super::server::one;
    use super::*;

    /// Each connection says for itself whether it syncs (2: FULL), so this one has to be asked, and
    /// the one that takes its place after an error.
    #[tokio::test]
    async fn what_is_committed_is_synced() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = DatabaseFile::of(&format!("{}/a.db", dir.path().display())).expect("a file");
        let writer = file.connect_writer().await.expect("connects");
        for _ in 0..2 {
            let synced = one(&writer, "PRAGMA synchronous").await.expect("an answer");
            assert_eq!(synced.try_get_by_index::<i64>(0).expect("a number"), 2);
            let journal = one(&writer, "PRAGMA journal_mode").await.expect("an answer");
            assert_eq!(journal.try_get_by_index::<String>(0).expect("a text"), "wal");
            drop_connection(&writer).await;
        }
    }

    #[test]
    fn urls() {
        let file = |url: &str| {
            let rest = url.strip_prefix("sqlite:")?;
            DatabaseFile::of(rest).map(|file| (file.path, file.create)).ok()
        };
        assert_eq!(file("sqlite:///a/b.db?mode=rwc"), Some(("/a/b.db".into(), true)));
        assert_eq!(file("sqlite:///a/b.db"), Some(("/a/b.db".into(), true)));
        assert_eq!(file("sqlite://b.db"), Some(("b.db".into(), true)));
        assert_eq!(file("sqlite:b.db?mode=rw"), Some(("b.db".into(), false)));
        assert_eq!(file("sqlite:/a%20b.db"), Some(("/a b.db".into(), true)));
        for bad in [
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
