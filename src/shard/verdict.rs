//! Deciding about an intercept: sections 2.2.2 to 2.2.5 of XEP-0079 applied to what the
//! server knows.

use std::borrow::Cow;

use crate::amp::{self, Action, Disposition, Facts, RuleSet, Session, StanzaError};
use crate::stanza::MessageType;
use crate::store::{NewMessage, StoreError, Write};
use crate::time::Timestamp;
use crate::words::{Bare, Expiry, Key};

use super::effect::{Do, Effect};
use super::input::{Intercept, Leg, Stage};
use super::machine::{Append, Machine, Pending, notice_of};
use super::next_hop;
use super::quota::Over;
use super::reply_to;
use super::room::Room;

/// What the store said about an intercept that had to wait for it.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The key is neither among the rows nor among the marks.
    key_is_new: bool,
}

/// What is to become of a message, before it is carried out.
#[derive(Debug, PartialEq)]
enum Decision {
    Answer {
        what: Do,
        sends: Vec<String>,
    },
    /// It would be stored, but the quota has no room.
    Refuse {
        sends: Vec<String>,
        over: Over,
    },
    Store {
        sends: Vec<String>,
        met_rule: Option<u16>,
        expiry: Option<Expiry>,
    },
}

impl Machine {
    /// A message that the interceptor holds: it is decided now, or when the store has
    /// said what the decision needs.
    pub(super) fn intercept(&mut self, now: Timestamp, intercept: Box<Intercept>) {
        if let Leg::Sender { next_supports_amp } = intercept.leg {
            let (what, sends) = next_hop::decide(&intercept, next_supports_amp, now);
            self.verdict(&intercept, what, sends);
            return;
        }
        if let Some(recipient) = self.recipients.get_mut(&intercept.to)
            && !recipient.waiting.is_empty()
        {
            match recipient.waiting.iter_mut().find(|w| w.key == intercept.key) {
                Some(waiting) => {
                    let mut older = intercept;
                    let moved = waiting.link != older.link;
                    if is_newer(waiting, &older) {
                        std::mem::swap(waiting, &mut older);
                    }
                    self.asked_elsewhere(moved.then_some(older));
                }
                None => recipient.waiting.push_back(intercept),
            }
            return;
        }
        self.consider(now, intercept, None);
    }

    /// The answer of a look-up. One for an intercept that is gone meanwhile is ignored.
    pub(super) fn found(
        &mut self,
        now: Timestamp,
        user: &Bare,
        key: &Key,
        known: Result<Option<Option<u16>>, StoreError>,
    ) {
        let Some(recipient) = self.recipients.get_mut(user) else { return };
        if recipient.asking.as_ref() != Some(key)
            || recipient.waiting.front().map(|first| &first.key) != Some(key)
        {
            return;
        }
        recipient.ask_nothing();
        match known {
            Ok(known) => self.consider_waiting(now, user, Some(known)),
            Err(_) => self.put_off(user),
        }
    }

    /// Decides what waited, until the store has to be asked again. `known` is about the
    /// first.
    pub(super) fn consider_waiting(
        &mut self,
        now: Timestamp,
        user: &Bare,
        mut known: Option<Option<Option<u16>>>,
    ) {
        loop {
            let Some(recipient) = self.recipients.get_mut(user) else {
                return;
            };
            if recipient.asking.is_some() {
                return;
            }
            let Some(intercept) = recipient.waiting.pop_front() else {
                break;
            };
            match known.take() {
                Some(Some(met_rule)) => {
                    let notice = notice_of(&intercept, met_rule);
                    self.accepted.insert_last(now, intercept.key.clone());
                    self.verdict(&intercept, Do::Stored, notice.into_iter().collect());
                }
                Some(None) => self.consider(now, intercept, Some(Known { key_is_new: true })),
                None => self.consider(now, intercept, None),
            }
        }
        self.forget_if_idle(user);
    }

    /// The store does not answer: the interceptor keeps what waits.
    pub(super) fn put_off(&mut self, user: &Bare) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        recipient.ask_nothing();
        for intercept in std::mem::take(&mut recipient.waiting) {
            self.retry(&intercept);
        }
        self.forget_if_idle(user);
    }

    /// The interceptor keeps it; what names it as its predecessor waits too.
    pub(super) fn retry(&mut self, intercept: &Intercept) {
        self.accepted.remove(&intercept.key);
        self.verdict(intercept, Do::Retry, Vec::new());
    }

    fn consider(&mut self, now: Timestamp, intercept: Box<Intercept>, known: Option<Known>) {
        if self.removed.get(&intercept.to).is_some_and(|removed| intercept.stamp <= removed.at) {
            self.verdict(&intercept, Do::Discarded, Vec::new());
            return;
        }
        let Some(intercept) = self.take_under_way(intercept) else {
            return;
        };
        let in_order = intercept.after.as_deref().is_none_or(|key| self.accepted.contains(key));
        if !in_order || self.is_stale(now, &intercept) {
            self.retry(&intercept);
            return;
        }
        let Some(room) = self.room(now, &intercept) else {
            self.wait_for_usage(intercept);
            return;
        };
        let decision = decide(&intercept, room, now);
        match decision {
            Decision::Store { sends, met_rule, expiry } => {
                self.append(now, intercept, sends, met_rule, expiry);
            }
            _ if needs_lookup(&intercept) && known.is_none() => {
                let (user, key) = (intercept.to.clone(), intercept.key.clone());
                let recipient = self.recipients.entry(user.clone()).or_default();
                recipient.waiting.push_front(intercept);
                recipient.asking = Some(key.clone());
                self.effects.push(Effect::Find { user, key });
            }
            Decision::Answer { what, sends } => {
                debug_assert!(known.is_none_or(|k| k.key_is_new));
                self.accept(now, &intercept);
                self.verdict(&intercept, what, sends);
            }
            Decision::Refuse { sends, over } => {
                self.accept(now, &intercept);
                self.effects.push(Effect::OverQuota(over));
                self.verdict(&intercept, Do::Discarded, sends);
            }
        }
    }

    /// It is decided, and not stored: what names it as its predecessor may be.
    fn accept(&mut self, now: Timestamp, intercept: &Intercept) {
        if intercept.stage == Stage::Rules {
            self.accepted.insert(now, intercept.key.clone());
        } else {
            self.accepted.insert_last(now, intercept.key.clone());
        }
    }

    /// An intercept that comes again while its append is under way is answered with it,
    /// on the link that asked last.
    fn take_under_way(&mut self, mut intercept: Box<Intercept>) -> Option<Box<Intercept>> {
        let Some(token) = self.under_way.get(&intercept.key) else {
            return Some(intercept);
        };
        if let Some(Pending::Append(append)) = self.pending.get_mut(token) {
            let (known, came) = (&mut append.intercept, &mut intercept);
            let moved = known.link != came.link;
            if is_newer(known, came) {
                // The append goes on: who is answered changes, and nothing of what is stored.
                std::mem::swap(&mut known.link, &mut came.link);
                std::mem::swap(&mut known.host, &mut came.host);
                std::mem::swap(&mut known.stage, &mut came.stage);
                std::mem::swap(&mut known.silent, &mut came.silent);
            }
            self.asked_elsewhere(moved.then_some(intercept));
        }
        None
    }

    /// Nobody waits for an answer there any more: it has come by another link since.
    fn asked_elsewhere(&mut self, older: Option<Box<Intercept>>) {
        if let Some(older) = older {
            self.verdict(&older, Do::Retry, Vec::new());
        }
    }

    /// Too old to be decided without a look for its key: marks may be gone by the time
    /// it comes again.
    fn is_stale(&self, now: Timestamp, intercept: &Intercept) -> bool {
        !intercept.again && now.since(intercept.stamp) > self.settings.memory / 2
    }

    fn append(
        &mut self,
        now: Timestamp,
        intercept: Box<Intercept>,
        sends: Vec<String>,
        met_rule: Option<u16>,
        expiry: Option<Expiry>,
    ) {
        if !self.accepted.insert_last(now, intercept.key.clone()) && !intercept.again {
            // Its user has moved to another link, which was faster than this: nobody waits here.
            self.verdict(&intercept, Do::Retry, Vec::new());
            return;
        }
        let Some(id) = self.next_id() else {
            self.retry(&intercept);
            return;
        };
        self.reserve(&intercept);
        let new = NewMessage {
            recipient: intercept.to.clone(),
            id,
            key: intercept.key.clone(),
            again: intercept.again,
            run: self.run.clone(),
            sender: intercept.message.from.clone(),
            kind: intercept.message.kind,
            stored_at: intercept.stamp,
            archived: intercept.archived,
            expiry,
            met_rule,
            stanza: intercept.message.raw.clone(),
        };
        let key = intercept.key.clone();
        let append = Append { intercept, sends, expiry };
        let token = self.write(Write::Append(new), Pending::Append(append));
        self.under_way.insert(key, token);
    }
}

/// Whether it was sent after the other: what another link brings for the first time was not.
fn is_newer(known: &Intercept, came: &Intercept) -> bool {
    came.again || came.link == known.link
}

/// Only what may have been stored before is looked for.
fn needs_lookup(intercept: &Intercept) -> bool {
    intercept.again && intercept.stage != Stage::Rules
}

/// What is to become of a message. `room`: whether it may be stored for the recipient.
fn decide(intercept: &Intercept, room: Room, now: Timestamp) -> Decision {
    let rules = match &intercept.rules {
        None => None,
        Some(Ok(rules)) => Some(rules),
        // It was accepted before, or nobody may be told: it is kept as if it had none.
        Some(Err(_)) if intercept.stage == Stage::Undelivered || intercept.silent => None,
        Some(Err(refusal)) => {
            let sends = vec![reply_to::refusal(intercept, refusal)];
            return Decision::Answer { what: Do::Discarded, sends };
        }
    };
    let sessions = sessions(intercept);
    let disposition = disposition(intercept, &sessions, room);
    let met = rules.and_then(|rules| Some((rules, met_rule(intercept, rules, &disposition, now)?)));
    let Some((rules, index)) = met else {
        return by_default(intercept, room, &disposition, None);
    };
    let reply = amp::rule_reply(rules, index, &reply_to::envelope(intercept));
    match rules.rules()[index].action {
        Action::Drop | Action::Alert | Action::Error => {
            Decision::Answer { what: Do::Discarded, sends: reply.into_iter().collect() }
        }
        Action::Notify => by_default(intercept, room, &disposition, Some((index, reply))),
    }
}

/// The first rule that is met. What comes back undelivered was evaluated before: only its
/// `expire-at` counts then.
fn met_rule(
    intercept: &Intercept,
    rules: &RuleSet,
    disposition: &Disposition,
    now: Timestamp,
) -> Option<usize> {
    if intercept.stage == Stage::Undelivered {
        let expiry = amp::next_expiry(rules, None)?;
        return (expiry.at <= now).then_some(usize::from(expiry.rule));
    }
    amp::decide(rules, disposition, to_resource(intercept), now)
}

/// No rule stands against it: what the server would do, with the notice of a rule that
/// lets it go on.
fn by_default(
    intercept: &Intercept,
    room: Room,
    disposition: &Disposition,
    met: Option<(usize, Option<String>)>,
) -> Decision {
    let index = met.as_ref().map(|(index, _)| *index);
    let mut sends: Vec<String> = met.and_then(|(_, notice)| notice).into_iter().collect();
    if intercept.stage == Stage::Rules {
        if comes_again_offline(intercept, disposition) {
            sends.clear();
        }
        return Decision::Answer { what: Do::Deliver, sends };
    }
    match disposition {
        Disposition::Direct { .. } | Disposition::NextHop => {
            Decision::Answer { what: Do::Deliver, sends }
        }
        Disposition::None => {
            let bounce = || reply_to::bounce(intercept, StanzaError::SERVICE_UNAVAILABLE);
            match room {
                Room::Left => {
                    sends.extend((!intercept.account).then(bounce).flatten());
                    Decision::Answer { what: Do::Discarded, sends }
                }
                Room::Full(over) => {
                    let told = bounce().filter(|_| over == Over::Error && !intercept.silent);
                    let over = if told.is_some() { Over::Error } else { Over::Drop };
                    sends.extend(told);
                    Decision::Refuse { sends, over }
                }
            }
        }
        // A message is sent on at stage rules. What is past that is here to stay: see
        // `disposition`, which gives the last two at no other stage.
        Disposition::Stored | Disposition::Forward | Disposition::Gateway => {
            let rules = intercept.rules.as_ref().and_then(|rules| rules.as_ref().ok());
            let fired = index.and_then(|i| rules.and_then(|rules| rules.expiry(i)));
            let expiry = rules.and_then(|rules| amp::next_expiry(rules, fired));
            let met_rule = index.and_then(|i| u16::try_from(i).ok());
            Decision::Store { sends, met_rule, expiry }
        }
    }
}

/// Whether the server will offer it to its offline storage: it is asked about again then,
/// and a notice waits for that.
fn comes_again_offline(intercept: &Intercept, disposition: &Disposition) -> bool {
    match disposition {
        Disposition::Stored => true,
        Disposition::None => {
            intercept.account
                && matches!(intercept.message.kind, MessageType::Normal | MessageType::Chat)
        }
        Disposition::Direct { .. }
        | Disposition::NextHop
        | Disposition::Forward
        | Disposition::Gateway => false,
    }
}

/// Whether it would be kept if there is room.
pub(super) fn would_be_stored(intercept: &Intercept) -> bool {
    disposition(intercept, &sessions(intercept), Room::Left) == Disposition::Stored
}

/// The sessions that count. A delivery from the offline stage goes to every listed one of
/// priority zero or more, whatever was addressed.
fn sessions(intercept: &Intercept) -> Cow<'_, [Session]> {
    if intercept.stage == Stage::Rules {
        return Cow::Borrowed(&intercept.sessions);
    }
    let takers = intercept.sessions.iter().filter(|session| session.priority >= 0);
    takers.map(|session| Session { priority: 0, ..session.clone() }).collect()
}

fn disposition<'a>(
    intercept: &'a Intercept,
    sessions: &'a [Session],
    room: Room,
) -> Disposition<'a> {
    let at_rules = intercept.stage == Stage::Rules;
    amp::default_disposition(&Facts {
        account: intercept.account,
        to_resource: if at_rules { to_resource(intercept) } else { None },
        sessions,
        kind: intercept.message.kind,
        storable: intercept.message.storable(),
        room_left: room == Room::Left,
        forwards_to: at_rules && intercept.forwards_to,
        gateway: at_rules && intercept.gateway,
    })
}

pub(super) fn to_resource(intercept: &Intercept) -> Option<&str> {
    intercept.message.to.as_deref()?.split_once('/').map(|(_, resource)| resource)
}
