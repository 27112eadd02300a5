"""Somebody who may not see a recipient's presence, and tries to find it out by rules.

A probe is one message. It is sent between two pings in one write, with the node standing still:
so what stands between the answers to these is what the server says by itself.
"""

import itertools
import re
from dataclasses import dataclass

from .stanzas import AMP, HINTS, STANZA_ID, amp, new_id, rule

PAST, FUTURE = "2004-01-01T00:00:00Z", "2099-01-01T00:00:00Z"

#: Every condition with every value (XEP-0079 section 3.3).
CONDITIONS = [
    *(("deliver", value) for value in ("direct", "stored", "none", "forward", "gateway")),
    ("expire-at", PAST),
    ("expire-at", FUTURE),
    *(("match-resource", value) for value in ("any", "exact", "other")),
]
#: The actions that bring an answer.
ANSWERS = ("alert", "error", "notify")
BODY = "<body>probe</body>"


@dataclass(frozen=True)
class Probe:
    """A message without its address."""

    name: str
    #: what is in it
    payload: str
    #: a refusal must come back, and nothing else; otherwise nothing at all
    refused: bool
    type: str | None = "chat"
    has_id: bool = True


def with_rules(*rules, content=BODY, type="chat", **attributes):
    """A probe with these rules, each (action, condition, value)."""
    refused = any(action != "drop" for action, _, _ in rules)
    name = " ".join("/".join(given) for given in rules)
    kind = f"{type} {content}" if (content, type) != (BODY, "chat") else ""
    payload = content + amp(*(rule(*given) for given in rules), **attributes)
    return Probe(f"{name} {kind}".strip(), payload, refused, type)


def singles():
    """Each action with each condition."""
    for action in ("drop", *ANSWERS):
        for condition in CONDITIONS:
            yield with_rules((action, *condition))


def pairs():
    """Two rules: drop with each other action, first and second; its own condition in both rules,
    and another."""
    for at, far in itertools.product(range(len(CONDITIONS)), (0, 3)):
        drop = ("drop", *CONDITIONS[at])
        for action in ("drop", *ANSWERS):
            other = (action, *CONDITIONS[(at + far) % len(CONDITIONS)])
            yield with_rules(drop, other)
            yield with_rules(other, drop)


def kinds():
    """Types, content and hints that decide what becomes of a message."""
    composing = "<composing xmlns='http://jabber.org/protocol/chatstates'/>"
    hints = ["", f"<no-store xmlns='{HINTS}'/>", f"<store xmlns='{HINTS}'/>"]
    direct, stored, none, *_, exact, other = CONDITIONS
    rules = [("drop", *one) for one in (direct, stored, none, exact, other)]
    rules.append(("notify", *none))
    for type, text, hint in itertools.product(
        ("chat", None, "headline", "other"), (BODY, composing), hints
    ):
        for given in rules:
            yield with_rules(given, content=text + hint, type=type)


def invalid():
    """Rules that are refused whoever sends them, and per-hop."""
    drop = ("drop", "deliver", "stored")
    bad = [
        ("explode", "deliver", "stored"),
        ("drop", "weather", "fine"),
        ("drop", "deliver", "nowhere"),
        ("drop", "deliver", ""),
        ("drop", "expire-at", "tomorrow"),
        ("drop", "expire-at", "2026-11-22T17:00:00+01:00"),
        ("drop", "match-resource", "some"),
        ("drop", "deliver", "x" * 200),
        (None, "deliver", "stored"),
        ("drop", None, "stored"),
        ("drop", "deliver", None),
    ]
    for given in bad:
        for rules in ([given], [drop, given], [given, drop], [given, ("notify", *drop[1:])]):
            text = "".join(rule(*one) for one in rules)
            yield Probe(f"invalid {text}", BODY + amp(text), True)
    good = amp(rule(*drop))
    yield Probe("no id", BODY + good, True, has_id=False)
    yield Probe("two sets of rules", BODY + good + good, True)
    yield Probe("no rule", BODY + f"<amp xmlns='{AMP}'/>", True)
    yield Probe("33 rules", BODY + amp(*[rule(*drop)] * 33), True)
    yield Probe("per-hop maybe", BODY + amp(rule(*drop), per_hop="maybe"), True)
    for condition in CONDITIONS:
        yield with_rules(("drop", *condition), per_hop="true")
        yield with_rules(("notify", *condition), per_hop="true")


GROUPS = {group.__name__: list(group()) for group in (singles, pairs, kinds, invalid)}


class Prober:
    """Sends probes with a raw client, and says what came back."""

    def __init__(self, client, node, bare, resource):
        self.client, self.node, self.bare = client, node, bare
        self.addresses = [bare, f"{bare}/{resource}"]
        #: for each probe, what came before the last ping's answer, and whether all those came
        #: in their order
        self.at_once = []
        self._ids = {}

    async def probe(self, probe):
        """Send one probe to each address; returns when the last ping is answered."""
        for address in self.addresses:
            before = self._unnamed()
            await self._probe(probe, address)
            if not probe.has_id:
                # nothing but the order tells it from the answer to the other address
                await self.client.inbox.until(
                    lambda _, wanted=before + 1: self._unnamed() >= wanted, "what has no id"
                )

    async def _probe(self, probe, address):
        id, pings = new_id("probe"), [new_id("ping"), new_id("ping")]
        self._ids[id] = f"{probe.name} to {'full' if '/' in address else 'bare'}"
        type = f" type='{probe.type}'" if probe.type else ""
        given = f" id='{id}'" if probe.has_id else ""
        text = f"<message to='{address}'{type}{given}>{probe.payload}</message>"
        text = self._ping(pings[0]) + text + self._ping(pings[1])
        async with self.node.standing_still():
            start = len(self.client.inbox.all)
            self.client.write(text)
            came = await self.client.inbox.until(
                lambda box: self._until(box.all[start:], pings[-1]), "the answer to a ping"
            )
        order = [stanza.id for stanza in came]
        # answers to earlier probes come whenever a node has given them
        between = came[order.index(pings[0]) :]
        asked = id if probe.has_id else None
        mine = [self.shape(stanza) for stanza in between if stanza.id == asked]
        self.at_once.append((probe.name, mine, [id for id in order if id in pings] == pings))

    def _unnamed(self):
        """How many messages without an id came."""
        return sum(s.name == "message" and s.id is None for s in self.client.inbox.all)

    def _ping(self, id):
        return f"<iq type='get' id='{id}' to='{self.client.prosody.host}'><ping xmlns='urn:xmpp:ping'/></iq>"

    @staticmethod
    def _until(stanzas, id):
        for at, stanza in enumerate(stanzas):
            if stanza.id == id:
                return stanzas[: at + 1]
        return None

    def count(self, start):
        """How many messages came since."""
        return sum(stanza.name == "message" for stanza in self.client.inbox.all[start:])

    def came(self, start, *without):
        """All messages that came since, but these: each with the probe it is about."""
        stanzas = [s for s in self.client.inbox.all[start:] if s.name == "message"]
        stanzas = [s for s in stanzas if s.id not in without]
        return [(self._ids.get(s.id, "no probe"), self.shape(s)) for s in stanzas]

    def shape(self, stanza):
        """A stanza without what stood in the question, and what the sender's own archive adds."""
        names = [
            (self.client.jid, "SENDER"),
            (self.bare, "RECIPIENT"),
        ]

        def value(text):
            for name, word in names:
                text = text.replace(name, word)
            return text

        def show(element):
            attributes = {n: value(v) for n, v in element.attrib.items() if n != "id"}
            inside = [show(c) for c in element if c.tag != f"{{{STANZA_ID}}}stanza-id"]
            tag = re.sub(r"^\{jabber:client\}", "", element.tag)
            return (tag, sorted(attributes.items()), element.text, inside)

        return show(stanza.element)
