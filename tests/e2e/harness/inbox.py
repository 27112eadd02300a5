"""What a client received, in order, and waiting for more of it."""

import asyncio
import time

from .waiting import PATIENCE, Deadline


class Inbox:
    """Every stanza in the order in which it came."""

    def __init__(self, owner):
        self.owner = owner
        self.all = []
        self._news = asyncio.Event()

    def add(self, stanza):
        """Called by the client that reads the stream."""
        self.all.append(stanza)
        self._news.set()

    def messages(self):
        """The messages, carbon copies left out."""
        return [s for s in self.all if s.name == "message" and s.carbon is None]

    def bodies(self):
        """The texts of real messages: neither replies nor errors."""
        return [
            s.body
            for s in self.messages()
            if s.body is not None and s.status is None and s.type != "error"
        ]

    def with_id(self, id):
        """The messages with that id."""
        return [s for s in self.messages() if s.id == id]

    async def until(self, condition, what, seconds=PATIENCE):
        """Wait until `condition(inbox)` is true; its value."""
        end = time.monotonic() + seconds
        while True:
            value = condition(self)
            if value:
                return value
            self._news.clear()
            left = end - time.monotonic()
            try:
                await asyncio.wait_for(self._news.wait(), max(left, 0.001))
            except asyncio.TimeoutError:
                raise Deadline(
                    f"{self.owner}: not within {seconds:g} s: {what}; got {self.summary()}"
                ) from None

    async def reply(self, id, count=1, seconds=PATIENCE):
        """Wait for the message with that id (the first of `count`)."""
        found = await self.until(
            lambda box: len(box.with_id(id)) >= count and box.with_id(id), f"reply to {id}", seconds
        )
        return found[count - 1]

    async def body_count(self, count, seconds=PATIENCE):
        """Wait for so many texts; all of them."""
        await self.until(lambda box: len(box.bodies()) >= count, f"{count} messages", seconds)
        return self.bodies()

    def summary(self):
        """What came, short enough to be read."""
        shown = [repr(s) for s in self.all if s.name == "message"]
        if len(shown) > 12:
            shown = shown[:4] + [f"... {len(shown) - 8} more ..."] + shown[-4:]
        return f"{len(self.messages())} messages:\n" + "\n".join(shown)
