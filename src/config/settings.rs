//! The settings of a node, checked. Their meaning to an operator is told in
//! `config/default.toml`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use jid::{BareJid, DomainPart};

use crate::shard_map::ShardSet;

/// All settings of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `[node]`
    pub node: NodeSettings,
    /// `[processor]`
    pub processor: ProcessorSettings,
    /// `[store]`
    pub store: StoreSettings,
    /// `[quota]`
    pub quota: super::QuotaSettings,
    /// `[[servers]]`, in the order of the file; may be empty.
    pub servers: Vec<ServerSettings>,
    /// `[[forward]]`, in the order of the file; may be empty.
    pub forward: Vec<ForwardSettings>,
    /// `[http]`
    pub http: HttpSettings,
    /// `[cluster]`
    pub cluster: super::ClusterSettings,
    /// `[log]`
    pub log: LogSettings,
}

/// The settings without a configuration: alone, SQLite, strict, no server.
impl Default for Settings {
    fn default() -> Self {
        super::check::defaults()
    }
}

/// `[node]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// 1 to 64 letters, digits, `-` and `_`; unique in a cluster.
    pub name: String,
    /// Where commands reach the node.
    pub control: ControlSocket,
}

/// Where the node takes commands from this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlSocket {
    /// Beside the database: its file's name with `.sock` behind it. Where that is a server, or
    /// there are several, the node's name in the working directory.
    Auto,
    /// There; relative to the working directory.
    At(PathBuf),
    /// Nowhere.
    Off,
}

/// `[processor]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessorSettings {
    /// Slices of the recipients, 1 to 65,536.
    pub shards: u32,
    /// What rules may bring back to a sender.
    pub security_level: SecurityLevel,
}

/// How far the answers to rules may tell a sender how a recipient is doing
/// (XEP-0079 section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityLevel {
    /// Only a sender who may see the recipient's presence may use rules that answer;
    /// others may use `drop` alone.
    Strict,
    /// Nobody may use rules that answer, only `drop`; no right is looked up.
    Performance,
    /// Everybody may use every rule.
    None,
}

impl SecurityLevel {
    /// As written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            SecurityLevel::Strict => "strict",
            SecurityLevel::Performance => "performance",
            SecurityLevel::None => "none",
        }
    }
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreSettings {
    /// The database. Not in use where there are parts.
    pub url: StoreUrl,
    /// The password for a database server, over one in the URL.
    pub password: Option<super::Secret>,
    /// Where that password was read from.
    pub password_file: Option<PathBuf>,
    /// How long a message is kept at most; none: for ever.
    pub retention: Option<Duration>,
    /// The databases, where there are several: together they have each shard once. Empty: one
    /// has all.
    pub parts: Vec<PartSettings>,
}

/// `[[store.part]]`: a database that has some of the shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartSettings {
    /// What health and metrics call it; no other part has the name.
    pub name: String,
    /// Which shards.
    pub shards: ShardSet,
    /// The database; no other part has it.
    pub url: StoreUrl,
    /// The password for a database server, over one in the URL.
    pub password: Option<super::Secret>,
    /// Where that password was read from.
    pub password_file: Option<PathBuf>,
}

/// The URL of a database. Of a server's, `Display` and `Debug` show neither user nor password
/// nor parameters.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreUrl(pub(super) String);

impl StoreUrl {
    /// The whole URL, for the driver.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.starts_with("sqlite:") {
            return f.write_str(&self.0);
        }
        let shown = crate::store::shown_url(&self.0);
        match shown.split_once("://") {
            Some((scheme, rest)) if shown != self.0 && rest != "***" => {
                write!(f, "{scheme}://***@{rest}")
            }
            _ => f.write_str(&shown),
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// `[[servers]]`: one link to one XMPP server (XEP-0114).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Where the server takes components.
    pub address: Address,
    /// The component's domain; no other server has it.
    pub component: DomainPart,
    /// Shared with the server.
    pub secret: super::Secret,
    /// Where the secret was read from, unless it stood in the configuration.
    pub secret_file: Option<PathBuf>,
    /// The virtual hosts served through this link; at least one, and none of them
    /// under another server.
    pub hosts: Vec<DomainPart>,
}

/// `[[forward]]`: messages for one address, or for all of a domain, are sent on to another.
/// Both are of users, or both are domains; none of the entries leads to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardSettings {
    /// A user of one of the hosts of `[[servers]]`, or such a host itself.
    pub from: BareJid,
    /// Another user, or the domain of a gateway.
    pub to: BareJid,
}

/// A host name or IP address, and a port. The name is looked up at each connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// 1 to 65,535.
    pub port: u16,
}

/// The text is not `host:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be host:port, as 127.0.0.1:5347 or [::1]:5347")]
pub struct BadAddress;

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(BadAddress)?;
        let port = port.bytes().all(|b| b.is_ascii_digit()).then_some(port).ok_or(BadAddress)?;
        let port = port.parse().ok().filter(|&port| port != 0).ok_or(BadAddress)?;
        let host = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| BadAddress)?.to_string(),
            None if is_name(host) => host.to_owned(),
            None => return Err(BadAddress),
        };
        Ok(Address { host, port })
    }
}

/// Might be a DNS name or an IPv4 address.
fn is_name(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && host.chars().all(|c| c.is_alphanumeric() || "-._".contains(c))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// Where health and metrics are served; none: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Directives of `tracing_subscriber::EnvFilter`, known to parse.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

impl LogFormat {
    /// As written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_they_parse() {
        for good in ["127.0.0.1:5347", "[::1]:5347", "xmpp.example.org:1", "localhost:65535"] {
            assert_eq!(good.parse::<Address>().map(|a| a.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            ":",
            "localhost",
            "localhost:",
            ":5347",
            "::1:5347",
            "a:0",
            "a:65536",
            "a:+1",
            "a b:1",
            "[a]:1",
        ] {
            assert_eq!(bad.parse::<Address>(), Err(BadAddress), "{bad}");
        }
    }

    #[test]
    fn the_password_of_a_url_is_not_shown() {
        let url = StoreUrl("postgres://amphora:hunter2@db/amphora".into());
        assert_eq!(
            format!("{url} {url:?}"),
            "postgres://***@db/amphora \"postgres://***@db/amphora\""
        );
        for open in ["sqlite://amphora.db", "sqlite://a@b.db?mode=rw", "mysql://db/amphora"] {
            assert_eq!(StoreUrl(open.into()).to_string(), open);
        }
        let tigase = StoreUrl("jdbc:mysql://db/tigase?user=u&password=hunter2".into());
        assert_eq!(tigase.to_string(), "jdbc:mysql://***@db/tigase");
    }
}
