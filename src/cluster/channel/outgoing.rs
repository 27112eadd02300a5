//! The sending end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::shard::wire::Entry;

use super::incoming::LENGTH;
use super::{BATCH_ENTRIES, EAGER, Limits, QUEUE_BYTES, RESEND, WINDOW};

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Say that this stream begins.
    Open(u64),
    /// Send this batch: stream, number, body.
    Batch(u64, u64, Bytes),
    /// The way can be used: its stream.
    Up(u64),
    /// It is broken.
    Down,
}

/// What goes to one other node.
#[derive(Debug)]
pub struct Outgoing {
    limits: Limits,
    stream: u64,
    open: bool,
    /// Sent and not confirmed; the last has the number `last`.
    window: VecDeque<Bytes>,
    last: u64,
    queue: VecDeque<Entry>,
    queued: usize,
    /// What is left of an entry that goes in pieces.
    rest: Bytes,
    /// When something was last sent for the first time while nothing was under way, confirmed, or
    /// sent again.
    sent: Instant,
    /// When the way last got through, or something was sent after a time when nothing had to.
    heard: Instant,
    resend: Duration,
}

impl Outgoing {
    /// A way that begins: the next [`Outgoing::tick`] says so.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self::with_stream(1, limits, now)
    }

    fn with_stream(stream: u64, limits: Limits, now: Instant) -> Self {
        Outgoing {
            limits,
            stream,
            open: false,
            window: VecDeque::new(),
            last: 0,
            queue: VecDeque::new(),
            queued: 0,
            rest: Bytes::new(),
            sent: now.checked_sub(RESEND).unwrap_or(now),
            heard: now,
            resend: RESEND,
        }
    }

    /// Puts entries on the way, if it still lives. [`Outgoing::pump`] sends them.
    pub fn put(&mut self, stream: u64, entries: Vec<Entry>) {
        if self.open && stream == self.stream {
            self.queued += entries.iter().map(Entry::size).sum::<usize>();
            self.queue.extend(entries);
        }
    }

    /// Sends what may be sent now.
    pub fn pump(&mut self, now: Instant, steps: &mut Vec<Step>) {
        if self.queued > QUEUE_BYTES {
            tracing::error!(bytes = self.queued, "too much waits for another node");
            return self.break_off(now, steps);
        }
        while self.open && self.window.len() < WINDOW && self.may_send() {
            if self.window.is_empty() {
                (self.sent, self.heard) = (now, now);
            }
            let body = self.batch();
            self.last += 1;
            self.window.push_back(body.clone());
            steps.push(Step::Batch(self.stream, self.last, body));
        }
    }

    fn may_send(&self) -> bool {
        let waits = !self.rest.is_empty() || !self.queue.is_empty();
        let full = self.queue.len() >= BATCH_ENTRIES
            || self.rest.len() + self.queued >= self.limits.batch_bytes;
        waits && (full || self.window.len() < EAGER)
    }

    /// The next bytes of the row.
    fn batch(&mut self) -> Bytes {
        let room = self.limits.batch_bytes;
        if !self.rest.is_empty() {
            return self.rest.split_to(room.min(self.rest.len()));
        }
        let mut body = Vec::with_capacity(room.min(self.queued + LENGTH * BATCH_ENTRIES));
        for _ in 0..BATCH_ENTRIES {
            let Some(entry) = self.queue.front() else { break };
            if !body.is_empty() && body.len() + LENGTH + entry.size() > room {
                break;
            }
            let Some(entry) = self.queue.pop_front() else { break };
            self.queued -= entry.size();
            write(&entry, &mut body);
        }
        let mut body = Bytes::from(body);
        if body.len() > room {
            self.rest = body.split_off(room);
        }
        body
    }

    /// The other says up to which batch it has them all.
    pub fn acked(&mut self, now: Instant, stream: u64, number: u64, steps: &mut Vec<Step>) {
        if stream != self.stream {
            return;
        }
        if !self.open {
            (self.open, self.heard, self.resend) = (true, now, RESEND);
            steps.push(Step::Up(stream));
        }
        let first = self.last + 1 - self.window.len() as u64;
        if number < first || number > self.last {
            return;
        }
        self.window.drain(..usize::try_from(number + 1 - first).unwrap_or(usize::MAX));
        (self.sent, self.heard, self.resend) = (now, now, RESEND);
    }

    /// The other does not know the stream; `known` is the last that it did.
    pub fn refused(&mut self, now: Instant, stream: u64, known: u64, steps: &mut Vec<Step>) {
        if stream != self.stream {
            return;
        }
        self.stream = self.stream.max(known);
        self.break_off(now, steps);
    }

    /// Time passes: sends again what was not confirmed, gives up what can't be sent. When to look
    /// again; none: when something is sent.
    pub fn tick(&mut self, now: Instant, steps: &mut Vec<Step>) -> Option<Instant> {
        if self.open && self.window.is_empty() {
            return None;
        }
        if self.open && now.duration_since(self.heard) >= self.limits.patience {
            self.break_off(now, steps);
        }
        if now.duration_since(self.sent) >= self.resend {
            self.sent = now;
            self.resend = (2 * self.resend).min(self.limits.patience / 3).max(RESEND);
            if self.open {
                let first = self.last + 1 - self.window.len() as u64;
                let batches = (first..).zip(&self.window);
                steps.extend(
                    batches.map(|(number, body)| Step::Batch(self.stream, number, body.clone())),
                );
            } else {
                steps.push(Step::Open(self.stream));
            }
        }
        Some(self.sent + self.resend)
    }

    /// What was put on it may not have arrived. It begins anew.
    pub fn break_off(&mut self, now: Instant, steps: &mut Vec<Step>) {
        let was_open = std::mem::take(&mut self.open);
        // The number may have come from the other end.
        *self = Self::with_stream(self.stream.saturating_add(1), self.limits, now);
        if was_open {
            steps.push(Step::Down);
        }
    }
}

/// An entry behind its length.
fn write(entry: &Entry, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    entry.write(out);
    let length = u32::try_from(out.len() - at - LENGTH).unwrap_or(u32::MAX);
    out[at..at + LENGTH].copy_from_slice(&length.to_le_bytes());
}
