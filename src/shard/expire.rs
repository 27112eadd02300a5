//! Carrying out the `expire-at` rule of a stored message (XEP-0079 section 3.3.2).

use crate::amp::{self, Action, Envelope};
use crate::stanza::Message;
use crate::store::{Outcome, StoredMessage, Write};
use crate::time::Timestamp;
use crate::words::{Bare, Expiry, MessageId};

use super::effect::{Effect, Send};
use super::input::Sent;
use super::machine::{Machine, Pending};
use super::recipient::Held;

/// What the rule of a stored message asks for.
struct Fired {
    /// The notice, unless the rule is silent.
    notice: Option<String>,
    /// Delete the row (`None`), or let it stay with the next rule, if any.
    then: Option<Option<Expiry>>,
}

impl Machine {
    /// The time of a stored message has passed. One that a session has does not expire
    /// until that session ends.
    pub(super) fn due(&mut self, now: Timestamp, user: &Bare, row: StoredMessage) {
        let held = self.recipients.get(user).is_some_and(|r| r.held.contains_key(&row.id));
        if !held && row.expiry.is_some_and(|expiry| expiry.at <= now) {
            self.expire(user, row, true);
        } else {
            self.effects.push(Effect::DueTaken);
        }
    }

    /// Carries out the rule of a message whose time has passed. `clocked`: the expiry clock
    /// sent it, and waits for the end of it.
    pub(super) fn expire(&mut self, user: &Bare, row: StoredMessage, clocked: bool) {
        let Some(expiry) = row.expiry else { return };
        let id = row.id;
        let fired = fired(user, &row, expiry);
        let recipient = self.recipients.entry(user.clone()).or_default();
        match (fired.notice, fired.then) {
            (None, then) => {
                self.finish(user, id, expiry, then);
                self.clocked(clocked);
            }
            (Some(stanza), then) => {
                recipient.held.insert(id, Held::Expiring { expiry, then, clocked });
                let key = format!("{}/{}", row.key, expiry.rule);
                self.effects.push(Effect::Send(Send { user: user.clone(), id, key, stanza }));
            }
        }
    }

    /// The server has routed the notice, or could not be asked.
    pub(super) fn sent(&mut self, user: &Bare, id: MessageId, sent: Sent) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(Held::Expiring { expiry, then, clocked }) = recipient.held.get(&id).cloned()
        else {
            return;
        };
        // A client waits for it: its message does not wait for a notice that can't be sent
        // now.
        let wanted = then.is_some() && recipient.draining().is_some();
        if sent == Sent::Done || wanted {
            self.finish(user, id, expiry, then);
        } else {
            // The row stays; the expiry clock comes back to it.
            recipient.held.remove(&id);
            self.forget_if_idle(user);
        }
        self.clocked(clocked);
    }

    fn clocked(&mut self, clocked: bool) {
        if clocked {
            self.effects.push(Effect::DueTaken);
        }
    }

    fn finish(&mut self, user: &Bare, id: MessageId, expiry: Expiry, then: Option<Option<Expiry>>) {
        match then {
            Some(next) => self.reschedule(user, id, expiry, next),
            None => {
                let recipient = self.recipients.entry(user.clone()).or_default();
                recipient.held.insert(id, Held::Deleting { expires: true });
                self.delete(user.clone(), vec![id], None);
            }
        }
    }

    fn reschedule(&mut self, user: &Bare, id: MessageId, expiry: Expiry, next: Option<Expiry>) {
        let recipient = self.recipients.entry(user.clone()).or_default();
        let then = Some(next);
        recipient.held.insert(id, Held::Expiring { expiry, then, clocked: false });
        self.write(
            Write::SetExpiry { recipient: user.clone(), id, expiry: next },
            Pending::Rescheduled { user: user.clone(), id, next },
        );
    }

    /// The message stays, and sessions that wait for it get it.
    pub(super) fn rescheduled(
        &mut self,
        user: Bare,
        id: MessageId,
        next: Option<Expiry>,
        outcome: Outcome,
    ) {
        let Some(recipient) = self.recipients.get_mut(&user) else {
            return;
        };
        // A page that is being read may still show the rule that has fired.
        let reading = recipient.reading.is_some();
        if reading {
            recipient.held.insert(id, Held::Gone { ticks: 0 });
        } else {
            recipient.held.remove(&id);
        }
        if let Some(session) = recipient.draining() {
            session.again |= reading;
            if !reading {
                session.cursor = MessageId::ZERO;
            }
        }
        if let (Outcome::Done { .. }, Some(next)) = (outcome, next) {
            self.effects.push(Effect::Scheduled(next.at));
        }
        self.pump(&user);
        self.forget_if_idle(&user);
    }
}

/// Reads the rule again from the stanza. A stanza that has lost its rule is let go on.
fn fired(user: &Bare, row: &StoredMessage, expiry: Expiry) -> Fired {
    let go_on = Fired { notice: None, then: Some(None) };
    let host = user.rsplit('@').next().unwrap_or(user);
    let Ok(message) = Message::parse(row.stanza.clone(), host) else {
        return go_on;
    };
    let Ok(rules) = amp::check(&message.amp, message.id.as_deref()) else {
        return go_on;
    };
    let envelope = Envelope {
        host,
        sender: &message.from,
        recipient: message.to.as_deref().unwrap_or(user),
        id: message.id.as_deref(),
    };
    let index = usize::from(expiry.rule);
    let Some(rule) = rules.get(index) else {
        return go_on;
    };
    let notice = amp::rule_reply(&rules, index, &envelope);
    match rule.action {
        Action::Drop | Action::Alert | Action::Error => Fired { notice, then: None },
        Action::Notify => Fired { notice, then: Some(amp::next_expiry(&rules, Some(expiry))) },
    }
}
