"""A way to a server that can be cut, and mended."""

import asyncio


class Cable:
    """Passes on what comes to its port. Used by a node in place of the server's. `port`: where it ends,
    if not where the server takes components. `host`: where it begins."""

    def __init__(self, server, port=None, host="127.0.0.1"):
        self._server, self._port, self._host = server, port, host
        self._listener = None
        self._writers = set()
        self._whole = True
        #: called with all bytes that pass, of both directions
        self.trace = None
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def __aenter__(self):
        self._listener = await asyncio.start_server(self._serve, self._host, 0)
        return self

    async def __aexit__(self, *_):
        self.cut()
        self.flow()
        self._listener.close()

    @property
    def host(self):
        """Where it begins: the address."""
        return self._host

    @property
    def port(self):
        """Where it begins."""
        return self._listener.sockets[0].getsockname()[1]

    def cut(self):
        """Both ends lose their connection, and get no new one."""
        self._whole = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def mend(self):
        """New connections are passed on."""
        self._whole = True

    def hush(self):
        """Nothing passes, and nobody is told: as when a network loses every packet."""
        self._flowing.clear()

    def flow(self):
        """What was kept back passes, in its order."""
        self._flowing.set()

    async def _serve(self, reader, writer):
        if not self._whole:
            writer.transport.abort()
            return
        await self._flowing.wait()
        try:
            there = await asyncio.open_connection("127.0.0.1", self._port or self._server.component_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        if not self._whole:
            self.cut()
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))
        self._writers -= {writer, there[1]}

    async def _pass(self, reader, writer):
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                if self.trace:
                    self.trace(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
