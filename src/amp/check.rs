//! Validation (XEP-0079 sections 2.2.1, 4 and 6): are these rules that can be kept?

use super::rule::{Rule, RuleSet};
use super::support;
use crate::ns;
use crate::xml::Element;

/// The most rules that a message may carry. All combinations of the defined actions with
/// the values of `deliver` and `match-resource` make 32.
pub const MAX_RULES: usize = 32;

/// The longest `value` in bytes: a DateTime with a fraction of a thousand digits. Longer
/// texts are refused.
pub const MAX_VALUE: usize = 1_024;

/// Bytes of an attribute that a refusal repeats at most: it may have to repeat all of them,
/// escaped and twice, and must still be a stanza that a server takes.
pub const MAX_ECHO: usize = 128;

/// Why the rules of a message are not accepted. A number is a rule's place among the
/// `<rule/>` elements, from zero. [`refusal_reply`](super::refusal_reply) writes the error.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The message has no `id`, or an empty one (section 1.3).
    #[error("no message id")]
    MissingId,
    /// More than one `<amp/>` (section 4.1), so that it is not known which counts.
    #[error("more than one amp element")]
    SeveralAmp,
    /// `per-hop` is neither `true` nor `false` (section 4.1).
    #[error("per-hop is neither true nor false")]
    BadPerHop,
    /// An `<amp/>` without a `<rule/>` (section 4.1).
    #[error("no rule")]
    NoRule,
    /// More than [`MAX_RULES`] rules.
    #[error("more than {MAX_RULES} rules")]
    TooManyRules,
    /// Rules with an unknown condition, or none (section 6).
    #[error("unsupported conditions")]
    UnsupportedConditions(Vec<usize>),
    /// Rules with an unknown action, or none (section 6).
    #[error("unsupported actions")]
    UnsupportedActions(Vec<usize>),
    /// Rules whose value is absent, empty or does not suit the condition (section 6).
    #[error("invalid values")]
    InvalidRules(Vec<usize>),
    /// Rules that the sender may not use (section 9).
    #[error("rules not permitted")]
    NotPermitted(Vec<usize>),
    /// The next server does not support Advanced Message Processing (section 2.2.4).
    #[error("not supported by the next server")]
    ServiceUnavailable,
}

/// What is wrong with one rule; the order is that in which kinds are reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Condition,
    Action,
    Value,
}

/// Checks the rules of a message: its `<amp/>` elements and its `id`.
///
/// All bad rules of one kind are named together (section 2.2.1); where several kinds
/// occur, unsupported conditions come first, then unsupported actions, then values.
pub fn check(amp: &[Element], id: Option<&str>) -> Result<RuleSet, Refusal> {
    if id.is_none_or(str::is_empty) {
        return Err(Refusal::MissingId);
    }
    let amp = match amp {
        [] => return Err(Refusal::NoRule),
        [amp] => amp,
        _ => return Err(Refusal::SeveralAmp),
    };
    let per_hop = match amp.attr("per-hop") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Refusal::BadPerHop),
    };
    let count = rule_elements(amp).count();
    if count == 0 {
        return Err(Refusal::NoRule);
    }
    if count > MAX_RULES {
        return Err(Refusal::TooManyRules);
    }
    let mut rules = Vec::with_capacity(count);
    for rule in rule_elements(amp) {
        rules.push(check_rule(rule, per_hop).map_err(|_| refusal(amp))?);
    }
    Ok(RuleSet { rules })
}

/// The `<rule/>` children, whose places number the rules.
pub(super) fn rule_elements(amp: &Element) -> impl Iterator<Item = &Element> {
    amp.children.iter().filter(|child| child.is("rule", ns::AMP))
}

fn check_rule(rule: &Element, per_hop: bool) -> Result<Rule, Fault> {
    let condition = rule.attr("condition").and_then(support::condition).ok_or(Fault::Condition)?;
    let action = rule.attr("action").and_then(support::action).ok_or(Fault::Action)?;
    let value = rule.attr("value").filter(|v| v.len() <= MAX_VALUE).ok_or(Fault::Value)?;
    Ok(Rule {
        action,
        condition: (condition.read)(value).ok_or(Fault::Value)?,
        value: value.to_owned(),
        ignored: per_hop && !condition.per_hop,
    })
}

/// The refusal for rules of which at least one is bad.
fn refusal(amp: &Element) -> Refusal {
    let with = |fault| {
        let numbered = rule_elements(amp).enumerate();
        let bad = numbered.filter(|(_, rule)| check_rule(rule, false).err() == Some(fault));
        Some(bad.map(|(number, _)| number).collect::<Vec<_>>()).filter(|bad| !bad.is_empty())
    };
    if let Some(bad) = with(Fault::Condition) {
        Refusal::UnsupportedConditions(bad)
    } else if let Some(bad) = with(Fault::Action) {
        Refusal::UnsupportedActions(bad)
    } else {
        Refusal::InvalidRules(with(Fault::Value).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
