//! Keys of messages that were deleted soon after they were stored.

use sea_orm::entity::prelude::*;

/// A key that is remembered for a while.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "mark")]
pub struct Model {
    /// The key of the intercept.
    #[sea_orm(primary_key, auto_increment = false)]
    pub key: String,
    /// The rule that was met when the message was stored.
    pub met_rule: Option<i32>,
    /// How long the key is remembered: microseconds since the Unix epoch, UTC.
    pub until: i64,
}

/// No relations.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
