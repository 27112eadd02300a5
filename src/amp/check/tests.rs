//! What is accepted and what is refused, by the requirement that asks for it.

use proptest::prelude::*;

use super::super::rule::{Action, Condition, Deliver, MatchResource};
use super::super::testing::{amp, any_amp, element, rule};
use super::*;

const OK: (&str, &str, &str) = ("drop", "deliver", "stored");

fn check_rules(rules: &[(&str, &str, &str)]) -> Result<RuleSet, Refusal> {
    check(&[amp(&[], rules)], Some("id"))
}

/// One rule with these attributes.
fn check_attrs(attrs: &[(&str, &str)]) -> Result<RuleSet, Refusal> {
    let amp = element("amp", &[], vec![element("rule", attrs, vec![])]);
    check(&[amp], Some("id"))
}

#[test]
fn r1_r2_an_id_is_needed() {
    let amp = [amp(&[], &[OK])];
    assert_eq!(check(&amp, None), Err(Refusal::MissingId));
    assert_eq!(check(&amp, Some("")), Err(Refusal::MissingId));
    assert!(check(&amp, Some(" ")).is_ok());
}

#[test]
fn r60_a_rule_is_needed_in_one_amp() {
    let other_ns = Element { ns: "jabber:client".into(), ..rule(OK) };
    let other_name = element("rules", &[], vec![rule(OK)]);
    for (amp, expected) in [
        (vec![], Refusal::NoRule),
        (vec![amp(&[], &[])], Refusal::NoRule),
        (vec![element("amp", &[], vec![other_ns, other_name])], Refusal::NoRule),
        (vec![amp(&[], &[OK]), amp(&[], &[OK])], Refusal::SeveralAmp),
        (vec![amp(&[], &[OK]), amp(&[], &[])], Refusal::SeveralAmp),
    ] {
        assert_eq!(check(&amp, Some("id")), Err(expected), "{amp:?}");
    }
}

#[test]
fn only_rules_of_the_amp_namespace_count() {
    let foreign = Element { ns: "urn:example".into(), ..rule(("x", "y", "z")) };
    let amp = element("amp", &[], vec![foreign, rule(OK), element("note", &[], vec![])]);
    let rules = check(&[amp], Some("id")).unwrap();
    assert_eq!(rules.rules().len(), 1);
}

#[test]
fn r13_r56_per_hop_is_true_or_false() {
    for (value, accepted) in [
        ("true", true),
        ("false", true),
        ("1", false),
        ("True", false),
        ("", false),
        (" true", false),
    ] {
        let result = check(&[amp(&[("per-hop", value)], &[OK])], Some("id"));
        assert_eq!(result.is_ok(), accepted, "{value}");
        if !accepted {
            assert_eq!(result, Err(Refusal::BadPerHop));
        }
    }
}

#[test]
fn r14_r42_what_cannot_apply_per_hop_is_ignored_but_validated() {
    let rules = [
        ("error", "match-resource", "other"),
        ("error", "expire-at", "2004-09-10T08:33:14Z"),
        ("error", "deliver", "stored"),
    ];
    let ignored = |attrs: &[(&str, &str)]| {
        let rules = check(&[amp(attrs, &rules)], Some("id")).unwrap();
        rules.rules().iter().map(|rule| rule.ignored).collect::<Vec<_>>()
    };
    assert_eq!(ignored(&[("per-hop", "true")]), [true, false, false]);
    assert_eq!(ignored(&[("per-hop", "false")]), [false, false, false]);
    assert_eq!(ignored(&[]), [false, false, false]);
    let bad = amp(&[("per-hop", "true")], &[("error", "match-resource", "some")]);
    assert_eq!(check(&[bad], Some("id")), Err(Refusal::InvalidRules(vec![0])));
}

#[test]
fn r15_r57_r58_what_is_understood() {
    for (rule, action, condition) in [
        (("alert", "deliver", "direct"), Action::Alert, Condition::Deliver(Deliver::Direct)),
        (("drop", "deliver", "forward"), Action::Drop, Condition::Deliver(Deliver::Forward)),
        (("error", "deliver", "gateway"), Action::Error, Condition::Deliver(Deliver::Gateway)),
        (("notify", "deliver", "none"), Action::Notify, Condition::Deliver(Deliver::None)),
        (("alert", "deliver", "stored"), Action::Alert, Condition::Deliver(Deliver::Stored)),
        (
            ("drop", "match-resource", "any"),
            Action::Drop,
            Condition::MatchResource(MatchResource::Any),
        ),
        (
            ("drop", "match-resource", "exact"),
            Action::Drop,
            Condition::MatchResource(MatchResource::Exact),
        ),
        (
            ("drop", "match-resource", "other"),
            Action::Drop,
            Condition::MatchResource(MatchResource::Other),
        ),
        (
            ("drop", "expire-at", "1970-01-01T00:00:01+00:00"),
            Action::Drop,
            Condition::ExpireAt(crate::time::Timestamp::from_micros(1_000_000)),
        ),
    ] {
        let rules = check_rules(&[rule]).unwrap();
        assert_eq!(
            (rules.rules()[0].action, rules.rules()[0].condition),
            (action, condition),
            "{rule:?}"
        );
    }
}

#[test]
fn r36_r37_r57_r58_r59_r61_r62_r63_what_is_refused() {
    let conditions = || Refusal::UnsupportedConditions(vec![0]);
    let actions = || Refusal::UnsupportedActions(vec![0]);
    let values = || Refusal::InvalidRules(vec![0]);
    for (attrs, expected) in [
        (&[][..], conditions()),
        (&[("action", "drop"), ("value", "stored")], conditions()),
        (&[("action", "drop"), ("condition", ""), ("value", "stored")], conditions()),
        (&[("action", "drop"), ("condition", "Deliver"), ("value", "stored")], conditions()),
        (&[("action", "drop"), ("condition", "expire-in"), ("value", "10")], conditions()),
        (&[("action", "hide"), ("condition", "expire-in"), ("value", "10")], conditions()),
        (&[("condition", "deliver"), ("value", "stored")], actions()),
        (&[("action", ""), ("condition", "deliver"), ("value", "stored")], actions()),
        (&[("action", "drop "), ("condition", "deliver"), ("value", "stored")], actions()),
        (&[("action", "store"), ("condition", "deliver"), ("value", "stored")], actions()),
        (&[("action", "store"), ("condition", "deliver"), ("value", "")], actions()),
        (&[("x:action", "drop"), ("condition", "deliver"), ("value", "stored")], actions()),
        (&[("action", "drop"), ("condition", "deliver")], values()),
        (&[("action", "drop"), ("condition", "deliver"), ("value", "")], values()),
        (&[("action", "drop"), ("condition", "deliver"), ("value", "Stored")], values()),
        (&[("action", "drop"), ("condition", "deliver"), ("value", "exact")], values()),
        (&[("action", "drop"), ("condition", "match-resource"), ("value", "direct")], values()),
        (&[("action", "drop"), ("condition", "match-resource"), ("value", "home")], values()),
        (&[("action", "drop"), ("condition", "expire-at"), ("value", "tomorrow")], values()),
        (
            &[("action", "drop"), ("condition", "expire-at"), ("value", "2004-01-01T00:00:00")],
            values(),
        ),
        (
            &[
                ("action", "drop"),
                ("condition", "expire-at"),
                ("value", "2004-01-01T00:00:00-08:00"),
            ],
            values(),
        ),
    ] {
        assert_eq!(check_attrs(attrs), Err(expected), "{attrs:?}");
    }
}

#[test]
fn r17_r18_all_bad_rules_of_the_first_kind_are_named() {
    let (condition, action, value) =
        (("drop", "mood", "good"), ("hide", "deliver", "none"), ("drop", "deliver", "soon"));
    let both = ("hide", "mood", "good");
    for (rules, expected) in [
        (&[OK, value, OK, value][..], Refusal::InvalidRules(vec![1, 3])),
        (&[value, action, OK, action], Refusal::UnsupportedActions(vec![1, 3])),
        (&[value, action, condition, both], Refusal::UnsupportedConditions(vec![2, 3])),
        (&[action, both], Refusal::UnsupportedConditions(vec![1])),
    ] {
        assert_eq!(check_rules(rules), Err(expected), "{rules:?}");
    }
}

#[test]
fn limits() {
    assert!(check_rules(&[OK; MAX_RULES]).is_ok());
    assert_eq!(check_rules(&[OK; MAX_RULES + 1]), Err(Refusal::TooManyRules));

    let digits = MAX_VALUE - "2004-01-01T00:00:00.Z".len();
    let value = |digits| format!("2004-01-01T00:00:00.{}Z", "1".repeat(digits));
    assert!(check_rules(&[("drop", "expire-at", &value(digits))]).is_ok());
    assert_eq!(
        check_rules(&[("drop", "expire-at", &value(digits + 1))]),
        Err(Refusal::InvalidRules(vec![0]))
    );
}

proptest! {
    #[test]
    fn any_element_is_checked(amp in any_amp(), id in prop::option::of(".{0,3}")) {
        match check(&amp, id.as_deref()) {
            Ok(rules) => prop_assert!((1..=MAX_RULES).contains(&rules.rules().len())),
            Err(
                Refusal::UnsupportedConditions(bad)
                | Refusal::UnsupportedActions(bad)
                | Refusal::InvalidRules(bad),
            ) => {
                let count = rule_elements(&amp[0]).count();
                prop_assert!(!bad.is_empty() && bad.is_sorted() && bad.iter().all(|n| *n < count));
            }
            Err(_) => {}
        }
    }
}
