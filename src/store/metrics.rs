//! What the store counts.

use std::time::Duration;

use metrics::{Counter, counter, gauge, histogram};

use super::job::Outcome;

/// Counters of what happens with every write, looked up once.
pub(super) struct Outcomes {
    appends: Counter,
    already: Counter,
    retries: Counter,
    refused: Counter,
}

impl Outcomes {
    pub(super) fn new() -> Self {
        Outcomes {
            appends: counter!("amphora_store_appends_total"),
            already: counter!("amphora_store_already_total"),
            retries: counter!("amphora_store_retries_total"),
            refused: counter!("amphora_store_refused_total"),
        }
    }

    /// A write was answered.
    pub(super) fn count(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Stored => self.appends.increment(1),
            Outcome::Already { .. } => self.already.increment(1),
            Outcome::Retry | Outcome::NotMine => self.retries.increment(1),
            Outcome::Refused(_) => self.refused.increment(1),
            Outcome::Done { .. } => {}
        }
    }
}

/// Messages were deleted.
pub(super) fn deleted(rows: u64) {
    counter!("amphora_store_deletes_total").increment(rows);
}

/// A row could not be read, and was left out.
pub(super) fn unreadable() {
    counter!("amphora_store_unreadable_total").increment(1);
}

/// A transaction was committed.
pub(super) fn committed(writes: usize, took: Duration) {
    histogram!("amphora_store_transaction_rows").record(u32::try_from(writes).unwrap_or(u32::MAX));
    histogram!("amphora_store_commit_seconds").record(took);
}

/// Appends that wait for their answer.
pub(super) fn waiting(appends: usize) {
    gauge!("amphora_store_waiting_appends").set(u32::try_from(appends).unwrap_or(u32::MAX));
}

/// Whether writes succeed.
pub(super) fn healthy(healthy: bool) {
    gauge!("amphora_store_healthy").set(if healthy { 1.0 } else { 0.0 });
}
