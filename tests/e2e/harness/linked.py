"""Real nodes with several links, each of which can be cut and mended."""

import asyncio
import contextlib

from .cable import Cable
from .links import LINKS
from .prosody import SECRET
from .waiting import until

SECOND = """
[[servers]]
address = "127.0.0.1:{port}"
component = "{component}"
secret = "{secret}"
hosts = ["{host}"]
"""


@contextlib.asynccontextmanager
async def linked(workshop, servers):
    """One node that is linked to each server under its domain: to the same, or to those of a cluster."""
    async with contextlib.AsyncExitStack() as stack:
        cables = {d: await stack.enter_async_context(Cable(servers[d])) for d in LINKS}
        first, second = ({"port": cables[d].port, "component": d} for d in LINKS)
        node = workshop.node(
            servers[LINKS[0]],
            start=False,
            address=f"127.0.0.1:{first['port']}",
            component=first["component"],
            # people of one link or the other are made one by one, and nobody's contacts
            security="none",
            more=SECOND.format(**second, secret=SECRET, host=servers[LINKS[1]].host),
        )
        await asyncio.to_thread(node.start)
        yield Linked(list(dict.fromkeys(servers.values())), cables, node)
        await asyncio.to_thread(node.stop)


class Linked:
    """What is at the other ends. `node` is what they have in common."""

    def __init__(self, servers, cables, node):
        self._servers, self._cables, self.node = servers, cables, node

    def _said(self, words):
        return [server.log.count(words) for server in self._servers]

    async def _until_all_say(self, words, before):
        grown = lambda: all(now > old for now, old in zip(self._said(words), before))
        await until(grown, f"all servers to say {words!r}")

    async def cut(self, domain):
        """It is lost, and all servers have seen it."""
        words = f"at {domain} is gone"
        before = self._said(words)
        self._cables[domain].cut()
        await self._until_all_say(words, before)

    async def mend(self, domain):
        """It is there again, and greeted."""
        words = f"is there at {domain}"
        before = self._said(words)
        self._cables[domain].mend()
        await self._until_all_say(words, before)

    async def come_and_go(self, done):
        """One after the other is lost and comes back, until told to end, and three times at least."""
        lives = 0
        while lives < 3 or not done.is_set():
            domain = LINKS[lives % 2]
            await self.cut(domain)
            await self.mend(domain)
            lives += 1
        return lives
