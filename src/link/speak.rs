//! The writing side of a link: verdicts in batches, hand-overs within their window,
//! greetings and pings when it is time.

use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::router::Route;
use crate::shard::{ITEM_OVERHEAD, Input, Sent, ToLink, Verdict};

use super::error::LinkError;
use super::keep::Stop;
use super::session::{DEFAULT_MAX_STANZA, Session, State};
use super::window::Waiting;

/// A greeting that is not answered is sent again after this. An interceptor that is loaded
/// later, or again, is found so.
pub(super) const GREETING: Duration = Duration::from_secs(5);

/// After so long without a byte from the server it is pinged (XEP-0199).
const QUIET: Duration = Duration::from_secs(60);

/// A server that does not answer a ping for so long is gone.
const PING: Duration = Duration::from_secs(30);

/// A request to send a notice that is not answered for so long has failed.
const SEND: Duration = Duration::from_secs(30);

/// Bytes that a server must read within the same time.
const CHUNK: usize = 64 * 1024;

/// Messages from shards that are written in one go.
const OUT_BATCH: usize = 256;

/// Bytes of verdicts that may share one message; far below what any server takes.
const VERDICTS_BYTES: usize = 128 * 1024;

impl Session<'_> {
    pub(super) async fn write_all<W: AsyncWrite + Unpin>(
        &self,
        sink: &mut W,
        shards: &mut mpsc::UnboundedReceiver<Vec<ToLink>>,
    ) -> Result<(), LinkError> {
        let mut stop = self.context.stop.clone();
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut said = Vec::new();
        loop {
            let closing = *stop.borrow() == Stop::Close && shards.is_empty();
            tokio::select! {
                biased;
                _ = shards.recv_many(&mut said, OUT_BATCH) => {}
                () = self.wake.notified() => {}
                _ = tick.tick() => self.tick()?,
                _ = stop.wait_for(|stop| *stop == Stop::Close), if !closing => {}
                () = std::future::ready(()), if closing => {}
            }
            for what in said.drain(..).flatten() {
                self.say(what);
            }
            let out = self.take_out();
            if !out.is_empty() {
                // A peer that does not read on is as good as gone.
                for chunk in out.as_bytes().chunks(CHUNK) {
                    let written = timeout(PING, sink.write_all(chunk)).await;
                    written.map_err(|_| LinkError::Silence(PING.as_secs()))??;
                }
            } else if closing {
                return Err(LinkError::Stopping);
            }
        }
    }

    /// Puts one thing among what is written next.
    fn say(&self, what: ToLink) {
        let state = &mut *self.state.borrow_mut();
        match what {
            ToLink::Verdict(verdict) => {
                state.unanswered.remove(&verdict.key);
                self.counters.verdict(verdict.what);
                state.verdicts.push(verdict);
            }
            // What comes after a verdict is written after it.
            other => {
                self.flush_verdicts(state);
                self.say_other(state, other);
            }
        }
    }

    fn say_other(&self, state: &mut State, what: ToLink) {
        match what {
            ToLink::Verdict(_) => {}
            ToLink::HandOver(batch) => state.window.push(Waiting::HandOver(batch)),
            ToLink::HandedOver { host, session, n, count } => {
                state.window.push(Waiting::HandedOver { host, session, n, count });
            }
            ToLink::Deleted { host, session, batch } => {
                self.writer.deleted(&mut state.out, &host, &session, batch);
            }
            ToLink::Retrieved(retrieved) => state.window.push(Waiting::Retrieved(retrieved)),
            ToLink::AccountRemoved { host, request, done } => {
                if done {
                    self.writer.result(&mut state.out, &host, &request);
                } else {
                    let condition = "resource-constraint";
                    self.writer.error(&mut state.out, &host, &request, "wait", condition);
                }
            }
            ToLink::Request(request) => self.ask(state, request),
            ToLink::Response(answer) => self.writer.answer(&mut state.out, &answer),
            ToLink::Send(send) => {
                state.next_iq += 1;
                let id = format!("s{}", state.next_iq);
                let host = send.user.rsplit('@').next().unwrap_or(&send.user).to_owned();
                self.writer.send(&mut state.out, &host, &id, &send);
                state.sends.insert(id, (send.user, send.id, Instant::now()));
            }
        }
    }

    /// Everything that may be written now.
    fn take_out(&self) -> String {
        let state = &mut *self.state.borrow_mut();
        self.flush_verdicts(state);
        self.flush_window(state);
        std::mem::take(&mut state.out)
    }

    /// Writes the verdicts that wait, those of a host together, each in its order.
    fn flush_verdicts(&self, state: &mut State) {
        let mut verdicts = std::mem::take(&mut state.verdicts);
        for verdict in &mut verdicts {
            Self::cut_to_size(state, verdict);
        }
        verdicts.sort_by(|a, b| a.host.cmp(&b.host));
        for of_host in verdicts.chunk_by(|a, b| a.host == b.host) {
            let Some(host) = of_host.first().map(|verdict| verdict.host.clone()) else { continue };
            let max = state.hosts.get(&host).map_or(DEFAULT_MAX_STANZA, |h| h.max_stanza);
            let (mut begin, mut bytes) = (0, 0);
            for (i, verdict) in of_host.iter().enumerate() {
                let more = size(verdict);
                if bytes + more > VERDICTS_BYTES.min(max / 2) && begin < i {
                    self.writer.verdicts(&mut state.out, &host, &of_host[begin..i]);
                    (begin, bytes) = (i, 0);
                }
                bytes += more;
            }
            self.writer.verdicts(&mut state.out, &host, &of_host[begin..]);
        }
    }

    /// Takes the replies out of verdicts that the server would not take with them.
    fn cut_to_size(state: &State, verdict: &mut Verdict) {
        let max = state.hosts.get(&verdict.host).map_or(DEFAULT_MAX_STANZA, |h| h.max_stanza);
        if size(verdict) + ITEM_OVERHEAD > max {
            tracing::error!(
                key = &*verdict.key,
                "a reply to a sender is larger than the server takes and is left out"
            );
            verdict.sends.clear();
        }
    }

    fn flush_window(&self, state: &mut State) {
        let now = Instant::now();
        while let Some(waiting) = state.window.next(now) {
            match waiting {
                Waiting::HandOver(batch) => {
                    let items = batch.items.len() as u64;
                    if batch.view {
                        metrics::counter!("amphora_shown_total").increment(items);
                    } else {
                        metrics::counter!("amphora_handed_over_total").increment(items);
                    }
                    self.writer.hand_over(&mut state.out, &batch);
                }
                Waiting::HandedOver { host, session, n, count } => {
                    self.writer.handed_over(&mut state.out, &host, &session, n, count);
                }
                Waiting::Retrieved(retrieved) => {
                    self.writer.retrieved(&mut state.out, &retrieved);
                }
            }
        }
    }

    /// Greets the hosts that have not answered.
    pub(super) fn greet(&self) {
        let now = Instant::now();
        let state = &mut *self.state.borrow_mut();
        for (name, host) in &mut state.hosts {
            let asked = host.asked.is_some_and(|at| now.duration_since(at) < GREETING);
            if host.greeted || asked {
                continue;
            }
            host.asked = Some(now);
            state.next_iq += 1;
            let id = format!("g{}", state.next_iq);
            let (node, security) = (&self.context.node, self.context.security);
            let redirects = self.settings.redirects.iter().filter(|r| r.host == *name);
            self.writer.greeting(&mut state.out, name, &id, node, security, redirects);
        }
    }

    /// Greets hosts that have not answered, and sees whether the server is still there.
    fn tick(&self) -> Result<(), LinkError> {
        self.greet();
        let now = Instant::now();
        let state = &mut *self.state.borrow_mut();
        if state.pinged.is_some_and(|at| now.duration_since(at) >= PING) {
            return Err(LinkError::Silence(PING.as_secs()));
        }
        if state.pinged.is_none() && now.duration_since(state.heard) >= QUIET {
            state.pinged = Some(now);
            state.next_iq += 1;
            let id = format!("p{}", state.next_iq);
            if let Some(host) = self.settings.hosts.first() {
                self.writer.ping(&mut state.out, host, &id);
            }
        }
        self.give_up_late_requests(state);
        let late: Vec<_> =
            state.sends.extract_if(|_, (_, _, at)| now.duration_since(*at) >= SEND).collect();
        let failed = late
            .into_iter()
            .map(|(_, (user, id, _))| (user.clone(), Input::Sent { user, id, sent: Sent::Failed }));
        self.context.router.do_send(Route(failed.collect()));
        Ok(())
    }
}

/// Bytes of a verdict as written, roughly and not less.
fn size(verdict: &Verdict) -> usize {
    128 + verdict.key.len() + verdict.sends.iter().map(|send| send.len() + 64).sum::<usize>()
}
