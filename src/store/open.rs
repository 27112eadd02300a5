//! Opening a database: its lock, its tables, its epoch, its connections.

use std::sync::Arc;

use entities::epoch;
use migration::{Migrator, MigratorTrait};
use sea_orm::sea_query::ExprTrait;
use sea_orm::{ColumnTrait, DatabaseConnection, DbErr, EntityTrait, QueryFilter};

use super::error::StoreError;
use super::fault::{self, Code};
use super::held::{Held, HeldNow};
use super::lane::Lane;
use super::layout;
use super::lock::Lock;
use super::metrics::Metrics;
use super::migrating;
use super::owner::Owner;
use super::place::{Kind, Place, Server};
use super::readers::Readers;
use super::remedy;
use super::server::{self, WriterSession};
use super::settings::StoreSettings;
use super::sqlite::{self, DatabaseFile};
use super::start::{Start, Started};
use super::writer::{OnServer, Writer};
use crate::shard_map::ShardMap;
use crate::words::MessageId;

/// An open database.
pub(super) struct Opened {
    pub(super) writer: Writer,
    /// More of them, without a connection as yet.
    pub(super) others: Vec<Writer>,
    pub(super) ready: Ready,
    /// Let go last. None: the database has the fence.
    pub(super) lock: Option<Lock>,
}

/// What the other parts of a store need to know of an open database.
pub(super) struct Ready {
    pub(super) readers: Readers,
    pub(super) held: Arc<HeldNow>,
}

/// How many connections write to the database.
///
/// One of PostgreSQL waits for its server and the disk most of its time, and another one uses that.
/// Nodes that share a database are several already. MariaDB gains little by it, and loses where few
/// wait (docs/store.md); SQLite has one that writes.
pub(super) fn writers(settings: &StoreSettings) -> u32 {
    match Place::of(&settings.url) {
        Ok(Place::Server(server)) if server.kind == Kind::Postgres && !settings.shared => 2,
        _ => 1,
    }
}

/// To be called on the runtime that will use the writer: a connection that is given back on
/// another comes back only when that one has time.
pub(super) async fn open(settings: &StoreSettings) -> Result<Opened, StoreError> {
    let url = remedy::shown(&settings.url);
    match Place::of(&settings.url) {
        Ok(Place::File(file)) => open_file(settings, url, file).await,
        Ok(Place::Server(server)) => open_server(settings, url, server).await,
        Err(reason) => Err(StoreError::Url { url, reason }),
    }
}

async fn open_file(
    settings: &StoreSettings,
    url: String,
    file: DatabaseFile,
) -> Result<Opened, StoreError> {
    if settings.shared {
        let reason = "it is a file, which nodes can't share: use a database server".to_owned();
        return Err(StoreError::Unfit { url, reason });
    }
    let lock = Lock::take(&url, &file.path)?;
    let failed = |source: DbErr| {
        let code = match fault::code(&source) {
            Some(Code::Sqlite(code)) => Some(code),
            _ => None,
        };
        let remedy = sqlite::remedy_of(code, &file.path);
        StoreError::Open { url: url.clone(), remedy, source }
    };
    let database = file.connect_writer().await.map_err(failed)?;
    migrate(&database, &url, failed).await?;
    // Before the epoch: a database that was opened once is not new.
    if is_unlike(&database, &url, settings, failed).await?
        && let Some(layout) = &settings.layout
    {
        layout::write(&database, layout.shards, &layout.held).await.map_err(failed)?;
    }
    let Some(epoch) = raise_epoch(&database).await.map_err(failed)? else {
        return Err(StoreError::EpochsUsedUp { url });
    };
    let readers = file.connect_readers(settings.readers).await.map_err(failed)?;
    let readers = Readers::of_file(readers);
    let held = HeldNow::new(Held::all(settings.shards, epoch));
    let (clock, memory) = (settings.clock.clone(), settings.memory_of_keys);
    let metrics = Metrics::of(settings.part.as_ref());
    let writer = Writer::new(database, None, epoch, held.clone(), clock, memory, metrics);
    let (others, ready) = (Vec::new(), Ready { readers, held });
    Ok(Opened { writer, others, ready, lock: Some(lock) })
}

async fn open_server(
    settings: &StoreSettings,
    url: String,
    mut server: Server,
) -> Result<Opened, StoreError> {
    if let Some(password) = &settings.password {
        server.password = Some(password.clone());
    }
    let failed = |source: DbErr| failed(&url, source);
    let WriterSession { database, session } = server.connect_writer(None).await.map_err(failed)?;
    server.check(&url, &database).await?;
    migrating::begin(&database).await.map_err(failed)?;
    migrate(&database, &url, failed).await?;
    migrating::end(&database).await.map_err(failed)?;
    let unlike = is_unlike(&database, &url, settings, failed).await?;
    let shards = ShardMap::new(settings.shards).len();
    let (node, shared) = (settings.node.as_str(), settings.shared);
    let writers = writers(settings);
    for _ in 1..writers {
        // It is made on a thread of its own, later. A server that has no room for it must say so now:
        // afterwards an epoch is used up.
        let another = server.connect_writer(None).await.map_err(failed)?;
        server::let_go(another.database).await;
    }
    let start = Start { node, session: &session, shards, writers, shared };
    let (incarnation, held) = match start.take(&server, &database).await {
        Ok(Started::Yes(incarnation, held)) => (incarnation, HeldNow::new(held)),
        Ok(Started::Alive(holder)) => return Err(StoreError::Held { url, holder }),
        Ok(Started::Divided(divided, holder)) => {
            return Err(StoreError::Divided { url, divided, shards, holder });
        }
        Ok(Started::UsedUp) => return Err(StoreError::EpochsUsedUp { url }),
        Err(error) => return Err(failed(error)),
    };
    // Not before this process may write.
    if unlike && let Some(layout) = &settings.layout {
        layout::write(&database, layout.shards, &layout.held).await.map_err(failed)?;
    }
    let owner = Owner { incarnation: incarnation.clone(), held: held.clone(), shared };
    let readers = Readers::of_server(server.clone(), settings.readers, owner);
    let readers = readers.map_err(StoreError::Thread)?;
    let (clock, memory) = (settings.clock.clone(), settings.memory_of_keys);
    let epoch = incarnation.number;
    let lane = Lane::new(database.get_database_backend(), incarnation, 0);
    let on_server = OnServer { server, lane, session };
    let metrics = Metrics::of(settings.part.as_ref());
    let writer =
        Writer::new(database, Some(on_server), epoch, held.clone(), clock, memory, metrics);
    let others = (1..writers).filter_map(|number| writer.another(number)).collect();
    Ok(Opened { writer, others, ready: Ready { readers, held }, lock: None })
}

/// A server's database can't be opened.
pub(super) fn failed(url: &str, source: DbErr) -> StoreError {
    StoreError::Open { url: url.to_owned(), remedy: server::remedy_of(&source), source }
}

/// Brings the tables up to date.
async fn migrate(
    database: &DatabaseConnection,
    url: &str,
    failed: impl Fn(DbErr) -> StoreError,
) -> Result<(), StoreError> {
    if let Some(version) = unknown_migration(database).await.map_err(&failed)? {
        return Err(StoreError::Newer { url: url.to_owned(), version });
    }
    Migrator::up(database, None).await.map_err(&failed)
}

/// Whether the database has to be told which shards it holds; an error if it is to hold others.
async fn is_unlike(
    database: &DatabaseConnection,
    url: &str,
    settings: &StoreSettings,
    failed: impl Fn(DbErr) -> StoreError,
) -> Result<bool, StoreError> {
    let Some(wanted) = &settings.layout else {
        return Ok(false);
    };
    layout::judge(&layout::look(database).await.map_err(failed)?, wanted, url)
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
