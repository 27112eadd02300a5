//! From a recipient to the shard that decides for him.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

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

/// Some shards, as ranges of their numbers: `0-127`, `0-3,8,12-15`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ShardSet {
    /// In order, and none touches the next.
    ranges: Vec<(u32, u32)>,
}

/// The text names no shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadShards {
    /// It is no list of numbers and ranges.
    #[error("must be numbers and ranges of shards, as \"0-127\" or \"0-3,8\"")]
    Form,
    /// A range ends before it begins.
    #[error("has a range that ends before it begins; write the lower number first")]
    Backwards,
    /// A shard stands in it twice.
    #[error("names shard {0} twice; name each once")]
    Twice(u32),
}

impl ShardSet {
    /// All of so many shards.
    pub fn all(shards: u32) -> Self {
        let ranges = shards.checked_sub(1).map(|last| (0, last));
        ShardSet { ranges: ranges.into_iter().collect() }
    }

    /// Whether it has the shard.
    pub fn contains(&self, shard: ShardId) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&shard.0))
    }

    /// Its ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u32>> + '_ {
        self.ranges.iter().map(|(first, last)| *first..=*last)
    }

    /// The highest shard; none if there is none.
    pub fn last(&self) -> Option<ShardId> {
        self.ranges.last().map(|(_, last)| ShardId(*last))
    }

    fn of(mut ranges: Vec<(u32, u32)>) -> Result<Self, BadShards> {
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, before)) if first <= *before => return Err(BadShards::Twice(first)),
                Some((_, before)) if first - 1 == *before => *before = last,
                _ => merged.push((first, last)),
            }
        }
        Ok(ShardSet { ranges: merged })
    }
}

impl FromStr for ShardSet {
    type Err = BadShards;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| {
            let text = text.trim();
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u32>().ok().filter(|_| digits).ok_or(BadShards::Form)
        };
        let range = |part: &str| match part.split_once('-') {
            Some((first, last)) => match (number(first)?, number(last)?) {
                (first, last) if first <= last => Ok((first, last)),
                _ => Err(BadShards::Backwards),
            },
            None => number(part).map(|one| (one, one)),
        };
        Self::of(text.split(',').map(range).collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for ShardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.ranges.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interceptors_count_the_hash_for_a_link_alike() {
        let vectors = include_str!("../tests/vectors/links.tsv");
        let mut lines = 0;
        for line in vectors.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split('\t').collect();
            let [bare, component, number] = fields[..] else { panic!("{line}") };
            assert_eq!(hash(&format!("{bare}\0{component}")).to_string(), number, "{line}");
            lines += 1;
        }
        assert!(lines > 50);
    }

    #[test]
    fn sets_print_as_they_parse() {
        let set = |text: &str| text.parse::<ShardSet>();
        for (text, shown) in [
            ("0-127", "0-127"),
            (" 8 , 0-3,4", "0-4,8"),
            ("7", "7"),
            ("0-0,2", "0,2"),
            ("4294967295,0", "0,4294967295"),
        ] {
            assert_eq!(set(text).map(|set| set.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for bad in ["", ",", "0-", "-3", "a", "0-3-5", "0..3", "+1", "0-4294967296", "1,,2"] {
            assert_eq!(set(bad), Err(BadShards::Form), "{bad}");
        }
        assert_eq!(set("5-3"), Err(BadShards::Backwards));
        assert_eq!(set("0-5,3"), Err(BadShards::Twice(3)));
        assert_eq!(ShardSet::all(256), set("0-255").unwrap());
        assert_eq!((ShardSet::all(0).to_string(), ShardSet::all(0).last()), (String::new(), None));
        let some = set("0-3,8").unwrap();
        let inside: Vec<u32> = (0..20).filter(|n| some.contains(ShardId(*n))).collect();
        assert_eq!((inside, some.last()), (vec![0, 1, 2, 3, 8], Some(ShardId(8))));
    }

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
