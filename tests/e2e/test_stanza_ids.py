"""Stable stanza ids (XEP-0359): by them a client knows again what comes to it twice."""

import asyncio

import pytest

from harness.archive import archive_nothing, read_archive
from harness.stanzas import HINTS, STANZA_ID, amp, message, rule
from harness.steps import all_stored
from harness.waiting import until

NO_PERMANENT_STORE = f"<no-permanent-store xmlns='{HINTS}'/>"


@pytest.fixture(params=["archive", "no archive"])
def prosody(workshop, request):
    """A server with an archive, and one without."""
    archive = "always" if request.param == "archive" else None
    return workshop.server(hibernation=1, archive=archive)


@pytest.fixture
def node(workshop, prosody):
    """A node of its own for each test."""
    return workshop.node(prosody)


def forged(by):
    """A stanza id that only the recipient's server may set."""
    return f"<stanza-id xmlns='{STANZA_ID}' by='{by}' id='forged'/>"


async def store_all_kinds(prosody, clients):
    """Alice writes to Bob, who is away, in every way that matters for the id."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    twice = forged(bob.upper()) + forged(bob)
    a.send_text(bob, "plain")
    a.send_xml(message(bob, "not archived", payload=NO_PERMANENT_STORE))
    a.send_xml(message(bob, "forged", payload=forged(bob) + NO_PERMANENT_STORE))
    a.send_xml(message(bob, "forged twice", payload=twice + NO_PERMANENT_STORE))
    a.send_xml(message(bob, "forged, archived", payload=forged(bob)))
    a.send_xml(message(bob, "another's", payload=forged("someone@else.example")))
    rules = amp(rule("drop", "deliver", "direct"))
    a.send_xml(message(bob, "rules", payload=rules))
    payload = rules + NO_PERMANENT_STORE + forged(bob)
    a.send_xml(message(bob, "rules, not archived", payload=payload))
    a.send_xml(message(bob, None, payload="<received xmlns='urn:xmpp:receipts' id='r'/>"))
    await all_stored(a, bob)
    return a, alice, bob


COUNT = 10


async def ids(client, jid, count=COUNT):
    """The stanza ids of the stored messages, in order; each has exactly one by its account."""
    await client.inbox.until(lambda box: len(box.messages()) >= count, f"{count} messages")
    found = [m.stanza_id(jid) for m in client.inbox.messages()[:count]]
    assert all(found), client.inbox.summary()
    assert "forged" not in found and len(set(found)) == count
    spellings = [
        e for m in client.inbox.messages() for e in m.element.findall(f"{{{STANZA_ID}}}stanza-id")
        if e.get("by").lower() == jid
    ]
    assert len(spellings) == count, "a forged one in another spelling"
    return found


async def test_the_same_each_time_it_comes(prosody, node, clients):
    """The client vanishes three times; between them the node is killed, and the server."""
    a, alice, bob = await store_all_kinds(prosody, clients)
    rounds = []
    for disturb in (None, node, prosody):
        b = await clients.online(prosody, bob, raw=True, sm=True)
        rounds.append(await ids(b, bob))
        if disturb:
            disturb.kill()
        await b.vanish()
        if disturb:
            await asyncio.to_thread(disturb.start)
            await until(lambda: node.http_status("/readyz") == 200, "the link")
    last = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    rounds.append(await ids(last, bob))
    assert rounds == [rounds[0]] * 4
    others = [m for m in last.inbox.messages() if m.body == "another's"]
    assert others[0].stanza_id("someone@else.example") == "forged", "not ours to remove"


@pytest.mark.parametrize("prosody", ["archive"], indirect=True)
async def test_the_archives_id_where_there_is_one(prosody, node, clients):
    """What is archived bears the id that it has in the archive, however it comes."""
    a, alice, bob = await store_all_kinds(prosody, clients)
    b = await clients.online(prosody, bob, raw=True)
    await ids(b, bob)
    came = {m.body: m.stanza_id(bob) for m in b.inbox.messages()}
    archive = {m.body: id for id, m in await read_archive(b)}
    assert {body: came[body] for body in archive} == archive
    not_archived = {"not archived", "forged", "forged twice", "rules, not archived"}
    if prosody.kind == "ejabberd":
        not_archived.add(None)  # its archive takes nothing without a body, such as a receipt
    assert set(came) - set(archive) == not_archived


async def test_a_live_one_that_comes_again(prosody, node, clients):
    """One that was delivered live with rules, or from the offline stage, keeps the id."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    rules = amp(rule("drop", "deliver", "stored"))
    id = a.send_xml(message(bob, "rules", payload=rules))
    first = await b.inbox.reply(id)
    await b.vanish()
    await until(lambda: node.stored(bob) == 1, "it comes back")
    b = await clients.online(prosody, bob, raw=True, sm=True)
    second = await b.inbox.reply(id)
    await b.vanish()
    b = await clients.online(prosody, bob, "tablet", raw=True, sm=True)
    third = await b.inbox.reply(id)
    assert first.stanza_id(bob) == second.stanza_id(bob) == third.stanza_id(bob) is not None


async def test_an_id_of_ours_is_no_archive(workshop, clients):
    """I1: what has an id of ours was not archived. A client that reads its archive first, and
    left such a message unacknowledged, gets it again, with that id."""
    options = {"amphora_gate_limit": 0.2, "amphora_hold": 600}
    server = workshop.server(hibernation=1, options=options)
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    b = await clients.login(server, bob, raw=True)
    await archive_nothing(b)
    await b.leave()
    a = await clients.online(server, alice, "desk", raw=True)
    node.stop()
    held = a.send_text(bob, "held")
    await a.ping()
    b = await clients.online(server, bob, raw=True, sm=True)
    # without a node the gate opens in time, and what was held is written when one is back
    await b.inbox.reply(b.send_text(f"{bob}/phone", "live"))
    await asyncio.to_thread(node.start)
    first = await b.inbox.reply(held)
    assert first.stanza_id(bob) and not first.delays, "not by way of the store"
    await b.vanish()
    await until(lambda: node.stored(bob) == 2, "it is kept")
    again = await clients.login(server, bob, "tablet", raw=True)
    assert await read_archive(again) == []
    await again.available()
    assert await again.inbox.body_count(2) == ["live", "held"]
    assert (await again.inbox.reply(held)).stanza_id(bob) == first.stanza_id(bob)
