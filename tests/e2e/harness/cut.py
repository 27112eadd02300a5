"""Ways of a node to its NATS, its database and its server, each of which can be cut or fall silent.

`cut` is a network that says so: connections are reset, and new ones closed. `hush` is one that loses every
packet without a word. For that the node runs in a network namespace of its own, if this user may make
one (root); else the proxies that make up the ways keep back what comes to them.
"""

import asyncio
import threading

from .cable import Cable
from .namespace import Namespace, allowed


class Ways:
    """Cables by name, passing on in a thread of their own, whatever the test waits for. `apart`: from a
    network of its own, if that may be."""

    def __init__(self, ports, apart=True):
        self._hushed = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._space = Namespace(ports) if apart and allowed() else None
        hosts = self._space.outside if self._space else dict.fromkeys(ports, "127.0.0.1")
        self._cables = {name: Cable(None, port, hosts[name]) for name, port in ports.items()}
        #: the address of the node itself, and what goes before its command
        self.inside = self._space.inside if self._space else "127.0.0.1"
        self.command = self._space.command if self._space else []
        for cable in self._cables.values():
            asyncio.run_coroutine_threadsafe(cable.__aenter__(), self._loop).result()

    def address(self, name):
        """Where the way begins: host and port."""
        cable = self._cables[name]
        return f"{cable.host}:{cable.port}"

    def trace(self, name, write):
        """Have all bytes of that way, of both directions, written down."""
        self._cables[name].trace = write

    def cut(self, name):
        """Connections are lost, and new ones too."""
        self._call(self._cables[name].cut)

    def hush(self, name):
        """Nothing passes, and nobody is told."""
        if self._space:
            self._space.hush(name)
        else:
            self._call(self._cables[name].hush)
        self._hushed.add(name)

    def mend(self, name):
        """It is whole again."""
        if name in self._hushed and self._space:
            self._space.mend(name)
        self._hushed.discard(name)
        self._call(self._cables[name].mend)
        self._call(self._cables[name].flow)

    def close(self):
        """All ends."""
        for cable in self._cables.values():
            asyncio.run_coroutine_threadsafe(cable.__aexit__(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        if self._space:
            self._space.close()

    def _call(self, what):
        async def do():
            what()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result()
