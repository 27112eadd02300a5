"""People who write and read while a cluster is hurt, and say into a history what they saw."""

import asyncio
import itertools
import random

from .history import Accepted, Came, Confirmed, Refused, Sent
from .inbox import Inbox
from .raw import RawClient
from .stanzas import message
from .waiting import until

#: Seconds a reader is online or away, and longer than the server keeps a session that died.
STAY = (0.3, 2.5)
AWAY = (0.1, 1.5)
BURIED = 2.5

_sessions = itertools.count(1)


class Witness(Inbox):
    """An inbox that tells the history what came."""

    def __init__(self, owner, tell):
        super().__init__(owner)
        self._tell = tell

    def add(self, stanza):
        """Called by the client that reads the stream."""
        super().add(stanza)
        if stanza.name == "message" and stanza.carbon is None:
            self._tell(stanza)


class Writer(RawClient):
    """Writes numbered texts."""

    def __init__(self, server, jid, history):
        super().__init__(server, jid, "desk", sm="once", acks=True)
        self.inbox = Witness(f"{jid}/desk", self._back)
        self._history = history
        self._written = []  # stanzas since stream management was enabled: an id, or None
        self._numbers = {}
        self._known = 0

    async def available(self, priority=0):
        """The presence counts as a stanza."""
        self._written.append(None)
        return await super().available(priority)

    def write_to(self, user):
        """The next text to that user."""
        number = self._numbers.get(user, 0)
        self._numbers[user] = number + 1
        name = self.jid.partition("@")[0]
        id = f"{name}>{user.partition('@')[0]}>{number}"
        self._history.add(Sent(id, self.jid, user, number))
        self._written.append(id)
        self.write(message(user, f"{name} {number}", id=id))
        return id

    def note_accepted(self):
        """Tell the history what the server said that it has."""
        for id in self._written[self._known : self.accepted]:
            if id is not None:
                self._history.add(Accepted(id))
        self._known = max(self._known, self.accepted)

    async def all_accepted(self):
        """Wait until the server has all that was written."""
        self.ask()
        await until(lambda: self.accepted >= len(self._written), f"the server to have all of {self.jid}'s")
        self.note_accepted()

    def _back(self, stanza):
        if stanza.type == "error" and stanza.id:
            self._history.add(Refused(stanza.id, stanza.condition or "?"))


class Reader(RawClient):
    """One session of a user who takes what comes. It acknowledges when it is asked."""

    def __init__(self, server, jid, history, sm="once"):
        self.name = f"{jid.partition('@')[0]}#{next(_sessions)}"
        super().__init__(server, jid, "phone", sm=sm, acks=True)
        self.inbox = Witness(self.name, self._came)
        self._history = history
        self._count = 0

    def _came(self, stanza):
        if stanza.body is not None and stanza.type != "error":
            self._count += 1
            self._history.add(Came(stanza.id, self.jid, self.name, stanza.stanza_id(self.jid)))

    async def confirm(self):
        """Acknowledge what came; the server has it when this returns."""
        count = self._count
        self.acknowledge(self.handled)
        await self.ping()
        self._history.add(Confirmed(self.name, count))

    async def leave(self):
        """Log out in good order."""
        await self.confirm()
        await super().leave()


class Load:
    """Writers who write to all users evenly mixed, and users who stay, come and go, die, or are away."""

    #: How many of each. On ejabberd nobody dies: what is routed to a session while that is buried comes to
    #: storage behind what is sent after it, whether there is a cluster or not.
    WRITERS = 4
    KINDS = ("stays", "goes", "goes", "dies", "dies", "away", "away", "stays")
    WITHOUT_DEATHS = {"ejabberd"}

    def __init__(self, server, history, seed, pace=0.06):
        self._server, self._history, self._pace = server, history, pace
        self._chance = random.Random(seed)
        other = {"dies": "goes"} if server.kind in self.WITHOUT_DEATHS else {}
        self._kinds = [other.get(kind, kind) for kind in self.KINDS]
        names = [f"w{n}" for n in range(self.WRITERS)], [f"{k}{n}" for n, k in enumerate(self._kinds)]
        people = server.people(*names[0], *names[1])
        self._writers = [Writer(server, jid, history) for jid in people[: self.WRITERS]]
        self.users = people[self.WRITERS :]
        self._open = set(self._writers)
        self._done = asyncio.Event()
        self._tasks = []

    async def begin(self):
        """Everybody begins."""
        for writer in self._writers:
            await writer.login()
            await writer.available()
        lives = {"stays": self._stay, "goes": self._go, "dies": self._die}
        for jid, kind in zip(self.users, self._kinds):
            if kind in lives:
                self._tasks.append(asyncio.ensure_future(lives[kind](jid)))
        self._tasks.append(asyncio.ensure_future(self._write()))

    async def end(self, seconds=90):
        """All that goes on ends; then one more text of each to each, for which everybody waits.
        The nodes must be whole by then."""
        self._done.set()
        staying = [reader for reader in await asyncio.gather(*self._tasks) if reader]
        here = {reader.jid for reader in staying}
        staying += [await self._online(jid) for jid in self.users if jid not in here]
        last = {jid: {writer.write_to(jid) for writer in self._writers} for jid in self.users}
        for writer in self._writers:
            await writer.all_accepted()
        for reader in staying:
            wanted = last[reader.jid]
            # what is lost is the checker's to say: the last texts come behind all others
            await reader.inbox.until(
                lambda box, wanted=wanted: wanted <= {s.id for s in box.messages()}, "the last texts", seconds
            )
        for reader in staying:
            await reader.leave()
            self._open.discard(reader)

    async def close(self):
        """Whatever is left ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._open:
            await client.vanish()

    async def _write(self):
        for number in itertools.count():
            if self._done.is_set():
                break
            for writer in self._writers:
                writer.write_to(self._chance.choice(self.users))
                if number % 10 == 0:
                    writer.note_accepted()
                    writer.ask()
                await writer.drain()
            await asyncio.sleep(self._pace)
        for writer in self._writers:
            await writer.all_accepted()

    async def _online(self, jid, sm="once"):
        reader = Reader(self._server, jid, self._history, sm)
        self._open.add(reader)
        await reader.login()
        return await reader.available()

    async def _pause(self, span):
        """A while of a life; shorter when all ends."""
        try:
            await asyncio.wait_for(self._done.wait(), self._chance.uniform(*span))
        except asyncio.TimeoutError:
            pass

    async def _stay(self, jid):
        reader = await self._online(jid)
        await self._done.wait()
        return reader

    async def _go(self, jid):
        while not self._done.is_set():
            reader = await self._online(jid)
            await self._pause(STAY)
            await reader.leave()
            self._open.discard(reader)
            await self._pause(AWAY)

    async def _die(self, jid):
        """The last that came is not acknowledged, and comes again when the server has buried the
        session; until then the user keeps away, for what came later would come first."""
        while not self._done.is_set():
            reader = await self._online(jid, sm=True)
            await self._pause(STAY)
            await reader.confirm()
            reader.acks = False
            await self._pause(AWAY)
            await reader.vanish()
            self._open.discard(reader)
            await asyncio.sleep(BURIED)
