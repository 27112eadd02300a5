//! The limit: the fastest plain inserts of the same rows by the same driver into the same tables.
//!
//! The rows are made before the clock runs, and nothing is looked up or answered. Each database
//! is asked in each of the forms that may be its fastest; the fastest counts.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use sea_orm::ConnectionTrait;
use sea_orm::sqlx::{self, AssertSqlSafe, Connection, PgConnection};

use super::database::{Place, Raw};

/// Rows of a transaction, as many as the store's at most.
pub const TOGETHER: usize = 1024;

/// The rows of a run: the `n`th is always the same.
#[derive(Clone, Copy)]
pub struct Rows {
    /// The number of the first; ids and keys are made of it.
    pub first: usize,
    pub count: usize,
    /// Recipients that they are spread over.
    pub users: usize,
    /// Bytes of a stanza.
    pub size: usize,
    /// One in so many expires, in 2100. Zero: none.
    pub expiring: usize,
    /// One in so many was stored long ago. Zero: none.
    pub old: usize,
    /// When the others were stored, in microseconds.
    pub now: i64,
}

/// A row that was made before it is needed.
pub struct Row {
    pub recipient: String,
    pub id: i64,
    pub key: String,
    pub sender: &'static str,
    pub expiry: Option<(i64, i32)>,
    pub stored_at: i64,
}

/// 2100-01-01, in microseconds.
const FAR: i64 = 4_102_444_800_000_000;

impl Rows {
    /// Users come in an order that does not repeat.
    pub fn recipient(&self, n: usize) -> String {
        format!("user{}@example.org", n.wrapping_mul(2_654_435_761) % self.users)
    }

    pub fn key(n: usize) -> String {
        format!("Zk3fQabc-{n}")
    }

    fn make(&self) -> Vec<Row> {
        let one_in = |n: usize, many: usize| many > 0 && n.is_multiple_of(many);
        let row = |n: usize| Row {
            recipient: self.recipient(n),
            id: n as i64 + 1,
            key: Self::key(n),
            sender: "someone@example.org/resource",
            expiry: one_in(n, self.expiring).then_some((FAR + (n as i64) * 1_000_000, 0)),
            stored_at: if one_in(n, self.old) { 0 } else { self.now },
        };
        (self.first..self.first + self.count).map(row).collect()
    }
}

/// How the rows of a statement are written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Form {
    /// A tuple of parameters a row, so many rows a statement.
    Tuples(usize),
    /// An array a column (PostgreSQL), a statement a transaction, that selects from all arrays.
    Arrays,
    /// The same, but with the arrays in the select list.
    ArraysInStep,
}

/// The forms that were the fastest of each database somewhere. COPY was slower than arrays.
fn forms(raw: &Raw) -> &'static [Form] {
    match raw {
        Raw::Postgres(_) => &[Form::ArraysInStep, Form::Arrays, Form::Tuples(256)],
        Raw::MySql(_) => &[Form::Tuples(256), Form::Tuples(1024)],
        Raw::Sqlite(_) => &[Form::Tuples(64), Form::Tuples(256)],
    }
}

/// Rows a second of the fastest form, and which that was.
pub async fn measure(url: Option<&str>, rows: Rows) -> (f64, Form) {
    let mut best = (0.0, Form::Arrays);
    let place = Place::new(url).await;
    for form in forms(&place.connect().await) {
        let place = Place::new(url).await;
        let took = insert(&mut place.connect().await, *form, rows, || ()).await;
        let rate = rows.count as f64 / took.as_secs_f64();
        if rate > best.0 {
            best = (rate, *form);
        }
    }
    best
}

/// The same beside the rows that are there. The rows are removed again, and leave nothing to be done.
/// (Only `store.rs` asks for it.)
#[allow(dead_code)]
pub async fn measure_beside(place: &Place, rows: Rows) -> (f64, Form) {
    let mut best = (0.0, Form::Arrays);
    for form in forms(&place.connect().await) {
        let took = insert(&mut place.connect().await, *form, rows, || ()).await;
        let rate = rows.count as f64 / took.as_secs_f64();
        if rate > best.0 {
            best = (rate, *form);
        }
        remove(place, rows).await;
        place.settle().await;
    }
    best
}

#[allow(dead_code)]
async fn remove(place: &Place, rows: Rows) {
    let database = place.database().await;
    let column = if place.url.starts_with("mysql") { "`key`" } else { "\"key\"" };
    let ends = rows.first + rows.count;
    for first in (rows.first..ends).step_by(TOGETHER) {
        let keys = (first..ends.min(first + TOGETHER)).map(|n| format!("'{}'", Rows::key(n)));
        let (count, keys) = (keys.len(), keys.collect::<Vec<_>>().join(","));
        let words = format!("DELETE FROM offline_message WHERE {column} IN ({keys})");
        let done = database.execute_unprepared(&words).await.expect("removes");
        assert_eq!(done.rows_affected(), count as u64);
    }
    database.close().await.expect("closes");
}

/// Rows a second on two connections at the same time, half of the rows on each. (Only `store.rs`
/// asks for it.)
#[allow(dead_code)]
pub async fn measure_two(url: Option<&str>, form: Form, rows: Rows) -> f64 {
    let place = Place::new(url).await;
    let (count, start) = (rows.count / 2, Barrier::new(2));
    let half = |first| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (mut raw, rows) = (place.connect().await, Rows { first, count, ..rows });
            insert(&mut raw, form, rows, || {
                start.wait();
            })
            .await
        })
    };
    let took = std::thread::scope(|scope| {
        let halves = [rows.first, rows.first + count].map(|first| scope.spawn(move || half(first)));
        halves.map(|half| half.join().expect("a half")).into_iter().max()
    });
    2.0 * count as f64 / took.unwrap_or_default().as_secs_f64()
}

/// Fills a table fast.
pub async fn fill(place: &Place, rows: Rows) {
    let mut raw = place.connect().await;
    let form = forms(&raw)[0];
    // In parts, so that few wait in memory.
    for first in (rows.first..rows.first + rows.count).step_by(50 * TOGETHER) {
        let count = (50 * TOGETHER).min(rows.first + rows.count - first);
        insert(&mut raw, form, Rows { first, count, ..rows }, || ()).await;
    }
}

const INTO: &str = "INSERT INTO offline_message (recipient, id, KEY, sender, kind, size, \
                    stored_at, appended_at, archived, expires_at, expire_rule, met_rule, stanza) ";

/// Columns of a message.
pub const COLUMNS: usize = 13;

/// An insert of many rows; `parameter` names the `n`th.
fn text(rows: usize, key: &str, parameter: impl Fn(usize) -> String) -> String {
    let row = |row: usize| {
        let columns = (0..COLUMNS).map(|column| parameter(row * COLUMNS + column));
        format!("({})", columns.collect::<Vec<_>>().join(","))
    };
    let rows: Vec<_> = (0..rows).map(row).collect();
    format!("{} VALUES {}", INTO.replace("KEY", key), rows.join(","))
}

/// A macro, since each driver's statements are types of their own.
macro_rules! tuples {
    ($raw:ident, $made:ident, $stanza:ident, $few:ident, $key:expr, $parameter:expr) => {{
        let full = text($few, $key, $parameter);
        for together in $made.chunks(TOGETHER) {
            let mut transaction = $raw.begin().await.expect("begins");
            for rows in together.chunks($few) {
                let text = match rows.len() == $few {
                    true => full.clone(),
                    false => text(rows.len(), $key, $parameter),
                };
                let mut query = sqlx::query(AssertSqlSafe(text));
                for row in rows {
                    query = query
                        .bind(row.recipient.as_str())
                        .bind(row.id)
                        .bind(row.key.as_str())
                        .bind(row.sender)
                        .bind(1_i32)
                        .bind($stanza.len() as i64)
                        .bind(row.stored_at)
                        .bind(row.stored_at)
                        .bind(false)
                        .bind(row.expiry.map(|expiry| expiry.0))
                        .bind(row.expiry.map(|expiry| expiry.1))
                        .bind(None::<i32>)
                        .bind($stanza.as_slice());
                }
                query.execute(&mut *transaction).await.expect("inserts");
            }
            transaction.commit().await.expect("commits");
        }
    }};
}

/// How long it takes from `start` on, which is called when the rows are made.
async fn insert(raw: &mut Raw, form: Form, rows: Rows, start: impl FnOnce()) -> Duration {
    let made = rows.make();
    let stanza = vec![b'x'; rows.size];
    start();
    let began = Instant::now();
    let asked = |_: usize| "?".to_owned();
    match (raw, form) {
        (Raw::Sqlite(raw), Form::Tuples(few)) => {
            tuples!(raw, made, stanza, few, "\"key\"", asked);
        }
        (Raw::MySql(raw), Form::Tuples(few)) => tuples!(raw, made, stanza, few, "`key`", asked),
        (Raw::Postgres(raw), Form::Tuples(few)) => {
            let numbered = |n: usize| format!("${}", n + 1);
            tuples!(raw, made, stanza, few, "\"key\"", numbered);
        }
        (Raw::Postgres(raw), Form::Arrays) => arrays(raw, FROM_ARRAYS, &made, &stanza).await,
        (Raw::Postgres(raw), Form::ArraysInStep) => arrays(raw, IN_STEP, &made, &stanza).await,
        (_, Form::Arrays | Form::ArraysInStep) => unreachable!("only PostgreSQL has arrays"),
    }
    began.elapsed()
}

const FROM_ARRAYS: &str = "\
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::int[], $6::bigint[], \
    $7::bigint[], $8::bigint[], $9::bool[], $10::bigint[], $11::int[], $12::int[], $13::bytea[])";
const IN_STEP: &str = "\
    SELECT unnest($1::text[]), unnest($2::bigint[]), unnest($3::text[]), unnest($4::text[]), \
    unnest($5::int[]), unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::bigint[]), \
    unnest($9::bool[]), unnest($10::bigint[]), unnest($11::int[]), unnest($12::int[]), \
    unnest($13::bytea[])";

async fn arrays(raw: &mut PgConnection, select: &str, made: &[Row], stanza: &[u8]) {
    let text = INTO.replace("KEY", "\"key\"") + select;
    for rows in made.chunks(TOGETHER) {
        let mut transaction = raw.begin().await.expect("begins");
        let count = rows.len();
        let stored_at: Vec<i64> = rows.iter().map(|row| row.stored_at).collect();
        sqlx::query(AssertSqlSafe(text.as_str()))
            .bind(rows.iter().map(|row| row.recipient.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.key.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.sender).collect::<Vec<_>>())
            .bind(vec![1_i32; count])
            .bind(vec![stanza.len() as i64; count])
            .bind(&stored_at)
            .bind(&stored_at)
            .bind(vec![false; count])
            .bind(rows.iter().map(|row| row.expiry.map(|expiry| expiry.0)).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.expiry.map(|expiry| expiry.1)).collect::<Vec<_>>())
            .bind(vec![None::<i32>; count])
            .bind(vec![stanza; count])
            .execute(&mut *transaction)
            .await
            .expect("inserts");
        transaction.commit().await.expect("commits");
    }
}
