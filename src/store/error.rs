//! What can go wrong with the store.

use std::path::PathBuf;

use sea_orm::DbErr;

/// The store can't be opened, or a read failed. Writes have outcomes instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The URL is not one of a database that Amphora can use.
    #[error("'{url}' is no database url for the store: {reason}")]
    Url {
        /// As configured, without secrets.
        url: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Another process has the database.
    #[error("another amphora runs on '{url}' and holds '{}': stop it, or give this one a database of its own", .lock.display())]
    InUse {
        /// As configured, without secrets.
        url: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// Another node has the database, and lives.
    #[error(
        "another amphora has the database '{url}' ({holder}): stop it, or give this one a database of its own"
    )]
    Held {
        /// As configured, without secrets.
        url: String,
        /// Which node it is, and when it was seen.
        holder: String,
    },
    /// Another node knows another number of shards, and lives.
    #[error(
        "the database '{url}' is divided by {divided} shards, not {shards}, for another amphora ({holder}): set processor.shards = {divided}, or stop all others first"
    )]
    Divided {
        /// As configured, without secrets.
        url: String,
        /// By how many the database is divided.
        divided: u32,
        /// By how many this node would divide it.
        shards: u32,
        /// Which node it is, and when it was seen.
        holder: String,
    },
    /// The server's version or settings are not enough.
    #[error("the database '{url}' can't hold the store: {reason}")]
    Unfit {
        /// As configured, without secrets.
        url: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// The lock file can't be made.
    #[error("cannot lock '{}' for the database '{url}': {remedy}", .lock.display())]
    Lock {
        /// As configured, without secrets.
        url: String,
        /// The lock file.
        lock: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database can't be opened or set up.
    #[error("cannot open the database '{url}': {remedy}")]
    Open {
        /// As configured, without secrets.
        url: String,
        /// What to do.
        remedy: &'static str,
        /// What the database said.
        source: DbErr,
    },
    /// A newer Amphora has changed the tables.
    #[error(
        "the database '{url}' has the schema '{version}', which this amphora does not know: run the newer amphora that made it, or restore the backup from before"
    )]
    Newer {
        /// As configured, without secrets.
        url: String,
        /// The first migration that is not known here.
        version: String,
    },
    /// The database was opened so often that no epoch is left (2,097,151).
    #[error(
        "the database '{url}' has no epoch left: let its messages be delivered, then begin a new database"
    )]
    EpochsUsedUp {
        /// As configured, without secrets.
        url: String,
    },
    /// A thread of the store can't be started.
    #[error("cannot start a thread of the store")]
    Thread(#[source] std::io::Error),
    /// Another process has taken the database over; this one hands nothing over any more.
    #[error("another process has taken the database over")]
    Fenced,
    /// The shard is another node's; this one hands nothing of it over any more.
    #[error("the shard is another node's")]
    NotMine,
    /// A read failed.
    #[error("cannot read from the store")]
    Read(#[source] DbErr),
    /// The database refuses a write, now and later.
    #[error("the store refuses it: {0}")]
    Refused(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}
