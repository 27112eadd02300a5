//! The first tables: messages, marks, the epoch.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

use crate::columns::{NAME, create, long_bytes, text};

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
        let backend = manager.get_database_backend();
        create(manager, messages(backend), message_indexes(backend).into()).await?;
        create(manager, marks(backend), vec![mark_index()]).await?;
        create(manager, epochs(backend), Vec::new()).await?;
        if backend != DbBackend::Sqlite {
            create(manager, lanes(backend), Vec::new()).await?;
        }
        manager
            .execute(
                Query::insert()
                    .into_table(Epoch::Table)
                    .columns([Epoch::Id, Epoch::Value, Epoch::Beat])
                    .values_panic([1.into(), 0.into(), 0.into()])
                    .on_conflict(
                        OnConflict::column(Epoch::Id).do_nothing_on([Epoch::Id]).to_owned(),
                    )
                    .take(),
            )
            .await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [Lane::Table.into_iden(), Epoch::Table.into_iden(), Mark::Table.into_iden()] {
            manager.drop_table(Table::drop().table(table).if_exists().take()).await?;
        }
        let messages = Table::drop().table(OfflineMessage::Table).if_exists().take();
        manager.drop_table(messages).await
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
/// In PostgreSQL every table is such a heap, and the primary key an index beside it. In MySQL
/// the primary key holds the rows: one user's lie together, in their order, stanzas of more
/// than half a page beside them.
fn messages(backend: DbBackend) -> TableCreateStatement {
    use OfflineMessage as M;
    let mut table = Table::create();
    if backend == DbBackend::Postgres {
        // All rows come and go within days or minutes: what is gone is to be cleared away after
        // a hundredth of the table, not a fifth.
        table.extra(
            "WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 10000)",
        );
    }
    table
        .table(M::Table)
        .col(text(backend, M::Recipient, BARE_JID).not_null())
        .col(ColumnDef::new(M::Id).big_integer().not_null())
        .col(text(backend, M::Key, KEY).not_null())
        .col(text(backend, M::Sender, FULL_JID).not_null())
        .col(ColumnDef::new(M::Kind).integer().not_null())
        .col(ColumnDef::new(M::Size).big_integer().not_null())
        .col(ColumnDef::new(M::StoredAt).big_integer().not_null())
        .col(ColumnDef::new(M::AppendedAt).big_integer().not_null())
        .col(ColumnDef::new(M::Archived).boolean().not_null())
        .col(ColumnDef::new(M::ExpiresAt).big_integer())
        .col(ColumnDef::new(M::ExpireRule).integer())
        .col(ColumnDef::new(M::MetRule).integer())
        .col(long_bytes(backend, M::Stanza).not_null())
        .primary_key(Index::create().col(M::Recipient).col(M::Id))
        .take()
}

/// The index of the expiries has only rows that expire. MySQL knows no such index: there each
/// row has an entry.
fn message_indexes(backend: DbBackend) -> [IndexCreateStatement; 2] {
    use OfflineMessage as M;
    let mut expiry = Index::create()
        .name("offline_message_expiry")
        .table(M::Table)
        .col(M::ExpiresAt)
        .col(M::Recipient)
        .col(M::Id)
        .take();
    if backend != DbBackend::MySql {
        expiry.cond_where(Expr::col(M::ExpiresAt).is_not_null());
    }
    [
        Index::create().name("offline_message_key").table(M::Table).col(M::Key).unique().take(),
        expiry,
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
        .col(text(backend, Mark::Key, KEY).not_null().primary_key())
        .col(ColumnDef::new(Mark::MetRule).integer())
        .col(ColumnDef::new(Mark::Until).big_integer().not_null())
        .take()
}

fn mark_index() -> IndexCreateStatement {
    Index::create().name("mark_until").table(Mark::Table).col(Mark::Until).take()
}

/// One row, written by each transaction: in PostgreSQL its page has room for the versions.
fn epochs(backend: DbBackend) -> TableCreateStatement {
    let mut table = Table::create();
    if backend == DbBackend::Postgres {
        table.extra("WITH (fillfactor = 10)");
    }
    table
        .table(Epoch::Table)
        .col(ColumnDef::new(Epoch::Id).integer().not_null().primary_key())
        .col(ColumnDef::new(Epoch::Value).big_integer().not_null())
        .col(ColumnDef::new(Epoch::Beat).big_integer().not_null())
        .take()
}

/// A row for each node, written by each of its transactions. A file has a lock beside it instead.
fn lanes(backend: DbBackend) -> TableCreateStatement {
    let mut table = Table::create();
    if backend == DbBackend::Postgres {
        table.extra("WITH (fillfactor = 10)");
    }
    table
        .table(Lane::Table)
        .col(text(backend, Lane::Node, NAME).not_null().primary_key())
        .col(ColumnDef::new(Lane::Incarnation).big_integer().not_null())
        .col(ColumnDef::new(Lane::Fenced).boolean().not_null())
        .col(ColumnDef::new(Lane::Beat).big_integer().not_null())
        .col(ColumnDef::new(Lane::SeenAt).big_integer().not_null())
        .col(ColumnDef::new(Lane::Session).big_integer().not_null())
        .col(text(backend, Lane::Since, NAME).not_null())
        .take()
}

#[derive(DeriveIden)]
enum Lane {
    Table,
    Node,
    Incarnation,
    Fenced,
    Beat,
    SeenAt,
    Session,
    Since,
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
