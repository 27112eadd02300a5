//! Processor time and memory of processes, as Linux tells them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::Duration;

/// A process and all below it.
#[derive(Clone, Copy)]
pub struct Family {
    root: u32,
}

/// Kilobytes of memory, each page shared out among those who have it.
pub type Kilobytes = u64;

impl Family {
    pub fn of(root: u32) -> Self {
        Family { root }
    }

    /// The one that listens on the port of the URL here, if we may see it.
    pub fn behind(url: &str) -> Option<Self> {
        let address = url.split('@').nth(1)?.split('/').next()?;
        let port: u16 = address.split(':').nth(1)?.parse().ok()?;
        let table = fs::read_to_string("/proc/net/tcp").ok()?;
        let local = format!(":{port:04X} 00000000:0000 0A");
        let line = table.lines().find(|line| line.contains(&local))?;
        let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
        let listens = |process: &u32| {
            let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
                return false;
            };
            files
                .flatten()
                .filter_map(|file| fs::read_link(file.path()).ok())
                .any(|target| target.as_os_str() == socket.as_str())
        };
        let parents = parents();
        let listeners: HashSet<u32> = parents.keys().copied().filter(listens).collect();
        // A child may have it from its parent.
        let first = listeners.iter().find(|process| !listeners.contains(&parents[process]))?;
        Some(Family { root: *first })
    }

    fn members(&self) -> HashSet<u32> {
        let parents = parents();
        let mut members = HashSet::from([self.root]);
        loop {
            let children = parents.iter().filter(|(_, parent)| members.contains(parent));
            let more: Vec<u32> = children.map(|(process, _)| *process).collect();
            let before = members.len();
            members.extend(more);
            if members.len() == before {
                return members;
            }
        }
    }

    /// Processor time used, that of children that ended included.
    pub fn cpu(&self) -> Duration {
        let of = |process: u32| -> u64 {
            let fields = stat(process).unwrap_or_default();
            fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
        };
        // A tick is 10 ms on every Linux that Rust runs on.
        Duration::from_millis(10 * self.members().into_iter().map(of).sum::<u64>())
    }

    pub fn memory(&self) -> Kilobytes {
        let of = |process: u32| {
            let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup"));
            let rollup = rollup.unwrap_or_default();
            let line = rollup.lines().find(|line| line.starts_with("Pss:"));
            line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0)
        };
        self.members().into_iter().map(of).sum()
    }
}

/// The most that a single process had at any time.
pub fn peak(process: u32) -> Kilobytes {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

fn parents() -> HashMap<u32, u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    let processes =
        processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    processes.filter_map(|process| Some((process, stat(process)?.get(1)?.parse().ok()?))).collect()
}

/// What stands behind the name of the process: state, parent, and so on.
fn stat(process: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}
