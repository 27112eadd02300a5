//! A process that is killed while it appends.

use std::io::{BufRead, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use amphora::store::{Job, SeaStore, Store, StoreError, StoreSettings};
use amphora::words::ShardId;

use super::{dir, settings};
use crate::bed::*;

const DIR: &str = "AMPHORA_TEST_STORE";

/// Runs one of this file's ignored tests in a process of its own.
fn child(test: &str, dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child")
}

fn child_settings() -> Option<StoreSettings> {
    Some(settings(&PathBuf::from(std::env::var_os(DIR)?)))
}

/// In the child: appends without end, and tells which are stored.
#[tokio::test]
#[ignore = "is killed by its parent"]
async fn appends_until_killed() {
    let Some(settings) = child_settings() else {
        return;
    };
    let store = Arc::new(SeaStore::open(settings).await.unwrap());
    let (tell, told) = std::sync::mpsc::channel::<i64>();
    let epoch = i64::from(store.epoch(ShardId(0))) << 32;
    let mut next = epoch;
    let mut submit = || {
        next += 1;
        let (id, tell) = (next, tell.clone());
        let done = Box::new(move |outcomes: Vec<_>| {
            if outcomes == [amphora::store::Outcome::Stored] {
                let _ = tell.send(id);
            }
        });
        store.submit(Job { writes: vec![append(&format!("user{}", id % 7), id)], done });
    };
    for _ in 0..64 {
        submit();
    }
    let mut out = std::io::stdout();
    while let Ok(id) = told.recv() {
        // One write: a line is told whole or not at all.
        out.write_all(format!("stored {id}\n").as_bytes()).unwrap();
        submit();
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_kill() {
    let dir = dir();
    let mut acknowledged: Vec<i64> = Vec::new();
    for round in 1..=3 {
        let mut child = child("sqlite::killed::appends_until_killed", dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let enough = acknowledged.len() + 500 * round;
        let mut line = String::new();
        // After the kill, what is still in the pipe.
        while lines.read_line(&mut line).unwrap() > 0 {
            if line.ends_with('\n')
                && let Some((_, id)) = line.trim_end().rsplit_once("stored ")
            {
                acknowledged.push(id.parse().unwrap());
            }
            line.clear();
            if acknowledged.len() == enough {
                // Kill -9: nothing of it runs any more.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= enough, "the child ended by itself");

        let store = SeaStore::open(settings(dir.path())).await.unwrap();
        assert_eq!(store.epoch(ShardId(0)) as usize, 2 * round);
        let mut there = Vec::new();
        for user in 0..7 {
            let of_user = ids(&store, &format!("user{user}")).await;
            assert!(of_user.is_sorted());
            there.extend(of_user);
        }
        for id in &acknowledged {
            assert!(there.contains(id), "{id} is lost");
        }
        store.close().await;
    }
}

/// In the child: holds the store until it is killed.
#[tokio::test]
#[ignore = "is killed by its parent"]
async fn holds_the_store() {
    let Some(settings) = child_settings() else {
        return;
    };
    let _store = SeaStore::open(settings).await.unwrap();
    std::io::stdout().write_all(b"open\n").unwrap();
    // Until the parent goes.
    let _ = std::io::stdin().lock().lines().next();
}

#[tokio::test]
async fn the_store_of_another_process_is_refused_until_that_is_gone() {
    let dir = dir();
    let mut child = child("sqlite::killed::holds_the_store", dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("open")), "the child opens the store");
    let error = SeaStore::open(settings(dir.path())).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    SeaStore::open(settings(dir.path())).await.unwrap().close().await;
}
