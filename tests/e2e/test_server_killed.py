"""A server that is killed (`kill -9`) while it holds messages: what it has acknowledged to a sender
with stream management (XEP-0198) comes, once and in order. Invariants I1, I2, I3."""

import asyncio
import signal

import pytest

from harness.stanzas import amp, message, rule
from harness.waiting import until


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


@pytest.fixture
def node(workshop, prosody):
    """A node of its own for each test."""
    return workshop.node(prosody)


async def sender_of(prosody, clients, jid, resource):
    """A sender with stream management, and how many of its stanzas are no messages."""
    sender = await clients.online(prosody, jid, resource, raw=True, sm=True, acks=True)
    await accepted(sender, 1)
    return sender, sender.accepted


async def accepted(sender, count):
    """The server says that it has so many of its stanzas."""
    sender.ask()
    await until(lambda: sender.accepted >= count, f"{count} stanzas to be acknowledged")


async def new_life(prosody, node):
    """Killed, and started again."""
    prosody.kill()
    node.signal(signal.SIGCONT)
    await asyncio.to_thread(prosody.start)
    await until(lambda: node.http_status("/readyz") == 200, "the link")


async def all_for(prosody, clients, jid, least):
    """What he gets when he logs in, once it is at least so much; then nothing is left for him."""
    client = await clients.online(prosody, jid, raw=True, sm=True, acks=True)
    await client.inbox.body_count(least)
    end = client.send_text(jid, "end")
    await client.inbox.reply(end)
    texts = client.inbox.bodies()
    await client.leave()
    assert texts[-1] == "end"
    return texts[:-1]


async def test_killed_with_messages_that_no_node_has_answered(prosody, node, clients):
    """The node stands still, so nothing has a verdict: all that was acknowledged comes."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    for n in range(300):
        a.send_text(bob, str(n))
    await accepted(a, before + 300)
    await new_life(prosody, node)
    assert await all_for(prosody, clients, bob, 300) == [str(n) for n in range(300)]


async def test_killed_amid_a_flood(prosody, node, clients):
    """While three senders write to twenty users and the node stores: of each pair what was
    acknowledged comes, and what was not comes in order or not at all."""
    names = [f"s{n}" for n in range(3)]
    people = prosody.people(*names, *(f"r{n}" for n in range(20)))
    senders = [await sender_of(prosody, clients, jid, "x") for jid in people[:3]]
    recipients = people[3:]
    each = 100
    striking = asyncio.create_task(
        until(lambda: all(s.accepted > 600 for s, _ in senders), "the first hundreds")
    )
    for n in range(each):
        for sender, _ in senders:
            for recipient in recipients:
                sender.send_text(recipient, f"{sender.jid} {n}")
            sender.ask()
        for sender, _ in senders:
            await sender.drain()
        if striking.done():
            break
    await striking
    prosody.kill()
    for sender, _ in senders:
        await sender.closed.wait()
    await asyncio.to_thread(prosody.start)
    await until(lambda: node.http_status("/readyz") == 200, "the link")
    for at, recipient in enumerate(recipients):
        least = {}
        for sender, before in senders:
            mine = sender.accepted - before
            least[sender.jid] = mine // len(recipients) + (at < mine % len(recipients))
        texts = await all_for(prosody, clients, recipient, sum(least.values()))
        for jid, count in least.items():
            of_it = [t for t in texts if t.startswith(f"{jid} ")]
            assert of_it == [f"{jid} {n}" for n in range(len(of_it))], f"{recipient} from {jid}"
            assert len(of_it) >= count, f"{recipient} from {jid}: acknowledged and lost"


async def test_killed_with_rules_that_no_node_has_answered(prosody, node, clients):
    """Messages with rules, and such without behind them, are kept and in order as well; their
    rules are looked at once."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    notify = amp(rule("notify", "deliver", "stored"))
    for n in range(40):
        if n % 4 == 1:
            a.send_xml(message(bob, str(n), payload=notify))
        else:
            a.send_text(bob, str(n))
    await accepted(a, before + 40)
    await new_life(prosody, node)
    await until(lambda: node.stored(bob) == 40, "all of them in the store")
    a, _ = await sender_of(prosody, clients, alice, "a")
    assert await all_for(prosody, clients, bob, 40) == [str(n) for n in range(40)]
    await a.ping()
    notices = [m for m in a.inbox.messages() if m.status == "notify"]
    assert len(notices) == 10


async def test_killed_and_the_recipient_is_there_first(prosody, node, clients):
    """I3: he logs in before a node has looked at what was kept."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    notify = amp(rule("notify", "deliver", "stored"))
    for n in range(12):
        a.send_xml(message(bob, str(n), payload=notify if n % 4 == 1 else ""))
    await accepted(a, before + 12)
    prosody.kill()
    await asyncio.to_thread(prosody.start)
    b = await clients.online(prosody, bob, raw=True, sm=True, acks=True)
    node.signal(signal.SIGCONT)
    await b.inbox.body_count(12)
    await b.inbox.reply(b.send_text(bob, "end"))
    assert b.inbox.bodies() == [*(str(n) for n in range(12)), "end"]


kept_for_sessions = pytest.mark.only("ejabberd", "in Prosody it is in memory alone, as in the server itself")


@kept_for_sessions
@pytest.mark.parametrize("resources", [["phone"], ["phone", "tablet"]], ids=["one", "two"])
async def test_killed_with_what_waits_in_gates(prosody, node, clients, resources):
    """Live messages that wait for a hand-over, in one session's gate or in two, as messages or carbons:
    they come once."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    sessions = [await clients.online(prosody, bob, each, raw=True) for each in resources]
    for session in sessions:
        await session.iq("<enable xmlns='urn:xmpp:carbons:2'/>", type="set")
    for n in range(30):
        a.send_text(f"{bob}/phone" if n % 3 == 1 else bob, str(n), type="chat")
    await accepted(a, before + 30)
    for session in sessions:
        await session.ping()
        assert session.inbox.bodies() == []
    await new_life(prosody, node)
    assert await all_for(prosody, clients, bob, 30) == [str(n) for n in range(30)]


@kept_for_sessions
async def test_what_has_left_a_gate_is_kept_no_more(prosody, node, clients):
    """What was written to a client when the server is killed is not sent again by its next life."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    b = await clients.online(prosody, bob, raw=True, sm=True, acks=True)
    for n in range(30):
        a.send_text(bob, str(n))
    await accepted(a, before + 30)
    await b.ping()
    assert prosody.spooled().count("<body>") == 30
    node.signal(signal.SIGCONT)
    assert await b.inbox.body_count(30) == [str(n) for n in range(30)]
    await until(lambda: spool_bytes(prosody) == 0, "the spool to be empty")
    await new_life(prosody, node)
    assert await all_for(prosody, clients, bob, 0) == []


@kept_for_sessions
async def test_killed_with_what_waits_behind_rules_for_somebody_who_is_there(prosody, node, clients):
    """Messages without rules behind one with rules, while their recipient is there."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    b = await clients.online(prosody, bob, raw=True)
    await b.inbox.reply(a.send_text(bob, "the gate is open"))
    node.signal(signal.SIGSTOP)
    a.send_xml(message(bob, "0", payload=amp(rule("drop", "deliver", "none"))))
    for n in range(1, 20):
        a.send_text(bob, str(n))
    await accepted(a, before + 21)
    await new_life(prosody, node)
    assert await all_for(prosody, clients, bob, 20) == [str(n) for n in range(20)]


async def test_nothing_is_left_after_verdicts(prosody, node, clients):
    """What has its verdict is not sent again by the next life, and the file gives its space back."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    for n in range(100):
        a.send_text(bob, str(n))
    await accepted(a, before + 100)
    await until(lambda: node.stored(bob) == 100, "all of them in the store")
    await until(lambda: spool_bytes(prosody) == 0, "the spool to be empty")
    await new_life(prosody, node)
    assert "messages are in the spool" not in prosody.log
    assert await all_for(prosody, clients, bob, 100) == [str(n) for n in range(100)]


async def test_a_torn_tail_costs_one_message(prosody, node, clients):
    """The server dies in the middle of a write: what was written before comes."""
    alice, bob = prosody.people("alice", "bob")
    a, before = await sender_of(prosody, clients, alice, "a")
    node.signal(signal.SIGSTOP)
    for n in range(50):
        a.send_text(bob, str(n))
    await accepted(a, before + 50)
    prosody.kill()
    node.kill()
    (path,) = prosody.spool_files()
    path.write_bytes(path.read_bytes()[:-20])
    await asyncio.to_thread(prosody.start)
    await asyncio.to_thread(node.start)
    got = await all_for(prosody, clients, bob, 49)
    assert got[:49] == [str(n) for n in range(49)]
    assert "1 torn or damaged lines" in prosody.log


def spool_bytes(prosody):
    """The size of its files."""
    return sum(path.stat().st_size for path in prosody.spool_files() if path.exists())
