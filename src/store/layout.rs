//! What a database says of itself: which shards it holds, of how many. A node that would look
//! for some of them elsewhere is not let in, so that no message is lost sight of.

use entities::{epoch, layout};
use sea_orm::sea_query::OnConflict;
use sea_orm::{ActiveValue, ConnectionTrait, DbErr, EntityTrait};

use super::error::StoreError;
use crate::shard_map::ShardSet;

/// Which shards a database is to hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// How many shards there are in all.
    pub shards: u32,
    /// Which of them are in this database.
    pub held: ShardSet,
    /// Whether a database that is new may take them. Beside others that are not new it may
    /// not: their messages may belong to it.
    pub begin: bool,
}

impl Layout {
    /// All shards are in one database.
    pub fn alone(shards: u32) -> Self {
        Layout { shards, held: ShardSet::all(shards), begin: true }
    }

    fn has_all(&self) -> bool {
        self.held == ShardSet::all(self.shards)
    }

    /// For people.
    fn words(&self) -> String {
        format!("the shards {} of {}", self.held, self.shards)
    }
}

/// What a database says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// No node has ever opened it.
    New,
    /// It has been in use since before there were layouts, and had all.
    Old,
    /// A move was begun, and has not come to its end.
    Moving,
    /// This.
    Row { shards: u32, held: String },
}

pub(super) async fn look(database: &impl ConnectionTrait) -> Result<Found, DbErr> {
    Ok(match layout::Entity::find().one(database).await? {
        Some(row) if row.shards == 0 => Found::Moving,
        Some(row) => {
            Found::Row { shards: u32::try_from(row.shards).unwrap_or(u32::MAX), held: row.held }
        }
        None => match epoch::Entity::find().one(database).await? {
            Some(row) if row.value > 0 => Found::Old,
            _ => Found::New,
        },
    })
}

/// Says what the database holds from now on.
pub(super) async fn write(
    database: &impl ConnectionTrait,
    shards: u32,
    held: &ShardSet,
) -> Result<(), DbErr> {
    let row = layout::ActiveModel {
        id: ActiveValue::Set(1),
        shards: ActiveValue::Set(shards.into()),
        held: ActiveValue::Set(held.to_string()),
    };
    let over = OnConflict::column(layout::Column::Id)
        .update_columns([layout::Column::Shards, layout::Column::Held])
        .to_owned();
    layout::Entity::insert(row).on_conflict(over).exec_without_returning(database).await.map(|_| ())
}

/// Whether the row has to be written; an error: the database must not be used so.
pub(super) fn judge(found: &Found, wanted: &Layout, url: &str) -> Result<bool, StoreError> {
    let unlike =
        |has: String| StoreError::Layout { url: url.to_owned(), has, wanted: wanted.words() };
    match found {
        Found::New if wanted.begin => Ok(true),
        Found::New => Err(StoreError::New { url: url.to_owned() }),
        Found::Old if wanted.has_all() => Ok(true),
        Found::Old => Err(unlike("all shards".to_owned())),
        Found::Moving => Err(StoreError::Moving { url: url.to_owned() }),
        Found::Row { shards, held } => {
            let has_all = *held == ShardSet::all(*shards).to_string();
            match *shards == wanted.shards && *held == wanted.held.to_string() {
                true => Ok(false),
                // However they are divided, all of them are here.
                false if has_all && wanted.has_all() => Ok(true),
                false if held.is_empty() => {
                    Err(unlike("no shards, for its messages were moved elsewhere".to_owned()))
                }
                false => Err(unlike(format!("the shards {held} of {shards}"))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(shards: u32, held: &str) -> Found {
        Found::Row { shards, held: held.to_owned() }
    }

    fn part(held: &str, begin: bool) -> Layout {
        Layout { shards: 8, held: held.parse().unwrap(), begin }
    }

    #[test]
    fn what_may_be_used() {
        let all = Layout::alone(8);
        for (found, wanted, judged) in [
            (Found::New, &all, Some(true)),
            (Found::New, &part("0-3", true), Some(true)),
            (Found::New, &part("0-3", false), None),
            (Found::Old, &all, Some(true)),
            (Found::Old, &part("0-3", true), None),
            (Found::Old, &part("0-7", true), Some(true)),
            (Found::Moving, &all, None),
            (row(8, "0-7"), &all, Some(false)),
            (row(4, "0-3"), &all, Some(true)),
            (row(8, "0-3"), &part("0-3", false), Some(false)),
            // Of another number of shards these are other users.
            (row(16, "0-3"), &part("0-3", false), None),
            (row(8, "0-3"), &all, None),
            (row(8, "0-7"), &part("0-3", false), None),
            (row(8, "0-3"), &part("0-2", false), None),
            (row(8, ""), &all, None),
        ] {
            assert_eq!(judge(&found, wanted, "u").ok(), judged, "{found:?} {wanted:?}");
        }
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        let refusal = |found, wanted: &Layout| judge(&found, wanted, "u").unwrap_err().to_string();
        let unlike = refusal(row(8, "0-7"), &part("0-3", false));
        for word in ["'u'", "the shards 0-7 of 8", "the shards 0-3 of 8", "amphora move"] {
            assert!(unlike.contains(word), "{unlike}");
        }
        assert!(refusal(Found::New, &part("0-3", false)).contains("amphora move"));
        assert!(refusal(Found::Moving, &Layout::alone(8)).contains("amphora move"));
        assert!(refusal(row(8, ""), &Layout::alone(8)).contains("moved elsewhere"));
    }
}
