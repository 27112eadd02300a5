//! Handing stored messages over: in order, in batches, deleted only when taken
//! (sections 3 and 4 of the intercept protocol).

use std::iter::Peekable;
use std::sync::Arc;
use std::vec::IntoIter;

use crate::store::{Outcome, PageLimit, StoreError, StoredMessage, Write};
use crate::time::Timestamp;
use crate::words::{Bare, LinkId, MessageId};

use super::effect::{Effect, HandOver, Item, ToLink};
use super::input::{Available, Taken};
use super::machine::{Machine, Pending};
use super::recipient::{Held, OpenBatches, Recipient, Session};

/// Items a batch.
pub(super) const BATCH_ITEMS: usize = 50;

/// Batches that are read at a time, at the most: a page costs a database server about a
/// millisecond, however few rows it has.
const PAGE_BATCHES: usize = 4;

/// Bytes that the wrapping of one item in a hand-over adds to its stanza, at the most: the
/// envelope of the message and of the item.
pub const ITEM_OVERHEAD: usize = 2_048;

/// The rows of a page, sorted by what is to be done with them.
#[derive(Default)]
struct Sorted {
    items: Vec<Item>,
    expired: Vec<StoredMessage>,
    in_archive: Vec<MessageId>,
    /// Rows that the server would not take, and their bytes.
    oversized: Vec<(MessageId, usize)>,
}

/// What a session can take.
#[derive(Clone, Copy)]
struct Wants {
    /// Until when it has read the archive itself.
    archive: Option<Timestamp>,
    /// Bytes of one stanza.
    stanza_bytes: usize,
}

impl Machine {
    /// A session can take messages. A repetition changes nothing but wakes a hand-over
    /// that a failed read has stopped. Of a session that comes by another link nothing counts that
    /// went to the old one: all that it has not confirmed is handed over again.
    pub(super) fn available(&mut self, available: Available) {
        let user = available.user.clone();
        let Ok(left) = self.leave_old_link(&available) else {
            return;
        };
        let recipient = self.recipients.entry(user.clone()).or_default();
        // What is being read for it from before its last end is older than this reason.
        let reading = recipient.reading.as_ref();
        let again = reading.is_some_and(|(reader, _)| *reader == available.session);
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
                left,
                host: available.host,
                n: available.n,
                archive: available.archive,
                batch_bytes: available.batch_bytes,
                cursor: MessageId::ZERO,
                again,
                drained: false,
                count: 0,
                batches: OpenBatches::default(),
            }),
        }
        self.pump(&user);
    }

    /// The session gives back what it had by another link: which one, if it comes from one. An error
    /// if the word is older than the session's move from that link.
    fn leave_old_link(&mut self, available: &Available) -> Result<Option<LinkId>, ()> {
        let Some(recipient) = self.recipients.get_mut(&available.user) else {
            return Ok(None);
        };
        let Some(session) = recipient.session(&available.session) else {
            return Ok(None);
        };
        let before = session.link;
        if before == available.link {
            return Ok(None);
        }
        if available.n < session.n {
            return Err(());
        }
        if let Some(at) = recipient.remove_session(&available.session) {
            self.effects.push(Effect::Scheduled(at));
        }
        Ok(Some(before))
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
        let batches = session.batches.worth_reading().min(PAGE_BATCHES);
        if batches == 0 {
            return;
        }
        let limit = PageLimit { rows: batches * BATCH_ITEMS, bytes: batches * session.batch_bytes };
        let after = session.cursor;
        recipient.reading = Some((session.id.clone(), after));
        self.effects.push(Effect::ReadPage { user: user.clone(), after, limit });
    }

    pub(super) fn page(
        &mut self,
        now: Timestamp,
        user: &Bare,
        after: MessageId,
        rows: Result<Vec<StoredMessage>, StoreError>,
    ) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some((reader, asked)) = recipient.reading.clone() else {
            return;
        };
        if asked != after {
            // Asked for a session that is gone; the one for the present session is on its way.
            return;
        }
        let wanted = recipient.session(&reader).is_some_and(|session| session.cursor == after);
        match rows {
            Ok(rows) if wanted => self.page_for(now, user, &reader, rows),
            // The session is gone, or begins anew.
            Ok(_) => {
                recipient.page_read();
                self.pump(user);
            }
            // The session stays as it is: its `available` comes again, and the reading
            // with it.
            Err(_) => recipient.page_read(),
        }
        self.forget_if_idle(user);
    }

    fn page_for(&mut self, now: Timestamp, user: &Bare, reader: &str, rows: Vec<StoredMessage>) {
        if rows.is_empty() {
            self.page_was_empty(user, reader);
            return;
        }
        let mut rows = rows.into_iter().peekable();
        while let Some(batch) = self.next_rows(user, reader, &mut rows) {
            self.batch_for(now, user, reader, batch);
        }
        // What is left, if anything, is read again when there is room for it.
        if let Some(recipient) = self.recipients.get_mut(user) {
            recipient.page_read();
        }
        self.pump(user);
    }

    /// The rows of the next batch, if there are any and the session may have it.
    fn next_rows(
        &mut self,
        user: &Bare,
        reader: &str,
        rows: &mut Peekable<IntoIter<StoredMessage>>,
    ) -> Option<Vec<StoredMessage>> {
        let session = self.recipients.get_mut(user)?.session(reader)?;
        if !session.batches.has_room() {
            return None;
        }
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(row) = rows.next_if(|row| {
            bytes += row.stanza.len();
            batch.is_empty() || (batch.len() < BATCH_ITEMS && bytes <= session.batch_bytes)
        }) {
            session.cursor = row.id;
            batch.push(row);
        }
        (!batch.is_empty()).then_some(batch)
    }

    fn batch_for(&mut self, now: Timestamp, user: &Bare, reader: &str, rows: Vec<StoredMessage>) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(session) = recipient.session(reader) else {
            return;
        };
        let wants = Wants { archive: session.archive, stanza_bytes: 2 * session.batch_bytes };
        let sorted = sort(recipient, reader, wants, now, rows);
        for (id, bytes) in sorted.oversized {
            self.effects.push(Effect::Oversized { user: user.clone(), id, bytes });
        }
        self.hand_over(user, reader, sorted.items);
        if !sorted.in_archive.is_empty() {
            self.delete(user.clone(), sorted.in_archive, None);
        }
        for row in sorted.expired {
            self.expire(user, row, false);
        }
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
        let (host, id) = (session.host.clone(), session.id.clone());
        let hand_over = HandOver { host, session: id, batch, view: false, items };
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
            .filter(|id| !matches!(recipient.held.get(id), Some(Held::Deleting { .. })))
            .collect();
        for id in &new {
            let expires =
                matches!(recipient.held.get(id), Some(Held::HandedOver { expiry: Some(_), .. }));
            recipient.held.insert(*id, Held::Deleting { expires });
        }
        // What the link that it has left is told of that is known: it names no batch.
        let known = batch == 0
            && ids.is_empty()
            && recipient.session(&id).is_some_and(|session| session.left == Some(link));
        if ended && known {
            // it goes on by its new link
        } else if ended {
            if let Some(at) = recipient.remove_session(&id) {
                self.effects.push(Effect::Scheduled(at));
            }
        } else if let Some(session) = recipient.session(&id) {
            session.batches.taken(batch);
            if session.drained && session.batches.is_empty() {
                recipient.remove_session(&id);
            }
        }
        recipient.retrievals.taken(&id, batch, ended);
        let deleted = ToLink::Deleted { host, session: id, batch };
        if !new.is_empty() {
            self.delete(user.clone(), new, Some((link, deleted)));
        } else if ids.is_empty() {
            self.tell(link, deleted);
        }
        self.pump(&user);
        self.pump_retrievals(&user);
        self.forget_if_idle(&user);
    }

    /// Deletes rows that are marked as being deleted, and says so when they are gone.
    pub(super) fn delete(
        &mut self,
        user: Bare,
        ids: Vec<MessageId>,
        tell: Option<(LinkId, ToLink)>,
    ) {
        if let Some(recipient) = self.recipients.get_mut(&user) {
            recipient.deletions += 1;
        }
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
            recipient.deletions = recipient.deletions.saturating_sub(1);
            if let Outcome::Done { rows } = outcome {
                for id in ids {
                    recipient.gone(id);
                }
                if rows > 0 {
                    recipient.freed();
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
        self.ask_usage(&user);
        self.forget_if_idle(&user);
    }
}

/// Sorts a page, and marks its rows as held.
fn sort(
    recipient: &mut Recipient,
    reader: &str,
    wants: Wants,
    now: Timestamp,
    rows: Vec<StoredMessage>,
) -> Sorted {
    let mut sorted = Sorted::default();
    let reader: Arc<str> = reader.into();
    for row in rows {
        if recipient.held.contains_key(&row.id) {
            continue;
        }
        if row.expiry.is_some_and(|expiry| expiry.at <= now) {
            sorted.expired.push(row);
        } else if row.archived && wants.archive.is_some_and(|read| row.stored_at < read) {
            recipient.held.insert(row.id, Held::Deleting { expires: row.expiry.is_some() });
            sorted.in_archive.push(row.id);
        } else if row.stanza.len() + ITEM_OVERHEAD > wants.stanza_bytes {
            sorted.oversized.push((row.id, row.stanza.len()));
        } else {
            let session = reader.clone();
            recipient.held.insert(row.id, Held::HandedOver { session, expiry: row.expiry });
            sorted.items.push(Item { id: row.id, stamp: row.stored_at, stanza: row.stanza });
        }
    }
    sorted
}
