"""While no node is there: messages wait in the interceptor and its spool, then drain in order."""

import asyncio

import pytest

from harness.replies import check_error
from harness.stanzas import amp, message, parse_utc, rule, utc
from harness.waiting import until


@pytest.fixture
def prosody(workshop):
    """A server that takes to its spool after a second without a node."""
    return workshop.server(options={"amphora_hold": 1})


async def test_a_short_absence(workshop, clients):
    """Without a node for less than `hold`: nothing is bounced, all is stored when it is back."""
    prosody = workshop.server()
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    node.stop()
    for n in range(50):
        a.send_text(bob, str(n))
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(50)] + ["end"]
    assert a.inbox.messages() == []


async def test_over_a_restart_of_the_server(prosody, workshop, clients):
    """Two senders write in three lives of the server, all of them without a node."""
    node = workshop.node(prosody)
    alice, carol, bob = prosody.people("alice", "carol", "bob")
    a = await clients.online(prosody, alice, "desk")
    a.send_text(bob, "alice 0")
    await a.ping()
    node.stop()
    start = parse_utc(utc(-1))
    for life in range(3):
        senders = {
            "alice": await clients.online(prosody, alice, f"desk{life}"),
            "carol": await clients.online(prosody, carol, f"desk{life}"),
        }
        for n in range(20):
            for name, sender in senders.items():
                sender.send_text(bob, f"{name} {20 * life + n + 1}")
        for sender in senders.values():
            await sender.ping()
        prosody.stop()
        prosody.start()
    end = parse_utc(utc(1))
    await asyncio.to_thread(node.start)
    a = await clients.online(prosody, alice, "last")
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    texts = b.inbox.bodies()
    assert [t for t in texts if t.startswith("alice")] == [f"alice {n}" for n in range(61)]
    assert [t for t in texts if t.startswith("carol")] == [f"carol {n + 1}" for n in range(60)]
    assert len(texts) == 122, "some came twice"
    for m in b.inbox.messages()[1:-1]:
        (delay,) = m.delays
        assert start <= parse_utc(delay.get("stamp")) <= end, "the stamp is not of the sending"


async def test_held_longer_than_the_limit(prosody, workshop, clients):
    """After `hold` what waited in memory is in the spool; a killed server has it still."""
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    node.kill()
    for n in range(20):
        a.send_text(bob, str(n))
    await a.ping()
    await wait_for_spool(prosody, 20)
    prosody.kill()
    prosody.start()
    await asyncio.to_thread(node.start)
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(20)] + ["end"]


async def test_a_torn_spool(prosody, workshop, clients):
    """A power cut tears the last line: it costs that line, and no other."""
    node = workshop.node(prosody)
    node.stop()
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(5):
        a.send_text(bob, str(n))
    await wait_for_spool(prosody, 5)
    prosody.kill()
    (path,) = prosody.spool_files()
    path.write_bytes(path.read_bytes()[:-20])
    prosody.start()
    a = await clients.online(prosody, alice, "desk")
    a.send_text(bob, "after it")
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["0", "1", "2", "3", "after it", "end"]


async def test_somebody_comes_while_no_node_is_there(prosody, workshop, clients):
    """He is served when the node is back, before what is written to him meanwhile."""
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    a.send_text(bob, "in the store")
    await a.ping()
    node.stop()
    a.send_text(bob, "in the spool")
    await a.ping()
    b = await clients.online(prosody, bob)
    a.send_text(bob, "behind the gate")
    await a.ping()
    await b.ping()
    assert b.inbox.bodies() == [], "I3: overtook what is stored"
    await asyncio.to_thread(node.start)
    await b.inbox.body_count(3)
    assert b.inbox.bodies() == ["in the store", "in the spool", "behind the gate"]


async def test_the_server_stops_with_messages_in_hand(prosody, workshop, clients):
    """What the interceptor holds, and what waits in a gate, survives a restart of the server."""
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    a.send_text(bob, "0")
    await a.ping()
    node.stop()
    b = await clients.online(prosody, bob)
    for n in (1, 2, 3):
        a.send_text(bob, str(n))
    await a.ping()
    await b.ping()
    early = b.inbox.bodies()
    prosody.stop()
    prosody.start()
    await asyncio.to_thread(node.start)
    a = await clients.online(prosody, alice, "desk")
    again = await clients.online(prosody, bob)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert early + again.inbox.bodies() == ["0", "1", "2", "3", "end"]


async def test_messages_from_before_the_module(workshop, clients):
    """What Prosody's own offline storage held when the module was first loaded arrives."""
    prosody = workshop.server(module=False)
    alice, carol, bob, dave = prosody.people("alice", "carol", "bob", "dave")
    a = await clients.online(prosody, alice, "desk")
    c = await clients.online(prosody, carol, "desk")
    for n in range(30):
        a.send_text(bob, f"alice {n}")
        c.send_text(bob, f"carol {n}")
    a.send_text(dave, "to dave")
    await a.ping()
    await c.ping()
    written = parse_utc(utc(1))
    assert prosody.stored_offline(bob.partition("@")[0]) == 60
    prosody.stop()
    prosody.module = True
    prosody.start()
    workshop.node(prosody)
    a = await clients.online(prosody, alice, "desk")
    a.send_text(bob, "alice 30")
    await a.ping()
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    texts = b.inbox.bodies()
    assert [t for t in texts if t.startswith("alice")] == [f"alice {n}" for n in range(31)]
    assert [t for t in texts if t.startswith("carol")] == [f"carol {n}" for n in range(30)]
    assert len(texts) == 62
    for m in b.inbox.messages()[:60]:
        assert len(m.delays) == 1
        assert parse_utc(m.delays[0].get("stamp")) <= written
    d = await clients.online(prosody, dave)
    assert await d.inbox.body_count(1) == ["to dave"]
    await b.leave()
    again = await clients.online(prosody, bob)
    await again.inbox.reply(a.send_text(bob, "the end"))
    assert again.inbox.bodies() == ["the end"]


async def test_rules_without_a_node(prosody, workshop, clients):
    """A message with rules that was never asked about bounces (R25, R64); others wait."""
    node = workshop.node(prosody)
    node.stop()
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    id = a.send_xml(message(bob, "x", payload=amp(rule("drop", "deliver", "none"))))
    error = await a.inbox.reply(id)
    check_error(error, "cancel", None, "service-unavailable", id=id, sender=f"{alice}/desk")
    await b.ping()
    assert "x" not in b.inbox.bodies()


async def wait_for_spool(prosody, count):
    """Wait until the spool on disk holds so many messages."""

    def spooled():
        return prosody.spooled().count("<body>") >= count

    await until(spooled, f"{count} messages in the spool")
