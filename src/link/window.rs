//! How much a link has under way.
//!
//! Intercepts are windowed by the interceptor, items of hand-overs here: at most
//! [`ITEMS`] unconfirmed on the link; one not taken within [`PATIENCE`] counts in its
//! session's own window only (two batches), so that slow clients do not hold up the rest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::shard::HandOver;

/// Intercepts that an interceptor may have unanswered.
pub const INTERCEPTS: usize = 1_024;

/// Intercepts unanswered at which a link is closed. Far above the window, because one
/// that is sent again counts twice.
pub const TOO_MANY_INTERCEPTS: usize = 16 * INTERCEPTS;

/// Items of hand-overs that may be unconfirmed on a link.
pub const ITEMS: usize = 1_000;

/// After so long an unconfirmed item counts no more.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The hand-overs of a link. What waits is bounded by two batches for each session that
/// the interceptor has announced (256 unanswered at most).
#[derive(Debug, Default)]
pub struct Window {
    waiting: VecDeque<HandOver>,
    sent: HashMap<(Arc<str>, u64), (usize, Instant)>,
    order: VecDeque<(Instant, (Arc<str>, u64))>,
    open: usize,
}

impl Window {
    /// A batch is to be sent.
    pub fn push(&mut self, hand_over: HandOver) {
        self.waiting.push_back(hand_over);
    }

    /// The next batch that may be sent now. A batch goes whenever the window is open at
    /// all, so that it never needs to be split.
    pub fn next(&mut self, now: Instant) -> Option<HandOver> {
        self.forget_old(now);
        if self.open >= ITEMS {
            return None;
        }
        let next = self.waiting.pop_front()?;
        let key = (next.session.clone(), next.batch);
        self.open += next.items.len();
        self.sent.insert(key.clone(), (next.items.len(), now));
        self.order.push_back((now, key));
        Some(next)
    }

    /// A batch was confirmed.
    pub fn taken(&mut self, session: &Arc<str>, batch: u64) {
        if let Some((items, _)) = self.sent.remove(&(session.clone(), batch)) {
            self.open -= items;
        }
    }

    /// A session has ended: what waits for it is not sent any more.
    pub fn ended(&mut self, session: &str) {
        self.waiting.retain(|hand_over| &*hand_over.session != session);
        let mut freed = 0;
        self.sent.retain(|(s, _), (items, _)| {
            let of_it = &**s == session;
            freed += if of_it { *items } else { 0 };
            !of_it
        });
        self.open -= freed;
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((at, key)) = self.order.front() {
            let gone = match self.sent.get(key) {
                None => true,
                Some((_, sent_at)) => sent_at == at && now.duration_since(*at) >= PATIENCE,
            };
            if !gone {
                break;
            }
            if let Some((items, _)) = self.sent.remove(key) {
                self.open -= items;
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Item;
    use crate::time::Timestamp;
    use crate::words::MessageId;

    fn batch(session: &str, batch: u64, items: usize) -> HandOver {
        let item = Item {
            id: MessageId::ZERO,
            stamp: Timestamp::from_micros(0),
            stanza: bytes::Bytes::new(),
        };
        HandOver { host: "h".into(), session: session.into(), batch, items: vec![item; items] }
    }

    #[test]
    fn the_window_closes_and_opens_again() {
        let start = Instant::now();
        let mut window = Window::default();
        for n in 0..30 {
            window.push(batch("s", n, 50));
        }
        let mut sent = 0;
        while window.next(start).is_some() {
            sent += 1;
        }
        assert_eq!(sent, 20);
        window.taken(&"s".into(), 3);
        assert_eq!(window.next(start).map(|b| b.batch), Some(20));
        assert!(window.next(start).is_none());
        window.taken(&"s".into(), 3);
        assert!(window.next(start).is_none(), "a repetition frees nothing");
    }

    #[test]
    fn old_items_and_ended_sessions_do_not_hold_up_the_rest() {
        let start = Instant::now();
        let mut window = Window::default();
        for n in 0..20 {
            window.push(batch("slow", n, 50));
            assert!(window.next(start).is_some());
        }
        window.push(batch("slow", 20, 50));
        window.push(batch("fast", 1, 50));
        assert!(window.next(start).is_none());
        window.ended("slow");
        assert_eq!(window.open, 0);
        assert_eq!(window.next(start).map(|b| b.session), Some("fast".into()));
        for n in 2..21 {
            window.push(batch("fast", n, 50));
            assert!(window.next(start).is_some());
        }
        window.push(batch("other", 1, 1));
        assert!(window.next(start).is_none());
        assert!(window.next(start + PATIENCE).is_some());
        assert_eq!(window.open, 1);
    }
}
