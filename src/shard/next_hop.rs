//! Deciding at the sender's server, about a message that is about to leave it (XEP-0079
//! sections 2.2.3 and 2.2.4).
//!
//! No state of the recipient's counts here, and nothing is kept: the message, the clock
//! and whether the next server supports the rules decide. So an intercept that comes again
//! may be decided again.

use crate::amp::{self, Action, Disposition, Refusal};
use crate::time::Timestamp;

use super::effect::Do;
use super::input::Intercept;
use super::reply_to;
use super::verdict::to_resource;

/// What is to become of the message, and what its sender is told.
pub(super) fn decide(
    intercept: &Intercept,
    next_supports_amp: bool,
    now: Timestamp,
) -> (Do, Vec<String>) {
    let rules = match &intercept.rules {
        None => return (Do::Deliver, Vec::new()),
        Some(Err(refusal)) => return refused(intercept, refusal),
        Some(Ok(rules)) => rules,
    };
    let met = amp::decide(rules, &Disposition::NextHop, to_resource(intercept), now);
    let action = met.and_then(|rule| rules.get(rule)).map(|rule| rule.action);
    let reply = met.and_then(|rule| amp::rule_reply(rules, rule, &reply_to::envelope(intercept)));
    match action {
        Some(Action::Drop | Action::Alert | Action::Error) => {
            (Do::Discarded, reply.into_iter().collect())
        }
        None | Some(Action::Notify) if next_supports_amp => {
            (Do::Deliver, reply.into_iter().collect())
        }
        // It does not go on, so that no notice says that it would.
        None | Some(Action::Notify) => refused(intercept, &Refusal::ServiceUnavailable),
    }
}

fn refused(intercept: &Intercept, refusal: &Refusal) -> (Do, Vec<String>) {
    (Do::Discarded, vec![reply_to::refusal(intercept, refusal)])
}
