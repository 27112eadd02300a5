"""Several devices of one user: who gets what is stored, what is live, and in which order.

docs/devices.md is the table of these situations; each test here proves a line of it. What one
session does alone is in test_sessions.py. Stored texts are numbers here, live ones have a name.
"""

import asyncio

import pytest

from harness.stanzas import CARBONS, amp, message, rule
from harness.steps import all_stored
from harness.waiting import until


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server that keeps sleeping sessions for the whole test, with a small window."""
    return workshop.server(options={"amphora_session_window": 20})


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


@pytest.fixture(scope="module")
def hasty(workshop):
    """A server that gives up a sleeping session after a second."""
    return workshop.server(hibernation=1, options={"amphora_session_window": 20})


@pytest.fixture(scope="module")
def its_node(workshop, hasty):
    """The node of that one."""
    return workshop.node(hasty)


def numbers(first, last):
    """What was stored: these texts."""
    return [str(n) for n in range(first, last)]


async def store(server, clients, count):
    """Alice writes `count` messages to Bob, who is away."""
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    for text in numbers(0, count - 1):
        a.send_text(bob, text)
    await all_stored(a, bob, str(count - 1))
    return a, bob


def acknowledge_all(client):
    """From now on the client acknowledges whatever comes, and what came."""
    client.acks = True
    client.acknowledge(client.handled)


async def test_two_at_the_same_time(prosody, node, clients):
    """Equal priority: the one announced first gets all that is stored, and both what is live."""
    a, bob = await store(prosody, clients, 130)
    both = [await clients.login(prosody, bob, r, raw=True, sm=True, acks=True) for r in ("x", "y")]
    for client in both:
        client.write("<presence/>")
    await until(lambda: any(len(c.inbox.bodies()) >= 130 for c in both), "what is stored", 60)
    live = [f"live {n}" for n in range(5)]
    for text in live:
        a.send_text(bob, text)
    for client in both:
        await client.inbox.until(lambda box: live[-1] in box.bodies(), "what is live")
    first, second = sorted((c.inbox.bodies() for c in both), key=len, reverse=True)
    assert first == numbers(0, 130) + live
    assert second == live


async def test_a_higher_priority_comes_amid_a_hand_over(prosody, node, clients):
    """The hand-over goes on to the first; what is live goes to the higher one, at once."""
    a, bob = await store(prosody, clients, 40)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(20)
    tablet = await clients.online(prosody, bob, "tablet", raw=True, priority=5)
    await tablet.inbox.reply(a.send_text(bob, "live"))
    acknowledge_all(phone)
    assert await phone.inbox.body_count(40) == numbers(0, 40)
    await phone.inbox.reply(a.send_text(f"{bob}/phone", "for the phone"))
    await tablet.ping()
    assert phone.inbox.bodies() == numbers(0, 40) + ["for the phone"]
    assert tablet.inbox.bodies() == ["live"]


async def test_a_negative_one_beside_it(prosody, node, clients):
    """O1: one below zero gets what is for itself, nothing stored, nothing for the bare JID."""
    a, bob = await store(prosody, clients, 5)
    low = await clients.online(prosody, bob, "low", raw=True, priority=-1)
    await low.inbox.reply(a.send_text(f"{bob}/low", "for it"))
    phone = await clients.online(prosody, bob, "phone", raw=True)
    await phone.inbox.reply(a.send_text(bob, "live"))
    await low.ping()
    assert phone.inbox.bodies() == numbers(0, 5) + ["live"]
    assert low.inbox.bodies() == ["for it"]


async def test_asleep_alone_amid_its_hand_over(prosody, node, clients):
    """It goes on after the resumption, live ones last; nothing comes twice or not at all."""
    a, bob = await store(prosody, clients, 130)
    b = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await b.inbox.body_count(20)
    await b.vanish()
    live = [f"live {n}" for n in range(5)]
    for text in live:
        a.send_text(bob, text)
    await a.ping()
    back = await clients.raw(prosody, bob, acks=True).resume(b)
    acknowledge_all(back)
    await back.inbox.until(lambda box: live[-1] in box.bodies(), "the last one")
    assert b.inbox.bodies() == numbers(0, 20)
    assert back.inbox.bodies() == numbers(20, 130) + live
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


@pytest.mark.parametrize("count", [10, 130], ids=["few", "many"])
async def test_who_is_awake_does_not_wait_for_who_sleeps(prosody, node, clients, count):
    """A device comes while another sleeps amid its hand-over: it gets all that is not acknowledged,
    then what is live. The sleeper has no more than it had, and what is live, when it wakes."""
    a, bob = await store(prosody, clients, count)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    written = min(count, 20)
    await phone.inbox.body_count(written)
    acknowledged = 3
    await acknowledge_texts(phone, acknowledged)
    await phone.vanish()
    a.send_text(bob, "while it sleeps")
    await a.ping()
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    await tablet.inbox.reply(a.send_text(bob, "live"))
    assert tablet.inbox.bodies() == numbers(acknowledged, count) + ["live"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")
    back = await clients.raw(prosody, bob, acks=True).resume(phone)
    await back.inbox.reply(a.send_text(bob, "end"))
    came = phone.inbox.bodies() + back.inbox.bodies()
    stored = [text for text in came if text.isdigit()]
    assert stored == numbers(0, len(stored)), "in order, none twice"
    assert written <= len(stored) <= written + acknowledged
    assert came == stored + ["while it sleeps", "live", "end"]
    await tablet.inbox.until(lambda box: "end" in box.bodies(), "the end")
    assert tablet.inbox.bodies() == numbers(acknowledged, count) + ["live", "end"]


async def acknowledge_texts(client, count):
    """Acknowledge all up to the text of that number."""
    bodies = [s.body if s.name == "message" else None for s in client.inbox.all]
    client.acknowledge(bodies.index(str(count - 1)))  # the answer to the bind does not count
    await client.ping()


async def test_asleep_beside_one_that_waits(prosody, node, clients):
    """Two are there, and the one that is handed what is stored falls asleep: the other gets it."""
    a, bob = await store(prosody, clients, 130)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(20)
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    a.send_text(bob, "live")
    await a.ping()
    await tablet.ping()
    assert tablet.inbox.bodies() == [], "it waits its turn"
    await phone.vanish()
    await tablet.inbox.until(lambda box: "live" in box.bodies(), "the live one")
    assert tablet.inbox.bodies() == numbers(0, 130) + ["live"]
    await tablet.inbox.reply(a.send_text(bob, "end"))
    back = await clients.raw(prosody, bob, acks=True).resume(phone)
    await back.inbox.until(lambda box: "end" in box.bodies(), "the end")
    assert back.inbox.bodies() == numbers(20, 20) + ["live", "end"]


async def test_the_one_that_is_awake_leaves_again(prosody, node, clients):
    """What it left goes to the one that slept and wakes, before what is newer."""
    a, bob = await store(prosody, clients, 60)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(20)
    await phone.vanish()
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm="once")
    await tablet.inbox.body_count(20)
    await acknowledge_texts(tablet, 10)
    await tablet.vanish()
    a.send_text(bob, "live")
    await a.ping()
    back = await clients.raw(prosody, bob, acks=True).resume(phone)
    acknowledge_all(back)
    await back.inbox.until(lambda box: "live" in box.bodies(), "the live one")
    known = phone.inbox.bodies() + back.inbox.bodies()
    assert sorted(set(known), key=known.index) == known, "something came twice"
    assert known[:20] == numbers(0, 20) and known[-1] == "live"
    assert set(known) | set(tablet.inbox.bodies()[:10]) == {*numbers(0, 60), "live"}
    assert [int(t) for t in known[:-1]] == sorted(int(t) for t in known[:-1])


async def test_asleep_with_a_full_gate_beside_one_that_is_awake(workshop, clients):
    """I6: what overflows the gate of a sleeper is let go where the other has it; once for each."""
    server = workshop.server(options={"amphora_session_window": 20, "amphora_gate_messages": 10})
    node = workshop.node(server)
    a, bob = await store(server, clients, 130)
    phone = await clients.online(server, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(20)
    await phone.vanish()
    tablet = await clients.online(server, bob, "tablet", raw=True, sm=True, acks=True)
    await tablet.inbox.body_count(130)
    live = [f"live {n}" for n in range(35)]
    for text in live:
        a.send_text(bob, text)
    a.send_text(f"{bob}/phone", "for the phone alone")
    await tablet.inbox.until(lambda box: live[-1] in box.bodies(), "what is live")
    back = await clients.raw(server, bob, acks=True).resume(phone)
    await back.inbox.until(lambda box: "for the phone alone" in box.bodies(), "what it has alone")
    await tablet.inbox.reply(a.send_text(bob, "end"))
    await back.inbox.until(lambda box: "end" in box.bodies(), "the end")
    assert tablet.inbox.bodies() == numbers(0, 130) + live + ["end"]
    came = [text for text in back.inbox.bodies() if not text.isdigit()]
    assert came == live[30:] + ["for the phone alone", "end"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_the_first_dies_before_its_hand_over(prosody, node, clients):
    """Announced, and gone at once without a goodbye: the next one gets everything, once."""
    a, bob = await store(prosody, clients, 30)
    for resource in ("x", "y"):
        gone = await clients.login(prosody, bob, resource, raw=True, sm="once")
        gone.write("<presence/>")
        await gone.drain()
        await gone.vanish()
    b = await clients.online(prosody, bob, "phone", raw=True)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == numbers(0, 30) + ["end"]


@pytest.mark.parametrize("there", [True, False], ids=["beside another", "alone"])
async def test_the_first_dies_amid_its_hand_over(prosody, node, clients, there):
    """With XEP-0198: what it acknowledged is taken, the rest goes to the other, in order."""
    a, bob = await store(prosody, clients, 130)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm="once")
    await phone.inbox.body_count(20)
    tablet = await clients.login(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    if there:
        await tablet.available()
    await acknowledge_texts(phone, 12)
    await phone.vanish()
    if not there:
        await tablet.available()
    await tablet.inbox.reply(a.send_text(bob, "end"))
    # the window let a few more out when it acknowledged
    assert tablet.inbox.bodies() == numbers(12, 130) + ["end"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_the_first_dies_amid_its_hand_over_without_xep_0198(prosody, node, clients):
    """What was given to its socket is taken; what waited behind that comes to the other."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    count, filler = 40, "x" * 100_000
    for n in range(count):
        a.send_text(bob, f"{n} {filler}")
        await a.drain()
    await until(lambda: node.stored(bob) == count, "them in the store", 60)
    phone = await clients.login(prosody, bob, "phone", raw=True)
    phone.stop_reading()
    phone.write("<presence/>")
    await until(lambda: node.stored(bob) < count, "the first of them are taken")
    tablet = await clients.online(prosody, bob, "tablet", raw=True)
    await phone.vanish()
    await tablet.inbox.until(lambda box: box.bodies(), "the rest")
    await tablet.inbox.reply(a.send_text(bob, "end"), seconds=60)
    came = [text.partition(" ")[0] for text in tablet.inbox.bodies()]
    first = int(came[0])
    assert 0 < first < count
    assert came == numbers(first, count) + ["end"]


async def test_the_first_dies_after_its_hand_over(prosody, node, clients):
    """All acknowledged, then gone: the other gets none of it."""
    a, bob = await store(prosody, clients, 30)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm="once", acks=True)
    tablet = await clients.online(prosody, bob, "tablet", raw=True)
    assert await phone.inbox.body_count(30) == numbers(0, 30)
    await until(lambda: node.stored(bob) == 0, "all of it is taken")
    await phone.vanish()
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == ["end"]


async def test_resumed_while_the_old_connection_is_there(prosody, node, clients):
    """The client changes the network amid the hand-over: it goes on on the new connection."""
    a, bob = await store(prosody, clients, 130)
    b = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await b.inbox.body_count(20)
    b.handled = [s.body for s in b.inbox.all].index("7") - 1  # the answer to the bind is before it
    back = await clients.raw(prosody, bob, acks=True).resume(b)
    acknowledge_all(back)
    a.send_text(bob, "live")
    await back.inbox.until(lambda box: "live" in box.bodies(), "the live one")
    assert back.inbox.bodies() == numbers(7, 130) + ["live"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_one_that_never_acknowledges(workshop, clients):
    """It gets as much as the window lets out. The other waits for it no longer than the gate limit
    lets it; when the first ends, the rest comes to the other, once."""
    server = workshop.server(options={"amphora_session_window": 20, "amphora_gate_limit": 0.5})
    node = workshop.node(server)
    a, bob = await store(server, clients, 130)
    phone = await clients.online(server, bob, "phone", raw=True, sm="once")
    await phone.inbox.body_count(20)
    tablet = await clients.online(server, bob, "tablet", raw=True, sm=True, acks=True)
    await tablet.inbox.reply(a.send_text(bob, "live"))
    assert tablet.inbox.bodies() == ["live"]
    await phone.ping()
    assert phone.inbox.bodies() == numbers(0, 20)
    await phone.vanish()
    await tablet.inbox.until(lambda box: len(box.bodies()) >= 131, "what the first left", 60)
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == ["live"] + numbers(0, 130) + ["end"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_below_zero_amid_a_hand_over_beside_another(prosody, node, clients):
    """The rest goes to the other; the first, above zero again, gets nothing twice."""
    a, bob = await store(prosody, clients, 130)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(20)
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm=True, acks=True)
    await acknowledge_texts(phone, 5)
    await phone.available(-1)
    await tablet.inbox.until(lambda box: "129" in box.bodies(), "the rest")
    acknowledge_all(phone)
    await phone.available(1)
    await phone.inbox.reply(a.send_text(bob, "live"))
    assert tablet.inbox.bodies() == numbers(5, 130)
    came = phone.inbox.bodies()
    assert came == numbers(0, len(came) - 1) + ["live"]
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_below_zero_amid_a_hand_over_alone(prosody, node, clients):
    """Nobody gets the rest until it rises: then it goes on, and nothing comes twice."""
    a, bob = await store(prosody, clients, 130)
    b = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await b.inbox.body_count(20)
    await b.available(-1)
    a.send_text(bob, "meanwhile")
    await a.ping()
    acknowledge_all(b)
    await b.ping()
    assert b.inbox.bodies() == numbers(0, 20)
    await b.available(3)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == numbers(0, 130) + ["meanwhile", "end"]


async def test_two_full_gates(workshop, clients):
    """I6: both gates overflow. Each message reaches one of the two at least, none of them twice."""
    server = workshop.server(options={"amphora_gate_messages": 5, "amphora_hold": 600})
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    node.stop()
    both = [await clients.online(server, bob, r, raw=True, sm=True, acks=True) for r in ("x", "y")]
    live = [f"live {n:02}" for n in range(23)]
    for text in live:
        a.send_text(bob, text)
    await a.ping()
    await asyncio.to_thread(node.start)

    def came():
        return {text for client in both for text in client.inbox.bodies()}

    await until(lambda: came() == set(live), "all of them")
    await until(lambda: node.stored(bob) == 0, "all of it is taken")
    a.send_text(bob, "end")  # both gates have room for it, or are open
    for client in both:
        await client.inbox.until(lambda box: "end" in box.bodies(), "the end")
    texts = [client.inbox.bodies() for client in both]
    for mine in texts:
        assert mine == sorted(set(mine), key=[*live, "end"].index), "in order, none twice"
    assert came() == {*live, "end"}


async def test_live_ones_that_a_higher_one_left(hasty, its_node, clients):
    """The one of the higher priority dies with live messages: the lower gets them, with a delay."""
    alice, bob = hasty.people("alice", "bob")
    a = await clients.online(hasty, alice, "desk", raw=True)
    high = await clients.online(hasty, bob, "high", raw=True, sm=True, priority=5)
    low = await clients.online(hasty, bob, "low", raw=True, sm=True, acks=True)
    for n in range(5):
        a.send_text(bob, str(n))
    await high.inbox.body_count(5)
    await acknowledge_texts(high, 2)
    await high.vanish()
    assert await low.inbox.body_count(3) == ["2", "3", "4"]
    assert all(len(m.delays) == 1 for m in low.inbox.messages())
    await low.inbox.reply(a.send_text(bob, "end"))
    assert low.inbox.bodies() == ["2", "3", "4", "end"]


async def test_a_copy_is_as_good(hasty, its_node, clients):
    """I2: a message to one device, which dies; the other has a carbon of it and gets no second."""
    alice, bob = hasty.people("alice", "bob")
    a = await clients.online(hasty, alice, "desk", raw=True)
    phone = await clients.online(hasty, bob, "phone", raw=True, sm=True)
    tablet = await clients.online(hasty, bob, "tablet", raw=True, sm=True, acks=True)
    await tablet.iq(f"<enable xmlns='{CARBONS}'/>", type="set")
    await phone.inbox.reply(a.send_text(f"{bob}/phone", "for the phone"))
    await tablet.ping()
    assert [s.carbon.body for s in tablet.inbox.all if s.name == "message"] == ["for the phone"]
    await phone.vanish()
    await tablet.inbox.until(
        lambda box: any(s.name == "presence" and s.type == "unavailable" for s in box.all),
        "the end of the other",
    )
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies() == ["end"]


async def test_what_rules_see_of_several(prosody, node, clients):
    """R33, R40: two of the highest priority are reached together, asleep or not; so it is `other`
    for each of them, and never `stored`."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    tablet = await clients.online(prosody, bob, "tablet", raw=True, sm=True)
    low = await clients.online(prosody, bob, "low", raw=True, priority=-1)
    await phone.vanish()

    async def met(to, *rules):
        reply = await a.inbox.reply(a.send_xml(message(to, "x", payload=amp(*rules))))
        return reply.rules[0]

    stored = rule("alert", "deliver", "stored")
    direct = ("alert", "deliver", "direct")
    exact, other = ("alert", "match-resource", "exact"), ("alert", "match-resource", "other")
    assert await met(bob, stored, rule(*direct)) == direct
    assert await met(bob, rule(*exact), rule(*other)) == other
    assert await met(f"{bob}/phone", rule(*exact), rule(*other)) == exact
    assert await met(f"{bob}/tablet", rule(*exact), rule(*other)) == exact
    assert await met(f"{bob}/low", rule(*exact), rule(*other)) == exact
    assert await met(f"{bob}/gone", rule(*exact), rule(*other)) == other
    for client in (tablet, low):
        await client.ping()
        assert client.inbox.bodies() == []
