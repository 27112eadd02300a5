//! What the fence, the unique key and the marks cost: the same many-row transactions with and
//! without each of them, in turn, in the same run.

use std::time::Instant;

use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend,
    Statement, TransactionTrait, Value,
};

use crate::support::database::Place;
use crate::support::limit::{COLUMNS, Rows, TOGETHER};

/// Rows of a statement.
const STATEMENT: usize = 64;

/// What is measured, each beside the whole of its kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Inserts,
    NoLane,
    NoKey,
    Deletes,
    NoMarks,
}

impl Way {
    const ALL: [Way; 5] = [Way::Inserts, Way::NoLane, Way::NoKey, Way::Deletes, Way::NoMarks];

    fn words(self) -> &'static str {
        match self {
            Way::Inserts => "inserts, all of it",
            Way::NoLane => "inserts without the fence",
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

/// Prints the medians of the rounds. A round does each once, beginning with another one.
pub async fn run(url: Option<&str>, rows: Rows, rounds: usize) {
    let mut rates: Vec<[f64; 5]> = Vec::new();
    for round in 0..rounds {
        let mut of_round = [0.0; 5];
        for n in 0..Way::ALL.len() {
            let place = (n + round) % Way::ALL.len();
            of_round[place] = measure(Way::ALL[place], url, rows).await;
        }
        rates.push(of_round);
    }
    println!("{TOGETHER} rows a transaction, {STATEMENT} a statement; medians of {rounds}");
    for (place, way) in Way::ALL.into_iter().enumerate() {
        let whole = Way::ALL.iter().position(|one| *one == way.whole()).unwrap_or(place);
        let rate = median(rates.iter().map(|round| round[place]));
        let ratio = median(rates.iter().map(|round| round[place] / round[whole]));
        println!("{:<40} {rate:>8.0} rows/s, {ratio:.2} of the whole", way.words());
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rows a second.
async fn measure(way: Way, url: Option<&str>, rows: Rows) -> f64 {
    let place = Place::new(url).await;
    let mut options = ConnectOptions::new(place.driver_url());
    options.max_connections(1).sqlx_logging(false);
    let database = Database::connect(options).await.expect("connects");
    let bench = Bench { backend: database.get_database_backend(), rows, way };
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
        let mut done = 0;
        while done + TOGETHER <= self.rows.count {
            let begun = database.begin().await.expect("begins");
            if self.way != Way::NoLane {
                self.raise(&begun).await;
            }
            for first in (done..done + TOGETHER).step_by(STATEMENT) {
                match insert {
                    true => self.insert(&begun, first).await,
                    false => self.delete(&begun, first).await,
                }
            }
            begun.commit().await.expect("commits");
            done += TOGETHER;
        }
        done as f64
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

    async fn insert(&self, begun: &DatabaseTransaction, first: usize) {
        let stanza = vec![b'x'; self.rows.size];
        let values = (first..first + STATEMENT).flat_map(|n| -> [Value; COLUMNS] {
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
                None::<i64>.into(),
                None::<i32>.into(),
                None::<i32>.into(),
                stanza.clone().into(),
            ]
        });
        let text = format!(
            "INSERT INTO offline_message (recipient, id, {}, sender, kind, size, stored_at, \
             appended_at, archived, expires_at, expire_rule, met_rule, stanza) VALUES {}",
            self.key(),
            self.tuples(COLUMNS)
        );
        self.execute(begun, &text, values.collect()).await;
    }

    /// MySQL can't tell what it deletes: for the marks it is asked first.
    async fn delete(&self, begun: &DatabaseTransaction, first: usize) {
        let rows = first..first + STATEMENT;
        let pairs = rows
            .clone()
            .flat_map(|n| -> [Value; 2] { [self.rows.recipient(n).into(), (n as i64 + 1).into()] });
        let pairs: Vec<Value> = pairs.collect();
        // SQLite wants the word.
        let list = match self.backend {
            DbBackend::Sqlite => format!("VALUES {}", self.tuples(2)),
            _ => self.tuples(2),
        };
        let marks = self.way != Way::NoMarks;
        if marks && self.backend == DbBackend::MySql {
            let find = format!(
                "SELECT `key`, met_rule, appended_at FROM offline_message \
                 WHERE (recipient, id) IN ({list}) FOR UPDATE"
            );
            let find = Statement::from_sql_and_values(self.backend, find, pairs.clone());
            assert_eq!(begun.query_all_raw(find).await.expect("finds").len(), STATEMENT);
        }
        let delete = format!("DELETE FROM offline_message WHERE (recipient, id) IN ({list})");
        self.execute(begun, &delete, pairs).await;
        if marks {
            let values = rows.flat_map(|n| -> [Value; 3] {
                [Rows::key(n).into(), None::<i32>.into(), i64::MAX.into()]
            });
            let mark = format!(
                "INSERT INTO mark ({}, met_rule, until) VALUES {}",
                self.key(),
                self.tuples(3)
            );
            self.execute(begun, &mark, values.collect()).await;
        }
    }

    async fn execute(&self, begun: &DatabaseTransaction, text: &str, values: Vec<Value>) {
        let statement = Statement::from_sql_and_values(self.backend, text, values);
        let done = begun.execute_raw(statement).await.expect("is done");
        assert_eq!(done.rows_affected(), STATEMENT as u64);
    }

    /// Parameters of a statement, a tuple a row.
    fn tuples(&self, columns: usize) -> String {
        let parameter = |n: usize| match self.backend {
            DbBackend::Postgres => format!("${}", n + 1),
            _ => "?".to_owned(),
        };
        let tuple = |row: usize| {
            let all: Vec<_> =
                (0..columns).map(|column| parameter(row * columns + column)).collect();
            format!("({})", all.join(","))
        };
        (0..STATEMENT).map(tuple).collect::<Vec<_>>().join(",")
    }
}
