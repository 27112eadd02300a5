//! The migrations of the store, each in one transaction.
//!
//! To be run on one connection: on several, SQLite fails now and then with 'index already
//! exists'.

use sea_orm_migration::prelude::*;

pub use sea_orm_migration::MigratorTrait;

mod columns;
mod m20261122_000001_messages;
mod m20261125_000001_broadcast;
mod m20261125_000002_shard;
mod m20261125_000003_layout;
mod m20261126_000001_beat;
mod m20261126_000002_writer;

/// All migrations, in order.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_messages::Migration),
            Box::new(m20261125_000001_broadcast::Migration),
            Box::new(m20261125_000002_shard::Migration),
            Box::new(m20261125_000003_layout::Migration),
            Box::new(m20261126_000001_beat::Migration),
            Box::new(m20261126_000002_writer::Migration),
        ]
    }
}
