//! Broadcasts in every store: what is kept, how it changes, and that it changes once.

use std::sync::Arc;

use amphora::store::{
    Broadcast, BroadcastChange, BroadcastState, BroadcastStore, Counts, Fate, Recipient,
};

use crate::bed::*;

/// A store for both, opened anew by each call on the same database.
pub struct Both {
    /// For the test's own use.
    pub bed: Bed,
    /// Opens it.
    pub open: fn(amphora::store::StoreSettings) -> OpeningBoth,
}

/// A store that is being opened.
pub type OpeningBoth =
    futures::future::BoxFuture<'static, (Arc<dyn BroadcastStore>, Arc<dyn amphora::store::Store>)>;

/// Makes a test of each check, over the bed that `$bed` lays.
#[macro_export]
macro_rules! broadcasts {
    ($bed:path: $($check:ident),* $(,)?) => {
        $(#[tokio::test]
        async fn $check() {
            $crate::broadcast::$check($bed().await).await;
        })*
    };
    ($bed:path) => {
        $crate::broadcasts! { $bed:
            broadcasts_are_given_back,
            recipients_are_listed_once_and_in_order,
            settled_once_and_counted_once,
            given_up_in_parts,
            a_forgotten_one_has_no_recipients,
            what_is_not_there_is_not_changed,
            broadcasts_survive_a_restart,
            changes_keep_their_order,
            large_lists_are_carried,
        }
    };
}

pub fn new(id: i64) -> Broadcast {
    Broadcast {
        id,
        token: format!("t{id}"),
        host: "example.org".into(),
        everyone: id % 2 == 0,
        payload: "<message xmlns='jabber:client'><body>\u{e4}&amp;</body></message>".into(),
        expires_at: at(5000),
        rate: 1000,
        state: BroadcastState::Filling,
        created_at: at(-1),
        ended_at: None,
        counted_to: Some("\u{fc}ser".into()),
        last_n: 0,
        counts: Counts::default(),
    }
}

pub fn recipients(places: std::ops::Range<u64>) -> Vec<Recipient> {
    places.map(|n| Recipient { n, bare: format!("u{n}@example.org").into() }).collect()
}

fn add(broadcast: i64, recipients: Vec<Recipient>) -> BroadcastChange {
    BroadcastChange::Add { broadcast, recipients, counted_to: None }
}

async fn change(store: &dyn BroadcastStore, what: BroadcastChange) -> u64 {
    store.change(what).await.expect("a change")
}

async fn only(store: &dyn BroadcastStore) -> Broadcast {
    let mut all = store.broadcasts().await.expect("reads");
    assert_eq!(all.len(), 1);
    all.remove(0)
}

async fn places(store: &dyn BroadcastStore, broadcast: i64, after: u64, limit: u64) -> Vec<u64> {
    let rows = store.recipients(broadcast, after, limit).await.expect("reads");
    rows.into_iter().map(|recipient| recipient.n).collect()
}

pub async fn broadcasts_are_given_back(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    assert_eq!(store.broadcasts().await.unwrap(), []);
    let full = Broadcast {
        state: BroadcastState::Paused,
        ended_at: Some(at(9)),
        counted_to: None,
        last_n: 77,
        counts: Counts {
            total: 6,
            delivered: 1,
            stored: 2,
            discarded: 3,
            expired: 4,
            cancelled: 5,
        },
        ..new(3)
    };
    change(&*store, BroadcastChange::Create(full.clone())).await;
    change(&*store, BroadcastChange::Create(new(2))).await;
    assert_eq!(store.broadcasts().await.unwrap(), [new(2), full.clone()]);
    let refused = store.change(BroadcastChange::Create(full)).await;
    assert!(refused.is_err(), "a number is there once");
    for state in [BroadcastState::Running, BroadcastState::Cancelled, BroadcastState::Done] {
        let set = BroadcastChange::SetState { broadcast: 2, state, ended_at: Some(at(8)) };
        change(&*store, set).await;
        let row = &store.broadcasts().await.unwrap()[0];
        assert_eq!((row.state, row.ended_at), (state, Some(at(8))));
    }
    messages.close().await;
    assert!(store.change(BroadcastChange::Create(new(9))).await.is_err(), "it is closed");
}

pub async fn recipients_are_listed_once_and_in_order(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    for id in [1, 2] {
        change(&*store, BroadcastChange::Create(new(id))).await;
        assert_eq!(change(&*store, add(id, recipients(1..6))).await, 5);
    }
    let twice = vec![
        Recipient { n: 6, bare: bare("u2@example.org") },
        Recipient { n: 7, bare: bare("u7@example.org") },
        Recipient { n: 8, bare: bare("u7@example.org") },
    ];
    assert_eq!(change(&*store, add(1, twice)).await, 1);
    assert_eq!(places(&*store, 1, 0, 100).await, [1, 2, 3, 4, 5, 7]);
    assert_eq!(places(&*store, 1, 2, 2).await, [3, 4]);
    assert_eq!(places(&*store, 2, 4, 100).await, [5]);
    let all = store.broadcasts().await.unwrap();
    assert_eq!((all[0].counts.total, all[0].last_n), (6, 8));
    assert_eq!((all[1].counts.total, all[1].last_n), (5, 5));
    assert_eq!(all[0].counted_to, new(1).counted_to);
    for counted_to in [Some("zoe".to_owned()), None] {
        let none = BroadcastChange::Add {
            broadcast: 1,
            recipients: vec![],
            counted_to: Some(counted_to.clone()),
        };
        assert_eq!(change(&*store, none).await, 0);
        let row = &store.broadcasts().await.unwrap()[0];
        assert_eq!((&row.counted_to, row.last_n), (&counted_to, 8));
    }
    messages.close().await;
}

pub async fn settled_once_and_counted_once(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    change(&*store, BroadcastChange::Create(new(1))).await;
    change(&*store, add(1, recipients(1..8))).await;
    let settle = |settled: &[(u64, Fate)]| BroadcastChange::Settle {
        broadcast: 1,
        settled: settled.to_vec(),
    };
    let some = [(1, Fate::Delivered), (2, Fate::Stored), (3, Fate::Delivered)];
    assert_eq!(change(&*store, settle(&some)).await, 3);
    let more = [(3, Fate::Stored), (4, Fate::Discarded), (99, Fate::Stored), (2, Fate::Stored)];
    assert_eq!(change(&*store, settle(&more)).await, 1, "who is settled stays so");
    let counts = only(&*store).await.counts;
    let expected = Counts { total: 7, delivered: 2, stored: 1, discarded: 1, ..Counts::default() };
    assert_eq!(counts, expected);
    assert_eq!(counts.left(), 3);
    assert_eq!(places(&*store, 1, 0, 100).await, [5, 6, 7]);
    messages.close().await;
}

pub async fn given_up_in_parts(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    for id in [1, 2] {
        change(&*store, BroadcastChange::Create(new(id))).await;
        change(&*store, add(id, recipients(1..8))).await;
    }
    let give_up = |fate, limit| BroadcastChange::GiveUp { broadcast: 1, fate, limit };
    assert_eq!(change(&*store, give_up(Fate::Expired, 3)).await, 3);
    assert_eq!(places(&*store, 1, 0, 100).await, [4, 5, 6, 7]);
    assert_eq!(change(&*store, give_up(Fate::Cancelled, 100)).await, 4);
    assert_eq!(change(&*store, give_up(Fate::Cancelled, 100)).await, 0);
    let all = store.broadcasts().await.unwrap();
    let expected = Counts { total: 7, expired: 3, cancelled: 4, ..Counts::default() };
    assert_eq!(all[0].counts, expected);
    assert_eq!(all[1].counts.left(), 7, "another's stay");
    messages.close().await;
}

pub async fn a_forgotten_one_has_no_recipients(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    change(&*store, BroadcastChange::Create(new(1))).await;
    change(&*store, add(1, recipients(1..2))).await;
    change(&*store, BroadcastChange::Forget { broadcast: 1 }).await;
    assert_eq!(only(&*store).await.counts.total, 1, "somebody is left");
    let settled = vec![(1, Fate::Stored)];
    change(&*store, BroadcastChange::Settle { broadcast: 1, settled }).await;
    change(&*store, BroadcastChange::Forget { broadcast: 1 }).await;
    assert_eq!(store.broadcasts().await.unwrap(), []);
    messages.close().await;
}

pub async fn what_is_not_there_is_not_changed(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    assert_eq!(change(&*store, add(5, recipients(1..3))).await, 0);
    assert_eq!(places(&*store, 5, 0, 100).await, [0; 0]);
    let settled = vec![(1, Fate::Stored)];
    assert_eq!(change(&*store, BroadcastChange::Settle { broadcast: 5, settled }).await, 0);
    let state = BroadcastState::Done;
    change(&*store, BroadcastChange::SetState { broadcast: 5, state, ended_at: None }).await;
    assert_eq!(store.broadcasts().await.unwrap(), []);
    messages.close().await;
}

pub async fn broadcasts_survive_a_restart(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    change(&*store, BroadcastChange::Create(new(1))).await;
    change(&*store, add(1, recipients(1..4))).await;
    messages.close().await;
    drop((store, messages));
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    let counts = Counts { total: 3, ..Counts::default() };
    assert_eq!(only(&*store).await, Broadcast { counts, last_n: 3, ..new(1) });
    assert_eq!(places(&*store, 1, 0, 100).await, [1, 2, 3]);
    messages.close().await;
}

/// Also those that nobody waits for, and beside messages.
pub async fn changes_keep_their_order(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    let mut told = vec![store.change(BroadcastChange::Create(new(1)))];
    for n in 1..50 {
        told.push(store.change(add(1, recipients(n..n + 1))));
        drop(submit(&*messages, vec![append("bob", n as i64)]));
        let settled = vec![(n, Fate::Stored)];
        told.push(store.change(BroadcastChange::Settle { broadcast: 1, settled }));
    }
    let last = told.pop().expect("the last");
    drop(told);
    assert_eq!(last.await.expect("a change"), 1);
    let counts = Counts { total: 49, stored: 49, ..Counts::default() };
    assert_eq!(only(&*store).await.counts, counts);
    assert_eq!(ids(&*messages, "bob").await.len(), 49);
    messages.close().await;
}

pub async fn large_lists_are_carried(both: Both) {
    let (store, messages) = (both.open)(both.bed.settings.clone()).await;
    change(&*store, BroadcastChange::Create(new(1))).await;
    assert_eq!(change(&*store, add(1, recipients(1..3001))).await, 3000);
    let settled = (1..2001).map(|n| (n, Fate::Stored)).collect();
    assert_eq!(change(&*store, BroadcastChange::Settle { broadcast: 1, settled }).await, 2000);
    assert_eq!(places(&*store, 1, 0, 2).await, [2001, 2002]);
    messages.close().await;
}
