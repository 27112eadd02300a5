"""Sessions are processes in ejabberd, and one that is resumed gives what it has to another, which waits
for that for 15 s. I1, I3: whether it gets it or not, nothing is lost."""

import asyncio
import signal

import pytest

from harness.erlang import erlang
from harness.waiting import until

pytestmark = pytest.mark.only("ejabberd", "in Prosody a session is no process")


def process_of(server, jid, resource):
    """The process of a session, as an expression."""
    user, _, host = jid.partition("@")
    names = ",".join(map(erlang, (user, host, resource)))
    return server.erl(f"pid_to_list(ejabberd_sm:get_session_pid({names}))").join(("list_to_pid(", ")"))


async def test_a_session_that_gives_its_state_too_late(workshop, clients):
    """What it was written and did not acknowledge, what waits in its gate, and what is in its mailbox before
    and after it was asked, comes to the next session, in order."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    sent = iter(range(1000))

    async def send(count):
        for _ in range(count):
            a.send_text(bob, str(next(sent)))
        await a.ping()

    await send(5)
    b = await clients.online(server, bob, raw=True, sm=True)
    await b.inbox.body_count(5)
    await send(5)
    await b.inbox.body_count(10)
    # its gate closes, and opens no more
    node.signal(signal.SIGSTOP)
    await b.available(-1)
    await b.available(0)
    await send(5)
    await b.ping()
    assert len(b.inbox.bodies()) == 10
    await b.vanish()
    old = process_of(server, bob, "phone")
    server.erl(f"sys:suspend({old})")
    await send(5)
    attempt = asyncio.ensure_future(clients.raw(server, bob, "phone").try_to_resume(b))
    asked = f"[1 || {{_, _, {{resume_session, _}}}} <- element(2, process_info({old}, messages))]"
    await until(lambda: server.erl(asked) == "[1]", "the old process to be asked for its state")
    await send(5)
    assert (await attempt).tag.endswith("}failed")
    server.erl(f"sys:resume({old})")
    await until(lambda: server.erl(f"is_process_alive({old})") == "false", "the old process to end")
    await send(5)
    node.signal(signal.SIGCONT)
    c = await clients.online(server, bob, raw=True, sm=True, acks=True)
    await c.inbox.body_count(30)
    await c.inbox.reply(a.send_text(bob, "end"))
    assert c.inbox.bodies() == [*map(str, range(30)), "end"]
