//! The configuration as written: right keys and right types, nothing more.

use serde::Deserialize;

use super::Secret;

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub node: RawNode,
    pub processor: RawProcessor,
    pub store: RawStore,
    pub servers: Vec<RawServer>,
    pub http: RawHttp,
    pub cluster: RawCluster,
    pub log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNode {
    pub name: String,
}

impl Default for RawNode {
    fn default() -> Self {
        RawNode { name: "amphora".into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProcessor {
    pub shards: i64,
    pub security_level: String,
}

impl Default for RawProcessor {
    fn default() -> Self {
        RawProcessor { shards: 256, security_level: "strict".into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStore {
    pub url: String,
    pub password_file: String,
    pub messages_per_user: i64,
    pub retention: String,
}

impl Default for RawStore {
    fn default() -> Self {
        RawStore {
            url: "sqlite://amphora.db".into(),
            password_file: String::new(),
            messages_per_user: 0,
            retention: "0s".into(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawServer {
    pub address: String,
    pub component: Option<String>,
    pub secret: Option<Secret>,
    pub secret_file: Option<String>,
    pub hosts: Vec<String>,
}

impl Default for RawServer {
    fn default() -> Self {
        RawServer {
            address: "127.0.0.1:5347".into(),
            component: None,
            secret: None,
            secret_file: None,
            hosts: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    pub listen: String,
}

impl Default for RawHttp {
    fn default() -> Self {
        RawHttp { listen: "127.0.0.1:9079".into() }
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCluster {
    pub nats: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLog {
    pub filter: String,
    pub format: String,
}

impl Default for RawLog {
    fn default() -> Self {
        RawLog { filter: "info".into(), format: "text".into() }
    }
}
