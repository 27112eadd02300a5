//! Statements that are written out by hand, in the words of each server.

use sea_orm::{DbBackend, DbErr, Statement, Value};

/// A statement with `?` for each value.
pub(super) fn statement(
    backend: DbBackend,
    text: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(backend, numbered(backend, text), values)
}

/// Parameters as the database names them: `?` or `$1`.
pub(super) fn numbered(backend: DbBackend, text: &str) -> String {
    if backend != DbBackend::Postgres {
        return text.to_owned();
    }
    let mut parts = text.split('?');
    let mut numbered = parts.next().unwrap_or_default().to_owned();
    for (number, part) in (1..).zip(parts) {
        numbered.push_str(&format!("${number}{part}"));
    }
    numbered
}

/// The time of the database, microseconds since the Unix epoch: that of the nodes may differ.
pub(super) fn now(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint",
        _ => "CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED)",
    }
}

/// A number of a column that holds none below zero, and none that is large.
pub(super) fn number(value: i64) -> Result<u32, DbErr> {
    u32::try_from(value).map_err(|_| DbErr::Type(format!("{value} is out of its range")))
}
