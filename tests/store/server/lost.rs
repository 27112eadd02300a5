//! A server that has lost what it had committed, as after a crash that its settings do not outlive, or
//! when a replica takes over that had not got all.

use amphora::store::{Outcome, Store};

use super::faults::through_proxy;
use super::load::{node, take, user_of};
use super::proxy::Fate;
use super::{Kind, ServerBed, execute, on_each_server};
use crate::bed::*;

on_each_server!(
    a_server_that_lost_what_it_had_committed_is_written_to,
    a_node_whose_moves_were_lost_ends,
);

/// The node is the same, and has the right to write.
async fn a_server_that_lost_what_it_had_committed_is_written_to(at: ServerBed) {
    let (store, proxy) = through_proxy(&at).await;
    let raw = at.raw().await;
    let back = match at.kind {
        Kind::Postgres => "DELETE FROM beat",
        Kind::MariaDb => "UPDATE lane SET beat = beat - 3",
    };
    for id in 1..=5 {
        assert_eq!(run(&*store, vec![append("bob", id)]).await, [Outcome::Stored]);
    }
    execute(&raw, "DELETE FROM offline_message WHERE id > 2").await;
    execute(&raw, back).await;
    assert_eq!(run(&*store, vec![append("bob", 6)]).await, [Outcome::Stored]);
    assert!(store.healthy());

    // While the outcome of a commit is not known. It waits for a row, so that the other statement
    // comes before the question.
    let other = at.raw().await;
    execute(&other, "BEGIN").await;
    execute(&other, "UPDATE offline_message SET size = size WHERE id = 1").await;
    proxy.next_commit_of("bob", Fate::IsLost);
    let deleted = submit(&*store, vec![append("bob", 7), delete("bob", &[1])]);
    let watch = at.administrator().await;
    at.until_waiting(1, &watch).await;
    let goes_back = tokio::spawn(async move { execute(&raw, back).await });
    if at.kind == Kind::MariaDb {
        at.until_waiting(2, &watch).await;
    }
    execute(&other, "ROLLBACK").await;
    let outcomes = deleted.await.unwrap();
    assert!(proxy.is_idle());
    assert_eq!(outcomes, [Outcome::Retry, done(1)]);
    goes_back.await.unwrap();
    until("healthy", || store.healthy()).await;
    assert_eq!(run(&*store, vec![append("bob", 8)]).await, [Outcome::Stored]);
    assert_eq!(ids(&*store, "bob").await, [2, 6, 8]);
    store.close().await;
}

/// What it holds is not what the database says. It begins anew by that.
async fn a_node_whose_moves_were_lost_ends(at: ServerBed) {
    let store = node(&at, "a").await;
    take(&store, 0..4).await;
    let user = user_of(1);
    assert_eq!(run(&*store, vec![append(&user, 1)]).await, [Outcome::Stored]);
    execute(&at.raw().await, "UPDATE lane SET term = term - 1").await;
    assert_eq!(run(&*store, vec![append(&user, 2)]).await, [Outcome::Retry]);
    store.superseded().await;
    let store = node(&at, "a").await;
    assert_eq!(run(&*store, vec![append(&user, 3)]).await, [Outcome::Stored]);
    store.close().await;
}
