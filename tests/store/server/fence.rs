//! Two processes at one database: one of them writes.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, mpsc};

use amphora::store::{Job, Outcome, SeaStore, Store, StoreError, StoreSettings};
use amphora::words::{MessageId, ShardId};
use migration::{Migrator, MigratorTrait};
use tokio::time::{Duration, timeout};

use super::{Kind, ServerBed, TestServer, execute, on_each_server, value};
use crate::bed::*;

on_each_server!(
    a_node_of_another_name_is_refused_until_the_first_is_closed,
    a_process_of_the_same_name_supersedes_the_first,
    a_node_that_was_not_seen_for_a_while_is_taken_over,
    an_idle_node_shows_that_it_lives,
    a_process_that_stood_still_is_fenced,
    a_process_that_stood_still_within_a_transaction_is_fenced,
    shards_are_taken_from_a_process_that_stood_still,
    shards_are_taken_from_a_process_that_stood_still_within_a_transaction,
    what_a_killed_process_acknowledged_is_there,
    a_superseded_node_ends_with_a_code_of_its_own,
);

fn named(at: &ServerBed, node: &str) -> StoreSettings {
    StoreSettings { node: node.to_owned(), ..at.bed.settings.clone() }
}

async fn a_node_of_another_name_is_refused_until_the_first_is_closed(at: ServerBed) {
    let first = SeaStore::open(named(&at, "a")).await.unwrap();
    for _ in 0..2 {
        let error = SeaStore::open(named(&at, "b")).await.unwrap_err();
        assert!(matches!(error, StoreError::Held { .. }), "{error:?}");
        let text = error.to_string();
        for word in ["another amphora", "node 'a'", &at.name, "stop it"] {
            assert!(text.contains(word), "{text}");
        }
    }
    assert_eq!(run(&first, vec![append("bob", 1)]).await, [Outcome::Stored]);
    // Another database of the same server is another matter.
    let other = ServerBed::new(at.kind).await;
    SeaStore::open(named(&other, "b")).await.unwrap().close().await;
    assert!(first.healthy());
    first.close().await;
    let second = SeaStore::open(named(&at, "b")).await.unwrap();
    assert_eq!(ids(&second, "bob").await, [1]);
    second.close().await;
}

async fn a_process_of_the_same_name_supersedes_the_first(at: ServerBed) {
    let first = SeaStore::open(named(&at, "a")).await.unwrap();
    assert_eq!(run(&first, vec![append("bob", 1)]).await, [Outcome::Stored]);
    let second = SeaStore::open(named(&at, "a")).await.unwrap();
    assert!(second.epoch(ShardId(0)) > first.epoch(ShardId(0)));
    // It hands nothing over, stores nothing, deletes nothing.
    let read = first.page(bare("bob"), MessageId::ZERO, ALL).await;
    assert!(matches!(read, Err(StoreError::Fenced)), "{read:?}");
    let outcomes = run(&first, vec![append("bob", 2), delete("bob", &[1])]).await;
    assert_eq!(outcomes, [Outcome::Retry, Outcome::Retry]);
    first.superseded().await;
    assert!(!first.healthy());
    assert_eq!(run(&first, vec![append("bob", 3)]).await, [Outcome::Retry]);
    assert_eq!(run(&second, vec![append("bob", 4)]).await, [Outcome::Stored]);
    // Its end takes nothing from the other.
    first.close().await;
    assert_eq!(run(&second, vec![append("bob", 5)]).await, [Outcome::Stored]);
    assert_eq!(ids(&second, "bob").await, [1, 4, 5]);
    second.close().await;
    let nobody = timeout(Duration::from_millis(100), second.superseded()).await;
    assert!(nobody.is_err(), "a store that was closed was not superseded");
}

async fn a_node_that_was_not_seen_for_a_while_is_taken_over(at: ServerBed) {
    let first = SeaStore::open(named(&at, "a")).await.unwrap();
    assert_eq!(run(&first, vec![append("bob", 1)]).await, [Outcome::Stored]);
    let raw = at.raw().await;
    let mut second = None;
    while second.is_none() {
        // An hour ago, until it says again that it lives.
        execute(&raw, "UPDATE lane SET seen_at = seen_at - 3600000000 WHERE node = 'a'").await;
        second = SeaStore::open(named(&at, "b")).await.ok();
    }
    first.superseded().await;
    assert_eq!(run(&first, vec![append("bob", 2)]).await, [Outcome::Retry]);
    assert_eq!(ids(&second.unwrap(), "bob").await, [1]);
}

async fn an_idle_node_shows_that_it_lives(at: ServerBed) {
    let store = at.bed.open().await;
    let raw = at.raw().await;
    let seen = "SELECT seen_at FROM lane";
    let twice = async {
        for _ in 0..2 {
            let before: i64 = value(&raw, seen).await;
            while value::<i64>(&raw, seen).await == before {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), twice).await.expect("it is seen again");
    store.close().await;
}

const URL: &str = "AMPHORA_TEST_URL";
/// Set: the child shares the database, and takes all shards.
const SHARED: &str = "AMPHORA_TEST_SHARED";

/// What a child says, line by line. It is read as it comes: a child whose pipe is full would
/// stand still.
type Lines = mpsc::Receiver<String>;

fn lines(of: ChildStdout) -> Lines {
    let (said, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(of);
        loop {
            let mut line = String::new();
            let end = reader.read_line(&mut line).unwrap() == 0;
            if end || said.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Runs the ignored test below in a process of its own.
fn child(at: &ServerBed) -> (Child, Lines) {
    child_with(at, &[])
}

fn child_with(at: &ServerBed, more: &[(&str, &str)]) -> (Child, Lines) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "server::fence::appends_until_its_end", "--ignored", "--nocapture"])
        .env(URL, &at.bed.settings.url)
        .envs(more.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child");
    let lines = lines(child.stdout.take().expect("lines"));
    (child, lines)
}

/// In the child: appends without end, to seven users in turn, and tells what comes of it.
#[tokio::test]
#[ignore = "is run by its parent"]
async fn appends_until_its_end() {
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    let shared = std::env::var(SHARED).is_ok();
    let append_limit = Duration::from_secs(600);
    let settings = StoreSettings { append_limit, shared, ..StoreSettings::new(url) };
    let store = Arc::new(SeaStore::open(settings).await.unwrap());
    if shared {
        store.take(store.ownership().await.unwrap().shards).await.unwrap();
    }
    let (tell, told) = mpsc::channel::<(i64, Outcome)>();
    let mut next = i64::from(store.epoch(ShardId(0))) << 32;
    let mut submit = || {
        next += 1;
        let (id, tell) = (next, tell.clone());
        let done = Box::new(move |outcomes: Vec<Outcome>| {
            let _ = outcomes.into_iter().try_for_each(|outcome| tell.send((id, outcome)));
        });
        store.submit(Job { writes: vec![append(&format!("user{}", id % 7), id)], done });
    };
    for _ in 0..64 {
        submit();
    }
    let mut out = std::io::stdout();
    while let Ok((id, outcome)) = told.recv() {
        // One write: a line is told whole or not at all.
        out.write_all(format!("{outcome:?} {id}\n").as_bytes()).unwrap();
        if outcome == Outcome::Retry {
            break;
        }
        submit();
    }
    store.superseded().await;
    out.write_all(b"superseded\n").unwrap();
}

/// What a child told: the ids that it calls stored, those it was told to try again, and whether
/// it ended because it was superseded.
#[derive(Default, Debug)]
struct Told {
    stored: Vec<i64>,
    retries: Vec<i64>,
    superseded: bool,
}

impl Told {
    fn hear(&mut self, lines: &Lines) -> bool {
        let Ok(line) = lines.recv() else {
            return false;
        };
        let id = || line.trim_end().rsplit(' ').next().and_then(|id| id.parse::<i64>().ok());
        if line.contains("Stored ") && line.ends_with('\n') {
            self.stored.extend(id());
        } else if line.contains("Retry ") && line.ends_with('\n') {
            self.retries.extend(id());
        } else if line.contains("superseded") {
            self.superseded = true;
        }
        true
    }
}

/// Every id, by user, in order.
async fn all_ids(store: &dyn Store) -> Vec<i64> {
    let mut all = Vec::new();
    for user in 0..7 {
        let of_user = ids(store, &format!("user{user}")).await;
        assert!(of_user.is_sorted_by(|a, b| a < b), "{of_user:?}");
        all.extend(of_user);
    }
    all
}

fn signal(child: &Child, signal: &str) {
    let id = child.id().to_string();
    assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
}

/// The other goes on; then the first does, and can do no harm.
async fn is_fenced(second: Arc<dyn Store>, child: Child, lines: Lines, mut told: Told) {
    let mut child = Killed(child);
    let after = MessageId::new(second.epoch(ShardId(0)), 0)
        .0
        .max(i64::from(second.epoch(ShardId(0))) << 32);
    assert_eq!(run(&*second, vec![append("user1", after)]).await, [Outcome::Stored]);
    let at_take = all_ids(&*second).await;

    signal(&child.0, "-CONT");
    let told = tokio::task::spawn_blocking(move || {
        let before = told.stored.len();
        while told.hear(&lines) {
            // What was in the pipe may come; one that is not fenced would go on for ever.
            assert!(told.stored.len() < before + 5000, "it goes on");
        }
        child.0.wait().unwrap();
        told
    });
    let told = told.await.unwrap();
    assert!(told.superseded && !told.retries.is_empty(), "{told:?}");
    // Nothing is lost, and nothing has come since.
    for id in &told.stored {
        assert!(at_take.contains(id), "{id} is lost");
    }
    assert_eq!(all_ids(&*second).await, at_take);
    // What was to be tried again is stored once, whatever had become of it.
    let first = *told.retries.iter().min().unwrap();
    let key = format!("user{}-{first}", first % 7);
    let again = again(&format!("user{}", first % 7), after + 1, &key);
    let outcome = run(&*second, vec![again]).await.remove(0);
    assert_eq!(outcome == Outcome::Stored, !at_take.contains(&first), "{outcome:?}");
    second.close().await;
}

/// Stops a child that appends.
async fn stopped(at: &ServerBed, more: &[(&str, &str)]) -> (Child, Lines, Told) {
    let (child, lines) = child_with(at, more);
    let mut told = Told::default();
    while told.stored.len() < 200 {
        assert!(told.hear(&lines), "the child ended by itself: {told:?}");
    }
    signal(&child, "-STOP");
    (child, lines, told)
}

/// Stops it after it has updated its lane: an insert waits, on each connection that writes. In
/// PostgreSQL by a trigger, since a lock is not waited for longer than a second, which a busy machine
/// may need to get here.
async fn stopped_within_a_transaction(
    at: &ServerBed,
    more: &[(&str, &str)],
) -> (Child, Lines, Told) {
    let other = at.raw().await;
    Migrator::up(&other, None).await.expect("makes the tables");
    let (make, hold, let_go, waiting) = match at.kind {
        Kind::Postgres => (
            "CREATE TABLE hold (it int); \
             CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             WHILE EXISTS (SELECT FROM hold) LOOP PERFORM pg_sleep(0.01); END LOOP; \
             RETURN NEW; END $$; \
             CREATE TRIGGER wait BEFORE INSERT ON offline_message \
             FOR EACH ROW EXECUTE FUNCTION wait()",
            "INSERT INTO hold VALUES (1)",
            "DELETE FROM hold",
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
             AND wait_event = 'PgSleep'"
                .to_owned(),
        ),
        Kind::MariaDb => (
            "DO 0",
            "LOCK TABLES offline_message WRITE",
            "UNLOCK TABLES",
            format!(
                "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE DB = '{}' \
                 AND STATE LIKE 'Waiting for table metadata lock%'",
                at.name
            ),
        ),
    };
    execute(&other, make).await;
    let (child, lines) = child_with(at, more);
    let mut told = Told::default();
    while told.stored.len() < 50 {
        assert!(told.hear(&lines), "the child ended by itself: {told:?}");
    }
    let administrator = TestServer::shared(at.kind).administrator(&at.name).await;
    execute(&other, hold).await;
    let writers = if at.kind == Kind::Postgres && more.is_empty() { 2 } else { 1 };
    while value::<i64>(&administrator, &waiting).await < writers {}
    signal(&child, "-STOP");
    execute(&other, let_go).await;
    (child, lines, told)
}

async fn a_process_that_stood_still_is_fenced(at: ServerBed) {
    let (child, lines, told) = stopped(&at, &[]).await;
    is_fenced(at.bed.open().await, child, lines, told).await;
}

async fn a_process_that_stood_still_within_a_transaction_is_fenced(at: ServerBed) {
    let (child, lines, told) = stopped_within_a_transaction(&at, &[]).await;
    is_fenced(at.bed.open().await, child, lines, told).await;
}

/// Another node takes all shards from the one that is believed dead.
async fn taker(at: &ServerBed) -> Arc<dyn Store> {
    let store = SeaStore::open(StoreSettings { shared: true, ..named(at, "b") }).await.unwrap();
    let seen = store.ownership().await.unwrap();
    let first = seen.members.iter().find(|member| member.incarnation.node == "amphora").unwrap();
    assert!(!first.fenced, "it is taken from while it is not fenced");
    store.take(seen.shards).await.unwrap();
    Arc::new(store)
}

async fn shards_are_taken_from_a_process_that_stood_still(at: ServerBed) {
    let (child, lines, told) = stopped(&at, &[(SHARED, "")]).await;
    is_fenced(taker(&at).await, child, lines, told).await;
}

async fn shards_are_taken_from_a_process_that_stood_still_within_a_transaction(at: ServerBed) {
    let (child, lines, told) = stopped_within_a_transaction(&at, &[(SHARED, "")]).await;
    is_fenced(taker(&at).await, child, lines, told).await;
}

async fn what_a_killed_process_acknowledged_is_there(at: ServerBed) {
    let mut stored = Vec::new();
    for round in 1..=3_usize {
        let (mut child, lines) = child(&at);
        let mut told = Told::default();
        while told.stored.len() < 200 * round {
            assert!(told.hear(&lines), "the child ended by itself: {told:?}");
        }
        child.kill().unwrap();
        // What is still in the pipe.
        while told.hear(&lines) {}
        child.wait().unwrap();
        stored.extend(told.stored);
        // Its sessions may still be ending; that is no hindrance.
        let store = at.bed.open().await;
        assert_eq!(store.epoch(ShardId(0)) as usize, 2 * round);
        let there = all_ids(&*store).await;
        for id in &stored {
            assert!(there.contains(id), "{id} is lost");
        }
        store.close().await;
    }
}

async fn a_superseded_node_ends_with_a_code_of_its_own(at: ServerBed) {
    let dir = tempfile::tempdir().unwrap();
    let node = |command: &str| {
        let mut node = Command::new(env!("CARGO_BIN_EXE_amphora"));
        node.args([command, "--store-url", &at.bed.settings.url])
            .current_dir(dir.path())
            .env("AMPHORA__HTTP__LISTEN", "")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        node
    };
    let mut first = Killed(node("run").spawn().unwrap());
    let mut log = BufReader::new(first.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("no server is configured") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0, "it ended by itself");
    }
    let raw = at.raw().await;
    let lane = "SELECT count(*) FROM lane WHERE node = 'amphora'";
    while sea_orm::ConnectionTrait::execute_unprepared(&raw, lane).await.is_err()
        || value::<i64>(&raw, lane).await == 0
    {}
    // A migration does not supersede it.
    let migration = node("migrate").output().unwrap();
    assert_eq!(migration.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&migration.stderr).contains("node 'amphora'"));

    let mut second = Killed(node("run").spawn().unwrap());
    let ended = tokio::task::spawn_blocking(move || first.0.wait().unwrap()).await.unwrap();
    assert_eq!(ended.code(), Some(79));
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut log, &mut rest).unwrap();
    assert!(rest.contains("has taken the database over") && !rest.contains("secret"), "{rest}");
    // It has all that the first had, the control socket too.
    while std::os::unix::net::UnixStream::connect(dir.path().join("amphora.sock")).is_err() {
        assert!(second.0.try_wait().unwrap().is_none(), "it ended by itself");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
