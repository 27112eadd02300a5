//! Servers that are set up so that they can't hold the store, or may lose what it holds.

use std::process::Command;

use amphora::store::{SeaStore, Store, StoreSettings};

use super::facts::{refusal, says};
use super::{Kind, ServerBed, TestServer, execute};

async fn server(kind: Kind, options: &'static str) -> TestServer {
    let start = move || TestServer::start_with(kind, None, options);
    tokio::task::spawn_blocking(start).await.expect("a server")
}

/// What the program says when it opens the database, and that it does.
async fn warnings(url: &str) -> String {
    let url = url.to_owned();
    let migrate = move || {
        Command::new(env!("CARGO_BIN_EXE_amphora"))
            .args(["migrate", "--store-url", &url])
            .env("NO_COLOR", "1")
            .current_dir(std::env::temp_dir())
            .output()
            .expect("runs")
    };
    let output = tokio::task::spawn_blocking(migrate).await.expect("ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text.lines().filter(|line| line.contains("the database '")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn mariadb_with_other_settings() {
    let server = server(Kind::MariaDb, "--log-bin=log --server-id=1 --binlog-format=ROW").await;
    let bed = ServerBed::in_server(&server).await;
    let (settings, url) = (bed.bed.settings.clone(), bed.bed.settings.url.clone());
    let administrator = server.administrator(&bed.name).await;
    for (set, back, words) in [
        (
            "max_allowed_packet = 8388608",
            "max_allowed_packet = 16777216",
            &["max_allowed_packet is 8388608", "max_allowed_packet = 16M"][..],
        ),
        ("read_only = 1", "read_only = 0", &["can only be read", "read_only = 0"]),
        (
            "binlog_format = 'STATEMENT'",
            "binlog_format = 'MIXED'",
            &["binlog_format is STATEMENT", "binlog_format = ROW"],
        ),
    ] {
        execute(&administrator, &format!("SET GLOBAL {set}")).await;
        says(&refusal(settings.clone()).await, &[words, &[&*bed.name]].concat());
        execute(&administrator, &format!("SET GLOBAL {back}")).await;
        SeaStore::open(settings.clone()).await.expect("opens").close().await;
    }
    execute(&administrator, "SET GLOBAL sync_binlog = 1").await;
    assert!(!warnings(&url).await.contains("is not durable"));
    for (set, back, words) in [
        (
            "innodb_flush_log_at_trx_commit = 2",
            "innodb_flush_log_at_trx_commit = 1",
            "innodb_flush_log_at_trx_commit is 2",
        ),
        (
            "innodb_flush_log_at_trx_commit = 0",
            "innodb_flush_log_at_trx_commit = 1",
            "innodb_flush_log_at_trx_commit is 0",
        ),
        ("sync_binlog = 0", "sync_binlog = 1", "sync_binlog is 0"),
    ] {
        execute(&administrator, &format!("SET GLOBAL {set}")).await;
        let text = warnings(&url).await;
        let (name, _) = back.split_once(" = ").expect("a setting");
        says(&text, &["is not durable", words, &format!("set {name} = 1")]);
        assert_eq!(text.matches("is not durable").count(), 1, "{text}");
        execute(&administrator, &format!("SET GLOBAL {back}")).await;
    }
}

/// The keys would not fit into its pages.
#[tokio::test]
async fn mariadb_with_small_pages() {
    let server = server(Kind::MariaDb, "--innodb-page-size=8k").await;
    let bed = ServerBed::in_server(&server).await;
    let text = refusal(bed.bed.settings.clone()).await;
    says(&text, &["innodb_page_size is 8192", "16384", &bed.name]);
}

#[tokio::test]
async fn mariadb_without_doublewrite() {
    let server = server(Kind::MariaDb, "--innodb-doublewrite=0").await;
    let bed = ServerBed::in_server(&server).await;
    let text = warnings(&bed.bed.settings.url).await;
    says(&text, &["is not durable", "innodb_doublewrite is", "set innodb_doublewrite = ON"]);
}

#[tokio::test]
async fn postgres_that_does_not_sync() {
    let server = server(Kind::Postgres, "-c fsync=off -c full_page_writes=off").await;
    let bed = ServerBed::in_server(&server).await;
    let text = warnings(&bed.bed.settings.url).await;
    says(&text, &["fsync is off", "set fsync = on", "full_page_writes is off"]);
    let fit = ServerBed::new(Kind::Postgres).await;
    assert!(!warnings(&fit.bed.settings.url).await.contains("is not durable"));
}

#[tokio::test]
async fn postgres_that_is_a_standby() {
    let server = server(Kind::Postgres, "").await;
    let bed = ServerBed::in_server(&server).await;
    SeaStore::open(bed.bed.settings.clone()).await.expect("opens").close().await;
    execute(&server.administrator("postgres").await, "CHECKPOINT").await;
    server.kill();
    std::fs::write(format!("{}/data/standby.signal", server.folder), "").expect("a file");
    server.start_again();
    let text = refusal(bed.bed.settings.clone()).await;
    says(&text, &["is a standby", "name the primary", &bed.name]);
}

#[tokio::test]
async fn postgres_without_a_schema() {
    let bed = ServerBed::new(Kind::Postgres).await;
    let administrator = TestServer::shared(Kind::Postgres).administrator(&bed.name).await;
    let nowhere = format!("ALTER ROLE amphora IN DATABASE {} SET search_path = nowhere", bed.name);
    execute(&administrator, &nowhere).await;
    let url = bed.bed.settings.url.clone();
    says(&refusal(StoreSettings::new(url)).await, &["search_path names no schema", "ALTER ROLE"]);
}
