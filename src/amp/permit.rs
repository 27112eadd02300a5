//! What rules tell whom (XEP-0079 section 9, Security Considerations).
//!
//! An alert, an error or a notification tells its sender whether the recipient is
//! online. So whether a rule may be used depends on its action alone, whatever its
//! condition, and never on where the recipient is: the refusal itself tells nothing.

use super::check::Refusal;
use super::rule::RuleSet;

/// Who may use rules that bring an answer back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SecurityLevel {
    /// Senders who may see the recipient's presence: what section 9 recommends.
    #[default]
    Strict,
    /// Nobody: `drop` is the only action, and presence need not be looked up.
    Performance,
    /// Everybody: for closed networks, where all trust each other.
    None,
}

/// Refuses the rules that this sender may not use; all of them are named at once.
///
/// `may_see_presence`: the recipient lets the sender see his presence (a subscription
/// `from` or `both`), or sender and recipient are one account.
pub fn permit(
    rules: &RuleSet,
    level: SecurityLevel,
    may_see_presence: bool,
) -> Result<(), Refusal> {
    let replies_allowed = match level {
        SecurityLevel::Strict => may_see_presence,
        SecurityLevel::Performance => false,
        SecurityLevel::None => true,
    };
    if replies_allowed {
        return Ok(());
    }
    let numbered = rules.rules().iter().enumerate();
    let refused: Vec<usize> =
        numbered.filter(|(_, rule)| rule.action.replies()).map(|(number, _)| number).collect();
    if refused.is_empty() { Ok(()) } else { Err(Refusal::NotPermitted(refused)) }
}

/// Whether nothing at all may come back about a message with rules, whatever becomes of it.
///
/// Its sender may use `drop` alone, because he is not to learn where the recipient is; an
/// error that depends on that would tell him as well.
pub fn is_silent(level: SecurityLevel, may_see_presence: bool) -> bool {
    level == SecurityLevel::Strict && !may_see_presence
}

#[cfg(test)]
mod tests {
    use super::super::testing::rule_set;
    use super::*;

    const CONDITIONS: [(&str, &str); 4] = [
        ("deliver", "stored"),
        ("deliver", "none"),
        ("expire-at", "2004-01-01T00:00:00Z"),
        ("match-resource", "other"),
    ];

    /// For every condition: the actions that are refused.
    fn refused(level: SecurityLevel, may_see_presence: bool) -> Vec<&'static str> {
        let actions = ["alert", "drop", "error", "notify"];
        let refused = |action, (condition, value)| {
            permit(&rule_set(&[(action, condition, value)]), level, may_see_presence).is_err()
        };
        let by_condition = CONDITIONS
            .map(|c| actions.iter().copied().filter(|a| refused(*a, c)).collect::<Vec<_>>());
        assert!(by_condition.iter().all(|r| *r == by_condition[0]), "depends on the condition");
        by_condition[0].clone()
    }

    #[test]
    fn r69_r70_r71_r72_who_may_use_which_action() {
        let all_but_drop = ["alert", "error", "notify"];
        for (level, may_see_presence, expected) in [
            (SecurityLevel::Strict, true, &[][..]),
            (SecurityLevel::Strict, false, &all_but_drop),
            (SecurityLevel::Performance, true, &all_but_drop),
            (SecurityLevel::Performance, false, &all_but_drop),
            (SecurityLevel::None, true, &[]),
            (SecurityLevel::None, false, &[]),
        ] {
            assert_eq!(refused(level, may_see_presence), expected, "{level:?} {may_see_presence}");
        }
    }

    #[test]
    fn r16_r18_all_refused_rules_are_named_and_no_other() {
        let rules = rule_set(&[
            ("drop", "deliver", "none"),
            ("notify", "deliver", "direct"),
            ("drop", "deliver", "stored"),
            ("error", "expire-at", "2004-01-01T00:00:00Z"),
        ]);
        assert_eq!(
            permit(&rules, SecurityLevel::Strict, false),
            Err(Refusal::NotPermitted(vec![1, 3]))
        );
    }

    #[test]
    fn r69_only_strict_is_silent_and_only_to_those_without_the_right() {
        use SecurityLevel::{None, Performance, Strict};
        for level in [Strict, Performance, None] {
            assert_eq!(is_silent(level, false), level == Strict);
            assert!(!is_silent(level, true));
        }
    }

    #[test]
    fn strict_is_the_default() {
        assert_eq!(SecurityLevel::default(), SecurityLevel::Strict);
    }
}
