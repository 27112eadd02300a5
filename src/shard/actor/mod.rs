//! The actor round a shard's machine: inputs in batches, effects to store and links.
//!
//! Its mailbox has no bound of its own: what is in it is bounded by the windows of the
//! links and by what the shard itself has asked the store for.

mod outbox;
mod way;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, MessageResult};
use futures::future::Either;

use crate::store::{Clock, Job, Outcome, Store, StoreError};
use crate::time::Timestamp;
use crate::words::{Bare, LinkId, ShardId};

pub use outbox::{LinkSender, Lost, Outbox};
pub use way::{Parcel, Way};

use super::effect::{Effect, ToLink, Token};
use super::input::{Input, Sent};
use super::leave::Left;
use super::machine::{Machine, Settings};
use super::quota::Over;
use super::retrieve::{Found, Look};

/// How often a shard forgets what is old.
const TICK: Duration = Duration::from_secs(10);

/// What the expiry clock is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DueEvent {
    /// A message expires then.
    Scheduled(Timestamp),
    /// A due message was dealt with.
    Taken,
    /// A server can be asked again to send notices, or shards have come here: what is due is
    /// looked for anew.
    Anew,
}

/// What every shard of a node shares.
#[derive(Clone)]
pub struct ShardContext {
    /// The offline messages.
    pub store: Arc<dyn Store>,
    /// The links.
    pub outbox: Outbox,
    /// Wall time.
    pub clock: Clock,
    /// Wakes the expiry clock. Its queue is bounded by due messages under way and by
    /// appends under way.
    pub due: tokio::sync::mpsc::UnboundedSender<DueEvent>,
}

/// Inputs for one shard, in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Inputs(pub Vec<Input>);

/// Whether the shard has answered all that it was told so far.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Busy;

/// The shard goes to another node: what it has not answered to links of this one. It is asked
/// nothing after that.
#[derive(Message)]
#[rtype(result = "Left")]
pub struct Leave;

/// The one that decides for a shard's recipients, one message at a time.
pub struct ShardActor {
    id: ShardId,
    machine: Machine,
    context: ShardContext,
}

impl ShardActor {
    /// A shard that is not started yet.
    pub fn new(id: ShardId, settings: Settings, context: ShardContext) -> Self {
        ShardActor { id, machine: Machine::new(settings), context }
    }

    fn take(&mut self, inputs: Vec<Input>, actor: &Addr<Self>) {
        // The database of this shard may have been away when it began.
        self.machine.set_epoch(self.context.store.epoch(self.id));
        let mut effects = Vec::new();
        for input in inputs {
            effects.append(&mut self.machine.handle((self.context.clock)(), input));
        }
        self.carry_out(effects, actor);
    }

    /// Effects of one kind keep their order. What is said on a link waits for nothing
    /// here: whatever depends on a write comes only after that write's outcome.
    fn carry_out(&mut self, effects: Vec<Effect>, actor: &Addr<Self>) {
        let mut links: HashMap<LinkId, Vec<ToLink>> = HashMap::new();
        let mut writes = Vec::new();
        for effect in effects {
            match effect {
                Effect::Link(link, what) => links.entry(link).or_default().push(what),
                Effect::Write(write) => writes.push(write),
                Effect::Scheduled(at) => self.wake(DueEvent::Scheduled(at)),
                Effect::DueTaken => self.wake(DueEvent::Taken),
                Effect::Oversized { user, id, bytes } => {
                    metrics::counter!("amphora_oversized_total").increment(1);
                    tracing::error!(
                        user = &*user,
                        %id,
                        bytes,
                        "a stored message is larger than the server takes and stays stored: raise the server's limit (`component_stanza_size_limit` in Prosody)"
                    );
                }
                Effect::Send(send) => self.send(send, actor),
                Effect::ReadPage { user, after, limit } => {
                    let page = self.context.store.page(user.clone(), after, limit);
                    answer(actor, async move { Input::Page { user, after, rows: page.await } });
                }
                Effect::Look { user, look } => {
                    let found = show(&*self.context.store, user.clone(), look);
                    answer(actor, async move { Input::Looked { user, found: found.await } });
                }
                Effect::Usage { user, question, detail } => {
                    let usage = self.context.store.usage(user.clone(), detail);
                    answer(
                        actor,
                        async move { Input::Usage { user, question, usage: usage.await } },
                    );
                }
                Effect::OverQuota(over) => {
                    let answer = match over {
                        Over::Error => "error",
                        Over::Drop => "none",
                    };
                    metrics::counter!("amphora_over_quota_total", "answer" => answer).increment(1);
                }
                Effect::Find { user, key } => {
                    let found = self.context.store.find(user.clone(), key.clone());
                    answer(actor, async move { Input::Found { user, key, known: found.await } });
                }
            }
        }
        for (link, what) in links {
            self.context.outbox.tell(link, what);
        }
        self.submit(writes, actor);
    }

    /// One job for each kind of write in a row: an append is answered in time only in a
    /// job of its own kind, and the writes of a recipient keep their order.
    fn submit(&self, writes: Vec<super::effect::WriteFor>, actor: &Addr<Self>) {
        use crate::store::Write;
        let is_append = |w: &super::effect::WriteFor| matches!(w.write, Write::Append(_));
        for run in writes.chunk_by(|a, b| is_append(a) == is_append(b)) {
            let tokens: Vec<Token> = run.iter().map(|w| w.token).collect();
            let writes = run.iter().map(|w| w.write.clone()).collect();
            let actor = actor.clone();
            let done = move |outcomes: Vec<Outcome>| {
                let written = tokens.into_iter().zip(outcomes).collect();
                actor.do_send(Inputs(vec![Input::Written(written)]));
            };
            self.context.store.submit(Job { writes, done: Box::new(done) });
        }
    }

    fn send(&self, send: super::effect::Send, actor: &Addr<Self>) {
        let host = send.user.rsplit('@').next().unwrap_or(&send.user).to_owned();
        if let Err(send) = self.context.outbox.send(&host, send) {
            let failed = Input::Sent { user: send.user, id: send.id, sent: Sent::Failed };
            actor.do_send(Inputs(vec![failed]));
        }
    }

    fn wake(&self, event: DueEvent) {
        // The clock ends only when the node does.
        let _ = self.context.due.send(event);
    }
}

/// What a user may see of his messages.
fn show(
    store: &dyn Store,
    user: Bare,
    look: Look,
) -> impl Future<Output = Result<Found, StoreError>> + use<> {
    let found = match look {
        Look::Headers { after, rows } => Either::Left(store.headers(user, after, rows)),
        Look::Messages { after, limit } => Either::Right(store.page(user, after, limit)),
    };
    async move {
        Ok(match found {
            Either::Left(headers) => Found::Headers(headers.await?),
            Either::Right(messages) => Found::Messages(messages.await?),
        })
    }
}

/// Asks the store without holding the shard up; the answer comes as an input.
fn answer(actor: &Addr<ShardActor>, question: impl Future<Output = Input> + 'static) {
    let actor = actor.clone();
    actix_rt::spawn(async move {
        let input = question.await;
        actor.do_send(Inputs(vec![input]));
    });
}

impl Actor for ShardActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        tracing::trace!(shard = self.id.0, "shard started");
        context.run_interval(TICK, |shard, context| {
            shard.take(vec![Input::Tick], &context.address());
        });
    }
}

impl Handler<Inputs> for ShardActor {
    type Result = ();

    fn handle(&mut self, inputs: Inputs, context: &mut Self::Context) {
        self.take(inputs.0, &context.address());
    }
}

impl Handler<Leave> for ShardActor {
    type Result = MessageResult<Leave>;

    fn handle(&mut self, _: Leave, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.machine.leave())
    }
}

impl Handler<Busy> for ShardActor {
    type Result = usize;

    fn handle(&mut self, _: Busy, _: &mut Self::Context) -> usize {
        self.machine.busy()
    }
}
