"""Inactive clients (XEP-0352, mod_csi_simple): what they are told at once.

What is the same as without Amphora is in test_unchanged.py. An error and an alert say that a
message did not arrive: at once. A notification waits for the client, as a receipt does.
"""

import pytest

from harness.stanzas import AMP, CSI, amp, message, rule
from harness.waiting import until

NOTIFICATION = amp(rule("notify", "deliver", "stored"))


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module", autouse=True)
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


@pytest.mark.parametrize("action", ["alert", "error"])
async def test_what_did_not_arrive_is_told_at_once(prosody, clients, action):
    """A discarded message: the inactive client is woken."""
    alice, bob = prosody.people("alice", "bob")
    sleeper = await clients.online(prosody, alice, "sleeper", raw=True)
    reader = await clients.online(prosody, bob, "reader", raw=True)
    away = prosody.people("carol")[0]
    prosody.account(away.partition("@")[0], {alice: "both"})
    sleeper.write(
        f"<inactive xmlns='{CSI}'/>"
        + message(away, "x", id="lost", payload=amp(rule(action, "deliver", "stored")))
    )
    got = await sleeper.inbox.reply("lost")
    assert got.status == action
    await reader.ping()


async def test_a_notification_waits(prosody, node, clients):
    """The inactive client hears of it with the next thing that matters, in order."""
    alice, bob = prosody.people("alice", "bob")
    away = prosody.people("carol")[0]
    prosody.account(away.partition("@")[0], {alice: "both"})
    sleeper = await clients.online(prosody, alice, "sleeper", raw=True)
    b = await clients.online(prosody, bob, "desk", raw=True)
    sleeper.write(
        f"<inactive xmlns='{CSI}'/>" + message(away, "x", id="stored", payload=NOTIFICATION)
    )
    await until(lambda: node.stored(away) == 1, "the message is stored")
    # the server has the notification before this, and still holds it back; but ejabberd, which holds
    # back no messages but chat states and those of PubSub
    stored = await other_knows(prosody, clients, away)
    assert stored == ["x"]
    if prosody.kind == "prosody":
        assert sleeper.inbox.with_id("stored") == []
    b.send_text(alice, "important")
    await sleeper.inbox.body_count(1)
    texts = [m.status or m.body for m in sleeper.inbox.messages()]
    assert texts == ["notify", "important"]


@pytest.mark.only("prosody", "mod_client_state of ejabberd has no such option")
async def test_a_server_that_lets_notifications_through(workshop, clients):
    """`csi_important_payloads` is how an operator has it otherwise."""
    server = workshop.server(options={"csi_important_payloads": [f"{{{AMP}}}amp"]})
    workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    a.write(f"<inactive xmlns='{CSI}'/>" + message(bob, "x", id="stored", payload=NOTIFICATION))
    assert (await a.inbox.reply("stored")).status == "notify"


async def other_knows(prosody, clients, jid):
    """The owner comes and reads: what is stored has been decided, and its notice routed."""
    client = await clients.online(prosody, jid, "phone", raw=True)
    texts = await client.inbox.body_count(1)
    await client.ping()
    return texts
