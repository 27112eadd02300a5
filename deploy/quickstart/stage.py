"""Starts an XMPP server and a node in a folder of their own, plays the scene, and cleans up."""

import argparse
import asyncio
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import scene
from servers import SERVERS
from transcript import Transcript

HERE = Path(__file__).resolve().parent
PATIENCE = 60


class Failure(Exception):
    """Something that a person has to be told, without a traceback."""


class Stage:
    """The folder, the two processes, and where they listen."""

    def __init__(self, binary, server, modules):
        self.binary, self.modules = binary, modules
        self.dir = Path(tempfile.mkdtemp(prefix="amphora-quickstart."))
        self.server = SERVERS[server](self.dir, modules, scene.PASSWORD)
        self.c2s, self.component, self.http = free_ports(3)
        self.running = []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        for _, process in reversed(self.running):
            process.terminate()
        for _, process in reversed(self.running):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        if isinstance(error, (Failure, scene.NotAsTold)):
            print(f"The logs are kept in {self.dir}", file=sys.stderr)
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, template, name):
        """Fill a template in; the path of the result."""
        text = (HERE / template).read_text()
        values = {
            "DIR": self.dir,
            "MODULES": self.modules,
            "C2S_PORT": self.c2s,
            "COMPONENT_PORT": self.component,
            "HTTP_PORT": self.http,
            "SECRET": self.secret,
        }
        for key, value in values.items():
            text = text.replace(f"@{key}@", str(value))
        path = self.dir / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def set_up(self):
        """Settings, and two accounts that know each other."""
        self.secret = secrets.token_urlsafe(24)
        self.server_config = self.write(self.server.template, self.server.config)
        self.node_config = self.write("amphora.toml.in", "amphora.toml")
        self.server.set_up()

    def spawn(self, name, command, **env):
        """Start a process whose output goes to the folder."""
        with open(self.dir / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.dir,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append((name, process))

    def start(self):
        """Start both, each waited for."""
        command, env = self.server.command()
        self.spawn("server", command, **env)
        self.wait(self.server_is_up, f"{self.server.name} to listen")
        self.spawn("amphora", [self.binary, "run", "--config", str(self.node_config)])
        self.wait(lambda: ready(self.http), "the node to be ready")

    def server_is_up(self):
        """Whether clients and components may come."""
        return self.server.is_set_up() and listens(self.c2s) and listens(self.component)

    def wait(self, condition, what):
        """Wait for a condition while both live."""
        end = time.monotonic() + PATIENCE
        while not condition():
            for name, process in self.running:
                if process.poll() is not None:
                    text = (self.dir / f"{name}.out").read_text(errors="replace")
                    raise Failure(f"{name} ended with {process.returncode}:\n{text[-2000:]}")
            if time.monotonic() > end:
                raise Failure(f"waited {PATIENCE} s in vain for {what}")
            time.sleep(0.05)

    def where_to_look(self, keep):
        """What is there to be read."""
        rows = [
            ("Amphora's log", self.dir / "amphora.out"),
            ("its settings", self.node_config),
            ("its database", self.dir / "amphora.db"),
            ("its metrics", f"http://127.0.0.1:{self.http}/metrics"),
            (f"{self.server.name}'s log", self.dir / self.server.log),
            ("its settings", self.server_config),
            ("for clients", f"127.0.0.1:{self.c2s}, without TLS"),
            ("accounts", f"alice@example.org and bob@example.org, password '{scene.PASSWORD}'"),
        ]
        if keep:
            return [f"{what:<15}{where}" for what, where in rows]
        return [
            "Everything is stopped and removed now. To keep it and look around:",
            f"    deploy/quickstart.sh --server {self.server.name.lower()} --keep",
            "It shows where the logs, the settings, the database and the metrics are.",
        ]


def free_ports(count):
    """Free ports on loopback, below those that outgoing connections take."""
    found = []
    while len(found) < count:
        port = random.randrange(15000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def listens(port):
    """Whether someone accepts connections there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def ready(port):
    """Whether the node says that its links and its store are up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--server", required=True, choices=SERVERS)
    parser.add_argument("--modules", required=True)
    parser.add_argument("--keep", action="store_true")
    return parser.parse_args()


def main():
    """The whole of it; the exit code."""
    given = arguments()
    transcript = Transcript(sys.stdout)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # a shell starts what runs in its background with this one ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Stage(os.path.abspath(given.binary), given.server, os.path.abspath(given.modules)) as stage:
            stage.set_up()
            stage.start()
            transcript.remark(f"{stage.server.name} and Amphora run in {stage.dir}")
            asyncio.run(scene.play(stage.c2s, transcript))
            for line in stage.where_to_look(given.keep):
                transcript.remark(line)
            if given.keep:
                transcript.remark("")
                transcript.remark("Running until Ctrl-C.")
                stage_runs_on(stage)
    except (Failure, scene.NotAsTold) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        transcript.remark("Stopped, and removed.")
    return 0


def stage_runs_on(stage):
    """Until Ctrl-C, or until one of the two ends."""
    while True:
        for name, process in stage.running:
            if process.poll() is not None:
                raise Failure(f"{name} ended with {process.returncode}")
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
