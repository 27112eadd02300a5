//! In which order the writes of a batch are carried out.

use std::collections::HashMap;

use super::queue::Task;

/// Writes of a batch, by their places in it, that many-row statements may carry out kind by
/// kind: appends, expiries, deletes, removals, marks, broadcasts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) appends: Vec<usize>,
    pub(super) expiries: Vec<usize>,
    pub(super) deletes: Vec<usize>,
    pub(super) removals: Vec<usize>,
    pub(super) marks: Vec<usize>,
    pub(super) broadcasts: Vec<usize>,
}

impl Round {
    fn kind(&mut self, kind: Kind) -> &mut Vec<usize> {
        match kind {
            Kind::Append => &mut self.appends,
            Kind::Expiry => &mut self.expiries,
            Kind::Delete => &mut self.deletes,
            Kind::Removal => &mut self.removals,
            Kind::Marks => &mut self.marks,
            Kind::Broadcast => &mut self.broadcasts,
        }
    }
}

/// The kinds of writes, in the order in which a round carries them out.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Append,
    Expiry,
    Delete,
    Removal,
    Marks,
    Broadcast,
}

impl Kind {
    fn of(task: &Task) -> Self {
        match task {
            Task::Append(_) => Kind::Append,
            Task::SetExpiry { .. } => Kind::Expiry,
            Task::Delete { .. } => Kind::Delete,
            Task::RemoveAccount { .. } => Kind::Removal,
            Task::PurgeMarks { .. } => Kind::Marks,
            Task::Broadcast(_) => Kind::Broadcast,
        }
    }
}

/// Splits a batch into rounds. A recipient's writes keep their order: one that would have to
/// come before an earlier one of its recipient begins a new round. Between recipients order
/// does not matter, a key belongs to one of them.
pub(super) fn rounds<'a>(tasks: impl Iterator<Item = &'a Task>) -> Vec<Round> {
    let mut rounds: Vec<Round> = Vec::new();
    let mut last: HashMap<&str, (usize, Kind)> = HashMap::new();
    for (place, task) in tasks.enumerate() {
        let kind = Kind::of(task);
        let at = match last.get(task.recipient()) {
            Some(&(round, before)) if kind < before => round + 1,
            Some(&(round, _)) => round,
            None => 0,
        };
        last.insert(task.recipient(), (at, kind));
        if rounds.len() == at {
            rounds.push(Round::default());
        }
        rounds[at].kind(kind).push(place);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Write;
    use crate::words::MessageId;

    fn delete(recipient: &str) -> Task {
        Task::Delete { recipient: recipient.into(), ids: vec![MessageId(1)] }
    }

    fn remove(recipient: &str) -> Task {
        Task::from(Write::RemoveAccount { recipient: recipient.into() })
    }

    #[test]
    fn a_recipients_order_is_kept_and_others_share_the_round() {
        let tasks = [delete("a"), remove("a"), delete("a"), delete("b"), delete("a"), remove("c")];
        let round = |deletes: &[usize], removals: &[usize]| Round {
            deletes: deletes.to_vec(),
            removals: removals.to_vec(),
            ..Round::default()
        };
        assert_eq!(rounds(tasks.iter()), [round(&[0, 3], &[1, 5]), round(&[2, 4], &[])]);
        assert_eq!(rounds([].iter()), []);
    }
}
