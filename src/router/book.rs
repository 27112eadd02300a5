//! What links of this node have asked of shards that are decided elsewhere, and nobody has
//! answered: asked again, in its order, when a shard's place changes.
//!
//! It is bounded by the windows of the links. What is not kept here needs no keeping: a notice is
//! repeated by the expiry clock. A confirmation (`taken`) is repeated by its interceptor, too, but only
//! after a while, and a session that comes before would get again what an earlier one has confirmed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::shard::wire::{Entry, read_input};
use crate::shard::{Ask, Input, Retrieve, Stage, ToLink};
use crate::words::{Bare, Key, LinkId, ShardId};

/// What was not asked for so long is not asked any more: whoever waits for an answer repeats it
/// every 5 s or 10 s, or has given it up.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// What an answer names.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Tag {
    Intercept(Key),
    Session(Arc<str>),
    Retrieval(Arc<str>),
    Removal(LinkId, String),
    /// A session, a batch, and what it says of it: it may say more than one thing.
    Taken(Arc<str>, u64, Bytes),
}

/// A question.
#[derive(Debug)]
struct Asked {
    tag: Tag,
    link: LinkId,
    host: Arc<str>,
    /// Of an intercept.
    stage: Option<Stage>,
    /// As it crosses.
    body: Bytes,
    /// It may have been received.
    sent: bool,
    /// What was sent is not to be asked again: a removal, or messages that were shown.
    once: bool,
    /// Of a session: the reason that it was announced for.
    reason: u64,
    at: Instant,
}

/// What is asked again of a new place.
#[derive(Debug, Default)]
pub struct Again {
    /// In order: each, and whether it may have been received before.
    pub asks: Vec<(Bytes, bool)>,
    /// What can't be asked twice: to be answered.
    pub given_up: Vec<Retrieve>,
}

/// The questions of the links of this node.
#[derive(Debug, Default)]
pub struct Book {
    shards: HashMap<ShardId, BTreeMap<u64, Asked>>,
    places: HashMap<Tag, (ShardId, u64)>,
    next: u64,
}

impl Book {
    /// Notes what a link asks, behind all that was asked of that shard, and writes it down as it
    /// crosses; none: it is nothing that leaves a node. `sent`: it goes out now.
    pub fn note(
        &mut self,
        now: Instant,
        shard: ShardId,
        user: &Bare,
        input: &Input,
        sent: bool,
    ) -> Option<Bytes> {
        let body = Entry::body_of_ask(user, input)?;
        let (tag, link, host, stage, once) = match input {
            Input::Intercept(i) => {
                (Tag::Intercept(i.key.clone()), i.link, i.host.clone(), Some(i.stage), false)
            }
            Input::Available(a) => {
                (Tag::Session(a.session.clone()), a.link, a.host.clone(), None, false)
            }
            Input::Retrieve(Retrieve { asker, ask, .. }) => {
                let once = matches!(ask, Ask::Remove(_));
                (Tag::Retrieval(asker.name.clone()), asker.link, asker.host.clone(), None, once)
            }
            Input::AccountRemoved { asked, .. } => {
                let tag = Tag::Removal(asked.link, asked.request.clone());
                (tag, asked.link, asked.host.clone(), None, false)
            }
            Input::Taken(taken) => {
                if taken.ended {
                    self.remove(&Tag::Session(taken.session.clone()));
                    self.remove(&Tag::Retrieval(taken.session.clone()));
                }
                let tag = Tag::Taken(taken.session.clone(), taken.batch, body.clone());
                (tag, taken.link, taken.host.clone(), None, false)
            }
            _ => return Some(body),
        };
        let reason = if let Input::Available(available) = input { available.n } else { 0 };
        let body_of = body.clone();
        let asked = Asked { tag, link, host, stage, body: body_of, sent, once, reason, at: now };
        self.insert(shard, asked);
        Some(body)
    }

    fn insert(&mut self, shard: ShardId, mut asked: Asked) {
        if let Some(before) = self.remove(&asked.tag) {
            asked.sent |= before.sent;
            asked.once |= before.once;
        }
        self.next += 1;
        self.places.insert(asked.tag.clone(), (shard, self.next));
        self.shards.entry(shard).or_default().insert(self.next, asked);
    }

    fn remove(&mut self, tag: &Tag) -> Option<Asked> {
        let (shard, number) = self.places.remove(tag)?;
        let of_shard = self.shards.get_mut(&shard)?;
        let asked = of_shard.remove(&number);
        if of_shard.is_empty() {
            self.shards.remove(&shard);
        }
        asked
    }

    /// Which shard was asked for what this answers on that link; none: it was not asked, or was
    /// answered before, or at another stage. What does no harm at any time is not looked up.
    pub fn asked_of(&self, link: LinkId, what: &ToLink) -> Option<ShardId> {
        let (shard, number) = *self.places.get(&tag_of(link, what)?)?;
        let asked = self.shards.get(&shard)?.get(&number)?;
        let same_stage = match what {
            ToLink::Verdict(verdict) => asked.stage == Some(verdict.stage),
            _ => true,
        };
        (asked.link == link && same_stage).then_some(shard)
    }

    /// This answer goes to its link.
    pub fn answered(&mut self, now: Instant, link: LinkId, what: &ToLink) {
        if let ToLink::Deleted { session, batch, .. } = what {
            return self.deleted(session, *batch);
        }
        let Some(tag) = tag_of(link, what) else { return };
        let Some((shard, number)) = self.places.get(&tag) else { return };
        let of_shard = self.shards.get_mut(shard);
        let Some(asked) = of_shard.and_then(|of_shard| of_shard.get_mut(number)) else { return };
        let goes_on = match what {
            ToLink::HandOver(_) => true,
            ToLink::HandedOver { n, .. } => *n < asked.reason,
            _ => false,
        };
        if !goes_on {
            self.remove(&tag);
            return;
        }
        asked.at = now;
        // What a session got it knows again; what a user was shown he does not.
        asked.once |= matches!(tag, Tag::Retrieval(_));
    }

    /// The first that a session said of a batch is done with: they are answered in their order.
    fn deleted(&mut self, session: &str, batch: u64) {
        let first = self
            .places
            .iter()
            .filter(|(tag, _)| matches!(tag, Tag::Taken(s, b, _) if **s == *session && *b == batch))
            .min_by_key(|(_, (_, number))| *number);
        if let Some(tag) = first.map(|(tag, _)| tag.clone()) {
            self.remove(&tag);
        }
    }

    /// All that was asked of a shard, in order, to be sent to its place: it stays noted.
    pub fn again(&mut self, shard: ShardId) -> Again {
        let given_up = self.give_up(shard);
        let asked = self.shards.get_mut(&shard).into_iter().flat_map(BTreeMap::values_mut);
        let asks = asked.map(|asked| {
            let again = std::mem::replace(&mut asked.sent, true);
            (asked.body.clone(), again)
        });
        Again { asks: asks.collect(), given_up }
    }

    /// The same, for a shard that is decided here from now on: nothing of it stays noted.
    pub fn take(&mut self, shard: ShardId) -> Again {
        let given_up = self.give_up(shard);
        let of_shard = self.shards.remove(&shard).unwrap_or_default();
        let asks = of_shard.into_values().map(|asked| {
            self.places.remove(&asked.tag);
            (asked.body, asked.sent)
        });
        Again { asks: asks.collect(), given_up }
    }

    fn give_up(&mut self, shard: ShardId) -> Vec<Retrieve> {
        let of_shard = self.shards.get(&shard).into_iter().flat_map(BTreeMap::values);
        let given_up: Vec<(Tag, Bytes)> = of_shard
            .filter(|asked| asked.once && asked.sent)
            .map(|asked| (asked.tag.clone(), asked.body.clone()))
            .collect();
        let read = |(tag, body)| {
            self.remove(&tag);
            match read_input(body, 0) {
                Ok((_, Input::Retrieve(retrieve))) => Some(retrieve),
                _ => None,
            }
        };
        given_up.into_iter().filter_map(read).collect()
    }

    /// A link, or a host on it, waits for nothing any more.
    pub fn forget_link(&mut self, link: LinkId, host: Option<&str>) {
        let is_gone = |asked: &Asked| asked.link == link && host.is_none_or(|h| h == &*asked.host);
        self.forget(is_gone);
    }

    /// Forgets what nobody waits for any more, as it seems.
    pub fn forget_old(&mut self, now: Instant) {
        self.forget(|asked| now.duration_since(asked.at) >= FORGOTTEN);
    }

    fn forget(&mut self, is_gone: impl Fn(&Asked) -> bool) {
        let asked = self.shards.values().flat_map(BTreeMap::values);
        let gone: Vec<Tag> = asked.filter(|a| is_gone(a)).map(|a| a.tag.clone()).collect();
        for tag in gone {
            self.remove(&tag);
        }
    }

    /// Intercepts, and removals of accounts, that are not answered.
    pub fn undecided(&self) -> usize {
        self.places.keys().filter(|t| matches!(t, Tag::Intercept(_) | Tag::Removal(..))).count()
    }
}

/// The question that an answer is looked up by.
fn tag_of(link: LinkId, what: &ToLink) -> Option<Tag> {
    match what {
        ToLink::Verdict(verdict) => Some(Tag::Intercept(verdict.key.clone())),
        ToLink::HandOver(batch) if batch.view => Some(Tag::Retrieval(batch.session.clone())),
        ToLink::HandOver(batch) => Some(Tag::Session(batch.session.clone())),
        ToLink::HandedOver { session, .. } => Some(Tag::Session(session.clone())),
        ToLink::Retrieved(retrieved) => Some(Tag::Retrieval(retrieved.asker.name.clone())),
        ToLink::AccountRemoved { request, .. } => Some(Tag::Removal(link, request.clone())),
        ToLink::Deleted { .. } | ToLink::Send(_) | ToLink::Request(_) | ToLink::Response(_) => None,
    }
}
