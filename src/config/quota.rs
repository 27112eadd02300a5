//! `[quota]`, checked: limits for everybody, and for some users and domains.

use std::collections::HashMap;

use super::Size;

/// What becomes of a message that there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuotaOver {
    /// Its sender gets an error.
    #[default]
    Error,
    /// It is dropped in silence.
    Drop,
}

impl QuotaOver {
    /// As written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            QuotaOver::Error => "error",
            QuotaOver::Drop => "drop",
        }
    }
}

/// How much may be kept for one user; zero is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QuotaLimits {
    /// Messages.
    pub messages_per_user: u64,
    /// Bytes of stanzas.
    pub bytes_per_user: Size,
    /// Messages of one sender.
    pub messages_per_sender: u64,
    /// Bytes of stanzas of one sender.
    pub bytes_per_sender: Size,
    /// What becomes of the rest.
    pub over: QuotaOver,
}

/// `[[quota.override]]`: what is different for a user or a domain; none: as without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaOverride {
    /// A bare JID or a domain, as a server writes it; no other override has it.
    pub whose: String,
    /// Messages.
    pub messages_per_user: Option<u64>,
    /// Bytes of stanzas.
    pub bytes_per_user: Option<Size>,
    /// Messages of one sender.
    pub messages_per_sender: Option<u64>,
    /// Bytes of stanzas of one sender.
    pub bytes_per_sender: Option<Size>,
    /// What becomes of the rest.
    pub over: Option<QuotaOver>,
}

impl QuotaOverride {
    fn over(&self, base: QuotaLimits) -> QuotaLimits {
        QuotaLimits {
            messages_per_user: self.messages_per_user.unwrap_or(base.messages_per_user),
            bytes_per_user: self.bytes_per_user.unwrap_or(base.bytes_per_user),
            messages_per_sender: self.messages_per_sender.unwrap_or(base.messages_per_sender),
            bytes_per_sender: self.bytes_per_sender.unwrap_or(base.bytes_per_sender),
            over: self.over.unwrap_or(base.over),
        }
    }
}

/// `[quota]`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuotaSettings {
    /// For everybody who has no other.
    pub general: QuotaLimits,
    /// In the order of the file.
    pub overrides: Vec<QuotaOverride>,
}

impl QuotaSettings {
    /// The complete limits of everybody who has an override: what a user's leaves out is his
    /// domain's, and what that leaves out is general.
    pub fn by_name(&self) -> HashMap<String, QuotaLimits> {
        let named: HashMap<&str, &QuotaOverride> =
            self.overrides.iter().map(|own| (&*own.whose, own)).collect();
        let limits = |own: &QuotaOverride| {
            let domain = own.whose.split_once('@').and_then(|(_, domain)| named.get(domain));
            own.over(domain.map_or(self.general, |domain| domain.over(self.general)))
        };
        self.overrides.iter().map(|own| (own.whose.clone(), limits(own))).collect()
    }
}
