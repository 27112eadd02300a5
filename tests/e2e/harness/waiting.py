"""Waiting for a condition with a deadline; nothing here sleeps to hope for the best."""

import asyncio
import socket
import time

#: Long enough for two busy cores; a condition that holds sooner ends the wait sooner.
PATIENCE = 30.0


class Deadline(AssertionError):
    """A condition did not come true in time."""


def wait_for(condition, what, seconds=PATIENCE, pause=0.02):
    """Poll `condition` until it returns something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Deadline(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


async def until(condition, what, seconds=PATIENCE, pause=0.02):
    """The same inside a test's event loop."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Deadline(f"not within {seconds:g} s: {what}")
        await asyncio.sleep(pause)


def accepts(port, host="127.0.0.1"):
    """Whether someone listens there."""
    try:
        with socket.create_connection((host, port), timeout=0.5):
            return True
    except OSError:
        return False
