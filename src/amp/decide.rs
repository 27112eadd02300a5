//! Which rule is met (XEP-0079 sections 2.2.3 and 3.3).

use super::disposition::Disposition;
use super::rule::{Condition, Deliver, MatchResource, RuleSet};
use crate::time::Timestamp;

/// The number of the first rule that is met, in document order; none if the default
/// behaviour stands. Its action says whether the default goes on after it
/// ([`Action::goes_on`](super::Action::goes_on)); no further rule is looked at either way.
///
/// `to_resource` is the intended resource; none for a bare JID.
pub fn decide(
    rules: &RuleSet,
    disposition: &Disposition,
    to_resource: Option<&str>,
    now: Timestamp,
) -> Option<usize> {
    rules.rules().iter().position(|rule| {
        !rule.ignored
            && match rule.condition {
                Condition::Deliver(value) => deliver(value, disposition),
                Condition::ExpireAt(at) => now >= at,
                Condition::MatchResource(value) => match_resource(value, disposition, to_resource),
            }
    })
}

/// Section 3.3.1: what would be done with the message on receipt.
fn deliver(value: Deliver, disposition: &Disposition) -> bool {
    match disposition {
        Disposition::Direct { .. } | Disposition::NextHop => value == Deliver::Direct,
        Disposition::Stored => value == Deliver::Stored,
        Disposition::None => value == Deliver::None,
        Disposition::Forward => value == Deliver::Forward,
        Disposition::Gateway => value == Deliver::Gateway,
    }
}

/// Section 3.3.3: where the message would go, beside where it was meant to go.
///
/// Offline storage, a forward and a gateway are destinations without a resource: `exact`
/// for a bare JID, `other` for a full one. With several sessions the message would not
/// reach the intended one only, so that it is `other`. Where there is a destination one of
/// `exact` and `other` is met, never both; but the sender's own server does not know the
/// destination, and leaves them to the recipient's.
fn match_resource(value: MatchResource, disposition: &Disposition, intended: Option<&str>) -> bool {
    let exact = match disposition {
        Disposition::None => return false,
        Disposition::NextHop => return value == MatchResource::Any,
        Disposition::Direct { resources } => match intended {
            Some(intended) => *resources == [intended],
            None => false,
        },
        Disposition::Stored | Disposition::Forward | Disposition::Gateway => intended.is_none(),
    };
    match value {
        MatchResource::Any => true,
        MatchResource::Exact => exact,
        MatchResource::Other => !exact,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{amp, rule_set};
    use super::super::{Action, check};
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_323_600_000_000);
    const NOW_TEXT: &str = "2026-11-22T05:00:00Z";
    const BEFORE: &str = "2026-11-22T04:59:59.999999Z";
    const AFTER: &str = "2026-11-22T05:00:00.0000001Z";

    fn direct<'a>(resources: &[&'a str]) -> Disposition<'a> {
        Disposition::Direct { resources: resources.to_vec() }
    }

    /// Which of these values of a condition are met.
    fn met<'v>(
        condition: &str,
        values: &[&'v str],
        disposition: &Disposition,
        intended: Option<&str>,
    ) -> Vec<&'v str> {
        let is_met = |value: &&&str| {
            let rules = rule_set(&[("drop", condition, value)]);
            decide(&rules, disposition, intended, NOW).is_some()
        };
        values.iter().filter(is_met).copied().collect()
    }

    /// Every disposition, with every intended resource.
    #[test]
    fn r33_r40_r41_r43_truth_table() {
        let (phone, none) = (Some("phone"), None);
        let (any, exact, other) = (&["any"][..], &["any", "exact"][..], &["any", "other"][..]);
        for (disposition, intended, delivered, matched) in [
            (direct(&["phone"]), phone, "direct", exact),
            (direct(&["phone"]), none, "direct", other),
            (direct(&["desk"]), phone, "direct", other),
            (direct(&["phon"]), phone, "direct", other),
            (direct(&["phone", "desk"]), phone, "direct", other),
            (direct(&["phone", "desk"]), none, "direct", other),
            (direct(&["tablet", "desk"]), phone, "direct", other),
            (Disposition::NextHop, phone, "direct", any),
            (Disposition::NextHop, none, "direct", any),
            (Disposition::Stored, phone, "stored", other),
            (Disposition::Stored, none, "stored", exact),
            (Disposition::Forward, phone, "forward", other),
            (Disposition::Forward, none, "forward", exact),
            (Disposition::Gateway, phone, "gateway", other),
            (Disposition::Gateway, none, "gateway", exact),
            (Disposition::None, phone, "none", &[]),
            (Disposition::None, none, "none", &[]),
        ] {
            let case = format!("{disposition:?} for {intended:?}");
            let deliver = ["direct", "forward", "gateway", "none", "stored"];
            assert_eq!(met("deliver", &deliver, &disposition, intended), [delivered], "{case}");
            let resource = ["any", "exact", "other"];
            assert_eq!(met("match-resource", &resource, &disposition, intended), matched, "{case}");
            let times = [BEFORE, NOW_TEXT, AFTER];
            assert_eq!(
                met("expire-at", &times, &disposition, intended),
                [BEFORE, NOW_TEXT],
                "{case}"
            );
        }
    }

    #[test]
    fn r20_r21_r22_the_first_that_is_met_in_document_order() {
        let stored = ("drop", "deliver", "stored");
        let direct = ("error", "deliver", "direct");
        let notify = ("notify", "match-resource", "any");
        let expired = ("alert", "expire-at", BEFORE);
        for (rules, expected) in [
            (&[stored, direct][..], Some(0)),
            (&[direct, stored], Some(1)),
            (&[notify, stored], Some(0)),
            (&[direct, expired, stored], Some(1)),
            (&[direct, direct], None),
        ] {
            assert_eq!(
                decide(&rule_set(rules), &Disposition::Stored, None, NOW),
                expected,
                "{rules:?}"
            );
        }
    }

    #[test]
    fn r14_r42_per_hop_match_resource_is_passed_over_and_keeps_its_number() {
        let rules = [("drop", "match-resource", "any"), ("drop", "deliver", "stored")];
        for (per_hop, expected) in [("true", Some(1)), ("false", Some(0))] {
            let rules = check(&[amp(&[("per-hop", per_hop)], &rules)], Some("id")).unwrap();
            assert_eq!(decide(&rules, &Disposition::Stored, None, NOW), expected);
        }
    }

    #[test]
    fn r21_r44_r45_r47_r51_only_notify_goes_on() {
        for (action, goes_on) in [
            (Action::Alert, false),
            (Action::Drop, false),
            (Action::Error, false),
            (Action::Notify, true),
        ] {
            assert_eq!(action.goes_on(), goes_on, "{action:?}");
        }
    }

    fn any_rule() -> impl Strategy<Value = (&'static str, &'static str, &'static str)> {
        let conditions = prop_oneof![
            prop_oneof![
                Just("direct"),
                Just("forward"),
                Just("gateway"),
                Just("none"),
                Just("stored")
            ]
            .prop_map(|value| ("deliver", value)),
            prop_oneof![Just(BEFORE), Just(NOW_TEXT), Just(AFTER)]
                .prop_map(|value| ("expire-at", value)),
            prop_oneof![Just("any"), Just("exact"), Just("other")]
                .prop_map(|value| ("match-resource", value)),
        ];
        (prop_oneof![Just("drop"), Just("notify")], conditions).prop_map(|(a, (c, v))| (a, c, v))
    }

    fn any_disposition() -> impl Strategy<Value = Disposition<'static>> {
        prop_oneof![
            Just(direct(&["phone"])),
            Just(direct(&["desk", "phone"])),
            Just(Disposition::NextHop),
            Just(Disposition::Stored),
            Just(Disposition::None),
            Just(Disposition::Forward),
            Just(Disposition::Gateway),
        ]
    }

    proptest! {
        #[test]
        fn as_trying_the_rules_one_by_one(
            rules in prop::collection::vec(any_rule(), 1..=32),
            disposition in any_disposition(),
            intended in prop::option::of(Just("phone")),
        ) {
            let mut first = None;
            for (number, rule) in rules.iter().enumerate() {
                if decide(&rule_set(&[*rule]), &disposition, intended, NOW) == Some(0) {
                    first = Some(number);
                    break;
                }
            }
            prop_assert_eq!(decide(&rule_set(&rules), &disposition, intended, NOW), first);
        }
    }
}
