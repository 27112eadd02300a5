"""Ways of a node to its NATS, its database and its server, each of which can be cut or fall silent.

They are TCP proxies, so that no rights are needed. `cut` is a network that says so (connections are
reset, and new ones closed), `hush` one that loses all without a word.
"""

import asyncio
import threading

from .cable import Cable


class Ways:
    """Cables by name, passing on in a thread of their own, whatever the test waits for."""

    def __init__(self, ports):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._cables = {name: Cable(None, port) for name, port in ports.items()}
        for cable in self._cables.values():
            asyncio.run_coroutine_threadsafe(cable.__aenter__(), self._loop).result()

    def port(self, name):
        """Where the way begins."""
        return self._cables[name].port

    def cut(self, name):
        """Connections are lost, and new ones too."""
        self._call(self._cables[name].cut)

    def hush(self, name):
        """Nothing passes, and nobody is told."""
        self._call(self._cables[name].hush)

    def mend(self, name):
        """It is whole again."""
        self._call(self._cables[name].mend)
        self._call(self._cables[name].flow)

    def close(self):
        """All ends."""
        for cable in self._cables.values():
            asyncio.run_coroutine_threadsafe(cable.__aexit__(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, what):
        async def do():
            what()

        asyncio.run_coroutine_threadsafe(do(), self._loop).result()
