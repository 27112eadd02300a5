"""Invariant I5 (R69, R72): at strict, whoever may not see a recipient's presence gets the same
back from rules whether he is there, away, blocked by him, or he does not exist."""

import asyncio

import pytest

from harness.prober import GROUPS, Prober
from harness.prosody import HOST

#: Who is full already.
FULL = {group: f"full{group}@{HOST}" for group in GROUPS}


@pytest.fixture(scope="module")
def bed(workshop):
    """A server, and a node with a quota for some."""
    server = workshop.prosody()
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
        assert 'amphora_over_quota_total{answer="error"}' in self.node.http_get("/metrics")
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
        prober = Prober(self.m, self.bob, "phone")
        for probe in probes:
            await prober.probe(probe)
        last = self.m.send_text(self.bob, "last")
        await dealt_with(last)
        await self.m.ping()
        return prober.at_once, prober.came(start, last)


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
        assert len(came) == len(expected), f"{name}: {difference(came, results[0][1])}"
        assert came == results[0][1], f"{name}: {difference(came, results[0][1])}"


def difference(these, those):
    """The first thing that differs."""
    for this, that in zip(these, those, strict=False):
        if this != that:
            return f"{this}\n instead of\n{that}"
    return f"{len(these)} answers: {these[len(those):]}"
