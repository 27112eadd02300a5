"""The reader: a client with stream management that logs in and counts what comes.

It searches the bytes for the ends of stanzas instead of parsing them, so that it costs
little of what is measured. It acknowledges whenever the server asks (XEP-0198), as clients
do; all servers get the same client.
"""

import asyncio
import re
import time

from harness.raw import RawClient

#: The end of a stanza, a request for an acknowledgement, or a message's number.
MARK = re.compile(
    rb"</(?:message|presence|iq)>"
    rb"|<(?:presence|iq|message)\b[^>]*/>"
    rb"|<(?P<ask>(?:\w+:)?r)\b[^>]*/>"
    rb"|<body>(?P<number>\d{7}) "
)


class Fetcher(RawClient):
    """`numbers` are those of the messages that came, in their order."""

    def __init__(self, server, user):
        super().__init__(server, f"{user}@{server.host}", "phone", sm=True, acks=True)
        self.numbers = []
        self.last = None
        self._rest = b""

    async def fetch(self, count, deadline):
        """Become available and read until `count` messages came: seconds until the last."""
        begin = await self._begin()
        await self._read_until(count, deadline)
        return self.last - begin

    async def fetch_until_quiet(self, count, quiet):
        """Become available and read until `count` messages came or none for `quiet` seconds."""
        await self._begin()
        before = -1
        while before < len(self.numbers) < count:
            before = len(self.numbers)
            await self._read_until(before + 1, time.monotonic() + quiet)

    async def _begin(self):
        self._task.cancel()  # the parser of RawClient makes room
        self.last = begin = time.monotonic()
        self.write("<presence/>")
        return begin

    async def _read_until(self, count, deadline):
        while len(self.numbers) < count and (left := deadline - time.monotonic()) > 0:
            try:
                data = await asyncio.wait_for(self._reader.read(1 << 16), left)
            except (TimeoutError, OSError):
                return
            if not data:
                return
            self._look(data)

    def _look(self, data):
        now = time.monotonic()
        data = self._rest + data
        cut = data.rfind(b">") + 1
        # a body's number stands behind the last '>' when its text is cut in two
        opening = data.rfind(b"<body>", 0, cut)
        if opening >= 0 and opening + len(b"<body>") == cut:
            cut = opening
        for mark in MARK.finditer(data, 0, cut):
            if mark["number"]:
                self.numbers.append(int(mark["number"]))
                self.last = now
            elif mark["ask"]:
                self.acknowledge(self.handled)
            else:
                self.handled += 1
        self._rest = data[cut:]
