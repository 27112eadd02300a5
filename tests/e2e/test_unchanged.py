"""Archive, carbons, push, client state, blocking: exactly as without Amphora.

One script runs against a plain Prosody and against one with Amphora. What each client saw, in
order, what each archive holds and which pushes went out are the same, but for the differences
that are meant: each is named, with its reason, where it is allowed.
"""

import asyncio
import difflib
from dataclasses import dataclass

import pytest

from harness.app_server import APPS, AppServer, enable_push
from harness.archive import archive_nothing, read_archive
from harness.canonical import ARCHIVED, canonical, is_delay, is_own_id, without
from harness.prosody import HOST
from harness.stanzas import (
    AMP,
    BLOCKING,
    CARBONS,
    CHATSTATES,
    CLIENT,
    CSI,
    HINTS,
    INVITATION,
    MARKERS,
    RECEIPTS,
    STANZA_ID,
    amp,
    message,
    new_id,
    rule,
)
from harness.waiting import until

NO_STORE = f"<no-store xmlns='{HINTS}'/>"
NO_PERMANENT_STORE = f"<no-permanent-store xmlns='{HINTS}'/>"
NO_COPY = f"<no-copy xmlns='{HINTS}'/>"
STORE = f"<store xmlns='{HINTS}'/>"
PRIVATE = f"<private xmlns='{CARBONS}'/>"
COMPOSING = f"<composing xmlns='{CHATSTATES}'/>"
ACTIVE = f"<active xmlns='{CHATSTATES}'/>"
RECEIVED = f"<received xmlns='{RECEIPTS}' id='r'/>"
DISPLAYED = f"<displayed xmlns='{MARKERS}' id='d'/>"


@pytest.fixture(scope="module")
def plain(workshop):
    """A server without Amphora."""
    return workshop.server(module=False, push=True, components=APPS)


@pytest.fixture(scope="module")
def amphora(workshop):
    """The same server with it."""
    # at this level the log of Prosody says when a gate opens
    level = "debug" if workshop.kind == "prosody" else "info"
    return workshop.server(push=True, components=APPS, level=level)


@pytest.fixture(scope="module")
def node(workshop, amphora):
    """Its node. At `strict` a blocked sender is told nothing about a message with rules, which
    test_leaks.py is about; at this level he gets what any gets."""
    return workshop.node(amphora, security="none")


class Stage:
    """Where a script plays: people, their clients, and what came of it."""

    def __init__(self, server, node, clients, apps, people):
        self.server, self.node, self.apps = server, node, apps
        self._clients = clients
        self._people = people
        self._all = []
        self._ids = 0
        # what sessions of an earlier script left may still be pushed
        self._mark = new_id("-")

    def device(self, name):
        """What a device is called in this run."""
        return name + self._mark

    async def enable_push(self, client, name):
        """That client is told of what it misses, under the name of that device."""
        await enable_push(client, self.device(name))

    def pushes(self):
        """What was pushed in this run: which device, and whether it was important."""
        ours = [(n, i) for n, i in self.apps.pushes if n.endswith(self._mark)]
        return sorted((node.removesuffix(self._mark), important) for node, important in ours)

    def __getattr__(self, name):
        """A person's bare JID."""
        return self._people[name]

    async def login(self, name, resource="phone", *, carbons=False, **settings):
        """A client of that person's without presence."""
        client = await self._clients.login(
            self.server, self._people[name], resource, raw=True, **settings
        )
        self._all.append((f"{name}/{resource}", client))
        if carbons:
            await client.iq(f"<enable xmlns='{CARBONS}'/>", type="set")
        return client

    async def online(self, name, resource="phone", *, priority=0, **settings):
        """A client of that person's that is available, and for whom nothing is on its way."""
        client = await self.login(name, resource, **settings)
        is_open = self.server.gate(f"{self._people[name]}/{resource}")
        await client.available(priority)
        if self.node and priority >= 0:
            # in a script that goes on sooner, what is live may still wait in the gate
            await until(is_open, "its gate")
        return client

    async def say(self, client, to, body=None, **extra):
        """Send a message; the server has it after that."""
        self._ids += 1
        client.send_xml(message(to, body, id=f"{self._ids}", **extra))
        await client.ping()

    async def kept(self, name, count, *, by_stock=None):
        """So many messages are stored for that person; so many by stock Prosody."""
        jid = self._people[name]
        user = jid.partition("@")[0]
        if self.node:
            await until(lambda: self.node.stored(jid) == count, f"{count} stored for {jid}")
        else:
            count = by_stock if by_stock and self.server.kind == "prosody" else count
            await until(lambda: self.server.stored_offline(user) == count, f"{count} for {jid}")

    async def seen(self):
        """What each client saw: its messages in order."""
        for _, client in self._all:
            if not client.closed.is_set():
                await client.ping()
        return [
            (name, [s.element for s in client.inbox.all if s.name == "message"])
            for name, client in self._all
        ]

    async def archives(self):
        """What each archive holds."""
        found = []
        for name, jid in self._people.items():
            client = await self._clients.login(self.server, jid, "archivist", raw=True)
            found.append((name, [m.element for _, m in await read_archive(client)]))
            await client.leave()
        return found


async def live_and_stored(s):
    """Messages to somebody who is there, away, and back; each is archived once, for both."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob")
    await s.say(alice, s.bob, "1")
    await s.say(alice, f"{s.bob}/phone", "2")
    await s.say(alice, f"{s.bob}/gone", "3")
    await bob.inbox.body_count(3)
    await bob.leave()
    await s.say(alice, s.bob, "4")
    await s.say(alice, f"{s.bob}/phone", "5", type="normal")
    await s.kept("bob", 2)
    back = await s.online("bob", "tablet")
    await back.inbox.body_count(2)
    await s.say(back, f"{s.alice}/desk", "6")
    await s.say(back, s.bob, "to myself")


async def an_archive_that_takes_nothing(s):
    """Preferences `never`: not archived for the one who said so, live or not."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob")
    await archive_nothing(bob)
    await s.say(alice, s.bob, "live")
    await bob.inbox.body_count(1)
    await bob.leave()
    await s.say(alice, s.bob, "stored")
    await s.kept("bob", 1)
    back = await s.online("bob", "tablet")
    await back.inbox.body_count(1)


async def hints_while_there(s):
    """H1, H2, H3, H4 on live messages."""
    alice = await s.online("alice", "desk")
    await s.online("bob", carbons=True, priority=1)
    await s.online("bob", "tablet", carbons=True)
    for payload in (NO_STORE, NO_PERMANENT_STORE, STORE, NO_COPY):
        await s.say(alice, s.bob, "x", payload=payload)
        await s.say(alice, f"{s.bob}/phone", "y", payload=payload)
    await s.say(alice, s.bob, payload=STORE + "<x xmlns='urn:x'/>")


async def hints_while_away(s):
    """H2, H3 on stored ones."""
    alice = await s.online("alice", "desk")
    await s.say(alice, s.bob, "1", payload=NO_PERMANENT_STORE)
    await s.say(alice, s.bob, payload=STORE + "<x xmlns='urn:x'/>")
    await s.say(alice, s.bob, "2", payload=NO_COPY)
    await s.kept("bob", 3)
    bob = await s.online("bob")
    await bob.inbox.body_count(2)


async def receipts_and_markers(s):
    """XEP-0184, XEP-0333, an invitation: kept when they come alone, and archived as ever."""
    alice = await s.online("alice", "desk")
    for payload in (RECEIVED, DISPLAYED, ACTIVE + RECEIVED, ACTIVE + DISPLAYED):
        await s.say(alice, s.bob, payload=payload)
    invitation = f"<x xmlns='{INVITATION}' jid='room@rooms.{HOST}'/>"
    await s.say(alice, s.bob, payload=invitation, type=None)
    await s.kept("bob", 5)
    bob = await s.online("bob")
    await bob.inbox.until(lambda box: len(box.messages()) == 5, "all five")


async def carbons(s):
    """Copies of what comes and goes, for two devices on either side."""
    desk = await s.online("alice", "desk", carbons=True)
    await s.online("alice", "phone", carbons=True)
    high = await s.online("bob", "high", carbons=True, priority=5)
    await s.online("bob", "low", carbons=True)
    await s.online("bob", "without")
    await s.online("bob", "below", carbons=True, priority=-1)
    await s.login("bob", "silent", carbons=True)
    for to in (s.bob, f"{s.bob}/high", f"{s.bob}/low", f"{s.bob}/silent", f"{s.bob}/gone"):
        await s.say(desk, to, "x")
        await s.say(desk, to, "x", payload=PRIVATE)
        await s.say(desk, to, "x", payload=NO_COPY)
        await s.say(desk, to, payload=COMPOSING)
        await s.say(desk, to, "x", type=None)
        await s.say(desk, to, payload=RECEIVED)
    await s.say(high, f"{s.alice}/desk", "and back")


async def carbons_to_one_that_is_away(s):
    """Two with carbons, one of them unavailable: it gets copies, as it always did."""
    alice = await s.online("alice", "desk")
    phone = await s.online("bob", carbons=True)
    away = await s.online("bob", "tablet", carbons=True)
    away.write("<presence type='unavailable'/>")
    await away.ping()
    await s.say(alice, s.bob, "1")
    await s.say(alice, f"{s.bob}/phone", "2")
    await phone.inbox.body_count(2)
    phone.write("<presence type='unavailable'/>")
    await phone.ping()
    await s.say(alice, s.bob, "3")
    await s.kept("bob", 1)
    await phone.available()
    await phone.inbox.body_count(3)


async def two_of_equal_priority(s):
    """Both get what is for the bare JID, and copies of what is for the other."""
    alice = await s.online("alice", "desk")
    await s.online("bob", carbons=True)
    await s.online("bob", "tablet", carbons=True)
    for to in (s.bob, f"{s.bob}/phone", f"{s.bob}/tablet", f"{s.bob}/gone"):
        await s.say(alice, to, "x")


async def blocking(s):
    """XEP-0191: what the blocked one gets, whatever the blocker does; and after the end of it."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob")
    await bob.iq(f"<block xmlns='{BLOCKING}'><item jid='{s.alice}'/></block>", type="set")
    await s.say(alice, s.bob, "blocked")
    await s.say(alice, f"{s.bob}/phone", "blocked")
    await s.say(bob, s.alice, "what the blocker sends")
    await bob.leave()
    await s.say(alice, s.bob, "blocked, away")
    await s.say(alice, f"{s.bob}/phone", "blocked, away", type="normal")
    back = await s.online("bob", "tablet")
    await back.iq(f"<unblock xmlns='{BLOCKING}'><item jid='{s.alice}'/></unblock>", type="set")
    await s.say(alice, s.bob, "free")
    await back.inbox.body_count(1)
    await back.leave()
    await s.say(alice, s.bob, "free, away")
    await s.kept("bob", 1)
    last = await s.online("bob", "desk")
    await last.inbox.body_count(1)


async def blocking_and_rules(s):
    """What a blocked sender gets for a message with rules that let it pass: what any gets."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob")
    await bob.iq(f"<block xmlns='{BLOCKING}'><item jid='{s.alice}'/></block>", type="set")
    await s.say(alice, s.bob, "blocked", payload=amp(rule("drop", "deliver", "forward")))
    await alice.inbox.until(lambda box: len(box.messages()) == 1, "the error")


async def blocked_when_it_was_stored(s):
    """Stored first, blocked before the next coming."""
    alice = await s.online("alice", "desk")
    carol = await s.online("alice", "phone")
    await s.say(alice, s.bob, "by then blocked")
    await s.kept("bob", 1)
    bob = await s.login("bob")
    await bob.iq(f"<block xmlns='{BLOCKING}'><item jid='{s.alice}/desk'/></block>", type="set")
    await bob.available()
    await s.say(carol, s.bob, "live")
    await bob.inbox.until(lambda box: "live" in box.bodies(), "the live one")


async def client_state(s):
    """XEP-0352: what waits while the client is inactive, and what brings it out, in order."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob")
    bob.write(f"<inactive xmlns='{CSI}'/>")
    await bob.ping()
    await s.say(alice, s.bob, payload=COMPOSING)
    await s.say(alice, f"{s.bob}/phone", payload=RECEIVED)
    await s.say(alice, s.bob, "out with it")
    await bob.inbox.body_count(1)
    await s.say(alice, s.bob, payload=ACTIVE)
    bob.write(f"<active xmlns='{CSI}'/>")
    await bob.ping()


async def the_archive_first(s):
    """A client that reads the archive before it becomes available is not flooded with it."""
    alice = await s.online("alice", "desk")
    for n in range(3):
        await s.say(alice, s.bob, f"{n}")
    await s.kept("bob", 3)
    bob = await s.login("bob")
    await read_archive(bob)
    await bob.available()
    await s.say(alice, s.bob, "live")
    await bob.inbox.body_count(1)


async def the_archive_afterwards(s):
    """One that reads it when it is available already is."""
    alice = await s.online("alice", "desk")
    for n in range(3):
        await s.say(alice, s.bob, f"{n}")
    await s.kept("bob", 3)
    bob = await s.online("bob")
    await bob.inbox.body_count(3)
    await read_archive(bob)
    await s.say(alice, s.bob, "live")
    await bob.inbox.body_count(4)


async def rules_that_let_it_pass(s):
    """A message with rules is delivered, archived and copied once; push and storage as ever."""
    alice = await s.online("alice", "desk", carbons=True)
    await s.online("alice", "phone", carbons=True)
    bob = await s.online("bob", carbons=True, priority=1)
    await s.online("bob", "tablet", carbons=True)
    never = amp(rule("drop", "deliver", "forward"))
    await s.say(alice, s.bob, "1", payload=never)
    await bob.inbox.body_count(1)
    await s.say(alice, f"{s.bob}/tablet", "2", payload=never)
    await s.say(alice, s.bob, "3", payload=never + PRIVATE)
    await bob.inbox.body_count(2)
    await s.say(alice, s.bob, "4")
    await bob.inbox.body_count(3)


async def push_for_who_is_away(s):
    """XEP-0357: one push a message for each device that is registered, as it is stored."""
    bob = await s.login("bob")
    await s.enable_push(bob, "phone")
    tablet = await s.login("bob", "tablet")
    await s.enable_push(tablet, "tablet")
    await bob.leave()
    await tablet.leave()
    alice = await s.online("alice", "desk")
    await s.say(alice, s.bob, "1")
    await s.say(alice, f"{s.bob}/phone", "2")
    await s.say(alice, s.bob, payload=RECEIVED)
    await s.apps.count(s.device("phone"), 3)
    await s.apps.count(s.device("tablet"), 3)
    await s.kept("bob", 3)
    back = await s.online("bob")
    await back.inbox.body_count(2)


async def push_for_who_sleeps(s):
    """A hibernating session is pushed to for what it left and for what comes."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob", sm=True)
    await s.enable_push(bob, "phone")
    bob.acknowledge(bob.handled)
    await bob.ping()
    await s.say(alice, s.bob, "not acknowledged")
    await bob.inbox.body_count(1)
    await bob.vanish()
    await s.apps.count(s.device("phone"), 1)
    await s.say(alice, s.bob, "while it sleeps")
    # these pushes wait for a second, and go out in order: after this one nothing more is due
    fence = await s.login("alice", "fence", sm=True)
    await s.enable_push(fence, "fence")
    await fence.vanish()
    await s.apps.count(s.device("fence"), 1)  # for what it left
    await s.say(alice, f"{s.alice}/fence", "fence")
    await s.apps.important(s.device("fence"), 1)


async def push_beside_one_that_is_awake(s):
    """A registered device that has no session is told of what another session gets."""
    phone = await s.login("bob")
    await s.enable_push(phone, "phone")
    await phone.leave()
    alice = await s.online("alice", "desk")
    tablet = await s.online("bob", "tablet")
    await s.say(alice, s.bob, "1")
    await s.say(alice, f"{s.bob}/tablet", "2", payload=NO_STORE)
    await s.say(alice, s.bob, "3", payload=amp(rule("drop", "deliver", "forward")))
    await tablet.inbox.body_count(3)


async def push_for_a_session_that_ends(s):
    """One that can't be resumed: what it left is pushed when it is stored."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob", sm="once")
    await s.enable_push(bob, "phone")
    bob.acknowledge(bob.handled)
    await bob.ping()
    await s.say(alice, s.bob, "1")
    await s.say(alice, s.bob, "2")
    await s.say(alice, s.bob, "3", payload=NO_PERMANENT_STORE)
    await bob.inbox.body_count(3)
    await bob.vanish()
    # ejabberd says nothing of what the archive has, and did not push while the session was there
    await s.apps.count(s.device("phone"), 1 if s.server.kind == "ejabberd" else 3)
    await s.kept("bob", 3)


async def what_is_not_worth_keeping(s):
    """H1, O6: the hint `no-store`, and a chat state alone, for somebody who is away."""
    alice = await s.online("alice", "desk")
    await s.say(alice, s.bob, "secret", payload=NO_STORE)
    await s.say(alice, s.bob, payload=COMPOSING)
    await s.say(alice, s.bob, "kept")
    await s.kept("bob", 1, by_stock=3)
    bob = await s.online("bob")
    await bob.inbox.until(lambda box: "kept" in box.bodies(), "what is kept")


async def the_archive_first_and_it_lacks_some(s):
    """A client that reads the archive first, which did not take all that is stored."""
    alice = await s.online("alice", "desk")
    await s.say(alice, s.bob, "archived")
    await s.say(alice, s.bob, "not archived", payload=NO_PERMANENT_STORE)
    await s.kept("bob", 2)
    bob = await s.login("bob")
    await read_archive(bob)
    await bob.available()
    await s.say(alice, s.bob, "live")
    await bob.inbox.until(lambda box: "live" in box.bodies(), "the live one")


async def not_acknowledged_by_the_only_session(s):
    """It ends, and what it left comes to the next one."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob", sm="once")
    await s.say(alice, s.bob, "1")
    await s.say(alice, s.bob, "2")
    await bob.inbox.body_count(2)
    await bob.vanish()
    await s.kept("bob", 2)
    back = await s.online("bob", "tablet")
    await back.inbox.body_count(2)


async def not_acknowledged_beside_another(s):
    """It ends, and another session is there."""
    alice = await s.online("alice", "desk")
    bob = await s.online("bob", priority=1, sm="once")
    tablet = await s.online("bob", "tablet")
    await s.say(alice, s.bob, "1")
    await bob.inbox.body_count(1)
    await bob.vanish()
    answer = lambda box: len(box.messages()) == 1  # noqa: E731
    if s.node or s.server.kind == "prosody":
        await (tablet if s.node else alice).inbox.until(answer, "what becomes of it")
    # stock ejabberd drops what it finds in the archive, and tells nobody


# What is meant to differ: what is taken from the messages of one run or of both, and why.


def the_delay_says_why(messages):
    """O4: the delay of a stored message says `Offline Storage`."""
    for delay in (e for m in messages for e in m.iter() if is_delay(e)):
        # ejabberd's own has words of its own
        if delay.get("from") == HOST and (delay.text or "").lower() in ("offline storage", "resent"):
            delay.text = None
    return messages


def what_is_stored_has_an_id(messages):
    """XEP-0359: what the archive did not take has a stanza id all the same, if it was stored."""
    stored = [m for m in messages if any(is_delay(child) for child in m)]
    assert not any(is_own_id(e) for m in messages if m not in stored for e in m.iter())
    return [without(m, is_own_id) for m in messages]


def rules_have_addresses(messages):
    """R54, R55: the rules of a message that the server passes on name its addresses."""
    for rules in (e for m in messages for e in m.iter(f"{{{AMP}}}amp")):
        rules.attrib.pop("from", None)
        rules.attrib.pop("to", None)
    return messages


def stock_keeps_what_asks_not_to_be_kept(messages):
    """H1, O6: stock Prosody stores `no-store` and chat states alone, and delivers them late."""
    return [
        m
        for m in messages
        if m.find(f"{{{HINTS}}}no-store") is None and m.find(f"{{{CHATSTATES}}}composing") is None
    ]


def stock_hands_over_what_is_blocked(messages):
    """Stock Prosody delivers what it stored, also from somebody who is blocked by now."""
    return [m for m in messages if m.findtext(f"{{{CLIENT}}}body") != "by then blocked"]


def the_archive_lacks_some(messages):
    """Stock Prosody hands nothing to who read the archive, and so never what is not in it."""
    return [m for m in messages if m.findtext(f"{{{CLIENT}}}body") != "not archived"]


def one_delay(messages):
    """D1: stock Prosody adds a second delay, from the account, to what comes back."""
    return [
        without(m, lambda e: is_delay(e) and e.get("from") == m.get("to")) for m in messages
    ]


def nothing_bounces(messages):
    """Stock Prosody returns what a session left beside another; here the other gets it."""
    return [m for m in messages if m.get("type") != "error" and not any(map(is_delay, m))]


def ids_are_anywhere(messages):
    """The stanza id is behind the payload where the interceptor wrote the message."""
    for message in messages:
        for own in message.findall(f"{{{STANZA_ID}}}stanza-id"):
            message.remove(own)
            message.insert(0, own)
    return messages


def copies_are_behind(messages):
    """Copies come from the process of another session, in no order with what comes straight."""
    return sorted(messages, key=lambda m: m.find(f"{{{CARBONS}}}received") is not None)


def stock_hands_over_what_was_read(messages):
    """Stock ejabberd hands over what the client has just found in its archive."""
    return [m for m in messages if not (m.find(ARCHIVED) is not None and any(map(is_delay, m)))]


def errors_have_no_text(messages):
    """R29: stock ejabberd returns a whole message with its error; the interceptor does not."""
    for refused in (m for m in messages if m.get("type") == "error"):
        for child in [c for c in refused if c.tag != f"{{{CLIENT}}}error"]:
            refused.remove(child)
    return messages


@dataclass(frozen=True)
class Meant:
    """The differences of one script."""

    #: taken from the run without Amphora
    stock: tuple = ()
    #: taken from the run with it
    amphora: tuple = ()


ALWAYS = {
    "prosody": ((), (the_delay_says_why, what_is_stored_has_an_id)),
    "ejabberd": (
        (the_delay_says_why, errors_have_no_text, ids_are_anywhere),
        (the_delay_says_why, what_is_stored_has_an_id, errors_have_no_text, ids_are_anywhere),
    ),
}
NONE = Meant()

SCRIPTS = {
    live_and_stored: NONE,
    an_archive_that_takes_nothing: NONE,
    hints_while_there: NONE,
    hints_while_away: NONE,
    receipts_and_markers: NONE,
    carbons: NONE,
    carbons_to_one_that_is_away: NONE,
    two_of_equal_priority: NONE,
    blocking: NONE,
    blocking_and_rules: Meant(amphora=(rules_have_addresses,)),
    client_state: NONE,
    the_archive_first: NONE,
    the_archive_afterwards: NONE,
    rules_that_let_it_pass: Meant(amphora=(rules_have_addresses,)),
    push_for_who_is_away: NONE,
    push_for_who_sleeps: NONE,
    push_beside_one_that_is_awake: Meant(amphora=(rules_have_addresses,)),
    push_for_a_session_that_ends: NONE,
    what_is_not_worth_keeping: Meant(stock=(stock_keeps_what_asks_not_to_be_kept,)),
    blocked_when_it_was_stored: Meant(
        stock=(stock_hands_over_what_is_blocked,), amphora=(stock_hands_over_what_is_blocked,)
    ),
    the_archive_first_and_it_lacks_some: Meant(amphora=(the_archive_lacks_some,)),
    not_acknowledged_by_the_only_session: Meant(stock=(one_delay,)),
    not_acknowledged_beside_another: Meant(stock=(nothing_bounces,), amphora=(nothing_bounces,)),
}


#: The same over ejabberd, where it is another than over Prosody.
EJABBERD = {
    two_of_equal_priority: Meant(stock=(copies_are_behind,), amphora=(copies_are_behind,)),
    the_archive_first: Meant(stock=(stock_hands_over_what_was_read,)),
    the_archive_first_and_it_lacks_some: Meant(stock=(stock_hands_over_what_was_read,)),
    not_acknowledged_by_the_only_session: NONE,
}


async def play(script, server, node, clients, meant):
    """One run: (what was seen, what is archived, which pushes went out), all as text."""
    people = dict(zip(("alice", "bob"), server.people("alice", "bob")))
    async with AppServer(server) as apps:
        stage = Stage(server, node, clients, apps, people)
        await script(stage)
        seen, archives = await stage.seen(), await stage.archives()

    def text(found):
        for difference in meant:
            found = [(name, difference(messages)) for name, messages in found]
        return [f"{name}: {canonical(m)}" for name, messages in found for m in messages]

    return text(seen), text(archives), stage.pushes()


def apart(before, after):
    """What only one of the runs has, line by line."""
    return "\n".join(difflib.ndiff([str(b) for b in before], [str(a) for a in after]))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
async def test_as_without(plain, amphora, node, clients, script):
    """The two runs are the same, but for what is meant to differ."""
    meant = SCRIPTS[script]
    if plain.kind == "ejabberd":
        meant = EJABBERD.get(script, meant)
    stock, changed = ALWAYS[plain.kind]
    without_it, with_it = await asyncio.gather(
        play(script, plain, None, clients, stock + meant.stock),
        play(script, amphora, node, clients, changed + meant.amphora),
    )
    for what, before, after in zip(("seen", "archived", "pushed"), without_it, with_it):
        assert after == before, f"{what}: {apart(before, after)}"
