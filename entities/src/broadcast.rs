//! Messages to a list of users, or to all users of a host.

use sea_orm::entity::prelude::*;

/// A broadcast. Times are microseconds since the Unix epoch, UTC.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "broadcast")]
pub struct Model {
    /// Counts up.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// Random; part of the keys of its messages.
    pub token: String,
    /// The host that sends it, and whose users get it.
    pub host: String,
    /// Whether it is for all users of the host.
    pub everyone: bool,
    /// The inside of the message, with its type and language if it has them.
    pub payload: String,
    /// When it expires.
    pub expires_at: i64,
    /// Messages a second at most.
    pub rate: i32,
    /// 0 filling, 1 running, 2 paused, 3 cancelled, 4 done.
    pub state: i32,
    /// When it was asked for.
    pub created_at: i64,
    /// When it came to its end.
    pub ended_at: Option<i64>,
    /// The last account that was counted; none when all were.
    pub counted_to: Option<String>,
    /// The highest place that a recipient was given.
    pub last_n: i64,
    /// Recipients.
    pub total: i64,
    /// Recipients whose session got it.
    pub delivered: i64,
    /// Recipients for whom it is, or was, kept.
    pub stored: i64,
    /// Recipients who do not get it.
    pub discarded: i64,
    /// Recipients to whom it was not sent in time.
    pub expired: i64,
    /// Recipients to whom it was not sent because it was cancelled.
    pub cancelled: i64,
}

/// No relations.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
