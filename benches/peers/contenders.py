"""What is compared: each server with its own offline storage, and with Amphora."""

import subprocess
import time
from pathlib import Path
from urllib.parse import urlsplit

from harness.ejabberd import Ejabberd
from harness.node import Node
from harness.prosody import SECRET, Prosody, lua
from harness.waiting import until
from load import LOAD
from postgres import USER, Postgres

SERVER, NODE = "the server", "the node"
SYNCED = "on disk: one synced transaction a message"

#: More settings of the virtual host, the same with and without Amphora, and the sender's
#: component. The archive is off: it would store every message a second time.
EXTRA = """
  modules_disabled = {{ "tls", "s2s", "mam", "pep", "bookmarks" }}
  storage_archive_item_limit = 10000000
{storage}
Component "{load}"
  component_secret = "{secret}"
"""


def prosody(folder, *, sql=None, module=False):
    """The Prosody of the end-to-end tests. `sql`, if given, is where it keeps offline messages,
    as Prosody's option of that name."""
    storage = ""
    if sql:
        pairs = ", ".join(f"{key} = {lua(value)}" for key, value in sql.items())
        storage = f'  storage = {{ offline = "sql" }}\n  sql = {{ {pairs} }}'
    extra = EXTRA.format(storage=storage, load=LOAD, secret=SECRET)
    return Prosody(folder, module=module, extra=extra)


#: A VM as the package starts it.
VM = "+K true +P 250000"

#: Modules that the tests load and that do nothing here; the roster as it is by default; no limit
#: on what a client has not acknowledged, for mod_offline writes all at once.
FEWER = {
    **{f"mod_{name}": None for name in ("adhoc", "caps", "configure", "register", "private")},
    "mod_roster": {},
    "mod_stream_mgmt": {"max_ack_queue": "infinity", "resend_on_timeout": "if_offline"},
}


def ejabberd(folder, *, sql=None, module=False):
    """The ejabberd of the end-to-end tests. `sql`, if given, is where it keeps offline messages,
    as its options. The archive is off, as with Prosody."""
    named = {"components": {LOAD: SECRET}, "settings": FEWER}
    return Ejabberd(folder, module=module, archive=None, sql=sql, vm=VM, **named)


def end(running):
    """Stop a server, a node or a database, whatever it still has to do."""
    try:
        running.stop()
    except subprocess.TimeoutExpired:
        running.kill()


class Contender:
    """One server and one storage. `server` is what senders and readers connect to."""

    key = label = durable = None
    #: Whether what it accepted, or what is waited for, is synced to the disk.
    synced = True
    #: Whether the storage is the server's own.
    own = True
    #: What `kill -9` is tried on.
    kills = (SERVER,)
    #: Debian packages.
    packages = ()

    def __init__(self, folder):
        self.dir = folder
        self.server = None
        self._helpers = []

    def start(self, users):
        """Start everything on empty data, with these accounts."""
        self.set_up()
        for user in users:
            self.server.account(user)
        self.server.start()
        return self

    def set_up(self):
        """Make `server`, and start what it needs before it."""
        raise NotImplementedError

    def postgres(self):
        """A PostgreSQL of its own, running."""
        postgres = Postgres(self.dir / "postgresql")
        self._helpers.append(postgres)
        return postgres.start()

    def stop(self):
        """End everything that runs, the server first."""
        if self.server:
            end(self.server)
        for helper in reversed(self._helpers):
            end(helper)

    def pids(self):
        """The processes that are its own."""
        running = [self.server, *self._helpers]
        return [one.process.pid for one in running if one.process]

    def mark(self):
        """Called before messages are sent; what `settled` wants to know."""

    async def settled(self, mark, count, deadline):
        """Wait until `count` messages since `mark` are as durable as it makes them; whatever
        was answered already is, but with Amphora."""

    def durable_count(self, mark, accepted):
        """How many of the accepted messages since `mark` are that durable by now."""
        return accepted

    async def ready_again(self, deadline):
        """After a restart: wait until what is stored can be fetched."""

    def kill(self, what):
        """`kill -9` of one of `kills`."""
        assert what == SERVER, what
        self.server.kill()

    def revive(self):
        """Start what was killed."""
        self.server.start()


class ProsodyInternal(Contender):
    """mod_offline, storage internal."""

    key, label = "prosody-internal", "Prosody, internal"
    durable = "given to the kernel: appended to a file, never synced"
    synced = False
    packages = ("prosody",)

    def set_up(self):
        self.server = prosody(self.dir / "prosody")


class ProsodySqlite(Contender):
    """mod_offline, storage sql with SQLite3."""

    key, label, durable = "prosody-sqlite", "Prosody, SQLite", SYNCED
    packages = ("prosody", "lua-dbi-sqlite3")

    def set_up(self):
        sql = {"driver": "SQLite3", "database": "prosody.sqlite"}
        self.server = prosody(self.dir / "prosody", sql=sql)


class ProsodyPostgres(Contender):
    """mod_offline, storage sql with PostgreSQL."""

    key, label, durable = "prosody-postgresql", "Prosody, PostgreSQL", SYNCED
    packages = ("prosody", "lua-dbi-postgresql", "postgresql")

    def set_up(self):
        postgres = self.postgres()
        postgres.create("prosody")
        sql = {
            "driver": "PostgreSQL",
            "database": "prosody",
            "username": USER,
            "password": "",
            "host": "127.0.0.1",
            "port": postgres.port,
        }
        self.server = prosody(self.dir / "prosody", sql=sql)


class EjabberdMnesia(Contender):
    """mod_offline, mnesia."""

    key, label = "ejabberd-mnesia", "ejabberd, mnesia"
    durable = "in the server's memory: written to its file later, never synced"
    synced = False
    packages = ("ejabberd",)

    def set_up(self):
        self.server = ejabberd(self.dir / "ejabberd")


class EjabberdPostgres(Contender):
    """mod_offline, sql with PostgreSQL."""

    key, label, durable = "ejabberd-postgresql", "ejabberd, PostgreSQL", SYNCED
    packages = ("ejabberd", "erlang-p1-pgsql", "postgresql")

    def set_up(self):
        postgres = self.postgres()
        postgres.create("ejabberd", Path("/usr/share/ejabberd/sql/pg.sql"))
        sql = {
            "sql_type": "pgsql",
            "sql_server": "127.0.0.1",
            "sql_port": postgres.port,
            "sql_database": "ejabberd",
            "sql_username": USER,
            "sql_password": "",
        }
        self.server = ejabberd(self.dir / "ejabberd", sql=sql)


class Amphora(Contender):
    """Prosody with the interceptor, and a node beside it."""

    key, label = "amphora-sqlite", "Prosody + Amphora, SQLite"
    durable = "on disk: one synced transaction for all that wait"
    own = False
    kills = (SERVER, NODE)
    packages = ("prosody",)
    #: Where the node stores; None: a file of its own.
    url = None
    node = None

    def make_server(self):
        """The server, with the interceptor."""
        return prosody(self.dir / "prosody", module=True)

    def set_up(self):
        self.server = self.make_server()
        settings = {"shards": 256}
        if self.url and "{postgresql}" in self.url:
            postgres = self.postgres()
            postgres.create("amphora")
            settings["url"] = self.url.replace("{postgresql}", postgres.url("amphora"))
        elif self.url:
            settings["url"] = self.url
        self.node = Node(self.dir / "node", self.server, **settings)

    def start(self, users):
        super().start(users)
        self.node.start()
        return self

    def stop(self):
        if self.node:
            end(self.node)
        super().stop()

    def pids(self):
        return [*super().pids(), self.node.process.pid]

    def mark(self):
        return self._committed()

    def _committed(self):
        for line in self.node.http_get("/metrics").splitlines():
            if line.startswith("amphora_store_appends_total "):
                return int(float(line.split()[1]))
        return 0

    def durable_count(self, mark, accepted):
        return self._committed() - mark

    async def settled(self, mark, count, deadline):
        await until(
            lambda: self._committed() - mark >= count,
            f"{count} messages to be committed",
            deadline - time.monotonic(),
        )

    async def ready_again(self, deadline):
        await until(
            lambda: self.node.http_status("/readyz") == 200,
            "the node to be ready",
            deadline - time.monotonic(),
        )

    def kill(self, what):
        if what == NODE:
            # as whatever supervises it would; the server runs on
            self.node.kill()
            self.node.spawn()
        else:
            super().kill(what)

    def revive(self):
        if self.server.process is None:
            self.server.start()


class AmphoraEjabberd(Amphora):
    """ejabberd with the interceptor, and a node beside it."""

    key, label = "amphora-ejabberd-sqlite", "ejabberd + Amphora, SQLite"
    packages = ("ejabberd", "erlang-base")

    def make_server(self):
        return ejabberd(self.dir / "ejabberd", module=True)


ALL = [
    ProsodyInternal,
    ProsodySqlite,
    ProsodyPostgres,
    EjabberdMnesia,
    EjabberdPostgres,
    Amphora,
    AmphoraEjabberd,
]


#: Schemes of store URLs, and what people call what they name.
SCHEMES = {
    "sqlite": "SQLite",
    "postgres": "PostgreSQL",
    "postgresql": "PostgreSQL",
    "mysql": "MariaDB",
    "mariadb": "MariaDB",
}


def with_store(url):
    """Amphora beside each server on another store; `{postgresql}` stands for a database of the
    run's own."""
    own = "{postgresql}" in url
    scheme = "postgresql" if own else urlsplit(url).scheme
    if scheme not in SCHEMES:
        raise ValueError(f"--store {url}: its scheme is none of {', '.join(SCHEMES)}")
    name = SCHEMES[scheme]
    return [
        type(
            f"{kind.__name__}{name}",
            (kind,),
            {
                "key": kind.key.replace("sqlite", name.lower()),
                "label": kind.label.replace("SQLite", name),
                "url": url,
                "packages": (*kind.packages, "postgresql") if own else kind.packages,
            },
        )
        for kind in (Amphora, AmphoraEjabberd)
    ]
