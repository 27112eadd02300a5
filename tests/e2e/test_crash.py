"""A node that is killed, or told to stop, while messages pour in. Invariants I1, I2, I3."""

import asyncio
import signal

import pytest

from harness.stanzas import amp, message, rule
from harness.waiting import until

SENDERS = 4
RECIPIENTS = 25
EACH = 20  # from each sender to each recipient: 2,000 in all


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


@pytest.fixture
def node(workshop, prosody):
    """A node of its own for each test."""
    return workshop.node(prosody)


async def pour(senders, recipients, first, last):
    """Each sender writes to each recipient, interleaved."""
    for n in range(first, last):
        for sender in senders:
            for recipient in recipients:
                sender.send_text(recipient, f"{sender.resource} {n}")
        for sender in senders:
            await sender.drain()


async def check_everybody(prosody, clients, recipients, names, count):
    """None lost, none twice, and each pair in order; then nothing is left."""
    expected = len(names) * count
    for recipient in recipients:
        client = await clients.online(prosody, recipient)
        texts = await client.inbox.body_count(expected, seconds=60)
        assert len(texts) == expected, f"{recipient}: some came twice: {texts}"
        for name in names:
            mine = [t for t in texts if t.startswith(f"{name} ")]
            assert mine == [f"{name} {n}" for n in range(count)], f"{recipient} from {name}"
        await client.ping()
        await client.leave()
    for recipient in recipients[:3]:
        client = await clients.online(prosody, recipient)
        other = client.send_text(recipient, "to myself")
        await client.inbox.reply(other)
        assert client.inbox.bodies() == ["to myself"], f"{recipient}: something came twice"
        await client.leave()


async def crowd(prosody, clients):
    """Senders that are online and recipients that are away."""
    names = [f"s{n}" for n in range(SENDERS)]
    people = prosody.people(*names, *(f"r{n}" for n in range(RECIPIENTS)))
    senders = [
        await clients.online(prosody, jid, name, raw=True)
        for jid, name in zip(people, names)
    ]
    return senders, people[SENDERS:], names


async def test_killed_amid_2000(prosody, node, clients):
    """kill -9 while 2,000 messages arrive, and a new start: none lost, none twice, in order."""
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: node.rows() > 200, "the first hundreds in the store")
    node.kill()
    await pouring
    for sender in senders:
        await sender.ping()
    await asyncio.to_thread(node.start)
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"


async def test_killed_three_times(prosody, node, clients):
    """The same with three kills, one of them at once after the start."""
    senders, recipients, names = await crowd(prosody, clients)
    pouring = asyncio.create_task(pour(senders, recipients, 0, EACH))
    await until(lambda: node.rows() > 50, "some in the store")
    node.kill()
    await asyncio.to_thread(node.start)
    node.kill()
    await asyncio.to_thread(node.start)
    await until(lambda: node.rows() > 400, "more in the store")
    node.kill()
    await pouring
    await asyncio.to_thread(node.start)
    await check_everybody(prosody, clients, recipients, names, EACH)


async def test_killed_while_handing_over(prosody, node, clients):
    """The client has some and goes on reading: the rest comes from the next life, none twice."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "a", raw=True)
    for n in range(1000):
        a.send_text(bob, str(n))
        if n % 100 == 0:
            await a.drain()
    await a.ping()
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(50)
    node.kill()
    b.acks = True
    b.acknowledge(b.handled)
    await b.ping()
    await asyncio.to_thread(node.start)
    texts = await b.inbox.body_count(1000, seconds=60)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(1000)] + ["end"]
    assert len(texts) == 1000
    b.acknowledge(b.handled)
    await b.ping()
    await b.leave()
    again = await clients.online(prosody, bob)
    await again.inbox.reply(a.send_text(bob, "the end"))
    assert again.inbox.bodies() == ["the end"]


async def test_server_killed_while_handing_over(prosody, node, clients):
    """What the client had not acknowledged when the server died is still stored."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "a", raw=True)
    for n in range(200):
        a.send_text(bob, str(n))
    await a.ping()
    await until(lambda: node.rows() == 200, "all of them in the store")
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(50)
    prosody.kill()
    assert node.rows() == 200, "deleted before it was acknowledged"
    await asyncio.to_thread(prosody.start)
    await until(lambda: node.http_status("/readyz") == 200, "the link")
    again = await clients.online(prosody, bob, raw=True, sm=True, acks=True)
    assert await again.inbox.body_count(200) == [str(n) for n in range(200)]
    await until(lambda: node.rows() == 0, "all of them to be taken")


async def test_notices_once_over_a_kill(prosody, node, clients):
    """I2: what is asked again after a kill is stored once and notified once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "a", raw=True)
    wanted = amp(rule("notify", "deliver", "stored"))
    ids = []

    async def send(count):
        for _ in range(count):
            ids.append(a.send_xml(message(bob, str(len(ids)), payload=wanted)))
        await a.drain()

    await send(200)
    await a.inbox.until(lambda box: len(box.messages()) >= 20, "the first notices")
    node.kill()
    # the node is gone: what was asked waits, what comes now with rules bounces
    await asyncio.to_thread(node.start)
    await a.inbox.until(
        lambda box: {m.id for m in box.messages()} >= set(ids), "a notice for each"
    )
    await a.ping()
    assert sorted(m.id for m in a.inbox.messages()) == sorted(ids), "a notice came twice"
    assert all(m.status == "notify" for m in a.inbox.messages())
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(200)] + ["end"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_told_to_stop(prosody, node, clients, number):
    """SIGTERM and SIGINT finish what is held and end with 0; nothing is lost or comes twice."""
    senders, recipients, names = await crowd(prosody, clients)
    await pour(senders, recipients, 0, 4)
    node.process.signal(number)
    code = await asyncio.to_thread(node.wait_exit)
    assert code == 0
    await pour(senders, recipients, 4, 6)
    for sender in senders:
        await sender.ping()
    await asyncio.to_thread(node.start)
    await check_everybody(prosody, clients, recipients, names, 6)
