"""A server that goes on without Amphora: mod_amphora_unspool, in the place of mod_amphora, moves what
the spool holds to mod_offline, which delivers it. O9, I1, I3."""

import asyncio

import pytest

from harness.stanzas import amp, message, parse_utc, rule, utc
from harness.waiting import until

pytestmark = pytest.mark.only("ejabberd", "it is about mod_offline of ejabberd")

EACH = 40
UNSPOOL = "mod_amphora_unspool"


def without_amphora(server):
    """As an operator writes it into ejabberd.yml."""
    server.module = False
    server.settings[UNSPOOL] = {}


def with_amphora(server):
    """The way back."""
    server.module = True
    del server.settings[UNSPOOL]


async def in_the_spool(server, clients, each=EACH):
    """(Alice, Carol, Bob): both wrote to Bob, who is away, and no node was there. Of Alice's every fourth
    has rules."""
    alice, carol, bob = server.people("alice", "carol", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    c = await clients.online(server, carol, "desk", raw=True)
    rules = amp(rule("notify", "deliver", "stored"))
    for n in range(each):
        a.send_xml(message(bob, f"alice {n}", payload=rules if n % 4 == 1 else ""))
        c.send_text(f"{bob}/gone", f"carol {n}")
    await asyncio.gather(a.ping(), c.ping())
    return a, c, bob


def said(server, what):
    """The module has said so."""
    return until(lambda: what in server.log, f"the log to say: {what}")


@pytest.mark.parametrize("how", ["reload_config", "restart", "kill"])
async def test_mod_offline_has_it_all(workshop, clients, how):
    """In each sender's order, with the time of the sending, once. Messages with rules of which no node
    knows go back to their sender when the interceptor ends in good order."""
    server = workshop.server()
    a, _, bob = await in_the_spool(server, clients)
    written = parse_utc(utc(1))
    without_amphora(server)
    if how == "reload_config":
        server.reload_config()
        refused = lambda: sum(m.condition == "service-unavailable" for m in a.inbox.messages())  # noqa: E731
        await until(lambda: refused() == EACH // 4, "the refusals")
    else:
        server.stop() if how == "restart" else server.kill()
        await asyncio.to_thread(server.start)
    of_alice = [n for n in range(EACH) if how == "kill" or n % 4 != 1]
    await said(server, f"{len(of_alice) + EACH} messages moved to the offline messages of {server.host}, 0 stay")
    assert server.stored_offline(bob.partition("@")[0]) == len(of_alice) + EACH
    b = await clients.online(server, bob, raw=True)
    texts = await b.inbox.body_count(len(of_alice) + EACH)
    assert [t for t in texts if t.startswith("alice")] == [f"alice {n}" for n in of_alice]
    assert [t for t in texts if t.startswith("carol")] == [f"carol {n}" for n in range(EACH)]
    for got in b.inbox.messages():
        (delay,) = got.delays
        assert parse_utc(delay.get("stamp")) <= written
    await b.leave()
    with_amphora(server)
    server.reload_config()
    workshop.node(server)
    again = await clients.online(server, bob, raw=True)
    await again.inbox.reply(again.send_text(bob, "end"))
    assert again.inbox.bodies() == ["end"], "nothing was left in the spool"


async def test_more_than_mod_offline_takes(workshop, clients):
    """What it refuses stays in the spool, which the log says, and comes when the interceptor is back."""
    limits = {"max_user_sessions": 1000, "max_user_offline_messages": 10}
    server = workshop.server(settings={"global": {"shaper_rules": limits}})
    (alice, bob) = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    for n in range(25):
        a.send_text(bob, str(n))
    await a.ping()
    without_amphora(server)
    server.reload_config()
    await said(server, "10 messages moved to the offline messages of example.org, 15 stay")
    assert f"15 messages for {bob} stay in the spool: full" in server.log
    with_amphora(server)
    server.reload_config()
    workshop.node(server)
    b = await clients.online(server, bob, raw=True)
    texts = await b.inbox.body_count(25)
    assert sorted(texts, key=int) == [str(n) for n in range(25)]
    # what mod_offline gave back is behind what never left
    assert texts == [str(n) for n in [*range(10, 25), *range(10)]]


async def test_beside_the_interceptor(workshop):
    """It does not touch a spool that is in use: ejabberd does not start, and says what to do."""
    server = workshop.server(start=False, settings={UNSPOOL: {}})
    server.spawn()
    await until(lambda: server.process.returncode() is not None, "the end of ejabberd")
    assert "take it out of the modules of example.org" in server.output()
