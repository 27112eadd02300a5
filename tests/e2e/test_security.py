"""Who may use which rules, and that a refusal tells nothing. R16, R69 to R72; invariant I5."""

import re

import pytest

from harness.prosody import HOST
from harness.replies import check_error, check_refusal, check_reply
from harness.stanzas import STANZA_ID, amp, message, new_id, rule, utc

ACTIONS = ["alert", "error", "notify"]


@pytest.fixture(scope="module")
def strict(workshop):
    """A server whose node is at the default level, strict."""
    server = workshop.server()
    return server, workshop.node(server)


@pytest.fixture(scope="module")
def performance(workshop):
    """A server whose node accepts nothing but drop."""
    server = workshop.server()
    return server, workshop.node(server, security="performance")


async def refusals(sender, address, tag):
    """Send each rule that brings something back; the answers, by action."""
    answers = {}
    for action in ACTIONS:
        for condition, value in [("deliver", "stored"), ("deliver", "direct"), ("expire-at", utc(9))]:
            id = new_id(tag)
            given = rule(action, condition, value)
            sender.send_xml(message(address, "secret", id=id, payload=amp(given)))
            answers[action, condition, value.partition("T")[0]] = await sender.inbox.reply(id)
    return answers


def without_names(stanza, address):
    """A reply with what was in the question, and the archive's id, taken out."""

    def shape(element):
        attributes = {
            name: re.sub(r"^[0-9T:.-]+Z$", "A TIME", value.replace(address, "RECIPIENT"))
            for name, value in element.attrib.items()
            if name != "id"
        }
        children = [shape(c) for c in element if c.tag != f"{{{STANZA_ID}}}stanza-id"]
        return element.tag, sorted(attributes.items()), element.text, children

    return shape(stanza.element)


async def test_a_stranger_learns_nothing(strict, clients):
    """R69, R72, I5: not-acceptable, and the same for every recipient, present or not."""
    server, node = strict
    mallory, online, away, blocking, chatty = server.people(
        "mallory", "online", "away", "blocking", "chatty", friends=False
    )
    # a roster that lets him send presence, but not see any, gives no right
    server.account(chatty.partition("@")[0], {mallory: "to"})
    m = await clients.online(server, mallory, "desk")
    await clients.online(server, online)
    b = await clients.online(server, blocking, raw=True)
    await b.iq(
        f"<block xmlns='urn:xmpp:blocking'><item jid='{mallory}'/></block>", type="set"
    )
    elsewhere = await clients.online(server, chatty, "tablet")
    seen = {}
    addresses = {
        "online": online,
        "online full": f"{online}/phone",
        "online elsewhere": f"{online}/desk",
        "away": away,
        "missing": f"nobody@{HOST}",
        "missing full": f"nobody@{HOST}/x",
        "blocking": blocking,
        "to only": chatty,
    }
    for name, address in addresses.items():
        answers = await refusals(m, address, name.replace(" ", "-"))
        for (action, condition, _), reply in answers.items():
            check_error(reply, "modify", "405", "not-acceptable", id=reply.id, sender=f"{mallory}/desk")
            assert reply.rules and reply.rules[0][:2] == (action, condition)
        seen[name] = [without_names(reply, address) for reply in answers.values()]
    first = seen["away"]
    for name, texts in seen.items():
        assert texts == first, f"{name} is answered otherwise than 'away'"
    assert elsewhere.inbox.bodies() == []


async def test_a_stranger_may_drop(strict, clients):
    """Reading: drop brings nothing back, so everybody may ask for it."""
    server, node = strict
    mallory, bob = server.people("mallory", "bob", friends=False)
    m = await clients.online(server, mallory, "desk")
    m.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "stored"))))
    m.send_xml(message(bob, "kept", payload=amp(rule("drop", "deliver", "direct"))))
    await m.ping()
    b = await clients.online(server, bob)
    await b.inbox.reply(m.send_text(bob, "end"))
    assert b.inbox.bodies() == ["kept", "end"]
    assert [s for s in m.inbox.messages()] == []


@pytest.mark.parametrize("subscription", ["both", "from"])
async def test_who_may_see_the_presence_may_ask(strict, clients, subscription):
    """R72: from the recipient's own stored roster, whatever the sender's says."""
    server, node = strict
    alice, bob = server.people("alice", "bob", friends=False)
    server.account(bob.partition("@")[0], {alice: subscription})
    a = await clients.online(server, alice, "desk")
    wanted = ("alert", "deliver", "stored")
    id = a.send_xml(message(bob, "x", payload=amp(rule(*wanted))))
    check_reply(
        await a.inbox.reply(id), "alert", id=id, sender=f"{alice}/desk", recipient=bob, rule=wanted
    )


@pytest.mark.parametrize("subscription", ["to", "none"])
async def test_the_senders_own_roster_gives_no_right(strict, clients, subscription):
    """R72: what the sender's roster says doesn't count, away or not."""
    server, node = strict
    alice, bob = server.people("alice", "bob", friends=False)
    server.account(alice.partition("@")[0], {bob: "both"})
    server.account(bob.partition("@")[0], {alice: subscription})
    a = await clients.online(server, alice, "desk")
    given = rule("alert", "deliver", "stored")
    reply = await a.inbox.reply(a.send_xml(message(bob, "x", payload=amp(given))))
    assert reply.condition == "not-acceptable"


async def test_ones_own_account_always_may(strict, clients):
    """Reading: to oneself, and among one's own resources."""
    server, node = strict
    (alice,) = server.people("alice")
    desk = await clients.online(server, alice, "desk", priority=-1)
    wanted = ("notify", "deliver", "stored")
    id = desk.send_xml(message(alice, "note", payload=amp(rule(*wanted))))
    check_reply(
        await desk.inbox.reply(id),
        "notify",
        id=id,
        sender=f"{alice}/desk",
        recipient=alice,
        rule=wanted,
    )
    phone = await clients.online(server, alice, "phone")
    assert await phone.inbox.body_count(1) == ["note"]


async def test_performance_accepts_drop_alone(performance, clients):
    """R71: not-acceptable to alert, error and notify, from friends too, whatever the condition."""
    server, node = performance
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk")
    for action in ACTIONS:
        for condition, value in [("deliver", "forward"), ("match-resource", "any")]:
            wanted = (action, condition, value)
            id = a.send_xml(message(bob, "x", payload=amp(rule(*wanted))))
            check_refusal(
                await a.inbox.reply(id),
                "invalid-rules",
                id=id,
                sender=f"{alice}/desk",
                named=[wanted],
                echoed=[wanted],
            )
    a.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "stored"))))
    a.send_xml(message(bob, "kept", payload=amp(rule("drop", "deliver", "none"))))
    await a.ping()
    b = await clients.online(server, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["kept", "end"]


async def test_a_block_holds_for_rules_too(strict, clients):
    """I5: a friend who is blocked has no right, and nothing of his is delivered."""
    server, node = strict
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk")
    b = await clients.online(server, bob, raw=True)
    await b.iq(f"<block xmlns='urn:xmpp:blocking'><item jid='{alice}'/></block>", type="set")
    given = rule("notify", "deliver", "direct")
    reply = await a.inbox.reply(a.send_xml(message(bob, "x", payload=amp(given))))
    assert reply.condition == "not-acceptable"
    await b.ping()
    assert b.inbox.bodies() == []
