//! Where effects leave for the links: a table of the links that are up, and of the nodes that
//! have others.
//!
//! The queue of a link has no bound of its own: what can be in it is bounded by the
//! windows of the protocol (unanswered intercepts, open batches of announced sessions,
//! stanzas to be sent), which the link watches. So a shard never waits for a link.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;

use crate::words::{Bare, LinkId, MessageId};

use crate::shard::effect::{Send, ToLink};
use crate::shard::request::{Answered, Request};
use crate::shard::wire::{Entry, LinkedHost};

use super::way::Way;

/// The way into one link.
pub type LinkSender = UnboundedSender<Vec<ToLink>>;

#[derive(Debug)]
struct Link {
    hosts: Vec<Arc<str>>,
    sender: LinkSender,
    /// Those whose interceptors have answered.
    greeted: Vec<LinkedHost>,
}

#[derive(Debug, Default)]
struct Table {
    links: HashMap<LinkId, Link>,
    /// The ways to other nodes.
    ways: HashMap<u32, Way>,
    /// The hosts that other nodes have links to. They may be known before there is a way.
    hosts: HashMap<u32, Vec<LinkedHost>>,
    /// The node that runs the broadcasts; zero: this one, or it is not known.
    broadcasts: u32,
}

/// What other nodes were asked to have sent, and have not answered. Bounded by the expiries that may
/// be under way, and by the windows of broadcasts.
#[derive(Debug, Default)]
struct Asked {
    sends: HashMap<u32, HashSet<(Bare, MessageId)>>,
    requests: HashMap<u32, HashSet<u64>>,
}

/// What came to nothing because a node is out of reach.
#[derive(Debug, Default)]
pub struct Lost {
    /// Notices of expiries.
    pub sends: Vec<(Bare, MessageId)>,
    /// Requests, by their numbers.
    pub requests: Vec<u64>,
}

/// The links that are up. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    table: Arc<RwLock<Table>>,
    asked: Arc<Mutex<Asked>>,
}

impl Outbox {
    /// A link is up.
    pub fn add(&self, id: LinkId, hosts: Vec<Arc<str>>, sender: LinkSender) {
        self.change(|table| table.links.insert(id, Link { hosts, sender, greeted: Vec::new() }));
    }

    /// A link is gone; what is told to it from now on is dropped.
    pub fn remove(&self, id: LinkId) {
        self.change(|table| table.links.remove(&id));
    }

    /// The interceptor of a host on a link is there (what its server takes in one stanza), or has
    /// to be greeted anew (none).
    pub fn set_greeted(&self, id: LinkId, host: &Arc<str>, max_stanza: Option<usize>) {
        self.change(|table| {
            let Some(link) = table.links.get_mut(&id) else { return };
            link.greeted.retain(|known| known.name != *host);
            link.greeted
                .extend(max_stanza.map(|max_stanza| LinkedHost { name: host.clone(), max_stanza }));
        });
    }

    /// The hosts whose interceptors are there, on links of this node.
    pub fn greeted(&self) -> Vec<LinkedHost> {
        let mut hosts: Vec<LinkedHost> =
            self.look(|table| table.links.values().flat_map(|l| l.greeted.clone()).collect());
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        hosts.dedup_by(|a, b| a.name == b.name);
        hosts
    }

    /// Says something on a link. On a link that is gone nothing is said: the server
    /// asks again on its next one.
    pub fn tell(&self, id: LinkId, what: Vec<ToLink>) {
        if id.peer() != 0 {
            return self.tell_peer(id, &what);
        }
        self.look(|table| {
            if let Some(link) = table.links.get(&id) {
                // A closed queue is a link that is closing.
                let _ = link.sender.send(what);
            }
        });
    }

    fn tell_peer(&self, id: LinkId, what: &[ToLink]) {
        if let Some(way) = self.way(id.peer()) {
            way.put(what.iter().filter_map(|what| Entry::tell(id, what)).collect());
        }
    }

    fn way(&self, peer: u32) -> Option<Way> {
        self.look(|table| table.ways.get(&peer).cloned())
    }

    /// Sends a stanza through a link that serves the host, here or at another node; gives it back
    /// if there is none.
    pub fn send(&self, host: &str, send: Send) -> Result<(), Send> {
        let Err(send) = self.send_here(host, send) else { return Ok(()) };
        let Some(way) = self.way_to(host) else { return Err(send) };
        let of = (send.user.clone(), send.id);
        self.asked(|asked| asked.sends.entry(way.peer()).or_default().insert(of));
        way.put(vec![Entry::send(&send)]);
        Ok(())
    }

    /// The same through a link of this node alone.
    pub fn send_here(&self, host: &str, send: Send) -> Result<(), Send> {
        self.look(|table| {
            let link = table.links.values().find(|l| l.hosts.iter().any(|h| &**h == host));
            match link {
                Some(link) => link.sender.send(vec![ToLink::Send(send.clone())]).map_err(|_| send),
                None => Err(send),
            }
        })
    }

    /// Asks through a link that serves the host, here or at another node; false if there is none.
    pub fn ask(&self, request: Request) -> bool {
        let Some(request) = self.ask_here(request) else { return true };
        let Some(way) = self.way_to(&request.host) else { return false };
        let number = request.number;
        self.asked(|asked| asked.requests.entry(way.peer()).or_default().insert(number));
        way.put(vec![Entry::request(&request)]);
        true
    }

    /// The same through a link of this node alone; gives it back if there is none.
    pub fn ask_here(&self, request: Request) -> Option<Request> {
        self.look(|table| {
            let link = table.links.values().find(|link| link.hosts.contains(&request.host));
            let Some(link) = link else { return Some(request) };
            let asked = link.sender.send(vec![ToLink::Request(request.clone())]);
            asked.is_err().then_some(request)
        })
    }

    /// Answers what another node has asked.
    pub fn answer(&self, peer: u32, number: u64, answer: &Answered) {
        if let Some(way) = self.way(peer) {
            way.put(vec![Entry::answered(number, answer)]);
        }
    }

    /// Passes a command on to the node that runs the broadcasts; which one, if there is a way to it.
    pub fn command(&self, number: u64, host: Option<Arc<str>>, command: Bytes) -> Option<u32> {
        let way = self.look(|table| table.ways.get(&table.broadcasts).cloned())?;
        way.put(vec![Entry::command(number, host.as_deref(), &command)]);
        Some(way.peer())
    }

    /// Replies to a command that another node has passed on.
    pub fn reply(&self, peer: u32, number: u64, reply: &[u8]) {
        if let Some(way) = self.way(peer) {
            way.put(vec![Entry::reply(number, reply)]);
        }
    }

    fn way_to(&self, host: &str) -> Option<Way> {
        self.look(|table| {
            let serves = |peer: &u32| {
                let hosts = table.hosts.get(peer);
                hosts.is_some_and(|hosts| hosts.iter().any(|known| &*known.name == host))
            };
            table.ways.iter().find(|(peer, _)| serves(peer)).map(|(_, way)| way.clone())
        })
    }

    fn look<T>(&self, at: impl FnOnce(&Table) -> T) -> T {
        at(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, what: impl FnOnce(&mut Table) -> T) -> T {
        what(&mut self.table.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn asked<T>(&self, what: impl FnOnce(&mut Asked) -> T) -> T {
        what(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the router says about other nodes.
impl Outbox {
    /// A way to another node begins.
    pub fn peer_up(&self, way: Way) {
        self.change(|table| table.ways.insert(way.peer(), way));
    }

    /// The way has ended: what was asked there is lost.
    pub fn peer_down(&self, peer: u32) -> Lost {
        self.change(|table| table.ways.remove(&peer));
        self.asked(|asked| Lost {
            sends: asked.sends.remove(&peer).unwrap_or_default().into_iter().collect(),
            requests: asked.requests.remove(&peer).unwrap_or_default().into_iter().collect(),
        })
    }

    /// The node of that number runs the broadcasts; zero: this one does, or it is not known.
    pub fn set_broadcasts(&self, peer: u32) {
        self.change(|table| table.broadcasts = peer);
    }

    /// The other node has links to these hosts.
    pub fn set_peer_hosts(&self, peer: u32, hosts: Vec<LinkedHost>) {
        self.change(|table| match hosts.is_empty() {
            true => drop(table.hosts.remove(&peer)),
            false => drop(table.hosts.insert(peer, hosts)),
        });
    }

    /// Hosts that other nodes have links to, if there are ways there.
    pub fn hosts_of_peers(&self) -> Vec<LinkedHost> {
        self.look(|table| {
            let hosts = table.hosts.iter().filter(|(peer, _)| table.ways.contains_key(peer));
            hosts.flat_map(|(_, hosts)| hosts.clone()).collect()
        })
    }

    /// Another node says what became of a notice.
    pub fn sent_by_peer(&self, user: &Bare, id: MessageId) {
        self.asked(|asked| {
            let of = (user.clone(), id);
            asked.sends.values_mut().for_each(|sends| {
                sends.remove(&of);
            });
        });
    }

    /// Another node has answered a request; false: it was not asked, or is lost already.
    pub fn answered_by_peer(&self, peer: u32, number: u64) -> bool {
        self.asked(|asked| asked.requests.get_mut(&peer).is_some_and(|all| all.remove(&number)))
    }
}
