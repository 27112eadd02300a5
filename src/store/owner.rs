//! What a reader asks, so that a process hands nothing over that is not its own any more.

use std::sync::Arc;

use sea_orm::sea_query::{Alias, CaseStatement, Expr, ExprTrait, Query, SimpleExpr};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbErr};

use super::error::StoreError;
use super::held::{Held, HeldNow};
use super::lane;
use super::ownership::Incarnation;
use super::pages::failed;
use crate::words::ShardId;

/// The process that reads from a server.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    pub(super) incarnation: Incarnation,
    pub(super) held: Arc<HeldNow>,
    /// It has the database with others. If not, all shards are its own until it is fenced.
    pub(super) shared: bool,
}

/// The right to one read: a condition of its statement.
#[derive(Clone, Debug)]
pub(super) struct Right<'a> {
    owner: &'a Owner,
    claim: Claim,
}

/// What must hold of the lane, beside that it is not fenced.
#[derive(Clone, Copy, Debug)]
enum Claim {
    /// Nothing.
    Lane,
    /// The shard has been its own since this epoch.
    Shard(ShardId, u32),
    /// It holds what it held in this term.
    Term(i64),
}

impl Owner {
    /// To what one recipient has.
    pub(super) async fn right_to(
        &self,
        database: &DatabaseConnection,
        recipient: &str,
    ) -> Result<Right<'_>, StoreError> {
        if !self.shared {
            return Ok(Right { owner: self, claim: Claim::Lane });
        }
        let mut held = self.held.get();
        let shard = held.shard(recipient);
        if held.epoch(shard).is_none() {
            // It may have been given a moment ago.
            held = self.look(database).await?;
        }
        let epoch = held.epoch(shard).ok_or(StoreError::NotMine)?;
        Ok(Right { owner: self, claim: Claim::Shard(shard, epoch) })
    }

    /// To what all recipients of the shards that are held have.
    pub(super) fn right_to_all(&self, held: &Held) -> Right<'_> {
        let claim = if self.shared { Claim::Term(held.term) } else { Claim::Lane };
        Right { owner: self, claim }
    }

    /// What is held now, by the database.
    pub(super) async fn look(
        &self,
        database: &DatabaseConnection,
    ) -> Result<Arc<Held>, StoreError> {
        let shards = self.held.get().shards();
        let held = lane::held(database, &self.incarnation, shards).await.map_err(failed)?;
        self.held.learn(held.ok_or(StoreError::Fenced)?);
        Ok(self.held.get())
    }
}

impl Right<'_> {
    /// 1 as long as the claim holds, else 0.
    pub(super) fn number(&self) -> SimpleExpr {
        CaseStatement::new().case(self.condition(), 1_i64).finally(0_i64).into()
    }

    /// True as long as the claim holds.
    pub(super) fn condition(&self) -> SimpleExpr {
        let column = |table: &str, name: &str| Expr::col((Alias::new(table), Alias::new(name)));
        let [node, number] = lane::own(&self.owner.incarnation);
        let mut own = Query::select();
        own.expr(Expr::val(1))
            .from(Alias::new("lane"))
            .and_where(column("lane", "node").eq(Expr::val(node)))
            .and_where(column("lane", "incarnation").eq(Expr::val(number)))
            .and_where(column("lane", "fenced").eq(false));
        match self.claim {
            Claim::Lane => {}
            Claim::Term(term) => {
                own.and_where(column("lane", "term").eq(term));
            }
            Claim::Shard(shard, epoch) => {
                own.from(Alias::new("shard"))
                    .and_where(column("shard", "shard").eq(i64::from(shard.0)))
                    .and_where(column("shard", "owner").eq(column("lane", "node")))
                    .and_where(column("shard", "incarnation").eq(column("lane", "incarnation")))
                    .and_where(column("shard", "epoch").eq(i64::from(epoch)));
            }
        }
        Expr::exists(own.take())
    }

    /// Whether the claim still holds; asked when a statement found nothing. A claim that does not
    /// hold any more never will again.
    pub(super) async fn check(&self, database: &DatabaseConnection) -> Result<(), StoreError> {
        match self.ask(database).await.map_err(failed)? {
            true => Ok(()),
            // What was learned is of use, whatever it is; a fence is an error.
            false if self.owner.shared => match self.owner.look(database).await {
                Ok(_) => Err(StoreError::NotMine),
                Err(error) => Err(error),
            },
            false => Err(StoreError::Fenced),
        }
    }

    async fn ask(&self, database: &DatabaseConnection) -> Result<bool, DbErr> {
        let ask = Query::select().expr(self.number()).take();
        let row = database.query_one_raw(database.get_database_backend().build(&ask)).await?;
        row.map_or(Ok(false), |row| Ok(row.try_get_by_index::<i64>(0)? == 1))
    }
}
