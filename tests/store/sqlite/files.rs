//! What is found where the database should be.

use std::fs;

use amphora::store::{
    Incarnation, MoveError, NewMessage, Outcome, SeaStore, Store, StoreError, StoreSettings, Write,
};
use amphora::words::{MessageId, ShardId};
use migration::{Migrator, MigratorTrait};

use super::{dir, execute, file, raw, refusal, settings, value};
use crate::bed::*;

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is missing: {text}");
    }
}

#[tokio::test]
async fn a_second_store_is_refused() {
    let dir = dir();
    let first = SeaStore::open(settings(dir.path())).await.unwrap();
    let error = SeaStore::open(settings(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    says(&error.to_string(), &["another amphora", "amphora.db.lock", "amphora.db'", "stop it"]);
    first.close().await;
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
}

#[tokio::test]
async fn a_file_is_not_shared() {
    let dir = dir();
    let shared = StoreSettings { shared: true, ..settings(dir.path()) };
    says(&refusal(shared).await, &["it is a file", "use a database server"]);
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    assert!(store.incarnation().is_none());
    assert!(matches!(store.ownership().await, Err(MoveError::Alone)));
    let to = Incarnation { node: "b".into(), number: 1 };
    assert!(matches!(store.give(vec![ShardId(0)], to).await, Err(MoveError::Alone)));
    store.close().await;
}

#[tokio::test]
async fn a_store_that_is_dropped_finishes_what_it_has() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    let told = submit(&store, vec![append("bob", 1)]);
    drop(store);
    assert_eq!(told.await.unwrap(), [Outcome::Stored]);
}

#[tokio::test]
async fn a_missing_directory_or_file() {
    let dir = dir();
    let url = format!("sqlite://{}/none/amphora.db", dir.path().display());
    says(&refusal(StoreSettings::new(&url)).await, &["none/amphora.db'", "make its directory"]);
    let url = format!("sqlite://{}/amphora.db?mode=rw", dir.path().display());
    says(&refusal(StoreSettings::new(&url)).await, &["amphora.db'"]);
    assert!(!file(dir.path()).exists());
    let url = format!("sqlite:{}/a%20b.db", dir.path().display());
    SeaStore::open(StoreSettings::new(&url)).await.unwrap().close().await;
    assert!(dir.path().join("a b.db").exists());
}

#[tokio::test]
async fn no_database() {
    let dir = dir();
    fs::write(file(dir.path()), "Dear diary, ".repeat(1000)).unwrap();
    says(&refusal(settings(dir.path())).await, &["amphora.db'", "no SQLite database", "26"]);
    assert!(fs::read_to_string(file(dir.path())).unwrap().starts_with("Dear diary"));
    fs::remove_file(file(dir.path())).unwrap();
    fs::create_dir(file(dir.path())).unwrap();
    says(&refusal(settings(dir.path())).await, &["amphora.db'", "name a file"]);
}

#[tokio::test]
async fn urls_that_are_none() {
    for (url, words) in [
        ("sqlite::memory:", ["in memory", "name a file"]),
        ("sqlite:x.db?mode=ro", ["mode=rwc", "must be written"]),
        ("oracle://amphora:secret@db/amphora?password=secret", ["'oracle://db/", "sqlite:"]),
    ] {
        let text = refusal(StoreSettings::new(url)).await;
        says(&text, &words);
        assert!(!text.contains("secret"), "{text}");
    }
}

/// No user can make a file there, root neither.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_directory_that_cannot_be_written() {
    let text = refusal(StoreSettings::new("sqlite:///proc/self/amphora.db")).await;
    says(&text, &["cannot lock '/proc/self/amphora.db.lock'", "amphora.db'", "director"]);
}

#[tokio::test]
async fn a_damaged_database() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    run(&store, (1..200).map(|id| append("bob", id)).collect()).await;
    store.close().await;
    let mut bytes = fs::read(file(dir.path())).unwrap();
    // All but the file's head.
    bytes[100..].fill(0x5a);
    fs::write(file(dir.path()), &bytes).unwrap();
    says(&refusal(settings(dir.path())).await, &["amphora.db'", "damaged", "restore a backup"]);
}

#[tokio::test]
async fn a_newer_schema() {
    let dir = dir();
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
    let database = raw(dir.path()).await;
    execute(&database, "INSERT INTO seaql_migrations VALUES ('m29991231_000001_more', 0)").await;
    database.close().await.unwrap();
    let text = refusal(settings(dir.path())).await;
    says(&text, &["amphora.db'", "m29991231_000001_more", "newer amphora"]);
}

#[tokio::test]
async fn the_last_epoch() {
    let dir = dir();
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
    let database = raw(dir.path()).await;
    execute(&database, "UPDATE epoch SET value = 2097150").await;
    database.close().await.unwrap();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    assert_eq!(store.epoch(ShardId(0)), MessageId::MAX_EPOCH);
    store.close().await;
    for _ in 0..2 {
        let error = SeaStore::open(settings(dir.path())).await.unwrap_err();
        assert!(matches!(error, StoreError::EpochsUsedUp { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn migrations_go_up_and_down() {
    let dir = dir();
    fs::File::create(file(dir.path())).unwrap();
    let database = raw(dir.path()).await;
    const TABLES: &str = "SELECT count(*) FROM sqlite_master WHERE tbl_name NOT LIKE 'seaql%'";
    for _ in 0..2 {
        Migrator::up(&database, None).await.unwrap();
        assert!(value::<i64>(&database, TABLES).await > 3);
        Migrator::down(&database, None).await.unwrap();
        assert_eq!(value::<i64>(&database, TABLES).await, 0);
    }
    database.close().await.unwrap();
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
}

/// Each one costs every append; another has to be worth it. The first is the primary key's.
#[tokio::test]
async fn the_messages_have_three_indexes() {
    let dir = dir();
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
    let indexes = "SELECT group_concat(name || coalesce(' ' || substr(sql, instr(sql, ' ON ')), ''), \
                   '; ') FROM (SELECT name, sql FROM sqlite_master WHERE type = 'index' \
                   AND tbl_name = 'offline_message' ORDER BY name DESC)";
    assert_eq!(
        value::<String>(&raw(dir.path()).await, indexes).await,
        "sqlite_autoindex_offline_message_1; \
         offline_message_key  ON \"offline_message\" (\"key\"); \
         offline_message_expiry  ON \"offline_message\" (\"expires_at\", \"recipient\", \"id\") \
         WHERE \"expires_at\" IS NOT NULL"
    );
}

/// Back to the first tables, as an older program has them, and forth again.
#[tokio::test]
async fn migrations_go_back_and_forth_over_messages() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    let large = NewMessage { stanza: vec![b'x'; 512 * 1024].into(), ..message("bob", 1) };
    let writes = vec![Write::Append(large), append("b\u{1f600}b", 2), append("bob", 3)];
    assert_eq!(run(&store, writes).await, vec![Outcome::Stored; 3]);
    run(&store, vec![delete("bob", &[3])]).await;
    let before = (page(&store, "bob", 0).await, page(&store, "b\u{1f600}b", 0).await);
    store.close().await;
    let database = raw(dir.path()).await;
    let after_the_first = Migrator::migrations().len() as u32 - 1;
    for _ in 0..2 {
        Migrator::down(&database, Some(after_the_first)).await.unwrap();
        Migrator::up(&database, None).await.unwrap();
    }
    database.close().await.unwrap();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    assert_eq!((page(&store, "bob", 0).await, page(&store, "b\u{1f600}b", 0).await), before);
    assert_eq!(run(&store, vec![again("bob", 4, "bob-3")]).await, [already()]);
    store.close().await;
}

#[tokio::test]
async fn it_is_set_up_to_be_durable() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    let database = raw(dir.path()).await;
    assert_eq!(value::<String>(&database, "PRAGMA journal_mode").await, "wal");
    store.close().await;
    // The log is written into the database at the end.
    assert!(fs::metadata(dir.path().join("amphora.db-wal")).map_or(0, |wal| wal.len()) == 0);
}

#[tokio::test]
async fn rows_that_make_no_sense_are_left_out() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    run(&store, (1..=6).map(|id| append("bob", id)).collect()).await;
    let database = raw(dir.path()).await;
    for change in [
        "kind = 99 WHERE id = 1",
        "sender = x'ff' WHERE id = 2",
        "sender = CAST(x'ff' AS TEXT) WHERE id = 3",
        "met_rule = -1 WHERE id = 5",
        "size = 'large' WHERE id = 6",
    ] {
        execute(&database, &format!("UPDATE offline_message SET {change}")).await;
    }
    assert_eq!(ids(&store, "bob").await, [4]);
    let headers = async |after| {
        let headers = store.headers(bare("bob"), MessageId(after), 1).await.unwrap();
        headers.into_iter().map(|header| header.id.0).collect::<Vec<_>>()
    };
    assert_eq!(headers(0).await, [1]);
    assert_eq!(headers(1).await, [4], "those without a sender are left out");
    assert_eq!(count(&store, bare("bob")).await, 6);
    assert_eq!(run(&store, vec![delete("bob", &[1, 2, 3, 4, 5, 6])]).await, [done(6)]);
    store.close().await;
}

/// Breaks the chain of pages that hold the rest of the stanza of `mark`.
fn damage(path: &std::path::Path, mark: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    // Such a page begins with the number of the next, that of rows with their kind.
    let broken = bytes
        .chunks_mut(4096)
        .find(|page| page[..2] == [0, 0] && page.windows(mark.len()).any(|window| window == mark));
    // There is no page of this number.
    broken.unwrap()[..4].fill(0x7f);
    fs::write(path, &bytes).unwrap();
}

#[tokio::test]
async fn damaged_rows_do_not_block_the_others() {
    let dir = dir();
    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    let large = |id: i64| {
        let stanza = format!("[stanza {id}]").repeat(5000).into();
        let expiry = Some(amphora::words::Expiry { at: at(id), rule: 0 });
        Write::Append(NewMessage { stanza, expiry, ..message("bob", id) })
    };
    run(&store, (1..=5).map(large).collect()).await;
    store.close().await;
    damage(&file(dir.path()), b"[stanza 2][stanza 2]");
    damage(&file(dir.path()), b"[stanza 3][stanza 3]");

    let store = SeaStore::open(settings(dir.path())).await.unwrap();
    assert_eq!(ids(&store, "bob").await, [1, 4, 5]);
    let due = store.due(amphora::store::DuePosition::start(), at(9), ALL).await.unwrap();
    assert_eq!(due.iter().map(|due| due.message.id.0).collect::<Vec<_>>(), [1, 4, 5]);
    let outcomes =
        run(&store, vec![delete("bob", &[1, 2, 3, 4]), append("bob", 6), delete("bob", &[5])])
            .await;
    assert!(matches!(outcomes[0], Outcome::Refused(_) | Outcome::Done { .. }), "{outcomes:?}");
    assert_eq!(outcomes[1..], [Outcome::Stored, done(1)]);
    assert!(store.healthy());
    assert_eq!(ids(&store, "bob").await, [6]);
    store.close().await;
}
