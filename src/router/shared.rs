//! The router of a node that shares the shards with others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use actix::{Addr, AsyncContext, Context};
use tokio::sync::mpsc::UnboundedSender;

use crate::broadcast::BroadcastHandle;
use crate::shard::wire::{Crossing, Entry};
use crate::shard::{Answered, DueEvent, Input, Inputs, Leave, Left, Outbox, Sent, ShardActor, Way};
use crate::shard_map::ShardMap;
use crate::words::{Bare, MessageId, ShardId};

use super::actor::{Everywhere, Router};
use super::peers::{FromPeer, PeerUp};
use super::place::{Ownership, Place};
use super::places::{At, Effect, Places};

/// What the router of such a node needs.
pub struct Sharing {
    /// Who knows the places.
    pub ownership: Box<dyn Ownership>,
    /// The links.
    pub outbox: Outbox,
    /// The expiry clock.
    pub due: UnboundedSender<DueEvent>,
    /// The broadcasts.
    pub broadcasts: BroadcastHandle,
}

/// Places, and what is done about them.
pub(super) struct Shared {
    pub(super) places: Places<Addr<ShardActor>>,
    ways: HashMap<u32, Way>,
    sharing: Sharing,
    /// Hosts that are reached through other nodes.
    hosts: Vec<Arc<str>>,
    /// This node runs the broadcasts: whoever has the first shard does.
    broadcasts: bool,
}

impl Shared {
    pub(super) fn new(count: u32, sharing: Sharing) -> Self {
        Shared {
            places: Places::new(count),
            ways: HashMap::new(),
            sharing,
            hosts: Vec::new(),
            broadcasts: false,
        }
    }

    pub(super) fn moved(&mut self, moved: Vec<(ShardId, Place)>) {
        for (shard, place) in moved {
            let at = match place {
                Place::Here { actor, epoch } => At::Here(actor, epoch),
                Place::Peer { node, epoch } => At::Peer(node, epoch),
                Place::Nowhere => At::Nowhere,
            };
            self.places.moved(Instant::now(), shard, at);
        }
        self.sharing.outbox.set_broadcasts(self.places.peer_of(ShardId(0)));
        let broadcasts = self.places.is_here(ShardId(0));
        if broadcasts != std::mem::replace(&mut self.broadcasts, broadcasts) {
            match broadcasts {
                true => self.sharing.broadcasts.begin(),
                false => self.sharing.broadcasts.end(),
            }
        }
    }

    /// Links, or the expiry clock, say this.
    pub(super) fn route(&mut self, map: ShardMap, inputs: Vec<(Bare, Input)>) {
        let mut inputs: Vec<(ShardId, (Bare, Input))> =
            inputs.into_iter().map(|input| (map.shard(&input.0), input)).collect();
        // Stable: what goes to one shard keeps its order.
        inputs.sort_by_key(|(shard, _)| *shard);
        let mut inputs = inputs.into_iter().peekable();
        let now = Instant::now();
        while let Some((shard, first)) = inputs.next() {
            let mut batch = vec![first];
            while let Some((_, next)) = inputs.next_if(|(s, _)| *s == shard) {
                batch.push(next);
            }
            self.places.ask(now, shard, batch);
        }
    }

    /// Links say this of themselves.
    pub(super) fn everywhere(&mut self, what: &Everywhere) {
        match what {
            Everywhere::LinkDown(link) => self.places.link_down(*link, None),
            Everywhere::HostDown(link, host) => self.places.link_down(*link, Some(host)),
        }
        self.hosts_changed();
    }

    /// Does what is to be done by now.
    pub(super) fn carry_out(&mut self, map: ShardMap, context: &mut Context<Router>) {
        let mut due_anew = false;
        loop {
            let effects = self.places.effects();
            if effects.is_empty() {
                break;
            }
            for effect in effects {
                match effect {
                    Effect::Shard(actor, inputs) => actor.do_send(Inputs(inputs)),
                    Effect::Peer(peer, entries) => {
                        if let Some(way) = self.ways.get(&peer) {
                            way.put(entries);
                        }
                    }
                    Effect::Link(link, what) => self.sharing.outbox.tell(link, what),
                    Effect::Leave(shard, actor) => leave(shard, &actor, context),
                    Effect::LookAgain => self.sharing.ownership.look_again(),
                    Effect::DueTaken => self.wake(DueEvent::Taken),
                    Effect::DueAnew => due_anew = true,
                    Effect::Other(peer, crossing) => self.other(map, peer, crossing),
                }
            }
        }
        if due_anew {
            self.wake(DueEvent::Anew);
        }
    }

    fn wake(&self, event: DueEvent) {
        // The clock ends only when the node does.
        let _ = self.sharing.due.send(event);
    }

    fn other(&mut self, map: ShardMap, peer: u32, crossing: Crossing) {
        let outbox = &self.sharing.outbox;
        match crossing {
            Crossing::Hosts(hosts) => {
                outbox.set_peer_hosts(peer, hosts);
                self.hosts_known();
            }
            Crossing::Send(send) => {
                let host = send.user.rsplit('@').next().unwrap_or(&send.user).to_owned();
                if let Err(send) = outbox.send_here(&host, send) {
                    self.route(map, vec![not_sent(send.user, send.id)]);
                }
            }
            Crossing::Request(request) => {
                let asked = request.number;
                if outbox.ask_here(request.of_peer(peer)).is_some() {
                    let failed = Answered::Failed("the server is not connected".to_owned());
                    outbox.answer(peer, asked, &failed);
                }
            }
            Crossing::Answered { number, answer } if outbox.answered_by_peer(peer, number) => {
                self.sharing.broadcasts.answered(number, answer);
            }
            Crossing::Command { number, host, command } => {
                let reply = self.sharing.broadcasts.passed_on(&command, host);
                let outbox = outbox.clone();
                actix_rt::spawn(async move { outbox.reply(peer, number, &reply.await) });
            }
            Crossing::Reply { number, reply } => {
                self.sharing.broadcasts.replied(peer, number, reply);
            }
            _ => {}
        }
    }

    /// The hosts that are reached through other nodes are others now. Notices that found no link
    /// may find one.
    fn hosts_known(&mut self) {
        self.wake(DueEvent::Anew);
        let there = self.sharing.outbox.hosts_of_peers();
        let own = self.sharing.outbox.greeted();
        let gone = |name: &Arc<str>| !there.iter().chain(&own).any(|host| host.name == *name);
        for name in self.hosts.iter().filter(|name| gone(name)) {
            self.sharing.broadcasts.host_down(name.clone());
        }
        self.hosts = there.iter().map(|host| host.name.clone()).collect();
        for host in there {
            self.sharing.broadcasts.host_up(host.name, host.max_stanza);
        }
    }

    /// The hosts of this node's links are others now.
    pub(super) fn hosts_changed(&mut self) {
        let hosts = Entry::hosts(&self.sharing.outbox.greeted());
        for way in self.ways.values() {
            way.put(vec![hosts.clone()]);
        }
        self.hosts_known();
    }

    pub(super) fn peer_up(&mut self, up: PeerUp) {
        let PeerUp { node, way } = up;
        self.sharing.outbox.peer_up(way.clone());
        way.put(vec![Entry::hosts(&self.sharing.outbox.greeted())]);
        self.ways.insert(node.number, way);
        self.places.peer_up(&node);
        self.hosts_known();
    }

    /// What the other node had said may be lost, the names of its hosts too.
    pub(super) fn peer_forgot(&mut self, peer: u32) {
        self.sharing.outbox.set_peer_hosts(peer, Vec::new());
        self.places.peer_forgot(peer);
        self.hosts_known();
    }

    pub(super) fn peer_down(&mut self, map: ShardMap, peer: u32) {
        self.ways.remove(&peer);
        let lost = self.sharing.outbox.peer_down(peer);
        self.sharing.broadcasts.peer_down(peer);
        self.places.peer_down(peer);
        self.route(map, lost.sends.into_iter().map(|(user, id)| not_sent(user, id)).collect());
        for number in lost.requests {
            let failed = Answered::Failed("the node with the link is out of reach".to_owned());
            self.sharing.broadcasts.answered(number, failed);
        }
        self.hosts_known();
    }

    pub(super) fn hear(&mut self, from: FromPeer) {
        for crossing in &from.crossings {
            if let Crossing::Ask { input: Input::Sent { user, id, .. }, .. } = crossing {
                self.sharing.outbox.sent_by_peer(user, *id);
            }
        }
        self.places.hear(Instant::now(), from.peer, from.crossings);
    }
}

fn not_sent(user: Bare, id: MessageId) -> (Bare, Input) {
    (user.clone(), Input::Sent { user, id, sent: Sent::Failed })
}

/// Asks an actor what it leaves. One that is gone leaves nothing.
fn leave(shard: ShardId, actor: &Addr<ShardActor>, context: &mut Context<Router>) {
    let router = context.address();
    let leaves = actor.send(Leave);
    actix_rt::spawn(async move {
        let left = leaves.await.unwrap_or_default();
        router.do_send(HasLeft(shard, left));
    });
}

/// What the actor of a shard leaves.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub(super) struct HasLeft(pub(super) ShardId, pub(super) Left);
