//! One job that several stores carry out, answered once.

use std::sync::{Arc, Mutex, PoisonError};

use super::job::{Done, Outcome};

/// The outcomes of a job as they come in from those who carry out its pieces.
struct Joint {
    outcomes: Vec<Option<Outcome>>,
    missing: usize,
    done: Option<Done>,
}

/// Divides what a job consists of: writes with the same mark go into one piece, in their order.
/// `done` of the job is called when the last piece is answered.
pub(super) fn divide<W, M: PartialEq>(
    writes: Vec<W>,
    done: Done,
    mark: impl Fn(&W) -> M,
) -> impl Iterator<Item = (M, Vec<W>, Done)> {
    let joint = Joint {
        outcomes: writes.iter().map(|_| None).collect(),
        missing: writes.len(),
        done: Some(done),
    };
    let joint = Arc::new(Mutex::new(joint));
    let mut pieces: Vec<(M, Vec<usize>, Vec<W>)> = Vec::new();
    for (place, write) in writes.into_iter().enumerate() {
        let mark = mark(&write);
        match pieces.iter_mut().find(|piece| piece.0 == mark) {
            Some((_, places, writes)) => {
                places.push(place);
                writes.push(write);
            }
            None => pieces.push((mark, vec![place], vec![write])),
        }
    }
    pieces.into_iter().map(move |(mark, places, writes)| {
        let joint = joint.clone();
        let done: Done = Box::new(move |outcomes| answer(&joint, &places, outcomes));
        (mark, writes, done)
    })
}

fn answer(joint: &Mutex<Joint>, places: &[usize], outcomes: Vec<Outcome>) {
    let mut joint = joint.lock().unwrap_or_else(PoisonError::into_inner);
    for (place, outcome) in places.iter().zip(outcomes) {
        if joint.outcomes[*place].replace(outcome).is_none() {
            joint.missing -= 1;
        }
    }
    let done = match joint.missing {
        0 => joint.done.take(),
        _ => None,
    };
    let outcomes = std::mem::take(&mut joint.outcomes);
    match done {
        Some(done) => {
            // Whoever is told may hand over the next job.
            drop(joint);
            done(outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Retry)).collect());
        }
        None => joint.outcomes = outcomes,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn is(n: u64) -> Outcome {
        Outcome::Done { rows: n }
    }

    #[test]
    fn outcomes_come_back_in_the_order_of_the_writes() {
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |outcomes| tell.send(outcomes).expect("listens"));
        let writes = vec!["a1", "b2", "a3", "c4", "b5"];
        let kind = |write: &&'static str| write[..1].to_owned();
        let pieces: Vec<(String, Vec<&str>, Done)> = divide(writes, done, kind).collect();
        let kinds: Vec<(&str, usize)> =
            pieces.iter().map(|(mark, writes, _)| (mark.as_str(), writes.len())).collect();
        assert_eq!(kinds, [("a", 2), ("b", 2), ("c", 1)]);
        // Answered in another order than they were given.
        for (_, writes, done) in pieces.into_iter().rev() {
            assert!(told.try_recv().is_err());
            let number = |write: &&str| is(write[1..].parse().expect("a number"));
            done(writes.iter().map(number).collect());
        }
        assert_eq!(told.try_recv(), Ok((1..=5).map(is).collect()));
    }
}
