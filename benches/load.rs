//! A load driver for a whole node: it plays the server's side of the intercept protocol
//! against the real program, and prints rates, latencies and memory, beside the fastest plain
//! inserts of the same rows into the same database, measured in the same run.
//!
//! `cargo bench --bench load -- [--store URL] [--messages N] [--users N] [--rows-before N]`
//!
//! Without a URL in a new file of SQLite. The database of a URL is emptied.
//! `benches/databases.py` runs it on all databases.
//!
//! `cargo bench --bench load -- --nodes N --store URL [--shards S]` measures several nodes of a
//! cluster instead, each with a server of its own, over a real NATS server (`nats-server` in the
//! PATH): of what comes to a node, the others decide their share. `benches/cluster.py rate` compares.

mod support;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amphora::time::Timestamp;
use clap::Parser;

use support::database::Place;
use support::limit::{self, Rows};
use support::nats::NatsServer;
use support::now;
use support::process::{Family, peak};
use support::report::{Report, at, median};

/// What is measured.
#[derive(Parser, Clone)]
struct Args {
    /// The database of a server, as `postgres://` or `mysql://`; all messages in it go.
    #[arg(long)]
    store: Option<String>,
    /// Rows that are in the table before.
    #[arg(long, default_value_t = 0)]
    rows_before: usize,
    /// Instead: leaves the rows that are in the database of the URL, and measures a hand-over and
    /// appends beside them. What is said of the rows, in the names of the figures.
    #[arg(long, requires = "store", value_name = "WHAT")]
    beside: Option<String>,
    /// A file that figures are added to, a line of JSON each.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Messages of each run.
    #[arg(long, default_value_t = 200_000)]
    messages: usize,
    /// Recipients that they are spread over.
    #[arg(long, default_value_t = 1_000)]
    users: usize,
    /// Only the runs without the store.
    #[arg(long)]
    rules_only: bool,
    /// Nodes of a cluster, which share out the messages; 0: one, without a cluster.
    #[arg(long, default_value_t = 0, requires = "store")]
    nodes: usize,
    /// Shards of the cluster.
    #[arg(long, default_value_t = 256)]
    shards: u32,
    /// Only the expiries.
    #[arg(long)]
    expiries_only: bool,
    /// Messages that wait beside those that expire.
    #[arg(long, default_value_t = 100_000)]
    waiting: usize,
    /// `cargo bench` says this.
    #[arg(long, hide = true)]
    bench: bool,
}

const HOST: &str = "example.org";
const COMPONENT: &str = "amp.example.org";
/// Intercepts that share one message, as an interceptor sends them.
const TOGETHER: usize = 16;

fn main() {
    let args = Args::parse();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    if let Some(what) = &args.beside {
        return beside(&args, what, dir.path());
    }
    let limit = (!args.rules_only && !args.expiries_only && args.nodes == 0).then(|| {
        runtime.block_on(limit::measure(args.store.as_deref(), rows(&args, args.messages)))
    });
    let place = runtime.block_on(Place::new(args.store.as_deref()));
    if args.rows_before > 0 {
        let users = (args.rows_before / 50).max(1);
        let before = Rows { users, expiring: 10, ..rows(&args, args.rows_before) };
        runtime.block_on(async {
            limit::fill(&place, before).await;
            place.settle().await;
        });
    }
    let report = Report { database: place.name(), json: args.json.clone() };
    println!(
        "{}: {} messages of {} bytes to {} users, {} rows before, {} cores",
        report.database,
        args.messages,
        stanza(0, 0, "").len(),
        args.users,
        args.rows_before,
        std::thread::available_parallelism().map_or(0, |n| n.get())
    );
    if args.nodes > 0 {
        return several(&args, dir.path(), &place, &report);
    }
    let mut peer = Peer::start(dir.path(), "amphora", &place.url, "");
    if args.expiries_only {
        return peer.expiries(args.waiting, &report);
    }
    run(&args, &mut peer, limit, &report);
    memory("node: memory", &peer, &place, &report);
    let size = runtime.block_on(place.size()) as f64 / 1e6;
    report.line("node: table", &format!("{size:>9.0} MB"), &[("mb", size)]);
}

/// Rows like the messages of a run.
fn rows(args: &Args, count: usize) -> Rows {
    let (users, size) = (args.users, stanza(0, 0, "").len());
    Rows { first: 0, count, users, size, expiring: 0, old: 0, now: now().as_micros() }
}

fn run(args: &Args, peer: &mut Peer, limit: Option<(f64, limit::Form)>, report: &Report) {
    let few = Args { messages: args.messages / 10, ..args.clone() };
    if let Some((limit, form)) = limit {
        let text = format!("{limit:>9.0} rows/s   plain inserts ({form:?})");
        report.line("node: the limit", &text, &[("rate", limit)]);
        let limit = Some(limit);
        let figures = peer.run(args, 1_024, Kind::Offline);
        figures.report("node: durable appends, 1,024 waiting", limit, report);
        let figures = peer.run(args, 4_096, Kind::Offline);
        figures.report("node: durable appends, 4,096 waiting", limit, report);
        let figures = peer.run(&few, 64, Kind::Offline);
        figures.report("node: durable appends, 64 waiting", limit, report);
    }
    let figures = peer.run(args, 1_024, Kind::Rules);
    figures.report("node: three rules evaluated, no store", None, report);
    let figures = peer.run(&few, 64, Kind::Rules);
    figures.report("node: three rules evaluated, 64 waiting", None, report);
    if limit.is_none() {
        return;
    }
    hand_overs(peer, " to one user", report);
    if args.rows_before == 0 {
        peer.expiries(args.waiting, report);
    }
}

/// Stores messages for one user and lets him fetch them, again and again.
fn hand_overs(peer: &mut Peer, what: &str, report: &Report) {
    let mut times = Vec::new();
    for n in 1..=5 {
        peer.fill(5_000);
        let (items, took) = peer.hand_over(n);
        assert_eq!(items, 5_000);
        times.push(took.as_secs_f64() * 1e3);
    }
    let time = median(times);
    let text = format!("{time:>9.0} ms, taken and deleted (median of 5)");
    report.line(&format!("node: hand-over of 5,000{what}"), &text, &[("ms", time)]);
}

/// A node on a database that has rows of others.
fn beside(args: &Args, what: &str, dir: &Path) {
    let place = Place::left_by_another(args.store.as_deref().expect("clap asks for it"));
    let report = Report { database: place.name(), json: args.json.clone() };
    let mut peer = Peer::start(dir, "amphora", &place.url, "");
    hand_overs(&mut peer, &format!(", {what}"), &report);
    let figures = peer.run(args, 1_024, Kind::Offline);
    figures.report(&format!("node: durable appends, {what}"), None, &report);
    memory(&format!("node: memory, {what}"), &peer, &place, &report);
}

/// How long a cluster is left alone before the messages, and how long its idle cost is measured.
const SETTLES: Duration = Duration::from_secs(10);

/// Nodes of a cluster, each with a server that sends it its part of the messages.
fn several(args: &Args, dir: &Path, place: &Place, report: &Report) {
    let nats = NatsServer::start(Some(dir));
    let more = format!(
        "[processor]\nshards = {}\n[cluster]\nnats = ['nats://127.0.0.1:{}']\n",
        args.shards, nats.port
    );
    let start = |n| {
        let mut peer = Peer::start(dir, &format!("n{n}"), &place.url, &more);
        // A key belongs to one recipient, whoever sends it.
        peer.next_key = n * 100_000_000;
        peer
    };
    let mut peers: Vec<Peer> = (0..args.nodes).map(start).collect();
    let mut families: Vec<Family> =
        peers.iter().map(|peer| Family::of(peer.node.id())).chain([nats.family()]).collect();
    families.extend(Family::behind(&place.url));
    let cpu = || families.iter().map(Family::cpu).collect::<Vec<Duration>>();
    // The nodes, NATS, and the database with all its processes.
    let used = |before: &[Duration]| {
        let used: Vec<f64> =
            cpu().iter().zip(before).map(|(now, then)| (*now - *then).as_secs_f64()).collect();
        let (nodes, others) = used.split_at(args.nodes);
        [nodes.iter().sum(), others[0], others.get(1).copied().unwrap_or(0.0)]
    };
    std::thread::sleep(SETTLES);
    let before = cpu();
    std::thread::sleep(SETTLES);
    let name = format!("{} nodes, {} shards", args.nodes, args.shards);
    let [nodes, nats, database] = used(&before).map(|used| used / SETTLES.as_secs_f64() * 100.0);
    report.line(
        &format!("{name}: idle"),
        &format!(
            "{nodes:.2} % of a core the nodes, {nats:.2} % NATS, {database:.2} % the database"
        ),
        &[("nodes", nodes), ("nats", nats), ("database", database)],
    );
    for (kind, what) in [(Kind::Rules, "three rules evaluated"), (Kind::Offline, "durable appends")]
    {
        let few = Args { messages: args.messages / args.nodes / 10, ..args.clone() };
        let part = Args { messages: args.messages / args.nodes, ..args.clone() };
        let window = 1_024 / args.nodes;
        let run = |peers: &mut Vec<Peer>, args: &Args| -> Vec<Figures> {
            std::thread::scope(|scope| {
                let one = |peer| scope.spawn(move || Peer::run(peer, args, window, kind));
                let runs: Vec<_> = peers.iter_mut().map(one).collect();
                runs.into_iter().map(|run| run.join().expect("a run")).collect()
            })
        };
        run(&mut peers, &few);
        let before = cpu();
        let figures = run(&mut peers, &part);
        let rate: f64 = figures.iter().map(|figures| figures.rate).sum();
        let mut latencies: Vec<Duration> =
            figures.into_iter().flat_map(|figures| figures.latencies).collect();
        latencies.sort();
        let each = |used: f64| used * 1e5 / (part.messages * args.nodes) as f64;
        let [nodes, nats, database] = used(&before).map(each);
        let (p50, p99) = (at(&latencies, 0.5), at(&latencies, 0.99));
        report.line(
            &format!("{name}: {what}"),
            &format!(
                "{rate:>9.0} /s, verdict p50 {p50:.1} ms, p99 {p99:.1} ms; processor seconds for 100,000: \
                 {nodes:.2} the nodes, {nats:.2} NATS, {database:.2} the database"
            ),
            &[
                ("rate", rate),
                ("p50", p50),
                ("p99", p99),
                ("nodes", nodes),
                ("nats", nats),
                ("database", database),
            ],
        );
    }
}

fn memory(what: &str, peer: &Peer, place: &Place, report: &Report) {
    let node = Family::of(peer.node.id());
    let (now, peak) = (node.memory() / 1024, peak(peer.node.id()) / 1024);
    let server = Family::behind(&place.url).map_or(0, |server| server.memory() / 1024);
    let idle = peer.idle / 1024;
    report.line(
        what,
        &format!(
            "{idle:>9} MiB idle, {now} MiB now, {peak} MiB at its peak; {server} MiB the server"
        ),
        &[
            ("idle", idle as f64),
            ("now", now as f64),
            ("peak", peak as f64),
            ("server", server as f64),
        ],
    );
}

/// What is asked about the messages of a run.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Messages for users who are away: stored.
    Offline,
    /// Messages with three rules, none of them met, for users who are there: delivered.
    Rules,
    /// Messages for users who are away whose sender is told when that time has passed.
    Expiring(Timestamp),
}

/// The figures of one run.
struct Figures {
    rate: f64,
    /// Processor time of the node for one message.
    cpu: Duration,
    latencies: Vec<Duration>,
}

impl Figures {
    fn report(&self, what: &str, limit: Option<f64>, report: &Report) {
        let ratio = limit.map(|limit| self.rate / limit);
        let beside = ratio.map(|ratio| format!(", {ratio:.2} of the limit")).unwrap_or_default();
        let (p50, p99) = (at(&self.latencies, 0.5), at(&self.latencies, 0.99));
        let cpu = self.cpu.as_secs_f64() * 1e6;
        let mut numbers = vec![("rate", self.rate), ("p50", p50), ("p99", p99)];
        numbers.extend(ratio.map(|ratio| ("ratio", ratio)));
        report.line(
            what,
            &format!(
                "{:>9.0} /s, verdict p50 {p50:.2} ms, p99 {p99:.2} ms, node {cpu:.1} us each{beside}",
                self.rate
            ),
            &numbers,
        );
    }
}

/// The server that the node is connected to.
struct Peer {
    node: Child,
    socket: TcpStream,
    /// Bytes read and not looked at.
    buffer: Vec<u8>,
    next_key: usize,
    /// Kilobytes of the node when nothing had happened yet.
    idle: u64,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

impl Peer {
    /// A node of that name; `more`: further sections of its configuration.
    fn start(dir: &Path, name: &str, store: &str, more: &str) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let config = dir.join(format!("{name}.toml"));
        let text = format!(
            "[node]\nname = '{name}'\n[store]\nurl = '{store}'\n[http]\nlisten = ''\n[log]\nfilter = 'warn'\n\
             [[servers]]\naddress = '{address}'\ncomponent = '{COMPONENT}'\nsecret = 's'\nhosts = ['{HOST}']\n{more}",
        );
        std::fs::write(&config, text).expect("a configuration");
        let built = env!("CARGO_BIN_EXE_amphora").into();
        let node = Command::new(std::env::var_os("AMPHORA_BIN").unwrap_or(built))
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .spawn()
            .expect("the node");
        let (socket, _) = listener.accept().expect("a connection");
        socket.set_nodelay(true).expect("no delay");
        let mut peer = Peer { node, socket, buffer: Vec::new(), next_key: 0, idle: 0 };
        peer.read_until(b">", 2);
        peer.say(
            "<?xml version='1.0'?><stream:stream xmlns:stream='http://etherx.jabber.org/streams' \
             xmlns='jabber:component:accept' from='amp.example.org' id='bench'>",
        );
        peer.read_until(b"</handshake>", 1);
        peer.say("<handshake/>");
        let greeting = peer.read_until(b"</iq>", 1);
        let greeting = String::from_utf8_lossy(&greeting).into_owned();
        let id = greeting.split("id='").nth(1).and_then(|t| t.split('\'').next()).expect("an id");
        peer.say(&format!(
            "<iq type='result' from='{HOST}' to='{COMPONENT}' id='{id}'><greeting \
             xmlns='urn:amphora:intercept:1' version='1' server='bench' module='0' acks='true' \
             max-stanza='524288'/></iq>"
        ));
        peer.idle = Family::of(peer.node.id()).memory();
        peer
    }

    fn say(&mut self, text: &str) {
        self.socket.write_all(text.as_bytes()).expect("the node reads");
    }

    /// Reads until `end` was seen `times` times; gives all up to there.
    fn read_until(&mut self, end: &[u8], times: usize) -> Vec<u8> {
        loop {
            let mut found = self.buffer.windows(end.len()).enumerate().filter(|(_, w)| *w == end);
            if let Some((at, _)) = found.nth(times - 1) {
                return self.buffer.drain(..at + end.len()).collect();
            }
            self.fill_buffer();
        }
    }

    fn fill_buffer(&mut self) {
        let mut chunk = [0; 65_536];
        let n = self.socket.read(&mut chunk).expect("the node writes");
        assert!(n > 0, "the node closed the link");
        self.buffer.extend_from_slice(&chunk[..n]);
    }

    /// Processor time that the node has used.
    fn cpu(&self) -> Duration {
        Family::of(self.node.id()).cpu()
    }

    /// Sends messages with `window` of them unanswered, and waits for all verdicts.
    fn run(&mut self, args: &Args, window: usize, kind: Kind) -> Figures {
        let first = self.next_key;
        self.next_key += args.messages;
        let (messages, users) = (args.messages, args.users);
        let mut socket = self.socket.try_clone().expect("a second handle");
        let (answered, permits) = mpsc::channel::<usize>();
        let (sent, sent_at) = mpsc::channel::<Vec<Instant>>();
        let together = TOGETHER.min(window);
        let batches: Vec<(usize, String)> = (0..messages)
            .step_by(together)
            .map(|at| {
                let n = together.min(messages - at);
                let mut out = format!("<message from='{HOST}' to='{COMPONENT}'>");
                for i in at..at + n {
                    intercept(&mut out, first + i, i % users, kind);
                }
                out.push_str("</message>");
                (n, out)
            })
            .collect();
        let cpu = self.cpu();
        let begin = Instant::now();
        let sender = std::thread::spawn(move || {
            let mut free = window;
            for (n, out) in batches {
                while free < n {
                    free += permits.recv().expect("verdicts");
                }
                let _ = sent.send(vec![Instant::now(); n]);
                socket.write_all(out.as_bytes()).expect("the node reads");
                free -= n;
            }
        });
        let mut latencies = Vec::with_capacity(messages);
        let mut times: Vec<Instant> = Vec::with_capacity(messages);
        let want: &[u8] = if kind == Kind::Rules { b"deliver" } else { b"stored" };
        while latencies.len() < messages {
            self.fill_buffer();
            times.extend(sent_at.try_iter().flatten());
            let now = Instant::now();
            let keys = self.take_verdicts(want);
            times.extend(sent_at.try_iter().flatten());
            for key in &keys {
                latencies.push(now - times[key - first]);
            }
            if !keys.is_empty() {
                let _ = answered.send(keys.len());
            }
        }
        let took = begin.elapsed();
        sender.join().expect("the sender");
        latencies.sort();
        let cpu = (self.cpu() - cpu).div_f64(messages as f64);
        Figures { rate: messages as f64 / took.as_secs_f64(), cpu, latencies }
    }

    /// The keys of the whole verdicts in the buffer; each has to say `want`.
    fn take_verdicts(&mut self, want: &[u8]) -> Vec<usize> {
        let mut keys = Vec::new();
        let Some(end) = self.buffer.iter().rposition(|b| *b == b'>') else {
            return keys;
        };
        let whole: Vec<u8> = self.buffer.drain(..=end).collect();
        for verdict in whole.split(|b| *b == b'<').filter(|tag| tag.starts_with(b"verdict ")) {
            let mut quoted = verdict.split(|b| *b == b'\'');
            let key = quoted.nth(1).expect("a key");
            let said = quoted.nth(3).expect("a verdict");
            let said_text = String::from_utf8_lossy(said);
            assert_eq!(said, want, "verdict {said_text}");
            let key = std::str::from_utf8(&key[2..]).expect("text");
            keys.push(key.parse().expect("a number"));
        }
        keys
    }

    /// Stores messages for one user.
    fn fill(&mut self, messages: usize) {
        self.store(messages, |_| (COLLECTOR, Kind::Offline));
    }

    /// Stores messages, the nth for that user and of that kind; the number of the first.
    fn store(&mut self, messages: usize, nth: impl Fn(usize) -> (usize, Kind)) -> usize {
        let first = self.next_key;
        self.next_key += messages;
        let mut stored = 0;
        for begin in (0..messages).step_by(500) {
            let mut out = format!("<message from='{HOST}' to='{COMPONENT}'>");
            let end = (begin + 500).min(messages);
            for i in begin..end {
                let (user, kind) = nth(i);
                intercept(&mut out, first + i, user, kind);
            }
            out.push_str("</message>");
            self.say(&out);
            while stored < end {
                self.fill_buffer();
                stored += self.take_verdicts(b"stored").len();
            }
        }
        first
    }

    /// How late the notices of expiries come, with so many other messages waiting for their
    /// own time: 2,000 over ten seconds, then 20,000 at one moment.
    fn expiries(&mut self, waiting: usize, report: &Report) {
        let far = "2100-01-01T00:00:00Z".parse().expect("a time");
        self.store(waiting, |i| (i % 1_000, Kind::Expiring(far)));
        for (due, spread, what) in [
            (2_000, Duration::from_secs(10), "node: expiries, 200 a second"),
            (20_000, Duration::ZERO, "node: expiries, 20,000 at once"),
        ] {
            let begin = later(now(), BEFORE_EXPIRIES);
            let at = |i: usize| later(begin, spread.mul_f64(i as f64 / due as f64));
            let first = self.store(due, |i| (i % 1_000, Kind::Expiring(at(i))));
            assert!(now() < begin, "storing took longer than the time before the first expiry");
            let late = self.notices(due, |key| at(key - first));
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|part| support::report::at(&late, part));
            let rate = due as f64 / (spread.as_secs_f64() + max / 1e3);
            report.line(
                what,
                &format!(
                    "{rate:>9.0} /s, late p50 {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms; {waiting} \
                     others waiting"
                ),
                &[("rate", rate), ("p50", p50), ("p99", p99), ("max", max), ("waiting", waiting as f64)],
            );
        }
    }

    /// Reads so many notices, and lets the node know that each was sent; how late they were,
    /// the least first.
    fn notices(&mut self, count: usize, due: impl Fn(usize) -> Timestamp) -> Vec<Duration> {
        let mut late = Vec::with_capacity(count);
        while late.len() < count {
            let Some(end) = self.buffer.windows(5).rposition(|w| w == b"</iq>") else {
                self.fill_buffer();
                continue;
            };
            let whole: Vec<u8> = self.buffer.drain(..end + 5).collect();
            let now = now();
            let mut results = String::new();
            for iq in String::from_utf8_lossy(&whole).split("<iq ").skip(1) {
                let key = attribute(iq, "key");
                let key = key.strip_prefix("b-").and_then(|k| k.split('/').next());
                let due = due(key.expect("a key").parse().expect("a number"));
                assert!(now >= due, "a notice came before its time");
                late.push(now.since(due));
                let id = attribute(iq, "id");
                results.push_str(&format!(
                    "<iq type='result' from='{HOST}' to='{COMPONENT}' id='{id}'/>"
                ));
            }
            self.say(&results);
        }
        assert_eq!(late.len(), count, "a notice came twice");
        late.sort();
        late
    }

    /// Lets one user come online, takes batch after batch, and waits until the last is
    /// deleted.
    fn hand_over(&mut self, n: usize) -> (usize, Duration) {
        let begin = Instant::now();
        self.say(&format!(
            "<message from='{HOST}' to='{COMPONENT}'><available xmlns='urn:amphora:intercept:1' \
             session='s1' n='{n}' jid='user{COLLECTOR}@{HOST}/r' priority='1' acks='true'/></message>"
        ));
        let (mut items, mut open, mut done) = (0, HashMap::new(), false);
        while !done || !open.is_empty() {
            let text = String::from_utf8_lossy(&self.buffer).into_owned();
            let Some(end) = whole(&text) else {
                self.fill_buffer();
                continue;
            };
            self.buffer.drain(..end);
            let text = &text[..end];
            if text.contains("<hand-over ") {
                let ids: Vec<&str> = text
                    .split("<item id='")
                    .skip(1)
                    .filter_map(|item| item.split('\'').next())
                    .collect();
                let batch = attribute(text, "batch");
                items += ids.len();
                let ids = ids.join(" ");
                self.say(&format!(
                    "<message from='{HOST}' to='{COMPONENT}'><taken xmlns='urn:amphora:intercept:1' \
                     for='user{COLLECTOR}@{HOST}' session='s1' batch='{batch}' ids='{ids}'/></message>"
                ));
                open.insert(batch.to_owned(), ());
            } else if text.contains("<deleted ") {
                open.remove(attribute(text, "batch"));
            } else if text.contains("<handed-over ") {
                done = true;
            }
        }
        (items, begin.elapsed())
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    // As it is written: in whole milliseconds.
    let micros = time.checked_add(by).expect("a time").as_micros();
    Timestamp::from_micros(micros - micros % 1_000)
}

/// Time to store what expires, on a slow machine too.
const BEFORE_EXPIRIES: Duration = Duration::from_secs(20);

/// The user who gets a hand-over.
const COLLECTOR: usize = 10_000_000;

fn attribute<'a>(text: &'a str, name: &str) -> &'a str {
    let begin = format!(" {name}='");
    text.split(&begin).nth(1).and_then(|t| t.split('\'').next()).unwrap_or_default()
}

/// Where the first whole stanza of the node's ends: its own end tag comes after its inner
/// messages'.
fn whole(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0i32, 0);
    while let Some(next) = text[at..].find('<') {
        at += next;
        let close = at + text[at..].find('>')?;
        let tag = &text[at..=close];
        if tag.starts_with("</") {
            depth -= 1;
        } else if !tag.ends_with("/>") {
            depth += 1;
        }
        at = close + 1;
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn stanza(key: usize, user: usize, rules: &str) -> String {
    format!(
        "<message xmlns='jabber:client' from='alice{}@{HOST}/laptop' to='user{user}@{HOST}' id='m{key}' \
         type='chat' xml:lang='en'><body>{}</body>{rules}</message>",
        key % 97,
        "It was the best of times, it was the worst of times, it was the age of wisdom. ".repeat(4)
    )
}

fn intercept(out: &mut String, key: usize, user: usize, kind: Kind) {
    let expiring;
    let (stage, session, rules) = match kind {
        Kind::Offline => ("offline", "", ""),
        Kind::Expiring(at) => {
            expiring = format!(
                "<amp xmlns='http://jabber.org/protocol/amp'>\
                 <rule action='alert' condition='expire-at' value='{at}'/></amp>"
            );
            ("offline", "", &*expiring)
        }
        Kind::Rules => (
            "rules",
            "<session resource='phone' priority='5'/>",
            "<amp xmlns='http://jabber.org/protocol/amp'>\
             <rule action='drop' condition='expire-at' value='2100-01-01T00:00:00Z'/>\
             <rule action='alert' condition='deliver' value='stored'/>\
             <rule action='error' condition='match-resource' value='exact'/></amp>",
        ),
    };
    out.push_str(&format!(
        "<intercept xmlns='urn:amphora:intercept:1' key='b-{key}' stage='{stage}' leg='recipient' \
         to='user{user}@{HOST}' account='true' may-see-presence='true'>{session}\
         <forwarded xmlns='urn:xmpp:forward:0'>{}</forwarded></intercept>",
        stanza(key, user, rules)
    ));
}
