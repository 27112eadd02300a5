//! The tables of the store, as sea-orm entities. Only the store uses them.

pub mod broadcast;
pub mod broadcast_recipient;
pub mod epoch;
pub mod layout;
pub mod mark;
pub mod offline_message;
