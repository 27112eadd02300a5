#!/usr/bin/env python3
"""What a fault of a cluster costs its users: three nodes, Prosody, NATS and PostgreSQL, each a process of
its own in TMPDIR. Needs what the end-to-end tests need (tests/e2e/requirements.txt), and a binary
(AMPHORA_BIN, or what cargo has built).

    benches/cluster.py takeover [--runs 5]    kill -9 of a node: from the last renewal of its key to the first
                                              verdict for somebody whose shard it had, and whose link is another's
    benches/cluster.py roll [--rate 100]      a rolling restart under load: how late verdicts are, and how
                                              many messages go back
    benches/cluster.py rate [--messages N]    verdicts of one, two and three nodes, of two with more shards,
                                              and what they cost idle: by benches/load.rs, without Prosody

A verdict of the first two is seen as the reply of `notify` on `deliver` `stored`, so it is durable.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from harness.cluster import LEASE, LINKS, SHARDS, Cluster  # noqa: E402
from harness.database import Database  # noqa: E402
from harness.history import History  # noqa: E402
from harness.inbox import Inbox  # noqa: E402
from harness.links import owner as link_of  # noqa: E402
from harness.links import shard_of  # noqa: E402
from harness.nats import Nats  # noqa: E402
from harness.node import Node  # noqa: E402
from harness.prosody import Prosody  # noqa: E402
from harness.raw import RawClient  # noqa: E402
from harness.schedule import Step  # noqa: E402
from harness.stanzas import amp, message, rule  # noqa: E402
from harness.waiting import until  # noqa: E402

#: Recipients, none of whom is online.
PEOPLE = 60


class Times(Inbox):
    """When each reply came."""

    def __init__(self, owner):
        super().__init__(owner)
        self.replies, self.refused = {}, 0

    def add(self, stanza):
        """Called by the client that reads the stream."""
        super().add(stanza)
        if stanza.name == "message" and stanza.type == "error":
            self.refused += 1
        elif stanza.name == "message" and stanza.status:
            self.replies.setdefault(stanza.id, time.monotonic())


class Renewals:
    """When each node last renewed its key, as NATS passes it on (its protocol: a line a message)."""

    def __init__(self):
        self.last, self._task = {}, None

    async def begin(self, port):
        """Listen to all keys."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'CONNECT {"verbose":false,"lang":"python"}\r\nSUB $KV.*.* 1\r\n')
        self._task = asyncio.ensure_future(self._listen(reader, writer))

    async def _listen(self, reader, writer):
        while line := await reader.readline():
            words = line.decode().split()
            if words[0] == "MSG":
                await reader.readexactly(int(words[-1]) + 2)
                self.last[words[1].rpartition(".")[2]] = time.monotonic()
            elif words[0] == "PING":
                writer.write(b"PONG\r\n")

    def end(self):
        """Listen no more."""
        self._task.cancel()


class Bench:
    """A cluster and one sender."""

    def __init__(self, folder):
        self._folder, self._number = Path(folder), 0
        self.history = History()
        self.server = Prosody(self._new("prosody"), hibernation=1, links=LINKS).start()
        self.database = Database("postgres")
        self._nats = Nats(self._new("nats")).start()
        self.cluster = Cluster(self, self.server, self.database, self._nats, self.history)
        sender, *self.people = self.server.people("sender", *(f"user{n}" for n in range(PEOPLE)))
        self.sender = RawClient(self.server, sender, "desk")
        self.times = self.sender.inbox = Times(sender)
        self.sent, self.renewals = {}, Renewals()

    def _new(self, kind):
        self._number += 1
        folder = self._folder / f"{kind}{self._number}"
        folder.mkdir()
        return folder

    def node(self, server, start=True, **settings):
        """As the workshop of the tests makes one."""
        node = Node(self._new("node"), server, **settings)
        return node.start() if start else node

    async def __aenter__(self):
        await self.renewals.begin(self._nats.port)
        await self.cluster.start()
        await self.sender.login()
        await self.sender.available()
        return self

    async def __aexit__(self, *_):
        self.renewals.end()
        await self.sender.vanish()
        await self.cluster.stop()
        self.server.discard()
        self._nats.stop()
        self.database.stop()

    def write(self, jid):
        """A message whose verdict is answered; its id."""
        payload = amp(rule("notify", "deliver", "stored"))
        id = self.sender.send_xml(message(jid, "x" * 100, payload=payload))
        self.sent[id] = time.monotonic()
        return id

    def decided_elsewhere(self, name):
        """Those whose shard a node has, and whose link another has."""
        rows = self.database.query(f"SELECT shard FROM shard WHERE owner = '{name}'").split()
        shards = {int(row) for row in rows}
        link = LINKS[int(name[1:]) - 1]
        return [j for j in self.people if shard_of(j, SHARDS) in shards and link_of(j, LINKS) != link]


async def takeover(bench, runs):
    """Seconds from the last renewal to the first verdict."""
    took = []
    for run in range(runs):
        name = f"n{run % 3 + 1}"
        people = bench.decided_elsewhere(name)
        warm = bench.write(people[0])
        await bench.times.reply(warm)
        step = Step(0, "kill", run % 3, LEASE * 3.0)
        fault = asyncio.ensure_future(bench.cluster.do(step))
        await asyncio.sleep(0)
        killed = time.monotonic()
        ids = [bench.write(jid) for jid in people]
        await until(lambda ids=ids: bench.times.replies.keys() & set(ids), "a verdict", 60, 0.01)
        first = min(bench.times.replies[id] for id in ids if id in bench.times.replies)
        renewed = bench.renewals.last[name]  # it is not there again yet
        await until(lambda ids=ids: bench.times.replies.keys() >= set(ids), "all verdicts", 60, 0.01)
        last = max(bench.times.replies[id] for id in ids)
        took.append(first - renewed)
        print(
            f"{name} killed {killed - renewed:.2f} s after it had renewed its key: first verdict"
            f" {first - renewed:.2f} s after that, the last of {len(ids)} after {last - renewed:.2f} s"
        )
        await fault
        await bench.cluster.whole()
    print(f"median {statistics.median(took):.2f} s, worst {max(took):.2f} s, at a lease of {LEASE} s")


async def roll(bench, rate):
    """Verdicts during a rolling restart."""

    async def write(count, done):
        begun = time.monotonic()
        for number in range(count):
            if done():
                break
            bench.write(bench.people[number % PEOPLE])
            await bench.sender.drain()
            await asyncio.sleep(max(0, begun + number / rate - time.monotonic()))

    async def figures(what):
        await until(lambda: len(bench.times.replies) + bench.times.refused >= len(bench.sent), "all verdicts", 60)
        late = sorted(bench.times.replies[id] - at for id, at in bench.sent.items() if id in bench.times.replies)
        at = lambda part: late[min(len(late) - 1, int(len(late) * part))] * 1000
        print(
            f"{what}: {len(late)} messages, p50 {at(0.5):.0f} ms, p99 {at(0.99):.0f} ms, worst {at(1):.0f} ms,"
            f" {bench.times.refused} refused"
        )
        bench.sent.clear()
        bench.times.replies.clear()

    await write(int(rate * 10), lambda: False)
    await figures("in peace")
    rolling = asyncio.ensure_future(bench.cluster.do(Step(0, "roll", None, 0)))
    await write(10**9, rolling.done)
    await rolling
    await figures("rolling restart")


#: Nodes and shards.
SIZES = [(1, 256), (2, 256), (3, 256), (2, 64), (2, 1024), (2, 4096)]


def rate(messages):
    """Prints what the load driver says, for each size on an empty database."""
    database = Database("postgres")
    try:
        for nodes, shards in SIZES:
            database.empty()
            words = ["--nodes", nodes, "--shards", shards, "--messages", messages, "--store", f"{database.url}?sslmode=disable"]
            command = ["cargo", "bench", "--locked", "--quiet", "--bench", "load", "--", *map(str, words)]
            subprocess.run(command, cwd=ROOT, check=True)
    finally:
        database.stop()


async def main():
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["takeover", "roll", "rate"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--messages", type=int, default=300_000)
    arguments = parser.parse_args()
    if arguments.what == "rate":
        return rate(arguments.messages)
    with tempfile.TemporaryDirectory() as folder:
        async with Bench(folder) as bench:
            if arguments.what == "takeover":
                await takeover(bench, arguments.runs)
            else:
                await roll(bench, arguments.rate)


asyncio.run(main())
