//! How SQLite finds the rows that are changed. How it finds those that are read is asked in
//! `pages`, what servers do in tests/store/server/plans.rs.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::super::broadcast::{Broadcast, BroadcastChange, BroadcastState, Counts, Recipient};
use super::super::job::{NewMessage, Write};
use super::super::open::{Opened, open};
use super::super::settings::StoreSettings;
use super::super::{Fate, Run, broadcast_rows, purge};
use super::*;
use crate::stanza::MessageType;
use crate::time::Timestamp;
use crate::words::MessageId;

const TABLES: [&str; 4] = ["offline_message", "mark", "broadcast", "broadcast_recipient"];

fn append(id: i64, key: &str, again: bool) -> Task {
    Task::Append(NewMessage {
        recipient: "bob".into(),
        id: MessageId(id),
        key: key.into(),
        again,
        run: Run::new(),
        sender: "eve".to_owned(),
        kind: MessageType::Chat,
        stored_at: Timestamp::from_micros(0),
        archived: false,
        expiry: None,
        met_rule: None,
        stanza: "<message/>".into(),
    })
}

fn delete(ids: &[i64]) -> Task {
    Task::Delete { recipient: "bob".into(), ids: ids.iter().copied().map(MessageId).collect() }
}

fn broadcast() -> Broadcast {
    Broadcast {
        id: 7,
        token: "t".to_owned(),
        host: "example.org".to_owned(),
        everyone: false,
        payload: "<message/>".to_owned(),
        expires_at: Timestamp::from_micros(1),
        rate: 1,
        state: BroadcastState::Filling,
        created_at: Timestamp::from_micros(0),
        ended_at: None,
        counted_to: None,
        last_n: 0,
        counts: Counts::default(),
    }
}

/// One of each kind, and what it does.
fn tasks() -> Vec<(Task, Outcome)> {
    let done = |rows| Outcome::Done { rows };
    let already = Outcome::Already { met_rule: None };
    let state = BroadcastState::Running;
    let recipients = (1..=9).map(|n| Recipient { n, bare: format!("u{n}").as_str().into() });
    let add = BroadcastChange::Add {
        broadcast: 7,
        recipients: recipients.collect(),
        counted_to: Some(None),
    };
    let settled = vec![(1, Fate::Delivered), (2, Fate::Delivered), (3, Fate::Stored)];
    let expiry = None;
    let mut tasks: Vec<_> =
        (1..=9).map(|id| (append(id, &format!("k{id}"), false), Outcome::Stored)).collect();
    tasks.extend([
        (append(10, "k1", false), already.clone()),
        (append(10, "k1", true), already),
        (Task::SetExpiry { recipient: "bob".into(), id: MessageId(1), expiry }, done(1)),
        (delete(&[1]), done(1)),
        (delete(&[2, 3, 4]), done(3)),
        (Task::from(Write::RemoveAccount { recipient: "bob".into() }), done(5)),
        (Task::PurgeMarks { first: i64::MIN, last: i64::MAX, rows: 4 }, done(4)),
    ]);
    let changes = [
        (BroadcastChange::Create(broadcast()), 0),
        (add, 9),
        (BroadcastChange::SetState { broadcast: 7, state, ended_at: None }, 0),
        (BroadcastChange::Settle { broadcast: 7, settled }, 3),
        (BroadcastChange::GiveUp { broadcast: 7, fate: Fate::Expired, limit: 9 }, 6),
        (BroadcastChange::Forget { broadcast: 7 }, 0),
    ];
    tasks.extend(changes.map(|(change, rows)| (Task::Broadcast(change), done(rows))));
    tasks
}

async fn plan(database: &DatabaseConnection, sql: &str) -> Vec<String> {
    let backend = database.get_database_backend();
    let explain = Statement::from_string(backend, format!("EXPLAIN QUERY PLAN {sql}"));
    let rows = database.query_all_raw(explain).await.expect("explains");
    rows.iter().map(|row| row.try_get("", "detail").expect("a text")).collect()
}

/// Looks through a table from its beginning, or sorts what it found.
fn is_dear(step: &str) -> bool {
    let scanned = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next());
    scanned.is_some_and(|table| table == "m" || TABLES.contains(&table))
        || step.contains("TEMP B-TREE")
}

#[tokio::test]
async fn every_row_that_is_changed_is_found_by_an_index() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = StoreSettings::new(format!("sqlite://{}/a.db", dir.path().display()));
    let Opened { mut writer, .. } = open(&settings).await.expect("opens");
    let told = Arc::new(Mutex::new(BTreeSet::new()));
    let tell = told.clone();
    let database = writer.database.as_mut().expect("is connected");
    database.set_metric_callback(move |info| {
        tell.lock().expect("not poisoned").insert(info.statement.sql.clone());
    });
    let database = database.clone();
    for (task, outcome) in tasks() {
        let begun = writer.begin().await.expect("begins");
        match writer.commit(begun, &[&task]).await {
            End::Committed(outcomes) => assert_eq!(outcomes, [outcome], "{task:?}"),
            End::Failed(error) | End::Unknown(_, error) => panic!("{task:?}: {error}"),
        }
    }
    purge::marks(database.clone(), 0, Timestamp::from_micros(9)).await.expect("reads");
    broadcast_rows::recipients(database.clone(), 7, 0, 9).await.expect("reads");
    let told = std::mem::take(&mut *told.lock().expect("not poisoned"));
    let mut searched = BTreeSet::new();
    for sql in &told {
        let plan = plan(&database, sql).await;
        assert!(!plan.iter().any(|step| is_dear(step)), "{sql}: {plan:#?}");
        let steps = plan.iter().filter_map(|step| step.strip_prefix("SEARCH "));
        searched.extend(steps.filter_map(|step| step.split(' ').next()).map(str::to_owned));
    }
    for table in TABLES {
        assert!(searched.contains(table), "{table} is not in {told:#?}");
    }
    // A statement that no index helps is told from these.
    let scan = plan(&database, "DELETE FROM mark WHERE met_rule = 1").await;
    assert!(scan.iter().any(|step| is_dear(step)), "{scan:#?}");
}
