//! Quotas: what is refused, and that no order of events lets more in than the limit (O2).

use super::*;

/// The bytes of the message that `offline` makes.
fn size() -> u64 {
    offline("k").message.raw.len() as u64
}

fn from(intercept: &mut Intercept, sender: &str) {
    let text = stanza("", "chat", "<body>hi</body>").replace("alice@h/a", sender);
    intercept.message = Message::parse(text.into(), "h").unwrap();
}

fn keyed(key: &str) -> impl FnOnce(&mut Intercept) {
    let key = key.into();
    move |i| i.key = key
}

#[test]
fn o2_over_the_quota_the_new_message_is_refused() {
    let mut h = History::with_quota(2);
    assert_eq!(h.held(|_| {}), ["usage bob@h 1"]);
    assert!(h.held(keyed("k2")).is_empty());
    assert_eq!(
        h.used(1, 1),
        ["#1 append 1 k1", "over quota, error", "1: k2 offline discarded +service-unavailable"]
    );
    h.outcome(1, Outcome::Retry);
    assert_eq!(h.held(keyed("k3")), ["#2 append 2 k3"], "room is given back");
}

#[test]
fn o2_what_is_dropped_over_the_quota_is_dropped_in_silence() {
    let limits = Limits { messages_per_user: 1, over: Over::Drop, ..Limits::default() };
    let mut h = History::with_limits(limits);
    h.held(|_| {});
    assert_eq!(h.used(1, 1), ["over quota, drop", "1: k1 offline discarded"]);
    // Rules see it all the same.
    let effects = h.held(|i| {
        i.key = "k2".into();
        with_rules(i, &rule("alert", "deliver", "none"));
    });
    assert_eq!(effects, ["1: k2 offline discarded +alert"]);
    let effects = h.held(|i| {
        i.key = "k3".into();
        with_rules(i, &rule("notify", "deliver", "none"));
    });
    assert_eq!(effects, ["over quota, drop", "1: k3 offline discarded +notify"]);
}

#[test]
fn o2_bytes_count_as_they_are_stored() {
    let limits = Limits { bytes_per_user: 2 * size(), ..Limits::default() };
    let mut h = History::with_limits(limits);
    h.held(|_| {});
    let usage = |bytes| Usage { all: Amount { messages: 1, bytes }, ..Usage::default() };
    let answer =
        |question, bytes| Input::Usage { user: BOB.into(), question, usage: Ok(usage(bytes)) };
    assert_eq!(h.give(answer(1, size())), ["#1 append 1 k1"]);
    assert_eq!(h.held(keyed("k2"))[0], "over quota, error");
    assert_eq!(h.at(11).held(keyed("k3"))[0], "over quota, error", "an append is under way");
    h.outcome(1, Outcome::Stored);
    assert_eq!(h.at(22).held(keyed("k4")), ["usage bob@h 2"]);
    assert_eq!(h.give(answer(2, size() + 1))[0], "over quota, error");
}

#[test]
fn o2_a_sender_who_has_enough_stored_leaves_room_for_others() {
    let limits = Limits { messages_per_sender: 1, ..Limits::default() };
    let mut h = History::with_limits(limits);
    h.held(|i| from(i, "eve@h/a"));
    let usage = Usage { senders: [("alice@h".into(), Amount::one(1))].into(), ..Usage::default() };
    let answer = Input::Usage { user: BOB.into(), question: 1, usage: Ok(usage) };
    assert_eq!(h.give(answer), ["#1 append 1 k1"]);
    let mut held = |key: &str, sender: &str| {
        h.held(|i| {
            from(i, sender);
            i.key = key.into();
        })
    };
    assert_eq!(held("k2", "eve@h/b")[0], "over quota, error", "all resources together");
    assert_eq!(held("k3", "alice@h/c")[0], "over quota, error");
    assert_eq!(held("k4", "carol@h/a"), ["#2 append 2 k4"]);
    assert_eq!(held("k5", "h"), ["#3 append 3 k5"], "the host itself is not limited");
    assert_eq!(held("k6", "h"), ["#4 append 4 k6"]);
    h.outcome(1, Outcome::Retry);
    let effects = h.held(|i| {
        from(i, "eve@h/b");
        i.key = "k7".into();
    });
    assert_eq!(effects, ["#5 append 5 k7"]);
}

#[test]
fn o2_what_is_known_and_says_full_is_read_anew_after_a_while() {
    let mut h = History::with_quota(1);
    h.held(|_| {});
    h.used(1, 1);
    assert_eq!(h.held(keyed("k2"))[0], "over quota, error");
    assert_eq!(h.at(11).held(keyed("k3")), ["usage bob@h 2"]);
    assert_eq!(h.used(2, 0), ["#1 append 1 k3"]);
}

#[test]
fn what_was_deleted_makes_room_at_once() {
    let mut h = History::with_quota(1);
    h.held(|_| {});
    h.used(1, 1);
    h.taken("s", 1, &[1], true);
    assert!(h.held(keyed("k2")).is_empty(), "it waits until that is deleted");
    assert_eq!(h.outcome(1, Outcome::Done { rows: 1 }), ["1: deleted s 1", "usage bob@h 2"]);
    // The question may have been answered before the next deletion.
    h.taken("s", 2, &[2], true);
    h.outcome(2, Outcome::Done { rows: 1 });
    assert_eq!(h.used(2, 1), ["usage bob@h 3"]);
    assert_eq!(h.used(3, 0), ["#3 append 1 k2"]);
}

#[test]
fn a_deletion_that_fails_holds_nobody_up() {
    let mut h = History::with_quota(1);
    h.held(|_| {});
    h.used(1, 1);
    h.taken("s", 1, &[1], true);
    assert!(h.held(keyed("k2")).is_empty());
    assert_eq!(h.outcome(1, Outcome::Refused("damage".to_owned())), ["usage bob@h 2"]);
    assert_eq!(h.used(2, 1)[0], "over quota, error");
}

#[test]
fn nothing_is_asked_while_an_append_is_under_way() {
    let mut h = History::with_quota(1);
    assert_eq!(h.held(|i| i.stage = Stage::Undelivered), ["#1 append 1 k1"]);
    // The store's answer might have it or not.
    assert!(h.held(keyed("k2")).is_empty());
    assert_eq!(h.outcome(1, Outcome::Stored), ["usage bob@h 1", "1: k1 undelivered stored"]);
    assert_eq!(h.used(1, 1)[0], "over quota, error");
}

#[test]
fn an_answer_that_nobody_waits_for_any_more_is_not_believed() {
    let mut h = History::with_quota(1);
    h.held(|_| {});
    h.give(Input::LinkDown(LINK));
    // Stored after the first question was answered.
    h.held(|i| {
        i.key = "k2".into();
        i.stage = Stage::Undelivered;
    });
    h.outcome(1, Outcome::Stored);
    assert_eq!(h.held(|_| {}), ["usage bob@h 2"]);
    assert!(h.used(1, 0).is_empty());
    assert_eq!(h.used(2, 1)[0], "over quota, error");
}

#[test]
fn nothing_is_asked_for_what_would_not_be_stored_anyway() {
    let mut h = History::with_quota(1);
    let composing = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
    let effects = h.held(|i| {
        i.message = Message::parse(stanza("", "chat", composing).into(), "h").unwrap();
    });
    assert_eq!(effects, ["1: k1 offline discarded"], "and no error comes for it");
    let effects = h.held(|i| {
        i.stage = Stage::Rules;
        i.sessions = vec![phone(1)];
        with_rules(i, &rule("drop", "deliver", "stored"));
    });
    assert_eq!(effects, ["1: k1 rules deliver"]);
    assert!(h.machine.recipients.is_empty());
}

#[test]
fn a_store_that_does_not_answer_makes_them_wait() {
    let mut h = History::with_quota(1);
    h.held(|_| {});
    h.held(keyed("k2"));
    let usage = Err(crate::store::StoreError::Closed);
    let failed = Input::Usage { user: BOB.into(), question: 1, usage };
    assert_eq!(h.give(failed), ["1: k1 offline retry", "1: k2 offline retry"]);
    assert_eq!(h.machine.busy(), 0);
}

#[test]
fn what_comes_back_undelivered_is_kept_whatever_the_quota() {
    let mut h = History::with_quota(1);
    let effects = h.held(|i| {
        i.stage = Stage::Undelivered;
        with_rules(i, &rule("drop", "deliver", "stored"));
    });
    assert_eq!(effects, ["#1 append 1 k1"], "its deliver rule was evaluated before");
}

/// A store that commits, deletes and answers when a random history says so.
#[derive(Default)]
struct Table {
    /// Sender and bytes, by the counter of the id.
    rows: std::collections::BTreeMap<u64, (String, u64)>,
    /// Submitted and not decided, in order.
    writes: std::collections::VecDeque<(Token, Write)>,
    /// Asked and not answered: the answer of each is read at a moment in between.
    questions: Vec<(u64, Option<Usage>)>,
}

impl Table {
    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for (sender, bytes) in self.rows.values() {
            usage.all.add(Amount::one(*bytes));
            usage.senders.entry(sender.as_str().into()).or_default().add(Amount::one(*bytes));
        }
        usage
    }

    /// With what is under way.
    fn reserved(&self) -> Usage {
        let mut usage = self.usage();
        for (_, write) in &self.writes {
            if let Write::Append(new) = write {
                let one = Amount::one(new.stanza.len() as u64);
                usage.all.add(one);
                let sender = crate::words::bare(&new.sender);
                usage.senders.entry(sender.into()).or_default().add(one);
            }
        }
        usage
    }
}

/// One random history: a machine, a store, and what the machine was asked.
struct Random {
    limits: Limits,
    machine: Machine,
    table: Table,
    now: Timestamp,
    random: fastrand::Rng,
    /// Undecided: sender, bytes, and whether there was no room at some time since it came.
    asked: HashMap<String, (String, u64, bool)>,
    undelivered: bool,
    seed: u64,
    refused: usize,
    stored: usize,
}

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let pick = |random: &mut fastrand::Rng, n: u64| random.bool().then(|| random.u64(1..=n));
        let limits = Limits {
            messages_per_user: pick(&mut random, 6).unwrap_or(0),
            bytes_per_user: pick(&mut random, 900).unwrap_or(0),
            messages_per_sender: pick(&mut random, 3).unwrap_or(0),
            bytes_per_sender: pick(&mut random, 500).unwrap_or(0),
            over: Over::Error,
        };
        let quotas = Quotas::new(limits, HashMap::new()).into();
        let memory = Duration::from_secs(600);
        Random {
            limits,
            machine: Machine::new(Settings { epoch: 1, quotas, memory }),
            table: Table::default(),
            now: seconds(1_000_000),
            undelivered: random.bool(),
            random,
            asked: HashMap::new(),
            seed,
            refused: 0,
            stored: 0,
        }
    }

    fn fits(&self, sender: &str, bytes: u64) -> bool {
        self.limits.leave_room(&self.table.reserved(), "h", sender, bytes)
    }

    fn note_full(&mut self) {
        let full: Vec<String> = self
            .asked
            .iter()
            .filter(|(_, (sender, bytes, _))| !self.fits(sender, *bytes))
            .map(|(key, _)| key.clone())
            .collect();
        for key in full {
            self.asked.get_mut(&key).unwrap().2 = true;
        }
    }

    fn step(&mut self, n: usize) {
        match self.random.u32(0..10) {
            0..=3 => self.intercept(n),
            4 | 5 => self.decide_write(),
            6 => self.read(),
            7 => self.answer(),
            8 => self.take(),
            _ => {
                self.now = self.now.checked_add(Duration::from_secs(1)).unwrap();
                match self.random.u32(0..8) {
                    0 => {
                        let link = LINK;
                        let waiting = self.waiting();
                        self.asked.retain(|key, _| !waiting.contains(key));
                        self.give(Input::LinkDown(link));
                    }
                    _ => self.give(Input::Tick),
                }
            }
        }
    }

    /// The keys that no write is under way for: a link that drops forgets them.
    fn waiting(&self) -> Vec<String> {
        let bob = self.machine.recipients.get(BOB);
        bob.map(|bob| bob.waiting.iter().map(|i| i.key.to_string()).collect()).unwrap_or_default()
    }

    fn intercept(&mut self, n: usize) {
        let mut intercept = offline(&format!("k{n}"));
        intercept.stamp = self.now;
        let sender = ["eve@h/a", "eve@h/b", "carol@h/a"][self.random.usize(0..3)];
        let body = "x".repeat(self.random.usize(0..120));
        let text = stanza("", "chat", &format!("<body>{body}</body>")).replace("alice@h/a", sender);
        intercept.message = Message::parse(text.into(), "h").unwrap();
        let undelivered = self.undelivered && self.random.u32(0..5) == 0;
        if undelivered {
            intercept.stage = Stage::Undelivered;
        }
        let bytes = intercept.message.raw.len() as u64;
        self.asked.insert(format!("k{n}"), (sender.to_owned(), bytes, undelivered));
        self.note_full();
        self.give(Input::Intercept(Box::new(intercept)));
    }

    /// The first write is committed, or given up.
    fn decide_write(&mut self) {
        let Some((token, write)) = self.table.writes.pop_front() else { return };
        let outcome = match write {
            Write::Append(new) => match self.random.u32(0..5) {
                0 => Outcome::Refused("no".into()),
                1 => Outcome::Already { met_rule: None },
                _ => {
                    let sender = crate::words::bare(&new.sender).to_owned();
                    let bytes = new.stanza.len() as u64;
                    self.table.rows.insert(new.id.counter(), (sender, bytes));
                    Outcome::Stored
                }
            },
            Write::Delete { ids, .. } => {
                let gone = ids.iter().filter(|id| self.table.rows.remove(&id.counter()).is_some());
                Outcome::Done { rows: gone.count() as u64 }
            }
            _ => Outcome::Done { rows: 0 },
        };
        // The answers to questions may be read before the machine hears of the outcome.
        if self.random.bool() {
            self.read();
        }
        self.give(Input::Written(vec![(token, outcome)]));
    }

    fn read(&mut self) {
        let usage = self.table.usage();
        for question in &mut self.table.questions {
            question.1.get_or_insert_with(|| usage.clone());
        }
    }

    fn answer(&mut self) {
        if self.table.questions.is_empty() {
            return;
        }
        let at = self.random.usize(0..self.table.questions.len());
        let (question, usage) = self.table.questions.swap_remove(at);
        let usage = Ok(usage.unwrap_or_else(|| self.table.usage()));
        self.give(Input::Usage { user: BOB.into(), question, usage });
    }

    fn take(&mut self) {
        let Some(id) = self.table.rows.keys().next().copied() else { return };
        let taken = Taken {
            link: LINK,
            host: "h".into(),
            session: "s".into(),
            user: BOB.into(),
            batch: 1,
            ids: vec![MessageId::new(1, id)],
            ended: true,
        };
        self.give(Input::Taken(taken));
    }

    fn give(&mut self, input: Input) {
        let seed = self.seed;
        let effects = self.machine.handle(self.now, input);
        for effect in effects {
            match effect {
                Effect::Write(WriteFor { token, write }) => {
                    if let Write::Append(new) = &write {
                        let (sender, bytes, undelivered) = self.asked.remove(&*new.key).unwrap();
                        let undelivered = undelivered && self.undelivered;
                        assert!(
                            undelivered || self.fits(&sender, bytes),
                            "seed {seed}: {} exceeds {:?}",
                            new.key,
                            self.limits
                        );
                        self.stored += 1;
                    }
                    self.table.writes.push_back((token, write));
                    self.note_full();
                }
                Effect::Usage { question, detail, .. } => {
                    assert_eq!(detail, self.limits.detail());
                    self.table.questions.push((question, None));
                }
                Effect::Link(_, ToLink::Verdict(verdict)) if verdict.what == Do::Discarded => {
                    if let Some((_, _, was_full)) = self.asked.remove(&*verdict.key) {
                        assert!(was_full, "seed {seed}: {} is refused wrongly", verdict.key);
                        self.refused += 1;
                    }
                }
                _ => {}
            }
        }
        self.note_full();
    }
}

/// Whatever the order of commits, failures, deletions, answers and lost links: what is
/// stored and under way stays within the limits, but for what came back undelivered; and
/// nobody is refused who had room all the time since he asked.
#[test]
fn o2_no_history_lets_more_in_than_the_limits_and_none_refuses_too_early() {
    let (mut refused, mut stored) = (0, 0);
    for seed in 0..600 {
        let mut history = Random::new(seed);
        for n in 0..150 {
            history.step(n);
        }
        refused += history.refused;
        stored += history.stored;
    }
    assert!(refused > 500 && stored > 1_000, "{refused} refused, {stored} stored");
}
