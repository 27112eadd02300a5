//! Several databases as one store: SQLite, PostgreSQL and MariaDB in one node.

mod away;
mod moves;

use std::sync::Arc;
use std::time::Duration;

use amphora::store::{BroadcastStore, PartSettings, PartedStore, Store, StoreError, StoreSettings};
use tempfile::TempDir;

use crate::bed::*;
use crate::server::{Kind, ServerBed};

pub const SHARDS: u32 = 8;

/// Which shards each of the three has.
const HELD: [&str; 3] = ["0,4-5", "1-3", "6-7"];

/// The parts at these urls, apart by a blank.
pub fn parts(settings: &StoreSettings) -> Vec<PartSettings> {
    let urls = settings.url.split(' ').zip(HELD).zip(["a", "b", "c"]);
    let part = |((url, held), name): ((&str, &str), &str)| PartSettings {
        name: name.into(),
        shards: held.parse().expect("shards"),
        store: StoreSettings { url: url.to_owned(), ..settings.clone() },
    };
    urls.map(part).collect()
}

pub async fn open(settings: StoreSettings) -> Result<PartedStore, StoreError> {
    PartedStore::open(SHARDS, parts(&settings)).await
}

pub fn sqlite(dir: &TempDir, name: &str) -> String {
    format!("sqlite://{}/{name}.db", dir.path().display())
}

/// With a limit that no machine is too slow for.
pub fn settings(urls: &[&str]) -> StoreSettings {
    StoreSettings { append_limit: Duration::from_secs(600), ..StoreSettings::new(urls.join(" ")) }
}

async fn bed() -> Bed {
    let dir = tempfile::tempdir().expect("a directory");
    let (postgres, mariadb) =
        (ServerBed::new(Kind::Postgres).await, ServerBed::new(Kind::MariaDb).await);
    let (file, clock) = (sqlite(&dir, "a"), TestClock::new());
    let hands = clock.clone();
    let urls = [&*file, &postgres.bed.settings.url, &mariadb.bed.settings.url];
    let settings = StoreSettings { clock: Arc::new(move || hands.now()), ..settings(&urls) };
    let open = |settings| -> Opening {
        Box::pin(async { Ok(Arc::new(open(settings).await?) as Arc<dyn Store>) })
    };
    Bed { settings, clock, open, _keep: Box::new((dir, postgres, mariadb)) }
}

crate::conformance!(bed);

async fn both() -> crate::broadcast::Both {
    crate::broadcast::Both {
        bed: bed().await,
        open: |settings| {
            Box::pin(async {
                let store = Arc::new(open(settings).await.expect("opens"));
                (store.clone() as Arc<dyn BroadcastStore>, store as Arc<dyn Store>)
            })
        },
    }
}

crate::broadcasts!(both);
