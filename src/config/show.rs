//! The settings as TOML again, for `amphora check-config`.

use std::fmt::{self, Display, Formatter, Write};
use std::path::Path;

use super::{
    ClusterSettings, ControlSocket, ForwardSettings, NatsUrl, PartSettings, QuotaOverride,
    QuotaSettings, ServerSettings, Settings, StoreSettings,
};

/// The settings as a configuration file that says the same, with each secret and
/// password as `***`.
impl Display for Settings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Settings { node, processor, store, quota, servers, forward, http, cluster, log } = self;
        writeln!(f, "[node]\nname = {}", text(&node.name))?;
        let control = match &node.control {
            ControlSocket::Auto => "auto".into(),
            ControlSocket::At(path) => path.to_string_lossy(),
            ControlSocket::Off => "".into(),
        };
        writeln!(f, "control = {}", text(&control))?;
        writeln!(f, "\n[processor]\nshards = {}", processor.shards)?;
        writeln!(f, "security_level = {}", text(processor.security_level.as_str()))?;
        show_store(store, f)?;
        show_quota(quota, f)?;
        servers.iter().try_for_each(|server| show_server(server, f))?;
        forward.iter().try_for_each(|entry| show_forward(entry, f))?;
        let listen = http.listen.map(|address| address.to_string()).unwrap_or_default();
        writeln!(f, "\n[http]\nlisten = {}", text(&listen))?;
        show_cluster(cluster, f)?;
        writeln!(f, "\n[log]\nfilter = {}", text(&log.filter))?;
        writeln!(f, "format = {}", text(log.format.as_str()))
    }
}

fn show_cluster(cluster: &ClusterSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let ClusterSettings {
        nats,
        name,
        lease,
        credentials: _,
        credentials_file,
        root_certificate,
        identity,
    } = cluster;
    let nats: Vec<String> = nats.iter().map(NatsUrl::to_string).collect();
    writeln!(f, "\n[cluster]\nnats = {}", list(nats.iter().map(String::as_str)))?;
    writeln!(f, "name = {}", text(name))?;
    writeln!(f, "lease = {}", text(&humantime::format_duration(*lease).to_string()))?;
    writeln!(f, "credentials = {}", path(credentials_file.as_deref()))?;
    writeln!(f, "root_certificate = {}", path(root_certificate.as_deref()))?;
    let (certificate, key) = identity.as_ref().map_or((None, None), |(c, k)| (Some(c), Some(k)));
    writeln!(f, "certificate = {}", path(certificate.map(|path| path.as_path())))?;
    writeln!(f, "key = {}", path(key.map(|path| path.as_path())))
}

fn show_store(store: &StoreSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let StoreSettings { url, password: _, password_file, retention, parts } = store;
    writeln!(f, "\n[store]")?;
    if parts.is_empty() {
        writeln!(f, "url = {}", text(&url.to_string()))?;
        writeln!(f, "password_file = {}", path(password_file.as_deref()))?;
    }
    let retention = humantime::format_duration(retention.unwrap_or_default());
    writeln!(f, "retention = {}", text(&retention.to_string()))?;
    parts.iter().try_for_each(|part| show_part(part, f))
}

fn show_part(part: &PartSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let PartSettings { name, shards, url, password: _, password_file } = part;
    writeln!(f, "\n[[store.part]]\nname = {}", text(name))?;
    writeln!(f, "shards = {}", text(&shards.to_string()))?;
    writeln!(f, "url = {}", text(&url.to_string()))?;
    writeln!(f, "password_file = {}", path(password_file.as_deref()))
}

fn path(path: Option<&Path>) -> String {
    text(&path.unwrap_or(Path::new("")).to_string_lossy())
}

fn show_quota(quota: &QuotaSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let QuotaSettings { general, overrides } = quota;
    writeln!(f, "\n[quota]\nmessages_per_user = {}", general.messages_per_user)?;
    writeln!(f, "bytes_per_user = {}", text(&general.bytes_per_user.to_string()))?;
    writeln!(f, "messages_per_sender = {}", general.messages_per_sender)?;
    writeln!(f, "bytes_per_sender = {}", text(&general.bytes_per_sender.to_string()))?;
    writeln!(f, "over = {}", text(general.over.as_str()))?;
    overrides.iter().try_for_each(|own| show_override(own, f))
}

fn show_override(own: &QuotaOverride, f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(f, "\n[[quota.override]]\nfor = {}", text(&own.whose))?;
    if let Some(messages) = own.messages_per_user {
        writeln!(f, "messages_per_user = {messages}")?;
    }
    if let Some(bytes) = own.bytes_per_user {
        writeln!(f, "bytes_per_user = {}", text(&bytes.to_string()))?;
    }
    if let Some(messages) = own.messages_per_sender {
        writeln!(f, "messages_per_sender = {messages}")?;
    }
    if let Some(bytes) = own.bytes_per_sender {
        writeln!(f, "bytes_per_sender = {}", text(&bytes.to_string()))?;
    }
    match own.over {
        Some(over) => writeln!(f, "over = {}", text(over.as_str())),
        None => Ok(()),
    }
}

fn show_server(server: &ServerSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let ServerSettings { address, component, secret, secret_file, hosts } = server;
    writeln!(f, "\n[[servers]]\naddress = {}", text(&address.to_string()))?;
    writeln!(f, "component = {}", text(component.as_str()))?;
    match secret_file {
        Some(path) => writeln!(f, "secret_file = {}", text(&path.to_string_lossy()))?,
        None => writeln!(f, "secret = {}", text(&secret.to_string()))?,
    }
    writeln!(f, "hosts = {}", list(hosts.iter().map(|host| host.as_str())))
}

fn show_forward(entry: &ForwardSettings, f: &mut Formatter<'_>) -> fmt::Result {
    let ForwardSettings { from, to } = entry;
    writeln!(f, "\n[[forward]]\nfrom = {}\nto = {}", text(from.as_str()), text(to.as_str()))
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(text).collect::<Vec<_>>().join(", "))
}

/// A TOML basic string.
fn text(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
