//! Messages come and go, at a steady number of rows: what drifts shows. The rows stay.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amphora::store::{Job, Outcome, Run, SeaStore, Store, Write};
use amphora::words::{Bare, MessageId};
use bytes::Bytes;

use super::appends::message;
use super::reads::{self, PAGE};
use crate::open;
use crate::support::database::Place;
use crate::support::limit::Rows;
use crate::support::now;
use crate::support::process::{Family, peak};
use crate::support::report::{Report, at};

/// How it is to go.
pub struct Plan {
    pub minutes: u64,
    /// Rows that are there at any time.
    pub steady: usize,
    /// Appends a second.
    pub rate: usize,
    /// Seconds.
    pub interval: u64,
    /// Bytes of a stanza.
    pub size: usize,
}

/// Users that get messages at the same time, and messages that each gets before he comes back.
const USERS: usize = 32;
const EACH: usize = 50;
/// Appends of a job.
const TOGETHER: usize = 16;

/// Some users, and the messages that they get in turn.
struct Block {
    number: usize,
}

impl Block {
    const ROWS: usize = USERS * EACH;

    fn users(&self, plan: &Plan) -> Vec<Bare> {
        // The same users come again and again.
        let turn = self.number % (2 * plan.steady / Self::ROWS + 2);
        (0..USERS).map(|user| format!("user{turn}-{user}@example.org").into()).collect()
    }
}

pub async fn run(place: &Place, plan: &Plan, report: &Report) {
    let store = open(place).await;
    let server = Family::behind(&place.url);
    let own = Family::of(std::process::id());
    let (began, ends) = (Instant::now(), Instant::now() + Duration::from_secs(60 * plan.minutes));
    let mut interval = Interval::new(began);
    let mut purged = began;
    let (tell, told) = mpsc::channel::<Duration>();
    let mut blocks: VecDeque<Block> = VecDeque::new();
    for number in 0.. {
        let block = Block { number };
        append(&store, plan, &block, &tell, began).await;
        blocks.push_back(block);
        if blocks.len() * Block::ROWS > plan.steady {
            let block = blocks.pop_front().expect("some");
            interval.pages.extend(hand_over(&store, plan, &block).await);
        }
        interval.rows += Block::ROWS;
        interval.waits.extend(told.try_iter());
        if purged.elapsed() > Duration::from_secs(60) {
            store.purge(None, now()).await.expect("purges");
            purged = Instant::now();
        }
        if interval.began.elapsed() > Duration::from_secs(plan.interval) {
            let ended = std::mem::replace(&mut interval, Interval::new(Instant::now()));
            let memory = [own.memory(), server.as_ref().map_or(0, Family::memory)];
            ended.report(began, place.size().await, memory, report);
        }
        if Instant::now() >= ends {
            break;
        }
    }
    let peak = peak(std::process::id()) / 1024;
    reads::hand_overs(&store, plan.size, "after churn", report).await;
    report.line("peak of memory here", &format!("{peak:>8} MiB"), &[("mib", peak as f64)]);
    store.close().await;
}

/// What happened in an interval.
struct Interval {
    began: Instant,
    rows: usize,
    waits: Vec<Duration>,
    pages: Vec<Duration>,
}

impl Interval {
    fn new(began: Instant) -> Self {
        Interval { began, rows: 0, waits: Vec::new(), pages: Vec::new() }
    }

    fn report(mut self, start: Instant, size: u64, memory: [u64; 2], report: &Report) {
        self.waits.sort();
        self.pages.sort();
        let rate = self.rows as f64 / self.began.elapsed().as_secs_f64();
        let minute = start.elapsed().as_secs_f64() / 60.0;
        let (p50, p99) = (at(&self.waits, 0.5), at(&self.waits, 0.99));
        let page = at(&self.pages, 0.99);
        let (size, [node, server]) = (size as f64 / 1e6, memory.map(|kib| kib as f64 / 1024.0));
        report.line(
            &format!("churn, minute {minute:.1}"),
            &format!(
                "{rate:>6.0} rows/s in and out, append p50 {p50:.1} p99 {p99:.1} ms, page p99 {page:.1} ms, \
                 table {size:.0} MB, memory {node:.0} MiB here, {server:.0} MiB the server"
            ),
            &[
                ("minute", minute), ("rate", rate), ("p50", p50), ("p99", p99), ("page", page),
                ("table", size), ("node", node), ("server", server),
            ],
        );
    }
}

/// Message after message to each of the users in turn, not faster than planned.
async fn append(
    store: &SeaStore,
    plan: &Plan,
    block: &Block,
    tell: &mpsc::Sender<Duration>,
    began: Instant,
) {
    let first = block.number * Block::ROWS;
    let rows = Rows {
        first,
        count: Block::ROWS,
        users: 1,
        size: plan.size,
        expiring: 0,
        old: 0,
        now: now().as_micros(),
    };
    let stanza = Bytes::from(vec![b'x'; plan.size]);
    let users = block.users(plan);
    let run = Run::new();
    let writes: Vec<Write> = (first..first + Block::ROWS)
        .map(|n| {
            let recipient = users[n % USERS].clone();
            Write::Append(amphora::store::NewMessage {
                recipient,
                run: run.clone(),
                ..message(&rows, n, &stanza)
            })
        })
        .collect();
    for (job, writes) in writes.chunks(TOGETHER).enumerate() {
        let due = (first + job * TOGETHER) as f64 / plan.rate as f64;
        tokio::time::sleep_until((began + Duration::from_secs_f64(due)).into()).await;
        let (tell, since) = (tell.clone(), Instant::now());
        let done = move |outcomes: Vec<Outcome>| {
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored), "{outcomes:?}");
            let _ = tell.send(since.elapsed());
        };
        store.submit(Job { writes: writes.to_vec(), done: Box::new(done) });
    }
}

/// The users come back: each reads his page, and it is deleted. How long each page took.
async fn hand_over(store: &SeaStore, plan: &Plan, block: &Block) -> Vec<Duration> {
    let mut times = Vec::new();
    for user in block.users(plan) {
        let began = Instant::now();
        let page = store.page(user.clone(), MessageId::ZERO, PAGE).await.expect("reads");
        times.push(began.elapsed());
        let ids: Vec<MessageId> = page.iter().map(|message| message.id).collect();
        assert_eq!(ids.len(), EACH);
        let writes = vec![Write::Delete { recipient: user, ids }];
        store.submit(Job { writes, done: Box::new(|_| {}) });
    }
    times
}
