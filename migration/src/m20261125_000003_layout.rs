//! Which shards a database holds, of how many.

use sea_orm_migration::prelude::*;

use crate::columns::{create, long_text};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        let mut table = Table::create();
        table
            .table(Layout::Table)
            .col(ColumnDef::new(Layout::Id).integer().not_null().primary_key())
            .col(ColumnDef::new(Layout::Shards).big_integer().not_null())
            .col(long_text(backend, Layout::Held).not_null());
        create(manager, table, Vec::new()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Layout::Table).if_exists().take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

#[derive(DeriveIden)]
enum Layout {
    Table,
    Id,
    Shards,
    Held,
}
