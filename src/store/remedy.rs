//! What an operator can do about an error, and what a user may see of a URL.

use std::io;

/// For a file that can't be opened or locked.
pub(super) fn of_io(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "make its directory, or change the url",
        io::ErrorKind::PermissionDenied => {
            "let the user that amphora runs as write in this directory, or change the url"
        }
        io::ErrorKind::ReadOnlyFilesystem => "choose a directory that can be written",
        io::ErrorKind::IsADirectory => "name a file, not a directory",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on the disk",
        io::ErrorKind::Unsupported => "choose a file system that can lock files",
        _ => "see the cause",
    }
}

/// For a server that can't be reached.
pub(super) fn of_connecting(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            "start the database server, or name its host and port"
        }
        io::ErrorKind::PermissionDenied => "let the user that amphora runs as use this socket",
        _ => "check host and port, and what stands between",
    }
}

/// The URL without user, password and query. Where it can't be told where the password ends,
/// nothing but the kind of database.
pub(super) fn shown(url: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    match base.split_once("://") {
        // A file's path may contain '@'.
        Some((scheme, rest)) if scheme != "sqlite" => match rest.rsplit_once('@') {
            Some((_, rest)) => format!("{scheme}://{rest}"),
            None if query.contains('@') && !rest.contains('/') => format!("{scheme}://***"),
            None if rest.split('/').next().is_some_and(is_login) => format!("{scheme}://***"),
            None => format!("{scheme}://{rest}"),
        },
        Some(_) => base.to_owned(),
        None if base.starts_with("sqlite:") => base.to_owned(),
        None => match base.strip_prefix("jdbc:postgresql:") {
            Some(name) if !url.contains('@') && name.bytes().all(is_of_a_name) => base.to_owned(),
            _ => "***".to_owned(),
        },
    }
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-/".contains(&byte)
}

/// Whether this may be a user and a password, cut off from their host.
fn is_login(authority: &str) -> bool {
    let port = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest).split_once(':');
    port.is_some_and(|(_, port)| !port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_secret() {
        assert_eq!(shown("sqlite:///var/lib/a@b.db?mode=rwc"), "sqlite:///var/lib/a@b.db");
        assert_eq!(shown("postgres://u:p%40@h:5432/db?password=x"), "postgres://h:5432/db");
        assert_eq!(shown("postgres://u:p@ss@h/db"), "postgres://h/db");
        assert_eq!(shown("postgres://u:p@s/s@h/db"), "postgres://h/db");
        assert_eq!(shown("postgres://u:hun?ter2@h/db"), "postgres://***");
        assert_eq!(shown("jdbc:mysql://h:1/db?user=u&password=p@w"), "jdbc:mysql://h:1/db");
        assert_eq!(shown("postgres://[::1]:5/db"), "postgres://[::1]:5/db");
        assert_eq!(shown("postgres:u:p@h"), "***");
        assert_eq!(shown("jdbc:postgresql:db?user=u&password=p"), "jdbc:postgresql:db");
        assert_eq!(shown("jdbc:postgresql:db?user=u&password=p@w"), "***");
        assert_eq!(shown("jdbc:postgresql:u:p?"), "***");
        assert_eq!(shown("sqlite:a.db"), "sqlite:a.db");
        assert_eq!(shown("mysql://h"), "mysql://h");
    }
}
