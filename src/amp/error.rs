//! Which stanza error a refusal is (XEP-0079 section 6).

use super::check::Refusal;

/// A stanza error (RFC 6120 section 8.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StanzaError {
    /// The element that names it.
    pub condition: &'static str,
    /// The `type` attribute.
    pub kind: &'static str,
    /// The `code` attribute as XEP-0079 section 6 or XEP-0086 has it, where one of them does.
    pub code: Option<u16>,
}

impl StanzaError {
    /// The message breaks the syntax.
    pub const BAD_REQUEST: Self = Self::new("bad-request", "modify", Some(400));
    /// Rules that are not accepted; 405 is XEP-0079's number, not XEP-0086's.
    pub const NOT_ACCEPTABLE: Self = Self::new("not-acceptable", "modify", Some(405));
    /// A rule's error action.
    pub const UNDEFINED_CONDITION: Self = Self::new("undefined-condition", "modify", Some(500));
    /// Nobody there who could take it.
    pub const SERVICE_UNAVAILABLE: Self = Self::new("service-unavailable", "cancel", Some(503));
    /// No room for now.
    pub const RESOURCE_CONSTRAINT: Self = Self::new("resource-constraint", "wait", Some(500));
    /// Too large, or otherwise against the rules of the service.
    pub const POLICY_VIOLATION: Self = Self::new("policy-violation", "modify", None);
    /// The server's own trouble, which the sender can do nothing about.
    pub const INTERNAL_SERVER_ERROR: Self = Self::new("internal-server-error", "cancel", Some(500));

    const fn new(condition: &'static str, kind: &'static str, code: Option<u16>) -> Self {
        StanzaError { condition, kind, code }
    }
}

impl Refusal {
    /// The general error condition (XEP-0079 section 6).
    pub fn error(&self) -> StanzaError {
        match self {
            Refusal::MissingId
            | Refusal::SeveralAmp
            | Refusal::BadPerHop
            | Refusal::NoRule
            | Refusal::UnsupportedConditions(_)
            | Refusal::UnsupportedActions(_) => StanzaError::BAD_REQUEST,
            Refusal::TooManyRules | Refusal::InvalidRules(_) | Refusal::NotPermitted(_) => {
                StanzaError::NOT_ACCEPTABLE
            }
            Refusal::ServiceUnavailable => StanzaError::SERVICE_UNAVAILABLE,
        }
    }

    /// The element that names the bad rules, if the error has one, and whether it names
    /// the rule of that number.
    pub(super) fn named(&self) -> Option<(&'static str, impl Fn(usize) -> bool)> {
        let (element, numbers) = match self {
            Refusal::UnsupportedConditions(numbers) => ("unsupported-conditions", Some(numbers)),
            Refusal::UnsupportedActions(numbers) => ("unsupported-actions", Some(numbers)),
            Refusal::InvalidRules(numbers) | Refusal::NotPermitted(numbers) => {
                ("invalid-rules", Some(numbers))
            }
            Refusal::TooManyRules => ("invalid-rules", None),
            _ => return None,
        };
        Some((element, move |number| numbers.is_none_or(|numbers| numbers.contains(&number))))
    }
}
