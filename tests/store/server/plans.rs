//! How the servers find rows, as they say themselves of each statement that a store sends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphora::store::{
    BroadcastChange, BroadcastState, BroadcastStore, Detail, DuePosition, Fate, NewMessage,
    Outcome, PageLimit, SeaStore, Store, StoreSettings, Write,
};
use amphora::words::{Bare, Expiry, MessageId, ShardId};

use super::load::{SHARDS, node, take, user_of};
use super::{Kind, ServerBed, TestServer, execute};
use crate::bed::*;
use crate::broadcast::{new, recipients};

/// Whose statements are looked at. (In MariaDB the beat is a column.)
const TABLES: [&str; 7] =
    ["offline_message", "mark", "lane", "beat", "shard", "broadcast", "broadcast_recipient"];

/// A server that writes down how it carries statements out.
async fn server(kind: Kind) -> TestServer {
    let options = match kind {
        Kind::Postgres => {
            "-c session_preload_libraries=auto_explain -c auto_explain.log_min_duration=0"
        }
        Kind::MariaDb => {
            "--slow-query-log --long-query-time=0 --slow-query-log-file=slow.log \
             --log-slow-verbosity=query_plan,explain"
        }
    };
    let start = move || TestServer::start_with(kind, None, options);
    tokio::task::spawn_blocking(start).await.expect("a server")
}

/// Whether a statement is one that was sent about messages, and what was said of it.
struct Said {
    statement: String,
    plan: String,
}

/// What was said since the `from`th byte of its log, once something was that is `wanted`; a server
/// may answer before it writes.
async fn said_at_last(
    server: &TestServer,
    from: usize,
    wanted: impl Fn(&Said) -> bool,
) -> (Vec<Said>, usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (all, next) = said(server, from);
        if all.iter().any(&wanted) || Instant::now() > deadline {
            return (all, next);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Since the `from`th byte of its log.
fn said(server: &TestServer, from: usize) -> (Vec<Said>, usize) {
    let path = match server.kind {
        Kind::Postgres => format!("{}/log", server.folder()),
        Kind::MariaDb => format!("{}/data/slow.log", server.folder()),
    };
    let log = std::fs::read(path).expect("a log");
    let text = String::from_utf8_lossy(&log[from..]).into_owned();
    let said = match server.kind {
        Kind::Postgres => text.split("Query Text: ").skip(1).map(of_postgres).collect(),
        Kind::MariaDb => text.split("# User@Host").skip(1).map(of_mariadb).collect(),
    };
    (said, log.len())
}

/// The statement, and on the lines that follow, behind a tab, its plan.
fn of_postgres(entry: &str) -> Said {
    let mut lines = entry.lines();
    let statement = lines.next().unwrap_or_default().to_owned();
    let plan = lines.take_while(|line| line.starts_with('\t')).collect::<Vec<_>>().join("\n");
    Said { statement, plan }
}

fn of_mariadb(entry: &str) -> Said {
    let (explains, rest): (Vec<&str>, Vec<&str>) =
        entry.lines().partition(|line| line.starts_with("# explain: "));
    let statement = rest.into_iter().skip(1).filter(|line| !line.starts_with(['#', ':']));
    let statement = statement.filter(|line| !line.starts_with("SET timestamp"));
    Said { statement: statement.collect(), plan: explains.join("\n") }
}

impl Said {
    /// About the rows of messages, by looking for them.
    fn finds_messages(&self) -> bool {
        let begins = |word: &str| self.statement.starts_with(word);
        self.statement.contains("offline_message")
            && (begins("SELECT") || begins("DELETE") || begins("UPDATE"))
    }

    fn names(&self, table: &str) -> bool {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        self.statement.split(|letter| !is_part(letter)).any(|word| word == table)
    }

    /// About rows of the store that it looks for, and not about all that are there.
    fn finds_rows(&self) -> bool {
        let begins = |word: &&str| self.statement.starts_with(word);
        ["SELECT", "DELETE", "UPDATE", "INSERT INTO beat"].iter().any(begins)
            && self.statement.contains(" WHERE ")
            && TABLES.iter().any(|table| self.names(table))
    }

    /// The tables that were gone through from the beginning, or an index of theirs.
    fn whole(&self, kind: Kind) -> Vec<&str> {
        let steps = self.plan.lines();
        match kind {
            Kind::Postgres => {
                let next = self.plan.lines().skip(1).chain([""]);
                let is_whole = |(step, next): &(&str, &str)| {
                    step.contains("Seq Scan on ")
                        || step.contains("Index")
                            && step.contains(" Scan ")
                            && !next.contains("Index Cond:")
                };
                let whole = steps.zip(next).filter(is_whole);
                let names = whole.filter_map(|(step, _)| step.split_once(" on "));
                names.filter_map(|(_, name)| name.split(' ').next()).collect()
            }
            Kind::MariaDb => {
                let columns = steps.skip(1).map(|step| step.split('\t').collect::<Vec<_>>());
                let whole = columns.filter(|step| matches!(step.get(3), Some(&("ALL" | "index"))));
                whole.map(|step| step[2]).collect()
            }
        }
    }

    /// Whether only an index was gone through, from a place in it.
    fn is_by_index(&self, kind: Kind) -> bool {
        match kind {
            Kind::Postgres => {
                self.plan.contains("Index Cond:") && !self.plan.contains("Seq Scan on offline")
            }
            Kind::MariaDb => {
                let steps = self.plan.lines().skip(1);
                let kinds: Vec<&str> = steps.filter_map(|step| step.split('\t').nth(3)).collect();
                let by_index = ["const", "eq_ref", "ref", "range", "index_merge", "NULL"];
                !kinds.is_empty() && kinds.iter().all(|kind| by_index.contains(kind))
            }
        }
    }
}

async fn every_question_is_answered_by_an_index(kind: Kind) {
    let server = server(kind).await;
    let at = ServerBed::in_server(&server).await;
    let store = filled(&at).await;
    let mut seen: BTreeMap<&str, Vec<Said>> = BTreeMap::new();
    let (_, mut from) = said(&server, 0);
    let mut told = async |what: &'static str| {
        let (all, next) = said_at_last(&server, from, Said::finds_messages).await;
        from = next;
        let of_messages: Vec<Said> = all.into_iter().filter(Said::finds_messages).collect();
        assert!(!of_messages.is_empty(), "nothing was said of {what}");
        seen.insert(what, of_messages);
    };
    let few = PageLimit { rows: 10, bytes: 1 << 20 };
    store.page(bare("user1"), MessageId(50), few).await.unwrap();
    told("page").await;
    store.page(bare("user1"), MessageId(50), PageLimit { rows: 10, bytes: 20 }).await.unwrap();
    told("page by sizes").await;
    store.headers(bare("user1"), MessageId(50), 10).await.unwrap();
    told("headers").await;
    for (what, detail) in
        [("count", Detail::Messages), ("bytes", Detail::Bytes), ("by sender", Detail::Senders)]
    {
        store.usage(bare("user2"), detail).await.unwrap();
        told(what).await;
    }
    let due = store.due(DuePosition::start(), at_second(1000), few).await.unwrap();
    store.due(due[9].position(), at_second(1000), few).await.unwrap();
    told("due").await;
    store.next_due(due[9].position()).await.unwrap();
    told("next due").await;
    store.find("user1".into(), "user1-1".into()).await.unwrap();
    told("find").await;
    let ids: Vec<i64> = (1..=20).collect();
    assert_eq!(run(&*store, vec![delete("user3", &ids)]).await, [done(20)]);
    told("delete").await;
    assert_eq!(run(&*store, vec![again("user3", 1001, "user4-1")]).await, [already()]);
    told("append again").await;
    let expiry = Write::SetExpiry { recipient: bare("user5"), id: MessageId(1), expiry: None };
    assert_eq!(run(&*store, vec![expiry]).await, [done(1)]);
    told("set expiry").await;
    assert_eq!(run(&*store, vec![remove("user6")]).await, [done(100)]);
    told("remove account").await;
    store.purge(Some(at_second(1)), at.bed.clock.now()).await.unwrap();
    told("retention").await;
    store.close().await;
    for (what, said) in &seen {
        if let Some(Said { statement, plan }) = said.iter().find(|said| !said.is_by_index(kind)) {
            panic!("{what}: {statement:.300}\n{plan}");
        }
    }
    // Many of one user's messages are looked up one by one, not picked out of all that he has.
    if kind == Kind::MariaDb {
        let of_one = seen["delete"].iter().filter(|said| said.statement.contains("recipient = "));
        let plans: Vec<&str> = of_one.map(|said| &*said.plan).collect();
        assert!(
            plans.len() == 2 && plans.iter().all(|plan| plan.contains("\trange\t")),
            "{plans:?}"
        );
    }
    // None is so dear to PostgreSQL that it compiles it first, which takes longer than all else.
    if let Some(compiled) = said(&server, 0).0.iter().find(|said| said.plan.contains("JIT:")) {
        panic!("{:.300}\n{}", compiled.statement, compiled.plan);
    }
    // A statement that no index helps is told from these.
    let sum = "SELECT SUM(size) FROM offline_message WHERE sender = 'eve'";
    let raw = at.raw().await;
    execute(&raw, sum).await;
    let is_scan = |said: &Said| said.statement.contains("SUM(size)");
    let (all, _) = said_at_last(&server, from, is_scan).await;
    let scan = all.iter().find(|said| is_scan(said)).expect("it is told");
    assert!(!scan.is_by_index(kind), "{}", scan.plan);
}

/// Of the other tables each statement is looked at, whichever of them it is.
async fn what_is_kept_beside_messages_is_found_by_an_index(kind: Kind) {
    let server = server(kind).await;
    let at = ServerBed::in_server(&server).await;
    node(&at, "a").await.close().await;
    // The tables are made.
    let (_, from) = said(&server, 0);
    let (a, b) = (node(&at, "a").await, node(&at, "b").await);
    take(&a, 0..SHARDS).await;
    let user = user_of(1);
    marks_come_and_go(&at, &a, &user).await;
    broadcasts_come_and_go(&at, &a).await;
    a.give(vec![ShardId(1)], b.incarnation().unwrap()).await.unwrap();
    assert_eq!(run(&*a, vec![append(&user, 1)]).await, [Outcome::NotMine]);
    assert!(ids(&*b, &user).await.is_empty());
    b.usage(bare(&user), Detail::Bytes).await.unwrap();
    assert!(b.due(DuePosition::start(), at_second(1), ALL).await.unwrap().is_empty());
    a.close().await;
    b.close().await;
    // A statement that no index helps is told from these.
    execute(&at.raw().await, "SELECT until FROM mark WHERE met_rule = 1").await;
    let is_last = |said: &Said| said.statement.contains("met_rule = 1");
    let (mut all, _) = said_at_last(&server, from, is_last).await;
    all.retain(Said::finds_rows);
    let scan = all.pop().filter(is_last).expect("it is told");
    assert_eq!(scan.whole(kind), ["mark"], "{}", scan.plan);
    for table in TABLES {
        assert!(all.iter().any(|said| said.names(table)), "nothing was said of {table}");
    }
    for said in all {
        let (Said { statement, plan }, mut whole) = (&said, said.whole(kind));
        // What one node owns is looked for at its start, and after a move: a row a shard.
        whole.retain(|table| *table != "shard" || said.names("offline_message"));
        assert!(whole.is_empty() && !plan.is_empty(), "{statement:.300}\n{plan}");
    }
}

async fn marks_come_and_go(at: &ServerBed, store: &SeaStore, user: &str) {
    let ids: Vec<i64> = (1..=2000).collect();
    let outcomes = run(store, ids.iter().map(|id| append(user, *id)).collect()).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored));
    assert_eq!(run(store, vec![delete(user, &ids)]).await, [done(2000)]);
    analyze(at, "mark").await;
    let key = format!("{user}-7");
    assert_eq!(run(store, vec![again(user, 3000, &key)]).await, [already()]);
    assert_eq!(store.find(bare(user), key.as_str().into()).await.unwrap(), Some(None));
    at.bed.clock.pass(Duration::from_secs(3600));
    assert_eq!(store.purge(None, at.bed.clock.now()).await.unwrap().marks, 2000);
}

async fn broadcasts_come_and_go(at: &ServerBed, store: &SeaStore) {
    let change = async |what| store.change(what).await.unwrap();
    let add = |broadcast, places| {
        let recipients = recipients(places);
        BroadcastChange::Add { broadcast, recipients, counted_to: Some(None) }
    };
    for id in 1..=5 {
        change(BroadcastChange::Create(new(id))).await;
        assert_eq!(change(add(id, 1..1001)).await, 1000);
    }
    analyze(at, "broadcast").await;
    analyze(at, "broadcast_recipient").await;
    assert_eq!(change(add(3, 999..1010)).await, 9);
    let state = BroadcastState::Running;
    change(BroadcastChange::SetState { broadcast: 3, state, ended_at: None }).await;
    assert_eq!(store.broadcasts().await.unwrap().len(), 5);
    assert_eq!(store.recipients(3, 500, 10).await.unwrap().len(), 10);
    let settled = vec![(1, Fate::Delivered), (2, Fate::Delivered), (3, Fate::Stored)];
    assert_eq!(change(BroadcastChange::Settle { broadcast: 3, settled }).await, 3);
    let give_up = BroadcastChange::GiveUp { broadcast: 3, fate: Fate::Expired, limit: 10 };
    assert_eq!(change(give_up).await, 10);
    change(BroadcastChange::Forget { broadcast: 3 }).await;
}

/// Lets the server know how many rows a table has.
async fn analyze(at: &ServerBed, table: &str) {
    let analyze = match at.kind {
        Kind::Postgres => "ANALYZE",
        Kind::MariaDb => "ANALYZE TABLE",
    };
    execute(&at.raw().await, &format!("{analyze} {table}")).await;
}

/// A store with 10,000 rows of 100 users, of which the server knows.
async fn filled(at: &ServerBed) -> Arc<dyn Store> {
    let settings = StoreSettings { readers: 1, ..at.bed.settings.clone() };
    let store = (at.bed.open)(settings).await.unwrap();
    let expiring = |user: i64, id: i64| {
        let expiry = Some(Expiry { at: at_second(id), rule: 0 });
        Write::Append(NewMessage { expiry, ..message(&format!("user{user}"), id) })
    };
    let writes = (1..=100).flat_map(|user| (1..=100).map(move |id| expiring(user, id)));
    let outcomes = run(&*store, writes.collect()).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored));
    analyze(at, "offline_message").await;
    store
}

fn at_second(second: i64) -> amphora::time::Timestamp {
    crate::bed::at(second)
}

fn bare(name: &str) -> Bare {
    crate::bed::bare(name)
}

#[tokio::test]
async fn of_postgres_every_question_is_answered_by_an_index() {
    every_question_is_answered_by_an_index(Kind::Postgres).await;
}

#[tokio::test]
async fn of_mariadb_every_question_is_answered_by_an_index() {
    every_question_is_answered_by_an_index(Kind::MariaDb).await;
}

#[tokio::test]
async fn of_postgres_what_is_kept_beside_messages_is_found_by_an_index() {
    what_is_kept_beside_messages_is_found_by_an_index(Kind::Postgres).await;
}

#[tokio::test]
async fn of_mariadb_what_is_kept_beside_messages_is_found_by_an_index() {
    what_is_kept_beside_messages_is_found_by_an_index(Kind::MariaDb).await;
}
