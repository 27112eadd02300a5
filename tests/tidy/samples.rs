//! The checkers on small bad samples: each finds what it should, and nothing else.

use crate::checks::*;
use crate::code::Code;
use crate::compliance::{FAMILIES, check_compliance};

#[track_caller]
fn finds(wrong: Vec<String>, expected: &[&str]) {
    assert_eq!(wrong, expected);
}

#[test]
fn layers() {
    let bad =
        "use crate::{ns, router::{Map}, xml};\nfn f() { crate::node::run() }\n// crate::cli\n";
    finds(
        check_layers("src/shard/machine.rs", bad),
        &[
            "src/shard/machine.rs:1: shard (layer 3) uses router (layer 4)",
            "src/shard/machine.rs:2: shard (layer 3) uses node (layer 6)",
        ],
    );
    finds(check_layers("src/link/mod.rs", "use crate::{http::Health, router};"), &[]);
    finds(check_layers("src/lib.rs", "pub use crate::cli;"), &[]);
    finds(
        check_layers("src/new.rs", ""),
        &["src/new.rs:1: new is not in the map of layers in tests/tidy/rules.rs"],
    );
}

#[test]
fn layers_by_super() {
    let bad = "use super::super::node;\nuse super::node;\nmod tests { use super::node; use super::super::super::cli; }";
    finds(
        check_layers("src/amp/rule.rs", bad),
        &[
            "src/amp/rule.rs:1: amp (layer 1) uses node (layer 6)",
            "src/amp/rule.rs:3: amp (layer 1) uses cli (layer 6)",
        ],
    );
    let one = ["src/amp/mod.rs:1: amp (layer 1) uses cli (layer 6)"];
    finds(check_layers("src/amp/mod.rs", "use super::{cli, xml};"), &one);
    finds(
        check_layers("src/amp.rs", "use super::cli;"),
        &["src/amp.rs:1: amp (layer 1) uses cli (layer 6)"],
    );
}

#[test]
fn banned_names() {
    let bad = "use std::{fmt, net::{IpAddr}};\nasync fn f() { let now = std::time::Instant::now(); }\n\
               fn g() { tokio::spawn(h) }\nuse entities::message;\n";
    let found = check_bans("src/amp/mod.rs", bad);
    let names: Vec<_> =
        found.iter().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        names,
        [
            "src/amp/mod.rs:1 std::net",
            "src/amp/mod.rs:2 async",
            "src/amp/mod.rs:2 Instant::now",
            "src/amp/mod.rs:3 tokio",
            "src/amp/mod.rs:4 entities",
        ]
    );
    let fine = "//! async\n/* tokio::net */ fn f(entities: u8) -> &'static str { \"std::fs::read\" }\n\
                #[cfg(test)]\nmod tests { async fn f() { std::fs::read() } }\n";
    finds(check_bans("src/amp/mod.rs", fine), &[]);
}

#[test]
fn banned_names_by_place() {
    let clock = "fn f() { Instant::now(); }";
    assert_eq!(check_bans("src/shard/machine.rs", clock).len(), 1);
    finds(check_bans("src/shard/actor.rs", clock), &[]);
    finds(check_bans("src/store/sea.rs", "use entities::a; use sea_orm::b; use tokio::c;"), &[]);
    assert_eq!(check_bans("src/store/sea.rs", "use tokio::net::TcpStream;").len(), 1);
    finds(check_bans("src/link/stream.rs", "use tokio::net::TcpStream;"), &[]);
    assert_eq!(check_bans("src/node.rs", "use sea_orm::Database;").len(), 1);
}

#[test]
fn panics() {
    let bad = "fn f() {\n a.unwrap();\n b\n  .expect(\"x\");\n panic!();\n // reason: above\n\n todo!();\n}";
    let lines = check_panics("src/a.rs", bad);
    let places: Vec<_> = lines.iter().filter_map(|line| line.split(" without").next()).collect();
    let expected =
        ["src/a.rs:2: unwrap", "src/a.rs:4: expect", "src/a.rs:5: panic", "src/a.rs:8: todo"];
    assert_eq!(places, expected);
    let fine = "#[expect(dead_code)]\nfn f() {\n // reason: two\n // lines\n a.unwrap();\n b.expect(\"\"); // reason: here\n\
                c.unwrap_or_default(); let s = \"panic!() \\\" .unwrap()\"; let r = r#\"\".unwrap()\"#; let q = '\"';\n}\n\
                #[cfg(test)]\n#[allow(x)]\nmod tests { fn g() { a.unwrap() } }\n";
    finds(check_panics("src/a.rs", fine), &[]);
    let after = "#[cfg(test)]\nmod tests { fn g() {} }\nfn h<'a>() { b'\\''; a.unwrap() }";
    assert_eq!(check_panics("src/a.rs", after).len(), 1);
    assert_eq!(check_panics("src/a.rs", "#[cfg(not(test))]\nfn f() { a.unwrap() }").len(), 1);
}

#[test]
fn test_modules_of_their_own() {
    let code = Code::read("mod a;\n#[cfg(test)]\nmod tests;\nmod b;");
    assert_eq!(code.tests().1, ["tests"]);
}

#[test]
fn heads() {
    finds(check_head("a.rs", "//! What it is.\n"), &[]);
    for bad in ["", "\n//! Late.\n", "// What it is.\n", "//!\n", "//! x\n"] {
        finds(check_head("a.rs", bad), &["a.rs:1: the first line is not `//! what this is`"]);
    }
}

#[test]
fn maps() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let map = "- `src/amp/`: rules, as in src/amp/rule.rs.\n- `docs`, `tests/<area>/main.rs`, `src/old.rs`\n";
    finds(
        check_map(map, &set(&["src", "docs", "deploy"]), &set(&["amp", "cli"]), |path| {
            path.starts_with("src/amp")
        }),
        &[
            "ARCHITECTURE.md does not name the folder deploy",
            "ARCHITECTURE.md does not name src/cli",
            "ARCHITECTURE.md names src/old.rs, which does not exist",
        ],
    );
}

#[test]
fn places_on_one_machine() {
    let bad = "see /work/notes\nok\n`/root/.cargo`, a=/home/me/x\n";
    assert_eq!(check_paths("a.md", bad).len(), 3);
    finds(
        check_paths(
            "a.md",
            "docs/work/x https://a.example/home/ $HOME/root/ /workspace/ ~/home/\n",
        ),
        &[],
    );
}

#[test]
fn compliance() {
    let files = |path: &str| match path {
        "src/a.rs" => Some("fn r1_it_holds() {}\nfn other() {}".to_owned()),
        "tests/e2e/test_a.py" => Some("'R4 to R6, O1'\ndef test_a():".to_owned()),
        _ => None,
    };
    let page = |change: &dyn Fn(&str) -> Option<String>| {
        let row = |letter: char, number| {
            let id = format!("{letter}{number}");
            change(&id).unwrap_or(format!("| {id} | what | Not ours: no. |\n"))
        };
        let rows = FAMILIES.iter().flat_map(|(l, count)| (1..=*count).map(move |n| (*l, n)));
        rows.map(|(letter, number)| row(letter, number)).collect::<String>()
    };
    let with = |id: &str, proof: &str| {
        let change = |other: &str| (other == id).then(|| format!("| {id} | what | {proof} |\n"));
        check_compliance(&page(&change), files)
    };
    finds(with("R1", "`a.rs::r1_it_holds`, `a.rs::r1_it_holds`"), &[]);
    finds(with("R5", "`test_a.py::test_a`"), &[]);
    finds(with("O1", "`test_a.py::test_a`"), &[]);
    finds(with("R1", ""), &["R1: neither a test nor a reason"]);
    finds(with("R1", "`x.rs::y`"), &["R1: there is no src/x.rs"]);
    finds(with("R1", "`a.rs::y`"), &["R1: src/a.rs has no test y"]);
    finds(
        with("R7", "`test_a.py::test_a`"),
        &["R7: test_a in tests/e2e/test_a.py does not name it"],
    );
    let without =
        |id: &str| check_compliance(&page(&|other| (other == id).then(String::new)), files);
    finds(without("W5"), &["W5 is missing"]);
    finds(without("R2"), &["R3 stands where Some(\"R2\") should"]);
}
