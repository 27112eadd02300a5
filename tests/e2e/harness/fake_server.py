"""The server's side of XEP-0114 and of the intercept protocol, as honest or hostile as told."""

import asyncio
import hashlib
import xml.etree.ElementTree as ET
from xml.sax.saxutils import quoteattr

from .ports import free_port
from .prosody import COMPONENT, HOST, SECRET
from .stanzas import FORWARD, STREAMS, new_id, utc
from .waiting import PATIENCE, Deadline

ACCEPT = "jabber:component:accept"
INTERCEPT = "urn:amphora:intercept:1"


class FakeServer:
    """Listens where a node connects; each connection is a `Link`."""

    def __init__(self):
        self.component_port = free_port()
        self._links = asyncio.Queue()
        self._server = None

    async def __aenter__(self):
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.component_port, limit=1 << 24
        )
        return self

    async def __aexit__(self, *_):
        self._server.close()
        while not self._links.empty():
            self._links.get_nowait().cut()

    async def _accept(self, reader, writer):
        self._links.put_nowait(Link(reader, writer))

    async def link(self, seconds=PATIENCE):
        """The next connection."""
        try:
            return await asyncio.wait_for(self._links.get(), seconds)
        except asyncio.TimeoutError:
            raise Deadline(f"the node did not connect within {seconds:g} s") from None

    async def greeted(self, seconds=PATIENCE):
        """The next connection, authenticated and greeted."""
        link = await self.link(seconds)
        await link.handshake()
        await link.greet()
        return link


class Link:
    """One connection of the node."""

    def __init__(self, reader, writer):
        self._reader, self._writer = reader, writer
        self._parser = ET.XMLPullParser(events=("start", "end"))
        self._depth, self._root = 0, None
        self._waiting = []
        self.header = None
        self.ended = False

    def write(self, text):
        """Bytes (or text) as they are."""
        self._writer.write(text if isinstance(text, bytes) else text.encode())

    async def flood(self, chunk, limit):
        """Write `chunk` again and again until the node hangs up; the bytes it let pass."""
        sent = 0
        try:
            while sent < limit:
                self._writer.write(chunk)
                await asyncio.wait_for(self._writer.drain(), PATIENCE)
                sent += len(chunk)
                if self._reader.at_eof():
                    break
        except (ConnectionError, OSError):
            pass
        return sent

    def cut(self):
        """The connection breaks."""
        self._writer.transport.abort()

    async def next(self, seconds=PATIENCE):
        """The next whole element; None at the end of the stream."""
        while not self._waiting and not self.ended:
            try:
                data = await asyncio.wait_for(self._reader.read(65536), seconds)
            except asyncio.TimeoutError:
                raise Deadline(f"the node said nothing for {seconds:g} s") from None
            except OSError:
                data = b""
            if not data:
                self.ended = True
                break
            self._parser.feed(data)
            for event, element in self._parser.read_events():
                if event == "start":
                    self._depth += 1
                    if self._depth == 1:
                        self._root = self.header = element
                        self._waiting.append(element)
                    continue
                self._depth -= 1
                if self._depth == 1:
                    self._waiting.append(element)
                elif self._depth == 0:
                    self.ended = True
        return self._waiting.pop(0) if self._waiting else None

    async def handshake(self, answer="<handshake/>"):
        """Open the stream and let the node authenticate."""
        header = await self.next()
        assert header.tag == f"{{{STREAMS}}}stream", header.tag
        assert header.get("to") == COMPONENT, header.attrib
        stream = new_id("stream")
        self.write(
            f"<?xml version='1.0'?><stream:stream xmlns='{ACCEPT}' xmlns:stream='{STREAMS}' "
            f"from='{COMPONENT}' id='{stream}'>"
        )
        handshake = await self.next()
        assert handshake.tag == f"{{{ACCEPT}}}handshake", handshake.tag
        wanted = hashlib.sha1((stream + SECRET).encode()).hexdigest()
        assert handshake.text == wanted, "C2"
        self.write(answer)

    async def greet(self, **attributes):
        """Take the greeting and answer it; the greeting."""
        iq = await self.next()
        greeting = iq.find(f"{{{INTERCEPT}}}greeting")
        assert iq.get("type") == "set" and greeting is not None, ET.tostring(iq)
        assert iq.get("from") == COMPONENT and iq.get("to") == HOST, "C4"
        said = {
            "version": "1",
            "server": "Fake 1",
            "module": "0.1.0",
            "acks": "true",
            "max-stanza": "524288",
            **attributes,
        }
        given = " ".join(f"{k}={quoteattr(v)}" for k, v in said.items())
        self.write(
            f"<iq type='result' id='{iq.get('id')}' from='{HOST}' to='{COMPONENT}'>"
            f"<greeting xmlns='{INTERCEPT}' {given}/></iq>"
        )
        return greeting

    async def verdict(self, key):
        """Read on until the verdict for that key."""
        while True:
            stanza = await self.next()
            assert stanza is not None, f"the node closed the stream before deciding {key}"
            for verdict in stanza.iter(f"{{{INTERCEPT}}}verdict"):
                if verdict.get("key") == key:
                    return verdict

    async def until_end(self, seconds=PATIENCE):
        """Read to the end of the stream; the stream error's condition, if one was sent."""
        condition = None
        while (stanza := await self.next(seconds)) is not None:
            if stanza.tag == f"{{{STREAMS}}}error":
                condition = stanza[0].tag.rpartition("}")[2]
        return condition


def intercept(to, body, *, key, stage="offline", payload="", again=False, **attributes):
    """An intercept as the interceptor would send it."""
    more = {"leg": "recipient", "account": "true", "may-see-presence": "true", "archived": "false"}
    more.update({k.replace("_", "-"): v for k, v in attributes.items()})
    if again:
        more["again"] = "true"
    given = " ".join(f"{k}={quoteattr(v)}" for k, v in more.items())
    return (
        f"<message from='{HOST}' to='{COMPONENT}'>"
        f"<intercept xmlns='{INTERCEPT}' key='{key}' stage='{stage}' to='{to}' {given}>"
        f"<forwarded xmlns='{FORWARD}'><delay xmlns='urn:xmpp:delay' stamp='{utc()}'/>"
        f"<message xmlns='jabber:client' from='alice@{HOST}/desk' to='{to}' type='chat' id='{key}'>"
        f"<body>{body}</body>{payload}</message></forwarded></intercept></message>"
    )


def available(jid, session, n=1):
    """A session that could take what is stored."""
    return (
        f"<message from='{HOST}' to='{COMPONENT}'><available xmlns='{INTERCEPT}' "
        f"session='{session}' n='{n}' jid='{jid}' priority='1' acks='true' archive='false'/></message>"
    )
