//! What the benches share: an empty database, the limit, processes as the kernel sees them.

pub mod database;
pub mod limit;
#[allow(dead_code)]
pub mod nats;
pub mod process;
pub mod report;

use std::time::SystemTime;

use amphora::time::Timestamp;

/// The wall time.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    Timestamp::from_micros(since.as_micros() as i64)
}
