"""The interceptor's bounds, made small enough to be met. Invariants I3, I6: nothing is dropped."""

import asyncio

import pytest

from harness.stanzas import message
from harness.steps import all_stored


async def everything(prosody, clients, count, sender, bob):
    """Bob comes and has all of them, in order, and nothing twice."""
    b = await clients.online(prosody, bob)
    await b.inbox.reply(sender.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(count)] + ["end"]


async def test_small_windows(workshop, clients):
    """Few intercepts, items and announcements at a time: slower, and complete."""
    prosody = workshop.server(
        options={
            "amphora_window": 3,
            "amphora_window_bytes": 2000,
            "amphora_available_window": 1,
            "amphora_session_window": 4,
        }
    )
    workshop.node(prosody)
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, "desk")
    for n in range(99):
        a.send_text(bob, str(n))
    await all_stored(a, bob, "99")
    a.send_text(carol, "0")
    await asyncio.gather(
        everything(prosody, clients, 100, a, bob), everything(prosody, clients, 1, a, carol)
    )


async def test_little_memory(workshop, clients):
    """I6: beyond what may be held, a message goes to the spool or back to its sender."""
    prosody = workshop.server(options={"amphora_held_messages": 5, "amphora_hold": 600})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    node.stop()
    ids = [a.send_text(bob, str(n)) for n in range(50)]
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    await a.ping()
    refused = [n for n, id in enumerate(ids) if a.inbox.with_id(id)]
    arrived = [int(text) for text in b.inbox.bodies()[:-1]]
    assert arrived == sorted(set(arrived))
    assert sorted(refused + arrived) == list(range(50))


async def test_a_small_gate(workshop, clients):
    """A gate that overflows while the client is slow is emptied into the store, in order."""
    prosody = workshop.server(options={"amphora_gate_messages": 5, "amphora_session_window": 10})
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(99):
        a.send_text(bob, str(n))
    await all_stored(a, bob, "99")
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(5)
    for n in range(100, 150):
        a.send_text(bob, str(n))
    await a.ping()
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(150)] + ["end"]
    assert [m for m in a.inbox.messages() if m.type == "error"] == []


async def test_the_gate_limit(workshop, clients):
    """With no node for that long live messages go on, and the stored ones come when it is back."""
    prosody = workshop.server(options={"amphora_gate_limit": 2, "amphora_hold": 1})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    await all_stored(a, bob, "stored")
    node.stop()
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["live"]
    await asyncio.to_thread(node.start)
    assert await b.inbox.body_count(2) == ["live", "stored"]


async def test_a_full_spool(workshop, clients):
    """What there is no room for is refused, and its sender told (I6); the rest arrives."""
    prosody = workshop.server(options={"amphora_spool_limit": 20_000, "amphora_hold": 0})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    node.stop()
    ids = [a.send_text(bob, "x" * 1000) for _ in range(60)]
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    refused = [id for id in ids if a.inbox.with_id(id)]
    arrived = [id for id in ids if b.inbox.with_id(id)]
    assert sorted(refused + arrived) == sorted(ids)
    assert len(arrived) >= 10 and len(refused) >= 10
    assert all(a.inbox.with_id(id)[0].type == "error" for id in refused)


@pytest.mark.parametrize("size", [100_000, 240_000])
async def test_large_stanzas(workshop, clients, size):
    """Up to what the server takes from a client, a message is kept and comes back whole."""
    prosody = workshop.server()
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    text = "<&>" + "ü" * (size // 2)
    a.send_xml(message(bob, text))
    await all_stored(a, bob)
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(2) == [text, "mark"]


async def test_too_large_to_come_back(workshop, clients):
    """A message that could not come back in one stanza is refused by its size alone."""
    prosody = workshop.server(stanza_limit=20_000)
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    id = a.send_text(bob, "x" * 30_000)
    error = await a.inbox.reply(id)
    assert error.condition == "policy-violation"
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["end"]
