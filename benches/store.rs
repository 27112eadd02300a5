//! How many rows a second the store keeps, beside bare inserts of the same rows into the same
//! kind of file, measured in the same run.
//!
//! `cargo bench --bench store -- [--rows N] [--users N] [--size BYTES] [--rounds N]`

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amphora::stanza::MessageType;
use amphora::store::{
    Job, NewMessage, Outcome, PageLimit, Run, SeaStore, Store, StoreSettings, Write,
};
use amphora::time::Timestamp;
use amphora::words::{Bare, MessageId};
use bytes::Bytes;
use clap::Parser;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{self, AssertSqlSafe, Connection, SqliteConnection};

/// What is measured.
#[derive(Clone, Parser)]
struct Args {
    /// Rows of each run.
    #[arg(long, default_value_t = 200_000)]
    rows: usize,
    /// Recipients that they are spread over.
    #[arg(long, default_value_t = 10_000)]
    users: usize,
    /// Bytes of a stanza.
    #[arg(long, default_value_t = 500)]
    size: usize,
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// `cargo bench` says this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Rows of a transaction of the bare inserts, as many as the store's at most.
const TOGETHER: usize = 1024;
/// Rows of a statement of the bare inserts.
const STATEMENT: usize = 64;

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        println!("{} rows of {} bytes for {} users", args.rows, args.size, args.users);
        for _ in 0..args.rounds {
            let dir = tempfile::tempdir().expect("a temporary folder");
            let bare = bare(dir.path(), &args).await;
            println!("bare inserts, {TOGETHER} a transaction   {bare:>8.0} rows/s");
            for (waiting, job) in [(1024, 1), (1024, 16), (64, 1), (1, 1)] {
                let dir = tempfile::tempdir().expect("a temporary folder");
                let few = Args { rows: args.rows.min(waiting * 400), ..args.clone() };
                let (rate, p50, p99) = store(dir.path(), &few, waiting, job).await;
                println!(
                    "store, {waiting:>4} waiting, {job:>2} a job        {rate:>8.0} rows/s, \
                     {:.2} of bare, p50 {:.1} ms, p99 {:.1} ms",
                    rate / bare,
                    p50.as_secs_f64() * 1e3,
                    p99.as_secs_f64() * 1e3,
                );
            }
            rest(dir.path(), &args).await;
        }
    });
}

/// The `n`th row: users in an order that does not repeat.
fn message(args: &Args, n: usize, stanza: &Bytes) -> NewMessage {
    let user = n.wrapping_mul(2_654_435_761) % args.users;
    NewMessage {
        recipient: format!("user{user}@example.org").into(),
        id: MessageId(n as i64 + 1),
        key: format!("Zk3fQabc-{n}").into(),
        again: false,
        run: Run::new(),
        sender: "someone@example.org/resource".to_owned(),
        kind: MessageType::Chat,
        stored_at: Timestamp::from_micros(n as i64),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: stanza.clone(),
    }
}

fn url(dir: &Path) -> String {
    format!("sqlite://{}/amphora.db", dir.display())
}

/// Inserts without anything round them, into the store's own tables.
async fn bare(dir: &Path, args: &Args) -> f64 {
    SeaStore::open(StoreSettings::new(url(dir))).await.expect("opens").close().await;
    let options = SqliteConnectOptions::new()
        .filename(dir.join("amphora.db"))
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "20000")
        .pragma("cache_size", "-131072");
    let mut connection = SqliteConnection::connect_with(&options).await.expect("connects");
    let tuple = "(?,?,?,?,?,?,?,?,?,?,?,?,?)";
    let text = format!(
        "INSERT INTO offline_message (recipient, id, \"key\", sender, kind, size, stored_at, \
         appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES {}",
        vec![tuple; STATEMENT].join(",")
    );
    let stanza = Bytes::from(vec![b'x'; args.size]);
    let began = Instant::now();
    let mut inserted = 0;
    while inserted + TOGETHER <= args.rows {
        let mut transaction = connection.begin().await.expect("begins");
        for _ in 0..TOGETHER / STATEMENT {
            let mut query = sqlx::query(AssertSqlSafe(text.as_str()));
            for n in inserted..inserted + STATEMENT {
                let row = message(args, n, &stanza);
                query = query
                    .bind(row.recipient.to_string())
                    .bind(row.id.0)
                    .bind(row.key.to_string())
                    .bind(row.sender)
                    .bind(1)
                    .bind(row.stanza.len() as i64)
                    .bind(row.stored_at.as_micros())
                    .bind(row.stored_at.as_micros())
                    .bind(false)
                    .bind(None::<i64>)
                    .bind(None::<i64>)
                    .bind(None::<i64>)
                    .bind(row.stanza.to_vec());
            }
            query.execute(&mut *transaction).await.expect("inserts");
            inserted += STATEMENT;
        }
        transaction.commit().await.expect("commits");
    }
    inserted as f64 / began.elapsed().as_secs_f64()
}

/// Appends through the committer, `waiting` at any time, `together` a job. Rows a second, and
/// how long an append waited.
async fn store(
    dir: &Path,
    args: &Args,
    waiting: usize,
    together: usize,
) -> (f64, Duration, Duration) {
    let store = SeaStore::open(StoreSettings::new(url(dir))).await.expect("opens");
    let stanza = Bytes::from(vec![b'x'; args.size]);
    let (tell, told) = mpsc::channel();
    let began = Instant::now();
    let mut submitted = 0;
    let mut waits = Vec::new();
    let mut submit = |store: &SeaStore| {
        let writes = (submitted..submitted + together)
            .map(|n| Write::Append(message(args, n, &stanza)))
            .collect();
        submitted += together;
        let (tell, since) = (tell.clone(), Instant::now());
        let done = move |outcomes: Vec<Outcome>| {
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored));
            let _ = tell.send(since.elapsed());
        };
        store.submit(Job { writes, done: Box::new(done) });
    };
    for _ in 0..waiting / together {
        submit(&store);
    }
    while waits.len() * together < args.rows {
        waits.push(told.recv().expect("an answer"));
        submit(&store);
    }
    let rate = (waits.len() * together) as f64 / began.elapsed().as_secs_f64();
    store.close().await;
    waits.sort();
    (rate, waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

/// Reads some of what the bare inserts left, page by page, bare and through the store, then
/// deletes it.
async fn rest(dir: &Path, args: &Args) {
    let users: Vec<Bare> = (0..args.users.min(500))
        .map(|user| Bare::from(format!("user{user}@example.org")))
        .collect();
    let began = Instant::now();
    let rows = bare_read(dir, &users).await as f64;
    let bare = rows / began.elapsed().as_secs_f64();
    println!("bare reads, {PAGE} a page               {bare:>8.0} rows/s");
    let store = SeaStore::open(StoreSettings::new(url(dir))).await.expect("opens");
    let began = Instant::now();
    let mut pages = Vec::new();
    for user in &users {
        let mut after = MessageId::ZERO;
        loop {
            let limit = PageLimit { rows: PAGE, bytes: 256 * 1024 };
            let page = store.page(user.clone(), after, limit).await.expect("reads");
            let Some(last) = page.last() else {
                break;
            };
            after = last.id;
            pages.push((user, page.iter().map(|message| message.id).collect::<Vec<_>>()));
        }
    }
    let rate = rows / began.elapsed().as_secs_f64();
    println!(
        "store, pages                           {rate:>8.0} rows/s, {:.2} of bare",
        rate / bare
    );
    let began = Instant::now();
    let mut answers = Vec::new();
    for (user, ids) in pages {
        let (tell, told) = tokio::sync::oneshot::channel();
        let done = Box::new(|outcomes| {
            let _ = tell.send(outcomes);
        });
        store.submit(Job { writes: vec![Write::Delete { recipient: user.clone(), ids }], done });
        answers.push(told);
    }
    for answer in answers {
        answer.await.expect("an answer");
    }
    let rate = rows / began.elapsed().as_secs_f64();
    println!("store, deletes by pages                {rate:>8.0} rows/s");
    store.close().await;
}

/// Rows of a page.
const PAGE: usize = 50;

/// Reads as little as can be, and tells how many rows.
async fn bare_read(dir: &Path, users: &[Bare]) -> usize {
    let options = SqliteConnectOptions::new().filename(dir.join("amphora.db"));
    let mut connection = SqliteConnection::connect_with(&options).await.expect("connects");
    let mut rows = 0;
    for user in users {
        let mut after = 0;
        loop {
            let page: Vec<(i64, String, String, Vec<u8>)> = sqlx::query_as(
                "SELECT id, \"key\", sender, stanza FROM offline_message \
                 WHERE recipient = ? AND id > ? ORDER BY id LIMIT 50",
            )
            .bind(&**user)
            .bind(after)
            .fetch_all(&mut connection)
            .await
            .expect("reads");
            let Some(last) = page.last() else {
                break;
            };
            after = last.0;
            rows += page.len();
        }
    }
    rows
}
