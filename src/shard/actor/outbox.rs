//! Where effects leave for the links: a table of the links that are up.
//!
//! The queue of a link has no bound of its own: what can be in it is bounded by the
//! windows of the protocol (unanswered intercepts, open batches of announced sessions,
//! stanzas to be sent), which the link watches. So a shard never waits for a link.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc::UnboundedSender;

use crate::words::LinkId;

use crate::shard::effect::{Send, ToLink};
use crate::shard::request::Request;

/// The way into one link.
pub type LinkSender = UnboundedSender<Vec<ToLink>>;

#[derive(Debug)]
struct Link {
    /// Those whose interceptors have answered the greeting on it.
    hosts: Vec<Arc<str>>,
    sender: LinkSender,
}

/// The links that are up. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outbox(Arc<RwLock<HashMap<LinkId, Link>>>);

impl Outbox {
    /// A link is up; nobody is greeted on it.
    pub fn add(&self, id: LinkId, sender: LinkSender) {
        let mut links = self.0.write().unwrap_or_else(PoisonError::into_inner);
        links.insert(id, Link { hosts: Vec::new(), sender });
    }

    /// The interceptor of a host is there, on that link.
    pub fn greeted(&self, id: LinkId, host: Arc<str>) {
        let mut links = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&id)
            && !link.hosts.contains(&host)
        {
            link.hosts.push(host);
        }
    }

    /// It is to be greeted again.
    pub fn forget_host(&self, id: LinkId, host: &str) {
        let mut links = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get_mut(&id) {
            link.hosts.retain(|known| &**known != host);
        }
    }

    /// Whether the interceptor of a host is there, on any link.
    pub fn reaches(&self, host: &str) -> bool {
        let links = self.0.read().unwrap_or_else(PoisonError::into_inner);
        links.values().any(|link| link.hosts.iter().any(|known| &**known == host))
    }

    /// A link is gone; what is told to it from now on is dropped.
    pub fn remove(&self, id: LinkId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Says something on a link. On a link that is gone nothing is said: the server
    /// asks again on its next one.
    pub fn tell(&self, id: LinkId, what: Vec<ToLink>) {
        let links = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(&id) {
            // A closed queue is a link that is closing.
            let _ = link.sender.send(what);
        }
    }

    /// Sends a stanza through a link that serves the host; gives it back if there is none.
    pub fn send(&self, host: &str, send: Send) -> Result<(), Send> {
        let links = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match links.values().find(|link| link.hosts.iter().any(|h| &**h == host)) {
            Some(link) => link.sender.send(vec![ToLink::Send(send.clone())]).map_err(|_| send),
            None => Err(send),
        }
    }

    /// Asks through a link that serves the host; false if there is none.
    pub fn ask(&self, request: Request) -> bool {
        let links = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let link = links.values().find(|link| link.hosts.contains(&request.host));
        link.is_some_and(|link| link.sender.send(vec![ToLink::Request(request)]).is_ok())
    }
}
