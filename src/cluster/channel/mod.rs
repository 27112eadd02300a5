//! An ordered way from one node to another that loses nothing while it lives, over messages that may
//! be lost, late or doubled. Pure: what comes and the time in, what is to be sent out.
//!
//! What is put on it makes one long row of bytes, each entry behind its length. The row is cut into
//! batches, which are numbered; the receiver says up to which number it has them all, and what it
//! does not say is sent again. An entry that is larger than a batch goes in pieces.
//!
//! A way that does not get through for long enough is broken. It begins anew with the next stream,
//! which the receiver has to know before anything is put on it.

mod frame;
mod incoming;
mod outgoing;

use std::time::Duration;

pub use frame::{Frame, FrameError, HEAD, Head, Kind};
pub use incoming::{Incoming, Received};
pub use outgoing::{Outgoing, Step};

/// What a way is set to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a batch at most, without its head.
    pub batch_bytes: usize,
    /// Without progress for so long, the way is broken.
    pub patience: Duration,
}

/// Entries of a batch at most.
pub const BATCH_ENTRIES: usize = 64;

/// Bytes of a batch at most, where the server of NATS takes as much.
pub const BATCH_BYTES: usize = 64 * 1024;

/// Batches that may be sent and not confirmed: 2 MiB at most.
pub const WINDOW: usize = 32;

/// With so many batches unconfirmed, the next is sent when it is full, or when one is confirmed: what
/// comes fast goes in few batches, what comes alone does not wait.
pub const EAGER: usize = 2;

/// What is not confirmed is sent again after so long, then after twice as long, and so on.
pub const RESEND: Duration = Duration::from_millis(200);

/// Bytes that may wait behind the window. It is far more than the windows of links let wait, unless
/// there are many large hand-overs: a way with more is broken, and nothing on it counts as sent.
pub const QUEUE_BYTES: usize = 128 * 1024 * 1024;

/// Bytes of the largest entry. A server's stanza has a few MiB at most, and there is one in an
/// entry, or less than one can hold.
pub const ENTRY_BYTES: usize = 64 * 1024 * 1024;

#[cfg(test)]
mod tests;
