//! PostgreSQL: the beats of the nodes' transactions, in a table of their own.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{NAME, create, text};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        if backend != DbBackend::Postgres {
            return Ok(());
        }
        let mut table = Table::create();
        table
            .table(Beats::Table)
            .extra("WITH (fillfactor = 50)")
            .col(text(backend, Beats::Node, NAME).not_null())
            .col(ColumnDef::new(Beats::Slot).integer().not_null())
            .col(ColumnDef::new(Beats::Beat).big_integer().not_null())
            .primary_key(Index::create().col(Beats::Node).col(Beats::Slot));
        create(manager, table, Vec::new()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Beats::Table).if_exists().take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// PostgreSQL keeps each version of a row for as long as a transaction may see it, a dump for
/// hours, and whoever looks for the row goes past all of them. So a transaction locks its node's row
/// of `lane`, which leaves no version, and writes its number to one row of many.
#[derive(DeriveIden)]
enum Beats {
    #[sea_orm(iden = "beat")]
    Table,
    Node,
    Slot,
    Beat,
}
