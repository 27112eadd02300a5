//! The stores: what each does, and how each fails.

mod bed;
mod conformance;
mod server;
mod sqlite;
