"""Fixtures: a server and a node for each test module, people and clients for each test."""

import contextlib
import signal
import sys
from pathlib import Path

import pytest

from harness.client import Client
from harness.node import Node, binary
from harness.prosody import Prosody
from harness.raw import RawClient
from harness.stanzas import COMMANDS, new_id

#: What a failed test prints of each log.
TAIL = 6000


def pytest_sessionstart(session):
    """Say at once, and once, what is missing."""
    if not Path(binary()).exists():
        pytest.exit(f"{binary()} is missing: run `cargo build` first", returncode=2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test brings the ends of the logs of its servers and nodes."""
    report = yield
    if report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if hasattr(value, "output") and hasattr(value, "dir"):
                text = value.output()
                report.sections.append((f"log of {value.dir}", text[-TAIL:]))
    return report


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, request):
    """Makes servers and nodes, and ends them all after the module."""
    with contextlib.ExitStack() as stack:
        yield Workshop(tmp_path_factory, request.module.__name__, stack)


class Workshop:
    """Where servers and nodes come from."""

    def __init__(self, folders, name, stack):
        self._folders, self._name, self._stack = folders, name, stack

    def folder(self, kind):
        """A new folder."""
        return self._folders.mktemp(f"{self._name}-{kind}")

    def prosody(self, start=True, **settings):
        """A Prosody, running unless told otherwise."""
        server = Prosody(self.folder("prosody"), **settings)
        self._stack.callback(server.stop)
        return server.start() if start else server

    def node(self, server, start=True, **settings):
        """A node linked to that server, ready unless told otherwise."""
        node = Node(self.folder("node"), server, **settings)
        self._stack.callback(node.stop)
        return node.start() if start else node


@pytest.fixture
async def clients():
    """Logs clients in, and out after the test."""
    made = Clients()
    yield made
    await made.close()


@pytest.fixture
async def admin(clients):
    """Loads, unloads and reloads the interceptor as an administrator does."""

    async def command(prosody, what):
        prosody.account("admin")
        client = await clients.login(prosody, f"admin@{prosody.host}", new_id("admin"), raw=True)
        node = f"http://prosody.im/protocol/modules#{what}"
        started = await client.iq(
            f"<command xmlns='{COMMANDS}' node='{node}' action='execute'/>", type="set", to=prosody.host
        )
        session = started.find(f"{{{COMMANDS}}}command").get("sessionid")
        field = "module" if what == "load" else "modules"
        done = await client.iq(
            f"<command xmlns='{COMMANDS}' node='{node}' action='complete' sessionid='{session}'>"
            f"<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>{node}</value>"
            f"</field><field var='{field}'><value>amphora</value></field></x></command>",
            type="set",
            to=prosody.host,
        )
        note = done.find(f"{{{COMMANDS}}}command/{{{COMMANDS}}}note")
        assert note.get("type") == "info" and "rror" not in (note.text or ""), note.text
        await client.leave()

    return command


class Clients:
    """`clients.online(server, jid)` and relatives."""

    def __init__(self):
        self._made = []

    async def login(self, server, jid, resource="phone", *, raw=False, **settings):
        """A client that is connected but has sent no presence."""
        client = (RawClient if raw else Client)(server, jid, resource, **settings)
        self._made.append(client)
        return await client.login()

    async def online(self, server, jid, resource="phone", *, priority=0, raw=False, **settings):
        """A client that is available."""
        client = await self.login(server, jid, resource, raw=raw, **settings)
        return await client.available(priority)

    def raw(self, server, jid, resource="phone", **settings):
        """A raw client that has not connected yet."""
        client = RawClient(server, jid, resource, **settings)
        self._made.append(client)
        return client

    async def close(self):
        """Everybody leaves."""
        for client in self._made:
            await client.vanish()
        self._made.clear()


def pytest_configure(config):
    """A test run that is told to stop ends what it started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
