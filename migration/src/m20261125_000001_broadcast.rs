//! Broadcasts, and those of their recipients who are not settled yet.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{create, long_text, text};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Bytes of a bare JID at most.
const BARE_JID: u32 = 2047;
/// Bytes of a domain, or of an account's name, at most.
const PART: u32 = 1023;
/// Bytes of a token at most.
const TOKEN: u32 = 64;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let backend = manager.get_database_backend();
        create(manager, broadcasts(backend), Vec::new()).await?;
        let once = Index::create()
            .name("broadcast_recipient_bare")
            .table(BroadcastRecipient::Table)
            .col(BroadcastRecipient::Broadcast)
            .col(BroadcastRecipient::Bare)
            .unique()
            .take();
        create(manager, recipients(backend), vec![once]).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager
            .drop_table(Table::drop().table(BroadcastRecipient::Table).if_exists().take())
            .await?;
        manager.drop_table(Table::drop().table(Broadcast::Table).if_exists().take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

fn broadcasts(backend: DbBackend) -> TableCreateStatement {
    use Broadcast as B;
    let mut table = Table::create();
    table
        .table(B::Table)
        .col(ColumnDef::new(B::Id).big_integer().not_null().primary_key())
        .col(text(backend, B::Token, TOKEN).not_null())
        .col(text(backend, B::Host, PART).not_null())
        .col(ColumnDef::new(B::Everyone).boolean().not_null())
        .col(long_text(backend, B::Payload).not_null())
        .col(ColumnDef::new(B::ExpiresAt).big_integer().not_null())
        .col(ColumnDef::new(B::Rate).integer().not_null())
        .col(ColumnDef::new(B::State).integer().not_null())
        .col(ColumnDef::new(B::CreatedAt).big_integer().not_null())
        .col(ColumnDef::new(B::EndedAt).big_integer())
        .col(text(backend, B::CountedTo, PART));
    for count in
        [B::LastN, B::Total, B::Delivered, B::Stored, B::Discarded, B::Expired, B::Cancelled]
    {
        table.col(ColumnDef::new(count).big_integer().not_null());
    }
    table.take()
}

/// Small rows that are read in the order of the primary key: on SQLite it holds them.
fn recipients(backend: DbBackend) -> TableCreateStatement {
    use BroadcastRecipient as R;
    let mut table = Table::create();
    if backend == DbBackend::Sqlite {
        table.extra("WITHOUT ROWID");
    }
    table
        .table(R::Table)
        .col(ColumnDef::new(R::Broadcast).big_integer().not_null())
        .col(ColumnDef::new(R::N).big_integer().not_null())
        .col(text(backend, R::Bare, BARE_JID).not_null())
        .primary_key(Index::create().col(R::Broadcast).col(R::N))
        .take()
}

#[derive(DeriveIden)]
enum Broadcast {
    Table,
    Id,
    Token,
    Host,
    Everyone,
    Payload,
    ExpiresAt,
    Rate,
    State,
    CreatedAt,
    EndedAt,
    CountedTo,
    LastN,
    Total,
    Delivered,
    Stored,
    Discarded,
    Expired,
    Cancelled,
}

#[derive(DeriveIden)]
enum BroadcastRecipient {
    Table,
    Broadcast,
    N,
    Bare,
}
