//! What servers and the store have answered.

use std::time::Duration;

use crate::store::{Broadcast, BroadcastChange, BroadcastState, Fate, Recipient};
use crate::time::Timestamp;

use super::input::{Answered, Asker, Now, Write};
use super::machine::{Machine, Pending, Question};
use super::pump::GIVE_UP;
use super::{Payload, Problem, ProblemKind};

/// The pause after the store has refused to record who is settled.
const RECORD_PAUSE: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn answered(&mut self, now: Now, number: u64, answer: Answered) {
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

    pub(super) fn page(&mut self, now: Now, id: i64, rows: Result<Vec<Recipient>, String>) {
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

    pub(super) fn found(
        &mut self,
        now: Now,
        id: i64,
        recipient: Recipient,
        known: Result<bool, String>,
    ) {
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

    pub(super) fn changed(&mut self, now: Now, write: Write, rows: Result<u64, String>) {
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

    pub(super) fn end(&mut self, now: Now, id: i64) {
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
}

const ODD_ANSWER: &str = "its answer makes no sense";

/// Whether a page of names leads anywhere.
fn goes_on(after: &str, names: &[String], complete: bool) -> bool {
    complete || names.last().is_some_and(|last| last.as_str() > after)
}
