//! A user who looks at what is stored for him (XEP-0013): each test is a history.

use super::*;
use crate::store::{Header, StoreError};

pub(super) fn show_look(look: &Look) -> String {
    match look {
        Look::Headers { after, rows } => format!("list {rows} after {}", after.0 & 0xffff),
        Look::Messages { after, limit } => {
            format!("show {} after {}", limit.rows, after.0 & 0xffff)
        }
    }
}

pub(super) fn show_answer(retrieved: &Retrieved) -> String {
    let name = &retrieved.asker.name;
    match &retrieved.answer {
        Answer::Count(messages) => format!("{name}: {messages} messages"),
        Answer::List(listed) => {
            let listed: Vec<_> =
                listed.iter().map(|l| format!("{} {}", short(l.id), l.sender)).collect();
            format!("{name}: {}", listed.join(", "))
        }
        Answer::Done => format!("{name}: done"),
        Answer::Refused(refused) => format!("{name}: {}", refused.condition),
    }
}

/// Ids as Bob's messages have them.
fn ids(ids: &[u32]) -> Vec<MessageId> {
    ids.iter().map(|id| MessageId::new(1, u64::from(*id))).collect()
}

impl History {
    /// A history in which so many ids were given already.
    pub(super) fn with_ids(given: u64) -> Self {
        let mut h = History::new();
        for n in 1..=given {
            h.held(|i| i.key = format!("k{n}").into());
            h.outcome(n, Outcome::Stored);
        }
        h
    }

    pub(super) fn ask(&mut self, name: &str, ask: Ask) -> Vec<String> {
        self.ask_within(name, ask, 4_000)
    }

    fn ask_within(&mut self, name: &str, ask: Ask, batch_bytes: usize) -> Vec<String> {
        let asker = Asker {
            link: LINK,
            host: "h".into(),
            request: name.into(),
            name: name.into(),
            user: BOB.into(),
            jid: "bob@h/phone".into(),
            id: "q".into(),
        };
        self.give(Input::Retrieve(Retrieve { asker, ask, batch_bytes }))
    }

    fn listed(&mut self, found: &[u32]) -> Vec<String> {
        self.found(found.iter().map(|id| row(*id)).collect())
    }

    fn found(&mut self, rows: Vec<StoredMessage>) -> Vec<String> {
        let header = |row: StoredMessage| {
            let expires_at = row.expiry.map(|expiry| expiry.at);
            Header { id: row.id, sender: row.sender, expires_at }
        };
        self.looked(Ok(Found::Headers(rows.into_iter().map(header).collect())))
    }

    fn showed(&mut self, found: &[u32]) -> Vec<String> {
        self.looked(Ok(Found::Messages(found.iter().map(|id| row(*id)).collect())))
    }

    pub(super) fn looked(&mut self, found: Result<Found, StoreError>) -> Vec<String> {
        self.give(Input::Looked { user: BOB.into(), found })
    }

    /// A batch that was shown is acknowledged.
    fn seen(&mut self, name: &str, batch: u64) -> Vec<String> {
        self.taken(name, batch, &[], false)
    }

    fn is_idle(&self) -> bool {
        self.machine.recipients.is_empty() && self.machine.busy() == 0
    }
}

#[test]
fn f2_count_reads_all_pages_up_to_what_was_there_when_it_was_asked() {
    let mut h = History::with_ids(3);
    assert_eq!(h.ask("r1", Ask::Count), ["list 1000 after 0"]);
    assert_eq!(h.listed(&[1, 2]), ["list 1000 after 2"]);
    h.held(|i| i.key = "later".into());
    h.outcome(4, Outcome::Stored);
    assert_eq!(h.listed(&[3, 4]), ["1: r1: 3 messages"]);
    assert!(h.is_idle());
}

#[test]
fn f2_f4_none_is_zero_and_an_empty_list() {
    let mut h = History::new();
    h.ask("r1", Ask::Count);
    assert_eq!(h.listed(&[]), ["1: r1: 0 messages"]);
    h.ask("r2", Ask::List);
    assert_eq!(h.listed(&[]), ["1: r2: "]);
    for (name, ask) in [("r3", Ask::Fetch), ("r4", Ask::Purge)] {
        h.ask(name, ask.clone());
        let found = match ask {
            Ask::Fetch => h.showed(&[]),
            _ => h.listed(&[]),
        };
        assert_eq!(found, [format!("1: {name}: done")]);
    }
    assert!(h.is_idle());
}

#[test]
fn f4_the_list_is_in_order_with_its_senders() {
    let mut h = History::with_ids(2);
    h.ask("r1", Ask::List);
    assert_eq!(h.listed(&[1, 2]), ["1: r1: 1 alice@h/a, 2 alice@h/a"]);
}

#[test]
fn f4_a_list_that_no_stanza_holds_is_refused() {
    let mut h = History::with_ids(60);
    let all: Vec<u32> = (1..=60).collect();
    h.ask_within("r1", Ask::List, 4_000);
    assert_eq!(h.listed(&all[..40]), ["list 1000 after 40"]);
    let long = |id: u32| StoredMessage { sender: "a@h/".to_owned() + &"'".repeat(900), ..row(id) };
    assert_eq!(h.found(vec![long(41)]), ["1: r1: policy-violation"]);
    h.ask_within("r2", Ask::List, 8_000);
    assert_eq!(h.listed(&all[..40]), ["list 1000 after 40"]);
    assert!(h.found(vec![long(41), row(60)])[0].ends_with("60 alice@h/a"));
}

#[test]
fn r67_what_has_expired_is_not_shown_nor_removed() {
    let drop = rule("drop", "expire-at", "2026-01-01T00:00:00Z");
    let rows = || vec![row(1), expiring(2, 10, &drop), expiring(3, 11, &drop)];
    let mut h = History::with_ids(3);
    h.at(10);
    h.ask("r1", Ask::List);
    assert_eq!(h.found(rows()), ["1: r1: 1 alice@h/a, 3 alice@h/a"]);
    h.ask("r2", Ask::View(ids(&[2])));
    assert_eq!(h.found(vec![expiring(2, 10, &drop)]), ["1: r2: item-not-found"]);
    h.ask("r3", Ask::Fetch);
    let messages = Found::Messages(rows());
    assert_eq!(h.looked(Ok(messages)), ["1: view 1 to r3: 1 3", "1: r3: done"]);
    h.ask("r4", Ask::Purge);
    assert_eq!(h.found(rows()), ["#4 delete 1 3"]);
}

#[test]
fn f2_what_another_session_has_is_shown_until_it_is_being_deleted() {
    let mut h = History::with_ids(3);
    h.available("s1", 1);
    h.page(&[1, 2, 3]);
    h.ask("r1", Ask::Count);
    assert_eq!(h.listed(&[1, 2, 3]), ["1: r1: 3 messages"]);
    h.ask("r2", Ask::Count);
    h.taken("s1", 1, &[1, 2], false);
    assert_eq!(h.listed(&[1, 2, 3]), ["1: r2: 1 messages"]);
    // The store was asked before the rows went.
    h.ask("r3", Ask::Count);
    h.outcome(4, Outcome::Done { rows: 2 });
    assert_eq!(h.listed(&[1, 2, 3]), ["1: r3: 1 messages"]);
    h.ask("r4", Ask::List);
    assert_eq!(h.listed(&[3]), ["1: r4: 3 alice@h/a"]);
}

#[test]
fn f6_f7_view_looks_first_whether_all_are_there_and_deletes_nothing() {
    let mut h = History::with_ids(9);
    let asked = Ask::View(ids(&[7, 2, 2]));
    assert_eq!(h.ask("r1", asked.clone()), ["list 2 after 1"]);
    assert_eq!(h.listed(&[2, 3]), ["list 1 after 6"]);
    assert_eq!(h.listed(&[7]), ["show 2 after 1"]);
    assert_eq!(h.showed(&[2, 3]), ["1: view 1 to r1: 2", "show 1 after 6"]);
    assert_eq!(h.showed(&[7]), ["1: view 2 to r1: 7", "1: r1: done"]);
    assert_eq!(h.seen("r1", 1), ["1: deleted r1 1"]);
    assert_eq!(h.seen("r1", 2), ["1: deleted r1 2"]);
    assert!(h.is_idle());
}

#[test]
fn f5_a_name_of_nothing_is_not_found_and_the_others_are_not_touched() {
    for ask in [Ask::View, Ask::Remove] {
        let mut h = History::with_ids(9);
        assert_eq!(h.ask("r1", ask(ids(&[2, 5]))), ["list 2 after 1"]);
        assert_eq!(h.listed(&[2, 6]), ["1: r1: item-not-found"]);
        h.ask("r2", ask(ids(&[2, 5])));
        assert_eq!(h.listed(&[2]), ["list 1 after 4"]);
        assert_eq!(h.listed(&[]), ["1: r2: item-not-found"]);
        // An id that nobody has been given yet, and one of an epoch to come.
        h.ask("r3", ask(vec![MessageId::new(1, 10)]));
        assert_eq!(h.listed(&[10]), ["1: r3: item-not-found"]);
        h.ask("r4", ask(vec![MessageId::ZERO]));
        assert_eq!(h.listed(&[1]), ["1: r4: item-not-found"]);
        assert!(h.is_idle());
    }
}

#[test]
fn f6_one_that_goes_between_the_look_and_the_showing_is_not_found() {
    let mut h = History::with_ids(3);
    h.ask("r1", Ask::View(ids(&[1, 2])));
    h.listed(&[1, 2]);
    assert_eq!(h.showed(&[2]), ["1: view 1 to r1: 2", "1: r1: item-not-found"]);
}

#[test]
fn f7_the_result_of_a_removal_waits_for_the_commit() {
    let mut h = History::with_ids(3);
    h.ask("r1", Ask::Remove(ids(&[3, 1])));
    assert_eq!(h.listed(&[1, 2]), ["list 1 after 2"]);
    assert_eq!(h.listed(&[3]), ["#4 delete 1 3"]);
    // Meanwhile nobody is handed or shown what goes.
    h.available("s1", 1);
    assert_eq!(h.page(&[1, 2, 3]), ["1: batch 1 to s1: 2", "read bob@h after 3"]);
    assert_eq!(h.outcome(4, Outcome::Done { rows: 2 }), ["1: r1: done"]);
}

#[test]
fn i1_a_removal_that_fails_is_not_done() {
    let mut h = History::with_ids(1);
    h.ask("r1", Ask::Remove(ids(&[1])));
    h.listed(&[1]);
    assert_eq!(h.outcome(2, Outcome::Retry), ["1: r1: internal-server-error"]);
}

#[test]
fn f7_what_is_removed_under_a_session_is_not_handed_to_the_next() {
    let mut h = History::with_ids(2);
    h.available("s1", 1);
    h.page(&[1, 2]);
    h.ask("r1", Ask::Remove(ids(&[1])));
    h.listed(&[1]);
    assert!(h.taken("s1", 1, &[], true).contains(&"1: deleted s1 1".to_owned()));
    h.available("s2", 1);
    assert_eq!(h.page(&[]), ["read bob@h after 0"], "the page for the other one");
    assert_eq!(h.page(&[1, 2])[0], "1: batch 2 to s2: 2");
    assert_eq!(h.outcome(3, Outcome::Done { rows: 1 }), ["1: r1: done"]);
}

#[test]
fn f8_fetch_goes_on_as_batches_are_taken_and_the_result_comes_last() {
    let mut h = History::with_ids(5);
    assert_eq!(h.ask("r1", Ask::Fetch), ["show 50 after 0"]);
    assert_eq!(h.showed(&[1, 2]), ["1: view 1 to r1: 1 2", "show 50 after 2"]);
    assert_eq!(h.showed(&[3]), ["1: view 2 to r1: 3"]);
    assert_eq!(h.seen("r1", 1), ["1: deleted r1 1", "show 50 after 3"]);
    assert_eq!(h.showed(&[4, 5]), ["1: view 3 to r1: 4 5", "1: r1: done"]);
    assert_eq!(h.seen("r1", 2), ["1: deleted r1 2"]);
    assert_eq!(h.seen("r1", 3), ["1: deleted r1 3"]);
    assert!(h.is_idle());
}

#[test]
fn f7_confirmations_of_what_was_shown_delete_nothing() {
    let mut h = History::with_ids(1);
    h.ask("r1", Ask::Fetch);
    h.showed(&[1]);
    for ended in [false, true] {
        let effects = h.taken("r1", 1, &[], ended);
        assert_eq!(effects, ["1: deleted r1 1"]);
    }
    assert!(h.is_idle());
}

#[test]
fn f8_later_messages_are_neither_fetched_nor_purged() {
    let mut h = History::with_ids(2);
    h.ask("r1", Ask::Fetch);
    h.ask("r2", Ask::Purge);
    h.held(|i| i.key = "later".into());
    h.outcome(3, Outcome::Stored);
    let effects = h.showed(&[1, 2, 3]);
    assert_eq!(effects, ["1: view 1 to r1: 1 2", "1: r1: done", "list 500 after 0"]);
    assert_eq!(h.listed(&[1, 2, 3]), ["#4 delete 1 2"]);
    assert_eq!(h.outcome(4, Outcome::Done { rows: 2 }), ["1: r2: done"]);
}

#[test]
fn f8_purge_deletes_page_by_page_and_answers_when_all_are_gone() {
    let mut h = History::with_ids(4);
    h.ask("r1", Ask::Purge);
    assert_eq!(h.listed(&[1, 2]), ["#5 delete 1 2"]);
    assert_eq!(h.outcome(5, Outcome::Done { rows: 2 }), ["list 500 after 2"]);
    assert_eq!(h.listed(&[3]), ["#6 delete 3"]);
    assert_eq!(h.outcome(6, Outcome::Done { rows: 1 }), ["list 500 after 3"]);
    assert_eq!(h.listed(&[]), ["1: r1: done"]);
    assert!(h.is_idle());
}

#[test]
fn f8_two_purges_answer_when_what_the_other_deletes_is_gone_too() {
    let mut h = History::with_ids(2);
    h.ask("r1", Ask::Purge);
    assert_eq!(h.listed(&[1, 2]), ["#3 delete 1 2"]);
    assert_eq!(h.ask("r2", Ask::Purge), ["list 500 after 0"]);
    assert_eq!(h.listed(&[1, 2]), ["#4 delete 1 2"]);
    assert_eq!(h.outcome(3, Outcome::Done { rows: 2 }), ["1: r1: done"]);
    assert_eq!(h.outcome(4, Outcome::Done { rows: 0 }), ["1: r2: done"]);
    assert!(h.is_idle());
}

#[test]
fn f8_a_failed_purge_says_so() {
    let mut h = History::with_ids(2);
    h.ask("r1", Ask::Purge);
    h.listed(&[1, 2]);
    assert_eq!(h.outcome(3, Outcome::Retry), ["1: r1: internal-server-error"]);
    assert_eq!(h.ask("r2", Ask::Purge), ["list 500 after 0"]);
    assert_eq!(h.listed(&[1, 2]), ["#4 delete 1 2"], "what could not be deleted is tried again");
}

#[test]
fn a_store_that_cannot_be_read_is_an_error_and_not_an_empty_list() {
    for ask in [Ask::Count, Ask::List, Ask::Fetch, Ask::Purge, Ask::View(ids(&[1]))] {
        let mut h = History::with_ids(1);
        h.ask("r1", ask);
        assert_eq!(h.looked(Err(StoreError::Closed)), ["1: r1: internal-server-error"]);
        assert!(h.is_idle());
    }
}

#[test]
fn one_that_waits_for_its_client_does_not_hold_up_another_session() {
    let mut h = History::with_ids(5);
    h.ask("slow", Ask::Fetch);
    h.showed(&[1]);
    assert_eq!(h.ask("quick", Ask::Count), [] as [&str; 0], "the store is being asked");
    assert_eq!(h.showed(&[2]), ["1: view 2 to slow: 2", "list 1000 after 0"]);
    assert_eq!(h.listed(&[1, 2, 3, 4, 5]), ["1: quick: 5 messages"]);
    assert_eq!(h.seen("slow", 1), ["1: deleted slow 1", "show 50 after 2"]);
}

#[test]
fn i6_requests_of_a_user_are_bounded() {
    let mut h = History::with_ids(1);
    for n in 0..8 {
        let effects = h.ask(&format!("r{n}"), Ask::Count);
        assert_eq!(effects.len(), usize::from(n == 0));
    }
    assert_eq!(h.ask("r8", Ask::Count), ["1: r8: resource-constraint"]);
    for n in 0..7 {
        let expected = [format!("1: r{n}: 1 messages"), "list 1000 after 0".to_owned()];
        assert_eq!(h.listed(&[1]), expected);
    }
    assert_eq!(h.listed(&[1]), ["1: r7: 1 messages"]);
    assert!(h.is_idle());
}

#[test]
fn a_session_that_ends_gives_its_requests_up() {
    let mut h = History::with_ids(3);
    h.ask("r1", Ask::Fetch);
    h.showed(&[1]);
    h.ask("r2", Ask::Count);
    assert_eq!(h.taken("r1", 1, &[], true), ["1: deleted r1 1"]);
    // What the store shows for it is not for the next one.
    assert_eq!(h.showed(&[2]), ["list 1000 after 0"]);
    assert_eq!(h.listed(&[1, 2, 3]), ["1: r2: 3 messages"]);
    assert!(h.is_idle());
}

#[test]
fn a_link_that_is_gone_takes_its_requests_with_it() {
    for down in [Input::LinkDown(LINK), Input::HostDown { link: LINK, host: "h".into() }] {
        let mut h = History::with_ids(2);
        h.ask("r1", Ask::Fetch);
        h.showed(&[1]);
        assert_eq!(h.give(down), [] as [&str; 0]);
        assert_eq!(h.showed(&[2]), [] as [&str; 0]);
        assert!(h.is_idle());
    }
    let mut h = History::with_ids(1);
    h.ask("r1", Ask::Purge);
    h.listed(&[1]);
    h.give(Input::LinkDown(LINK));
    assert_eq!(h.outcome(2, Outcome::Done { rows: 1 }), [] as [&str; 0]);
    assert!(h.is_idle());
}

#[test]
fn views_and_hand_overs_of_the_same_rows_do_not_mix() {
    let mut h = History::with_ids(2);
    h.ask("r1", Ask::Fetch);
    assert_eq!(h.showed(&[1, 2]), ["1: view 1 to r1: 1 2", "1: r1: done"]);
    h.available("s1", 1);
    assert_eq!(h.page(&[1, 2])[0], "1: batch 2 to s1: 1 2");
    assert_eq!(h.seen("r1", 1), ["1: deleted r1 1"]);
    assert_eq!(h.taken("s1", 2, &[1, 2], false), ["#3 delete 1 2"]);
    assert_eq!(h.outcome(3, Outcome::Done { rows: 2 }), ["1: deleted s1 2"]);
}

#[test]
fn o2_what_is_removed_counts_no_more_for_the_quota() {
    let mut h = History::with_quota(1);
    let held = |h: &mut History, key: &str| h.held(|i| i.key = key.into());
    assert_eq!(held(&mut h, "k1"), ["usage bob@h 1"]);
    assert_eq!(h.used(1, 0), ["#1 append 1 k1"]);
    h.outcome(1, Outcome::Stored);
    assert_eq!(held(&mut h, "k2")[0], "over quota, error");
    h.ask("r1", Ask::Remove(ids(&[1])));
    assert_eq!(h.listed(&[1]), ["#2 delete 1"]);
    assert_eq!(h.outcome(2, Outcome::Done { rows: 1 }), ["1: r1: done"]);
    assert_eq!(held(&mut h, "k3"), ["usage bob@h 2"]);
    assert_eq!(h.used(2, 0), ["#3 append 2 k3"]);
}

#[test]
fn a_message_that_no_stanza_holds_is_reported_and_left_out() {
    let mut h = History::with_ids(2);
    h.ask_within("r1", Ask::Fetch, 1_500);
    let large = StoredMessage { stanza: vec![b' '; 1_000].into(), ..row(1) };
    let effects = h.looked(Ok(Found::Messages(vec![large, row(2)])));
    assert_eq!(effects, ["oversized 1: 1000", "1: view 1 to r1: 2", "1: r1: done"]);
}
