//! What it costs that a message is decided by another node: two nodes' routers and transports in one
//! process, over a real NATS server. Says processor seconds for each 100,000 messages that cross, of
//! this process (both nodes, without links, XML streams and database) and of NATS.
//!
//! `cargo bench --bench crossing [-- MESSAGES [UNANSWERED]]`; `nats-server` must be in the PATH.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr};
use actix_rt::{Arbiter, System};
use amphora::amp::{self, Session};
use amphora::broadcast::BroadcastHandle;
use amphora::cluster::transport::{self, TransportContext};
use amphora::cluster::{MemberInfo, Nats, NatsSettings};
use amphora::router::{Moved, Ownership, Place, Route, Router, Sharing};
use amphora::shard::{
    self, Input, Intercept, Leg, Outbox, ShardActor, ShardContext, Stage, ToLink,
};
use amphora::stanza::Message;
use amphora::store::{Incarnation, SeaStore, StoreSettings};
use amphora::words::{LinkId, ShardId};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

#[path = "support/process.rs"]
#[allow(dead_code)]
mod process;

#[path = "support/nats.rs"]
mod nats;

use nats::NatsServer;
use process::Family;

/// 604 bytes or so, with three rules.
const BODY: usize = 200;
const SHARDS: u32 = 16;
const LINK: LinkId = LinkId(1);

/// Who is never asked: the places stay.
struct Fixed;

impl Ownership for Fixed {
    fn look_again(&self) {}
}

struct Node {
    router: Addr<Router>,
    outbox: Outbox,
    context: ShardContext,
}

async fn node(port: u16, own: u32, other: u32, store: Arc<SeaStore>) -> Node {
    let incarnation = |number: u32| Incarnation { node: format!("n{number}"), number };
    let settings = NatsSettings {
        servers: vec![format!("nats://127.0.0.1:{port}")],
        cluster: "bench".into(),
        node: format!("n{own}").as_str().into(),
        lease: Duration::from_secs(3),
        credentials: None,
        root_certificate: None,
        identity: None,
    };
    let nats = Nats::connect(&settings).await.expect("NATS");
    let outbox = Outbox::default();
    let (due, events) = mpsc::unbounded_channel();
    // Nobody listens, and nobody minds.
    drop(events);
    let (broadcasts, _) = BroadcastHandle::new();
    let (ownership, sent) = (Box::new(Fixed), outbox.clone());
    let sharing = Sharing { ownership, outbox: sent, due: due.clone(), broadcasts };
    let router = Router::shared(SHARDS, sharing).start();
    let members = vec![MemberInfo { incarnation: incarnation(other), hosts: Vec::new() }];
    let (tell, members) = watch::channel(Arc::new(members));
    // For ever.
    std::mem::forget(tell);
    transport::start(TransportContext {
        nats,
        own: incarnation(own),
        members,
        lease: Duration::from_secs(3),
        router: router.clone(),
    });
    let clock = StoreSettings::new("").clock;
    let context = ShardContext { store, outbox: outbox.clone(), clock, due };
    Node { router, outbox, context }
}

fn intercept(n: usize, message: &Message) -> (Arc<str>, Input) {
    let to: Arc<str> = format!("user{}@example.org", n % 1_000).into();
    let rules = amp::check(&message.amp, message.id.as_deref());
    let intercept = Intercept {
        link: LINK,
        host: "example.org".into(),
        key: format!("Zk3fQ9aTbench-{n}").into(),
        after: None,
        again: false,
        stage: Stage::Rules,
        leg: Leg::Recipient,
        to: to.clone(),
        account: true,
        archived: false,
        sessions: vec![Session { resource: "phone".into(), priority: 5, hibernating: false }],
        forwards_to: false,
        gateway: false,
        stamp: (StoreSettings::new("").clock)(),
        message: message.clone(),
        silent: false,
        rules: Some(rules),
    };
    (to, Input::Intercept(Box::new(intercept)))
}

fn message() -> Message {
    let rule = |condition, value| {
        format!("<rule action='alert' condition='{condition}' value='{value}'/>")
    };
    let raw = format!(
        "<message xmlns='jabber:client' from='alice@example.org/desk' to='bob@example.org' \
         id='m1' type='chat'><body>{}</body><amp xmlns='http://jabber.org/protocol/amp'>{}{}{}\
         </amp></message>",
        "x".repeat(BODY),
        rule("deliver", "none"),
        rule("deliver", "stored"),
        rule("expire-at", "2100-01-01T00:00:00Z"),
    );
    Message::parse(Bytes::from(raw), "example.org").expect("a message")
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse().ok());
    let messages: usize = arguments.next().unwrap_or(300_000);
    let unanswered: usize = arguments.next().unwrap_or(1_024);
    System::new().block_on(async move {
        let server = NatsServer::start(None);
        let dir = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}/bench.db", dir.path().display());
        let store = Arc::new(SeaStore::open(StoreSettings::new(url)).await.expect("a store"));
        let near = node(server.port, 1, 2, store.clone()).await;
        let far = node(server.port, 2, 1, store.clone()).await;
        place(&near, &far);
        let (sender, mut said) = mpsc::unbounded_channel();
        near.outbox.add(LINK, sender);
        near.outbox.set_greeted(LINK, &"example.org".into(), Some(512 * 1024));
        let message = message();
        run(&near, &mut said, &message, 10_000, unanswered).await;
        let families = [Family::of(std::process::id()), server.family()];
        let (before, began) = (families.map(|family| family.cpu()), Instant::now());
        run(&near, &mut said, &message, messages, unanswered).await;
        let (after, took) = (families.map(|family| family.cpu()), began.elapsed());
        // NATS is a child of this process, and counted with it.
        let each = |at: usize| (after[at] - before[at]).as_secs_f64() * 1e5 / messages as f64;
        println!(
            "{messages} messages, {unanswered} unanswered at most: {:.0} a second; processor seconds for \
             100,000: {:.2} in both nodes, {:.2} in nats-server",
            messages as f64 / took.as_secs_f64(),
            each(0) - each(1),
            each(1),
        );
    });
    System::current().stop();
}

/// All shards at the far one.
fn place(near: &Node, far: &Node) {
    let arbiter = Arbiter::new();
    let here = |shard: u32| {
        let memory = StoreSettings::new("").memory_of_keys;
        let settings = shard::Settings { epoch: 1, quotas: Arc::default(), memory };
        let context = far.context.clone();
        let actor = ShardActor::start_in_arbiter(&arbiter.handle(), move |_| {
            ShardActor::new(ShardId(shard), settings, context)
        });
        (ShardId(shard), Place::Here { actor, epoch: 1 })
    };
    far.router.do_send(Moved((0..SHARDS).map(here).collect()));
    let there = |shard: u32| {
        let node = Incarnation { node: "n2".into(), number: 2 };
        (ShardId(shard), Place::Peer { node, epoch: 1 })
    };
    near.router.do_send(Moved((0..SHARDS).map(there).collect()));
}

/// So many messages, with never more than `unanswered` under way; 32 come at once, as from a stream.
async fn run(
    near: &Node,
    said: &mut mpsc::UnboundedReceiver<Vec<ToLink>>,
    message: &Message,
    messages: usize,
    unanswered: usize,
) {
    let base = fastrand::usize(..1 << 40);
    let (mut sent, mut answered) = (0, 0);
    while answered < messages {
        while sent < messages && sent - answered < unanswered {
            let some = 32.min(messages - sent).min(unanswered - (sent - answered));
            let inputs = (sent..sent + some).map(|n| intercept(base + n, message)).collect();
            near.router.do_send(Route(inputs));
            sent += some;
        }
        let Some(what) = said.recv().await else { return };
        answered += what.len();
    }
}
