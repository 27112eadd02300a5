//! A user's own view of his stored messages (XEP-0013, section 6 of the intercept
//! protocol): counted, listed, shown, removed.
//!
//! What a look may find is fixed when the request comes: later messages are not part of
//! it. A message that another session has and has not acknowledged is still stored, and is
//! shown; one that has expired, or is being deleted, is not.

mod progress;
mod request;

use crate::store::{Header, Outcome, StoreError, StoredMessage, Write};
use crate::time::Timestamp;
use crate::words::{Bare, MessageId};
use crate::xml::escape_attribute;

use super::drain::ITEM_OVERHEAD;
use super::effect::{Effect, HandOver, Item, ToLink};
use super::machine::{Machine, Pending};
use super::recipient::{Held, Recipient};

pub use progress::Retrievals;
use progress::{MAX_RETRIEVALS, Retrieval, Step, Then};
use request::Row;
pub use request::{
    Answer, Ask, Asker, Found, Listed, Look, MAX_ITEMS, Refused, Retrieve, Retrieved,
};

/// Bytes of an item of a list without its addresses.
const LISTED: usize = 64;

/// What follows from a look.
enum Next {
    /// The request is answered.
    Answer(Answer),
    /// Messages are sent; then it goes on, or is answered.
    Send(Vec<StoredMessage>, Option<Answer>),
    /// Rows are removed; each may expire or not.
    Remove(Vec<(MessageId, bool)>),
    /// Another look.
    Look,
}

impl Machine {
    /// A user asks about his messages.
    pub(super) fn retrieve(&mut self, retrieve: Retrieve) {
        let until = self.last_id();
        let user = retrieve.asker.user.clone();
        let recipient = self.recipients.entry(user.clone()).or_default();
        let under_way = &mut recipient.retrievals.under_way;
        if under_way.len() >= MAX_RETRIEVALS {
            let answer = Answer::Refused(Refused::TOO_MANY_REQUESTS);
            let asker = retrieve.asker;
            self.tell(asker.link, ToLink::Retrieved(Retrieved { asker, answer }));
            return;
        }
        under_way.push(Retrieval::new(retrieve, until));
        self.pump_retrievals(&user);
    }

    /// Asks the store for the first request that may go on.
    pub(super) fn pump_retrievals(&mut self, user: &Bare) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let retrievals = &mut recipient.retrievals;
        if retrievals.looking.is_some() {
            return;
        }
        let next = retrievals.under_way.iter().find_map(|r| Some((r.wants()?, &r.asker.name)));
        if let Some((look, name)) = next {
            retrievals.looking = Some(name.clone());
            self.effects.push(Effect::Look { user: user.clone(), look });
        }
    }

    /// The store has shown something, perhaps for a request that was given up since.
    pub(super) fn looked(&mut self, now: Timestamp, user: &Bare, found: Result<Found, StoreError>) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(name) = recipient.retrievals.looking.take() else {
            return;
        };
        let next = match (recipient.retrievals.named(&name), found) {
            (None, _) => None,
            (Some(_), Err(_)) => Some(Next::Answer(Answer::Refused(Refused::STORE_FAILED))),
            (Some(_), Ok(found)) => Some(next(recipient, &name, now, found)),
        };
        recipient.retrievals.gone.clear();
        if let Some(next) = next {
            self.go_on(user, &name, next);
        }
        self.pump_retrievals(user);
        self.forget_if_idle(user);
    }

    fn go_on(&mut self, user: &Bare, name: &str, next: Next) {
        match next {
            Next::Look => {}
            Next::Answer(answer) => self.answer(user, name, answer),
            Next::Send(messages, answer) => {
                self.show(user, name, messages);
                if let Some(answer) = answer {
                    self.answer(user, name, answer);
                }
            }
            Next::Remove(rows) => self.remove(user, name, rows),
        }
    }

    fn answer(&mut self, user: &Bare, name: &str, answer: Answer) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let under_way = &mut recipient.retrievals.under_way;
        let Some(at) = under_way.iter().position(|r| &*r.asker.name == name) else {
            return;
        };
        let asker = under_way.remove(at).asker;
        self.tell(asker.link, ToLink::Retrieved(Retrieved { asker, answer }));
    }

    /// Sends messages to the one who asked for them.
    fn show(&mut self, user: &Bare, name: &str, messages: Vec<StoredMessage>) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(retrieval) = recipient.retrievals.named(name) else {
            return;
        };
        let most = 2 * retrieval.batch_bytes;
        let fits = |m: &StoredMessage| m.stanza.len() + ITEM_OVERHEAD <= most;
        let (small, large): (Vec<_>, Vec<_>) = messages.into_iter().partition(fits);
        let asker = retrieval.asker.clone();
        for message in large {
            let (id, bytes) = (message.id, message.stanza.len());
            self.effects.push(Effect::Oversized { user: user.clone(), id, bytes });
        }
        if small.is_empty() {
            return;
        }
        let items =
            small.into_iter().map(|m| Item { id: m.id, stamp: m.stored_at, stanza: m.stanza });
        let batch = self.next_batch();
        let hand_over = HandOver {
            host: asker.host,
            session: asker.name,
            batch,
            view: true,
            items: items.collect(),
        };
        if let Some(recipient) = self.recipients.get_mut(user)
            && let Some(retrieval) = recipient.retrievals.named(name)
        {
            retrieval.batches.push(batch);
        }
        self.tell(asker.link, ToLink::HandOver(hand_over));
    }

    /// Deletes rows because their owner said so.
    fn remove(&mut self, user: &Bare, name: &str, rows: Vec<(MessageId, bool)>) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        for (id, expires) in &rows {
            recipient.held.insert(*id, Held::Deleting { expires: *expires });
        }
        recipient.deletions += 1;
        let ids: Vec<MessageId> = rows.into_iter().map(|(id, _)| id).collect();
        let write = Write::Delete { recipient: user.clone(), ids: ids.clone() };
        self.write(write, Pending::Removed { user: user.clone(), ids, retrieval: name.into() });
    }

    /// The store has removed rows that their owner wanted removed.
    pub(super) fn removed_by_owner(
        &mut self,
        user: Bare,
        ids: Vec<MessageId>,
        name: &str,
        outcome: Outcome,
    ) {
        let done = matches!(outcome, Outcome::Done { .. });
        self.deleted(user.clone(), ids, None, outcome);
        let retrieval = self.recipients.get_mut(&user).and_then(|r| r.retrievals.named(name));
        if let Some(retrieval) = retrieval {
            match retrieval.step {
                Step::Removing { after: Some(after) } if done => {
                    retrieval.step = Step::Purge { after };
                }
                _ if done => self.answer(&user, name, Answer::Done),
                _ => self.answer(&user, name, Answer::Refused(Refused::STORE_FAILED)),
            }
        }
        self.pump_retrievals(&user);
        self.forget_if_idle(&user);
    }
}

/// What follows from what the store has shown for the request of that name.
fn next(recipient: &mut Recipient, name: &str, now: Timestamp, found: Found) -> Next {
    let held = &recipient.held;
    let gone = &recipient.retrievals.gone;
    let Some(at) = recipient.retrievals.under_way.iter().position(|r| &*r.asker.name == name)
    else {
        return Next::Look;
    };
    let until = recipient.retrievals.under_way[at].until;
    let is_stored = |id: MessageId| id <= until && !gone.contains(&id);
    let is_shown = |row: &dyn Row| {
        let held = held.get(&row.id());
        let present = matches!(held, None | Some(Held::HandedOver { .. }));
        present && is_stored(row.id()) && row.expires_at().is_none_or(|at| at > now)
    };
    // What is being deleted already is deleted with the rest, so that all is gone then.
    let is_purged = |row: &Header| {
        let going = matches!(held.get(&row.id), Some(Held::Deleting { .. } | Held::Undeleted));
        is_shown(row) || (going && is_stored(row.id))
    };
    let retrieval = &mut recipient.retrievals.under_way[at];
    match found {
        Found::Headers(rows) => {
            let last = rows.last().map(|row| row.id).filter(|last| *last < until);
            match &retrieval.step {
                Step::Purge { .. } => purge(retrieval, last, rows, is_purged),
                Step::Check { .. } => check(retrieval, rows, |row| is_shown(row)),
                _ => count(retrieval, last, rows, |row| is_shown(row)),
            }
        }
        Found::Messages(rows) => send(retrieval, rows, |row| is_shown(row)),
    }
}

/// Counting and listing. `last`: where to go on, if there may be more.
fn count(
    retrieval: &mut Retrieval,
    last: Option<MessageId>,
    mut rows: Vec<Header>,
    is_shown: impl Fn(&Header) -> bool,
) -> Next {
    let room = room_for_list(retrieval);
    let user = retrieval.asker.user.clone();
    rows.retain(is_shown);
    match &mut retrieval.step {
        Step::Count { after, messages } => {
            *messages += rows.len() as u64;
            match last {
                Some(last) => *after = last,
                None => return Next::Answer(Answer::Count(*messages)),
            }
        }
        Step::List { after, listed, bytes } => {
            for Header { id, sender, .. } in rows {
                *bytes += LISTED + escaped(&user) + escaped(&sender);
                listed.push(Listed { id, sender });
            }
            if *bytes > room {
                return Next::Answer(Answer::Refused(Refused::LIST_TOO_LARGE));
            }
            match last {
                Some(last) => *after = last,
                None => return Next::Answer(Answer::List(std::mem::take(listed))),
            }
        }
        _ => {}
    }
    Next::Look
}

/// Bytes of items that an answer may have.
fn room_for_list(retrieval: &Retrieval) -> usize {
    let asker = &retrieval.asker;
    let frame = ITEM_OVERHEAD + escaped(&asker.id) + escaped(&asker.jid) + escaped(&asker.name);
    (2 * retrieval.batch_bytes).saturating_sub(frame)
}

fn escaped(text: &str) -> usize {
    escape_attribute(text).len()
}

/// Whether all named messages are there; only then something is done with them.
fn check(retrieval: &mut Retrieval, rows: Vec<Header>, is_shown: impl Fn(&Header) -> bool) -> Next {
    let Step::Check { named, found, then } = &mut retrieval.step else {
        return Next::Look;
    };
    let passed = named.pass(rows.last().map(|row| row.id));
    let wanted = |row: &&Header| passed.binary_search(&row.id).is_ok() && is_shown(row);
    let before = found.len();
    found.extend(rows.iter().filter(wanted).map(|row| (row.id, row.expires_at.is_some())));
    if found.len() - before < passed.len() {
        return Next::Answer(Answer::Refused(Refused::NOT_FOUND));
    }
    if !named.is_done() {
        return Next::Look;
    }
    if *then == Then::View {
        retrieval.step = Step::View { named: named.again(), missing: false };
        return Next::Look;
    }
    let rows = std::mem::take(found);
    retrieval.step = Step::Removing { after: None };
    Next::Remove(rows)
}

/// Viewing and fetching.
fn send(
    retrieval: &mut Retrieval,
    mut rows: Vec<StoredMessage>,
    is_shown: impl Fn(&StoredMessage) -> bool,
) -> Next {
    let last = rows.last().map(|row| row.id);
    rows.retain(is_shown);
    let answer = match &mut retrieval.step {
        Step::Fetch { after } => {
            match last.filter(|last| *last < retrieval.until) {
                Some(last) => *after = last,
                None => return Next::Send(rows, Some(Answer::Done)),
            }
            None
        }
        Step::View { named, missing } => {
            let passed = named.pass(last);
            rows.retain(|row| passed.binary_search(&row.id).is_ok());
            *missing |= rows.len() < passed.len();
            match (named.is_done(), *missing) {
                (false, _) => None,
                (true, false) => Some(Answer::Done),
                (true, true) => Some(Answer::Refused(Refused::NOT_FOUND)),
            }
        }
        _ => None,
    };
    Next::Send(rows, answer)
}

fn purge(
    retrieval: &mut Retrieval,
    last: Option<MessageId>,
    rows: Vec<Header>,
    is_purged: impl Fn(&Header) -> bool,
) -> Next {
    let doomed: Vec<(MessageId, bool)> = rows
        .iter()
        .filter(|row| is_purged(row))
        .map(|row| (row.id, row.expires_at.is_some()))
        .collect();
    match (doomed.is_empty(), last) {
        (true, None) => Next::Answer(Answer::Done),
        (true, Some(after)) => {
            retrieval.step = Step::Purge { after };
            Next::Look
        }
        (false, last) => {
            retrieval.step = Step::Removing { after: last };
            Next::Remove(doomed)
        }
    }
}
