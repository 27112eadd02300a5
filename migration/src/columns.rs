//! Columns and tables in the words of each database.

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::DbBackend;

/// Bytes of a node's name at most (64, and what is added to it), and of a time as text.
pub(crate) const NAME: u32 = 80;

/// Makes a table and its indexes. MySQL commits each statement by itself: there a migration that
/// was cut short must be able to go on, so a table brings its indexes with it.
pub(crate) async fn create(
    manager: &SchemaManager<'_>,
    mut table: TableCreateStatement,
    indexes: Vec<IndexCreateStatement>,
) -> Result<(), DbErr> {
    if manager.get_database_backend() == DbBackend::MySql {
        table.if_not_exists().engine("InnoDB").extra("ROW_FORMAT=DYNAMIC");
        for mut index in indexes {
            table.index(&mut index);
        }
        return manager.create_table(table).await;
    }
    manager.create_table(table).await?;
    for index in indexes {
        manager.create_index(index).await?;
    }
    Ok(())
}

/// A text that is compared byte by byte: users must not merge. That is SQLite's default. In
/// PostgreSQL it is the collation "C", which is also the fastest. MySQL's binary collations let
/// blanks at the end count for nothing, and take four bytes for each letter in an index, which
/// holds 3,072: there it is bytes.
pub(crate) fn text<T: IntoIden>(backend: DbBackend, name: T, bytes: u32) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        DbBackend::Postgres => column.custom("text COLLATE \"C\""),
        DbBackend::MySql => column.var_binary(bytes),
        _ => column.string_len(bytes),
    };
    column.take()
}

/// Bytes of any length. A BLOB of MySQL ends at 64 KiB.
pub(crate) fn long_bytes<T: IntoIden>(backend: DbBackend, name: T) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        DbBackend::MySql => column.custom("longblob"),
        _ => column.blob(),
    };
    column.take()
}

/// A text of any length, which is not compared. A TEXT of MySQL ends at 64 KiB, and has the
/// letters of the database, whichever they are.
pub(crate) fn long_text<T: IntoIden>(backend: DbBackend, name: T) -> ColumnDef {
    let mut column = ColumnDef::new(name);
    match backend {
        DbBackend::MySql => column.custom("longblob"),
        _ => column.text(),
    };
    column.take()
}
