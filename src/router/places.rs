//! Where each shard is decided, and what is done about it: an input in, a list of effects out. No
//! actor, no clock, no socket. `A` stands for an actor.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::shard::wire::{Crossing, Entry};
use crate::shard::{Answer, Input, Left, Leg, Refused, Retrieve, Retrieved, ToLink};
use crate::store::Incarnation;
use crate::words::{Bare, LinkId, ShardId};

use super::book::Book;

/// Where a shard is; see [`super::Place`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum At<A> {
    /// In this node, with that epoch.
    Here(A, u32),
    /// In another, with that epoch.
    Peer(Incarnation, u32),
    /// Nobody knows.
    Nowhere,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect<A> {
    /// Give these to the actor of a shard.
    Shard(A, Vec<Input>),
    /// Put these on the way to the node of that number, if there is one now.
    Peer(u32, Vec<Entry>),
    /// Say something on a link of this node.
    Link(LinkId, Vec<ToLink>),
    /// Ask the actor what it leaves, for [`Places::left`].
    Leave(ShardId, A),
    /// Shards are not where they were believed to be.
    LookAgain,
    /// A due message does not get to its shard.
    DueTaken,
    /// Shards are here that were not: what is due there is looked for.
    DueAnew,
    /// Of another node's doing: this is for the links of this one, or for what has asked.
    Other(u32, Crossing),
}

/// What waits until its shard has a place.
#[derive(Debug)]
enum Waits {
    /// From a link of this node.
    Own(Bare, Input),
    /// From another node, with the epoch that it believes in.
    Asked { peer: u32, epoch: u32, input: Input, since: Instant },
}

/// Another node's question that waits for so long is given back to it.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Shard<A> {
    at: At<A>,
    /// The highest epoch that it was seen with.
    epoch: u32,
    /// It leaves: what comes waits. Some: as soon as the actor has said what it leaves, it is there.
    held: Option<Option<At<A>>>,
    waits: Vec<Waits>,
    /// The other node says that it is not there.
    doubted: bool,
}

/// The places of all shards.
#[derive(Debug)]
pub struct Places<A> {
    shards: Vec<Shard<A>>,
    book: Book,
    /// Nodes to which there is a way.
    up: BTreeMap<u32, Incarnation>,
    effects: Vec<Effect<A>>,
}

impl<A: Clone + PartialEq> Places<A> {
    /// So many shards, none of which is anywhere.
    pub fn new(count: u32) -> Self {
        let nowhere =
            || Shard { at: At::Nowhere, epoch: 0, held: None, waits: Vec::new(), doubted: false };
        Places {
            shards: (0..count).map(|_| nowhere()).collect(),
            book: Book::default(),
            up: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// The actors of the shards that are here.
    pub fn here(&self) -> impl Iterator<Item = &A> {
        self.shards.iter().filter_map(|shard| match &shard.at {
            At::Here(actor, _) => Some(actor),
            _ => None,
        })
    }

    /// The node that a shard is at, by the number of its incarnation; zero: this one, or none.
    pub fn peer_of(&self, id: ShardId) -> u32 {
        match self.shards.get(id.0 as usize).map(|shard| (&shard.at, &shard.held)) {
            Some((_, Some(Some(At::Peer(node, _))))) | Some((At::Peer(node, _), _)) => node.number,
            _ => 0,
        }
    }

    /// Whether a shard is here, and stays.
    pub fn is_here(&self, id: ShardId) -> bool {
        let shard = self.shards.get(id.0 as usize);
        shard.is_some_and(|shard| {
            matches!(shard.at, At::Here(..)) && !matches!(shard.held, Some(Some(_)))
        })
    }

    /// Intercepts and removals of accounts that wait for an answer from elsewhere.
    pub fn undecided(&self) -> usize {
        let waiting = self.shards.iter().flat_map(|shard| &shard.waits);
        self.book.undecided() + waiting.filter(|w| matches!(w, Waits::Own(..))).count()
    }

    /// What is to be done by now, in order.
    pub fn effects(&mut self) -> Vec<Effect<A>> {
        std::mem::take(&mut self.effects)
    }

    fn shard(&mut self, shard: ShardId) -> Option<&mut Shard<A>> {
        self.shards.get_mut(shard.0 as usize)
    }

    /// Links of this node, or its expiry clock, say this to one shard.
    pub fn ask(&mut self, now: Instant, id: ShardId, inputs: Vec<(Bare, Input)>) {
        let Some(shard) = self.shard(id) else { return };
        if shard.held.is_some() {
            let inputs = inputs.into_iter().map(|(user, input)| Waits::Own(user, input));
            shard.waits.extend(inputs);
            return;
        }
        if let At::Here(actor, _) = &shard.at {
            let inputs = inputs.into_iter().map(|(_, input)| input).collect();
            let actor = actor.clone();
            self.effects.push(Effect::Shard(actor, inputs));
            return;
        }
        self.send_on(now, id, inputs);
    }

    /// The same, for a shard that is not here.
    fn send_on(&mut self, now: Instant, id: ShardId, inputs: Vec<(Bare, Input)>) {
        let Some(shard) = self.shards.get(id.0 as usize) else { return };
        let to = match &shard.at {
            At::Peer(node, epoch) if self.up.contains_key(&node.number) => {
                Some((node.number, *epoch))
            }
            _ => None,
        };
        let mut entries = Vec::with_capacity(inputs.len());
        for (user, input) in inputs {
            if let Input::Due { .. } = input {
                self.effects.push(Effect::DueTaken);
                continue;
            }
            let Some(input) = self.decide_anywhere(input) else { continue };
            let sent = to.is_some();
            let Some(body) = self.book.note(now, id, &user, &input, sent) else { continue };
            entries.extend(to.map(|(_, epoch)| Entry::ask(id, epoch, false, body)));
        }
        if let Some((peer, _)) = to {
            self.push_on(peer, entries);
        }
    }

    /// What leaves for another server is decided from itself: any shard can.
    fn decide_anywhere(&mut self, input: Input) -> Option<Input> {
        let Input::Intercept(intercept) = &input else { return Some(input) };
        if intercept.leg == Leg::Recipient {
            return Some(input);
        }
        let Some(actor) = self.here().next().cloned() else { return Some(input) };
        self.effects.push(Effect::Shard(actor, vec![input]));
        None
    }

    /// A link of this node has closed, or a host on it was loaded anew.
    pub fn link_down(&mut self, link: LinkId, host: Option<&Arc<str>>) {
        self.tell_here(link, host);
        self.book.forget_link(link, host.map(|host| &**host));
        let entry = match host {
            None => Entry::link_down(link),
            Some(host) => Entry::host_down(link, host),
        };
        for peer in self.up.keys() {
            self.effects.push(Effect::Peer(*peer, vec![entry.clone()]));
        }
    }

    /// Those that are here hear of it.
    fn tell_here(&mut self, link: LinkId, host: Option<&Arc<str>>) {
        let effects: Vec<_> = self
            .here()
            .map(|actor| {
                let down = match host {
                    None => Input::LinkDown(link),
                    Some(host) => Input::HostDown { link, host: host.clone() },
                };
                Effect::Shard(actor.clone(), vec![down])
            })
            .collect();
        self.effects.extend(effects);
        self.forget_waiting(link, host);
    }

    fn forget_waiting(&mut self, link: LinkId, host: Option<&Arc<str>>) {
        for shard in &mut self.shards {
            shard.waits.retain(|waits| {
                let (Waits::Own(_, input) | Waits::Asked { input, .. }) = waits;
                let of = link_of(input);
                !of.is_some_and(|(l, h)| link.covers(l) && host.is_none_or(|host| host == h))
            });
        }
    }

    /// These leave this node: what comes for them waits.
    pub fn hold(&mut self, shards: &[ShardId]) {
        for id in shards {
            if let Some(shard) = self.shard(*id)
                && shard.held.is_none()
                && matches!(shard.at, At::Here(..))
            {
                shard.held = Some(None);
            }
        }
    }

    /// A shard has another place, or the same again.
    pub fn moved(&mut self, now: Instant, id: ShardId, to: At<A>) {
        let Some(shard) = self.shard(id) else { return };
        shard.doubted = false;
        if let At::Here(_, epoch) | At::Peer(_, epoch) = to {
            shard.epoch = shard.epoch.max(epoch);
        }
        match (&shard.at, &to) {
            (At::Here(actor, epoch), At::Here(_, new)) if epoch == new => {
                // It stays after all, unless it has said what it leaves.
                if !matches!(shard.held, Some(Some(_))) {
                    let actor = actor.clone();
                    shard.held = None;
                    self.let_in(id, actor);
                }
            }
            (At::Here(actor, _), _) => {
                let actor = actor.clone();
                if let Some(Some(meant)) = &mut shard.held {
                    *meant = to;
                } else {
                    shard.held = Some(Some(to));
                    self.effects.push(Effect::Leave(id, actor));
                }
            }
            _ => self.settle(now, id, to),
        }
    }

    /// The actor of a shard that leaves has said what it leaves.
    pub fn left(&mut self, now: Instant, id: ShardId, left: Left) {
        for retrieved in left.answers {
            let link = retrieved.asker.link;
            self.effects.push(Effect::Link(link, vec![ToLink::Retrieved(retrieved)]));
        }
        let Some(shard) = self.shard(id) else { return };
        let Some(Some(to)) = shard.held.take() else { return };
        shard.at = At::Nowhere;
        // In front of what came meanwhile.
        let inputs = left.inputs.into_iter().map(|(user, input)| Waits::Own(user, input));
        let waits = std::mem::take(&mut shard.waits);
        shard.waits = inputs.chain(waits).collect();
        self.settle(now, id, to);
    }

    /// A shard that was not here has a place now.
    fn settle(&mut self, now: Instant, id: ShardId, to: At<A>) {
        let Some(shard) = self.shard(id) else { return };
        shard.at = to;
        match shard.at.clone() {
            At::Here(actor, _) => {
                self.effects.push(Effect::DueAnew);
                let again = self.book.take(id);
                self.give_up(again.given_up);
                let asks = again.asks.into_iter().filter_map(read_own).collect();
                self.push(actor.clone(), asks);
                self.let_in(id, actor);
            }
            At::Peer(node, epoch) => {
                self.ask_again(id, node.number, epoch);
                self.let_on(now, id);
            }
            At::Nowhere => self.let_on(now, id),
        }
    }

    /// All that is not answered goes to that place.
    fn ask_again(&mut self, id: ShardId, peer: u32, epoch: u32) {
        if !self.up.contains_key(&peer) {
            return;
        }
        let again = self.book.again(id);
        self.give_up(again.given_up);
        let asks = again.asks.into_iter();
        let entries = asks.map(|(body, again)| Entry::ask(id, epoch, again, body)).collect();
        self.push_on(peer, entries);
    }

    fn give_up(&mut self, retrievals: Vec<Retrieve>) {
        for Retrieve { asker, .. } in retrievals {
            let link = asker.link;
            let answer = Answer::Refused(Refused::INTERRUPTED);
            let retrieved = ToLink::Retrieved(Retrieved { asker, answer });
            self.effects.push(Effect::Link(link, vec![retrieved]));
        }
    }

    /// What has waited goes to the actor; what was meant for another epoch does not.
    fn let_in(&mut self, id: ShardId, actor: A) {
        let Some(shard) = self.shard(id) else { return };
        let At::Here(_, here) = shard.at else { return };
        let mut inputs = Vec::new();
        let mut strangers = Vec::new();
        for waits in std::mem::take(&mut shard.waits) {
            match waits {
                Waits::Own(_, input) => inputs.push(input),
                Waits::Asked { epoch, input, .. } if epoch == here => inputs.push(input),
                other => strangers.push(other),
            }
        }
        self.push(actor, inputs);
        self.send_away(id, strangers);
    }

    /// What has waited goes on to where the shard is.
    fn let_on(&mut self, now: Instant, id: ShardId) {
        let Some(shard) = self.shard(id) else { return };
        let mut own = Vec::new();
        let mut strangers = Vec::new();
        for waits in std::mem::take(&mut shard.waits) {
            match waits {
                Waits::Own(user, input) => own.push((user, input)),
                other => strangers.push(other),
            }
        }
        self.send_on(now, id, own);
        self.send_away(id, strangers);
    }

    /// Other nodes are told that the shard is not here; who believes in an epoch that is not known
    /// here waits on.
    fn send_away(&mut self, id: ShardId, strangers: Vec<Waits>) {
        let Some(shard) = self.shard(id) else { return };
        let known = shard.epoch;
        let mut told = BTreeSet::new();
        for waits in strangers {
            match waits {
                Waits::Asked { peer, epoch, .. } if epoch <= known => {
                    told.insert((peer, epoch));
                }
                other => shard.waits.push(other),
            }
        }
        for (peer, epoch) in told {
            self.effects.push(Effect::Peer(peer, vec![Entry::not_mine(id, epoch)]));
        }
    }

    /// There is a way to another node: what waits for it goes there. What was said to its links
    /// before was not heard.
    pub fn peer_up(&mut self, node: &Incarnation) {
        self.tell_here(LinkId::all_of_peer(node.number), None);
        self.up.insert(node.number, node.clone());
        self.ask_peer_again(node.number);
    }

    /// The other node has forgotten what the links of this one had asked.
    pub fn peer_forgot(&mut self, peer: u32) {
        self.tell_here(LinkId::all_of_peer(peer), None);
        self.ask_peer_again(peer);
    }

    fn ask_peer_again(&mut self, peer: u32) {
        let there = |(id, shard): (usize, &Shard<A>)| match &shard.at {
            At::Peer(node, epoch) if node.number == peer && shard.held.is_none() => {
                Some((ShardId(id as u32), *epoch))
            }
            _ => None,
        };
        let there: Vec<_> = self.shards.iter().enumerate().filter_map(there).collect();
        for (id, epoch) in there {
            self.ask_again(id, peer, epoch);
        }
    }

    /// The way to another node has ended: its links are as good as closed.
    pub fn peer_down(&mut self, peer: u32) {
        self.up.remove(&peer);
        self.tell_here(LinkId::all_of_peer(peer), None);
        self.effects.push(Effect::LookAgain);
    }

    /// What another node says, in order.
    pub fn hear(&mut self, now: Instant, peer: u32, crossings: Vec<Crossing>) {
        let mut asks: Option<(ShardId, A, Vec<Input>)> = None;
        for crossing in crossings {
            if let Crossing::Ask { shard, epoch, input, .. } = crossing {
                let asked = self.asked(now, peer, shard, epoch, input);
                let Some((actor, input)) = asked else { continue };
                match &mut asks {
                    Some((of, _, inputs)) if *of == shard => inputs.push(input),
                    _ => {
                        self.give(asks.take());
                        asks = Some((shard, actor, vec![input]));
                    }
                }
                continue;
            }
            self.give(asks.take());
            self.hear_other(now, peer, crossing);
        }
        self.give(asks);
    }

    fn push_on(&mut self, peer: u32, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.effects.push(Effect::Peer(peer, entries));
        }
    }

    fn push(&mut self, actor: A, inputs: Vec<Input>) {
        if !inputs.is_empty() {
            self.effects.push(Effect::Shard(actor, inputs));
        }
    }

    fn give(&mut self, asks: Option<(ShardId, A, Vec<Input>)>) {
        if let Some((_, actor, inputs)) = asks {
            self.effects.push(Effect::Shard(actor, inputs));
        }
    }

    /// Another node asks a shard; to whom it goes now, if to anybody.
    fn asked(
        &mut self,
        now: Instant,
        peer: u32,
        id: ShardId,
        epoch: u32,
        input: Input,
    ) -> Option<(A, Input)> {
        let shard = self.shard(id)?;
        if shard.held.is_none()
            && let At::Here(actor, here) = &shard.at
            && *here == epoch
        {
            return Some((actor.clone(), input));
        }
        let waits = shard.held.is_some() || epoch > shard.epoch;
        if waits {
            let unknown = epoch > shard.epoch;
            shard.waits.push(Waits::Asked { peer, epoch, input, since: now });
            if unknown {
                self.effects.push(Effect::LookAgain);
            }
        } else {
            self.effects.push(Effect::Peer(peer, vec![Entry::not_mine(id, epoch)]));
        }
        None
    }

    fn hear_other(&mut self, now: Instant, peer: u32, crossing: Crossing) {
        match crossing {
            Crossing::Ask { .. } => {}
            Crossing::Tell { link, what } => self.told(now, peer, link, what),
            Crossing::NotMine { shard: id, epoch } => {
                let Some(shard) = self.shard(id) else { return };
                let believed =
                    matches!(&shard.at, At::Peer(node, e) if node.number == peer && *e == epoch);
                if believed {
                    shard.doubted = true;
                    self.effects.push(Effect::LookAgain);
                }
            }
            Crossing::LinkDown(link) => self.tell_here(link, None),
            Crossing::HostDown(link, host) => self.tell_here(link, Some(&host)),
            other => self.effects.push(Effect::Other(peer, other)),
        }
    }

    /// Another node answers a link of this one. What was asked of somebody else since, or was
    /// answered, is not answered by it: a node that has lost a shard does not know it at once.
    fn told(&mut self, now: Instant, peer: u32, link: LinkId, what: ToLink) {
        let harmless = matches!(what, ToLink::Deleted { .. } | ToLink::AccountRemoved { .. });
        if !harmless {
            let asked = self.book.asked_of(link, &what);
            let at = asked.and_then(|id| self.shards.get(id.0 as usize)).map(|shard| &shard.at);
            if !matches!(at, Some(At::Peer(node, _)) if node.number == peer) {
                return;
            }
        }
        self.book.answered(now, link, &what);
        match self.effects.last_mut() {
            Some(Effect::Link(last, said)) if *last == link => said.push(what),
            _ => self.effects.push(Effect::Link(link, vec![what])),
        }
    }

    /// Some time has passed: what is doubted, and has not moved, is tried again; what nobody waits
    /// for is forgotten.
    pub fn tick(&mut self, now: Instant) {
        self.book.forget_old(now);
        let mut there = Vec::new();
        for (id, shard) in self.shards.iter_mut().enumerate() {
            if std::mem::take(&mut shard.doubted)
                && let At::Peer(node, epoch) = &shard.at
            {
                there.push((ShardId(id as u32), node.number, *epoch));
            }
        }
        for (id, peer, epoch) in there {
            self.ask_again(id, peer, epoch);
        }
        self.give_back(now);
    }

    /// What another node has asked and nobody could take for a while goes back to it.
    fn give_back(&mut self, now: Instant) {
        for (id, shard) in self.shards.iter_mut().enumerate() {
            let mut told = BTreeSet::new();
            shard.waits.retain(|waits| match waits {
                Waits::Asked { peer, epoch, since, .. }
                    if now.duration_since(*since) >= PATIENCE =>
                {
                    told.insert((*peer, *epoch));
                    false
                }
                _ => true,
            });
            for (peer, epoch) in told {
                let entry = Entry::not_mine(ShardId(id as u32), epoch);
                self.effects.push(Effect::Peer(peer, vec![entry]));
            }
        }
    }
}

/// What was asked of another node, as it is asked here.
fn read_own((body, again): (Bytes, bool)) -> Option<Input> {
    let (_, mut input) = crate::shard::wire::read_input(body, 0).ok()?;
    if let Input::Intercept(intercept) = &mut input {
        intercept.again |= again;
    }
    Some(input)
}

/// The link that an input is of, and the host.
fn link_of(input: &Input) -> Option<(LinkId, &Arc<str>)> {
    match input {
        Input::Intercept(intercept) => Some((intercept.link, &intercept.host)),
        Input::Available(available) => Some((available.link, &available.host)),
        Input::Taken(taken) => Some((taken.link, &taken.host)),
        Input::AccountRemoved { asked, .. } => Some((asked.link, &asked.host)),
        Input::Retrieve(retrieve) => Some((retrieve.asker.link, &retrieve.asker.host)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
