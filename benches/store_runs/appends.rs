//! Appends through the committer, some of them waiting at any time.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amphora::stanza::MessageType;
use amphora::store::{Job, NewMessage, Outcome, Run, SeaStore, Store, Write};
use amphora::time::Timestamp;
use amphora::words::MessageId;
use bytes::Bytes;

use crate::support::limit::Rows;
use crate::support::process::Family;
use crate::support::report::{Report, at};

/// What is appended, and how.
#[derive(Clone, Copy)]
pub struct Load {
    /// Appends under way at any time.
    pub waiting: usize,
    /// Appends of a job.
    pub together: usize,
    pub rows: Rows,
    /// The server, where there is one that can be seen.
    pub server: Option<Family>,
}

/// What came of it.
pub struct Figures {
    pub rate: f64,
    /// How long a job waited, the shortest first.
    pub waits: Vec<Duration>,
    /// Processor time of this process for an append.
    pub cpu: Duration,
    /// The same of the server.
    pub server_cpu: Duration,
}

impl Figures {
    pub fn report(&self, what: &str, limit: Option<f64>, report: &Report) {
        let ratio = limit.map(|limit| self.rate / limit);
        let beside = ratio.map(|ratio| format!(", {ratio:.2} of the limit")).unwrap_or_default();
        let (p50, p99) = (at(&self.waits, 0.5), at(&self.waits, 0.99));
        let [cpu, server] = [self.cpu, self.server_cpu].map(|cpu| cpu.as_secs_f64() * 1e6);
        let mut numbers = vec![
            ("rate", self.rate),
            ("p50", p50),
            ("p99", p99),
            ("cpu", cpu),
            ("server_cpu", server),
        ];
        numbers.extend(ratio.map(|ratio| ("ratio", ratio)));
        report.line(
            &format!("appends, {what}"),
            &format!(
                "{:>8.0} rows/s, p50 {p50:.1} ms, p99 {p99:.1} ms, {cpu:.1} us each here, \
                 {server:.1} us the server{beside}",
                self.rate
            ),
            &numbers,
        );
    }
}

/// The `n`th row as a message.
pub fn message(rows: &Rows, n: usize, stanza: &Bytes) -> NewMessage {
    NewMessage {
        recipient: rows.recipient(n).into(),
        id: MessageId(n as i64 + 1),
        key: Rows::key(n).into(),
        again: false,
        run: Run::new(),
        sender: "someone@example.org/resource".to_owned(),
        kind: MessageType::Chat,
        stored_at: Timestamp::from_micros(rows.now),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: stanza.clone(),
    }
}

/// Appends all rows.
pub async fn run(store: Arc<SeaStore>, load: Load) -> Figures {
    while_(store, load, move |done| done < load.rows.count).await
}

/// Appends row after row, as long as it is said of the number that is stored.
pub async fn while_(
    store: Arc<SeaStore>,
    load: Load,
    go_on: impl FnMut(usize) -> bool + Send + 'static,
) -> Figures {
    // The answers come on a thread of the store; waiting for them must not hold up this one.
    let appending = tokio::task::spawn_blocking(move || append(&store, load, go_on));
    appending.await.expect("appends")
}

fn append(store: &SeaStore, load: Load, mut go_on: impl FnMut(usize) -> bool) -> Figures {
    let Load { waiting, together, rows, server } = load;
    let stanza = Bytes::from(vec![b'x'; rows.size]);
    let (tell, told) = mpsc::channel();
    let process = Family::of(std::process::id());
    let spent = || [process.cpu(), server.map_or(Duration::ZERO, |server| server.cpu())];
    let (before, began) = (spent(), Instant::now());
    let mut next = rows.first;
    let mut submit = || {
        let message = |n| Write::Append(message(&rows, n, &stanza));
        let writes = (next..next + together).map(message).collect();
        next += together;
        let (tell, since) = (tell.clone(), Instant::now());
        let done = move |outcomes: Vec<Outcome>| {
            assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Stored), "{outcomes:?}");
            let _ = tell.send(since.elapsed());
        };
        store.submit(Job { writes, done: Box::new(done) });
    };
    let mut waits = Vec::new();
    let mut under_way = waiting.div_ceil(together);
    (0..under_way).for_each(|_| submit());
    let mut rate = None;
    while under_way > 0 {
        waits.push(told.recv().expect("an answer"));
        let stored = waits.len() * together;
        if rate.is_none() && go_on(stored) {
            submit();
            continue;
        }
        rate.get_or_insert_with(|| stored as f64 / began.elapsed().as_secs_f64());
        under_way -= 1;
    }
    let (after, stored) = (spent(), (waits.len() * together) as f64);
    let [cpu, server_cpu] = [0, 1].map(|who| (after[who] - before[who]).div_f64(stored));
    waits.sort();
    Figures { rate: rate.unwrap_or(0.0), waits, cpu, server_cpu }
}
