//! Several nodes that share the shards of a database and talk over NATS.
//!
//! `presence` and `machine` decide who is there and who owns what, from inputs and the time;
//! `task` hears, asks the database and carries out what they ask for. `channel` is a way from one
//! node to another that loses nothing, `transport` has all of them.

mod channel;
mod keys;
pub mod machine;
mod member;
mod members;
mod nats;
pub mod presence;
pub mod rendezvous;
mod status;
mod task;
pub mod transport;

pub use member::PROTOCOL;
pub use members::{MemberInfo, Members};
pub use nats::{Nats, NatsError, NatsSettings};
pub use status::{Member, Status};
pub use task::{Cluster, ClusterContext, Home};
