//! The stores: what each does, and how each fails.

mod bed;
mod broadcast;
mod conformance;
mod server;
mod sqlite;
