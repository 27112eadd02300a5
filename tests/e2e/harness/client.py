"""A client as people use them: slixmpp, with stream management and XEP-0079."""

import asyncio
import xml.etree.ElementTree as ET

import slixmpp

from .inbox import Inbox
from .prosody import PASSWORD
from .stanzas import CLIENT, Stanza, message, new_id
from .waiting import PATIENCE


class Client(slixmpp.ClientXMPP):
    """Logs in, records what comes, acknowledges it when asked."""

    def __init__(self, server, jid, resource, *, sm=True):
        super().__init__(f"{jid}/{resource}", PASSWORD)
        self.prosody = server
        self.inbox = Inbox(f"{jid}/{resource}")
        self.enable_direct_tls = False
        self.enable_starttls = False
        self.enable_plaintext = True
        self.plugin["feature_mechanisms"].unencrypted_plain = True
        self.register_plugin("xep_0030")
        self.register_plugin("xep_0079")
        self.register_plugin("xep_0199")
        if sm:
            self.register_plugin("xep_0198")
        self.add_filter("in", self._record)

    def _record(self, stanza):
        if isinstance(stanza, (slixmpp.Message, slixmpp.Presence, slixmpp.Iq)):
            self.inbox.add(Stanza(stanza.xml))
        return stanza

    async def login(self):
        """Connect and bind, without presence."""
        started = asyncio.get_running_loop().create_future()

        def done(_event):
            if not started.done():
                started.set_result(None)

        def failed(event):
            if not started.done():
                started.set_exception(AssertionError(f"{self.inbox.owner}: no login: {event}"))

        self.add_event_handler("session_start", done)
        self.add_event_handler("failed_auth", failed)
        self.connect("127.0.0.1", self.prosody.c2s)
        await asyncio.wait_for(started, PATIENCE)
        return self

    async def available(self, priority=0):
        """Become available, and wait until the server has said so."""
        id = new_id("p")
        # slixmpp drops the id of a presence built from nothing, so it is written out
        text = f"<presence xmlns='{CLIENT}' id='{id}'><priority>{priority}</priority></presence>"
        self.send(slixmpp.Presence(self, ET.fromstring(text)))
        await self.inbox.until(
            lambda box: any(s.name == "presence" and s.id == id for s in box.all),
            "the echo of its own presence",
        )
        return self

    def send_text(self, to, body, **extra):
        """Send a message; its id."""
        return self.send_xml(message(to, body, **extra))

    def send_xml(self, text):
        """Send a message given as text, through slixmpp's queue; its id."""
        element = ET.fromstring(text)
        self.send(slixmpp.Message(self, element))
        return element.get("id")

    async def ping(self):
        """A round trip to the server: what it sent before has come."""
        await self["xep_0199"].ping(jid=self.boundjid.host, timeout=PATIENCE)

    async def leave(self):
        """Log out in good order, with all that came acknowledged."""
        if self.is_connected():
            await self.ping()
            if "xep_0198" in self.plugin:
                self["xep_0198"].send_ack()
            await self.disconnect()

    async def vanish(self):
        """The socket dies, no goodbye, and it does not come back."""
        self.abort()
