//! From a recipient to the shard that decides for him.

use sha2::{Digest, Sha256};

use crate::words::ShardId;

/// The first four bytes, big end first, of SHA-256 over the bare JID: the same on every
/// node and, for the choice of a link, in every interceptor.
pub fn hash(bare: &str) -> u32 {
    let digest = Sha256::digest(bare.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// How recipients are spread over shards.
#[derive(Clone, Copy, Debug)]
pub struct ShardMap {
    shards: u32,
}

impl ShardMap {
    /// A map over so many shards; zero counts as one.
    pub fn new(shards: u32) -> Self {
        ShardMap { shards: shards.max(1) }
    }

    /// The shard of a bare JID.
    pub fn shard(&self, bare: &str) -> ShardId {
        ShardId(hash(bare) % self.shards)
    }

    /// How many shards there are.
    pub fn len(&self) -> u32 {
        self.shards
    }

    /// Never: there is one shard at least.
    pub fn is_empty(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_documented_one() {
        // printf 'bob@example.org' | sha256sum
        assert_eq!(hash("bob@example.org"), HASH_OF_BOB);
        assert_eq!(ShardMap::new(256).shard("bob@example.org"), ShardId(HASH_OF_BOB % 256));
    }

    const HASH_OF_BOB: u32 = 0x686b5e4c;

    #[test]
    fn recipients_spread_evenly() {
        let map = ShardMap::new(16);
        let mut seen = [0u32; 16];
        for i in 0..16_000 {
            seen[map.shard(&format!("user{i}@example.org")).0 as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
    }
}
