//! Several nodes that share the shards of a database and talk over NATS.

pub mod machine;
mod members;
mod nats;
pub mod presence;
pub mod rendezvous;

pub use members::{MemberInfo, Members};
pub use nats::{Nats, NatsError, NatsSettings};
