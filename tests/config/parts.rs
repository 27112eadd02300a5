//! `[[store.part]]`: which database has which shards, and every way to get it wrong.

use amphora::config::load;

use super::{environment, file, loaded, problems, write_private};

const TWO: &str = "
[processor]
shards = 8
[[store.part]]
shards = '0-3'
url = 'sqlite:///var/lib/amphora/a.db'
[[store.part]]
name = 'north'
shards = '4, 5-7'
url = 'postgres://amphora:hunter2@db/amphora'
";

#[test]
fn parts_have_names_shards_and_databases() {
    let parts = loaded(TWO, &[]).settings.store.parts;
    let seen = parts.iter().map(|part| (&*part.name, part.shards.to_string()));
    assert_eq!(seen.collect::<Vec<_>>(), [("0", "0-3".into()), ("north", "4-7".into())]);
    assert_eq!(parts[0].url.expose(), "sqlite:///var/lib/amphora/a.db");
    let text = loaded(TWO, &[]).settings.to_string();
    assert!(text.contains("\n[[store.part]]\nname = \"north\"\nshards = \"4-7\"\n"), "{text}");
    // There is no database that has all.
    assert!(
        !text.contains("\nurl = \"sqlite://amphora.db\"") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(loaded("", &[]).settings.store.parts.is_empty());
}

#[test]
fn what_is_shown_of_parts_says_the_same_again() {
    let text = TWO.replace("hunter2@", "@").replace("amphora:@", "");
    let settings = loaded(&text, &[]).settings;
    assert_eq!(loaded(&settings.to_string(), &[]).settings, settings);
}

#[test]
fn a_file_with_a_password_of_a_part_that_all_can_read_gets_a_warning() {
    let (directory, path) = file(TWO);
    super::set_mode(&path, 0o644);
    let warnings = load(Some(&path), []).unwrap().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("chmod o-rwx")), "{warnings:?}");
    let secret = directory.path().join("password");
    write_private(&secret, "hunter2\n");
    let text = TWO.replace("amphora:hunter2@", "");
    let text = format!("{text}password_file = '{}'\n", secret.display());
    let settings = loaded(&text, &[]).settings;
    assert_eq!(settings.store.parts[1].password.as_ref().unwrap().expose(), "hunter2");
    assert!(!settings.to_string().contains("hunter2"));
}

#[test]
fn parts_by_the_environment() {
    let variables = [
        ("AMPHORA__PROCESSOR__SHARDS", "4"),
        ("AMPHORA__STORE__PART__0__SHARDS", "0-1"),
        ("AMPHORA__STORE__PART__0__URL", "sqlite://a.db"),
        ("AMPHORA__STORE__PART__1__NAME", "b"),
        ("AMPHORA__STORE__PART__1__SHARDS", "2,3"),
        ("AMPHORA__STORE__PART__1__URL", "sqlite://b.db"),
    ];
    let parts = loaded("", &variables).settings.store.parts;
    let seen: Vec<_> = parts
        .iter()
        .map(|part| (&*part.name, part.shards.to_string(), part.url.expose()))
        .collect();
    let expected = [("0", "0-1", "sqlite://a.db"), ("b", "2-3", "sqlite://b.db")];
    assert_eq!(seen, expected.map(|(name, shards, url)| (name, shards.to_owned(), url)));
    // Over the file.
    let moved = [("AMPHORA__STORE__PART__0__URL", "sqlite://c.db")];
    assert_eq!(loaded(TWO, &moved).settings.store.parts[0].url.expose(), "sqlite://c.db");
    let (_directory, path) = file("");
    for (name, says) in [
        ("AMPHORA__STORE__PART__2__URL", "store.part[0]: is not there"),
        ("AMPHORA__STORE__PART__X__URL", "must be the number of a [[store.part]]"),
        ("AMPHORA__STORE__PART", "write AMPHORA__STORE__PART__0__NAME"),
        ("AMPHORA__STORE__PART__0__FILE", "the keys of [[store.part]] are name, shards, url"),
    ] {
        let error = load(Some(&path), environment(&[(name, "sqlite://a.db")])).unwrap_err();
        assert!(error.to_string().contains(says), "{name}: {error}");
    }
}

/// The problems when `from` is replaced in [`TWO`].
fn with(from: &str, to: &str) -> Vec<String> {
    assert!(TWO.contains(from), "{from}");
    let problems = problems(&TWO.replacen(from, to, 1), &[]);
    assert!(problems.iter().all(|problem| !problem.contains("hunter2")), "{problems:?}");
    problems
}

#[test]
fn each_shard_has_one_part() {
    for (from, to, says) in [
        ("'0-3'", "'0-2'", "store.part: shard 3 has no part; give all of 0-7"),
        ("'0-3'", "'0-4'", "store.part[1].shards = \"4-7\": shard 4 is with store.part[0] already"),
        (
            "'4, 5-7'",
            "'4-8'",
            "store.part[1].shards = \"4-8\": there is no shard 8: processor.shards is 8, so the last is 7",
        ),
        (
            "shards = 8",
            "shards = 4",
            "there is no shard 7: processor.shards is 4, so the last is 3",
        ),
        ("shards = 8", "shards = 16", "store.part: the shards 8-15 have no part; give all of 0-15"),
        ("'0-3'", "'0-3,2'", "store.part[0].shards = \"0-3,2\": names shard 2 twice"),
        ("'0-3'", "'3-0'", "has a range that ends before it begins"),
        ("'0-3'", "'all'", "must be numbers and ranges of shards, as \"0-127\""),
        ("'0-3'", "3", "store.part[0].shards = 3: must be a text in quotes"),
        ("shards = '0-3'\n", "", "store.part[0].shards: is missing; write its shards"),
    ] {
        let problems = with(from, to);
        assert!(problems.iter().any(|problem| problem.contains(says)), "{to}: {problems:?}");
        assert_eq!(problems.len(), 1, "{to}: {problems:?}");
    }
}

#[test]
fn no_two_parts_are_alike_and_nothing_else_names_a_database() {
    for (from, to, says) in [
        (
            "name = 'north'",
            "name = '0'",
            "store.part[1].name = \"0\": is the name of store.part[0]",
        ),
        ("name = 'north'", "name = 'n o'", "store.part[1].name = \"n o\": must be 1 to 64"),
        (
            "postgres://amphora:hunter2@db/amphora",
            "sqlite:/var/lib/amphora/a.db",
            "store.part[1].url = \"sqlite:/var/lib/amphora/a.db\": is the database of store.part[0] already",
        ),
        (
            "postgres://amphora:hunter2@db/amphora",
            "hunter2",
            "store.part[1].url: it does not begin",
        ),
        ("url = 'sqlite:///var/lib/amphora/a.db'\n", "", "store.part[0].url: is missing"),
        (
            "name = 'north'",
            "nam = 'north'",
            "store.part[1].nam: unknown key; the keys of [[store.part]]",
        ),
        (
            "name = 'north'",
            "password_file = '/etc/amphora/p'",
            "store.part[1].password_file = \"/etc/amphora/p\": stands beside a password in store.part[1].url",
        ),
        (
            "[[store.part]]",
            "[store]\nurl = 'sqlite://all.db'\n[[store.part]]",
            "store.url: stands beside [[store.part]]; keep one of the two",
        ),
        (
            "[[store.part]]",
            "[store]\npassword_file = '/p'\n[[store.part]]",
            "store.password_file: stands beside [[store.part]]",
        ),
    ] {
        let problems = with(from, to);
        assert!(problems.iter().any(|problem| problem.contains(says)), "{to}: {problems:?}");
        assert_eq!(problems.len(), 1, "{to}: {problems:?}");
    }
    let says = problems("[store]\npart = 'a'\n", &[]);
    assert!(says[0].contains("write [[store.part]], in two brackets"), "{says:?}");
    let url = [("AMPHORA__STORE__URL", "sqlite://all.db")];
    let says = problems(TWO, &url);
    assert!(says[0].contains("AMPHORA__STORE__URL: store.url: stands beside"), "{says:?}");
}
