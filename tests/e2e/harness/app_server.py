"""The server of a phone's maker, to which push notifications go: a component that says yes."""

import asyncio
import hashlib
import xml.etree.ElementTree as ET

from .stanzas import PUSH, STREAMS
from .waiting import until

ACCEPT = "jabber:component:accept"
DOMAIN = "push.example.org"
PUSH_SECRET = "of the app server"
CONFIG = f'Component "{DOMAIN}"\n  component_secret = "{PUSH_SECRET}"'

PUBLISH = "{http://jabber.org/protocol/pubsub}pubsub/{http://jabber.org/protocol/pubsub}publish"
FIELD = "{jabber:x:data}field"
VALUE = "{jabber:x:data}value"


class AppServer:
    """Connects as DOMAIN; `pushes` are (node, important) in the order in which they came,
    `messages` whatever else the domain was sent."""

    def __init__(self, server):
        self._server = server
        self.pushes, self.messages = [], []
        self._root, self._ready = None, False
        self._reader = self._writer = self._task = None

    async def __aenter__(self):
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._server.component_port
        )
        self.write(
            f"<?xml version='1.0'?><stream:stream xmlns='{ACCEPT}' xmlns:stream='{STREAMS}' "
            f"to='{DOMAIN}'>"
        )
        self._task = asyncio.ensure_future(self._read())
        await until(lambda: self._root is not None, "the app server's stream")
        proof = hashlib.sha1((self._root.get("id") + PUSH_SECRET).encode()).hexdigest()
        self.write(f"<handshake>{proof}</handshake>")
        await until(lambda: self._ready, "the app server's handshake")
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        self._writer.transport.abort()

    def of(self, node):
        """The pushes of one device: for each whether it was important."""
        return [important for name, important in self.pushes if name == node]

    async def count(self, node, count):
        """Wait for so many pushes of that device."""
        await until(lambda: len(self.of(node)) >= count, f"{count} for {node}: {self.pushes}")
        return self.of(node)

    async def important(self, node, count):
        """Wait for so many important ones. Presence that a session left makes unimportant ones."""
        await until(lambda: sum(self.of(node)) >= count, f"{count} for {node}: {self.pushes}")

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
                    self._take(element)

    def _take(self, element):
        if element.tag == f"{{{ACCEPT}}}handshake":
            self._ready = True
        if element.tag == f"{{{ACCEPT}}}message":
            self.messages.append(element)
        if element.tag != f"{{{ACCEPT}}}iq" or element.get("type") != "set":
            return
        publish = element.find(PUBLISH)
        filled = {f.get("var") for f in publish.iter(FIELD) if f.find(VALUE) is not None}
        self.pushes.append((publish.get("node"), "last-message-body" in filled))
        self.write(
            f"<iq type='result' id='{element.get('id')}' from='{DOMAIN}' "
            f"to='{element.get('from')}'/>"
        )


async def enable_push(client, node):
    """The client asks for push notifications to that device."""
    answer = await client.iq(f"<enable xmlns='{PUSH}' jid='{DOMAIN}' node='{node}'/>", type="set")
    assert answer.type == "result", answer
