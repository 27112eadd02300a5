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
