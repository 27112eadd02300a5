//! How a node is doing: what its parts report, and whether that makes it ready.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::cluster::Status;

/// The handle through which the parts of a node report; clones share one state.
#[derive(Clone, Default)]
pub struct Health(Arc<Reports>);

#[derive(Default)]
struct Reports {
    links: Mutex<BTreeMap<String, LinkHealth>>,
    store: Mutex<Option<StoreCheck>>,
    parts: Mutex<BTreeMap<String, PartCheck>>,
    cluster: Mutex<Option<ClusterCheck>>,
}

type StoreCheck = Arc<dyn Fn() -> bool + Send + Sync>;
type ClusterCheck = Arc<dyn Fn() -> Arc<Status> + Send + Sync>;
type PartCheck = Arc<dyn Fn() -> StoreHealth + Send + Sync>;

/// How far a link has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// No stream yet.
    Connecting,
    /// The stream is authenticated; not every host has answered the greeting.
    Connected,
    /// Every host has answered the greeting.
    Greeted,
    /// Lost or refused, for this reason; it will be tried again.
    Down(String),
}

/// One link and the hosts behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkHealth {
    /// How far the link has come.
    pub state: LinkState,
    /// Its hosts, in the order of the configuration.
    pub hosts: Vec<HostHealth>,
}

/// One virtual host behind a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostHealth {
    /// The host's domain.
    pub host: String,
    /// Whether its interceptor has answered the greeting on this stream.
    pub greeted: bool,
}

/// How the store is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreHealth {
    /// Not opened yet.
    Closed,
    /// It takes writes.
    Healthy,
    /// It does not.
    Unhealthy,
}

/// The state at one moment. `Display` gives the lines of `/readyz`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// By component, sorted.
    pub links: BTreeMap<String, LinkHealth>,
    /// The store: all of it.
    pub store: StoreHealth,
    /// Its parts, where it has several, by name.
    pub parts: BTreeMap<String, StoreHealth>,
    /// How it stands in its cluster; none: it is alone.
    pub cluster: Option<Arc<Status>>,
}

impl Health {
    /// No links, and a store that is not open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes a link known, as connecting, with the hosts that it will greet.
    pub fn add_link(&self, component: &str, hosts: impl IntoIterator<Item = impl Into<String>>) {
        let hosts = hosts.into_iter().map(|host| HostHealth { host: host.into(), greeted: false });
        let link = LinkHealth { state: LinkState::Connecting, hosts: hosts.collect() };
        self.links().insert(component.to_owned(), link);
    }

    /// Reports a link's state. `Greeted` holds for all its hosts; any other state for
    /// none of them, until [`Health::set_host_greeted`].
    pub fn set_link(&self, component: &str, state: LinkState) {
        let mut links = self.links();
        let unknown = LinkHealth { state: LinkState::Connecting, hosts: Vec::new() };
        let link = links.entry(component.to_owned()).or_insert(unknown);
        link.hosts.iter_mut().for_each(|host| host.greeted = state == LinkState::Greeted);
        link.state = state;
    }

    /// Reports that a host has answered the greeting. Its link is `Greeted` once all its
    /// hosts have. A link that is not `Connected` stays as it is.
    pub fn set_host_greeted(&self, component: &str, host: &str) {
        let mut links = self.links();
        let Some(link) = links.get_mut(component).filter(|link| link.state == LinkState::Connected)
        else {
            return;
        };
        link.hosts
            .iter_mut()
            .filter(|known| known.host == host)
            .for_each(|known| known.greeted = true);
        if link.hosts.iter().all(|host| host.greeted) {
            link.state = LinkState::Greeted;
        }
    }

    /// Says how to ask the store whether it takes writes. `check` is called at each
    /// request and must not block.
    pub fn set_store(&self, check: impl Fn() -> bool + Send + Sync + 'static) {
        *self.store() = Some(Arc::new(check));
    }

    /// The same for one database of several, which `name` tells from the others.
    pub fn add_part(&self, name: &str, check: impl Fn() -> StoreHealth + Send + Sync + 'static) {
        self.parts().insert(name.to_owned(), Arc::new(check));
    }

    /// Says how to ask how the node stands in its cluster. `check` is called at each request and
    /// must not block.
    pub fn set_cluster(&self, check: impl Fn() -> Arc<Status> + Send + Sync + 'static) {
        *self.cluster() = Some(Arc::new(check));
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        let check = self.store().clone();
        let store = match check.map(|check| check()) {
            None => StoreHealth::Closed,
            Some(true) => StoreHealth::Healthy,
            Some(false) => StoreHealth::Unhealthy,
        };
        let parts = self.parts().clone();
        let parts = parts.into_iter().map(|(name, check)| (name, check())).collect();
        let cluster = self.cluster().clone().map(|check| check());
        Snapshot { links: self.links().clone(), store, parts, cluster }
    }

    /// Whether every link is greeted, the store is healthy and, in a cluster, every shard has an
    /// owner that this node knows. A node without links is ready as soon as the rest is.
    pub fn ready(&self) -> bool {
        self.snapshot().ready()
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, LinkHealth>> {
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<String, PartCheck>> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cluster(&self) -> MutexGuard<'_, Option<ClusterCheck>> {
        self.0.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Option<StoreCheck>> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshot {
    /// The parts of the store that are not well, a line each.
    pub fn unwell(&self) -> String {
        let unwell = self.parts.iter().filter(|(_, health)| **health != StoreHealth::Healthy);
        unwell.map(|(name, health)| format!("part {name}: {health}\n")).collect()
    }

    /// Whether every link is greeted, the store is healthy, and all shards are found in the cluster.
    pub fn ready(&self) -> bool {
        self.store == StoreHealth::Healthy
            && self.cluster.as_ref().is_none_or(|status| status.is_ready())
            && self.links.values().all(|link| link.state == LinkState::Greeted)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", if self.ready() { "ready" } else { "not ready" })?;
        writeln!(f, "store: {}", self.store)?;
        for (name, health) in &self.parts {
            writeln!(f, "part {name}: {health}")?;
        }
        if let Some(cluster) = &self.cluster {
            write!(f, "{cluster}")?;
        }
        if self.links.is_empty() {
            writeln!(f, "links: none is configured")?;
        }
        for (component, link) in &self.links {
            writeln!(f, "link {component}: {}", link.state)?;
            for HostHealth { host, greeted } in &link.hosts {
                let greeted = if *greeted { "greeted" } else { "not greeted" };
                writeln!(f, "host {host} on {component}: {greeted}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for StoreHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreHealth::Closed => "not open",
            StoreHealth::Healthy => "healthy",
            StoreHealth::Unhealthy => "unhealthy",
        })
    }
}

/// The longest reason that is shown, in characters: it may come from the server.
const MAX_REASON: usize = 200;

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkState::Connecting => f.write_str("connecting"),
            LinkState::Connected => f.write_str("connected, not greeted"),
            LinkState::Greeted => f.write_str("greeted"),
            LinkState::Down(reason) => {
                let line = reason.chars().take(MAX_REASON);
                let line: String = line.map(|c| if c.is_control() { ' ' } else { c }).collect();
                write!(f, "down: {line}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(health: &Health) -> Vec<String> {
        health.snapshot().to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_node_without_links_is_ready_with_its_store() {
        let health = Health::new();
        assert_eq!(lines(&health), ["not ready", "store: not open", "links: none is configured"]);
        health.set_store(|| true);
        assert_eq!(lines(&health), ["ready", "store: healthy", "links: none is configured"]);
        health.set_store(|| false);
        assert!(!health.ready());
    }

    #[test]
    fn a_part_that_is_not_well_is_named() {
        let health = Health::new();
        health.set_store(|| false);
        health.add_part("b", || StoreHealth::Unhealthy);
        health.add_part("a", || StoreHealth::Healthy);
        health.add_part("c", || StoreHealth::Closed);
        let parts = ["part a: healthy", "part b: unhealthy", "part c: not open"];
        assert_eq!(lines(&health)[..5], [&["not ready", "store: unhealthy"], &parts[..]].concat());
        assert_eq!(health.snapshot().unwell(), "part b: unhealthy\npart c: not open\n");
    }

    #[test]
    fn a_link_is_greeted_when_all_its_hosts_are() {
        let health = Health::new();
        health.set_store(|| true);
        health.add_link("amp.a", ["a", "b"]);
        health.set_host_greeted("amp.a", "a");
        assert_eq!(
            lines(&health)[2..],
            [
                "link amp.a: connecting",
                "host a on amp.a: not greeted",
                "host b on amp.a: not greeted"
            ]
        );
        health.set_link("amp.a", LinkState::Connected);
        health.set_host_greeted("amp.a", "b");
        health.set_host_greeted("amp.a", "unknown");
        assert_eq!(
            lines(&health)[2..],
            [
                "link amp.a: connected, not greeted",
                "host a on amp.a: not greeted",
                "host b on amp.a: greeted"
            ]
        );
        health.clone().set_host_greeted("amp.a", "a");
        assert_eq!(lines(&health)[2], "link amp.a: greeted");
        assert!(health.ready());
    }

    #[test]
    fn a_link_that_goes_down_takes_its_hosts_with_it() {
        let health = Health::new();
        health.set_store(|| true);
        health.add_link("amp.a", ["a"]);
        health.set_link("amp.a", LinkState::Greeted);
        health.set_link("amp.b", LinkState::Greeted);
        assert!(health.ready());
        health.set_link("amp.a", LinkState::Down("reset\r\nready".to_owned()));
        assert_eq!(
            lines(&health)[2..],
            [
                "link amp.a: down: reset  ready",
                "host a on amp.a: not greeted",
                "link amp.b: greeted"
            ]
        );
        assert!(!health.ready());
    }
}
