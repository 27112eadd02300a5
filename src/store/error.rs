//! What can go wrong with the store.

use std::path::PathBuf;

use sea_orm::DbErr;

use super::fault;

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
    /// The database holds other shards than it is to hold.
    #[error(
        "the database '{url}' holds {has}, and is to hold {wanted}: bring the old processor.shards, store.url and [[store.part]] back, or stop the nodes and let `amphora move` bring each message to its place (docs/store.md)"
    )]
    Layout {
        /// As configured, without secrets.
        url: String,
        /// What it says that it holds.
        has: String,
        /// What the settings say.
        wanted: String,
    },
    /// The database is new, and other parts are not.
    #[error(
        "the database '{url}' is new, and other parts are not: if it should not be, look for what it had; if it is to take messages over, stop the nodes and run `amphora move` (docs/store.md)"
    )]
    New {
        /// As configured, without secrets.
        url: String,
    },
    /// A move was begun, and has not come to its end.
    #[error(
        "messages of the database '{url}' are being moved, or a move was cut short: wait for it, or run `amphora move` once more"
    )]
    Moving {
        /// As configured, without secrets.
        url: String,
    },
    /// A move needs a database that was not named.
    #[error(
        "the database '{url}' holds the shards {held} of {shards}, and no database that was named holds shard {shard}: name the configuration that named all of them, as in `amphora move --from OLD.toml`"
    )]
    Missing {
        /// One that was named, without secrets.
        url: String,
        /// What it holds.
        held: String,
        /// Of how many.
        shards: u32,
        /// The first that is missing.
        shard: u32,
    },
    /// A database failed during a move.
    #[error("cannot move messages from or to the database '{url}'; run the same again")]
    Move {
        /// As configured, without secrets.
        url: String,
        /// What the database said.
        source: DbErr,
    },
    /// The database of some of the recipients could not be opened yet.
    #[error("the database of part '{0}' is not open yet")]
    Away(String),
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

impl StoreError {
    /// Whether the database can't be reached, and may be later, without anything being put
    /// right here.
    pub(super) fn is_away(&self) -> bool {
        match self {
            StoreError::Open { source, .. } => fault::is_away(source),
            _ => false,
        }
    }

    /// What is wrong and why, in a line.
    pub(super) fn told(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}
