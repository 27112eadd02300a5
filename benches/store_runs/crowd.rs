//! A table with many rows: what each kind of work costs there, and what retention does to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amphora::store::{Detail, DuePosition, SeaStore, Store};
use amphora::time::Timestamp;

use super::appends::{self, Figures, Load};
use super::reads::{self, PAGE};
use crate::open;
use crate::support::database::Place;
use crate::support::limit::{self, Rows};
use crate::support::now;
use crate::support::process::Family;
use crate::support::report::{Report, median};

/// Messages of a user.
const EACH: usize = 50;
/// One in so many expires, and one in so many is past the retention.
const EXPIRING: usize = 10;
const OLD: usize = 100;

/// How long appends are measured without retention.
const WITHOUT: Duration = Duration::from_secs(15);
/// A round of retention that takes longer is given up.
const LONGEST: Duration = Duration::from_secs(90);

pub async fn run(place: &Place, count: usize, rows: &Rows, report: &Report) {
    let users = (count / EACH).max(1);
    let before = Rows { count, users, expiring: EXPIRING, old: OLD, ..*rows };
    let began = Instant::now();
    limit::fill(place, before).await;
    place.settle().await;
    let (took, size) = (began.elapsed().as_secs_f64(), place.size().await as f64 / 1e9);
    let text = format!("{count:>8} rows in {took:.0} s, {size:.1} GB");
    report.line("rows before", &text, &[("rows", count as f64), ("gb", size)]);
    let store = open(place).await;
    let server = Family::behind(&place.url);
    let mut first = count;
    for (waiting, count) in [(1024, rows.count), (64, rows.count / 4)] {
        let load = Load { waiting, together: 1, rows: Rows { first, count, ..before }, server };
        let figures = appends::run(store.clone(), load).await;
        first += 2 * count;
        let limit = match waiting {
            1024 => Some(limit_there(place, Rows { first, count, ..before }, report).await),
            _ => None,
        };
        figures.report(&format!("{waiting} waiting, many rows"), limit, report);
    }
    reads::hand_overs(&store, rows.size, "many rows", report).await;
    look_ups(&store, &before, report).await;
    let load = Load { waiting: 64, together: 1, rows: Rows { first, ..before }, server };
    retention(place, &store, load, report).await;
    let server = server.map_or(0, |server| server.memory() / 1024);
    let node = Family::of(std::process::id()).memory() / 1024;
    let text = format!("{node} MiB here, {server} MiB the server");
    report.line("memory", &text, &[("node", node as f64), ("server", server as f64)]);
    store.close().await;
}

/// The limit beside the rows that are there, of rows like those that the store appends. After them,
/// so that it finds the server as warm.
async fn limit_there(place: &Place, rows: Rows, report: &Report) -> f64 {
    let (limit, form) = limit::measure_beside(place, Rows { expiring: 0, old: 0, ..rows }).await;
    let text = format!("{limit:>8.0} rows/s   the limit there: plain inserts ({form:?})");
    report.line("limit, many rows", &text, &[("rate", limit)]);
    limit
}

/// Counts, and what is due.
async fn look_ups(store: &SeaStore, rows: &Rows, report: &Report) {
    let mut counts = Vec::new();
    for n in 0..100 {
        let began = Instant::now();
        let user = rows.recipient(n * 7_919).into();
        store.usage(user, Detail::Messages).await.expect("counts");
        counts.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let count = median(counts);
    report.line("count of a user's messages", &format!("{count:>8.2} ms"), &[("ms", count)]);
    let mut dues = Vec::new();
    let mut from = DuePosition::start();
    let until = Timestamp::from_micros(i64::MAX / 2);
    for _ in 0..100 {
        let began = Instant::now();
        let due = store.due(from.clone(), until, PAGE).await.expect("reads");
        dues.push(began.elapsed().as_secs_f64() * 1e3);
        if let Some(last) = due.last() {
            from = last.position();
        }
    }
    let due = median(dues);
    report.line("page of expiries", &format!("{due:>8.2} ms"), &[("ms", due)]);
}

/// Appends at 64 waiting, without and with a round of retention beside them.
async fn retention(place: &Place, store: &Arc<SeaStore>, load: Load, report: &Report) {
    let rows = load.rows;
    let ends = Instant::now() + WITHOUT;
    let without = appends::while_(store.clone(), load, move |_| Instant::now() < ends).await;
    let first = rows.first + without.waits.len() + 64;
    without.report("64 waiting, without retention", None, report);
    let over = Arc::new(AtomicBool::new(false));
    let seen = over.clone();
    let load = Load { rows: Rows { first, ..rows }, ..load };
    let appending = appends::while_(store.clone(), load, move |_| !seen.load(Ordering::Relaxed));
    let before = Timestamp::from_micros(now().as_micros() - 86_400_000_000);
    let there = rows.count.div_ceil(OLD);
    let began = Instant::now();
    let purging = async {
        let purged = tokio::time::timeout(LONGEST, store.purge(Some(before), before)).await;
        over.store(true, Ordering::Relaxed);
        let given_up = purged.map(|purged| purged.expect("purges")).is_err();
        (given_up, began.elapsed().as_secs_f64())
    };
    let (with, (given_up, took)): (Figures, _) = futures::join!(appending, purging);
    with.report("64 waiting, during retention", None, report);
    let removed = there as f64 - place.number(TOO_OLD).await as f64;
    let how = if given_up { ", then given up" } else { "" };
    let text = format!("{removed:>8} of {there} old rows removed in {took:.0} s{how}");
    let numbers = [("s", took), ("rows", removed), ("rate", removed / took)];
    report.line("a round of retention", &text, &numbers);
}

/// How many rows are past the retention.
const TOO_OLD: &str = "SELECT count(*) FROM offline_message WHERE stored_at = 0";
