//! A database that is too slow for what comes: what waits is bounded, and nothing is lost.

use amphora::store::{NewMessage, Outcome, Run, Store, Write};
use futures::future::join_all;
use tokio::sync::oneshot;

use super::{Kind, ServerBed, execute, on_each_server};
use crate::bed::*;

on_each_server!(
    a_window_waits_for_a_slow_database,
    a_window_that_meets_a_lock_comes_again,
    what_is_beyond_the_bound_comes_again,
);

/// What one link may have under way.
const WINDOW: i64 = 1024;

/// What a store lets wait.
const MOST: i64 = 16 * WINDOW;

async fn hold(at: &ServerBed) -> sea_orm::DatabaseConnection {
    let other = at.raw().await;
    let hold = match at.kind {
        Kind::Postgres => "BEGIN; LOCK TABLE offline_message IN ACCESS EXCLUSIVE MODE",
        Kind::MariaDb => "LOCK TABLES offline_message WRITE",
    };
    execute(&other, hold).await;
    other
}

async fn let_go(at: &ServerBed, other: &sea_orm::DatabaseConnection) {
    let let_go = if at.kind == Kind::Postgres { "COMMIT" } else { "UNLOCK TABLES" };
    execute(other, let_go).await;
}

/// Appends of one user.
fn appends(user: &str, ids: std::ops::RangeInclusive<i64>) -> Vec<Write> {
    let run = Run::new();
    ids.map(|id| Write::Append(NewMessage { run: run.clone(), ..message(user, id) })).collect()
}

/// Each append a job of its own, as a link's are.
fn jobs(store: &dyn Store, appends: Vec<Write>) -> Vec<oneshot::Receiver<Vec<Outcome>>> {
    appends.into_iter().map(|append| submit(store, vec![append])).collect()
}

/// The appends of a full window wait for as long as the database takes, and all are stored: the link
/// can't send more meanwhile.
async fn a_window_waits_for_a_slow_database(at: ServerBed) {
    let store = at.bed.open().await;
    let slow = match at.kind {
        Kind::Postgres => {
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             PERFORM pg_sleep(0.3); RETURN NULL; END $$; \
             CREATE TRIGGER slow BEFORE INSERT ON offline_message \
             FOR EACH STATEMENT EXECUTE FUNCTION slow()"
        }
        Kind::MariaDb => {
            "CREATE TRIGGER slow BEFORE INSERT ON offline_message FOR EACH ROW DO SLEEP(0.001)"
        }
    };
    execute(&at.raw().await, slow).await;
    let told = jobs(&*store, appends("bob", 1..=WINDOW));
    for told in join_all(told).await {
        assert_eq!(told.unwrap(), [Outcome::Stored]);
    }
    assert!(store.healthy());
    assert_eq!(ids(&*store, "bob").await, (1..=WINDOW).collect::<Vec<_>>());
    store.close().await;
}

/// The transaction that met the lock is given up, and with it all of its recipients that waits.
async fn a_window_that_meets_a_lock_comes_again(at: ServerBed) {
    let store = at.bed.open().await;
    run(&*store, vec![append("eve", 1)]).await;
    let other = hold(&at).await;
    let told = jobs(&*store, appends("bob", 1..=WINDOW));
    until("unhealthy", || !store.healthy()).await;
    let_go(&at, &other).await;
    let mut stored = Vec::new();
    for (id, told) in (1..).zip(join_all(told).await) {
        match told.unwrap().remove(0) {
            Outcome::Stored => stored.push(id),
            outcome => assert_eq!(outcome, Outcome::Retry),
        }
    }
    assert_eq!(ids(&*store, "bob").await, stored);
    for id in (1..=WINDOW).filter(|id| !stored.contains(id)) {
        self::stored(&*store, "bob", WINDOW + id).await;
    }
    assert_eq!(ids(&*store, "bob").await.len() as i64, WINDOW);
    store.close().await;
}

/// Beyond the bound there is no waiting: the answer comes while the database is still held.
async fn what_is_beyond_the_bound_comes_again(at: ServerBed) {
    let store = at.bed.open().await;
    run(&*store, vec![append("eve", 1)]).await;
    let (taken, beyond) = (appends("bob", 1..=MOST), appends("carol", 1..=WINDOW));
    let other = hold(&at).await;
    let first = jobs(&*store, taken);
    for told in join_all(jobs(&*store, beyond)).await {
        assert_eq!(told.unwrap(), [Outcome::Retry]);
    }
    let_go(&at, &other).await;
    let first = join_all(first).await;
    let stored =
        first.iter().filter(|told| matches!(told, Ok(outcomes) if *outcomes == [Outcome::Stored]));
    assert_eq!(stored.count(), ids(&*store, "bob").await.len());
    assert!(ids(&*store, "carol").await.is_empty());
    // There is room again.
    until("healthy", || store.healthy()).await;
    self::stored(&*store, "carol", WINDOW + 1).await;
    store.close().await;
}
