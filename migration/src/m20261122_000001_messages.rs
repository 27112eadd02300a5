//! The first tables: messages, marks, the epoch.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

#[derive(DeriveMigrationName)]
pub struct Migration;

/// Bytes of a bare JID at most (RFC 7622: localpart and domainpart, 1,023 each, and '@').
const BARE_JID: u32 = 2047;
/// Bytes of a full JID at most (the resourcepart: 1,023 more, and '/').
const FULL_JID: u32 = 3071;
/// Bytes of a key at most.
const KEY: u32 = 255;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(messages()).await?;
        for index in message_indexes() {
            manager.create_index(index).await?;
        }
        manager.create_table(marks(manager.get_database_backend())).await?;
        manager
            .create_index(
                Index::create().name("mark_until").table(Mark::Table).col(Mark::Until).take(),
            )
            .await?;
        manager.create_table(epochs()).await?;
        manager
            .execute(
                Query::insert()
                    .into_table(Epoch::Table)
                    .columns([Epoch::Id, Epoch::Value, Epoch::Beat])
                    .values_panic([1.into(), 0.into(), 0.into()])
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table(Epoch::Table).take()).await?;
        manager.drop_table(Table::drop().table(Mark::Table).take()).await?;
        manager.drop_table(Table::drop().table(OfflineMessage::Table).take()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}

/// On SQLite a table with rowids, though the primary key could hold the rows (WITHOUT
/// ROWID). Measured there, rows for users at random, 1,024 a transaction, microseconds of
/// processor time and bytes of log a row:
///
/// | stanza | recipients | | append | read | delete |
/// | --- | --- | --- | --- | --- | --- |
/// | 500 B | 1,000 | rowid | 30 us, 3.0 kB | 6 us | 32 us, 7.1 kB |
/// | | | without | 67 us, 9.7 kB | 5 us | 24 us, 4.3 kB |
/// | 500 B | 100,000 | rowid | 28 us, 3.2 kB | 18 us | 37 us, 8.7 kB |
/// | | | without | 84 us, 11.2 kB | 18 us | 42 us, 8.0 kB |
/// | 64 KiB | 5,000 | rowid | 332 us, 67 kB | 55 us | 171 us, 69 kB |
/// | | | without | 440 us, 73 kB | 136 us | 280 us, 69 kB |
///
/// New rows fill page after page; only the small entries of the indexes lie at random.
///
/// Texts compare by their bytes (SQLite's default): users must not merge.
fn messages() -> TableCreateStatement {
    use OfflineMessage as M;
    Table::create()
        .table(M::Table)
        .col(ColumnDef::new(M::Recipient).string_len(BARE_JID).not_null())
        .col(ColumnDef::new(M::Id).big_integer().not_null())
        .col(ColumnDef::new(M::Key).string_len(KEY).not_null())
        .col(ColumnDef::new(M::Sender).string_len(FULL_JID).not_null())
        .col(ColumnDef::new(M::Kind).integer().not_null())
        .col(ColumnDef::new(M::Size).big_integer().not_null())
        .col(ColumnDef::new(M::StoredAt).big_integer().not_null())
        .col(ColumnDef::new(M::AppendedAt).big_integer().not_null())
        .col(ColumnDef::new(M::Archived).boolean().not_null())
        .col(ColumnDef::new(M::ExpiresAt).big_integer())
        .col(ColumnDef::new(M::ExpireRule).integer())
        .col(ColumnDef::new(M::MetRule).integer())
        .col(ColumnDef::new(M::Stanza).blob().not_null())
        .primary_key(Index::create().col(M::Recipient).col(M::Id))
        .take()
}

fn message_indexes() -> [IndexCreateStatement; 2] {
    use OfflineMessage as M;
    [
        Index::create().name("offline_message_key").table(M::Table).col(M::Key).unique().take(),
        Index::create()
            .name("offline_message_expiry")
            .table(M::Table)
            .col(M::ExpiresAt)
            .col(M::Recipient)
            .col(M::Id)
            .cond_where(Expr::col(M::ExpiresAt).is_not_null())
            .take(),
    ]
}

/// Small rows that are only looked up: on SQLite the primary key holds them.
fn marks(backend: DbBackend) -> TableCreateStatement {
    let mut table = Table::create();
    if backend == DbBackend::Sqlite {
        table.extra("WITHOUT ROWID");
    }
    table
        .table(Mark::Table)
        .col(ColumnDef::new(Mark::Key).string_len(KEY).not_null().primary_key())
        .col(ColumnDef::new(Mark::MetRule).integer())
        .col(ColumnDef::new(Mark::Until).big_integer().not_null())
        .take()
}

fn epochs() -> TableCreateStatement {
    Table::create()
        .table(Epoch::Table)
        .col(ColumnDef::new(Epoch::Id).integer().not_null().primary_key())
        .col(ColumnDef::new(Epoch::Value).big_integer().not_null())
        .col(ColumnDef::new(Epoch::Beat).big_integer().not_null())
        .take()
}

#[derive(DeriveIden)]
enum OfflineMessage {
    Table,
    Recipient,
    Id,
    Key,
    Sender,
    Kind,
    Size,
    StoredAt,
    AppendedAt,
    Archived,
    ExpiresAt,
    ExpireRule,
    MetRule,
    Stanza,
}

#[derive(DeriveIden)]
enum Mark {
    Table,
    Key,
    MetRule,
    Until,
}

#[derive(DeriveIden)]
enum Epoch {
    Table,
    Id,
    Value,
    Beat,
}
