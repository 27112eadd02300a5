//! The rules of the code that a compiler does not hold: layers, a head to each file, no
//! panic without a reason, a map that is true. Each checker is tried on bad samples too.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "tidy/checks.rs"]
mod checks;
#[path = "tidy/code.rs"]
mod code;
#[path = "tidy/compliance.rs"]
mod compliance;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/samples.rs"]
mod samples;

use checks::{check_bans, check_head, check_layers, check_map, check_panics, check_paths};
use code::Code;
use compliance::check_compliance;
use rules::top_module;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that git tracks or would, that are text, relative to the root.
fn tracked() -> Vec<(String, String)> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().expect("git is needed to list the files");
    assert!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let names = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned);
    names
        .filter_map(|name| Some((name.clone(), std::fs::read_to_string(root().join(&name)).ok()?)))
        .collect()
}

/// The Rust files under these folders.
fn rust(folders: &[&str]) -> Vec<(String, String)> {
    let within = |path: &str| folders.iter().any(|folder| path.starts_with(&format!("{folder}/")));
    let files: Vec<_> =
        tracked().into_iter().filter(|(path, _)| path.ends_with(".rs") && within(path)).collect();
    assert!(!files.is_empty(), "no Rust file under {folders:?}");
    files
}

/// The Rust files under these folders that are not modules under `#[cfg(test)]`.
fn shipped(folders: &[&str]) -> Vec<(String, String)> {
    let files = rust(folders);
    let mut tests = BTreeSet::new();
    for (path, text) in &files {
        let path = Path::new(path);
        let own = path.with_extension("");
        let root = ["mod", "lib", "main"].iter().any(|stem| own.ends_with(stem));
        let folder = if root { path.parent().unwrap_or(path).to_owned() } else { own };
        tests.extend(Code::read(text).tests().1.into_iter().map(|name| folder.join(name)));
    }
    let is_test = |path: &str| {
        let path = PathBuf::from(path).with_extension("");
        tests.iter().any(|test| path.starts_with(test))
    };
    files.into_iter().filter(|(path, _)| !is_test(path)).collect()
}

fn run(files: Vec<(String, String)>, check: impl Fn(&str, &str) -> Vec<String>) {
    nothing(files.iter().flat_map(|(path, text)| check(path, text)).collect());
}

fn nothing(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn no_import_goes_up_a_layer() {
    run(rust(&["src"]), check_layers);
}

#[test]
fn no_layer_uses_what_it_may_not() {
    run(shipped(&["src"]), check_bans);
}

#[test]
fn every_file_says_what_it_is() {
    let folders = ["src", "entities", "migration", "tests", "benches"];
    run(rust(&folders), check_head);
}

#[test]
fn every_panic_has_a_reason() {
    run(shipped(&["src", "entities/src", "migration/src"]), check_panics);
}

#[test]
fn the_map_is_true() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md"))
        .expect("ARCHITECTURE.md, the map of the folders, must stand beside Cargo.toml");
    let files = tracked();
    let folders = files
        .iter()
        .filter_map(|(path, _)| path.split_once('/'))
        .map(|(first, _)| first.to_owned());
    let folders = folders.filter(|folder| !folder.starts_with('.')).collect();
    let modules =
        files.iter().filter_map(|(path, _)| top_module(path)).map(str::to_owned).collect();
    nothing(check_map(&map, &folders, &modules, |path| root().join(path).exists()));
}

#[test]
fn no_file_names_a_place_on_one_machine() {
    let files = tracked().into_iter().filter(|(path, _)| !path.starts_with("tests/tidy")).collect();
    run(files, check_paths);
}

#[test]
fn every_requirement_is_proved_or_has_a_reason() {
    let page = std::fs::read_to_string(root().join("docs/compliance.md"))
        .expect("docs/compliance.md says which test proves which requirement");
    nothing(check_compliance(&page, |path| std::fs::read_to_string(root().join(path)).ok()));
}
