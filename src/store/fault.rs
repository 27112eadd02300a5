//! What an error of a database means, in the words of all three.

use sea_orm::sqlx::error::DatabaseError;
use sea_orm::sqlx::{self, mysql, postgres};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

use super::server;

/// What an error says about the rows of the statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// One of them can't be stored, now or later.
    Row,
    /// A part of the database that one of them needs is damaged.
    Damage,
    /// Nothing: another program holds a lock.
    Busy,
    /// Nothing: the database gave the transaction up, because it met another one. The same
    /// again will do.
    Met,
    /// Nothing: the database is full, or away, or failed.
    Other,
}

pub(super) fn fault(error: &DbErr) -> Fault {
    match code(error) {
        Some(Code::Sqlite(code)) => match code & 0xff {
            // TOOBIG, CONSTRAINT, MISMATCH
            18..=20 => Fault::Row,
            // CORRUPT
            11 => Fault::Damage,
            // BUSY, LOCKED
            5 | 6 => Fault::Busy,
            _ => Fault::Other,
        },
        Some(Code::Postgres(code)) => match code.as_str() {
            "40001" | "40P01" => Fault::Met,
            // lock_not_available
            "55P03" => Fault::Busy,
            // data_corrupted, index_corrupted
            "XX001" | "XX002" => Fault::Damage,
            // program_limit_exceeded: too long for an index
            "54000" => Fault::Row,
            // data exceptions, constraints
            code if code.starts_with("22") || code.starts_with("23") => Fault::Row,
            _ => Fault::Other,
        },
        Some(Code::MySql(code)) => match code {
            // deadlock (and a certification that failed), record changed since it was read
            1213 | 1020 => Fault::Met,
            // lock wait timeout
            1205 => Fault::Busy,
            // crashed or corrupt: key file, table, index
            1034 | 1194 | 1195 | 1712 | 1877 => Fault::Damage,
            // null, duplicate key, out of range, bad characters, too long, constraint
            1048 | 1062 | 1264 | 1366 | 1406 | 3819 | 4025 => Fault::Row,
            _ => Fault::Other,
        },
        None => Fault::Other,
    }
}

/// The code that a database gave to its error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Code {
    /// The extended result code: https://sqlite.org/rescode.html
    Sqlite(i32),
    /// SQLSTATE: https://www.postgresql.org/docs/current/errcodes-appendix.html
    Postgres(String),
    /// The number: https://mariadb.com/kb/en/mariadb-error-code-reference/
    MySql(u16),
}

pub(super) fn code(error: &DbErr) -> Option<Code> {
    code_of(sqlx_error(error)?.as_database_error()?)
}

fn code_of(error: &dyn DatabaseError) -> Option<Code> {
    if let Some(error) = error.try_downcast_ref::<postgres::PgDatabaseError>() {
        return Some(Code::Postgres(error.code().to_owned()));
    }
    if let Some(error) = error.try_downcast_ref::<mysql::MySqlDatabaseError>() {
        return Some(Code::MySql(error.number()));
    }
    error.code()?.parse().ok().map(Code::Sqlite)
}

/// What the driver said.
pub(super) fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
        _ => None,
    }
}

/// An error of the driver that came while connecting.
pub(super) fn connecting(error: sqlx::Error) -> DbErr {
    DbErr::Conn(RuntimeErr::SqlxError(error.into()))
}

/// Whether an error says that the connections were closed, by this side.
pub(super) fn is_closed(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed))
        || matches!(sqlx_error(error), Some(sqlx::Error::PoolClosed))
}

/// Whether no connection was to be had in time.
pub(super) fn is_acquiring(error: &DbErr) -> bool {
    matches!(error, DbErr::ConnectionAcquire(_))
        || matches!(sqlx_error(error), Some(sqlx::Error::PoolTimedOut))
}

/// Whether the connection was lost, so that another one may do.
pub(super) fn is_lost(error: &DbErr) -> bool {
    match sqlx_error(error) {
        Some(sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed) => true,
        Some(error) => match error.as_database_error().and_then(code_of) {
            // The server says that it ends, or that it begins.
            Some(Code::Postgres(code)) => code.starts_with("57P"),
            Some(Code::MySql(code)) => matches!(code, 1053 | 1077 | 1927),
            _ => false,
        },
        None => false,
    }
}

/// Whether a server can't be reached now: it is not there, does not answer, begins or ends, or
/// has too many connections.
pub(super) fn is_away(error: &DbErr) -> bool {
    let busy = match code(error) {
        Some(Code::Postgres(code)) => code == "53300",
        Some(Code::MySql(code)) => matches!(code, 1040 | 1203),
        _ => false,
    };
    busy || is_lost(error) || server::is_silent(error) || is_acquiring(error)
}
