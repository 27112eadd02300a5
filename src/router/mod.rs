//! Which shard a recipient belongs to, and the actor that sends inputs there.

mod actor;
mod due;
mod map;

pub use actor::{Everywhere, Route, Router, Settle};
pub use due::run_due_clock;
pub use map::{ShardMap, hash};
