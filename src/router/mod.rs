//! The actor that sends each input to the shard of its user, and the clock of expiries.

mod actor;
mod book;
mod due;
mod peers;
mod place;
mod places;
mod shared;

pub use actor::{Everywhere, Route, Router, Settle};
pub use due::run_due_clock;
pub use peers::{FromPeer, HostsChanged, PeerDown, PeerForgot, PeerUp};
pub use place::{Hold, Moved, Ownership, Place};
pub use shared::Sharing;
