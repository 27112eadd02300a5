//! Health and metrics over HTTP, for whoever watches a node.

mod health;
mod server;

pub use health::{Health, HostHealth, LinkHealth, LinkState, Snapshot, StoreHealth};
pub use server::{Http, serve};
