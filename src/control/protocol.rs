//! What is on a line: a command, or its reply.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broadcast::{Command, Problem, ProblemKind};

use super::drain::ClusterCommand;

/// Bytes of a line at most: a thousand of the longest addresses, or the largest message with
/// everything in it escaped. A longer one is answered with a problem, and ends the connection.
pub const LINE: usize = 4 * 1024 * 1024;

/// Reads a command.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_command(line: &[u8]) -> Result<Command, Problem> {
    parse(line)
}

/// The same of the cluster.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse_cluster_command(line: &[u8]) -> Result<ClusterCommand, Problem> {
    parse(line)
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(line).map_err(|error| {
        let says: String = error.to_string().chars().take(400).collect();
        let says = format!("the command can't be read: {says}");
        Problem { kind: ProblemKind::Request, says }
    })
}

/// Reads a reply; the text says what is wrong with it.
pub fn parse_reply<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

/// A command or a reply as a line, with its end.
pub fn to_line(what: &impl Serialize) -> Vec<u8> {
    // reason: there is no map with keys that are not texts, and no value that fails
    let mut line = serde_json::to_vec(what).expect("commands and replies are JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_the_documented_ones() {
        let line = br#"{"do":"start","host":"example.org","everyone":true,"stanza":"<message/>","expires_at":"2026-12-31T18:00:00Z","rate":50}"#;
        let start = parse_command(line).unwrap();
        assert!(matches!(&start, Command::Start { host, rate: 50, .. } if host == "example.org"));
        for (line, command) in [
            (r#"{"do":"list"}"#, Command::List {}),
            (r#"{"do":"status","broadcast":3}"#, Command::Status { broadcast: 3 }),
            (r#"{"do":"begin","broadcast":3}"#, Command::Begin { broadcast: 3 }),
            (
                r#"{"do":"add","broadcast":3,"recipients":["a@b"]}"#,
                Command::Add { broadcast: 3, recipients: vec!["a@b".into()] },
            ),
        ] {
            assert_eq!(parse_command(line.as_bytes()), Ok(command.clone()));
            assert_eq!(to_line(&command), format!("{line}\n").into_bytes());
        }
    }

    #[test]
    fn the_words_of_the_cluster() {
        for (line, command) in [
            (r#"{"do":"drain"}"#, ClusterCommand::Drain {}),
            (r#"{"do":"undrain"}"#, ClusterCommand::Undrain {}),
        ] {
            assert_eq!(parse_cluster_command(line.as_bytes()), Ok(command.clone()));
            assert_eq!(to_line(&command), format!("{line}\n").into_bytes());
        }
        assert!(parse_cluster_command(br#"{"do":"drain","x":1}"#).is_err());
    }

    #[test]
    fn i7_what_is_no_command_is_answered() {
        for line in [
            "",
            "{",
            "null",
            "[]",
            r#"{"do":"walk"}"#,
            r#"{"do":"status"}"#,
            r#"{"do":"status","broadcast":"3"}"#,
            r#"{"do":"status","broadcast":3,"x":1}"#,
            r#"{"do":"list"} {"do":"list"}"#,
            "\u{0}",
        ] {
            let Err(problem) = parse_command(line.as_bytes()) else { panic!("{line} was taken") };
            assert_eq!(problem.kind, ProblemKind::Request, "{line}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse_command(deep.as_bytes()).is_err());
    }
}
