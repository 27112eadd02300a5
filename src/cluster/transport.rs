//! What crosses: the ways to the other nodes, over NATS.
//!
//! Each node listens to one subject of its incarnation, `amphora.CLUSTER.NODE.NUMBER.in`. What
//! comes there names its sender. NATS may lose any of it; [`channel`](super::channel) makes up for
//! that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use actix::Addr;
use async_nats::{Message, Subject, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};

use crate::router::{FromPeer, PeerDown, PeerForgot, PeerUp, Router};
use crate::shard::wire::Crossing;
use crate::shard::{Parcel, Way};
use crate::store::Incarnation;

use super::channel::{
    BATCH_BYTES, Frame, FrameError, HEAD, Head, Incoming, Kind, Limits, Outgoing, Received, Step,
};
use super::{MemberInfo, Members, Nats};

/// Messages, and parcels, that are taken at once.
const AT_ONCE: usize = 256;

/// How long NATS may take to take a message while it seems to be there.
const PUBLISH: Duration = Duration::from_millis(500);

/// The pause before the subject is subscribed to again.
const PAUSE: Duration = Duration::from_secs(1);

/// What the transport needs.
pub struct TransportContext {
    /// The connection.
    pub nats: Nats,
    /// Who this process is to the others.
    pub own: Incarnation,
    /// The others.
    pub members: Members,
    /// A way that does not get through for so long is broken.
    pub lease: Duration,
    /// Who is told what comes, and of the ways that there are.
    pub router: Addr<Router>,
}

/// Begins; ends with the thread of the connection.
pub fn start(context: TransportContext) {
    let TransportContext { nats, own, members, lease, router } = context;
    let (door, parcels) = mpsc::unbounded_channel();
    let up = nats.up();
    let transport = Transport {
        own,
        lease,
        router,
        door,
        up: *up.borrow(),
        peers: BTreeMap::new(),
        steps: Vec::new(),
        nats: nats.clone(),
    };
    nats.spawn(transport.run(parcels, members, up));
}

/// Another node.
struct Peer {
    node: Incarnation,
    subject: Subject,
    outgoing: Outgoing,
    incoming: Incoming,
    /// It is to be told what came.
    ack: bool,
    /// When to look at its way again; none: when something is sent.
    wake: Option<Instant>,
}

struct Transport {
    nats: Nats,
    own: Incarnation,
    lease: Duration,
    router: Addr<Router>,
    /// For those who put something on a way.
    door: mpsc::UnboundedSender<Parcel>,
    up: bool,
    peers: BTreeMap<u32, Peer>,
    steps: Vec<Step>,
}

fn subject(nats: &Nats, node: &Incarnation) -> Subject {
    // Spaces, dots and stars mean something in a subject.
    let name: String = node.node.bytes().map(|byte| format!("{byte:02x}")).collect();
    nats.subject(&format!("{name}.{}.in", node.number)).into()
}

impl Transport {
    async fn run(
        mut self,
        mut parcels: mpsc::UnboundedReceiver<Parcel>,
        mut members: Members,
        mut up: watch::Receiver<bool>,
    ) {
        let mut messages = self.subscribe().await;
        let mut waiting = Vec::new();
        self.members_changed(&members.borrow_and_update().clone());
        loop {
            self.send_out().await;
            let wake = self.peers.values().filter_map(|peer| peer.wake).min();
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.hear_all(message, &mut messages),
                    None => messages = self.subscribe().await,
                },
                taken = parcels.recv_many(&mut waiting, AT_ONCE) => {
                    if taken == 0 {
                        return;
                    }
                    waiting.drain(..).for_each(|parcel| self.put(parcel));
                }
                // An error: nobody says any more who is there, for the node stops. What it has to
                // say is said all the same.
                Ok(()) = members.changed() => {
                    let members = members.borrow_and_update().clone();
                    self.members_changed(&members);
                }
                // An error: the connection has ended with its thread.
                changed = up.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.up = *up.borrow_and_update();
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => {}
            }
        }
    }

    async fn subscribe(&self) -> Subscriber {
        loop {
            match self.nats.client().subscribe(subject(&self.nats, &self.own)).await {
                Ok(messages) => return messages,
                Err(error) => tracing::error!(%error, "cannot listen to the other nodes"),
            }
            sleep(PAUSE).await;
        }
    }

    /// The nodes that are there: a way to each.
    fn members_changed(&mut self, members: &[MemberInfo]) {
        let is_there = |number: u32| members.iter().any(|m| m.incarnation.number == number);
        let gone: Vec<u32> = self.peers.keys().copied().filter(|n| !is_there(*n)).collect();
        for number in gone {
            self.peers.remove(&number);
            self.router.do_send(PeerDown(number));
            self.router.do_send(PeerForgot(number));
        }
        for MemberInfo { incarnation: node, .. } in members {
            if self.peers.contains_key(&node.number) {
                continue;
            }
            let now = Instant::now();
            let peer = Peer {
                node: node.clone(),
                subject: subject(&self.nats, node),
                outgoing: Outgoing::new(self.limits(), now),
                incoming: Incoming::default(),
                ack: false,
                wake: Some(now),
            };
            self.peers.insert(node.number, peer);
        }
    }

    fn limits(&self) -> Limits {
        // Before there is a connection it is not known.
        let most = match self.nats.client().server_info().max_payload {
            0 => BATCH_BYTES,
            most => most.saturating_sub(HEAD),
        };
        Limits { batch_bytes: most.clamp(64, BATCH_BYTES), patience: self.lease }
    }

    fn put(&mut self, parcel: Parcel) {
        if let Some(peer) = self.peers.get_mut(&parcel.peer) {
            metrics::counter!("amphora_cluster_sent_total").increment(parcel.entries.len() as u64);
            peer.outgoing.put(parcel.life, parcel.entries);
        }
    }

    /// All that has come by now, so that one answer goes for many.
    fn hear_all(&mut self, first: Message, messages: &mut Subscriber) {
        self.hear(first.payload);
        for _ in 1..AT_ONCE {
            match messages.next().now_or_never() {
                Some(Some(message)) => self.hear(message.payload),
                _ => break,
            }
        }
    }

    fn hear(&mut self, payload: Bytes) {
        let Frame { head, body } = match Frame::read(payload) {
            Ok(frame) => frame,
            Err(error @ FrameError::Version(_)) => return tracing::warn!("{error}"),
            Err(error) => return tracing::debug!("{error}"),
        };
        // One who is not known (yet, or any more) is not answered, and says it again.
        let Some(peer) = self.peers.get_mut(&head.from) else { return };
        let now = Instant::now();
        let steps = &mut self.steps;
        if head.kind != Kind::Refuse && head.acked.0 != 0 {
            peer.outgoing.acked(now, head.acked.0, head.acked.1, steps);
        }
        let received = match head.kind {
            Kind::Open => peer.incoming.open(head.stream),
            Kind::Batch => peer.incoming.batch(head.stream, head.number, body),
            Kind::Refuse => {
                peer.outgoing.refused(now, head.stream, head.number, steps);
                Received::default()
            }
            Kind::Ack => Received::default(),
        };
        peer.ack |= received.ack;
        peer.wake = Some(now);
        let refused = received.refuse;
        self.deliver(head.from, received);
        self.told(head.from);
        if let Some(known) = refused {
            self.refuse(head, known);
        }
    }

    fn deliver(&self, from: u32, received: Received) {
        if received.anew {
            self.router.do_send(PeerForgot(from));
        }
        if received.entries.is_empty() {
            return;
        }
        let read = |entry: Bytes| match Crossing::read(entry, from) {
            Ok(crossing) => Some(crossing),
            Err(error) => {
                tracing::error!(from, "another node says what can't be read: {error}");
                metrics::counter!("amphora_cluster_unreadable_total").increment(1);
                None
            }
        };
        let crossings: Vec<Crossing> = received.entries.into_iter().filter_map(read).collect();
        metrics::counter!("amphora_cluster_received_total").increment(crossings.len() as u64);
        self.router.do_send(FromPeer { peer: from, crossings });
    }

    /// The router hears of ways that begin and end, in this order and before anything else is put
    /// on them. What goes out stays among the steps.
    fn told(&mut self, number: u32) {
        let Some(peer) = self.peers.get(&number) else { return self.steps.clear() };
        let (router, door) = (&self.router, &self.door);
        for step in &self.steps {
            match step {
                Step::Up(stream) => {
                    tracing::info!(node = %peer.node, "a way to another node");
                    let way = Way::new(number, *stream, door.clone());
                    router.do_send(PeerUp { node: peer.node.clone(), way });
                }
                Step::Down => {
                    tracing::warn!(node = %peer.node, "the way to another node is broken");
                    metrics::counter!("amphora_cluster_broken_total").increment(1);
                    router.do_send(PeerDown(number));
                }
                Step::Open(_) | Step::Batch(..) => {}
            }
        }
        self.steps.clear();
    }

    fn refuse(&self, head: Head, known: u64) {
        let Some(peer) = self.peers.get(&head.from).filter(|_| self.up) else { return };
        let refusal = Frame {
            head: Head {
                kind: Kind::Refuse,
                from: self.own.number,
                stream: head.stream,
                number: known,
                acked: (0, 0),
            },
            body: Bytes::new(),
        };
        let (client, subject) = (self.nats.client().clone(), peer.subject.clone());
        tokio::spawn(async move {
            // It is asked again, and answered again.
            let _ = timeout(PUBLISH, client.publish(subject, refusal.write())).await;
        });
    }

    /// Sends what may be sent, confirms what came.
    async fn send_out(&mut self) {
        let numbers: Vec<u32> = self.peers.keys().copied().collect();
        for number in numbers {
            let Some(peer) = self.peers.get_mut(&number) else { continue };
            let now = Instant::now();
            let mut steps = Vec::new();
            peer.outgoing.pump(now, &mut steps);
            peer.wake = peer.outgoing.tick(now, &mut steps);
            let acked = peer.incoming.received();
            let ack = std::mem::take(&mut peer.ack);
            let sends = steps.iter().any(|step| matches!(step, Step::Open(_) | Step::Batch(..)));
            let subject = peer.subject.clone();
            let frames = steps
                .iter()
                .filter_map(|step| self.frame(step, acked))
                .chain((ack && !sends).then(|| self.bare(Kind::Ack, 0, 0, acked)));
            let frames: Vec<Frame> = frames.collect();
            self.steps = steps;
            self.told(number);
            self.publish(&subject, frames).await;
        }
    }

    fn frame(&self, step: &Step, acked: (u64, u64)) -> Option<Frame> {
        match step {
            Step::Open(stream) => Some(self.bare(Kind::Open, *stream, 0, acked)),
            Step::Batch(stream, number, body) => {
                let bare = self.bare(Kind::Batch, *stream, *number, acked);
                Some(Frame { body: body.clone(), ..bare })
            }
            Step::Up(_) | Step::Down => None,
        }
    }

    fn bare(&self, kind: Kind, stream: u64, number: u64, acked: (u64, u64)) -> Frame {
        Frame {
            head: Head { kind, from: self.own.number, stream, number, acked },
            body: Bytes::new(),
        }
    }

    async fn publish(&self, subject: &Subject, frames: Vec<Frame>) {
        if !self.up {
            return;
        }
        for frame in frames {
            let published = self.nats.client().publish(subject.clone(), frame.write());
            match timeout(PUBLISH, published).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return tracing::warn!(%error, "cannot send to another node"),
                // The connection is gone, and not known to be.
                Err(_) => return,
            }
        }
    }
}
