//! Which `expire-at` rule of a stored message comes next (XEP-0079 sections 3.3.2 and 7).

use super::rule::RuleSet;
use crate::words::Expiry;

/// The next `expire-at` rule to be carried out after `fired`, or the first of all.
///
/// They come in the order of their times, and where those are equal, of the document.
/// Times that have passed count: such a rule is due at once.
pub fn next_expiry(rules: &RuleSet, fired: Option<Expiry>) -> Option<Expiry> {
    let order = |expiry: &Expiry| (expiry.at, expiry.rule);
    (0..rules.rules().len())
        .filter_map(|number| rules.expiry(number))
        .filter(|expiry| fired.as_ref().is_none_or(|fired| order(expiry) > order(fired)))
        .min_by_key(order)
}

#[cfg(test)]
mod tests {
    use super::super::testing::rule_set;
    use super::*;

    /// The numbers of the rules in the order in which they fire.
    fn order(rules: &[(&str, &str, &str)]) -> Vec<u16> {
        let rules = rule_set(rules);
        std::iter::successors(next_expiry(&rules, None), |fired| next_expiry(&rules, Some(*fired)))
            .map(|expiry| expiry.rule)
            .collect()
    }

    #[test]
    fn r38_by_time_then_by_place_each_once() {
        let at = |time| ("notify", "expire-at", time);
        let (early, late) = ("2026-11-22T05:00:00Z", "2026-11-22T06:00:00Z");
        let deliver = ("drop", "deliver", "none");
        for (rules, expected) in [
            (&[deliver][..], &[][..]),
            (&[at(early)], &[0]),
            (&[deliver, at(late)], &[1]),
            (&[at(late), at(early)], &[1, 0]),
            (&[at(early), deliver, at(early), at(early)], &[0, 2, 3]),
            (&[at(late), at(early), at(late), at(early)], &[1, 3, 0, 2]),
        ] {
            assert_eq!(order(rules), expected, "{rules:?}");
        }
    }

    #[test]
    fn r67_a_rule_that_fired_by_its_number_is_behind() {
        let rules = rule_set(&[
            ("notify", "expire-at", "2026-11-22T05:00:00Z"),
            ("drop", "expire-at", "2026-11-22T06:00:00Z"),
        ]);
        let fired = rules.expiry(0);
        assert_eq!(next_expiry(&rules, fired), rules.expiry(1));
        assert_eq!(next_expiry(&rules, rules.expiry(1)), None);
    }
}
