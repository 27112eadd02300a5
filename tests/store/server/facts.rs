//! What a server must have, and what is found in it.

use amphora::store::{
    DuePosition, NewMessage, Outcome, PageLimit, SeaStore, Store, StoreError, StoreSettings, Write,
};
use amphora::words::{Expiry, MessageId, ShardId};
use migration::{Migrator, MigratorTrait};

use super::{Kind, ServerBed, TestServer, execute, on_each_server, value};
use crate::bed::*;

on_each_server!(
    a_newer_schema,
    the_last_epoch,
    migrations_go_up_and_down,
    migrations_go_back_and_forth_over_messages,
    a_migration_that_was_cut_short_goes_on,
    what_cannot_be_opened_says_what_to_do_and_no_password,
    the_session_that_writes_is_set_up,
    rows_that_make_no_sense_are_left_out,
    rows_are_found_by_an_index,
    the_messages_have_three_indexes,
    the_password_of_the_settings_comes_over_the_one_in_the_url,
);

/// Why the store can't be opened: the whole chain of causes.
pub(super) async fn refusal(settings: StoreSettings) -> String {
    let error = SeaStore::open(settings).await.expect_err("does not open");
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

pub(super) fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is missing: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

async fn a_newer_schema(at: ServerBed) {
    at.bed.open().await.close().await;
    let raw = at.raw().await;
    execute(&raw, "INSERT INTO seaql_migrations VALUES ('m29991231_000001_more', 0)").await;
    says(&refusal(at.bed.settings.clone()).await, &["m29991231_000001_more", "newer amphora"]);
    // It has let go of the lock.
    execute(&raw, "DELETE FROM seaql_migrations WHERE version = 'm29991231_000001_more'").await;
    at.bed.open().await.close().await;
}

async fn the_last_epoch(at: ServerBed) {
    at.bed.open().await.close().await;
    execute(&at.raw().await, "UPDATE epoch SET value = 2097150").await;
    let store = at.bed.open().await;
    assert_eq!(store.epoch(ShardId(0)), MessageId::MAX_EPOCH);
    store.close().await;
    let error = SeaStore::open(at.bed.settings.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::EpochsUsedUp { .. }), "{error:?}");
}

/// Counts the tables of the store.
fn tables(kind: Kind) -> &'static str {
    match kind {
        Kind::Postgres => {
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema() \
             AND table_name NOT LIKE 'seaql%'"
        }
        Kind::MariaDb => {
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = DATABASE() \
             AND table_name NOT LIKE 'seaql%'"
        }
    }
}

async fn migrations_go_up_and_down(at: ServerBed) {
    let raw = at.raw().await;
    for _ in 0..2 {
        Migrator::up(&raw, None).await.unwrap();
        assert!(value::<i64>(&raw, tables(at.kind)).await >= 3);
        Migrator::down(&raw, None).await.unwrap();
        assert_eq!(value::<i64>(&raw, tables(at.kind)).await, 0);
    }
    at.bed.open().await.close().await;
}

/// Back to the first tables, as an older program has them, and forth again.
async fn migrations_go_back_and_forth_over_messages(at: ServerBed) {
    let store = at.bed.open().await;
    let large = NewMessage { stanza: vec![b'x'; 512 * 1024].into(), ..message("bob", 1) };
    let writes = vec![Write::Append(large), append("b\u{1f600}b", 2), append("bob", 3)];
    assert_eq!(run(&*store, writes).await, vec![Outcome::Stored; 3]);
    run(&*store, vec![delete("bob", &[3])]).await;
    let before = (page(&*store, "bob", 0).await, page(&*store, "b\u{1f600}b", 0).await);
    let epoch = store.epoch(ShardId(0));
    store.close().await;
    let raw = at.raw().await;
    let after_the_first = Migrator::migrations().len() as u32 - 1;
    for _ in 0..2 {
        Migrator::down(&raw, Some(after_the_first)).await.unwrap();
        Migrator::up(&raw, None).await.unwrap();
    }
    let store = at.bed.open().await;
    assert_eq!((page(&*store, "bob", 0).await, page(&*store, "b\u{1f600}b", 0).await), before);
    assert!(store.epoch(ShardId(0)) > epoch);
    assert_eq!(run(&*store, vec![again("bob", 4, "bob-3")]).await, [already()]);
    store.close().await;
}

/// In MySQL each statement of a migration is committed by itself.
async fn a_migration_that_was_cut_short_goes_on(at: ServerBed) {
    at.bed.open().await.close().await;
    if at.kind == Kind::MariaDb {
        let raw = at.raw().await;
        execute(&raw, "DROP TABLE epoch").await;
        execute(&raw, "DROP TABLE lane").await;
        execute(&raw, "DELETE FROM seaql_migrations").await;
    }
    let store = at.bed.open().await;
    assert_eq!(run(&*store, vec![append("bob", 1)]).await, [Outcome::Stored]);
    store.close().await;
}

async fn what_cannot_be_opened_says_what_to_do_and_no_password(at: ServerBed) {
    let url = &at.bed.settings.url;
    let open = async |from: &str, to: &str| {
        assert!(url.contains(from));
        refusal(StoreSettings::new(url.replace(from, to))).await
    };
    says(&open("amphora:secret", "amphora:wrong-secret").await, &["check user and password"]);
    says(&open("amphora:secret", "nobody:secret").await, &["check user and password"]);
    says(&open(&at.name, "no_such_database").await, &["no_such_database'", "make it: CREATE"]);
    let port = TestServer::shared(at.kind).port.to_string();
    says(&open(&port, "1").await, &["127.0.0.1:1/", "start the database server"]);
    let text = open("sslmode=disable", "sslmode=disable&pasword=secret").await;
    says(&text, &["'pasword' is not known"]);
}

async fn the_password_of_the_settings_comes_over_the_one_in_the_url(at: ServerBed) {
    let url = at.bed.settings.url.replace(":secret", ":other");
    let settings = StoreSettings { password: Some("secret".to_owned()), ..StoreSettings::new(url) };
    assert!(!format!("{settings:?}").contains("secret"));
    SeaStore::open(settings).await.unwrap().close().await;
}

/// A trigger tells what holds in the session.
async fn the_session_that_writes_is_set_up(at: ServerBed) {
    at.bed.open().await.close().await;
    let raw = at.raw().await;
    execute(&raw, "CREATE TABLE seen (what varchar(400))").await;
    let (trigger, expected) = match at.kind {
        Kind::Postgres => (
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO seen VALUES (current_setting('synchronous_commit') || ' ' || \
             current_setting('transaction_isolation') || ' ' || current_setting('lock_timeout')); \
             RETURN NEW; END $$; \
             CREATE TRIGGER see BEFORE UPDATE ON lane FOR EACH ROW EXECUTE FUNCTION see(); \
             ALTER ROLE CURRENT_USER IN DATABASE dbname SET synchronous_commit = off"
                .replace("dbname", &at.name),
            "on read committed 1s",
        ),
        Kind::MariaDb => (
            "CREATE TRIGGER see BEFORE UPDATE ON lane FOR EACH ROW INSERT INTO seen VALUES \
             (CONCAT(@@tx_isolation, ' ', @@innodb_lock_wait_timeout))"
                .to_owned(),
            "READ-COMMITTED 1",
        ),
    };
    execute(&raw, &trigger).await;
    let store = at.bed.open().await;
    assert_eq!(run(&*store, vec![append("bob", 1)]).await, [Outcome::Stored]);
    assert_eq!(value::<String>(&raw, "SELECT DISTINCT what FROM seen").await, expected);
    store.close().await;
}

async fn rows_that_make_no_sense_are_left_out(at: ServerBed) {
    let store = at.bed.open().await;
    run(&*store, (1..=6).map(|id| append("bob", id)).collect()).await;
    let large = vec![b'x'; 300_000].into_iter().enumerate();
    // What can't be pressed together, and has pages of its own.
    let stanza: Vec<u8> = large.map(|(n, x)| x ^ (n * n / 7 % 251) as u8).collect();
    let large = NewMessage { stanza: stanza.into(), ..message("bob", 7) };
    run(&*store, vec![Write::Append(large)]).await;
    let raw = at.raw().await;
    for change in ["kind = 99 WHERE id = 1", "met_rule = -1 WHERE id = 5"] {
        execute(&raw, &format!("UPDATE offline_message SET {change}")).await;
    }
    let mut expected = vec![2, 3, 4, 6];
    match at.kind {
        // A part of its stanza is gone.
        Kind::Postgres => {
            let administrator = TestServer::shared(at.kind).administrator(&at.name).await;
            execute(&administrator, "CREATE EXTENSION pg_surgery").await;
            const TOAST: &str = "SELECT reltoastrelid::regclass::text FROM pg_class \
                                 WHERE relname = 'offline_message'";
            let toast: String = value(&administrator, TOAST).await;
            let part = format!("SELECT ctid::text FROM {toast} WHERE chunk_seq = 2");
            let part: String = value(&administrator, &part).await;
            let kill = format!("SELECT heap_force_kill('{toast}', ARRAY['{part}'::tid])");
            execute(&administrator, &kill).await;
        }
        Kind::MariaDb => {
            execute(&raw, "UPDATE offline_message SET sender = x'ff' WHERE id = 3").await;
            expected = vec![2, 4, 6, 7];
        }
    }
    assert_eq!(ids(&*store, "bob").await, expected);
    assert_eq!(count(&*store, bare("bob")).await, 7);
    assert_eq!(run(&*store, vec![delete("bob", &[1, 2, 3, 4, 5, 6, 7])]).await, [done(7)]);
    assert!(store.healthy());
    store.close().await;
}

/// How many rows were read of the table, by whatever way.
async fn rows_read(at: &ServerBed) -> i64 {
    let administrator = TestServer::shared(at.kind).administrator(&at.name).await;
    match at.kind {
        Kind::Postgres => {
            execute(&administrator, "SELECT pg_stat_clear_snapshot()").await;
            const READ: &str = "SELECT (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint \
                                FROM pg_stat_user_tables WHERE relname = 'offline_message'";
            value(&administrator, READ).await
        }
        Kind::MariaDb => {
            let read = format!(
                "SELECT CAST(coalesce(sum(ROWS_READ), 0) AS SIGNED) \
                 FROM information_schema.TABLE_STATISTICS \
                 WHERE TABLE_SCHEMA = '{}' AND TABLE_NAME = 'offline_message'",
                at.name
            );
            value(&administrator, &read).await
        }
    }
}

/// The table itself is never looked through from its beginning.
async fn rows_are_found_by_an_index(at: ServerBed) {
    if at.kind == Kind::MariaDb {
        let administrator = TestServer::shared(at.kind).administrator(&at.name).await;
        execute(&administrator, "SET GLOBAL userstat = 1").await;
    }
    let store = at.bed.open().await;
    let expiring = |user: i64, id: i64| {
        let expiry = Some(Expiry { at: at_second(id), rule: 0 });
        Write::Append(NewMessage { expiry, ..message(&format!("user{user}"), id) })
    };
    let writes = (1..=100).flat_map(|user| (1..=100).map(move |id| expiring(user, id)));
    run(&*store, writes.collect()).await;
    store.close().await;
    // What is counted of a session is told at its end.
    let before = rows_read(&at).await;

    let store = at.bed.open().await;
    let few = PageLimit { rows: 10, bytes: 1 << 20 };
    for user in 1..=10 {
        let user = bare(&format!("user{user}"));
        assert_eq!(store.page(user.clone(), MessageId(50), few).await.unwrap().len(), 10);
    }
    let due = store.due(DuePosition::start(), at_second(1000), few).await.unwrap();
    let from = due[9].position();
    assert_eq!(store.due(from.clone(), at_second(1000), few).await.unwrap().len(), 10);
    store.next_due(from).await.unwrap();
    store.find(bare("user1"), "user1-1".into()).await.unwrap();
    let ids: Vec<i64> = (1..=20).collect();
    assert_eq!(
        run(
            &*store,
            vec![
                delete("user1", &ids),
                delete("user2", &ids),
                append("user3", 1000),
                again("user3", 1001, "user3-1000"),
                remove("user4"),
                Write::SetExpiry { recipient: bare("user5"), id: MessageId(1), expiry: None },
            ]
        )
        .await,
        [done(20), done(20), Outcome::Stored, already(), done(100), done(1)]
    );
    store.close().await;
    let read = rows_read(&at).await - before;
    assert!(read < 1500, "{read} of 10,000 rows were read");
}

/// Each one costs every append; another has to be worth it.
async fn the_messages_have_three_indexes(at: ServerBed) {
    at.bed.open().await.close().await;
    let indexes = match at.kind {
        Kind::Postgres => {
            "SELECT string_agg(regexp_replace(indexdef, '^.* USING btree ', ''), '; ' ORDER BY \
             indexname) FROM pg_indexes WHERE tablename = 'offline_message'"
        }
        Kind::MariaDb => {
            "SELECT GROUP_CONCAT(CONCAT(INDEX_NAME, ' ', COLUMN_NAME) ORDER BY INDEX_NAME, \
             SEQ_IN_INDEX SEPARATOR '; ') FROM information_schema.STATISTICS \
             WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'offline_message'"
        }
    };
    let expected = match at.kind {
        Kind::Postgres => {
            "(expires_at, recipient, id) WHERE (expires_at IS NOT NULL); (key); (recipient, id)"
        }
        Kind::MariaDb => {
            "offline_message_expiry expires_at; offline_message_expiry recipient; \
             offline_message_expiry id; offline_message_key key; PRIMARY recipient; PRIMARY id"
        }
    };
    assert_eq!(value::<String>(&at.raw().await, indexes).await, expected);
}

fn at_second(second: i64) -> amphora::time::Timestamp {
    crate::bed::at(second)
}

#[tokio::test]
async fn a_database_of_another_encoding() {
    let server = tokio::task::spawn_blocking(|| TestServer::shared(Kind::Postgres)).await.unwrap();
    let administrator = server.administrator("postgres").await;
    let make =
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0 OWNER amphora";
    execute(&administrator, make).await;
    let text = refusal(StoreSettings::new(server.url("latin"))).await;
    says(&text, &["LATIN1", "ENCODING 'UTF8'"]);
}

/// PostgreSQL keeps every version of a row for as long as a dump may see it. Of the row that each
/// transaction and each reader looks for there must be few, however many transactions there are.
#[tokio::test]
async fn the_fence_is_not_dearer_beside_a_dump() {
    const TRANSACTIONS: i64 = 1_000;
    let at = ServerBed::new(Kind::Postgres).await;
    let store = at.bed.open().await;
    let dump = at.raw().await;
    execute(&dump, "BEGIN ISOLATION LEVEL REPEATABLE READ").await;
    assert_eq!(value::<i64>(&dump, "SELECT count(*) FROM offline_message").await, 0);
    let raw = at.raw().await;
    let size = "SELECT pg_relation_size('lane')";
    for id in 1..=TRANSACTIONS {
        assert_eq!(run(&*store, vec![append("bob", id)]).await, [Outcome::Stored]);
    }
    // A page of 8,192 bytes holds less than a hundred versions; there is a new one each second.
    let lanes = value::<i64>(&raw, size).await;
    assert!(lanes <= 5 * 8192, "{lanes} bytes");
    // The dump is what keeps them: it would have kept more.
    let more = "DO $$ BEGIN FOR n IN 1..1000 LOOP UPDATE lane SET seen_at = seen_at; COMMIT; \
                END LOOP; END $$";
    execute(&raw, more).await;
    assert!(value::<i64>(&raw, size).await > 5 * 8192);
    execute(&dump, "ROLLBACK").await;
    assert_eq!(run(&*store, vec![append("bob", 2_000)]).await, [Outcome::Stored]);
    store.close().await;
}
