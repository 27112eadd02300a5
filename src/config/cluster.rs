//! `[cluster]`: the NATS servers that join several nodes, and how a node reaches them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

use super::Secret;
use super::check::{Check, MAX_NAME, is_name};
use super::raw::RawCluster;

/// Below it, a busy machine would be taken for a dead one.
const MIN_LEASE: Duration = Duration::from_secs(1);

/// Users of a node that died wait so long.
const MAX_LEASE: Duration = Duration::from_secs(60);

/// `[cluster]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// The NATS servers; empty: the node is alone.
    pub nats: Vec<NatsUrl>,
    /// The name of the cluster: several may use the same NATS servers.
    pub name: String,
    /// How long a node may be silent before its shards are taken, 1 s to 60 s.
    pub lease: Duration,
    /// What the node shows to NATS: the text of a `.creds` file, with a JWT and a seed.
    pub credentials: Option<Secret>,
    /// Where that was read from.
    pub credentials_file: Option<PathBuf>,
    /// A PEM file with the certificates that may have signed those of the NATS servers; none:
    /// those that the system trusts.
    pub root_certificate: Option<PathBuf>,
    /// PEM files with a certificate that the node shows to NATS, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl ClusterSettings {
    /// Whether there is a cluster at all.
    pub fn is_on(&self) -> bool {
        !self.nats.is_empty()
    }
}

/// The URL of a NATS server. `Display` and `Debug` show neither user nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsUrl(String);

impl NatsUrl {
    /// The whole URL, for the connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("nats", &self.0));
        match rest.rsplit_once('@') {
            Some((_, host)) => write!(f, "{scheme}://***@{host}"),
            None => f.write_str(&self.0),
        }
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Whether a URL holds a password.
pub(super) fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.rsplit_once('@').is_some_and(|(user, _)| !user.is_empty())
}

impl Check {
    /// `has_file`: a database of the store is a file of this machine.
    pub(super) fn cluster(&mut self, raw: RawCluster, has_file: bool) -> Option<ClusterSettings> {
        if !raw.nats.is_empty() && has_file {
            self.problem(
                "cluster.nats",
                None,
                "stands beside an SQLite database, which nodes can't share; set store.url to a \
                 PostgreSQL, MySQL or MariaDB database, or leave cluster.nats out",
            );
        }
        let nats: Vec<_> = raw.nats.into_iter().map(|url| self.nats_url(url)).collect();
        let name = self.cluster_name(raw.name);
        let lease = self.lease(raw.lease);
        let credentials = match raw.credentials.as_str() {
            "" => Some(None),
            path => self.credentials(path).map(Some),
        };
        let root_certificate = self.pem("cluster.root_certificate", raw.root_certificate);
        let certificate = self.pem("cluster.certificate", raw.certificate);
        let key = self.pem("cluster.key", raw.key);
        let identity = match (certificate?, key?) {
            (Some(certificate), Some(key)) => Some(Some((certificate, key))),
            (None, None) => Some(None),
            (Some(_), None) => self.half("cluster.certificate", "cluster.key"),
            (None, Some(_)) => self.half("cluster.key", "cluster.certificate"),
        };
        Some(ClusterSettings {
            nats: nats.into_iter().collect::<Option<_>>()?,
            name: name?,
            lease: lease?,
            credentials: credentials?,
            credentials_file: Some(raw.credentials).filter(|path| !path.is_empty()).map(Into::into),
            root_certificate: root_certificate?,
            identity: identity?,
        })
    }

    fn nats_url(&mut self, url: String) -> Option<NatsUrl> {
        let good = url.parse::<ServerAddr>().is_ok_and(|address| {
            ["nats", "tls"].contains(&address.scheme()) && !address.host().is_empty()
        });
        if !good {
            // Not shown: it may hold a password.
            self.problem(
                "cluster.nats",
                None,
                "must be URLs of NATS servers, as [\"nats://nats1:4222\", \"tls://nats2:4222\"]; \
                 [] for a node that is alone",
            );
            return None;
        }
        Some(NatsUrl(url))
    }

    fn cluster_name(&mut self, name: String) -> Option<String> {
        match is_name(&name) {
            true => Some(name),
            false => self.refuse(
                "cluster.name",
                name,
                format!("must be 1 to {MAX_NAME} of the letters a to z, digits, '-' and '_'"),
            ),
        }
    }

    fn lease(&mut self, text: String) -> Option<Duration> {
        match humantime::parse_duration(&text) {
            Ok(time) if (MIN_LEASE..=MAX_LEASE).contains(&time) => Some(time),
            _ => self.refuse("cluster.lease", text, "must be 1s to 60s; leave it out for 3s"),
        }
    }

    fn credentials(&mut self, path: &str) -> Option<Secret> {
        let text = self.secret_text("cluster.credentials", path)?;
        match ConnectOptions::with_credentials(&text) {
            Ok(_) => Some(Secret::from(text)),
            Err(_) => self.refuse(
                "cluster.credentials",
                path,
                "holds no credentials of NATS; name a file with a JWT and a seed, as `nsc generate creds` writes it",
            ),
        }
    }

    /// A file that the connection reads; here it is only looked whether it can.
    fn pem(&mut self, key: &str, path: String) -> Option<Option<PathBuf>> {
        if path.is_empty() {
            return Some(None);
        }
        match std::fs::File::open(&path) {
            Ok(_) => Some(Some(path.into())),
            Err(error) => self.refuse(key, path, format!("cannot be read: {error}")),
        }
    }

    fn half<T>(&mut self, key: &str, other: &str) -> Option<T> {
        self.problem(key, None, format!("stands without {other}; name both files, or none"));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_url_is_not_shown() {
        for (url, shown) in [
            ("nats://a:hunter2@nats1:4222", "nats://***@nats1:4222"),
            ("token@nats1", "nats://***@nats1"),
            ("tls://nats1:4222", "tls://nats1:4222"),
            ("nats1:4222", "nats1:4222"),
        ] {
            let parsed = NatsUrl(url.to_owned());
            assert_eq!(format!("{parsed} {parsed:?}"), format!("{shown} \"{shown}\""));
            assert_eq!(has_password(url), url.contains('@'));
        }
    }
}
