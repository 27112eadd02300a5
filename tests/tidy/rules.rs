//! The rules themselves: which module is in which layer, and what it may not name.

/// The top-level modules of `src`, and the layer of each. A module uses its own layer and
/// those below it.
const LAYERS: &[(&str, usize)] = &[
    ("ns", 0),
    ("shard_map", 0),
    ("stanza", 0),
    ("time", 0),
    ("words", 0),
    ("xml", 0),
    ("amp", 1),
    ("store", 2),
    ("shard", 3),
    ("broadcast", 4),
    ("router", 4),
    ("cluster", 5),
    ("control", 5),
    ("http", 5),
    ("link", 5),
    ("cli", 6),
    ("config", 6),
    ("node", 6),
    ("telemetry", 6),
];

const ASYNC: &[&str] = &["async", "await", "tokio", "futures", "actix", "actix_rt"];
const CLOCK: &[&str] = &["SystemTime::now", "Instant::now", "Timestamp::now", "Zoned::now"];
const FILES: &[&str] = &["std::fs", "tokio::fs"];
const SOCKETS: &[&str] = &["std::net", "tokio::net", "std::os::unix::net"];
const RANDOM: &[&str] = &["fastrand", "rand"];

/// What the non-test code of a file may not name, each with the reason to print.
pub fn bans(path: &str) -> Vec<(&'static [&'static str], &'static str)> {
    let mut bans: Vec<(&[&str], &str)> = Vec::new();
    let module = top_module(path);
    if module != Some("store") {
        bans.push((&["entities"], "only src/store may use the entities"));
        bans.push((&["sea_orm", "sea_orm_migration"], "only src/store may use the database"));
    }
    let layer = module.and_then(layer);
    if layer.is_some_and(|layer| layer <= 1) {
        bans.push((ASYNC, "layers 0 and 1 have no async"));
        bans.push((CLOCK, "layers 0 and 1 have no clock; take `now` as an argument"));
        bans.push((FILES, "layers 0 and 1 have no I/O"));
        bans.push((RANDOM, "layers 0 and 1 have no random"));
    }
    if layer.is_some_and(|layer| layer <= 4) {
        bans.push((SOCKETS, "sockets begin at layer 5"));
    }
    // All of the shard but the actor round it is a machine: input in, effects out.
    if module == Some("shard") && !path.starts_with("src/shard/actor") {
        bans.push((ASYNC, "the shard's machine has no async; that belongs into its actor"));
        bans.push((CLOCK, "the shard's machine has no clock; take `now` as an argument"));
        bans.push((RANDOM, "the shard's machine has no random"));
    }
    // The same for broadcasts, but for the task round their machine.
    if module == Some("broadcast") && !path.starts_with("src/broadcast/task") {
        bans.push((ASYNC, "the machine of broadcasts has no async; that belongs into its task"));
        bans.push((CLOCK, "the machine of broadcasts has no clock; take `now` as an argument"));
        bans.push((RANDOM, "the machine of broadcasts has no random"));
    }
    // And for who is there, and who owns what.
    let machines = ["machine.rs", "machine/tests.rs", "presence.rs", "rendezvous.rs"];
    if machines.iter().any(|file| path == format!("src/cluster/{file}")) {
        bans.push((ASYNC, "the machines of the cluster have no async; that belongs into its task"));
        bans.push((CLOCK, "the machines of the cluster have no clock; take `now` as an argument"));
        bans.push((RANDOM, "the machines of the cluster have no random"));
    }
    bans
}

pub fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().find(|known| known.0 == module).map(|known| known.1)
}

/// `shard` of `src/shard/actor.rs`; nothing of `src/lib.rs`, and of files outside `src`.
pub fn top_module(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("src/")?;
    let name = rest.split('/').next()?;
    let name = name.strip_suffix(".rs").unwrap_or(name);
    (!["lib", "main", "bin"].contains(&name)).then_some(name)
}
