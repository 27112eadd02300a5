//! The machine, whole lists of effects at a time.

use super::*;

const LEASE: Duration = Duration::from_secs(3);
const SHARDS: u32 = 8;

fn at(tenths: u64) -> Moment {
    Duration::from_millis(tenths * 100)
}

fn process(node: &str, number: u32) -> Incarnation {
    Incarnation { node: node.to_owned(), number }
}

fn all() -> Vec<ShardId> {
    (0..SHARDS).map(ShardId).collect()
}

/// The shards of a node, when these are there.
fn share(node: &str, names: &[&str]) -> Vec<ShardId> {
    let candidates = Candidates::new(names.iter().copied());
    all().into_iter().filter(|shard| candidates.of(*shard) == Some(node)).collect()
}

fn holding(shard: ShardId, owner: Option<&Incarnation>, epoch: u32) -> Holding {
    Holding { shard, owner: owner.cloned(), epoch }
}

/// All shards with one owner.
fn look(writers: &[&Incarnation], owner: Option<&Incarnation>, epoch: u32) -> Look {
    Look {
        writers: writers.iter().copied().cloned().collect(),
        shards: all().into_iter().map(|shard| holding(shard, owner, epoch)).collect(),
    }
}

fn machine(own: &Incarnation) -> Machine {
    let shards = Shards(ShardSet::all(SHARDS));
    Machine::new(Settings { own: own.clone(), shards, lease: LEASE })
}

fn nodes(others: &[(&Incarnation, u64)]) -> Nodes {
    let node = |(incarnation, heard): &(&Incarnation, u64)| Node {
        incarnation: (*incarnation).clone(),
        draining: false,
        heard: at(*heard),
        lease: LEASE,
    };
    Nodes {
        hears: true,
        hears_all: true,
        others: others.iter().map(node).collect(),
        ..Nodes::default()
    }
}

/// A machine that has all shards since epoch 7, alone.
fn owner(own: &Incarnation) -> Machine {
    let mut machine = machine(own);
    assert_eq!(machine.handle(at(0), Input::Nodes(nodes(&[]))), [Effect::Look]);
    let effects = machine.handle(at(0), Input::Looked(Some(look(&[own], Some(own), 7))));
    let here = all().into_iter().map(|shard| (shard, Place::Here { epoch: 7 })).collect();
    assert_eq!(effects, [Effect::Place(here)]);
    machine
}

#[test]
fn shards_of_nobody_are_taken_by_whom_they_are_for() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = machine(&n1);
    machine.handle(at(0), Input::Nodes(Nodes { hears_all: false, ..nodes(&[(&n2, 0)]) }));
    let effects = machine.handle(at(0), Input::Looked(Some(look(&[&n1, &n2], None, 0))));
    let nowhere = all().into_iter().map(|shard| (shard, Place::Nowhere)).collect();
    let mine = share("n1", &["n1", "n2"]);
    assert!(!mine.is_empty() && mine.len() < SHARDS as usize);
    let take = mine.iter().map(|shard| holding(*shard, None, 0)).collect();
    assert_eq!(effects, [Effect::Place(nowhere), Effect::Take(take)]);
    // Then the others are told, and the database is asked what it says now.
    assert_eq!(machine.handle(at(0), Input::Moved(true)), [Effect::Hint, Effect::Look]);
}

#[test]
fn nothing_is_taken_by_a_node_that_hears_nothing() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = machine(&n1);
    let deaf = Nodes { hears: false, hears_all: false, ..nodes(&[]) };
    machine.handle(at(0), Input::Nodes(deaf.clone()));
    let effects = machine.handle(at(0), Input::Looked(Some(look(&[&n1, &n2], Some(&n2), 7))));
    assert!(matches!(effects[..], [Effect::Place(_)]), "{effects:?}");
    for tenths in 1..29 {
        assert_eq!(machine.handle(at(tenths), Input::Nodes(deaf.clone())), []);
    }
    assert_eq!(machine.handle(at(30), Input::Nodes(deaf)), [Effect::Look], "now and then");
}

#[test]
fn a_dead_node_is_dead_when_its_lease_is_over() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = machine(&n1);
    let seen = look(&[&n1, &n2], Some(&n2), 7);
    machine.handle(at(0), Input::Nodes(nodes(&[(&n2, 0)])));
    machine.handle(at(0), Input::Looked(Some(seen.clone())));
    machine.handle(at(29), Input::LookAgain);
    machine.handle(at(29), Input::Looked(Some(seen.clone())));
    assert_eq!(machine.handle(at(30), Input::Nodes(nodes(&[(&n2, 0)]))), []);
    let just_back = Nodes { hears_all: false, ..nodes(&[(&n2, 0)]) };
    assert_eq!(machine.handle(at(31), Input::Nodes(just_back)), [], "NATS has just come back");
    let effects = machine.handle(at(31), Input::Nodes(nodes(&[(&n2, 0)])));
    assert_eq!(effects, [Effect::Take(seen.shards)]);
}

#[test]
fn an_owner_that_was_never_heard_has_a_lease_to_say_so() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = machine(&n1);
    let seen = look(&[&n1, &n2], Some(&n2), 7);
    machine.handle(at(0), Input::Nodes(nodes(&[])));
    machine.handle(at(0), Input::Looked(Some(seen.clone())));
    assert_eq!(machine.handle(at(29), Input::Nodes(nodes(&[]))), []);
    machine.handle(at(30), Input::Nodes(nodes(&[])));
    machine.handle(at(30), Input::Looked(Some(seen.clone())));
    let effects = machine.handle(at(31), Input::Nodes(nodes(&[])));
    assert_eq!(effects, [Effect::Take(seen.shards)]);
}

#[test]
fn a_node_that_comes_is_given_its_share() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = owner(&n1);
    let seen = nodes(&[(&n2, 1)]);
    assert_eq!(machine.handle(at(1), Input::Nodes(seen.clone())), [Effect::Look]);
    let effects = machine.handle(at(1), Input::Looked(Some(look(&[&n1, &n2], Some(&n1), 7))));
    let theirs = share("n2", &["n1", "n2"]);
    assert_eq!(effects, [Effect::Hold(theirs.clone())]);
    assert_eq!(machine.handle(at(2), Input::Nodes(seen.clone())), [], "one thing at a time");
    let effects = machine.handle(at(2), Input::Quiet);
    assert_eq!(effects, [Effect::Give(theirs.clone(), n2.clone())]);
    assert_eq!(machine.handle(at(2), Input::Moved(true)), [Effect::Hint, Effect::Look]);
    let mut after = look(&[&n1, &n2], Some(&n1), 7);
    for one in after.shards.iter_mut().filter(|one| theirs.contains(&one.shard)) {
        *one = holding(one.shard, Some(&n2), 8);
    }
    let place = |shard| (shard, Place::Peer { node: n2.clone(), epoch: 8 });
    let effects = machine.handle(at(2), Input::Looked(Some(after)));
    assert_eq!(effects, [Effect::Place(theirs.into_iter().map(place).collect())]);
    assert_eq!(machine.own(), share("n1", &["n1", "n2"]).len());
    assert_eq!(machine.handle(at(3), Input::Nodes(seen)), [], "all is where it belongs");
}

#[test]
fn what_was_held_for_nothing_is_said_to_be_here() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = owner(&n1);
    machine.handle(at(1), Input::Nodes(nodes(&[(&n2, 1)])));
    machine.handle(at(1), Input::Looked(Some(look(&[&n1, &n2], Some(&n1), 7))));
    machine.handle(at(2), Input::Quiet);
    assert_eq!(machine.handle(at(3), Input::Moved(false)), [Effect::Look]);
    // The database is away for a moment.
    assert_eq!(machine.handle(at(3), Input::Looked(None)), []);
    assert_eq!(machine.handle(at(4), Input::Nodes(nodes(&[(&n2, 1)]))), [Effect::Look]);
    let effects = machine.handle(at(4), Input::Looked(Some(look(&[&n1], Some(&n1), 7))));
    let here = |shard| (shard, Place::Here { epoch: 7 });
    let back = share("n2", &["n1", "n2"]).into_iter().map(here).collect();
    assert_eq!(effects, [Effect::Place(back)], "and n2 is fenced: it is given nothing");
}

#[test]
fn a_node_that_drains_gives_all_away_and_takes_nothing() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let mut machine = owner(&n1);
    let drains = Nodes { draining: true, ..nodes(&[(&n2, 1)]) };
    machine.handle(at(1), Input::Nodes(drains.clone()));
    assert!(!machine.has_drained(at(1)));
    let effects = machine.handle(at(1), Input::Looked(Some(look(&[&n1, &n2], Some(&n1), 7))));
    assert_eq!(effects, [Effect::Hold(all())]);
    machine.handle(at(1), Input::Quiet);
    machine.handle(at(1), Input::Moved(true));
    machine.handle(at(1), Input::Looked(Some(look(&[&n1, &n2], Some(&n2), 8))));
    assert!(machine.has_drained(at(1)));
    // n2 has ended: a node that drains is better than none, unless it ends, too.
    let alone = Nodes { draining: true, ..nodes(&[]) };
    let after = look(&[&n1], Some(&n2), 8);
    let stopping = Nodes { stopping: true, ..alone.clone() };
    let mut other = machine.clone();
    other.handle(at(2), Input::Nodes(stopping));
    let effects = other.handle(at(2), Input::Looked(Some(after.clone())));
    assert!(matches!(effects[..], [Effect::Place(_)]), "{effects:?}");
    machine.handle(at(2), Input::Nodes(alone));
    let effects = machine.handle(at(2), Input::Looked(Some(after.clone())));
    assert_eq!(effects[1..], [Effect::Take(after.shards)]);
}

#[test]
fn a_node_alone_has_nobody_to_give_to() {
    let n1 = process("n1", 1);
    let mut machine = owner(&n1);
    let stopping = Nodes { draining: true, stopping: true, ..nodes(&[]) };
    assert_eq!(machine.handle(at(1), Input::Nodes(stopping)), [Effect::Look]);
    machine.handle(at(1), Input::Looked(Some(look(&[&n1], Some(&n1), 7))));
    assert!(machine.has_drained(at(1)));
}

#[test]
fn what_it_was_given_and_has_not_seen_is_given_away_too() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let shards = Shards("0-3".parse().unwrap());
    let mut machine = Machine::new(Settings { own: n1.clone(), shards, lease: LEASE });
    machine.handle(at(0), Input::Nodes(nodes(&[(&n2, 0)])));
    machine.handle(at(0), Input::Looked(Some(look(&[&n1, &n2], Some(&n2), 7))));
    let drains = Nodes { draining: true, ..nodes(&[(&n2, 1)]) };
    assert_eq!(machine.handle(at(1), Input::Nodes(drains)), [Effect::Look]);
    assert!(!machine.has_drained(at(1)), "who knows");
    let effects = machine.handle(at(1), Input::Looked(Some(look(&[&n1, &n2], Some(&n1), 8))));
    assert!(matches!(effects[..], [Effect::Place(_), Effect::Hold(_)]), "{effects:?}");
    assert!(!machine.has_drained(at(1)));
}

#[test]
fn no_more_than_a_few_shards_are_held_at_once() {
    let (n1, n2) = (process("n1", 1), process("n2", 2));
    let shards = Shards(ShardSet::all(256));
    let mut machine = Machine::new(Settings { own: n1.clone(), shards, lease: LEASE });
    machine.handle(at(0), Input::Nodes(Nodes { draining: true, ..nodes(&[(&n2, 0)]) }));
    let shards = (0..256).map(|shard| holding(ShardId(shard), Some(&n1), 7)).collect();
    let seen = Look { writers: [n1, n2].into(), shards };
    let effects = machine.handle(at(0), Input::Looked(Some(seen)));
    assert!(matches!(&effects[..], [Effect::Place(_), Effect::Hold(held)] if held.len() == 32));
}

#[test]
fn shards_of_other_databases_are_none_of_its_business() {
    let n1 = process("n1", 1);
    let shards = Shards("0-3".parse().unwrap());
    let mut machine = Machine::new(Settings { own: n1.clone(), shards, lease: LEASE });
    machine.handle(at(0), Input::Nodes(nodes(&[])));
    let effects = machine.handle(at(0), Input::Looked(Some(look(&[&n1], None, 0))));
    assert!(matches!(&effects[..], [_, Effect::Take(taken)] if taken.len() == 4), "{effects:?}");
}
