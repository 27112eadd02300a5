//! The store in SQLite.

use std::sync::Arc;

use amphora::store::{SeaStore, Store, StoreSettings};

use crate::bed::*;

fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = TestClock::new();
    let mut settings = StoreSettings::new(format!("sqlite://{}/amphora.db", dir.path().display()));
    let hands = clock.clone();
    settings.clock = Arc::new(move || hands.now());
    Bed {
        settings,
        clock,
        open: |settings| {
            Box::pin(async { Ok(Arc::new(SeaStore::open(settings).await?) as Arc<dyn Store>) })
        },
        _keep: Box::new(dir),
    }
}

crate::conformance!(bed);
