//! The router: finds the shard of each input and sends it to that shard's actor, or to the node
//! that has it.
//!
//! Its mailbox has no bound of its own, as the shards' have none: links watch their
//! windows, and nothing else puts work in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture};

use crate::shard::{Busy, Input, Inputs, ShardActor};
use crate::shard_map::ShardMap;
use crate::words::{Bare, LinkId};

use super::peers::{FromPeer, HostsChanged, PeerDown, PeerForgot, PeerUp};
use super::place::{Hold, Moved};
use super::shared::{HasLeft, Shared, Sharing};

/// How often a router that shares its shards looks for what is old.
const TICK: Duration = Duration::from_secs(1);

/// Inputs, each for the shard of its user, in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Route(pub Vec<(Bare, Input)>);

/// Something that concerns every shard.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub enum Everywhere {
    /// A link has closed.
    LinkDown(LinkId),
    /// An interceptor on a link was loaded anew.
    HostDown(LinkId, Arc<str>),
}

/// How many intercepts and writes are under way in all shards of this node, and how many
/// intercepts of its links are at others.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Settle;

/// Finds shards.
pub struct Router {
    map: ShardMap,
    shards: Shards,
}

enum Shards {
    /// All in this node, in the order of their numbers.
    Alone(Vec<Addr<ShardActor>>),
    /// Nodes share them.
    Shared(Box<Shared>),
}

impl Router {
    /// A router over these shards, in the order of their numbers; there is one at least.
    pub fn new(shards: Vec<Addr<ShardActor>>) -> Self {
        let count = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        Router { map: ShardMap::new(count), shards: Shards::Alone(shards) }
    }

    /// A router over so many shards that nodes share; none is anywhere until it is told by
    /// [`Moved`].
    pub fn shared(count: u32, sharing: Sharing) -> Self {
        let shards = Shards::Shared(Box::new(Shared::new(count, sharing)));
        Router { map: ShardMap::new(count), shards }
    }

    /// Something about nodes. One that is alone hears nothing of the kind.
    fn with_shared(&mut self, context: &mut Context<Self>, what: impl FnOnce(&mut Shared)) {
        if let Shards::Shared(shared) = &mut self.shards {
            what(shared);
            shared.carry_out(self.map, context);
        }
    }
}

impl Actor for Router {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        if let Shards::Shared(_) = self.shards {
            context.run_interval(TICK, |router, context| {
                router.with_shared(context, |shared| shared.places.tick(Instant::now()));
            });
        }
    }
}

impl Handler<Route> for Router {
    type Result = ();

    fn handle(&mut self, route: Route, context: &mut Self::Context) {
        let shards = match &self.shards {
            Shards::Alone(shards) => shards,
            Shards::Shared(_) => {
                let map = self.map;
                return self.with_shared(context, |shared| shared.route(map, route.0));
            }
        };
        let mut inputs: Vec<(u32, Input)> =
            route.0.into_iter().map(|(user, input)| (self.map.shard(&user).0, input)).collect();
        // Stable: what goes to one shard keeps its order.
        inputs.sort_by_key(|(shard, _)| *shard);
        let mut inputs = inputs.into_iter().peekable();
        while let Some((shard, first)) = inputs.next() {
            let mut batch = vec![first];
            while let Some((_, next)) = inputs.next_if(|(s, _)| *s == shard) {
                batch.push(next);
            }
            shards[shard as usize].do_send(Inputs(batch));
        }
    }
}

impl Handler<Everywhere> for Router {
    type Result = ();

    fn handle(&mut self, what: Everywhere, context: &mut Self::Context) {
        let shards = match &self.shards {
            Shards::Alone(shards) => shards,
            Shards::Shared(_) => {
                return self.with_shared(context, |shared| shared.everywhere(&what));
            }
        };
        for shard in shards {
            let input = match what.clone() {
                Everywhere::LinkDown(link) => Input::LinkDown(link),
                Everywhere::HostDown(link, host) => Input::HostDown { link, host },
            };
            shard.do_send(Inputs(vec![input]));
        }
    }
}

impl Handler<Settle> for Router {
    type Result = ResponseFuture<usize>;

    fn handle(&mut self, _: Settle, _: &mut Self::Context) -> Self::Result {
        let (asked, elsewhere): (Vec<_>, usize) = match &self.shards {
            Shards::Alone(shards) => (shards.iter().map(|shard| shard.send(Busy)).collect(), 0),
            Shards::Shared(shared) => {
                let places = &shared.places;
                (places.here().map(|shard| shard.send(Busy)).collect(), places.undecided())
            }
        };
        Box::pin(async move {
            let busy = futures::future::join_all(asked).await;
            // A shard that is gone has nothing under way.
            elsewhere + busy.into_iter().map(|n| n.unwrap_or(0)).sum::<usize>()
        })
    }
}

impl Handler<Moved> for Router {
    type Result = ();

    fn handle(&mut self, moved: Moved, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.moved(moved.0));
    }
}

impl Handler<Hold> for Router {
    type Result = ();

    fn handle(&mut self, hold: Hold, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.places.hold(&hold.0));
    }
}

impl Handler<HasLeft> for Router {
    type Result = ();

    fn handle(&mut self, HasLeft(shard, left): HasLeft, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.places.left(Instant::now(), shard, left));
    }
}

impl Handler<PeerUp> for Router {
    type Result = ();

    fn handle(&mut self, up: PeerUp, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.peer_up(up));
    }
}

impl Handler<PeerDown> for Router {
    type Result = ();

    fn handle(&mut self, PeerDown(peer): PeerDown, context: &mut Self::Context) {
        let map = self.map;
        self.with_shared(context, |shared| shared.peer_down(map, peer));
    }
}

impl Handler<PeerForgot> for Router {
    type Result = ();

    fn handle(&mut self, PeerForgot(peer): PeerForgot, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.peer_forgot(peer));
    }
}

impl Handler<FromPeer> for Router {
    type Result = ();

    fn handle(&mut self, from: FromPeer, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.hear(from));
    }
}

impl Handler<HostsChanged> for Router {
    type Result = ();

    fn handle(&mut self, _: HostsChanged, context: &mut Self::Context) {
        self.with_shared(context, |shared| shared.hosts_changed());
    }
}
