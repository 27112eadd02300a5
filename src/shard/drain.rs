//! Handing stored messages over: in order, in batches, deleted only when taken
//! (sections 3 and 4 of the intercept protocol).

use crate::store::{Outcome, PageLimit, StoreError, StoredMessage, Write};
use crate::time::Timestamp;
use crate::words::{Bare, LinkId, MessageId};

use super::effect::{Effect, HandOver, Item, ToLink};
use super::input::{Available, Taken};
use super::machine::{Machine, Pending};
use super::recipient::{Held, OPEN_BATCHES, Recipient, Session};

/// Items a batch.
const BATCH_ITEMS: usize = 50;

/// The rows of a page, sorted by what is to be done with them.
#[derive(Default)]
struct Sorted {
    items: Vec<Item>,
    expired: Vec<StoredMessage>,
    in_archive: Vec<MessageId>,
}

impl Machine {
    /// A session can take messages. A repetition changes nothing but wakes a hand-over
    /// that a failed read has stopped.
    pub(super) fn available(&mut self, available: Available) {
        let user = available.user.clone();
        let recipient = self.recipients.entry(user.clone()).or_default();
        match recipient.session(&available.session) {
            Some(session) => {
                session.link = available.link;
                if available.n > session.n {
                    session.n = available.n;
                    session.archive = available.archive;
                    session.again = !session.drained;
                    if session.drained {
                        session.drained = false;
                        session.cursor = MessageId::ZERO;
                        session.count = 0;
                    }
                }
            }
            None => recipient.sessions.push(Session {
                id: available.session,
                link: available.link,
                host: available.host,
                n: available.n,
                archive: available.archive,
                batch_bytes: available.batch_bytes,
                cursor: MessageId::ZERO,
                again: false,
                drained: false,
                count: 0,
                batches: Vec::new(),
            }),
        }
        self.pump(&user);
    }

    /// Reads the next page for the session whose turn it is, if it may have one.
    pub(super) fn pump(&mut self, user: &Bare) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        if recipient.reading.is_some() {
            return;
        }
        let Some(session) = recipient.draining() else {
            return;
        };
        if session.batches.len() >= OPEN_BATCHES {
            return;
        }
        let limit = PageLimit { rows: BATCH_ITEMS, bytes: session.batch_bytes };
        let after = session.cursor;
        recipient.reading = Some(session.id.clone());
        self.effects.push(Effect::ReadPage { user: user.clone(), after, limit });
    }

    pub(super) fn page(
        &mut self,
        now: Timestamp,
        user: &Bare,
        rows: Result<Vec<StoredMessage>, StoreError>,
    ) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        match (recipient.reading.clone(), rows) {
            (Some(reader), Ok(rows)) => self.page_for(now, user, &reader, rows),
            // A page that can't be read leaves the session as it is: its `available`
            // comes again, and the reading with it.
            _ => recipient.page_read(),
        }
        self.forget_if_idle(user);
    }

    fn page_for(&mut self, now: Timestamp, user: &Bare, reader: &str, rows: Vec<StoredMessage>) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(last) = rows.last().map(|row| row.id) else {
            self.page_was_empty(user, reader);
            return;
        };
        let Some(session) = recipient.session(reader) else {
            recipient.page_read();
            self.pump(user);
            return;
        };
        session.cursor = last;
        let archive = session.archive;
        let sorted = sort(recipient, archive, now, rows);
        self.hand_over(user, reader, sorted.items);
        if let Some(recipient) = self.recipients.get_mut(user) {
            recipient.page_read();
        }
        if !sorted.in_archive.is_empty() {
            self.delete(user.clone(), sorted.in_archive, None);
        }
        for row in sorted.expired {
            self.expire(user, row, false);
        }
        self.pump(user);
    }

    /// Nothing is left after the session's cursor.
    fn page_was_empty(&mut self, user: &Bare, reader: &str) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        recipient.page_read();
        // A notice that lets its message stay is under way: the message comes after it.
        let waits = recipient
            .held
            .values()
            .any(|held| matches!(held, Held::Expiring { then: Some(_), .. }));
        if let Some(session) = recipient.session(reader) {
            if session.again {
                session.again = false;
                session.cursor = MessageId::ZERO;
            } else if waits {
                return;
            } else {
                session.drained = true;
                let (link, host, id) = (session.link, session.host.clone(), session.id.clone());
                let (n, count) = (session.n, session.count);
                if session.batches.is_empty() {
                    recipient.remove_session(reader);
                }
                self.tell(link, ToLink::HandedOver { host, session: id, n, count });
            }
        }
        self.pump(user);
    }

    fn hand_over(&mut self, user: &Bare, reader: &str, items: Vec<Item>) {
        if items.is_empty() {
            return;
        }
        let batch = self.next_batch();
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(session) = recipient.session(reader) else {
            return;
        };
        session.batches.push(batch);
        session.count += items.len() as u64;
        let hand_over =
            HandOver { host: session.host.clone(), session: session.id.clone(), batch, items };
        let link = session.link;
        self.tell(link, ToLink::HandOver(hand_over));
    }

    /// A client has acknowledged a batch, or its session has ended.
    pub(super) fn taken(&mut self, taken: Taken) {
        let Taken { link, host, session: id, user, batch, ids, ended } = taken;
        let recipient = self.recipients.entry(user.clone()).or_default();
        let new: Vec<MessageId> = ids
            .iter()
            .copied()
            .filter(|id| recipient.held.get(id) != Some(&Held::Deleting))
            .collect();
        for id in &new {
            recipient.held.insert(*id, Held::Deleting);
        }
        if ended {
            if let Some(at) = recipient.remove_session(&id) {
                self.effects.push(Effect::Scheduled(at));
            }
        } else if let Some(session) = recipient.session(&id) {
            session.batches.retain(|b| *b != batch);
            if session.drained && session.batches.is_empty() {
                recipient.remove_session(&id);
            }
        }
        let deleted = ToLink::Deleted { host, session: id, batch };
        if !new.is_empty() {
            self.delete(user.clone(), new, Some((link, deleted)));
        } else if ids.is_empty() {
            self.tell(link, deleted);
        }
        self.pump(&user);
        self.forget_if_idle(&user);
    }

    /// Deletes rows that are marked as being deleted, and says so when they are gone.
    pub(super) fn delete(
        &mut self,
        user: Bare,
        ids: Vec<MessageId>,
        tell: Option<(LinkId, ToLink)>,
    ) {
        let write = Write::Delete { recipient: user.clone(), ids: ids.clone() };
        self.write(write, Pending::Taken { user, ids, tell });
    }

    pub(super) fn deleted(
        &mut self,
        user: Bare,
        ids: Vec<MessageId>,
        tell: Option<(LinkId, ToLink)>,
        outcome: Outcome,
    ) {
        if let Some(recipient) = self.recipients.get_mut(&user) {
            if let Outcome::Done { rows } = outcome {
                for id in ids {
                    recipient.gone(id);
                }
                if let Some(count) = &mut recipient.count {
                    count.rows = count.rows.saturating_sub(rows);
                }
                if let Some((link, deleted)) = tell {
                    self.tell(link, deleted);
                }
            } else {
                for id in ids {
                    recipient.held.insert(id, Held::Undeleted);
                }
            }
        }
        self.forget_if_idle(&user);
    }
}

/// Sorts a page, and marks its rows as held.
fn sort(
    recipient: &mut Recipient,
    archive: bool,
    now: Timestamp,
    rows: Vec<StoredMessage>,
) -> Sorted {
    let mut sorted = Sorted::default();
    let Some(reader) = recipient.reading.clone() else {
        return sorted;
    };
    for row in rows {
        if recipient.held.contains_key(&row.id) {
            continue;
        }
        if row.expiry.is_some_and(|expiry| expiry.at <= now) {
            sorted.expired.push(row);
        } else if archive && row.archived {
            recipient.held.insert(row.id, Held::Deleting);
            sorted.in_archive.push(row.id);
        } else {
            let session = reader.clone();
            recipient.held.insert(row.id, Held::HandedOver { session, expiry: row.expiry });
            sorted.items.push(Item { id: row.id, stamp: row.stored_at, stanza: row.stanza });
        }
    }
    sorted
}
