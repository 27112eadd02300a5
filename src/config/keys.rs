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

/// The section that comes any number of times, `[[servers]]`.
pub(super) const SERVERS: &str = "servers";

/// More servers than this are a mistake in an index, not a configuration.
pub(super) const MAX_SERVERS: usize = 1_000;

const KEYS: &[(&str, &str, Kind)] = &[
    ("node", "name", Kind::Text),
    ("processor", "shards", Kind::Integer),
    ("processor", "security_level", Kind::Text),
    ("store", "url", Kind::Text),
    ("store", "password_file", Kind::Text),
    ("store", "messages_per_user", Kind::Integer),
    ("store", "retention", Kind::Text),
    (SERVERS, "address", Kind::Text),
    (SERVERS, "component", Kind::Text),
    (SERVERS, "secret", Kind::Secret),
    (SERVERS, "secret_file", Kind::Text),
    (SERVERS, "hosts", Kind::List),
    ("http", "listen", Kind::Text),
    ("cluster", "nats", Kind::List),
    ("log", "filter", Kind::Text),
    ("log", "format", Kind::Text),
];

/// The kind of a key, if there is such a key.
pub(super) fn kind(section: &str, name: &str) -> Option<Kind> {
    KEYS.iter().find(|key| key.0 == section && key.1 == name).map(|key| key.2)
}

/// Whether there is such a section.
pub(super) fn is_section(section: &str) -> bool {
    KEYS.iter().any(|key| key.0 == section)
}

/// What an unknown key should have been, for an error.
pub(super) fn known(section: &str) -> String {
    if is_section(section) {
        let names: Vec<_> = KEYS.iter().filter(|key| key.0 == section).map(|key| key.1).collect();
        let open =
            if section == SERVERS { format!("[[{section}]]") } else { format!("[{section}]") };
        return format!("unknown key; the keys of {open} are {}", names.join(", "));
    }
    let mut sections: Vec<_> = KEYS.iter().map(|key| key.0).collect();
    sections.dedup();
    format!("unknown section; the sections are {}", sections.join(", "))
}
