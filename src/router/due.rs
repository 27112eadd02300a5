//! The expiry clock: finds stored messages whose `expire-at` has passed and sends them to
//! their shards, which carry the rule out (XEP-0079 section 3.3.2).
//!
//! It never reads the whole table: it asks for what is due after the last one that it saw,
//! and sleeps until the next. What a shard could not finish (no link to send a notice on)
//! is found again when the clock starts over: when a server has greeted, or after a round.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, sleep_until};

use crate::shard::{DueEvent, Input};
use crate::store::{Clock, DuePosition, PageLimit, Store, StoreError};
use crate::time::Timestamp;

use super::actor::{Route, Router};

/// Due messages that may be under way at once, so that a flood of expiries leaves room for
/// other traffic.
const UNDER_WAY: usize = 256;

/// Bytes of due messages that are read at once.
const BYTES: usize = 4 * 1024 * 1024;

/// When nothing was dealt with for so long, what is under way is not waited for: the database of
/// some recipients may be away, and the messages of others are due.
const STUCK: Duration = Duration::from_secs(5);

/// How often the clock starts over, and the longest sleep.
const ROUND: Duration = Duration::from_secs(60);

/// Runs until the channel closes.
pub async fn run_due_clock(
    store: Arc<dyn Store>,
    router: Addr<Router>,
    clock: Clock,
    events: UnboundedReceiver<DueEvent>,
) {
    let mut due = DueClock {
        store,
        router,
        clock,
        position: DuePosition::start(),
        under_way: 0,
        moved: Instant::now(),
        round: Instant::now() + ROUND,
    };
    due.run(events).await;
}

struct DueClock {
    store: Arc<dyn Store>,
    router: Addr<Router>,
    clock: Clock,
    /// All before it was sent to the shards in this round.
    position: DuePosition,
    under_way: usize,
    /// When something was last sent to the shards, or dealt with by them.
    moved: Instant,
    round: Instant,
}

impl DueClock {
    async fn run(&mut self, mut events: UnboundedReceiver<DueEvent>) {
        let mut wake = Instant::now();
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => wake = wake.min(self.hear(event)),
                    None => return,
                },
                () = sleep_until(wake) => wake = self.look().await,
            }
            while let Ok(event) = events.try_recv() {
                wake = wake.min(self.hear(event));
            }
        }
    }

    /// Takes an event; says when to look again because of it.
    fn hear(&mut self, event: DueEvent) -> Instant {
        match event {
            DueEvent::Scheduled(at) => {
                if at <= self.position.at {
                    self.position = DuePosition::before(at);
                }
                self.monotonic(at)
            }
            DueEvent::Taken => {
                self.under_way = self.under_way.saturating_sub(1);
                self.moved = Instant::now();
                // Half of the room is free again: worth a read.
                if self.under_way == UNDER_WAY / 2 { Instant::now() } else { self.round }
            }
            DueEvent::Anew => {
                self.position = DuePosition::start();
                Instant::now()
            }
        }
    }

    /// Sends what is due to its shards; says when to look again.
    async fn look(&mut self) -> Instant {
        let now = Instant::now();
        if now >= self.round {
            self.position = DuePosition::start();
            // Whatever was under way for a whole round is not any more.
            self.under_way = 0;
            self.round = now + ROUND;
        }
        match self.send_due().await {
            Ok(again) => again.min(self.round),
            Err(error) => {
                tracing::warn!("cannot look for expired messages: {error}");
                now + Duration::from_secs(5)
            }
        }
    }

    async fn send_due(&mut self) -> Result<Instant, StoreError> {
        let mut room = UNDER_WAY.saturating_sub(self.under_way);
        if room == 0 {
            if self.moved.elapsed() < STUCK {
                return Ok(self.moved + STUCK);
            }
            self.under_way = 0;
            room = UNDER_WAY;
        }
        let limit = PageLimit { rows: room, bytes: BYTES };
        let rows = self.store.due(self.position.clone(), (self.clock)(), limit).await?;
        let Some(last) = rows.last() else {
            let next = self.store.next_due(self.position.clone()).await?;
            return Ok(next.map_or(self.round, |at| self.monotonic(at)));
        };
        self.position = last.position();
        self.under_way += rows.len();
        self.moved = Instant::now();
        let inputs = rows.into_iter().map(|due| {
            let user = due.recipient;
            (user.clone(), Input::Due { user, row: due.message })
        });
        self.router.do_send(Route(inputs.collect()));
        Ok(Instant::now())
    }

    /// The moment at which the wall clock will show `at`, if nobody sets it.
    fn monotonic(&self, at: Timestamp) -> Instant {
        Instant::now() + at.since((self.clock)()).min(ROUND)
    }
}

#[cfg(test)]
mod tests {
    use actix::Actor;

    use super::*;
    use crate::store::{SeaStore, StoreSettings};

    #[actix_rt::test]
    async fn what_is_stuck_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/amphora.db", dir.path().display());
        let settings = StoreSettings::new(url);
        let clock = settings.clock.clone();
        let store = Arc::new(SeaStore::open(settings).await.unwrap());
        let now = Instant::now();
        let mut due = DueClock {
            store: store.clone(),
            router: Router::new(Vec::new()).start(),
            clock,
            position: DuePosition::start(),
            under_way: UNDER_WAY,
            moved: now,
            round: now + ROUND,
        };
        assert_eq!(due.send_due().await.unwrap(), now + STUCK);
        assert_eq!(due.under_way, UNDER_WAY, "there is no room, and it may only be slow");
        due.moved = now.checked_sub(STUCK).unwrap();
        assert_eq!(due.send_due().await.unwrap(), due.round, "nothing expires");
        assert_eq!(due.under_way, 0);
        store.close().await;
    }
}
