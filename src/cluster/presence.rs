//! Who is there: a pure machine over the keys of nodes in NATS.
//!
//! A node renews its key; the others hear of it. None trusts a clock but its own, and a watch
//! does not say when a key has expired: so each node has a timer for each other. A node that
//! does not hear itself hears no others either, and thinks nobody dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Time since the process began, by a clock that never goes back.
pub type Moment = Duration;

/// What a node says of itself, as far as this machine reads it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key<T> {
    /// Which process, for ever.
    pub process: u32,
    /// It may be silent so long.
    pub lease: Duration,
    /// It wants no shards, and gives away what it has.
    pub draining: bool,
    /// Nodes whose terms differ can't be in one cluster.
    pub terms: Terms,
    /// Everything else.
    pub rest: T,
}

/// What must be the same on all nodes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Terms {
    /// How many shards there are.
    pub shards: u32,
    /// See [`super::rendezvous::HASH`].
    pub hash: Arc<str>,
    /// How nodes talk to each other.
    pub protocol: u32,
}

/// Another node that lives.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Other<T> {
    /// As it last said.
    pub key: Key<T>,
    /// When it said so.
    pub heard: Moment,
}

/// What the machine is told.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input<T> {
    /// There is a connection to NATS.
    Up,
    /// It is lost, or what is heard over it may have gaps: keys are read from the beginning.
    Lost,
    /// A node has renewed its key, or taken it back (none). Numbers of keys grow.
    Heard(Arc<str>, u64, Option<Key<T>>),
    /// This node has something else to say of itself.
    Say {
        /// It gives its shards away.
        draining: bool,
        /// Everything else.
        rest: T,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect<T> {
    /// Write the own key.
    Publish(Key<T>),
    /// Watch the keys from the beginning: what was watched says nothing any more.
    Watch,
    /// The own key does not come back over this watch. Connect to another server of NATS, if this one does
    /// not take the key either: it may be parted from the rest. Else `Watch`.
    Elsewhere,
    /// A node that was there before, and lives, has other terms: this one must not join.
    Refused(Arc<str>, Terms),
    /// A node with other terms is there, and not heeded.
    Stranger(Arc<str>, Terms),
}

/// The machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Presence<T> {
    node: Arc<str>,
    own: Key<T>,
    others: BTreeMap<Arc<str>, Known<T>>,
    up: bool,
    /// When the watch was begun.
    watched: Option<Moment>,
    published: Option<Moment>,
    /// The number of the first own key that was heard, and of the last, and when that was.
    first: Option<u64>,
    last: u64,
    heard: Option<Moment>,
    /// No node that was there before has other terms.
    joined: bool,
    /// The own key was heard without a gap since then.
    since: Option<Moment>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Known<T> {
    other: Other<T>,
    /// Of its key; zero: keys are read from the beginning since.
    number: u64,
}

impl<T: Clone> Presence<T> {
    /// A node that nobody has heard of.
    pub fn new(node: Arc<str>, own: Key<T>) -> Self {
        Presence {
            node,
            own,
            others: BTreeMap::new(),
            up: false,
            watched: None,
            published: None,
            first: None,
            last: 0,
            heard: None,
            joined: false,
            since: None,
        }
    }

    /// Takes one input and says what is to be done.
    pub fn handle(&mut self, now: Moment, input: Input<T>) -> Vec<Effect<T>> {
        let mut effects = Vec::new();
        match input {
            Input::Up => self.up = true,
            Input::Lost => self.lost(),
            Input::Heard(node, number, key) if node == self.node => self.hear_own(now, number, key),
            Input::Heard(node, number, key) => self.hear(now, node, number, key, &mut effects),
            Input::Say { draining, rest } => {
                self.own.draining = draining;
                self.own.rest = rest;
                self.published = None;
            }
            Input::Tick => {}
        }
        self.forget(now);
        self.join(now);
        self.renew(now, &mut effects);
        effects
    }

    /// The other nodes that may be in the cluster, those that have died a while ago among them.
    pub fn others(&self) -> impl Iterator<Item = (&Arc<str>, &Other<T>)> {
        let known = self.others.iter().map(|(node, known)| (node, &known.other));
        known.filter(|(_, other)| other.key.terms == self.own.terms)
    }

    /// Whether this node hears itself, and so the others: what it hears may be built upon.
    pub fn hears(&self, now: Moment) -> bool {
        self.joined && self.heard.is_some_and(|heard| !self.is_gap(heard, now))
    }

    /// Whether it has done so for so long that each node that lives was heard meanwhile: one that
    /// was not is dead.
    pub fn hears_all(&self, now: Moment) -> bool {
        // Others may have a longer lease than this one.
        let leases = self.others.values().map(|known| known.other.key.lease);
        let lease = leases.chain([self.own.lease]).max().unwrap_or(self.own.lease);
        self.hears(now) && self.since.is_some_and(|since| now.saturating_sub(since) >= lease)
    }

    /// What this node says of itself.
    pub fn own(&self) -> &Key<T> {
        &self.own
    }

    fn lost(&mut self) {
        self.up = false;
        self.watched = None;
        self.published = None;
        self.heard = None;
        self.since = None;
        // Numbers may begin anew, when NATS has lost its files.
        self.others.values_mut().for_each(|known| known.number = 0);
        (self.first, self.last) = (None, 0);
    }

    /// The own key comes back.
    fn hear_own(&mut self, now: Moment, number: u64, key: Option<Key<T>>) {
        if number <= self.last || key.is_none_or(|key| key.process != self.own.process) {
            return;
        }
        if self.heard.is_none_or(|heard| self.is_gap(heard, now)) {
            self.since = Some(now);
        }
        self.first.get_or_insert(number);
        self.last = number;
        self.heard = Some(now);
    }

    /// One key that comes late is none.
    fn is_gap(&self, heard: Moment, now: Moment) -> bool {
        now.saturating_sub(heard) > self.own.lease * 2 / 3
    }

    fn hear(
        &mut self,
        now: Moment,
        node: Arc<str>,
        number: u64,
        key: Option<Key<T>>,
        effects: &mut Vec<Effect<T>>,
    ) {
        let before = self.others.get(&node);
        if before.is_some_and(|known| number <= known.number) {
            return;
        }
        let Some(key) = key else {
            self.others.remove(&node);
            return;
        };
        let before = before.filter(|known| known.other.key.process == key.process);
        if key.terms != self.own.terms {
            match before {
                Some(known) if !self.joined && self.was_there(known) => {
                    effects.push(Effect::Refused(node.clone(), key.terms.clone()));
                }
                Some(_) => {}
                None => effects.push(Effect::Stranger(node.clone(), key.terms.clone())),
            }
        }
        self.others.insert(node, Known { other: Other { key, heard: now }, number });
    }

    /// Whether its key was written before the first one of this node.
    fn was_there(&self, known: &Known<T>) -> bool {
        known.number > 0 && self.first.is_none_or(|first| known.number < first)
    }

    /// A node that was there before, with other terms, has the time of its lease to show that it
    /// lives: its key may be all that is left of it.
    fn join(&mut self, now: Moment) {
        let hinders = |known: &Known<T>| {
            known.other.key.terms != self.own.terms
                && known.other.lives(now)
                && self.was_there(known)
        };
        if self.heard.is_some() && !self.others.values().any(hinders) {
            self.joined = true;
        }
    }

    fn forget(&mut self, now: Moment) {
        self.others.retain(|_, known| {
            now.saturating_sub(known.other.heard) <= known.other.key.lease * MEMORY
        });
    }

    fn renew(&mut self, now: Moment, effects: &mut Vec<Effect<T>>) {
        if !self.up {
            return;
        }
        let over = |since: Option<Moment>, time: Duration| {
            since.is_none_or(|since| now.saturating_sub(since) >= time)
        };
        // A third of the lease is left, for being heard again before others think this node dead.
        let too_long = self.own.lease * 2 / 3;
        if self.watched.is_none() {
            self.watched = Some(now);
            effects.push(Effect::Watch);
        } else if over(self.heard, too_long) && over(self.watched, too_long) {
            self.watched = Some(now);
            effects.push(Effect::Elsewhere);
        }
        if over(self.published, self.own.lease / 3) {
            self.published = Some(now);
            effects.push(Effect::Publish(self.own.clone()));
        }
    }
}

/// How many leases a node is remembered after it was last heard.
const MEMORY: u32 = 10;

impl<T> Other<T> {
    /// Whether its lease still runs.
    pub fn lives(&self, now: Moment) -> bool {
        now.saturating_sub(self.heard) <= self.key.lease
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn at(tenths: u64) -> Moment {
        Duration::from_millis(tenths * 100)
    }

    fn key(process: u32, shards: u32) -> Key<()> {
        let terms = Terms { shards, hash: "h".into(), protocol: 1 };
        Key { process, lease: LEASE, draining: false, terms, rest: () }
    }

    fn heard(node: &str, number: u64, process: u32) -> Input<()> {
        Input::Heard(node.into(), number, Some(key(process, 8)))
    }

    fn alien(number: u64) -> Input<()> {
        Input::Heard("n2".into(), number, Some(key(2, 16)))
    }

    /// A node whose connection is up.
    fn up() -> Presence<()> {
        let mut presence = Presence::new("n1".into(), key(1, 8));
        let first = presence.handle(at(0), Input::Up);
        assert_eq!(first, [Effect::Watch, Effect::Publish(key(1, 8))]);
        presence
    }

    fn others(presence: &Presence<()>, tenths: u64) -> Vec<&str> {
        let lives = |(_, other): &(&Arc<str>, &Other<()>)| other.lives(at(tenths));
        presence.others().filter(lives).map(|(node, _)| &**node).collect()
    }

    #[test]
    fn the_key_is_renewed_at_a_third_of_the_lease() {
        let mut presence = up();
        assert_eq!(presence.handle(at(9), Input::Tick), []);
        assert_eq!(presence.handle(at(10), Input::Tick), [Effect::Publish(key(1, 8))]);
        let drain = presence.handle(at(11), Input::Say { draining: true, rest: () });
        assert_eq!(drain, [Effect::Publish(Key { draining: true, ..key(1, 8) })]);
        assert!(presence.handle(at(40), Input::Lost).is_empty(), "nobody would hear it");
    }

    #[test]
    fn a_node_lives_as_long_as_its_lease() {
        let mut presence = up();
        presence.handle(at(1), heard("n2", 7, 2));
        assert_eq!((others(&presence, 31), others(&presence, 32)), (vec!["n2"], vec![]));
        presence.handle(at(20), heard("n2", 7, 2));
        assert_eq!(others(&presence, 32).len(), 0, "a number that was heard says nothing new");
        presence.handle(at(20), heard("n2", 8, 2));
        assert_eq!(others(&presence, 50), ["n2"]);
        presence.handle(at(21), Input::Heard("n2".into(), 9, None));
        assert_eq!(others(&presence, 21).len(), 0, "it has taken its key back");
    }

    #[test]
    fn a_node_that_does_not_hear_itself_thinks_nobody_dead() {
        let mut presence = up();
        assert!(!presence.hears(at(0)));
        presence.handle(at(1), heard("n1", 1, 1));
        assert!(presence.hears(at(21)) && !presence.hears(at(22)));
        for (tenths, number) in [(11, 2), (21, 3)] {
            presence.handle(at(tenths), heard("n1", number, 1));
            assert!(!presence.hears_all(at(tenths)));
        }
        presence.handle(at(31), heard("n1", 4, 1));
        assert!(presence.hears_all(at(31)));
        // It stood still, or NATS did: what it knows of the others is old.
        presence.handle(at(90), heard("n1", 5, 1));
        assert!(presence.hears(at(90)) && !presence.hears_all(at(100)));
        presence.handle(at(91), Input::Lost);
        assert!(!presence.hears(at(91)));
        // Of its predecessor.
        presence.handle(at(92), Input::Up);
        presence.handle(at(92), heard("n1", 9, 77));
        assert!(!presence.hears(at(92)));
    }

    #[test]
    fn a_watch_over_which_the_own_key_does_not_come_is_begun_elsewhere() {
        let mut presence = up();
        assert_eq!(presence.handle(at(19), Input::Tick), [Effect::Publish(key(1, 8))]);
        assert_eq!(presence.handle(at(20), Input::Tick), [Effect::Elsewhere]);
        assert_eq!(presence.handle(at(21), Input::Tick), []);
        presence.handle(at(32), Input::Lost);
        let again = presence.handle(at(33), Input::Up);
        assert_eq!(again, [Effect::Watch, Effect::Publish(key(1, 8))]);
    }

    #[test]
    fn a_node_with_other_terms_is_refused_if_another_was_there_before_and_lives() {
        let mut presence = up();
        let (n2, terms) = (Arc::from("n2"), key(2, 16).terms);
        let stranger = Effect::Stranger(Arc::clone(&n2), terms.clone());
        assert_eq!(presence.handle(at(1), alien(5)), std::slice::from_ref(&stranger));
        presence.handle(at(1), heard("n1", 6, 1));
        assert!(!presence.hears(at(1)), "not before it is known whether the other lives");
        let refused = Effect::Refused(Arc::clone(&n2), terms);
        assert_eq!(presence.handle(at(5), alien(7)), [refused]);

        // What is left of one that has died.
        let mut presence = up();
        presence.handle(at(1), alien(5));
        presence.handle(at(25), heard("n1", 6, 1));
        assert!(!presence.hears(at(25)));
        presence.handle(at(32), heard("n1", 7, 1));
        assert!(presence.hears(at(32)));

        // One that comes later is refused itself.
        let mut presence = up();
        presence.handle(at(1), heard("n1", 4, 1));
        assert_eq!(presence.handle(at(2), alien(5)), [stranger]);
        assert_eq!(presence.handle(at(3), alien(6)), []);
        assert!(presence.hears(at(3)) && others(&presence, 3).is_empty());
    }
}
