//! Other programs at the same file.

use std::time::Duration;

use amphora::store::{NewMessage, Outcome, Run, SeaStore, Store, StoreSettings, Write};

use super::{dir, execute, raw, settings};
use crate::bed::*;

#[tokio::test]
async fn a_foreign_writer_makes_appends_wait_and_come_again() {
    let dir = dir();
    let limit = Duration::from_millis(300);
    let settings = StoreSettings { append_limit: limit, ..settings(dir.path()) };
    let store = SeaStore::open(settings).await.unwrap();
    stored(&store, "bob", 1).await;
    let foreign = raw(dir.path()).await;
    execute(&foreign, "BEGIN IMMEDIATE").await;

    let shared = Run::new();
    let of_run = |id| Write::Append(NewMessage { run: shared.clone(), ..message("bob", id) });
    let deleted = submit(&store, vec![delete("bob", &[1])]);
    let late = submit(&store, vec![of_run(2)]);
    assert_eq!(late.await.unwrap(), [Outcome::Retry]);
    assert!(shared.is_given_up());
    until("unhealthy", || !store.healthy()).await;
    // Submitted before its sender can know of the other.
    let after = submit(&store, vec![of_run(3)]);
    execute(&foreign, "ROLLBACK").await;

    assert_eq!(after.await.unwrap(), [Outcome::Retry]);
    assert_eq!(deleted.await.unwrap(), [done(1)]);
    until("healthy", || store.healthy()).await;
    stored(&store, "bob", 4).await;
    assert_eq!(ids(&store, "bob").await, [4]);
    store.close().await;
}

#[tokio::test]
async fn a_store_that_closes_while_locked_answers_all() {
    let dir = dir();
    let limit = Duration::from_millis(200);
    let settings = StoreSettings { append_limit: limit, ..settings(dir.path()) };
    let store = SeaStore::open(settings).await.unwrap();
    let foreign = raw(dir.path()).await;
    execute(&foreign, "BEGIN IMMEDIATE").await;
    let told = submit(&store, vec![append("bob", 1), delete("bob", &[1]), remove("eve")]);
    store.close().await;
    assert_eq!(told.await.unwrap(), vec![Outcome::Retry; 3]);
}

#[tokio::test]
async fn beyond_its_bound_the_queue_takes_no_appends() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    let foreign = raw(dir.path()).await;
    execute(&foreign, "BEGIN IMMEDIATE").await;
    let many = (1..=20_000).map(|id| append("bob", id)).collect();
    let many = submit(&store, many);
    let beyond = submit(&store, vec![append("eve", 1)]);
    assert_eq!(beyond.await.unwrap(), [Outcome::Retry]);
    let deleted = submit(&store, vec![delete("eve", &[1])]);
    execute(&foreign, "ROLLBACK").await;
    // However long the lock was held: all of them, or none after the first that is not.
    let many = many.await.unwrap();
    assert!(many.iter().skip_while(|o| **o == Outcome::Stored).all(|o| *o == Outcome::Retry));
    assert_eq!(deleted.await.unwrap(), [done(0)]);
    stored(&store, "eve", 2).await;
    store.close().await;
}

#[tokio::test]
async fn another_amphora_without_the_lock_file_ends_this_ones_writes() {
    let dir = dir();
    let first = SeaStore::open(settings(dir.path())).await.unwrap();
    run(&first, vec![append("bob", 1)]).await;
    std::fs::remove_file(dir.path().join("amphora.db.lock")).unwrap();
    let second = SeaStore::open(settings(dir.path())).await.unwrap();
    assert_eq!(run(&first, vec![append("bob", 2)]).await, [Outcome::Retry]);
    assert!(!first.healthy());
    assert_eq!(run(&second, vec![append("bob", 3)]).await, [Outcome::Stored]);
    assert_eq!(ids(&second, "bob").await, [1, 3]);
    second.close().await;
}
