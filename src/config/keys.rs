//! Which keys there are: the one table that the file and the environment are held
//! against.

/// What may be written for a key, before its range is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// A text that is never shown.
    Secret,
    Integer,
    /// Texts; in the environment separated by commas.
    List,
}

impl Kind {
    /// What to write, for an error.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Kind::Text | Kind::Secret => "must be a text in quotes",
            Kind::Integer => "must be a whole number, without quotes",
            Kind::List => "must be a list of texts, as [\"one\", \"two\"]",
        }
    }
}

/// A section that comes any number of times, `[[servers]]`.
pub(super) const SERVERS: &str = "servers";

/// Another, `[[forward]]`.
pub(super) const FORWARD: &str = "forward";

/// The sections that come any number of times.
pub(super) const LISTS: [&str; 2] = [SERVERS, FORWARD];

/// Any number of these stand in the section `[quota]`, as `[[quota.override]]`.
pub(super) const OVERRIDES: &str = "quota.override";

/// Any number of these stand in the section `[store]`, as `[[store.part]]`.
pub(super) const PARTS: &str = "store.part";

/// More of one section than this are a mistake in an index, not a configuration.
pub(super) const MAX_LISTED: usize = 1_000;

const KEYS: &[(&str, &str, Kind)] = &[
    ("node", "name", Kind::Text),
    ("node", "control", Kind::Text),
    ("processor", "shards", Kind::Integer),
    ("processor", "security_level", Kind::Text),
    ("store", "url", Kind::Text),
    ("store", "password_file", Kind::Text),
    ("store", "retention", Kind::Text),
    (PARTS, "name", Kind::Text),
    (PARTS, "shards", Kind::Text),
    (PARTS, "url", Kind::Text),
    (PARTS, "password_file", Kind::Text),
    ("quota", "messages_per_user", Kind::Integer),
    ("quota", "bytes_per_user", Kind::Text),
    ("quota", "messages_per_sender", Kind::Integer),
    ("quota", "bytes_per_sender", Kind::Text),
    ("quota", "over", Kind::Text),
    (OVERRIDES, "for", Kind::Text),
    (OVERRIDES, "messages_per_user", Kind::Integer),
    (OVERRIDES, "bytes_per_user", Kind::Text),
    (OVERRIDES, "messages_per_sender", Kind::Integer),
    (OVERRIDES, "bytes_per_sender", Kind::Text),
    (OVERRIDES, "over", Kind::Text),
    (SERVERS, "address", Kind::Text),
    (SERVERS, "component", Kind::Text),
    (SERVERS, "secret", Kind::Secret),
    (SERVERS, "secret_file", Kind::Text),
    (SERVERS, "hosts", Kind::List),
    (FORWARD, "from", Kind::Text),
    (FORWARD, "to", Kind::Text),
    ("http", "listen", Kind::Text),
    ("cluster", "nats", Kind::List),
    ("cluster", "name", Kind::Text),
    ("cluster", "lease", Kind::Text),
    ("cluster", "credentials", Kind::Text),
    ("cluster", "root_certificate", Kind::Text),
    ("cluster", "certificate", Kind::Text),
    ("cluster", "key", Kind::Text),
    ("log", "filter", Kind::Text),
    ("log", "format", Kind::Text),
];

/// The kind of a key, if there is such a key.
pub(super) fn kind(section: &str, name: &str) -> Option<Kind> {
    KEYS.iter().find(|key| key.0 == section && key.1 == name).map(|key| key.2)
}

/// Whether there is such a section.
pub(super) fn is_section(section: &str) -> bool {
    !is_nested(section) && KEYS.iter().any(|key| key.0 == section)
}

/// Whether it stands within another section.
fn is_nested(section: &str) -> bool {
    [OVERRIDES, PARTS].contains(&section)
}

/// What is wrong with a key that there is not.
pub(super) fn unknown(section: &str, name: &str) -> String {
    match (section, name) {
        ("store", "messages_per_user") => "has moved; write it under [quota]".to_owned(),
        _ => known(section),
    }
}

/// The first key of a section, for an example.
pub(super) fn first(section: &str) -> &'static str {
    KEYS.iter().find(|key| key.0 == section).map_or("key", |key| key.1)
}

/// What an unknown key should have been, for an error.
pub(super) fn known(section: &str) -> String {
    if is_section(section) || is_nested(section) {
        let names: Vec<_> = KEYS.iter().filter(|key| key.0 == section).map(|key| key.1).collect();
        let is_list = is_nested(section) || LISTS.contains(&section);
        let open = if is_list { format!("[[{section}]]") } else { format!("[{section}]") };
        return format!("unknown key; the keys of {open} are {}", names.join(", "));
    }
    let mut sections: Vec<_> =
        KEYS.iter().map(|key| key.0).filter(|section| is_section(section)).collect();
    sections.dedup();
    format!("unknown section; the sections are {}", sections.join(", "))
}
