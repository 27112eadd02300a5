"""A way to a server that can be cut, and mended."""

import asyncio


class Cable:
    """Passes on what comes to its port. Used by a node in place of the server's."""

    def __init__(self, server):
        self._server = server
        self._listener = None
        self._writers = set()
        self._whole = True

    async def __aenter__(self):
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_):
        self.cut()
        self._listener.close()

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

    async def _serve(self, reader, writer):
        if not self._whole:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self._server.component_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        if not self._whole:
            self.cut()
        await asyncio.gather(self._pass(reader, there[1]), self._pass(there[0], writer))
        self._writers -= {writer, there[1]}

    @staticmethod
    async def _pass(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()
