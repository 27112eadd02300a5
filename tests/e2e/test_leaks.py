"""Invariant I5 (R69, R72): at strict, whoever may not see a recipient's presence gets the same
back from rules whether he is there, away, blocked by him, or he does not exist."""

import asyncio

import pytest

from harness.fake_server import INTERCEPT, FakeServer, intercept
from harness.prober import GROUPS, Prober
from harness.prosody import HOST
from harness.stanzas import amp, message, new_id, rule, utc
from harness.steps import all_stored

#: Who is full already.
FULL = {group: f"full{group}@{HOST}" for group in GROUPS}


@pytest.fixture(scope="module")
def bed(workshop):
    """A server, and a node with a quota for some."""
    server = workshop.server()
    quota = "".join(
        f'[[quota.override]]\nfor = "{jid}"\nmessages_per_user = 1\n' for jid in FULL.values()
    )
    return server, workshop.node(server, quota=quota)


class Stage:
    """A recipient and a prober, in one of the situations that must look alike.

    Each situation is a method that returns how it is known that a last plain message, and so
    by the order of a pair all before it, was dealt with.
    """

    def __init__(self, bed, clients, group):
        (self.server, self.node), self.clients, self.group = bed, clients, group
        self.mallory, self.bob = self.server.people("mallory", "bob", friends=False)
        self.m = self.b = None

    async def _online(self, resource="phone", **settings):
        return await self.clients.online(self.server, self.bob, resource, raw=True, **settings)

    async def _comes_later(self, id):
        b = await self._online("later")
        await b.inbox.reply(id)

    async def _bounces(self, id):
        assert (await self.m.inbox.reply(id)).condition == "service-unavailable"

    async def online(self):
        b = await self._online()
        return b.inbox.reply

    async def away(self):
        return self._comes_later

    async def signed_in(self):
        await self.clients.login(self.server, self.bob, "phone", raw=True)
        return self._comes_later

    async def negative(self):
        await self._online(priority=-1)
        return self._comes_later

    async def elsewhere(self):
        b = await self._online("tablet")
        await self._online("desk")
        return b.inbox.reply

    async def hibernating(self):
        dead = await self._online(sm=True)
        await dead.vanish()

        async def resumed(id):
            b = await self.clients.raw(self.server, self.bob, "phone", acks=True).resume(dead)
            await b.inbox.reply(id)

        return resumed

    async def missing(self):
        self.bob = f"nobody-{self.mallory}"
        return self._bounces

    async def full(self):
        self.bob = FULL[self.group]
        self.server.account(self.bob.partition("@")[0])
        self.m.send_text(self.bob, "the only one")
        refused = self.m.send_text(self.bob, "one too many")
        await self._bounces(refused)
        metrics = await asyncio.to_thread(self.node.http_get, "/metrics")
        assert 'amphora_over_quota_total{answer="error"}' in metrics
        return self._bounces

    async def blocking(self):
        self.b = await self._online()
        await self.b.iq(
            f"<block xmlns='urn:xmpp:blocking'><item jid='{self.mallory}'/></block>", type="set"
        )
        return self._bounces

    async def blocking_and_away(self):
        bounces = await self.blocking()
        await self.b.leave()
        return bounces

    async def probed(self, situation, probes):
        """What the prober gets: at once, and in the end."""
        self.m = await self.clients.online(self.server, self.mallory, "desk", raw=True)
        dealt_with = await getattr(self, situation)()
        await self.m.ping()
        start = len(self.m.inbox.all)
        prober = Prober(self.m, self.node, self.bob, "phone")
        refused = 0
        for probe in probes:
            await prober.probe(probe)
            refused += len(prober.addresses) * probe.refused
            # not faster than they are answered
            await self.m.inbox.until(
                lambda _, wanted=refused - UNDER_WAY: prober.count(start) >= wanted,
                f"{refused} refusals",
            )
        last = self.m.send_text(self.bob, "last")
        await dealt_with(last)
        await self.m.ping()
        return prober.at_once, prober.came(start, last)


#: Refusals that are not waited for at once: they are to come among other things.
UNDER_WAY = 20

SITUATIONS = [
    "online",
    "away",
    "signed_in",
    "negative",
    "elsewhere",
    "hibernating",
    "missing",
    "full",
    "blocking",
    "blocking_and_away",
]


@pytest.mark.parametrize("group", GROUPS)
async def test_a_prober_learns_nothing(bed, clients, group):
    """R69, R72: the same stanzas in the same order, for every recipient; and only refusals."""
    probes = GROUPS[group]
    results = await asyncio.gather(
        *(Stage(bed, clients, group).probed(name, probes) for name in SITUATIONS)
    )
    expected = [probe for probe in probes for _ in range(2) if probe.refused]
    for name, (at_once, came) in zip(SITUATIONS, results, strict=True):
        assert [said for said in at_once if said[1]] == [], f"{name}: before a ping's answer"
        assert all(in_order for _, _, in_order in at_once), name
        assert len(came) == len(expected), f"{name}: {difference(came, results[0][1])}"
        assert came == results[0][1], f"{name}: {difference(came, results[0][1])}"


def difference(these, those):
    """The first thing that differs."""
    for this, that in zip(these, those, strict=False):
        if this != that:
            return f"{this}\n instead of\n{that}"
    return f"{len(these)} answers: {these[len(those):]}"


async def unfriend(server, clients, bob, alice):
    """Bob, who stays away, lets Alice see his presence no more."""
    b = await clients.login(server, bob, "phone", raw=True)
    b.write(f"<presence to='{alice}' type='unsubscribed'/>")
    await b.ping()
    await b.vanish()


@pytest.mark.parametrize("type", ["headline", "other"])
async def test_a_session_that_dies_tells_nothing(workshop, clients, type):
    """I5: no error tells that somebody was there, but had not acknowledged it when he went.

    Of one without rules the server tells, or gives it to another session, as it always did.
    """
    server = workshop.server(hibernation=1)
    workshop.node(server)
    mallory, bob = server.people("mallory", "bob", friends=False)
    m = await clients.online(server, mallory, "desk", raw=True)
    # ejabberd tells of nothing while nobody else is there
    other = await clients.online(server, bob, "other", raw=True)
    b = await clients.online(server, bob, raw=True, sm=True)
    rules = amp(rule("drop", "deliver", "stored"))
    id = m.send_xml(message(f"{bob}/phone", "probe", type=type, payload=rules))
    plain = m.send_xml(message(f"{bob}/phone", "plain", type=type))
    await b.inbox.reply(plain)
    assert b.inbox.bodies() == ["probe", "plain"]
    await b.vanish()
    if condition := server.UNACKNOWLEDGED[type]:
        assert (await m.inbox.reply(plain)).condition == condition
    else:
        await other.inbox.reply(plain)
    await m.ping()
    assert m.inbox.with_id(id) == []


async def test_a_right_that_was_lost_when_the_time_comes(bed, clients):
    """R69, R72: the notice of an expiry is withheld, the rule carried out."""
    server, _ = bed
    alice, bob, carol = server.people("alice", "bob", "carol")
    a = await clients.online(server, alice, "desk", raw=True)
    c = await clients.online(server, carol, "desk", raw=True)
    ids = {}
    for action, when in [("alert", utc(4)), ("error", utc(4)), ("notify", utc(4))]:
        rules = amp(rule(action, "expire-at", when))
        ids[action] = a.send_xml(message(bob, action, payload=rules))
    await all_stored(a, bob)
    await unfriend(server, clients, bob, alice)
    # a later one of somebody who has kept the right
    mark = c.send_xml(message(bob, "mark", payload=amp(rule("alert", "expire-at", utc(5)))))
    assert (await c.inbox.reply(mark)).status == "alert"
    await a.ping()
    assert all(a.inbox.with_id(id) == [] for id in ids.values())
    b = await clients.online(server, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["notify", "mark", "end"]


async def test_a_right_that_was_lost_while_no_node_was_there(workshop, clients):
    """R72: what counts is the right when a node is asked, not when the message came."""
    server = workshop.server(options={"amphora_hold": 600})
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    node.stop()
    rules = amp(rule("alert", "deliver", "stored"))
    id = a.send_xml(message(bob, "x", payload=rules))
    await a.ping()
    await unfriend(server, clients, bob, alice)
    await asyncio.to_thread(node.start)
    assert (await a.inbox.reply(id)).condition == "not-acceptable"


def children(verdict):
    """What is sent with a verdict."""
    return verdict.findall(f"{{{INTERCEPT}}}send")


@pytest.fixture
async def link(workshop):
    """A node on a server that lets a right come and go."""
    async with FakeServer() as server:
        node = workshop.node(server, start=False).spawn()
        yield await server.greeted()
        node.stop()


NOTIFY, ALERT, DROP = (amp(rule(a, "deliver", "stored")) for a in ("notify", "alert", "drop"))
UNREADABLE = "<amp xmlns='http://jabber.org/protocol/amp'>" + "<x/>" * 120_000 + "</amp>"
LARGE = f"<x>{'x' * 523_000}</x>"


@pytest.mark.parametrize(
    "payload, said, told",
    [
        (NOTIFY, "stored", True),
        (ALERT, "discarded", True),
        (LARGE + DROP, "discarded", True),
        (UNREADABLE, "discarded", True),
        (DROP.replace("stored", "none"), "stored", False),
    ],
    ids=["notify", "alert", "too large", "unreadable", "drop"],
)
async def test_a_right_that_was_lost_on_the_way_to_storage(link, payload, said, told):
    """R69, R72: the rules are carried out, and nothing goes back to their sender."""
    for right in ("true", "false"):
        key = new_id("k")
        link.write(intercept(f"bob@{HOST}", "x", key=key, payload=payload, may_see_presence=right))
        verdict = await link.verdict(key)
        assert verdict.get("do") == said
        assert len(children(verdict)) == (told and right == "true"), right


async def test_what_goes_on_in_silence(link):
    """I5: only a message with rules, whose sender has no right; there or not."""
    for rules, right, account, silent in [
        (DROP.replace("stored", "gateway"), "false", "true", "true"),
        (DROP.replace("stored", "gateway"), "false", "false", "true"),
        (DROP.replace("stored", "gateway"), "true", "false", None),
    ]:
        key = new_id("k")
        settings = {"may_see_presence": right, "account": account}
        link.write(
            intercept(f"bob@{HOST}", "x", key=key, stage="rules", payload=rules, **settings)
        )
        verdict = await link.verdict(key)
        assert (verdict.get("do"), verdict.get("silent")) == ("deliver", silent)
    # without rules there is nothing to be silent about
    for right in ("true", "false"):
        key = new_id("k")
        settings = {"may_see_presence": right, "account": "false"}
        link.write(intercept(f"bob@{HOST}", "x", key=key, **settings))
        verdict = await link.verdict(key)
        assert verdict.get("do") == "discarded" and len(children(verdict)) == 1
