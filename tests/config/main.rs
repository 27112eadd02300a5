//! The configuration: the shipped file, the environment, and every way to get it wrong.

mod cluster;
mod parts;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use amphora::config::{
    ControlSocket, FileUsed, Loaded, LogFormat, QuotaLimits, QuotaOver, QuotaSettings,
    SecurityLevel, Settings, Size, load,
};

const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/default.toml");

const SERVER: &str = "
[[servers]]
component = 'amp.example.org'
secret = 'hunter2'
hosts = ['example.org']
";

const FORWARD: &str = "
[[forward]]
from = 'Bob@Example.ORG'
to = 'bob@example.net'
[[forward]]
from = 'example.org'
to = 'GW.example.net'
";

/// A file in a directory of its own, readable by its owner alone.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("amphora.toml");
    write_private(&path, text);
    (directory, path)
}

fn write_private(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    set_mode(path, 0o600);
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn loaded(text: &str, variables: &[(&str, &str)]) -> Loaded {
    let (_directory, path) = file(text);
    load(Some(&path), environment(variables)).unwrap()
}

/// The lines of the error, the file's name as FILE, without the heading.
fn problems(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let (_directory, path) = file(text);
    let error = load(Some(&path), environment(variables)).unwrap_err().to_string();
    let error = error.replace(&*path.to_string_lossy(), "FILE");
    error.lines().skip(1).map(|line| line.trim().to_owned()).collect()
}

fn manual() -> String {
    std::fs::read_to_string(MANUAL).unwrap()
}

/// The manual with its example switched on: `#key`, not `# prose`.
fn manual_with_example() -> String {
    let line = |line: &str| match line.strip_prefix('#') {
        Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    manual().lines().map(line).collect()
}

#[test]
fn the_manual_says_the_defaults() {
    let manual = load(Some(Path::new(MANUAL)), []).unwrap();
    assert_eq!(manual.settings, Settings::default());
}

#[test]
fn the_manual_has_every_key() {
    let keys = |text: &str| {
        let table: toml::Table = text.parse().unwrap();
        let section = |(name, value): (&String, &toml::Value)| {
            let table = value.as_table().or_else(|| value[0].as_table()).unwrap();
            table.keys().map(|key| format!("{name}.{key}")).collect::<Vec<_>>()
        };
        table.iter().flat_map(section).collect::<Vec<_>>()
    };
    let shown = loaded(&manual_with_example(), &[]).settings.to_string();
    assert_eq!(keys(&manual_with_example()), keys(&shown));
}

#[test]
fn the_example_of_the_manual_is_valid() {
    let Loaded { settings, warnings, .. } = loaded(&manual_with_example(), &[]);
    let server = &settings.servers[0];
    assert_eq!(server.address.to_string(), "127.0.0.1:5347");
    assert_eq!(server.component.as_str(), "amp.example.org");
    assert_eq!(server.secret.expose(), "change-me");
    assert_eq!(server.hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>(), ["example.org"]);
    assert_eq!(warnings, [""; 0]);
    assert_eq!(settings.forward[0].from.as_str(), "bob@example.org");
    assert_eq!(settings.forward[0].to.as_str(), "bob@example.net");
    let bob = &settings.quota.overrides[0];
    assert_eq!((&*bob.whose, bob.bytes_per_user), ("bob@example.org", Some(Size(64 << 20))));
    let quota = QuotaSettings { overrides: Vec::new(), ..settings.quota };
    let bare = Settings { servers: Vec::new(), forward: Vec::new(), quota, ..settings };
    assert_eq!(bare, Settings::default());
}

#[test]
fn the_defaults() {
    let settings = Settings::default();
    assert_eq!(settings.node.name, "amphora");
    assert_eq!(settings.node.control, ControlSocket::Auto);
    assert_eq!(settings.processor.shards, 256);
    assert_eq!(settings.processor.security_level, SecurityLevel::Strict);
    assert_eq!(settings.store.url.expose(), "sqlite://amphora.db");
    assert_eq!(settings.quota, QuotaSettings::default());
    assert_eq!(settings.store.retention, None);
    assert!(settings.servers.is_empty());
    assert!(settings.forward.is_empty());
    assert_eq!(settings.http.listen, "127.0.0.1:9079".parse().ok());
    assert!(settings.cluster.nats.is_empty());
    assert_eq!(settings.log.filter, "info");
    assert_eq!(settings.log.format, LogFormat::Text);
}

#[test]
fn an_empty_file_is_valid_and_warns_that_nothing_is_connected() {
    let Loaded { settings, warnings, file } = loaded("", &[]);
    assert_eq!(settings, Settings::default());
    assert!(matches!(file, FileUsed::Given(_)));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("no server is configured") && warnings[0].contains("[[servers]]"));
}

#[test]
fn the_environment_comes_over_the_file() {
    let text = format!("[store]\nurl = 'sqlite://a.db'\nretention = '1h'\n{SERVER}");
    let settings = loaded(
        &text,
        &[
            ("AMPHORA__STORE__URL", "sqlite:///var/b.db"),
            ("AMPHORA__QUOTA__MESSAGES_PER_USER", "100"),
            ("AMPHORA__QUOTA__BYTES_PER_USER", "1GiB"),
            ("AMPHORA__HTTP__LISTEN", ""),
            ("AMPHORA__SERVERS__0__SECRET", "other"),
            ("AMPHORA__SERVERS__0__HOSTS", "a.example, b.example"),
            ("AMPHORA__CLUSTER__NATS", ""),
            ("AMPHORA_PORT", "tcp://10.0.0.1:80"),
            ("PATH", "/bin"),
        ],
    )
    .settings;
    assert_eq!(settings.store.url.expose(), "sqlite:///var/b.db");
    assert_eq!(settings.store.retention, Some(Duration::from_secs(3600)));
    assert_eq!(settings.quota.general.messages_per_user, 100);
    assert_eq!(settings.quota.general.bytes_per_user, Size(1 << 30));
    assert_eq!(settings.http.listen, None);
    assert_eq!(settings.servers[0].secret.expose(), "other");
    assert_eq!(settings.servers[0].component.as_str(), "amp.example.org");
    assert_eq!(
        settings.servers[0].hosts.iter().map(|h| h.as_str()).collect::<Vec<_>>(),
        ["a.example", "b.example"]
    );
}

#[test]
fn a_server_by_the_environment_alone() {
    let settings = loaded(
        SERVER,
        &[
            ("AMPHORA__SERVERS__1__COMPONENT", "amp2.example.org"),
            ("AMPHORA__SERVERS__1__SECRET", "123"),
            ("AMPHORA__SERVERS__1__HOSTS", "Example.NET"),
        ],
    )
    .settings;
    assert_eq!(settings.servers.len(), 2);
    assert_eq!(settings.servers[1].secret.expose(), "123");
    assert_eq!(settings.servers[1].hosts[0].as_str(), "example.net");
}

#[test]
fn the_control_socket_is_beside_the_database_or_where_it_is_put() {
    let control = |text: &str| loaded(text, &[]).settings.node.control;
    assert_eq!(control("[node]\ncontrol = ''"), ControlSocket::Off);
    assert_eq!(control("[node]\ncontrol = 'auto'"), ControlSocket::Auto);
    assert_eq!(control("[node]\ncontrol = '/run/a.sock'"), ControlSocket::At("/run/a.sock".into()));
    let long = "x".repeat(101);
    let told = problems(&format!("[node]\ncontrol = '{long}'"), &[]);
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("node.control") && told[0].contains("longer than 100 bytes"));
    let shown = loaded("[node]\ncontrol = '/run/a.sock'", &[]).settings.to_string();
    assert!(shown.contains("control = \"/run/a.sock\""), "{shown}");
}

#[test]
fn all_problems_are_told_at_once_with_key_value_range_and_place() {
    let text = "
top = 1
[node]
name = 'a b'
[processor]
shards = 0
sharks = 1
security_level = 'STRICT'
[store]
url = 7
messages_per_user = 7
retention = '90'
[quota]
messages_per_user = -1
bytes_per_sender = '10 MB'
over = 'bounce'
[log]
format = 'xml'
filter = 'a=b=c'
[http]
listen = 'localhost:80'
[cluster]
nats = ['nats://user:hunter2@localhost']
";
    let variables = [
        ("AMPHORA__STORE__URI", "x"),
        ("AMPHORA__LOG__LEVEL__X", "x"),
        ("AMPHORA__NODE__NAME", ""),
    ];
    assert_eq!(
        problems(text, &variables),
        [
            r#"FILE: cluster.nats: stands beside an SQLite database, which nodes can't share; set store.url to a PostgreSQL, MySQL or MariaDB database, or leave cluster.nats out"#,
            r#"FILE: http.listen = "localhost:80": must be an IP address and a port, as "127.0.0.1:9079"; "" turns it off"#,
            r#"FILE: log.filter = "a=b=c": must be a level (error, warn, info, debug, trace), or such as "info,amphora::link=debug""#,
            r#"FILE: log.format = "xml": must be "text" or "json"; leave it out for "text""#,
            r#"AMPHORA__LOG__LEVEL__X: log__level__x: write AMPHORA__SECTION__KEY, as AMPHORA__STORE__URL"#,
            r#"AMPHORA__NODE__NAME: node.name = "": must be 1 to 64 of the letters a to z, digits, '-' and '_'"#,
            r#"FILE: processor.security_level = "STRICT": must be "strict", "performance" or "none"; leave it out for "strict""#,
            r#"FILE: processor.shards = 0: must be 1 to 65536; leave it out for 256"#,
            r#"FILE: processor.sharks: unknown key; the keys of [processor] are shards, security_level"#,
            r#"FILE: quota.bytes_per_sender = "10 MB": must be a whole number and one of B, KiB, MiB, GiB, TiB, as "64MiB"; "0" is no limit"#,
            r#"FILE: quota.messages_per_user = -1: must be 0 (no limit) or a number of messages above it"#,
            r#"FILE: quota.over = "bounce": must be "error" or "drop""#,
            r#"FILE: store.messages_per_user: has moved; write it under [quota]"#,
            r#"FILE: store.retention = "90": must be a time with its unit, as "90days" or "12h"; "0s" is for ever"#,
            r#"AMPHORA__STORE__URI: store.uri: unknown key; the keys of [store] are url, password_file, retention"#,
            r#"FILE: store.url = 7: must be a text in quotes"#,
            r#"FILE: top: unknown section; the sections are node, processor, store, quota, servers, forward, http, cluster, log"#,
        ]
    );
}

#[test]
fn the_heading_counts() {
    let (_directory, path) = file("[processor]\nshards = 65537\n");
    let error = load(Some(&path), []).unwrap_err().to_string();
    assert!(error.starts_with("1 error in the configuration\n  "), "{error}");
}

#[test]
fn the_ends_of_the_ranges() {
    for shards in [1, 65536] {
        let settings = loaded(&format!("[processor]\nshards = {shards}"), &[]).settings;
        assert_eq!(settings.processor.shards, shards);
    }
    assert_eq!(problems("[store]\nretention = '500ms'", &[]).len(), 1);
    assert_eq!(problems("[store]\nretention = '101years'", &[]).len(), 1);
    assert_eq!(problems("", &[("AMPHORA__PROCESSOR__SHARDS", "many")]).len(), 1);
}

#[test]
fn what_a_server_lacks() {
    assert_eq!(
        problems("[[servers]]\naddress = 'localhost'\n", &[]),
        [
            r#"FILE: servers[0].address = "localhost": must be host:port, as 127.0.0.1:5347 or [::1]:5347"#,
            r#"servers[0].component: is missing; write the component's domain, as "amp.example.org""#,
            r#"servers[0].hosts: names no host; list the virtual hosts, as ["example.org"]"#,
            r#"servers[0].secret: is missing; write secret, or secret_file with the name of a file that holds it"#,
        ]
    );
    assert_eq!(
        problems("[servers]\nsecret = 'hunter2'", &[])[0],
        "FILE: servers: must be a list of tables; write [[servers]], in two brackets"
    );
    assert_eq!(problems("[[servers]]\nsecret = 12345", &[]).len(), 3);
}

#[test]
fn domains_are_domains() {
    for bad in ["bob@example.org", "example.org/home", "", "a b", &"a".repeat(2000)] {
        let text = format!("[[servers]]\ncomponent = '{bad}'\nsecret = 's'\nhosts = ['{bad}']");
        assert_eq!(problems(&text, &[]).len(), 2, "{bad}");
    }
    let text = "[[servers]]\ncomponent = 'a.example'\nsecret = 's'\nhosts = ['a.example']";
    assert_eq!(problems(text, &[]).len(), 1);
}

#[test]
fn hosts_and_components_stand_once() {
    let text = "
[[servers]]
component = 'amp.example.org'
secret = 's'
hosts = ['example.org', 'example.net']
[[servers]]
component = 'amp.example.org'
secret = 's'
hosts = ['EXAMPLE.net', 'example.com', 'example.com']
";
    assert_eq!(
        problems(text, &[]),
        [
            r#"FILE: servers[1].component = "amp.example.org": is the component of servers[0] already; give each link its own"#,
            r#"FILE: servers[1].hosts = "example.com": is in servers[1].hosts already; name each host once a link"#,
        ]
    );
}

#[test]
fn servers_are_numbered_without_gaps() {
    let lines = problems(SERVER, &[("AMPHORA__SERVERS__2__SECRET", "hunter2")]);
    assert!(
        lines.iter().any(|line| line.starts_with("servers[1]: is not there, but servers[2] is")),
        "{lines:?}"
    );
    for name in [
        "AMPHORA__SERVERS__99999999__SECRET",
        "AMPHORA__SERVERS__X__SECRET",
        "AMPHORA__SERVERS__0",
        "AMPHORA__SERVERS",
    ] {
        assert_eq!(problems(SERVER, &[(name, "hunter2")]).len(), 1, "{name}");
    }
}

#[test]
fn what_is_sent_on_is_normalised() {
    let variables = [
        ("AMPHORA__FORWARD__1__TO", "gw2.example.net"),
        ("AMPHORA__FORWARD__2__FROM", "carol@example.org"),
        ("AMPHORA__FORWARD__2__TO", "carol@example.net"),
    ];
    let settings = loaded(&format!("{SERVER}{FORWARD}"), &variables).settings;
    let shown: Vec<_> =
        settings.forward.iter().map(|entry| (entry.from.as_str(), entry.to.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("bob@example.org", "bob@example.net"),
            ("example.org", "gw2.example.net"),
            ("carol@example.org", "carol@example.net"),
        ]
    );
}

#[test]
fn what_is_sent_on_wrongly() {
    let entries = |entries: &[(&str, &str)]| {
        let entries = entries.iter().map(|(from, to)| {
            let key = |name: &str, value: &str| match value {
                "" => String::new(),
                value => format!("{name} = '{value}'\n"),
            };
            format!("[[forward]]\n{}{}", key("from", from), key("to", to))
        });
        problems(&format!("{SERVER}{}", entries.collect::<String>()), &[])
    };
    for (wrong, says) in [
        (
            &[("", "")][..],
            &[
                r#"forward[0].from: is missing; write an address, as "bob@example.org", or a domain"#,
                r#"forward[0].to: is missing; write an address, as "bob@example.org", or a domain"#,
            ][..],
        ),
        (
            &[("bob@example.org/phone", "@"), ("carol@example.org", "dave@example.net/x")],
            &[
                r#"FILE: forward[0].from = "bob@example.org/phone": has a resource; leave out the '/' and what follows"#,
                r#"FILE: forward[0].to = "@": must be an address, as "bob@example.org", or a domain (nodepart empty despite the presence of a @)"#,
                r#"FILE: forward[1].to = "dave@example.net/x": has a resource; leave out the '/' and what follows"#,
            ],
        ),
        (
            &[("bob@example.org", "gw.example.net"), ("example.org", "bob@example.net")],
            &[
                r#"FILE: forward[0].to = "gw.example.net": must be an address such as "bob@example.net", because from is one"#,
                r#"FILE: forward[1].to = "bob@example.net": must be a domain such as "gw.example.net", because from is one"#,
            ],
        ),
        (
            &[("bob@example.com", "bob@example.net"), ("sms.example.org", "amp.example.org")],
            &[
                r#"FILE: forward[0].from = "bob@example.com": is not of a host of ours; add "example.com" to the hosts of its [[servers]]"#,
                r#"FILE: forward[1].from = "sms.example.org": is not of a host of ours; add "sms.example.org" to the hosts of its [[servers]]"#,
                r#"FILE: forward[1].to = "amp.example.org": is at the component of this node, where nobody is; name another address"#,
            ],
        ),
        (
            &[("bob@example.org", "bob@example.net"), ("BOB@example.org", "bob@example.com")],
            &[
                r#"FILE: forward[1].from = "bob@example.org": is in forward[0] already; send it on to one address"#,
            ],
        ),
        (
            &[("bob@example.org", "Bob@example.org"), ("example.org", "example.org")],
            &[
                r#"FILE: forward[0].to = "bob@example.org": is from itself; name another address, or leave the entry out"#,
                r#"FILE: forward[1].to = "example.org": is from itself; name another address, or leave the entry out"#,
            ],
        ),
        (
            &[("bob@example.org", "carol@example.org"), ("carol@example.org", "bob@example.org")],
            &[
                r#"FILE: forward[0].to = "carol@example.org": is sent on again by forward[1]; name the last address here"#,
                r#"FILE: forward[1].to = "bob@example.org": is sent on again by forward[0]; name the last address here"#,
            ],
        ),
        (
            &[("bob@example.org", "dave@example.org"), ("example.org", "gw.example.net")],
            &[
                r#"FILE: forward[0].to = "dave@example.org": is sent on again by forward[1]; name the last address here"#,
            ],
        ),
    ] {
        assert_eq!(entries(wrong), says, "{wrong:?}");
    }
    assert_eq!(
        problems("[forward]\nfrom = 'a'", &[]),
        ["FILE: forward: must be a list of tables; write [[forward]], in two brackets"]
    );
    assert_eq!(
        problems(&format!("[[forward]]\nform = 'a'\n{SERVER}"), &[])[0],
        "FILE: forward[0].form: unknown key; the keys of [[forward]] are from, to"
    );
    assert_eq!(
        problems(SERVER, &[("AMPHORA__FORWARD__FROM", "a@example.org")]),
        [
            "AMPHORA__FORWARD__FROM: forward__from: write AMPHORA__FORWARD__0__FROM for that of the first"
        ]
    );
}

#[test]
fn i6_no_more_is_sent_on_than_a_greeting_holds() {
    let entries = |count: usize, name: &str| -> String {
        let entry =
            |n| format!("[[forward]]\nfrom = '{name}{n}@example.org'\nto = 'a@b.example'\n");
        (0..count).map(entry).collect()
    };
    let settings = loaded(&format!("{SERVER}{}", entries(1_000, "u")), &[]).settings;
    assert_eq!(settings.forward.len(), 1_000);
    assert_eq!(
        problems(&format!("{SERVER}{}", entries(1_001, "u")), &[]),
        [
            "forward: has 1001 entries, at most 1000 are allowed; give a whole domain to a gateway, or leave some out"
        ]
    );
    let lines = problems(&format!("{SERVER}{}", entries(1_000, &"u".repeat(300))), &[]);
    assert_eq!(
        lines,
        [
            "forward: has entries of 357890 bytes for example.org, at most 262144 are allowed; give the whole domain to a gateway, or leave some out"
        ]
    );
}

#[test]
fn urls_that_are_none_are_refused_and_passwords_not_shown() {
    for url in [
        "postgres://a:hunter2@db",
        "mysql://a:hunter2@/x",
        "oracle://a:hunter2@db/x",
        "hunter2",
        "redis:hunter2",
        "jdbc:derby:hunter2",
        "postgres://a@db/x?pasword=hunter2",
        "sqlite::memory:",
        "sqlite://",
    ] {
        let lines = problems(&format!("[store]\nurl = '{url}'"), &[]);
        assert_eq!(lines.len(), 1, "{url}");
        assert!(!lines[0].contains("hunter2"), "{lines:?}");
    }
}

#[test]
fn the_urls_of_servers_and_of_tigase() {
    for url in [
        "postgres://a:hunter2@db/x",
        "postgresql://a:hunter2@db:5433/x?sslmode=verify-full",
        "mysql://a:hunter2@db/x",
        "mariadb://a:hunter2@db/x",
        "jdbc:mysql://db/tigasedb?user=a&password=hunter2&useSSL=false",
        "jdbc:postgresql://db/tigasedb?user=a&password=hunter2",
    ] {
        let Loaded { settings, .. } = loaded(&format!("[store]\nurl = '{url}'"), &[]);
        assert_eq!(settings.store.url.expose(), url);
        let shown = format!("{settings} {settings:?}");
        assert!(!shown.contains("hunter2") && shown.contains("://***@db"), "{shown}");
    }
}

#[test]
fn a_database_password_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("password");
    let text = |url: &str| format!("[store]\nurl = '{url}'\npassword_file = '{}'", path.display());

    assert!(problems(&text("mysql://a@db/x"), &[])[0].contains("cannot be read"));
    std::fs::write(&path, "hunter2\n").unwrap();
    let Loaded { settings, warnings, .. } = loaded(&text("mysql://a@db/x"), &[]);
    assert_eq!(settings.store.password.as_ref().map(|secret| secret.expose()), Some("hunter2"));
    assert!(warnings.iter().any(|warning| warning.contains("chmod o-rwx")), "{warnings:?}");
    let shown = format!("{settings} {settings:?}");
    assert!(!shown.contains("hunter2") && shown.contains("password_file = "), "{shown}");
    for (url, says) in
        [("mysql://a:b@db/x", "keep one of the two"), ("sqlite://a.db", "SQLite has no password")]
    {
        let lines = problems(&text(url), &[]);
        assert!(lines.len() == 1 && lines[0].contains(says), "{lines:?}");
    }
}

#[test]
fn a_secret_from_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    let text = SERVER.replace("secret = 'hunter2'", &format!("secret_file = '{}'", path.display()));

    assert!(problems(&text, &[])[0].contains("cannot be read"));
    for (content, expected) in [
        ("s3cret\n", Some("s3cret")),
        (" s \r\n", Some(" s ")),
        ("", None),
        ("\n", None),
        ("a\nb\n", None),
    ] {
        write_private(&path, content);
        match expected {
            Some(secret) => {
                let Loaded { settings, warnings, .. } = loaded(&text, &[]);
                assert_eq!(settings.servers[0].secret.expose(), secret);
                assert_eq!(settings.servers[0].secret_file.as_deref(), Some(&*path));
                assert_eq!(warnings, [""; 0]);
            }
            None => assert_eq!(problems(&text, &[]).len(), 1, "{content:?}"),
        }
    }
    write_private(&path, &"x".repeat(5000));
    assert!(problems(&text, &[])[0].contains("more than 4096 bytes"));

    write_private(&path, "s3cret");
    let both = problems(&text, &[("AMPHORA__SERVERS__0__SECRET", "hunter2")]);
    assert_eq!(
        both,
        [
            "AMPHORA__SERVERS__0__SECRET: servers[0].secret: stands beside secret_file; keep one of the two"
        ]
    );

    set_mode(&path, 0o644);
    let warnings = loaded(&text, &[]).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("every user can read it"), "{warnings:?}");
}

#[test]
fn a_file_with_a_secret_that_all_can_read_gets_a_warning() {
    let (_directory, path) = file(SERVER);
    set_mode(&path, 0o644);
    assert_eq!(load(Some(&path), []).unwrap().warnings.len(), 1);
}

#[test]
fn a_file_that_is_not_there_or_not_toml() {
    let error = load(Some(Path::new("/nonexistent/amphora.toml")), []).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file '/nonexistent/amphora.toml'");
    let (_directory, path) = file("[node\n");
    assert!(
        load(Some(&path), []).unwrap_err().to_string().contains("is not TOML: at line 1, column 6")
    );
}

#[test]
fn what_is_shown_says_the_same_again_but_for_secrets() {
    let text = format!(
        "[store]\nretention = '90days'\nurl = 'sqlite://a \\\\\"b.db'\n\
         [quota]\nmessages_per_user = 5\nbytes_per_sender = '1536KiB'\nover = 'drop'\n\
         [[quota.override]]\nfor = 'b.example'\n[[quota.override]]\nfor = 'a@b.example'\n\
         messages_per_user = 0\nbytes_per_user = '7B'\nmessages_per_sender = 1\n\
         bytes_per_sender = '0'\nover = 'error'\n\
         [http]\nlisten = ''\n[log]\nformat = 'json'\n{SERVER}{FORWARD}"
    );
    let Loaded { settings, .. } = loaded(&text, &[]);
    let shown = settings.to_string();
    assert!(!shown.contains("hunter2") && !format!("{settings:?}").contains("hunter2"), "{shown}");
    let again = loaded(&shown, &[("AMPHORA__SERVERS__0__SECRET", "hunter2")]).settings;
    assert_eq!(again, settings);
}

#[test]
fn what_an_override_leaves_out_is_the_domains_or_general() {
    let text = "
[quota]
messages_per_user = 100
bytes_per_user = '1MiB'
[[quota.override]]
for = 'Bob@Example.org'
messages_per_user = 0
over = 'drop'
[[quota.override]]
for = 'example.org'
messages_per_user = 50
messages_per_sender = 5
[[quota.override]]
for = 'eve@example.net'
bytes_per_sender = '2KiB'
";
    let quota = loaded(text, &[]).settings.quota;
    let general = QuotaLimits {
        messages_per_user: 100,
        bytes_per_user: Size(1 << 20),
        ..QuotaLimits::default()
    };
    let domain = QuotaLimits { messages_per_user: 50, messages_per_sender: 5, ..general };
    let bob = QuotaLimits { messages_per_user: 0, over: QuotaOver::Drop, ..domain };
    let eve = QuotaLimits { bytes_per_sender: Size(2048), ..general };
    let names = [("bob@example.org", bob), ("example.org", domain), ("eve@example.net", eve)];
    assert_eq!(quota.general, general);
    assert_eq!(quota.by_name(), names.map(|(name, limits)| (name.to_owned(), limits)).into());
}

#[test]
fn what_can_be_wrong_with_an_override() {
    let text = "
[[quota.override]]
[[quota.override]]
for = 'bob@example.org/phone'
[[quota.override]]
for = 'a@b'
messages_per_user = 1.5
bytes_per_user = 7
over = ''
bytes = 1
";
    assert_eq!(
        problems(text, &[("AMPHORA__QUOTA__OVERRIDE__0__FOR", "a@b")]),
        [
            r#"quota.override[0].for: is missing; it must be a user or a domain, as "bob@example.org" or "example.org""#,
            r#"FILE: quota.override[1].for = "bob@example.org/phone": must be a user or a domain, as "bob@example.org" or "example.org""#,
            r#"FILE: quota.override[2].bytes: unknown key; the keys of [[quota.override]] are for, messages_per_user, bytes_per_user, messages_per_sender, bytes_per_sender, over"#,
            r#"FILE: quota.override[2].bytes_per_user = 7: must be a text in quotes"#,
            r#"FILE: quota.override[2].messages_per_user = 1.5: must be a whole number, without quotes"#,
            r#"FILE: quota.override[2].over = "": must be "error" or "drop""#,
            r#"AMPHORA__QUOTA__OVERRIDE__0__FOR: quota__override__0__for: overrides stand in the file alone"#,
        ]
    );
    let twice = "[[quota.override]]\nfor = 'a@b'\n[[quota.override]]\nfor = 'A@B'\n";
    assert_eq!(
        problems(twice, &[]),
        [r#"FILE: quota.override[1].for = "a@b": is that of quota.override[0] already; write one"#]
    );
    assert_eq!(
        problems("[quota.override]\nfor = 'a@b'\n", &[]),
        ["FILE: quota.override: write [[quota.override]], in two brackets"]
    );
}
