//! Where a node's messages and broadcasts are: one database, or several.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::config::{self, Settings};
use crate::http::{Health, StoreHealth};
use crate::shard_map::ShardSet;
use crate::store::{
    BroadcastStore, Division, Layout, Moved, PartSettings, PartState, PartedStore, SeaStore, Store,
    StoreError, StoreSettings, move_messages, same_database,
};

/// The stores of a node, open.
pub(super) struct Stores {
    pub(super) messages: Arc<dyn Store>,
    pub(super) broadcasts: Arc<dyn BroadcastStore>,
    /// Ends when another process has taken a database over.
    pub(super) superseded: BoxFuture<'static, ()>,
    /// Each database, for those who move shards.
    pub(super) divisions: Vec<Division>,
    parts: Option<Arc<PartedStore>>,
}

impl Stores {
    /// Opens what the settings name, for a node of that name. `shared`: with others.
    pub(super) async fn open(
        settings: &Settings,
        node: &str,
        shared: bool,
    ) -> Result<Stores, StoreError> {
        let shards = settings.processor.shards;
        if settings.store.parts.is_empty() {
            let alone = StoreSettings { shared, ..alone(settings, node) };
            let store = SeaStore::open(alone).await?;
            let superseded = store.superseded().boxed();
            let store = Arc::new(store);
            let divisions = vec![Division::alone(store.clone(), shards)];
            let (messages, broadcasts) = (store.clone(), store);
            return Ok(Stores { messages, broadcasts, superseded, divisions, parts: None });
        }
        let mut parts = parts(settings, node);
        parts.iter_mut().for_each(|part| part.store.shared = shared);
        let store = Arc::new(PartedStore::open(shards, parts).await?);
        let superseded = store.superseded().boxed();
        let divisions = Division::of_parts(&store);
        let (messages, parts) = (store.clone(), Some(store.clone()));
        Ok(Stores { messages, broadcasts: store, superseded, divisions, parts })
    }

    /// Lets health ask how they are.
    pub(super) fn report_to(&self, health: &Health) {
        let messages = self.messages.clone();
        health.set_store(move || messages.healthy());
        for (name, state) in self.parts.iter().flat_map(|parts| parts.states()) {
            health.add_part(&name, move || match state() {
                PartState::Healthy => StoreHealth::Healthy,
                PartState::Unhealthy => StoreHealth::Unhealthy,
                PartState::Away(_) => StoreHealth::Closed,
            });
        }
    }

    /// The first part that is not open, if any, and why.
    pub(super) fn away(&self) -> Option<(Arc<str>, String)> {
        let states = self.parts.iter().flat_map(|parts| parts.states());
        states.map(|(name, state)| (name, state())).find_map(|(name, state)| match state {
            PartState::Away(why) => Some((name, why)),
            _ => None,
        })
    }
}

/// Brings messages and broadcasts to where the settings want them; from where they have them,
/// and from where old settings had them.
pub(super) async fn move_all(
    settings: &Settings,
    old: Option<&Settings>,
    node: &str,
    tell: impl Fn(&Moved),
) -> Result<Moved, StoreError> {
    let parts = parts(settings, node);
    let is_new = |url: &str| parts.iter().all(|part| !same_database(&part.store.url, url));
    let old = old.iter().flat_map(|old| self::parts(old, node)).map(|part| part.store);
    let old = old.filter(|store| is_new(&store.url)).collect();
    move_messages(settings.processor.shards, parts, old, tell).await
}

/// The databases; one that has all counts as a part, too.
fn parts(settings: &Settings, node: &str) -> Vec<PartSettings> {
    if settings.store.parts.is_empty() {
        let shards = ShardSet::all(settings.processor.shards);
        return vec![PartSettings { name: "".into(), shards, store: alone(settings, node) }];
    }
    settings.store.parts.iter().map(|part| part_of(part, node)).collect()
}

/// The one database that has all.
fn alone(settings: &Settings, node: &str) -> StoreSettings {
    let config::StoreSettings { url, password, .. } = &settings.store;
    StoreSettings {
        shards: settings.processor.shards,
        layout: Some(Layout::alone(settings.processor.shards)),
        ..database(url, password.as_ref(), node)
    }
}

/// A database that has some shards.
fn part_of(part: &config::PartSettings, node: &str) -> PartSettings {
    PartSettings {
        name: part.name.as_str().into(),
        shards: part.shards.clone(),
        store: database(&part.url, part.password.as_ref(), node),
    }
}

fn database(
    url: &config::StoreUrl,
    password: Option<&config::Secret>,
    node: &str,
) -> StoreSettings {
    let password = password.map(|secret| secret.expose().to_owned());
    StoreSettings { password, node: node.to_owned(), ..StoreSettings::new(url.expose()) }
}
