//! The pure state machine: an input and the time in, a list of effects out.
//!
//! It has no clock, no database and no socket. What it asks of the store comes back as
//! an input; nothing that a sender or recipient sees leaves before that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::amp::{self, RuleSet, StanzaError};
use crate::store::{Outcome, Run, Write};
use crate::time::Timestamp;
use crate::words::{Bare, Expiry, Key, LinkId, MessageId};

use super::accepted::Accepted;
use super::effect::{Do, Effect, ToLink, Token, Verdict, WriteFor};
use super::input::{Asked, Input, Intercept};
use super::quota::{Quotas, Used};
use super::recipient::{Held, Recipient};
use super::reply_to;

/// What a shard is set to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The epoch of the ids that this shard gives.
    pub epoch: u32,
    /// How much may be stored for whom.
    pub quotas: Arc<Quotas>,
    /// How long keys of deleted rows, and removed accounts, are remembered (H).
    pub memory: Duration,
}

/// What waits for the outcome of a write.
#[derive(Debug)]
pub(super) enum Pending {
    Append(Append),
    /// Rows that were taken; the link that is told when they are gone.
    Taken {
        user: Bare,
        ids: Vec<MessageId>,
        tell: Option<(LinkId, ToLink)>,
    },
    /// The rule of a stored message fired and let it stay.
    Rescheduled {
        user: Bare,
        id: MessageId,
        next: Option<Expiry>,
    },
    /// Rows that their owner had removed; the retrieval that waits for it.
    Removed {
        user: Bare,
        ids: Vec<MessageId>,
        retrieval: Arc<str>,
    },
    AccountRemoved {
        user: Bare,
        asked: Asked,
    },
}

/// An append under way, with the intercept that asked for it.
#[derive(Debug)]
pub(super) struct Append {
    pub intercept: Box<Intercept>,
    /// Stanzas that go with the verdict.
    pub sends: Vec<String>,
    pub expiry: Option<Expiry>,
}

/// An account that was removed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removed {
    /// By the server's clock, which also stamps intercepts.
    pub at: Timestamp,
    /// By our own: forgotten after H.
    heard: Timestamp,
}

/// One shard.
#[derive(Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    pub(super) accepted: Accepted,
    pub(super) recipients: HashMap<Bare, Recipient>,
    pub(super) pending: HashMap<Token, Pending>,
    /// Appends under way, by key.
    pub(super) under_way: HashMap<Key, Token>,
    /// Accounts that were removed.
    pub(super) removed: HashMap<Bare, Removed>,
    pub(super) effects: Vec<Effect>,
    /// The appends that must not overtake each other.
    pub(super) run: Run,
    next_token: u64,
    next_id: u64,
    next_batch: u32,
    /// The number of the last question about what is stored.
    pub(super) last_question: u64,
}

impl Machine {
    /// A shard that knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Machine {
            settings,
            accepted: Accepted::default(),
            recipients: HashMap::new(),
            pending: HashMap::new(),
            under_way: HashMap::new(),
            removed: HashMap::new(),
            effects: Vec::new(),
            run: Run::new(),
            next_token: 0,
            next_id: 0,
            next_batch: 0,
            last_question: 0,
        }
    }

    /// The epoch of the ids that are given from now on, if it was 0 before: unknown, as no id that is
    /// stored has it. A shard that comes with another epoch is another machine.
    pub fn set_epoch(&mut self, epoch: u32) {
        if self.settings.epoch == 0 {
            self.settings.epoch = epoch;
        }
    }

    /// Takes one input and says what is to be done, in order.
    pub fn handle(&mut self, now: Timestamp, input: Input) -> Vec<Effect> {
        match input {
            Input::Intercept(intercept) => self.intercept(now, intercept),
            Input::Usage { user, question, usage } => self.usage(now, &user, question, usage),
            Input::Found { user, key, known } => self.found(now, &user, &key, known),
            Input::Available(available) => self.available(available),
            Input::Taken(taken) => self.taken(taken),
            Input::Page { user, after, rows } => self.page(now, &user, after, rows),
            Input::Retrieve(retrieve) => self.retrieve(retrieve),
            Input::Looked { user, found } => self.looked(now, &user, found),
            Input::Due { user, row } => self.due(now, &user, row),
            Input::Sent { user, id, sent } => self.sent(&user, id, sent),
            Input::Written(outcomes) => {
                for (token, outcome) in outcomes {
                    self.written(token, outcome);
                }
            }
            Input::AccountRemoved { user, at, asked } => self.account_removed(now, user, at, asked),
            Input::LinkDown(link) => self.link_down(now, link, None),
            Input::HostDown { link, host } => self.link_down(now, link, Some(&host)),
            Input::Tick => self.tick(now),
        }
        std::mem::take(&mut self.effects)
    }

    /// Intercepts and writes that are not decided yet.
    pub fn busy(&self) -> usize {
        let waiting: usize = self.recipients.values().map(|r| r.waiting.len()).sum();
        self.pending.len() + waiting
    }

    pub(super) fn write(&mut self, write: Write, pending: Pending) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.pending.insert(token, pending);
        self.effects.push(Effect::Write(WriteFor { token, write }));
        token
    }

    pub(super) fn tell(&mut self, link: LinkId, what: ToLink) {
        self.effects.push(Effect::Link(link, what));
    }

    pub(super) fn verdict(&mut self, intercept: &Intercept, what: Do, sends: Vec<String>) {
        let verdict = Verdict {
            host: intercept.host.clone(),
            key: intercept.key.clone(),
            stage: intercept.stage,
            what,
            silent: intercept.silent,
            sends: if intercept.silent { Vec::new() } else { sends },
        };
        self.tell(intercept.link, ToLink::Verdict(verdict));
    }

    /// The id of the next append; `None` when this epoch's ids are used up.
    pub(super) fn next_id(&mut self) -> Option<MessageId> {
        if self.next_id == MessageId::MAX_COUNTER {
            return None;
        }
        self.next_id += 1;
        Some(MessageId::new(self.settings.epoch, self.next_id))
    }

    /// The last id that was given: what is appended from now on is greater.
    pub(super) fn last_id(&self) -> MessageId {
        MessageId::new(self.settings.epoch, self.next_id)
    }

    /// A batch number, unique over starts of the node, so that a confirmation that
    /// crosses a restart never counts for another batch.
    pub(super) fn next_batch(&mut self) -> u64 {
        self.next_batch = self.next_batch.wrapping_add(1);
        (u64::from(self.settings.epoch) << 32) | u64::from(self.next_batch)
    }

    /// Drops what is remembered of a recipient for whom nothing is under way.
    pub(super) fn forget_if_idle(&mut self, user: &Bare) {
        if self.recipients.get(user).is_some_and(Recipient::is_idle) {
            self.recipients.remove(user);
        }
    }

    fn written(&mut self, token: Token, outcome: Outcome) {
        match self.pending.remove(&token) {
            Some(Pending::Append(append)) => self.appended(append, outcome),
            Some(Pending::Taken { user, ids, tell }) => self.deleted(user, ids, tell, outcome),
            Some(Pending::Rescheduled { user, id, next }) => {
                self.rescheduled(user, id, next, outcome);
            }
            Some(Pending::Removed { user, ids, retrieval }) => {
                self.removed_by_owner(user, ids, &retrieval, outcome);
            }
            Some(Pending::AccountRemoved { user, asked }) => {
                let done = matches!(outcome, Outcome::Done { .. });
                if done && let Some(recipient) = self.recipients.get_mut(&user) {
                    recipient.freed();
                }
                let Asked { link, host, request } = asked;
                self.tell(link, ToLink::AccountRemoved { host, request, done });
                self.forget_if_idle(&user);
            }
            None => {}
        }
    }

    fn appended(&mut self, append: Append, outcome: Outcome) {
        let Append { intercept, sends, expiry } = append;
        self.under_way.remove(&intercept.key);
        self.settle(&intercept, &outcome);
        match outcome {
            Outcome::Stored => {
                if let Some(expiry) = expiry {
                    self.effects.push(Effect::Scheduled(expiry.at));
                }
                self.verdict(&intercept, Do::Stored, sends);
            }
            Outcome::Already { met_rule } => {
                let notice = notice_of(&intercept, met_rule);
                self.verdict(&intercept, Do::Stored, notice.into_iter().collect());
            }
            Outcome::Refused(_) => {
                let bounce = reply_to::bounce(&intercept, StanzaError::INTERNAL_SERVER_ERROR);
                self.verdict(&intercept, Do::Discarded, bounce.into_iter().collect());
            }
            Outcome::Retry | Outcome::NotMine | Outcome::Done { .. } => {
                self.begin_run();
                self.retry(&intercept);
            }
        }
        self.forget_if_idle(&intercept.to);
    }

    /// An append was given up, and with it all that was submitted after it: what names
    /// one of those as its predecessor must wait, and what comes now is a new run.
    fn begin_run(&mut self) {
        if !self.run.is_given_up() {
            return;
        }
        self.run = Run::new();
        for key in self.under_way.keys() {
            self.accepted.remove(key);
        }
    }

    fn account_removed(&mut self, now: Timestamp, user: Bare, at: Timestamp, asked: Asked) {
        let removed = self.removed.entry(user.clone()).or_insert(Removed { at, heard: now });
        if at > removed.at {
            *removed = Removed { at, heard: now };
        }
        // What waits is considered anew: most of it was for the account that is gone.
        if let Some(recipient) = self.recipients.get_mut(&user) {
            recipient.ask_nothing();
        }
        self.consider_waiting(now, &user, None);
        self.write(
            Write::RemoveAccount { recipient: user.clone() },
            Pending::AccountRemoved { user, asked },
        );
    }

    /// A link, or one host on it, knows of nothing any more.
    fn link_down(&mut self, now: Timestamp, link: LinkId, host: Option<&str>) {
        let users: Vec<Bare> = self.recipients.keys().cloned().collect();
        for user in users {
            self.leave_link(now, link, host, &user);
        }
    }

    fn leave_link(&mut self, now: Timestamp, link: LinkId, host: Option<&str>, user: &Bare) {
        let is_gone = |l: LinkId, h: &str| link.covers(l) && host.is_none_or(|host| host == h);
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        recipient.waiting.retain(|i| !is_gone(i.link, &i.host));
        if recipient.asking.is_some()
            && recipient.asking.as_ref() != recipient.waiting.front().map(|i| &i.key)
        {
            // The answer that is on its way is about an intercept that is gone.
            recipient.ask_nothing();
        }
        let gone: Vec<Arc<str>> = recipient
            .sessions
            .iter()
            .filter(|s| is_gone(s.link, &s.host))
            .map(|s| s.id.clone())
            .collect();
        let earliest = gone.iter().filter_map(|id| recipient.remove_session(id)).min();
        recipient.retrievals.retain(|asker| !is_gone(asker.link, &asker.host));
        if let Some(at) = earliest {
            self.effects.push(Effect::Scheduled(at));
        }
        self.consider_waiting(now, user, None);
        self.pump(user);
        self.pump_retrievals(user);
        self.forget_if_idle(user);
    }

    fn tick(&mut self, now: Timestamp) {
        self.accepted.tick(now);
        let memory = self.settings.memory;
        self.removed.retain(|_, removed| now.since(removed.heard) <= memory);
        let users: Vec<Bare> = self.recipients.keys().cloned().collect();
        for user in users {
            self.tick_recipient(now, &user);
        }
    }

    /// Tries again to delete what the store could not, and forgets what is old.
    fn tick_recipient(&mut self, now: Timestamp, user: &Bare) {
        let Some(recipient) = self.recipients.get_mut(user) else {
            return;
        };
        let idle = recipient.appends == 0 && recipient.waiting.is_empty();
        let is_old = |used: &Used| now.since(used.read_at) > USED_MEMORY;
        if idle && recipient.used.as_ref().is_some_and(is_old) {
            recipient.used = None;
        }
        let ids: Vec<MessageId> = recipient
            .held
            .iter_mut()
            .filter(|(_, held)| **held == Held::Undeleted)
            .map(|(id, held)| {
                *held = Held::Deleting { expires: true };
                *id
            })
            .collect();
        recipient.tick();
        if !ids.is_empty() {
            self.delete(user.clone(), ids, None);
        }
        self.forget_if_idle(user);
    }
}

/// How long it is remembered how much is stored for a recipient for whom nothing happens.
const USED_MEMORY: Duration = Duration::from_secs(60);

/// The notice of the rule that was met when a message was stored before.
pub(super) fn notice_of(intercept: &Intercept, met_rule: Option<u16>) -> Option<String> {
    let rules: &RuleSet = intercept.rules.as_ref()?.as_ref().ok()?;
    amp::rule_reply(rules, usize::from(met_rule?), &reply_to::envelope(intercept))
}
