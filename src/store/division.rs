//! A database whose shards nodes share, as those see it who move them.

use std::fmt;
use std::sync::Arc;

use super::ownership::{Holding, Incarnation, MoveError, Ownership};
use super::parts::PartedStore;
use super::sea::SeaStore;
use crate::shard_map::ShardSet;
use crate::words::ShardId;

/// One of a store's databases; cheap to clone.
#[derive(Clone)]
pub struct Division {
    name: Arc<str>,
    shards: ShardSet,
    store: Which,
}

#[derive(Clone)]
enum Which {
    Alone(Arc<SeaStore>),
    Part(Arc<PartedStore>, usize),
}

impl fmt::Debug for Division {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.shards)
    }
}

impl Division {
    /// The one database that has all of so many shards. Its name is empty.
    pub fn alone(store: Arc<SeaStore>, shards: u32) -> Self {
        Division { name: "".into(), shards: ShardSet::all(shards), store: Which::Alone(store) }
    }

    /// Each of several.
    pub fn of_parts(store: &Arc<PartedStore>) -> Vec<Self> {
        let parts = store.divisions().enumerate();
        let division = |(place, (name, shards)): (usize, (Arc<str>, ShardSet))| Division {
            name,
            shards,
            store: Which::Part(store.clone(), place),
        };
        parts.map(division).collect()
    }

    /// What the settings call it.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The shards that it has.
    pub fn shards(&self) -> &ShardSet {
        &self.shards
    }

    /// See [`SeaStore::incarnation`]; none, too: it could not be opened yet.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.opened()?.incarnation()
    }

    /// See [`SeaStore::ownership`].
    pub async fn ownership(&self) -> Result<Ownership, MoveError> {
        self.opened().ok_or(MoveError::Closed)?.ownership().await
    }

    /// See [`SeaStore::take`].
    pub async fn take(&self, seen: Vec<Holding>) -> Result<(), MoveError> {
        self.opened().ok_or(MoveError::Closed)?.take(seen).await
    }

    /// See [`SeaStore::give`].
    pub async fn give(&self, shards: Vec<ShardId>, to: Incarnation) -> Result<(), MoveError> {
        self.opened().ok_or(MoveError::Closed)?.give(shards, to).await
    }

    /// Whether a later process of the same name has the database. None: it is not known.
    pub async fn has_successor(&self) -> Option<bool> {
        self.opened()?.has_successor().await
    }

    fn opened(&self) -> Option<&SeaStore> {
        match &self.store {
            Which::Alone(store) => Some(store),
            Which::Part(store, place) => store.opened(*place),
        }
    }
}
