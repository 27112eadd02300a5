//! The tables of the store, as sea-orm entities. Only the store uses them.

pub mod epoch;
pub mod mark;
pub mod offline_message;
