//! How many rows a second the store keeps, beside bare inserts of the same rows by the same
//! driver into the same tables, measured in the same run.
//!
//! `cargo bench --bench store -- [--url URL] [--rows N] [--users N] [--size BYTES] [--rounds N]
//! [--costs]`
//!
//! Without a URL in a new file of SQLite. The database of a URL is emptied again and again. To
//! compare, ask for `?sslmode=disable`: under TLS the bare driver waits for its own packets.

#[path = "store/costs.rs"]
mod costs;

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
use sea_orm::sqlx::Row;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::sqlx::{
    self, AssertSqlSafe, Connection, MySqlConnection, PgConnection, SqliteConnection,
};
use sea_orm::{ConnectionTrait, Database};
use tempfile::TempDir;

/// What is measured.
#[derive(Clone, Parser)]
struct Args {
    /// The database of a server, as `postgres://` or `mysql://`; all messages in it go.
    #[arg(long)]
    url: Option<String>,
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
    /// Instead: what the fence, the unique key and the marks cost.
    #[arg(long)]
    costs: bool,
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
        if args.costs {
            return costs::costs(&args).await;
        }
        for _ in 0..args.rounds {
            let place = Place::new(&args).await;
            let bare = bare(&place, &args).await;
            println!("bare inserts, {TOGETHER} a transaction   {bare:>8.0} rows/s");
            for (waiting, job) in [(1024, 1), (1024, 16), (64, 1), (1, 1)] {
                let place = Place::new(&args).await;
                let few = Args { rows: args.rows.min(waiting * 400), ..args.clone() };
                let (rate, p50, p99) = store(&place, &few, waiting, job).await;
                println!(
                    "store, {waiting:>4} waiting, {job:>2} a job        {rate:>8.0} rows/s, \
                     {:.2} of bare, p50 {:.1} ms, p99 {:.1} ms",
                    rate / bare,
                    p50.as_secs_f64() * 1e3,
                    p99.as_secs_f64() * 1e3,
                );
            }
            let place = Place::new(&args).await;
            self::bare(&place, &args).await;
            rest(&place, &args).await;
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

/// Rows a second. A macro, since each driver's statements are types of their own.
macro_rules! insert_rows {
    ($connection:ident, $args:ident, $text:expr) => {{
        let text = $text;
        let stanza = Bytes::from(vec![b'x'; $args.size]);
        let began = Instant::now();
        let mut inserted = 0;
        while inserted + TOGETHER <= $args.rows {
            let mut transaction = $connection.begin().await.expect("begins");
            for _ in 0..TOGETHER / STATEMENT {
                let mut query = sqlx::query(AssertSqlSafe(text.as_str()));
                for n in inserted..inserted + STATEMENT {
                    let row = message($args, n, &stanza);
                    query = query
                        .bind(row.recipient.to_string())
                        .bind(row.id.0)
                        .bind(row.key.to_string())
                        .bind(row.sender)
                        .bind(1_i32)
                        .bind(row.stanza.len() as i64)
                        .bind(row.stored_at.as_micros())
                        .bind(row.stored_at.as_micros())
                        .bind(false)
                        .bind(None::<i64>)
                        .bind(None::<i32>)
                        .bind(None::<i32>)
                        .bind(row.stanza.to_vec());
                }
                query.execute(&mut *transaction).await.expect("inserts");
                inserted += STATEMENT;
            }
            transaction.commit().await.expect("commits");
        }
        inserted as f64 / began.elapsed().as_secs_f64()
    }};
}

/// An empty database with the store's tables.
struct Place {
    url: String,
    _dir: Option<TempDir>,
}

impl Place {
    async fn new(args: &Args) -> Self {
        let (url, dir) = match &args.url {
            Some(url) => (url.clone(), None),
            None => {
                let dir = tempfile::tempdir().expect("a temporary folder");
                (format!("sqlite://{}/amphora.db", dir.path().display()), Some(dir))
            }
        };
        SeaStore::open(StoreSettings::new(&url)).await.expect("opens").close().await;
        if args.url.is_some() {
            let database = Database::connect(&url).await.expect("connects");
            for table in ["offline_message", "mark"] {
                let truncate = format!("TRUNCATE TABLE {table}");
                database.execute_unprepared(&truncate).await.expect("empties");
            }
            database.close().await.expect("closes");
        }
        Place { url, _dir: dir }
    }

    async fn connect(&self) -> Raw {
        if self.url.starts_with("postgres") {
            return Raw::Postgres(PgConnection::connect(&self.url).await.expect("connects"));
        }
        if self.url.starts_with("mysql") {
            return Raw::MySql(MySqlConnection::connect(&self.url).await.expect("connects"));
        }
        let options: SqliteConnectOptions = self.url.parse().expect("a url");
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", "20000")
            .pragma("cache_size", "-131072");
        Raw::Sqlite(SqliteConnection::connect_with(&options).await.expect("connects"))
    }
}

/// A bare connection to one of the three.
enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
    MySql(MySqlConnection),
}

/// Inserts without anything round them, into the store's own tables.
async fn bare(place: &Place, args: &Args) -> f64 {
    match place.connect().await {
        Raw::Sqlite(mut connection) => {
            insert_rows!(connection, args, values(|_, _| "?".to_owned(), "\"key\""))
        }
        Raw::MySql(mut connection) => {
            insert_rows!(connection, args, values(|_, _| "?".to_owned(), "`key`"))
        }
        Raw::Postgres(mut connection) => {
            let number = |row: usize, column: usize| format!("${}", row * COLUMNS + column + 1);
            insert_rows!(connection, args, values(number, "\"key\""))
        }
    }
}

/// Columns of a message.
const COLUMNS: usize = 13;

/// An insert of many rows; `parameter` names one by row and column.
fn values(parameter: impl Fn(usize, usize) -> String, key: &str) -> String {
    let row = |row: usize| {
        let columns: Vec<_> = (0..COLUMNS).map(|column| parameter(row, column)).collect();
        format!("({})", columns.join(","))
    };
    let rows: Vec<_> = (0..STATEMENT).map(row).collect();
    format!(
        "INSERT INTO offline_message (recipient, id, {key}, sender, kind, size, stored_at, \
         appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES {}",
        rows.join(",")
    )
}

/// Appends through the committer, `waiting` at any time, `together` a job. Rows a second, and
/// how long an append waited.
async fn store(
    place: &Place,
    args: &Args,
    waiting: usize,
    together: usize,
) -> (f64, Duration, Duration) {
    let store = SeaStore::open(StoreSettings::new(&place.url)).await.expect("opens");
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
async fn rest(place: &Place, args: &Args) {
    let users: Vec<Bare> = (0..args.users.min(500))
        .map(|user| Bare::from(format!("user{user}@example.org")))
        .collect();
    let began = Instant::now();
    let rows = bare_read(place, &users).await as f64;
    let bare = rows / began.elapsed().as_secs_f64();
    println!("bare reads, {PAGE} a page               {bare:>8.0} rows/s");
    let store = SeaStore::open(StoreSettings::new(&place.url)).await.expect("opens");
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

/// A macro for the same reason as above.
macro_rules! read_rows {
    ($connection:ident, $users:ident, $key:expr, $user:expr, $after:expr) => {{
        let text = format!(
            "SELECT id, {}, sender, stanza FROM offline_message \
             WHERE recipient = {} AND id > {} ORDER BY id LIMIT 50",
            $key, $user, $after
        );
        let mut rows = 0;
        for user in $users {
            let mut after = 0_i64;
            loop {
                let page = sqlx::query(AssertSqlSafe(text.as_str()))
                    .bind(&**user)
                    .bind(after)
                    .fetch_all(&mut $connection)
                    .await
                    .expect("reads");
                let Some(last) = page.last() else {
                    break;
                };
                after = last.get(0);
                rows += page.len();
            }
        }
        rows
    }};
}

/// Reads as little as can be, and tells how many rows.
async fn bare_read(place: &Place, users: &[Bare]) -> usize {
    match place.connect().await {
        Raw::Sqlite(mut connection) => read_rows!(connection, users, "\"key\"", "?", "?"),
        Raw::MySql(mut connection) => read_rows!(connection, users, "`key`", "?", "?"),
        Raw::Postgres(mut connection) => read_rows!(connection, users, "\"key\"", "$1", "$2"),
    }
}
