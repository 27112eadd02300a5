//! Invariant I5 behind the link: a message with rules whose sender may not learn what becomes
//! of it, and what the machine says about it (R69, R72).

use super::*;

/// A message of a stranger with a rule that he may use.
fn silent(intercept: &mut Intercept, stage: Stage) {
    with_rules(intercept, &rule("drop", "deliver", "gateway"));
    intercept.stage = stage;
    intercept.silent = true;
}

fn verdicts(h: &mut History, make: impl FnOnce(&mut Intercept)) -> Vec<Verdict> {
    let mut intercept = offline("k1");
    intercept.stamp = h.now;
    make(&mut intercept);
    let effects = h.machine.handle(h.now, Input::Intercept(Box::new(intercept)));
    let verdict = |effect| match effect {
        Effect::Link(_, ToLink::Verdict(verdict)) => Some(verdict),
        _ => None,
    };
    effects.into_iter().filter_map(verdict).collect()
}

#[test]
fn r69_what_goes_on_goes_on_in_silence_whoever_is_there() {
    let away = |_: &mut Intercept| {};
    let missing = |i: &mut Intercept| i.account = false;
    let online = |i: &mut Intercept| i.sessions = vec![phone(0)];
    for make in [away, missing, online] {
        let said = verdicts(&mut History::new(), |i| {
            silent(i, Stage::Rules);
            make(i);
        });
        assert_eq!(said.len(), 1);
        assert_eq!((said[0].what, said[0].silent), (Do::Deliver, true));
        assert!(said[0].sends.is_empty());
    }
}

#[test]
fn r69_no_error_tells_of_a_missing_account_or_a_full_quota() {
    let missing = |h: &mut History| {
        h.held(|i| {
            silent(i, Stage::Offline);
            i.account = false;
        })
    };
    assert_eq!(missing(&mut History::new()), ["1: k1 offline discarded"]);
    let mut h = History::with_quota(1);
    h.held(|i| silent(i, Stage::Offline));
    assert_eq!(h.used(1, 1), ["over quota, drop", "1: k1 offline discarded"]);
}

#[test]
fn r69_no_error_tells_that_it_could_not_be_stored() {
    for stage in [Stage::Offline, Stage::Undelivered] {
        let mut h = History::new();
        h.held(|i| silent(i, stage));
        let refused = h.outcome(1, Outcome::Refused("too large".into()));
        assert_eq!(refused, [format!("1: k1 {} discarded", stage.as_str())]);
    }
}

#[test]
fn r72_a_right_that_is_lost_after_the_rules_were_accepted_takes_the_answers_with_it() {
    for (action, expected) in [
        ("notify", "#1 append 1 k1"),
        ("alert", "1: k1 offline discarded"),
        ("error", "1: k1 offline discarded"),
    ] {
        let mut h = History::new();
        let effects = h.held(|i| {
            with_rules(i, &rule(action, "deliver", "stored"));
            i.silent = true;
        });
        assert_eq!(effects, [expected]);
    }
    // The notice of what was stored before.
    for outcome in [Outcome::Stored, Outcome::Already { met_rule: Some(0) }] {
        let mut h = History::new();
        h.held(|i| with_rules(i, &rule("notify", "deliver", "stored")));
        let again = h.held(|i| {
            with_rules(i, &rule("notify", "deliver", "stored"));
            i.again = true;
            i.silent = true;
        });
        assert!(again.is_empty(), "{again:?}");
        assert_eq!(h.outcome(1, outcome), ["1: k1 offline stored"], "the latest right counts");
    }
}

#[test]
fn r72_rules_that_can_no_longer_be_refused_are_passed_over() {
    let mut h = History::new();
    let effects = h.held(|i| {
        with_rules(i, &rule("notify", "deliver", "nowhere"));
        i.silent = true;
    });
    assert_eq!(effects, ["#1 append 1 k1"]);
}
