//! The checkers. Each gives what is wrong, as `path:line: what`.

use std::collections::BTreeSet;

use crate::code::{Code, is_word};
use crate::rules::{bans, layer, top_module};

/// Imports that go up a layer.
pub fn check_layers(path: &str, text: &str) -> Vec<String> {
    let Some(module) = top_module(path) else {
        return Vec::new();
    };
    let Some(own) = layer(module) else {
        return vec![format!(
            "{path}:1: {module} is not in the map of layers in tests/tidy/rules.rs"
        )];
    };
    let code = Code::read(text);
    let depths = code.depths();
    let file_depth = module_depth(path);
    let mut wrong = Vec::new();
    for (at, names) in code.paths() {
        let supers = names.iter().take_while(|name| **name == "super").count();
        let target = match names[0] {
            "crate" => names.get(1),
            "super" if supers == file_depth + depths[at] => names.get(supers),
            _ => None,
        };
        let Some(target) = target else { continue };
        // What is not a module is a macro or an item of lib.rs.
        if let Some(layer) = layer(target).filter(|&layer| layer > own) {
            let line = code.tokens[at].0;
            wrong.push(format!(
                "{path}:{line}: {module} (layer {own}) uses {target} (layer {layer})"
            ));
        }
    }
    wrong
}

/// How many modules deep a file of `src` is: 1 for `src/cli.rs` and `src/amp/mod.rs`.
fn module_depth(path: &str) -> usize {
    path.matches('/').count() - usize::from(path.ends_with("/mod.rs"))
}

/// Names that the file's layer may not use outside tests.
pub fn check_bans(path: &str, text: &str) -> Vec<String> {
    let code = Code::read(text);
    let (tests, _) = code.tests();
    let mut wrong = Vec::new();
    for (at, names) in code.paths() {
        if tests[at] || top_module(path).is_none() {
            continue;
        }
        for (banned, why) in bans(path) {
            for ban in banned {
                if is_named(ban, &names) {
                    wrong.push(format!("{path}:{}: {ban}: {why}", code.tokens[at].0));
                }
            }
        }
    }
    wrong
}

/// A ban of one word is on a keyword, or on a crate at the head of a path; a longer one is
/// on these names in a row.
fn is_named(ban: &str, names: &[&str]) -> bool {
    let ban: Vec<_> = ban.split("::").collect();
    match ban[..] {
        [word @ ("async" | "await")] => names.contains(&word),
        [name] => names.len() > 1 && names[0] == name,
        _ => names.windows(ban.len()).any(|window| window == ban),
    }
}

/// Panics without a reason, outside tests.
pub fn check_panics(path: &str, text: &str) -> Vec<String> {
    let code = Code::read(text);
    let (tests, _) = code.tests();
    let mut wrong = Vec::new();
    for (at, in_test) in tests.into_iter().enumerate() {
        let Some(word) = code.word(at).filter(|_| !in_test) else {
            continue;
        };
        let panics = match word {
            "unwrap" | "expect" | "unwrap_err" | "expect_err" => {
                at > 0 && code.is(at - 1, '.') && code.is(at + 1, '(')
            }
            "panic" | "todo" | "unimplemented" | "unreachable" => code.is(at + 1, '!'),
            _ => false,
        };
        let line = code.tokens[at].0;
        if panics && !has_reason(&code, line) {
            wrong.push(format!(
                "{path}:{line}: {word} without a comment `reason: ...` on it or above it"
            ));
        }
    }
    wrong
}

/// Whether a comment on the line, or directly above it, gives a reason.
fn has_reason(code: &Code, line: usize) -> bool {
    let gives = |line: &usize| code.comments.get(line).is_some_and(|text| text.contains("reason:"));
    let is_code = |line: &usize| code.tokens.iter().any(|(of, _)| of == line);
    let above =
        (1..line).rev().take_while(|line| code.comments.contains_key(line) && !is_code(line));
    gives(&line) || above.into_iter().any(|line| gives(&line))
}

/// A file that does not say what it is.
pub fn check_head(path: &str, text: &str) -> Vec<String> {
    let says = text.lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 8);
    if says {
        Vec::new()
    } else {
        vec![format!("{path}:1: the first line is not `//! what this is`")]
    }
}

/// The map against the folders: `folders` and `modules` must be named, and every path that
/// is named must be one that `exists`.
pub fn check_map(
    map: &str,
    folders: &BTreeSet<String>,
    modules: &BTreeSet<String>,
    exists: impl Fn(&str) -> bool,
) -> Vec<String> {
    let is_path = |c: char| is_word(c) || "/.-".contains(c);
    // A pattern, such as `tests/<area>/main.rs`, is no path.
    let words = map.split(|c: char| !is_path(c) && !"<>*{}".contains(c));
    let words: Vec<_> = words.map(|word| word.trim_end_matches(['.', '/'])).collect();
    let begins = |wanted: &str| {
        let mut rests = words.iter().filter_map(|word| word.strip_prefix(wanted));
        rests.any(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
    };
    // A folder's name may be a word of the prose too: it counts as code or with its slash.
    let named = |name: &str| {
        let forms =
            [format!("`{name}`"), format!("`{name}/"), format!(" {name}/"), format!("\n{name}/")];
        forms.iter().any(|form| map.contains(form))
    };
    let mut wrong = Vec::new();
    for folder in folders.iter().filter(|folder| !named(folder)) {
        wrong.push(format!("ARCHITECTURE.md does not name the folder {folder}"));
    }
    let unnamed = |module: &&String| !named(module) && !begins(&format!("src/{module}"));
    for module in modules.iter().filter(unnamed) {
        wrong.push(format!("ARCHITECTURE.md does not name src/{module}"));
    }
    for word in words.iter().filter(|word| word.chars().all(is_path)) {
        let within = word.split_once('/').is_some_and(|(first, _)| folders.contains(first));
        if within && !exists(word) {
            wrong.push(format!("ARCHITECTURE.md names {word}, which does not exist"));
        }
    }
    wrong
}

/// Paths of one developer's machine.
pub fn check_paths(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for place in ["/work/", "/root/", "/home/"] {
            let absolute =
                |at: usize| !line[..at].ends_with(|c: char| is_word(c) || ".-~}>)*".contains(c));
            if line.match_indices(place).any(|(at, _)| absolute(at)) {
                wrong.push(format!("{path}:{}: the path {place} is of one machine", number + 1));
            }
        }
    }
    wrong
}
