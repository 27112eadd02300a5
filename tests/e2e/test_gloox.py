"""gloox as the client: a second implementation of XEP-0079 says the rules and reads the answers.

R3, R20 to R22, R27 to R29, R33, R38, R40, R41, R44 to R51, R53 to R55, R61 to R63, R65, R72; O1, O3.
What is compared is what gloox made of a message, not its bytes.
"""

import itertools
from contextlib import AsyncExitStack

import pytest

from harness.gloox import GlooxClient
from harness.prosody import HOST
from harness.reference import ACTIONS, CONDITIONS, SITUATIONS, expected
from harness.stanzas import AMP, AMP_ERRORS, amp, message, new_id, rule, utc
from harness.steps import all_stored

PLAYED = [s for s in SITUATIONS if s.name in ("online", "online-full", "offline", "missing")]


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """A node of a closed network, where everybody may use every rule."""
    return workshop.node(prosody, security="none")


@pytest.fixture
async def gloox(tmp_path):
    """Logs gloox in; all leave after the test."""
    async with AsyncExitStack() as stack:

        async def online(server, jid, resource="gloox", **settings):
            log = tmp_path / f"{jid.partition('@')[0]}-{new_id()}.log"
            client = GlooxClient(server, jid, resource, log=log, **settings)
            return await stack.enter_async_context(client)

        yield online


def as_dict(written):
    """A rule as gloox shows it."""
    return dict(zip(("action", "condition", "value"), written))


def check_addresses(read, sender, recipient, status=None):
    """R53 to R55. For the status `error`, which the schema of 1.2 has, gloox knows no word."""
    shown = {"xmlns": AMP, "from": sender, "to": recipient}
    assert read["amp"] == (shown if status in (None, "error") else {**shown, "status": status})


def check_answer(read, written, sender, recipient):
    """R27 to R29, R44, R47 to R50, R53 to R55, R65: an answer to that rule."""
    assert (read["from"], read["to"], read["body"]) == (HOST, sender, "")
    assert read["rules"] == [as_dict(written)]
    check_addresses(read, sender, recipient, written[0])
    if written[0] != "error":
        assert read["type"] == "normal" and "error" not in read
        return
    assert read["type"] == "error"
    assert read["error"] == {
        "type": "modify",
        "condition": "undefined-condition",
        "detail": "failed-rules",
        "namespace": AMP_ERRORS,
        "rules": [as_dict(written)],
    }


@pytest.mark.parametrize("situation", PLAYED, ids=lambda situation: situation.name)
async def test_every_rule(prosody, node, gloox, situation):
    """Each action with each condition and value: the reference, seen by gloox at both ends."""
    alice, bob = prosody.people("alice", "bob")
    a = await gloox(prosody, alice)
    b = None
    if situation.name.startswith("online"):
        b = await gloox(prosody, bob, "phone")
    elif situation.name == "missing":
        bob = f"nobody-{new_id()}@{HOST}"
    to = f"{bob}/{situation.addressed}" if situation.addressed else bob
    sent = {}
    for (condition, value), action in itertools.product(CONDITIONS, ACTIONS):
        written = (action, condition, {"past": utc(-60), "future": utc(3600)}.get(value, value))
        id = a.send(to, "a body", written)
        sent[id] = (written, expected(situation, condition, value, action))
    # what is decided before storage can be told before what was stored: a mark for each
    await a.reply(a.send(to, "mark", ("error", "expire-at", utc(-1))))
    if situation.default == "stored":
        await a.reply(a.send(to, "mark", ("notify", "deliver", "stored")))
        b = await gloox(prosody, bob, "late")
    if b:
        await b.reply(a.send(bob, "the end"))
    # to whom the sender may not see, what is discarded need not keep the order
    for id, (_, wanted) in sent.items():
        if count := (wanted.status is not None) + wanted.bounced:
            await a.reply(id, count)
    for id, (written, wanted) in sent.items():
        answers = [read for read in a.with_id(id) if read["from"] == HOST]
        bounces = [read for read in a.with_id(id) if read["from"] != HOST]
        assert len(answers) == (wanted.status is not None), (written, answers)
        assert len(bounces) == wanted.bounced, (written, bounces)
        for read in answers:
            check_answer(read, written, a.jid, to)
        for read in bounces:
            assert read["error"]["condition"] == "service-unavailable"
        came = b.with_id(id) if b else []
        assert len(came) == (wanted.delivery != "never"), (written, came)
        for read in came:
            assert (read["from"], read["body"]) == (a.jid, "a body")
            assert read["rules"] == [as_dict(written)]
            check_addresses(read, a.jid, to)
            assert ("delay" in read) == (wanted.delivery == "later"), read


async def test_several_rules_the_first_that_is_met_counts(prosody, node, gloox):
    """R20, R21: in the order in which gloox wrote them."""
    alice, bob = prosody.people("alice", "bob")
    a = await gloox(prosody, alice)
    rules = [
        ("error", "deliver", "direct"),
        ("alert", "match-resource", "exact"),
        ("drop", "deliver", "stored"),
    ]
    id = a.send(bob, "x", *rules)
    check_answer(await a.reply(id), rules[1], a.jid, bob)


async def test_what_expires_in_store_is_told(prosody, node, gloox):
    """R38: gloox's expire-at is carried out at its time, on a message that waits."""
    alice, bob = prosody.people("alice", "bob")
    a = await gloox(prosody, alice)
    rules = [("alert", "expire-at", utc(2))]
    id = a.send(bob, "too late", *rules)
    check_answer(await a.reply(id), rules[0], a.jid, bob)
    b = await gloox(prosody, bob)
    await b.reply(a.send(bob, "the end"))
    assert b.bodies() == ["the end"]


async def test_refused_rules_are_named(prosody, node, gloox):
    """R17, R18, R36, R37, R63, R66: gloox reads which of its rules are bad."""
    alice, bob = prosody.people("alice", "bob")
    a = await gloox(prosody, alice)
    bad = [("drop", "expire-at", "tomorrow"), ("alert", "expire-at", "2030-01-01T00:00:00+01:00")]
    good = ("drop", "deliver", "stored")
    read = await a.reply(a.send(bob, "x", bad[0], good, bad[1]))
    assert read["error"] == {
        "type": "modify",
        "condition": "not-acceptable",
        "detail": "invalid-rules",
        "namespace": AMP,
        "rules": [as_dict(written) for written in bad],
    }
    assert read["rules"] == [as_dict(written) for written in (bad[0], good, bad[1])]
    assert read["amp"] == {"xmlns": AMP}, "R66: without status and addresses"


async def test_a_message_without_an_id_is_refused(prosody, node, gloox):
    """R1, R2: gloox lets one leave without."""
    alice, bob = prosody.people("alice", "bob")
    a = await gloox(prosody, alice)
    a.send(bob, "x", ("drop", "deliver", "stored"), id="")
    read = await a.reply("")
    assert (read["error"]["type"], read["error"]["condition"]) == ("modify", "bad-request")


async def test_at_strict_a_stranger_may_only_drop(workshop, gloox):
    """R69, R72: and gloox reads why."""
    server = workshop.server()
    workshop.node(server)
    alice, bob = server.people("alice", "bob", friends=False)
    a, b = await gloox(server, alice), await gloox(server, bob)
    for action in ("alert", "error", "notify"):
        written = (action, "deliver", "direct")
        read = await a.reply(a.send(bob, "x", written))
        assert read["error"]["condition"] == "not-acceptable"
        assert read["error"]["rules"] == [as_dict(written)]
    a.send(bob, "dropped", ("drop", "deliver", "direct"))
    await b.reply(a.send(bob, "the end"))
    assert b.bodies() == ["the end"]


@pytest.mark.parametrize("acks", [True, False], ids=["acks", "no-acks"])
async def test_what_was_stored_comes_in_order_and_once(prosody, node, gloox, clients, acks):
    """O3, O4: with XEP-0198 as gloox speaks it, and without."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    texts = [f'{n}\t"\\<&>' for n in range(120)]
    for text in texts:
        a.send_text(bob, text)
    await all_stored(a, bob)
    b = await gloox(prosody, bob, acks=acks)
    assert await b.body_count(121) == [*texts, "mark"]
    assert all("delay" in read for read in b.messages)
    await b.leave()
    b = await gloox(prosody, bob, "again", acks=acks)
    await b.reply(a.send_text(bob, "live"))
    assert b.bodies() == ["live"]
    assert "delay" not in b.messages[0]


async def test_what_gloox_left_unacknowledged_comes_again(prosody, node, gloox, clients):
    """O3, I1: its process dies; what it had not taken is for the next one."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await gloox(prosody, bob)
    await b.reply(a.send_text(bob, "seen"))
    await b.__aexit__()
    for n in range(10):
        a.send_text(bob, str(n))
    await all_stored(a, bob)
    b = await gloox(prosody, bob)
    await b.reply(a.send_text(bob, "the end"))
    assert b.bodies()[-12:] == [*map(str, range(10)), "mark", "the end"]


async def test_slixmpp_to_gloox_and_back(prosody, node, gloox, clients):
    """Each reads the other's rules and the answers to its own."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await gloox(prosody, bob)
    written = ("notify", "deliver", "direct")
    id = a.send_xml(message(b.jid, "there", payload=amp(rule(*written))))
    read = await b.reply(id)
    assert (read["body"], read["rules"]) == ("there", [as_dict(written)])
    check_addresses(read, f"{alice}/desk", b.jid)
    assert (await a.inbox.reply(id)).status == "notify"

    seen = []
    a.add_event_handler("message", seen.append)
    id = b.send(f"{alice}/desk", "and back", written)
    check_answer(await b.reply(id), written, b.jid, f"{alice}/desk")
    await a.inbox.reply(id)
    await a.ping()
    (came,) = [m for m in seen if m["id"] == id]
    assert came["body"] == "and back" and came["amp"]["from"] == b.jid
    (found,) = came["amp"]["rules"]
    assert (found["action"], found["condition"], found["value"]) == written
