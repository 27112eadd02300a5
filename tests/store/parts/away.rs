//! A part whose database is away: its users wait, the others do not notice.

use std::sync::Arc;

use amphora::shard_map::ShardMap;
use amphora::store::{
    DuePosition, Job, NewMessage, Outcome, PartState, PartedStore, Purged, Store, StoreError,
    StoreSettings, Write,
};
use amphora::words::{Expiry, MessageId, ShardId};

use super::{SHARDS, open, parts, settings, sqlite};
use crate::bed::*;
use crate::server::{Kind, ServerBed, TestServer};

/// Users of the three parts, by its place.
fn user(part: usize) -> String {
    let shards: [&[u32]; 3] = [&[0, 4, 5], &[1, 2, 3], &[6, 7]];
    let map = ShardMap::new(SHARDS);
    let of_part = |name: &String| shards[part].contains(&map.shard(name).0);
    (0..).map(|n| format!("user{n}@example.org")).find(of_part).expect("there is one")
}

/// A file, a server that can be killed, and another file.
struct Three {
    server: TestServer,
    settings: StoreSettings,
    _dir: tempfile::TempDir,
}

impl Three {
    async fn new(kind: Kind) -> Self {
        let start = move || TestServer::start(kind, None);
        let server = tokio::task::spawn_blocking(start).await.expect("a server");
        let dir = tempfile::tempdir().expect("a directory");
        let of_server = ServerBed::in_server(&server).await.bed.settings.url;
        let urls = [&*sqlite(&dir, "a"), &of_server, &sqlite(&dir, "c")];
        Three { settings: settings(&urls), server, _dir: dir }
    }
}

fn states(store: &PartedStore) -> Vec<PartState> {
    store.states().into_iter().map(|(_, state)| state()).collect()
}

fn expiring(user: &str, id: i64) -> Write {
    let expiry = Some(Expiry { at: at(id), rule: 0 });
    Write::Append(NewMessage { expiry, ..message(user, id) })
}

async fn due(store: &PartedStore) -> Vec<i64> {
    let due = store.due(DuePosition::start(), at(1000), ALL).await.expect("reads");
    due.iter().map(|due| due.message.id.0).collect()
}

/// All that users of parts that are well notice: nothing.
async fn serves(store: &PartedStore, part: usize, id: i64) {
    let user = user(part);
    assert_eq!(run(store, vec![expiring(&user, id)]).await, [Outcome::Stored]);
    assert!(ids(store, &user).await.contains(&id));
    assert!(store.find(bare(&user), format!("{user}-{id}").into()).await.unwrap().is_some());
    assert!(due(store).await.contains(&id));
    assert_eq!(store.next_due(DuePosition::before(at(id))).await.unwrap(), Some(at(id)));
    assert_eq!(run(store, vec![delete(&user, &[id])]).await, [done(1)]);
}

async fn a_part_is_killed_and_comes_back(kind: Kind) {
    let three = Three::new(kind).await;
    let limit = std::time::Duration::from_millis(500);
    let store = open(StoreSettings { append_limit: limit, ..three.settings.clone() }).await;
    let store = Arc::new(store.expect("opens"));
    let [a, b, c] = [0, 1, 2].map(user);
    for (user, id) in [(&a, 1), (&b, 2), (&c, 3)] {
        assert_eq!(run(&*store, vec![expiring(user, id)]).await, [Outcome::Stored]);
    }
    assert_eq!(due(&store).await, [1, 2, 3]);
    three.server.kill();
    // One of three in one job; the answer comes when the last is decided.
    let outcomes = run(&*store, vec![append(&a, 11), append(&b, 12), append(&c, 13)]).await;
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Retry, Outcome::Stored]);
    until("the part unhealthy", || states(&store)[1] == PartState::Unhealthy).await;
    assert!(!store.healthy());
    let (well, states) = (PartState::Healthy, states(&store));
    assert_eq!((&states[0], &states[2]), (&well, &well));
    serves(&store, 0, 21).await;
    serves(&store, 2, 23).await;
    assert_eq!(due(&store).await, [1, 3], "what is in the part that is away is not looked for");
    assert!(store.page(bare(&b), MessageId::ZERO, ALL).await.is_err());
    assert!(store.find(bare(&b), "key".into()).await.is_err(), "not known is not nothing");
    let purged = store.purge(Some(at(0)), at(0)).await.expect("of the others");
    assert_eq!(purged, Purged::default());
    // Writes that are always taken wait.
    let waits = submit(&*store, vec![delete(&b, &[2]), delete(&a, &[1])]);
    three.server.start_again();
    until("all well", || store.healthy()).await;
    assert_eq!(waits.await.expect("answered"), [done(1), done(1)]);
    stored(&*store, &b, 32).await;
    assert_eq!(ids(&*store, &b).await, [32]);
    assert_eq!(due(&store).await, [3]);
    store.close().await;
}

#[tokio::test]
async fn postgres_is_killed_and_comes_back() {
    a_part_is_killed_and_comes_back(Kind::Postgres).await;
}

#[tokio::test]
async fn mariadb_is_killed_and_comes_back() {
    a_part_is_killed_and_comes_back(Kind::MariaDb).await;
}

#[tokio::test]
async fn a_part_that_is_away_at_the_start_is_opened_later() {
    let three = Three::new(Kind::Postgres).await;
    let [a, b, _] = [0, 1, 2].map(user);
    let store = open(three.settings.clone()).await.expect("opens");
    assert_eq!(run(&store, vec![append(&b, 1)]).await, [Outcome::Stored]);
    let shard = ShardMap::new(SHARDS).shard(&b);
    let before = store.epoch(shard);
    store.close().await;

    three.server.kill();
    let store = open(three.settings.clone()).await.expect("opens without it");
    let state = states(&store).remove(1);
    assert!(matches!(&state, PartState::Away(why) if why.contains("127.0.0.1")), "{state:?}");
    assert!(!format!("{state:?}").contains("secret"), "{state:?}");
    serves(&store, 0, 21).await;
    serves(&store, 2, 23).await;
    assert_eq!(store.epoch(shard), 0);
    assert!(store.epoch(ShardMap::new(SHARDS).shard(&a)) > 0);
    let early = message(&b, 2);
    let of_early = early.run.clone();
    let outcomes = run(&store, vec![Write::Append(early), append(&a, 3)]).await;
    assert_eq!(outcomes, [Outcome::Retry, Outcome::Stored]);
    assert!(of_early.is_given_up());
    let page = store.page(bare(&b), MessageId::ZERO, ALL).await;
    assert!(matches!(page, Err(StoreError::Away(_))), "{page:?}");
    // The removal of an account is not forgotten, nor what comes after it.
    let removed = submit(&store, vec![remove(&b)]);
    let twice = submit(&store, vec![delete(&b, &[1])]);

    three.server.start_again();
    until("all well", || store.healthy()).await;
    assert_eq!(removed.await.expect("answered"), [done(1)]);
    assert_eq!(twice.await.expect("answered"), [done(0)]);
    assert!(store.epoch(shard) > before);
    // An id that was given before the epoch was known would come before those that are stored.
    assert_eq!(run(&store, vec![append(&b, 4)]).await, [Outcome::Retry]);
    let id = MessageId::new(store.epoch(shard), 1);
    let late = NewMessage { id, ..message(&b, 5) };
    assert_eq!(run(&store, vec![Write::Append(late)]).await, [Outcome::Stored]);
    store.close().await;
}

#[tokio::test]
async fn what_waits_for_a_part_that_never_comes_is_answered_at_the_end() {
    let three = Three::new(Kind::Postgres).await;
    open(three.settings.clone()).await.expect("opens").close().await;
    three.server.kill();
    let store = open(three.settings.clone()).await.expect("opens without it");
    let told = submit(&store, vec![remove(&user(1)), remove(&user(0))]);
    store.close().await;
    assert_eq!(told.await.expect("answered")[0], Outcome::Retry);
    assert_eq!(run(&store, vec![remove(&user(1))]).await, [Outcome::Retry]);
}

#[tokio::test]
async fn a_node_with_nothing_to_serve_does_not_start() {
    let three = Three::new(Kind::MariaDb).await;
    let alone = |settings: &StoreSettings| {
        let mut part = parts(settings).remove(1);
        part.shards = amphora::shard_map::ShardSet::all(SHARDS);
        vec![part]
    };
    let first = PartedStore::open(SHARDS, alone(&three.settings)).await.expect("opens");
    first.close().await;
    three.server.kill();
    let error = PartedStore::open(SHARDS, alone(&three.settings)).await.expect_err("is away");
    assert!(error.to_string().contains("start the database server"), "{error}");
}

/// That is a mistake or a disk that is missing, and a person has to look.
#[tokio::test]
async fn a_file_that_cannot_be_opened_stops_the_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let urls = [&*sqlite(&dir, "a"), &sqlite(&dir, "no/b"), &sqlite(&dir, "c")];
    let error = open(settings(&urls)).await.expect_err("is not there");
    assert!(error.to_string().contains("no/b.db"), "{error}");
    // Nothing is left open.
    std::fs::create_dir(dir.path().join("no")).expect("a directory");
    let error = open(settings(&urls)).await;
    error.expect("all are new, and opened").close().await;
}

#[tokio::test]
async fn a_part_taken_over_by_another_process_ends_the_node() {
    let three = Three::new(Kind::Postgres).await;
    let first = open(three.settings.clone()).await.expect("opens");
    let url = three.settings.url.split(' ').nth(1).expect("a url").to_owned();
    let other = amphora::store::SeaStore::open(StoreSettings::new(url)).await.expect("opens");
    first.superseded().await;
    first.close().await;
    other.close().await;
}

/// Jobs of all parts at once: each write is answered in its place.
#[tokio::test]
async fn jobs_for_many_parts_are_answered_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let urls = ["a", "b", "c"].map(|name| sqlite(&dir, name));
    let store = open(settings(&urls.each_ref().map(|url| &**url))).await.expect("opens");
    let names: Vec<String> = (0..60).map(|n| format!("user{n}@example.org")).collect();
    let appends = names.iter().map(|name| append(name, 1)).collect();
    assert_eq!(run(&store, appends).await, vec![Outcome::Stored; 60]);
    let deletes = names.iter().enumerate().map(|(n, name)| match n % 2 {
        0 => delete(name, &[1]),
        _ => delete(name, &[2]),
    });
    let expected: Vec<Outcome> = (0..60).map(|n| done(u64::from(n % 2 == 0))).collect();
    assert_eq!(run(&store, deletes.collect()).await, expected);
    let (tell, told) = std::sync::mpsc::channel();
    store.submit(Job { writes: vec![], done: Box::new(move |none| tell.send(none).unwrap()) });
    assert_eq!(told.recv().unwrap(), []);
    assert_eq!(store.epoch(ShardId(0)), 1);
    store.close().await;
}
