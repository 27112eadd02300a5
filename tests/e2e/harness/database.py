"""A database server of our own, as tests/servers/serve.sh starts it."""

import os
import subprocess

from .prosody import ROOT

#: How its clients ask, and who may do all.
CLIENTS = {
    "postgres": ("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres"),
    "mariadb": ("mariadb", "--no-defaults", "-N", "-h", "127.0.0.1", "-u", "root"),
}

#: The stored messages, a line each, in hexadecimal digits.
STANZAS = {
    "postgres": "SELECT encode(stanza, 'hex') FROM offline_message",
    "mariadb": "SELECT hex(stanza) FROM offline_message",
}


class Database:
    """A server with one database, `amphora`."""

    def __init__(self, kind):
        self.kind = kind
        self._child = subprocess.Popen(
            [ROOT / "tests" / "servers" / "serve.sh", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        ready = self._answer()
        assert ready.startswith("ready "), f"{kind} does not start: {ready}"
        _, port, self.folder = ready.split(" ", 2)
        self.port = int(port)
        self._create()

    def _create(self):
        self.query("CREATE DATABASE amphora", database="")
        if self.kind == "postgres":
            self.query("ALTER DATABASE amphora OWNER TO amphora")

    def empty(self):
        """Make the database anew, with nothing in it; the server."""
        self.query("DROP DATABASE amphora", database="")
        self._create()
        return self

    @property
    def url(self):
        """For a node's settings."""
        scheme = {"postgres": "postgres", "mariadb": "mysql"}[self.kind]
        return f"{scheme}://amphora:secret@127.0.0.1:{self.port}/amphora"

    @property
    def tigase_url(self):
        """The same as Tigase writes it."""
        scheme = {"postgres": "postgresql", "mariadb": "mysql"}[self.kind]
        at = f"127.0.0.1:{self.port}/amphora"
        return f"jdbc:{scheme}://{at}?user=amphora&password=secret&characterEncoding=UTF-8"

    def _answer(self):
        return self._child.stdout.readline().strip()

    def _tell(self, word):
        self._child.stdin.write(f"{word}\n")
        self._child.stdin.flush()
        return self._answer()

    def query(self, sql, database="amphora"):
        """What the server's own client prints."""
        client = CLIENTS[self.kind]
        if self.kind == "postgres":
            command = [*client, "-p", str(self.port), "-d", database or "postgres", "-c", sql]
        else:
            command = [*client, "-P", str(self.port), "-e", sql, *([database] if database else [])]
        env = {**os.environ, "PGPASSWORD": "secret", "MYSQL_PWD": "secret"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def rows(self):
        """How many messages it holds."""
        return int(self.query("SELECT count(*) FROM offline_message"))

    def stanzas(self):
        """The messages it holds, as text."""
        return [bytes.fromhex(row).decode() for row in self.query(STANZAS[self.kind]).splitlines()]

    def kill(self):
        """kill -9, all of its processes."""
        assert self._tell("kill") == "killed"

    def start(self):
        """Start it again, where it was."""
        assert self._tell("start").startswith("ready ")

    def stop(self):
        """It ends when nobody listens, and leaves nothing."""
        self._child.stdin.close()
        self._child.wait(60)
        self._child.stdout.close()
