"""A client made of bytes, for what a well-behaved library won't do."""

import asyncio
import base64
import socket
import xml.etree.ElementTree as ET
from xml.sax.saxutils import quoteattr

from .inbox import Inbox
from .prosody import PASSWORD
from .stanzas import CLIENT, SM, STREAMS, Stanza, message, new_id
from .waiting import PATIENCE, Deadline

BIND = "urn:ietf:params:xml:ns:xmpp-bind"
SASL = "urn:ietf:params:xml:ns:xmpp-sasl"


class RawClient:
    """Acknowledges only if told to (`acks=True`), or by `acknowledge`.

    Its session can be resumed with stream management, unless that is `sm="once"`. `accepted` is how
    many of its stanzas the server said that it has (XEP-0198, section 4).
    """

    def __init__(self, server, jid, resource, *, sm=False, acks=False):
        self.prosody = server
        self.jid, self.resource = jid, resource
        self.sm, self.acks = sm, acks
        self.inbox = Inbox(f"{jid}/{resource}")
        self.features = None
        self.handled = 0
        self.resumption = None
        self.asked = 0
        self.accepted = 0
        self.closed = asyncio.Event()
        self._nonzas = asyncio.Queue()
        self._reader = self._writer = self._task = None

    async def login(self):
        """Connect, authenticate, bind, and enable stream management if wanted."""
        await self._authenticate()
        self.write(
            f"<iq xmlns='{CLIENT}' type='set' id='bind'><bind xmlns='{BIND}'>"
            f"<resource>{self.resource}</resource></bind></iq>"
        )
        await self.inbox.until(
            lambda box: any(s.id == "bind" and s.type == "result" for s in box.all), "the bind"
        )
        if self.sm:
            resume = "" if self.sm == "once" else " resume='true'"
            self.write(f"<enable xmlns='{SM}'{resume}/>")
            answer = await self._nonza()
            assert answer.tag == f"{{{SM}}}enabled", ET.tostring(answer)
            self.resumption = answer.get("id")
        return self

    async def resume(self, dead):
        """Take over the session of `dead`, with what it had acknowledged."""
        answer = await self.try_to_resume(dead)
        assert answer.tag == f"{{{SM}}}resumed", ET.tostring(answer)
        return self

    async def try_to_resume(self, dead):
        """The same; what the server said to it."""
        await self._authenticate()
        self.sm, self.resumption, self.handled = True, dead.resumption, dead.handled
        self.write(f"<resume xmlns='{SM}' h='{dead.handled}' previd='{dead.resumption}'/>")
        return await self._nonza()

    async def _authenticate(self):
        await self._open()
        await self._nonza(f"{{{STREAMS}}}features")
        user = self.jid.partition("@")[0]
        token = base64.b64encode(f"\0{user}\0{PASSWORD}".encode()).decode()
        self.write(f"<auth xmlns='{SASL}' mechanism='PLAIN'>{token}</auth>")
        answer = await self._nonza()
        assert answer.tag == f"{{{SASL}}}success", ET.tostring(answer)
        # the server starts a new document
        self._task.cancel()
        self._start_stream()
        self.features = await self._nonza(f"{{{STREAMS}}}features")

    async def _open(self):
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.prosody.c2s, limit=1 << 22
        )
        self._start_stream()

    def _start_stream(self):
        self.write(
            f"<?xml version='1.0'?><stream:stream to='{self.prosody.host}' version='1.0' "
            f"xmlns='{CLIENT}' xmlns:stream='{STREAMS}'>"
        )
        self._task = asyncio.ensure_future(self._read())

    async def _read(self):
        parser = ET.XMLPullParser(events=("start", "end"))
        depth, root = 0, None
        while True:
            try:
                data = await self._reader.read(65536)
            except OSError:
                data = b""
            if not data:
                self.closed.set()
                self._nonzas.put_nowait(None)
                return
            parser.feed(data)
            for event, element in parser.read_events():
                if event == "start":
                    depth += 1
                    root = element if root is None else root
                    continue
                depth -= 1
                if depth == 1:
                    root.clear()
                    self._take(element)
                elif depth == 0:
                    self.closed.set()

    def _take(self, element):
        namespace = element.tag[1:].partition("}")[0]
        if namespace == CLIENT:
            self.handled += 1
            self.inbox.add(Stanza(element))
        elif element.tag == f"{{{SM}}}r":
            self.asked += 1
            if self.acks:
                self.acknowledge(self.handled)
        elif element.tag == f"{{{SM}}}a":
            self.accepted = int(element.get("h"))
        else:
            if element.tag == f"{{{SM}}}enabled":
                self.handled = 0  # at once: what comes with it may ask for it
            self._nonzas.put_nowait(element)

    async def _nonza(self, tag=None):
        try:
            element = await asyncio.wait_for(self._nonzas.get(), PATIENCE)
        except asyncio.TimeoutError:
            raise Deadline(f"{self.inbox.owner}: the server said nothing") from None
        assert element is not None, f"{self.inbox.owner}: the server closed the stream"
        assert tag in (None, element.tag), ET.tostring(element)
        return element

    def write(self, text):
        """Bytes as they are."""
        self._writer.write(text.encode())

    async def drain(self):
        """Wait until the server took what was written."""
        await self._writer.drain()

    def acknowledge(self, handled):
        """Tell the server how many stanzas were taken (XEP-0198)."""
        self.write(f"<a xmlns='{SM}' h='{handled}'/>")

    def ask(self):
        """Ask the server how many stanzas it has; the answer goes to `accepted`."""
        self.write(f"<r xmlns='{SM}'/>")

    async def available(self, priority=0):
        """Become available, and wait until the server has said so."""
        id = new_id("p")
        self.write(f"<presence id='{id}'><priority>{priority}</priority></presence>")
        await self.inbox.until(
            lambda box: any(s.name == "presence" and s.id == id for s in box.all),
            "the echo of its own presence",
        )
        return self

    def send_text(self, to, body, **extra):
        """Send a message; its id."""
        return self.send_xml(message(to, body, **extra))

    def send_xml(self, text):
        """Send a stanza given as text; its id."""
        self.write(text)
        return ET.fromstring(text).get("id")

    async def iq(self, payload, *, type="get", to=None):
        """A request and its answer."""
        id = new_id("q")
        target = f" to={quoteattr(to)}" if to else ""
        self.write(f"<iq type='{type}' id='{id}'{target}>{payload}</iq>")
        found = await self.inbox.until(
            lambda box: [s for s in box.all if s.name == "iq" and s.id == id], "the answer to an IQ"
        )
        return found[0]

    async def ping(self):
        """A round trip to the server: what it sent before has come."""
        await self.iq("<ping xmlns='urn:xmpp:ping'/>", to=self.prosody.host)

    def stop_reading(self):
        """Whatever comes stays in the socket, until that is full. It has little room."""
        self._task.cancel()
        transport = self._writer.transport
        transport.pause_reading()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    async def leave(self):
        """Log out in good order, with all that came acknowledged, if it acknowledges."""
        if self.closed.is_set() or self._writer is None:
            return
        if self.sm and self.acks:
            self.acknowledge(self.handled)
        self.write("</stream:stream>")
        try:
            await asyncio.wait_for(self.closed.wait(), PATIENCE)
        finally:
            await self.vanish()

    async def vanish(self):
        """The socket dies without a goodbye."""
        if self._task:
            self._task.cancel()
        if self._writer:
            self._writer.transport.abort()
        self.closed.set()
