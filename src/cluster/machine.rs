//! Who owns the shards of one database: a pure machine. It is told who lives and what the
//! database says, and asks for moves; the database decides whether they happen.
//!
//! From a node that is dead, and from one that can't write any more, the node that a shard is for
//! takes it. Between nodes that live, the owner gives. While this node does not hear itself over
//! NATS, nothing moves; and nobody is dead before it has heard itself for a whole lease.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::presence::Moment;
use super::rendezvous::Candidates;
use crate::shard_map::ShardSet;
use crate::store::{Holding, Incarnation};
use crate::words::ShardId;

/// Shards that are given at once at most, or a 32nd of all: what comes for them waits meanwhile.
const GIVEN_AT_ONCE: usize = 32;

/// What the machine is set to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// This process, as the database numbers it.
    pub own: Incarnation,
    /// The shards that the database has.
    pub shards: Shards,
    /// How long a node may be silent that was never heard.
    pub lease: Duration,
}

/// A set of shards, hashed as its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shards(pub ShardSet);

impl std::hash::Hash for Shards {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_string().hash(state);
    }
}

/// Another node, as it was last heard.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    /// Which start of it, as the database numbers it.
    pub incarnation: Incarnation,
    /// It wants no shards.
    pub draining: bool,
    /// When.
    pub heard: Moment,
    /// How long it may be silent.
    pub lease: Duration,
}

/// What is known of all nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Nodes {
    /// This node hears itself.
    pub hears: bool,
    /// It has, for so long that all that live were heard.
    pub hears_all: bool,
    /// This node gives its shards away.
    pub draining: bool,
    /// It ends when it has: it takes nothing, even if there is nobody else.
    pub stopping: bool,
    /// The others.
    pub others: Vec<Node>,
}

/// What the database says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Look {
    /// The processes that can write.
    pub writers: BTreeSet<Incarnation>,
    /// Who owns which shard.
    pub shards: Vec<Holding>,
}

/// Where a shard is decided.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In this process.
    Here {
        /// With which epoch it came.
        epoch: u32,
    },
    /// In another.
    Peer {
        /// Which, as the database numbers it.
        node: Incarnation,
        /// With which epoch it came there.
        epoch: u32,
    },
    /// Nobody decides.
    Nowhere,
}

/// What the machine is told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Who is there; told at each tick of a clock, too.
    Nodes(Nodes),
    /// What the database says; none: it could not be asked.
    Looked(Option<Look>),
    /// Something may have changed in the database.
    LookAgain,
    /// Another node says that it has changed something there.
    Hint,
    /// The shards that were held have nothing under way any more, or no more time.
    Quiet,
    /// What came of a take or a give: whether the shards have moved. If not, none has.
    Moved(bool),
}

/// What is to be done. There is one of `Look`, `Take`, `Hold` and `Give` at a time, and it is
/// answered.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Ask the database; answered by `Looked`.
    Look,
    /// Take these, if each is still owned as it was seen; answered by `Moved`.
    Take(Vec<Holding>),
    /// Let these finish what they have under way, and keep what comes; answered by `Quiet`.
    Hold(Vec<ShardId>),
    /// Give these to another node; answered by `Moved`.
    Give(Vec<ShardId>, Incarnation),
    /// Shards are decided elsewhere than before, or are said to be where they were after they
    /// had been held.
    Place(Vec<(ShardId, Place)>),
    /// Tell the others that something has changed in the database.
    Hint,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Work {
    None,
    Looking,
    Holding(Vec<ShardId>, Incarnation),
    Moving,
}

/// What a plan is made from, beside what the database says.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Situation {
    hears: bool,
    hears_all: bool,
    /// For whom shards may be.
    candidates: Candidates,
    /// For whom those are that nobody has: a node that drains is better than none.
    last_resort: Candidates,
    dead: BTreeSet<Incarnation>,
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Machine {
    settings: Settings,
    nodes: Nodes,
    look: Look,
    /// When the database last answered, or failed to; none: it is to be asked at once.
    looked: Option<Moment>,
    look_again: bool,
    work: Work,
    /// Nothing is moved before: a move failed.
    rest: Moment,
    places: BTreeMap<ShardId, Place>,
    held: BTreeSet<ShardId>,
    /// Who owns a shard.
    owners: BTreeSet<Incarnation>,
    /// Owners that are not heard, and since when that is so.
    unheard: BTreeMap<Incarnation, Moment>,
    /// There was nothing to do in this situation.
    settled: Option<Situation>,
    effects: Vec<Effect>,
}

impl Machine {
    /// A machine that knows nothing yet. Every shard is nowhere.
    pub fn new(settings: Settings) -> Self {
        Machine {
            settings,
            nodes: Nodes::default(),
            look: Look::default(),
            looked: None,
            look_again: true,
            work: Work::None,
            rest: Moment::ZERO,
            places: BTreeMap::new(),
            held: BTreeSet::new(),
            owners: BTreeSet::new(),
            unheard: BTreeMap::new(),
            settled: None,
            effects: Vec::new(),
        }
    }

    /// Takes one input and says what is to be done, in order.
    pub fn handle(&mut self, now: Moment, input: Input) -> Vec<Effect> {
        match input {
            Input::Nodes(nodes) => self.see(nodes),
            Input::Looked(look) => {
                self.work = Work::None;
                self.looked = Some(now);
                match look {
                    Some(look) => self.learn(look),
                    None => self.look_again = true,
                }
            }
            Input::LookAgain => self.look_again = true,
            Input::Hint => self.looked = None,
            Input::Quiet => {
                if let Work::Holding(shards, to) = std::mem::replace(&mut self.work, Work::Moving) {
                    self.effects.push(Effect::Give(shards, to));
                }
            }
            Input::Moved(done) => {
                self.work = Work::None;
                self.looked = None;
                if done {
                    self.effects.push(Effect::Hint);
                } else {
                    self.rest = now + self.settings.lease / 6;
                }
            }
        }
        self.go_on(now);
        std::mem::take(&mut self.effects)
    }

    /// The shards that this process has, by what the database last said.
    pub fn own(&self) -> usize {
        self.places.values().filter(|place| matches!(place, Place::Here { .. })).count()
    }

    /// Whether a node that drains has done what it can: it has no shards, by what the database says
    /// since it drains, or there is nobody to give them to.
    pub fn has_drained(&self, now: Moment) -> bool {
        let candidates = self.situation(now).candidates;
        let has_none = self.own() == 0 && !self.look_again;
        self.work == Work::None && (has_none || candidates.is_empty() || !self.nodes.hears)
    }

    /// Whether somebody decides about every shard.
    pub fn is_whole(&self) -> bool {
        let nowhere = |place: &Place| *place == Place::Nowhere;
        !self.places.is_empty() && !self.places.values().any(nowhere)
    }

    fn see(&mut self, nodes: Nodes) {
        let who = |nodes: &Nodes| {
            let others = nodes.others.iter();
            others.map(|node| (node.incarnation.clone(), node.draining)).collect::<Vec<_>>()
        };
        // Who begins or goes has changed something in the database. Whoever begins to drain may have been
        // given something that he does not know of.
        let begins_to_drain = nodes.draining && !self.nodes.draining;
        self.look_again |= begins_to_drain || who(&nodes) != who(&self.nodes);
        self.nodes = nodes;
    }

    fn learn(&mut self, mut look: Look) {
        look.shards.retain(|one| self.settings.shards.0.contains(one.shard));
        let mut moved = Vec::new();
        for one in &look.shards {
            let place = self.place(one, &look.writers);
            // What was held is told where it is, even if it is where it was.
            if self.held.contains(&one.shard) || self.places.get(&one.shard) != Some(&place) {
                self.places.insert(one.shard, place.clone());
                moved.push((one.shard, place));
            }
        }
        self.held.clear();
        if !moved.is_empty() {
            self.effects.push(Effect::Place(moved));
        }
        self.owners = look.shards.iter().filter_map(|one| one.owner.clone()).collect();
        self.look = look;
        self.settled = None;
    }

    fn place(&self, one: &Holding, writers: &BTreeSet<Incarnation>) -> Place {
        match &one.owner {
            Some(owner) if !writers.contains(owner) => Place::Nowhere,
            Some(owner) if *owner == self.settings.own => Place::Here { epoch: one.epoch },
            Some(owner) => Place::Peer { node: owner.clone(), epoch: one.epoch },
            None => Place::Nowhere,
        }
    }

    fn go_on(&mut self, now: Moment) {
        self.watch_unheard(now);
        if self.work != Work::None {
            return;
        }
        let lease = self.settings.lease;
        // A database that does not answer, and peers that say 'not mine', are asked now and then.
        let pause = if self.look_again { lease / 30 } else { lease };
        let due = self.looked.is_none_or(|looked| now.saturating_sub(looked) >= pause);
        if due {
            self.look_again = false;
            self.work = Work::Looking;
            self.effects.push(Effect::Look);
        } else if !self.look_again && now >= self.rest {
            self.plan(now);
        }
    }

    fn plan(&mut self, now: Moment) {
        let situation = self.situation(now);
        if self.settled.as_ref() == Some(&situation) {
            return;
        }
        let free = self.takes(&situation, |owner| {
            owner.is_none_or(|owner| !self.look.writers.contains(owner))
        });
        let of_dead = self.takes(&situation, |owner| {
            situation.hears_all && owner.is_some_and(|owner| situation.dead.contains(owner))
        });
        if let Some(take) = [free, of_dead].into_iter().find(|take| !take.is_empty()) {
            self.work = Work::Moving;
            self.effects.push(Effect::Take(take));
        } else if let Some((shards, to)) = self.give(&situation) {
            self.held = shards.iter().copied().collect();
            self.effects.push(Effect::Hold(shards.clone()));
            self.work = Work::Holding(shards, to);
        } else {
            self.settled = Some(situation);
        }
    }

    /// Those that are for this node, of owners of whom they may be taken.
    fn takes(
        &self,
        situation: &Situation,
        may: impl Fn(Option<&Incarnation>) -> bool,
    ) -> Vec<Holding> {
        let own = &self.settings.own;
        if !situation.hears || self.nodes.stopping || !self.look.writers.contains(own) {
            return Vec::new();
        }
        let candidates = &situation.last_resort;
        let is_for_us = |one: &&Holding| {
            one.owner.as_ref() != Some(own)
                && may(one.owner.as_ref())
                && candidates.of(one.shard) == Some(&own.node)
        };
        self.look.shards.iter().filter(is_for_us).cloned().collect()
    }

    /// Some that are for another node that lives, and that node.
    fn give(&self, situation: &Situation) -> Option<(Vec<ShardId>, Incarnation)> {
        if !situation.hears {
            return None;
        }
        let own = &self.settings.own;
        let mut to: Option<&str> = None;
        let mut shards = Vec::new();
        for one in self.look.shards.iter().filter(|one| one.owner.as_ref() == Some(own)) {
            let target = situation.candidates.of(one.shard).filter(|node| *node != own.node);
            if target.is_some() && (to.is_none() || to == target) {
                to = target;
                shards.push(one.shard);
            }
        }
        shards.truncate(GIVEN_AT_ONCE.max(self.look.shards.len() / 32));
        let node = self.nodes.others.iter().find(|node| Some(&*node.incarnation.node) == to)?;
        Some((shards, node.incarnation.clone()))
    }

    fn situation(&self, now: Moment) -> Situation {
        let own = &self.settings.own;
        let Nodes { hears, hears_all, draining, stopping, .. } = self.nodes;
        let writes = |node: &Incarnation| self.look.writers.contains(node);
        let live = self.nodes.others.iter().filter(|node| {
            now.saturating_sub(node.heard) <= node.lease && writes(&node.incarnation)
        });
        let live: Vec<&Node> = live.collect();
        let name = |node: &&Node| node.incarnation.node.clone();
        let mut names: Vec<String> = live.iter().filter(|node| !node.draining).map(name).collect();
        if !draining {
            names.push(own.node.clone());
        }
        let candidates = Candidates::new(names.iter().map(String::as_str));
        let last_resort = if candidates.is_empty() {
            let mut names: Vec<String> = live.iter().map(name).collect();
            if !stopping {
                names.push(own.node.clone());
            }
            Candidates::new(names.iter().map(String::as_str))
        } else {
            candidates.clone()
        };
        let is_dead = |owner: &&Incarnation| *owner != own && self.is_dead(owner, now);
        let owners = self.owners.iter().filter(|owner| writes(owner));
        let dead = owners.filter(is_dead).cloned().collect();
        Situation { hears, hears_all, candidates, last_resort, dead }
    }

    fn is_dead(&self, owner: &Incarnation, now: Moment) -> bool {
        let heard = self.nodes.others.iter().find(|node| node.incarnation == *owner);
        let (since, lease) = match heard {
            Some(node) => (Some(node.heard), node.lease),
            None => (self.unheard.get(owner).copied(), self.settings.lease),
        };
        since.is_some_and(|since| now.saturating_sub(since) > lease)
    }

    /// Owners that nobody hears: one that has just begun has its lease to say so.
    fn watch_unheard(&mut self, now: Moment) {
        let is_heard =
            |owner: &Incarnation| self.nodes.others.iter().any(|node| node.incarnation == *owner);
        let owners: Vec<&Incarnation> =
            self.owners.iter().filter(|owner| !is_heard(owner)).collect();
        self.unheard.retain(|owner, _| owners.contains(&owner));
        for owner in owners {
            if !self.unheard.contains_key(owner) {
                self.unheard.insert(owner.clone(), now);
            }
        }
    }
}

#[cfg(test)]
mod tests;
