//! A shard that goes to another node: what is left to do for the links of this one.

use super::*;

/// What is left: inputs, then names of those who are answered.
fn left(h: &mut History) -> (Vec<String>, Vec<String>) {
    let left = h.machine.leave();
    let input = |(_, input): &(_, Input)| match input {
        Input::Intercept(i) => format!("{}{}", i.key, if i.again { " again" } else { "" }),
        Input::Available(a) => format!("available {} {}", a.session, a.n),
        Input::Retrieve(r) => format!("{} {:?}", r.asker.name, r.ask),
        other => format!("{other:?}"),
    };
    let answers = left.answers.iter().map(retrieve::show_answer).collect();
    (left.inputs.iter().map(input).collect(), answers)
}

#[test]
fn intercepts_that_wait_and_sessions_that_are_not_served_go_on() {
    let mut h = History::new();
    h.held(|i| {
        i.again = true;
        i.sessions = vec![phone(1)];
    });
    h.held(|i| i.key = "k2".into());
    h.available("s1", 3);
    assert_eq!(left(&mut h).0, ["k1 again", "k2 again", "available s1 3"]);
    assert_eq!(left(&mut h).0, [""; 0], "they are forgotten here");
    assert_eq!(h.page(&[1]), [""; 0], "what is still read for them is of no use");
}

#[test]
fn i1_writes_that_are_under_way_are_answered_all_the_same() {
    let mut h = History::new();
    h.held(|_| {});
    assert_eq!(left(&mut h).0, [""; 0]);
    assert_eq!(h.outcome(1, Outcome::Stored), ["1: k1 offline stored"]);
    let mut h = History::new();
    h.held(|_| {});
    left(&mut h);
    assert_eq!(h.outcome(1, Outcome::NotMine), ["1: k1 offline retry"]);
}

#[test]
fn a_session_that_has_got_all_only_confirms_and_any_node_takes_that() {
    let mut h = History::new();
    h.available("s1", 1);
    h.page(&[1]);
    h.page(&[]);
    assert_eq!(left(&mut h).0, [""; 0]);
}

#[test]
fn f8_requests_go_on_unless_something_was_shown() {
    let mut h = History::with_ids(2);
    h.ask("counts", Ask::Count);
    h.ask("names", Ask::View(vec![MessageId::ZERO]));
    h.ask("fetches", Ask::Fetch);
    let all = ["counts Count", "names View([MessageId(0)])", "fetches Fetch"];
    assert_eq!(left(&mut h), (all.map(str::to_owned).into(), Vec::new()));
    let mut h = History::with_ids(2);
    h.ask("fetches", Ask::Fetch);
    h.looked(Ok(Found::Messages(vec![row(1)])));
    let (inputs, answers) = left(&mut h);
    assert_eq!(inputs, [""; 0]);
    assert_eq!(answers.len(), 1);
    assert!(answers[0].contains("service-unavailable"), "{answers:?}");
}

#[test]
fn what_other_nodes_have_asked_they_know_themselves() {
    let mut h = History::new();
    let link = LinkId::of_peer(7, 1);
    h.held(|i| (i.link, i.again, i.sessions) = (link, true, vec![phone(1)]));
    h.give(Input::Available(Available {
        link,
        host: "h".into(),
        session: "s1".into(),
        n: 1,
        user: BOB.into(),
        archive: None,
        batch_bytes: 4_000,
    }));
    assert_eq!(left(&mut h).0, [""; 0]);
}
