//! Going on with a broadcast: all that can be done for it now.

use crate::shard::Errand;
use crate::store::{BroadcastChange, BroadcastState, Fate};

use super::input::{Effect, Now};
use super::job::{Job, PAGE};
use super::machine::{Machine, Pending, Question};

/// Accounts that a server is asked for at once.
pub const ACCOUNTS: usize = 500;

/// Recipients that are given up in one transaction, so that messages need not wait for it.
pub const GIVE_UP: u64 = 500;

impl Machine {
    /// Does all that can be done for a broadcast now.
    pub(super) fn pump(&mut self, now: Now, id: i64) {
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
        let ask = Errand::Accounts { after, max: ACCOUNTS };
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
            let ask = Errand::Settle { key, to, again, stanza };
            self.ask(&host, ask, Question::Settle { broadcast: id, recipient });
        }
    }
}
