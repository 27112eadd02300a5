//! What is to be done for the broadcasts of a node: an input and the time in, a list of
//! effects out. No clock, no database, no socket.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jid::BareJid;

use crate::shard::{Ask, Request};
use crate::store::{Broadcast, BroadcastChange, BroadcastState, Counts, Fate, Recipient};
use crate::time::Timestamp;
use crate::words::Bare;

use super::job::{Job, PAGE};
use super::{
    ADD, Command, LIST, LONGEST, MAX_RATE, Payload, Problem, ProblemKind, REMEMBERED, Reply,
    UNFINISHED,
};

/// Accounts that a server is asked for at once.
const ACCOUNTS: usize = 500;

/// Recipients that are given up in one transaction, so that messages need not wait for it.
const GIVE_UP: u64 = 500;

/// Bytes of all that goes round a message on its way to the server and back.
const OVERHEAD: usize = 8 * 1024;

/// The pause after the store has refused to record who is settled.
const RECORD_PAUSE: Duration = Duration::from_secs(5);

/// The longest sleep: the wall clock may be set.
const SLEEP: Duration = Duration::from_secs(60);

/// The time, by both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// What expires, expires by this.
    pub wall: Timestamp,
    /// What waits, waits by this: it is never set.
    pub steady: Duration,
}

/// What a machine is set to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts that this node serves.
    pub hosts: Vec<Arc<str>>,
}

/// Who waits for a reply.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Asker(pub u64);

/// Ties the outcome of a change to what waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Write(pub u64);

/// Everything that the machine reacts to.
#[derive(Debug)]
pub enum Input {
    /// What the store has; the first of all.
    Loaded(Vec<Broadcast>),
    /// An administrator's command.
    Command {
        /// Who asks.
        asker: Asker,
        /// What for.
        command: Command,
        /// The only host that he may ask for; none: any.
        host: Option<Arc<str>>,
        /// Something random, for a broadcast that begins with it.
        token: String,
    },
    /// The interceptor of a host is there, with what its server takes in one stanza.
    HostUp {
        /// The host.
        host: Arc<str>,
        /// Bytes.
        max_stanza: usize,
    },
    /// It is not.
    HostDown {
        /// The host.
        host: Arc<str>,
    },
    /// A server's answer to [`Effect::Ask`].
    Answered {
        /// The question.
        number: u64,
        /// The answer.
        answer: Answered,
    },
    /// The outcome of [`Effect::Change`].
    Changed {
        /// Which one.
        write: Write,
        /// Recipients touched.
        rows: Result<u64, String>,
    },
    /// The answer to [`Effect::Read`].
    Page {
        /// Whose.
        broadcast: i64,
        /// The recipients.
        rows: Result<Vec<Recipient>, String>,
    },
    /// The answer to [`Effect::Find`].
    Found {
        /// Of which broadcast.
        broadcast: i64,
        /// Who.
        recipient: Recipient,
        /// Whether the store has, or had, a message of that key.
        known: Result<bool, String>,
    },
    /// It is time for something.
    Wake,
    /// The node stops: nothing more is sent.
    Stop,
}

/// What a server answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answered {
    /// What became of the message.
    Settled(Fate),
    /// Names of accounts.
    Accounts {
        /// In order.
        names: Vec<String>,
        /// There are no more.
        complete: bool,
    },
    /// It can't be done, now or later.
    Refused(String),
    /// Not now: no link, no answer, no room.
    Failed(String),
}

/// Everything that the machine can ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Ask the server of a host.
    Ask(Request),
    /// Change what is kept.
    Change {
        /// Comes back with the outcome.
        write: Write,
        /// How.
        change: BroadcastChange,
    },
    /// Read recipients that are not settled.
    Read {
        /// Whose.
        broadcast: i64,
        /// After this place.
        after: u64,
        /// How many at most.
        limit: u64,
    },
    /// Look for a key among the stored messages.
    Find {
        /// Comes back with the answer.
        broadcast: i64,
        /// Comes back with the answer.
        recipient: Recipient,
        /// The key.
        key: String,
    },
    /// Answer a command.
    Reply {
        /// Who asked.
        asker: Asker,
        /// What he is told.
        reply: Reply,
    },
}

/// A question that is not answered.
#[derive(Debug)]
enum Question {
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
enum Pending {
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
    settings: Settings,
    /// Hosts whose interceptors are there, and what their servers take.
    up: HashMap<Arc<str>, usize>,
    jobs: BTreeMap<i64, Job>,
    questions: HashMap<u64, Question>,
    changes: HashMap<Write, Pending>,
    effects: Vec<Effect>,
    /// Commands are taken from now on.
    loaded: bool,
    stopping: bool,
    next_id: i64,
    next_question: u64,
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
        let wakes = self.jobs.values().filter(|job| !job.is_over()).map(|job| {
            let left = job.row.expires_at.since(now.wall).min(SLEEP);
            let mut wake = now.steady + left;
            for later in [job.hold_until, job.record_after] {
                if later > now.steady {
                    wake = wake.min(later);
                }
            }
            let sends = job.row.state == BroadcastState::Running
                && job.ending.is_none()
                && !job.ready.is_empty()
                && job.has_room()
                && self.up.contains_key(&*job.row.host);
            if sends {
                wake = wake.min(job.pace.next().max(job.hold_until));
            }
            wake
        });
        wakes.min()
    }

    fn reply(&mut self, asker: Asker, reply: Reply) {
        self.effects.push(Effect::Reply { asker, reply });
    }

    fn change(&mut self, change: BroadcastChange, pending: Pending) {
        self.next_write += 1;
        let write = Write(self.next_write);
        self.changes.insert(write, pending);
        self.effects.push(Effect::Change { write, change });
    }

    fn ask(&mut self, host: &str, ask: Ask, question: Question) {
        let known = self.settings.hosts.iter().find(|known| ***known == *host);
        let host = known.cloned().unwrap_or_else(|| host.into());
        self.next_question += 1;
        self.questions.insert(self.next_question, question);
        let number = self.next_question;
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

    // ------------------------------------------------------------------ commands

    fn command(
        &mut self,
        now: Now,
        asker: Asker,
        command: Command,
        only: Option<&str>,
        token: String,
    ) -> Result<(), Problem> {
        if !self.loaded || self.stopping {
            return Err(problem(ProblemKind::Unavailable, "the node is not ready; try again"));
        }
        match command {
            Command::Start { host, everyone, stanza, expires_at, rate } => {
                if only.is_some_and(|only| only != host) {
                    return Err(problem(
                        ProblemKind::Host,
                        "a host may ask for its own users only",
                    ));
                }
                let payload = self.checked(&host, &stanza)?;
                let expires_at = expiry(now, &expires_at)?;
                if !(1..=MAX_RATE).contains(&rate) {
                    let says = format!("the rate must be 1 to {MAX_RATE} messages a second");
                    return Err(problem(ProblemKind::Rate, says));
                }
                let new = Broadcast {
                    id: 0,
                    token,
                    host,
                    everyone,
                    payload: payload.as_str().to_owned(),
                    expires_at,
                    rate,
                    state: BroadcastState::Filling,
                    created_at: now.wall,
                    ended_at: None,
                    counted_to: None,
                    last_n: 0,
                    counts: Counts::default(),
                };
                self.start(asker, new, payload)
            }
            Command::Add { broadcast, recipients } => {
                self.add(asker, self.known(broadcast, only)?, &recipients)
            }
            Command::Begin { broadcast } => {
                let id = self.known(broadcast, only)?;
                self.shift(asker, id, &[BroadcastState::Filling], BroadcastState::Running)
            }
            Command::List {} => {
                let seen = |job: &&Job| only.is_none_or(|only| only == job.row.host);
                let reports = self.jobs.values().filter(seen).map(Job::report).collect();
                self.reply(asker, Reply::Broadcasts(reports));
                Ok(())
            }
            Command::Status { broadcast } => {
                let id = self.known(broadcast, only)?;
                self.report(asker, id);
                Ok(())
            }
            Command::Pause { broadcast } => {
                let id = self.known(broadcast, only)?;
                self.shift(asker, id, &[BroadcastState::Running], BroadcastState::Paused)
            }
            Command::Resume { broadcast } => {
                let id = self.known(broadcast, only)?;
                self.shift(asker, id, &[BroadcastState::Paused], BroadcastState::Running)
            }
            Command::Cancel { broadcast } => {
                let id = self.known(broadcast, only)?;
                let from =
                    [BroadcastState::Filling, BroadcastState::Running, BroadcastState::Paused];
                self.shift(asker, id, &from, BroadcastState::Cancelled)
            }
        }
    }

    /// The message, if that host's server can send it.
    fn checked(&self, host: &str, stanza: &str) -> Result<Payload, Problem> {
        if !self.settings.hosts.iter().any(|known| **known == *host) {
            let hosts: Vec<&str> = self.settings.hosts.iter().map(|host| &**host).collect();
            let served = if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") };
            let says = format!("this node does not serve the host '{host}'; it serves: {served}");
            return Err(problem(ProblemKind::Host, says));
        }
        let payload = Payload::stanza(stanza)
            .map_err(|error| problem(ProblemKind::Stanza, format!("the message: {error}")))?;
        let most = self.up.get(host).copied().unwrap_or(usize::MAX).saturating_sub(OVERHEAD);
        if payload.as_str().len() > most {
            let says =
                format!("the message is larger than the server of {host} takes ({most} bytes)");
            return Err(problem(ProblemKind::Stanza, says));
        }
        Ok(payload)
    }

    fn start(&mut self, asker: Asker, new: Broadcast, payload: Payload) -> Result<(), Problem> {
        let unfinished = self.jobs.values().filter(|job| !job.is_over()).count();
        let asked = self.questions.values().filter(|q| matches!(q, Question::First { .. })).count();
        if unfinished + asked >= UNFINISHED {
            let says = format!("{UNFINISHED} broadcasts are not at their end; wait, or cancel one");
            return Err(problem(ProblemKind::State, says));
        }
        if !new.everyone {
            self.create(asker, new, payload);
            return Ok(());
        }
        if !self.up.contains_key(&*new.host) {
            let says = format!(
                "the server of {} is not connected now, so its users are not known; see /readyz, and try again",
                new.host
            );
            return Err(problem(ProblemKind::Unavailable, says));
        }
        let host = new.host.clone();
        let new = Box::new(new);
        let ask = Ask::Accounts { after: String::new(), max: ACCOUNTS };
        self.ask(&host, ask, Question::First { asker, new, payload });
        Ok(())
    }

    fn create(&mut self, asker: Asker, mut new: Broadcast, payload: Payload) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        new.id = id;
        let mut over = self.jobs.values().filter(|job| job.is_over()).map(|job| job.row.id);
        let oldest = over.next();
        if let Some(oldest) = oldest.filter(|_| over.count() + 1 >= REMEMBERED) {
            self.jobs.remove(&oldest);
            self.change(BroadcastChange::Forget { broadcast: oldest }, Pending::Forgotten);
        }
        let created = Pending::Created { broadcast: id, asker };
        self.change(BroadcastChange::Create(new.clone()), created);
        self.jobs.insert(id, Job::new(new, payload, false));
        id
    }

    /// A broadcast that there is, and that the asker may know of.
    fn known(&self, id: i64, only: Option<&str>) -> Result<i64, Problem> {
        let job = self.jobs.get(&id).filter(|job| job.created);
        let job = job.filter(|job| only.is_none_or(|only| only == job.row.host));
        job.map(|_| id).ok_or_else(|| {
            problem(ProblemKind::Unknown, format!("there is no broadcast {id}; see the list"))
        })
    }

    fn report(&mut self, asker: Asker, id: i64) {
        let reply = match self.jobs.get(&id) {
            Some(job) => Reply::Broadcast(job.report()),
            None => Problem::reply(ProblemKind::Unknown, format!("broadcast {id} is forgotten")),
        };
        self.reply(asker, reply);
    }

    fn add(&mut self, asker: Asker, id: i64, recipients: &[String]) -> Result<(), Problem> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        if job.row.state != BroadcastState::Filling {
            let says = format!("the list of broadcast {id} is closed");
            return Err(problem(ProblemKind::State, says));
        }
        if recipients.len() > ADD {
            let says = format!("{ADD} recipients may be added at once");
            return Err(problem(ProblemKind::Request, says));
        }
        let mut rows = Vec::with_capacity(recipients.len());
        for (n, text) in (job.row.last_n + 1..).zip(recipients) {
            let bare = recipient(text, &job.row.host)?;
            rows.push(Recipient { n, bare });
        }
        let last_n = job.row.last_n + rows.len() as u64;
        if last_n > LIST {
            let says = format!("a list may have {LIST} recipients");
            return Err(problem(ProblemKind::Recipients, says));
        }
        job.row.last_n = last_n;
        let add = BroadcastChange::Add { broadcast: id, recipients: rows, counted_to: None };
        self.change(add, Pending::Added { broadcast: id, asker });
        Ok(())
    }

    /// From one of these states to another.
    fn shift(
        &mut self,
        asker: Asker,
        id: i64,
        from: &[BroadcastState],
        to: BroadcastState,
    ) -> Result<(), Problem> {
        let Some(job) = self.jobs.get_mut(&id) else { return Ok(()) };
        let ending = job.ending.is_some() || job.closing;
        if ending || !from.contains(&job.row.state) {
            let state = job.report().state;
            let state = if ending && to != BroadcastState::Cancelled {
                format!("{state}, and at its end")
            } else {
                state
            };
            let says = format!("broadcast {id} is {state}: that can't be done now");
            return Err(problem(ProblemKind::State, says));
        }
        job.row.state = to;
        job.wake();
        let change = BroadcastChange::SetState { broadcast: id, state: to, ended_at: None };
        self.change(change, Pending::Moved { broadcast: id, asker });
        Ok(())
    }

    // ------------------------------------------------------------------ answers

    fn answered(&mut self, now: Now, number: u64, answer: Answered) {
        match self.questions.remove(&number) {
            Some(Question::Settle { broadcast, recipient }) => {
                self.settled(now, broadcast, recipient, answer);
            }
            Some(Question::Accounts { broadcast }) => self.accounts(now, broadcast, answer),
            Some(Question::First { asker, new, payload }) => {
                self.first(now, asker, *new, payload, answer);
            }
            None => {}
        }
    }

    fn settled(&mut self, now: Now, id: i64, recipient: Recipient, answer: Answered) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.sent -= 1;
        match answer {
            Answered::Settled(fate) => {
                job.settled.push((recipient.n, fate));
                job.recovered();
            }
            Answered::Refused(why) => {
                job.settled.push((recipient.n, Fate::Discarded));
                job.trouble = Some(format!("{}: {why}", recipient.bare));
            }
            Answered::Failed(why) => {
                job.unsure.push_back(recipient);
                job.failed(now, why);
            }
            Answered::Accounts { .. } => job.unsure.push_back(recipient),
        }
    }

    fn accounts(&mut self, now: Now, id: i64, answer: Answered) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let after = job.row.counted_to.clone().unwrap_or_default();
        match answer {
            Answered::Accounts { names, complete } if goes_on(&after, &names, complete) => {
                job.recovered();
                self.count(id, names, complete);
            }
            Answered::Refused(why) | Answered::Failed(why) => {
                job.counting = false;
                job.failed(now, why);
            }
            _ => {
                job.counting = false;
                job.failed(now, ODD_ANSWER.to_owned());
            }
        }
    }

    /// These accounts are recipients.
    fn count(&mut self, id: i64, names: Vec<String>, complete: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.counting = true;
        let counted_to = if complete { None } else { names.last().cloned() };
        let host = &job.row.host;
        let recipients: Vec<Recipient> = (job.row.last_n + 1..)
            .zip(&names)
            .map(|(n, name)| Recipient { n, bare: format!("{name}@{host}").into() })
            .collect();
        let last_n = job.row.last_n + recipients.len() as u64;
        let change = BroadcastChange::Add {
            broadcast: id,
            recipients,
            counted_to: Some(counted_to.clone()),
        };
        self.change(change, Pending::Counted { broadcast: id, counted_to, last_n });
    }

    fn first(
        &mut self,
        now: Now,
        asker: Asker,
        mut new: Broadcast,
        payload: Payload,
        answer: Answered,
    ) {
        let host = &new.host;
        let why = match answer {
            Answered::Accounts { names, complete } if goes_on("", &names, complete) => {
                new.state = BroadcastState::Running;
                new.created_at = now.wall;
                new.counted_to = Some(String::new());
                let id = self.create(asker, new, payload);
                return self.count(id, names, complete);
            }
            Answered::Refused(why) | Answered::Failed(why) => why,
            _ => ODD_ANSWER.to_owned(),
        };
        let says = format!(
            "the server of {host} does not say who its users are: {why}; a list of recipients needs no such answer"
        );
        self.reply(asker, Problem::reply(ProblemKind::Unavailable, says));
    }

    fn page(&mut self, now: Now, id: i64, rows: Result<Vec<Recipient>, String>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match rows {
            Ok(rows) => {
                job.page(rows);
                job.added = false;
            }
            Err(why) => {
                job.reading = false;
                job.failed(now, why);
            }
        }
    }

    fn found(&mut self, now: Now, id: i64, recipient: Recipient, known: Result<bool, String>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.looking -= 1;
        match known {
            Ok(true) => job.settled.push((recipient.n, Fate::Stored)),
            Ok(false) if job.ending.is_some() => {}
            Ok(false) => job.ready.push_front((recipient, true)),
            Err(why) => {
                job.unsure.push_back(recipient);
                job.failed(now, why);
            }
        }
    }

    fn changed(&mut self, now: Now, write: Write, rows: Result<u64, String>) {
        let Some(pending) = self.changes.remove(&write) else { return };
        match pending {
            Pending::Created { broadcast, asker } => self.created(broadcast, asker, rows),
            Pending::Added { broadcast, asker } => match rows {
                Ok(rows) => {
                    if let Some(job) = self.jobs.get_mut(&broadcast) {
                        job.row.counts.total += rows;
                    }
                    self.report(asker, broadcast);
                }
                Err(why) => self.reply(asker, Problem::reply(ProblemKind::Unavailable, why)),
            },
            Pending::Counted { broadcast, counted_to, last_n } => {
                let Some(job) = self.jobs.get_mut(&broadcast) else { return };
                job.counting = false;
                match rows {
                    Ok(rows) => {
                        job.row.counts.total += rows;
                        job.row.last_n = last_n;
                        job.row.counted_to = counted_to;
                        job.exhausted = false;
                        job.added = job.reading;
                    }
                    Err(why) => job.failed(now, why),
                }
            }
            Pending::Moved { broadcast, asker } => match rows {
                Ok(_) => self.report(asker, broadcast),
                Err(why) => self.reply(asker, Problem::reply(ProblemKind::Unavailable, why)),
            },
            Pending::Recorded { broadcast } => {
                let Some(job) = self.jobs.get_mut(&broadcast) else { return };
                let recorded = std::mem::take(&mut job.recording);
                match rows {
                    Ok(_) => recorded.iter().for_each(|(_, fate)| job.row.counts.add(*fate, 1)),
                    Err(why) => {
                        job.settled.extend(recorded);
                        job.record_after = now.steady + RECORD_PAUSE;
                        job.failed(now, why);
                    }
                }
            }
            Pending::GivenUp { broadcast, fate } => self.given_up(now, broadcast, fate, rows),
            Pending::Ended { broadcast, at } => self.ended(now, broadcast, at, rows),
            Pending::Forgotten => {}
        }
    }

    fn created(&mut self, id: i64, asker: Asker, rows: Result<u64, String>) {
        match rows {
            Ok(_) => {
                if let Some(job) = self.jobs.get_mut(&id) {
                    job.created = true;
                }
                self.report(asker, id);
            }
            Err(why) => {
                self.jobs.remove(&id);
                self.reply(asker, Problem::reply(ProblemKind::Unavailable, why));
            }
        }
    }

    fn given_up(&mut self, now: Now, id: i64, fate: Fate, rows: Result<u64, String>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.closing = false;
        match rows {
            Ok(rows) => {
                job.row.counts.add(fate, rows);
                if rows < GIVE_UP {
                    self.end(now, id);
                }
            }
            Err(why) => job.failed(now, why),
        }
    }

    fn end(&mut self, now: Now, id: i64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.closing = true;
        if job.row.state != BroadcastState::Cancelled {
            job.row.state = BroadcastState::Done;
        }
        let (state, at) = (job.row.state, now.wall);
        let change = BroadcastChange::SetState { broadcast: id, state, ended_at: Some(at) };
        self.change(change, Pending::Ended { broadcast: id, at });
    }

    fn ended(&mut self, now: Now, id: i64, at: Timestamp, rows: Result<u64, String>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match rows {
            Ok(_) => job.row.ended_at = Some(at),
            Err(why) => {
                job.closing = false;
                job.failed(now, why);
            }
        }
    }

    // ------------------------------------------------------------------ going on

    /// Does all that can be done for a broadcast now.
    fn pump(&mut self, now: Now, id: i64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.is_over() || !job.created || job.row.state == BroadcastState::Filling {
            return;
        }
        if job.ending.is_none() && !job.closing {
            if job.row.state == BroadcastState::Cancelled {
                job.ending = Some(Fate::Cancelled);
            } else if now.wall >= job.row.expires_at {
                job.ending = Some(Fate::Expired);
            }
            if job.ending.is_some() {
                job.ready.clear();
            }
        }
        self.record(now, id);
        self.look(now, id);
        match self.jobs.get(&id).and_then(|job| job.ending) {
            Some(fate) => self.wind_up(now, id, fate),
            None => self.go_on(now, id),
        }
    }

    /// Tells the store who is settled, one transaction at a time.
    fn record(&mut self, now: Now, id: i64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.settled.is_empty() || !job.recording.is_empty() || now.steady < job.record_after {
            return;
        }
        job.recording = std::mem::take(&mut job.settled);
        let settled = job.recording.clone();
        let change = BroadcastChange::Settle { broadcast: id, settled };
        self.change(change, Pending::Recorded { broadcast: id });
    }

    /// Asks the store for the keys of those who may have been sent theirs.
    fn look(&mut self, now: Now, id: i64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if now.steady < job.hold_until || self.stopping {
            return;
        }
        while job.has_room()
            && let Some(recipient) = job.unsure.pop_front()
        {
            job.looking += 1;
            let key = job.key(recipient.n);
            self.effects.push(Effect::Find { broadcast: id, recipient, key });
        }
    }

    /// Nothing more is sent: once all that was is settled, the rest is given up.
    fn wind_up(&mut self, now: Now, id: i64, fate: Fate) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.closing || now.steady < job.hold_until {
            return;
        }
        // Those who may have been sent theirs before this start of the node are read for that.
        if job.doubtful > 0 && !job.exhausted {
            if !job.reading {
                job.reading = true;
                self.read(id);
            }
            return;
        }
        job.ready.clear();
        if job.is_quiet() {
            job.closing = true;
            let change = BroadcastChange::GiveUp { broadcast: id, fate, limit: GIVE_UP };
            self.change(change, Pending::GivenUp { broadcast: id, fate });
        }
    }

    fn read(&mut self, id: i64) {
        let after = self.jobs.get(&id).map_or(0, |job| job.cursor);
        self.effects.push(Effect::Read { broadcast: id, after, limit: PAGE });
    }

    fn go_on(&mut self, now: Now, id: i64) {
        let stopping = self.stopping;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.closing || stopping || now.steady < job.hold_until {
            return;
        }
        let up = self.up.contains_key(&*job.row.host);
        if job.wants_page() {
            job.reading = true;
            self.read(id);
        }
        if up {
            self.ask_for_accounts(id);
            self.send(now, id);
        }
        if self.jobs.get(&id).is_some_and(Job::is_complete) {
            self.end(now, id);
        }
    }

    fn ask_for_accounts(&mut self, id: i64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(after) = job.row.counted_to.clone().filter(|_| !job.counting) else { return };
        job.counting = true;
        let host = job.row.host.clone();
        let ask = Ask::Accounts { after, max: ACCOUNTS };
        self.ask(&host, ask, Question::Accounts { broadcast: id });
    }

    fn send(&mut self, now: Now, id: i64) {
        loop {
            let Some(job) = self.jobs.get_mut(&id) else { return };
            let may = job.row.state == BroadcastState::Running
                && job.has_room()
                && !job.ready.is_empty()
                && job.pace.take(now.steady);
            let Some((recipient, again)) = job.ready.pop_front_if(|_| may) else { return };
            job.sent += 1;
            let key = job.key(recipient.n);
            let host = job.row.host.clone();
            let to = recipient.bare.clone();
            let stanza = job.payload.message(&host, &to, &key, job.row.expires_at);
            let ask = Ask::Settle { key, to, again, stanza };
            self.ask(&host, ask, Question::Settle { broadcast: id, recipient });
        }
    }
}

const ODD_ANSWER: &str = "its answer makes no sense";

/// Whether a page of names leads anywhere.
fn goes_on(after: &str, names: &[String], complete: bool) -> bool {
    complete || names.last().is_some_and(|last| last.as_str() > after)
}

fn problem(kind: ProblemKind, says: impl Into<String>) -> Problem {
    Problem { kind, says: says.into() }
}

fn expiry(now: Now, text: &str) -> Result<Timestamp, Problem> {
    let bad =
        |says: String| problem(ProblemKind::Expiry, format!("the expiry '{text:.64}' {says}"));
    let at: Timestamp = text.parse().map_err(|error| bad(format!("is {error}")))?;
    if at <= now.wall {
        return Err(bad(format!("is in the past; it is {} now", now.wall)));
    }
    if at.since(now.wall) > LONGEST {
        return Err(bad("is more than a year from now".to_owned()));
    }
    Ok(at)
}

/// A recipient on a list: a user of that host.
fn recipient(text: &str, host: &str) -> Result<Bare, Problem> {
    let bad = |says: &str| {
        problem(ProblemKind::Recipients, format!("the recipient '{text:.256}' {says}"))
    };
    let jid = BareJid::new(text).map_err(|error| bad(&format!("is no bare JID: {error}")))?;
    if jid.node().is_none() {
        return Err(bad("is no user"));
    }
    if jid.domain().as_str() != host {
        return Err(bad(&format!("is not at {host}")));
    }
    Ok(jid.as_str().into())
}
