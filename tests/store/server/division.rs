//! By how many shards a database is divided.

use amphora::store::{Incarnation, MoveError, Outcome, SeaStore, Store, StoreError, StoreSettings};
use amphora::words::{MessageId, ShardId};

use super::load::{shared, take};
use super::{ServerBed, execute, on_each_server, value};
use crate::bed::*;

on_each_server!(
    one_node_divides_it_anew_when_it_starts,
    nodes_that_share_it_must_agree,
    a_database_of_the_version_before_is_divided,
);

const ROWS: &str = "SELECT count(*) FROM shard";
const DIVIDED: &str = "SELECT shards FROM epoch";

async fn one_node_divides_it_anew_when_it_starts(at: ServerBed) {
    let with = |shards, node: &str| {
        let node = node.to_owned();
        SeaStore::open(StoreSettings { shards, node, ..at.bed.settings.clone() })
    };
    let raw = at.raw().await;
    let mut last = 0;
    for (n, shards) in [4_u32, 4, 3000, 1].into_iter().enumerate() {
        let store = with(shards, "a").await.unwrap();
        assert_eq!(value::<i64>(&raw, ROWS).await, i64::from(shards));
        assert_eq!(value::<i64>(&raw, DIVIDED).await, i64::from(shards));
        let owned = "SELECT count(*) FROM shard WHERE owner = 'a' AND epoch = incarnation \
                     AND incarnation = (SELECT value FROM epoch)";
        assert_eq!(value::<i64>(&raw, owned).await, i64::from(shards));
        assert!((0..shards).all(|shard| store.epoch(ShardId(shard)) > last));
        last = store.epoch(ShardId(0));
        let id = MessageId::new(last, 1).0;
        assert_eq!(run(&store, vec![append("bob", id)]).await, [Outcome::Stored]);
        assert_eq!(ids(&store, "bob").await.len(), n + 1);
        store.close().await;
    }
    // It moves none: it would read them all the same.
    let alone = with(1, "a").await.unwrap();
    let seen = alone.ownership().await.unwrap().shards;
    assert_eq!(seen[0].owner, alone.incarnation());
    let to = alone.incarnation().unwrap();
    let moves = [
        alone.take(seen).await,
        alone.give(vec![ShardId(0)], Incarnation { number: 1, ..to }).await,
    ];
    assert!(moves.iter().all(|moved| matches!(moved, Err(MoveError::Alone))), "{moves:?}");
    alone.close().await;
    // One that runs is in the way, whatever the number; one of the same name is superseded.
    let first = with(1, "a").await.unwrap();
    let held = with(2, "b").await.unwrap_err();
    assert!(matches!(held, StoreError::Held { .. }), "{held:?}");
    let next = with(2, "a").await.unwrap();
    assert_eq!(run(&first, vec![append("bob", 1 << 60)]).await, [Outcome::Retry]);
    first.superseded().await;
    assert_eq!(value::<i64>(&raw, ROWS).await, 2);
    next.close().await;
}

async fn nodes_that_share_it_must_agree(at: ServerBed) {
    let with = |shards, node: &str| SeaStore::open(StoreSettings { shards, ..shared(&at, node) });
    let a = with(4, "a").await.unwrap();
    take(&a, 0..4).await;
    let error = with(6, "b").await.unwrap_err();
    assert!(matches!(error, StoreError::Divided { divided: 4, shards: 6, .. }), "{error:?}");
    for word in ["4 shards, not 6", "node 'a'", "processor.shards = 4", "stop all others"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    // One that does not share it is refused in any case.
    let alone = StoreSettings { shared: false, shards: 4, ..shared(&at, "b") };
    let error = SeaStore::open(alone).await.unwrap_err();
    assert!(matches!(error, StoreError::Held { .. }), "{error:?}");
    assert_eq!(run(&a, vec![append("bob", 1)]).await, [Outcome::Stored]);
    let before = a.epoch(ShardId(0));
    a.close().await;

    // With nobody there it is divided anew: nobody owns a shard then.
    let b = with(6, "b").await.unwrap();
    let seen = b.ownership().await.unwrap();
    assert_eq!(seen.shards.len(), 6);
    assert!(seen.shards.iter().all(|one| one.owner.is_none() && one.epoch > before));
    take(&b, 0..6).await;
    assert_eq!(ids(&b, "bob").await, [1]);
    // One that was not seen for a while is as good as not there, and is fenced.
    let raw = at.raw().await;
    let mut c = None;
    while c.is_none() {
        execute(&raw, "UPDATE lane SET seen_at = seen_at - 3600000000 WHERE node = 'b'").await;
        c = with(2, "c").await.ok();
    }
    assert_eq!(run(&b, vec![append("bob", 2)]).await, [Outcome::Retry]);
    b.superseded().await;
    let c = c.unwrap();
    take(&c, 0..2).await;
    assert_eq!(ids(&c, "bob").await, [1]);
}

/// Its lanes are those of processes that may still run: they write until they are superseded.
async fn a_database_of_the_version_before_is_divided(at: ServerBed) {
    use migration::{Migrator, MigratorTrait};
    let raw = at.raw().await;
    Migrator::up(&raw, Some(2)).await.unwrap();
    execute(&raw, "UPDATE epoch SET value = 41").await;
    let lane = "INSERT INTO lane (node, incarnation, fenced, beat, seen_at, session, since) \
                VALUES ('amphora', 41, FALSE, 7, 0, 0, '')";
    execute(&raw, lane).await;
    Migrator::up(&raw, None).await.unwrap();
    let old = "UPDATE lane SET beat = beat + 1 WHERE node = 'amphora' AND beat = 7 AND NOT fenced";
    let written = sea_orm::ConnectionTrait::execute_unprepared(&raw, old).await.unwrap();
    assert_eq!(written.rows_affected(), 1);
    let store = at.bed.open().await;
    assert_eq!(store.epoch(ShardId(0)), 42);
    assert_eq!(value::<i64>(&raw, DIVIDED).await, 256);
    assert_eq!(value::<i64>(&raw, "SELECT count(*) FROM lane WHERE writer = 0").await, 1);
    store.close().await;
    // And back: the program before finds its tables as they were.
    Migrator::down(&raw, Some(Migrator::migrations().len() as u32 - 2)).await.unwrap();
    let plain = "INSERT INTO lane VALUES ('x', 43, FALSE, 0, 0, 0, '')";
    execute(&raw, plain).await;
    assert_eq!(value::<i64>(&raw, "SELECT value FROM epoch").await, 42);
}
