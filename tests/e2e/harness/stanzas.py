"""Stanzas as the tests write and read them."""

import itertools
import xml.etree.ElementTree as ET
from datetime import datetime, timedelta, timezone
from xml.sax.saxutils import escape, quoteattr

CLIENT = "jabber:client"
AMP = "http://jabber.org/protocol/amp"
AMP_ERRORS = "http://jabber.org/protocol/amp#errors"
AMP_FEATURE = "http://jabber.org/features/amp"
STANZAS = "urn:ietf:params:xml:ns:xmpp-stanzas"
STREAMS = "http://etherx.jabber.org/streams"
DELAY = "urn:xmpp:delay"
HINTS = "urn:xmpp:hints"
CARBONS = "urn:xmpp:carbons:2"
FORWARD = "urn:xmpp:forward:0"
SM = "urn:xmpp:sm:3"
CHATSTATES = "http://jabber.org/protocol/chatstates"
INFO = "http://jabber.org/protocol/disco#info"
ITEMS = "http://jabber.org/protocol/disco#items"
COMMANDS = "http://jabber.org/protocol/commands"
OFFLINE = "msgoffline"
RETRIEVAL = "http://jabber.org/protocol/offline"
STANZA_ID = "urn:xmpp:sid:0"
MAM = "urn:xmpp:mam:2"
PUSH = "urn:xmpp:push:0"
BLOCKING = "urn:xmpp:blocking"
CSI = "urn:xmpp:csi:0"
RECEIPTS = "urn:xmpp:receipts"
MARKERS = "urn:xmpp:chat-markers:0"
MUC = "http://jabber.org/protocol/muc"
MUC_USER = "http://jabber.org/protocol/muc#user"
INVITATION = "jabber:x:conference"

_ids = itertools.count(1)


def new_id(prefix="m"):
    """An id that no other stanza of this run has."""
    return f"{prefix}-{next(_ids)}"


def utc(seconds=0.0):
    """Now and so many seconds, as XEP-0082 writes it."""
    moment = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def parse_utc(text):
    """The time that a stamp means."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def rule(action, condition, value):
    """One rule; an argument that is None is left out."""
    attributes = {"action": action, "condition": condition, "value": value}
    given = "".join(f" {k}={quoteattr(v)}" for k, v in attributes.items() if v is not None)
    return f"<rule{given}/>"


def amp(*rules, **attributes):
    """`<amp/>` with these rules (`per_hop='true'` becomes per-hop)."""
    given = "".join(f" {k.replace('_', '-')}={quoteattr(v)}" for k, v in attributes.items())
    return f"<amp xmlns='{AMP}'{given}>{''.join(rules)}</amp>"


def message(to, body=None, *, id="", type="chat", payload=""):
    """A message as text. `id=None` or `type=None` leave the attribute out."""
    if id == "":
        id = new_id()
    attributes = {"to": to, "id": id, "type": type}
    given = "".join(f" {k}={quoteattr(v)}" for k, v in attributes.items() if v is not None)
    text = f"<body>{escape(body)}</body>" if body is not None else ""
    return f"<message xmlns='{CLIENT}'{given}>{text}{payload}</message>"


class Stanza:
    """A received stanza."""

    def __init__(self, element):
        self.element = element
        self.name = element.tag.rpartition("}")[2]
        self.id = element.get("id")
        self.type = element.get("type")
        self.sender = element.get("from")
        self.to = element.get("to")

    def find(self, path):
        """The first descendant at a path like '{ns}a/{ns}b'."""
        return self.element.find(path)

    @property
    def body(self):
        """The text of the body, or None."""
        return self.element.findtext(f"{{{CLIENT}}}body")

    @property
    def amp(self):
        """The `<amp/>` child, or None."""
        return self.element.find(f"{{{AMP}}}amp")

    @property
    def status(self):
        """The status of `<amp/>`, or None."""
        return None if self.amp is None else self.amp.get("status")

    @property
    def rules(self):
        """The rules in `<amp/>`, each (action, condition, value)."""
        return [] if self.amp is None else rules_of(self.amp, AMP)

    @property
    def delays(self):
        """All `<delay/>` children."""
        return self.element.findall(f"{{{DELAY}}}delay")

    def stanza_id(self, by):
        """The id that `by` gave it (XEP-0359), or None; there is at most one."""
        all_ids = self.element.findall(f"{{{STANZA_ID}}}stanza-id")
        found = [e.get("id") for e in all_ids if e.get("by") == by]
        assert len(found) <= 1, self
        return found[0] if found else None

    @property
    def error(self):
        """The `<error/>` child, or None."""
        return self.element.find(f"{{{CLIENT}}}error")

    @property
    def condition(self):
        """The defined condition of the error, or None."""
        if self.error is None:
            return None
        for child in self.error:
            if child.tag.startswith(f"{{{STANZAS}}}") and not child.tag.endswith("}text"):
                return child.tag.rpartition("}")[2]
        return None

    @property
    def carbon(self):
        """The message inside a carbon copy, or None."""
        for kind in ("received", "sent"):
            path = f"{{{CARBONS}}}{kind}/{{{FORWARD}}}forwarded/{{{CLIENT}}}message"
            inner = self.element.find(path)
            if inner is not None:
                return Stanza(inner)
        return None

    def __repr__(self):
        return ET.tostring(self.element, encoding="unicode")


def rules_of(element, namespace):
    """The rules under an element, each (action, condition, value)."""
    return [
        (found.get("action"), found.get("condition"), found.get("value"))
        for found in element.findall(f"{{{namespace}}}rule")
    ]
