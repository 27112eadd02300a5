//! All that only MySQL and MariaDB need: opening them, the statements in their own words,
//! remedies.

use sea_orm::sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};
use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::{ConnectOptions, Connection, MySql, MySqlConnection};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr, SqlxMySqlConnector};

use super::fault::{self, Code};
use super::nodelay;
use super::place::{Server, Tls};
use super::server::{self, Session, Unfit};
use super::statements::{OfOne, Words};

/// Bytes of a statement: those of a transaction's stanzas (8 MiB), and as much again for the
/// other columns and the frame.
const PACKET: i64 = 16 * 1024 * 1024;

/// The settings of the session that writes. `READ COMMITTED`: a batch looks rows up that
/// nobody else writes, and locks no gaps. Strict: nothing is cut off to fit. Sorted by the whole of
/// a JID, and not by its first 1,024 bytes.
const WRITER: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
                      SESSION innodb_lock_wait_timeout = 1, \
                      SESSION lock_wait_timeout = 2, \
                      SESSION max_sort_length = 3072, \
                      @amphora_writer = 1";

/// The variables of these have other names in MariaDB before 11.1.
const TRANSACTIONS: &str = "SET SESSION TRANSACTION READ WRITE, ISOLATION LEVEL READ COMMITTED";

/// For sessions that read.
const READER: &str = "SET SESSION TRANSACTION READ ONLY, ISOLATION LEVEL READ COMMITTED";

/// For them, too: pages and expiries go on where the last ended.
const SORT: &str = "SET SESSION max_sort_length = 3072";

fn port(server: &Server) -> u16 {
    server.port.unwrap_or(3306)
}

pub(super) fn options(server: &Server) -> MySqlConnectOptions {
    let mut options = MySqlConnectOptions::new()
        .host(&server.host)
        .port(port(server))
        .username(&server.user)
        .database(&server.database)
        .ssl_mode(match server.tls {
            Tls::Off => MySqlSslMode::Disabled,
            Tls::Prefer => MySqlSslMode::Preferred,
            Tls::Require => MySqlSslMode::Required,
            Tls::VerifyCa => MySqlSslMode::VerifyCa,
            Tls::VerifyFull => MySqlSslMode::VerifyIdentity,
        });
    if let Some(socket) = &server.socket {
        options = options.socket(socket);
    }
    if let Some(password) = &server.password {
        options = options.password(password);
    }
    if let Some(ca) = &server.ca {
        options = options.ssl_ca(ca);
    }
    if let Some(certificate) = &server.certificate {
        options = options.ssl_client_cert(certificate);
    }
    if let Some(key) = &server.key {
        options = options.ssl_client_key(key);
    }
    options.disable_statement_logging()
}

/// Connects once, and lets go: what is wrong is told at once and exactly, where a pool only
/// says that it waited.
pub(super) async fn probe(server: &Server) -> Result<(), DbErr> {
    let connection = MySqlConnection::connect_with(&options(server)).await;
    // How it ends changes nothing.
    let _ = connection.map_err(fault::connecting)?.close().await;
    Ok(())
}

fn pool(most: u32) -> PoolOptions<MySql> {
    PoolOptions::new()
        .max_connections(most)
        .acquire_timeout(server::CONNECT)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// A session that may write.
pub(super) async fn writer(server: &Server) -> Result<DatabaseConnection, DbErr> {
    let pool = pool(1).test_before_acquire(false).connect_lazy_with(options(server));
    let database = SqlxMySqlConnector::from_sqlx_mysql_pool(pool);
    database.execute_unprepared(TRANSACTIONS).await?;
    database.execute_unprepared(WRITER).await?;
    nodelay::set(port(server));
    Ok(database)
}

/// Sessions that read, made when they are needed.
pub(super) fn readers(server: &Server, count: u32) -> DatabaseConnection {
    let port = port(server);
    let pool = pool(count.max(1))
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move { server::still_there(connection, meta.idle_for).await })
        })
        .after_connect(move |connection, _| {
            Box::pin(async move {
                nodelay::set(port);
                sea_orm::sqlx::raw_sql(READER).execute(&mut *connection).await?;
                sea_orm::sqlx::raw_sql(SORT).execute(connection).await.map(|_| ())
            })
        })
        .connect_lazy_with(options(server));
    SqlxMySqlConnector::from_sqlx_mysql_pool(pool)
}

/// Which session this is.
pub(super) async fn session(database: &DatabaseConnection) -> Result<Session, DbErr> {
    let row = server::one(database, "SELECT CAST(CONNECTION_ID() AS SIGNED)").await?;
    Ok(Session { id: row.try_get_by_index(0)?, since: String::new() })
}

/// Ends another session of the same user and database, if it is still there. (Numbers begin anew
/// when the server does: it may be one that reads, by then. That one is made anew.)
pub(super) async fn end(database: &DatabaseConnection, former: &Session) -> Result<(), DbErr> {
    let there = format!(
        "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {} AND DB = DATABASE() \
         AND ID <> CONNECTION_ID()",
        former.id
    );
    let row = server::one(database, &there).await?;
    if row.try_get_by_index::<i64>(0)? == 0 {
        return Ok(());
    }
    match database.execute_unprepared(&format!("KILL CONNECTION {}", former.id)).await {
        // It has gone meanwhile.
        Err(error) if fault::code(&error) == Some(Code::MySql(1094)) => Ok(()),
        done => done.map(|_| ()),
    }
}

/// What the store needs of a server, and what it had better have.
pub(super) async fn check(database: &DatabaseConnection) -> Result<Vec<String>, Unfit> {
    const FACTS: &str = "SELECT CONCAT(VERSION()), CAST(@@max_allowed_packet AS SIGNED), \
                         CAST(@@innodb_page_size AS SIGNED), CONCAT(@@log_bin), \
                         CONCAT(@@binlog_format), CONCAT(@@sync_binlog), CONCAT(@@read_only), \
                         CONCAT(@@innodb_flush_log_at_trx_commit), CONCAT(@@innodb_doublewrite)";
    let row = server::one(database, FACTS).await?;
    let text = |place: usize| row.try_get_by_index::<String>(place);
    let (version, packet, page): (String, i64, i64) =
        (text(0)?, row.try_get_by_index(1)?, row.try_get_by_index(2)?);
    if !is_known(&version) {
        return Err(Unfit::Server(format!(
            "it is version {version}: use MariaDB 10.6 or MySQL 8.0, or later"
        )));
    }
    if packet < PACKET {
        return Err(Unfit::Server(format!(
            "its max_allowed_packet is {packet}: set max_allowed_packet = 16M or more"
        )));
    }
    if page < 16_384 {
        return Err(Unfit::Server(format!(
            "its innodb_page_size is {page}, and keys may be longer than that allows: use a server with 16384"
        )));
    }
    if on(&text(6)?) {
        return Err(Unfit::Server(
            "it can only be read: name the primary, or set read_only = 0".to_owned(),
        ));
    }
    let logged = on(&text(3)?);
    if logged && text(4)?.eq_ignore_ascii_case("STATEMENT") {
        return Err(Unfit::Server(
            "its binlog_format is STATEMENT, which excludes READ COMMITTED: set binlog_format = ROW".to_owned(),
        ));
    }
    let mut warnings = Vec::new();
    let mut had_better = |name: &str, value: &str, good: bool, better: &str| {
        if !good {
            warnings.push(format!(
                "{name} is {value}: messages are lost when the database's machine fails; set {name} = {better}"
            ));
        }
    };
    let (flush, doublewrite, sync) = (text(7)?, text(8)?, text(5)?);
    had_better("innodb_flush_log_at_trx_commit", &flush, flush == "1" || flush == "3", "1");
    had_better(
        "innodb_doublewrite",
        &doublewrite,
        doublewrite != "0" && doublewrite != "OFF",
        "ON",
    );
    had_better("sync_binlog", &sync, !logged || sync == "1", "1");
    Ok(warnings)
}

fn on(value: &str) -> bool {
    value == "1" || value.eq_ignore_ascii_case("ON")
}

/// `10.11.6-MariaDB-0+deb12u1`, `8.0.36`; before MariaDB 11 some drivers see `5.5.5-` in front.
fn is_known(version: &str) -> bool {
    let plain = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = plain.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version.contains("MariaDB") {
        true => found >= (10, 6),
        false => found >= (8, 0),
    }
}

/// What to do about a database that can't be opened.
pub(super) fn remedy_of(code: u16) -> &'static str {
    match code {
        1045 | 1698 | 1130 => "check user and password, and that the server lets them in from here",
        1044 | 1142 | 1227 => "let its user have it: GRANT ALL ON ... TO ...",
        1049 => "make it: CREATE DATABASE ...",
        1040 | 1203 => "the server has too many connections: raise max_connections",
        1021 | 1114 => "the server's disk is full: make room",
        1290 | 1792 | 1836 => "it can only be read: name the primary",
        1205 => "another program holds its tables locked: end that program",
        1251 | 1524 => "the user's authentication needs TLS or another plugin: use sslmode=require",
        1053 | 1077 => "the server is stopping: try again",
        _ => "see the cause",
    }
}

/// Every conflict is an error here: the halves of a statement are tried then, until a row
/// stands alone. (IGNORE would cut values off to fit; ON DUPLICATE KEY would take a conflict on
/// the primary key for one on the key.)
///
/// MySQL can't tell what it deleted: it is asked first. The index is named, since the optimizer
/// prefers to look through a table that it believes to be small, and believes that for too long.
/// For each pair the optimizer makes two keys of full length; many rows of one recipient are cheaper
/// by a list of their ids.
pub(super) const WORDS: Words = Words {
    insert: (
        "INSERT INTO offline_message (recipient, id, `key`, sender, kind, size, stored_at, \
         appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES ",
        "",
    ),
    mark: (
        "INSERT INTO mark (`key`, met_rule, until) VALUES ",
        " ON DUPLICATE KEY UPDATE met_rule = VALUES(met_rule), \
         until = GREATEST(until, VALUES(until))",
    ),
    find: Some((
        "SELECT recipient, id, `key`, met_rule, appended_at FROM offline_message \
         FORCE INDEX (PRIMARY) WHERE (recipient, id) IN (",
        ") FOR UPDATE",
    )),
    delete: (
        "DELETE m FROM offline_message AS m FORCE INDEX (PRIMARY) WHERE (m.recipient, m.id) IN (",
        ")",
    ),
    of_one: Some(OfOne {
        find: (
            "SELECT recipient, id, `key`, met_rule, appended_at FROM offline_message \
             FORCE INDEX (PRIMARY) WHERE recipient = ? AND id IN (",
            ") FOR UPDATE",
        ),
        delete: (
            "DELETE m FROM offline_message AS m FORCE INDEX (PRIMARY) \
             WHERE m.recipient = ? AND m.id IN (",
            ")",
        ),
    }),
    purge_marks: "DELETE m FROM mark AS m FORCE INDEX (mark_until) \
                  WHERE m.until >= ? AND m.until <= ?",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for good in [
            "10.11.6-MariaDB-0+deb12u1",
            "5.5.5-10.6.1-MariaDB",
            "11.4.2-MariaDB",
            "8.0.36",
            "9.1.0",
        ] {
            assert!(is_known(good), "{good}");
        }
        for bad in ["10.5.9-MariaDB", "5.7.44-log", ""] {
            assert!(!is_known(bad), "{bad}");
        }
    }
}
