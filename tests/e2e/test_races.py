"""Sessions that come and go while messages stream in. I1, I2, I3.

In ejabberd every session is a process of its own, so what seems to happen at once really does.
"""

import asyncio

import pytest

from harness.steps import all_stored
from harness.waiting import until

SENDERS = 3
EACH = 200


@pytest.fixture(scope="module")
def server(workshop):
    """One with short memories for sessions that are gone."""
    return workshop.server(hibernation=1)


@pytest.fixture(scope="module")
def node(workshop, server):
    """Its node."""
    return workshop.node(server)


async def stream(senders, to, done):
    """Everybody writes, evenly mixed, until all is written."""
    for n in range(EACH):
        for number, sender in enumerate(senders):
            sender.send_text(to, f"{number} {n}")
            await sender.drain()
        await asyncio.sleep(0)
    for sender in senders:
        await sender.ping()
    done.set()


def in_order(texts):
    """The numbers of each sender's texts."""
    found = {}
    for text in texts:
        sender, number = text.split()
        found.setdefault(sender, []).append(int(number))
    return found


def unique(texts):
    """Texts without those that came again, in the order in which they first came."""
    return list(dict.fromkeys(texts))


async def senders_of(server, clients):
    """Bob's JID, and those who write to him."""
    *names, bob = server.people(*(f"sender{n}" for n in range(SENDERS)), "bob")
    return bob, [await clients.online(server, jid, "desk", raw=True) for jid in names]


@pytest.mark.parametrize("sm", [False, True], ids=["no acknowledgements", "acknowledgements"])
async def test_coming_and_going_in_good_order(server, node, clients, sm):
    """I1, I2, I3: each text once, each sender's in order, over all the sessions."""
    bob, senders = await senders_of(server, clients)
    done = asyncio.Event()
    task = asyncio.ensure_future(stream(senders, bob, done))
    got, lives = [], 0
    while not done.is_set() or lives < 3:
        b = await clients.online(server, bob, "phone", raw=True, sm="once" if sm else False, acks=sm)
        before = len(b.inbox.bodies())
        await until(lambda b=b, n=before: done.is_set() or len(b.inbox.bodies()) > n + 20, "some")
        await b.leave()
        got += b.inbox.bodies()
        lives += 1
    await task
    await all_stored(senders[0], bob, "0 9999")
    last = await clients.online(server, bob, "phone", raw=True, sm=sm, acks=sm)
    everything = {"0 9999", *(f"{n} {i}" for n in range(SENDERS) for i in range(EACH))}
    await last.inbox.until(lambda box: everything <= {*got, *box.bodies()}, "all of them")
    got += last.inbox.bodies()
    expected = {str(n): list(range(EACH)) for n in range(SENDERS)}
    expected["0"] = [*range(EACH), 9999]
    if sm:
        # what came while it said goodbye was not acknowledged, and comes again
        found = {sender: sorted(set(numbers)) for sender, numbers in in_order(got).items()}
        assert found == expected
        assert in_order(unique(got)) == expected
    else:
        assert in_order(got) == expected


async def test_sockets_that_die(server, node, clients):
    """I1, I3: with stream management nothing is lost; what was not acknowledged comes again."""
    bob, senders = await senders_of(server, clients)
    done = asyncio.Event()
    task = asyncio.ensure_future(stream(senders, bob, done))
    got = []
    for _ in range(4):
        b = await clients.online(server, bob, "phone", raw=True, sm=True, acks=True)
        await until(lambda b=b: done.is_set() or len(b.inbox.bodies()) > 30, "some")
        await b.vanish()
        got += b.inbox.bodies()
    await task
    # it may still sleep, and be what this is for
    senders[0].send_text(bob, "0 9999")
    await senders[0].ping()
    last = await clients.online(server, bob, "phone", raw=True, sm=True, acks=True)
    everything = {"0 9999"} | {f"{n} {i}" for n in range(SENDERS) for i in range(EACH)}
    await last.inbox.until(lambda box: everything <= {*got, *box.bodies()}, "all of them")
    found = in_order(unique([*got, *last.inbox.bodies()]))
    assert {s: sorted(n) for s, n in found.items()} == {
        **{str(n): list(range(EACH)) for n in range(SENDERS)},
        "0": [*range(EACH), 9999],
    }


async def test_a_session_resumed_again_and_again(server, node, clients):
    """I2, I3: over resumptions each text comes once, and in order."""
    bob, senders = await senders_of(server, clients)
    b = await clients.online(server, bob, "phone", raw=True, sm=True, acks=True)
    done = asyncio.Event()
    task = asyncio.ensure_future(stream(senders, bob, done))
    got = []
    for _ in range(5):
        await until(lambda b=b: done.is_set() or len(b.inbox.bodies()) > 40, "some")
        await b.vanish()
        got += b.inbox.bodies()
        again = clients.raw(server, bob, "phone", acks=True)
        b = await again.resume(b)
    await task
    await b.inbox.until(lambda box: len(got) + len(box.bodies()) >= SENDERS * EACH, "all of them")
    assert in_order([*got, *b.inbox.bodies()]) == {str(n): list(range(EACH)) for n in range(SENDERS)}


async def test_many_log_in_at_a_time(server, node, clients):
    """I1, I2, I3: everybody gets his own, while the senders go on writing."""
    people = server.people(*(f"u{n}" for n in range(12)))
    a = await clients.online(server, people[0], "desk", raw=True)
    for n in range(20):
        for jid in people[1:]:
            a.send_text(jid, f"0 {n}")
    for jid in people[1:]:
        await all_stored(a, jid, "0 20")
    logins = [clients.online(server, jid, "phone", raw=True) for jid in people[1:]]
    gathered = asyncio.gather(*logins)
    for n in range(21, 40):
        for jid in people[1:]:
            a.send_text(jid, f"0 {n}")
        await asyncio.sleep(0)
    for one in await gathered:
        await one.inbox.body_count(40)
        assert in_order(one.inbox.bodies()) == {"0": list(range(40))}
