//! Rules that have been checked (XEP-0079 sections 3 and 4).

use crate::time::Timestamp;
use crate::words::Expiry;

/// What a rule does once its condition is met (XEP-0079 section 3.4).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// Discard the message and tell the sender.
    Alert,
    /// Discard the message in silence.
    Drop,
    /// Discard the message and return an error.
    Error,
    /// Tell the sender, and go on as if there were no rules.
    Notify,
}

impl Action {
    /// Whether the message goes its way nevertheless (XEP-0079 section 2.2.3).
    pub fn goes_on(self) -> bool {
        self == Action::Notify
    }

    /// Whether the sender hears of it.
    pub fn replies(self) -> bool {
        self != Action::Drop
    }
}

/// When a rule is met (XEP-0079 section 3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Condition {
    /// What would happen to the message by default (section 3.3.1).
    Deliver(Deliver),
    /// The time is this or later (section 3.3.2).
    ExpireAt(Timestamp),
    /// Which resource the message would reach (section 3.3.3).
    MatchResource(MatchResource),
}

/// The values of `deliver` (XEP-0079 section 3.3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deliver {
    /// At once, to a session or the next server.
    Direct,
    /// To another XMPP address.
    Forward,
    /// Through a gateway to a system that is not XMPP.
    Gateway,
    /// Not at all.
    None,
    /// Kept until the recipient comes back.
    Stored,
}

/// The values of `match-resource` (XEP-0079 section 3.3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MatchResource {
    /// Any destination.
    Any,
    /// The intended resource and no other.
    Exact,
    /// Any destination but that.
    Other,
}

/// A rule whose words are known and whose value suits its condition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// What to do.
    pub action: Action,
    /// When to do it.
    pub condition: Condition,
    /// The `value` as it was written, to be told to the sender.
    pub(super) value: String,
    /// It cannot apply at every hop, but was asked to (XEP-0079 section 2.1.2).
    pub(super) ignored: bool,
}

/// The rules of one message, in document order. Only [`check`](super::check) makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleSet {
    pub(super) rules: Vec<Rule>,
}

impl RuleSet {
    /// All rules, ignored ones too, so that a rule's number is its place among the
    /// `<rule/>` elements of the message.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of that number.
    pub fn get(&self, number: usize) -> Option<&Rule> {
        self.rules.get(number)
    }

    /// When the rule of that number expires the message, if it is an `expire-at` rule.
    pub fn expiry(&self, number: usize) -> Option<Expiry> {
        match self.get(number)?.condition {
            Condition::ExpireAt(at) => Some(Expiry { at, rule: u16::try_from(number).ok()? }),
            _ => None,
        }
    }
}
