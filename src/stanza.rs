//! What an intercepted message says, read in one pass; its bytes stay as they came.

/// The `type` of a message stanza (RFC 6121 section 5.2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MessageType {
    /// `normal`, absent, or a value that RFC 6121 does not know.
    Normal,
    /// `chat`
    Chat,
    /// `groupchat`
    Groupchat,
    /// `headline`
    Headline,
    /// `error`
    Error,
}
