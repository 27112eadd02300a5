//! Broadcasts: a message to a list of users, or to all users of a host, with an end: each
//! gets it once, at once or when he comes back before it expires.
//!
//! A broadcast is a job in the store. For each recipient the interceptor is asked to send a
//! message of the host's own with the rule `drop` at `expire-at`, and answers when it is known
//! what became of it (section 5 of the intercept protocol). [`Machine`] decides, from inputs
//! and the time; [`run`] carries out what it asks for.

mod answers;
mod command;
mod commands;
mod input;
mod job;
mod machine;
mod pace;
mod payload;
mod pump;
mod task;
#[cfg(test)]
mod tests;

pub use command::{Command, Problem, ProblemKind, Reply, Report};
pub use input::{Answered, Asker, Effect, Input, Now, Settings, Write};
pub use machine::Machine;
pub use payload::{MAX_PAYLOAD, Payload, PayloadError};
pub use task::{BroadcastContext, BroadcastHandle, Inbox, run};

/// Messages of a broadcast that may be sent and not recorded as settled: what a node that is
/// killed may have to ask about again.
pub const WINDOW: usize = 64;

/// Messages a second that may be asked for at most.
pub const MAX_RATE: u32 = 1000;

/// Messages a second if nobody says otherwise: what a server of moderate size hardly notices.
pub const DEFAULT_RATE: u32 = 50;

/// Broadcasts that may be without an end at once. Another is refused.
pub const UNFINISHED: usize = 16;

/// Ended broadcasts that are remembered; the oldest goes for a new one.
pub const REMEMBERED: usize = 100;

/// Recipients that a list may have. What is beyond is refused.
pub const LIST: u64 = 1_000_000;

/// Recipients that one command may add to a list.
pub const ADD: usize = 1000;

/// How far in the future a broadcast may expire: a year. What is later is a slip.
pub const LONGEST: std::time::Duration = std::time::Duration::from_secs(366 * 24 * 3600);
