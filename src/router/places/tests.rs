//! Histories of shards that come and go: what is asked is answered, once, in order.

use std::time::{Duration, Instant};

use super::*;
use crate::shard::wire::Entry;
use crate::shard::{Ask, Asker, Available, Do, HandOver, Intercept, Sent, Stage, Taken, Verdict};
use crate::stanza::Message;
use crate::time::Timestamp;
use crate::words::MessageId;

const SHARD: ShardId = ShardId(0);
const OTHER: ShardId = ShardId(1);
const LINK: LinkId = LinkId(1);
const BOB: &str = "bob@h";
/// The others, by the numbers of their incarnations.
const B: u32 = 7;
const C: u32 = 8;

fn node(number: u32) -> Incarnation {
    Incarnation { node: format!("n{number}"), number }
}

fn intercept(link: LinkId, key: &str) -> Input {
    let raw = format!("<message xmlns='jabber:client' from='a@h/r' to='{BOB}' id='{key}'/>");
    Input::Intercept(Box::new(Intercept {
        link,
        host: "h".into(),
        key: key.into(),
        after: None,
        again: false,
        stage: Stage::Offline,
        leg: Leg::Recipient,
        to: BOB.into(),
        account: true,
        archived: false,
        sessions: Vec::new(),
        forwards_to: false,
        gateway: false,
        stamp: Timestamp::from_micros(1),
        message: Message::parse(raw.into(), "h").unwrap(),
        silent: false,
        rules: None,
    }))
}

fn available(session: &str, n: u64) -> Input {
    Input::Available(Available {
        link: LINK,
        host: "h".into(),
        session: session.into(),
        n,
        user: BOB.into(),
        archive: None,
        batch_bytes: 1000,
    })
}

fn retrieve(name: &str, ask: Ask) -> Input {
    let asker = Asker {
        link: LINK,
        host: "h".into(),
        request: "r".into(),
        name: name.into(),
        user: BOB.into(),
        jid: format!("{BOB}/r"),
        id: "i".into(),
    };
    Input::Retrieve(Retrieve { asker, ask, batch_bytes: 1000 })
}

fn ended(session: &str) -> Input {
    let Input::Taken(said) = taken(session, 1, 0) else { unreachable!() };
    Input::Taken(Taken { ids: Vec::new(), ended: true, ..said })
}

fn taken(session: &str, batch: u64, id: i64) -> Input {
    Input::Taken(Taken {
        link: LINK,
        host: "h".into(),
        session: session.into(),
        user: BOB.into(),
        batch,
        ids: vec![MessageId(id)],
        ended: false,
    })
}

fn deleted(session: &str, batch: u64) -> Crossing {
    let what = ToLink::Deleted { host: "h".into(), session: session.into(), batch };
    Crossing::Tell { link: LINK, what }
}

fn verdict(key: &str, what: Do) -> Crossing {
    let verdict = Verdict {
        host: "h".into(),
        key: key.into(),
        stage: Stage::Offline,
        what,
        silent: false,
        sends: Vec::new(),
    };
    Crossing::Tell { link: LINK, what: ToLink::Verdict(verdict) }
}

fn hand_over(session: &str, view: bool) -> Crossing {
    let (host, session) = ("h".into(), session.into());
    let hand_over = HandOver { host, session, batch: 1, view, items: Vec::new() };
    Crossing::Tell { link: LINK, what: ToLink::HandOver(hand_over) }
}

fn handed_over(session: &str, n: u64) -> Crossing {
    let (host, session) = ("h".into(), session.into());
    Crossing::Tell { link: LINK, what: ToLink::HandedOver { host, session, n, count: 0 } }
}

fn asked(epoch: u32, input: Input) -> Crossing {
    Crossing::Ask { shard: SHARD, epoch, user: BOB.into(), input }
}

fn name(input: &Input) -> String {
    match input {
        Input::Intercept(i) => format!("{}{}", i.key, if i.again { " again" } else { "" }),
        Input::Available(a) => format!("available {}", a.session),
        Input::Taken(t) => format!("taken {}", t.session),
        Input::Retrieve(r) => format!("retrieve {}", r.asker.name),
        Input::LinkDown(link) => format!("down {}.{}", link.peer(), link.number()),
        Input::HostDown { host, .. } => format!("host down {host}"),
        Input::Sent { sent, .. } => format!("sent {sent:?}"),
        other => format!("{other:?}"),
    }
}

fn entry(entry: &Entry) -> String {
    let mut bytes = Vec::new();
    entry.write(&mut bytes);
    match Crossing::read(bytes.into(), 1).unwrap() {
        Crossing::Ask { epoch, input, .. } => format!("{} @{epoch}", name(&input)),
        Crossing::NotMine { epoch, .. } => format!("not mine @{epoch}"),
        Crossing::LinkDown(link) => format!("link down {}", link.number()),
        Crossing::HostDown(link, host) => format!("host down {} {host}", link.number()),
        other => format!("{other:?}"),
    }
}

fn said(what: &ToLink) -> String {
    match what {
        ToLink::Verdict(v) => format!("{} {}", v.key, v.what.as_str()),
        ToLink::HandOver(h) => format!("hand-over {}", h.session),
        ToLink::HandedOver { session, n, .. } => format!("handed over {session} {n}"),
        ToLink::Retrieved(r) => match &r.answer {
            Answer::Refused(refused) => format!("{} {}", r.asker.name, refused.condition),
            _ => format!("{} done", r.asker.name),
        },
        other => format!("{other:?}"),
    }
}

fn show(effect: Effect<&'static str>) -> String {
    let all = |list: Vec<String>| list.join(", ");
    match effect {
        Effect::Shard(actor, inputs) => {
            format!("{actor}: {}", all(inputs.iter().map(name).collect()))
        }
        Effect::Peer(peer, entries) => {
            format!("to {peer}: {}", all(entries.iter().map(entry).collect()))
        }
        Effect::Link(link, what) => {
            format!("link {}: {}", link.number(), all(what.iter().map(said).collect()))
        }
        Effect::Leave(_, actor) => format!("{actor} leaves"),
        Effect::LookAgain => "look again".into(),
        Effect::DueTaken => "due taken".into(),
        Effect::DueAnew => "due anew".into(),
        Effect::Other(peer, _) => format!("other of {peer}"),
    }
}

/// A node and a clock.
struct Node {
    places: Places<&'static str>,
    now: Instant,
}

impl Node {
    fn new() -> Self {
        Node { places: Places::new(2), now: Instant::now() }
    }

    /// With ways to the others, and the shard at that one.
    fn with_shard_at(peer: u32) -> Self {
        let mut node = Node::new();
        node.places.peer_up(&self::node(B));
        node.places.peer_up(&self::node(C));
        node.moved(At::Peer(self::node(peer), 1));
        node
    }

    fn with_shard_here(epoch: u32) -> Self {
        let mut node = Node::new();
        node.places.peer_up(&self::node(B));
        node.moved(At::Here("old", epoch));
        node
    }

    fn effects(&mut self) -> Vec<String> {
        self.places.effects().into_iter().map(show).collect()
    }

    fn moved(&mut self, to: At<&'static str>) -> Vec<String> {
        self.places.moved(self.now, SHARD, to);
        self.effects()
    }

    fn ask(&mut self, inputs: Vec<Input>) -> Vec<String> {
        let inputs = inputs.into_iter().map(|input| (BOB.into(), input)).collect();
        self.places.ask(self.now, SHARD, inputs);
        self.effects()
    }

    fn hear(&mut self, peer: u32, crossings: Vec<Crossing>) -> Vec<String> {
        self.places.hear(self.now, peer, crossings);
        self.effects()
    }

    fn pass(&mut self, seconds: u64) -> Vec<String> {
        self.now += Duration::from_secs(seconds);
        self.places.tick(self.now);
        self.effects()
    }
}

#[test]
fn what_is_asked_of_another_node_is_answered_once() {
    let mut node = Node::with_shard_at(B);
    let asked = node.ask(vec![intercept(LINK, "k1"), intercept(LINK, "k2")]);
    assert_eq!(asked, ["to 7: k1 @1, k2 @1"]);
    assert_eq!(node.places.undecided(), 2);
    let both = vec![verdict("k1", Do::Stored), verdict("k2", Do::Retry)];
    assert_eq!(node.hear(B, both), ["link 1: k1 stored, k2 retry"]);
    assert_eq!(node.hear(B, vec![verdict("k1", Do::Stored)]), [""; 0]);
    assert_eq!(node.places.undecided(), 0);
    assert_eq!(node.moved(At::Peer(self::node(C), 2)), [""; 0], "nothing is left to ask");
}

#[test]
fn i1_i3_a_new_place_is_asked_again_in_order() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![intercept(LINK, "k1"), available("s1", 1), intercept(LINK, "k2")]);
    node.hear(B, vec![verdict("k1", Do::Deliver)]);
    let again = node.moved(At::Peer(self::node(C), 2));
    assert_eq!(again, ["to 8: available s1 @2, k2 again @2"]);
    let here = node.moved(At::Here("new", 3));
    assert_eq!(here, ["due anew", "new: available s1, k2 again"]);
    assert_eq!(node.moved(At::Nowhere), ["new leaves"], "here nothing is noted");
}

#[test]
fn i4_who_has_lost_a_shard_answers_no_more() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![intercept(LINK, "k1"), available("s1", 1)]);
    node.moved(At::Peer(self::node(C), 2));
    let late = vec![verdict("k1", Do::Deliver), hand_over("s1", false), handed_over("s1", 1)];
    assert_eq!(node.hear(B, late), [""; 0]);
    assert_eq!(node.hear(C, vec![verdict("k1", Do::Stored)]), ["link 1: k1 stored"]);
}

#[test]
fn while_nobody_is_known_it_waits() {
    let mut node = Node::new();
    assert_eq!(node.ask(vec![intercept(LINK, "k1"), ended("s0")]), [""; 0]);
    assert_eq!(node.moved(At::Peer(self::node(B), 1)), [""; 0], "there is no way yet");
    assert_eq!(node.ask(vec![intercept(LINK, "k2")]), [""; 0]);
    node.places.peer_up(&self::node(B));
    assert_eq!(node.effects(), ["to 7: k1 @1, taken s0 @1, k2 @1"], "neither was sent before");
}

#[test]
fn a_broken_way_closes_the_links_behind_it() {
    let mut node = Node::with_shard_at(B);
    node.places.moved(node.now, OTHER, At::Here("other", 1));
    node.ask(vec![intercept(LINK, "k1")]);
    node.places.peer_down(B);
    assert_eq!(node.effects(), ["other: down 7.0", "look again"]);
    assert_eq!(node.ask(vec![intercept(LINK, "k2")]), [""; 0]);
    node.places.peer_up(&self::node(B));
    assert_eq!(node.effects(), ["other: down 7.0", "to 7: k1 again @1, k2 @1"]);
    node.places.peer_forgot(B);
    assert_eq!(node.effects(), ["other: down 7.0", "to 7: k1 again @1, k2 again @1"]);
}

#[test]
fn a_link_that_closes_is_told_to_all_and_waits_for_nothing() {
    let mut node = Node::with_shard_at(B);
    node.places.moved(node.now, OTHER, At::Here("other", 1));
    node.ask(vec![intercept(LINK, "k1"), intercept(LinkId(2), "k2")]);
    node.places.link_down(LINK, None);
    assert_eq!(node.effects(), ["other: down 0.1", "to 7: link down 1", "to 8: link down 1"]);
    assert_eq!(node.moved(At::Peer(self::node(C), 2)), ["to 8: k2 again @2"]);
    node.places.link_down(LinkId(2), Some(&"h".into()));
    let told = ["other: host down h", "to 7: host down 2 h", "to 8: host down 2 h"];
    assert_eq!(node.effects(), told);
    assert_eq!(node.moved(At::Here("new", 3)), ["due anew"]);
}

#[test]
fn a_shard_that_leaves_takes_along_what_it_had_not_answered() {
    let mut node = Node::with_shard_here(1);
    assert_eq!(node.ask(vec![available("s1", 1)]), ["old: available s1"]);
    node.places.hold(&[SHARD]);
    assert_eq!(node.ask(vec![intercept(LINK, "k1")]), [""; 0], "it waits");
    assert_eq!(node.hear(B, vec![asked(1, intercept(LinkId::of_peer(B, 1), "b1"))]), [""; 0]);
    assert_eq!(node.moved(At::Peer(self::node(B), 2)), ["old leaves"]);
    assert_eq!(node.ask(vec![intercept(LINK, "k2")]), [""; 0]);
    let left = Left { inputs: vec![(BOB.into(), available("s1", 1))], answers: Vec::new() };
    node.places.left(node.now, SHARD, left);
    let moved = ["to 7: available s1 @2, k1 @2, k2 @2", "to 7: not mine @1"];
    assert_eq!(node.effects(), moved);
}

#[test]
fn a_shard_that_stays_after_all_goes_on() {
    let mut node = Node::with_shard_here(1);
    node.places.hold(&[SHARD]);
    node.ask(vec![intercept(LINK, "k1")]);
    node.hear(B, vec![asked(1, intercept(LinkId::of_peer(B, 1), "b1"))]);
    assert_eq!(node.moved(At::Here("old", 1)), ["old: k1, b1"]);
    assert_eq!(node.ask(vec![intercept(LINK, "k2")]), ["old: k2"]);
}

#[test]
fn who_asks_with_another_epoch_is_sent_away_or_waits() {
    let mut node = Node::with_shard_here(5);
    let peer = |key| intercept(LinkId::of_peer(B, 1), key);
    assert_eq!(node.hear(B, vec![asked(5, peer("k1")), asked(5, peer("k2"))]), ["old: k1, k2"]);
    assert_eq!(node.hear(B, vec![asked(4, peer("k3"))]), ["to 7: not mine @4"]);
    assert_eq!(node.hear(B, vec![asked(6, peer("k4"))]), ["look again"], "it may come to know");
    assert_eq!(node.moved(At::Here("new", 6)), ["old leaves"]);
    node.places.left(node.now, SHARD, Left::default());
    assert_eq!(node.effects(), ["due anew", "new: k4"]);
    node.hear(B, vec![asked(9, peer("k5"))]);
    assert_eq!(node.moved(At::Peer(self::node(C), 10)), ["new leaves"]);
    node.places.left(node.now, SHARD, Left::default());
    assert_eq!(node.effects(), ["to 7: not mine @9"]);
}

#[test]
fn i6_who_waits_for_too_long_is_sent_away() {
    let mut node = Node::new();
    node.places.peer_up(&self::node(B));
    let ask = asked(3, intercept(LinkId::of_peer(B, 1), "k1"));
    assert_eq!(node.hear(B, vec![ask]), ["look again"]);
    assert_eq!(node.pass(1), [""; 0]);
    assert_eq!(node.pass(PATIENCE.as_secs()), ["to 7: not mine @3"]);
    assert_eq!(node.pass(PATIENCE.as_secs()), [""; 0]);
}

#[test]
fn not_mine_is_looked_up_and_asked_again_if_nothing_has_changed() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![intercept(LINK, "k1")]);
    let not_mine = |epoch| vec![Crossing::NotMine { shard: SHARD, epoch }];
    assert_eq!(node.hear(B, not_mine(1)), ["look again"]);
    assert_eq!(node.pass(1), ["to 7: k1 again @1"]);
    assert_eq!(node.pass(1), [""; 0]);
    assert_eq!(node.hear(B, not_mine(0)), [""; 0], "an old one");
    assert_eq!(node.hear(C, not_mine(1)), [""; 0], "nobody asked that one");
}

#[test]
fn f8_what_a_user_was_shown_is_not_shown_again() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![retrieve("r1", Ask::Fetch), retrieve("r2", Ask::Fetch)]);
    node.ask(vec![retrieve("r3", Ask::Remove(vec![MessageId(1)]))]);
    assert_eq!(node.hear(B, vec![hand_over("r1", true)]), ["link 1: hand-over r1"]);
    let again = node.moved(At::Peer(self::node(C), 2));
    let interrupted = |name| format!("link 1: {name} service-unavailable");
    assert_eq!(again, [interrupted("r1"), interrupted("r3"), "to 8: retrieve r2 @2".into()]);
}

#[test]
fn a_session_that_ended_is_not_announced_again() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![available("s1", 1), available("s2", 1), available("s3", 1)]);
    assert_eq!(node.ask(vec![ended("s1")]), ["to 7: taken s1 @1"]);
    assert_eq!(node.ask(vec![available("s2", 2)]), ["to 7: available s2 @1"]);
    node.hear(B, vec![handed_over("s2", 1), handed_over("s3", 1)]);
    let again = node.moved(At::Peer(self::node(C), 2));
    assert_eq!(again, ["to 8: taken s1 @2, available s2 @2"], "for its new reason");
}

#[test]
fn i2_what_was_confirmed_is_said_again_until_it_is_deleted() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![taken("s1", 1, 5), taken("s1", 1, 6), taken("s1", 2, 7), available("s2", 1)]);
    // The interceptor repeats what is not deleted: it is not noted twice, and comes last.
    node.ask(vec![taken("s1", 2, 7)]);
    assert_eq!(node.hear(B, vec![deleted("s1", 1)]).len(), 1);
    assert_eq!(node.moved(At::Nowhere), [""; 0]);
    node.ask(vec![ended("s2")]);
    let again = node.moved(At::Peer(self::node(C), 2));
    assert_eq!(again, ["to 8: taken s1 @2, taken s1 @2, taken s2 @2"]);
    node.hear(C, vec![deleted("s1", 2), deleted("s1", 1), deleted("s2", 1)]);
    assert_eq!(node.moved(At::Peer(self::node(B), 3)), [""; 0], "nothing is left to say");
}

#[test]
fn what_nobody_repeats_is_forgotten() {
    let mut node = Node::with_shard_at(B);
    node.ask(vec![intercept(LINK, "k1")]);
    node.pass(50);
    node.ask(vec![intercept(LINK, "k2")]);
    node.pass(50);
    assert_eq!(node.places.undecided(), 1);
}

#[test]
fn what_leaves_for_another_server_needs_no_place() {
    let mut node = Node::with_shard_at(B);
    let Input::Intercept(mut leaving) = intercept(LINK, "k1") else { unreachable!() };
    leaving.leg = Leg::Sender { next_supports_amp: true };
    node.places.moved(node.now, OTHER, At::Here("other", 1));
    node.effects();
    assert_eq!(node.ask(vec![Input::Intercept(leaving)]), ["other: k1"]);
    let sent = Input::Sent { user: BOB.into(), id: MessageId(1), sent: Sent::Done };
    assert_eq!(node.ask(vec![sent]), ["to 7: sent Done @1"]);
}
