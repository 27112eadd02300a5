"""A PostgreSQL cluster of our own, with the defaults of the package: every commit is synced."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

from harness.ports import free_port
from harness.process import Process
from harness.waiting import wait_for

USER = "bench"


def tool(name):
    """A program of the newest version that is installed, wherever Debian put it."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])
    )
    path = str(found[-1]) if found else shutil.which(name)
    if not path:
        raise FileNotFoundError(f"{name} of PostgreSQL is missing")
    return path


class Postgres:
    """On loopback, on a port and a folder of its own; it refuses to run as root."""

    def __init__(self, folder):
        self.dir = Path(folder)
        self.port = free_port()
        self.process = None
        self._as_user = []
        self.dir.mkdir(parents=True)
        if os.geteuid() == 0:
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
            shutil.chown(self.dir, "postgres", "postgres")

    def start(self):
        """Make the cluster if it is not there, and wait until it takes connections."""
        data = self.dir / "data"
        if not data.exists():
            self._run(
                tool("initdb"),
                "--pgdata",
                str(data),
                "--username",
                USER,
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
            )
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.dir,
        }
        command = [tool("postgres"), "-D", str(data)]
        for key, value in options.items():
            command += ["-c", f"{key}={value}"]
        self.process = Process([*self._as_user, *command], self.dir / "postgres.log", self.dir)
        wait_for(self._is_up, f"PostgreSQL to take connections (see {self.dir}/postgres.log)")
        return self

    def _is_up(self):
        assert self.process.returncode() is None, (self.dir / "postgres.log").read_text()
        ready = [tool("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(ready, check=False).returncode == 0

    def create(self, name, schema=None):
        """A database, with the statements of a file if one is named."""
        self._sql("postgres", "--command", f"create database {name}")
        if schema:
            self._sql(name, "--file", str(schema))

    def _sql(self, database, *arguments):
        self._run(
            tool("psql"),
            "--no-psqlrc",
            "--quiet",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--username",
            USER,
            "--dbname",
            database,
            "--set",
            "ON_ERROR_STOP=1",
            *arguments,
        )

    def _run(self, *command):
        done = subprocess.run(
            [*self._as_user, *command], cwd=self.dir, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command[0]}: {done.stdout}{done.stderr}"

    def url(self, database):
        """Where a node finds that database."""
        return f"postgres://{USER}@127.0.0.1:{self.port}/{database}"

    def stop(self):
        """The fast shutdown, which does not wait for clients."""
        if self.process:
            self.process.signal(signal.SIGINT)
            self.process.wait()
            self.process = None

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None
