//! Several databases as one store: each has the messages of some shards.
//!
//! A part that can't be reached concerns the recipients of its shards alone: their appends are
//! answered `Retry`, their reads fail, and all others go on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::broadcast::{Broadcast, BroadcastChange, BroadcastStore, Recipient};
use super::error::StoreError;
use super::job::{Job, NewMessage, Outcome, Write};
use super::joint::divide;
use super::message::{DueMessage, DuePosition, Header, PageLimit, Purged, StoredMessage};
use super::metrics::Metrics;
use super::sea::SeaStore;
use super::settings::StoreSettings;
use super::usage::{Detail, Usage};
use super::{Layout, Store, server};
use crate::shard_map::{ShardMap, ShardSet};
use crate::time::Timestamp;
use crate::words::{Bare, Key, MessageId, ShardId};

/// The pause before a part that was away is tried again, doubled each time up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How long a part may take to say what is due. The others do not wait longer for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often is looked whether a part that is being purged is still well.
const LOOK: Duration = Duration::from_secs(1);

/// A database and the shards that it has.
#[derive(Clone, Debug)]
pub struct PartSettings {
    /// What health and metrics call it.
    pub name: Arc<str>,
    /// Its shards.
    pub shards: ShardSet,
    /// How it is opened. Its `part` and `layout` are set here.
    pub store: StoreSettings,
}

/// How a part is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartState {
    /// It takes writes.
    Healthy,
    /// It does not.
    Unhealthy,
    /// It could not be opened yet, for this reason; it is tried again.
    Away(String),
}

/// Offline messages in several databases. Broadcasts are with shard 0.
pub struct PartedStore(Arc<Parts>);

impl fmt::Debug for PartedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.parts.iter().map(|part| &part.name)).finish()
    }
}

struct Parts {
    map: ShardMap,
    parts: Vec<Part>,
    /// The place of each shard's part among them.
    of: Vec<usize>,
    closed: watch::Sender<bool>,
    /// Another process has taken one of the databases over.
    superseded: watch::Sender<bool>,
}

struct Part {
    name: Arc<str>,
    shards: ShardSet,
    settings: StoreSettings,
    metrics: Metrics,
    store: OnceLock<Opened>,
    waiting: Mutex<Waiting>,
}

struct Opened {
    store: SeaStore,
    /// Ids of before it was open have no epoch.
    late: bool,
}

/// What a part that is away keeps.
#[derive(Default)]
struct Waiting {
    /// Writes other than appends, which are always taken. Bounded by what shards do for
    /// recipients of whom they could not read anything: removals of accounts, which the
    /// interceptors wait for.
    jobs: Vec<Job>,
    /// Why it is away.
    why: String,
    /// It will not be opened any more.
    over: bool,
}

/// A part that could not be opened, but may be later.
struct Away {
    place: usize,
    why: String,
}

impl PartedStore {
    /// Opens all parts. One that can't be reached is opened later, if another one can be now;
    /// anything else that is wrong with one is an error. The parts have each of the shards once.
    ///
    /// To be called within a runtime of tokio, which goes on as long as the store.
    ///
    /// # Errors
    ///
    /// As [`SeaStore::open`].
    pub async fn open(shards: u32, parts: Vec<PartSettings>) -> Result<PartedStore, StoreError> {
        let map = ShardMap::new(shards);
        let of = |shard| parts.iter().position(|part| part.shards.contains(ShardId(shard)));
        let of: Vec<usize> = (0..map.len()).map(|shard| of(shard).unwrap_or(0)).collect();
        let parts: Vec<Part> = parts.into_iter().map(|part| Part::new(part, map.len())).collect();
        let away = open_all(&parts).await?;
        let (closed, superseded) = (watch::channel(false).0, watch::channel(false).0);
        let parts = Arc::new(Parts { map, parts, of, closed, superseded });
        for place in 0..parts.parts.len() {
            match away.iter().find(|away| away.place == place) {
                None => parts.watch(place),
                Some(away) => {
                    parts.parts[place].is_away(&away.why);
                    tokio::spawn(open_later(Arc::downgrade(&parts), place));
                }
            }
        }
        Ok(PartedStore(parts))
    }

    /// The parts and how each is doing now. The function can be called at any time, and does not
    /// block.
    pub fn states(&self) -> Vec<(Arc<str>, impl Fn() -> PartState + Send + Sync + use<>)> {
        let state = |place: usize| {
            let parts = self.0.clone();
            move || parts.parts[place].state()
        };
        let parts = self.0.parts.iter().enumerate();
        parts.map(|(place, part)| (part.name.clone(), state(place))).collect()
    }

    /// Ends when another process has taken one of the databases over.
    pub fn superseded(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut superseded = self.0.superseded.subscribe();
        async move {
            if superseded.wait_for(|superseded| *superseded).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The name of each part, and its shards.
    pub(super) fn divisions(&self) -> impl Iterator<Item = (Arc<str>, ShardSet)> + '_ {
        self.0.parts.iter().map(|part| (part.name.clone(), part.shards.clone()))
    }

    /// A part that is open.
    pub(super) fn opened(&self, place: usize) -> Option<&SeaStore> {
        self.0.parts.get(place).and_then(|part| part.opened().ok())
    }

    fn part(&self, recipient: &str) -> &Part {
        self.0.part(self.0.map.shard(recipient))
    }

    /// The store of a recipient.
    fn store(&self, recipient: &str) -> Result<&SeaStore, StoreError> {
        self.part(recipient).opened()
    }

    /// Where broadcasts are.
    fn home(&self) -> Result<&SeaStore, StoreError> {
        self.0.part(ShardId(0)).opened()
    }
}

/// Opens what can be opened; gives back what may be opened later. An error: all are closed.
async fn open_all(parts: &[Part]) -> Result<Vec<Away>, StoreError> {
    let tried = join_all(parts.iter().map(|part| SeaStore::open(part.settings.clone()))).await;
    if tried.iter().all(|tried| matches!(tried, Err(StoreError::New { .. }))) {
        return begin_all(parts).await;
    }
    let mut away = Vec::new();
    let mut wrong = None;
    for (place, (part, tried)) in parts.iter().zip(tried).enumerate() {
        match tried {
            Ok(store) => drop(part.set(store, false)),
            Err(error) if error.is_away() => away.push((place, error)),
            // What is wrong with another tells more.
            Err(StoreError::New { url }) => wrong = wrong.or(Some(StoreError::New { url })),
            Err(error) => wrong = Some(error),
        }
    }
    // A node that has nothing to serve says so by its end.
    if away.len() == parts.len() {
        wrong = away.pop().map(|(_, error)| error);
    }
    match wrong {
        None => {
            Ok(away.into_iter().map(|(place, error)| Away { place, why: error.told() }).collect())
        }
        Some(error) => {
            close_all(parts).await;
            Err(error)
        }
    }
}

/// All are new. One after the other, so that two parts in one database are seen.
async fn begin_all(parts: &[Part]) -> Result<Vec<Away>, StoreError> {
    for part in parts {
        match SeaStore::open(part.settings_to_begin()).await {
            Ok(store) => drop(part.set(store, false)),
            Err(error) => {
                close_all(parts).await;
                return Err(error);
            }
        }
    }
    Ok(Vec::new())
}

async fn close_all(parts: &[Part]) {
    let opened = parts.iter().filter_map(|part| part.store.get());
    join_all(opened.map(|opened| opened.store.close())).await;
}

/// Tries until the part is open, or the store is closed or gone.
async fn open_later(parts: Weak<Parts>, place: usize) {
    let mut pause = FIRST_PAUSE;
    while let Some(settings) = parts.upgrade().and_then(|parts| parts.settings_of(place)) {
        let opened = SeaStore::open(settings).await;
        let left = match parts.upgrade() {
            Some(parts) => parts.take(place, opened),
            None => Left::Over(opened.ok()),
        };
        match left {
            Left::Again => sleep(pause).await,
            Left::Over(None) => return,
            Left::Over(Some(store)) => return store.close().await,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// What is left to do after a part was tried.
enum Left {
    Again,
    /// Nothing; but for this store, which nobody wants any more.
    Over(Option<SeaStore>),
}

impl Parts {
    fn part(&self, shard: ShardId) -> &Part {
        &self.parts[self.of.get(shard.0 as usize).copied().unwrap_or(0)]
    }

    /// The places of all parts that are open and well: another would hold up who asks.
    fn well(&self) -> impl Iterator<Item = usize> + '_ {
        let well = |part: &Part| part.store.get().is_some_and(|opened| opened.store.healthy());
        self.parts.iter().enumerate().filter(move |(_, part)| well(part)).map(|(place, _)| place)
    }

    /// How to open a part; none if the store is closed.
    fn settings_of(&self, place: usize) -> Option<StoreSettings> {
        (!*self.closed.borrow()).then(|| self.parts[place].settings.clone())
    }

    /// What came of opening a part later.
    fn take(self: &Arc<Self>, place: usize, opened: Result<SeaStore, StoreError>) -> Left {
        let part = &self.parts[place];
        match opened {
            Ok(store) => {
                let unwanted = part.set(store, true);
                if unwanted.is_none() {
                    tracing::info!(part = &*part.name, "the database of this part is open");
                    self.watch(place);
                }
                Left::Over(unwanted)
            }
            Err(error) => {
                part.is_away(&error.told());
                Left::Again
            }
        }
    }

    /// Tells when another process takes the database of the part over.
    fn watch(self: &Arc<Self>, place: usize) {
        let Some(opened) = self.parts[place].store.get() else { return };
        let (over, parts) = (opened.store.superseded(), Arc::downgrade(self));
        tokio::spawn(async move {
            over.await;
            if let Some(parts) = parts.upgrade() {
                parts.superseded.send_replace(true);
            }
        });
    }
}

impl Part {
    fn new(part: PartSettings, shards: u32) -> Self {
        let PartSettings { name, shards: held, store } = part;
        let layout = Some(Layout { shards, held: held.clone(), begin: false });
        let settings = StoreSettings { part: Some(name.clone()), shards, layout, ..store };
        let metrics = Metrics::of(Some(&name));
        let (store, waiting) = (OnceLock::new(), Mutex::default());
        Part { name, shards: held, settings, metrics, store, waiting }
    }

    fn settings_to_begin(&self) -> StoreSettings {
        let layout = self.settings.layout.clone().map(|layout| Layout { begin: true, ..layout });
        StoreSettings { layout, ..self.settings.clone() }
    }

    fn opened(&self) -> Result<&SeaStore, StoreError> {
        match self.store.get() {
            Some(opened) => Ok(&opened.store),
            None => Err(StoreError::Away(self.name.to_string())),
        }
    }

    /// Takes the store, and gives it what waits; gives it back if it is too late.
    fn set(&self, store: SeaStore, late: bool) -> Option<SeaStore> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.over {
            return Some(store);
        }
        // Only one opens it.
        let opened = self.store.get_or_init(|| Opened { store, late });
        for job in std::mem::take(&mut waiting.jobs) {
            opened.store.submit(job);
        }
        None
    }

    fn is_away(&self, why: &str) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.why != why {
            tracing::error!(
                part = &*self.name,
                "the database of this part can't be opened; trying again: {why}"
            );
            why.clone_into(&mut waiting.why);
            self.metrics.healthy(false);
        }
    }

    fn state(&self) -> PartState {
        match self.store.get() {
            Some(opened) if opened.store.healthy() => PartState::Healthy,
            Some(_) => PartState::Unhealthy,
            None => {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                PartState::Away(waiting.why.clone())
            }
        }
    }

    /// A job whose writes are all for this part.
    fn submit(&self, job: Job) {
        match self.store.get() {
            Some(Opened { store, late: false }) => store.submit(job),
            // A shard that gave an id before it knew the epoch gives another one now.
            Some(Opened { store, late: true }) => {
                self.submit_or_refuse(job, is_without_epoch, |job| {
                    store.submit(job);
                })
            }
            None => self.submit_or_refuse(job, |_| true, |job| self.keep(job)),
        }
    }

    /// Answers `Retry` to appends that are too early; the rest goes on.
    fn submit_or_refuse(&self, job: Job, early: impl Fn(&NewMessage) -> bool, go_on: impl Fn(Job)) {
        let is_early = |write: &Write| match write {
            Write::Append(message) => early(message) || message.run.is_given_up(),
            _ => false,
        };
        for (early, writes, done) in divide(job.writes, job.done, is_early) {
            let job = Job { writes, done };
            match early {
                true => self.refuse(job),
                false => go_on(job),
            }
        }
    }

    fn refuse(&self, job: Job) {
        for write in &job.writes {
            if let Write::Append(message) = write {
                message.run.give_up();
            }
            self.metrics.count(&Outcome::Retry);
        }
        (job.done)(vec![Outcome::Retry; job.writes.len()]);
    }

    fn keep(&self, job: Job) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been opened meanwhile.
        match self.store.get() {
            Some(opened) => opened.store.submit(job),
            None if waiting.over => {
                drop(waiting);
                self.refuse(job);
            }
            None => waiting.jobs.push(job),
        }
    }

    fn give_up(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.over = true;
        let jobs = std::mem::take(&mut waiting.jobs);
        drop(waiting);
        jobs.into_iter().for_each(|job| self.refuse(job));
    }
}

/// Epochs begin with 1.
fn is_without_epoch(message: &NewMessage) -> bool {
    message.id < MessageId::new(1, 0)
}

impl Store for PartedStore {
    fn submit(&self, job: Job) {
        let place = |write: &Write| self.0.of[self.0.map.shard(write.recipient()).0 as usize];
        let mut places = job.writes.iter().map(place);
        let Some(first) = places.next() else {
            return (job.done)(Vec::new());
        };
        // A shard hands over its own writes.
        if places.all(|place| place == first) {
            return self.0.parts[first].submit(job);
        }
        for (place, writes, done) in divide(job.writes, job.done, place) {
            let job = Job { writes, done };
            self.0.parts[place].submit(job);
        }
    }

    fn page(
        &self,
        recipient: Bare,
        after: MessageId,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<StoredMessage>, StoreError>> {
        match self.store(&recipient) {
            Ok(store) => store.page(recipient, after, limit),
            Err(away) => failed(away),
        }
    }

    fn headers(
        &self,
        recipient: Bare,
        after: MessageId,
        rows: usize,
    ) -> BoxFuture<'static, Result<Vec<Header>, StoreError>> {
        match self.store(&recipient) {
            Ok(store) => store.headers(recipient, after, rows),
            Err(away) => failed(away),
        }
    }

    fn usage(
        &self,
        recipient: Bare,
        detail: Detail,
    ) -> BoxFuture<'static, Result<Usage, StoreError>> {
        match self.store(&recipient) {
            Ok(store) => store.usage(recipient, detail),
            Err(away) => failed(away),
        }
    }

    /// What is due in the parts that are well. What is in another is found when it is asked for
    /// from the beginning again.
    fn due(
        &self,
        from: DuePosition,
        until: Timestamp,
        limit: PageLimit,
    ) -> BoxFuture<'static, Result<Vec<DueMessage>, StoreError>> {
        Box::pin(due(self.0.clone(), from, until, limit))
    }

    fn next_due(
        &self,
        from: DuePosition,
    ) -> BoxFuture<'static, Result<Option<Timestamp>, StoreError>> {
        let parts = self.0.clone();
        Box::pin(async move {
            let asked = parts.well().filter_map(|place| parts.parts[place].opened().ok());
            let asked = asked.map(|store| timeout(PATIENCE, store.next_due(from.clone())));
            let mut next: Result<Option<Timestamp>, _> = Err(StoreError::Read(server::silent()));
            for answer in join_all(asked).await {
                next = match (next, answer) {
                    (Ok(next), Ok(Ok(other))) => Ok(next.into_iter().chain(other).min()),
                    (Err(_), Ok(answer)) => answer,
                    (next, _) => next,
                };
            }
            next
        })
    }

    /// A part that is not well, or ceases to be, is left for the next time.
    fn purge(
        &self,
        stored_before: Option<Timestamp>,
        marks_before: Timestamp,
    ) -> BoxFuture<'static, Result<Purged, StoreError>> {
        let parts = self.0.clone();
        Box::pin(async move {
            if *parts.closed.borrow() {
                return Err(StoreError::Closed);
            }
            let purge = |place| purge_part(parts.clone(), place, stored_before, marks_before);
            let places = 0..parts.parts.len();
            let mut all = Purged::default();
            for purged in join_all(places.map(purge)).await {
                match purged {
                    Ok(purged) => {
                        all.messages += purged.messages;
                        all.marks += purged.marks;
                    }
                    Err(StoreError::Away(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(all)
        })
    }

    fn find(
        &self,
        recipient: Bare,
        key: Key,
    ) -> BoxFuture<'static, Result<Option<Option<u16>>, StoreError>> {
        match self.store(&recipient) {
            Ok(store) => store.find(recipient, key),
            Err(away) => failed(away),
        }
    }

    /// 0 while the part is away.
    fn epoch(&self, shard: ShardId) -> u32 {
        self.0.part(shard).opened().map_or(0, |store| store.epoch(shard))
    }

    /// Whether all parts are.
    fn healthy(&self) -> bool {
        self.0.parts.iter().all(|part| part.state() == PartState::Healthy)
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.0.closed.send_replace(true);
        let parts = self.0.clone();
        Box::pin(async move {
            parts.parts.iter().for_each(Part::give_up);
            close_all(&parts.parts).await;
        })
    }
}

impl BroadcastStore for PartedStore {
    fn broadcasts(&self) -> BoxFuture<'static, Result<Vec<Broadcast>, StoreError>> {
        match self.home() {
            Ok(store) => store.broadcasts(),
            Err(away) => failed(away),
        }
    }

    fn recipients(
        &self,
        broadcast: i64,
        after: u64,
        limit: u64,
    ) -> BoxFuture<'static, Result<Vec<Recipient>, StoreError>> {
        match self.home() {
            Ok(store) => store.recipients(broadcast, after, limit),
            Err(away) => failed(away),
        }
    }

    fn change(&self, change: BroadcastChange) -> BoxFuture<'static, Result<u64, StoreError>> {
        match self.home() {
            Ok(store) => store.change(change),
            Err(away) => failed(away),
        }
    }
}

/// Stops when the part ceases to be well: a write to it would be waited for without end.
async fn purge_part(
    parts: Arc<Parts>,
    place: usize,
    stored_before: Option<Timestamp>,
    marks_before: Timestamp,
) -> Result<Purged, StoreError> {
    let store = parts.parts[place].opened()?;
    if !store.healthy() {
        return Ok(Purged::default());
    }
    let mut purge = store.purge(stored_before, marks_before);
    loop {
        match timeout(LOOK, &mut purge).await {
            Ok(purged) => return purged,
            Err(_) if store.healthy() => {}
            Err(_) => return Ok(Purged::default()),
        }
    }
}

fn failed<T: Send + 'static>(error: StoreError) -> BoxFuture<'static, Result<T, StoreError>> {
    Box::pin(async { Err(error) })
}

/// What one part has that is due.
struct Stream {
    place: usize,
    rows: VecDeque<DueMessage>,
    /// It was read up to here.
    end: DuePosition,
    /// It may have more.
    more: bool,
}

/// Merges what the parts that are well have: the next of all is the first of what they have
/// next.
async fn due(
    parts: Arc<Parts>,
    from: DuePosition,
    until: Timestamp,
    limit: PageLimit,
) -> Result<Vec<DueMessage>, StoreError> {
    let stream = |place| Stream { place, rows: VecDeque::new(), end: from.clone(), more: true };
    let mut streams: Vec<Stream> = parts.well().map(stream).collect();
    let mut failed = Err(StoreError::Read(server::silent()));
    let mut all: Vec<DueMessage> = Vec::new();
    let mut bytes = limit.bytes;
    loop {
        if let Some(answer) = fill(&parts, &mut streams, until, limit).await {
            failed = answer;
        }
        let with_rows = streams.iter_mut().filter(|stream| !stream.rows.is_empty());
        let next = with_rows.min_by_key(|stream| stream.rows.front().map(DueMessage::position));
        let Some(next) = next.and_then(|stream| stream.rows.pop_front()) else { break };
        let left = bytes.checked_sub(next.message.stanza.len());
        if !all.is_empty() && (left.is_none() || all.len() >= limit.rows) {
            break;
        }
        bytes = left.unwrap_or(0);
        all.push(next);
    }
    if all.is_empty() { failed.map(|()| all) } else { Ok(all) }
}

/// Reads on where nothing is left of what was read. None: nothing had to be read; an error: no
/// part answered.
async fn fill(
    parts: &Parts,
    streams: &mut [Stream],
    until: Timestamp,
    limit: PageLimit,
) -> Option<Result<(), StoreError>> {
    let dry = streams.iter_mut().filter(|stream| stream.more && stream.rows.is_empty());
    let read = async |stream: &mut Stream| {
        let store = parts.parts[stream.place].opened()?;
        let rows = timeout(PATIENCE, store.due(stream.end.clone(), until, limit)).await;
        // Whatever comes of it: it is not asked again for this list.
        stream.more = false;
        let rows = rows.unwrap_or_else(|_| Err(StoreError::Read(server::silent())))?;
        if let Some(last) = rows.last() {
            (stream.end, stream.more) = (last.position(), true);
        }
        stream.rows = rows.into();
        Ok(())
    };
    let answers: Vec<Result<(), StoreError>> = join_all(dry.map(read)).await;
    answers.into_iter().reduce(|one, other| one.or(other))
}
