//! The machine, without a store or a server: whole lists of effects.

mod histories;

use std::sync::Arc;
use std::time::Duration;

use super::input::{Answered, Asker, Effect, Input, Now, Settings, Write};
use super::machine::Machine;
use super::{Command, Payload, ProblemKind, Reply, Report, UNFINISHED, WINDOW};
use crate::shard::{Errand, Request};
use crate::store::{Broadcast, BroadcastChange, BroadcastState, Counts, Fate, Recipient};
use crate::time::Timestamp;

const HOST: &str = "example.org";
const ADMIN: Asker = Asker(1);

/// A machine, a clock, and what it has asked for.
struct Bench {
    machine: Machine,
    now: Now,
    effects: Vec<Effect>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn payload() -> Payload {
    Payload::text(None, "hello").unwrap()
}

fn recipient(n: u64) -> Recipient {
    Recipient { n, bare: format!("u{n:04}@{HOST}").into() }
}

/// A broadcast as it is kept, all of its recipients known.
fn kept(state: BroadcastState, total: u64, rate: u32) -> Broadcast {
    Broadcast {
        id: 1,
        token: "t".into(),
        host: HOST.into(),
        everyone: false,
        payload: payload().as_str().into(),
        expires_at: at(1000),
        rate,
        state,
        created_at: at(0),
        ended_at: None,
        counted_to: None,
        last_n: total,
        counts: Counts { total, ..Counts::default() },
    }
}

impl Bench {
    fn new(rows: Vec<Broadcast>) -> Self {
        let machine = Machine::new(Settings { hosts: vec![HOST.into()] });
        let now = Now { wall: at(100), steady: Duration::from_secs(7) };
        let mut bench = Bench { machine, now, effects: Vec::new() };
        bench.input(Input::Loaded(rows));
        bench
    }

    fn up(mut self) -> Self {
        self.input(Input::HostUp { host: HOST.into(), max_stanza: 512 * 1024 });
        self
    }

    fn input(&mut self, input: Input) {
        self.effects.extend(self.machine.handle(self.now, input));
        let wake = self.machine.wake_at(self.now);
        assert!(wake.is_none_or(|at| at > self.now.steady), "what could be done now was not");
    }

    fn pass(&mut self, time: Duration) {
        self.now.steady += time;
        self.now.wall = self.now.wall.checked_add(time).unwrap();
        self.input(Input::Wake);
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn command(&mut self, command: Command) -> Vec<Effect> {
        self.input(Input::Command { asker: ADMIN, command, host: None, token: "t".into() });
        self.take()
    }

    /// The reply to a command that needs nothing else.
    fn reply(&mut self, command: Command) -> Reply {
        let mut effects = self.command(command);
        match effects.remove(0) {
            Effect::Reply { reply, .. } if effects.is_empty() => reply,
            other => panic!("{other:?} {effects:?}"),
        }
    }

    fn report(&mut self) -> Report {
        match self.reply(Command::Status { broadcast: 1 }) {
            Reply::Broadcast(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Those who were asked for among the effects: number and place.
    fn sent(&mut self) -> Vec<(u64, u64)> {
        let mut sent = Vec::new();
        self.effects.retain(|effect| match effect {
            Effect::Ask(Request { number, ask: Errand::Settle { key, .. }, .. }) => {
                sent.push((*number, key.strip_prefix("send-t-").unwrap().parse().unwrap()));
                false
            }
            _ => true,
        });
        sent
    }

    fn settle(&mut self, number: u64, fate: Fate) {
        self.input(Input::Answered { number, answer: Answered::Settled(fate) });
    }

    /// Nobody of these is known to the store.
    fn unknown(&mut self) {
        for effect in self.take() {
            if let Effect::Find { broadcast, recipient, .. } = effect {
                self.input(Input::Found { broadcast, recipient, known: Ok(false) });
            }
        }
    }
}

fn change(write: u64, change: BroadcastChange) -> Effect {
    Effect::Change { write: Write(write), change }
}

fn changed(write: u64, rows: u64) -> Input {
    Input::Changed { write: Write(write), rows: Ok(rows) }
}

fn start(everyone: bool) -> Command {
    Command::Start {
        host: HOST.into(),
        everyone,
        stanza: payload().as_str().into(),
        expires_at: at(1000).to_string(),
        rate: 10,
    }
}

fn settle(number: u64, n: u64, again: bool) -> Effect {
    let (key, to) = (format!("send-t-{n}"), recipient(n).bare);
    let stanza = payload().message(HOST, &to, &key, at(1000));
    Effect::Ask(Request {
        number,
        host: HOST.into(),
        ask: Errand::Settle { key, to, again, stanza },
    })
}

fn page(rows: impl Iterator<Item = u64>) -> Input {
    Input::Page { broadcast: 1, rows: Ok(rows.map(recipient).collect()) }
}

#[test]
fn one_to_everyone_counts_accounts_and_sends() {
    let mut bench = Bench::new(vec![]).up();
    let ask = |number, after: &str| {
        let ask = Errand::Accounts { after: after.into(), max: 500 };
        Effect::Ask(Request { number, host: HOST.into(), ask })
    };
    assert_eq!(bench.command(start(true)), [ask(1, "")]);
    let names = vec!["u0001".to_owned(), "u0002".to_owned()];
    let answer = Answered::Accounts { names, complete: false };
    bench.input(Input::Answered { number: 1, answer });
    let new = Broadcast {
        everyone: true,
        state: BroadcastState::Running,
        created_at: at(100),
        counted_to: Some(String::new()),
        last_n: 0,
        ..kept(BroadcastState::Running, 0, 10)
    };
    let add = |rows: std::ops::Range<u64>, counted_to: Option<&str>| BroadcastChange::Add {
        broadcast: 1,
        recipients: rows.map(recipient).collect(),
        counted_to: Some(counted_to.map(str::to_owned)),
    };
    assert_eq!(
        bench.take(),
        [change(1, BroadcastChange::Create(new)), change(2, add(1..3, Some("u0002")))]
    );
    bench.input(changed(1, 0));
    let effects = bench.take();
    assert!(matches!(&effects[0], Effect::Reply { reply: Reply::Broadcast(r), .. } if r.id == 1));
    assert_eq!(effects[1..], [Effect::Read { broadcast: 1, after: 0, limit: 256 }]);
    // The page is on its way when the accounts are stored.
    bench.input(changed(2, 2));
    assert_eq!(bench.take(), [ask(2, "u0002")]);
    bench.input(page(0..0));
    assert_eq!(bench.take(), [Effect::Read { broadcast: 1, after: 0, limit: 256 }]);
    bench.input(page(1..3));
    assert_eq!(bench.take(), [settle(3, 1, false)], "the second waits for its turn");
    let answer = Answered::Accounts { names: vec!["u0003".into()], complete: true };
    bench.input(Input::Answered { number: 2, answer });
    assert_eq!(bench.take(), [change(3, add(3..4, None))]);
    bench.input(changed(3, 1));
    assert_eq!(bench.take(), [Effect::Read { broadcast: 1, after: 2, limit: 256 }]);
    bench.input(page(3..4));
    bench.settle(3, Fate::Delivered);
    let settled = |n, fate| BroadcastChange::Settle { broadcast: 1, settled: vec![(n, fate)] };
    assert_eq!(bench.take(), [change(4, settled(1, Fate::Delivered))]);
    for (n, fate) in [(2, Fate::Stored), (3, Fate::Discarded)] {
        bench.pass(Duration::from_millis(100));
        assert_eq!(bench.take(), [settle(n + 2, n, false)]);
        bench.settle(n + 2, fate);
    }
    assert_eq!(bench.take(), [], "one transaction at a time");
    bench.input(changed(4, 1));
    let settled = vec![(2, Fate::Stored), (3, Fate::Discarded)];
    assert_eq!(bench.take(), [change(5, BroadcastChange::Settle { broadcast: 1, settled })]);
    let report = bench.report();
    assert_eq!((report.total, report.delivered, report.stored, report.discarded), (3, 1, 1, 1));
    assert!(!report.is_over(), "it is not recorded yet");
    bench.input(changed(5, 2));
    let end = BroadcastChange::SetState {
        broadcast: 1,
        state: BroadcastState::Done,
        ended_at: Some(bench.now.wall),
    };
    assert_eq!(bench.take(), [change(6, end)]);
    bench.input(changed(6, 0));
    assert!(bench.report().is_over());
    assert_eq!(bench.machine.wake_at(bench.now), None);
}

#[test]
fn i6_never_more_than_the_window_and_the_rate() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Running, 200, 1000)]).up();
    assert_eq!(bench.take(), [Effect::Read { broadcast: 1, after: 0, limit: 256 }]);
    bench.input(page(1..201));
    bench.unknown();
    let mut sent = bench.sent();
    for _ in 0..2000 {
        bench.pass(Duration::from_millis(1));
        sent.extend(bench.sent());
    }
    assert_eq!(sent.len(), WINDOW);
    // What is settled and not recorded counts too.
    bench.settle(sent[0].0, Fate::Stored);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.sent(), []);
    let Some(Effect::Change { write, .. }) = bench.take().pop() else { panic!("no change") };
    bench.input(Input::Changed { write, rows: Ok(1) });
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn i2_what_may_have_been_sent_is_looked_for_first() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Running, 100, 1000)]).up();
    bench.take();
    bench.input(page(1..101));
    let found =
        |n| Effect::Find { broadcast: 1, recipient: recipient(n), key: format!("send-t-{n}") };
    let looked_for: Vec<Effect> = (1..=WINDOW as u64).map(found).collect();
    assert_eq!(bench.take(), looked_for, "the first of those who are left; nobody is sent to");
    let answer = |n, known| Input::Found { broadcast: 1, recipient: recipient(n), known };
    bench.input(answer(1, Ok(true)));
    let settled = vec![(1, Fate::Stored)];
    assert_eq!(
        bench.take(),
        [change(1, BroadcastChange::Settle { broadcast: 1, settled })],
        "it is stored, and not sent again"
    );
    bench.input(answer(2, Ok(false)));
    assert_eq!(bench.take(), [settle(1, 2, true)]);
    bench.input(answer(3, Err("disk".into())));
    assert_eq!(bench.report().trouble.as_deref(), Some("disk"));
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.take(), [found(3)]);
}

#[test]
fn what_failed_is_asked_for_again_with_its_key() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Running, 1, 1000)]).up();
    bench.take();
    bench.input(page(1..2));
    bench.unknown();
    assert_eq!(bench.take(), [settle(1, 1, true)]);
    bench.input(Input::HostDown { host: HOST.into() });
    bench.input(Input::Answered { number: 1, answer: Answered::Failed("closed".into()) });
    bench.pass(Duration::from_secs(1));
    bench.unknown();
    assert_eq!(bench.take(), [], "nobody is there to ask");
    bench.input(Input::HostUp { host: HOST.into(), max_stanza: 1 << 20 });
    assert_eq!(bench.take(), [settle(2, 1, true)]);
    // Another failure, and the pause grows.
    bench.input(Input::Answered { number: 2, answer: Answered::Failed("full".into()) });
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(1));
    bench.unknown();
    assert_eq!(bench.take(), [settle(3, 1, true)]);
    bench.input(Input::Answered { number: 3, answer: Answered::Failed("full".into()) });
    bench.pass(Duration::from_millis(1999));
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_millis(1));
    bench.unknown();
    assert_eq!(bench.take(), [settle(4, 1, true)]);
    // What a server refuses for good is settled.
    bench.input(Input::Answered { number: 4, answer: Answered::Refused("no".into()) });
    let settled = vec![(1, Fate::Discarded)];
    assert_eq!(bench.take(), [change(1, BroadcastChange::Settle { broadcast: 1, settled })]);
}

#[test]
fn paused_it_sends_nothing_and_resumed_it_goes_on() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Paused, 2, 10)]).up();
    bench.take();
    bench.input(page(1..3));
    bench.unknown();
    assert_eq!(bench.take(), []);
    let state = |state| BroadcastChange::SetState { broadcast: 1, state, ended_at: None };
    assert_eq!(
        bench.command(Command::Resume { broadcast: 1 }),
        [change(1, state(BroadcastState::Running)), settle(1, 2, true)]
    );
    let effects = bench.command(Command::Pause { broadcast: 1 });
    assert_eq!(effects, [change(2, state(BroadcastState::Paused))]);
    bench.pass(Duration::from_secs(9));
    assert_eq!(bench.take(), []);
    bench.input(changed(2, 0));
    let effects = bench.take();
    assert!(
        matches!(&effects[..], [Effect::Reply { reply: Reply::Broadcast(r), .. }] if r.state == "paused")
    );
}

/// What is under way is waited for; the rest is given up in small transactions.
#[test]
fn cancelled_it_gives_up_who_is_left() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Running, 700, 10)]).up();
    bench.take();
    bench.input(page(1..257));
    bench.unknown();
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    let effects = bench.command(Command::Cancel { broadcast: 1 });
    let state = BroadcastState::Cancelled;
    let set = BroadcastChange::SetState { broadcast: 1, state, ended_at: None };
    assert_eq!(effects, [change(1, set)]);
    bench.settle(sent[0].0, Fate::Delivered);
    let settled = vec![(sent[0].1, Fate::Delivered)];
    assert_eq!(bench.take(), [change(2, BroadcastChange::Settle { broadcast: 1, settled })]);
    bench.input(changed(2, 1));
    let give_up = BroadcastChange::GiveUp { broadcast: 1, fate: Fate::Cancelled, limit: 500 };
    assert_eq!(bench.take(), [change(3, give_up.clone())]);
    bench.input(changed(3, 500));
    assert_eq!(bench.take(), [change(4, give_up)]);
    bench.input(changed(4, 199));
    let ended_at = Some(bench.now.wall);
    let set = BroadcastChange::SetState { broadcast: 1, state, ended_at };
    assert_eq!(bench.take(), [change(5, set)]);
    bench.input(changed(5, 0));
    let report = bench.report();
    assert_eq!((report.delivered, report.cancelled, report.left), (1, 699, 0));
}

#[test]
fn r38_what_is_not_sent_in_time_is_not_sent() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Paused, 300, 1000)]).up();
    bench.take();
    bench.input(page(1..257));
    bench.unknown();
    let wake = bench.machine.wake_at(bench.now).unwrap();
    assert_eq!(wake, bench.now.steady + Duration::from_secs(60), "the wall clock may be set");
    bench.pass(Duration::from_secs(899));
    assert_eq!(bench.take(), []);
    bench.pass(Duration::from_secs(1));
    let give_up = BroadcastChange::GiveUp { broadcast: 1, fate: Fate::Expired, limit: 500 };
    assert_eq!(bench.take(), [change(1, give_up)]);
    let Reply::Problem(problem) = bench.reply(Command::Resume { broadcast: 1 }) else {
        panic!("it was resumed")
    };
    assert_eq!(problem.kind, ProblemKind::State);
    bench.input(changed(1, 300));
    bench.input(changed(2, 0));
    bench.take();
    let report = bench.report();
    assert_eq!((&*report.state, report.expired, report.left), ("done", 300, 0));
}

#[test]
fn a_list_that_was_not_told_to_its_end_is_given_up_at_the_next_start() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Filling, 3, 10)]);
    assert_eq!(bench.take(), [Effect::Read { broadcast: 1, after: 0, limit: 256 }]);
    bench.input(page(1..4));
    bench.unknown();
    let give_up = BroadcastChange::GiveUp { broadcast: 1, fate: Fate::Cancelled, limit: 500 };
    assert_eq!(bench.take(), [change(1, give_up)]);
}

#[test]
fn commands_that_cannot_be_carried_out() {
    let mut bench = Bench::new(vec![]);
    let mut kind = |command: Command| match bench.reply(command) {
        Reply::Problem(problem) => (problem.kind, problem.says),
        other => panic!("{other:?}"),
    };
    let with = |change: &dyn Fn(&mut String, &mut String, &mut String, &mut u32)| {
        let Command::Start { mut host, everyone, mut stanza, mut expires_at, mut rate } =
            start(false)
        else {
            unreachable!()
        };
        change(&mut host, &mut stanza, &mut expires_at, &mut rate);
        Command::Start { host, everyone, stanza, expires_at, rate }
    };
    let (got, says) = kind(with(&|host, _, _, _| *host = "example.net".into()));
    assert_eq!(got, ProblemKind::Host);
    assert!(says.contains("example.net") && says.contains("example.org"), "{says}");
    assert_eq!(kind(with(&|_, s, _, _| *s = "<iq/>".into())).0, ProblemKind::Stanza);
    for bad in ["", "tomorrow", "1970-01-01T00:00:01Z", "9999-01-01T00:00:00Z"] {
        let (got, _) = kind(with(&|_, _, at, _| *at = bad.into()));
        assert_eq!(got, ProblemKind::Expiry, "{bad}");
    }
    for bad in [0, 1001] {
        assert_eq!(kind(with(&|_, _, _, rate| *rate = bad)).0, ProblemKind::Rate);
    }
    let (got, says) = kind(start(true));
    assert_eq!(got, ProblemKind::Unavailable, "{says}");
    assert_eq!(kind(Command::Status { broadcast: 7 }).0, ProblemKind::Unknown);
    assert_eq!(kind(Command::Cancel { broadcast: -1 }).0, ProblemKind::Unknown);
}

#[test]
fn a_host_asks_for_its_own_users_only() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Paused, 1, 10)]);
    bench.take();
    let other: Arc<str> = "example.net".into();
    let mut ask = |command: Command| {
        let (host, token) = (Some(other.clone()), "t".into());
        bench.input(Input::Command { asker: ADMIN, command, host, token });
        match bench.take().remove(0) {
            Effect::Reply { reply, .. } => reply,
            effect => panic!("{effect:?}"),
        }
    };
    let kind = |reply: Reply| match reply {
        Reply::Problem(problem) => problem.kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind(ask(start(false))), ProblemKind::Host);
    assert_eq!(kind(ask(Command::Status { broadcast: 1 })), ProblemKind::Unknown);
    assert_eq!(kind(ask(Command::Cancel { broadcast: 1 })), ProblemKind::Unknown);
    assert_eq!(ask(Command::List {}), Reply::Broadcasts(vec![]));
}

#[test]
fn lists_are_checked_and_bounded() {
    let mut bench = Bench::new(vec![]);
    bench.command(start(false));
    bench.input(changed(1, 0));
    bench.take();
    let add = |jids: &[&str]| Command::Add {
        broadcast: 1,
        recipients: jids.iter().map(|jid| (*jid).to_owned()).collect(),
    };
    for bad in ["bob@example.net", "example.org", "bob@example.org/phone", "", "@example.org"] {
        let Reply::Problem(problem) = bench.reply(add(&[bad])) else { panic!("{bad}") };
        assert_eq!(problem.kind, ProblemKind::Recipients, "{bad}");
    }
    assert!(matches!(bench.reply(add(&["a@example.org"; 1001])), Reply::Problem(_)));
    let recipients = vec![
        Recipient { n: 1, bare: "bob@example.org".into() },
        Recipient { n: 2, bare: "a@example.org".into() },
    ];
    let wanted = BroadcastChange::Add { broadcast: 1, recipients, counted_to: None };
    assert_eq!(bench.command(add(&["BOB@example.org", "a@example.org"])), [change(2, wanted)]);
    bench.input(changed(2, 1));
    bench.take();
    assert_eq!(bench.report().total, 1, "who was there already is not counted");
    bench.command(Command::Begin { broadcast: 1 });
    assert!(matches!(bench.reply(add(&["c@example.org"])), Reply::Problem(_)), "it is closed");
    for _ in 1..UNFINISHED {
        bench.command(start(false));
    }
    let Reply::Problem(problem) = bench.reply(start(false)) else { panic!("one too many") };
    assert_eq!(problem.kind, ProblemKind::State);
}

#[test]
fn a_node_that_stops_sends_nothing_and_records_what_comes() {
    let mut bench = Bench::new(vec![kept(BroadcastState::Running, 2, 1000)]).up();
    bench.take();
    bench.input(page(1..3));
    bench.unknown();
    let sent = bench.sent();
    bench.input(Input::Stop);
    bench.settle(sent[0].0, Fate::Stored);
    bench.pass(Duration::from_secs(5));
    let settled = vec![(sent[0].1, Fate::Stored)];
    assert_eq!(bench.take(), [change(1, BroadcastChange::Settle { broadcast: 1, settled })]);
    assert!(matches!(bench.reply(Command::List {}), Reply::Problem(_)));
}
