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

/// The URL without user, password and query.
pub(super) fn shown(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match url.split_once("://") {
        // A file's path may contain '@'.
        Some((scheme, rest)) if scheme != "sqlite" => {
            let (authority, path) = match rest.find('/') {
                Some(at) => rest.split_at(at),
                None => (rest, ""),
            };
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{path}")
        }
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_secret() {
        assert_eq!(shown("sqlite:///var/lib/a@b.db?mode=rwc"), "sqlite:///var/lib/a@b.db");
        assert_eq!(shown("postgres://u:p%40@h:5432/db?password=x"), "postgres://h:5432/db");
        assert_eq!(shown("postgres://u:p@ss@h/db"), "postgres://h/db");
        assert_eq!(shown("mysql://h"), "mysql://h");
    }
}
