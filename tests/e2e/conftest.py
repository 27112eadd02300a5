"""Fixtures: a server and a node for each test module, people and clients for each test."""

import contextlib
import signal
import sys
from pathlib import Path

import pytest

from harness.client import Client
from harness.ejabberd import Ejabberd
from harness.members import Member
from harness.nats import Nats
from harness.node import Node, binary
from harness.prosody import Prosody
from harness.raw import RawClient

#: What a failed test prints of each log.
TAIL = 6000

#: The servers that every test can run over, unless it says why not.
KINDS = {"prosody": Prosody, "ejabberd": Ejabberd}


def pytest_addoption(parser):
    """Which servers."""
    parser.addoption("--server", choices=[*KINDS, "both"], default="prosody", help="the XMPP server (prosody)")


def pytest_generate_tests(metafunc):
    """Each test that has a workshop, or asks for the `kind`, runs once over each server; over the
    first alone, if it is marked as one for which the server makes no difference."""
    names = [name for name in ("workshop", "kind") if name in metafunc.fixturenames]
    if not names:
        return
    wanted = metafunc.config.getoption("--server")
    only = {mark.args[0]: mark.args[1] for mark in metafunc.definition.iter_markers("only")}
    kinds = []
    for kind in KINDS:
        marks = [pytest.mark.skip(reason=why) for other, why in only.items() if other != kind]
        if wanted not in (kind, "both"):
            continue
        kinds.append(pytest.param(kind, marks=marks, id=kind))
    if metafunc.definition.get_closest_marker("once"):
        del kinds[1:]
    indirect = names[:1] == ["workshop"]
    metafunc.parametrize(names[0], kinds, indirect=indirect, scope="module")


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
        yield Workshop(request.param, tmp_path_factory, request.module.__name__, stack)


@pytest.fixture(autouse=True)
def sweep(request):
    """Ends what was made for one test alone. What its module shares was made before."""
    if "workshop" not in request.fixturenames:
        yield
        return
    with request.getfixturevalue("workshop").one_test():
        yield


class Workshop:
    """Where servers and nodes come from. `kind` is the kind of server."""

    def __init__(self, kind, folders, name, stack):
        self.kind = kind
        self._folders, self._name, self._stack = folders, name, stack

    @contextlib.contextmanager
    def one_test(self):
        """What is made meanwhile ends with it."""
        with contextlib.ExitStack() as own:
            shared, self._stack = self._stack, own
            try:
                yield
            finally:
                self._stack = shared

    def folder(self, kind):
        """A new folder."""
        return self._folders.mktemp(f"{self._name}-{kind}")

    def server(self, start=True, kind=None, **settings):
        """A server of the kind that the test runs over, or another; running unless told otherwise."""
        kind = kind or self.kind
        server = KINDS[kind](self.folder(kind), **settings)
        self._stack.callback(server.discard)
        return server.start() if start else server

    def nats(self, **settings):
        """A NATS server, running."""
        nats = Nats(self.folder("nats"), **settings)
        self._stack.callback(nats.stop)
        return nats.start()

    def node(self, server, start=True, **settings):
        """A node linked to that server, ready unless told otherwise."""
        node = Node(self.folder("node"), server, **settings)
        self._stack.callback(node.stop)
        return node.start() if start else node

    def member(self, database, nats, name, start=True, **settings):
        """A node of a cluster, without a link, running unless told otherwise."""
        member = Member(self.folder("member"), name, database, nats=nats.url, **settings)
        self._stack.callback(member.stop)
        return member.start() if start else member

    def near(self, server, member, start=True, **settings):
        """A node of the same cluster as `member`, linked to that server."""
        own = {**member.joined, **member.settings}
        joined = f'[cluster]\nnats = ["{own["nats"]}"]\nlease = "{own["lease"]}"\n'
        shared = {"name": "near", "shards": own["shards"], "url": own["url"], "more": joined}
        return self.node(server, start, **{**shared, **settings})


@pytest.fixture
async def clients():
    """Logs clients in, and out after the test."""
    made = Clients()
    yield made
    await made.close()


@pytest.fixture
async def admin(clients):
    """Loads, unloads, reloads and restarts the interceptor, as an administrator does."""

    async def command(server, what):
        await server.administer(clients, what)

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
    config.addinivalue_line(
        "markers", "only(kind, reason): the test runs over that kind of server alone"
    )
    config.addinivalue_line(
        "markers", "once(reason): of several kinds of servers the test runs over the first alone"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
