//! Pages, deletes, hand-overs.

use std::time::{Duration, Instant};

use amphora::store::{Job, Outcome, PageLimit, Run, SeaStore, Store, Write};
use amphora::words::{Bare, MessageId};
use bytes::Bytes;
use sea_orm::sqlx::{self, AssertSqlSafe, Row};
use tokio::sync::oneshot;

use super::appends::message;
use crate::support::database::{Place, Raw};
use crate::support::limit::Rows;
use crate::support::now;
use crate::support::report::{Report, median};

/// A page as the shard asks for one.
pub const PAGE: PageLimit = PageLimit { rows: 50, bytes: 256 * 1024 };

/// Messages of a hand-over.
const MANY: usize = 5_000;

fn users(count: usize) -> Vec<Bare> {
    (0..count).map(|user| Bare::from(format!("user{user}@example.org"))).collect()
}

/// Hands writes over; their outcomes come later.
pub fn submit(store: &SeaStore, writes: Vec<Write>) -> oneshot::Receiver<Vec<Outcome>> {
    let (tell, told) = oneshot::channel();
    let done = Box::new(|outcomes| {
        let _ = tell.send(outcomes);
    });
    store.submit(Job { writes, done });
    told
}

/// Reads these users page by page through the store, then deletes what was read.
pub async fn pages_and_deletes(
    store: &SeaStore,
    count: usize,
    bare: (usize, f64),
    report: &Report,
) {
    let began = Instant::now();
    let mut pages = Vec::new();
    for user in &users(count) {
        let mut after = MessageId::ZERO;
        loop {
            let page = store.page(user.clone(), after, PAGE).await.expect("reads");
            let Some(last) = page.last() else {
                break;
            };
            after = last.id;
            pages.push((user.clone(), page.iter().map(|message| message.id).collect::<Vec<_>>()));
        }
    }
    let rate = bare.0 as f64 / began.elapsed().as_secs_f64();
    let text = format!("{rate:>8.0} rows/s, {:.2} of {:.0} bare", rate / bare.1, bare.1);
    report.line("reads, page by page", &text, &[("rate", rate), ("bare", bare.1)]);
    let began = Instant::now();
    let delete = |(recipient, ids)| submit(store, vec![Write::Delete { recipient, ids }]);
    for answer in pages.into_iter().map(delete).collect::<Vec<_>>() {
        answer.await.expect("an answer");
    }
    let rate = bare.0 as f64 / began.elapsed().as_secs_f64();
    report.line("deletes, page by page", &format!("{rate:>8.0} rows/s"), &[("rate", rate)]);
}

/// Stores messages for one user, then reads them page by page and deletes each page that was
/// read, two pages ahead, as the shard does. The median of some times. `where_to`: what is said of
/// the table.
pub async fn hand_overs(store: &SeaStore, size: usize, where_to: &str, report: &Report) {
    let mut times = Vec::new();
    for time in 0..5 {
        let first = 1_000_000_000 + time * MANY;
        let rows = Rows {
            first,
            count: MANY,
            users: 1,
            size,
            expiring: 0,
            old: 0,
            now: now().as_micros(),
        };
        let stanza = Bytes::from(vec![b'x'; size]);
        let run = Run::new();
        let append = |n| {
            let recipient = "collector@example.org".into();
            Write::Append(amphora::store::NewMessage {
                recipient,
                run: run.clone(),
                ..message(&rows, n, &stanza)
            })
        };
        for part in (first..first + MANY).collect::<Vec<_>>().chunks(500) {
            submit(store, part.iter().copied().map(append).collect()).await.expect("an answer");
        }
        times.push(hand_over(store, "collector@example.org".into()).await.as_secs_f64() * 1e3);
    }
    let time = median(times);
    let text = format!("{time:>8.0} ms (median of 5)");
    report.line(&format!("hand-over of 5,000, {where_to}"), &text, &[("ms", time)]);
}

/// Reads and deletes all that one user has.
async fn hand_over(store: &SeaStore, user: Bare) -> Duration {
    let began = Instant::now();
    let mut after = MessageId::ZERO;
    let mut deletes = std::collections::VecDeque::new();
    let mut deleted = 0;
    loop {
        let page = store.page(user.clone(), after, PAGE).await.expect("reads");
        let Some(last) = page.last() else {
            break;
        };
        after = last.id;
        let ids: Vec<MessageId> = page.iter().map(|message| message.id).collect();
        deletes.push_back(submit(store, vec![Write::Delete { recipient: user.clone(), ids }]));
        if deletes.len() > 2 {
            deleted += rows(deletes.pop_front().expect("more than two").await);
        }
    }
    for delete in deletes {
        deleted += rows(delete.await);
    }
    assert_eq!(deleted, MANY as u64);
    began.elapsed()
}

fn rows(outcomes: Result<Vec<Outcome>, oneshot::error::RecvError>) -> u64 {
    match outcomes.expect("an answer").first() {
        Some(Outcome::Done { rows }) => *rows,
        other => panic!("{other:?}"),
    }
}

/// A macro, since each driver's statements are types of their own.
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
                    .bind(user.to_string())
                    .bind(after)
                    .fetch_all(&mut *$connection)
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

/// Reads as little as can be: how many rows, and how many a second.
pub async fn bare(place: &Place, count: usize) -> (usize, f64) {
    let users = users(count);
    let mut raw = place.connect().await;
    let began = Instant::now();
    let rows = match &mut raw {
        Raw::Sqlite(connection) => read_rows!(connection, users, "\"key\"", "?", "?"),
        Raw::MySql(connection) => read_rows!(connection, users, "`key`", "?", "?"),
        Raw::Postgres(connection) => read_rows!(connection, users, "\"key\"", "$1", "$2"),
    };
    (rows, rows as f64 / began.elapsed().as_secs_f64())
}
