//! What befalls a server, its connections and its rows: nothing that was acknowledged is lost,
//! nothing is there twice, and the store is well again by itself.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amphora::store::{NewMessage, Outcome, Purged, Run, Store, StoreError, StoreSettings, Write};
use amphora::words::MessageId;

use super::proxy::{Fate, Proxy};
use super::{Kind, ServerBed, TestServer, execute, on_each_server, value};
use crate::bed::*;

on_each_server!(
    a_commit_that_never_arrived_is_answered_retry,
    a_commit_whose_answer_is_lost_is_answered_stored,
    an_outcome_is_found_after_many_transactions,
    an_outcome_is_found_for_each_recipient,
    a_table_that_others_hold_makes_appends_wait_and_come_again,
    a_transaction_that_meets_another_is_tried_again,
    a_deadlock_is_survived,
    a_mark_that_is_set_anew_while_it_is_removed_stays,
    connections_that_fall_silent_are_given_up,
    a_write_that_always_fails_holds_up_nobody_else,
    sessions_that_are_ended_are_made_anew,
);

/// The same store, through a proxy.
pub async fn through_proxy(at: &ServerBed) -> (Arc<dyn Store>, Proxy) {
    through_proxy_with(at, at.bed.settings.clone()).await
}

async fn through_proxy_with(at: &ServerBed, settings: StoreSettings) -> (Arc<dyn Store>, Proxy) {
    let port = TestServer::shared(at.kind).port;
    let proxy = Proxy::to(port).await;
    let url = settings.url.replace(&port.to_string(), &proxy.port.to_string());
    let store = (at.bed.open)(StoreSettings { url, ..settings }).await.unwrap();
    (store, proxy)
}

async fn a_commit_that_never_arrived_is_answered_retry(at: ServerBed) {
    let (store, proxy) = through_proxy(&at).await;
    assert_eq!(run(&*store, vec![append("bob", 1)]).await, [Outcome::Stored]);
    proxy.next_commit_of("bob", Fate::IsLost);
    let shared = Run::new();
    let lost = Write::Append(NewMessage { run: shared.clone(), ..message("bob", 2) });
    let deleted = submit(&*store, vec![delete("bob", &[1])]);
    assert_eq!(run(&*store, vec![lost]).await, [Outcome::Retry]);
    assert!(shared.is_given_up() && proxy.is_idle());
    // What is no append is tried again, and found to be not done.
    assert_eq!(deleted.await.unwrap(), [done(1)]);
    until("healthy", || store.healthy()).await;
    assert_eq!(run(&*store, vec![again("bob", 3, "bob-2")]).await, [Outcome::Stored]);
    assert_eq!(ids(&*store, "bob").await, [3]);
    store.close().await;
}

async fn a_commit_whose_answer_is_lost_is_answered_stored(at: ServerBed) {
    let (store, proxy) = through_proxy(&at).await;
    for id in 1..=3 {
        proxy.next_commit_of("bob", Fate::IsNotAnswered);
        assert_eq!(run(&*store, vec![append("bob", id)]).await, [Outcome::Stored]);
        assert!(proxy.is_idle());
    }
    proxy.next_commit_of("bob", Fate::IsNotAnswered);
    assert_eq!(run(&*store, vec![delete("bob", &[1])]).await, [done(1)]);
    assert!(store.healthy() || !proxy.is_idle());
    assert_eq!(ids(&*store, "bob").await, [2, 3]);
    until("healthy", || store.healthy()).await;
    store.close().await;
}

/// More than PostgreSQL has rows for: their numbers stand where others did.
async fn an_outcome_is_found_after_many_transactions(at: ServerBed) {
    const MANY: i64 = 1_100;
    let (store, proxy) = through_proxy(&at).await;
    for id in 1..=MANY {
        assert_eq!(run(&*store, vec![append("bob", id)]).await, [Outcome::Stored]);
    }
    proxy.next_commit_of("bob", Fate::IsLost);
    assert_eq!(run(&*store, vec![append("bob", MANY + 1)]).await, [Outcome::Retry]);
    until("healthy", || store.healthy()).await;
    proxy.next_commit_of("bob", Fate::IsNotAnswered);
    assert_eq!(run(&*store, vec![append("bob", MANY + 2)]).await, [Outcome::Stored]);
    assert!(proxy.is_idle());
    assert_eq!(page(&*store, "bob", MANY).await.len(), 1);
    assert_eq!(count(&*store, bare("bob")).await, MANY as u64 + 1);
    store.close().await;
}

/// Each recipient has one connection, all have some.
async fn an_outcome_is_found_for_each_recipient(at: ServerBed) {
    let (store, proxy) = through_proxy(&at).await;
    for user in ["user0", "user1", "user2", "user3", "user4", "user5", "user6", "user7"] {
        proxy.next_commit_of(user, Fate::IsNotAnswered);
        assert_eq!(run(&*store, vec![append(user, 1)]).await, [Outcome::Stored]);
        until("healthy", || store.healthy()).await;
        proxy.next_commit_of(user, Fate::IsLost);
        assert_eq!(run(&*store, vec![append(user, 2)]).await, [Outcome::Retry]);
        assert!(proxy.is_idle());
        until("healthy", || store.healthy()).await;
        assert_eq!(run(&*store, vec![append(user, 3)]).await, [Outcome::Stored]);
        assert_eq!(ids(&*store, user).await, [1, 3]);
    }
    store.close().await;
}

async fn a_table_that_others_hold_makes_appends_wait_and_come_again(at: ServerBed) {
    let limit = Duration::from_millis(300);
    let settings = StoreSettings { append_limit: limit, ..at.bed.settings.clone() };
    let store = (at.bed.open)(settings).await.unwrap();
    stored(&*store, "bob", 1).await;
    let other = at.raw().await;
    let (hold, let_go) = match at.kind {
        Kind::Postgres => ("BEGIN; LOCK TABLE offline_message IN ACCESS EXCLUSIVE MODE", "COMMIT"),
        Kind::MariaDb => ("LOCK TABLES offline_message WRITE", "UNLOCK TABLES"),
    };
    execute(&other, hold).await;
    let deleted = submit(&*store, vec![delete("bob", &[1])]);
    assert_eq!(run(&*store, vec![append("bob", 2)]).await, [Outcome::Retry]);
    until("unhealthy", || !store.healthy()).await;
    execute(&other, let_go).await;
    assert_eq!(deleted.await.unwrap(), [done(1)]);
    until("healthy", || store.healthy()).await;
    stored(&*store, "bob", 3).await;
    assert_eq!(ids(&*store, "bob").await, [3]);
    store.close().await;
}

/// A trigger gives the first transactions up, as a database does that finds two in each other's
/// way.
async fn a_transaction_that_meets_another_is_tried_again(at: ServerBed) {
    let store = at.bed.open().await;
    let raw = at.raw().await;
    execute(&raw, "CREATE SEQUENCE met").await;
    let trigger = match at.kind {
        Kind::Postgres => {
            "CREATE FUNCTION meet() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('met') <= 3 THEN RAISE 'met' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$; \
             CREATE TRIGGER meet BEFORE INSERT ON offline_message \
             FOR EACH ROW EXECUTE FUNCTION meet()"
        }
        Kind::MariaDb => {
            "CREATE TRIGGER meet BEFORE INSERT ON offline_message FOR EACH ROW BEGIN \
             IF NEXTVAL(met) <= 3 THEN SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END"
        }
    };
    execute(&raw, trigger).await;
    // Nobody hears of it.
    assert_eq!(
        run(&*store, vec![append("bob", 1), append("bob", 2)]).await,
        vec![Outcome::Stored; 2]
    );
    assert!(store.healthy());
    assert!(value::<i64>(&raw, &next_value(at.kind)).await >= 6);
    assert_eq!(ids(&*store, "bob").await, [1, 2]);
    store.close().await;
}

fn next_value(kind: Kind) -> String {
    let call = match kind {
        Kind::Postgres => "nextval('met')",
        Kind::MariaDb => "NEXTVAL(met)",
    };
    format!("SELECT {call}")
}

/// Two sessions that each hold a row that the other waits for; it is the store's that is given up.
async fn a_deadlock_is_survived(at: ServerBed) {
    let [other, watch] = [at.administrator().await, at.administrator().await];
    if at.kind == Kind::Postgres {
        // Who finds it is given up: the store, before it stops to wait for the lock.
        let sooner = format!("ALTER DATABASE {} SET deadlock_timeout = '600ms'", at.name);
        execute(&watch, &sooner).await;
        execute(&other, "SET deadlock_timeout = '60s'").await;
    }
    let deadlocks = match at.kind {
        Kind::Postgres => {
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        }
        Kind::MariaDb => {
            "SELECT CAST(VARIABLE_VALUE AS SIGNED) FROM information_schema.GLOBAL_STATUS \
             WHERE VARIABLE_NAME = 'INNODB_DEADLOCKS'"
        }
    };
    let before: i64 = value(&watch, deadlocks).await;
    let store = at.bed.open().await;
    // InnoDB gives up whoever has changed less.
    run(&*store, (1..=20).map(|id| append("eve", id)).collect()).await;
    let mut id = 0;
    while value::<i64>(&watch, deadlocks).await == before {
        id += 1;
        assert!(id < 100, "there is no deadlock");
        stored(&*store, "bob", id).await;
        execute(&other, "BEGIN").await;
        execute(&other, "UPDATE offline_message SET size = size + 1").await;
        // It holds its lane, and waits for the row.
        let deleted = submit(&*store, vec![delete("bob", &[id])]);
        at.until_waiting(1, &watch).await;
        execute(&other, "UPDATE lane SET incarnation = incarnation").await;
        execute(&other, "ROLLBACK").await;
        assert_eq!(deleted.await.unwrap(), [done(1)]);
        // A lock that was waited for in vain is no deadlock.
        until("healthy", || store.healthy()).await;
    }
    stored(&*store, "bob", id + 1).await;
    assert_eq!(ids(&*store, "bob").await, [id + 1]);
    assert_eq!(ids(&*store, "eve").await.len(), 20);
    store.close().await;
}

/// As where two connections write, and one of them finds the mark old.
async fn a_mark_that_is_set_anew_while_it_is_removed_stays(at: ServerBed) {
    let store = at.bed.open().await;
    run(&*store, vec![append("bob", 1), append("bob", 2)]).await;
    run(&*store, vec![delete("bob", &[1, 2])]).await;
    at.bed.clock.pass(Duration::from_secs(3600));
    let other = at.raw().await;
    execute(&other, "BEGIN").await;
    let anew = match at.kind {
        Kind::Postgres => "UPDATE mark SET until = until + 7200000000 WHERE \"key\" = 'bob-1'",
        Kind::MariaDb => "UPDATE mark SET until = until + 7200000000 WHERE `key` = 'bob-1'",
    };
    execute(&other, anew).await;
    let (purging, now) = (store.clone(), at.bed.clock.now());
    let purged = tokio::spawn(async move { purging.purge(None, now).await });
    let watch = at.administrator().await;
    at.until_waiting(1, &watch).await;
    execute(&other, "COMMIT").await;
    assert_eq!(purged.await.unwrap().unwrap(), Purged { messages: 0, marks: 1 });
    let come_again = vec![again("bob", 3, "bob-1"), again("bob", 4, "bob-2")];
    assert_eq!(run(&*store, come_again).await, [already(), Outcome::Stored]);
    store.close().await;
}

async fn sessions_that_are_ended_are_made_anew(at: ServerBed) {
    let store = at.bed.open().await;
    run(&*store, vec![append("bob", 1)]).await;
    assert_eq!(ids(&*store, "bob").await, [1]);
    let administrator = at.administrator().await;
    match at.kind {
        Kind::Postgres => {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            execute(&administrator, end).await;
        }
        Kind::MariaDb => {
            let own = format!(
                "SELECT GROUP_CONCAT(ID) FROM information_schema.PROCESSLIST \
                 WHERE DB = '{}' AND ID <> CONNECTION_ID()",
                at.name
            );
            let own: String = value(&administrator, &own).await;
            for id in own.split(',') {
                execute(&administrator, &format!("KILL {id}")).await;
            }
        }
    }
    // A read finds another connection by itself.
    assert_eq!(ids(&*store, "bob").await, [1]);
    // A write, too: the transaction has not begun.
    let mut id = 2;
    while run(&*store, vec![append("bob", id)]).await != [Outcome::Stored] {
        id += 1;
    }
    assert!(store.healthy());
    assert_eq!(ids(&*store, "bob").await, [1, id]);
    store.close().await;
}

/// No answer and no end, as behind a firewall that has forgotten the connection: that it is broken is
/// known by the time alone, a minute.
async fn connections_that_fall_silent_are_given_up(at: ServerBed) {
    let limit = Duration::from_millis(300);
    let settings = StoreSettings { append_limit: limit, readers: 1, ..at.bed.settings.clone() };
    let (store, proxy) = through_proxy_with(&at, settings).await;
    stored(&*store, "bob", 1).await;
    assert_eq!(ids(&*store, "bob").await, [1]);
    proxy.fall_silent();
    let reader = store.clone();
    let read = tokio::spawn(async move { reader.page(bare("bob"), MessageId::ZERO, ALL).await });
    // Others wait for the connection all the time, also when it is replaced: not all of them have
    // waited equally long by then.
    let over = Arc::new(AtomicBool::new(false));
    let waiting = [0, 1, 2, 3].map(|second| {
        let (reader, over) = (store.clone(), over.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(second)).await;
            while !over.load(Ordering::Relaxed) {
                match reader.page(bare("bob"), MessageId::ZERO, ALL).await {
                    Err(StoreError::Closed) => panic!("it is not closed"),
                    _ => tokio::task::yield_now().await,
                }
            }
        })
    });
    let deleted = submit(&*store, vec![delete("bob", &[1])]);
    // An append does not wait for so long.
    assert_eq!(run(&*store, vec![append("bob", 2)]).await, [Outcome::Retry]);
    assert_eq!(deleted.await.unwrap(), [done(1)]);
    match read.await.unwrap() {
        Err(StoreError::Read(_)) => {}
        // A connection that lay idle for a while is asked whether it is there, and replaced.
        read => assert_eq!(read.unwrap().len(), 1),
    }
    // The connection that reads may be lost while nobody reads: others find out.
    while store.page(bare("bob"), MessageId::ZERO, ALL).await.is_err() {}
    over.store(true, Ordering::Relaxed);
    for one in waiting {
        one.await.unwrap();
    }
    until("healthy", || store.healthy()).await;
    stored(&*store, "bob", 3).await;
    assert_eq!(ids(&*store, "bob").await, [3]);
    store.close().await;
}

async fn a_write_that_always_fails_holds_up_nobody_else(at: ServerBed) {
    let store = at.bed.open().await;
    for id in 1..=3 {
        stored(&*store, "bob", id).await;
    }
    let raw = at.raw().await;
    let (refuse, allow) = match at.kind {
        Kind::Postgres => (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             RAISE 'no' USING ERRCODE = '58000'; END $$; \
             CREATE TRIGGER refuse BEFORE DELETE ON offline_message \
             FOR EACH ROW EXECUTE FUNCTION refuse()",
            "DROP TRIGGER refuse ON offline_message",
        ),
        Kind::MariaDb => (
            "CREATE TRIGGER refuse BEFORE DELETE ON offline_message FOR EACH ROW \
             SIGNAL SQLSTATE '45000'",
            "DROP TRIGGER refuse",
        ),
    };
    execute(&raw, refuse).await;
    let removed = submit(&*store, vec![remove("bob")]);
    let late = submit(&*store, vec![append("bob", 4)]);
    until("unhealthy", || !store.healthy()).await;
    for user in ["user0", "user1", "user2", "user3"] {
        assert_eq!(run(&*store, vec![append(user, 1)]).await, [Outcome::Stored]);
    }
    execute(&raw, allow).await;
    assert_eq!(removed.await.unwrap(), [done(3)]);
    assert_eq!(late.await.unwrap(), [Outcome::Stored]);
    assert_eq!(ids(&*store, "bob").await, [4]);
    until("healthy", || store.healthy()).await;
    store.close().await;
}

/// Appends and deletes for five users without end, until told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    told: Vec<tokio::task::JoinHandle<Told>>,
}

/// What is known to be stored and was not asked to be deleted, and what is known to be deleted.
#[derive(Default)]
struct Told {
    stored: Vec<(String, i64)>,
    deleted: Vec<(String, i64)>,
}

impl Traffic {
    /// With ids after `first`, which no other traffic has.
    fn start(store: &Arc<dyn Store>, first: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let for_user = |user: i64| {
            tokio::spawn(traffic(store.clone(), format!("user{user}"), first, stop.clone()))
        };
        Traffic { told: (0..5).map(for_user).collect(), stop }
    }

    async fn stop(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for told in self.told {
            let told = told.await.expect("no outcome surprised");
            all.stored.extend(told.stored);
            all.deleted.extend(told.deleted);
        }
        all
    }
}

async fn traffic(store: Arc<dyn Store>, user: String, first: i64, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    let mut next = first;
    while !stop.load(Ordering::Relaxed) {
        let ids: Vec<i64> = (next + 1..=next + 8).collect();
        next += 8;
        // Each in a job of its own: they share a transaction, or not.
        let appends: Vec<_> =
            ids.iter().map(|id| submit(&*store, vec![append(&user, *id)])).collect();
        let mut kept = Vec::new();
        for (id, append) in ids.into_iter().zip(appends) {
            let mut outcome = append.await.unwrap().remove(0);
            while outcome == Outcome::Retry {
                // It may come again. If it is there already, its `Retry` was a lie.
                let key = format!("{user}-{id}");
                outcome = run(&*store, vec![again(&user, id, &key)]).await.remove(0);
            }
            assert_eq!(outcome, Outcome::Stored, "{user} {id}");
            kept.push(id);
        }
        // A hand-over: half of them go, when the client has them.
        let (gone, kept) = kept.split_at(kept.len() / 2);
        assert_eq!(run(&*store, vec![delete(&user, gone)]).await, [done(gone.len() as u64)]);
        told.deleted.extend(gone.iter().map(|id| (user.clone(), *id)));
        told.stored.extend(kept.iter().map(|id| (user.clone(), *id)));
    }
    told
}

async fn all_is_as_told(store: &dyn Store, told: &Told) {
    let mut there: HashSet<(String, i64)> = HashSet::new();
    for user in 0..5 {
        let user = format!("user{user}");
        let of_user = ids(store, &user).await;
        assert!(of_user.is_sorted_by(|a, b| a < b), "{of_user:?}");
        there.extend(of_user.into_iter().map(|id| (user.clone(), id)));
    }
    let lost: Vec<_> = told.stored.iter().filter(|row| !there.contains(*row)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let back: Vec<_> = told.deleted.iter().filter(|row| there.contains(*row)).collect();
    assert!(back.is_empty(), "there again: {back:?}");
}

async fn a_server_that_is_killed(kind: Kind) {
    let server = tokio::task::spawn_blocking(move || TestServer::start(kind, None));
    let server = Arc::new(server.await.unwrap());
    let at = ServerBed::in_server(&server).await;
    let store = at.bed.open().await;
    let mut told = Told::default();
    for round in 0..3 {
        let traffic = Traffic::start(&store, round << 32);
        let appended = store.clone();
        let mut rows = 0;
        while rows < 200 * (round as u64 + 1) {
            rows = 0;
            for user in 0..5 {
                rows += count(&*appended, bare(&format!("user{user}"))).await;
            }
        }
        let killed = server.clone();
        tokio::task::spawn_blocking(move || killed.kill()).await.unwrap();
        until("unhealthy", || !store.healthy()).await;
        let restarted = server.clone();
        tokio::task::spawn_blocking(move || restarted.start_again()).await.unwrap();
        until("healthy", || store.healthy()).await;
        let more = traffic.stop().await;
        assert!(!more.stored.is_empty() && !more.deleted.is_empty());
        told.stored.extend(more.stored);
        told.deleted.extend(more.deleted);
        all_is_as_told(&*store, &told).await;
    }
    store.close().await;
}

#[tokio::test]
async fn postgres_killed_amid_appends_and_deletes() {
    a_server_that_is_killed(Kind::Postgres).await;
}

#[tokio::test]
async fn mariadb_killed_amid_appends_and_deletes() {
    a_server_that_is_killed(Kind::MariaDb).await;
}

/// A disk for the server, as small as it goes; none where this user may not mount.
async fn on_a_small_disk(kind: Kind, size: &'static str) -> Option<Arc<TestServer>> {
    if !std::fs::metadata("/proc/self").is_ok_and(|own| {
        use std::os::unix::fs::MetadataExt;
        own.uid() == 0
    }) {
        eprintln!("not tested: this user may not mount a small disk");
        return None;
    }
    let server = tokio::task::spawn_blocking(move || TestServer::start(kind, Some(size)));
    Some(Arc::new(server.await.unwrap()))
}

async fn a_full_disk(kind: Kind, size: &'static str) {
    let Some(server) = on_a_small_disk(kind, size).await else { return };
    let at = ServerBed::in_server(&server).await;
    let store = at.bed.open().await;
    let ballast = std::path::Path::new(&server.folder).join("ballast");
    // All that is left, but a few MiB.
    let mut file = std::fs::File::create(&ballast).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 1 << 16]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(3 << 20)).unwrap();
    drop(file);

    let mut stored_ids = Vec::new();
    let mut id = 0;
    let large = |id: i64| {
        let stanza: Vec<u8> = (0..100_000_u64).map(|n| (n * n * 31 + n / 7) as u8).collect();
        Write::Append(NewMessage { stanza: stanza.into(), ..message("bob", id) })
    };
    let full = loop {
        id += 1;
        match run(&*store, vec![large(id)]).await.remove(0) {
            Outcome::Stored => stored_ids.push(id),
            other => break other,
        }
        assert!(id < 5000, "the disk is never full");
    };
    assert_eq!(full, Outcome::Retry);
    until("unhealthy", || !store.healthy()).await;

    std::fs::remove_file(&ballast).unwrap();
    let restarted = server.clone();
    // It may have ended, as databases do that can't write their log.
    tokio::task::spawn_blocking(move || restarted.start_again()).await.unwrap();
    until("healthy again by itself", || store.healthy()).await;
    stored(&*store, "bob", 10_000).await;
    stored_ids.push(10_000);
    let there = store.page(bare("bob"), MessageId::ZERO, ALL).await.unwrap();
    let there: Vec<i64> = there.iter().map(|message| message.id.0).collect();
    assert_eq!(there, stored_ids);
    assert_eq!(run(&*store, vec![delete("bob", &stored_ids)]).await, [done(there.len() as u64)]);
    store.close().await;
}

#[tokio::test]
async fn postgres_on_a_full_disk() {
    a_full_disk(Kind::Postgres, "160m").await;
}

#[tokio::test]
async fn mariadb_on_a_full_disk() {
    a_full_disk(Kind::MariaDb, "220m").await;
}
