"""Sessions are processes in ejabberd, and one that is resumed gives what it has to another, which waits
for that for 15 s. I1, I3: whether it gets it or not, nothing is lost."""

import asyncio
import signal

import pytest

from harness.erlang import erlang
from harness.stanzas import amp, message, rule
from harness.waiting import until

pytestmark = pytest.mark.only("ejabberd", "in Prosody a session is no process")


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
    old = server.process_of(bob, "phone")
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


async def test_what_is_in_the_mailbox_of_a_session_that_ends(workshop, clients):
    """I3: the server puts what a session's process had read and not dealt with behind what has come since.
    It is stored all the same, and comes, in its order."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    b = await clients.online(server, bob, raw=True)
    old = server.process_of(bob, "phone")
    # it stands still when it has told itself to end, and again when it has read that, and what is behind it
    server.hold_up("told", "c2s_closed", 200)
    reads = f"fun(N, {{in, {{_, stop}}}}, _) -> {server.held('reads')}, N; (N, _, _) -> N end"
    server.erl(f"sys:install({old}, {{{reads}, 0}})")
    await b.vanish()
    await until(lambda: server.is_held(old), "the session to end")
    for n in range(5):
        a.send_text(bob, str(n))
    await a.ping()
    server.let_go("told")
    mailbox = f"process_info({old}, message_queue_len)"
    await until(lambda: server.erl(mailbox) == "{message_queue_len,0}", "it to read them")
    for n in range(5, 10):
        a.send_text(bob, str(n))
    await a.ping()
    server.let_go("reads")
    await until(lambda: node.stored(bob) == 10, "all of it in the store")
    c = await clients.online(server, bob, raw=True)
    await c.inbox.reply(a.send_text(bob, "end"))
    assert c.inbox.bodies() == [*map(str, range(10)), "end"]


@pytest.mark.parametrize("there", [False, True])
async def test_a_verdict_while_a_session_ends(workshop, clients, there):
    """I3: a message with rules does not pass those that are in the mailbox of a session that ends, whether
    they go to the storage or to another session."""
    server = workshop.server()
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    b = await clients.online(server, bob, raw=True)
    other = await clients.online(server, bob, "tablet", raw=True, priority=-1)
    old = server.process_of(bob, "phone")
    server.hold_up("told", "c2s_closed", 200)
    # behind the interceptor's handler, and before the server's
    server.hold_up("ending", "c2s_terminated", 45)
    await b.vanish()
    await until(lambda: server.is_held(old), "the session to end")
    for n in range(3):
        a.send_text(bob, str(n))
    await a.ping()
    server.let_go("told")
    pairs = f"maps:get(pairs, mod_amphora:ctx({erlang(server.host)}))"
    ending = f"ets:member({pairs}, {{{erlang(bob)}, ending}})"
    await until(lambda: server.erl(ending) == "true", "the interceptor to know that it ends")
    if there:
        await other.available(0)
    a.send_xml(message(bob, "rules", payload=amp(rule("notify", "expire-at", "2004-01-01T00:00:00Z"))))
    a.send_text(bob, "end")
    await a.ping()
    decided = 'amphora_verdicts_total{do="deliver"}'
    await until(lambda: node.metric(decided) == 1, "the verdict")
    server.let_go("ending")
    if not there:
        await until(lambda: server.erl(f"is_process_alive({old})") == "false", "the old process to end")
        await other.available(0)
    await other.inbox.until(lambda box: "end" in box.bodies(), "the end")
    assert other.inbox.bodies() == ["0", "1", "2", "rules", "end"]
