"""Sessions that end badly, sleep, come back, or have a second one beside them.

Invariants I1, I2; rows are deleted only when the client has acknowledged (XEP-0198), or,
without stream management, when they were written to its stream.
"""

import pytest

from harness.stanzas import amp, message, parse_utc, rule, utc
from harness.steps import all_stored


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server that gives up a sleeping session after two seconds."""
    return workshop.server(hibernation=2)


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


@pytest.fixture(scope="module")
def patient(workshop):
    """A server that keeps sleeping sessions for the whole test, and its node."""
    server = workshop.server(hibernation=300)
    workshop.node(server)
    return server


async def store(prosody, clients, count):
    """Alice writes `count` messages to Bob, who is away: (client, alice, bob)."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(count - 1):
        a.send_text(bob, str(n))
    await all_stored(a, bob, str(count - 1))
    return a, alice, bob


def errors(client):
    """The errors that a client got."""
    return [m for m in client.inbox.messages() if m.type == "error"]


def count_before(client, body):
    """How many stanzas the client had taken up to and including that message."""
    for number, stanza in enumerate(client.inbox.all, 1):
        if stanza.body == body:
            return number
    raise AssertionError(f"{body} never came")


async def acknowledge_through(client, body):
    """Acknowledge everything up to that message and nothing after it."""
    bind = 1  # the answer to the bind is before stream management and does not count
    client.acknowledge(count_before(client, body) - bind)
    await client.ping()


async def test_stored_ones_that_were_not_acknowledged_come_again(prosody, node, clients):
    """Exactly the unacknowledged ones, in order, with the first stamp, and no bounce."""
    a, alice, bob = await store(prosody, clients, 10)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(10)
    stamps = {m.body: m.delays[0].get("stamp") for m in b.inbox.messages()}
    await acknowledge_through(b, "3")
    await b.vanish()

    again = await clients.online(prosody, bob, "tablet")
    await again.inbox.body_count(6)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["4", "5", "6", "7", "8", "9", "end"]
    for m in again.inbox.messages()[:-1]:
        assert [d.get("stamp") for d in m.delays] == [stamps[m.body]]
    await a.ping()
    assert errors(a) == []


async def test_live_ones_that_were_not_acknowledged_are_kept(prosody, node, clients):
    """A live message that no session acknowledged is stored, and comes with its first time."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.reply(a.send_text(bob, "first"))
    for n in range(10):
        a.send_text(bob, str(n))
    await b.inbox.body_count(11)
    await acknowledge_through(b, "3")
    await b.vanish()
    ended = parse_utc(utc(1))

    again = await clients.online(prosody, bob, "tablet")
    await again.inbox.body_count(6)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["4", "5", "6", "7", "8", "9", "end"]
    for m in again.inbox.messages()[:-1]:
        assert len(m.delays) == 1
        assert parse_utc(m.delays[0].get("stamp")) <= ended
    await a.ping()
    assert errors(a) == [], "a bounce although it was kept"


async def test_without_stream_management_written_is_taken(prosody, node, clients):
    """What was read comes once; the session ends without a goodbye."""
    a, alice, bob = await store(prosody, clients, 20)
    b = await clients.online(prosody, bob, raw=True)
    assert await b.inbox.body_count(20) == [str(n) for n in range(20)]
    await b.ping()
    await b.vanish()
    again = await clients.online(prosody, bob)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["end"]


async def test_more_than_the_servers_queue(prosody, node, clients):
    """700 stored ones to a client that acknowledges nothing: it can still come back for all."""
    a, alice, bob = await store(prosody, clients, 700)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(50)
    await b.ping()
    assert len(b.inbox.bodies()) < 500, "more than the server can resume"
    await b.vanish()
    again = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    await again.inbox.body_count(700, seconds=60)
    assert again.inbox.bodies() == [str(n) for n in range(700)]


async def test_resumption(patient, clients):
    """A client that resumes gets from the server what it had not acknowledged, once."""
    a, alice, bob = await store(patient, clients, 10)
    b = await clients.online(patient, bob, raw=True, sm=True)
    await b.inbox.body_count(10)
    b.handled = count_before(b, "3") - 1
    await b.vanish()
    a.send_text(bob, "while it slept")
    await a.ping()
    back = await clients.raw(patient, bob, acks=True).resume(b)
    await back.inbox.body_count(7)
    back.acknowledge(back.handled)
    await back.inbox.reply(a.send_text(bob, "end"))
    back.acknowledge(back.handled)
    assert back.inbox.bodies() == ["4", "5", "6", "7", "8", "9", "while it slept", "end"]
    await back.ping()
    await back.leave()
    again = await clients.online(patient, bob, "tablet")
    await again.inbox.reply(a.send_text(bob, "the end"))
    assert again.inbox.bodies() == ["the end"], "what was acknowledged came again"


async def test_a_second_session_while_the_first_sleeps(patient, clients):
    """Live messages reach the one that is awake at once, and only once."""
    alice, bob = patient.people("alice", "bob")
    a = await clients.online(patient, alice, "desk")
    phone = await clients.online(patient, bob, "phone", raw=True, sm=True)
    await phone.inbox.reply(a.send_text(bob, "both awake"))
    phone.acknowledge(phone.handled)
    await phone.ping()
    await phone.vanish()
    tablet = await clients.online(patient, bob, "tablet")
    for n in range(5):
        a.send_text(bob, str(n))
    assert await tablet.inbox.body_count(5) == ["0", "1", "2", "3", "4"]
    await a.ping()
    assert errors(a) == []


async def test_the_sleeping_one_ends_and_the_other_has_them(prosody, node, clients):
    """I2: a message that both sessions got does not come back because one of them ended."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    for n in range(5):
        a.send_text(bob, str(n))
    await phone.inbox.body_count(5)
    await tablet.inbox.body_count(5)
    await phone.vanish()
    # the end of the phone's session reaches the tablet as its unavailable presence
    await tablet.inbox.until(
        lambda box: any(
            s.name == "presence" and s.type == "unavailable" and s.sender == f"{bob}/phone"
            for s in box.all
        ),
        "the end of the sleeping session",
    )
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == ["0", "1", "2", "3", "4", "end"]
    await a.ping()
    assert errors(a) == []


async def test_what_one_left_goes_to_the_other(prosody, node, clients):
    """Stored ones that a session took and left go to a second one that is there already."""
    a, alice, bob = await store(prosody, clients, 5)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(5)
    await phone.vanish()
    tablet = await clients.online(prosody, bob, "tablet")
    await tablet.inbox.body_count(5)
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == ["0", "1", "2", "3", "4", "end"]


async def test_stored_and_live_ones_left_together(prosody, node, clients):
    """I3: what was stored comes before what came live, when a session leaves both to another."""
    a, alice, bob = await store(prosody, clients, 5)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(5)
    for n in range(5, 10):
        a.send_text(bob, str(n))
    await phone.inbox.body_count(10)
    await phone.vanish()
    tablet = await clients.online(prosody, bob, "tablet")
    await tablet.inbox.body_count(10)
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == [str(n) for n in range(10)] + ["end"]
    await a.ping()
    assert errors(a) == []


async def test_rules_see_a_sleeping_session_as_present(patient, clients):
    """A sleeping session is one that can take it: the message goes there, and is not stored."""
    alice, bob = patient.people("alice", "bob")
    a = await clients.online(patient, alice, "desk")
    b = await clients.online(patient, bob, raw=True, sm=True)
    await b.inbox.reply(a.send_text(bob, "awake"))
    b.acknowledge(b.handled)
    await b.ping()
    await b.vanish()
    id = a.send_xml(message(bob, "x", payload=amp(rule("error", "deliver", "stored"))))
    mark = a.send_xml(message(bob, "y", payload=amp(rule("notify", "match-resource", "any"))))
    await a.inbox.reply(mark)
    assert a.inbox.with_id(id) == []
    back = await clients.raw(patient, bob, acks=True).resume(b)
    assert await back.inbox.body_count(2) == ["x", "y"]


async def test_vanishing_again_and_again(prosody, node, clients):
    """Ten rounds of taking a few and dying: every message arrives, acknowledged ones once."""
    a, alice, bob = await store(prosody, clients, 40)
    taken = []
    for round in range(8):
        b = await clients.online(prosody, bob, f"r{round}", raw=True, sm=True)
        left = 40 - len(taken)
        got = await b.inbox.body_count(left)
        assert got == [str(n) for n in range(len(taken), 40)], f"round {round}"
        await acknowledge_through(b, got[4])
        taken += got[:5]
        await b.vanish()
    assert taken == [str(n) for n in range(40)]
    last = await clients.online(prosody, bob, "last")
    await last.inbox.reply(a.send_text(bob, "end"))
    assert last.inbox.bodies() == ["end"]


async def test_a_delay_that_claims_to_be_the_servers_own_writes_nothing_on_the_link(
    prosody, node, clients
):
    """I7, D6: what comes back undelivered carries the server's own stamp, which a sender can
    forge. It is a time or nothing: neither markup in it nor a line break reaches node or spool."""
    alice, bob, victim = prosody.people("alice", "bob", "victim")
    a = await clients.online(prosody, alice, "desk", raw=True)
    a.send_text(victim, "precious")
    await all_stored(a, victim, "kept")
    b = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    host = bob.partition("@")[2]
    removal = (
        f"x'/></forwarded></intercept></message><iq type='set' id='1' from='{host}' to='amp.{host}'>"
        f"<account-removed xmlns='urn:amphora:intercept:1' jid='{victim}'/></iq><message><a b='"
    )
    for number, stamp in enumerate(["'", removal, "x\ny", "<"]):
        quoted = "".join(f"&#{ord(c)};" for c in stamp)
        delay = f"<delay xmlns='urn:xmpp:delay' from='{bob}' stamp='{quoted}'/>"
        hint = "<no-store xmlns='urn:xmpp:hints'/>" if number % 2 else ""
        a.write(message(bob, f"forged {number}", payload=hint + delay))
    a.send_text(bob, "last")
    await b.inbox.body_count(5)
    await b.vanish()
    again = await clients.online(prosody, bob, "desk")
    await again.inbox.until(lambda box: "last" in box.bodies(), "what was not acknowledged")
    v = await clients.online(prosody, victim, "desk")
    await v.inbox.body_count(2)
    assert v.inbox.bodies() == ["precious", "kept"]
    a.send_text(victim, "live")
    await v.inbox.body_count(3)
    assert "link down" not in node.output()
