//! Who owns which shard of the database of a server.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{NAME, create, text};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// A file has one owner, and a lock beside it: nothing of this is there.
///
/// A process of the version before may still write: what is added has a default. MySQL commits
/// each statement by itself, so each looks whether it was done.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        if backend == DbBackend::Sqlite {
            return Ok(());
        }
        create(manager, shards(backend), Vec::new()).await?;
        for (table, column) in ADDED {
            if !manager.has_column(table, column).await? {
                let mut new = ColumnDef::new(Alias::new(column));
                new.big_integer().not_null().default(0);
                let alter = Table::alter().table(Alias::new(table)).add_column(new).take();
                manager.alter_table(alter).await?;
            }
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        if manager.get_database_backend() == DbBackend::Sqlite {
            return Ok(());
        }
        for (table, column) in ADDED {
            if manager.has_column(table, column).await? {
                let alter =
                    Table::alter().table(Alias::new(table)).drop_column(Alias::new(column)).take();
                manager.alter_table(alter).await?;
            }
        }
        manager.drop_table(Table::drop().table(Shard::Table).if_exists().take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// A number that rises whenever what a lane may write changes; and how many shards the database
/// is divided by, beside the counter that all epochs come from (0: not yet).
const ADDED: [(&str, &str); 2] = [("lane", "term"), ("epoch", "shards")];

/// A row a shard. Nobody owns one of an empty owner.
fn shards(backend: DbBackend) -> TableCreateStatement {
    let mut table = Table::create();
    table
        .table(Shard::Table)
        .col(ColumnDef::new(Shard::Id).integer().not_null().primary_key())
        .col(text(backend, Shard::Owner, NAME).not_null())
        .col(ColumnDef::new(Shard::Incarnation).big_integer().not_null())
        .col(ColumnDef::new(Shard::Epoch).big_integer().not_null())
        .take()
}

#[derive(DeriveIden)]
enum Shard {
    Table,
    #[sea_orm(iden = "shard")]
    Id,
    Owner,
    Incarnation,
    Epoch,
}
