//! The stores: what each does, and how each fails.

mod bed;
mod broadcast;
mod conformance;
mod parts;
mod server;
mod sqlite;
