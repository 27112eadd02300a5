"""Every condition with every action, wherever the recipient is.

R3, R20 to R22, R27 to R29, R33, R38, R40, R41, R44 to R51, R53 to R55, R65; O1, O3.

The 320 combinations share one server and one pair of people per situation: all messages of
a situation are sent first, a last one whose error is certain marks the end, and each test
then looks at what became of its own message.
"""

import asyncio
from dataclasses import dataclass

import pytest

from conftest import Clients
from harness.prosody import HOST
from harness.reference import ACTIONS, CONDITIONS, SITUATIONS, expected
from harness.replies import check_error, check_reply
from harness.stanzas import amp, message, new_id, rule, utc


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """A node of a closed network, where everybody may use every rule."""
    return workshop.node(prosody, security="none")


@dataclass
class Seen:
    """What became of one message."""

    rule: tuple
    sender: str
    recipient: str
    replies: list
    now: list
    later: list


async def play(prosody, situation):
    """Send every combination in one situation; what was seen of each, by combination."""
    clients = Clients()
    try:
        return await _play(clients, prosody, situation)
    finally:
        await clients.close()


async def _play(clients, prosody, situation):
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    phone = None
    if situation.name.startswith(("online", "elsewhere")):
        phone = await clients.online(prosody, bob, "phone", priority=1)
    elif situation.name.startswith("negative"):
        phone = await clients.online(prosody, bob, "phone", priority=-1)
    elif situation.name == "missing":
        bob = f"nobody-{new_id()}@{HOST}"
    address = f"{bob}/{situation.addressed}" if situation.addressed else bob

    sent = {}
    for condition, value in CONDITIONS:
        for action in ACTIONS:
            written = {"past": utc(-3600), "future": utc(3600)}.get(value, value)
            id = new_id("rule")
            sent[condition, value, action] = (id, (action, condition, written))
            payload = amp(rule(action, condition, written))
            a.send_xml(message(address, "a body", id=id, payload=payload))
    await decided(a, address, situation.default)

    now, later = [], []
    if phone:
        await phone.ping()
        now = list(phone.inbox.messages())
        await phone.leave()
    if situation.name != "missing":
        back = await clients.online(prosody, bob, "late", priority=5)
        await back.inbox.reply(a.send_text(bob, "the end"))
        later = list(back.inbox.messages())
    return {
        combination: Seen(
            written,
            f"{alice}/desk",
            address,
            a.inbox.with_id(id),
            [m for m in now if m.id == id],
            [m for m in later if m.id == id],
        )
        for combination, (id, written) in sent.items()
    }


async def decided(sender, address, default="stored"):
    """Wait until everything that was sent to that address has been decided.

    What is decided before the message would be stored can be told before an earlier
    message's being stored is, so there is a mark for each.
    """
    marks = [("error", "expire-at", utc(-1))]
    if default == "stored":
        marks.append(("notify", "deliver", "stored"))
    for mark in marks:
        await sender.inbox.reply(sender.send_xml(message(address, "mark", payload=amp(rule(*mark)))))
    await sender.ping()


@pytest.fixture(scope="module")
def seen(prosody, node):
    """What was seen in a situation, played once."""
    cache = {}

    def look(situation):
        if situation not in cache:
            try:
                cache[situation] = asyncio.run(play(prosody, situation))
            except Exception as error:  # shown by every test of the situation
                cache[situation] = error
        found = cache[situation]
        if isinstance(found, Exception):
            raise AssertionError(f"the situation could not be played: {found}") from found
        return found

    return look


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("condition", CONDITIONS, ids="=".join)
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
def test_rule(node, seen, situation, condition, action):
    """Replies and delivery of one rule are what the specification says."""
    it = seen(situation)[(*condition, action)]
    wanted = expected(situation, *condition, action)

    replies = [s for s in it.replies if s.status]
    bounces = [s for s in it.replies if not s.status]
    assert [s.status for s in replies] == ([wanted.status] if wanted.status else []), it.replies
    if wanted.status:
        check_reply(
            replies[0],
            wanted.status,
            id=replies[0].id,
            sender=it.sender,
            recipient=it.recipient,
            rule=it.rule,
        )
    assert len(bounces) == int(wanted.bounced), f"bounces: {bounces}"
    if wanted.bounced:
        bounce = bounces[0]
        check_error(bounce, "cancel", None, "service-unavailable", id=bounce.id, sender=it.sender)

    arrived = {"now": len(it.now), "later": len(it.later)}
    times = {"now": 0, "later": 0} | ({wanted.delivery: 1} if wanted.delivery != "never" else {})
    assert arrived == times
    for got in it.now + it.later:
        assert got.sender == it.sender
        assert got.body == "a body"
        assert got.amp is not None and got.status is None, "R52: a status on a real message"
        assert got.amp.get("from") == it.sender, "R54"
        assert got.amp.get("to") == it.recipient, "R55"
        assert got.rules == [it.rule]
    assert all(len(got.delays) == 1 for got in it.later), "D1: one delay on what was stored"
    assert all(not got.delays for got in it.now), "a delay on a live message"


ORDERS = {
    "the first met wins": (
        [("drop", "deliver", "none"), ("alert", "deliver", "stored"), ("error", "deliver", "stored")],
        1,
        False,
    ),
    "notify ends it, and does not override": (
        [("notify", "deliver", "stored"), ("drop", "deliver", "stored")],
        0,
        True,
    ),
    "a passed time comes after what stands before it": (
        [("error", "deliver", "stored"), ("drop", "expire-at", "PAST")],
        0,
        False,
    ),
    "none met": ([("drop", "deliver", "direct"), ("error", "deliver", "gateway")], None, True),
}


@pytest.mark.parametrize("name", ORDERS)
async def test_rules_are_tried_in_order(prosody, node, clients, name):
    """R20, R21, R22: document order, the first one met, the default if none is."""
    rules, met, arrives = ORDERS[name]
    rules = [(a, c, utc(-60) if v == "PAST" else v) for a, c, v in rules]
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    id = a.send_xml(message(bob, "x", payload=amp(*(rule(*r) for r in rules))))
    await decided(a, bob)
    replies = a.inbox.with_id(id)
    if met is None:
        assert replies == []
    else:
        (reply,) = replies
        check_reply(
            reply, rules[met][0], id=id, sender=f"{alice}/desk", recipient=bob, rule=rules[met]
        )
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert b.inbox.bodies() == (["x"] if arrives else []) + ["mark", "the end"]


async def test_slixmpp_understands_the_replies(prosody, node, clients):
    """An independent implementation of XEP-0079 raises its events for our replies."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    events = []
    for kind in ("alert", "notify", "error"):
        a.add_event_handler(f"amp_{kind}", lambda m, kind=kind: events.append((kind, m["id"])))
    ids = []
    for action in ("notify", "alert", "error"):
        text = a.make_message(bob, "hello", mtype="chat")
        text["id"] = new_id("slix")
        text["amp"].add_rule(action, "deliver", "stored")
        text.send()
        ids.append((action, text["id"]))
    for _, id in ids:
        await a.inbox.reply(id)
    await a.ping()
    assert sorted(events) == sorted(ids)
