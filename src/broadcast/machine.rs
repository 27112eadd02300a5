//! What is to be done for the broadcasts of a node: an input and the time in, a list of
//! effects out. No clock, no database, no socket.
//!
//! Commands, answers and going on each have a file of their own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::shard::{Errand, Request};
use crate::store::{Broadcast, BroadcastChange, BroadcastState, Fate, Recipient};
use crate::time::Timestamp;

use super::input::{Asker, Effect, Input, Now, Settings, Write};
use super::job::Job;
use super::{Payload, Reply};

/// The longest sleep: the wall clock may be set.
const SLEEP: Duration = Duration::from_secs(60);

/// A question that is not answered.
#[derive(Debug)]
pub(super) enum Question {
    Settle {
        broadcast: i64,
        recipient: Recipient,
    },
    Accounts {
        broadcast: i64,
    },
    /// For a broadcast that begins if the answer is good.
    First {
        asker: Asker,
        new: Box<Broadcast>,
        payload: Payload,
    },
}

/// A change that is not carried out.
#[derive(Debug)]
pub(super) enum Pending {
    Created {
        broadcast: i64,
        asker: Asker,
    },
    /// Recipients of a list.
    Added {
        broadcast: i64,
        asker: Asker,
    },
    /// Accounts of a host, up to `counted_to`.
    Counted {
        broadcast: i64,
        counted_to: Option<String>,
        last_n: u64,
    },
    Moved {
        broadcast: i64,
        asker: Asker,
    },
    Recorded {
        broadcast: i64,
    },
    GivenUp {
        broadcast: i64,
        fate: Fate,
    },
    Ended {
        broadcast: i64,
        at: Timestamp,
    },
    Forgotten,
}

/// All broadcasts of a node.
#[derive(Debug)]
pub struct Machine {
    pub(super) settings: Settings,
    /// Hosts whose interceptors are there, and what their servers take.
    pub(super) up: HashMap<Arc<str>, usize>,
    pub(super) jobs: BTreeMap<i64, Job>,
    pub(super) questions: HashMap<u64, Question>,
    pub(super) changes: HashMap<Write, Pending>,
    pub(super) effects: Vec<Effect>,
    /// Commands are taken from now on.
    pub(super) loaded: bool,
    pub(super) stopping: bool,
    pub(super) next_id: i64,
    /// A node uses 32 bits of a request's number.
    next_question: u32,
    next_write: u64,
}

impl Machine {
    /// A machine that waits for [`Input::Loaded`].
    pub fn new(settings: Settings) -> Self {
        Machine {
            settings,
            up: HashMap::new(),
            jobs: BTreeMap::new(),
            questions: HashMap::new(),
            changes: HashMap::new(),
            effects: Vec::new(),
            loaded: false,
            stopping: false,
            next_id: 1,
            next_question: 0,
            next_write: 0,
        }
    }

    /// Takes one input and says what is to be done, in order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Effect> {
        match input {
            Input::Loaded(rows) => self.loaded(rows),
            Input::Command { asker, command, host, token } => {
                let host = host.as_deref();
                if let Err(problem) = self.command(now, asker, command, host, token) {
                    self.reply(asker, Reply::Problem(problem));
                }
            }
            Input::HostUp { host, max_stanza } => {
                self.jobs.values_mut().filter(|job| *job.row.host == *host).for_each(Job::wake);
                self.up.insert(host, max_stanza);
            }
            Input::HostDown { host } => {
                self.up.remove(&host);
            }
            Input::Answered { number, answer } => self.answered(now, number, answer),
            Input::Changed { write, rows } => self.changed(now, write, rows),
            Input::Page { broadcast, rows } => self.page(now, broadcast, rows),
            Input::Found { broadcast, recipient, known } => {
                self.found(now, broadcast, recipient, known);
            }
            Input::Wake => {}
            Input::Stop => self.stopping = true,
        }
        let jobs: Vec<i64> = self.jobs.keys().copied().collect();
        for id in jobs {
            self.pump(now, id);
        }
        std::mem::take(&mut self.effects)
    }

    /// When it has to be woken, by the steady clock; none: only by an input.
    pub fn wake_at(&self, now: Now) -> Option<Duration> {
        if self.stopping {
            return None;
        }
        self.jobs.values().filter_map(|job| self.wake_of(now, job)).min()
    }

    fn wake_of(&self, now: Now, job: &Job) -> Option<Duration> {
        let goes_on = matches!(job.row.state, BroadcastState::Running | BroadcastState::Paused);
        if job.is_over() {
            return None;
        }
        let later = [job.hold_until, job.record_after].into_iter().filter(|at| *at > now.steady);
        // What ends it is looked at once; after that, only answers are waited for.
        let expires = (goes_on && job.ending.is_none() && !job.closing)
            .then(|| now.steady + job.row.expires_at.since(now.wall).min(SLEEP));
        let sends = job.row.state == BroadcastState::Running
            && job.ending.is_none()
            && !job.ready.is_empty()
            && job.has_room()
            && self.up.contains_key(&*job.row.host);
        let sends = sends.then(|| job.pace.next().max(job.hold_until));
        later.chain(expires).chain(sends).min()
    }

    pub(super) fn reply(&mut self, asker: Asker, reply: Reply) {
        self.effects.push(Effect::Reply { asker, reply });
    }

    pub(super) fn change(&mut self, change: BroadcastChange, pending: Pending) {
        self.next_write += 1;
        let write = Write(self.next_write);
        self.changes.insert(write, pending);
        self.effects.push(Effect::Change { write, change });
    }

    pub(super) fn ask(&mut self, host: &str, ask: Errand, question: Question) {
        let known = self.settings.hosts.iter().find(|known| ***known == *host);
        let host = known.cloned().unwrap_or_else(|| host.into());
        self.next_question = self.next_question.wrapping_add(1);
        let number = u64::from(self.next_question);
        self.questions.insert(number, question);
        self.effects.push(Effect::Ask(Request { number, host, ask }));
    }

    /// What is to go on. A list that was not told to its end was never begun.
    fn loaded(&mut self, rows: Vec<Broadcast>) {
        self.loaded = true;
        for mut row in rows {
            self.next_id = self.next_id.max(row.id + 1);
            let payload = Payload::stanza(&row.payload);
            let unreadable = payload.is_err();
            if row.state == BroadcastState::Filling || (unreadable && row.ended_at.is_none()) {
                row.state = BroadcastState::Cancelled;
            }
            let mut job = Job::new(row, payload.unwrap_or_else(|_| Payload::nothing()), true);
            if unreadable {
                job.doubtful = 0;
                job.trouble = Some("its message can't be read".to_owned());
            }
            self.jobs.insert(job.row.id, job);
        }
    }
}
