"""Several links under load: one or the other is cut, and mended, while people write and read.

"Several links" in docs/intercept.md; invariants I1, I2, I3. The links end in one node with one
store: what a link brings, and another one asks for again, must still come once and in order.
"""

import asyncio
import itertools

import pytest

from harness.linked import linked
from harness.links import LINKS, owner, person_of
from harness.stanzas import amp, message, rule, utc
from harness.steps import all_stored
from harness.waiting import until
from test_broadcast import start

@pytest.fixture(scope="module")
def server(workshop):
    """A server with two links, and short memories for sessions that are gone."""
    return workshop.server(hibernation=1, links=LINKS, archive=None)


@pytest.fixture
async def nodes(workshop, server):
    """What is at the other ends."""
    async with linked(workshop, dict.fromkeys(LINKS, server)) as made:
        yield made


def numbers(texts, name):
    """The numbers of one sender's texts, as they came."""
    return [int(t.split()[1]) for t in texts if t.split()[0] == name]


async def write(senders, recipients, each, done):
    """Everybody writes to everybody, evenly mixed; and on until the links have had their lives."""
    for n in range(each):
        for name, sender in senders.items():
            for jid in recipients:
                sender.send_text(jid, f"{name} {n}")
            await sender.drain()
        await asyncio.sleep(0)
    for sender in senders.values():
        await sender.ping()
    done.set()


async def read(servers, clients, jid, done):
    """Comes and goes until all is written; of each life what came, and how much it had confirmed."""
    lives = []
    for server in itertools.cycle(servers):
        if done.is_set():
            return lives
        b = await clients.online(server, jid, "phone", raw=True, sm="once", acks=True)
        before = len(b.inbox.bodies())
        await until(lambda b=b, n=before: done.is_set() or len(b.inbox.bodies()) > n + 10, "some")
        confirmed = len(b.inbox.bodies())
        await b.leave()
        lives.append((b.inbox.bodies(), confirmed))


def joined(lives, name):
    """One sender's numbers over all lives, without those that came again as they may: what came while
    its reader said goodbye was not confirmed."""
    got, sure = [], -1
    for texts, confirmed in lives:
        mine = numbers(texts, name)
        while got and mine and got[-1] >= mine[0]:
            assert not got[-1] <= sure, f"{got[-1]} was confirmed, and came again"
            got.pop()
        got += mine
        sure = max(numbers(texts[:confirmed], name), default=sure)
    return got


async def test_links_come_and_go_under_load(server, nodes, clients):
    """I1, I2, I3: each text once, each sender's in order, to people of either link who come and go."""
    each = 120
    people = [person_of(server, domain, name) for domain in LINKS for name in ("stays", "goes", "away")]
    assert {owner(jid) for jid in people} == set(LINKS)
    senders = {
        name: await clients.online(server, *server.people(name), "desk", raw=True) for name in "abc"
    }
    staying = {j: await clients.online(server, j, raw=True) for j in people if j.startswith("stays")}
    going = [j for j in people if j.startswith("goes")]
    written = asyncio.Event()
    flapping = asyncio.ensure_future(nodes.come_and_go(written))
    reading = {j: asyncio.ensure_future(read([server], clients, j, written)) for j in going}
    await write(senders, people, each, written)
    got = {j: await task for j, task in reading.items()}
    await flapping
    for jid in people:
        for name, sender in senders.items():
            if jid not in staying:
                await all_stored(sender, jid, f"{name} {each}")
            else:
                sender.send_text(jid, f"{name} {each}")
    last = {f"{name} {each}" for name in senders}
    for jid in people:
        b = staying.get(jid) or await clients.online(server, jid, "phone", raw=True)
        await b.inbox.until(lambda box: last <= set(box.bodies()), f"the last for {jid}")
        await b.ping()
        lives = [*got.get(jid, []), (b.inbox.bodies(), 0)]
        for name in senders:
            assert joined(lives, name) == list(range(each + 1)), f"{jid} from {name}"
    assert nodes.node.rows() == 0 or await until(lambda: nodes.node.rows() == 0, "all to be taken")


@pytest.mark.parametrize("sm", [True, False], ids=["acks", "no acks"])
async def test_links_come_and_go_amid_a_hand_over(server, nodes, clients, sm):
    """I2, I3: what was stored comes once and in order, whichever link brings which part of it; what is
    live comes behind it."""
    count = 1500
    (alice,) = server.people("alice")
    a = await clients.online(server, alice, "desk", raw=True)
    people = [person_of(server, domain) for domain in LINKS]
    for n in range(count):
        for jid in people:
            a.send_text(jid, f"a {n}")
        await a.drain()
    for jid in people:
        await all_stored(a, jid, f"a {count}")
    online = [await clients.online(server, jid, raw=True, sm=sm, acks=sm) for jid in people]
    seen = asyncio.Event()
    flapping = asyncio.ensure_future(nodes.come_and_go(seen))
    for n in range(count + 1, count + 50):
        for jid in people:
            a.send_text(jid, f"a {n}")
        await a.ping()
    for b in online:
        await b.inbox.until(lambda box: f"a {count + 49}" in box.bodies(), "the last")
        await b.ping()
    seen.set()
    await flapping
    for b in online:
        assert numbers(b.inbox.bodies(), "a") == list(range(count + 50))
    await until(lambda: nodes.node.rows() == 0, "all to be taken")


async def test_what_is_undecided_moves_at_once(server, nodes, clients):
    """I1, I3: with one link cut for good everything is decided by the other, without a wait."""
    (alice,) = server.people("alice")
    a = await clients.online(server, alice, "desk", raw=True)
    bob = person_of(server, LINKS[0])
    await all_stored(a, bob, "a 0")
    await nodes.cut(LINKS[0])
    for n in range(1, 50):
        a.send_text(bob, f"a {n}")
    await all_stored(a, bob, "a 50")
    b = await clients.online(server, bob, raw=True)
    assert numbers(await b.inbox.body_count(51), "a") == list(range(51))
    await nodes.mend(LINKS[0])
    await b.inbox.reply(a.send_text(bob, "a 51"))
    await b.leave()
    await all_stored(a, bob, "a 52")
    again = await clients.online(server, bob, raw=True)
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["a 52", "end"]


async def test_what_a_node_sends_by_itself(server, nodes, clients):
    """R36, R38: broadcasts, the list of accounts and notices go by whatever link is there."""
    (alice,) = server.people("alice")
    a = await clients.online(server, alice, "desk", raw=True)
    bob = person_of(server, LINKS[0])
    b = await clients.online(server, bob, raw=True)
    for gone in LINKS:
        await nodes.cut(gone)
        text = f"without {gone}"
        await start(nodes.node, "--to-domain", server.host, "--body", text, "--expires", "1h")
        await b.inbox.until(lambda box, text=text: text in box.bodies(), "the broadcast")
        told = a.send_xml(message(f"nobody@{server.host}", "x", payload=amp(rule("alert", "deliver", "none"))))
        assert (await a.inbox.reply(told)).status == "alert"
        away = person_of(server, gone, "away")
        payload = amp(rule("alert", "expire-at", utc(1)))
        assert (await a.inbox.reply(a.send_xml(message(away, "late", payload=payload)))).status == "alert"
        await nodes.mend(gone)
    texts = [t for t in b.inbox.bodies() if t.startswith("without")]
    assert texts == [f"without {domain}" for domain in LINKS], "each once"
