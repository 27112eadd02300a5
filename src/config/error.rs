//! What can be wrong with a configuration, said so that it can be put right.

use std::fmt;
use std::path::PathBuf;

/// A configuration that a node does not start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, or not for us to read.
    #[error("cannot read the configuration file '{}'", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("'{}' is not TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected there; never the text of the line,
        /// which may hold a secret.
        message: String,
    },
    /// Keys or values are wrong.
    #[error("{0}")]
    Invalid(Problems),
}

/// All that is wrong, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} error{plural} in the configuration", self.0.len())?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The key, such as `processor.shards` or `servers[0].hosts`.
    pub key: String,
    /// The file or the variable that it stands in; none if it stands nowhere.
    pub origin: Option<String>,
    /// The value as it may be shown; none if it is absent or secret.
    pub value: Option<String>,
    /// What is allowed and what to do.
    pub says: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}", self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.says)
    }
}
