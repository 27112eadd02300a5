//! The machine against lists of effects: each test is a history.

use std::collections::HashMap;
use std::time::Duration;

mod leave;
mod retrieve;

use super::*;
use crate::amp::{self, Session};
use crate::stanza::Message;
use crate::store::{Amount, Outcome, StoredMessage, Usage, Write};
use crate::time::Timestamp;
use crate::words::{Expiry, LinkId, MessageId};

mod quota;
mod strict;

const LINK: LinkId = LinkId(1);
const BOB: &str = "bob@h";
/// When the sessions whose names begin with `archive` have read the archive.
const ARCHIVE_READ: Timestamp = Timestamp::from_micros(10_000_000);

/// A machine, a clock and a way to read its effects.
struct History {
    machine: Machine,
    now: Timestamp,
}

fn seconds(n: i64) -> Timestamp {
    Timestamp::from_micros(n * 1_000_000)
}

impl History {
    fn new() -> Self {
        Self::with_quota(0)
    }

    fn with_quota(messages_per_user: u64) -> Self {
        Self::with_limits(Limits { messages_per_user, ..Limits::default() })
    }

    fn with_limits(limits: Limits) -> Self {
        let memory = Duration::from_secs(600);
        let quotas = Quotas::new(limits, HashMap::new()).into();
        let settings = Settings { epoch: 1, quotas, memory };
        History { machine: Machine::new(settings), now: seconds(1_000_000) }
    }

    fn at(&mut self, second: i64) -> &mut Self {
        self.now = seconds(1_000_000 + second);
        self
    }

    fn give(&mut self, input: Input) -> Vec<String> {
        self.machine.handle(self.now, input).iter().map(show).collect()
    }

    fn held(&mut self, make: impl FnOnce(&mut Intercept)) -> Vec<String> {
        let mut intercept = offline("k1");
        intercept.stamp = self.now;
        make(&mut intercept);
        self.give(Input::Intercept(Box::new(intercept)))
    }

    fn used(&mut self, question: u64, messages: u64) -> Vec<String> {
        let usage = Usage { all: Amount { messages, bytes: 0 }, ..Usage::default() };
        self.give(Input::Usage { user: BOB.into(), question, usage: Ok(usage) })
    }

    fn outcome(&mut self, token: u64, outcome: Outcome) -> Vec<String> {
        self.give(Input::Written(vec![(Token(token), outcome)]))
    }

    fn available(&mut self, session: &str, n: u64) -> Vec<String> {
        self.available_by(LINK.0, session, n)
    }

    fn available_by(&mut self, link: u64, session: &str, n: u64) -> Vec<String> {
        self.give(Input::Available(Available {
            link: LinkId(link),
            host: "h".into(),
            session: session.into(),
            n,
            user: BOB.into(),
            archive: session.starts_with("archive").then_some(ARCHIVE_READ),
            batch_bytes: 4_000,
        }))
    }

    fn page(&mut self, ids: &[u32]) -> Vec<String> {
        self.rows(ids.iter().map(|id| row(*id)).collect())
    }

    fn rows(&mut self, rows: Vec<StoredMessage>) -> Vec<String> {
        let after = self.asked();
        self.rows_after(after, rows)
    }

    fn rows_after(&mut self, after: MessageId, rows: Vec<StoredMessage>) -> Vec<String> {
        self.give(Input::Page { user: BOB.into(), after, rows: Ok(rows) })
    }

    /// After which id the page was asked for that is being read.
    fn asked(&self) -> MessageId {
        let reading = self.machine.recipients.get(BOB).and_then(|bob| bob.reading.clone());
        reading.map_or(MessageId::ZERO, |(_, after)| after)
    }

    /// The first link is told that a session has left it.
    fn left(&mut self, session: &str) -> Vec<String> {
        self.give(Input::Taken(Taken {
            link: LINK,
            host: "h".into(),
            session: session.into(),
            user: BOB.into(),
            batch: 0,
            ids: Vec::new(),
            ended: true,
        }))
    }

    fn taken(&mut self, session: &str, batch: u64, ids: &[u32], ended: bool) -> Vec<String> {
        self.give(Input::Taken(Taken {
            link: LINK,
            host: "h".into(),
            session: session.into(),
            user: BOB.into(),
            batch: BATCH + batch,
            ids: ids.iter().map(|id| MessageId::new(1, u64::from(*id))).collect(),
            ended,
        }))
    }
}

/// Batches of epoch 1 begin here.
const BATCH: u64 = 1 << 32;

fn row(id: u32) -> StoredMessage {
    StoredMessage {
        id: MessageId::new(1, u64::from(id)),
        key: format!("s-{id}").into(),
        sender: "alice@h/a".into(),
        kind: crate::stanza::MessageType::Chat,
        stored_at: seconds(1),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: "<message xmlns='jabber:client'/>".into(),
    }
}

/// A stored message with these rules, the first of which expires at that second.
fn expiring(id: u32, second: i64, rules: &str) -> StoredMessage {
    let at = seconds(1_000_000 + second);
    StoredMessage {
        expiry: Some(Expiry { at, rule: 0 }),
        stanza: stanza(rules, "chat", "<body>hi</body>").into(),
        ..row(id)
    }
}

fn stanza(rules: &str, kind: &str, content: &str) -> String {
    let amp = if rules.is_empty() {
        String::new()
    } else {
        format!("<amp xmlns='http://jabber.org/protocol/amp'>{rules}</amp>")
    };
    format!(
        "<message xmlns='jabber:client' from='alice@h/a' to='bob@h' id='i' type='{kind}'>{content}{amp}</message>"
    )
}

fn rule(action: &str, condition: &str, value: &str) -> String {
    format!("<rule action='{action}' condition='{condition}' value='{value}'/>")
}

/// A message that the server would store for Bob.
fn offline(key: &str) -> Intercept {
    Intercept {
        link: LINK,
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
        stamp: seconds(0),
        message: Message::parse(stanza("", "chat", "<body>hi</body>").into(), "h").unwrap(),
        silent: false,
        rules: None,
    }
}

fn with_rules(intercept: &mut Intercept, rules: &str) {
    intercept.message =
        Message::parse(stanza(rules, "chat", "<body>hi</body>").into(), "h").unwrap();
    intercept.rules = Some(amp::check(&intercept.message.amp, intercept.message.id.as_deref()));
}

fn phone(priority: i8) -> Session {
    Session { resource: "phone".into(), priority, hibernating: false }
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Link(link, what) => format!("{}: {}", link.0, show_link(what)),
        Effect::Write(WriteFor { token, write }) => format!("#{} {}", token.0, show_write(write)),
        Effect::ReadPage { user, after, .. } => format!("read {user} after {}", short(*after)),
        Effect::Usage { user, question, .. } => format!("usage {user} {question}"),
        Effect::OverQuota(over) => format!("over quota, {over:?}").to_lowercase(),
        Effect::Look { look, .. } => retrieve::show_look(look),
        Effect::Find { key, .. } => format!("find {key}"),
        Effect::Send(send) => format!("send {} {}", send.key, show_reply(&send.stanza)),
        Effect::Scheduled(at) => format!("scheduled {}", at.as_micros() / 1_000_000 - 1_000_000),
        Effect::DueTaken => "due taken".into(),
        Effect::Oversized { id, bytes, .. } => format!("oversized {}: {bytes}", id.counter()),
    }
}

fn short(id: MessageId) -> u64 {
    id.counter()
}

fn show_link(what: &ToLink) -> String {
    match what {
        ToLink::Verdict(v) => {
            let sends: Vec<_> = v.sends.iter().map(|s| show_reply(s)).collect();
            let sends =
                if sends.is_empty() { String::new() } else { format!(" +{}", sends.join("+")) };
            format!("{} {} {}{sends}", v.key, v.stage.as_str(), v.what.as_str())
        }
        ToLink::HandOver(h) => {
            let ids: Vec<_> = h.items.iter().map(|i| short(i.id).to_string()).collect();
            let what = if h.view { "view" } else { "batch" };
            format!("{what} {} to {}: {}", h.batch - BATCH, h.session, ids.join(" "))
        }
        ToLink::HandedOver { session, n, count, .. } => {
            format!("handed over {session} {n}: {count}")
        }
        ToLink::Deleted { session, batch, .. } => {
            format!("deleted {session} {}", batch.saturating_sub(BATCH))
        }
        ToLink::AccountRemoved { request, done, .. } => format!("removed {request} {done}"),
        ToLink::Send(_) => "send".into(),
        ToLink::Request(_) | ToLink::Response(_) => "not a shard's".into(),
        ToLink::Retrieved(retrieved) => retrieve::show_answer(retrieved),
    }
}

fn show_write(write: &Write) -> String {
    match write {
        Write::Append(m) => {
            let expiry = m.expiry.map(|e| format!(" rule {}", e.rule)).unwrap_or_default();
            format!(
                "append {} {}{}{expiry}",
                short(m.id),
                m.key,
                if m.again { " again" } else { "" }
            )
        }
        Write::Delete { ids, .. } => {
            let ids: Vec<_> = ids.iter().map(|id| short(*id).to_string()).collect();
            format!("delete {}", ids.join(" "))
        }
        Write::SetExpiry { id, expiry, .. } => {
            format!("expiry of {}: {:?}", short(*id), expiry.map(|e| e.rule))
        }
        Write::RemoveAccount { recipient } => format!("remove {recipient}"),
    }
}

/// What a reply says: the status of its rules, or its error condition.
fn show_reply(reply: &str) -> String {
    [
        "status='notify'",
        "status='alert'",
        "status='error'",
        "service-unavailable",
        "not-acceptable",
        "bad-request",
        "internal-server-error",
    ]
    .into_iter()
    .find(|what| reply.contains(what))
    .map_or(reply.to_owned(), |what| {
        what.trim_start_matches("status='").trim_end_matches('\'').to_owned()
    })
}

#[test]
fn i1_stored_is_said_only_after_the_commit() {
    let mut h = History::new();
    assert_eq!(h.held(|_| {}), ["#1 append 1 k1"]);
    assert_eq!(h.outcome(1, Outcome::Stored), ["1: k1 offline stored"]);
    assert_eq!(h.machine.busy(), 0);
}

#[test]
fn i1_a_store_that_fails_lets_no_verdict_leave_but_retry() {
    let mut h = History::new();
    h.held(|i| with_rules(i, &rule("notify", "deliver", "stored")));
    assert_eq!(h.outcome(1, Outcome::Retry), ["1: k1 offline retry"]);
}

#[test]
fn a_row_that_cannot_be_stored_is_refused_with_an_error() {
    let mut h = History::new();
    h.held(|_| {});
    assert_eq!(
        h.outcome(1, Outcome::Refused("too large".into())),
        ["1: k1 offline discarded +internal-server-error"]
    );
}

#[test]
fn i2_an_intercept_that_comes_again_is_answered_once_on_the_last_link() {
    let mut h = History::new();
    h.held(|_| {});
    let again = h.held(|i| {
        i.link = LinkId(2);
        i.again = true;
    });
    assert_eq!(again, ["1: k1 offline retry"], "nobody waits there");
    assert_eq!(h.outcome(1, Outcome::Stored), ["2: k1 offline stored"]);
}

#[test]
fn i2_what_a_slower_link_brings_for_the_first_time_is_older_than_what_came_again() {
    let mut h = History::new();
    let by_new = |i: &mut Intercept| {
        i.link = LinkId(2);
        i.again = true;
    };
    h.held(by_new);
    assert_eq!(h.held(|_| {}), ["1: k1 offline retry"], "it does not take the answer away");
    assert_eq!(h.outcome(1, Outcome::Stored), ["2: k1 offline stored"]);
    // Taken by now, or not: its link asks for nothing that anybody waits for.
    assert_eq!(h.held(|_| {}), ["1: k1 offline retry"]);
    assert_eq!(h.held(by_new), ["#2 append 2 k1 again"]);
}

#[test]
fn i2_what_was_delivered_by_the_new_link_is_not_stored_for_the_old_one() {
    let mut h = History::new();
    h.held(|i| {
        i.link = LinkId(2);
        i.again = true;
        i.sessions = vec![phone(1)];
    });
    let known = Input::Found { user: BOB.into(), key: "k1".into(), known: Ok(None) };
    assert_eq!(h.give(known), ["2: k1 offline deliver"]);
    assert_eq!(h.held(|_| {}), ["1: k1 offline retry"]);
}

#[test]
fn what_was_at_its_rules_goes_on_to_storage_as_if_for_the_first_time() {
    let mut h = History::new();
    let rules = |i: &mut Intercept| with_rules(i, &rule("notify", "deliver", "direct"));
    h.held(|i| {
        rules(i);
        i.stage = Stage::Rules;
    });
    assert_eq!(h.held(rules), ["#1 append 1 k1"]);
}

#[test]
fn i2_of_two_that_wait_for_the_store_the_one_that_came_again_is_answered() {
    let mut h = History::new();
    let waits = |link: u64, again: bool| {
        move |i: &mut Intercept| {
            i.link = LinkId(link);
            i.again = again;
            i.sessions = vec![phone(1)];
        }
    };
    assert_eq!(h.held(waits(2, true)), ["find k1"]);
    assert_eq!(h.held(waits(1, false)), ["1: k1 offline retry"]);
    assert_eq!(h.held(waits(3, true)), ["2: k1 offline retry"]);
    let known = Input::Found { user: BOB.into(), key: "k1".into(), known: Ok(None) };
    assert_eq!(h.give(known), ["3: k1 offline deliver"]);
}

#[test]
fn i2_what_was_stored_before_is_stored_again_by_nobody_and_its_notice_comes_back() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.again = true;
        with_rules(i, &rule("notify", "deliver", "stored"));
    });
    assert_eq!(effects, ["#1 append 1 k1 again"]);
    assert_eq!(
        h.outcome(1, Outcome::Already { met_rule: Some(0) }),
        ["1: k1 offline stored +notify"]
    );
}

#[test]
fn i2_what_would_be_delivered_is_looked_for_when_it_comes_again() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.again = true;
        i.sessions = vec![phone(1)];
    });
    assert_eq!(effects, ["find k1"]);
    // What comes meanwhile waits behind it.
    assert!(h.held(|i| i.key = "k2".into()).is_empty());
    let known = Input::Found { user: BOB.into(), key: "k1".into(), known: Ok(Some(None)) };
    assert_eq!(h.give(known), ["1: k1 offline stored", "#1 append 1 k2"]);

    let mut h = History::new();
    h.held(|i| {
        i.again = true;
        i.sessions = vec![phone(1)];
    });
    let known = Input::Found { user: BOB.into(), key: "k1".into(), known: Ok(None) };
    assert_eq!(h.give(known), ["1: k1 offline deliver"]);
}

#[test]
fn i3_what_names_an_unknown_predecessor_waits() {
    let mut h = History::new();
    assert_eq!(h.held(|i| i.after = Some("k0".into())), ["1: k1 offline retry"]);
    h.held(|_| {});
    let second = |i: &mut Intercept| {
        i.key = "k2".into();
        i.after = Some("k1".into());
    };
    assert_eq!(h.held(second), ["#2 append 2 k2"]);
}

#[test]
fn i3_what_was_submitted_after_an_append_that_is_given_up_does_not_overtake_it() {
    let mut h = History::new();
    h.held(|_| {});
    h.held(|i| {
        i.key = "k2".into();
        i.after = Some("k1".into());
    });
    // The store gives the run up, as it does with all that waits.
    h.machine.run.give_up();
    assert_eq!(h.outcome(1, Outcome::Retry), ["1: k1 offline retry"]);
    let third = h.held(|i| {
        i.key = "k3".into();
        i.after = Some("k2".into());
    });
    assert_eq!(third, ["1: k3 offline retry"], "k2 will be given up too");
    assert_eq!(h.outcome(2, Outcome::Retry), ["1: k2 offline retry"]);
}

#[test]
fn an_old_intercept_without_again_is_asked_for_again() {
    let mut h = History::new();
    let old = h.now;
    assert_eq!(h.at(301).held(|i| i.stamp = old), ["1: k1 offline retry"]);
    let effects = h.held(|i| {
        i.stamp = old;
        i.again = true;
    });
    assert_eq!(effects, ["#1 append 1 k1 again"]);
}

#[test]
fn r45_drop_is_silent_r44_alert_and_r47_error_are_not() {
    for (action, expected) in [
        ("drop", "1: k1 rules discarded"),
        ("alert", "1: k1 rules discarded +alert"),
        ("error", "1: k1 rules discarded +error"),
    ] {
        let mut h = History::new();
        let effects = h.held(|i| {
            i.stage = Stage::Rules;
            with_rules(i, &rule(action, "deliver", "stored"));
        });
        assert_eq!(effects, [expected]);
    }
}

/// At the sender's leg, with one rule.
fn leaving(action: &str, condition: &str, value: &str, next_supports_amp: bool) -> Vec<String> {
    History::new().held(|i| {
        i.stage = Stage::Rules;
        i.leg = Leg::Sender { next_supports_amp };
        i.account = false;
        with_rules(i, &rule(action, condition, value));
    })
}

const PAST: &str = "1970-01-01T00:00:00Z";

#[test]
fn r26_r33_a_rule_that_is_met_at_the_senders_leg_is_carried_out_there() {
    for (action, met) in [
        ("drop", "1: k1 rules discarded"),
        ("alert", "1: k1 rules discarded +alert"),
        ("error", "1: k1 rules discarded +error"),
        ("notify", "1: k1 rules deliver +notify"),
    ] {
        for (condition, value) in
            [("deliver", "direct"), ("expire-at", PAST), ("match-resource", "any")]
        {
            assert_eq!(leaving(action, condition, value, true), [met], "{condition} {value}");
        }
        for (condition, value) in [
            ("deliver", "stored"),
            ("deliver", "none"),
            ("expire-at", "2099-01-01T00:00:00Z"),
            ("match-resource", "exact"),
            ("match-resource", "other"),
        ] {
            let effects = leaving(action, condition, value, true);
            assert_eq!(effects, ["1: k1 rules deliver"], "{condition} {value}");
        }
    }
}

#[test]
fn r25_r64_what_would_go_on_to_a_server_without_the_rules_comes_back() {
    let unavailable = ["1: k1 rules discarded +service-unavailable"];
    assert_eq!(leaving("drop", "deliver", "stored", false), unavailable);
    // A notice would say that it went on.
    assert_eq!(leaving("notify", "deliver", "direct", false), unavailable);
    // What is discarded here does not ask what the next server can do.
    assert_eq!(leaving("alert", "expire-at", PAST, false), ["1: k1 rules discarded +alert"]);
    assert_eq!(leaving("drop", "expire-at", PAST, false), ["1: k1 rules discarded"]);
}

#[test]
fn r15_r17_rules_are_validated_before_the_next_server_matters() {
    for next_supports_amp in [true, false] {
        let refused = leaving("explode", "deliver", "stored", next_supports_amp);
        assert_eq!(refused, ["1: k1 rules discarded +bad-request"]);
        let refused = leaving("drop", "deliver", "by-pigeon", next_supports_amp);
        assert_eq!(refused, ["1: k1 rules discarded +not-acceptable"]);
    }
}

#[test]
fn r14_r42_a_per_hop_match_resource_is_passed_over_at_the_senders_leg() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        i.leg = Leg::Sender { next_supports_amp: true };
        with_rules(i, &(rule("drop", "match-resource", "any") + &rule("alert", "expire-at", PAST)));
        let mut amp = i.message.amp.clone();
        amp[0].attrs.push(("per-hop".into(), "true".into()));
        i.rules = Some(amp::check(&amp, Some("i")));
    });
    assert_eq!(effects, ["1: k1 rules discarded +alert"]);
}

#[test]
fn what_leaves_knows_no_order_no_quota_and_no_recipient() {
    let mut h = History::with_quota(1);
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        i.leg = Leg::Sender { next_supports_amp: true };
        i.after = Some("k0".into());
        i.stamp = seconds(0);
        with_rules(i, &rule("drop", "deliver", "stored"));
    });
    assert_eq!(effects, ["1: k1 rules deliver"]);
    assert!(h.machine.recipients.is_empty(), "something is remembered");
    assert!(!h.machine.accepted.contains("k1"), "something is remembered");
}

#[test]
fn r51_the_notice_of_a_stored_message_waits_for_the_offline_stage() {
    let mut h = History::new();
    let notify = rule("notify", "deliver", "stored");
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        with_rules(i, &notify);
    });
    assert_eq!(effects, ["1: k1 rules deliver"]);
    assert_eq!(h.held(|i| with_rules(i, &notify)), ["#1 append 1 k1"]);
    assert_eq!(h.outcome(1, Outcome::Stored), ["1: k1 offline stored +notify"]);
}

#[test]
fn r51_the_notice_of_a_message_that_is_not_kept_is_sent_once() {
    let mut h = History::new();
    let no_store = |i: &mut Intercept, stage| {
        let content = "<body>hi</body><no-store xmlns='urn:xmpp:hints'/>";
        let notify = rule("notify", "deliver", "none");
        i.stage = stage;
        i.message = Message::parse(stanza(&notify, "chat", content).into(), "h").unwrap();
        i.rules = Some(amp::check(&i.message.amp, Some("i")));
    };
    assert_eq!(h.held(|i| no_store(i, Stage::Rules)), ["1: k1 rules deliver"]);
    assert_eq!(h.held(|i| no_store(i, Stage::Offline)), ["1: k1 offline discarded +notify"]);
}

#[test]
fn r51_the_notice_of_a_message_that_is_delivered_goes_at_once() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        i.sessions = vec![phone(1)];
        with_rules(i, &rule("notify", "deliver", "direct"));
    });
    assert_eq!(effects, ["1: k1 rules deliver +notify"]);
}

#[test]
fn r20_the_first_rule_that_is_met_wins() {
    let mut h = History::new();
    let rules = rule("drop", "deliver", "direct")
        + &rule("alert", "deliver", "stored")
        + &rule("error", "match-resource", "any");
    assert_eq!(h.held(|i| with_rules(i, &rules)), ["1: k1 offline discarded +alert"]);
}

#[test]
fn r17_refused_rules_are_answered_and_the_message_discarded() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        with_rules(i, &rule("alert", "deliver", "nowhere"));
    });
    assert_eq!(effects, ["1: k1 rules discarded +not-acceptable"]);
}

#[test]
fn o1_negative_priorities_do_not_take_what_is_offered_to_the_offline_storage() {
    let mut h = History::new();
    assert_eq!(h.held(|i| i.sessions = vec![phone(-1)]), ["#1 append 1 k1"]);
    let effects = h.held(|i| {
        i.key = "k2".into();
        i.sessions = vec![phone(0)];
    });
    assert_eq!(effects, ["1: k2 offline deliver"]);
}

#[test]
fn o6_what_is_not_worth_keeping_is_discarded_in_silence() {
    let mut h = History::new();
    let effects = h.held(|i| {
        let composing = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
        i.message = Message::parse(stanza("", "chat", composing).into(), "h").unwrap();
    });
    assert_eq!(effects, ["1: k1 offline discarded"]);
}

#[test]
fn r33_what_is_sent_on_is_decided_at_stage_rules_whatever_account_sessions_and_quota() {
    for (value, forwards_to) in [("forward", true), ("gateway", false)] {
        let decide = |action: &str, value: &str| {
            let mut h = History::with_quota(1);
            h.held(|_| {});
            h.held(|i| {
                i.key = "k2".into();
                i.stage = Stage::Rules;
                i.account = false;
                i.sessions = vec![phone(1)];
                (i.forwards_to, i.gateway) = (forwards_to, !forwards_to);
                with_rules(i, &rule(action, "deliver", value));
            });
            h.used(1, 100).pop().unwrap()
        };
        assert_eq!(decide("notify", value), "1: k2 rules deliver +notify");
        assert_eq!(decide("alert", value), "1: k2 rules discarded +alert");
        assert_eq!(decide("error", value), "1: k2 rules discarded +error");
        assert_eq!(decide("drop", value), "1: k2 rules discarded");
        let others = ["direct", "stored", "none", if forwards_to { "gateway" } else { "forward" }];
        for other in others {
            assert_eq!(decide("alert", other), "1: k2 rules deliver", "{other} at {value}");
        }
    }
}

#[test]
fn what_came_to_storage_stays_whatever_is_said_of_sending_it_on() {
    for stage in [Stage::Offline, Stage::Undelivered] {
        let mut h = History::new();
        let effects = h.held(|i| {
            i.stage = stage;
            (i.forwards_to, i.gateway) = (true, true);
            with_rules(i, &rule("drop", "deliver", "forward"));
        });
        assert_eq!(effects, ["#1 append 1 k1"], "{stage:?}");
    }
}

#[test]
fn r38_what_comes_back_undelivered_expires() {
    let mut h = History::new();
    let effects = h.held(|i| {
        i.stage = Stage::Undelivered;
        with_rules(i, &rule("alert", "expire-at", "1970-01-01T00:00:00Z"));
    });
    assert_eq!(effects, ["1: k1 undelivered discarded +alert"]);
}

#[test]
fn stored_messages_are_handed_over_in_order_and_deleted_when_taken() {
    let mut h = History::new();
    assert_eq!(h.available("s", 1), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1, 2]), ["1: batch 1 to s: 1 2", "read bob@h after 2"]);
    // The next batch goes before the first is confirmed, a third does not.
    assert_eq!(h.page(&[3]), ["1: batch 2 to s: 3"]);
    assert_eq!(h.taken("s", 1, &[1, 2], false), ["#1 delete 1 2", "read bob@h after 3"]);
    assert_eq!(h.page(&[]), ["1: handed over s 1: 3"]);
    assert_eq!(h.outcome(1, Outcome::Done { rows: 2 }), ["1: deleted s 1"]);
    assert_eq!(h.taken("s", 2, &[3], false), ["#2 delete 3"]);
    assert_eq!(h.outcome(2, Outcome::Done { rows: 1 }), ["1: deleted s 2"]);
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn i6_a_session_has_two_batches_under_way_and_one_more_for_each_that_it_takes() {
    let mut h = History::new();
    assert_eq!(h.available("s", 1), ["read bob@h after 0"]);
    let (mut sent, mut taken) = (0, 0);
    let mut under_way = Vec::new();
    for _ in 0..9 {
        // more than it may have: what is beyond that is read again
        let page: Vec<u32> = (sent * 50 + 1..=sent * 50 + 500).collect();
        let effects = h.page(&page);
        assert!(effects.iter().all(|effect| effect.starts_with("1: batch ")), "{effects:?}");
        sent += effects.len() as u32;
        under_way.push(sent - taken);
        let read = format!("read bob@h after {}", sent * 50);
        loop {
            taken += 1;
            let effects = h.taken("s", u64::from(taken), &[taken], false);
            assert_eq!(h.taken("s", u64::from(taken), &[], false).len(), 1, "again");
            if effects.contains(&read) {
                break;
            }
        }
    }
    // Once half of what it may have is free, that much is read.
    assert_eq!(under_way, [2, 3, 4, 6, 8, 8, 8, 8, 8]);
}

#[test]
fn a_page_of_several_batches_is_cut_by_rows_and_by_bytes() {
    let mut h = History::new();
    h.available("s", 1);
    let large = |id| StoredMessage { stanza: vec![b' '; 2_001].into(), ..row(id) };
    assert_eq!(
        h.rows(vec![large(1), large(2), large(3)]),
        ["1: batch 1 to s: 1", "1: batch 2 to s: 2"]
    );
    let read = h.taken("s", 1, &[1], false);
    assert_eq!(read, ["#1 delete 1", "read bob@h after 2"], "the third had no room");
    assert_eq!(h.rows(vec![large(3), row(4)]), ["1: batch 3 to s: 3 4"]);
}

#[test]
fn a_confirmation_that_comes_again_is_answered_and_harms_nothing() {
    let mut h = History::new();
    assert_eq!(h.taken("s", 1, &[1], false), ["#1 delete 1"]);
    assert!(h.taken("s", 1, &[1], false).is_empty(), "the first one is under way");
    assert_eq!(h.outcome(1, Outcome::Done { rows: 1 }), ["1: deleted s 1"]);
    assert_eq!(h.taken("s", 1, &[1], false), ["#2 delete 1"]);
    assert_eq!(h.outcome(2, Outcome::Done { rows: 0 }), ["1: deleted s 1"]);
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn what_an_ended_session_left_goes_to_the_next() {
    let mut h = History::new();
    h.available("s", 1);
    h.page(&[1, 2, 3]);
    assert!(h.available("t", 1).is_empty(), "the first session comes first");
    assert_eq!(h.taken("s", 1, &[1], true), ["#1 delete 1"]);
    // The page that was being read for the ended session is of no use; the next is read
    // from the start.
    assert_eq!(h.page(&[]), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1, 2, 3]), ["1: batch 2 to t: 2 3", "read bob@h after 3"]);
    assert_eq!(h.outcome(1, Outcome::Done { rows: 1 }), ["1: deleted s 1"]);
}

#[test]
fn i3_a_session_that_comes_by_another_link_gets_all_again_that_it_has_not_confirmed() {
    let mut h = History::new();
    h.available("s", 1);
    h.page(&[1, 2, 3]);
    assert_eq!(h.page(&[]), ["1: handed over s 1: 3"]);
    assert_eq!(h.available_by(2, "s", 2), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1, 2, 3])[0], "2: batch 2 to s: 1 2 3");
    // What the old link still brings is older.
    assert!(h.available("s", 1).is_empty());
    assert_eq!(h.left("s"), ["1: deleted s 0"]);
    assert_eq!(h.page(&[]), ["2: handed over s 2: 3"]);
    assert!(h.give(Input::LinkDown(LINK)).is_empty());
    assert_eq!(h.taken("s", 2, &[1, 2, 3], false), ["#1 delete 1 2 3"]);
}

#[test]
fn i3_the_end_of_a_session_counts_by_whatever_link_it_is_told() {
    let mut h = History::new();
    h.available_by(2, "s", 1);
    h.page(&[1, 2]);
    h.page(&[]);
    // its link is lost, which is not known here yet
    h.taken("s", 1, &[1], true);
    h.available("t", 1);
    assert_eq!(h.page(&[1, 2])[0], "1: batch 2 to t: 2");
}

#[test]
fn a_row_deleted_while_a_page_was_read_is_not_handed_over_again() {
    let mut h = History::new();
    h.available("s", 1);
    h.page(&[1]);
    h.page(&[]);
    h.taken("s", 1, &[1], false);
    assert_eq!(h.available("t", 1), ["read bob@h after 0"]);
    assert_eq!(h.outcome(1, Outcome::Done { rows: 1 }), ["1: deleted s 1"]);
    assert_eq!(h.page(&[1, 2]), ["1: batch 2 to t: 2", "read bob@h after 2"]);
}

#[test]
fn a_deletion_that_fails_is_tried_again_and_hands_nothing_over_twice() {
    let mut h = History::new();
    h.available("s", 1);
    h.page(&[1]);
    h.page(&[]);
    h.taken("s", 1, &[1], true);
    assert!(h.outcome(1, Outcome::Retry).is_empty());
    h.available("t", 1);
    assert_eq!(h.page(&[1]), ["read bob@h after 1"]);
    assert_eq!(h.give(Input::Tick), ["#2 delete 1"]);
    h.outcome(2, Outcome::Done { rows: 1 });
    assert_eq!(h.page(&[]), ["1: handed over t 1: 0"]);
    for _ in 0..2 {
        h.give(Input::Tick);
    }
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn a_new_reason_reads_from_the_start_and_an_old_one_nothing() {
    let mut h = History::new();
    h.available("s", 1);
    assert!(h.available("s", 1).is_empty());
    assert!(h.available("s", 2).is_empty());
    assert_eq!(h.page(&[1]), ["1: batch 1 to s: 1", "read bob@h after 1"]);
    assert_eq!(h.page(&[]), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1]), ["read bob@h after 1"], "it has that one");
    assert_eq!(h.page(&[]), ["1: handed over s 2: 1"]);
}

#[test]
fn i3_a_page_from_before_the_end_of_a_session_is_not_all_when_it_comes_back() {
    let mut h = History::new();
    assert_eq!(h.available("s", 1), ["read bob@h after 0"]);
    assert_eq!(h.taken("s", 0, &[], true), ["1: deleted s 0"]);
    assert!(h.available("s", 2).is_empty(), "the first page is still being read");
    assert_eq!(h.page(&[]), ["read bob@h after 0"], "what was stored meanwhile");
    assert_eq!(h.page(&[1]), ["1: batch 1 to s: 1", "read bob@h after 1"]);
    assert_eq!(h.page(&[]), ["1: handed over s 2: 1"]);
}

#[test]
fn a_page_that_cannot_be_read_is_read_when_the_session_asks_again() {
    let mut h = History::new();
    h.available("s", 1);
    let failed = Input::Page {
        user: BOB.into(),
        after: MessageId::ZERO,
        rows: Err(crate::store::StoreError::Closed),
    };
    assert!(h.give(failed).is_empty());
    assert_eq!(h.available("s", 1), ["read bob@h after 0"]);
}

#[test]
fn archived_messages_are_not_handed_to_a_client_that_reads_its_archive() {
    let mut h = History::new();
    h.available("archive", 1);
    let archived = StoredMessage { archived: true, ..row(1) };
    assert_eq!(
        h.rows(vec![archived, row(2)]),
        ["1: batch 1 to archive: 2", "#1 delete 1", "read bob@h after 2"]
    );
}

#[test]
fn what_was_archived_after_the_client_had_read_its_archive_is_handed_over() {
    let mut h = History::new();
    h.available("archive", 1);
    let at = |id, micros| {
        let stored_at = Timestamp::from_micros(ARCHIVE_READ.as_micros() + micros);
        StoredMessage { archived: true, stored_at, ..row(id) }
    };
    assert_eq!(
        h.rows(vec![at(1, -1), at(2, 0), at(3, 1)]),
        ["1: batch 1 to archive: 2 3", "#1 delete 1", "read bob@h after 3"]
    );
}

#[test]
fn a_link_that_closes_takes_its_sessions_and_its_undecided_intercepts() {
    let mut h = History::with_quota(5);
    h.available("s", 1);
    h.page(&[1]);
    h.held(|_| {});
    assert!(h.give(Input::LinkDown(LINK)).is_empty());
    h.page(&[]);
    assert!(h.used(1, 0).is_empty());
    h.at(61).give(Input::Tick);
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn an_interceptor_that_is_loaded_anew_gets_everything_again() {
    let mut h = History::new();
    h.available("old", 1);
    assert_eq!(h.page(&[1]), ["1: batch 1 to old: 1", "read bob@h after 1"]);
    assert_eq!(h.page(&[2]), ["1: batch 2 to old: 2"]);
    let down = |host: &str| Input::HostDown { link: LINK, host: host.into() };
    assert!(h.give(down("other")).is_empty());
    assert!(h.available("new", 1).is_empty(), "the old session comes first");
    assert_eq!(h.give(down("h")), Vec::<String>::new());
    assert_eq!(h.available("new", 1), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1, 2]), ["1: batch 3 to new: 1 2", "read bob@h after 2"]);
}

#[test]
fn r38_an_expired_message_is_not_handed_over() {
    let mut h = History::new();
    h.available("s", 1);
    let drop = expiring(1, 0, &rule("drop", "expire-at", "1970-01-12T13:46:40Z"));
    assert_eq!(
        h.rows(vec![drop, row(2)]),
        ["1: batch 1 to s: 2", "#1 delete 1", "read bob@h after 2"]
    );
}

#[test]
fn an_alert_of_an_expiry_is_sent_before_the_row_goes() {
    let mut h = History::new();
    let alert = expiring(1, 0, &rule("alert", "expire-at", "1970-01-12T13:46:40Z"));
    let due = |row: &StoredMessage| Input::Due { user: BOB.into(), row: row.clone() };
    assert_eq!(h.give(due(&alert)), ["send s-1/0 alert"]);
    assert_eq!(h.give(due(&alert)), ["due taken"], "it is under way");
    let sent = |sent| Input::Sent { user: BOB.into(), id: MessageId::new(1, 1), sent };
    assert_eq!(h.give(sent(Sent::Failed)), ["due taken"]);
    assert!(h.machine.recipients.is_empty(), "the row stays as it was");
    assert_eq!(h.give(due(&alert)), ["send s-1/0 alert"]);
    assert_eq!(h.give(sent(Sent::Done)), ["#1 delete 1", "due taken"]);
}

#[test]
fn after_an_expiry_notify_the_message_stays_and_is_handed_over() {
    let mut h = History::new();
    let rules = rule("notify", "expire-at", "1970-01-12T13:46:40Z")
        + &rule("drop", "expire-at", "1970-01-12T13:47:40Z");
    h.available("s", 1);
    assert_eq!(h.rows(vec![expiring(1, 0, &rules)]), ["send s-1/0 notify", "read bob@h after 1"]);
    assert!(h.page(&[]).is_empty(), "it waits for the notice");
    let sent = Input::Sent { user: BOB.into(), id: MessageId::new(1, 1), sent: Sent::Done };
    assert_eq!(h.give(sent), ["#1 expiry of 1: Some(1)"]);
    assert_eq!(h.outcome(1, Outcome::Done { rows: 1 }), ["scheduled 60", "read bob@h after 0"]);
}

#[test]
fn an_item_under_way_does_not_expire_until_its_session_ends() {
    let mut h = History::new();
    h.available("s", 1);
    let later = expiring(1, 5, &rule("drop", "expire-at", "1970-01-12T13:46:45Z"));
    h.rows(vec![later.clone()]);
    h.page(&[]);
    assert_eq!(h.at(6).give(Input::Due { user: BOB.into(), row: later.clone() }), ["due taken"]);
    assert_eq!(h.taken("s", 1, &[], true), ["scheduled 5", "1: deleted s 1"]);
    assert_eq!(h.give(Input::Due { user: BOB.into(), row: later }), ["#1 delete 1", "due taken"]);
}

fn removed(at: Timestamp) -> Input {
    let asked = Asked { link: LINK, host: "h".into(), request: "r".into() };
    Input::AccountRemoved { user: BOB.into(), at, asked }
}

#[test]
fn a_removed_account_loses_its_messages_and_what_was_sent_before() {
    let mut h = History::new();
    let removal = h.now;
    // The node hears of it ten seconds later, and once more.
    assert_eq!(h.at(10).give(removed(removal)), ["#1 remove bob@h"]);
    assert_eq!(h.outcome(1, Outcome::Done { rows: 3 }), ["1: removed r true"]);
    assert_eq!(h.held(|i| i.stamp = removal), ["1: k1 offline discarded"]);
    h.at(20).give(removed(removal));
    // The account was made anew before the node heard of it.
    let later = seconds(1_000_005);
    let effects = h.held(|i| {
        i.key = "k2".into();
        i.stamp = later;
    });
    assert_eq!(effects, ["#3 append 1 k2"]);
}

#[test]
fn what_waits_for_the_store_when_its_account_is_removed_is_discarded() {
    let mut h = History::with_quota(5);
    h.held(|_| {});
    let removal = h.now;
    assert_eq!(h.at(1).give(removed(removal)), ["1: k1 offline discarded", "#1 remove bob@h"]);
    assert_eq!(h.outcome(1, Outcome::Retry), ["1: removed r false"]);
    assert!(h.used(1, 0).is_empty());
}

#[test]
fn i1_the_answer_of_a_look_up_is_for_its_own_key_only() {
    let mut h = History::new();
    let again = |i: &mut Intercept| {
        i.again = true;
        i.sessions = vec![phone(1)];
    };
    assert_eq!(h.held(again), ["find k1"]);
    h.give(Input::LinkDown(LINK));
    let effects = h.held(|i| {
        again(i);
        i.key = "k2".into();
    });
    assert_eq!(effects, ["find k2"]);
    let stored =
        |key: &str| Input::Found { user: BOB.into(), key: key.into(), known: Ok(Some(None)) };
    assert!(h.give(stored("k1")).is_empty(), "nobody waits for that any more");
    assert_eq!(h.give(stored("k2")), ["1: k2 offline stored"]);
}

#[test]
fn i3_a_page_that_was_asked_for_before_the_link_dropped_is_not_taken_for_a_later_one() {
    let mut h = History::new();
    h.available("s", 1);
    assert_eq!(h.page(&[1, 2]), ["1: batch 1 to s: 1 2", "read bob@h after 2"]);
    h.give(Input::LinkDown(LINK));
    assert!(h.available("s", 2).is_empty(), "a page is being read");
    assert_eq!(h.page(&[3]), ["read bob@h after 0"], "what was lost with the link comes first");
    assert_eq!(h.page(&[1, 2, 3]), ["1: batch 2 to s: 1 2 3", "read bob@h after 3"]);
}

#[test]
fn i3_a_notify_that_fires_while_a_page_is_read_leaves_no_message_behind() {
    let mut h = History::new();
    let notify = rule("notify", "expire-at", "1970-01-12T13:46:40Z");
    h.available("s", 1);
    assert_eq!(h.rows(vec![expiring(1, 0, &notify)]), ["send s-1/0 notify", "read bob@h after 1"]);
    let sent = Input::Sent { user: BOB.into(), id: MessageId::new(1, 1), sent: Sent::Done };
    assert_eq!(h.give(sent), ["#1 expiry of 1: None"]);
    assert!(h.outcome(1, Outcome::Done { rows: 1 }).is_empty(), "a page is being read");
    assert_eq!(h.page(&[2]), ["1: batch 1 to s: 2", "read bob@h after 2"]);
    assert_eq!(h.page(&[]), ["read bob@h after 0"]);
    assert_eq!(h.page(&[1, 2]), ["1: batch 2 to s: 1"]);
}

#[test]
fn r50_what_a_client_has_taken_does_not_expire_though_the_clock_had_read_it() {
    let mut h = History::new();
    h.available("s", 1);
    let row = expiring(1, 5, &rule("alert", "expire-at", "1970-01-12T13:46:45Z"));
    h.rows(vec![row.clone()]);
    h.page(&[]);
    h.taken("s", 1, &[1], false);
    h.outcome(1, Outcome::Done { rows: 1 });
    let due = || Input::Due { user: BOB.into(), row: row.clone() };
    assert_eq!(h.at(6).give(due()), ["due taken"]);
    for _ in 0..2 {
        h.give(Input::Tick);
    }
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn a_message_that_the_server_would_not_take_stays_and_is_reported() {
    let mut h = History::new();
    h.available("s", 1);
    let mut large = row(1);
    large.stanza = vec![b' '; 9_000].into();
    assert_eq!(
        h.rows(vec![large, row(2)]),
        ["oversized 1: 9000", "1: batch 1 to s: 2", "read bob@h after 2"]
    );
}

#[test]
fn many_histories_end_with_nothing_under_way() {
    // Whatever the order of answers, a machine that got them all remembers nobody.
    for seed in 0..500u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut h = History::with_quota(if seed % 2 == 0 { 0 } else { 3 });
        let mut open: Vec<u64> = Vec::new();
        for step in 0..60 {
            let said = match random.u32(0..6) {
                0 | 1 => h.held(|i| {
                    i.key = format!("k{step}").into();
                    i.again = random.bool();
                    if random.bool() {
                        i.sessions = vec![phone(1)];
                    }
                }),
                2 => h.available(["s", "t"][random.usize(0..2)], step),
                3 => h.taken(
                    ["s", "t"][random.usize(0..2)],
                    step,
                    &[random.u32(1..9)],
                    random.bool(),
                ),
                4 => h.give(Input::Due {
                    user: BOB.into(),
                    row: expiring(
                        random.u32(1..9),
                        -1,
                        &rule("alert", "expire-at", "1970-01-12T13:46:40Z"),
                    ),
                }),
                _ => match open.pop() {
                    Some(token) => h.outcome(
                        token,
                        [Outcome::Stored, Outcome::Retry, Outcome::Done { rows: 1 }]
                            [random.usize(0..3)]
                        .clone(),
                    ),
                    None => h.give(Input::Tick),
                },
            };
            collect(&mut h, said, &mut open, &mut random);
        }
        for _ in 0..200 {
            let Some(token) = open.pop() else { break };
            let said = h.outcome(token, Outcome::Done { rows: 1 });
            collect(&mut h, said, &mut open, &mut random);
        }
        let said = h.give(Input::LinkDown(LINK));
        collect(&mut h, said, &mut open, &mut random);
        for _ in 0..4 {
            let said = h.at(10_000).give(Input::Tick);
            collect(&mut h, said, &mut open, &mut random);
            while let Some(token) = open.pop() {
                let said = h.outcome(token, Outcome::Done { rows: 1 });
                collect(&mut h, said, &mut open, &mut random);
            }
        }
        assert!(h.machine.recipients.is_empty(), "seed {seed}: {:?}", h.machine.recipients);
        assert_eq!(h.machine.busy(), 0, "seed {seed}");
    }
}

/// Answers every question of the machine, and remembers its writes.
fn collect(h: &mut History, said: Vec<String>, open: &mut Vec<u64>, random: &mut fastrand::Rng) {
    let mut said = said;
    while !said.is_empty() {
        let mut next = Vec::new();
        for effect in said {
            if let Some(rest) = effect.strip_prefix('#') {
                open.push(rest.split(' ').next().unwrap().parse().unwrap());
            } else if effect.starts_with("usage") {
                let question = effect.rsplit(' ').next().unwrap().parse().unwrap();
                next.extend(h.used(question, random.u64(0..4)));
            } else if effect.starts_with("find") {
                let known = random.bool().then_some(None);
                let key = effect.rsplit(' ').next().unwrap().into();
                next.extend(h.give(Input::Found { user: BOB.into(), key, known: Ok(known) }));
            } else if effect.starts_with("read") {
                let after: u32 = effect.rsplit(' ').next().unwrap().parse().unwrap();
                let ids: Vec<u32> = (after + 1..9).take(3).collect();
                next.extend(h.page(&ids));
            } else if effect.starts_with("send") {
                let sent = if random.bool() { Sent::Done } else { Sent::Failed };
                for id in 1..9 {
                    let id = MessageId::new(1, id);
                    next.extend(h.give(Input::Sent { user: BOB.into(), id, sent }));
                }
            }
        }
        said = next;
    }
}
