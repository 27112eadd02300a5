//! What the URL of a store says: which database, where, and who asks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::StoreError;
use super::remedy;
use super::sqlite::DatabaseFile;

/// Where the messages are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A file of SQLite.
    File(DatabaseFile),
    /// A database of a server.
    Server(Server),
}

/// The servers that can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Postgres,
    /// MySQL and MariaDB.
    MySql,
}

/// A database of a server.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) kind: Kind,
    /// A name or an address; of an IPv6 address without brackets.
    pub(super) host: String,
    /// None: the usual one.
    pub(super) port: Option<u16>,
    /// The Unix socket instead: its directory (PostgreSQL), or itself.
    pub(super) socket: Option<PathBuf>,
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) database: String,
    pub(super) tls: Tls,
    /// Whom to trust, and who we are, as files of PEM.
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// How far the connection is protected.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Tls {
    Off,
    /// If the server offers it.
    Prefer,
    /// Against listeners.
    Require,
    /// The server's certificate must be signed by the authority.
    VerifyCa,
    /// It must carry the server's name, too.
    VerifyFull,
}

/// Who is asked for when the URL names nobody.
const USER: &str = "amphora";

/// Parameters that JDBC drivers know and that change nothing here.
const JDBC_ONLY: &[&str] = &[
    "allowpublickeyretrieval",
    "applicationname",
    "autocreateuser",
    "autoreconnect",
    "cacheprepstmts",
    "characterencoding",
    "connecttimeout",
    "logintimeout",
    "noaccesstoprocedurebodies",
    "rewritebatchedstatements",
    "servertimezone",
    "sockettimeout",
    "tcpkeepalive",
    "usejdbccomplianttimezoneshift",
    "uselegacydatetimecode",
    "useunicode",
];

impl Place {
    /// Reads `sqlite:`, `postgres:`, `postgresql:`, `mysql:` and `mariadb:`, the servers' also
    /// behind `jdbc:`, as Tigase writes them. The error says what would be right, and repeats
    /// nothing that may be a password.
    pub(super) fn of(url: &str) -> Result<Place, String> {
        let (jdbc, plain) = match url.strip_prefix("jdbc:") {
            Some(rest) => (true, rest),
            None => (false, url),
        };
        let (scheme, rest) = plain.split_once(':').ok_or(NO_SCHEME)?;
        let kind = match scheme {
            "sqlite" if !jdbc => return DatabaseFile::of(rest).map(Place::File),
            "postgres" | "postgresql" => Kind::Postgres,
            "mysql" | "mariadb" => Kind::MySql,
            _ => return Err(NO_SCHEME.to_owned()),
        };
        let here;
        let rest = match rest.strip_prefix("//") {
            Some(rest) => rest,
            // As JDBC knows it: `jdbc:postgresql:DATABASE`.
            None if jdbc && kind == Kind::Postgres => {
                here = format!("/{}", rest.trim_start_matches('/'));
                &here
            }
            None => return Err(missing(kind, "host")),
        };
        Server::of(kind, jdbc, rest).map(Place::Server)
    }
}

const NO_SCHEME: &str = "it does not begin with 'sqlite:', 'postgres:' or 'mysql:', as in \
                         sqlite:///var/lib/amphora/amphora.db or postgres://amphora@db/amphora";

fn missing(kind: Kind, what: &str) -> String {
    let example = match kind {
        Kind::Postgres => "postgres://amphora@db.example.org/amphora",
        Kind::MySql => "mysql://amphora@db.example.org/amphora",
    };
    format!("it names no {what}, as {example} does")
}

impl Server {
    /// Reads what stands behind `//`.
    fn of(kind: Kind, jdbc: bool, rest: &str) -> Result<Server, String> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password with '/' or '@' in it should have been escaped; it is read all the same.
        let (login, rest) = match rest.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, rest),
        };
        let (address, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = address_of(address)?;
        let mut server = Server {
            kind,
            host,
            port,
            socket: None,
            user: USER.to_owned(),
            password: None,
            database: decoded(database)?,
            tls: Tls::Prefer,
            ca: None,
            certificate: None,
            key: None,
        };
        if let Some(login) = login {
            let (user, password) = match login.split_once(':') {
                Some((user, password)) => (user, Some(decoded(password)?)),
                None => (login, None),
            };
            server.user = decoded(user)?;
            server.password = password;
        }
        server.read_query(jdbc, query)?;
        if server.host.is_empty() {
            if !jdbc && server.socket.is_none() {
                return Err(missing(kind, "host"));
            }
            // What JDBC means by it, and the name for TLS over a socket.
            server.host = "localhost".to_owned();
        }
        if server.database.is_empty() || server.database.contains('/') {
            return Err(missing(kind, "database"));
        }
        if server.user.is_empty() {
            return Err(missing(kind, "user"));
        }
        Ok(server)
    }

    fn read_query(&mut self, jdbc: bool, query: &str) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if seen.insert(name.to_ascii_lowercase(), decoded(value)?).is_some() {
                return Err(format!("it says '{name}' twice"));
            }
        }
        let mut tls = None;
        for (name, value) in seen {
            match name.as_str() {
                "user" => self.user = value,
                "password" => self.password = Some(value),
                "socket" if self.kind == Kind::MySql => self.socket = Some(value.into()),
                "host" if self.kind == Kind::Postgres && value.starts_with('/') => {
                    self.socket = Some(value.into());
                }
                "sslmode" | "ssl-mode" => tls = Some(Tls::named(&value)?),
                // What Java's drivers say for the same.
                "ssl" if jdbc && value == "true" => tls = tls.max(Some(Tls::VerifyFull)),
                "usessl" if jdbc && value == "true" => tls = tls.max(Some(Tls::Prefer)),
                "requiressl" if jdbc && value == "true" => tls = tls.max(Some(Tls::Require)),
                "verifyservercertificate" if jdbc && value == "true" => {
                    tls = tls.max(Some(Tls::VerifyCa));
                }
                "ssl" | "usessl" if jdbc && value == "false" => tls = tls.max(Some(Tls::Off)),
                "requiressl" | "verifyservercertificate" if jdbc && value == "false" => {}
                "sslrootcert" | "ssl-ca" => self.ca = Some(value.into()),
                "sslcert" | "ssl-cert" => self.certificate = Some(value.into()),
                "sslkey" | "ssl-key" => self.key = Some(value.into()),
                name if jdbc && JDBC_ONLY.contains(&name) => {}
                // Its value may be a password whose name was mistyped.
                name => return Err(format!("its parameter '{name}' is not known; {KNOWN}")),
            }
        }
        self.tls = tls.unwrap_or(self.tls);
        Ok(())
    }
}

impl Server {
    /// Which database of which server this is.
    fn address(&self) -> (Kind, &str, u16, Option<&PathBuf>, &str) {
        let port = match self.kind {
            Kind::Postgres => self.port.unwrap_or(5432),
            Kind::MySql => self.port.unwrap_or(3306),
        };
        let socket = self.socket.as_ref();
        let host = if socket.is_some() { "" } else { &self.host };
        (self.kind, host, port, socket, &self.database)
    }
}

const KNOWN: &str = "known are user, password, sslmode, sslrootcert, sslcert, sslkey, and \
                     host=/DIRECTORY (PostgreSQL) or socket=/FILE (MySQL) for a Unix socket";

impl Tls {
    fn named(name: &str) -> Result<Tls, String> {
        Ok(match name.to_ascii_lowercase().replace('_', "-").as_str() {
            "disable" | "disabled" => Tls::Off,
            "allow" | "prefer" | "preferred" => Tls::Prefer,
            "require" | "required" => Tls::Require,
            "verify-ca" => Tls::VerifyCa,
            "verify-full" | "verify-identity" => Tls::VerifyFull,
            _ => {
                return Err("its sslmode must be disable, prefer, require, verify-ca or \
                            verify-full"
                    .to_owned());
            }
        })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, or nothing.
fn address_of(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, "")) => (v6, None),
        Some((v6, port)) => (v6, Some(port.strip_prefix(':').ok_or(BAD_PORT)?)),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(BAD_PORT)?),
        None => None,
    };
    Ok((decoded(host)?, port))
}

const BAD_PORT: &str = "its port must be 1 to 65535; a password with ':', '@', '/' or '?' in it \
                        must be escaped (%3A, %40, %2F, %3F), or stand in a file of its own";

/// Undoes the escapes (`%40`).
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        let (byte, length) = match escaped {
            Some((high, low)) => (high * 16 + low, 3),
            None => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8(bytes).map_err(|_| "its escapes make no UTF-8".to_owned())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Whether a URL names a database that the store can use; if not, why. The text repeats
/// nothing that may be a password.
pub fn check_url(url: &str) -> Result<(), String> {
    Place::of(url).map(|_| ())
}

/// The file of the database that a URL names; none if it is a server's.
///
/// # Errors
///
/// [`StoreError::Url`].
pub fn database_path(url: &str) -> Result<Option<PathBuf>, StoreError> {
    match Place::of(url) {
        Ok(Place::File(file)) => Ok(Some(file.path)),
        Ok(Place::Server(_)) => Ok(None),
        Err(reason) => Err(StoreError::Url { url: remedy::shown(url), reason }),
    }
}

/// Whether two URLs name one database, as far as can be seen from them.
pub fn same_database(one: &str, other: &str) -> bool {
    match (Place::of(one), Place::of(other)) {
        (Ok(Place::File(one)), Ok(Place::File(other))) => one.path == other.path,
        (Ok(Place::Server(one)), Ok(Place::Server(other))) => one.address() == other.address(),
        _ => false,
    }
}

/// Whether a URL holds a password.
pub fn url_has_password(url: &str) -> bool {
    matches!(Place::of(url), Ok(Place::Server(Server { password: Some(_), .. })))
}

/// The URL without user, password and parameters.
pub fn shown_url(url: &str) -> String {
    remedy::shown(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Server {
        match Place::of(url) {
            Ok(Place::Server(server)) => server,
            Ok(Place::File(_)) => panic!("{url} is a file"),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    #[test]
    fn servers() {
        let full = server(
            "postgres://us%40er:p%3aw@db.example.org:5433/m%20b?sslmode=verify-full&sslrootcert=/ca.pem",
        );
        assert_eq!(full.kind, Kind::Postgres);
        assert_eq!((full.host.as_str(), full.port), ("db.example.org", Some(5433)));
        assert_eq!((full.user.as_str(), full.password.as_deref()), ("us@er", Some("p:w")));
        assert_eq!((full.database.as_str(), full.tls), ("m b", Tls::VerifyFull));
        assert_eq!(full.ca.as_deref(), Some(std::path::Path::new("/ca.pem")));
        let plain = server("mariadb://[::1]/amphora");
        assert_eq!((plain.kind, plain.host.as_str(), plain.port), (Kind::MySql, "::1", None));
        assert_eq!((plain.user.as_str(), plain.password), ("amphora", None));
        let raw = server("mysql://u:p@ss/w@h:1/d");
        assert_eq!((raw.password.as_deref(), raw.host.as_str()), (Some("p@ss/w"), "h"));
        let socket = server("postgres:///db?host=/run/postgresql&user=a");
        assert_eq!(socket.socket.as_deref(), Some(std::path::Path::new("/run/postgresql")));
        assert!(server("mysql:///db?socket=/run/my.sock").socket.is_some());
    }

    #[test]
    fn one_database_by_two_urls() {
        for (one, other, same) in [
            ("sqlite://a.db", "sqlite:a.db?mode=rw", true),
            ("sqlite://a.db", "sqlite://b.db", false),
            ("postgres://u:p@h/d", "jdbc:postgresql://h:5432/d?user=v", true),
            ("postgres://h/d", "postgres://h/e", false),
            ("postgres://h/d", "mysql://h:5432/d", false),
            ("mariadb:///d?socket=/a", "mysql://h/d?socket=/a", true),
            ("sqlite://a.db", "nothing", false),
        ] {
            assert_eq!(same_database(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn as_tigase_writes_them() {
        let mysql = server(
            "jdbc:mysql://h:3307/tigasedb?user=u&password=p%26w&useSSL=false&useUnicode=true&characterEncoding=UTF-8",
        );
        assert_eq!((mysql.kind, mysql.port, mysql.tls), (Kind::MySql, Some(3307), Tls::Off));
        assert_eq!((mysql.user.as_str(), mysql.password.as_deref()), ("u", Some("p&w")));
        let strict = "jdbc:mysql://h/d?useSSL=true&requireSSL=true&verifyServerCertificate=true";
        assert_eq!(server(strict).tls, Tls::VerifyCa);
        let postgres = server("jdbc:postgresql://h/tigasedb?user=tigase&password=x&ssl=true");
        assert_eq!((postgres.kind, postgres.tls), (Kind::Postgres, Tls::VerifyFull));
        // JDBC may leave out the host.
        for url in
            ["jdbc:postgresql:d?user=u", "jdbc:postgresql:/d?user=u", "jdbc:mysql:///d?user=u"]
        {
            let here = server(url);
            assert_eq!((here.host.as_str(), here.port), ("localhost", None), "{url}");
            assert_eq!((here.database.as_str(), here.user.as_str()), ("d", "u"), "{url}");
        }
        let socket = server("jdbc:mysql:///d?socket=/run/my.sock");
        assert!(socket.socket.is_some());
        assert!(
            Place::of("jdbc:mysql:d").is_err() && Place::of("jdbc:postgresql:?user=u").is_err()
        );
        assert!(Place::of("jdbc:derby:/var/db").is_err() && Place::of("jdbc:sqlite:a").is_err());
    }

    #[test]
    fn what_is_wrong_is_told_without_secrets() {
        for (url, says) in [
            ("hunter2", "begin with"),
            ("oracle://u:hunter2@h/d", "begin with"),
            ("postgres:hunter2", "no host"),
            ("postgres://u:hunter2@/d", "no host"),
            ("mysql://u:hunter2@h", "no database"),
            ("mysql://u:hunter2@h/", "no database"),
            ("postgres://u:hunter2@h:port/d", "port"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "sslmode"),
            ("postgres://u@h/d?pasword=hunter2", "'pasword'"),
            ("postgres://h/d?useSSL=true", "'usessl'"),
            ("mysql://h/d?user=a&user=hunter2", "'user' twice"),
            ("jdbc:postgresql://h/d?currentSchema=hunter2", "'currentschema'"),
            ("mysql://%ff:hunter2@h/d", "UTF-8"),
        ] {
            let error = Place::of(url).err().unwrap_or_else(|| panic!("{url} is taken"));
            assert!(error.contains(says) && !error.contains("hunter2"), "{url}: {error}");
        }
    }
}
