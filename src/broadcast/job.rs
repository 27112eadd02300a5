//! One broadcast: who is still to get it, and how it goes on.

use std::collections::VecDeque;
use std::time::Duration;

use crate::store::{Broadcast, Fate, Recipient};

use super::input::Now;
use super::pace::Pace;
use super::payload::Payload;
use super::{Report, WINDOW};

/// Recipients that are read from the store at once.
pub const PAGE: u64 = 256;

/// The pause after a failure, doubled each time up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A broadcast and what is under way for it.
#[derive(Debug)]
pub struct Job {
    /// As it is kept, with what is on its way there.
    pub row: Broadcast,
    pub payload: Payload,
    /// Whether the store has it.
    pub created: bool,
    /// The server is asked for accounts, or what it said is being stored.
    pub counting: bool,
    /// All up to here were read.
    pub cursor: u64,
    pub reading: bool,
    /// There were more added while a page was read.
    pub added: bool,
    /// The last page had all that there were.
    pub exhausted: bool,
    /// So many of the next that are read may have been sent before this start of the node.
    pub doubtful: usize,
    /// May have been sent: the store is asked for their keys first.
    pub unsure: VecDeque<Recipient>,
    /// How many of these it is asked for now.
    pub looking: usize,
    /// To be sent; true: again.
    pub ready: VecDeque<(Recipient, bool)>,
    /// How many are sent and not settled.
    pub sent: usize,
    /// Settled, and the store does not know.
    pub settled: Vec<(u64, Fate)>,
    /// ... and is being told.
    pub recording: Vec<(u64, Fate)>,
    pub pace: Pace,
    /// Nothing is asked of the server or the store before.
    pub hold_until: Duration,
    /// The store is not told who is settled before.
    pub record_after: Duration,
    failures: u32,
    pub trouble: Option<String>,
    /// Nothing more is sent; what becomes of those who are left.
    pub ending: Option<Fate>,
    /// They are being given up, or the end is being recorded.
    pub closing: bool,
}

impl Job {
    /// A new one, or one of before this start of the node.
    pub fn new(row: Broadcast, payload: Payload, created: bool) -> Self {
        let pace = Pace::new(row.rate);
        Job {
            row,
            payload,
            created,
            counting: false,
            cursor: 0,
            reading: false,
            added: false,
            exhausted: false,
            doubtful: if created { WINDOW } else { 0 },
            unsure: VecDeque::new(),
            looking: 0,
            ready: VecDeque::new(),
            sent: 0,
            settled: Vec::new(),
            recording: Vec::new(),
            pace,
            hold_until: Duration::ZERO,
            record_after: Duration::ZERO,
            failures: 0,
            trouble: None,
            ending: None,
            closing: false,
        }
    }

    /// The key of a recipient's message, and its id.
    pub fn key(&self, n: u64) -> String {
        format!("send-{}-{n}", self.row.token)
    }

    pub fn report(&self) -> Report {
        let mut row = self.row.clone();
        for (_, fate) in self.settled.iter().chain(&self.recording) {
            row.counts.add(*fate, 1);
        }
        Report::of(&row, self.trouble.clone())
    }

    pub fn is_over(&self) -> bool {
        self.row.ended_at.is_some()
    }

    /// Recipients that are looked for, sent, or settled and not recorded.
    fn in_hand(&self) -> usize {
        self.looking + self.sent + self.settled.len() + self.recording.len()
    }

    pub fn has_room(&self) -> bool {
        self.in_hand() < WINDOW
    }

    pub fn wants_page(&self) -> bool {
        let waiting = (self.unsure.len() + self.ready.len()) as u64;
        self.created && !self.reading && !self.exhausted && waiting < PAGE / 2
    }

    /// Takes a page in.
    pub fn page(&mut self, rows: Vec<Recipient>) {
        self.exhausted = (rows.len() as u64) < PAGE && !self.added;
        self.reading = false;
        for recipient in rows {
            self.cursor = recipient.n;
            if self.doubtful > 0 {
                self.doubtful -= 1;
                self.unsure.push_back(recipient);
            } else {
                self.ready.push_back((recipient, false));
            }
        }
    }

    /// Something failed that is worth another try; all that fails together counts once.
    pub fn failed(&mut self, now: Now, why: String) {
        self.trouble = Some(why);
        if now.steady < self.hold_until {
            return;
        }
        let pause = FIRST_PAUSE * 2u32.pow(self.failures.min(10));
        self.failures += 1;
        self.hold_until = now.steady + pause.min(LONGEST_PAUSE);
    }

    /// Something went well.
    pub fn recovered(&mut self) {
        self.failures = 0;
        self.trouble = None;
    }

    /// A server is there (again): no more waiting.
    pub fn wake(&mut self) {
        self.failures = 0;
        self.hold_until = Duration::ZERO;
    }

    /// Whether nothing is under way whose end has to be waited for.
    pub fn is_quiet(&self) -> bool {
        self.in_hand() == 0 && self.unsure.is_empty() && !self.counting && !self.reading
    }

    /// Whether nobody is left.
    pub fn is_complete(&self) -> bool {
        self.row.counted_to.is_none()
            && self.exhausted
            && self.ready.is_empty()
            && self.is_quiet()
            && !self.added
    }
}
