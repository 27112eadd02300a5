//! What a batch does to the tables, within one transaction.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use entities::{mark, offline_message};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, EntityTrait, QueryFilter,
    QueryOrder, QueryResult, QuerySelect, QueryTrait, Statement, TransactionTrait, Value,
};

use super::broadcast_rows;
use super::fault::{self, Fault};
use super::job::{NewMessage, Outcome};
use super::plan::{self, Round};
use super::queue::{BATCH_ROWS, Task};
use super::row;
use super::statements::{Append, Mark, Pair, Statements};
use crate::time::Timestamp;
use crate::words::{Expiry, MessageId};

/// Carries out batches in one transaction.
///
/// A statement that breaks a constraint undoes itself alone: the transaction goes on, and
/// halves of the statement are tried until the row is found. PostgreSQL needs a savepoint for
/// that before each statement.
pub(super) struct Transaction<'a> {
    pub(super) connection: &'a DatabaseTransaction,
    pub(super) statements: &'a Statements,
    /// Whether the transaction is to go on after a statement that breaks a constraint; if not,
    /// that is an error.
    pub(super) goes_on: bool,
    /// The wall time of the appends.
    pub(super) now: Timestamp,
    /// How long after its append a key is remembered.
    pub(super) memory: Duration,
    /// Where the removal of an account ended, if there may be more. A batch has one at most: it counts
    /// as many rows.
    pub(super) removed_to: &'a Cell<Option<MessageId>>,
}

impl Transaction<'_> {
    /// The outcomes of the batch, in its order, should the transaction be committed. An
    /// error: roll back.
    pub(super) async fn carry_out(&self, batch: &[&Task]) -> Result<Vec<Outcome>, DbErr> {
        let mut outcomes = vec![Outcome::Done { rows: 0 }; batch.len()];
        for round in plan::rounds(batch.iter().copied()) {
            self.carry_out_round(batch, &round, &mut outcomes).await?;
        }
        Ok(outcomes)
    }

    async fn carry_out_round(
        &self,
        batch: &[&Task],
        round: &Round,
        outcomes: &mut [Outcome],
    ) -> Result<(), DbErr> {
        let appends = round.appends.iter().filter_map(|&place| match batch[place] {
            Task::Append(message) => Some((place, message)),
            _ => None,
        });
        self.append(appends.collect(), outcomes).await?;
        for &place in &round.expiries {
            if let Task::SetExpiry { recipient, id, expiry } = batch[place] {
                outcomes[place] =
                    Outcome::Done { rows: self.set_expiry(recipient, *id, *expiry).await? };
            }
        }
        let mut pairs: Vec<Pair> = Vec::new();
        for &place in &round.deletes {
            if let Task::Delete { recipient, ids } = batch[place] {
                pairs.extend(ids.iter().map(|id| (place, &**recipient, *id)));
            }
        }
        self.delete(&pairs, outcomes).await?;
        for &place in &round.removals {
            if let Task::RemoveAccount { recipient, after, .. } = batch[place] {
                let rows = self.remove_account(recipient, *after).await?;
                outcomes[place] = Outcome::Done { rows };
            }
        }
        for &place in &round.marks {
            if let Task::PurgeMarks { first, last, .. } = batch[place] {
                let purge = self.statements.purge_marks(*first, *last);
                outcomes[place] = Outcome::Done { rows: self.execute(purge).await? };
            }
        }
        for &place in &round.broadcasts {
            if let Task::Broadcast(change) = batch[place] {
                let rows = broadcast_rows::change(self.connection, change).await?;
                outcomes[place] = Outcome::Done { rows };
            }
        }
        Ok(())
    }

    async fn append(
        &self,
        mut rows: Vec<Append<'_>>,
        outcomes: &mut [Outcome],
    ) -> Result<(), DbErr> {
        rows.retain(|(place, message)| match row::flaw(message) {
            Some(flaw) => {
                outcomes[*place] = Outcome::Refused(flaw.to_owned());
                false
            }
            None => true,
        });
        self.leave_out_known(&mut rows, outcomes).await?;
        let mut left: Vec<&[Append]> = vec![&rows];
        while let Some(rows) = left.pop() {
            let Some(&(place, message)) = rows.first() else {
                continue;
            };
            let (statement, count) = self.statements.insert(rows, self.now, self.goes_on);
            let (head, rest) = rows.split_at(count);
            left.push(rest);
            match self.insert(statement).await {
                Ok(stored) if stored == count => {
                    head.iter().for_each(|(place, _)| outcomes[*place] = Outcome::Stored);
                }
                Ok(_) => self.sort_out(head, outcomes).await?,
                Err(error) if !self.goes_on || fault::fault(&error) != Fault::Row => {
                    return Err(error);
                }
                Err(error) if count == 1 => outcomes[place] = self.refuse(message, &error).await?,
                Err(_) => {
                    let (first, second) = head.split_at(count / 2);
                    left.extend([second, first]);
                }
            }
        }
        Ok(())
    }

    /// Takes those out that may have been sent before and were.
    async fn leave_out_known(
        &self,
        rows: &mut Vec<Append<'_>>,
        outcomes: &mut [Outcome],
    ) -> Result<(), DbErr> {
        let again = rows.iter().filter(|(_, message)| message.again);
        let again: Vec<&str> = again.map(|(_, message)| &*message.key).collect();
        let mut known: HashMap<String, Option<i32>> = HashMap::new();
        for keys in again.chunks(KEYS) {
            known.extend(self.marked(keys).await?);
            known.extend(self.stored(keys).await?.into_iter().map(|row| (row.key, row.met_rule)));
        }
        rows.retain(|(place, message)| match known.get(&*message.key) {
            Some(met_rule) if message.again => {
                outcomes[*place] = already(*met_rule);
                false
            }
            _ => true,
        });
        Ok(())
    }

    /// Inserts rows, and tells how many.
    async fn insert(&self, statement: Statement) -> Result<usize, DbErr> {
        let stored = match self.backend() {
            DbBackend::Postgres if self.goes_on => {
                let savepoint = self.connection.begin().await?;
                match savepoint.execute_raw(statement).await {
                    Ok(done) => {
                        savepoint.commit().await?;
                        done.rows_affected()
                    }
                    Err(error) => {
                        savepoint.rollback().await?;
                        return Err(error);
                    }
                }
            }
            _ => self.execute(statement).await?,
        };
        Ok(usize::try_from(stored).unwrap_or(usize::MAX))
    }

    /// Finds which of the rows were inserted, and which had been before.
    async fn sort_out(&self, rows: &[Append<'_>], outcomes: &mut [Outcome]) -> Result<(), DbErr> {
        let keys: Vec<&str> = rows.iter().map(|(_, message)| &*message.key).collect();
        let mut stored: HashMap<String, Stored> = HashMap::new();
        for keys in keys.chunks(KEYS) {
            let found = self.stored(keys).await?;
            stored.extend(found.into_iter().map(|row| (row.key.clone(), row)));
        }
        let mut seen: HashSet<&str> = HashSet::new();
        for (place, message) in rows {
            let Some(row) = stored.get(&*message.key) else {
                return Err(DbErr::RecordNotFound("a key that was in conflict".to_owned()));
            };
            let mine = row.recipient == *message.recipient && row.id == message.id.0;
            outcomes[*place] = if mine && seen.insert(&message.key) {
                Outcome::Stored
            } else {
                already(row.met_rule)
            };
        }
        Ok(())
    }

    /// A row that breaks a constraint: refused, if it is not one that is there already.
    async fn refuse(&self, message: &NewMessage, error: &DbErr) -> Result<Outcome, DbErr> {
        Ok(match self.stored(&[&message.key]).await?.first() {
            Some(row) => already(row.met_rule),
            None => Outcome::Refused(error.to_string()),
        })
    }

    async fn stored(&self, keys: &[&str]) -> Result<Vec<Stored>, DbErr> {
        use offline_message::Column as C;
        let rows: Vec<(String, String, i64, Option<i32>)> = offline_message::Entity::find()
            .select_only()
            .columns([C::Key, C::Recipient, C::Id, C::MetRule])
            .filter(C::Key.is_in(keys.iter().copied()))
            .into_tuple()
            .all(self.connection)
            .await?;
        let row = |(key, recipient, id, met_rule)| Stored { key, recipient, id, met_rule };
        Ok(rows.into_iter().map(row).collect())
    }

    async fn marked(&self, keys: &[&str]) -> Result<Vec<(String, Option<i32>)>, DbErr> {
        use mark::Column as C;
        mark::Entity::find()
            .select_only()
            .columns([C::Key, C::MetRule])
            .filter(C::Key.is_in(keys.iter().copied()))
            .into_tuple()
            .all(self.connection)
            .await
    }

    async fn set_expiry(
        &self,
        recipient: &str,
        id: MessageId,
        expiry: Option<Expiry>,
    ) -> Result<u64, DbErr> {
        // One statement a message: only those have it whose rule fired, and that have another.
        use offline_message::Column as C;
        let at: Option<i64> = expiry.map(|expiry| expiry.at.as_micros());
        let rule: Option<i32> = expiry.map(|expiry| i32::from(expiry.rule));
        let update = offline_message::Entity::update_many()
            .col_expr(C::ExpiresAt, Value::from(at).into())
            .col_expr(C::ExpireRule, Value::from(rule).into())
            .filter(C::Recipient.eq(recipient))
            .filter(C::Id.eq(id.0));
        self.execute(update.build(self.backend())).await
    }

    async fn delete(&self, pairs: &[Pair<'_>], outcomes: &mut [Outcome]) -> Result<(), DbErr> {
        // Of two that delete the same message the first did it.
        let places: HashMap<(&str, i64), usize> =
            pairs.iter().rev().map(|(place, recipient, id)| ((*recipient, id.0), *place)).collect();
        let mut left = pairs;
        while !left.is_empty() {
            let (deletion, count) = self.statements.delete(left);
            left = &left[count..];
            let rows = match deletion.find {
                None => self.connection.query_all_raw(deletion.delete).await?,
                Some(find) => {
                    let rows = self.connection.query_all_raw(find).await?;
                    if !rows.is_empty() {
                        self.execute(deletion.delete).await?;
                    }
                    rows
                }
            };
            self.deleted(&rows, &places, outcomes).await?;
        }
        Ok(())
    }

    /// Counts what was deleted, and leaves marks for what was not there for long.
    async fn deleted(
        &self,
        rows: &[QueryResult],
        places: &HashMap<(&str, i64), usize>,
        outcomes: &mut [Outcome],
    ) -> Result<(), DbErr> {
        let mut marks: Vec<Mark> = Vec::new();
        for row in rows {
            let recipient: String = row.try_get_by_index(0)?;
            let id: i64 = row.try_get_by_index(1)?;
            if let Some(place) = places.get(&(&*recipient, id))
                && let Outcome::Done { rows } = &mut outcomes[*place]
            {
                *rows += 1;
            }
            // A row whose rest can't be read leaves no mark; it must be possible to delete it.
            marks.extend(self.mark(row).ok().flatten());
        }
        let mut left = &marks[..];
        while !left.is_empty() {
            let (statement, count) = self.statements.mark(left);
            left = &left[count..];
            self.execute(statement).await?;
        }
        Ok(())
    }

    /// The mark that a deleted row leaves, if its key must still be remembered.
    fn mark(&self, row: &QueryResult) -> Result<Option<Mark>, DbErr> {
        let key: String = row.try_get_by_index(2)?;
        let met_rule: Option<i32> = row.try_get_by_index(3)?;
        let appended_at = Timestamp::from_micros(row.try_get_by_index(4)?);
        let until = appended_at.checked_add(self.memory).filter(|until| *until > self.now);
        Ok(until.map(|until| Mark { key, met_rule, until: until.as_micros() }))
    }

    /// A step of it: an account may have more rows than can be deleted in a while.
    async fn remove_account(&self, recipient: &str, after: MessageId) -> Result<u64, DbErr> {
        use offline_message::Column as C;
        let last: Option<i64> = offline_message::Entity::find()
            .select_only()
            .column(C::Id)
            .filter(C::Recipient.eq(recipient))
            .filter(C::Id.gt(after.0))
            .order_by_asc(C::Id)
            .offset(BATCH_ROWS as u64 - 1)
            .limit(1)
            .into_tuple()
            .one(self.connection)
            .await?;
        self.removed_to.set(last.map(MessageId));
        let delete = offline_message::Entity::delete_many()
            .filter(C::Recipient.eq(recipient))
            .filter(C::Id.gt(after.0))
            .filter(C::Id.lte(last.unwrap_or(i64::MAX)));
        self.execute(delete.build(self.backend())).await
    }

    async fn execute(&self, statement: Statement) -> Result<u64, DbErr> {
        Ok(self.connection.execute_raw(statement).await?.rows_affected())
    }

    fn backend(&self) -> DbBackend {
        self.connection.get_database_backend()
    }
}

/// Keys that one statement looks for at most.
const KEYS: usize = 256;

/// A row, as far as it tells whose key it has.
struct Stored {
    key: String,
    recipient: String,
    id: i64,
    met_rule: Option<i32>,
}

fn already(met_rule: Option<i32>) -> Outcome {
    Outcome::Already { met_rule: met_rule.and_then(|rule| u16::try_from(rule).ok()) }
}
