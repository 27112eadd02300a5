//! How many rows a second the store keeps, beside the fastest plain inserts of the same rows by
//! the same driver into the same tables, measured in the same run.
//!
//! `cargo bench --bench store -- [--url URL] [--rows-before N] [--churn MINUTES] ...`
//!
//! Without a URL in a new file of SQLite. The database of a URL is emptied again and again. To
//! compare, ask for `?sslmode=disable`: under TLS the bare driver waits for its own packets.
//! `benches/databases.py` runs it on all databases.

mod store_runs;
mod support;

use std::path::PathBuf;
use std::sync::Arc;

use amphora::store::{SeaStore, Store, StoreSettings};
use clap::Parser;

use store_runs::appends::{self, Load};
use store_runs::{churn, costs, crowd, reads};
use support::database::Place;
use support::limit::{self, Rows};
use support::process::Family;
use support::report::Report;

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
    /// Instead: with so many rows in the table, appends and the limit, a hand-over, the look-ups, and
    /// retention.
    #[arg(long)]
    rows_before: Option<usize>,
    /// Instead: appends and deletes for so many minutes, and what they cost in each interval.
    #[arg(long)]
    churn: Option<u64>,
    /// Rows that are there at any time of the churn.
    #[arg(long, default_value_t = 200_000)]
    steady: usize,
    /// Appends a second of the churn.
    #[arg(long, default_value_t = 5_000)]
    rate: usize,
    /// Seconds of an interval of the churn.
    #[arg(long, default_value_t = 30)]
    interval: u64,
    /// Instead: what the fence, the unique key and the marks cost, of transactions of 1,024 rows, the
    /// fence of 64 and of one, too.
    #[arg(long)]
    costs: bool,
    /// A file that figures are added to, a line of JSON each.
    #[arg(long)]
    json: Option<PathBuf>,
    /// `cargo bench` says this.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn rows(&self) -> Rows {
        let (count, users, size) = (self.rows, self.users, self.size);
        Rows { first: 0, count, users, size, expiring: 0, old: 0, now: support::now().as_micros() }
    }
}

fn main() {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let place = Place::new(args.url.as_deref()).await;
        let report = Report { database: place.name(), json: args.json.clone() };
        println!("{}: {} rows of {} bytes", report.database, args.rows, args.size);
        if let Some(minutes) = args.churn {
            let (steady, rate) = (args.steady, args.rate);
            let plan =
                churn::Plan { minutes, steady, rate, interval: args.interval, size: args.size };
            return churn::run(&place, &plan, &report).await;
        }
        if let Some(rows) = args.rows_before {
            return crowd::run(&place, rows, &args.rows(), &report).await;
        }
        if args.costs {
            return costs::run(args.url.as_deref(), args.rows(), args.rounds, &report).await;
        }
        for _ in 0..args.rounds {
            round(&args, &report).await;
        }
    });
}

async fn round(args: &Args, report: &Report) {
    let url = args.url.as_deref();
    let (limit, form) = limit::measure(url, args.rows()).await;
    let what = format!("the limit: plain inserts ({form:?})");
    report.line("limit", &format!("{limit:>8.0} rows/s   {what}"), &[("rate", limit)]);
    if report.database == "PostgreSQL" {
        // The store writes to it on two.
        let two = limit::measure_two(url, form, args.rows()).await;
        report.line("limit, two connections", &format!("{two:>8.0} rows/s"), &[("rate", two)]);
    }
    for (waiting, together) in [(1024, 1), (1024, 16), (64, 1), (1, 1)] {
        let place = Place::new(url).await;
        let store = open(&place).await;
        let count = args.rows.min(waiting * 800);
        let (rows, server) = (Rows { count, ..args.rows() }, Family::behind(&place.url));
        let load = Load { waiting, together, rows, server };
        let figures = appends::run(store.clone(), load).await;
        figures.report(&format!("{waiting} waiting, {together} a job"), Some(limit), report);
        store.close().await;
    }
    let place = Place::new(url).await;
    limit::fill(&place, args.rows()).await;
    let bare = reads::bare(&place, args.users.min(500)).await;
    let store = open(&place).await;
    reads::pages_and_deletes(&store, args.users.min(500), bare, report).await;
    reads::hand_overs(&store, args.size, "store alone", report).await;
    store.close().await;
}

async fn open(place: &Place) -> Arc<SeaStore> {
    Arc::new(SeaStore::open(StoreSettings::new(&place.url)).await.expect("opens"))
}
