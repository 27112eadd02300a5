"""A gateway to another network: an external component (XEP-0114), as slixmpp makes them."""

import asyncio
import xml.etree.ElementTree as ET

import slixmpp

from .inbox import Inbox
from .stanzas import CLIENT, Stanza
from .waiting import PATIENCE

ACCEPT = "jabber:component:accept"


class Gateway(slixmpp.ComponentXMPP):
    """Records what comes for anybody behind it."""

    def __init__(self, server, domain, secret):
        super().__init__(domain, secret, "127.0.0.1", server.component_port)
        self.inbox = Inbox(domain)
        self.add_filter("in", self._record)

    def _record(self, stanza):
        if isinstance(stanza, slixmpp.Message):
            # the same words as in a client's stream, but for the namespace
            text = ET.tostring(stanza.xml, encoding="unicode").replace(ACCEPT, CLIENT)
            self.inbox.add(Stanza(ET.fromstring(text)))
        return stanza

    async def __aenter__(self):
        started = asyncio.get_running_loop().create_future()

        def done(_event):
            if not started.done():
                started.set_result(None)

        self.add_event_handler("session_start", done)
        self.connect()
        await asyncio.wait_for(started, PATIENCE)
        return self

    async def __aexit__(self, *_):
        self.abort()
