//! Opening a database: its lock, its tables, its epoch, its connections.

use entities::epoch;
use migration::{Migrator, MigratorTrait};
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter};

use super::error::StoreError;
use super::lock::Lock;
use super::remedy;
use super::settings::StoreSettings;
use super::sqlite::{self, DatabaseFile};
use super::writer::Writer;
use crate::words::MessageId;

/// An open database.
pub(super) struct Opened {
    pub(super) writer: Writer,
    pub(super) readers: DatabaseConnection,
    pub(super) epoch: u32,
    /// Let go last.
    pub(super) lock: Lock,
}

/// To be called on the runtime that will use the writer: a connection that is given back on
/// another comes back only when that one has time.
pub(super) async fn open(settings: &StoreSettings) -> Result<Opened, StoreError> {
    let file = DatabaseFile::of(&settings.url)?;
    let url = remedy::shown(&settings.url);
    let lock = Lock::take(&url, &file.path)?;
    let failed = |source: DbErr| StoreError::Open {
        url: url.clone(),
        remedy: sqlite::remedy_of(&source, &file.path),
        source,
    };
    let database = file.connect_writer().await.map_err(failed)?;
    if let Some(version) = unknown_migration(&database).await.map_err(failed)? {
        return Err(StoreError::Newer { url, version });
    }
    Migrator::up(&database, None).await.map_err(failed)?;
    let Some(epoch) = raise_epoch(&database).await.map_err(failed)? else {
        return Err(StoreError::EpochsUsedUp { url });
    };
    let readers = file.connect_readers(settings.readers).await.map_err(failed)?;
    let writer = Writer::new(database, epoch, settings.clock.clone(), settings.memory_of_keys);
    Ok(Opened { writer, readers, epoch, lock })
}

/// The first migration that a newer version has made, if any.
async fn unknown_migration(database: &DatabaseConnection) -> Result<Option<String>, DbErr> {
    let known = Migrator::migrations();
    let applied = Migrator::get_migration_models(database).await?;
    let unknown = |version: &String| known.iter().all(|migration| migration.name() != version);
    Ok(applied.into_iter().map(|model| model.version).find(unknown))
}

/// The new epoch; none if none is left.
async fn raise_epoch(database: &DatabaseConnection) -> Result<Option<u32>, DbErr> {
    use epoch::Column as C;
    let raised = epoch::Entity::update_many()
        .col_expr(C::Value, C::Value.into_expr().add(1))
        .col_expr(C::Beat, 0.into())
        .filter(C::Value.lt(MessageId::MAX_EPOCH))
        .exec(database)
        .await?;
    if raised.rows_affected == 0 {
        return Ok(None);
    }
    let row = epoch::Entity::find().one(database).await?;
    Ok(row.and_then(|row| u32::try_from(row.value).ok()))
}
