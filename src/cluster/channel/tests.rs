//! What is put on a way comes out in its order, once, whatever NATS does to it; or the way is broken,
//! and both ends know.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::shard::wire::{Crossing, Entry};
use crate::words::LinkId;

const LIMITS: Limits = Limits { batch_bytes: 100, patience: Duration::from_secs(3) };

/// Told apart by `n`, and of `size` bytes or a few more.
fn entry(n: u32, size: usize) -> Entry {
    Entry::host_down(LinkId(u64::from(n) + 1), &"x".repeat(size))
}

fn number(bytes: Bytes) -> u32 {
    match Crossing::read(bytes, 9) {
        Ok(Crossing::HostDown(link, _)) => link.number() - 1,
        other => panic!("{other:?}"),
    }
}

/// Both ends, and a clock.
struct Ends {
    now: Instant,
    outgoing: Outgoing,
    incoming: Incoming,
    /// The stream that the sender may use.
    up: Option<u64>,
    downs: usize,
    /// Times at which the receiver heard that the sender has begun anew.
    anew: usize,
    /// On its way to the receiver.
    there: Vec<Step>,
    /// On its way back: a confirmation, or a refusal with its stream and the known one.
    back: Vec<Back>,
    got: Vec<u32>,
}

#[derive(Clone, Debug)]
enum Back {
    Ack(u64, u64),
    Refuse(u64, u64),
}

impl Ends {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        Ends {
            now,
            outgoing: Outgoing::new(limits, now),
            incoming: Incoming::default(),
            up: None,
            downs: 0,
            anew: 0,
            there: Vec::new(),
            back: Vec::new(),
            got: Vec::new(),
        }
    }

    fn steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Up(stream) => self.up = Some(stream),
                Step::Down => {
                    self.up = None;
                    self.downs += 1;
                }
                sent => self.there.push(sent),
            }
        }
    }

    fn tick(&mut self, passed: Duration) {
        self.now += passed;
        let mut steps = Vec::new();
        self.outgoing.pump(self.now, &mut steps);
        self.outgoing.tick(self.now, &mut steps);
        self.steps(steps);
    }

    fn put(&mut self, entries: Vec<Entry>) {
        if let Some(stream) = self.up {
            self.outgoing.put(stream, entries);
        }
        self.tick(Duration::ZERO);
    }

    fn arrive(&mut self, step: Step) {
        let (stream, received) = match step {
            Step::Open(stream) => (stream, self.incoming.open(stream)),
            Step::Batch(stream, number, body) => {
                assert!(body.len() <= LIMITS.batch_bytes);
                (stream, self.incoming.batch(stream, number, body))
            }
            other => panic!("{other:?} is not sent"),
        };
        if received.anew {
            self.anew += 1;
            self.got.clear();
        }
        self.got.extend(received.entries.into_iter().map(number));
        if received.ack {
            let (stream, number) = self.incoming.received();
            self.back.push(Back::Ack(stream, number));
        }
        if let Some(known) = received.refuse {
            self.back.push(Back::Refuse(stream, known));
        }
    }

    fn hear(&mut self, back: &Back) {
        let mut steps = Vec::new();
        match back {
            Back::Ack(stream, number) => {
                self.outgoing.acked(self.now, *stream, *number, &mut steps);
            }
            Back::Refuse(stream, known) => {
                self.outgoing.refused(self.now, *stream, *known, &mut steps);
            }
        }
        self.steps(steps);
    }

    /// Everything arrives, until nothing is said any more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.tick(Duration::ZERO);
            let there = std::mem::take(&mut self.there);
            let idle = there.is_empty();
            there.into_iter().for_each(|step| self.arrive(step));
            let back = std::mem::take(&mut self.back);
            if idle && back.is_empty() {
                return;
            }
            back.iter().for_each(|back| self.hear(back));
        }
        panic!("it never ends");
    }

    fn open() -> Self {
        let mut ends = Ends::new(LIMITS);
        ends.settle();
        assert_eq!(ends.up, Some(1));
        ends
    }
}

#[test]
fn what_comes_alone_goes_at_once_and_what_comes_fast_in_full_batches() {
    let mut ends = Ends::open();
    for n in 0..EAGER as u32 {
        ends.put(vec![entry(n, 1)]);
        assert_eq!(ends.there.len(), n as usize + 1);
    }
    ends.put(vec![entry(2, 1)]);
    assert_eq!(ends.there.len(), EAGER, "it waits for a confirmation, or for more");
    ends.put((3..9).map(|n| entry(n, 20)).collect());
    assert!(ends.there.len() > EAGER, "a batch is full");
    ends.settle();
    assert_eq!(ends.got, (0..9).collect::<Vec<_>>());
}

#[test]
fn i6_no_more_than_the_window_is_sent_unconfirmed() {
    let mut ends = Ends::open();
    ends.put((0..1000).map(|n| entry(n, 50)).collect());
    assert_eq!(ends.there.len(), WINDOW);
    ends.settle();
    assert_eq!(ends.got, (0..1000).collect::<Vec<_>>());
}

#[test]
fn a_large_entry_goes_in_pieces() {
    let mut ends = Ends::open();
    ends.put(vec![entry(0, 1), entry(1, 5_000), entry(2, 1), entry(3, 99), entry(4, 84)]);
    ends.settle();
    assert_eq!(ends.got, [0, 1, 2, 3, 4]);
}

#[test]
fn what_was_lost_is_sent_again() {
    let mut ends = Ends::open();
    ends.put((0..20).map(|n| entry(n, 50)).collect());
    ends.there.clear();
    ends.settle();
    assert_eq!(ends.got, [] as [u32; 0], "it is not time yet");
    ends.tick(RESEND);
    ends.settle();
    assert_eq!(ends.got, (0..20).collect::<Vec<_>>());
    assert_eq!(ends.downs, 0);
}

#[test]
fn without_progress_it_is_broken_and_begins_anew() {
    let mut ends = Ends::open();
    ends.put(vec![entry(0, 1)]);
    let late = std::mem::take(&mut ends.there);
    for _ in 0..20 {
        ends.tick(LIMITS.patience / 10);
        ends.there.clear();
    }
    assert_eq!((ends.downs, ends.up), (1, None));
    ends.put(vec![entry(1, 1)]);
    ends.tick(LIMITS.patience);
    ends.settle();
    assert_eq!(ends.up, Some(2));
    ends.outgoing.put(1, vec![entry(2, 1)]);
    ends.put(vec![entry(3, 1)]);
    ends.settle();
    late.into_iter().for_each(|step| ends.arrive(step));
    ends.settle();
    assert_eq!(ends.got, [3], "only what was put on the way that lives");
    assert_eq!((ends.anew, ends.up), (1, Some(2)), "what is late changes nothing");
}

#[test]
fn a_receiver_that_knows_nothing_makes_the_sender_begin_anew() {
    let mut ends = Ends::open();
    ends.put(vec![entry(0, 1)]);
    ends.settle();
    ends.incoming.end();
    ends.put(vec![entry(1, 1)]);
    ends.settle();
    ends.tick(RESEND);
    ends.settle();
    assert_eq!((ends.downs, ends.up), (1, Some(2)));
    ends.put(vec![entry(2, 1)]);
    ends.settle();
    assert_eq!((ends.got, ends.anew), (vec![2], 2));
}

#[test]
fn i6_a_way_on_which_too_much_waits_is_broken() {
    let mut ends = Ends::open();
    let large = entry(0, QUEUE_BYTES / 8);
    ends.put(vec![large; 9]);
    assert_eq!(ends.downs, 1);
}

#[test]
fn i7_a_length_that_no_entry_has_ends_the_stream() {
    for cut in 0..=4 {
        let mut incoming = Incoming::default();
        incoming.open(1);
        let length = (ENTRY_BYTES as u32 + 1).to_le_bytes();
        let (first, second) = length.split_at(cut);
        incoming.batch(1, 1, Bytes::copy_from_slice(first));
        let end = incoming.batch(1, 2, Bytes::copy_from_slice(second));
        let again = incoming.batch(1, 3, Bytes::new());
        assert_eq!((end.refuse.or(again.refuse), again.refuse), (Some(1), Some(1)), "{cut}");
    }
}

/// What the network, and time, do next.
#[derive(Clone, Debug)]
enum Event {
    Put(usize),
    Arrive(usize),
    Hear(usize),
    Lose(usize),
    LoseBack(usize),
    Double(usize),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_usize..300).prop_map(Event::Put),
        6 => (0_usize..4).prop_map(Event::Arrive),
        6 => (0_usize..4).prop_map(Event::Hear),
        1 => (0_usize..4).prop_map(Event::Lose),
        1 => (0_usize..4).prop_map(Event::LoseBack),
        1 => (0_usize..4).prop_map(Event::Double),
        2 => (0_u64..1_500).prop_map(Event::Pass),
    ]
}

fn pick<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    if from.is_empty() { None } else { Some(from.remove(at % from.len())) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    /// Lost, late, doubled, out of order: what was put on the way that lives in the end has come,
    /// once, in order; and while it lived nothing else came.
    #[test]
    fn histories(events in proptest::collection::vec(event(), 1..200)) {
        let mut ends = Ends::open();
        let mut put: Vec<u32> = Vec::new();
        let mut next = 0;
        let mut life = ends.up;
        for event in events {
            match event {
                Event::Put(size) => {
                    next += 1;
                    if ends.up.is_some() {
                        put.push(next);
                    }
                    ends.put(vec![entry(next, size)]);
                }
                Event::Arrive(at) => {
                    if let Some(step) = pick(&mut ends.there, at) {
                        ends.arrive(step);
                    }
                }
                Event::Hear(at) => {
                    if let Some(back) = pick(&mut ends.back, at) {
                        ends.hear(&back);
                    }
                }
                Event::Lose(at) => drop(pick(&mut ends.there, at)),
                Event::LoseBack(at) => drop(pick(&mut ends.back, at)),
                Event::Double(at) => {
                    if let Some(step) = pick(&mut ends.there, at) {
                        ends.there.extend([step.clone(), step]);
                    }
                }
                Event::Pass(millis) => ends.tick(Duration::from_millis(millis)),
            }
            if ends.up != life {
                life = ends.up;
                put.clear();
            }
        }
        for _ in 0..4 {
            ends.settle();
            ends.tick(LIMITS.patience);
            if ends.up != life {
                life = ends.up;
                put.clear();
            }
        }
        ends.settle();
        prop_assert!(ends.up.is_some());
        if !put.is_empty() {
            prop_assert_eq!(&ends.got, &put);
        }
    }

    #[test]
    fn i7_hostile_frames_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::read(bytes.into());
    }

    #[test]
    fn i7_hostile_batches_do_no_harm(
        bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..20),
    ) {
        let mut incoming = Incoming::default();
        incoming.open(1);
        for (number, body) in (1..).zip(bodies) {
            incoming.batch(1, number, body.into());
        }
    }
}

#[test]
fn a_frame_reads_as_it_was_written() {
    for kind in [Kind::Open, Kind::Batch, Kind::Ack, Kind::Refuse] {
        let head = Head { kind, from: 7, stream: 1 << 40, number: 3, acked: (5, u64::MAX) };
        let body = if kind == Kind::Batch { Bytes::from_static(b"body") } else { Bytes::new() };
        let frame = Frame { head, body };
        assert_eq!(Frame::read(frame.write()), Ok(frame));
    }
    assert_eq!(Frame::read(vec![0, 2].into()), Err(FrameError::Version(0)));
    assert_eq!(Frame::read(Bytes::new()), Err(FrameError::Malformed));
}

#[test]
fn i7_a_refusal_with_the_largest_number_breaks_the_way_and_nothing_else() {
    let now = Instant::now();
    let (mut outgoing, mut steps) = (Outgoing::new(LIMITS, now), Vec::new());
    outgoing.acked(now, 1, 0, &mut steps);
    outgoing.refused(now, 1, u64::MAX, &mut steps);
    assert_eq!(steps, [Step::Up(1), Step::Down]);
    outgoing.refused(now, u64::MAX, u64::MAX, &mut steps);
    outgoing.tick(now, &mut steps);
    assert_eq!(steps[2..], [Step::Open(u64::MAX)]);
}
