"""Shards that change their owner while messages pour in over the link of another node: what was
accepted is kept, once and in order, and nobody is refused. I1, I2, I3, I4."""

import asyncio

import pytest

from harness.database import Database
from harness.members import owners
from harness.waiting import until, wait_for
from test_crash import EACH, check_everybody, crowd, pour

SHARDS = 8

pytestmark = pytest.mark.once("what moves is the nodes' doing")


@pytest.fixture(scope="module")
def server():
    """A database server for the module."""
    server = Database("postgres")
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
