//! The shell round the machine: it waits for inputs and for the time, and carries out what
//! the machine asks for.

mod elsewhere;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::shard::Outbox;
use crate::store::{BroadcastChange, BroadcastStore, Clock, Fate, Store, StoreError};

use super::input::{Answered, Asker, Effect, Input, Now, Settings};
use super::machine::Machine;
use super::{Command, Problem, ProblemKind, Reply};
use elsewhere::Elsewhere;

/// The pause before the store is asked again for what there is.
const PAUSE: Duration = Duration::from_secs(1);

/// What the broadcasts of a node need.
#[derive(Clone)]
pub struct BroadcastContext {
    /// The broadcasts.
    pub broadcasts: Arc<dyn BroadcastStore>,
    /// The messages, to see whether one is stored.
    pub messages: Arc<dyn Store>,
    /// The links.
    pub outbox: Outbox,
    /// Wall time.
    pub clock: Clock,
    /// The hosts that this node serves.
    pub hosts: Vec<Arc<str>>,
    /// Nodes share the database. One of them runs the broadcasts: see [`BroadcastHandle::begin`].
    pub shared: bool,
}

enum Event {
    Input(Input),
    Command { command: Command, host: Option<Arc<str>>, tell: oneshot::Sender<Reply> },
    Begin,
    End,
    Replied { from: u32, number: u64, reply: Bytes },
    PeerDown(u32),
}

/// The way to the broadcasts of a node. Its queue is bounded by what puts into it: links say
/// one thing for each thing asked (64 a broadcast, 16 broadcasts), and whoever gives a
/// command waits for the reply.
#[derive(Clone)]
pub struct BroadcastHandle(mpsc::UnboundedSender<Event>);

impl BroadcastHandle {
    /// Carries a command out. `host`: the only host that may be concerned.
    pub fn command(&self, command: Command, host: Option<Arc<str>>) -> BoxFuture<'static, Reply> {
        let (tell, told) = oneshot::channel();
        self.send(Event::Command { command, host, tell });
        Box::pin(async move {
            let ended = || Problem::reply(ProblemKind::Unavailable, "the node is stopping");
            told.await.unwrap_or_else(|_| ended())
        })
    }

    /// The answer to a request.
    pub fn answered(&self, number: u64, answer: Answered) {
        self.send(Event::Input(Input::Answered { number, answer }));
    }

    /// The interceptor of a host is there.
    pub fn host_up(&self, host: Arc<str>, max_stanza: usize) {
        self.send(Event::Input(Input::HostUp { host, max_stanza }));
    }

    /// It is not.
    pub fn host_down(&self, host: Arc<str>) {
        self.send(Event::Input(Input::HostDown { host }));
    }

    /// This node runs the broadcasts of all that share its database from now on.
    pub fn begin(&self) {
        self.send(Event::Begin);
    }

    /// Another node does.
    pub fn end(&self) {
        self.send(Event::End);
    }

    /// Carries out what another node has passed on; the reply is for that node.
    pub fn passed_on(
        &self,
        command: &Bytes,
        host: Option<Arc<str>>,
    ) -> impl Future<Output = Bytes> + use<> {
        let asked = elsewhere::read(command).map(|command| self.command(command, host));
        async move {
            let reply = match asked {
                Ok(reply) => reply.await,
                Err(problem) => Reply::Problem(problem),
            };
            serde_json::to_vec(&reply).unwrap_or_default().into()
        }
    }

    /// Another node replies to a command that was passed on.
    pub fn replied(&self, from: u32, number: u64, reply: Bytes) {
        self.send(Event::Replied { from, number, reply });
    }

    /// Another node is out of reach.
    pub fn peer_down(&self, peer: u32) {
        self.send(Event::PeerDown(peer));
    }

    /// Nothing more is sent; what comes in is recorded.
    pub fn stop(&self) {
        self.send(Event::Input(Input::Stop));
    }

    fn send(&self, event: Event) {
        // The task ends with the node.
        let _ = self.0.send(event);
    }

    /// A handle, and what it leads to: to be given to [`run`].
    pub fn new() -> (Self, Inbox) {
        let (sender, inbox) = mpsc::unbounded_channel();
        // A task that kept its own door open would never end.
        let door = sender.downgrade();
        (BroadcastHandle(sender), Inbox { inbox, door })
    }
}

/// What was said through the handle.
pub struct Inbox {
    inbox: mpsc::UnboundedReceiver<Event>,
    door: mpsc::WeakUnboundedSender<Event>,
}

/// Runs until all handles are gone.
pub async fn run(context: BroadcastContext, inbox: Inbox) {
    let Inbox { mut inbox, door } = inbox;
    let mut kept = Kept::default();
    let mut runs = !context.shared;
    loop {
        if !runs && !idle(&mut inbox, &mut kept, &context.outbox).await {
            return;
        }
        let settings = Settings { hosts: context.hosts.clone() };
        let shell = Shell {
            machine: Machine::new(settings),
            context: context.clone(),
            door: door.clone(),
            began: Instant::now(),
            askers: HashMap::new(),
            next_asker: 0,
        };
        if !shell.run(&mut inbox, &mut kept).await {
            return;
        }
        runs = false;
    }
}

/// What is known whether this node runs the broadcasts or not.
#[derive(Default)]
struct Kept {
    /// The hosts whose interceptors are there, and what their servers take.
    up: HashMap<Arc<str>, usize>,
    elsewhere: Elsewhere,
}

impl Kept {
    fn note_host(&mut self, input: &Input) {
        match input {
            Input::HostUp { host, max_stanza } => {
                self.up.insert(host.clone(), *max_stanza);
            }
            Input::HostDown { host } => {
                self.up.remove(host);
            }
            _ => {}
        }
    }
}

/// While another node runs the broadcasts. False: this one ends.
async fn idle(
    inbox: &mut mpsc::UnboundedReceiver<Event>,
    kept: &mut Kept,
    outbox: &Outbox,
) -> bool {
    while let Some(event) = inbox.recv().await {
        match event {
            Event::Begin => return true,
            Event::End => {}
            Event::Input(input) => kept.note_host(&input),
            Event::Command { command, host, tell } => {
                kept.elsewhere.pass_on(outbox, &command, host, tell);
            }
            Event::Replied { from, number, reply } => {
                kept.elsewhere.replied(from, number, &reply);
            }
            Event::PeerDown(peer) => kept.elsewhere.peer_down(peer),
        }
    }
    false
}

struct Shell {
    machine: Machine,
    context: BroadcastContext,
    door: mpsc::WeakUnboundedSender<Event>,
    began: Instant,
    askers: HashMap<Asker, oneshot::Sender<Reply>>,
    next_asker: u64,
}

impl Shell {
    /// Until another node runs the broadcasts; false: this one ends.
    async fn run(mut self, inbox: &mut mpsc::UnboundedReceiver<Event>, kept: &mut Kept) -> bool {
        self.load();
        for (host, max_stanza) in kept.up.clone() {
            let effects = self.machine.handle(self.now(), Input::HostUp { host, max_stanza });
            self.carry_out(effects);
        }
        loop {
            let now = self.now();
            let wake = self.machine.wake_at(now).map(|at| at.saturating_sub(now.steady));
            let event = tokio::select! {
                event = inbox.recv() => match event {
                    Some(event) => event,
                    None => return false,
                },
                () = sleep(wake.unwrap_or_default()), if wake.is_some() => Event::Input(Input::Wake),
            };
            let input = match event {
                Event::Begin => continue,
                Event::End => return true,
                Event::Replied { from, number, reply } => {
                    kept.elsewhere.replied(from, number, &reply);
                    continue;
                }
                Event::PeerDown(peer) => {
                    kept.elsewhere.peer_down(peer);
                    continue;
                }
                Event::Input(input) => {
                    kept.note_host(&input);
                    input
                }
                Event::Command { command, host, tell } => {
                    self.next_asker += 1;
                    let asker = Asker(self.next_asker);
                    self.askers.insert(asker, tell);
                    let token = format!("{:012x}", fastrand::u64(..1 << 48));
                    Input::Command { asker, command, host, token }
                }
            };
            let effects = self.machine.handle(self.now(), input);
            self.carry_out(effects);
        }
    }

    fn now(&self) -> Now {
        Now { wall: (self.context.clock)(), steady: self.began.elapsed() }
    }

    /// Reads what there is, as often as it takes.
    fn load(&self) {
        let broadcasts = self.context.broadcasts.clone();
        self.answer(async move {
            let mut told = String::new();
            loop {
                match broadcasts.broadcasts().await {
                    Ok(rows) => return Some(Input::Loaded(rows)),
                    Err(StoreError::Closed) => return None,
                    Err(error) if error.to_string() == told => {}
                    Err(error) => {
                        told = error.to_string();
                        tracing::warn!("cannot read the broadcasts; trying again: {told}");
                    }
                }
                sleep(PAUSE).await;
            }
        });
    }

    /// Lets something take its time; its outcome comes as an input.
    fn answer(&self, question: impl Future<Output = Option<Input>> + 'static) {
        let door = self.door.clone();
        actix_rt::spawn(async move {
            if let Some(input) = question.await
                && let Some(door) = door.upgrade()
            {
                let _ = door.send(Event::Input(input));
            }
        });
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Ask(request) => {
                    let number = request.number;
                    if !self.context.outbox.ask(request) {
                        let answer = Answered::Failed("the server is not connected".to_owned());
                        self.answer(async move { Some(Input::Answered { number, answer }) });
                    }
                }
                Effect::Change { write, change } => {
                    note(&change);
                    let changed = self.context.broadcasts.change(change);
                    self.answer(async move {
                        let rows = changed.await.map_err(|error| error.to_string());
                        Some(Input::Changed { write, rows })
                    });
                }
                Effect::Read { broadcast, after, limit } => {
                    let read = self.context.broadcasts.recipients(broadcast, after, limit);
                    self.answer(async move {
                        let rows = read.await.map_err(|error| error.to_string());
                        Some(Input::Page { broadcast, rows })
                    });
                }
                Effect::Find { broadcast, recipient, key } => {
                    let found = self.context.messages.find(recipient.bare.clone(), key.into());
                    self.answer(async move {
                        let known = found.await.map(|found| found.is_some());
                        let known = known.map_err(|error| error.to_string());
                        Some(Input::Found { broadcast, recipient, known })
                    });
                }
                Effect::Reply { asker, reply } => {
                    if let Some(tell) = self.askers.remove(&asker) {
                        // Whoever asked may be gone.
                        let _ = tell.send(reply);
                    }
                }
            }
        }
    }
}

/// What the log and the metrics say about a change.
fn note(change: &BroadcastChange) {
    let settled = match change {
        BroadcastChange::Create(new) => {
            let (id, host, everyone) = (new.id, new.host.as_str(), new.everyone);
            return tracing::info!(id, host, everyone, expires_at = %new.expires_at, "a broadcast");
        }
        BroadcastChange::SetState { broadcast, state, ended_at } => {
            let (id, over) = (*broadcast, ended_at.is_some());
            return tracing::info!(id, ?state, over, "a broadcast goes on");
        }
        BroadcastChange::Settle { settled, .. } => settled,
        _ => return,
    };
    for (_, fate) in settled {
        let fate = match fate {
            Fate::Delivered => "delivered",
            Fate::Stored => "stored",
            Fate::Discarded => "discarded",
            Fate::Expired => "expired",
            Fate::Cancelled => "cancelled",
        };
        metrics::counter!("amphora_broadcast_settled_total", "fate" => fate).increment(1);
    }
}
