//! One shard: the pure state machine that decides for its recipients, one message
//! at a time, and the actor round it.
//!
//! `machine` takes an input and gives effects; it knows no clock, no database and no
//! socket. `actor` feeds it, carries its effects to the store and to the links.

mod accepted;
mod actor;
mod drain;
mod effect;
mod expire;
mod input;
mod leave;
mod machine;
mod next_hop;
mod quota;
mod recipient;
pub mod reply_to;
mod request;
mod retrieve;
mod room;
mod verdict;
pub mod wire;

pub use actor::{
    Busy, DueEvent, Inputs, Leave, LinkSender, Lost, Outbox, Parcel, ShardActor, ShardContext, Way,
};
pub use drain::ITEM_OVERHEAD;
pub use effect::{Do, Effect, HandOver, Item, Send, ToLink, Token, Verdict, WriteFor};
pub use input::{Asked, Available, Input, Intercept, Leg, Sent, Stage, Taken};
pub use leave::Left;
pub use machine::{Machine, Settings};
pub use quota::{Limits, Over, Quotas};
pub use request::{Answered, Errand, Request, Response};
pub use retrieve::{
    Answer, Ask, Asker, Found, Listed, Look, MAX_ITEMS, Refused, Retrieve, Retrieved,
};

#[cfg(test)]
mod tests;
