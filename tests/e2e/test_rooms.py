"""Chat rooms (XEP-0045): rules on messages from or about them are ignored.

A room throws an occupant out when an error comes from him. So nothing that a rule asks for, not
even a refusal, is sent in answer to what comes from a room or is about one.
"""

import asyncio

import pytest

from harness.app_server import APPS, DOMAIN, AppServer
from harness.rooms import ROOMS, join, left
from harness.stanzas import INVITATION, MUC_USER, amp, message, new_id, rule
from harness.steps import all_stored
from harness.waiting import until

#: Each would be answered, and most would stop the message: refused, met at once, met when stored.
RULES = {
    "refused": amp(rule("explode", "deliver", "direct")),
    "none": amp(),
    "drop": amp(rule("drop", "match-resource", "any")),
    "direct": amp(rule("error", "deliver", "direct")),
    "stored": amp(rule("alert", "deliver", "stored")),
    "expired": amp(rule("error", "expire-at", "2001-01-01T00:00:00Z")),
    "notify": amp(rule("notify", "match-resource", "any")),
}


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server with rooms, and a component for what seems to come from elsewhere."""
    return workshop.server(hibernation=1, rooms=ROOMS, components=APPS)


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


async def room_of(prosody, clients, **settings):
    """(room, Alice's client, Bob's client, Alice, Bob), both in it."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob, "phone", raw=True, **settings)
    room = new_id("room")
    await join(a, room, "alice")
    await join(b, room, "bob")
    return room, a, b, alice, bob


def answers(*clients):
    """Errors and answers to rules that they got."""
    return [
        m for client in clients for m in client.inbox.messages() if m.type == "error" or m.status
    ]


async def test_rules_in_the_room(prosody, node, clients):
    """Whoever says something with rules to all: all get it, nobody an answer, nobody leaves."""
    room, a, b, alice, bob = await room_of(prosody, clients)
    for name, rules in RULES.items():
        a.send_xml(message(f"{room}@{ROOMS}", name, type="groupchat", payload=rules))
        b.send_xml(message(f"{room}@{ROOMS}", name, type="groupchat", payload=rules))
    for client in (a, b):
        await client.inbox.body_count(2 * len(RULES))
        await client.ping()
        assert sorted(client.inbox.bodies()) == sorted(2 * list(RULES))
    assert answers(a, b) == [] and left(a, room) == left(b, room) == []


async def test_private_messages_of_occupants(prosody, node, clients):
    """XEP-0045 7.5, both ways, with a session that is there."""
    room, a, b, alice, bob = await room_of(prosody, clients)
    for name, rules in RULES.items():
        a.send_xml(message(f"{room}@{ROOMS}/bob", name, payload=rules))
        b.send_xml(message(f"{room}@{ROOMS}/alice", name, payload=rules))
    for client in (a, b):
        assert await client.inbox.body_count(len(RULES)) == list(RULES)
    # who was thrown out would not get this
    a.send_xml(message(f"{room}@{ROOMS}", "still here?", type="groupchat"))
    await b.inbox.body_count(len(RULES) + 1)
    assert answers(a, b) == [] and left(a, room) == left(b, room) == []


async def test_a_private_message_to_a_session_that_sleeps(prosody, node, clients):
    """It comes when the session is resumed, or to the next one if it ends."""
    room, a, b, alice, bob = await room_of(prosody, clients, sm=True)
    await b.vanish()
    for name, rules in RULES.items():
        a.send_xml(message(f"{room}@{ROOMS}/bob", name, payload=rules))
    await a.ping()
    await until(lambda: node.stored(bob) == len(RULES), "what the session left")
    again = await clients.online(prosody, bob, "tablet", raw=True)
    await again.inbox.body_count(len(RULES))
    await again.ping()
    assert again.inbox.bodies() == list(RULES)
    assert answers(a, again) == []


async def test_invited_by_somebody(prosody, node, clients):
    """XEP-0249, with rules, to one who is there."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob, "phone", raw=True)
    invitation = f"<x xmlns='{INVITATION}' jid='room@{ROOMS}'/>"
    for rules in RULES.values():
        a.send_xml(message(bob, type=None, payload=invitation + rules))
    await b.inbox.until(lambda box: len(box.messages()) == len(RULES), "the invitations")
    await a.ping()
    assert answers(a, b) == []


async def test_invited_while_away(prosody, node, clients):
    """Both kinds of invitation are kept, whatever rules say, in order."""
    room, a, b, alice, bob = await room_of(prosody, clients)
    (carol,) = prosody.people("carol")
    for rules in RULES.values():
        invite = f"<x xmlns='{MUC_USER}'><invite to='{carol}'/></x>"
        a.send_xml(message(f"{room}@{ROOMS}", type=None, payload=invite + rules))
        direct = f"<x xmlns='{INVITATION}' jid='{room}@{ROOMS}'/>"
        a.send_xml(message(carol, type=None, payload=direct + rules))
    await a.ping()
    await until(lambda: node.stored(carol) == 2 * len(RULES), "all of them are kept")
    c = await clients.online(prosody, carol, "phone", raw=True)
    await c.inbox.until(lambda box: len(box.messages()) == 2 * len(RULES), "the invitations")
    mediated = [m for m in c.inbox.messages() if m.sender == f"{room}@{ROOMS}"]
    assert len(mediated) == len(RULES)
    assert all(m.find(f"{{{MUC_USER}}}x/{{{MUC_USER}}}invite") is not None for m in mediated)
    assert answers(a, b, c) == [] and left(a, room) == left(b, room) == []


def from_elsewhere(to, body, rules):
    """A private message out of a room that this server knows nothing of."""
    text = message(to, body, payload=f"<x xmlns='{MUC_USER}'/>" + rules)
    return text.replace("<message xmlns='jabber:client'", f"<message from='room@{DOMAIN}/nick'")


async def test_a_room_elsewhere(prosody, node, clients):
    """A room on another server is known by its `<x/>` alone: no answer goes there, live or away."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    async with AppServer(prosody) as elsewhere:
        said = [from_elsewhere(bob, name, rules) for name, rules in RULES.items()]
        for text in said:
            elsewhere.write(text)
        await until(lambda: node.stored(bob) == len(RULES), "all are stored")
        await all_stored(a, bob)
        b = await clients.online(prosody, bob, "phone", raw=True)
        assert await b.inbox.body_count(len(RULES) + 1) == [*RULES, "mark"]
        for text in said:
            elsewhere.write(text)
        assert (await b.inbox.body_count(2 * len(RULES) + 1))[-len(RULES):] == list(RULES)
        # what comes back comes before this
        b.send_text(f"room@{DOMAIN}/nick", "end")
        await until(lambda: elsewhere.messages, "the end")
        assert [m.get("type") for m in elsewhere.messages] == ["chat"]


async def test_without_a_node(prosody, node, clients):
    """Nobody waits for a node, and nothing bounces: what is ignored is not even held."""
    room, a, b, alice, bob = await room_of(prosody, clients)
    for client, to in ((a, bob), (b, alice)):
        client.send_text(to, "the gates are open")
    for client in (a, b):
        await client.inbox.body_count(1)
    node.stop()
    try:
        invitation = f"<x xmlns='{INVITATION}' jid='{room}@{ROOMS}'/>"
        for rules in RULES.values():
            a.send_xml(message(f"{room}@{ROOMS}/bob", "private", payload=rules))
            a.send_xml(message(bob, "invited", payload=invitation + rules))
            a.send_xml(message(f"{room}@{ROOMS}", "to all", type="groupchat", payload=rules))
        await b.inbox.body_count(1 + 3 * len(RULES))
        await a.ping()
        async with AppServer(prosody) as elsewhere:
            for rules in RULES.values():
                elsewhere.write(from_elsewhere(bob, "elsewhere", rules))
            await b.inbox.body_count(1 + 4 * len(RULES))
            assert elsewhere.messages == []
        count = len(RULES)
        here, last = b.inbox.bodies()[1 : 1 + 3 * count], b.inbox.bodies()[1 + 3 * count :]
        order = ["private", "invited", "to all"]
        if prosody.kind == "ejabberd":
            # a room is a process there: what it passes on may be overtaken by what comes straight
            order.remove("invited")
            assert here.count("invited") == count
            here = [text for text in here if text != "invited"]
        assert here == count * order and last == count * ["elsewhere"]
        assert answers(a, b) == [] and left(a, room) == left(b, room) == []
    finally:
        await asyncio.to_thread(node.start)
