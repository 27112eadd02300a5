//! Nodes take and give shards at random under load, start anew, lose their connections, and fence
//! each other; whatever came of it, the load's promises hold.

use std::collections::HashMap;
use std::sync::Arc;

use amphora::store::{MoveError, SeaStore, Store, StoreSettings};
use amphora::words::ShardId;
use fastrand::Rng;

use super::load::*;
use super::proxy::{Fate, Proxy};
use super::{ServerBed, TestServer, on_each_server};

on_each_server!(shards_move_at_random, a_node_alone_is_succeeded_at_random);

/// The seed of a run that is to be repeated, as far as other threads let it.
const SEED: &str = "AMPHORA_TEST_SEED";

const NODES: usize = 3;
const STEPS: usize = 40;

struct Cluster {
    at: ServerBed,
    proxies: Vec<Proxy>,
    nodes: Arc<Nodes>,
    random: Rng,
    /// Who owned each shard, and its epoch, when it was looked at last.
    seen: HashMap<ShardId, (Option<amphora::store::Incarnation>, u32)>,
}

async fn shards_move_at_random(at: ServerBed) {
    let random = random();
    let mut proxies = Vec::new();
    let mut stores = Vec::new();
    for n in 0..NODES {
        let proxy = Proxy::to(TestServer::shared(at.kind).port).await;
        stores.push(open(&at, &proxy, shared(&at, &format!("node{n}"))).await);
        proxies.push(proxy);
    }
    take(&stores[0], 0..SHARDS).await;
    let nodes = Nodes::new(stores);
    let mut cluster = Cluster { at, proxies, nodes, random, seen: HashMap::new() };
    let load = Load::start(&cluster.nodes);
    for step in 0..STEPS {
        let what = cluster.step().await;
        eprintln!("{step}: {what}");
        if step % 4 == 0 {
            cluster.settle().await;
            load.goes_on(20).await;
        }
    }
    cluster.settle().await;
    load.goes_on(100).await;
    load.check().await;
}

/// One process after the other has the database alone, and their connections break: in PostgreSQL each
/// has two that write.
async fn a_node_alone_is_succeeded_at_random(at: ServerBed) {
    let mut random = random();
    let proxy = Proxy::to(TestServer::shared(at.kind).port).await;
    let settings = StoreSettings { shards: SHARDS, ..at.bed.settings.clone() };
    let nodes = Nodes::new(vec![open(&at, &proxy, settings.clone()).await]);
    let load = Load::start(&nodes);
    for step in 0..STEPS {
        let what = random.u32(..5);
        eprintln!("{step}: {what}");
        match what {
            0 => proxy.next_commit(Fate::IsLost),
            1 => proxy.next_commit(Fate::IsNotAnswered),
            2 => proxy.cut(),
            3 => {
                let former = nodes.all().remove(0);
                nodes.replace(0, open(&at, &proxy, settings.clone()).await);
                former.superseded().await;
            }
            _ => {
                nodes.all()[0].close().await;
                nodes.replace(0, open(&at, &proxy, settings.clone()).await);
            }
        }
        load.goes_on(20).await;
    }
    load.goes_on(100).await;
    load.check().await;
}

fn random() -> Rng {
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("{SEED}={seed}");
    Rng::with_seed(seed)
}

/// A node behind its proxy; until it opens, however often that is cut.
async fn open(at: &ServerBed, proxy: &Proxy, settings: StoreSettings) -> Arc<SeaStore> {
    let port = TestServer::shared(at.kind).port.to_string();
    let url = settings.url.replace(&port, &proxy.port.to_string());
    loop {
        match SeaStore::open(StoreSettings { url: url.clone(), ..settings.clone() }).await {
            Ok(store) => return Arc::new(store),
            Err(error) => eprintln!("{} does not open yet: {error:?}", settings.node),
        }
    }
}

impl Cluster {
    async fn step(&mut self) -> String {
        let stores = self.nodes.all();
        let one = self.random.usize(..NODES);
        let other = (one + self.random.usize(1..NODES)) % NODES;
        let proxy = self.random.usize(..NODES);
        match self.random.u32(..12) {
            0 => self.proxies[proxy].next_commit(Fate::IsLost),
            1 => self.proxies[proxy].next_commit(Fate::IsNotAnswered),
            2 => self.proxies[proxy].cut(),
            _ => {}
        }
        match self.random.u32(..10) {
            0..5 => {
                let shard = ShardId(self.random.u32(..SHARDS));
                let one = stores.iter().position(|store| store.epoch(shard) > 0).unwrap_or(one);
                let other = (one + self.random.usize(1..NODES)) % NODES;
                let own = (0..SHARDS).map(ShardId).filter(|shard| stores[one].epoch(*shard) > 0);
                let some: Vec<_> = own.filter(|_| self.random.bool()).collect();
                let to = stores[other].incarnation().expect("in a server");
                let given = stores[one].give(some.clone(), to).await;
                expected(&given);
                format!("node{one} gives node{other} {some:?}: {given:?}")
            }
            5 | 6 => {
                let Ok(seen) = stores[one].ownership().await else {
                    return format!("node{one} can't look");
                };
                // Those of one node, and of nobody; who loses one is fenced.
                let own = stores[one].incarnation();
                let from = stores[other].incarnation();
                let some: Vec<_> = seen
                    .shards
                    .into_iter()
                    .filter(|holding| holding.owner != own)
                    .filter(|holding| holding.owner == from || self.random.u32(..4) == 0)
                    .collect();
                let (taken, also) =
                    tokio::join!(stores[one].take(some.clone()), stores[other].take(some.clone()));
                expected(&taken);
                expected(&also);
                assert!(some.is_empty() || taken.is_err() || also.is_err(), "both have it");
                self.mend().await;
                format!("node{one} and node{other} take {}: {taken:?} {also:?}", some.len())
            }
            7 => {
                stores[one].close().await;
                self.start(one).await;
                format!("node{one} has ended and starts again")
            }
            8 => {
                self.start(one).await;
                format!("node{one} is superseded")
            }
            _ => {
                // Appends and reads alone.
                let _ = stores[one].ownership().await;
                format!("node{one} looks")
            }
        }
    }

    async fn open(&self, n: usize) -> Arc<SeaStore> {
        open(&self.at, &self.proxies[n], shared(&self.at, &format!("node{n}"))).await
    }

    async fn start(&mut self, n: usize) {
        let store = self.open(n).await;
        self.nodes.replace(n, store);
        self.look().await;
    }

    /// Those that were fenced start anew.
    async fn mend(&mut self) {
        for n in 0..NODES {
            let fenced = loop {
                match self.nodes.all()[n].ownership().await {
                    Ok(_) => break false,
                    Err(MoveError::Fenced | MoveError::Closed) => break true,
                    Err(_) => {}
                }
            };
            if fenced {
                self.start(n).await;
            }
        }
    }

    /// Every shard has an owner who lives.
    async fn settle(&mut self) {
        self.mend().await;
        loop {
            let stores = self.nodes.all();
            let Ok(seen) = stores[0].ownership().await else {
                continue;
            };
            let alive: Vec<_> = stores.iter().filter_map(|store| store.incarnation()).collect();
            let lost = seen.shards.into_iter();
            let lost = lost.filter(|one| one.owner.as_ref().is_none_or(|own| !alive.contains(own)));
            if stores[0].take(lost.collect()).await.is_ok() {
                break;
            }
        }
        self.look().await;
    }

    /// With another owner comes a later epoch; no epoch ever goes back.
    async fn look(&mut self) {
        let seen = loop {
            if let Ok(seen) = self.nodes.all()[0].ownership().await {
                break seen;
            }
            let place = 0;
            let store = self.open(place).await;
            self.nodes.replace(place, store);
        };
        for one in seen.shards {
            if let Some((owner, epoch)) = self.seen.get(&one.shard) {
                assert!(one.epoch >= *epoch, "{one:?} after {epoch}");
                assert!(one.epoch > *epoch || one.owner == *owner, "{one:?} after {owner:?}");
            }
            self.seen.insert(one.shard, (one.owner, one.epoch));
        }
    }
}

fn expected(moved: &Result<(), MoveError>) {
    use MoveError as E;
    let good = matches!(
        moved,
        Ok(()) | Err(E::Changed | E::ReceiverFenced(_) | E::Fenced | E::Failed(_) | E::Closed)
    );
    assert!(good, "{moved:?}");
}
