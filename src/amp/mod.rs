//! The rules of XEP-0079, Advanced Message Processing.
//!
//! The files follow the flow of its section 2.2: [`check`] and [`permit`] validate,
//! [`default_disposition`] says what would happen anyway, [`decide`] finds the rule that
//! is met, [`rule_reply`] and [`refusal_reply`] write what the sender is told. For a
//! stored message, [`next_expiry`] says which rule comes next, and when. `docs/rules.md`
//! tells operators and client developers the same.
//!
//! All of it is pure: the time is an argument, and nothing here knows who may see
//! whose presence or what is stored.

mod check;
mod decide;
mod disposition;
mod error;
mod expiry;
mod permit;
mod reply;
mod rule;
pub mod support;
#[cfg(test)]
mod testing;

pub use check::{MAX_ECHO, MAX_RULES, MAX_VALUE, Refusal, check};
pub use decide::decide;
pub use disposition::{Disposition, Facts, Session, default_disposition};
pub use error::StanzaError;
pub use expiry::next_expiry;
pub use permit::{SecurityLevel, is_silent, permit};
pub use reply::{Envelope, bounce, refusal_reply, rule_reply};
pub use rule::{Action, Condition, Deliver, MatchResource, Rule, RuleSet};
