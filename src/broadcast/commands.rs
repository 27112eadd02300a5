//! Carrying commands out.

use jid::BareJid;

use crate::shard::Errand;
use crate::store::{Broadcast, BroadcastChange, BroadcastState, Counts, Recipient};
use crate::time::Timestamp;
use crate::words::Bare;

use super::input::{Asker, Now};
use super::job::Job;
use super::machine::{Machine, Pending, Question};
use super::pump::ACCOUNTS;
use super::{
    ADD, Command, LIST, LONGEST, MAX_RATE, Payload, Problem, ProblemKind, REMEMBERED, Reply,
    UNFINISHED,
};

/// Bytes of all that goes round a message on its way to the server and back.
const OVERHEAD: usize = 8 * 1024;

impl Machine {
    pub(super) fn command(
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
        let served = self.settings.hosts.iter().any(|known| **known == *host);
        // Another node may be the one that serves it.
        if !served && !self.up.contains_key(host) {
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
        let ask = Errand::Accounts { after: String::new(), max: ACCOUNTS };
        self.ask(&host, ask, Question::First { asker, new, payload });
        Ok(())
    }

    pub(super) fn create(&mut self, asker: Asker, mut new: Broadcast, payload: Payload) -> i64 {
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

    pub(super) fn report(&mut self, asker: Asker, id: i64) {
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
