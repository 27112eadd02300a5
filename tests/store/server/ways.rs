//! The ways to a server that a URL can name.

use std::process::Command;

use amphora::store::{SeaStore, Store, StoreSettings};

use super::facts::{refusal, says};
use super::{Kind, ServerBed, TestServer, on_each_server, value};
use crate::bed::*;

on_each_server!(
    over_a_unix_socket,
    over_tls_as_far_as_the_certificate_is_to_be_trusted,
    a_user_who_must_show_a_certificate,
    as_jdbc_writes_it,
    with_a_password_from_a_file,
);

fn port(at: &ServerBed) -> u16 {
    TestServer::shared(at.kind).port
}

fn folder(at: &ServerBed) -> &'static str {
    TestServer::shared(at.kind).folder()
}

fn settings(at: &ServerBed, url: &str) -> StoreSettings {
    StoreSettings { url: url.to_owned(), ..at.bed.settings.clone() }
}

/// Opens what the URL names, and stores a message there.
async fn open(settings: StoreSettings) -> SeaStore {
    let url = settings.url.clone();
    let store = SeaStore::open(settings).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    let id = i64::from(store.epoch(amphora::words::ShardId(0))) << 32;
    stored(&store, "bob", id).await;
    assert!(ids(&store, "bob").await.contains(&id));
    store
}

async fn over_a_unix_socket(at: ServerBed) {
    let (name, folder) = (&at.name, folder(&at));
    let (url, from) = match at.kind {
        Kind::Postgres => (
            format!("postgres://:{}/{name}?host={folder}", port(&at)),
            "SELECT string_agg(DISTINCT coalesce(host(client_addr), 'a socket'), ', ') \
             FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'amphora'",
        ),
        Kind::MariaDb => (
            format!("mysql:///{name}?socket={folder}/socket"),
            "SELECT GROUP_CONCAT(DISTINCT IF(HOST = 'localhost', 'a socket', HOST)) \
             FROM information_schema.PROCESSLIST \
             WHERE DB = DATABASE() AND ID <> CONNECTION_ID()",
        ),
    };
    let password = Some("secret".to_owned());
    let store = open(StoreSettings { password, ..settings(&at, &url) }).await;
    assert_eq!(value::<String>(&at.raw().await, from).await, "a socket");
    store.close().await;
}

/// The server's certificate is for `localhost`, and signed by `ca.pem`.
async fn over_tls_as_far_as_the_certificate_is_to_be_trusted(at: ServerBed) {
    let folder = folder(&at);
    let (own, other) = (format!("{folder}/ca.pem"), format!("{folder}/other-ca.pem"));
    for (host, mode, ca, opens) in [
        ("127.0.0.1", "prefer", None, true),
        ("127.0.0.1", "require", None, true),
        ("127.0.0.1", "verify-ca", Some(&own), true),
        ("127.0.0.1", "verify-ca", Some(&other), false),
        ("127.0.0.1", "verify-ca", None, false),
        ("127.0.0.1", "verify-full", Some(&own), false),
        ("localhost", "verify-full", Some(&own), true),
        ("localhost", "verify-full", Some(&other), false),
    ] {
        let ca = ca.map_or(String::new(), |ca| format!("&sslrootcert={ca}"));
        let url = at.bed.settings.url.replace("127.0.0.1", host);
        let settings =
            settings(&at, &url.replace("sslmode=disable", &format!("sslmode={mode}{ca}")));
        match opens {
            true => open(settings).await.close().await,
            false => says(&refusal(settings).await, &["certificate"]),
        }
    }
}

/// That one is let in under TLS only, so that the other answers tell of that, too.
async fn a_user_who_must_show_a_certificate(at: ServerBed) {
    let folder = folder(&at);
    let own = format!("&sslcert={folder}/client.pem&sslkey={folder}/client.key");
    let ca = format!("&sslrootcert={folder}/ca.pem");
    for (mode, opens) in [
        ("disable".to_owned(), false),
        ("require".to_owned(), false),
        (format!("disable{own}"), false),
        (format!("prefer{own}"), true),
        (format!("require{own}"), true),
        (format!("verify-ca{ca}{own}"), true),
    ] {
        let url = at.bed.settings.url.replace("amphora:secret", "certified:secret");
        let settings = settings(&at, &url.replace("sslmode=disable", &format!("sslmode={mode}")));
        match opens {
            true => open(settings).await.close().await,
            false => says(&refusal(settings).await, &["check user and password"]),
        }
    }
}

async fn as_jdbc_writes_it(at: ServerBed) {
    let (scheme, more) = match at.kind {
        Kind::Postgres => ("postgresql", "tcpKeepAlive=true"),
        Kind::MariaDb => ("mysql", "useSSL=false&useUnicode=true&characterEncoding=UTF-8"),
    };
    let place = format!("127.0.0.1:{}/{}", port(&at), at.name);
    let url = |password| format!("jdbc:{scheme}://{place}?user=amphora&password={password}&{more}");
    open(settings(&at, &url("secret"))).await.close().await;
    let text = refusal(settings(&at, &url("wrong-secret"))).await;
    says(&text, &["check user and password"]);
}

async fn with_a_password_from_a_file(at: ServerBed) {
    let dir = tempfile::tempdir().unwrap();
    let (config, password) = (dir.path().join("amphora.toml"), dir.path().join("password"));
    let url = at.bed.settings.url.replace(":secret", "");
    let text = format!("[store]\nurl = '{url}'\npassword_file = '{}'\n", password.display());
    std::fs::write(&config, text).unwrap();
    let migrate = async |secret: &str| {
        std::fs::write(&password, format!("{secret}\n")).unwrap();
        let mut amphora = Command::new(env!("CARGO_BIN_EXE_amphora"));
        amphora.arg("migrate").arg("--config").arg(&config).current_dir(dir.path());
        let output = tokio::task::spawn_blocking(move || amphora.output()).await.unwrap().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (opened, text) = migrate("hunter2").await;
    assert!(!opened && text.contains("check user and password"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let (opened, text) = migrate("secret").await;
    assert!(opened, "{text}");
    assert_eq!(value::<i64>(&at.raw().await, "SELECT count(*) FROM offline_message").await, 0);
}
