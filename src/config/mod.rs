//! Settings: from a TOML file and the environment to checked, typed values.
//!
//! Two types: `raw` is what was written, [`Settings`] what was checked. Only
//! [`load`] makes settings out of text, and it reports all that is wrong at once.
//! `config/default.toml` is the manual of the keys.

mod check;
mod cluster;
mod error;
mod forward;
mod keys;
mod part;
mod quota;
mod raw;
mod secret;
mod settings;
mod show;
mod size;
mod source;

use std::ffi::OsString;
use std::path::Path;

pub use cluster::{ClusterSettings, NatsUrl};
pub use error::{ConfigError, Problem, Problems};
pub use quota::{QuotaLimits, QuotaOver, QuotaOverride, QuotaSettings};
pub use secret::Secret;
pub use settings::{
    Address, BadAddress, ControlSocket, ForwardSettings, HttpSettings, LogFormat, LogSettings,
    NodeSettings, PartSettings, ProcessorSettings, SecurityLevel, ServerSettings, Settings,
    StoreSettings, StoreUrl,
};
pub use size::{BadSize, Size};
pub use source::{DEFAULT_PATHS, FileUsed};

/// Settings, where they came from, and what is odd about them.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings, all checked.
    pub settings: Settings,
    /// The file that was read, if any.
    pub file: FileUsed,
    /// What is allowed but probably not meant, each a line for the log.
    pub warnings: Vec<String>,
}

/// Reads the configuration file and the environment over it, and checks both.
///
/// Without a `path`, the first of [`DEFAULT_PATHS`] that exists is read, and if none
/// does, the defaults hold. Of the `environment`, only the names that begin with
/// `AMPHORA__` matter. Files named by `secret_file` are read too.
pub fn load(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let text = source::read(path)?;
    let merged = source::merge(&text, environment)?;
    let (settings, warnings) = check::check(merged)?;
    Ok(Loaded { settings, file: text.used, warnings })
}
