//! Which shards a database holds, of how many.

use sea_orm::entity::prelude::*;

/// The one row; none in a database that no node has opened since there are layouts.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "layout")]
pub struct Model {
    /// Always 1.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: i32,
    /// How many shards the recipients are cut into. 0: a move is under way.
    pub shards: i64,
    /// Which of them are here, as ranges; empty for none.
    pub held: String,
}

/// No relations.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
