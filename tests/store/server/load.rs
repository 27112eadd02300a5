//! Load on nodes that share a database, and what must be true of it afterwards.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use amphora::shard_map::ShardMap;
use amphora::store::{NewMessage, Outcome, PageLimit, Run, SeaStore, Store, StoreSettings, Write};
use amphora::words::{MessageId, ShardId};
use tokio::task::JoinHandle;
use tokio::time::{Duration, sleep};

use super::ServerBed;
use crate::bed::*;

/// Shards of the databases of these tests.
pub const SHARDS: u32 = 8;

/// Users under load; each shard has some.
const USERS: usize = 16;

/// Appends of a user that are under way at a time.
const WINDOW: i64 = 6;

/// How to open the database as one of several nodes.
pub fn shared(at: &ServerBed, node: &str) -> StoreSettings {
    let node = node.to_owned();
    StoreSettings { node, shared: true, shards: SHARDS, ..at.bed.settings.clone() }
}

/// A node, with no shard.
pub async fn node(at: &ServerBed, name: &str) -> Arc<SeaStore> {
    Arc::new(SeaStore::open(shared(at, name)).await.expect("opens"))
}

pub fn shard_of(user: &str) -> ShardId {
    ShardMap::new(SHARDS).shard(user)
}

/// A user of this shard.
pub fn user_of(shard: u32) -> String {
    let mut names = (0..).map(|n| format!("user{n}"));
    names.find(|name| shard_of(name) == ShardId(shard)).expect("there is one")
}

/// Takes these, as they are owned now.
pub async fn take(store: &SeaStore, shards: impl IntoIterator<Item = u32>) {
    let seen = store.ownership().await.expect("reads").shards;
    let some = shards.into_iter().map(|shard| seen[shard as usize].clone()).collect();
    store.take(some).await.expect("takes");
}

/// The nodes as the load finds them. One that starts anew takes the place of the one before.
pub struct Nodes {
    stores: RwLock<Vec<Arc<SeaStore>>>,
    next: AtomicU64,
}

impl Nodes {
    pub fn new(stores: Vec<Arc<SeaStore>>) -> Arc<Self> {
        Arc::new(Nodes { stores: RwLock::new(stores), next: AtomicU64::new(1) })
    }

    pub fn all(&self) -> Vec<Arc<SeaStore>> {
        self.stores.read().expect("not poisoned").clone()
    }

    pub fn replace(&self, place: usize, store: Arc<SeaStore>) {
        self.stores.write().expect("not poisoned")[place] = store;
    }

    /// One that believes the shard its own, and since which epoch. It may be wrong.
    async fn owner(&self, shard: ShardId) -> Option<(Arc<SeaStore>, u32)> {
        let mut owners: Vec<_> = self
            .all()
            .into_iter()
            .map(|store| (store.epoch(shard), store))
            .filter(|(epoch, _)| *epoch > 0)
            .collect();
        if owners.is_empty() {
            for store in self.all() {
                // It may have been given it a moment ago.
                let _ = store.ownership().await;
            }
            sleep(Duration::from_millis(2)).await;
            return None;
        }
        let (epoch, store) = owners.swap_remove(fastrand::usize(..owners.len()));
        Some((store, epoch))
    }
}

/// What one user was told, and what was handed over to him.
#[derive(Default)]
struct Told {
    user: String,
    /// Messages 1 to this are stored.
    accepted: i64,
    /// The messages that were read, by a cursor that never goes back.
    read: Vec<i64>,
    cursor: i64,
    /// Those that were read are deleted.
    deletes: bool,
}

/// Appends for many users without end, and reads of what is stored.
pub struct Load {
    nodes: Arc<Nodes>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    users: Vec<JoinHandle<Told>>,
}

impl Load {
    pub fn start(nodes: &Arc<Nodes>) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let user = |n: usize| {
            let told =
                Told { user: format!("user{n}"), deletes: n.is_multiple_of(2), ..Told::default() };
            tokio::spawn(use_nodes(nodes.clone(), stop.clone(), accepted.clone(), told))
        };
        Load { users: (0..USERS).map(user).collect(), nodes: nodes.clone(), stop, accepted }
    }

    /// Waits until so many more messages are stored.
    pub async fn goes_on(&self, more: u64) {
        let before = self.accepted.load(Ordering::Relaxed);
        until("the load goes on", || self.accepted.load(Ordering::Relaxed) >= before + more).await;
    }

    /// Nothing is lost, nothing is there twice, each user's messages are in their order, and
    /// nothing was stored behind a cursor. The nodes own all shards among them.
    pub async fn check(self) {
        self.stop.store(true, Ordering::Relaxed);
        for user in self.users {
            let mut told = user.await.expect("no outcome surprised");
            let deletes = std::mem::take(&mut told.deletes);
            let expected: Vec<i64> = (1..=told.accepted).collect();
            while told.read.len() < expected.len() && read(&self.nodes, &mut told).await {}
            assert_eq!(told.read, expected, "what {} was handed", told.user);
            // What lies there, whole: behind the cursor is nothing that it passed over.
            let rows = loop {
                if let Some((store, _)) = self.nodes.owner(shard_of(&told.user)).await
                    && let Ok(rows) = store.page(bare(&told.user), MessageId::ZERO, ALL).await
                {
                    break rows;
                }
            };
            let there: Vec<i64> = rows.iter().map(|row| number(&row.key)).collect();
            assert!(there.is_sorted_by(|a, b| a < b), "{}: {there:?}", told.user);
            if !deletes {
                assert_eq!(there, expected, "what {} has", told.user);
            }
        }
    }
}

/// The number of a message in its key.
fn number(key: &str) -> i64 {
    key.rsplit('-').next().and_then(|number| number.parse().ok()).expect("a number")
}

async fn use_nodes(
    nodes: Arc<Nodes>,
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicU64>,
    mut told: Told,
) -> Told {
    let mut tried = 0;
    while !stop.load(Ordering::Relaxed) {
        let before = told.accepted;
        append_some(&nodes, &mut told, &mut tried).await;
        accepted.fetch_add((told.accepted - before) as u64, Ordering::Relaxed);
        read(&nodes, &mut told).await;
    }
    told
}

/// Some appends at once, of one run. Once one is to be tried again, all later ones are.
async fn append_some(nodes: &Nodes, told: &mut Told, tried: &mut i64) {
    let shard = shard_of(&told.user);
    let Some((store, epoch)) = nodes.owner(shard).await else {
        return;
    };
    let run = Run::new();
    let mut answers = Vec::new();
    for n in told.accepted + 1..=told.accepted + WINDOW {
        let id = MessageId::new(epoch, nodes.next.fetch_add(1, Ordering::Relaxed));
        let key = format!("{}-{n}", told.user).into();
        let again = n <= *tried;
        let new = NewMessage { id, key, again, run: run.clone(), ..message(&told.user, n) };
        answers.push(submit(&*store, vec![Write::Append(new)]));
        *tried = n.max(*tried);
    }
    let mut retry = false;
    for answer in answers {
        match answer.await.expect("is answered").remove(0) {
            Outcome::Retry | Outcome::NotMine => retry = true,
            Outcome::Stored | Outcome::Already { .. } => {
                assert!(!retry, "{}: one overtook another", told.user);
                told.accepted += 1;
            }
            other => panic!("{}: {other:?}", told.user),
        }
    }
}

/// The next page, if there is a node to read it from.
async fn read(nodes: &Nodes, told: &mut Told) -> bool {
    let Some((store, _)) = nodes.owner(shard_of(&told.user)).await else {
        return true;
    };
    let limit = PageLimit { rows: 10, bytes: 1 << 20 };
    let page = store.page(bare(&told.user), MessageId(told.cursor), limit).await;
    let Ok(page) = page else {
        return true;
    };
    let Some(last) = page.last() else {
        return false;
    };
    told.cursor = last.id.0;
    told.read.extend(page.iter().map(|row| number(&row.key)));
    if told.deletes {
        let ids: Vec<i64> = page.iter().map(|row| row.id.0).collect();
        // Whether it can is another matter.
        run(&*store, vec![delete(&told.user, &ids)]).await;
    }
    true
}
