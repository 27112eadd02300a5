//! What a store is opened with.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::layout::Layout;
use crate::time::Timestamp;

/// Tells the wall time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How a store is opened.
#[derive(Clone)]
pub struct StoreSettings {
    /// Which database: `sqlite://path?mode=rwc`, or `sqlite:path` for the same. A file that is
    /// missing is made (not with `mode=rw`), its directory is not. Or the database of a server,
    /// which must be there: `postgres://user:password@host:port/database`, `mysql://` or
    /// `mariadb://` likewise, with `sslmode` and more; also behind `jdbc:`.
    pub url: String,
    /// The password for a server, over one in the URL. None: that one, if any.
    pub password: Option<String>,
    /// The name of the node, for a server: a process of the same name supersedes this one, one
    /// of another name is refused while this one lives ("amphora").
    pub node: String,
    /// What metrics call it, where it is one of several. None: they need not tell it from others.
    pub part: Option<Arc<str>>,
    /// Which shards it is to hold. None: nobody asks, and nothing is said in the database.
    pub layout: Option<Layout>,
    /// By how many shards a server's database is divided (256). Another number than before divides
    /// it anew, unless another node has it.
    pub shards: u32,
    /// Several nodes share the database of a server. This one opens it with the shards of the
    /// process that it succeeds, if any, then takes and gives them. If not, one node has the
    /// database with all shards (false).
    pub shared: bool,
    /// How long an append may wait before it is answered `Retry` (5 s).
    pub append_limit: Duration,
    /// How long after an append its key is remembered though the row is gone (H, 10 min).
    /// Zero: not at all.
    pub memory_of_keys: Duration,
    /// Connections that read (2).
    pub readers: u32,
    /// The wall clock. Only the memory of keys looks at it; limits run by the monotonic clock.
    pub clock: Clock,
}

impl StoreSettings {
    /// The defaults, for the database at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        StoreSettings {
            url: url.into(),
            password: None,
            node: "amphora".to_owned(),
            part: None,
            layout: None,
            shards: 256,
            shared: false,
            append_limit: Duration::from_secs(5),
            memory_of_keys: Duration::from_secs(10 * 60),
            readers: 2,
            clock: Arc::new(system_clock),
        }
    }
}

fn system_clock() -> Timestamp {
    let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => micros(since),
        Err(before) => -micros(before.duration()),
    })
}

impl fmt::Debug for StoreSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("part", &self.part)
            .field("append_limit", &self.append_limit)
            .field("memory_of_keys", &self.memory_of_keys)
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}
