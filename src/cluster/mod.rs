//! Several nodes that share the shards of a database and talk over NATS.

mod channel;
mod members;

pub use members::{MemberInfo, Members};
