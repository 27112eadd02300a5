//! Every history of a small cluster: the machines that run, over a database and a NATS of a few
//! lines, with nodes that crash, stand still, drain, hear late and twice, and clocks that jump.
//!
//! Time goes in thirds of a lease. A node hears at once, unless it is `late`; the database answers
//! it whenever it likes before time goes on, unless it is `slow`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use amphora::cluster::machine::{self, Look, Machine, Node as Other, Nodes, Place, Shards};
use amphora::cluster::presence::{self, Key, Presence, Terms};
use amphora::cluster::rendezvous::{Candidates, HASH};
use amphora::shard_map::ShardSet;
use amphora::store::{Holding, Incarnation};
use amphora::words::ShardId;
use stateright::{Checker, Model, Property};

const LEASE: Duration = Duration::from_secs(3);
const SHARDS: u32 = 2;

/// The shard that the first node gives to the second.
const GIVEN: ShardId = ShardId(1);

/// Rounds after which a cluster that is left alone has settled: what was silent is dead, nodes
/// that were away have heard all, and each shard has been given where it belongs.
const ROUNDS: usize = 16;

/// What may happen, and how often.
#[derive(Clone, Debug)]
struct Small {
    nodes: &'static [&'static str],
    ticks: u8,
    faults: u8,
    /// Messages of one sender to one recipient of the shard that is given.
    messages: u8,
    which: &'static [Fault],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Fault {
    /// A node is killed. Whoever watches it may start it again.
    Crash,
    /// A node stands still, until it goes on.
    Pause,
    /// NATS is away, until it is back.
    Nats,
    /// What a node is to hear comes later.
    Late,
    /// It hears again what it has heard.
    Twice,
    /// The database takes its time with it, until it does not.
    Slow,
    /// Its clock jumps by more than a lease.
    Jump,
    /// It gives its shards away.
    Drain,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Action {
    Start(usize),
    Tick,
    Fault(Fault, usize),
    Heal(Fault, usize),
    /// The database answers a node.
    Answer(usize),
    /// A message comes to a node that has the shard, as it believes.
    Send(usize, ShardId, u8),
    /// What a shard has under way is committed, or refused.
    Commit(usize, ShardId),
    /// A node that can't write any more notices it.
    Notice(usize),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    now: u8,
    faults: u8,
    nats: bool,
    /// The keys in NATS, with their numbers.
    keys: BTreeMap<usize, (u64, Option<Key<u32>>)>,
    number: u64,
    nodes: Vec<Node>,
    database: Database,
    /// Messages that were called stored.
    stored: BTreeSet<(ShardId, u8)>,
    wrong: Vec<&'static str>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Node {
    run: Option<Running>,
    paused: bool,
    late: bool,
    slow: bool,
    /// What it has not heard yet.
    unheard: VecDeque<(usize, u64, Option<Key<u32>>)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Running {
    own: Incarnation,
    /// How far its clock is ahead.
    ahead: u8,
    presence: Presence<u32>,
    machine: Machine,
    draining: bool,
    asked: Option<machine::Effect>,
    shards: BTreeMap<ShardId, Actor>,
    /// Something happened to it for which others may think it dead.
    disturbed: bool,
}

/// What decides for a shard, as far as order and keys go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Actor {
    epoch: u32,
    next: u8,
    held: bool,
    under_way: Vec<(u8, u8)>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Database {
    counter: u32,
    /// The latest start of each node, and whether it is fenced.
    lanes: BTreeMap<String, (u32, bool)>,
    shards: Vec<Holding>,
    /// Ids and messages of each shard, as they were committed.
    rows: BTreeMap<ShardId, Vec<Row>>,
}

/// An id, which is an epoch and a number, and a message.
type Row = ((u32, u8), u8);

impl Database {
    fn can_write(&self, process: &Incarnation) -> bool {
        self.lanes.get(&process.node) == Some(&(process.number, false))
    }

    fn look(&self) -> Look {
        let live = self.lanes.iter().filter(|(_, (_, fenced))| !fenced);
        let writers = live.map(|(node, (number, _))| process(node, *number)).collect();
        Look { writers, shards: self.shards.clone() }
    }

    /// A start inherits what the one before of its name had.
    fn start(&mut self, node: &str) -> Incarnation {
        self.counter += 1;
        let own = process(node, self.counter);
        self.lanes.insert(node.to_owned(), (self.counter, false));
        for one in &mut self.shards {
            if one.owner.as_ref().is_some_and(|owner| owner.node == node) {
                (one.owner, one.epoch) = (Some(own.clone()), self.counter);
            }
        }
        own
    }

    /// Those that were fenced, if it was done.
    fn take(&mut self, own: &Incarnation, seen: &[Holding]) -> Option<Vec<Incarnation>> {
        let same = |one: &Holding| self.shards.contains(one);
        if !self.can_write(own) || !seen.iter().all(same) {
            return None;
        }
        self.counter += 1;
        let mut fenced = Vec::new();
        for one in seen {
            let Some(owner) = &one.owner else { continue };
            if self.can_write(owner) {
                self.lanes.insert(owner.node.clone(), (owner.number, true));
                fenced.push(owner.clone());
            }
        }
        self.own(own, seen.iter().map(|one| one.shard));
        Some(fenced)
    }

    fn give(&mut self, own: &Incarnation, shards: &[ShardId], to: &Incarnation) -> bool {
        let owned = |one: &Holding| !shards.contains(&one.shard) || one.owner.as_ref() == Some(own);
        if !self.can_write(own) || !self.can_write(to) || !self.shards.iter().all(owned) {
            return false;
        }
        self.counter += 1;
        self.own(to, shards.iter().copied());
        true
    }

    fn own(&mut self, owner: &Incarnation, shards: impl Iterator<Item = ShardId>) {
        let (owner, epoch) = (Some(owner.clone()), self.counter);
        for shard in shards {
            self.shards[shard.0 as usize] = Holding { shard, owner: owner.clone(), epoch };
        }
    }

    fn owner(&self, shard: ShardId) -> &Holding {
        &self.shards[shard.0 as usize]
    }
}

fn process(node: &str, number: u32) -> Incarnation {
    Incarnation { node: node.to_owned(), number }
}

impl Small {
    fn name(&self, node: usize) -> Arc<str> {
        self.nodes[node].into()
    }

    fn key(&self, process: u32) -> Key<u32> {
        let terms = Terms { shards: SHARDS, hash: HASH.into(), protocol: 1 };
        Key { process, lease: LEASE, draining: false, terms, rest: process }
    }

    fn start(&self, state: &mut State, node: usize) {
        let own = state.database.start(self.nodes[node]);
        let shards = Shards(ShardSet::all(SHARDS));
        let settings = machine::Settings { own: own.clone(), shards, lease: LEASE };
        state.nodes[node].run = Some(Running {
            presence: Presence::new(self.name(node), self.key(own.number)),
            machine: Machine::new(settings),
            own,
            ahead: 0,
            draining: false,
            asked: None,
            shards: BTreeMap::new(),
            disturbed: false,
        });
        state.nodes[node].unheard.clear();
        if state.nats {
            self.present(state, node, presence::Input::Up);
        } else {
            self.tell(state, node, None);
        }
    }

    fn end(&self, state: &mut State, node: usize) {
        let Node { late, slow, .. } = state.nodes[node];
        state.nodes[node] = Node { run: None, paused: false, late, slow, unheard: VecDeque::new() };
    }

    fn clock(state: &State, run: &Running) -> Duration {
        Duration::from_secs(u64::from(state.now + run.ahead))
    }

    fn present(&self, state: &mut State, node: usize, input: presence::Input<u32>) {
        let Some(mut run) = state.nodes[node].run.take() else { return };
        let now = Self::clock(state, &run);
        let effects = run.presence.handle(now, input);
        state.nodes[node].run = Some(run);
        for effect in effects {
            match effect {
                presence::Effect::Publish(key) => self.publish(state, node, Some(key)),
                // There is one server.
                presence::Effect::Watch | presence::Effect::Elsewhere => {
                    // From the last of each key; nothing else is heard.
                    let keys: VecDeque<_> = state
                        .keys
                        .iter()
                        .map(|(node, (number, key))| (*node, *number, key.clone()))
                        .collect();
                    state.nodes[node].unheard = keys;
                    self.deliver(state, node);
                }
                presence::Effect::Refused(..) | presence::Effect::Stranger(..) => {
                    state.wrong.push("all nodes have the same terms");
                }
            }
        }
        self.tell(state, node, None);
    }

    fn publish(&self, state: &mut State, node: usize, key: Option<Key<u32>>) {
        if !state.nats {
            return;
        }
        state.number += 1;
        state.keys.insert(node, (state.number, key.clone()));
        for other in 0..self.nodes.len() {
            if state.nodes[other].run.is_some() {
                state.nodes[other].unheard.push_back((node, state.number, key.clone()));
            }
        }
        for other in 0..self.nodes.len() {
            self.deliver(state, other);
        }
    }

    /// What it is to hear, if it can.
    fn deliver(&self, state: &mut State, node: usize) {
        while !state.nodes[node].late && !state.nodes[node].paused {
            let Some((from, number, key)) = state.nodes[node].unheard.pop_front() else { return };
            let input = presence::Input::Heard(self.name(from), number, key);
            self.present(state, node, input);
        }
    }

    /// The machine is told who is there, and something else, if there is.
    fn tell(&self, state: &mut State, node: usize, input: Option<machine::Input>) {
        let Some(mut run) = state.nodes[node].run.take() else { return };
        let now = Self::clock(state, &run);
        let other = |(name, other): (&Arc<str>, &presence::Other<u32>)| Other {
            incarnation: process(name, other.key.rest),
            draining: other.key.draining,
            heard: other.heard,
            lease: other.key.lease,
        };
        let nodes = Nodes {
            hears: run.presence.hears(now),
            hears_all: run.presence.hears_all(now),
            draining: run.draining,
            stopping: false,
            others: run.presence.others().map(other).collect(),
        };
        let mut effects = run.machine.handle(now, machine::Input::Nodes(nodes));
        if let Some(input) = input {
            effects.extend(run.machine.handle(now, input));
        }
        let mut hints = false;
        for effect in effects {
            match effect {
                machine::Effect::Place(moved) => {
                    moved.into_iter().for_each(|(shard, place)| run.place(shard, &place));
                }
                machine::Effect::Hint => hints = true,
                asked => {
                    if let machine::Effect::Hold(shards) = &asked {
                        for shard in shards {
                            if let Some(actor) = run.shards.get_mut(shard) {
                                actor.held = true;
                            }
                        }
                    }
                    if run.asked.replace(asked).is_some() {
                        state.wrong.push("one thing at a time");
                    }
                }
            }
        }
        state.nodes[node].run = Some(run);
        if hints && state.nats {
            for other in (0..self.nodes.len()).filter(|other| *other != node) {
                if !state.nodes[other].paused {
                    self.tell(state, other, Some(machine::Input::Hint));
                }
            }
        }
    }

    fn answer(&self, state: &mut State, node: usize) {
        let Some(run) = state.nodes[node].run.as_mut() else { return };
        let (own, asked) = (run.own.clone(), run.asked.take());
        let answer = match asked {
            Some(machine::Effect::Look) => {
                let look = state.database.can_write(&own).then(|| state.database.look());
                machine::Input::Looked(look)
            }
            Some(machine::Effect::Hold(_)) => machine::Input::Quiet,
            Some(machine::Effect::Take(seen)) => {
                let fenced = state.database.take(&own, &seen);
                for lost in fenced.iter().flatten() {
                    let of = |node: &&Node| node.run.as_ref().is_some_and(|run| run.own == *lost);
                    let lost = state.nodes.iter().find(of);
                    let well = |node: &Node| node.run.as_ref().is_some_and(|run| !run.disturbed);
                    if lost.is_some_and(well) {
                        state.wrong.push("a node was fenced for nothing");
                    }
                }
                machine::Input::Moved(fenced.is_some())
            }
            Some(machine::Effect::Give(shards, to)) => {
                // What is under way is answered `NotMine`, if it comes to that.
                let given = state.database.give(&own, &shards, &to);
                let run = state.nodes[node].run.as_mut();
                for actor in run.into_iter().flat_map(|run| run.shards.iter_mut()) {
                    if given && shards.contains(actor.0) {
                        actor.1.under_way.clear();
                    }
                }
                machine::Input::Moved(given)
            }
            _ => return,
        };
        self.tell(state, node, Some(answer));
    }

    fn send(&self, state: &mut State, node: usize, shard: ShardId, message: u8) {
        let rows = state.database.rows.get(&shard).cloned().unwrap_or_default();
        let Some(actor) = state.nodes[node].run.as_mut().and_then(|run| run.shards.get_mut(&shard))
        else {
            return;
        };
        // The one before it (`after`) must have been accepted here, or be stored; else: retry.
        let is_known = |message: u8| {
            rows.iter().any(|(_, stored)| *stored == message)
                || actor.under_way.iter().any(|(_, accepted)| *accepted == message)
        };
        if (message > 0 && !is_known(message - 1)) || is_known(message) {
            return;
        }
        actor.next += 1;
        actor.under_way.push((actor.next, message));
    }

    fn commit(&self, state: &mut State, node: usize, shard: ShardId) {
        let Some(run) = state.nodes[node].run.as_mut() else { return };
        let own = run.own.clone();
        let Some(actor) = run.shards.get_mut(&shard) else { return };
        let (epoch, under_way) = (actor.epoch, std::mem::take(&mut actor.under_way));
        let holding = state.database.owner(shard);
        if holding.owner.as_ref() != Some(&own) || !state.database.can_write(&own) {
            return;
        }
        if holding.epoch != epoch {
            state.wrong.push("I4: a shard was written with an epoch that is not its own");
        }
        let rows = state.database.rows.entry(shard).or_default();
        for (id, message) in under_way {
            if rows.iter().all(|(_, known)| *known != message) {
                rows.push(((epoch, id), message));
            }
            state.stored.insert((shard, message));
        }
    }

    fn tick(&self, state: &mut State) {
        state.now += 1;
        for node in 0..self.nodes.len() {
            if !state.nodes[node].paused {
                self.present(state, node, presence::Input::Tick);
            }
        }
    }

    fn fault(&self, state: &mut State, fault: Fault, node: usize) {
        if !matches!(fault, Fault::Nats | Fault::Slow | Fault::Twice | Fault::Drain)
            && let Some(run) = state.nodes[node].run.as_mut()
        {
            run.disturbed = true;
        }
        match fault {
            Fault::Crash => self.end(state, node),
            Fault::Pause => state.nodes[node].paused = true,
            Fault::Late => state.nodes[node].late = true,
            Fault::Slow => state.nodes[node].slow = true,
            Fault::Nats => {
                state.nats = false;
                for node in 0..self.nodes.len() {
                    state.nodes[node].unheard.clear();
                    self.present(state, node, presence::Input::Lost);
                }
            }
            Fault::Twice => {
                let keys: Vec<_> = state.keys.clone().into_iter().collect();
                for (from, (number, key)) in keys {
                    state.nodes[node].unheard.push_back((from, number, key));
                }
                self.deliver(state, node);
            }
            Fault::Jump => {
                if let Some(run) = state.nodes[node].run.as_mut() {
                    run.ahead += 4;
                }
                self.present(state, node, presence::Input::Tick);
            }
            Fault::Drain => self.drain(state, node, true),
        }
    }

    fn heal(&self, state: &mut State, fault: Fault, node: usize) {
        match fault {
            Fault::Pause => {
                state.nodes[node].paused = false;
                self.deliver(state, node);
                self.present(state, node, presence::Input::Tick);
            }
            Fault::Late => {
                state.nodes[node].late = false;
                self.deliver(state, node);
            }
            Fault::Slow => state.nodes[node].slow = false,
            Fault::Nats => {
                state.nats = true;
                for node in 0..self.nodes.len() {
                    self.present(state, node, presence::Input::Up);
                }
            }
            Fault::Drain => self.drain(state, node, false),
            Fault::Crash | Fault::Twice | Fault::Jump => {}
        }
    }

    fn drain(&self, state: &mut State, node: usize, draining: bool) {
        let Some(run) = state.nodes[node].run.as_mut() else { return };
        run.draining = draining;
        let rest = run.own.number;
        self.present(state, node, presence::Input::Say { draining, rest });
    }

    /// Whether the cluster comes to rest by itself, with each shard where it belongs.
    fn settles(&self, state: &State) -> bool {
        let mut state = state.clone();
        for node in 0..self.nodes.len() {
            if state.nodes[node].paused {
                self.heal(&mut state, Fault::Pause, node);
            }
            self.heal(&mut state, Fault::Late, node);
        }
        if !state.nats {
            self.heal(&mut state, Fault::Nats, 0);
        }
        for _ in 0..ROUNDS {
            for node in 0..self.nodes.len() {
                let fenced = |run: &Running| !state.database.can_write(&run.own);
                if state.nodes[node].run.as_ref().is_some_and(fenced) {
                    self.end(&mut state, node);
                }
            }
            if state.nodes.iter().all(|node| node.run.is_none()) {
                self.start(&mut state, 0);
            }
            for _ in 0..4 {
                (0..self.nodes.len()).for_each(|node| self.answer(&mut state, node));
            }
            self.tick(&mut state);
        }
        state.wrong.is_empty() && self.is_settled(&state)
    }

    fn is_settled(&self, state: &State) -> bool {
        let running: Vec<&Running> =
            state.nodes.iter().filter_map(|node| node.run.as_ref()).collect();
        let able = running.iter().filter(|run| !run.draining);
        let mut names: Vec<&str> = able.map(|run| &*run.own.node).collect();
        if names.is_empty() {
            names = running.iter().map(|run| &*run.own.node).collect();
        }
        let candidates = Candidates::new(names.iter().copied());
        let drained = running.iter().all(|run| run.draining);
        state.database.shards.iter().all(|one| {
            let owner = one.owner.as_ref();
            let run = running.iter().find(|run| Some(&run.own) == owner);
            // Where all drain, those that have shards keep them.
            let right = drained || candidates.of(one.shard) == owner.map(|owner| &*owner.node);
            let actor = run.and_then(|run| run.shards.get(&one.shard));
            let decides = actor.is_some_and(|actor| actor.epoch == one.epoch && !actor.held);
            let others = running.iter().filter(|other| Some(&other.own) != owner);
            right
                && decides
                && others.into_iter().all(|other| !other.shards.contains_key(&one.shard))
        })
    }
}

impl Running {
    /// Another epoch is another actor.
    fn place(&mut self, shard: ShardId, place: &Place) {
        let Place::Here { epoch } = *place else {
            self.shards.remove(&shard);
            return;
        };
        let known = self.shards.get_mut(&shard).filter(|actor| actor.epoch == epoch);
        match known {
            Some(actor) => actor.held = false,
            None => {
                let actor = Actor { epoch, next: 0, held: false, under_way: Vec::new() };
                self.shards.insert(shard, actor);
            }
        }
    }
}

impl Model for Small {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node =
            Node { run: None, paused: false, late: false, slow: false, unheard: VecDeque::new() };
        let nobody = |shard| Holding { shard: ShardId(shard), owner: None, epoch: 0 };
        let mut state = State {
            now: 0,
            faults: 0,
            nats: true,
            keys: BTreeMap::new(),
            number: 0,
            nodes: vec![node; self.nodes.len()],
            database: Database {
                counter: 0,
                lanes: BTreeMap::new(),
                shards: (0..SHARDS).map(nobody).collect(),
                rows: BTreeMap::new(),
            },
            stored: BTreeSet::new(),
            wrong: Vec::new(),
        };
        self.start(&mut state, 0);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let waits = |node: &Node| {
            let asked = node.run.as_ref().is_some_and(|run| run.asked.is_some());
            asked && !node.paused && !node.slow
        };
        if state.now < self.ticks && !state.nodes.iter().any(waits) {
            actions.push(Action::Tick);
        }
        for (number, node) in state.nodes.iter().enumerate() {
            let Some(run) = &node.run else {
                actions.push(Action::Start(number));
                continue;
            };
            if node.paused {
                actions.push(Action::Heal(Fault::Pause, number));
                continue;
            }
            if node.slow {
                actions.push(Action::Heal(Fault::Slow, number));
            }
            if node.late {
                actions.push(Action::Heal(Fault::Late, number));
            }
            if run.asked.is_some() {
                actions.push(Action::Answer(number));
            }
            if !state.database.can_write(&run.own) {
                actions.push(Action::Notice(number));
            }
            for (shard, actor) in &run.shards {
                if !actor.under_way.is_empty() {
                    actions.push(Action::Commit(number, *shard));
                }
                if actor.held || *shard != GIVEN {
                    continue;
                }
                for message in 0..self.messages {
                    if !state.stored.contains(&(*shard, message)) {
                        actions.push(Action::Send(number, *shard, message));
                    }
                }
            }
            if state.faults < self.faults {
                let some = self.which.iter().filter(|fault| **fault != Fault::Nats);
                actions.extend(some.map(|fault| Action::Fault(*fault, number)));
            }
        }
        if !state.nats {
            actions.push(Action::Heal(Fault::Nats, 0));
        } else if state.faults < self.faults && self.which.contains(&Fault::Nats) {
            actions.push(Action::Fault(Fault::Nats, 0));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Start(node) => self.start(&mut state, node),
            Action::Tick => self.tick(&mut state),
            Action::Fault(fault, node) => {
                state.faults += 1;
                self.fault(&mut state, fault, node);
            }
            Action::Heal(fault, node) => self.heal(&mut state, fault, node),
            Action::Answer(node) => self.answer(&mut state, node),
            Action::Send(node, shard, message) => self.send(&mut state, node, shard, message),
            Action::Commit(node, shard) => self.commit(&mut state, node, shard),
            Action::Notice(node) => self.end(&mut state, node),
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is wrong", |_, state: &State| state.wrong.is_empty()),
            Property::always("I1: what was called stored is there", |_, state: &State| {
                state.stored.iter().all(|(shard, message)| {
                    let rows = state.database.rows.get(shard);
                    rows.is_some_and(|rows| rows.iter().any(|(_, stored)| stored == message))
                })
            }),
            Property::always("I2, I3: once each, and in order", |_, state: &State| {
                state
                    .database
                    .rows
                    .values()
                    .all(|rows| rows.is_sorted_by(|one, next| one.0 < next.0 && one.1 < next.1))
            }),
            Property::always("I4: one process may write for a shard", |_, state: &State| {
                (0..SHARDS).map(ShardId).all(|shard| {
                    let may = |run: &&Running| {
                        run.shards.contains_key(&shard)
                            && state.database.can_write(&run.own)
                            && state.database.owner(shard).owner.as_ref() == Some(&run.own)
                    };
                    let running = state.nodes.iter().filter_map(|node| node.run.as_ref());
                    running.filter(may).count() <= 1
                })
            }),
            Property::always(
                "it settles, with each shard where it belongs",
                |model: &Self, state| model.settles(state),
            ),
            Property::sometimes("a shard is given", |_, state: &State| {
                let owners: BTreeSet<_> =
                    state.database.shards.iter().map(|one| one.owner.clone()).collect();
                owners.len() > 1
                    && state.database.lanes.values().all(|(_, fenced)| !fenced)
                    && state.faults == 0
            }),
        ]
    }
}

/// Checks all histories; `sometimes` must come true, too.
fn check(small: Small) {
    let began = std::time::Instant::now();
    let checker = small.clone().checker().threads(2).spawn_bfs().join();
    let (all, unique) = (checker.state_count(), checker.unique_state_count());
    println!("{small:?}: {all} states, {unique} of them unique, in {:?}", began.elapsed());
    checker.assert_properties();
}

/// Each is for one of the shards.
const TWO: &[&str] = &["n2", "n5"];

fn two(ticks: u8, messages: u8, which: &'static [Fault]) -> Small {
    Small { nodes: TWO, ticks, faults: 1, messages, which }
}

#[test]
fn a_node_dies() {
    check(two(6, 0, &[Fault::Crash]));
}

#[test]
fn a_node_stands_still() {
    check(two(6, 0, &[Fault::Pause]));
}

#[test]
fn nats_is_away() {
    check(two(6, 0, &[Fault::Nats]));
}

#[test]
fn a_node_hears_late_or_twice() {
    check(two(6, 0, &[Fault::Late, Fault::Twice]));
}

#[test]
fn a_clock_jumps() {
    check(two(6, 0, &[Fault::Jump]));
}

#[test]
fn the_database_is_slow() {
    check(two(6, 0, &[Fault::Slow]));
}

#[test]
fn a_node_drains() {
    check(two(6, 0, &[Fault::Drain]));
}

#[test]
fn messages_come_meanwhile() {
    check(two(3, 2, &[Fault::Crash, Fault::Drain]));
}
