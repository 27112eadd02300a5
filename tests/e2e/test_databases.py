"""The main path with the store in PostgreSQL and in MariaDB. I1, I2, I3, I4."""

import asyncio
import signal

import pytest

from harness.database import Database
from harness.prosody import HOST
from harness.steps import all_stored
from harness.waiting import until
from test_crash import check_everybody, crowd, pour

pytestmark = pytest.mark.once("it is about the node and its database")

EACH = 10  # from each of 4 senders to each of 25 recipients: 1,000 in all
STORED = 1000  # for one recipient: more than he gets with what he acknowledges before the end


@pytest.fixture(scope="module", params=["postgres", "mariadb"])
def database(request):
    """A server, with a database for the module."""
    server = Database(request.param)
    yield server
    server.stop()


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


@pytest.fixture
def node(workshop, prosody, database):
    """A node of its own for each test."""
    node = workshop.node(prosody, url=database.url)
    yield node
    node.stop()


async def test_stored_and_handed_over_after_a_restart(prosody, database, node, clients):
    """O3: all of them, in order and as they were sent; then nothing is left (I1, I3)."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, raw=True)
    for n in range(300):
        a.send_text(bob, f"{n} ☃ \U0001f600")
    await all_stored(a, bob)
    assert database.rows() == 301
    assert node.stop() == 0
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    texts = await b.inbox.body_count(301, seconds=60)
    assert texts == [*(f"{n} ☃ \U0001f600" for n in range(300)), "mark"]
    await b.leave()
    await until(lambda: database.rows() == 0, "an empty database")
    assert "secret" not in node.log


async def test_the_node_is_killed(prosody, database, node, clients):
    """kill -9 while messages pour in: none lost, none twice, in order (I1 to I3)."""
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: database.rows() > 100, "the first hundred in the store")
    node.kill()
    await pouring
    for sender in senders:
        await sender.ping()
    await asyncio.to_thread(node.start)
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"


async def test_the_database_is_killed(prosody, database, node, clients):
    """kill -9 to the database while messages pour in, and a new start: the same; the node is well
    again by itself."""
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: database.rows() > 100, "the first hundred in the store")
    await asyncio.to_thread(database.kill)
    await until(lambda: node.http_status("/readyz") == 503, "the node to say that it is not well")
    await asyncio.to_thread(database.start)
    await until(lambda: node.http_status("/readyz") == 200, "the node to be well again")
    await pouring
    for sender in senders:
        await sender.ping()
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"


@pytest.mark.parametrize("client, unsaid", [("stays", 0), ("comes again", 0), ("comes again", 20)])
async def test_the_database_is_killed_amid_a_hand_over(prosody, database, node, clients, client, unsaid):
    """kill -9 to the database when a client has some of its messages, has acknowledged fewer, and of
    those fewer still are deleted. The node is well again by itself, and all come in order: none twice
    to a client that stays. One that logs in again gets what it had not acknowledged once more; what it
    had acknowledged it may, but nothing that was deleted (I1, I2, I3)."""
    alice, bob = prosody.people("alice", "bob")
    expected = [str(n) for n in range(STORED)]
    a = await clients.online(prosody, alice, raw=True)
    for text in expected:
        a.send_text(bob, text)
    await until(lambda: database.rows() == STORED, "all of them in the store")

    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(100)
    while len(b.inbox.bodies()) < 250:
        # It is a batch behind: with more it may get nothing.
        b.acknowledge(b.handled - 50)
        await b.inbox.body_count(len(b.inbox.bodies()) + 1)
    await until(lambda: database.rows() < STORED, "the first to be deleted")
    deleted = STORED - database.rows()
    # Whether these are deleted before the database dies is left to chance.
    b.acknowledge(b.handled - 50)
    await asyncio.to_thread(database.kill)
    # These can't be.
    b.acknowledge(b.handled - unsaid)
    acknowledged = len(b.inbox.bodies()) - unsaid
    await b.ping()
    assert 0 < deleted < acknowledged < STORED, "it was not killed amid the hand-over"
    await until(lambda: node.http_status("/readyz") == 503, "the node to say that it is not well")
    if client == "comes again":
        await b.vanish()
        assert b.inbox.bodies() == expected[: len(b.inbox.bodies())]
        b = await clients.online(prosody, bob, raw=True, sm=True)
    await asyncio.to_thread(database.start)
    await until(lambda: node.http_status("/readyz") == 200, "the node to be well again")

    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.until(lambda box: expected[-1] in box.bodies(), "the last of them", seconds=60)
    await until(lambda: database.rows() == 0, "an empty database", 60)
    await b.inbox.reply(a.send_text(bob, "end"))
    *texts, end = b.inbox.bodies()
    first = STORED - len(texts)
    assert texts == expected[first:] and end == "end"
    if client == "comes again":
        assert deleted <= first <= acknowledged, "one that was deleted, or not all that was left"
    else:
        assert first == 0
    await b.leave()
    assert a.inbox.messages() == [], "a bounce although it was kept"


async def test_a_successor_of_the_same_name(workshop, prosody, database, node, clients):
    """I4: it has the database at once, and the first one ends with a code of its own; the URL is
    as Tigase writes it."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, raw=True)
    for n in range(20):
        a.send_text(bob, str(n))
    await all_stored(a, bob)
    code, output = node.command("migrate", "--config", str(node.config))
    assert code == 69 and "node 'n1'" in output and "secret" not in output, output
    successor = workshop.node(prosody, start=False, url=database.tigase_url).spawn()
    assert node.wait_exit() == 79
    assert "do not start this one again" in node.log
    await until(successor._is_ready, "the successor to have the link")
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(21) == [*map(str, range(20)), "mark"]
    await b.leave()
    assert successor.stop() == 0
    assert HOST and "secret" not in successor.log


def of_each_start(database):
    """How many messages the database holds of each start of a node: by the epochs in their ids."""
    lines = database.query("SELECT concat(id >> 42, ' ', count(*)) FROM offline_message GROUP BY id >> 42")
    return {int(epoch): int(count) for epoch, count in map(str.split, lines.splitlines())}


@pytest.mark.only("prosody", "ejabberd keeps both streams of a component, and answers a greeting on either")
async def test_a_node_that_stood_still_finds_its_successor(workshop, prosody, database, node, clients):
    """SIGSTOP amid traffic, a successor on the same database, and SIGCONT: the first one commits nothing
    any more, neither what it had unread nor what it gets, and ends with a code of its own. All come,
    none twice, in order (I1 to I4)."""
    senders, recipients, names = await crowd(prosody, clients)

    async def accepted(*rounds):
        await pour(senders, recipients, *rounds)
        for sender in senders:
            await sender.ping()

    pouring = asyncio.create_task(accepted(0, 6))
    await until(lambda: database.rows() > 100, "the first hundred in the store")
    node.signal(signal.SIGSTOP)
    await pouring
    # It has these too, unread.
    await accepted(6, 8)

    successor = workshop.node(prosody, start=False, url=database.url)
    await asyncio.to_thread(successor.start)
    await until(lambda: len(of_each_start(database)) == 2, "the successor to store")
    assert "took over from a process that had not stopped" in successor.log
    first = min(of_each_start(database))
    before = of_each_start(database)[first]
    pouring = asyncio.create_task(accepted(8, EACH))
    node.signal(signal.SIGCONT)
    assert await asyncio.to_thread(node.wait_exit) == 79
    assert "do not start this one again" in node.log
    await pouring

    everything = len(senders) * len(recipients) * EACH
    await until(lambda: database.rows() == everything, "all in the store", 60)
    after = of_each_start(database)
    assert after == {first: before, max(after): everything - before}, "not all is the successor's"
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"
    assert successor.stop() == 0
