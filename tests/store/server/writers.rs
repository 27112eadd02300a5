//! PostgreSQL, when one node has it alone: two connections write, each for some recipients.

use std::time::Duration;

use amphora::store::{NewMessage, Outcome, SeaStore, Store, StoreError, StoreSettings, Write};
use sea_orm::ConnectionTrait;

use super::{Kind, ServerBed, TestServer, execute, value};
use crate::bed::*;

const WRITERS: &str = "SELECT count(*) FROM lane WHERE NOT fenced";

#[tokio::test]
async fn one_waits_and_the_other_goes_on() {
    let at = ServerBed::new(Kind::Postgres).await;
    let limit = Duration::from_millis(300);
    let settings = StoreSettings { append_limit: limit, ..at.bed.settings.clone() };
    let store = (at.bed.open)(settings).await.unwrap();
    stored(&*store, "user0", 1).await;
    let other = at.raw().await;
    execute(&other, "BEGIN; UPDATE offline_message SET size = size WHERE recipient = 'user0'")
        .await;
    // It is tried again and again, and those of its connection meanwhile come again.
    let deleted = submit(&*store, vec![delete("user0", &[1])]);
    until("unhealthy", || !store.healthy()).await;
    let (mut went_on, mut waited) = (Vec::new(), Vec::new());
    for user in (1..=16).map(|n| format!("user{n}")) {
        match run(&*store, vec![append(&user, 1)]).await.remove(0) {
            Outcome::Stored => went_on.push(user),
            outcome => {
                assert_eq!(outcome, Outcome::Retry);
                waited.push(user);
            }
        }
        assert!(!store.healthy(), "one of the two is not");
    }
    assert!(!went_on.is_empty() && !waited.is_empty(), "{went_on:?} {waited:?}");
    execute(&other, "ROLLBACK").await;
    assert_eq!(deleted.await.unwrap(), [done(1)]);
    until("healthy", || store.healthy()).await;
    // What was told is so.
    for (users, first) in [(&went_on, vec![1]), (&waited, vec![])] {
        for user in users {
            assert_eq!(ids(&*store, user).await, first);
            for id in 2..=4 {
                stored(&*store, user, id).await;
            }
            assert_eq!(ids(&*store, user).await, [first.clone(), vec![2, 3, 4]].concat());
        }
    }
    store.close().await;
}

#[tokio::test]
async fn a_job_of_many_recipients_is_answered_once_and_in_order() {
    let at = ServerBed::new(Kind::Postgres).await;
    let store = at.bed.open().await;
    let users: Vec<String> = (0..16).map(|n| format!("user{n}")).collect();
    let appends = users.iter().map(|user| append(user, 1)).collect();
    assert_eq!(run(&*store, appends).await, vec![Outcome::Stored; 16]);
    // Of every second the message is not there.
    let id = |place: usize| if place.is_multiple_of(2) { 1 } else { 2 };
    let deletes = users.iter().enumerate().map(|(place, user)| delete(user, &[id(place)]));
    let expected: Vec<Outcome> = (0..16).map(|place| done((place as u64 + 1) % 2)).collect();
    assert_eq!(run(&*store, deletes.collect()).await, expected);
    store.close().await;
    assert_eq!(run(&*store, vec![append("user0", 3), append("user1", 3)]).await, retry(2));
}

fn retry(count: usize) -> Vec<Outcome> {
    vec![Outcome::Retry; count]
}

/// Whichever of the two has done before leaves, and the other may still write.
#[tokio::test]
async fn what_is_queued_is_stored_before_the_end() {
    let at = ServerBed::new(Kind::Postgres).await;
    let store = at.bed.open().await;
    // Large ones for one of them.
    let busy = |id| {
        let stanza = vec![b'x'; 100_000].into();
        Write::Append(NewMessage { stanza, ..message("user0", id) })
    };
    let mut told: Vec<_> = (1..=200).map(|id| submit(&*store, vec![busy(id)])).collect();
    for user in (1..16).map(|n| format!("user{n}")) {
        told.push(submit(&*store, vec![append(&user, 1)]));
    }
    store.close().await;
    for told in told {
        assert_eq!(told.await.unwrap(), [Outcome::Stored]);
    }
    let store = at.bed.open().await;
    assert_eq!(count(&*store, bare("user0")).await, 200);
    store.close().await;
}

#[tokio::test]
async fn both_are_superseded_though_one_has_nothing_to_do() {
    let at = ServerBed::new(Kind::Postgres).await;
    let first = SeaStore::open(at.bed.settings.clone()).await.unwrap();
    let raw = at.raw().await;
    assert_eq!(value::<i64>(&raw, WRITERS).await, 2);
    let second = SeaStore::open(at.bed.settings.clone()).await.unwrap();
    assert_eq!(value::<i64>(&raw, WRITERS).await, 2);
    assert_eq!(run(&first, vec![append("user0", 1)]).await, [Outcome::Retry]);
    // Its end waits for both.
    first.superseded().await;
    for user in (0..16).map(|n| format!("user{n}")) {
        assert_eq!(run(&first, vec![append(&user, 1)]).await, [Outcome::Retry]);
        assert_eq!(run(&second, vec![append(&user, 2)]).await, [Outcome::Stored]);
    }
    first.close().await;
    second.close().await;
    assert_eq!(value::<i64>(&raw, WRITERS).await, 0);
}

/// A node that has it alone is one to those who share it, and loses all rows at once.
#[tokio::test]
async fn all_is_taken_from_a_node_that_had_it_alone() {
    let at = ServerBed::new(Kind::Postgres).await;
    let raw = at.raw().await;
    let alone = SeaStore::open(at.bed.settings.clone()).await.unwrap();
    for user in (0..16).map(|n| format!("user{n}")) {
        assert_eq!(run(&alone, vec![append(&user, 1)]).await, [Outcome::Stored]);
    }
    let settings = StoreSettings { shared: true, node: "b".to_owned(), ..at.bed.settings.clone() };
    let shared = SeaStore::open(settings).await.unwrap();
    let seen = shared.ownership().await.unwrap();
    let members: Vec<_> =
        seen.members.iter().map(|one| (&*one.incarnation.node, one.fenced)).collect();
    assert_eq!(members, [("amphora", false), ("b", false)]);
    shared.take(seen.shards).await.unwrap();
    assert_eq!(value::<i64>(&raw, WRITERS).await, 1);
    for user in (0..16).map(|n| format!("user{n}")) {
        assert_eq!(run(&alone, vec![append(&user, 2)]).await, [Outcome::Retry]);
        assert_eq!(run(&shared, vec![append(&user, 3)]).await, [Outcome::Stored]);
        assert_eq!(ids(&shared, &user).await, [1, 3]);
    }
    alone.superseded().await;
    shared.close().await;
    let alone = at.bed.open().await;
    assert_eq!(value::<i64>(&raw, WRITERS).await, 2);
    assert_eq!(ids(&*alone, "user0").await, [1, 3]);
    alone.close().await;
}

#[tokio::test]
async fn a_second_connection_that_is_refused_is_told_and_nothing_stays_held() {
    let at = ServerBed::new(Kind::Postgres).await;
    at.bed.open().await.close().await;
    let administrator = TestServer::shared(Kind::Postgres).administrator("postgres").await;
    let limit = async |limit: i32| {
        let limit = format!("ALTER DATABASE {} CONNECTION LIMIT {limit}", at.name);
        administrator.execute_unprepared(&limit).await.unwrap();
    };
    let raw = at.administrator().await;
    const EPOCH: &str = "SELECT value FROM epoch";
    let epoch: i64 = value(&raw, EPOCH).await;
    // One of the two is ours.
    limit(2).await;
    for _ in 0..3 {
        let error = SeaStore::open(at.bed.settings.clone()).await.unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        assert!(error.to_string().contains("raise max_connections"), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    assert_eq!(value::<i64>(&raw, EPOCH).await, epoch);
    limit(-1).await;
    // Another node need not wait.
    let other = StoreSettings { node: "b".to_owned(), ..at.bed.settings.clone() };
    let store = SeaStore::open(other).await.unwrap();
    assert_eq!(run(&store, vec![append("bob", 1)]).await, [Outcome::Stored]);
    store.close().await;
}
