//! Recipients of a broadcast who are not settled yet.

use sea_orm::entity::prelude::*;

/// A recipient. The row goes when it is known what became of his message.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "broadcast_recipient")]
pub struct Model {
    /// The broadcast.
    #[sea_orm(primary_key, auto_increment = false)]
    pub broadcast: i64,
    /// The place among its recipients; part of the key of his message.
    #[sea_orm(primary_key, auto_increment = false)]
    pub n: i64,
    /// The bare JID.
    pub bare: String,
}

/// No relations.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
