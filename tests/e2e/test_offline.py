"""Messages for people who are away. O1 to O9, D1 to D5, H1, H3, H6; order (I3)."""

import asyncio
import xml.etree.ElementTree as ET

import pytest

from harness.prosody import HOST
from harness.replies import check_error, check_reply
from harness.stanzas import (
    CHATSTATES,
    DELAY,
    HINTS,
    MARKERS,
    RECEIPTS,
    STANZA_ID,
    amp,
    message,
    parse_utc,
    rule,
    utc,
)
from harness.steps import all_stored

#: What servers add: the delay, the id, and what ejabberd's archive says besides.
ADDED = ("{urn:xmpp:delay}", f"{{{STANZA_ID}}}", "{urn:xmpp:mam:tmp}")


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """The node."""
    return workshop.node(prosody)


async def test_500_in_order_with_live_ones_meanwhile(prosody, node, clients):
    """I3, O3: what two senders sent arrives in their order, stored first, live ones after it."""
    alice, carol, bob = prosody.people("alice", "carol", "bob")
    senders = {
        "alice": await clients.online(prosody, alice, "desk"),
        "carol": await clients.online(prosody, carol, "desk", raw=True),
    }
    for n in range(250):
        for name, sender in senders.items():
            sender.send_text(bob, f"{name} {n}")
    for sender in senders.values():
        await sender.ping()

    b = await clients.login(prosody, bob)
    stop = asyncio.Event()
    sent = 250

    async def live():
        nonlocal sent
        while not stop.is_set():
            for name, sender in senders.items():
                # the full address is known once he has announced himself
                full = sent % 2 and b.inbox.bodies()
                target = f"{bob}/phone" if full else bob
                sender.send_text(target, f"{name} {sent}")
            sent += 1
            await asyncio.sleep(0)
            if sent % 20 == 0:
                await senders["alice"].ping()

    talking = asyncio.create_task(live())
    try:
        await b.available()
        await b.inbox.body_count(600)
    finally:
        stop.set()
        await talking
    texts = await b.inbox.body_count(2 * sent, seconds=60)
    assert len(texts) == 2 * sent
    for name in senders:
        mine = [t for t in texts if t.startswith(name)]
        assert mine == [f"{name} {n}" for n in range(sent)]
    await b.leave()
    again = await clients.online(prosody, bob)
    await again.inbox.reply(senders["alice"].send_text(bob, "end"))
    assert again.inbox.bodies() == ["end"], "something was kept after it was taken"


def own_children(stanza):
    """What is in it, without what servers add."""
    return [child for child in stanza.element if not child.tag.startswith(ADDED)]


async def test_the_stanza_comes_as_it_was_sent(prosody, node, clients):
    """Nothing inside a stored message is lost or reordered; it has one delay (W3, D1 to D4, O4)."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    before = parse_utc(utc(-1))
    payload = (
        "<subject>s &amp; t</subject><thread parent='p'>t</thread>"
        "<x:y xmlns:x='urn:x' x:a='&lt;&quot;'>1<z xmlns='urn:z'/>2<x:w/>3</x:y>"
        "<body xml:lang='de'>hallo ☃ \U0001f600</body>"
    )
    text = "  two  spaces\nand a line  "
    id = a.send_xml(message(bob, text, type=None, payload=payload))
    await all_stored(a, bob)
    after = parse_utc(utc(1))
    b = await clients.online(prosody, bob, raw=True)
    got = await b.inbox.reply(id)
    assert got.sender == f"{alice}/desk"
    assert got.to == bob
    assert got.body == text
    children = own_children(got)
    client = "{jabber:client}"
    sent = [f"{client}body", f"{client}subject", f"{client}thread", "{urn:x}y", f"{client}body"]
    tags = [child.tag for child in children]
    if prosody.kind == "ejabberd":
        # which reads a message when it comes and writes it anew, texts last, to whoever is there, too
        live = await b.inbox.reply(a.send_xml(message(bob, text, type=None, payload=payload)))
        assert list(map(ET.tostring, children)) == list(map(ET.tostring, own_children(live)))
        tags, sent = sorted(tags), sorted(sent)
    assert tags == sent
    assert [e.text for e in got.element.findall(f"{client}body")] == [text, "hallo ☃ \U0001f600"]
    inner = got.find("{urn:x}y")
    assert inner.get("{urn:x}a") == '<"'
    assert (inner.text, [c.tag for c in inner], [c.tail for c in inner]) == (
        "1",
        ["{urn:z}z", "{urn:x}w"],
        ["2", "3"],
    )
    (delay,) = got.delays
    assert delay.get("from") == HOST, "D3"
    assert before <= parse_utc(delay.get("stamp")) <= after, "D2"
    assert delay.get("stamp").endswith("Z"), "D2: UTC"


async def test_the_stamp_is_of_the_sending_not_of_the_hand_over(prosody, node, clients):
    """D2: two messages stored apart come with stamps apart, over a restart of the node."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    first = a.send_xml(message(bob, "1", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(first)
    between = parse_utc(utc())
    node.stop()
    node.start()
    second = a.send_text(bob, "2")
    await all_stored(a, bob)
    b = await clients.online(prosody, bob)
    one, two = await b.inbox.reply(first), await b.inbox.reply(second)
    assert parse_utc(one.delays[0].get("stamp")) <= between
    assert parse_utc(two.delays[0].get("stamp")) >= between


async def test_a_forged_delay(prosody, node, clients):
    """D5: a delay that claims to be our host's is discarded, the true one is there once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    forged = f"<delay xmlns='{DELAY}' from='{HOST}' stamp='2001-01-01T00:00:00Z'/>"
    id = a.send_xml(message(bob, "x", payload=forged))
    await all_stored(a, bob)
    b = await clients.online(prosody, bob)
    got = await b.inbox.reply(id)
    (delay,) = got.delays
    assert not delay.get("stamp").startswith("2001")


ACTIVE = f"<active xmlns='{CHATSTATES}'/>"

KINDS = {
    "O5 normal": ({"type": "normal"}, True),
    "O5 no type": ({"type": None}, True),
    "O6 chat": ({}, True),
    "O6 chat state with text": ({"payload": f"<active xmlns='{CHATSTATES}'/>"}, True),
    "O6 chat state alone": ({"body": None, "payload": f"<composing xmlns='{CHATSTATES}'/>"}, False),
    "O6 chat state and thread": (
        {"body": None, "payload": f"<thread>t</thread><paused xmlns='{CHATSTATES}'/>"},
        False,
    ),
    "O8 headline": ({"type": "headline"}, False),
    "H1 no-store": ({"payload": f"<no-store xmlns='{HINTS}'/>"}, False),
    "H2 no-permanent-store": ({"payload": f"<no-permanent-store xmlns='{HINTS}'/>"}, True),
    "H3 store, no text": (
        {"body": None, "payload": f"<store xmlns='{HINTS}'/><x xmlns='urn:x'/>"},
        True,
    ),
    "a receipt": (
        {"body": None, "payload": "<received xmlns='urn:xmpp:receipts' id='r'/>"},
        True,
    ),
    "a receipt with a chat state": (
        {"body": None, "payload": ACTIVE + f"<received xmlns='{RECEIPTS}' id='r'/>"},
        True,
    ),
    "a receipt asked for": ({"body": None, "payload": f"<request xmlns='{RECEIPTS}'/>"}, True),
    "a marker": ({"body": None, "payload": f"<displayed xmlns='{MARKERS}' id='m'/>"}, True),
    "a marker with a chat state": (
        {"body": None, "payload": ACTIVE + f"<acknowledged xmlns='{MARKERS}' id='m'/>"},
        True,
    ),
    "O6 chat state with ids": (
        {"body": None, "payload": ACTIVE + f"<origin-id xmlns='{STANZA_ID}' id='o'/>"},
        False,
    ),
    "H3 store, a chat state alone": (
        {"body": None, "payload": ACTIVE + f"<store xmlns='{HINTS}'/>"},
        True,
    ),
    "H1 no-store and store": (
        {"payload": f"<store xmlns='{HINTS}'/><no-store xmlns='{HINTS}'/>"},
        False,
    ),
    "H1 a marker with no-store": (
        {
            "body": None,
            "payload": f"<received xmlns='{MARKERS}' id='m'/><no-store xmlns='{HINTS}'/>",
        },
        False,
    ),
    "H4 no-copy": ({"payload": f"<no-copy xmlns='{HINTS}'/>"}, True),
}


async def test_what_is_kept_and_what_is_not(prosody, node, clients):
    """O5, O6, O8, H1 to H3."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    ids = {}
    for name, (settings, _) in KINDS.items():
        settings = {"body": "text", **settings}
        ids[name] = a.send_xml(message(bob, settings.pop("body"), **settings))
    await all_stored(a, bob)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    came = {name: len(b.inbox.with_id(id)) for name, id in ids.items()}
    assert came == {name: int(kept) for name, (_, kept) in KINDS.items()}


async def test_rules_win_over_hints(prosody, node, clients):
    """H6: what a rule discards is not kept, whatever the hint says; without it, the hint holds."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    hint = f"<store xmlns='{HINTS}'/>"
    for action in ("drop", "alert"):
        rules = amp(rule(action, "deliver", "stored"))
        id = a.send_xml(message(bob, action, payload=hint + rules))
    assert (await a.inbox.reply(id)).status == "alert"
    other = amp(rule("drop", "deliver", "direct"))
    a.send_xml(message(bob, None, id="hinted", payload=hint + other))
    await all_stored(a, bob)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["mark", "end"]
    assert len(b.inbox.with_id("hinted")) == 1


async def test_what_is_not_kept_counts_as_none(prosody, node, clients):
    """Reading: `deliver` is `none` for what would in fact not be kept."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for payload in (f"<no-store xmlns='{HINTS}'/>",):
        wanted = ("alert", "deliver", "none")
        rules = amp(rule("error", "deliver", "stored"), rule(*wanted))
        id = a.send_xml(message(bob, "x", payload=payload + rules))
        check_reply(
            await a.inbox.reply(id),
            "alert",
            id=id,
            sender=f"{alice}/desk",
            recipient=bob,
            rule=wanted,
        )


async def test_quota(workshop, clients):
    """O2: the message for which there is no room is refused, those before it stay."""
    server = workshop.server()
    workshop.node(server, per_user=3)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk")
    ids = [a.send_text(bob, str(n)) for n in range(5)]
    for id in ids[3:]:
        error = await a.inbox.reply(id)
        check_error(error, "cancel", None, "service-unavailable", id=id, sender=f"{alice}/desk")
    # a full quota is 'none' to the rules
    wanted = ("alert", "deliver", "none")
    full = a.send_xml(message(bob, "x", payload=amp(rule(*wanted))))
    check_reply(
        await a.inbox.reply(full),
        "alert",
        id=full,
        sender=f"{alice}/desk",
        recipient=bob,
        rule=wanted,
    )
    assert all(a.inbox.with_id(id) == [] for id in ids[:3]), "O2: no error for what is stored"
    b = await clients.online(server, bob)
    assert await b.inbox.body_count(3) == ["0", "1", "2"]
    await b.leave()
    # what was taken makes room
    id = a.send_text(bob, "again")
    await a.ping()
    b = await clients.online(server, bob)
    await b.inbox.reply(id)
    assert a.inbox.with_id(id) == []


async def test_negative_priority_gets_nothing_until_it_rises(prosody, node, clients):
    """O1, O3: a resource at -1 counts as away; the change to 5 brings what is stored."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, priority=-1)
    for n in range(3):
        a.send_text(bob, str(n))
    mark = amp(rule("notify", "deliver", "stored"))
    await a.inbox.reply(a.send_xml(message(bob, "3", payload=mark)))
    await b.ping()
    assert b.inbox.bodies() == []
    await b.available(5)
    await b.inbox.reply(a.send_text(bob, "4"))
    assert b.inbox.bodies() == ["0", "1", "2", "3", "4"]


async def test_it_goes_to_the_resource_that_comes(prosody, node, clients):
    """O3: another resource's presence brings it to that one, and to no other."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    low = await clients.online(prosody, bob, "low", priority=-5)
    a.send_text(f"{bob}/phone", "for the phone")
    a.send_text(bob, "for anyone")
    await a.ping()
    tablet = await clients.online(prosody, bob, "tablet", priority=1)
    assert await tablet.inbox.body_count(2) == ["for the phone", "for anyone"]
    await low.ping()
    assert low.inbox.bodies() == []
    await tablet.leave()
    phone = await clients.online(prosody, bob, "phone")
    await phone.inbox.reply(a.send_text(bob, "end"))
    assert phone.inbox.bodies() == ["end"]


async def test_unavailable_and_back_in_one_session(prosody, node, clients):
    """O3: each return brings what came meanwhile."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, raw=True)
    for round in range(3):
        b.write("<presence type='unavailable'/>")
        await b.ping()
        a.send_text(bob, f"away {round}")
        await a.ping()
        await b.available()
        await b.inbox.reply(a.send_text(bob, f"here {round}"))
    assert b.inbox.bodies() == [f"{w} {r}" for r in range(3) for w in ("away", "here")]


async def test_big_messages(prosody, node, clients):
    """A batch is bounded by bytes as well as by count: 40 of 100 kB arrive, in order."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    for n in range(40):
        a.send_text(bob, f"{n} " + "x" * 100_000)
        await a.drain()
    await a.ping()
    b = await clients.online(prosody, bob)
    texts = await b.inbox.body_count(40, seconds=60)
    assert [t.partition(" ")[0] for t in texts] == [str(n) for n in range(40)]
    assert all(len(t) > 100_000 for t in texts)


async def test_the_sender_is_away_when_his_notice_comes(prosody, node, clients):
    """O9: an alert for a sender who left before it was written is kept, once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.login(prosody, alice, "desk", raw=True)
    # never available: what is for him is stored like a message
    id = a.send_xml(message(bob, "x", payload=amp(rule("alert", "deliver", "stored"))))
    await a.ping()
    await a.leave()
    b = await clients.online(prosody, bob)
    b.send_text(alice, "stored behind it")
    await b.ping()
    again = await clients.online(prosody, alice, "desk")
    await again.inbox.body_count(1)
    copies = len(a.inbox.with_id(id)) + len(again.inbox.with_id(id))
    assert copies == 1
