//! What a node says of itself in its key: JSON, so that an operator can read it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::presence::{Key, Terms};
use super::rendezvous::HASH;

/// The version of what nodes say to each other. One that speaks another can't join.
pub const PROTOCOL: u32 = 1;

/// Bytes of a key at most; a longer one is no node's.
pub(super) const MAX_KEY: usize = 64 * 1024;

/// What must be the same on all nodes of a cluster with so many shards.
pub fn terms(shards: u32) -> Terms {
    Terms { shards, hash: HASH.into(), protocol: PROTOCOL }
}

/// What a node tells of itself, beside what [`Key`] has.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Says {
    /// The version of Amphora.
    pub version: Arc<str>,
    /// Who it is in each database that it has open, by the database's name.
    pub numbers: BTreeMap<Arc<str>, u32>,
    /// The components that it has links as.
    pub components: Vec<Arc<str>>,
    /// The hosts behind these.
    pub hosts: Vec<Arc<str>>,
}

/// As it is written. Words that are not known are left to later versions.
#[derive(Serialize, Deserialize)]
struct Written {
    process: u32,
    version: Arc<str>,
    protocol: u32,
    shards: u32,
    hash: Arc<str>,
    lease_ms: u64,
    draining: bool,
    numbers: BTreeMap<Arc<str>, u32>,
    #[serde(default)]
    components: Vec<Arc<str>>,
    #[serde(default)]
    hosts: Vec<Arc<str>>,
}

/// A key as bytes.
pub fn to_bytes(key: &Key<Says>) -> Vec<u8> {
    let Terms { shards, hash, protocol } = key.terms.clone();
    let Says { version, numbers, components, hosts } = key.rest.clone();
    let lease_ms = u64::try_from(key.lease.as_millis()).unwrap_or(u64::MAX);
    let (process, draining) = (key.process, key.draining);
    let written = Written {
        process,
        version,
        protocol,
        shards,
        hash,
        lease_ms,
        draining,
        numbers,
        components,
        hosts,
    };
    // reason: there is no map with keys that are not texts, and no value that fails
    serde_json::to_vec(&written).expect("a key is JSON")
}

/// A key of bytes; the text says what is wrong with them.
pub fn from_bytes(bytes: &[u8]) -> Result<Key<Says>, String> {
    if bytes.len() > MAX_KEY {
        return Err(format!("more than {MAX_KEY} bytes"));
    }
    let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Written { process, version, protocol, shards, hash, lease_ms, draining, .. } = written;
    let Written { numbers, components, hosts, .. } = written;
    Ok(Key {
        process,
        // As in the settings: what is silent for longer is dead to all.
        lease: Duration::from_millis(lease_ms.clamp(1_000, 60_000)),
        draining,
        terms: Terms { shards, hash, protocol },
        rest: Says { version, numbers, components, hosts },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let rest = Says {
            version: "0.1.0".into(),
            numbers: [("".into(), 7)].into(),
            components: vec!["amp.example.org".into()],
            hosts: vec!["example.org".into()],
        };
        let key = Key {
            process: 7,
            lease: Duration::from_secs(3),
            draining: true,
            terms: terms(256),
            rest,
        };
        let bytes = to_bytes(&key);
        assert_eq!(from_bytes(&bytes), Ok(key.clone()));
        let text = String::from_utf8(bytes).unwrap();
        let more = text.replacen('{', r#"{"later":[1],"#, 1);
        assert_eq!(from_bytes(more.as_bytes()), Ok(key));
    }

    #[test]
    fn i7_bytes_that_are_no_key_are_an_error() {
        for bad in ["", "{}", "null", "[1]", r#"{"process":-1}"#, "\u{0}"] {
            assert!(from_bytes(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(from_bytes(&vec![b' '; MAX_KEY + 1]).is_err());
        assert!(from_bytes("[".repeat(MAX_KEY).as_bytes()).is_err());
    }
}
