//! The configuration as written: right keys and right types, nothing more.

use serde::Deserialize;

use super::Secret;

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub node: RawNode,
    pub processor: RawProcessor,
    pub store: RawStore,
    pub quota: RawQuota,
    pub servers: Vec<RawServer>,
    pub forward: Vec<RawForward>,
    pub http: RawHttp,
    pub cluster: RawCluster,
    pub log: RawLog,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNode {
    pub name: String,
    pub control: String,
}

impl Default for RawNode {
    fn default() -> Self {
        RawNode { name: "amphora".into(), control: "auto".into() }
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
    pub retention: String,
    #[serde(rename = "part")]
    pub parts: Vec<RawPart>,
}

impl Default for RawStore {
    fn default() -> Self {
        RawStore {
            url: "sqlite://amphora.db".into(),
            password_file: String::new(),
            retention: "0s".into(),
            parts: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPart {
    pub name: Option<String>,
    pub shards: Option<String>,
    pub url: Option<String>,
    pub password_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawQuota {
    pub messages_per_user: i64,
    pub bytes_per_user: String,
    pub messages_per_sender: i64,
    pub bytes_per_sender: String,
    pub over: String,
    #[serde(rename = "override")]
    pub overrides: Vec<RawOverride>,
}

impl Default for RawQuota {
    fn default() -> Self {
        RawQuota {
            messages_per_user: 0,
            bytes_per_user: "0".into(),
            messages_per_sender: 0,
            bytes_per_sender: "0".into(),
            over: "error".into(),
            overrides: Vec::new(),
        }
    }
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOverride {
    #[serde(rename = "for")]
    pub whose: Option<String>,
    pub messages_per_user: Option<i64>,
    pub bytes_per_user: Option<String>,
    pub messages_per_sender: Option<i64>,
    pub bytes_per_sender: Option<String>,
    pub over: Option<String>,
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

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawForward {
    pub from: Option<String>,
    pub to: Option<String>,
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

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCluster {
    pub nats: Vec<String>,
    pub name: String,
    pub lease: String,
    pub credentials: String,
    pub root_certificate: String,
    pub certificate: String,
    pub key: String,
}

impl Default for RawCluster {
    fn default() -> Self {
        RawCluster {
            nats: Vec::new(),
            name: "amphora".into(),
            lease: "3s".into(),
            credentials: String::new(),
            root_certificate: String::new(),
            certificate: String::new(),
            key: String::new(),
        }
    }
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
