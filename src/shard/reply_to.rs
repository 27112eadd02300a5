//! Replies about an intercept: the rules' own are in `amp`, here they get their addresses.

use crate::amp::{self, Envelope, Refusal, StanzaError};
use crate::stanza::MessageType;

use super::input::Intercept;

/// The addresses of a reply about an intercept.
pub fn envelope(intercept: &Intercept) -> Envelope<'_> {
    Envelope {
        host: &intercept.host,
        sender: &intercept.message.from,
        recipient: intercept.message.to.as_deref().unwrap_or(&intercept.to),
        id: intercept.message.id.as_deref(),
    }
}

/// What the sender of refused rules is told.
pub fn refusal(intercept: &Intercept, refusal: &Refusal) -> String {
    amp::refusal_reply(refusal, &envelope(intercept), &intercept.message.amp)
}

/// A stanza error from the addressed recipient; none is ever sent about an error or about
/// a reply of this system (RFC 6120 section 8.3.1).
pub fn bounce(intercept: &Intercept, error: StanzaError) -> Option<String> {
    let message = &intercept.message;
    if message.kind == MessageType::Error || message.is_amp_reply() {
        return None;
    }
    Some(plain(&envelope(intercept), error))
}

/// A stanza error about a message of which only the addresses are known.
pub fn plain(envelope: &Envelope, error: StanzaError) -> String {
    amp::bounce(envelope.recipient, envelope.sender, envelope.id, error)
}
