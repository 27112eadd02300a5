//! Why a link ended, and what the operator can do about it.

use crate::xml::{FrameError, XmlError};

/// A link could not be made, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No connection.
    #[error(
        "cannot connect to {address}: {source}; is the server running, and does its component port listen there (`component_ports`, `component_interfaces` in Prosody)?"
    )]
    Connect {
        /// Where to.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// The server said nothing in time.
    #[error("no answer from the server within {0} seconds")]
    Silence(u64),
    /// The server closed the stream.
    #[error("the server closed the stream")]
    Closed,
    /// The server sent a stream error.
    #[error("the server ended the stream with '{condition}'{}; {remedy}", text.as_ref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Stream {
        /// The defined condition.
        condition: String,
        /// The server's own words.
        text: Option<String>,
        /// What to do.
        remedy: &'static str,
    },
    /// The server sent what is no stream of XMPP.
    #[error("the server sent a broken stream: {0}")]
    Frame(#[from] FrameError),
    /// The server sent a stanza that is not well-formed.
    #[error("the server sent a broken stanza: {0}")]
    Xml(#[from] XmlError),
    /// The server broke XEP-0114 or the intercept protocol.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// The interceptor ignores its window.
    #[error("the interceptor has more than {0} intercepts unanswered, far above its window")]
    Window(usize),
    /// The node can do nothing for a server now.
    #[error("this node has no shards and hears no other node of its cluster")]
    Useless,
    /// This node stops.
    #[error("this node stops")]
    Stopping,
}

impl LinkError {
    /// A stream error as the server sent it.
    pub fn stream(condition: &str, text: Option<String>) -> Self {
        LinkError::Stream { condition: condition.to_owned(), text, remedy: remedy(condition) }
    }

    /// The stream error to send before closing (RFC 6120 section 4.9.3), if the other side
    /// is at fault.
    pub fn condition(&self) -> Option<&'static str> {
        match self {
            LinkError::Frame(error) => Some(error.condition()),
            LinkError::Xml(_) => Some("not-well-formed"),
            LinkError::Protocol(_) => Some("undefined-condition"),
            LinkError::Window(_) => Some("policy-violation"),
            LinkError::Silence(_) => Some("connection-timeout"),
            _ => None,
        }
    }
}

fn remedy(condition: &str) -> &'static str {
    match condition {
        "not-authorized" => {
            "the secret is not the one that the server has for this component: make `secret` (or `secret_file`) of [[servers]] equal to `component_secret` there"
        }
        "host-unknown" => {
            "the server has no such component: add it there (`Component \"...\"` in Prosody) or correct `component` of [[servers]]"
        }
        "conflict" => {
            "another connection holds this component: stop the other node, or set `component_conflict_resolve = \"kick_old\"` in the server so that a half-open connection does not block a new one"
        }
        "invalid-namespace" | "unsupported-stanza-type" | "invalid-xml" => {
            "this may not be a component port: check `address` of [[servers]]"
        }
        "system-shutdown" | "reset" => "the server stops or restarts; the link comes back with it",
        "policy-violation" => {
            "a stanza may have been larger than the server takes: see `component_stanza_size_limit` there"
        }
        _ => "see the server's log",
    }
}
