"""The sender: a raw component (XEP-0114) that writes as fast as the server reads.

A component, because limits on clients do not slow it down and one connection carries all
senders. What the server has accepted is known by an IQ ping behind the last message: its
reply is written after the server has dealt with all that came before.
"""

import asyncio
import hashlib
import re
import time

from harness.prosody import HOST, SECRET
from harness.stanzas import STREAMS

LOAD = "load.example.org"
#: Senders that the messages come from, in turn; no divisor of the usual numbers of users.
SENDERS = 47
#: Bytes of a message's text.
BODY = 200
#: Bytes that are written before the socket is asked whether it can take more.
CHUNK = 1 << 16

PONG = re.compile(rb"<iq\b[^>]*\bid=['\"]ping-(\d+)['\"]")
ERROR = re.compile(rb"<message\b[^>]*\btype=['\"]error['\"]")


class Gone(Exception):
    """The server closed the stream."""


def message(number, user):
    """Message `number`, whose text begins with the number."""
    sender = f"s{number % SENDERS}@{LOAD}/load"
    body = f"{number:07d} ".ljust(BODY, "x")
    return (
        f"<message from='{sender}' to='{user}@{HOST}' id='m{number}' type='chat'>"
        f"<body>{body}</body></message>"
    )


def ping(number):
    """The question whose answer says that all before it was accepted."""
    return (
        f"<iq type='get' id='ping-{number}' from='{LOAD}' to='{HOST}'><ping xmlns='urn:xmpp:ping'/></iq>"
    )


class Load:
    """One component stream. `errors` counts messages that came back, `accepted` those that the
    server has dealt with; `begin` is when the first byte was written."""

    def __init__(self, server):
        self.server = server
        self.errors = self.accepted = 0
        self.begin = None
        self.on_accepted = None
        self._awaited = []
        self._reader = self._writer = self._task = None

    async def connect(self):
        """Open the stream and shake hands."""
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.server.component_port
        )
        self._write(
            f"<?xml version='1.0'?><stream:stream to='{LOAD}' "
            f"xmlns='jabber:component:accept' xmlns:stream='{STREAMS}'>"
        )
        header = await self._reader.readuntil(b"<stream:stream")
        header = await self._reader.readuntil(b">")
        stream = re.search(rb"\bid=['\"]([^'\"]*)['\"]", header).group(1).decode()
        token = hashlib.sha1((stream + SECRET).encode()).hexdigest()
        self._write(f"<handshake>{token}</handshake>")
        answer = await self._reader.readuntil(b">")
        if b"handshake" not in answer:
            raise Gone(f"no handshake: {answer!r}")
        self._task = asyncio.ensure_future(self._read())
        return self

    def _write(self, text):
        self._writer.write(text.encode())

    async def send(self, users, count, every=500):
        """`count` messages to the users in turn, with a ping after each `every` of them; until
        the last ping is answered. The replies set `accepted`, and go to `on_accepted`."""
        texts, last = [], None
        for i in range(count):
            texts.append(message(i, users[i % len(users)]))
            if (i + 1) % every == 0 or i + 1 == count:
                number, last = self._next_ping(i + 1)
                texts.append(ping(number))
        data = memoryview("".join(texts).encode())
        self.begin = time.monotonic()
        for at in range(0, len(data), CHUNK):
            self._writer.write(data[at : at + CHUNK])
            await self._writer.drain()
        await last

    async def ended(self):
        """What the server had written before it died is read to its end."""
        await self._task

    def _next_ping(self, accepted):
        future = asyncio.get_running_loop().create_future()
        self._awaited.append((accepted, future))
        return len(self._awaited) - 1, future

    async def _read(self):
        kept = b""
        while True:
            try:
                data = await self._reader.read(CHUNK)
            except OSError:
                data = b""
            if not data:
                break
            kept = self._look(kept + data)
        for _, answered in self._awaited:
            if not answered.done():
                answered.set_exception(Gone("the server closed the component's stream"))
                answered.exception()  # looked at: only the last of them is awaited

    def _look(self, data):
        """Count what is in these bytes; those that may be the beginning of more."""
        cut = data.rfind(b">") + 1
        whole, rest = data[:cut], data[cut:]
        self.errors += len(ERROR.findall(whole))
        for found in PONG.finditer(whole):
            self.accepted, answered = self._awaited[int(found.group(1))]
            if self.on_accepted:
                self.on_accepted(self.accepted)
            if not answered.done():
                answered.set_result(None)
        return rest

    async def close(self):
        """The socket is given up."""
        if self._task:
            self._task.cancel()
        if self._writer:
            self._writer.transport.abort()
