//! How much a link has under way.
//!
//! Intercepts are windowed by the interceptor, items of hand-overs here: at most
//! [`ITEMS`] unconfirmed on the link; one not taken within [`PATIENCE`] counts in its
//! session's own window only (eight batches), so that slow clients do not hold up the rest.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::shard::{HandOver, Retrieved};

/// Intercepts that an interceptor may have unanswered.
pub const INTERCEPTS: usize = 1_024;

/// Intercepts unanswered at which a link is closed. Far above the window, so that only
/// an interceptor that has none gets there.
pub const TOO_MANY_INTERCEPTS: usize = 16 * INTERCEPTS;

/// Items of hand-overs that may be unconfirmed on a link: those of ten sessions that take all they
/// can. A large one counts for several, see [`ITEM_BYTES`].
pub const ITEMS: usize = 4_000;

/// For each so many bytes an item counts once more, so that a link has 8 MiB under way at most, and
/// one batch.
pub const ITEM_BYTES: usize = 2_048;

/// After so long an unconfirmed item counts no more.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The hand-overs of a link. What waits is bounded by eight batches for each session that
/// the interceptor has announced (256 unanswered at most), and for each request of a user
/// for his messages (8 of each user at most).
#[derive(Debug, Default)]
pub struct Window {
    waiting: VecDeque<Waiting>,
    sent: HashMap<(Arc<str>, u64), (usize, Instant)>,
    order: VecDeque<(Instant, (Arc<str>, u64))>,
    open: usize,
}

/// What goes out in its session's order.
#[derive(Debug, PartialEq)]
pub enum Waiting {
    /// A batch.
    HandOver(HandOver),
    /// The word that there are no more.
    HandedOver {
        /// The session's virtual host.
        host: Arc<str>,
        /// The session.
        session: Arc<str>,
        /// The reason that it answers.
        n: u64,
        /// Items handed over.
        count: u64,
    },
    /// The answer to a user who asked for his messages: behind what he is shown.
    Retrieved(Retrieved),
}

impl Waiting {
    fn session(&self) -> &Arc<str> {
        match self {
            Waiting::HandOver(hand_over) => &hand_over.session,
            Waiting::HandedOver { session, .. } => session,
            Waiting::Retrieved(retrieved) => &retrieved.asker.name,
        }
    }
}

impl Window {
    /// Something is to be sent.
    pub fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// What may be sent next. A batch goes whenever the window is open at all, so that it
    /// never needs to be split; the word that there are no more goes as soon as no batch of
    /// its session waits.
    pub fn next(&mut self, now: Instant) -> Option<Waiting> {
        self.forget_old(now);
        if self.open >= ITEMS {
            return self.next_word();
        }
        let next = self.waiting.pop_front()?;
        if let Waiting::HandOver(batch) = &next {
            let key = (batch.session.clone(), batch.batch);
            let weight = weight(batch);
            self.open += weight;
            self.sent.insert(key.clone(), (weight, now));
            self.order.push_back((now, key));
        }
        Some(next)
    }

    /// The first word before which nothing of its session waits.
    fn next_word(&mut self) -> Option<Waiting> {
        let mut seen: HashSet<&str> = HashSet::new();
        let at = self.waiting.iter().position(|waiting| {
            let first = seen.insert(waiting.session());
            first && !matches!(waiting, Waiting::HandOver(_))
        })?;
        self.waiting.remove(at)
    }

    /// A batch was confirmed.
    pub fn taken(&mut self, session: &Arc<str>, batch: u64) {
        if let Some((items, _)) = self.sent.remove(&(session.clone(), batch)) {
            self.open -= items;
        }
    }

    /// A session has ended: what waits for it is not sent any more.
    pub fn ended(&mut self, session: &str) {
        self.waiting.retain(|waiting| &**waiting.session() != session);
        let mut freed = 0;
        self.sent.retain(|(s, _), (items, _)| {
            let of_it = &**s == session;
            freed += if of_it { *items } else { 0 };
            !of_it
        });
        self.open -= freed;
    }

    /// A host knows of no session any more: what waits for one is not sent.
    pub fn forget_host(&mut self, host: &str) {
        self.waiting.retain(|waiting| match waiting {
            Waiting::HandOver(batch) => &*batch.host != host,
            Waiting::HandedOver { host: of, .. } => &**of != host,
            Waiting::Retrieved(retrieved) => &*retrieved.asker.host != host,
        });
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

fn weight(batch: &HandOver) -> usize {
    batch.items.iter().map(|item| 1 + item.stanza.len() / ITEM_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::Item;
    use crate::time::Timestamp;
    use crate::words::MessageId;

    fn batch(session: &str, batch: u64, items: usize) -> Waiting {
        let item = Item {
            id: MessageId::ZERO,
            stamp: Timestamp::from_micros(0),
            stanza: bytes::Bytes::new(),
        };
        let items = vec![item; items];
        let (host, session) = ("h".into(), session.into());
        Waiting::HandOver(HandOver { host, session, batch, view: false, items })
    }

    fn word(session: &str) -> Waiting {
        Waiting::HandedOver { host: "h".into(), session: session.into(), n: 1, count: 0 }
    }

    fn number(waiting: Option<Waiting>) -> Option<u64> {
        match waiting? {
            Waiting::HandOver(batch) => Some(batch.batch),
            _ => None,
        }
    }

    #[test]
    fn i3_the_word_that_there_are_no_more_waits_for_the_batches_before_it() {
        let now = Instant::now();
        let mut window = Window::default();
        for n in 0..20 {
            window.push(batch("first", n, 200));
            assert!(window.next(now).is_some());
        }
        window.push(batch("late", 1, 1));
        window.push(word("late"));
        window.push(word("nothing stored"));
        assert_eq!(window.next(now), Some(word("nothing stored")));
        assert_eq!(window.next(now), None);
        window.taken(&"first".into(), 0);
        assert_eq!(window.next(now), Some(batch("late", 1, 1)));
        assert_eq!(window.next(now), Some(word("late")));
    }

    #[test]
    fn i6_a_large_item_counts_for_several() {
        let now = Instant::now();
        let mut window = Window::default();
        for n in 0..40 {
            let Waiting::HandOver(mut large) = batch("s", n, 100) else { unreachable!() };
            large.items[0].stanza = vec![b'x'; 99 * ITEM_BYTES].into();
            large.items[1].stanza = vec![b'x'; ITEM_BYTES - 1].into();
            window.push(Waiting::HandOver(large));
        }
        let sent = std::iter::from_fn(|| window.next(now)).count();
        assert_eq!(sent, ITEMS.div_ceil(199));
    }

    #[test]
    fn the_window_closes_and_opens_again() {
        let start = Instant::now();
        let mut window = Window::default();
        for n in 0..30 {
            window.push(batch("s", n, 200));
        }
        let mut sent = 0;
        while window.next(start).is_some() {
            sent += 1;
        }
        assert_eq!(sent, 20);
        window.taken(&"s".into(), 3);
        assert_eq!(number(window.next(start)), Some(20));
        assert!(window.next(start).is_none());
        window.taken(&"s".into(), 3);
        assert!(window.next(start).is_none(), "a repetition frees nothing");
    }

    #[test]
    fn old_items_and_ended_sessions_do_not_hold_up_the_rest() {
        let start = Instant::now();
        let mut window = Window::default();
        for n in 0..20 {
            window.push(batch("slow", n, 200));
            assert!(window.next(start).is_some());
        }
        window.push(batch("slow", 20, 200));
        window.push(batch("fast", 1, 200));
        assert!(window.next(start).is_none());
        window.ended("slow");
        assert_eq!(window.open, 0);
        assert_eq!(window.next(start), Some(batch("fast", 1, 200)));
        for n in 2..21 {
            window.push(batch("fast", n, 200));
            assert!(window.next(start).is_some());
        }
        window.push(batch("other", 1, 1));
        assert!(window.next(start).is_none());
        assert!(window.next(start + PATIENCE).is_some());
        assert_eq!(window.open, 1);
    }
}
