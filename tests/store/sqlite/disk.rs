//! A full disk.

use std::fs;
use std::path::Path;
use std::process::Command;

use amphora::store::{NewMessage, Outcome, SeaStore, Store, Write};

use super::{dir, settings};
use crate::bed::*;

/// A small disk in memory.
struct Disk<'a>(&'a Path);

impl<'a> Disk<'a> {
    /// None where this user may not mount.
    fn mount(at: &'a Path) -> Option<Self> {
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "amphora-test"])
            .arg(at)
            .output()
            .ok()?;
        mount.status.success().then_some(Disk(at))
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_nothing_for_good() {
    let dir = dir();
    let Some(disk) = Disk::mount(dir.path()) else {
        eprintln!("not tested: this user may not mount a small disk");
        return;
    };
    let store = SeaStore::open(settings(disk.0)).await.unwrap();
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).unwrap();

    let mut stored = Vec::new();
    let mut id = 0;
    let full = loop {
        id += 1;
        let stanza = vec![b'x'; 40_000].into();
        let large = NewMessage { stanza, ..message("bob", id) };
        match run(&store, vec![Write::Append(large)]).await.remove(0) {
            Outcome::Stored => stored.push(id),
            other => break other,
        }
    };
    assert_eq!(full, Outcome::Retry);
    assert!(!stored.is_empty() && !store.healthy());
    // It stays so, for small ones too, and what is there can be read.
    let small = (100..200).map(|id| append("eve", id)).collect();
    assert!(run(&store, small).await.iter().all(|o| [Outcome::Retry, Outcome::Stored].contains(o)));
    assert_eq!(ids(&store, "bob").await, stored);

    fs::remove_file(&ballast).unwrap();
    until("healthy again by itself", || store.healthy()).await;
    assert_eq!(run(&store, vec![append("bob", 500)]).await, [Outcome::Stored]);
    let deleted = run(&store, vec![delete("bob", &stored)]).await;
    assert_eq!(deleted, [done(stored.len() as u64)]);
    assert_eq!(ids(&store, "bob").await, [500]);
    store.close().await;
    let store = SeaStore::open(settings(disk.0)).await.unwrap();
    assert_eq!(ids(&store, "bob").await, [500]);
    store.close().await;
}
