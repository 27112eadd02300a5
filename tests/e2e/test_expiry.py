"""Rules whose time comes while the message is stored. R38, R44 to R51, R67; reading on notify."""

import asyncio
import sqlite3

import pytest

from harness.replies import check_reply
from harness.reference import ACTIONS
from harness.stanzas import amp, message, parse_utc, rule, utc
from harness.steps import all_stored
from harness.waiting import until


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


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


async def test_killed_amid_expiries(workshop, clients):
    """I1, I2: a node that is killed amid 200 notices tells each sender once."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    due = amp(rule("alert", "expire-at", utc(4)))
    ids = [a.send_xml(message(bob, "x", payload=due)) for _ in range(200)]
    await all_stored(a, bob)
    told = len(a.inbox.messages())
    await a.inbox.until(lambda box: len(box.messages()) >= told + 20, "the first notices")
    node.kill()
    await asyncio.to_thread(node.start)
    for id in ids:
        reply = await a.inbox.reply(id)
        assert reply.status == "alert"
    await until(lambda: node.rows() == 1, "the expired messages to be deleted")
    await a.ping()
    assert sorted(m.id for m in a.inbox.messages()[told:]) == sorted(ids), "a notice came twice"
    b = await clients.online(server, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["mark", "end"]


async def test_in_a_clients_hands(workshop, clients):
    """What a client has, unacknowledged, does not expire until its session ends; then it does."""
    server = workshop.server(hibernation=1)
    workshop.node(server)
    alice, bob, dave = server.people("alice", "bob", "dave")
    a = await clients.online(server, alice, "desk")
    when = utc(4)
    id = a.send_xml(message(bob, "soon", payload=amp(rule("error", "expire-at", when))))
    await all_stored(a, bob)
    b = await clients.online(server, bob, raw=True, sm=True)
    assert await b.inbox.body_count(2) == ["soon", "mark"]
    # the alert about dave's tells that the time has passed for both
    mark = a.send_xml(message(dave, "x", payload=amp(rule("alert", "expire-at", when))))
    await a.inbox.reply(mark)
    await a.ping()
    assert a.inbox.with_id(id) == [], "it expired while bob had it"
    await b.vanish()
    reply = await a.inbox.reply(id)
    assert reply.status == "error"
    again = await clients.online(server, bob)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["mark", "end"]


async def test_the_server_was_away(workshop, clients):
    """R67: what expired while the node had no server is told as soon as there is one."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    when = utc(3)
    id = a.send_xml(message(bob, "x", payload=amp(rule("error", "expire-at", when))))
    await all_stored(a, bob)
    server.stop()
    await until(lambda: parse_utc(utc()) > parse_utc(when), "its time to pass")
    assert node.rows() == 2, "deleted without a notice"
    await asyncio.to_thread(server.start)
    a = await clients.online(server, alice, "desk", raw=True)
    reply = await a.inbox.reply(id)
    assert reply.status == "error"


async def test_100000_waiting(workshop, clients):
    """R38, R67: with 100,000 others in the store, what is due, and what was due while the node
    was down, is carried out at its time; the others stay."""
    server = workshop.server()
    node = workshop.node(server, start=False)
    alice, bob = server.people("alice", "bob")
    code, said = node.command("migrate", "--config", str(node.config))
    assert code == 0, said
    far = stored_rows("stranger{}@example.org", f"{alice}/desk", "drop", "2099-01-01T00:00:00Z")
    overdue = stored_rows(bob, f"{alice}/desk", "alert", utc(-1), key="over")
    when = utc(12)
    soon = stored_rows(bob, f"{alice}/desk", "error", when, key="soon")
    with sqlite3.connect(node.database) as database:
        statement = f"insert into offline_message values ({','.join('?' * 13)})"
        database.executemany(statement, (far(n) for n in range(100_000)))
        database.executemany(statement, (overdue(n) for n in range(100_000, 100_020)))
        database.executemany(statement, (soon(n) for n in range(100_020, 100_040)))
    a = await clients.online(server, alice, "desk", raw=True)
    await asyncio.to_thread(node.start)
    for n in range(100_000, 100_020):
        assert (await a.inbox.reply(f"over-{n}")).status == "alert"
    fresh = a.send_xml(message(bob, "x", payload=amp(rule("alert", "expire-at", when))))
    for n in range(100_020, 100_040):
        assert (await a.inbox.reply(f"soon-{n}")).status == "error"
        assert parse_utc(utc()) >= parse_utc(when), "a notice came before its time"
    assert (await a.inbox.reply(fresh)).status == "alert"
    await until(lambda: node.rows() == 100_000, "those that expired to be deleted")
    await a.ping()
    assert len(a.inbox.messages()) == 41, "a notice came twice"


def stored_rows(recipient, sender, action, value, key="far"):
    """A maker of rows as the node would have stored them, by number."""
    at = int(parse_utc(value).timestamp() * 1e6)
    rules = amp(rule(action, "expire-at", value))

    def row(n):
        to = recipient.format(n % 1000)
        stanza = (
            f"<message xmlns='jabber:client' from='{sender}' to='{to}' id='{key}-{n}' type='chat'>"
            f"<body>{'It was the best of times. ' * 12}</body>{rules}</message>"
        )
        # recipient, id, key, sender, kind, size, stored_at, appended_at, archived, expires_at,
        # expire_rule, met_rule, stanza
        return to, n + 1, f"{key}-{n}", sender, 1, len(stanza), 0, 0, 0, at, 0, None, stanza.encode()

    return row
