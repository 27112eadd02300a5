//! Whether there is room for another message: the quota of its recipient, asked and kept.

use std::time::Duration;

use crate::store::{Outcome, StoreError, Usage};
use crate::time::Timestamp;
use crate::words::Bare;

use super::effect::Effect;
use super::input::{Intercept, Stage};
use super::machine::Machine;
use super::quota::{Over, Used};
use super::recipient::{Question, Recipient};
use super::verdict::would_be_stored;

/// What is known and says 'full' is read anew before someone is refused, but without a
/// reason not more often than this: others (retention) delete too.
const RECOUNT: Duration = Duration::from_secs(10);

/// Whether another message may be stored for a recipient.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Room {
    Left,
    Full(Over),
}

impl Machine {
    /// Whether there is room for a message, if it would be stored at all; `None` when the
    /// store has to be asked first.
    pub(super) fn room(&self, now: Timestamp, intercept: &Intercept) -> Option<Room> {
        let Some(limits) = self.settings.quotas.of(&intercept.to) else {
            return Some(Room::Left);
        };
        // What comes back undelivered was accepted before: it is not refused now.
        if intercept.stage == Stage::Undelivered || !would_be_stored(intercept) {
            return Some(Room::Left);
        }
        let recipient = self.recipients.get(&intercept.to)?;
        let used = recipient.used.as_ref()?;
        let message = &intercept.message;
        let bytes = message.raw.len() as u64;
        if limits.leave_room(&used.usage, &intercept.host, &message.from, bytes) {
            return Some(Room::Left);
        }
        let old = recipient.appends == 0 && now.since(used.read_at) >= RECOUNT;
        let anew = used.freed || old || recipient.deletions > 0;
        if anew { None } else { Some(Room::Full(limits.over)) }
    }

    /// Lets an intercept wait, first of all, for what the store says about its recipient.
    pub(super) fn wait_for_usage(&mut self, intercept: Box<Intercept>) {
        let user = intercept.to.clone();
        let recipient = self.recipients.entry(user.clone()).or_default();
        recipient.asking = Some(intercept.key.clone());
        recipient.waiting.push_front(intercept);
        recipient.wants_usage = true;
        self.ask_usage(&user);
    }

    /// Asks what is stored, once no append and no deletion is under way, so that the answer has
    /// each of them for certain. While somebody waits for it no append begins.
    pub(super) fn ask_usage(&mut self, user: &Bare) {
        let Some(limits) = self.settings.quotas.of(user) else {
            return;
        };
        let detail = limits.detail();
        let may_ask = |recipient: &&mut Recipient| {
            recipient.wants_usage && recipient.appends == 0 && recipient.deletions == 0
        };
        let Some(recipient) = self.recipients.get_mut(user).filter(may_ask) else {
            return;
        };
        self.last_question += 1;
        let number = self.last_question;
        recipient.wants_usage = false;
        recipient.question = Some(Question { number, freed: false });
        self.effects.push(Effect::Usage { user: user.clone(), question: number, detail });
    }

    /// The answer. One to a question that nobody has any more is ignored: it may lack what
    /// was stored meanwhile.
    pub(super) fn usage(
        &mut self,
        now: Timestamp,
        user: &Bare,
        number: u64,
        usage: Result<Usage, StoreError>,
    ) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let Some(question) = recipient.question.filter(|question| question.number == number) else {
            return;
        };
        recipient.ask_nothing();
        match usage {
            Ok(usage) => {
                recipient.used = Some(Used { usage, read_at: now, freed: question.freed });
                self.consider_waiting(now, user, None);
            }
            Err(_) => self.put_off(user),
        }
    }

    /// An append begins: it counts from now on.
    pub(super) fn reserve(&mut self, intercept: &Intercept) {
        let Some(limits) = self.settings.quotas.of(&intercept.to) else {
            return;
        };
        let recipient = self.recipients.entry(intercept.to.clone()).or_default();
        recipient.appends += 1;
        if let Some(used) = &mut recipient.used {
            used.reserve(limits, &intercept.message.from, intercept.message.raw.len());
        }
    }

    /// An append has ended: what is not stored by it does not count.
    pub(super) fn settle(&mut self, intercept: &Intercept, outcome: &Outcome) {
        let Some(recipient) = self.recipients.get_mut(&intercept.to) else {
            return;
        };
        recipient.appends = recipient.appends.saturating_sub(1);
        if *outcome != Outcome::Stored
            && let Some(used) = &mut recipient.used
        {
            used.give_back(&intercept.message.from, intercept.message.raw.len());
        }
        if recipient.wants_usage {
            self.ask_usage(&intercept.to);
        }
    }
}
