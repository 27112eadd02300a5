//! Which shard a recipient belongs to, and the actor that sends inputs there.

mod actor;
mod map;

pub use actor::{Everywhere, Route, Router, Settle};
pub use map::{ShardMap, hash};
