"""A client that is neither ours nor slixmpp's: gloox, in C++, driven line by line."""

import asyncio
import json
import os
import time

import pytest

from .prosody import PASSWORD
from .stanzas import new_id
from .waiting import PATIENCE, Deadline


def program():
    """What tests/run.sh has compiled from tests/e2e/gloox."""
    path = os.environ.get("AMPHORA_GLOOX")
    if not path:
        pytest.fail("AMPHORA_GLOOX names no client: run these tests with tests/run.sh e2e")
    return path


def line(*fields):
    """A command, as the client reads it."""
    escaped = (f.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n") for f in fields)
    return ("\t".join(escaped) + "\n").encode()


class GlooxClient:
    """Logs in, becomes available, and keeps what gloox made of each message that came."""

    def __init__(self, server, jid, resource="gloox", *, priority=0, acks=True, log):
        self.jid = f"{jid}/{resource}"
        self.messages = []
        self.presences = []
        self._arguments = [
            self.jid, PASSWORD, "127.0.0.1", str(server.c2s), str(priority), "1" if acks else "0"
        ]
        self._log = log
        self._news = asyncio.Event()
        self._connected = self._ended = False
        self._process = self._task = None

    async def __aenter__(self):
        with open(self._log, "ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                program(),
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=self._log.parent,
                limit=1 << 22,
            )
        self._task = asyncio.ensure_future(self._read())
        # the server tells a session of its own presence
        await self.until(
            lambda: self._connected and self.jid in self.presences, "the login and its presence"
        )
        return self

    async def __aexit__(self, *_):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        self._task.cancel()

    async def _read(self):
        async for text in self._process.stdout:
            said = json.loads(text)
            kind = said.pop("event")
            if kind == "message":
                self.messages.append(said)
            elif kind == "presence":
                self.presences.append(said["from"])
            elif kind == "connected":
                self._connected = True
            self._news.set()
        self._ended = True
        self._news.set()

    async def until(self, condition, what, seconds=PATIENCE):
        """Wait until `condition()` is true; its value."""
        end = time.monotonic() + seconds
        while True:
            value = condition()
            if value:
                return value
            assert not self._ended, f"{self.jid} ended before {what}: see {self._log}"
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), max(end - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                raise Deadline(f"{self.jid}: not within {seconds:g} s: {what}; got {self.messages}") from None

    def send(self, to, body, *rules, type="chat", id=None):
        """A message with rules of gloox's making, each (action, condition, value); its id."""
        id = new_id("gloox") if id is None else id
        words = [word for rule in rules for word in rule]
        self._process.stdin.write(line("message", to, type, id, body, *words))
        return id

    def with_id(self, id):
        """The messages with that id."""
        return [m for m in self.messages if m["id"] == id]

    async def reply(self, id, count=1):
        """Wait for the message with that id (the first of `count`)."""
        found = await self.until(
            lambda: len(self.with_id(id)) >= count and self.with_id(id), f"reply to {id}"
        )
        return found[count - 1]

    def bodies(self):
        """The texts of real messages: neither replies nor errors."""
        return [m["body"] for m in self.messages if m["body"] and m["type"] != "error"]

    async def body_count(self, count):
        """Wait for so many texts; all of them."""
        await self.until(lambda: len(self.bodies()) >= count, f"{count} messages")
        return self.bodies()

    async def leave(self):
        """Log out in good order."""
        self._process.stdin.write(line("quit"))
        assert await asyncio.wait_for(self._process.wait(), PATIENCE) == 0
