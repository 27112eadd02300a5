//! The settings as TOML again, for `amphora check-config`.

use std::fmt::{self, Display, Formatter, Write};
use std::path::Path;

use super::{ServerSettings, Settings};

/// The settings as a configuration file that says the same, with each secret and
/// password as `***`.
impl Display for Settings {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Settings { node, processor, store, servers, http, cluster, log } = self;
        writeln!(f, "[node]\nname = {}", text(&node.name))?;
        writeln!(f, "\n[processor]\nshards = {}", processor.shards)?;
        writeln!(f, "security_level = {}", text(processor.security_level.as_str()))?;
        writeln!(f, "\n[store]\nurl = {}", text(&store.url.to_string()))?;
        let password_file = store.password_file.as_deref().unwrap_or(Path::new(""));
        writeln!(f, "password_file = {}", text(&password_file.to_string_lossy()))?;
        writeln!(f, "messages_per_user = {}", store.messages_per_user.map_or(0, Into::into))?;
        let retention = humantime::format_duration(store.retention.unwrap_or_default());
        writeln!(f, "retention = {}", text(&retention.to_string()))?;
        servers.iter().try_for_each(|server| show_server(server, f))?;
        let listen = http.listen.map(|address| address.to_string()).unwrap_or_default();
        writeln!(f, "\n[http]\nlisten = {}", text(&listen))?;
        writeln!(f, "\n[cluster]\nnats = {}", list(cluster.nats.iter().map(String::as_str)))?;
        writeln!(f, "\n[log]\nfilter = {}", text(&log.filter))?;
        writeln!(f, "format = {}", text(log.format.as_str()))
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
