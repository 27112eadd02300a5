//! Several nodes that share the shards of a database and talk over NATS.

mod members;
mod nats;

pub use members::{MemberInfo, Members};
pub use nats::{Nats, NatsError, NatsSettings};
