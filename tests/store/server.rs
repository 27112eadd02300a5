//! Real database servers, and what the store does in each of them.

mod division;
mod facts;
mod faults;
mod fence;
mod load;
mod lost;
mod plans;
mod proxy;
mod random;
mod shards;
mod slow;
mod unfit;
mod ways;
mod writers;

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use amphora::store::{BroadcastStore, SeaStore, Store, StoreSettings};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, TryGetable};

use crate::bed::*;

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Postgres,
    MariaDb,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::MariaDb => "mariadb",
        }
    }

    fn scheme(self) -> &'static str {
        match self {
            Kind::Postgres => "postgres",
            Kind::MariaDb => "mysql",
        }
    }

    /// Who may do all, and the database that is always there.
    fn administrator(self) -> (&'static str, &'static str) {
        match self {
            Kind::Postgres => ("postgres", "postgres"),
            Kind::MariaDb => ("root", "mysql"),
        }
    }
}

/// A server that runs as long as this value lives, or this process.
pub struct TestServer {
    kind: Kind,
    port: u16,
    pub folder: String,
    process: Mutex<Process>,
}

struct Process {
    child: Child,
    words: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }
}

impl TestServer {
    /// A server of one's own; `size` is that of its disk, as `64m`.
    pub fn start(kind: Kind, size: Option<&str>) -> Self {
        Self::start_with(kind, size, "")
    }

    /// One with options that its command understands.
    pub fn start_with(kind: Kind, size: Option<&str>, options: &str) -> Self {
        let mut child = Command::new("tests/servers/serve.sh")
            .arg(kind.word())
            .args(size)
            .env("SERVER_OPTIONS", options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/servers/serve.sh");
        let words = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("answers"));
        let mut process = Process { child, words, answers };
        let ready = process.answer();
        let mut parts = ready.split(' ').skip(1);
        let port = parts.next().and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| {
            panic!("no server ({ready}): see above; tests/run.sh installs what is missing")
        });
        let folder = parts.next().expect("a folder").to_owned();
        TestServer { kind, port, folder, process: Mutex::new(process) }
    }

    /// The one that most tests share.
    pub fn shared(kind: Kind) -> &'static TestServer {
        static POSTGRES: OnceLock<TestServer> = OnceLock::new();
        static MARIADB: OnceLock<TestServer> = OnceLock::new();
        let server = match kind {
            Kind::Postgres => &POSTGRES,
            Kind::MariaDb => &MARIADB,
        };
        server.get_or_init(|| TestServer::start(kind, None))
    }

    /// Where it has its files.
    pub fn folder(&self) -> &str {
        &self.folder
    }

    pub fn kill(&self) {
        assert_eq!(self.tell("kill"), "killed");
    }

    pub fn start_again(&self) {
        assert!(self.tell("start").starts_with("ready"));
    }

    fn tell(&self, word: &str) -> String {
        let mut process = self.process.lock().expect("not poisoned");
        let words = process.words.as_mut().expect("open");
        words.write_all(format!("{word}\n").as_bytes()).expect("listens");
        process.answer()
    }

    pub fn url(&self, database: &str) -> String {
        let (scheme, port) = (self.kind.scheme(), self.port);
        format!("{scheme}://amphora:secret@127.0.0.1:{port}/{database}?sslmode=disable")
    }

    /// A database of its own, not there before.
    pub async fn new_database(&self) -> String {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("store{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let administrator = self.administrator(self.kind.administrator().1).await;
        execute(&administrator, &format!("CREATE DATABASE {name}")).await;
        if self.kind == Kind::Postgres {
            execute(&administrator, &format!("ALTER DATABASE {name} OWNER TO amphora")).await;
        }
        administrator.close().await.expect("closes");
        name
    }

    /// A database as the administrator sees it, on one connection.
    pub async fn administrator(&self, database: &str) -> DatabaseConnection {
        let user = self.kind.administrator().0;
        let url = self.url(database).replace("amphora:secret", &format!("{user}:secret"));
        connect(url.replace("?sslmode=disable", "")).await
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let mut process = self.process.lock().expect("not poisoned");
        process.words.take();
        let _ = process.child.wait();
    }
}

/// A database of its own in a server, and another program's view of it.
pub struct ServerBed {
    pub kind: Kind,
    pub name: String,
    pub bed: Bed,
}

impl ServerBed {
    pub async fn in_server(server: &TestServer) -> Self {
        let name = server.new_database().await;
        let clock = TestClock::new();
        let hands = clock.clone();
        let settings = StoreSettings {
            append_limit: Duration::from_secs(600),
            clock: Arc::new(move || hands.now()),
            ..StoreSettings::new(server.url(&name))
        };
        let open = |settings| -> Opening {
            Box::pin(async { Ok(Arc::new(SeaStore::open(settings).await?) as Arc<dyn Store>) })
        };
        let bed = Bed { settings, clock, open, _keep: Box::new(()) };
        ServerBed { kind: server.kind, name, bed }
    }

    /// In the shared server.
    pub async fn new(kind: Kind) -> Self {
        // Its start blocks, for some seconds.
        let server = tokio::task::spawn_blocking(move || TestServer::shared(kind));
        Self::in_server(server.await.expect("a server")).await
    }

    /// The database as another program sees it, on one connection.
    pub async fn raw(&self) -> DatabaseConnection {
        connect(self.bed.settings.url.replace("?sslmode=disable", "")).await
    }

    /// The same, of the shared server, by who may do all.
    pub async fn administrator(&self) -> DatabaseConnection {
        TestServer::shared(self.kind).administrator(&self.name).await
    }

    /// Waits until so many sessions of the database wait for locks, as the administrator sees it.
    pub async fn until_waiting(&self, sessions: i64, administrator: &DatabaseConnection) {
        let waiting = match self.kind {
            Kind::Postgres => {
                "SELECT count(*) FROM pg_stat_activity \
                 WHERE datname = current_database() AND wait_event_type = 'Lock'"
            }
            Kind::MariaDb => {
                "SELECT count(*) FROM information_schema.INNODB_TRX \
                 JOIN information_schema.PROCESSLIST ON ID = trx_mysql_thread_id \
                 WHERE DB = DATABASE() AND trx_state = 'LOCK WAIT'"
            }
        };
        while value::<i64>(administrator, waiting).await < sessions {
            // InnoDB looks anew only when it was not asked for a tenth of a second.
            tokio::time::sleep(Duration::from_millis(120)).await;
        }
    }
}

async fn connect(url: String) -> DatabaseConnection {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).sqlx_logging(false);
    Database::connect(options).await.expect("connects")
}

pub async fn execute(database: &DatabaseConnection, sql: &str) {
    database.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The one value that a query has.
pub async fn value<T: TryGetable>(database: &DatabaseConnection, sql: &str) -> T {
    let statement = sea_orm::Statement::from_string(database.get_database_backend(), sql);
    let row = database.query_one_raw(statement).await.expect("a row").expect("a row");
    row.try_get_by_index(0).expect("a value")
}

/// Makes tests of checks that take a [`ServerBed`] of PostgreSQL and of MariaDB.
macro_rules! on_each_server {
    ($($check:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test]
            async fn $check() {
                super::$check($crate::server::ServerBed::new($crate::server::Kind::Postgres).await).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test]
            async fn $check() {
                super::$check($crate::server::ServerBed::new($crate::server::Kind::MariaDb).await).await;
            })*
        }
    };
}
pub(crate) use on_each_server;

mod postgres {
    use super::*;

    async fn bed() -> Bed {
        ServerBed::new(Kind::Postgres).await.bed
    }

    crate::conformance!(bed);

    async fn both() -> crate::broadcast::Both {
        super::both(bed().await)
    }

    crate::broadcasts!(both);
}

mod mariadb {
    use super::*;

    async fn bed() -> Bed {
        ServerBed::new(Kind::MariaDb).await.bed
    }

    crate::conformance!(bed);

    async fn both() -> crate::broadcast::Both {
        super::both(bed().await)
    }

    crate::broadcasts!(both);
}

fn both(bed: Bed) -> crate::broadcast::Both {
    crate::broadcast::Both {
        bed,
        open: |settings| {
            Box::pin(async {
                let store = Arc::new(SeaStore::open(settings).await.expect("opens"));
                (store.clone() as Arc<dyn BroadcastStore>, store as Arc<dyn Store>)
            })
        },
    }
}
