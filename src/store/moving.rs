//! Moves messages to the databases that are to have them, when the shards are divided anew.
//!
//! While it runs, each database says that its messages are being moved, and no node opens it. It
//! can be cut short at any moment and run again: a message is deleted where it was only when it
//! is where it is to be.

use entities::offline_message::{Column as C, Entity};
use entities::{broadcast, broadcast_recipient, epoch, mark};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, DatabaseConnection, DbErr, EntityTrait,
    IntoActiveModel, QueryFilter, QueryOrder, QuerySelect, Set, TransactionTrait,
};
use tokio::sync::oneshot;

use super::error::StoreError;
use super::job::{Job, NewMessage, Outcome, Run, Write};
use super::layout::{self, Found};
use super::message::{PageLimit, StoredMessage};
use super::parts::PartSettings;
use super::place::Place;
use super::sea::SeaStore;
use super::settings::StoreSettings;
use super::statements::{Mark, Statements};
use super::usage::Detail;
use super::{Store, remedy, server};
use crate::shard_map::{ShardMap, ShardSet};
use crate::words::{Bare, MessageId, ShardId};

/// Messages that are read and written at once.
const PAGE: PageLimit = PageLimit { rows: 256, bytes: 4 * 1024 * 1024 };

/// Names, marks and recipients of broadcasts that are read at once.
const MANY: u64 = 500;

/// How long a database may take for a page.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);

/// What was moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Messages.
    pub messages: u64,
    /// Users whose messages these are.
    pub users: u64,
    /// Broadcasts.
    pub broadcasts: u64,
    /// Messages that can't be read. They stay where they were, told in the log.
    pub unreadable: u64,
}

/// Brings each message into the database among `parts` that has its recipient's shard, from the
/// others and from `old` ones; broadcasts to where shard 0 is. The parts have each of the shards
/// once. No node may run on any of them. `tell` hears after each user what was moved so far.
///
/// # Errors
///
/// A database can't be had, or fails; or one that holds other shards is not among them. What was
/// moved so far is safe, and the same call goes on.
pub async fn move_messages(
    shards: u32,
    parts: Vec<PartSettings>,
    old: Vec<StoreSettings>,
    tell: impl Fn(&Moved),
) -> Result<Moved, StoreError> {
    let mut databases = Vec::new();
    let divided = |store| StoreSettings { shards, ..store };
    for part in parts {
        databases.push(Database::open(divided(part.store), Some(part.shards)).await?);
    }
    for settings in old {
        databases.push(Database::open(divided(settings), None).await?);
    }
    let moving = Moving { map: ShardMap::new(shards), databases };
    let moved = moving.run(&tell).await;
    for database in &moving.databases {
        database.store.close().await;
    }
    let moved = moved?;
    moving.settle().await?;
    Ok(moved)
}

/// A database, open for the move.
struct Database {
    url: String,
    /// What it is to have; none: nothing any more.
    shards: Option<ShardSet>,
    store: SeaStore,
    /// For what is no message.
    raw: DatabaseConnection,
    clock: super::Clock,
}

struct Moving {
    map: ShardMap,
    databases: Vec<Database>,
}

impl Database {
    async fn open(settings: StoreSettings, shards: Option<ShardSet>) -> Result<Self, StoreError> {
        let url = remedy::shown(&settings.url);
        let clock = settings.clock.clone();
        if let (None, Ok(Place::File(file))) = (&shards, Place::of(&settings.url))
            && !file.path.exists()
        {
            let reason = "its file is not there, and something is to be moved from it".to_owned();
            return Err(StoreError::Url { url, reason });
        }
        let settings = StoreSettings { layout: None, append_limit: PATIENCE, ..settings };
        let store = SeaStore::open(settings.clone()).await?;
        let raw = connect(&settings, &url).await?;
        Ok(Database { url, shards, store, raw, clock })
    }

    fn failed(&self, source: DbErr) -> StoreError {
        StoreError::Move { url: self.url.clone(), source }
    }

    async fn look(&self) -> Result<Found, StoreError> {
        layout::look(&self.raw).await.map_err(|error| self.failed(error))
    }

    async fn run(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |outcomes| {
            // Whoever asked may be gone.
            let _ = tell.send(outcomes);
        });
        self.store.submit(Job { writes, done });
        for outcome in told.await.unwrap_or_else(|_| vec![Outcome::Retry]) {
            match outcome {
                Outcome::Stored | Outcome::Already { .. } | Outcome::Done { .. } => {}
                Outcome::Retry | Outcome::NotMine => {
                    return Err(self.failed(server::silent()));
                }
                Outcome::Refused(reason) => return Err(StoreError::Refused(reason)),
            }
        }
        Ok(())
    }

    /// Whose messages are here, after `last`.
    async fn users(&self, last: &str) -> Result<Vec<String>, StoreError> {
        let users = Entity::find()
            .select_only()
            .column(C::Recipient)
            .distinct()
            .filter(C::Recipient.gt(last))
            .order_by_asc(C::Recipient)
            .limit(MANY);
        users.into_tuple().all(&self.raw).await.map_err(|error| self.failed(error))
    }
}

/// A connection beside that of the store.
async fn connect(settings: &StoreSettings, url: &str) -> Result<DatabaseConnection, StoreError> {
    let failed = |source: DbErr| StoreError::Move { url: url.to_owned(), source };
    match Place::of(&settings.url) {
        Ok(Place::File(file)) => file.connect_writer().await.map_err(failed),
        Ok(Place::Server(mut server)) => {
            if let Some(password) = &settings.password {
                server.password = Some(password.clone());
            }
            Ok(server.connect_writer(None).await.map_err(failed)?.database)
        }
        Err(reason) => Err(StoreError::Url { url: url.to_owned(), reason }),
    }
}

impl Moving {
    /// The place of the database that has a shard.
    fn place(&self, shard: ShardId) -> usize {
        let has = |database: &Database| {
            database.shards.as_ref().is_some_and(|shards| shards.contains(shard))
        };
        self.databases.iter().position(has).unwrap_or(0)
    }

    async fn run(&self, tell: &impl Fn(&Moved)) -> Result<Moved, StoreError> {
        self.check().await?;
        for database in &self.databases {
            let begun = layout::write(&database.raw, 0, &ShardSet::default()).await;
            begun.map_err(|error| database.failed(error))?;
        }
        let mut moved = Moved::default();
        for from in 0..self.databases.len() {
            self.move_from(from, &mut moved, tell).await?;
            self.copy_marks(from).await?;
            moved.broadcasts += self.move_broadcasts(from).await?;
        }
        Ok(moved)
    }

    /// Whether all that belongs to what is here is here.
    async fn check(&self) -> Result<(), StoreError> {
        let mut found = Vec::new();
        for database in &self.databases {
            found.push((database, database.look().await?));
        }
        // That was looked at when it began.
        if found.iter().any(|(_, found)| *found == Found::Moving) {
            return Ok(());
        }
        for (database, of) in &found {
            let Found::Row { shards, held } = of else { continue };
            if held.is_empty() {
                continue;
            }
            let holds = |shard: u32| {
                found.iter().any(|(_, found)| match found {
                    Found::Row { shards: of, held } => {
                        of == shards
                            && held
                                .parse::<ShardSet>()
                                .is_ok_and(|held| held.contains(ShardId(shard)))
                    }
                    _ => false,
                })
            };
            if let Some(shard) = (0..*shards).find(|shard| !holds(*shard)) {
                let (url, held, shards) = (database.url.clone(), held.clone(), *shards);
                return Err(StoreError::Missing { url, held, shards, shard });
            }
        }
        Ok(())
    }

    async fn move_from(
        &self,
        from: usize,
        moved: &mut Moved,
        tell: &impl Fn(&Moved),
    ) -> Result<(), StoreError> {
        let source = &self.databases[from];
        let mut last = String::new();
        loop {
            let users = source.users(&last).await?;
            for user in &users {
                let to = self.place(self.map.shard(user));
                if to != from {
                    self.move_user(&user.as_str().into(), source, &self.databases[to], moved)
                        .await?;
                    tell(moved);
                }
            }
            match users.into_iter().next_back() {
                Some(user) => last = user,
                None => return Ok(()),
            }
        }
    }

    async fn move_user(
        &self,
        user: &Bare,
        from: &Database,
        to: &Database,
        moved: &mut Moved,
    ) -> Result<(), StoreError> {
        let mut after = MessageId::ZERO;
        loop {
            let rows = from.store.page(user.clone(), after, PAGE).await?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            let ids: Vec<MessageId> = rows.iter().map(|row| row.id).collect();
            moved.messages += rows.len() as u64;
            to.run(rows.into_iter().map(|row| append(user, row)).collect()).await?;
            from.run(vec![Write::Delete { recipient: user.clone(), ids }]).await?;
        }
        moved.users += 1;
        moved.unreadable += from.store.usage(user.clone(), Detail::Messages).await?.all.messages;
        Ok(())
    }

    /// Whose keys these are is not known: all databases get them.
    async fn copy_marks(&self, from: usize) -> Result<(), StoreError> {
        let source = &self.databases[from];
        let now = (source.clock)().as_micros();
        let mut last = String::new();
        loop {
            let marks = mark::Entity::find()
                .filter(mark::Column::Key.gt(last.as_str()))
                .filter(mark::Column::Until.gte(now))
                .order_by_asc(mark::Column::Key)
                .limit(MANY);
            let marks = marks.all(&source.raw).await.map_err(|error| source.failed(error))?;
            let Some(end) = marks.last() else { return Ok(()) };
            last = end.key.clone();
            let to_mark = |mark: mark::Model| Mark {
                key: mark.key,
                met_rule: mark.met_rule,
                until: mark.until,
            };
            let marks: Vec<Mark> = marks.into_iter().map(to_mark).collect();
            let others = self.databases.iter().enumerate().filter(|(place, _)| *place != from);
            for (_, to) in others.filter(|(_, to)| to.shards.is_some()) {
                write_marks(&to.raw, &marks).await.map_err(|error| to.failed(error))?;
            }
        }
    }

    async fn move_broadcasts(&self, from: usize) -> Result<u64, StoreError> {
        let home = self.place(ShardId(0));
        if home == from {
            return Ok(0);
        }
        let (source, home) = (&self.databases[from], &self.databases[home]);
        let all = broadcast::Entity::find().order_by_asc(broadcast::Column::Id);
        let all = all.all(&source.raw).await.map_err(|error| source.failed(error))?;
        let mut moved = 0;
        for row in all {
            let id = row.id;
            copy_broadcast(row, source, home).await?;
            forget_broadcast(&source.raw, id).await.map_err(|error| source.failed(error))?;
            moved += 1;
        }
        Ok(moved)
    }

    /// Says in each database what it has now. The ids that will be given in one are greater
    /// than those that were moved there.
    async fn settle(&self) -> Result<(), StoreError> {
        let mut highest = 0;
        for database in &self.databases {
            let row = epoch::Entity::find().one(&database.raw).await;
            let row = row.map_err(|error| database.failed(error))?;
            highest = highest.max(row.map_or(0, |row| row.value));
        }
        for database in &self.databases {
            let raise = epoch::Entity::update_many()
                .col_expr(epoch::Column::Value, highest.into())
                .filter(epoch::Column::Value.lt(highest));
            raise.exec(&database.raw).await.map_err(|error| database.failed(error))?;
        }
        for database in &self.databases {
            let held = database.shards.clone().unwrap_or_default();
            let written = layout::write(&database.raw, self.map.len(), &held).await;
            written.map_err(|error| database.failed(error))?;
            // How it ends changes nothing.
            let _ = database.raw.clone().close().await;
        }
        Ok(())
    }
}

fn append(user: &Bare, row: StoredMessage) -> Write {
    let StoredMessage { id, key, sender, kind, stored_at, archived, expiry, met_rule, stanza } =
        row;
    Write::Append(NewMessage {
        recipient: user.clone(),
        id,
        key,
        again: false,
        run: Run::new(),
        sender,
        kind,
        stored_at,
        archived,
        expiry,
        met_rule,
        stanza,
    })
}

async fn write_marks(database: &DatabaseConnection, mut marks: &[Mark]) -> Result<(), DbErr> {
    let statements = Statements::of(database.get_database_backend());
    while !marks.is_empty() {
        let (statement, written) = statements.mark(marks);
        database.execute_raw(statement).await?;
        marks = &marks[written..];
    }
    Ok(())
}

/// Under its own number, if that is free. What an earlier try left is overwritten.
async fn copy_broadcast(
    mut row: broadcast::Model,
    from: &Database,
    to: &Database,
) -> Result<(), StoreError> {
    use broadcast_recipient::Column as R;
    let failed = |error| to.failed(error);
    let there = broadcast::Entity::find().all(&to.raw).await.map_err(failed)?;
    if let Some(before) = there.iter().find(|there| there.token == row.token) {
        forget_broadcast(&to.raw, before.id).await.map_err(failed)?;
    }
    let old = row.id;
    if there.iter().any(|there| there.id == old && there.token != row.token) {
        row.id = there.iter().map(|there| there.id).max().unwrap_or(0) + 1;
    }
    let new = row.id;
    let insert = broadcast::Entity::insert(row.into_active_model().reset_all());
    insert.exec_without_returning(&to.raw).await.map_err(failed)?;
    let mut last = 0;
    loop {
        let some = broadcast_recipient::Entity::find()
            .filter(R::Broadcast.eq(old))
            .filter(R::N.gt(last))
            .order_by_asc(R::N)
            .limit(MANY);
        let some = some.all(&from.raw).await.map_err(|error| from.failed(error))?;
        let Some(end) = some.last() else { break };
        last = end.n;
        let rows = some.into_iter().map(|recipient| {
            let mut recipient = recipient.into_active_model();
            recipient.broadcast = Set(new);
            recipient.reset_all()
        });
        let insert = broadcast_recipient::Entity::insert_many(rows);
        insert.exec_without_returning(&to.raw).await.map_err(failed)?;
    }
    Ok(())
}

async fn forget_broadcast(database: &DatabaseConnection, id: i64) -> Result<(), DbErr> {
    use broadcast_recipient::Column as R;
    let begun = database.begin().await?;
    broadcast_recipient::Entity::delete_many().filter(R::Broadcast.eq(id)).exec(&begun).await?;
    broadcast::Entity::delete_by_id(id).exec(&begun).await?;
    begun.commit().await
}
