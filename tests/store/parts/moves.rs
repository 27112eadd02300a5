//! The shards are divided anew: a node is not let in before each message is where it is looked
//! for.

use amphora::shard_map::{ShardMap, ShardSet};
use amphora::store::{
    Broadcast, BroadcastChange, BroadcastState, BroadcastStore, Counts, Layout, Moved, NewMessage,
    Outcome, PartSettings, PartedStore, Recipient, SeaStore, Store, StoreError, StoreSettings,
    Write, move_messages,
};
use amphora::words::{Expiry, MessageId, ShardId};

use super::{open, parts, settings, sqlite};
use migration::MigratorTrait;

use crate::bed::*;
use crate::server::{Kind, ServerBed};

/// One file, and the three of different kinds.
struct Places {
    one: StoreSettings,
    three: StoreSettings,
    dir: tempfile::TempDir,
}

impl Places {
    /// The file is the first of the three, or another.
    async fn new(is_first: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let postgres = ServerBed::new(Kind::Postgres).await.bed.settings.url;
        let mariadb = ServerBed::new(Kind::MariaDb).await.bed.settings.url;
        let (a, other) = (sqlite(&dir, "a"), sqlite(&dir, "other"));
        let one = if is_first { a.clone() } else { other };
        let one = settings(&[&one]);
        Places { one, three: settings(&[&a, &postgres, &mariadb]), dir }
    }
}

fn alone(one: &StoreSettings, shards: u32) -> StoreSettings {
    StoreSettings { layout: Some(Layout::alone(shards)), ..one.clone() }
}

fn as_part(one: &StoreSettings, shards: u32) -> Vec<PartSettings> {
    let shards = ShardSet::all(shards);
    vec![PartSettings { name: "one".into(), shards, store: one.clone() }]
}

fn names() -> Vec<String> {
    (0..40).map(|n| format!("user{n}@example.org")).collect()
}

/// The `n`th message of a user, as a node of that epoch numbers it.
fn nth(user: &str, epoch: u32, n: u64) -> NewMessage {
    let id = MessageId::new(epoch, n);
    NewMessage {
        id,
        key: format!("{user}-{epoch}-{n}").into(),
        met_rule: Some(7),
        archived: n.is_multiple_of(2),
        expiry: n.is_multiple_of(3).then(|| Expiry { at: at(50), rule: 2 }),
        stanza: "\u{1f4f1}".repeat(if n == 1 { 100_000 } else { 1 }).into(),
        ..message(user, n as i64)
    }
}

async fn fill(store: &dyn Store) {
    let epoch = store.epoch(ShardId(0));
    for name in names() {
        let writes = (1..=4).map(|n| Write::Append(nth(&name, epoch, n))).collect();
        assert_eq!(run(store, writes).await, vec![Outcome::Stored; 4]);
    }
}

async fn all(store: &dyn Store) -> Vec<Vec<amphora::store::StoredMessage>> {
    let mut all = Vec::new();
    for name in names() {
        all.push(page(store, &name, 0).await);
    }
    all
}

fn refused(error: &StoreError, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "'{word}' is missing: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

/// From one to three, to another number of shards, and back: everything is there, in order, and
/// what comes after it is after it.
async fn there_and_back(places: Places) {
    let one = SeaStore::open(alone(&places.one, 8)).await.expect("opens");
    fill(&one).await;
    let before = all(&one).await;
    // It leaves a mark, which must be known wherever its user is.
    let gone = nth("user0@example.org", 9, 1);
    let (id, key) = (gone.id, gone.key.clone());
    run(&one, vec![Write::Append(gone)]).await;
    run(&one, vec![Write::Delete { recipient: bare("user0@example.org"), ids: vec![id] }]).await;
    one.close().await;

    let stays = places.three.url.contains(&places.one.url);
    if stays {
        let error = open(places.three.clone()).await.expect_err("is not divided so");
        refused(&error, &["amphora move"]);
    }
    let old = if stays { vec![] } else { vec![places.one.clone()] };
    let moved = move_messages(8, parts(&places.three), old.clone(), |_| {}).await.expect("moves");
    assert_eq!((moved.broadcasts, moved.unreadable), (0, 0));
    assert!(moved.messages > 40 && moved.messages == 4 * moved.users, "{moved:?}");

    let three = open(places.three.clone()).await.expect("opens");
    assert_eq!(all(&three).await, before);
    for name in names() {
        let shard = ShardMap::new(8).shard(&name);
        let newest = page(&three, &name, 0).await.last().expect("a message").id;
        assert!(MessageId::new(three.epoch(shard), 1) > newest, "{name}");
    }
    let again = NewMessage { again: true, key, ..nth("user0@example.org", 10, 1) };
    let known = Outcome::Already { met_rule: Some(7) };
    assert_eq!(run(&three, vec![Write::Append(again)]).await, [known]);
    three.close().await;
    let again = move_messages(8, parts(&places.three), old, |_| {}).await.expect("moves nothing");
    assert_eq!(again, Moved::default());

    // Alone, the old one would not see the others'.
    let error = SeaStore::open(alone(&places.one, 8)).await.expect_err("is not alone");
    refused(&error, &["amphora move"]);
    if stays {
        // It would be left with its own.
        let error = move_messages(8, as_part(&places.one, 8), vec![], |_| {}).await;
        refused(&error.expect_err("others are missing"), &["holds shard", "--from"]);
    }
    let old = parts(&places.three).into_iter().map(|part| part.store);
    let old = old.filter(|part| part.url != places.one.url).collect();
    move_messages(16, as_part(&places.one, 16), old, |_| {}).await.expect("moves back");
    let one = SeaStore::open(alone(&places.one, 16)).await.expect("opens");
    assert_eq!(all(&one).await, before);
    one.close().await;
    // Nothing is left where it was.
    let error = open(places.three.clone()).await.expect_err("holds nothing");
    refused(&error, &["amphora move"]);
    drop(places.dir);
}

#[tokio::test]
async fn from_one_that_stays_and_back() {
    there_and_back(Places::new(true).await).await;
}

#[tokio::test]
async fn from_one_that_goes_and_back() {
    there_and_back(Places::new(false).await).await;
}

#[tokio::test]
async fn another_number_of_shards() {
    let places = Places::new(true).await;
    let three = open(places.three.clone()).await.expect("all are new");
    fill(&three).await;
    let before = all(&three).await;
    three.close().await;
    let halves = || {
        let held = ["0-1", "2-6", "7-15"].map(|held| held.parse().expect("shards"));
        let parts = parts(&places.three).into_iter().zip(held);
        parts.map(|(part, shards)| PartSettings { shards, ..part }).collect::<Vec<_>>()
    };
    let error = PartedStore::open(16, halves()).await.expect_err("they are other users");
    refused(&error, &["of 8", "of 16", "amphora move"]);
    move_messages(16, halves(), vec![], |_| {}).await.expect("moves");
    let store = PartedStore::open(16, halves()).await.expect("opens");
    assert_eq!(all(&store).await, before);
    store.close().await;
}

/// One database has all, however many shards there are.
#[tokio::test]
async fn one_database_takes_any_number_of_shards() {
    let places = Places::new(true).await;
    for shards in [8, 16, 8] {
        let store = SeaStore::open(alone(&places.one, shards)).await.expect("opens");
        store.close().await;
    }
}

#[tokio::test]
async fn a_database_of_before_there_were_layouts_has_all() {
    let places = Places::new(true).await;
    // Nothing is said in it.
    let old = SeaStore::open(places.one.clone()).await.expect("opens");
    fill(&old).await;
    old.close().await;
    refused(&open(places.three.clone()).await.expect_err("has all"), &["amphora move"]);
    SeaStore::open(alone(&places.one, 8)).await.expect("opens").close().await;
}

/// Beside parts that are in use, a database with nothing in it is one that was lost.
#[tokio::test]
async fn a_part_that_is_new_is_not_let_in() {
    let places = Places::new(true).await;
    open(places.three.clone()).await.expect("all are new").close().await;
    let url = places.three.url.split(' ').next().expect("a url");
    let other = sqlite(&places.dir, "empty");
    let lost = StoreSettings { url: places.three.url.replace(url, &other), ..places.three.clone() };
    let error = open(lost).await.expect_err("is new");
    assert!(matches!(error, StoreError::New { .. }), "{error:?}");
    refused(&error, &["empty.db", "is new", "amphora move"]);
    open(places.three.clone()).await.expect("as before").close().await;
}

/// Two parts by two names of one database: the second sees the first.
#[tokio::test]
async fn two_parts_in_one_database() {
    let at = ServerBed::new(Kind::Postgres).await;
    let url = &at.bed.settings.url;
    let other = url.replace("127.0.0.1", "localhost");
    let dir = tempfile::tempdir().expect("a directory");
    migration::Migrator::up(&at.raw().await, None).await.expect("the tables");
    let error = open(settings(&[url, &other, &sqlite(&dir, "c")])).await.expect_err("twice");
    refused(&error, &["the shards 0,4-5 of 8", "the shards 1-3 of 8"]);
}

/// It is not known which messages are where: no node is let in, and the same move goes on.
#[tokio::test]
async fn a_move_that_was_cut_short_goes_on() {
    let places = Places::new(true).await;
    let one = SeaStore::open(alone(&places.one, 8)).await.expect("opens");
    fill(&one).await;
    let before = all(&one).await;
    one.close().await;
    // The database of the last part fails in the middle.
    let at = &places.three.url.split(' ').nth(2).expect("a url").replace("?sslmode=disable", "");
    let mut options = sea_orm::ConnectOptions::new(at.to_owned());
    options.max_connections(1).sqlx_logging(false);
    let raw = sea_orm::Database::connect(options).await.expect("connects");
    SeaStore::open(StoreSettings::new(at)).await.expect("opens").close().await;
    crate::server::execute(
        &raw,
        "CREATE TRIGGER full BEFORE INSERT ON offline_message FOR EACH ROW \
         IF NEW.id & 7 = 3 THEN SIGNAL SQLSTATE '22003' SET MYSQL_ERRNO = 1264; END IF",
    )
    .await;
    let error = move_messages(8, parts(&places.three), vec![], |_| {}).await.expect_err("fails");
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    for error in [
        SeaStore::open(alone(&places.one, 8)).await.expect_err("is being moved"),
        open(places.three.clone()).await.expect_err("is being moved"),
    ] {
        assert!(matches!(error, StoreError::Moving { .. }), "{error:?}");
        refused(&error, &["amphora move"]);
    }
    crate::server::execute(&raw, "DROP TRIGGER full").await;
    move_messages(8, parts(&places.three), vec![], |_| {}).await.expect("goes on");
    let three = open(places.three.clone()).await.expect("opens");
    assert_eq!(all(&three).await, before);
    three.close().await;
}

#[tokio::test]
async fn an_old_database_that_is_not_there() {
    let places = Places::new(true).await;
    let old = settings(&[&sqlite(&places.dir, "slip")]);
    let error =
        move_messages(8, as_part(&places.one, 8), vec![old], |_| {}).await.expect_err("a slip");
    refused(&error, &["slip.db", "is not there"]);
    assert!(!places.dir.path().join("slip.db").exists());
}

#[tokio::test]
async fn a_node_that_runs_is_not_moved() {
    let at = ServerBed::new(Kind::Postgres).await;
    let node = SeaStore::open(alone(&at.bed.settings, 8)).await.expect("opens");
    let mover = StoreSettings { node: "amphora/move".to_owned(), ..at.bed.settings.clone() };
    let error = move_messages(8, as_part(&mover, 8), vec![], |_| {}).await.expect_err("it lives");
    assert!(matches!(error, StoreError::Held { .. }), "{error:?}");
    assert_eq!(run(&node, vec![append("bob", 1)]).await, [Outcome::Stored]);
    node.close().await;
}

/// They are with shard 0, and go where it goes.
#[tokio::test]
async fn broadcasts_go_with_shard_0() {
    let places = Places::new(false).await;
    let one = SeaStore::open(alone(&places.one, 8)).await.expect("opens");
    let new = Broadcast {
        id: 3,
        token: "token".into(),
        host: "example.org".into(),
        everyone: true,
        payload: "<message><body>\u{1f4e3}</body></message>".into(),
        expires_at: at(5000),
        rate: 10,
        state: BroadcastState::Running,
        created_at: at(1),
        ended_at: None,
        counted_to: Some("u".into()),
        last_n: 0,
        counts: Counts::default(),
    };
    let recipients: Vec<Recipient> =
        (1..=1200).map(|n| Recipient { n, bare: format!("u{n}@example.org").into() }).collect();
    one.change(BroadcastChange::Create(new)).await.expect("a change");
    let add = BroadcastChange::Add { broadcast: 3, recipients, counted_to: None };
    one.change(add).await.expect("a change");
    let before = (one.broadcasts().await.unwrap(), one.recipients(3, 0, 5000).await.unwrap());
    one.close().await;
    let old = vec![places.one.clone()];
    let moved = move_messages(8, parts(&places.three), old, |_| {}).await.expect("moves");
    assert_eq!(moved.broadcasts, 1);
    let three = open(places.three.clone()).await.expect("opens");
    let after = (three.broadcasts().await.unwrap(), three.recipients(3, 0, 5000).await.unwrap());
    assert_eq!(after, before);
    three.close().await;
    // Where another has the number, it gets a new one.
    let other = SeaStore::open(places.one.clone()).await.expect("opens");
    assert_eq!(other.broadcasts().await.unwrap(), []);
    let own = Broadcast { token: "own".into(), ..before.0[0].clone() };
    other.change(BroadcastChange::Create(own)).await.expect("a change");
    other.close().await;
    let old = parts(&places.three).into_iter().map(|part| part.store).collect();
    move_messages(8, as_part(&places.one, 8), old, |_| {}).await.expect("moves back");
    let one = SeaStore::open(alone(&places.one, 8)).await.expect("opens");
    let all = one.broadcasts().await.unwrap();
    let known: Vec<_> = all.iter().map(|one| (one.id, &*one.token)).collect();
    assert_eq!(known, [(3, "own"), (4, "token")]);
    assert_eq!(one.recipients(4, 0, 5000).await.unwrap(), before.1);
    one.close().await;
}
