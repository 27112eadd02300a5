"""Three nodes on one database, under load, to which things happen: every accepted message comes or is
stored, none twice, each sender's in order, and a shard has one owner in an epoch. I1, I2, I3, I4.

Each fault alone, and schedules from a seed; by default those that found something, and no others. What
may be set in the environment:

    AMPHORA_CHAOS             anything: all of them, over each server, and a schedule from a new seed
    AMPHORA_CHAOS_DATABASES   postgres,mariadb      where it runs (postgres)
    AMPHORA_CHAOS_SECONDS     how long a random schedule is (15)
    AMPHORA_CHAOS_SEEDS       seeds, parted by commas; `random`: one that is made up, and printed
    AMPHORA_CHAOS_RUNS        how many of those (1)

The server is chosen by --server, as for all tests. A history that fails its check is left as a file in
the test's folder.
"""

import asyncio
import os
import random
import xml.etree.ElementTree as ET

import pytest

from harness.checker import check
from harness.cluster import LINKS, MAY_END, Cluster
from harness.database import Database
from harness.history import Accepted, Came, Ended, Fault, History, Owned, Refused, Stored
from harness.load import Load
from harness.schedule import Step, schedule

SECONDS = float(os.environ.get("AMPHORA_CHAOS_SECONDS", "15"))
DATABASES = os.environ.get("AMPHORA_CHAOS_DATABASES", "postgres").split(",")
RUNS = int(os.environ.get("AMPHORA_CHAOS_RUNS", "1"))
#: Seeds that found something once: a node that is stopped while it starts.
FOUND = (697766,)

#: All of them take a quarter of an hour.
ALL = "AMPHORA_CHAOS" in os.environ
LONG = pytest.mark.skipif(not ALL, reason="AMPHORA_CHAOS is not set")

pytestmark = [pytest.mark.timeout(SECONDS * 2 + 240)]
if not ALL:
    pytestmark.append(pytest.mark.once("nodes and their databases are what is tested"))


def seeds():
    """Those that are asked for, or those that found something and a new one."""
    named = os.environ.get("AMPHORA_CHAOS_SEEDS", "random" if ALL else "")
    fixed = [int(seed) for seed in named.split(",") if seed not in ("", "random")]
    made = [random.randrange(1_000_000) for _ in range(RUNS if "random" in named else 0)]
    return [*fixed, *([] if fixed else FOUND), *made]


@pytest.fixture(scope="module", params=DATABASES)
def database_server(request):
    """A database server for the module."""
    server = Database(request.param)
    yield server
    server.stop()


@pytest.fixture
def database(database_server):
    """The database, empty."""
    return database_server.empty()


@pytest.fixture(scope="module")
def server(workshop):
    """A server with a link for each node, and a short memory for sessions that are gone."""
    return workshop.server(hibernation=1, links=LINKS)


@pytest.fixture
async def run(workshop, server, database, tmp_path):
    """Runs steps under load, and checks the history; the history."""
    history = History()
    cluster = Cluster(workshop, server, database, workshop.nats(), history)
    loads = []

    async def go(steps, seed=1):
        print(f"seed {seed}", *steps, sep="\n  ", flush=True)
        await cluster.start()
        load = Load(server, history, seed)
        loads.append(load)
        await load.begin()
        try:
            await perform(cluster, steps)
            await cluster.whole()
            await load.end()
            await nothing_is_left(database)
        finally:
            remember_stored(database, history)
            history.write(tmp_path / "history")
            print(f"{summary(history)}; see {tmp_path / 'history'}")
            print(*check(history)[:20], sep="\n")
        assert check(history) == []
        codes = [event for event in history.of(Ended) if event.code not in MAY_END]
        assert codes == [], f"a node ended as it should not:\n{cluster.output()}"
        return history

    yield go
    for load in loads:
        await load.close()
    await cluster.stop()


async def perform(cluster, steps):
    """Each step at its time, counted from now; two seconds of quiet before the first and behind the last."""
    begun = asyncio.get_running_loop().time() + 2

    async def one(step):
        await asyncio.sleep(begun + step.at - asyncio.get_running_loop().time())
        await cluster.do(step)

    await asyncio.gather(*(one(step) for step in steps))
    await asyncio.sleep(2)


async def nothing_is_left(database):
    """What came is deleted in a while; what is not is for the check to judge."""
    for _ in range(300):
        if await asyncio.to_thread(database.rows) == 0:
            return
        await asyncio.sleep(0.1)


def remember_stored(database, history):
    """Which messages the database holds now."""
    for text in database.stanzas():
        history.add(Stored(ET.fromstring(text).get("id")))


def summary(history):
    """How much there was of each."""
    kinds = (Accepted, Came, Refused, Stored, Owned, Ended)
    return ", ".join(f"{len(history.of(kind))} {kind.__name__}" for kind in kinds)


def alone(fault, lasts, node=0):
    """One fault."""
    return [Step(0.0, fault, node, lasts)]


@pytest.mark.parametrize(
    "lasts", [pytest.param(1.0, marks=LONG), 6.0], ids=["short", "longer than the lease"]
)
@pytest.mark.parametrize("way", ["nats", "database", pytest.param("server", marks=LONG)])
async def test_a_node_is_cut_off(run, way, lasts):
    """From what it needs, by a network that loses all without a word. From NATS is from the other
    nodes too: it is the only way there."""
    history = await run(alone(f"hush {way}", lasts))
    assert way != "nats" or lasts < 3 or fenced(history) == {"n1"}, "whoever is silent is fenced"


@LONG
@pytest.mark.parametrize("way", ["nats", "database", "server"])
async def test_a_nodes_connections_are_reset(run, way):
    """The same by a network that says so."""
    await run(alone(f"cut {way}", 2.0))


async def test_a_node_is_killed(run):
    """kill -9, for longer than the lease."""
    await run(alone("kill", 6.0))


@LONG
async def test_a_node_is_killed_and_back_at_once(run):
    """kill -9: its successor has the shards before anybody misses it."""
    await run(alone("kill", 0.0))


async def test_a_node_stands_still(run):
    """SIGSTOP for longer than the lease, then it goes on: the fence holds, and it ends by itself."""
    history = await run(alone("stand still", 6.0))
    assert fenced(history) == {"n1"}


@LONG
async def test_a_node_stands_still_for_a_moment(run):
    """SIGSTOP for less than the lease: nothing moves."""
    history = await run(alone("stand still", 1.0))
    assert fenced(history) == set()


@LONG
async def test_two_nodes_are_killed(run):
    """One is enough."""
    await run([*alone("kill", 6.0, 0), *alone("kill", 6.0, 1)])


async def test_nats_is_killed(run):
    """For longer than the lease: nobody is fenced."""
    history = await run([Step(0.0, "kill nats", None, 5.0)])
    assert history.of(Ended) == []


async def test_rolling_restart(run):
    """One after the other, as an upgrade goes: nobody is refused, and nobody ends in another way."""
    history = await run([Step(0.0, "roll", None, 0.0)])
    assert history.of(Refused) == [] and history.of(Ended) == []


@pytest.mark.parametrize("seed", seeds())
async def test_random(run, seed):
    """Anything, at any time."""
    steps = schedule(seed, SECONDS)
    history = await run(steps, seed)
    assert len(history.of(Fault)) == 2 * len(steps)


def fenced(history):
    """The nodes that ended because others had taken their shards."""
    return {event.node for event in history.of(Ended) if event.code == 80}
