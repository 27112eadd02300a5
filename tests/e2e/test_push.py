"""Push notifications (XEP-0357, mod_cloud_notify): one for each message that a device misses.

What is the same as without Amphora is in test_unchanged.py; this is what only Amphora does.
"""

import asyncio
import signal

import pytest

from harness.app_server import APPS, AppServer, enable_push
from harness.stanzas import HINTS, amp, message, new_id, rule
from harness.steps import all_stored
from harness.waiting import until


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server with push, whose gates and windows are small."""
    options = {"amphora_gate_messages": 20, "amphora_session_window": 4, "amphora_hold": 3}
    return workshop.server(push=True, components=APPS, options=options)


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


@pytest.fixture
async def apps(prosody):
    """Where the notifications go."""
    async with AppServer(prosody) as server:
        yield server


async def registered(prosody, clients, jid, device):
    """A session of that user's with a device of that name; it can be resumed."""
    client = await clients.login(prosody, jid, device, raw=True, sm=True)
    await enable_push(client, device)
    client.acknowledge(client.handled)
    await client.ping()
    return client


async def away(prosody, clients, jid, device):
    """A device of a user's who then goes away."""
    client = await registered(prosody, clients, jid, device)
    await client.leave()


async def all_pushed(prosody, clients, apps):
    """Every notification that is due has been sent: those for sleeping sessions wait a second,
    and go out in the order in which their messages came."""
    (fence,) = prosody.people("fence")
    device = new_id("fence")
    sleeper = await registered(prosody, clients, fence, device)
    await sleeper.ping()
    await sleeper.vanish()
    await apps.count(device, 1)  # it sleeps, and left the answer to the ping
    other = await clients.login(prosody, fence, "other", raw=True)
    other.send_text(f"{fence}/{device}", "fence")
    await apps.important(device, 1)


async def test_what_a_rule_decides(prosody, node, clients, apps):
    """Stored with rules: one push. Dropped, alerted, refused: none, whoever it was for."""
    alice, bob = prosody.people("alice", "bob")
    await away(prosody, clients, bob, "rules")
    a = await clients.online(prosody, alice, "desk", raw=True)
    for action in ("drop", "alert", "error"):
        a.send_xml(message(bob, "discarded", payload=amp(rule(action, "deliver", "stored"))))
    not_kept = f"<no-store xmlns='{HINTS}'/>" + amp(rule("drop", "deliver", "none"))
    a.send_xml(message(bob, "not kept", payload=not_kept))
    a.send_xml(message(bob, "stored", payload=amp(rule("drop", "deliver", "direct"))))
    await all_stored(a, bob)
    await all_pushed(prosody, clients, apps)
    assert apps.of("rules") == [True, True]


async def test_once_over_a_kill_of_the_node(prosody, node, clients, apps):
    """I2: what is held, asked again and stored in the end was pushed once, when it came."""
    alice, bob = prosody.people("alice", "bob")
    await away(prosody, clients, bob, "kill")
    a = await clients.online(prosody, alice, "desk", raw=True)
    node.kill()
    for n in range(3):
        a.send_text(bob, str(n))
    await a.ping()
    # who is told does not wait for the node
    assert await apps.count("kill", 1)
    await asyncio.to_thread(node.start)
    await all_stored(a, bob)
    await all_pushed(prosody, clients, apps)
    assert len(apps.of("kill")) == 4


async def test_live_ones_behind_a_sleeping_hand_over(prosody, node, clients, apps):
    """A session that sleeps amid its hand-over is told of what waits in its gate."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    for n in range(9):
        a.send_text(bob, str(n))
    await all_stored(a, bob)
    b = await registered(prosody, clients, bob, "gate")
    await b.available()
    await b.inbox.body_count(4)
    await b.vanish()
    await apps.important("gate", 1)
    a.send_text(bob, "live")
    await apps.important("gate", 2)
    back = await clients.raw(prosody, bob, acks=True).resume(b)
    await back.inbox.until(lambda box: "live" in box.bodies(), "the live one")
    assert back.inbox.bodies()[-7:] == ["4", "5", "6", "7", "8", "mark", "live"]


async def test_what_waits_when_it_falls_asleep(prosody, node, clients, apps):
    """A session whose gate is closed, and that has been handed nothing, sleeps: told of it."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    node.stop()
    b = await registered(prosody, clients, bob, "waits")
    await b.available()
    b.acknowledge(b.handled)
    a.send_text(bob, "in the gate")
    await a.ping()
    await b.ping()
    b.acknowledge(b.handled)
    await b.ping()
    assert b.inbox.bodies() == []
    await b.vanish()
    await apps.important("waits", 1)
    await asyncio.to_thread(node.start)
    back = await clients.raw(prosody, bob, acks=True).resume(b)
    assert await back.inbox.body_count(1) == ["in the gate"]


async def test_another_session_takes_what_one_left(prosody, node, clients, apps):
    """A session ends, and one that is there gets what it left: no push, nobody misses anything."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    phone = await clients.online(prosody, bob, "left", raw=True, sm="once", priority=1)
    await enable_push(phone, "left")
    tablet = await clients.online(prosody, bob, "tablet", raw=True)
    phone.acknowledge(phone.handled)
    await phone.ping()
    before = sum(apps.of("left"))
    a.send_xml(message(bob, "x", payload=f"<no-permanent-store xmlns='{HINTS}'/>"))
    await phone.inbox.body_count(1)
    await phone.vanish()
    assert await tablet.inbox.body_count(1) == ["x"]
    await all_pushed(prosody, clients, apps)
    assert sum(apps.of("left")) == before


async def test_a_notice_for_a_sender_who_left(prosody, node, clients, apps):
    """O9: an answer to a rule that is kept for its sender is pushed like a message, once."""
    alice, bob = prosody.people("alice", "bob")
    await away(prosody, clients, alice, "notice")
    a = await clients.login(prosody, alice, "desk", raw=True)
    node.process.signal(signal.SIGSTOP)
    # not archived: ejabberd tells a user's devices of what he sends himself, by way of his archive
    payload = f"<no-permanent-store xmlns='{HINTS}'/>" + amp(rule("alert", "deliver", "stored"))
    a.send_xml(message(bob, "x", payload=payload))
    await a.ping()
    await a.leave()
    node.process.signal(signal.SIGCONT)
    await until(lambda: node.stored(alice) == 1, "the notice")
    await all_pushed(prosody, clients, apps)
    assert apps.of("notice") == [False]
