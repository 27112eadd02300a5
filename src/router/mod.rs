//! The actor that sends each input to the shard of its user, and the clock of expiries.

mod actor;
mod due;
mod place;

pub use actor::{Everywhere, Route, Router, Settle};
pub use due::run_due_clock;
pub use place::{Hold, Moved, Ownership, Place};
