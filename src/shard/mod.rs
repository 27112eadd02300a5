//! TODO shard
