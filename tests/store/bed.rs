//! What the tests of every store stand on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use amphora::stanza::MessageType;
use amphora::store::{
    Detail, Job, NewMessage, Outcome, PageLimit, Run, Store, StoreError, StoreSettings,
    StoredMessage, Write,
};
use amphora::time::Timestamp;
use amphora::words::{Bare, MessageId};
use futures::future::BoxFuture;
use tokio::sync::oneshot;

/// More than any test has.
pub const ALL: PageLimit = PageLimit { rows: 100_000, bytes: 1 << 30 };

/// A store that is being opened.
pub type Opening = BoxFuture<'static, Result<Arc<dyn Store>, StoreError>>;

/// A database of its own, that can be opened again and again.
pub struct Bed {
    /// How to open it; tests change what they are about.
    pub settings: StoreSettings,
    /// The wall time that the store sees.
    pub clock: TestClock,
    /// Opens a store.
    pub open: fn(StoreSettings) -> Opening,
    /// What must live as long as the database.
    pub _keep: Box<dyn std::any::Any>,
}

impl Bed {
    pub async fn open(&self) -> Arc<dyn Store> {
        (self.open)(self.settings.clone()).await.expect("opens")
    }
}

/// A wall clock that stands still until it is moved.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub fn new() -> Self {
        TestClock(Arc::new(AtomicI64::new(1_763_787_600_000_000)))
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    pub fn pass(&self, time: Duration) {
        self.0.fetch_add(time.as_micros() as i64, Ordering::SeqCst);
    }
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

/// How many messages a recipient has.
pub async fn count(store: &dyn Store, recipient: Bare) -> u64 {
    store.usage(recipient, Detail::Messages).await.unwrap().all.messages
}

pub fn bare(name: &str) -> Bare {
    Bare::from(name)
}

/// A message for `recipient`, key and stanza made of its id.
pub fn message(recipient: &str, id: i64) -> NewMessage {
    NewMessage {
        recipient: recipient.into(),
        id: MessageId(id),
        key: format!("{recipient}-{id}").into(),
        again: false,
        run: Run::new(),
        sender: "alice@example.org/desk".into(),
        kind: MessageType::Chat,
        stored_at: at(1000 + id % (1 << 32)),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: format!("<message>{id}</message>").into(),
    }
}

pub fn append(recipient: &str, id: i64) -> Write {
    Write::Append(message(recipient, id))
}

/// An append whose key may have been sent before.
pub fn again(recipient: &str, id: i64, key: &str) -> Write {
    Write::Append(NewMessage { key: key.into(), again: true, ..message(recipient, id) })
}

pub fn delete(recipient: &str, ids: &[i64]) -> Write {
    Write::Delete { recipient: recipient.into(), ids: ids.iter().copied().map(MessageId).collect() }
}

pub fn remove(recipient: &str) -> Write {
    Write::RemoveAccount { recipient: recipient.into() }
}

pub fn done(rows: u64) -> Outcome {
    Outcome::Done { rows }
}

pub fn already() -> Outcome {
    Outcome::Already { met_rule: None }
}

/// Hands the writes over; the outcomes come later.
pub fn submit(store: &dyn Store, writes: Vec<Write>) -> oneshot::Receiver<Vec<Outcome>> {
    let (tell, told) = oneshot::channel();
    store.submit(Job {
        writes,
        done: Box::new(move |outcomes| {
            let _ = tell.send(outcomes);
        }),
    });
    told
}

/// Hands the writes over and waits.
pub async fn run(store: &dyn Store, writes: Vec<Write>) -> Vec<Outcome> {
    submit(store, writes).await.expect("a job is answered")
}

/// Appends until it is stored, however slow the machine is.
pub async fn stored(store: &dyn Store, recipient: &str, id: i64) {
    loop {
        match run(store, vec![append(recipient, id)]).await.remove(0) {
            Outcome::Retry => {}
            outcome => return assert_eq!(outcome, Outcome::Stored),
        }
    }
}

pub async fn page(store: &dyn Store, recipient: &str, after: i64) -> Vec<StoredMessage> {
    store.page(bare(recipient), MessageId(after), ALL).await.expect("reads")
}

pub async fn ids(store: &dyn Store, recipient: &str) -> Vec<i64> {
    page(store, recipient, 0).await.iter().map(|message| message.id.0).collect()
}

/// Waits until the condition holds, and fails if it does not for long.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
