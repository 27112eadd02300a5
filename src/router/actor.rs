//! The router: finds the shard of each input and sends it to that shard's actor.
//!
//! Its mailbox has no bound of its own, as the shards' have none: links watch their
//! windows, and nothing else puts work in.

use std::sync::Arc;

use actix::{Actor, Addr, Context, Handler, Message, ResponseFuture};

use crate::shard::{Busy, Input, Inputs, ShardActor};
use crate::shard_map::ShardMap;
use crate::words::{Bare, LinkId};

use super::place::{Hold, Moved, Ownership};

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

/// How many intercepts and writes are under way in all shards.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Settle;

/// Finds shards.
pub struct Router {
    map: ShardMap,
    shards: Vec<Addr<ShardActor>>,
}

impl Router {
    /// A router over these shards, in the order of their numbers; there is one at least.
    pub fn new(shards: Vec<Addr<ShardActor>>) -> Self {
        let count = u32::try_from(shards.len()).unwrap_or(u32::MAX);
        Router { map: ShardMap::new(count), shards }
    }

    /// A router over so many shards that nodes share; none is anywhere until it is told by
    /// [`Moved`].
    pub fn shared(count: u32, _ownership: Box<dyn Ownership>) -> Self {
        Router { map: ShardMap::new(count), shards: Vec::new() }
    }
}

impl Handler<Moved> for Router {
    type Result = ();

    fn handle(&mut self, _: Moved, _: &mut Self::Context) {}
}

impl Handler<Hold> for Router {
    type Result = ();

    fn handle(&mut self, _: Hold, _: &mut Self::Context) {}
}

impl Actor for Router {
    type Context = Context<Self>;
}

impl Handler<Route> for Router {
    type Result = ();

    fn handle(&mut self, route: Route, _: &mut Self::Context) {
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
            self.shards[shard as usize].do_send(Inputs(batch));
        }
    }
}

impl Handler<Everywhere> for Router {
    type Result = ();

    fn handle(&mut self, what: Everywhere, _: &mut Self::Context) {
        for shard in &self.shards {
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
        let asked: Vec<_> = self.shards.iter().map(|shard| shard.send(Busy)).collect();
        Box::pin(async move {
            let busy = futures::future::join_all(asked).await;
            // A shard that is gone has nothing under way.
            busy.into_iter().map(|n| n.unwrap_or(0)).sum()
        })
    }
}
