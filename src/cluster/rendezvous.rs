//! Which node a shard is for: of all candidates the one with the highest hash of both
//! (rendezvous hashing). A node that comes or goes moves its own share alone.

use crate::words::ShardId;

/// How shards and recipients are spread. Nodes that do it in another way can't share a database.
pub const HASH: &str = "sha256, rendezvous 1";

/// The nodes that shards may be for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Candidates {
    /// Seed and name.
    nodes: Vec<(u64, String)>,
}

impl Candidates {
    /// These nodes, whatever their order.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut nodes: Vec<_> =
            names.into_iter().map(|name| (seed(name), name.to_owned())).collect();
        nodes.sort();
        Candidates { nodes }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The node that a shard is for; none if there is none.
    pub fn of(&self, shard: ShardId) -> Option<&str> {
        let best = self.nodes.iter().max_by_key(|(seed, name)| (mix(seed ^ spread(shard)), name));
        best.map(|(_, name)| name.as_str())
    }
}

/// FNV-1a of the name, its bits spread.
fn seed(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

fn spread(shard: ShardId) -> u64 {
    (u64::from(shard.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The end of splitmix64: each bit of the input moves half of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(names: &[&str]) -> Vec<String> {
        let candidates = Candidates::new(names.iter().copied());
        (0..4096).map(|shard| candidates.of(ShardId(shard)).unwrap().to_owned()).collect()
    }

    #[test]
    fn shards_are_spread_evenly_whatever_the_order() {
        let of = owners(&["n1", "n2", "n3"]);
        assert_eq!(of, owners(&["n3", "n1", "n2"]));
        for node in ["n1", "n2", "n3"] {
            let share = of.iter().filter(|owner| *owner == node).count();
            assert!((1220..1510).contains(&share), "{node} has {share} of 4096");
        }
        assert_eq!(Candidates::default().of(ShardId(0)), None);
    }

    #[test]
    fn a_node_that_goes_moves_its_own_share_alone() {
        let (before, after) = (owners(&["n1", "n2", "n3"]), owners(&["n1", "n3"]));
        for (before, after) in before.iter().zip(&after) {
            assert!(before == "n2" || before == after);
        }
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        let of = owners(&["n1", "n2", "n3"]);
        let first: Vec<&str> = of.iter().take(12).map(String::as_str).collect();
        assert_eq!(first, FIRST);
    }

    const FIRST: [&str; 12] =
        ["n1", "n1", "n1", "n3", "n2", "n2", "n1", "n1", "n2", "n2", "n3", "n2"];
}
