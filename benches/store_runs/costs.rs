//! What the fence, the unique key and the marks cost: the same transactions with and without each of
//! them, in turn, in the same run.
//!
//! The statements are of the store's forms: to PostgreSQL a column is a parameter, and a statement has
//! all rows of the transaction; to the others a row is a tuple of parameters.

use std::ops::Range;
use std::time::Instant;

use sea_orm::sea_query::ArrayType;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend,
    Statement, TransactionTrait, Value,
};

use crate::support::database::Place;
use crate::support::limit::{Rows, TOGETHER};
use crate::support::report::{Report, median};

/// Rows of a statement at most, where a row is a tuple.
const STATEMENT: usize = 256;

/// Transactions of a measurement at most: those of one row are slow.
const TRANSACTIONS: usize = 2_000;

/// What is measured, each beside the whole of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Inserts,
    NoFence,
    NoKey,
    Deletes,
    NoMarks,
}

impl Way {
    fn words(self) -> &'static str {
        match self {
            Way::Inserts => "inserts, all of it",
            Way::NoFence => "inserts without the fence",
            Way::NoKey => "inserts without the unique key",
            Way::Deletes => "deletes, all of it",
            Way::NoMarks => "deletes without marks",
        }
    }

    fn whole(self) -> Way {
        match self {
            Way::Deletes | Way::NoMarks => Way::Deletes,
            _ => Way::Inserts,
        }
    }
}

/// Each with the rows of a transaction. The fence is once a transaction, and the dearer the fewer rows
/// share it.
const CASES: [(Way, usize); 9] = [
    (Way::Inserts, TOGETHER),
    (Way::NoFence, TOGETHER),
    (Way::NoKey, TOGETHER),
    (Way::Deletes, TOGETHER),
    (Way::NoMarks, TOGETHER),
    (Way::Inserts, 64),
    (Way::NoFence, 64),
    (Way::Inserts, 1),
    (Way::NoFence, 1),
];

/// Tells the medians of the rounds. A round does each once, beginning with another one.
pub async fn run(url: Option<&str>, rows: Rows, rounds: usize, report: &Report) {
    let mut rates: Vec<[f64; CASES.len()]> = Vec::new();
    for round in 0..rounds {
        let mut of_round = [0.0; CASES.len()];
        for n in 0..CASES.len() {
            let place = (n + round) % CASES.len();
            of_round[place] = measure(CASES[place], url, rows).await;
        }
        rates.push(of_round);
    }
    for (place, (way, together)) in CASES.into_iter().enumerate() {
        let whole = CASES.iter().position(|case| *case == (way.whole(), together));
        let whole = whole.unwrap_or(place);
        let rate = median(rates.iter().map(|round| round[place]).collect());
        let times = median(rates.iter().map(|round| round[place] / round[whole]).collect());
        report.line(
            &format!("{}, {together} a transaction", way.words()),
            &format!("{rate:>8.0} rows/s, {times:.2} times as fast as all of it"),
            &[("rate", rate), ("times", times)],
        );
    }
}

/// Rows a second.
async fn measure((way, together): (Way, usize), url: Option<&str>, rows: Rows) -> f64 {
    let place = Place::new(url).await;
    let mut options = ConnectOptions::new(place.driver_url());
    options.max_connections(1).sqlx_logging(false);
    let database = Database::connect(options).await.expect("connects");
    let bench = Bench { backend: database.get_database_backend(), rows, way, together };
    bench.set_up(&database).await;
    let inserts = way.whole() == Way::Inserts;
    let began = Instant::now();
    let mut rate = bench.transactions(&database, true).await / began.elapsed().as_secs_f64();
    if !inserts {
        let began = Instant::now();
        rate = bench.transactions(&database, false).await / began.elapsed().as_secs_f64();
    }
    bench.clear_up(&database).await;
    database.close().await.expect("closes");
    rate
}

struct Bench {
    backend: DbBackend,
    rows: Rows,
    way: Way,
    /// Rows of a transaction.
    together: usize,
}

impl Bench {
    async fn set_up(&self, database: &DatabaseConnection) {
        let settings: &[&str] = match self.backend {
            DbBackend::Sqlite => &[
                "PRAGMA journal_mode = WAL",
                "PRAGMA synchronous = FULL",
                "PRAGMA wal_autocheckpoint = 20000",
                "PRAGMA cache_size = -131072",
            ],
            _ => &["UPDATE lane SET fenced = FALSE"],
        };
        for setting in settings {
            database.execute_unprepared(setting).await.expect("sets up");
        }
        if self.way == Way::NoKey {
            let on = if self.backend == DbBackend::MySql { " ON offline_message" } else { "" };
            let drop = format!("DROP INDEX offline_message_key{on}");
            database.execute_unprepared(&drop).await.expect("drops the key");
        }
    }

    async fn clear_up(&self, database: &DatabaseConnection) {
        if self.way == Way::NoKey {
            let key = self.key();
            database.execute_unprepared("DELETE FROM offline_message").await.expect("empties");
            let create =
                format!("CREATE UNIQUE INDEX offline_message_key ON offline_message ({key})");
            database.execute_unprepared(&create).await.expect("makes the key again");
        }
    }

    fn key(&self) -> &'static str {
        if self.backend == DbBackend::MySql { "`key`" } else { "\"key\"" }
    }

    /// Inserts all rows, or deletes them. How many.
    async fn transactions(&self, database: &DatabaseConnection, insert: bool) -> f64 {
        let transactions = (self.rows.count / self.together).min(TRANSACTIONS);
        let statement = match self.backend {
            DbBackend::Postgres => self.together,
            _ => self.together.min(STATEMENT),
        };
        for transaction in 0..transactions {
            let begun = database.begin().await.expect("begins");
            if self.way != Way::NoFence {
                self.raise(&begun).await;
            }
            let first = transaction * self.together;
            for first in (first..first + self.together).step_by(statement) {
                match insert {
                    true => self.insert(&begun, first..first + statement).await,
                    false => self.delete(&begun, first..first + statement).await,
                }
            }
            begun.commit().await.expect("commits");
        }
        (transactions * self.together) as f64
    }

    /// As the store does at the beginning of each transaction.
    async fn raise(&self, begun: &DatabaseTransaction) {
        let raise = match self.backend {
            DbBackend::Sqlite => "UPDATE epoch SET beat = beat + 1 WHERE value > 0",
            DbBackend::Postgres => {
                "INSERT INTO beat (node, slot, beat) SELECT node, floor(random() * 1024)::int, 1 \
                 FROM lane WHERE node = 'amphora' AND incarnation > 0 AND writer = 0 AND term = 0 \
                 AND NOT fenced FOR UPDATE ON CONFLICT (node, slot) DO UPDATE SET beat = beat.beat + 1"
            }
            _ => {
                "UPDATE lane SET beat = beat + 1, \
                 seen_at = CAST(UNIX_TIMESTAMP(SYSDATE(6)) * 1000000 AS SIGNED) \
                 WHERE node = 'amphora' AND incarnation > 0 AND term = 0 AND NOT fenced"
            }
        };
        let raised = begun.execute_raw(Statement::from_string(self.backend, raise)).await;
        assert_eq!(raised.expect("raises").rows_affected(), 1);
    }

    async fn insert(&self, begun: &DatabaseTransaction, rows: Range<usize>) {
        let stanza = vec![b'x'; self.rows.size];
        let row = |n: usize| -> [Value; 10] {
            [
                self.rows.recipient(n).into(),
                (n as i64 + 1).into(),
                Rows::key(n).into(),
                "someone@example.org/resource".into(),
                1_i32.into(),
                (stanza.len() as i64).into(),
                self.rows.now.into(),
                self.rows.now.into(),
                false.into(),
                stanza.clone().into(),
            ]
        };
        let types = "text bigint text text int bigint bigint bigint bool bytea";
        let text = format!(
            "INSERT INTO offline_message (recipient, id, {}, sender, kind, size, stored_at, \
             appended_at, archived, stanza) {}",
            self.key(),
            self.list(types, rows.len())
        );
        self.execute(begun, &text, rows.map(row)).await;
    }

    /// Where there are marks, what was there is told. MySQL can't tell: it is asked first.
    async fn delete(&self, begun: &DatabaseTransaction, rows: Range<usize>) {
        let pair = |n| -> [Value; 2] { [self.rows.recipient(n).into(), (n as i64 + 1).into()] };
        let pairs = rows.clone().map(pair);
        let told = format!("{}, met_rule, appended_at", self.key());
        let list = self.list("text bigint", rows.len());
        let these = match self.backend {
            // MySQL does without the word.
            DbBackend::MySql => list.replace("VALUES ", ""),
            _ => list.clone(),
        };
        let delete = match self.backend {
            DbBackend::Postgres => {
                "DELETE FROM offline_message USING unnest($1::text[], $2::bigint[]) \
                                    AS v (r, i) WHERE recipient = r AND id = i"
                    .to_owned()
            }
            _ => format!("DELETE FROM offline_message WHERE (recipient, id) IN ({these})"),
        };
        if self.way == Way::NoMarks {
            return self.execute(begun, &delete, pairs).await;
        }
        if self.backend == DbBackend::MySql {
            let find = format!(
                "SELECT {told} FROM offline_message WHERE (recipient, id) IN ({these}) FOR UPDATE"
            );
            self.ask(begun, &find, pairs.clone()).await;
            self.execute(begun, &delete, pairs).await;
        } else {
            self.ask(begun, &format!("{delete} RETURNING {told}"), pairs).await;
        }
        let mark = |n| -> [Value; 2] { [Rows::key(n).into(), i64::MAX.into()] };
        let text = format!("INSERT INTO mark ({}, until) {list}", self.key());
        self.execute(begun, &text, rows.map(mark)).await;
    }

    /// It has to change as many rows as it is given.
    async fn execute<const N: usize>(
        &self,
        begun: &DatabaseTransaction,
        text: &str,
        rows: impl ExactSizeIterator<Item = [Value; N]>,
    ) {
        let count = rows.len();
        let statement = Statement::from_sql_and_values(self.backend, text, self.values(rows));
        let done = begun.execute_raw(statement).await.expect("is done");
        assert_eq!(done.rows_affected(), count as u64);
    }

    /// It has to tell of as many rows as it is given.
    async fn ask<const N: usize>(
        &self,
        begun: &DatabaseTransaction,
        text: &str,
        rows: impl ExactSizeIterator<Item = [Value; N]>,
    ) {
        let count = rows.len();
        let statement = Statement::from_sql_and_values(self.backend, text, self.values(rows));
        assert_eq!(begun.query_all_raw(statement).await.expect("tells").len(), count);
    }

    /// So many rows of columns of these types, as parameters.
    fn list(&self, types: &str, rows: usize) -> String {
        let types = types.split(' ');
        if self.backend == DbBackend::Postgres {
            let columns = types.zip(1..).map(|(kind, n)| format!("unnest(${n}::{kind}[])"));
            return format!("SELECT {}", columns.collect::<Vec<_>>().join(", "));
        }
        let row = format!("({})", types.map(|_| "?").collect::<Vec<_>>().join(","));
        format!("VALUES {}", vec![row; rows].join(","))
    }

    /// Rows as such a list wants them.
    fn values<const N: usize>(&self, rows: impl Iterator<Item = [Value; N]>) -> Vec<Value> {
        if self.backend != DbBackend::Postgres {
            return rows.flatten().collect();
        }
        let mut columns: [Vec<Value>; N] = std::array::from_fn(|_| Vec::new());
        for row in rows {
            columns.iter_mut().zip(row).for_each(|(column, value)| column.push(value));
        }
        columns.into_iter().map(array).collect()
    }
}

fn array(values: Vec<Value>) -> Value {
    let of = match values.first() {
        Some(Value::Bool(_)) => ArrayType::Bool,
        Some(Value::Int(_)) => ArrayType::Int,
        Some(Value::BigInt(_)) => ArrayType::BigInt,
        Some(Value::Bytes(_)) => ArrayType::Bytes,
        _ => ArrayType::String,
    };
    Value::Array(of, Some(Box::new(values)))
}
