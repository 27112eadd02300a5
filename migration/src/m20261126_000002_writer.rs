//! A node may have several connections that write, each with a row of `lane`.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// A file has no lanes. A process of the version before may still write: what is added has a
/// default, and its row is that of the first connection.
#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statement = match manager.get_database_backend() {
            DbBackend::Sqlite => return Ok(()),
            DbBackend::Postgres => {
                "ALTER TABLE lane ADD COLUMN writer integer NOT NULL DEFAULT 0, \
                 DROP CONSTRAINT lane_pkey, ADD PRIMARY KEY (node, writer)"
            }
            _ => {
                "ALTER TABLE lane ADD COLUMN writer integer NOT NULL DEFAULT 0, \
                 DROP PRIMARY KEY, ADD PRIMARY KEY (node, writer)"
            }
        };
        // One statement: MySQL does all of it or nothing, and may not have written that it did.
        if manager.has_column("lane", "writer").await? {
            return Ok(());
        }
        manager.get_connection().execute_unprepared(statement).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let statement = match manager.get_database_backend() {
            DbBackend::Sqlite => return Ok(()),
            // The key goes with its column.
            DbBackend::Postgres => "ALTER TABLE lane DROP COLUMN writer, ADD PRIMARY KEY (node)",
            _ => "ALTER TABLE lane DROP PRIMARY KEY, DROP COLUMN writer, ADD PRIMARY KEY (node)",
        };
        if !manager.has_column("lane", "writer").await? {
            return Ok(());
        }
        let database = manager.get_connection();
        database.execute_unprepared("DELETE FROM lane WHERE writer > 0").await?;
        database.execute_unprepared(statement).await.map(|_| ())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
