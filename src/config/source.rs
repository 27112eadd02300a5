//! Where the configuration stands: the file, and the environment over it.
//!
//! Both are held against the table of keys here, so that an error can name the file or
//! the variable; the `config` crate parses and merges.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use config::{Config, FileFormat, Map, Value, ValueKind};

use super::keys::{self, Kind, LISTS, OVERRIDES, PARTS};
use super::raw::Raw;
use super::{ConfigError, Problem, Problems};

/// Where a file is looked for when none is named, in this order.
pub const DEFAULT_PATHS: [&str; 2] = ["amphora.toml", "/etc/amphora/amphora.toml"];

/// Variables that begin so are settings. Two underscores: container platforms make up
/// `AMPHORA_PORT` and the like for a service of that name.
const PREFIX: &str = "AMPHORA__";

/// Which file was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileUsed {
    /// The one that was asked for.
    Given(PathBuf),
    /// None was asked for, and this is the first of [`DEFAULT_PATHS`] that exists.
    Found(PathBuf),
    /// None; the defaults hold.
    None,
}

impl FileUsed {
    /// The file's path, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            FileUsed::Given(path) | FileUsed::Found(path) => Some(path),
            FileUsed::None => None,
        }
    }
}

impl fmt::Display for FileUsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileUsed::Given(path) => write!(f, "{}", path.display()),
            FileUsed::Found(path) => write!(f, "{} (found)", path.display()),
            FileUsed::None => write!(f, "none ({} not there)", DEFAULT_PATHS.join(" and ")),
        }
    }
}

/// A file's text, unparsed.
pub(super) struct Text {
    pub used: FileUsed,
    text: String,
}

/// Reads the file at `path`, or the first of the default ones.
pub(super) fn read(path: Option<&Path>) -> Result<Text, ConfigError> {
    let used = match path {
        Some(path) => FileUsed::Given(path.to_owned()),
        None => find()?,
    };
    let text = match used.path() {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?,
        None => String::new(),
    };
    Ok(Text { used, text })
}

/// A path that cannot be looked at is an error: the file may be there, and the defaults
/// are not what it says.
fn find() -> Result<FileUsed, ConfigError> {
    for path in DEFAULT_PATHS.map(PathBuf::from) {
        match path.try_exists() {
            Ok(true) => return Ok(FileUsed::Found(path)),
            Ok(false) => {}
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        }
    }
    Ok(FileUsed::None)
}

/// What was written, from all places, and what is wrong with it so far.
pub(super) struct Merged {
    pub raw: Raw,
    pub file: Option<PathBuf>,
    /// Key to file or variable; a key at its default is not in it.
    pub origins: BTreeMap<String, String>,
    pub problems: Vec<Problem>,
}

impl Merged {
    /// Nothing was written anywhere.
    pub(super) fn nothing() -> Self {
        Merged { raw: Raw::default(), file: None, origins: BTreeMap::new(), problems: Vec::new() }
    }
}

/// Parses the file's text and lays the environment over it.
pub(super) fn merge(
    text: &Text,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Merged, ConfigError> {
    let mut found = Found::default();
    if let Some(path) = text.used.path() {
        found.origin = path.display().to_string();
        found.file(parse(path, &text.text)?);
    }
    for (name, value) in environment {
        found.variable(&name, value);
    }
    found.missing_entries();
    found.into_merged(text.used.path())
}

fn parse(path: &Path, text: &str) -> Result<Map<String, Value>, ConfigError> {
    let file = config::File::from_str(text, FileFormat::Toml);
    let table =
        Config::builder().add_source(file).build().and_then(|config| config.cache.into_table());
    table.map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        message: without_excerpt(&error.to_string()),
    })
}

/// A parser's message without the line of the file it quotes, which may hold a secret.
fn without_excerpt(message: &str) -> String {
    let lines =
        message.lines().map(str::trim).filter(|line| !line.is_empty() && !line.contains('|'));
    let line = lines.collect::<Vec<_>>().join(": ");
    line.strip_prefix("TOML parse error ").unwrap_or(&line).to_owned()
}

/// The keys that are known and of the right type, and the problems with the others.
#[derive(Default)]
struct Found {
    /// What is being read.
    origin: String,
    values: BTreeMap<String, Value>,
    origins: BTreeMap<String, String>,
    /// Which numbers there are of each section that comes any number of times.
    listed: BTreeMap<&'static str, BTreeSet<usize>>,
    problems: Vec<Problem>,
}

impl Found {
    fn problem(&mut self, key: &str, value: Option<String>, says: impl Into<String>) {
        let origin = Some(self.origin.clone());
        self.problems.push(Problem { key: key.to_owned(), origin, value, says: says.into() });
    }

    fn put(&mut self, key: String, value: Value) {
        self.origins.insert(key.clone(), self.origin.clone());
        self.values.insert(key, value);
    }

    fn file(&mut self, table: Map<String, Value>) {
        for (section, value) in table {
            if let Some(list) = LISTS.into_iter().find(|list| *list == section) {
                self.list(list, value.kind);
                continue;
            }
            match value.kind {
                ValueKind::Table(table) if keys::is_section(&section) => {
                    self.section(&section, &section, table)
                }
                _ if keys::is_section(&section) => {
                    self.problem(
                        &section,
                        None,
                        format!("must be a section, with a line [{section}]"),
                    );
                }
                _ => self.problem(&section, None, keys::known(&section)),
            }
        }
    }

    fn list(&mut self, list: &'static str, value: ValueKind) {
        let ValueKind::Array(entries) = value else {
            let says = format!("must be a list of tables; write [[{list}]], in two brackets");
            return self.problem(list, None, says);
        };
        for (index, entry) in entries.into_iter().enumerate() {
            self.listed.entry(list).or_default().insert(index);
            match entry.kind {
                ValueKind::Table(table) => self.section(list, &format!("{list}[{index}]"), table),
                _ => self.problem(
                    list,
                    None,
                    format!("must be tables, each under a line [[{list}]]"),
                ),
            }
        }
    }

    fn section(&mut self, section: &str, path: &str, table: Map<String, Value>) {
        for (name, value) in table {
            let key = format!("{path}.{name}");
            if let Some(nested) = [OVERRIDES, PARTS].into_iter().find(|nested| *nested == key) {
                self.nested(nested, value.kind);
                continue;
            }
            match keys::kind(section, &name) {
                None => self.problem(&key, None, keys::unknown(section, &name)),
                Some(kind) if fits(kind, &value.kind) => self.put(key, value),
                Some(Kind::Secret) => self.problem(&key, None, Kind::Secret.expected()),
                Some(kind) => self.problem(&key, shown(&value.kind), kind.expected()),
            }
        }
    }

    /// `[[quota.override]]`, `[[store.part]]`.
    fn nested(&mut self, list: &'static str, value: ValueKind) {
        let ValueKind::Array(tables) = value else {
            return self.problem(list, None, format!("write [[{list}]], in two brackets"));
        };
        for (index, table) in tables.into_iter().enumerate() {
            let path = format!("{list}[{index}]");
            match table.kind {
                ValueKind::Table(table) => {
                    // Also an empty one is there.
                    self.listed.entry(list).or_default().insert(index);
                    self.section(list, &path, table);
                }
                _ => {
                    self.problem(&path, None, format!("must be a table, under a line [[{list}]]"));
                }
            }
        }
    }

    fn variable(&mut self, name: &OsString, value: OsString) {
        let Some(path) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            return;
        };
        let path = path.to_lowercase();
        self.origin = name.to_string_lossy().into_owned();
        let parts: Vec<_> = path.split("__").collect();
        let (list, parts) = match parts.as_slice() {
            ["store", "part", ..] => (Some(PARTS), &parts[1..]),
            parts => (LISTS.into_iter().find(|list| parts.first() == Some(list)), parts),
        };
        let mut entry = None;
        let (section, key, name) = match (list, parts) {
            (None, &[section, name]) => (section, format!("{section}.{name}"), name),
            (Some(list), &[_, index, name]) => match index.parse::<usize>() {
                Ok(index) if index < keys::MAX_LISTED => {
                    entry = Some((list, index));
                    (list, format!("{list}[{index}].{name}"), name)
                }
                _ => {
                    return self.problem(
                        &path,
                        None,
                        format!("the second part must be the number of a [[{list}]], from 0"),
                    );
                }
            },
            (Some(list), _) => {
                let name = keys::first(list).to_uppercase();
                let list = list.to_uppercase().replace('.', "__");
                let says = format!("write AMPHORA__{list}__0__{name} for that of the first");
                return self.problem(&path, None, says);
            }
            (None, &["quota", "override", ..]) => {
                return self.problem(&path, None, "overrides stand in the file alone");
            }
            _ => {
                return self.problem(
                    &path,
                    None,
                    "write AMPHORA__SECTION__KEY, as AMPHORA__STORE__URL",
                );
            }
        };
        let Some(kind) = keys::kind(section, name) else {
            return self.problem(&key, None, keys::unknown(section, name));
        };
        let Ok(text) = value.into_string() else {
            return self.problem(&key, None, "must be UTF-8");
        };
        let value = match kind {
            Kind::Text | Kind::Secret => ValueKind::String(text),
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                ValueKind::Array(items.map(Value::from).collect())
            }
            Kind::Integer => match text.trim().parse::<i64>() {
                Ok(number) => ValueKind::I64(number),
                Err(_) => {
                    return self.problem(&key, Some(format!("{text:?}")), "must be a whole number");
                }
            },
        };
        if let Some((list, index)) = entry {
            self.listed.entry(list).or_default().insert(index);
        }
        self.put(key, Value::from(value));
    }

    /// A variable for the third server says nothing of the second.
    fn missing_entries(&mut self) {
        for (list, indices) in &self.listed {
            let last = indices.last().copied().unwrap_or(0);
            for index in (0..last).filter(|index| !indices.contains(index)) {
                self.problems.push(Problem {
                    key: format!("{list}[{index}]"),
                    origin: None,
                    value: None,
                    says: format!(
                        "is not there, but {list}[{last}] is; number the {list} from 0 without gaps"
                    ),
                });
            }
        }
    }

    fn into_merged(mut self, file: Option<&Path>) -> Result<Merged, ConfigError> {
        let mut builder = Config::builder();
        for (list, indices) in &self.listed {
            for index in 0..indices.last().map_or(0, |last| last + 1) {
                self.values
                    .entry(format!("{list}[{index}]"))
                    .or_insert_with(|| Value::new(None, Map::<String, Value>::new()));
            }
        }
        for (key, value) in self.values {
            builder = builder.set_override(key, value).map_err(unmergeable)?;
        }
        let raw = builder.build().and_then(Config::try_deserialize::<Raw>).map_err(unmergeable)?;
        Ok(Merged {
            raw,
            file: file.map(Path::to_owned),
            origins: self.origins,
            problems: self.problems,
        })
    }
}

/// Only if the table of keys and the raw types differ; the values are not shown.
fn unmergeable(error: config::ConfigError) -> ConfigError {
    let key = match error {
        config::ConfigError::Type { key, .. } | config::ConfigError::At { key, .. } => {
            key.unwrap_or_default()
        }
        _ => String::new(),
    };
    let says = "cannot be read".to_owned();
    ConfigError::Invalid(Problems(vec![Problem { key, origin: None, value: None, says }]))
}

fn fits(kind: Kind, value: &ValueKind) -> bool {
    match (kind, value) {
        (Kind::Text | Kind::Secret, ValueKind::String(_)) | (Kind::Integer, ValueKind::I64(_)) => {
            true
        }
        (Kind::List, ValueKind::Array(items)) => {
            items.iter().all(|item| matches!(item.kind, ValueKind::String(_)))
        }
        _ => false,
    }
}

fn shown(value: &ValueKind) -> Option<String> {
    match value {
        ValueKind::String(text) => Some(format!("{text:?}")),
        ValueKind::Array(_) | ValueKind::Table(_) => None,
        scalar => Some(scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syntax_error_does_not_quote_the_line() {
        let text = "[[servers]]\nsecret = hunter2\n";
        let error = parse(Path::new("a.toml"), text).map(|_| ()).map_err(|error| error.to_string());
        let error = error.expect_err("an unquoted text is not TOML");
        assert!(error.starts_with("'a.toml' is not TOML: at line 2, column 10: "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
