//! One XEP-0114 stream between this node and a server, and the intercept protocol on it.
//!
//! A link connects, authenticates, greets each of its hosts, and then passes what the
//! interceptors say to the router, and what the shards say to the interceptors. It decides
//! nothing but what must not depend on the recipient's state: the refusal of rules that a
//! sender may not use.

mod ask;
mod backoff;
mod counters;
mod error;
mod keep;
mod order;
mod read;
mod retrieve;
mod session;
mod speak;
mod stream;
mod window;
mod write;

pub use error::LinkError;
pub use keep::{LinkContext, LinkSettings, Redirect, Stop, run};
pub use read::{Incoming, Malformed, read};
pub use retrieve::{Request, read as read_retrieve, reply as retrieve_reply};
