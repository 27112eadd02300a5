"""A cluster of two ejabberd nodes, each with a link of its own to what stores: sessions on either are
served, in order, while the links come and go. I1, I2, I3."""

import asyncio

import pytest

from harness.linked import linked
from harness.links import LINKS, owner, person_of
from harness.steps import all_stored
from harness.waiting import until
from test_links_load import joined, numbers, read, write

pytestmark = pytest.mark.only("ejabberd", "Prosody has no clusters")


@pytest.fixture(scope="module")
def servers(workshop):
    """Two that are one."""
    settings = {"hibernation": 1, "links": LINKS, "archive": None}
    first = workshop.server(**settings)
    return first, workshop.server(cluster=first, **settings)


@pytest.fixture
async def nodes(workshop, servers):
    """The first link ends at the first, the second at the second."""
    async with linked(workshop, dict(zip(LINKS, servers))) as made:
        yield made


async def test_sessions_on_either_while_links_come_and_go(servers, nodes, clients):
    """Senders on both, recipients that come and go on both: each text once, each sender's in order."""
    each = 80
    first, second = servers
    going = [person_of(first, domain, "goes") for domain in LINKS]
    away = [person_of(first, domain, "away") for domain in LINKS]
    people = [*going, *away]
    assert {owner(jid) for jid in people} == set(LINKS)
    senders = {
        name: await clients.online(server, *first.people(name), "desk", raw=True)
        for name, server in (("a", first), ("b", second), ("c", second))
    }
    written = asyncio.Event()
    flapping = asyncio.ensure_future(nodes.come_and_go(written))
    reading = {j: asyncio.ensure_future(read(servers, clients, j, written)) for j in going}
    await write(senders, people, each, written)
    got = {j: await task for j, task in reading.items()}
    await flapping
    for jid in people:
        for name, sender in senders.items():
            await all_stored(sender, jid, f"{name} {each}")
    for number, jid in enumerate(people):
        b = await clients.online(servers[number % 2], jid, raw=True)
        last = {f"{name} {each}" for name in senders}
        await b.inbox.until(lambda box: last <= set(box.bodies()), f"the last for {jid}")
        await b.ping()
        lives = [*got.get(jid, []), (b.inbox.bodies(), 0)]
        for name in senders:
            assert joined(lives, name) == list(range(each + 1)), f"{jid} from {name}"
    await until(lambda: nodes.node.rows() == 0, "all to be taken")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("domain", LINKS)
async def test_handed_over_wherever_he_is(servers, nodes, clients, place, domain):
    """What either took is handed over on either, though his link is cut amid it and comes back."""
    count = 600
    bob = person_of(servers[0], domain)
    senders = {
        name: await clients.online(server, *servers[0].people(name), "desk", raw=True)
        for name, server in zip("ab", servers)
    }
    for n in range(count):
        for name, sender in senders.items():
            sender.send_text(bob, f"{name} {n}")
    for name, sender in senders.items():
        await all_stored(sender, bob, f"{name} {count}")
    b = await clients.online(servers[place], bob, raw=True, sm=True, acks=True)
    await nodes.cut(domain)
    await nodes.mend(domain)
    for name, sender in senders.items():
        sender.send_text(bob, f"{name} {count + 1}")
    last = {f"{name} {count + 1}" for name in senders}
    await b.inbox.until(lambda box: last <= set(box.bodies()), "the last")
    await b.ping()
    for name in senders:
        assert numbers(b.inbox.bodies(), name) == list(range(count + 2))


async def test_the_server_with_his_link_is_killed(workshop, clients):
    """His link goes with it: the other has all of him from then on, and what was taken stays taken."""
    settings = {"hibernation": 1, "links": LINKS, "archive": None}
    first = workshop.server(**settings)
    second = workshop.server(cluster=first, **settings)
    async with linked(workshop, dict(zip(LINKS, (first, second)))) as nodes:
        bob = person_of(first, LINKS[1])
        (alice,) = first.people("alice")
        a = await clients.online(first, alice, "desk", raw=True)
        await all_stored(a, bob, "a 0")
        said = f"at {LINKS[1]} is gone"
        await asyncio.to_thread(second.kill)
        for n in range(1, 30):
            a.send_text(bob, f"a {n}")
        await until(lambda: said in first.log, "the link to be missed")
        await all_stored(a, bob, "a 30")
        b = await clients.online(first, bob, raw=True)
        assert numbers(await b.inbox.body_count(31), "a") == list(range(31))
        await until(lambda: nodes.node.rows() == 0, "all to be taken")
