//! The program as a user runs it: what it prints, and how it ends.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const SECRET: &str = "hunter2";

const SERVER: &str = "
[[servers]]
component = 'amp.example.org'
secret = 'hunter2'
hosts = ['example.org']
";

/// A working directory of its own, with nothing of the caller's environment.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    /// With `text` as ./amphora.toml.
    fn with(text: &str) -> Self {
        let place = Self::new();
        std::fs::write(place.path().join("amphora.toml"), text).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_amphora"));
        command.args(arguments).current_dir(self.path()).env_clear().stdin(Stdio::null());
        command
    }

    fn ends(&self, arguments: &[&str]) -> End {
        end(self.command(arguments))
    }
}

struct End {
    code: Option<i32>,
    out: String,
    err: String,
}

fn end(mut command: Command) -> End {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id().to_string();
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(Duration::from_secs(30)) else {
        Command::new("kill").args(["-9", &pid]).status().unwrap();
        panic!("{command:?} does not end");
    };
    let Output { status, stdout, stderr } = output.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    End { code: status.code(), out: text(stdout), err: text(stderr) }
}

#[test]
fn help_has_examples_and_exit_codes() {
    let End { code, out, .. } = Place::new().ends(&["--help"]);
    assert_eq!(code, Some(0));
    for part in ["Examples:\n", "amphora run --config ", "Exit codes:\n", "  78  ", "check-config"]
    {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn the_version_is_the_crates() {
    let End { code, out, .. } = Place::new().ends(&["--version"]);
    assert_eq!((code, &*out), (Some(0), concat!("amphora ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn each_command_about_broadcasts_has_help_with_examples() {
    let commands = ["", "start", "list", "status", "pause", "resume", "cancel"];
    for command in commands {
        let arguments = ["broadcast", command, "--help"];
        let arguments: Vec<&str> = arguments.into_iter().filter(|a| !a.is_empty()).collect();
        let End { code, out, .. } = Place::new().ends(&arguments);
        assert_eq!(code, Some(0), "{command}");
        assert!(out.contains("Example"), "{command}: {out}");
        assert!(out.contains("amphora broadcast "), "{command}: {out}");
    }
}

#[test]
fn a_command_about_broadcasts_without_a_node_says_where_it_looked() {
    let place = Place::new();
    let End { code, err, .. } = place.ends(&["broadcast", "list"]);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("'amphora.db.sock'") && err.contains("amphora check-config"), "{err}");
    let place = Place::with("[node]\ncontrol = ''\n");
    let End { code, err, .. } = place.ends(&["broadcast", "list"]);
    assert_eq!(code, Some(78), "{err}");
    assert!(err.contains("node.control"), "{err}");
}

#[test]
fn a_command_about_broadcasts_finds_the_node_by_the_same_store_url() {
    let place = Place::new();
    let arguments = ["broadcast", "list", "--store-url", "sqlite://other.db"];
    let End { code, err, .. } = place.ends(&arguments);
    assert_eq!(code, Some(75), "{err}");
    assert!(err.contains("'other.db.sock'"), "{err}");
}

const PARTS: &str = "
[processor]
shards = 4
[http]
listen = ''
[[store.part]]
shards = '0-1'
url = 'sqlite://a.db'
[[store.part]]
name = 'b'
shards = '2-3'
url = 'sqlite://b.db'
";

#[test]
fn every_command_takes_parts() {
    let place = Place::with(PARTS);
    let End { code, out, err } = place.ends(&["check-config"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("[[store.part]]\nname = \"b\"\nshards = \"2-3\"\n"), "{out}");
    for _ in 0..2 {
        let End { code, err, .. } = place.ends(&["migrate"]);
        assert_eq!(code, Some(0), "{err}");
    }
    assert!(place.path().join("a.db").exists() && place.path().join("b.db").exists());
    let End { err, .. } = place.ends(&["broadcast", "list"]);
    assert!(err.contains("'amphora.sock'"), "{err}");
    for command in ["run", "migrate", "check-config", "move", "broadcast"] {
        let list: &[&str] = if command == "broadcast" { &["list"] } else { &[] };
        let arguments = [&[command], list, &["--store-url", "sqlite://c.db"]].concat();
        let End { code, err, .. } = place.ends(&arguments);
        assert_eq!(code, Some(78), "{command}: {err}");
        assert!(err.contains("--store-url counts as store.url"), "{command}: {err}");
    }
}

#[test]
fn a_node_is_not_let_in_before_its_messages_are_moved() {
    let place = Place::with(PARTS);
    std::fs::write(place.path().join("old.toml"), "[store]\nurl = 'sqlite://a.db'\n").unwrap();
    let End { code, err, .. } = place.ends(&["migrate", "--config", "old.toml"]);
    assert_eq!(code, Some(0), "{err}");
    for command in ["run", "migrate"] {
        let End { code, err, .. } = place.ends(&[command]);
        assert_eq!(code, Some(69), "{command}: {err}");
        assert!(err.contains("'sqlite://a.db' holds the shards 0-255 of 256"), "{err}");
    }
    let End { code, out, err } = place.ends(&["move", "--from", "old.toml"]);
    assert_eq!(
        (code, &*out),
        (Some(0), "moved 0 messages of 0 users, and 0 broadcasts\n"),
        "{err}"
    );
    assert_eq!(place.ends(&["migrate"]).code, Some(0));
    let End { code, err, .. } = place.ends(&["migrate", "--config", "old.toml"]);
    assert_eq!(code, Some(69), "{err}");
    let End { code, err, .. } = place.ends(&["move", "--from", "none.toml"]);
    assert_eq!(code, Some(78), "{err}");
    assert!(place.ends(&["move", "--help"]).out.contains("Examples:"));
}

#[test]
fn a_wrong_command_line() {
    for arguments in [
        &["walk"][..],
        &[],
        &["run", "--confg", "a"],
        &["broadcast"],
        &["broadcast", "status"],
        &["broadcast", "start", "--to-domain", "h", "--expires", "1h"],
        &["broadcast", "start", "--to-domain", "h", "--body", "x"],
    ] {
        let End { code, out, err } = Place::new().ends(arguments);
        assert_eq!((code, &*out), (Some(2), ""), "{arguments:?}");
        assert!(err.contains("Usage: "), "{err}");
    }
}

#[test]
fn without_a_file_the_defaults_hold() {
    let End { code, out, err } = Place::new().ends(&["check-config"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("# configuration file: none (amphora.toml and /etc/amphora/"), "{out}");
    assert!(out.contains("\nurl = \"sqlite://amphora.db\"\n"), "{out}");
    assert!(err.starts_with("amphora: warning: no server is configured"), "{err}");
}

#[test]
fn the_file_in_the_working_directory_is_found_and_another_can_be_named() {
    let place = Place::with("[node]\nname = 'found'\n");
    std::fs::write(place.path().join("other.toml"), "[node]\nname = 'named'\n").unwrap();
    let found = place.ends(&["check-config"]).out;
    assert!(found.starts_with("# configuration file: amphora.toml (found)\n"), "{found}");
    assert!(found.contains("\nname = \"found\"\n"), "{found}");
    let named = place.ends(&["check-config", "--config", "other.toml"]).out;
    assert!(named.contains("\nname = \"named\"\n"), "{named}");
}

#[test]
fn a_setting_from_the_environment() {
    let place = Place::with("[processor]\nshards = 1\n");
    let mut command = place.command(&["check-config"]);
    command.env("AMPHORA__PROCESSOR__SHARDS", "512");
    assert!(end(command).out.contains("\nshards = 512\n"));

    let mut command = place.command(&["check-config"]);
    command.env("AMPHORA__PROCESSOR__SHARDS", "0");
    let End { code, err, .. } = end(command);
    assert_eq!(code, Some(78));
    assert!(
        err.contains("AMPHORA__PROCESSOR__SHARDS: processor.shards = 0: must be 1 to 65536"),
        "{err}"
    );
}

#[test]
fn every_command_refuses_a_wrong_configuration_and_names_all_of_it() {
    let place = Place::with("[processor]\nshards = 0\nsharks = 1\n");
    for command in ["run", "check-config", "migrate"] {
        let End { code, out, err } = place.ends(&[command]);
        assert_eq!((code, &*out), (Some(78), ""), "{command}");
        assert_eq!(
            err,
            "amphora: 2 errors in the configuration\n  \
             amphora.toml: processor.shards = 0: must be 1 to 65536; leave it out for 256\n  \
             amphora.toml: processor.sharks: unknown key; the keys of [processor] are shards, security_level\n"
        );
    }
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let End { code, err, .. } = Place::new().ends(&["run", "--config", "no.toml"]);
    assert_eq!(code, Some(78));
    assert!(err.starts_with("amphora: cannot read the configuration file 'no.toml': "), "{err}");
}

#[test]
fn a_secret_file_that_is_not_there() {
    let place = Place::with(&SERVER.replace("secret = 'hunter2'", "secret_file = 'no-secret'"));
    let End { code, err, .. } = place.ends(&["check-config"]);
    assert_eq!(code, Some(78));
    assert!(
        err.contains("amphora.toml: servers[0].secret_file = \"no-secret\": cannot be read: "),
        "{err}"
    );
}

#[test]
fn a_secret_is_never_printed() {
    let wrong = [
        SERVER.to_owned(),
        SERVER.replace("hosts", "hots"),
        SERVER.replace("secret", "secrets"),
        SERVER.replace("'hunter2'", "hunter2"),
        SERVER.replace("'hunter2'", "['hunter2']"),
        SERVER.replace("'hunter2'", "'hunter2"),
        format!("{SERVER}secret = 'hunter2'\n"),
        format!("{SERVER}secret_file = 'no'\n"),
        "[store]\nurl = 'postgres://amphora:hunter2@db'\n".to_owned(),
        "[store]\nurl = 'jdbc:mysql://db/amphora?pasword=hunter2'\n".to_owned(),
    ];
    for text in wrong {
        let place = Place::with(&text);
        let End { code, out, err } = place.ends(&["check-config"]);
        assert!(!out.contains(SECRET) && !err.contains(SECRET), "{text}\n{out}\n{err}");
        assert_eq!(code, Some(if text == SERVER { 0 } else { 78 }), "{text}\n{err}");
    }
    let mut command = Place::new().command(&["check-config"]);
    command.current_dir("/").env("AMPHORA__SERVERS__0__SECRET", SECRET);
    let End { out, err, .. } = end(command);
    assert!(!out.contains(SECRET) && !err.contains(SECRET), "{out}\n{err}");
}

#[test]
fn a_wrong_rust_log() {
    let place = Place::new();
    let mut command = place.command(&["run"]);
    command.env("RUST_LOG", "a=b=c");
    let End { code, err, .. } = end(command);
    assert_eq!(code, Some(78));
    assert!(err.starts_with("amphora: RUST_LOG = \"a=b=c\": "), "{err}");
}

#[test]
fn a_store_that_cannot_be_opened() {
    let place =
        Place::with("[store]\nurl = 'sqlite:///dev/null/amphora.db'\n[http]\nlisten = ''\n");
    for command in ["run", "migrate"] {
        let End { code, err, .. } = place.ends(&[command]);
        assert_eq!(code, Some(69), "{command}: {err}");
    }
}

/// Nobody listens on port 1: the error names the database and what to do, and no password.
#[test]
fn a_database_server_that_is_not_there() {
    let place = Place::with("[http]\nlisten = ''\n");
    for url in [
        "postgres://amphora:hunter2@127.0.0.1:1/amphora",
        "jdbc:mysql://127.0.0.1:1/amphora?user=amphora&password=hunter2",
    ] {
        // The second one as it stands among Tigase's options.
        for option in [["--store-url", url].to_vec(), vec![&format!("--amp-repo-uri={url}")]] {
            let End { code, out, err } = place.ends(&[&["migrate"], &option[..]].concat());
            assert_eq!(code, Some(69), "{url}: {err}");
            assert!(err.contains("127.0.0.1:1/amphora': start the database server"), "{err}");
            assert!(!err.contains(SECRET) && !out.contains(SECRET), "{err}");
        }
    }
}

#[test]
fn an_address_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let place = Place::with(&format!("[http]\nlisten = '{address}'\n"));
    let End { code, err, .. } = place.ends(&["run"]);
    assert_eq!(code, Some(71), "{err}");
    assert!(err.contains(&address.to_string()), "{err}");
}

#[test]
fn a_node_says_what_it_runs_with() {
    let place = Place::with("[http]\nlisten = '127.0.0.1:0'\n[log]\nformat = 'json'\n");
    let mut child = place.command(&["run"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut err = child.stderr.take().unwrap();
    let mut text = String::new();
    while !text.contains("no server is configured") {
        let mut some = [0; 1024];
        let count = err.read(&mut some).unwrap();
        assert_ne!(count, 0, "ended with: {text}");
        text.push_str(&String::from_utf8_lossy(&some[..count]));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(text.contains("\"configuration\":\"amphora.toml (found)\""), "{text}");
    assert!(text.lines().next().unwrap().starts_with('{'), "{text}");
}
