//! How SQLite finds the rows that are read. How it finds those that are changed is asked in `writer`,
//! what servers do in tests/store/server/plans.rs.

use sea_orm::{Database, Statement};

use super::super::statements::Statements;
use super::super::{SeaStore, Store, StoreSettings};
use super::*;

fn few() -> PageLimit {
    PageLimit { rows: 10, bytes: 1 << 20 }
}

/// Each question of the store, by name.
fn selects(backend: DbBackend) -> Vec<(&'static str, Select<Entity>)> {
    let from = DuePosition::start();
    let id = MessageId(7);
    let sizes = after_id(Entity::find().select_only().column(C::Id), "bob", id);
    let by_ids = Entity::find().filter(C::Recipient.eq("bob")).filter(C::Id.between(1, 9));
    vec![
        ("page", small_rows("bob", id, few().rows, 1000)),
        ("sizes of a page", sizes.column(C::Size).limit(10)),
        ("page of large rows", by_ids.order_by_asc(C::Id)),
        ("headers", header_rows("bob", id, 10)),
        ("count", sums(backend, "bob", Detail::Messages)),
        ("bytes", sums(backend, "bob", Detail::Bytes)),
        ("by sender", sums(backend, "bob", Detail::Senders)),
        ("due", expiring_by(backend, &from, Some(from.at)).column(C::Size).limit(10)),
        ("rows that are due", expiring_after(backend, &from).filter(until_place(backend, &from))),
        ("next due", expiring_by(backend, &from, None).column(C::Size).limit(1)),
        ("a step of the retention", next_rows(backend, &("bob".into(), id))),
        ("find", Entity::find().filter(C::Key.eq("a key"))),
    ]
}

async fn plan(database: &DatabaseConnection, mut statement: Statement) -> Vec<String> {
    statement.sql.insert_str(0, "EXPLAIN QUERY PLAN ");
    let rows = database.query_all_raw(statement).await.expect("explains");
    rows.iter().map(|row| row.try_get("", "detail").expect("a text")).collect()
}

fn searches(what: &str, plan: &[String]) {
    let scan = |line: &&String| {
        ["SCAN offline_message", "SCAN m"].iter().any(|scan| line.starts_with(scan))
    };
    assert!(!plan.iter().any(|line| scan(&line)), "{what}: {plan:#?}");
    assert!(plan.iter().any(|line| line.starts_with("SEARCH ")), "{what}: {plan:#?}");
}

#[tokio::test]
async fn every_question_is_answered_by_an_index() {
    let dir = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}/amphora.db", dir.path().display());
    SeaStore::open(StoreSettings::new(&url)).await.expect("opens").close().await;
    let database = Database::connect(&url).await.expect("connects");
    let backend = database.get_database_backend();
    for (what, select) in selects(backend) {
        let plan = plan(&database, select.build(backend)).await;
        searches(what, &plan);
        assert!(what != "count" || plan[0].contains("COVERING INDEX"), "{plan:#?}");
    }
    for rows in [1, 100] {
        let pairs: Vec<_> = (0..rows).map(|id| (0, "bob", MessageId(id))).collect();
        let (deletion, _) = Statements::of(backend).delete(&pairs);
        searches("delete", &plan(&database, deletion.delete).await);
    }
    // A question that no index answers is told from these.
    let scan = Entity::find().filter(C::Sender.eq("eve")).build(backend);
    let plan = plan(&database, scan).await;
    assert!(plan[0].starts_with("SCAN offline_message"), "{plan:#?}");
}
