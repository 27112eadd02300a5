//! What all committers of a store, and the store itself, know of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::metrics::Metrics;
use super::queue::Load;

/// What all parts of a store see.
pub(super) struct Shared {
    pub(super) load: Arc<Load>,
    /// Of each committer, whether it can write. The metric is set under the lock: two that recover
    /// at once must not leave it behind.
    healthy: Mutex<Vec<bool>>,
    /// Another process has taken the database over.
    fenced: watch::Sender<bool>,
}

impl Shared {
    pub(super) fn new(metrics: Metrics, committers: usize) -> Self {
        let (healthy, fenced) = (Mutex::new(vec![false; committers]), watch::channel(false).0);
        Shared { load: Arc::new(Load::new(metrics)), healthy, fenced }
    }

    fn health(&self) -> MutexGuard<'_, Vec<bool>> {
        self.healthy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all that is written can be.
    pub(super) fn is_healthy(&self) -> bool {
        self.health().iter().all(|healthy| *healthy)
    }

    /// Whether this committer can write.
    pub(super) fn can_write(&self, committer: usize) -> bool {
        self.health()[committer]
    }

    pub(super) fn set_healthy(&self, committer: usize, healthy: bool) {
        let mut health = self.health();
        health[committer] = healthy;
        self.load.metrics.healthy(health.iter().all(|healthy| *healthy));
    }

    pub(super) fn is_fenced(&self) -> bool {
        *self.fenced.borrow()
    }

    /// Whether that was new.
    pub(super) fn fence(&self) -> bool {
        !self.fenced.send_replace(true)
    }

    pub(super) async fn until_fenced(&self) {
        // The sender is here.
        let _ = self.fenced.subscribe().wait_for(|fenced| *fenced).await;
    }
}

/// Marks a committer as unhealthy when it ends, also by a panic: nobody is told that all is well.
pub(super) struct Unhealthy(pub(super) Arc<Shared>, pub(super) usize);

impl Drop for Unhealthy {
    fn drop(&mut self) {
        self.0.set_healthy(self.1, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_healthy_when_all_its_committers_are() {
        let shared = Arc::new(Shared::new(Metrics::of(None), 2));
        assert!(!shared.is_healthy());
        shared.set_healthy(0, true);
        assert!(!shared.is_healthy() && shared.can_write(0) && !shared.can_write(1));
        shared.set_healthy(1, true);
        assert!(shared.is_healthy());
        drop(Unhealthy(shared.clone(), 0));
        assert!(!shared.is_healthy() && shared.can_write(1));
    }
}
