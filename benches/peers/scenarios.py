"""What is measured of one contender in one round."""

import asyncio
import time

from fetch import Fetcher
from harness.waiting import Deadline
from load import SENDERS, Gone, Load
from machine import cpu_seconds

#: The user who gets all messages of the second scenario.
ONE = "one"
#: Users of the first scenario whose messages are fetched and counted after it.
SAMPLE = 10
#: Messages between two pings while the server is about to be killed.
EVERY = 50
#: Users of the kill: all of them log in afterwards.
KILL_USERS = 100
#: Log-ins at the same time.
TOGETHER = 10
#: Seconds without a message after which a user has got all there is.
QUIET = 3


class Failed(Exception):
    """A scenario that did not go as it should; the text says how."""


def users(count):
    """The recipients of the first scenario."""
    return [f"u{i}" for i in range(count)]


def kill_users():
    """The recipients of the kill."""
    return [f"k{i}" for i in range(KILL_USERS)]


async def throughput(contender, names, count, limit):
    """`count` messages to these users: from the first byte until all are durable, or as many
    as were accepted when the limit came."""
    load = await Load(contender.server).connect()
    before, mark = cpu_seconds(contender.pids()), contender.mark()
    cut = False
    try:
        try:
            async with asyncio.timeout(limit):
                await load.send(names, count)
                accepted = time.monotonic() - load.begin
                await contender.settled(mark, count, load.begin + limit)
        except (TimeoutError, Deadline):
            cut, accepted = True, None
        seconds = time.monotonic() - load.begin
        if load.errors:
            raise Failed(f"{load.errors} of {count} came back as errors")
        done = contender.durable_count(mark, load.accepted)
        if cut and not done:
            raise Failed(f"nothing done within {limit:g} s")
        return {
            "messages": done,
            "seconds": seconds,
            "accepted_seconds": accepted,
            "cut": cut,
            "cpu_seconds": cpu_seconds(contender.pids()) - before,
        }
    finally:
        await load.close()


async def spot_check(contender, names, count, limit):
    """Some users of the first scenario log in: each must have got his own, all and in order."""
    for at in range(0, len(names), max(1, len(names) // SAMPLE)):
        wanted = list(range(at, count, len(names)))
        await fetch(contender, names[at], wanted, limit)


async def fetch(contender, user, wanted, limit):
    """The log-in: from the presence until the last of the wanted messages came."""
    reader = await Fetcher(contender.server, user).login()
    try:
        seconds = await reader.fetch(len(wanted), time.monotonic() + limit)
        got = reader.numbers
        if set(got) != set(wanted):
            missing = len(set(wanted) - set(got))
            raise Failed(f"{missing} of {len(wanted)} did not come within {limit:g} s")
        if len(got) != len(wanted):
            raise Failed(f"{len(got)} came, of {len(wanted)}")
        if any(got_of != sorted(got_of) for got_of in by_sender(got)):
            raise Failed("a sender's messages are not in order")
        return {"messages": len(wanted), "seconds": seconds}
    finally:
        await reader.vanish()


def by_sender(numbers):
    """The numbers of each sender's messages: the order that XMPP promises is among these."""
    return [[n for n in numbers if n % SENDERS == sender] for sender in range(SENDERS)]


async def killed(contender, what, count, limit):
    """`kill -9` when half of the messages were accepted, or half of the time has passed;
    afterwards everybody logs in."""
    names = kill_users()
    load = await Load(contender.server).connect()
    pending = [contender.kill]

    def strike():
        if pending:
            pending.pop()(what)

    def on_accepted(accepted):
        if accepted >= count / 2:
            strike()

    load.on_accepted = on_accepted
    timer = asyncio.get_running_loop().call_later(limit / 2, strike)
    try:
        async with asyncio.timeout(limit):
            await load.send(names, count, every=EVERY)
    except (Gone, OSError):
        await load.ended()
    except TimeoutError:
        pass  # the server was not what was killed, and it is slow
    finally:
        timer.cancel()
        await load.close()
    contender.revive()
    await contender.ready_again(time.monotonic() + limit)
    numbers = await everything(contender, names, count // KILL_USERS + 1)
    survived = set(numbers)
    return {
        "accepted": load.accepted,
        "survived": sum(number in survived for number in range(load.accepted)),
        "twice": len(numbers) - len(survived),
    }


async def everything(contender, names, most):
    """All that these users get when they log in."""
    turn = asyncio.Semaphore(TOGETHER)

    async def one(user):
        async with turn:
            reader = await Fetcher(contender.server, user).login()
            try:
                await reader.fetch_until_quiet(most, QUIET)
            finally:
                await reader.vanish()
            return reader.numbers

    return [number for numbers in await asyncio.gather(*map(one, names)) for number in numbers]
