//! Random histories: servers that fail or answer late, links that break, a node that is killed.
//! However it goes, everybody is settled once, and nobody is sent to twice.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use fastrand::Rng;

use super::{HOST, at, kept};
use crate::broadcast::input::{Answered, Effect, Input, Now, Settings};
use crate::broadcast::machine::Machine;
use crate::broadcast::{Command, WINDOW};
use crate::shard::{Errand, Request};
use crate::store::{Broadcast, BroadcastChange, BroadcastState, Fate, Recipient};

const PEOPLE: u64 = 150;
const NAMES: usize = 40; // accounts in a page

/// All that the machine can't see into.
struct World {
    random: Rng,
    machine: Machine,
    now: Now,
    // The database, which outlives the node.
    row: Broadcast,
    rows: BTreeMap<u64, Recipient>,
    settled: HashMap<u64, Fate>,
    // The server, which remembers keys, and how often it was made to send each.
    keys: HashMap<String, Fate>,
    sent: HashMap<String, u32>,
    /// It is killed now and then, and knows only what is stored.
    killed: bool,
    /// What it was asked to send though it was stored.
    stored_again: HashSet<String>,
    up: bool,
    // What is under way.
    changes: VecDeque<Effect>,
    others: Vec<Effect>,
}

fn machine() -> Machine {
    Machine::new(Settings { hosts: vec![HOST.into()] })
}

impl World {
    fn new(seed: u64, row: Broadcast, rows: BTreeMap<u64, Recipient>) -> Self {
        let now = Now { wall: at(100), steady: Duration::ZERO };
        World {
            random: Rng::with_seed(seed),
            machine: machine(),
            now,
            row,
            rows,
            settled: HashMap::new(),
            keys: HashMap::new(),
            sent: HashMap::new(),
            killed: false,
            stored_again: HashSet::new(),
            up: false,
            changes: VecDeque::new(),
            others: Vec::new(),
        }
    }

    fn input(&mut self, input: Input) {
        for effect in self.machine.handle(self.now, input) {
            match effect {
                Effect::Change { .. } => self.changes.push_back(effect),
                Effect::Reply { .. } => {}
                other => self.others.push(other),
            }
        }
        let asked =
            |e: &&Effect| matches!(e, Effect::Ask(Request { ask: Errand::Settle { .. }, .. }));
        assert!(self.others.iter().filter(asked).count() <= WINDOW);
        let wake = self.machine.wake_at(self.now);
        assert!(wake.is_none_or(|at| at > self.now.steady), "what could be done now was not");
    }

    fn begin(&mut self) {
        self.input(Input::Loaded(vec![self.row.clone()]));
    }

    /// The store carries out the oldest change.
    fn carry_out(&mut self) {
        let Some(Effect::Change { write, change }) = self.changes.pop_front() else { return };
        if self.random.u8(..20) == 0 {
            return self.input(Input::Changed { write, rows: Err("no".into()) });
        }
        let rows = match change {
            BroadcastChange::Add { recipients, counted_to, .. } => {
                let added = recipients.len() as u64;
                self.row.last_n = recipients.last().map_or(self.row.last_n, |r| r.n);
                self.rows.extend(recipients.into_iter().map(|r| (r.n, r)));
                self.row.counted_to = counted_to.unwrap_or(self.row.counted_to.clone());
                self.row.counts.total += added;
                added
            }
            BroadcastChange::Settle { settled, .. } => {
                for (n, fate) in &settled {
                    assert!(self.rows.remove(n).is_some(), "{n} is settled twice");
                    self.settled.insert(*n, *fate);
                    self.row.counts.add(*fate, 1);
                }
                settled.len() as u64
            }
            BroadcastChange::GiveUp { fate, limit, .. } => {
                let given_up: Vec<u64> = self.rows.keys().take(limit as usize).copied().collect();
                for n in &given_up {
                    self.rows.remove(n);
                    self.row.counts.add(fate, 1);
                }
                given_up.len() as u64
            }
            BroadcastChange::SetState { state, ended_at, .. } => {
                (self.row.state, self.row.ended_at) = (state, ended_at);
                0
            }
            other => panic!("{other:?}"),
        };
        self.input(Input::Changed { write, rows: Ok(rows) });
    }

    /// Something else is answered, well or not.
    fn answer(&mut self) {
        if self.others.is_empty() {
            return;
        }
        let effect = self.others.swap_remove(self.random.usize(..self.others.len()));
        let input = match effect {
            Effect::Ask(Request { number, ask, .. }) => {
                let answer = self.ask(ask);
                Input::Answered { number, answer }
            }
            Effect::Read { broadcast, after, limit } => {
                let rows = self.rows.range(after + 1..).take(limit as usize);
                let rows = Ok(rows.map(|(_, recipient)| recipient.clone()).collect());
                Input::Page { broadcast, rows }
            }
            Effect::Find { broadcast, recipient, key } => {
                let known = self.keys.get(&key) == Some(&Fate::Stored);
                let known = if self.random.u8(..20) == 0 { Err("no".into()) } else { Ok(known) };
                Input::Found { broadcast, recipient, known }
            }
            other => panic!("{other:?}"),
        };
        self.input(input);
    }

    fn ask(&mut self, ask: Errand) -> Answered {
        let failed = Answered::Failed("no".into());
        if !self.up || self.random.u8(..10) == 0 {
            return failed;
        }
        match ask {
            Errand::Settle { key, .. } => {
                let fates = [Fate::Delivered, Fate::Stored, Fate::Discarded];
                let fate = fates[self.random.usize(..3)];
                if self.keys.get(&key) == Some(&Fate::Stored) && self.killed {
                    self.stored_again.insert(key.clone());
                }
                if !self.keys.contains_key(&key) {
                    *self.sent.entry(key.clone()).or_default() += 1;
                }
                let fate = *self.keys.entry(key).or_insert(fate);
                // It is done, and the answer is lost now and then.
                if self.random.u8(..10) == 0 { failed } else { Answered::Settled(fate) }
            }
            Errand::Accounts { after, .. } => {
                let names = (1..=PEOPLE).map(|n| format!("u{n:04}")).filter(|name| *name > after);
                let names: Vec<String> = names.take(NAMES).collect();
                let complete = names.last().is_none_or(|last| *last == format!("u{PEOPLE:04}"));
                Answered::Accounts { names, complete }
            }
        }
    }

    fn step(&mut self) {
        match self.random.u8(..100) {
            0 => {
                // kill -9: what is under way is gone, or is carried out and not heard of.
                self.machine = machine();
                self.changes.clear();
                for effect in std::mem::take(&mut self.others) {
                    if let Effect::Ask(Request { ask, .. }) = effect
                        && self.random.bool()
                    {
                        self.ask(ask);
                    }
                }
                self.begin();
                if self.up {
                    self.input(Input::HostUp { host: HOST.into(), max_stanza: 1 << 20 });
                }
            }
            1 => {
                self.up = !self.up;
                let host = HOST.into();
                self.input(match self.up {
                    true => Input::HostUp { host, max_stanza: 1 << 20 },
                    false => Input::HostDown { host },
                });
            }
            2 if self.killed => self.keys.retain(|_, fate| *fate == Fate::Stored),
            2..40 => self.answer(),
            40..70 => self.carry_out(),
            _ => {
                let time = Duration::from_millis(self.random.u64(1..40));
                self.now.steady += time;
                self.now.wall = self.now.wall.checked_add(time).unwrap();
                self.input(Input::Wake);
            }
        }
    }

    fn run(&mut self) {
        self.begin();
        for _ in 0..200_000 {
            if self.row.ended_at.is_some() {
                return;
            }
            self.step();
        }
        panic!("it does not end: {:?}", self.row);
    }

    fn check(&self) {
        assert!(self.rows.is_empty());
        assert_eq!(self.row.counts.left(), 0, "{:?}", self.row.counts);
        for (key, times) in &self.sent {
            assert_eq!(*times, 1, "{key}");
        }
        for (n, fate) in &self.settled {
            assert_eq!(self.keys.get(&format!("send-t-{n}")), Some(fate), "{n}");
        }
    }
}

fn list() -> (Broadcast, BTreeMap<u64, Recipient>) {
    let rows = (1..=PEOPLE).map(|n| (n, super::recipient(n))).collect();
    (kept(BroadcastState::Running, PEOPLE, 1000), rows)
}

#[test]
fn i2_everybody_is_settled_once_whatever_fails() {
    for seed in 0..60 {
        let (row, rows) = list();
        let mut world = World::new(seed, row, rows);
        world.run();
        world.check();
        assert_eq!(world.row.state, BroadcastState::Done, "{seed}");
        assert_eq!(world.settled.len() as u64, PEOPLE, "{seed}");
    }
}

#[test]
fn i2_what_is_stored_is_sent_once_though_the_server_forgets() {
    for seed in 0..60 {
        let (row, rows) = list();
        let mut world = World::new(seed, row, rows);
        world.killed = true;
        world.run();
        assert_eq!(world.row.counts.settled(), PEOPLE, "{seed}");
        let stored = world.keys.iter().filter(|(_, fate)| **fate == Fate::Stored);
        let resent = stored.filter(|(key, _)| world.stored_again.contains(*key)).count();
        assert_eq!(resent, 0, "{seed}");
    }
}

#[test]
fn i2_accounts_are_counted_once_whatever_fails() {
    for seed in 0..60 {
        let row = Broadcast {
            everyone: true,
            counted_to: Some(String::new()),
            ..kept(BroadcastState::Running, 0, 1000)
        };
        let mut world = World::new(seed, row, BTreeMap::new());
        world.run();
        world.check();
        assert_eq!(world.row.counts.total, PEOPLE, "{seed}");
        assert_eq!(world.settled.len() as u64, PEOPLE, "{seed}");
    }
}

#[test]
fn cancelled_or_expired_at_any_time_it_ends_and_the_counts_are_right() {
    for seed in 0..60 {
        let (mut row, rows) = list();
        if seed % 2 == 0 {
            row.expires_at = at(101);
        }
        let mut world = World::new(seed, row, rows);
        world.begin();
        for _ in 0..seed * 10 {
            world.step();
        }
        if seed % 2 == 1 && world.row.ended_at.is_none() {
            let (asker, command) = (super::ADMIN, Command::Cancel { broadcast: 1 });
            world.input(Input::Command { asker, command, host: None, token: String::new() });
            while !world.changes.is_empty() {
                world.carry_out();
            }
        }
        for _ in 0..200_000 {
            if world.row.ended_at.is_none() {
                world.step();
            }
        }
        assert!(world.row.ended_at.is_some(), "{seed}: {:?}", world.row);
        world.check();
        let counts = world.row.counts;
        assert_eq!(counts.settled(), PEOPLE, "{seed}");
    }
}
