"""Accounts that go, people who are blocked, and copies for other resources."""

import sqlite3

import pytest

from harness.stanzas import CARBONS, amp, message, rule
from harness.steps import all_stored
from harness.waiting import until


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """The node."""
    return workshop.node(prosody)


def rows(node, jid):
    """How many messages the database holds for somebody, read from outside."""
    with sqlite3.connect(f"file:{node.database}?mode=ro", uri=True, timeout=5) as database:
        query = "select count(*) from offline_message where recipient = ?"
        found = database.execute(query, (jid.encode(),)).fetchone()[0]
        return found or database.execute(query, (jid,)).fetchone()[0]


async def test_account_removed(prosody, node, clients):
    """What was kept for an account goes with it: the next owner of the name gets nothing."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(5):
        a.send_text(bob, str(n))
    await a.inbox.reply(
        a.send_xml(message(bob, "5", payload=amp(rule("notify", "deliver", "stored"))))
    )
    assert rows(node, bob) == 6
    b = await clients.login(prosody, bob, raw=True)
    b.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
    await until(lambda: rows(node, bob) == 0, "the rows to be deleted")
    prosody.account(bob.partition("@")[0], {alice: "both"})
    again = await clients.online(prosody, bob, "new")
    await again.inbox.reply(a.send_text(bob, "to the new owner"))
    assert again.inbox.bodies() == ["to the new owner"]


async def test_account_removed_while_no_node_is_there(prosody, node, clients):
    """The removal is kept until a node has carried it out."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    await a.inbox.reply(
        a.send_xml(message(bob, "old", payload=amp(rule("notify", "deliver", "stored"))))
    )
    node.stop()
    a.send_text(bob, "held")
    await a.ping()
    b = await clients.login(prosody, bob, raw=True)
    b.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
    await until(lambda: b.closed.is_set(), "the end of the session")
    prosody.account(bob.partition("@")[0], {alice: "both"})
    node.start()
    await until(lambda: rows(node, bob) == 0, "the rows to be deleted")
    again = await clients.online(prosody, bob, "new")
    await again.inbox.reply(a.send_text(bob, "to the new owner"))
    assert again.inbox.bodies() == ["to the new owner"]


async def test_blocked_by_now(prosody, node, clients):
    """Stored ones from someone who is blocked by now are dropped in silence."""
    alice, carol, bob = prosody.people("alice", "carol", "bob")
    a = await clients.online(prosody, alice, "desk")
    c = await clients.online(prosody, carol, "desk")
    for n in range(2):
        a.send_text(bob, f"alice {n}")
        c.send_text(bob, f"carol {n}")
    await all_stored(a, bob, "alice 2")
    await all_stored(c, bob, "carol 2")
    b = await clients.login(prosody, bob, raw=True)
    await b.iq(f"<block xmlns='urn:xmpp:blocking'><item jid='{alice}'/></block>", type="set")
    await b.available()
    await b.inbox.reply(c.send_text(bob, "end"))
    assert b.inbox.bodies() == ["carol 0", "carol 1", "carol 2", "end"]
    await a.ping()
    assert [m for m in a.inbox.messages() if m.type == "error"] == [], "it tells of the block"
    await until(lambda: rows(node, bob) == 0, "all of them to be taken")


async def test_a_blocked_sender(prosody, node, clients):
    """The server's own block list goes before offline storage: nothing is kept."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.login(prosody, bob, raw=True)
    await b.iq(f"<block xmlns='urn:xmpp:blocking'><item jid='{alice}'/></block>", type="set")
    id = a.send_text(bob, "x")
    error = await a.inbox.reply(id)
    assert error.condition == "service-unavailable"
    assert rows(node, bob) == 0


async def test_carbons(prosody, node, clients):
    """A message with rules that is let go on reaches the other resource as a carbon, once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    phone = await clients.online(prosody, bob, "phone", priority=5, raw=True)
    tablet = await clients.online(prosody, bob, "tablet", priority=1, raw=True)
    for client in (phone, tablet):
        await client.iq(f"<enable xmlns='{CARBONS}'/>", type="set")
    wanted = amp(rule("notify", "deliver", "direct"))
    id = a.send_xml(message(f"{bob}/phone", "x", payload=wanted))
    dropped = a.send_xml(
        message(f"{bob}/phone", "no", payload=amp(rule("alert", "deliver", "direct")))
    )
    await a.inbox.reply(id)
    await a.inbox.reply(dropped)
    await phone.inbox.reply(id)
    copies = await tablet.inbox.until(
        lambda box: [s.carbon for s in box.all if s.name == "message" and s.carbon], "a carbon"
    )
    await tablet.ping()
    copies = [s.carbon for s in tablet.inbox.all if s.name == "message" and s.carbon]
    assert [c.body for c in copies] == ["x"], "only what was delivered is copied"
