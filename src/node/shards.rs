//! The shards of a node: their actors, all of them from the start, or those that come and go.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, Addr};
use actix_rt::{Arbiter, ArbiterHandle};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use tokio::time::{Instant, sleep};

use crate::cluster::Home;
use crate::cluster::machine::Place;
use crate::router::{self, Hold, Moved, Router};
use crate::shard::{self, Busy, Quotas, ShardActor, ShardContext};
use crate::store::StoreSettings;
use crate::words::ShardId;

/// How long shards that are to be given away may take to finish what they have under way: as long
/// as an append may wait. What is not done then is asked for again by the interceptors.
const QUIET: Duration = Duration::from_secs(5);

/// How often they are asked.
const LOOK: Duration = Duration::from_millis(5);

/// Makes the actors of shards, on as many threads as there are cores, but one, which the links
/// have: more threads than that cost more in waking each other than they gain.
#[derive(Clone)]
pub(super) struct Nursery {
    threads: Vec<ArbiterHandle>,
    quotas: Arc<Quotas>,
    context: ShardContext,
}

impl Nursery {
    /// For so many shards at most; and the threads, which end when they are told.
    pub(super) fn new(shards: u32, quotas: Quotas, context: ShardContext) -> (Self, Vec<Arbiter>) {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = cores.saturating_sub(1).clamp(1, shards as usize);
        let arbiters: Vec<Arbiter> = (0..threads).map(|_| Arbiter::new()).collect();
        let threads = arbiters.iter().map(Arbiter::handle).collect();
        (Nursery { threads, quotas: Arc::new(quotas), context }, arbiters)
    }

    /// A shard that knows nothing yet, with the epoch that the store has for it.
    pub(super) fn start(&self, shard: ShardId) -> Addr<ShardActor> {
        self.start_in(shard, self.context.store.epoch(shard))
    }

    /// The same with that epoch: of a shard that was given to this node the store may not know yet.
    fn start_in(&self, shard: ShardId, epoch: u32) -> Addr<ShardActor> {
        let machine = shard::Settings {
            epoch,
            quotas: self.quotas.clone(),
            memory: StoreSettings::new("").memory_of_keys,
        };
        let context = self.context.clone();
        let thread = &self.threads[shard.0 as usize % self.threads.len()];
        ShardActor::start_in_arbiter(thread, move |_| ShardActor::new(shard, machine, context))
    }
}

/// The shards of a node that shares them: those that are here.
pub(super) struct SharedShards {
    nursery: Nursery,
    router: Addr<Router>,
    here: Mutex<HashMap<ShardId, (u32, Addr<ShardActor>)>>,
}

impl SharedShards {
    /// None is here yet.
    pub(super) fn new(nursery: Nursery, router: Addr<Router>) -> Self {
        SharedShards { nursery, router, here: Mutex::default() }
    }

    /// Another epoch is another actor: the one before knows nothing of what happened elsewhere.
    fn settle(&self, shard: ShardId, place: Place) -> router::Place {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let Place::Here { epoch } = place else {
            here.remove(&shard);
            return match place {
                Place::Peer { node, epoch } => router::Place::Peer { node, epoch },
                _ => router::Place::Nowhere,
            };
        };
        let known = here.get(&shard).filter(|(known, _)| *known == epoch);
        let actor = match known {
            Some((_, actor)) => actor.clone(),
            None => self.nursery.start_in(shard, epoch),
        };
        here.insert(shard, (epoch, actor.clone()));
        router::Place::Here { actor, epoch }
    }
}

impl Home for SharedShards {
    fn place(&self, moved: Vec<(ShardId, Place)>) {
        let moved = moved.into_iter().map(|(shard, place)| (shard, self.settle(shard, place)));
        self.router.do_send(Moved(moved.collect()));
    }

    fn hold(&self, shards: Vec<ShardId>) -> BoxFuture<'static, ()> {
        let router = self.router.clone();
        let here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let actors: Vec<Addr<ShardActor>> =
            shards.iter().filter_map(|shard| here.get(shard)).map(|(_, a)| a.clone()).collect();
        drop(here);
        async move {
            // An error: the node ends, and nothing comes any more.
            let _ = router.send(Hold(shards)).await;
            let deadline = Instant::now() + QUIET;
            while Instant::now() < deadline {
                let asked = actors.iter().map(|actor| actor.send(Busy));
                // A shard that is gone has nothing under way.
                if join_all(asked).await.into_iter().all(|busy| busy.unwrap_or(0) == 0) {
                    return;
                }
                sleep(LOOK).await;
            }
            tracing::info!(
                "shards are given away before they have finished; what is left is asked for again"
            );
        }
        .boxed()
    }
}
