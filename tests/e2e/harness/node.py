"""An Amphora node of our own: a folder, a settings file, a process that can be killed."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from .ports import free_port
from .process import Process
from .prosody import COMPONENT, HOST, ROOT, SECRET
from .waiting import wait_for

CONFIG = """
[node]
name = "{name}"

[processor]
shards = {shards}
security_level = "{security}"

[store]
{store}

[quota]
messages_per_user = {per_user}
{quota}

[http]
listen = "{inside}:{http}"

[[servers]]
address = "{address}"
component = "{component}"
secret = "{secret}"
hosts = ["{host}"{others}]
{more}
"""


def binary():
    """The command under test: AMPHORA_BIN, or what `cargo build` left."""
    named = os.environ.get("AMPHORA_BIN")
    if named:
        return named
    target = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    return str(target / "debug" / "amphora")


class Node:
    """One node, linked to `server` (a Prosody, or anything with a `component_port`)."""

    def __init__(self, folder, server, **settings):
        self.dir = Path(folder)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.http = free_port()
        self.database = self.dir / "amphora.db"
        self.settings = {
            "name": "n1",
            "others": "",
            "more": "",
            "shards": 8,
            "security": "strict",
            "url": f"sqlite://{self.database}",
            "parts": "",
            "per_user": 0,
            "quota": "",
            "http": self.http,
            # its own address, and what goes before its command: of a network of its own
            "inside": "127.0.0.1",
            "within": [],
            "address": f"127.0.0.1:{server.component_port}",
            "component": COMPONENT,
            "secret": SECRET,
            "host": getattr(server, "host", HOST),
            **settings,
        }
        self.config = self.dir / "amphora.toml"
        self.process = None
        self._still = None
        self.write_config()

    def write_config(self, **settings):
        """Write the settings file, with changes if any."""
        self.settings.update(settings)
        store = self.settings["parts"] or f'url = "{self.settings["url"]}"'
        self.config.write_text(CONFIG.format(**self.settings, store=store))
        self.config.chmod(0o600)

    @property
    def log(self):
        """What the node wrote, over all its lives."""
        path = self.dir / "amphora.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def output(self):
        """All that is known of it, for a failed test."""
        return self.log

    def spawn(self, *arguments, **env):
        """Start the process and return at once."""
        assert self.process is None, "already running"
        self.process = Process(
            [*self.settings["within"], binary(), "run", "--config", str(self.config), *arguments],
            self.dir / "amphora.log",
            self.dir,
            env={"RUST_LOG": os.environ.get("RUST_LOG", "info"), "NO_COLOR": "1", **env},
        )
        return self

    def start(self):
        """Start it and wait until its links are greeted and its store is up."""
        self.spawn()
        wait_for(self._is_ready, f"the node to be ready (see {self.dir}/amphora.log)")
        return self

    def _is_ready(self):
        code = self.process.returncode()
        assert code is None, f"the node ended with {code}:\n{self.log[-4000:]}"
        return self.http_status("/readyz") == 200

    def http_status(self, path):
        """The status of a GET, or None if nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.settings['inside']}:{self.http}{path}", timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def metric(self, name):
        """The value of a metric, with its labels as they stand; None if it is not there."""
        for line in self.http_get("/metrics").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split(" ")[1])
        return None

    def http_get(self, path):
        """The text of a GET."""
        with urllib.request.urlopen(f"http://{self.settings['inside']}:{self.http}{path}", timeout=5) as answer:
            return answer.read().decode()

    def http_get_any(self, path):
        """The text of a GET, whatever its status; empty if nobody answers."""
        try:
            return self.http_get(path)
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def stop(self):
        """SIGTERM, and the exit code."""
        if self.process is None:
            return None
        code = self.process.terminate()
        self.process = None
        return code

    def signal(self, number):
        """Any other signal."""
        self.process.signal(number)

    @contextlib.asynccontextmanager
    async def standing_still(self):
        """Nothing comes from it meanwhile. One at a time."""
        loop = asyncio.get_running_loop()
        if self._still is None or self._still[0] is not loop:
            self._still = loop, asyncio.Lock()
        async with self._still[1]:
            self.signal(signal.SIGSTOP)
            try:
                yield
            finally:
                self.signal(signal.SIGCONT)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process = None

    def stored(self, jid):
        """How many messages the database holds for a bare JID, read from outside."""
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
            ) as database:
                query = "select count(*) from offline_message where recipient = ?"
                return database.execute(query, (jid,)).fetchone()[0]
        except sqlite3.OperationalError:
            return 0

    def wait_exit(self, seconds=30):
        """The exit code of a node that ends by itself."""
        code = self.process.wait(seconds)
        self.process = None
        return code

    def wait_log(self, *words, seconds=30):
        """Wait until one line of the log holds all the words; the line."""

        def line():
            for text in self.log.splitlines():
                if all(word.lower() in text.lower() for word in words):
                    return text
            return None

        def found():
            ended = self.process and self.process.returncode() is not None
            text = line()
            assert text or not ended, f"the node ended without a line with {words}:\n{self.log}"
            return text

        return wait_for(found, f"a line with {words} in the node's log:\n{self.log[-3000:]}", seconds)

    @property
    def control(self):
        """Its control socket, where it is by default."""
        if self.settings["parts"] or not self.settings["url"].startswith("sqlite:"):
            return str(self.dir / f"{self.settings['name']}.sock")
        return f"{self.database}.sock"

    def ask(self, **command):
        """A command over the control socket, and the reply."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(self.control)
            connection.sendall(json.dumps(command).encode() + b"\n")
            return json.loads(connection.makefile().readline())

    def broadcast(self, *arguments):
        """Run `amphora broadcast <arguments>` against it: (code, output)."""
        return self.command("broadcast", *arguments, "--config", str(self.config))

    def rows(self):
        """How many messages its database holds, read from outside."""
        try:
            with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5) as database:
                return database.execute("select count(*) from offline_message").fetchone()[0]
        except sqlite3.OperationalError:
            return 0

    def command(self, *arguments):
        """Run `amphora <arguments>` to its end: (code, output)."""
        done = subprocess.run(
            [binary(), *arguments],
            cwd=self.dir,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "NO_COLOR": "1"},
        )
        return done.returncode, done.stdout + done.stderr
