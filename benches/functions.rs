//! The hot path, function by function: framing, reading, validating, deciding.
//!
//! `cargo bench --bench functions`

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use amphora::amp::{self, Disposition, SecurityLevel};
use amphora::link;
use amphora::shard::{Input, Intercept, Leg, Machine, Settings, Stage};
use amphora::stanza::Message;
use amphora::time::Timestamp;
use amphora::words::LinkId;
use amphora::xml::{Frame, Framer, Limits};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MESSAGE: &str = "<message xmlns='jabber:client' from='alice@example.org/laptop' \
    to='bob@example.org' id='m1' type='chat' xml:lang='en'><body>It was the best of times, it was \
    the worst of times, it was the age of wisdom, it was the age of foolishness.</body>\
    <amp xmlns='http://jabber.org/protocol/amp'>\
    <rule action='drop' condition='expire-at' value='2100-01-01T00:00:00Z'/>\
    <rule action='alert' condition='deliver' value='none'/>\
    <rule action='error' condition='match-resource' value='other'/></amp></message>";

fn intercept_stanza() -> String {
    format!(
        "<message from='example.org' to='amp.example.org'><intercept \
         xmlns='urn:amphora:intercept:1' key='Zk3fQ-42' stage='rules' leg='recipient' \
         to='bob@example.org' account='true' may-see-presence='true'>\
         <session resource='phone' priority='5'/><forwarded xmlns='urn:xmpp:forward:0'>\
         <delay xmlns='urn:xmpp:delay' stamp='2026-11-22T05:00:00.123Z'/>{MESSAGE}</forwarded>\
         </intercept></message>"
    )
}

fn frames(c: &mut Criterion) {
    let stanza = intercept_stanza();
    let many = stanza.repeat(100);
    let mut group = c.benchmark_group("frame");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 intercepts", |b| {
        let mut framer = Framer::new(Limits { stanza_bytes: 1 << 20, depth: 64 });
        framer.push(b"<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>");
        assert!(matches!(framer.next(), Ok(Some(Frame::Open(_)))));
        b.iter(|| {
            framer.push(many.as_bytes());
            while let Ok(Some(frame)) = framer.next() {
                black_box(frame);
            }
        });
    });
    group.finish();
}

fn reads(c: &mut Criterion) {
    let stanza = Bytes::from(intercept_stanza());
    let hosts: Vec<Arc<str>> = vec!["example.org".into()];
    c.bench_function("read an intercept", |b| {
        b.iter(|| black_box(link::read(&stanza, "amp.example.org", &hosts)));
    });
    let message = Bytes::from_static(MESSAGE.as_bytes());
    c.bench_function("read a message", |b| {
        b.iter(|| black_box(Message::parse(message.clone(), "example.org")));
    });
}

fn rules(c: &mut Criterion) {
    let message = Message::parse(Bytes::from_static(MESSAGE.as_bytes()), "example.org").unwrap();
    c.bench_function("check three rules", |b| {
        b.iter(|| black_box(amp::check(&message.amp, message.id.as_deref())));
    });
    let rules = amp::check(&message.amp, message.id.as_deref()).unwrap();
    c.bench_function("permit and decide", |b| {
        b.iter(|| {
            let _ = black_box(amp::permit(&rules, SecurityLevel::Strict, true));
            black_box(amp::decide(&rules, &Disposition::Stored, None, Timestamp::from_micros(0)))
        });
    });
}

fn shard(c: &mut Criterion) {
    let message = Message::parse(Bytes::from_static(MESSAGE.as_bytes()), "example.org").unwrap();
    let rules = amp::check(&message.amp, message.id.as_deref());
    let intercept = Intercept {
        link: LinkId(1),
        host: "example.org".into(),
        key: "k-1".into(),
        after: None,
        again: false,
        stage: Stage::Rules,
        leg: Leg::Recipient,
        to: "bob@example.org".into(),
        account: true,
        archived: false,
        sessions: Vec::new(),
        forwards_to: false,
        gateway: false,
        stamp: Timestamp::from_micros(0),
        message,
        silent: false,
        rules: Some(rules),
    };
    let memory = Duration::from_secs(600);
    let mut machine = Machine::new(Settings { epoch: 1, quotas: Arc::default(), memory });
    c.bench_function("decide in a shard", |b| {
        b.iter(|| {
            let input = Input::Intercept(Box::new(intercept.clone()));
            black_box(machine.handle(Timestamp::from_micros(0), input))
        });
    });
}

criterion_group!(benches, frames, reads, rules, shard);
criterion_main!(benches);
