"""Components that a test plays, linked to a real server; above all a node."""

import asyncio
import hashlib
import xml.etree.ElementTree as ET

from .prosody import COMPONENT, SECRET
from .stanzas import STREAMS, new_id
from .waiting import until

ACCEPT = "jabber:component:accept"
INTERCEPT = "urn:amphora:intercept:1"


class External:
    """An external component (XEP-0114): connects to a server under a domain of its own."""

    def __init__(self, server, domain, secret):
        self._server, self._domain, self._secret = server, domain, secret
        self.all = []
        self._reader = self._writer = self._task = None
        self._root = None

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._server.component_port, limit=1 << 24
        )
        self.write(
            f"<?xml version='1.0'?><stream:stream xmlns='{ACCEPT}' xmlns:stream='{STREAMS}' "
            f"to='{self._domain}'>"
        )
        self._task = asyncio.ensure_future(self._read())
        await until(lambda: self._root is not None, "the stream's header")
        proof = hashlib.sha1((self._root.get("id") + self._secret).encode()).hexdigest()
        self.write(f"<handshake>{proof}</handshake>")
        await until(lambda: self.all, "the handshake")
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        self._writer.transport.abort()

    def write(self, text):
        """Bytes as they are."""
        self._writer.write(text.encode())

    async def _read(self):
        parser, depth = ET.XMLPullParser(events=("start", "end")), 0
        while data := await self._reader.read(65536):
            parser.feed(data)
            for event, element in parser.read_events():
                depth += 1 if event == "start" else -1
                if event == "start" and depth == 1:
                    self._root = element
                elif event == "end" and depth == 1:
                    self.all.append(element)
                    self.take(element)

    def take(self, element):
        """Called with each stanza that comes, after it was added to `all`."""


class Component(External):
    """A node that only listens, and says what the test makes it say."""

    def __init__(self, server, domain=COMPONENT):
        super().__init__(server, domain, SECRET)
        self.domain = domain

    async def greet(self, window=1024, security="strict", supports=""):
        """Greet, and wait for the answer."""
        id = new_id("g")
        self.write(
            f"<iq type='set' from='{self.domain}' to='{self._server.host}' id='{id}'><greeting "
            f"xmlns='{INTERCEPT}' version='1' node='n0' security='{security}' window='{window}'>"
            f"{supports}</greeting></iq>"
        )
        await until(lambda: any(e.get("id") == id for e in self.all), "the answer to the greeting")

    async def round_trip(self):
        """Wait until the server has read what was written, and has answered that."""
        id = new_id("t")
        self.write(
            f"<iq type='get' from='{self.domain}' to='{self._server.host}' id='{id}'>"
            f"<nothing xmlns='{INTERCEPT}'/></iq>"
        )
        await until(lambda: any(e.get("id") == id for e in self.all), "an answer")

    def said(self, name):
        """All elements of the protocol with that name, so far."""
        return [found for e in self.all for found in e.iter(f"{{{INTERCEPT}}}{name}")]

    def say(self, element):
        """An element of the protocol, given as text without its namespace."""
        text = element.replace(" ", f" xmlns='{INTERCEPT}' ", 1)
        self.write(f"<message from='{self.domain}' to='{self._server.host}'>{text}</message>")

    def verdict(self, key, what, stage="rules"):
        """Answer an intercept."""
        self.write(
            f"<message from='{self.domain}' to='{self._server.host}'><verdicts xmlns='{INTERCEPT}'>"
            f"<verdict key='{key}' stage='{stage}' do='{what}'/></verdicts></message>"
        )
