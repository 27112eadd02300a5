//! From what was written to what holds: ranges, names, secrets, and that parts fit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use jid::{BareJid, DomainPart};

use super::cluster;
use super::forward;
use super::raw::{RawForward, RawNode, RawOverride, RawQuota, RawServer, RawStore};
use super::source::Merged;
use super::{
    Address, ConfigError, ControlSocket, ForwardSettings, HttpSettings, LogFormat, LogSettings,
    NodeSettings, Problem, Problems, ProcessorSettings, QuotaLimits, QuotaOver, QuotaOverride,
    QuotaSettings, Secret, SecurityLevel, ServerSettings, Settings, Size, StoreSettings, StoreUrl,
};
use crate::store::{check_url, url_has_password};

const MAX_SHARDS: u32 = 65_536;
pub(super) const MAX_NAME: usize = 64;
/// The 107 bytes of the system, less what a socket is called while it is made.
const MAX_SOCKET: usize = 100;
/// A hundred years: what is longer is a slip, and the sum with a time could overflow.
const MAX_RETENTION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Far more than a secret has, and little enough to read before looking.
const MAX_SECRET_FILE: u64 = 4096;

/// The settings when nothing was written.
pub(super) fn defaults() -> Settings {
    // reason: the defaults are constants, and a test checks them
    check(Merged::nothing()).expect("the defaults are valid").0
}

/// Checks everything, and reports everything that is wrong.
pub(super) fn check(merged: Merged) -> Result<(Settings, Vec<String>), ConfigError> {
    let Merged { raw, file, origins, problems } = merged;
    let refused = problems.iter().map(|problem| problem.key.clone()).collect();
    let mut check = Check { origins, refused, problems, warnings: Vec::new() };
    let parts = raw.store.parts.iter().filter_map(|part| part.url.as_deref());
    let has_secret = raw.servers.iter().any(|server| server.secret.is_some())
        || parts.chain([&*raw.store.url]).any(url_has_password)
        || raw.cluster.nats.iter().any(|url| cluster::has_password(url));
    if let Some(file) = file.filter(|_| has_secret) {
        check.readable_by_all(&file);
    }
    let servers = check.servers(raw.servers);
    let processor = check.processor(raw.processor.shards, &raw.processor.security_level);
    let shards = processor.as_ref().map(|processor| processor.shards);
    let has_file = has_file(&raw.store);
    let settings = (
        check.node(raw.node),
        processor,
        check.store(raw.store, shards),
        check.quota(raw.quota),
        check.forward(raw.forward, servers.as_deref()),
        servers,
        check.listen(&raw.http.listen),
        check.cluster(raw.cluster, has_file),
        check.log(raw.log.filter, &raw.log.format),
    );
    match settings {
        (
            Some(node),
            Some(processor),
            Some(store),
            Some(quota),
            Some(forward),
            Some(servers),
            Some(http),
            Some(cluster),
            Some(log),
        ) if check.problems.is_empty() => {
            let settings =
                Settings { node, processor, store, quota, servers, forward, http, cluster, log };
            Ok((settings, check.warnings))
        }
        _ => {
            check.problems.sort();
            Err(ConfigError::Invalid(Problems(check.problems)))
        }
    }
}

/// What a check found. Each method gives nothing only after it has noted a problem.
pub(super) struct Check {
    origins: BTreeMap<String, String>,
    /// Keys that were left out of the raw settings because they could not be read; that
    /// they seem to be missing is no news.
    refused: BTreeSet<String>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Check {
    pub(super) fn problem(&mut self, key: &str, value: Option<String>, says: impl Into<String>) {
        if self.refused.contains(key) {
            return;
        }
        let origin = self.origins.get(key).cloned();
        self.problems.push(Problem { key: key.to_owned(), origin, value, says: says.into() });
    }

    /// Whether the key stands somewhere, with whatever value.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.origins.contains_key(key) || self.refused.contains(key)
    }

    /// `says` as a problem of a key whose value may be shown.
    pub(super) fn refuse<T>(
        &mut self,
        key: &str,
        value: impl std::fmt::Debug,
        says: impl Into<String>,
    ) -> Option<T> {
        self.problem(key, Some(format!("{value:?}")), says);
        None
    }

    fn node(&mut self, raw: RawNode) -> Option<NodeSettings> {
        let control = match raw.control.as_str() {
            "" => Some(ControlSocket::Off),
            "auto" => Some(ControlSocket::Auto),
            path if path.len() <= MAX_SOCKET => Some(ControlSocket::At(path.into())),
            path => {
                let says = format!(
                    "is longer than {MAX_SOCKET} bytes, which no socket's path may be; choose a shorter one"
                );
                self.refuse("node.control", path, says)
            }
        };
        let name = self.name(raw.name);
        Some(NodeSettings { name: name?, control: control? })
    }

    fn name(&mut self, name: String) -> Option<String> {
        match is_name(&name) {
            true => Some(name),
            false => self.refuse(
                "node.name",
                name,
                "must be 1 to 64 of the letters a to z, digits, '-' and '_'",
            ),
        }
    }

    fn processor(&mut self, shards: i64, level: &str) -> Option<ProcessorSettings> {
        let shards = match u32::try_from(shards)
            .ok()
            .filter(|shards| (1..=MAX_SHARDS).contains(shards))
        {
            Some(shards) => Some(shards),
            None => {
                self.refuse("processor.shards", shards, "must be 1 to 65536; leave it out for 256")
            }
        };
        let levels = [SecurityLevel::Strict, SecurityLevel::Performance, SecurityLevel::None];
        let security_level = match levels.into_iter().find(|known| known.as_str() == level) {
            Some(level) => Some(level),
            None => self.refuse(
                "processor.security_level",
                level,
                "must be \"strict\", \"performance\" or \"none\"; leave it out for \"strict\"",
            ),
        };
        Some(ProcessorSettings { shards: shards?, security_level: security_level? })
    }

    fn store(&mut self, raw: RawStore, shards: Option<u32>) -> Option<StoreSettings> {
        let has_password = url_has_password(&raw.url);
        let is_file = raw.url.starts_with("sqlite:");
        let has_parts = !raw.parts.is_empty();
        let parts = self.parts(raw.parts, shards);
        let url = self.url("store.url", raw.url);
        let password = match raw.password_file.as_str() {
            "" => Some(None),
            _ if has_parts => Some(None),
            path => {
                self.password_file("store.password_file", path, has_password, is_file).map(Some)
            }
        };
        let password_file = Some(raw.password_file).filter(|path| !path.is_empty());
        let retention = match humantime::parse_duration(&raw.retention) {
            Ok(Duration::ZERO) => Some(None),
            Ok(time) if (Duration::from_secs(1)..=MAX_RETENTION).contains(&time) => {
                Some(Some(time))
            }
            Ok(_) => self.refuse(
                "store.retention",
                raw.retention,
                "must be \"0s\" (for ever) or 1s to 100 years",
            ),
            Err(_) => self.refuse(
                "store.retention",
                raw.retention,
                "must be a time with its unit, as \"90days\" or \"12h\"; \"0s\" is for ever",
            ),
        };
        Some(StoreSettings {
            url: url?,
            password: password?,
            password_file: password_file.map(Into::into),
            retention: retention?,
            parts: parts?,
        })
    }

    fn quota(&mut self, raw: RawQuota) -> Option<QuotaSettings> {
        let key = |name: &str| format!("quota.{name}");
        let messages_per_user = self.messages(&key("messages_per_user"), raw.messages_per_user);
        let bytes_per_user = self.size(&key("bytes_per_user"), &raw.bytes_per_user);
        let messages_per_sender =
            self.messages(&key("messages_per_sender"), raw.messages_per_sender);
        let bytes_per_sender = self.size(&key("bytes_per_sender"), &raw.bytes_per_sender);
        let over = self.over(&key("over"), &raw.over);
        let overrides: Vec<_> =
            raw.overrides.into_iter().enumerate().map(|(i, own)| self.quota_of(i, own)).collect();
        let overrides: Vec<QuotaOverride> = overrides.into_iter().collect::<Option<_>>()?;
        let mut names = BTreeMap::new();
        for (index, own) in overrides.iter().enumerate() {
            if let Some(first) = names.insert(&*own.whose, index) {
                let key = format!("quota.override[{index}].for");
                let says = format!("is that of quota.override[{first}] already; write one");
                self.problem(&key, Some(format!("{:?}", own.whose)), says);
            }
        }
        let general = QuotaLimits {
            messages_per_user: messages_per_user?,
            bytes_per_user: bytes_per_user?,
            messages_per_sender: messages_per_sender?,
            bytes_per_sender: bytes_per_sender?,
            over: over?,
        };
        Some(QuotaSettings { general, overrides })
    }

    fn quota_of(&mut self, index: usize, raw: RawOverride) -> Option<QuotaOverride> {
        let key = |name: &str| format!("quota.override[{index}].{name}");
        let whose = self.whose(&key("for"), raw.whose.as_deref());
        let messages_per_user =
            raw.messages_per_user.map(|n| self.messages(&key("messages_per_user"), n));
        let bytes_per_user = raw.bytes_per_user.map(|n| self.size(&key("bytes_per_user"), &n));
        let messages_per_sender =
            raw.messages_per_sender.map(|n| self.messages(&key("messages_per_sender"), n));
        let bytes_per_sender =
            raw.bytes_per_sender.map(|n| self.size(&key("bytes_per_sender"), &n));
        let over = raw.over.map(|over| self.over(&key("over"), &over));
        // What is written must be right; what is not is inherited.
        Some(QuotaOverride {
            whose: whose?,
            messages_per_user: given(messages_per_user)?,
            bytes_per_user: given(bytes_per_user)?,
            messages_per_sender: given(messages_per_sender)?,
            bytes_per_sender: given(bytes_per_sender)?,
            over: given(over)?,
        })
    }

    /// A user or a domain, as a server writes it.
    fn whose(&mut self, key: &str, text: Option<&str>) -> Option<String> {
        const SAYS: &str = "must be a user or a domain, as \"bob@example.org\" or \"example.org\"";
        let Some(text) = text else {
            self.problem(key, None, format!("is missing; it {SAYS}"));
            return None;
        };
        match BareJid::new(text) {
            Ok(jid) => Some(jid.to_string()),
            Err(_) => self.refuse(key, text, SAYS),
        }
    }

    fn messages(&mut self, key: &str, limit: i64) -> Option<u64> {
        match u64::try_from(limit) {
            Ok(limit) => Some(limit),
            Err(_) => {
                self.refuse(key, limit, "must be 0 (no limit) or a number of messages above it")
            }
        }
    }

    fn size(&mut self, key: &str, text: &str) -> Option<Size> {
        match text.parse() {
            Ok(size) => Some(size),
            Err(bad) => self.refuse(key, text, format!("{bad}; \"0\" is no limit")),
        }
    }

    fn over(&mut self, key: &str, text: &str) -> Option<QuotaOver> {
        let known = [QuotaOver::Error, QuotaOver::Drop];
        match known.into_iter().find(|known| known.as_str() == text) {
            Some(over) => Some(over),
            None => self.refuse(key, text, "must be \"error\" or \"drop\""),
        }
    }

    pub(super) fn url(&mut self, key: &str, url: String) -> Option<StoreUrl> {
        match check_url(&url) {
            Ok(()) => Some(StoreUrl(url)),
            Err(reason) => {
                // It may be a password, or hold one.
                self.problem(key, None, reason);
                None
            }
        }
    }

    pub(super) fn password_file(
        &mut self,
        key: &str,
        path: &str,
        has_password: bool,
        is_file: bool,
    ) -> Option<Secret> {
        if is_file {
            return self.refuse(key, path, "is for a database server; SQLite has no password");
        }
        if has_password {
            let url = key.replace("password_file", "url");
            let says = format!("stands beside a password in {url}; keep one of the two");
            return self.refuse(key, path, says);
        }
        self.secret_file(key, path)
    }

    fn servers(&mut self, raw: Vec<RawServer>) -> Option<Vec<ServerSettings>> {
        if raw.is_empty() {
            self.warnings.push(
                "no server is configured, so nothing is connected; \
                 add a [[servers]] section with component, secret and hosts (see config/default.toml)"
                    .to_owned(),
            );
        }
        let servers: Vec<_> =
            raw.into_iter().enumerate().map(|(index, server)| self.server(index, server)).collect();
        let mut components = BTreeMap::new();
        for (index, server) in servers.iter().enumerate() {
            let Some(server) = server else { continue };
            let mut hosts = BTreeSet::new();
            let component = server.component.as_str();
            if let Some(first) = components.insert(component, index) {
                let says =
                    format!("is the component of servers[{first}] already; give each link its own");
                self.problem(
                    &format!("servers[{index}].component"),
                    Some(format!("{component:?}")),
                    says,
                );
            }
            for host in &server.hosts {
                if !hosts.insert(host.as_str()) {
                    let says =
                        format!("is in servers[{index}].hosts already; name each host once a link");
                    self.problem(
                        &format!("servers[{index}].hosts"),
                        Some(format!("{:?}", host.as_str())),
                        says,
                    );
                }
            }
        }
        servers.into_iter().collect()
    }

    fn server(&mut self, index: usize, raw: RawServer) -> Option<ServerSettings> {
        let key = |name: &str| format!("servers[{index}].{name}");
        let address = match raw.address.parse::<Address>() {
            Ok(address) => Some(address),
            Err(bad) => self.refuse(&key("address"), &raw.address, bad.to_string()),
        };
        let component = match &raw.component {
            Some(text) => self.domain(&key("component"), text),
            None => {
                self.problem(
                    &key("component"),
                    None,
                    "is missing; write the component's domain, as \"amp.example.org\"",
                );
                None
            }
        };
        let secret = self.secret(
            &key("secret"),
            &key("secret_file"),
            raw.secret,
            raw.secret_file.as_deref(),
        );
        let hosts: Vec<_> = raw.hosts.iter().map(|host| self.domain(&key("hosts"), host)).collect();
        if hosts.is_empty() {
            self.problem(
                &key("hosts"),
                None,
                "names no host; list the virtual hosts, as [\"example.org\"]",
            );
        }
        let hosts: Vec<_> = hosts.into_iter().collect::<Option<_>>()?;
        let component = component?;
        if hosts.contains(&component) {
            self.refuse(
                &key("hosts"),
                component.as_str(),
                "is the component itself; name the hosts of the users",
            )?;
        }
        let secret_file = raw.secret_file.map(Into::into);
        Some(ServerSettings { address: address?, component, secret: secret?, secret_file, hosts })
    }

    fn forward(
        &mut self,
        raw: Vec<RawForward>,
        servers: Option<&[ServerSettings]>,
    ) -> Option<Vec<ForwardSettings>> {
        let wrong = match forward::check(raw, servers) {
            Ok(entries) => return Some(entries),
            Err(wrong) => wrong,
        };
        for (key, value, says) in wrong {
            self.problem(&key, value, says);
        }
        None
    }

    fn domain(&mut self, key: &str, text: &str) -> Option<DomainPart> {
        match DomainPart::new(text) {
            Ok(domain) => Some(domain.into_owned()),
            Err(error) => {
                self.refuse(key, text, format!("must be a domain, as \"example.org\" ({error})"))
            }
        }
    }

    fn secret(
        &mut self,
        key: &str,
        file_key: &str,
        text: Option<Secret>,
        file: Option<&str>,
    ) -> Option<Secret> {
        match (text, file) {
            (Some(secret), None) if !secret.expose().is_empty() => Some(secret),
            (Some(_), None) => {
                self.problem(
                    key,
                    None,
                    "is empty; write the secret that the server has for this component",
                );
                None
            }
            (None, Some(path)) => self.secret_file(file_key, path),
            (Some(_), Some(_)) => {
                self.problem(key, None, "stands beside secret_file; keep one of the two");
                None
            }
            (None, None) => {
                self.problem(key, None, "is missing; write secret, or secret_file with the name of a file that holds it");
                None
            }
        }
    }

    /// What a file holds that only this user should read.
    pub(super) fn secret_text(&mut self, key: &str, path: &str) -> Option<String> {
        match read_limited(Path::new(path)) {
            Ok(text) => {
                self.readable_by_all(Path::new(path));
                Some(text)
            }
            Err(error) => self.refuse(key, path, format!("cannot be read: {error}")),
        }
    }

    fn secret_file(&mut self, key: &str, path: &str) -> Option<Secret> {
        let text = self.secret_text(key, path)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let line = line.strip_suffix('\r').unwrap_or(line);
        match line {
            "" => self.refuse(key, path, "holds nothing; write the secret into it"),
            line if line.contains(['\n', '\r']) => {
                self.refuse(key, path, "holds several lines; write the secret alone")
            }
            line => Some(Secret::from(line)),
        }
    }

    #[cfg(unix)]
    fn readable_by_all(&mut self, path: &Path) {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map(|data| data.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o004 != 0) {
            let path = path.display();
            self.warnings.push(format!(
                "'{path}' holds a secret and every user can read it; run: chmod o-rwx '{path}'"
            ));
        }
    }

    #[cfg(not(unix))]
    fn readable_by_all(&mut self, _: &Path) {}

    fn listen(&mut self, text: &str) -> Option<HttpSettings> {
        if text.is_empty() {
            return Some(HttpSettings { listen: None });
        }
        match text.parse::<SocketAddr>() {
            Ok(address) => Some(HttpSettings { listen: Some(address) }),
            Err(_) => self.refuse(
                "http.listen",
                text,
                "must be an IP address and a port, as \"127.0.0.1:9079\"; \"\" turns it off",
            ),
        }
    }

    fn log(&mut self, filter: String, format: &str) -> Option<LogSettings> {
        let format = match [LogFormat::Text, LogFormat::Json]
            .into_iter()
            .find(|known| known.as_str() == format)
        {
            Some(format) => Some(format),
            None => self.refuse(
                "log.format",
                format,
                "must be \"text\" or \"json\"; leave it out for \"text\"",
            ),
        };
        let filter = match tracing_subscriber::EnvFilter::try_new(&filter) {
            Ok(_) => Some(filter),
            Err(_) => self.refuse(
                "log.filter",
                filter,
                "must be a level (error, warn, info, debug, trace), or such as \"info,amphora::link=debug\"",
            ),
        };
        Some(LogSettings { filter: filter?, format: format? })
    }
}

/// A value that was left out, or written and right; nothing if it is wrong.
fn given<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => value.map(Some),
    }
}

/// Whether a name will do for a node, a part or a cluster.
pub(super) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Whether a database of the store is a file.
fn has_file(store: &RawStore) -> bool {
    let is_file = |url: &str| url.starts_with("sqlite:");
    match store.parts.is_empty() {
        true => is_file(&store.url),
        false => store.parts.iter().filter_map(|part| part.url.as_deref()).any(is_file),
    }
}

fn read_limited(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let read = std::fs::File::open(path)?.take(MAX_SECRET_FILE + 1).read_to_string(&mut text)?;
    if read as u64 > MAX_SECRET_FILE {
        return Err(std::io::Error::other("more than 4096 bytes"));
    }
    Ok(text)
}
