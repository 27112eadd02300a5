"""Rules whose time comes while the message is stored. R38, R44 to R51, R67; reading on notify."""

import pytest

from harness.replies import check_reply
from harness.reference import ACTIONS
from harness.stanzas import amp, message, parse_utc, rule, utc


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.prosody()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """The node, at its default security."""
    return workshop.node(prosody)


async def test_each_action_when_the_time_comes(prosody, node, clients):
    """The sender hears of it then, not before and not when the recipient is back."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    when = utc(3)
    ids = {}
    for action in ACTIONS:
        payload = amp(rule(action, "expire-at", when))
        ids[action] = a.send_xml(message(bob, action, payload=payload))
    a.send_text(bob, "stays")
    for action in ("alert", "error", "notify"):
        reply = await a.inbox.reply(ids[action])
        assert parse_utc(utc()) >= parse_utc(when), f"{action} came before its time"
        check_reply(
            reply,
            action,
            id=ids[action],
            sender=f"{alice}/desk",
            recipient=bob,
            rule=(action, "expire-at", when),
        )
    b = await clients.online(prosody, bob)
    end = a.send_text(bob, "end")
    await b.inbox.reply(end)
    assert b.inbox.bodies() == ["notify", "stays", "end"], "drop, alert, error: gone; notify: kept"
    await a.ping()
    for action, id in ids.items():
        count = 0 if action == "drop" else 1
        assert len(a.inbox.with_id(id)) == count, f"{action}: {a.inbox.with_id(id)}"


async def test_in_time(prosody, node, clients):
    """R38: a recipient who is back in time gets it, and the rule never fires."""
    alice, bob, dave = prosody.people("alice", "bob", "dave")
    a = await clients.online(prosody, alice, "desk")
    when = utc(4)
    id = a.send_xml(message(bob, "soon", payload=amp(rule("error", "expire-at", when))))
    await a.ping()
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(1) == ["soon"]
    # the error about dave's tells that the time has passed for both
    later = utc(4.5)
    mark = a.send_xml(message(dave, "x", payload=amp(rule("error", "expire-at", later))))
    await a.inbox.reply(mark)
    assert a.inbox.with_id(id) == []


async def test_after_a_restart_of_the_node(prosody, node, clients):
    """What expired while no node was there is carried out when one is, once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    id = a.send_xml(message(bob, "gone", payload=amp(rule("alert", "expire-at", utc(2)))))
    a.send_text(bob, "kept")
    probe = a.send_xml(message(bob, "p", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(probe)
    node.kill()
    node.start()
    reply = await a.inbox.reply(id)
    assert reply.status == "alert"
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["kept", "p", "end"]
    assert len(a.inbox.with_id(id)) == 1


async def test_the_notice_waits_for_a_sender_who_left(prosody, node, clients):
    """Reading: a notice for a sender who has left is kept for him like a message, once."""
    alice, bob, carol, dave = prosody.people("alice", "bob", "carol", "dave")
    a = await clients.online(prosody, alice, "desk")
    when = utc(2)
    ids = [
        a.send_xml(message(bob, "x", payload=amp(rule(action, "expire-at", when))))
        for action in ("alert", "error")
    ]
    await a.ping()
    await a.leave()
    mark = await clients.online(prosody, carol, "desk")
    end = mark.send_xml(message(dave, "m", payload=amp(rule("alert", "expire-at", utc(3)))))
    await mark.inbox.reply(end)
    again = await clients.online(prosody, alice, "desk")
    for id, status in zip(ids, ("alert", "error")):
        reply = await again.inbox.reply(id)
        assert reply.status == status
        assert reply.body is None
    await again.leave()
    third = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    await third.inbox.reply(b.send_text(alice, "end"))
    assert all(third.inbox.with_id(id) == [] for id in ids), "a notice came twice"
