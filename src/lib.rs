//! Amphora, an actor-based message processor beside XMPP servers.
//!
//! `ARCHITECTURE.md` is the map: the path of a message, the layers and the
//! invariants. A file uses its own layer and those below it; `tests/tidy.rs`
//! holds the code to that.

// L0: vocabulary. No async, no I/O, no clock, no database.
pub mod ns;
pub mod shard_map;
pub mod stanza;
pub mod time;
pub mod words;
pub mod xml;

// L1: the rules of XEP-0079.
pub mod amp;

// L2: offline messages, durable.
pub mod store;

// L3: decisions, one recipient at a time.
pub mod shard;

// L4: which shard, and where it is; messages to many.
pub mod broadcast;
pub mod router;

// L5: the edges.
pub mod cluster;
pub mod control;
pub mod http;
pub mod link;

// L6: composition.
pub mod cli;
pub mod config;
pub mod node;
pub mod telemetry;
