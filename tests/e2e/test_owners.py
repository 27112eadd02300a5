"""Shards that change their owner while messages pour in over the link of another node: what was
accepted is kept, once and in order, and nobody is refused. I1, I2, I3, I4.

With AMPHORA_CHAOS in the environment over each server and database."""

import asyncio
import os

import pytest

from harness.database import Database
from harness.members import owners
from harness.waiting import until, wait_for
from test_crash import EACH, check_everybody, crowd, pour

SHARDS = 8

ALL = "AMPHORA_CHAOS" in os.environ
DATABASES = ["postgres", "mariadb"] if ALL else ["postgres"]

pytestmark = [] if ALL else pytest.mark.once("what moves is the nodes' doing")


@pytest.fixture(scope="module", params=DATABASES)
def server(request):
    """A database server for the module."""
    server = Database(request.param)
    yield server
    server.stop()


@pytest.fixture
def database(server):
    """The database, empty."""
    return server.empty()


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


@pytest.fixture
def far(workshop, database):
    """A node without a link."""
    return workshop.member(database, workshop.nats(), "far", shards=SHARDS)


@pytest.fixture
def near(workshop, prosody, database, far):
    """A node with the link; each has about half of the shards."""
    near = workshop.near(prosody, far)
    wait_for(lambda: shared(database), f"both to have shards: {owners(database)}")
    yield near
    # Before the databases they are in.
    far.stop()
    near.stop()


def shared(database):
    """Whether both nodes have their shares."""
    found = owners(database)
    return set(found) == {"near", "far"} and sum(found.values()) == SHARDS


async def pour_through(prosody, clients, database, change):
    """Messages pour in; amid them the change is made; in the end all are there."""
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: database.rows() > 200, "the first hundreds in the store")
    await change()
    await pouring
    for sender in senders:
        await sender.ping()
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"


PARTS = """
[[store.part]]
name = "low"
shards = "0-3"
url = "{low}"

[[store.part]]
name = "high"
shards = "4-7"
url = "{high}"
"""


@pytest.fixture
def halves(server):
    """Two databases on servers of their own, each of half of the shards."""
    high = Database("mariadb")
    yield server.empty(), high
    high.stop()


def owners_of(half):
    """Who owns the shards that this database holds: the others are nobody's there."""
    found = owners(half)
    assert found.pop(None, 0) == SHARDS // 2
    return found


def shared_both(halves):
    """Whether both nodes have shards of each."""
    return all(set(owners_of(half)) == {"near", "far"} for half in halves)


@pytest.mark.parametrize("fault", ["owner killed", "owner drained", "a database killed"])
async def test_several_databases(workshop, prosody, halves, clients, fault):
    """`[[store.part]]` in a cluster: both nodes own shards of each, and each moves in its own database."""
    parts = PARTS.format(low=halves[0].url, high=halves[1].url)
    far = workshop.member(halves[0], workshop.nats(), "far", shards=SHARDS, parts=parts)
    near = workshop.near(prosody, far, parts=parts)
    await until(lambda: shared_both(halves), "both to have shards of each")
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: all(half.rows() > 100 for half in halves), "the first hundreds in each")
    if fault == "owner killed":
        far.kill()
        await until(
            lambda: all(owners_of(half) == {"near": SHARDS // 2} for half in halves), "shards to be taken", 60
        )
    elif fault == "owner drained":
        code, output = await asyncio.to_thread(far.drain)
        assert code == 0, output
        assert all(owners_of(half) == {"near": SHARDS // 2} for half in halves)
    else:
        await asyncio.to_thread(halves[1].kill)
        away = 'part="high"'
        await until(lambda: near.metric(f"amphora_store_healthy{{{away}}}") == 0, "the node to notice")
        assert near.metric('amphora_store_healthy{part="low"}') == 1
        await asyncio.to_thread(halves[1].start)
    await pouring
    for sender in senders:
        await sender.ping()
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"
    far.stop()
    near.stop()


async def test_owner_killed(prosody, database, far, near, clients):
    """kill -9: the others take what it had."""

    async def change():
        far.kill()
        await until(lambda: owners(database) == {"near": SHARDS}, "the shards to be taken", 60)

    await pour_through(prosody, clients, database, change)


async def test_owner_drained_and_back(prosody, database, far, near, clients):
    """Shards are given away and back: nobody notices."""

    async def change():
        code, output = await asyncio.to_thread(far.drain)
        assert code == 0, output
        assert owners(database) == {"near": SHARDS}
        assert (await asyncio.to_thread(far.drain, "--cancel"))[0] == 0
        await until(lambda: shared(database), "both to have shards")

    await pour_through(prosody, clients, database, change)


async def test_owner_stopped(prosody, database, far, near, clients):
    """SIGTERM: it gives away what it has first."""

    async def change():
        assert await asyncio.to_thread(far.stop) == 0

    await pour_through(prosody, clients, database, change)
    assert owners(database) == {"near": SHARDS}


async def test_the_node_with_the_link_is_killed(prosody, database, far, near, clients):
    """The owner forgets its sessions; what it held comes again when it is back."""

    async def change():
        near.kill()
        await asyncio.to_thread(near.start)

    await pour_through(prosody, clients, database, change)


async def test_nats_is_killed(workshop, prosody, database, clients):
    """What can't cross waits, and crosses when NATS is back."""
    nats = workshop.nats()
    far = workshop.member(database, nats, "far", shards=SHARDS)
    near = workshop.near(prosody, far)
    await until(lambda: shared(database), "both to have shards")

    async def change():
        nats.kill()
        await until(lambda: near.http_status("/readyz") == 503, "a node that hears nothing")
        await asyncio.to_thread(nats.start)
        await until(lambda: near.http_status("/readyz") == 200, "a node that hears again")

    await pour_through(prosody, clients, database, change)
    far.stop()
    near.stop()


async def test_owner_killed_amid_a_hand_over(prosody, database, far, near, clients):
    """The rest comes from the next owner, none twice."""
    alice, *others = prosody.people("alice", *(f"bob{n}" for n in range(8)))
    a = await clients.online(prosody, alice, "a", raw=True)
    for n in range(300):
        for bob in others:
            a.send_text(bob, str(n))
        await a.drain()
    await until(lambda: database.rows() == 2400, "all to be stored", 60)
    bobs = [await clients.online(prosody, bob, raw=True, sm=True, acks=True) for bob in others]
    await until(lambda: any(b.inbox.bodies() for b in bobs), "a hand-over")
    far.kill()
    expected = [str(n) for n in range(300)]
    for bob in bobs:
        assert await bob.inbox.body_count(300, seconds=90) == expected
    await until(lambda: database.rows() == 0, "the rows to be deleted", 60)
