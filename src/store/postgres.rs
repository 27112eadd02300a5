//! All that only PostgreSQL needs: opening it, the statements in its own words, remedies.

use sea_orm::sea_query::ArrayType;
use sea_orm::sqlx::pool::PoolOptions;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use sea_orm::sqlx::{ConnectOptions, Connection, PgConnection, Postgres};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, SqlxPostgresConnector, Statement, Value,
};

use super::fault;
use super::nodelay;
use super::place::{Server, Tls};
use super::row;
use super::server::{self, Session, Unfit};
use super::statements::{Append, Mark, Pair};
use crate::time::Timestamp;

/// The oldest version that has all that is asked for here.
const OLDEST: i32 = 12;

/// The settings of the session that writes.
///
/// An operator's stronger `synchronous_commit` stays. A node that stands still within a
/// transaction, or whose machine is gone, must not hold its locks for long. Every statement
/// finds its rows by an index; without statistics the planner may believe otherwise. A table that is
/// read whole all the same (`lane`) is then so dear to it that it would compile the statement each
/// time (`jit`), which takes longer than all else.
const WRITER: &str = "\
    SELECT set_config('synchronous_commit', 'on', false) \
    WHERE current_setting('synchronous_commit') IN ('off', 'local'); \
    SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_read_only = off; SET client_min_messages = warning; \
    SET lock_timeout = '1s'; \
    SET statement_timeout = 0; \
    SET idle_in_transaction_session_timeout = '30s'; \
    SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
    SET amphora.writer = 'yes'";

/// The settings of sessions that read.
const READER: &str = "\
    SET default_transaction_isolation = 'read committed'; \
    SET default_transaction_read_only = on; \
    SET enable_seqscan = off; SET jit = off";

fn port(server: &Server) -> u16 {
    server.port.unwrap_or(5432)
}

pub(super) fn options(server: &Server) -> PgConnectOptions {
    let mut options = PgConnectOptions::new_without_pgpass()
        .host(&server.host)
        .port(port(server))
        .username(&server.user)
        .database(&server.database)
        .application_name("amphora")
        .ssl_mode(match server.tls {
            Tls::Off => PgSslMode::Disable,
            Tls::Prefer => PgSslMode::Prefer,
            Tls::Require => PgSslMode::Require,
            Tls::VerifyCa => PgSslMode::VerifyCa,
            Tls::VerifyFull => PgSslMode::VerifyFull,
        });
    if let Some(socket) = &server.socket {
        options = options.socket(socket);
    }
    if let Some(password) = &server.password {
        options = options.password(password);
    }
    if let Some(ca) = &server.ca {
        options = options.ssl_root_cert(ca);
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
    let connection = PgConnection::connect_with(&options(server)).await;
    // How it ends changes nothing.
    let _ = connection.map_err(fault::connecting)?.close().await;
    Ok(())
}

fn pool(most: u32) -> PoolOptions<Postgres> {
    PoolOptions::new()
        .max_connections(most)
        .acquire_timeout(server::CONNECT)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// A session that may write.
pub(super) async fn writer(server: &Server) -> Result<DatabaseConnection, DbErr> {
    let pool = pool(1).test_before_acquire(false).connect_lazy_with(options(server));
    let database = SqlxPostgresConnector::from_sqlx_postgres_pool(pool);
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
                sea_orm::sqlx::raw_sql(READER).execute(connection).await.map(|_| ())
            })
        })
        .connect_lazy_with(options(server));
    SqlxPostgresConnector::from_sqlx_postgres_pool(pool)
}

/// Which session this is.
pub(super) async fn session(database: &DatabaseConnection) -> Result<Session, DbErr> {
    const SESSION: &str = "SELECT pid::bigint, extract(epoch FROM backend_start)::text \
                           FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let row = server::one(database, SESSION).await?;
    Ok(Session { id: row.try_get_by_index(0)?, since: row.try_get_by_index(1)? })
}

/// Ends another session of the same user, if it is still there.
pub(super) async fn end(database: &DatabaseConnection, former: &Session) -> Result<(), DbErr> {
    const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE pid = $1 AND extract(epoch FROM backend_start)::text = $2";
    let values = [former.id.into(), former.since.as_str().into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, END, values);
    database.execute_raw(statement).await?;
    Ok(())
}

/// What the store needs of a server, and what it had better have.
pub(super) async fn check(database: &DatabaseConnection) -> Result<Vec<String>, Unfit> {
    const FACTS: &str = "SELECT current_setting('server_version_num')::int / 10000, \
                         current_setting('server_encoding'), current_setting('fsync'), \
                         current_setting('full_page_writes'), pg_is_in_recovery(), \
                         coalesce(current_schema(), ''), \
                         has_schema_privilege(coalesce(current_schema(), 'public'), 'CREATE')";
    let row = server::one(database, FACTS).await?;
    let version: i32 = row.try_get_by_index(0)?;
    if version < OLDEST {
        return Err(Unfit::Server(format!("it is PostgreSQL {version}: use {OLDEST} or later")));
    }
    let encoding: String = row.try_get_by_index(1)?;
    if encoding != "UTF8" {
        return Err(Unfit::Server(format!(
            "its encoding is {encoding}: make it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )));
    }
    if row.try_get_by_index(4)? {
        return Err(Unfit::Server("it is a standby: name the primary".to_owned()));
    }
    if row.try_get_by_index::<String>(5)?.is_empty() {
        return Err(Unfit::Server(
            "its search_path names no schema: ALTER ROLE ... SET search_path = public".to_owned(),
        ));
    }
    let mut warnings = Vec::new();
    for (place, name) in [(2, "fsync"), (3, "full_page_writes")] {
        if row.try_get_by_index::<String>(place)? != "on" {
            warnings.push(format!(
                "{name} is off: messages are lost when the database's machine fails; set {name} = on"
            ));
        }
    }
    Ok(warnings)
}

/// What to do about a database that can't be opened.
pub(super) fn remedy_of(code: &str) -> &'static str {
    match code {
        "28P01" | "28000" => "check user and password, and that pg_hba.conf lets them in",
        "3D000" => "make it: CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        "42501" => "let its user make tables: GRANT CREATE, USAGE ON SCHEMA public TO ...",
        "53300" => "the server has too many connections: raise max_connections",
        "53100" => "the server's disk is full: make room",
        "57P03" => "the server is starting or stopping: try again",
        "25006" => "it can only be read: name the primary",
        "55P03" => "another program holds its tables locked: end that program",
        code if code.starts_with("XX") => "it is damaged: see the server's log, restore a backup",
        _ => "see the cause",
    }
}

/// Any conflict is an error, and ends the transaction. The driver takes no nulls in arrays: a rule
/// below zero is none.
///
/// The lists are in the select list, where they are read in step. In FROM each would be copied to a
/// table of its own first.
pub(super) const INSERT: &str = "\
    INSERT INTO offline_message (recipient, id, \"key\", sender, kind, size, stored_at, \
    appended_at, archived, expires_at, expire_rule, met_rule, stanza) \
    SELECT recipient, id, \"key\", sender, kind, size, stored_at, $13, archived, \
    CASE WHEN expire_rule >= 0 THEN expires_at END, nullif(expire_rule, -1), \
    nullif(met_rule, -1), stanza \
    FROM (SELECT unnest($1::text[]) AS recipient, unnest($2::bigint[]) AS id, \
    unnest($3::text[]) AS \"key\", unnest($4::text[]) AS sender, unnest($5::int[]) AS kind, \
    unnest($6::bigint[]) AS size, unnest($7::bigint[]) AS stored_at, unnest($8::bool[]) AS archived, \
    unnest($9::bigint[]) AS expires_at, unnest($10::int[]) AS expire_rule, \
    unnest($11::int[]) AS met_rule, unnest($12::bytea[]) AS stanza) AS v";

/// What turns that into one that leaves out what conflicts on the key. It costs the server more, for
/// it looks at the index twice.
pub(super) const UNLESS_KNOWN: &str = " ON CONFLICT (\"key\") DO NOTHING";

pub(super) fn insert_values(rows: &[Append<'_>], now: Timestamp) -> [Value; 13] {
    let mut columns: [Vec<Value>; 13] = std::array::from_fn(|_| Vec::with_capacity(rows.len()));
    for (_, message) in rows {
        for (column, value) in columns.iter_mut().zip(row::values(message, now)) {
            column.push(value);
        }
    }
    let [recipient, id, key, sender, kind, size, stored_at, _, archived, at, rule, met, stanza] =
        columns;
    [
        array(ArrayType::String, recipient),
        array(ArrayType::BigInt, id),
        array(ArrayType::String, key),
        array(ArrayType::String, sender),
        array(ArrayType::Int, kind),
        array(ArrayType::BigInt, size),
        array(ArrayType::BigInt, stored_at),
        array(ArrayType::Bool, archived),
        array(ArrayType::BigInt, at.into_iter().map(|at| or(at, 0_i64.into())).collect()),
        array(ArrayType::Int, rule.into_iter().map(|rule| or(rule, (-1_i32).into())).collect()),
        array(ArrayType::Int, met.into_iter().map(|met| or(met, (-1_i32).into())).collect()),
        array(ArrayType::Bytes, stanza),
        now.as_micros().into(),
    ]
}

fn or(value: Value, other: Value) -> Value {
    match value {
        Value::Int(None) | Value::BigInt(None) => other,
        value => value,
    }
}

fn array(of: ArrayType, values: Vec<Value>) -> Value {
    Value::Array(of, Some(Box::new(values)))
}

pub(super) const MARK: &str = "\
    INSERT INTO mark (\"key\", met_rule, until) \
    SELECT \"key\", nullif(met_rule, -1), until \
    FROM unnest($1::text[], $2::int[], $3::bigint[]) AS v (\"key\", met_rule, until) \
    ON CONFLICT (\"key\") DO UPDATE SET met_rule = excluded.met_rule, \
    until = greatest(mark.until, excluded.until)";

pub(super) fn mark_values(marks: &[Mark]) -> [Value; 3] {
    let keys = marks.iter().map(|mark| mark.key.as_str().into());
    let rules = marks.iter().map(|mark| mark.met_rule.unwrap_or(-1).into());
    let ends = marks.iter().map(|mark| mark.until.into());
    [
        array(ArrayType::String, keys.collect()),
        array(ArrayType::Int, rules.collect()),
        array(ArrayType::BigInt, ends.collect()),
    ]
}

pub(super) const DELETE: &str = "\
    DELETE FROM offline_message AS m \
    USING unnest($1::text[], $2::bigint[]) AS v (recipient, id) \
    WHERE m.recipient = v.recipient AND m.id = v.id \
    RETURNING m.recipient, m.id, m.\"key\", m.met_rule, m.appended_at";

pub(super) fn pair_values(pairs: &[Pair<'_>]) -> [Value; 2] {
    let recipients = pairs.iter().map(|(_, recipient, _)| (*recipient).into());
    let ids = pairs.iter().map(|(_, _, id)| id.0.into());
    [array(ArrayType::String, recipients.collect()), array(ArrayType::BigInt, ids.collect())]
}

/// Parameters: the first and the last time.
pub(super) const PURGE_MARKS: &str = "DELETE FROM mark WHERE until >= $1 AND until <= $2";
