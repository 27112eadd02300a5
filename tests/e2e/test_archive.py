"""Clients that use the archive (XEP-0313): what they are handed, what is deleted, and when.

Section 3 of the intercept protocol: what is archived and older than the client's reading of
its archive is deleted as the client becomes available; the rest is handed over.
"""

import asyncio
import signal

import pytest

from harness.archive import archive_nothing, archived_bodies, read_archive
from harness.prosody import HOST
from harness.stanzas import HINTS, amp, message, rule
from harness.steps import all_stored
from harness.waiting import until

NO_PERMANENT_STORE = f"<no-permanent-store xmlns='{HINTS}'/>"


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server that gives up a sleeping session after a second."""
    return workshop.server(hibernation=1)


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


async def store(prosody, clients, *texts):
    """Alice writes to Bob, who is away. Texts with a star are not archived."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    for text in texts:
        a.send_xml(message(bob, text, payload=NO_PERMANENT_STORE if "*" in text else ""))
    await all_stored(a, bob)
    return a, alice, bob


async def with_archive(clients, prosody, jid, resource="phone", **settings):
    """A client that reads its archive and then becomes available; what it found."""
    client = await clients.login(prosody, jid, resource, raw=True, **settings)
    found = await archived_bodies(client)
    return await client.available(), found


async def test_the_archive_read_first(prosody, node, clients):
    """What is archived is read there and deleted here, and not handed over."""
    a, alice, bob = await store(prosody, clients, "1", "2")
    b, found = await with_archive(clients, prosody, bob)
    assert found == ["1", "2", "mark"]
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["live"]
    await until(lambda: node.stored(bob) == 0, "the rows are deleted")


async def test_what_the_archive_lacks_comes_all_the_same(prosody, node, clients):
    """H2: a client that always reads its archive first gets what never got there, and only that."""
    a, alice, bob = await store(prosody, clients, "1", "2*", "3", "4*")
    b, found = await with_archive(clients, prosody, bob)
    assert found == ["1", "3", "mark"]
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["2*", "4*", "live"]
    await until(lambda: node.stored(bob) == 0, "nothing stays behind")


async def test_the_archive_read_afterwards(prosody, node, clients):
    """Who becomes available first is handed everything, however soon he asks for the archive."""
    a, alice, bob = await store(prosody, clients, "1", "2*")
    b = await clients.login(prosody, bob, raw=True)
    b.write("<presence/>")
    assert await archived_bodies(b) == ["1", "mark"]
    assert await b.inbox.body_count(3) == ["1", "2*", "mark"]
    await until(lambda: node.stored(bob) == 0, "nothing stays behind")


async def test_one_that_comes_after_the_reading(prosody, node, clients):
    """Between the reading and the presence: it was not in the archive yet, and is handed over."""
    a, alice, bob = await store(prosody, clients, "1")
    b = await clients.login(prosody, bob, raw=True)
    assert await archived_bodies(b) == ["1", "mark"]
    await all_stored(a, bob, "2")
    await b.available()
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["2", "live"]


async def test_a_session_that_read_the_archive_loses_nothing_later(workshop, clients):
    """I1: what overflows the gate of such a client is archived and stored, and comes."""
    server = workshop.server(options={"amphora_gate_messages": 5, "amphora_session_window": 4})
    workshop.node(server)
    a, alice, bob = await store(server, clients, *(f"{n}*" for n in range(9)))
    b, _ = await with_archive(clients, server, bob, sm=True)
    await b.inbox.body_count(4)
    live = [f"live {n}" for n in range(17)]
    for text in live:
        a.send_text(bob, text)
    await a.ping()
    # while they wait it looks at old messages
    await read_archive(b)
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [f"{n}*" for n in range(9)] + live + ["end"]


async def test_away_and_back_in_one_session(prosody, node, clients):
    """What came while it was unavailable is handed over: it has not looked again."""
    a, alice, bob = await store(prosody, clients, "1")
    b, _ = await with_archive(clients, prosody, bob)
    await b.inbox.reply(a.send_text(bob, "2"))
    b.write("<presence type='unavailable'/>")
    await b.ping()
    await all_stored(a, bob, "3")
    await b.available()
    await b.inbox.reply(a.send_text(bob, "4"))
    assert b.inbox.bodies() == ["2", "3", "4"]


async def test_what_it_did_not_acknowledge(prosody, node, clients):
    """A live one that such a client left is in the archive: the next reads it there, once."""
    a, alice, bob = await store(prosody, clients, "1")
    b, _ = await with_archive(clients, prosody, bob, sm=True)
    await b.inbox.reply(a.send_text(bob, "left"))
    await b.vanish()
    await until(lambda: node.stored(bob) == 1, "it comes back")
    again, found = await with_archive(clients, prosody, bob, "tablet")
    assert found == ["1", "mark", "left"]
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["end"]


async def test_a_second_client_without_the_archive(prosody, node, clients):
    """Beside the first it gets what is live. What the first found in the archive is taken (O3)."""
    a, alice, bob = await store(prosody, clients, "1", "2*")
    first, _ = await with_archive(clients, prosody, bob)
    assert await first.inbox.body_count(1) == ["2*"]
    second = await clients.online(prosody, bob, "old", raw=True)
    await second.inbox.reply(a.send_text(bob, "live"))
    assert second.inbox.bodies() == ["live"]
    await first.inbox.body_count(2)
    assert first.inbox.bodies() == ["2*", "live"]


async def test_the_client_without_the_archive_comes_first(prosody, node, clients):
    """It is handed everything; the other reads the archive and is handed nothing."""
    a, alice, bob = await store(prosody, clients, "1", "2")
    old = await clients.online(prosody, bob, "old", raw=True)
    assert await old.inbox.body_count(3) == ["1", "2", "mark"]
    new, found = await with_archive(clients, prosody, bob, "new")
    assert found == ["1", "2", "mark"]
    await new.inbox.reply(a.send_text(bob, "live"))
    assert new.inbox.bodies() == ["live"]


async def test_the_reading_of_another_session(prosody, node, clients):
    """The reading of one session says nothing about another's."""
    a, alice, bob = await store(prosody, clients, "1")
    reader = await clients.login(prosody, bob, "reader", raw=True)
    await read_archive(reader)
    b = await clients.online(prosody, bob, "phone", raw=True)
    assert await b.inbox.body_count(2) == ["1", "mark"]


async def test_archived_ones_do_not_pile_up_against_the_quota(workshop, clients):
    """O2: each coming of a client that reads its archive makes room."""
    server = workshop.server()
    limited = workshop.node(server, per_user=3)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    for round in range(3):
        ids = [a.send_text(bob, f"{round}.{n}") for n in range(3)]
        await until(lambda: limited.stored(bob) == 3, "three are stored")
        refused = a.send_text(bob, "too much")
        error = await a.inbox.reply(refused)
        assert error.condition == "service-unavailable"
        assert all(a.inbox.with_id(id) == [] for id in ids)
        b, _ = await with_archive(clients, server, bob)
        await b.inbox.reply(a.send_text(bob, f"live {round}"))
        assert b.inbox.bodies() == [f"live {round}"]
        await until(lambda: limited.stored(bob) == 0, "they make room")
        await b.leave()


async def test_rules_and_the_archive(prosody, node, clients):
    """What a rule drops is not in the recipient's archive; what it lets pass is there once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    a.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "stored"))))
    a.send_xml(message(bob, "alerted", payload=amp(rule("alert", "deliver", "stored"))))
    a.send_xml(message(bob, "refused", payload=amp(rule("error", "match-resource", "any"))))
    a.send_xml(message(bob, "stored", payload=amp(rule("drop", "deliver", "direct"))))
    await all_stored(a, bob)
    b = await clients.online(prosody, bob, raw=True)
    await b.inbox.body_count(2)
    a.send_xml(message(bob, "too direct", payload=amp(rule("drop", "deliver", "direct"))))
    a.send_xml(message(bob, "live", payload=amp(rule("drop", "deliver", "stored"))))
    await b.inbox.body_count(3)
    assert await archived_bodies(b) == ["stored", "mark", "live"]
    # the sender's own archive has all that he sent, as ever
    mine = [text for text in await archived_bodies(a) if text is not None]
    assert mine == [
        "dropped", "alerted", "refused", "stored", "mark", "too direct", "live",
    ]


async def test_read_while_rules_are_undecided(workshop, clients):
    """The archive gets a message with rules after the verdict: who read it before is handed it."""
    server = workshop.server()
    node = workshop.node(server)
    a, alice, bob = await store(server, clients, "1")
    node.process.signal(signal.SIGSTOP)  # the link is up, and nobody answers
    a.send_xml(message(bob, "with rules", payload=amp(rule("drop", "deliver", "direct"))))
    await a.ping()
    b = await clients.login(server, bob, raw=True)
    assert await archived_bodies(b) == ["1", "mark"]
    node.process.signal(signal.SIGCONT)
    await until(lambda: node.stored(bob) == 3, "it is stored")
    await b.available()
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["with rules", "live"]


async def test_what_the_servers_own_storage_held(workshop, clients):
    """Stock Prosody never hands archived messages to who reads the archive, and keeps them for
    ever: when they are taken over, they do not flood him either. The others come."""
    server = workshop.server(module=False)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    a.send_text(bob, "archived")
    a.send_xml(message(bob, "not archived", payload=NO_PERMANENT_STORE))
    await a.ping()
    assert server.stored_offline(bob.partition("@")[0]) == 2
    server.stop()
    server.module = True
    await asyncio.to_thread(server.start)
    node = workshop.node(server)
    await until(lambda: node.stored(bob) == 2, "they moved")
    b, found = await with_archive(clients, server, bob)
    assert found == ["archived"]
    a = await clients.online(server, alice, "desk", raw=True)
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies() == ["not archived", "live"]


async def test_an_archive_that_takes_nothing(prosody, node, clients):
    """Preferences `never`: all of it is handed over, though the client asked for the archive."""
    alice, bob = prosody.people("alice", "bob")
    b = await clients.login(prosody, bob, raw=True)
    await archive_nothing(b)
    await b.leave()
    a = await clients.online(prosody, alice, "desk", raw=True)
    a.send_text(bob, "1")
    await all_stored(a, bob)
    b, found = await with_archive(clients, prosody, bob)
    assert found == []
    assert await b.inbox.body_count(2) == ["1", "mark"]
    assert all(m.delays[0].get("from") == HOST for m in b.inbox.messages()), "D3"
