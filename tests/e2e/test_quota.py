"""Quotas: how much is kept for a user, and for a user from one sender. O2."""

import contextlib
import sqlite3

import pytest

from harness.prosody import HOST
from harness.replies import check_error, check_reply
from harness.stanzas import amp, message, rule
from harness.steps import all_stored
from harness.waiting import until


@pytest.fixture(scope="module")
def prosody(workshop):
    """One server for all nodes of this file, one after the other."""
    return workshop.server()


@pytest.fixture
def nodes(prosody, workshop):
    """Makes the node of a test, which ends with it."""
    with contextlib.ExitStack() as stack:

        def node(**settings):
            made = workshop.node(prosody, **settings)
            stack.callback(made.stop)
            return made

        yield node


def stored(node, jid):
    """Of a node that is stopped: the size of each message that it keeps for somebody."""
    with contextlib.closing(sqlite3.connect(node.database)) as database:
        rows = database.execute("SELECT size FROM offline_message WHERE recipient = ?", [jid])
        return [size for (size,) in rows]


def over_quota(node):
    """How many messages the node has not kept, by what it answered."""
    prefix = "amphora_over_quota_total{answer="
    lines = [line for line in node.http_get("/metrics").splitlines() if line.startswith(prefix)]
    return {line[len(prefix) + 1 : line.rindex('"')]: int(line.split()[-1]) for line in lines}


async def refused(sender, id):
    """Wait for the error about a message."""
    error = await sender.inbox.reply(id)
    full_jid = f"{sender.jid}/{sender.resource}"
    check_error(error, "cancel", "503", "service-unavailable", id=id, sender=full_jid)


async def crowd(prosody, clients, node, bob, bodies):
    """Twenty write all of it to Bob at once, half of them with rules. Returns when every message
    is stored or was refused."""
    people = prosody.people(*(f"person{n}" for n in range(20)))
    prosody.account(bob.partition("@")[0], {jid: "from" for jid in people})
    senders = [await clients.online(prosody, jid, "desk", raw=True) for jid in people]
    rules = amp(rule("alert", "deliver", "none"))
    for n, sender in enumerate(senders):
        payload = rules if n % 2 else ""
        sender.write("".join(message(bob, body, payload=payload) for body in bodies))

    def answers():
        return [answer for sender in senders for answer in sender.inbox.messages()]

    def decided():
        return len(answers()) + node.rows() == len(senders) * len(bodies)

    await until(decided, "every message to be stored or refused")
    for answer in answers():
        assert answer.status == "alert" or answer.condition == "service-unavailable", answer


async def test_a_crowd_does_not_overrun_the_limit_of_messages(prosody, nodes, clients):
    """O2: of 20 who write at once exactly as many are kept as may be, the others refused."""
    node = nodes(per_user=50)
    (bob,) = prosody.people("bob")
    await crowd(prosody, clients, node, bob, ["hi"] * 10)
    node.stop()
    assert len(stored(node, bob)) == 50


async def test_a_crowd_does_not_overrun_the_limit_of_bytes(prosody, nodes, clients):
    """O2: not a byte more; whoever still fits into what is left is kept."""
    node = nodes(quota='bytes_per_user = "24KiB"')
    (bob,) = prosody.people("bob")
    bodies = ["x" * (n * 97 % 900) for n in range(12)]
    await crowd(prosody, clients, node, bob, bodies)
    node.stop()
    sizes = stored(node, bob)
    assert 24 * 1024 - 1400 < sum(sizes) <= 24 * 1024


async def test_a_crowd_with_rules_sees_a_full_quota_as_none(prosody, nodes, clients):
    """R33, O2: each is told of one thing only: stored, or none and refused."""
    node = nodes(per_user=30)
    alice, bob = prosody.people("alice", "bob")
    prosody.account(bob.partition("@")[0], {alice: "both"})
    a = await clients.online(prosody, alice, "desk", raw=True)
    rules = amp(rule("notify", "deliver", "stored"), rule("alert", "deliver", "none"))
    ids = [f"rules-{n}" for n in range(40)]
    a.write("".join(message(bob, "hi", id=id, payload=rules) for id in ids))
    statuses = [(await a.inbox.reply(id)).status for id in ids]
    assert statuses == ["notify"] * 30 + ["alert"] * 10
    await a.ping()
    assert len(a.inbox.messages()) == 40
    node.stop()
    assert len(stored(node, bob)) == 30


async def test_one_sender_cannot_use_up_the_quota(prosody, nodes, clients):
    """Limits of a sender count all his resources, and leave room for others."""
    node = nodes(per_user=6, quota="messages_per_sender = 2")
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    desk = await clients.online(prosody, alice, "desk", raw=True)
    phone = await clients.online(prosody, alice, "phone", raw=True)
    await all_stored(desk, bob, "one")
    await all_stored(phone, bob, "two")
    await refused(desk, desk.send_text(bob, "three"))
    c = await clients.online(prosody, carol, "desk", raw=True)
    await all_stored(c, bob, "four")
    await refused(phone, phone.send_text(bob, "five"))
    wanted = ("alert", "deliver", "none")
    id = desk.send_xml(message(bob, "six", payload=amp(rule(*wanted))))
    check_reply(
        await desk.inbox.reply(id),
        "alert",
        id=id,
        sender=f"{alice}/desk",
        recipient=bob,
        rule=wanted,
    )
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(3) == ["one", "two", "four"]
    await b.leave()
    # what was taken makes room
    await all_stored(desk, bob, "seven")
    node.stop()


async def test_overrides_and_silence(prosody, nodes, clients):
    """A user before his domain before the rest; `drop` says nothing, and is counted."""
    quota = f"""
over = "drop"
[[quota.override]]
for = "{HOST}"
messages_per_user = 2
[[quota.override]]
for = "much@{HOST}"
messages_per_user = 4
over = "error"
"""
    node = nodes(per_user=1, quota=quota)
    prosody.account("much")
    alice, bob = prosody.people("alice", "bob")
    much = f"much@{HOST}"
    a = await clients.online(prosody, alice, "desk", raw=True)
    ids = [a.send_text(much, str(n)) for n in range(6)]
    for n in range(6):
        a.send_text(bob, str(n))
    await refused(a, ids[4])
    await refused(a, ids[5])
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["0", "1", "end"]
    m = await clients.online(prosody, much)
    assert await m.inbox.body_count(4) == ["0", "1", "2", "3"]
    await a.ping()
    assert [s.id for s in a.inbox.messages()] == ids[4:]
    assert over_quota(node) == {"error": 2, "none": 4}
    node.stop()
