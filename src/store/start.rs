//! A process that starts takes the right to write, and raises the epoch.

use std::time::Duration;

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, TransactionTrait};
use tokio::time::sleep;

use super::fault::{self, Fault};
use super::held::Held;
use super::lane::{self, Found};
use super::ownership::Incarnation;
use super::place::Server;
use super::server::{self, Session};
use super::{counter, shards};

/// How often a start is tried that another session is in the way of.
const TRIES: u32 = 30;

/// The pause in between.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// Which process starts, and how.
pub(super) struct Start<'a> {
    pub(super) node: &'a str,
    pub(super) session: &'a Session,
    /// How many shards there are to be.
    pub(super) shards: u32,
    /// How many connections of it are to write.
    pub(super) writers: u32,
    /// Other nodes may have the database, too.
    pub(super) shared: bool,
}

/// What came of it.
pub(super) enum Started {
    /// As this incarnation, which holds these shards.
    Yes(Incarnation, Held),
    /// Another node lives; who, for an error.
    Alive(String),
    /// It lives, and knows another number of shards: this one.
    Divided(u32, String),
    /// No epoch is left.
    UsedUp,
}

impl Start<'_> {
    /// A process of the same name is superseded at once. A node that has the database alone, or
    /// divides it anew, takes it from nodes of other names only when they were not seen for a
    /// while.
    pub(super) async fn take(
        &self,
        server: &Server,
        database: &DatabaseConnection,
    ) -> Result<Started, DbErr> {
        server::answered(self.take_at_last(server, database)).await
    }

    async fn take_at_last(
        &self,
        server: &Server,
        database: &DatabaseConnection,
    ) -> Result<Started, DbErr> {
        let mut tries = 0;
        loop {
            let found = lane::all(database).await?;
            let everything = self.takes_all(shards::count(database).await?);
            if let Some(no) = self.hindrance(&found, everything) {
                return Ok(no);
            }
            match self.try_take(database).await {
                Err(error) if is_in_the_way(&error) && tries < TRIES => {
                    tries += 1;
                    // It stands still within a transaction, or is busy: from now on it is not
                    // ours to wait for.
                    for lane in found.iter().filter(|lane| self.may_end(lane, everything.is_some()))
                    {
                        server.end(database, &lane.session).await?;
                    }
                    sleep(PAUSE).await;
                }
                taken => return taken,
            }
        }
    }

    /// Whether all shards are to be this node's, or nobody's, and by how many the database is
    /// divided now.
    fn takes_all(&self, divided: u32) -> Option<u32> {
        (!self.shared || divided != self.shards).then_some(divided)
    }

    /// Another node that lives, if all is to be taken.
    fn hindrance(&self, found: &[Found], everything: Option<u32>) -> Option<Started> {
        let divided = everything?;
        let other =
            found.iter().find(|lane| !lane.fenced && lane.node != self.node && lane.is_seen())?;
        let seen = other.age.max(0) as f64 / 1e6;
        let holder = format!("node '{}', seen {seen:.1} s ago", other.node);
        Some(match self.shared {
            true => Started::Divided(divided, holder),
            false => Started::Alive(holder),
        })
    }

    /// Whether the session of this lane may be ended for the start: it loses its right, or
    /// stands still within a transaction that moves shards.
    fn may_end(&self, lane: &Found, everything: bool) -> bool {
        !lane.fenced && (everything || lane.node == self.node || !lane.is_seen())
    }

    async fn try_take(&self, database: &DatabaseConnection) -> Result<Started, DbErr> {
        let begun = database.begin().await?;
        // One start at a time.
        let Some(epoch) = counter::next(&begun).await? else {
            begun.rollback().await?;
            return Ok(Started::UsedUp);
        };
        let found = lane::all(&begun).await?;
        let everything = self.takes_all(shards::count(&begun).await?);
        if let Some(no) = self.hindrance(&found, everything) {
            begun.rollback().await?;
            return Ok(no);
        }
        let mut fenced = Vec::new();
        for lane in &found {
            let loses = everything.is_some() || lane.node == self.node;
            if let Some(incarnation) = lane.incarnation().filter(|_| loses)
                && lane::fence(&begun, &incarnation).await?
            {
                fenced.push(incarnation);
            }
        }
        let own = Incarnation { node: self.node.to_owned(), number: epoch };
        lane::replace(&begun, &own, self.session, self.writers).await?;
        counter::raise(&begun, epoch).await?;
        let held = self.move_shards(&begun, &own, everything).await?;
        begun.commit().await?;
        for node in fenced {
            tracing::warn!(%node, "took over from a process that had not stopped");
        }
        Ok(Started::Yes(own, held))
    }

    async fn move_shards(
        &self,
        begun: &DatabaseTransaction,
        own: &Incarnation,
        everything: Option<u32>,
    ) -> Result<Held, DbErr> {
        if everything.is_some_and(|divided| divided != self.shards) {
            shards::divide(begun, self.shards, own.number).await?;
        }
        if !self.shared {
            shards::take_all(begun, own).await?;
            return Ok(Held::all(self.shards, own.number));
        }
        shards::inherit(begun, own).await?;
        let held = lane::held(begun, own, self.shards).await?;
        held.ok_or_else(|| DbErr::RecordNotFound("the lane that was made".to_owned()))
    }
}

pub(super) fn is_in_the_way(error: &DbErr) -> bool {
    matches!(fault::fault(error), Fault::Busy | Fault::Met)
}
