//! A list of recipients: a bare JID a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use jid::BareJid;

use crate::broadcast::LIST;

/// Bytes of a line at most: what a JID can have, and room for white space.
const LINE: u64 = 4096;

/// Mistakes that are told at once.
const TOLD: usize = 10;

/// Recipients of one host, as the file names them, duplicates included.
#[derive(Debug, PartialEq, Eq)]
pub struct Recipients {
    pub host: String,
    pub jids: Vec<String>,
}

/// Why a list can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It can't be read.
    #[error("cannot read the list '{0}'")]
    Unreadable(String, #[source] io::Error),
    /// What is wrong, a line each.
    #[error("{}", .0.join("\namphora: "))]
    Wrong(Vec<String>),
}

/// Reads a list; `-` is the standard input.
pub fn read(path: &Path) -> Result<Recipients, ListError> {
    let name = path.display().to_string();
    let failed = |error| ListError::Unreadable(name.clone(), error);
    if name == "-" {
        return parse(&name, io::stdin().lock());
    }
    let file = File::open(path).map_err(failed)?;
    parse(&name, BufReader::new(file))
}

fn parse(name: &str, mut source: impl BufRead) -> Result<Recipients, ListError> {
    let mut jids = Vec::new();
    let mut host: Option<String> = None;
    let mut wrong: Vec<String> = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = (&mut source).take(LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(|error| ListError::Unreadable(name.to_owned(), error))? == 0 {
            break;
        }
        let mut tell = |says: &str| wrong.push(format!("{name}:{number}: {says}"));
        if line.len() as u64 > LINE {
            tell("the line is longer than 4096 bytes: a list has a JID a line");
            break;
        }
        match entry(&line, host.as_deref()) {
            Ok(None) => {}
            Ok(Some(_)) if jids.len() as u64 == LIST => {
                tell(&format!("a list may have {LIST} recipients: part it"));
                break;
            }
            Ok(Some(jid)) => {
                host.get_or_insert_with(|| jid.domain().to_string());
                jids.push(jid.to_string());
            }
            Err(says) => tell(&says),
        }
        if wrong.len() == TOLD {
            break;
        }
    }
    match host {
        _ if !wrong.is_empty() => Err(ListError::Wrong(wrong)),
        Some(host) => Ok(Recipients { host, jids }),
        None => Err(ListError::Wrong(vec![format!("{name}: names nobody: write a JID a line")])),
    }
}

/// What a line names; nothing in an empty line or a comment.
fn entry(line: &[u8], host: Option<&str>) -> Result<Option<BareJid>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "is no UTF-8".to_owned())?.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let jid = BareJid::new(text)
        .map_err(|error| format!("'{text}' is no bare JID as bob@example.org ({error})"))?;
    if jid.node().is_none() {
        return Err(format!("'{text}' is no user: write a JID as bob@example.org"));
    }
    match host {
        Some(host) if jid.domain().as_str() != host => Err(format!(
            "'{text}' is not at {host}, as those before it: a broadcast is for one host"
        )),
        _ => Ok(Some(jid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> Vec<String> {
        match parse("LIST", text.as_bytes()) {
            Err(ListError::Wrong(wrong)) => wrong,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn comments_and_empty_lines_are_left_out_and_jids_normalised() {
        let list = "# staff\n\n Bob@Example.org \r\nalice@example.org";
        let jids = vec!["bob@example.org".to_owned(), "alice@example.org".to_owned()];
        assert_eq!(
            parse("LIST", list.as_bytes()).unwrap(),
            Recipients { host: "example.org".into(), jids }
        );
    }

    #[test]
    fn mistakes_have_their_lines() {
        let told = wrong("a@h\nb@h/phone\n@h\nh\nc@other\n");
        let places: Vec<&str> = told.iter().map(|line| &line[..7]).collect();
        assert_eq!(places, ["LIST:2:", "LIST:3:", "LIST:4:", "LIST:5:"], "{told:?}");
        assert!(told[2].contains("is no user"), "{told:?}");
        assert!(told[3].contains("is not at h"), "{told:?}");
        assert_eq!(wrong("#\n"), ["LIST: names nobody: write a JID a line"]);
        assert_eq!(wrong(&"x y\n".repeat(50)).len(), TOLD);
        assert_eq!(wrong(&"x".repeat(5000)).len(), 1);
        assert!(parse("LIST", &b"\xff@h\n"[..]).is_err());
    }
}
