//! `[cluster]`: how nodes are joined, and every way to get it wrong.

use std::time::Duration;

use amphora::config::load;

use super::{file, loaded, problems, set_mode, write_private};

const CLUSTER: &str = "
[store]
url = 'postgres://db/amphora'
[cluster]
nats = ['nats://nats1:4222', 'tls://nats2']
";

/// What `nsc` writes, made for this test.
const CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----
eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.e30.c2ln
------END NATS USER JWT------

-----BEGIN USER NKEY SEED-----
SUACH75SWCM5D2JMJM6EKLR2WDARVGZT4QC6LX3AGHSWOMVAKERABBBRWM
------END USER NKEY SEED------
";

#[test]
fn a_cluster_has_servers_a_name_and_a_lease() {
    let cluster = loaded(CLUSTER, &[]).settings.cluster;
    assert!(cluster.is_on());
    let urls: Vec<_> = cluster.nats.iter().map(|url| url.expose()).collect();
    assert_eq!(urls, ["nats://nats1:4222", "tls://nats2"]);
    assert_eq!((&*cluster.name, cluster.lease), ("amphora", Duration::from_secs(3)));
    let variables = [
        ("AMPHORA__CLUSTER__NATS", "nats://a:4222,nats://b:4222"),
        ("AMPHORA__CLUSTER__NAME", "west"),
        ("AMPHORA__CLUSTER__LEASE", "10s"),
    ];
    let cluster = loaded(CLUSTER, &variables).settings.cluster;
    assert_eq!(cluster.nats.len(), 2);
    assert_eq!((&*cluster.name, cluster.lease), ("west", Duration::from_secs(10)));
    assert!(!loaded("", &[]).settings.cluster.is_on());
}

#[test]
fn what_is_wrong_with_a_cluster() {
    let text = "
[store]
url = 'postgres://db/amphora'
[cluster]
nats = ['nats://u:hunter2@nats1:4222', 'http://hunter2@nats2', 'nats://', 'ws://nats3']
name = 'a.b'
lease = '500ms'
credentials = 'FILE.creds'
root_certificate = '/nowhere/ca.pem'
certificate = '/dev/null'
";
    let told = problems(text, &[]);
    let url = r#"FILE: cluster.nats: must be URLs of NATS servers, as ["nats://nats1:4222", "tls://nats2:4222"]; [] for a node that is alone"#;
    assert_eq!(
        told,
        [
            r#"FILE: cluster.certificate: stands without cluster.key; name both files, or none"#,
            r#"FILE: cluster.credentials = "FILE.creds": cannot be read: No such file or directory (os error 2)"#,
            r#"FILE: cluster.lease = "500ms": must be 1s to 60s; leave it out for 3s"#,
            r#"FILE: cluster.name = "a.b": must be 1 to 64 of the letters a to z, digits, '-' and '_'"#,
            url,
            url,
            url,
            r#"FILE: cluster.root_certificate = "/nowhere/ca.pem": cannot be read: No such file or directory (os error 2)"#,
        ]
    );
    assert_eq!(problems(&format!("{CLUSTER}lease = '61s'\n"), &[]).len(), 1);
}

#[test]
fn nodes_cant_share_a_file() {
    for text in [
        "[cluster]\nnats = ['nats://a']",
        "[store]\nurl = 'sqlite://a.db'\n[cluster]\nnats = ['nats://a']",
        "[processor]\nshards = 2\n[cluster]\nnats = ['nats://a']\n\
         [[store.part]]\nshards = '0'\nurl = 'postgres://db/a'\n\
         [[store.part]]\nshards = '1'\nurl = 'sqlite:///b.db'",
    ] {
        let told = problems(text, &[]);
        assert!(told.len() == 1 && told[0].contains("SQLite"), "{told:?}");
    }
}

#[test]
fn credentials_are_read_and_not_shown() {
    let (directory, _) = file("");
    let path = directory.path().join("nats.creds");
    write_private(&path, CREDENTIALS);
    let text = format!("{CLUSTER}credentials = '{}'\n", path.display());
    let loaded = loaded(&text, &[]);
    let cluster = &loaded.settings.cluster;
    assert_eq!(cluster.credentials.as_ref().map(|text| text.expose()), Some(CREDENTIALS));
    let shown = loaded.settings.to_string();
    assert!(shown.contains("nats.creds") && !shown.contains("SUACH"), "{shown}");
    assert!(!format!("{:?}", loaded.settings).contains("SUACH"));
    set_mode(&path, 0o644);
    let warnings = super::loaded(&text, &[]).warnings;
    assert!(warnings.iter().any(|warning| warning.contains("nats.creds")), "{warnings:?}");
    write_private(&path, "SUACH75SWCM5D2JMJM6EKLR2WDARVGZT4QC6LX3AGHSWOMVAKERABBBRWM\n");
    let told = problems(&text, &[]);
    assert!(told.len() == 1 && told[0].contains("nsc generate creds"), "{told:?}");
    assert!(!told[0].contains("SUACH"));
}

#[test]
fn a_file_with_a_password_for_nats_that_all_can_read_gets_a_warning() {
    let (_directory, path) = file(&CLUSTER.replace("nats1", "amphora:hunter2@nats1"));
    set_mode(&path, 0o644);
    let loaded = load(Some(&path), []).unwrap();
    assert!(loaded.warnings.iter().any(|warning| warning.contains("chmod o-rwx")));
    let shown = loaded.settings.to_string();
    assert!(shown.contains("nats://***@nats1:4222") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn what_is_shown_of_a_cluster_says_the_same_again() {
    let settings = loaded(CLUSTER, &[]).settings;
    assert_eq!(loaded(&settings.to_string(), &[]).settings, settings);
}
