//! `[[forward]]`: that each entry leads from one of our hosts to an address, and no further.

use std::collections::BTreeMap;

use jid::{BareJid, DomainPart};

use super::keys::{FORWARD, MAX_LISTED};
use super::raw::RawForward;
use super::{ForwardSettings, ServerSettings};

/// Bytes of one host's entries: they go to its server in one stanza, the greeting, and half
/// of what a server takes by default is left for it.
const MAX_BYTES: usize = 256 * 1024;

/// What an entry costs there beside its two addresses.
const ENTRY_BYTES: usize = 32;

/// One thing that is wrong: the key, the value as it may be shown, what to do.
pub(super) type Wrong = (String, Option<String>, String);

/// The entries, checked, and all that is wrong with them. Without `servers`, which had
/// problems of their own, nothing is said of hosts.
pub(super) fn check(
    raw: Vec<RawForward>,
    servers: Option<&[ServerSettings]>,
) -> Result<Vec<ForwardSettings>, Vec<Wrong>> {
    if raw.len() > MAX_LISTED {
        let says = format!(
            "has {} entries, at most {MAX_LISTED} are allowed; give a whole domain to a gateway, or leave some out",
            raw.len()
        );
        return Err(vec![(FORWARD.to_owned(), None, says)]);
    }
    let mut table = Table::default();
    let entries: Vec<_> =
        raw.into_iter().enumerate().map(|(index, raw)| table.entry(index, raw)).collect();
    let entries: Vec<_> =
        entries.into_iter().enumerate().filter_map(|(index, e)| Some((index, e?))).collect();
    table.ends(&entries);
    if let Some(servers) = servers {
        table.hosts(&entries, servers);
    }
    if table.wrong.is_empty() {
        Ok(entries.into_iter().map(|(_, entry)| entry).collect())
    } else {
        Err(table.wrong)
    }
}

#[derive(Default)]
struct Table {
    wrong: Vec<Wrong>,
}

impl Table {
    fn refuse(&mut self, index: usize, name: &str, value: &str, says: impl Into<String>) {
        let key = format!("{FORWARD}[{index}].{name}");
        self.wrong.push((key, Some(format!("{value:?}")), says.into()));
    }

    fn entry(&mut self, index: usize, raw: RawForward) -> Option<ForwardSettings> {
        let from = self.address(index, "from", raw.from);
        let to = self.address(index, "to", raw.to);
        let (from, to) = (from?, to?);
        match (from.node(), to.node()) {
            (Some(_), None) => {
                let says = "must be an address such as \"bob@example.net\", because from is one";
                self.refuse(index, "to", to.as_str(), says);
                None
            }
            (None, Some(_)) => {
                let says = "must be a domain such as \"gw.example.net\", because from is one";
                self.refuse(index, "to", to.as_str(), says);
                None
            }
            _ => Some(ForwardSettings { from, to }),
        }
    }

    fn address(&mut self, index: usize, name: &str, text: Option<String>) -> Option<BareJid> {
        let Some(text) = text else {
            let key = format!("{FORWARD}[{index}].{name}");
            let says = "is missing; write an address, as \"bob@example.org\", or a domain";
            self.wrong.push((key, None, says.to_owned()));
            return None;
        };
        match BareJid::new(&text) {
            Ok(jid) => Some(jid),
            Err(jid::Error::ResourceInBareJid) => {
                self.refuse(
                    index,
                    name,
                    &text,
                    "has a resource; leave out the '/' and what follows",
                );
                None
            }
            Err(error) => {
                let says =
                    format!("must be an address, as \"bob@example.org\", or a domain ({error})");
                self.refuse(index, name, &text, says);
                None
            }
        }
    }

    /// Each `from` once, and no `to` that leads on: a message is sent on once at each server.
    fn ends(&mut self, entries: &[(usize, ForwardSettings)]) {
        let mut from = BTreeMap::new();
        for (index, entry) in entries {
            if let Some(first) = from.insert(entry.from.as_str(), *index) {
                let says = format!("is in {FORWARD}[{first}] already; send it on to one address");
                self.refuse(*index, "from", entry.from.as_str(), says);
            }
        }
        for (index, entry) in entries {
            let to = entry.to.as_str();
            if entry.from == entry.to {
                let says = "is from itself; name another address, or leave the entry out";
                self.refuse(*index, "to", to, says);
            } else if let Some(next) = from.get(to).or_else(|| from.get(entry.to.domain().as_str()))
            {
                let says =
                    format!("is sent on again by {FORWARD}[{next}]; name the last address here");
                self.refuse(*index, "to", to, says);
            }
        }
    }

    /// Each `from` is of one of our hosts, and the greeting of each host has room for its own.
    fn hosts(&mut self, entries: &[(usize, ForwardSettings)], servers: &[ServerSettings]) {
        let hosts: Vec<&DomainPart> = servers.iter().flat_map(|server| &server.hosts).collect();
        let mut bytes = BTreeMap::<&str, usize>::new();
        for (index, entry) in entries {
            let domain = entry.from.domain().as_str();
            if !hosts.iter().any(|host| host.as_str() == domain) {
                let says = format!(
                    "is not of a host of ours; add \"{domain}\" to the hosts of its [[servers]]"
                );
                self.refuse(*index, "from", entry.from.as_str(), says);
            }
            if servers.iter().any(|server| server.component.as_str() == entry.to.domain().as_str())
            {
                let says =
                    "is at the component of this node, where nobody is; name another address";
                self.refuse(*index, "to", entry.to.as_str(), says);
            }
            let size = ENTRY_BYTES + entry.from.as_str().len() + entry.to.as_str().len();
            *bytes.entry(domain).or_default() += size;
        }
        for (host, bytes) in bytes.into_iter().filter(|(_, bytes)| *bytes > MAX_BYTES) {
            let says = format!(
                "has entries of {bytes} bytes for {host}, at most {MAX_BYTES} are allowed; \
                 give the whole domain to a gateway, or leave some out"
            );
            self.wrong.push((FORWARD.to_owned(), None, says));
        }
    }
}
