//! Messages that wait for their recipient.

use sea_orm::entity::prelude::*;

/// A message. Times are microseconds since the Unix epoch, UTC.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "offline_message")]
pub struct Model {
    /// The recipient's bare JID.
    #[sea_orm(primary_key, auto_increment = false)]
    pub recipient: String,
    /// The place among the recipient's messages.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i64,
    /// The key of the intercept.
    #[sea_orm(unique)]
    pub key: String,
    /// The full JID of the original sender.
    pub sender: String,
    /// The type of the stanza: 0 normal, 1 chat, 2 groupchat, 3 headline, 4 error.
    pub kind: i32,
    /// The stanza's length in bytes.
    pub size: i64,
    /// When the message first reached a server.
    pub stored_at: i64,
    /// When this row was made.
    pub appended_at: i64,
    /// Whether the recipient's archive has the message.
    pub archived: bool,
    /// When the next `expire-at` rule may fire.
    pub expires_at: Option<i64>,
    /// Which rule that is.
    pub expire_rule: Option<i32>,
    /// The rule that was met when the message was stored.
    pub met_rule: Option<i32>,
    /// The `<message/>` as received. The last column, so that what is too long for a page
    /// is read only when it is wanted.
    pub stanza: Vec<u8>,
}

/// No relations.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
