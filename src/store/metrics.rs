//! What a store counts.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, SharedString, counter, gauge, histogram};

use super::job::Outcome;

/// The metrics of one database, looked up once. Where there are several, each carries the
/// label `part`.
#[derive(Clone)]
pub(super) struct Metrics {
    appends: Counter,
    already: Counter,
    retries: Counter,
    refused: Counter,
    deletes: Counter,
    rows: Histogram,
    seconds: Histogram,
    waiting: Gauge,
    healthy: Gauge,
}

impl Metrics {
    /// None: there is only one.
    pub(super) fn of(part: Option<&Arc<str>>) -> Self {
        let labels: Vec<(&str, SharedString)> =
            part.iter().map(|part| ("part", SharedString::from_shared(Arc::clone(part)))).collect();
        Metrics {
            appends: counter!("amphora_store_appends_total", &labels),
            already: counter!("amphora_store_already_total", &labels),
            retries: counter!("amphora_store_retries_total", &labels),
            refused: counter!("amphora_store_refused_total", &labels),
            deletes: counter!("amphora_store_deletes_total", &labels),
            rows: histogram!("amphora_store_transaction_rows", &labels),
            seconds: histogram!("amphora_store_commit_seconds", &labels),
            waiting: gauge!("amphora_store_waiting_appends", &labels),
            healthy: gauge!("amphora_store_healthy", &labels),
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

    /// Messages were deleted.
    pub(super) fn deleted(&self, rows: u64) {
        self.deletes.increment(rows);
    }

    /// A transaction was committed.
    pub(super) fn committed(&self, writes: usize, took: Duration) {
        self.rows.record(u32::try_from(writes).unwrap_or(u32::MAX));
        self.seconds.record(took);
    }

    /// Appends that wait for their answer.
    pub(super) fn waiting(&self, appends: usize) {
        self.waiting.set(u32::try_from(appends).unwrap_or(u32::MAX));
    }

    /// Whether writes succeed.
    pub(super) fn healthy(&self, healthy: bool) {
        self.healthy.set(if healthy { 1.0 } else { 0.0 });
    }
}

/// A row could not be read, and was left out.
pub(super) fn unreadable() {
    counter!("amphora_store_unreadable_total").increment(1);
}
