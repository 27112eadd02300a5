"""Two ejabberd nodes in a cluster. A node of Amphora is linked to one of them, or one to each:
what either takes reaches it, and what it says finds the way back. I1, I2, I3."""

import asyncio
import hashlib

import pytest

from harness.erlang import erlang
from harness.prosody import COMPONENT
from harness.stanzas import amp, message, rule
from harness.steps import all_stored
from harness.waiting import until

pytestmark = pytest.mark.only("ejabberd", "Prosody has no clusters")

SECOND = "amp2.example.org"


class Cluster:
    """`first` has the link."""

    def __init__(self, workshop, **settings):
        self.first = workshop.server(**settings)
        self.second = workshop.server(cluster=self.first, **settings)

    def people(self, *names):
        """Accounts are everybody's."""
        return self.first.people(*names)


@pytest.fixture(scope="module")
def cluster(workshop):
    """Two that never stop."""
    made = Cluster(workshop, hibernation=1)
    made.node = workshop.node(made.first)
    return made


@pytest.fixture
def fragile(workshop):
    """Two that a test stops."""
    made = Cluster(workshop, hibernation=1)
    made.node = workshop.node(made.first)
    return made


async def test_the_cluster_is_one(cluster):
    """The harness itself: each knows the other."""
    assert cluster.second.node_name in cluster.first.erl("ejabberd_cluster:get_nodes()")
    assert cluster.first.node_name in cluster.second.erl("ejabberd_cluster:get_nodes()")


@pytest.mark.parametrize("written, read", [(0, 1), (1, 0), (1, 1)])
async def test_stored_on_one_and_read_on_another(cluster, clients, written, read):
    """Whichever takes them, and wherever he comes back."""
    servers = (cluster.first, cluster.second)
    alice, bob = cluster.people("alice", "bob")
    a = await clients.online(servers[written], alice, "desk", raw=True)
    for n in range(50):
        a.send_text(bob, str(n))
    await all_stored(a, bob, "50")
    b = await clients.online(servers[read], bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [*map(str, range(51)), "end"]
    await b.leave()
    again = await clients.online(servers[1 - read], bob)
    await again.inbox.reply(a.send_text(bob, "the end"))
    assert again.inbox.bodies() == ["the end"], "it was not taken"


@pytest.mark.parametrize("sender", [0, 1])
async def test_verdicts_find_the_way_back(cluster, clients, sender):
    """R13: rules are decided for a message that either took, for a session on either."""
    servers = (cluster.first, cluster.second)
    alice, bob, away = cluster.people("alice", "bob", "away")
    a = await clients.online(servers[sender], alice, "desk", raw=True)
    b = await clients.online(servers[1 - sender], bob, raw=True)
    told = a.send_xml(message(bob, "there", payload=amp(rule("notify", "deliver", "direct"))))
    assert (await a.inbox.reply(told)).status == "notify"
    told = a.send_xml(message(away, "no", payload=amp(rule("alert", "deliver", "stored"))))
    assert (await a.inbox.reply(told)).status == "alert"
    told = a.send_xml(message(bob, "no", payload=amp(rule("error", "match-resource", "any"))))
    assert (await a.inbox.reply(told)).status == "error"
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["there", "end"]


async def test_two_senders_on_two_nodes(cluster, clients):
    """I3: the order of each, to somebody who comes and goes on both."""
    alice, carol, bob = cluster.people("alice", "carol", "bob")
    a = await clients.online(cluster.first, alice, "desk", raw=True)
    c = await clients.online(cluster.second, carol, "desk", raw=True)
    got = []
    for life in range(4):
        b = await clients.online((cluster.first, cluster.second)[life % 2], bob, raw=True)
        for n in range(25):
            a.send_text(bob, f"a {25 * life + n}")
            c.send_text(bob, f"c {25 * life + n}")
        await asyncio.gather(a.ping(), c.ping())
        await b.leave()
        got += b.inbox.bodies()
    await all_stored(a, bob, "a 100")
    await all_stored(c, bob, "c 100")
    b = await clients.online(cluster.second, bob, raw=True)
    await b.inbox.until(lambda box: {"a 100", "c 100"} <= set(box.bodies()), "the last")
    got += b.inbox.bodies()
    for name in "ac":
        assert [t for t in got if t[0] == name] == [f"{name} {n}" for n in range(101)]


async def test_what_a_session_left_on_the_other_node(cluster, clients):
    """Undelivered messages come back to the node from where the session was."""
    alice, bob = cluster.people("alice", "bob")
    a = await clients.online(cluster.first, alice, "desk", raw=True)
    b = await clients.online(cluster.second, bob, raw=True, sm=True)
    for n in range(5):
        a.send_text(bob, str(n))
    await b.inbox.body_count(5)
    await b.vanish()
    again = await clients.online(cluster.first, bob, "pad")
    assert await again.inbox.body_count(5) == [str(n) for n in range(5)]


@pytest.mark.parametrize("sender, ends", [(0, 0), (1, 0), (0, 1), (1, 1)])
async def test_a_session_that_ends_with_messages_in_its_mailbox(fragile, clients, sender, ends):
    """I3: what is in the mailbox of a process that the server knows no more is routed anew, on its node. Nothing
    passes it, on whichever node it is taken."""
    servers = (fragile.first, fragile.second)
    alice, bob = fragile.people("alice", "bob")
    a = await clients.online(servers[sender], alice, "desk", raw=True)
    b = await clients.online(servers[ends], bob, raw=True)
    there = servers[ends]
    old = there.process_of(bob, "phone")
    # when it has told itself to end, and when the server has forgotten it
    there.hold_up("told", "c2s_closed", 200)
    there.hold_up("forgotten", "sm_remove_connection_hook", 200, arguments=3)
    await b.vanish()
    await until(lambda: there.is_held(old), "the session to end")
    for n in range(5):
        a.send_text(bob, str(n))
    await a.ping()
    there.let_go("told")
    names = ",".join(map(erlang, (bob.partition("@")[0], there.host, "phone")))
    known = f"ejabberd_sm:get_session_pid({names})"
    await until(lambda: {server.erl(known) for server in servers} == {"none"}, "both to forget the session")
    for n in range(5, 10):
        a.send_text(bob, str(n))
    await a.ping()
    there.let_go("forgotten")
    await until(lambda: fragile.node.stored(bob) == 10, "all of it in the store")
    c = await clients.online(servers[1 - ends], bob, raw=True)
    await c.inbox.reply(a.send_text(bob, "end"))
    assert c.inbox.bodies() == [*map(str, range(10)), "end"]


async def test_the_node_that_has_no_link_stops(fragile, clients):
    """What it had taken and not yet been told is stored is in its spool, and arrives."""
    alice, bob = fragile.people("alice", "bob")
    a = await clients.online(fragile.second, alice, "desk", raw=True)
    await all_stored(a, bob, "stored")
    fragile.node.stop()
    for n in range(20):
        a.send_text(bob, str(n))
    await a.ping()
    await asyncio.to_thread(fragile.second.stop)
    await asyncio.to_thread(fragile.second.start)
    await asyncio.to_thread(fragile.node.start)
    b = await clients.online(fragile.first, bob)
    await b.inbox.body_count(21)
    assert b.inbox.bodies() == ["stored", *map(str, range(20))]


async def test_the_node_with_the_link_stops(fragile, clients):
    """What the other takes meanwhile waits, and goes out when the link is back."""
    alice, bob = fragile.people("alice", "bob")
    a = await clients.online(fragile.second, alice, "desk", raw=True)
    await all_stored(a, bob, "stored")
    await asyncio.to_thread(fragile.first.stop)
    for n in range(20):
        a.send_text(bob, str(n))
    await a.ping()
    await asyncio.to_thread(fragile.first.start)
    b = await clients.online(fragile.second, bob)
    await b.inbox.body_count(21)
    assert b.inbox.bodies() == ["stored", *map(str, range(20))]


async def test_the_node_with_the_link_is_killed(fragile, clients):
    """I1, I2: nothing that was accepted is lost, and nothing comes twice."""
    alice, carol, bob = fragile.people("alice", "carol", "bob")
    a = await clients.online(fragile.first, alice, "desk", raw=True)
    c = await clients.online(fragile.second, carol, "desk", raw=True)
    for n in range(50):
        a.send_text(bob, f"a {n}")
        c.send_text(bob, f"c {n}")
    await all_stored(a, bob, "a 50")
    await all_stored(c, bob, "c 50")
    await asyncio.to_thread(fragile.first.kill)
    for n in range(51, 80):
        c.send_text(bob, f"c {n}")
    await c.ping()
    await asyncio.to_thread(fragile.first.start)
    b = await clients.online(fragile.first, bob)
    await b.inbox.until(lambda box: "c 79" in box.bodies(), "the last")
    got = b.inbox.bodies()
    assert [t for t in got if t[0] == "a"] == [f"a {n}" for n in range(51)]
    assert [t for t in got if t[0] == "c"] == [f"c {n}" for n in range(80)]


async def test_the_other_node_is_killed(fragile, clients):
    """The link goes on; sessions that ended with it are forgotten."""
    alice, bob = fragile.people("alice", "bob")
    a = await clients.online(fragile.first, alice, "desk", raw=True)
    gone = await clients.online(fragile.second, bob, "gone", raw=True)
    await all_stored_or_delivered(a, gone, bob)
    await asyncio.to_thread(fragile.second.kill)
    await until(lambda: fragile.second.node_name not in fragile.first.erl("nodes()"), "it to be gone")
    await all_stored(a, bob, "after")
    b = await clients.online(fragile.first, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["after", "end"]


async def all_stored_or_delivered(sender, reader, to):
    """A text that a session takes live."""
    await reader.inbox.reply(sender.send_text(to, "live"))


def owner(jid, components):
    """The link to which a user belongs: the protocol, 'Several links'."""
    weight = lambda domain: hashlib.sha256(jid.encode() + b"\0" + domain.encode()).digest()[:4]
    return max(components, key=lambda domain: (weight(domain), domain))


async def test_each_with_its_own_link(workshop, clients):
    """Two nodes with domains of their own: each user has one of them, wherever he and his
    senders are."""
    links = (COMPONENT, SECOND)
    cluster = Cluster(workshop, links=links)
    nodes = {
        COMPONENT: workshop.node(cluster.first),
        SECOND: workshop.node(cluster.second, name="n2", component=SECOND),
    }
    alice, carol, *people = cluster.people("alice", "carol", *(f"u{n}" for n in range(12)))
    a = await clients.online(cluster.first, alice, "desk", raw=True)
    c = await clients.online(cluster.second, carol, "desk", raw=True)
    for sender, name in ((a, "a"), (c, "c")):
        for n in range(10):
            for jid in people:
                sender.send_text(jid, f"{name} {n}")
        for jid in people:
            await all_stored(sender, jid, f"{name} 10")
    owners = {jid: owner(jid, links) for jid in people}
    assert set(owners.values()) == set(links), "all have the same: choose more people"
    for jid, link in owners.items():
        assert {domain: node.stored(jid) for domain, node in nodes.items()} == {
            link: 22,
            ({*links} - {link}).pop(): 0,
        }
    for number, jid in enumerate(people):
        server = (cluster.first, cluster.second)[number % 2]
        b = await clients.online(server, jid)
        got = await b.inbox.body_count(22)
        for name in "ac":
            assert [t for t in got if t[0] == name] == [f"{name} {n}" for n in range(11)]
