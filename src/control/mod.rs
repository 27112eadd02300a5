//! The control socket: how a command on this machine reaches the node that runs. A Unix
//! domain socket which only the node's own user can open; a line of JSON each way.

mod client;
mod drain;
mod protocol;
mod server;

pub use client::{Client, ClientError};
pub use drain::{ClusterCommand, ClusterReply, ClusterReport};
pub use protocol::{LINE, parse_cluster_command, parse_command, parse_reply, to_line};
pub use server::{Control, ControlError, serve};
