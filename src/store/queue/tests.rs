//! What is taken together, given up and put back.

use super::*;
use crate::stanza::MessageType;
use crate::store::Run;
use crate::time::Timestamp;

const LIMIT: Duration = Duration::from_secs(5);

fn append(recipient: &str, id: i64) -> Task {
    Task::Append(NewMessage {
        recipient: recipient.into(),
        id: MessageId(id),
        key: format!("{id}").into(),
        again: false,
        run: Run::new(),
        sender: String::new(),
        kind: MessageType::Chat,
        stored_at: Timestamp::from_micros(0),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: "<message/>".into(),
    })
}

fn delete(recipient: &str) -> Task {
    Task::Delete { recipient: recipient.into(), ids: vec![MessageId(1)] }
}

type Told = std::sync::mpsc::Receiver<(usize, Vec<Outcome>)>;

/// A queue of jobs that have waited for so long.
fn queue(jobs: Vec<(Vec<Task>, Duration)>) -> (Queue, Told) {
    let mut queue = Queue::new(Arc::new(Load::new(Metrics::of(None))), LIMIT);
    let (tell, told) = std::sync::mpsc::channel();
    for (job, (tasks, age)) in jobs.into_iter().enumerate() {
        let tell = tell.clone();
        let done = Box::new(move |outcomes| tell.send((job, outcomes)).expect("listens"));
        let since = Instant::now().checked_sub(age).expect("a time");
        queue.push(Submitted { tasks, done, admitted: true, since });
    }
    (queue, told)
}

fn places(batch: &[Waiting]) -> Vec<(&str, bool)> {
    batch.iter().map(|waiting| (waiting.task.recipient(), waiting.task.is_append())).collect()
}

#[tokio::test]
async fn a_late_append_takes_the_later_ones_of_its_recipient_along() {
    let (mut queue, told) = queue(vec![
        (vec![append("bob", 1)], LIMIT),
        (vec![append("eve", 2), append("bob", 3)], Duration::ZERO),
        (vec![delete("bob")], Duration::ZERO),
    ]);
    queue.give_up_late();
    assert_eq!(told.try_recv(), Ok((0, vec![Outcome::Retry])));
    assert!(told.try_recv().is_err());
    let batch = queue.take(false);
    assert_eq!(places(&batch), [("eve", true), ("bob", false)]);
    for waiting in batch {
        waiting.answer(Outcome::Stored);
    }
    assert_eq!(told.try_recv(), Ok((1, vec![Outcome::Stored, Outcome::Retry])));
    assert_eq!(told.try_recv(), Ok((2, vec![Outcome::Stored])));
    assert_eq!(queue.deadline, None);
}

#[tokio::test]
async fn batches_are_bounded_and_kinds_kept_apart_when_asked() {
    let many = (0..BATCH_ROWS as i64 + 1).map(|id| append("bob", id)).collect();
    let (mut queue, _told) = queue(vec![
        (many, Duration::ZERO),
        (vec![delete("bob"), append("eve", 1)], Duration::ZERO),
    ]);
    assert_eq!(queue.take(false).len(), BATCH_ROWS);
    let batch = queue.take(true);
    assert_eq!(places(&batch), [("bob", true)]);
    queue.put_back(batch);
    assert_eq!(places(&queue.take(false)), [("bob", true), ("bob", false), ("eve", true)]);
    assert!(queue.is_empty());
}

#[tokio::test]
async fn a_removal_takes_turns_with_what_waits_for_others() {
    let remove = || Task::from(Write::RemoveAccount { recipient: "bob".into() });
    let (mut queue, _told) = queue(vec![
        (vec![remove(), append("bob", 1), append("eve", 2)], Duration::ZERO),
        (vec![remove(), delete("eve")], Duration::ZERO),
    ]);
    let mut batch = queue.take(false);
    assert_eq!(places(&batch), [("bob", false)]);
    queue.go_on_removing(batch.remove(0));
    assert_eq!(places(&queue.take(false)), [("eve", true), ("eve", false)]);
    let batch = queue.take(false);
    assert_eq!(places(&batch), [("bob", false)]);
    // It failed.
    queue.put_back(batch);
    assert!(!queue.is_empty());
    assert_eq!(places(&queue.take(false)), [("bob", false)]);
    assert_eq!(places(&queue.take(false)), [("bob", true)]);
    assert_eq!(places(&queue.take(false)), [("bob", false)]);
    assert!(queue.is_empty());
}

#[tokio::test]
async fn what_nobody_decides_is_not_done() {
    let (queue, told) = queue(vec![(vec![append("bob", 1), delete("bob")], Duration::ZERO)]);
    drop(queue);
    assert_eq!(told.recv(), Ok((0, vec![Outcome::Retry, Outcome::Retry])));
}

#[tokio::test]
async fn a_removal_that_is_not_over_is_answered_at_the_end() {
    let remove = Task::from(Write::RemoveAccount { recipient: "bob".into() });
    let (mut queue, told) = queue(vec![(vec![remove, append("bob", 1)], Duration::ZERO)]);
    let mut batch = queue.take(false);
    queue.go_on_removing(batch.remove(0));
    queue.give_up_all();
    assert!(queue.is_empty());
    assert_eq!(told.try_recv(), Ok((0, vec![Outcome::Retry, Outcome::Retry])));
}
