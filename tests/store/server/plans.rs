//! How the servers find rows, as they say themselves of each statement that a store sends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amphora::store::{
    Detail, DuePosition, NewMessage, Outcome, PageLimit, Store, StoreSettings, Write,
};
use amphora::words::{Bare, Expiry, MessageId};

use super::{Kind, ServerBed, TestServer, execute};
use crate::bed::*;

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
    let analyze = match at.kind {
        Kind::Postgres => "ANALYZE offline_message",
        Kind::MariaDb => "ANALYZE TABLE offline_message",
    };
    execute(&at.raw().await, analyze).await;
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
