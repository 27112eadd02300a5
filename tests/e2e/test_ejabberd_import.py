"""What mod_offline had stored before the interceptor came moves to the node: test_spool.py has it
with mnesia, here it is PostgreSQL, and what may go wrong on the way. O9, I1, I2."""

import asyncio
from pathlib import Path

import pytest

from harness.database import Database
from harness.stanzas import parse_utc, utc
from harness.waiting import until

pytestmark = pytest.mark.only("ejabberd", "it is about mod_offline of ejabberd")

SCHEMA = Path("/usr/share/ejabberd/sql/pg.sql")


@pytest.fixture(scope="module")
def database():
    """PostgreSQL with ejabberd's tables."""
    made = Database("postgres")
    made.query(f"SET ROLE amphora; {SCHEMA.read_text()}")
    yield made
    made.stop()


def sql(database):
    """Where mod_offline stores, as ejabberd's settings."""
    return {
        "sql_type": "pgsql",
        "sql_server": "127.0.0.1",
        "sql_port": database.port,
        "sql_database": "amphora",
        "sql_username": "amphora",
        "sql_password": "secret",
    }


async def stored_by_mod_offline(server, clients, count):
    """(Alice, Bob, Carol): both wrote that many texts to Bob, who is away."""
    alice, carol, bob = server.people("alice", "carol", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    c = await clients.online(server, carol, "desk", raw=True)
    for n in range(count):
        a.send_text(bob, f"alice {n}")
        c.send_text(bob, f"carol {n}")
    await asyncio.gather(a.ping(), c.ping())
    assert server.stored_offline(bob.partition("@")[0]) == 2 * count
    await asyncio.gather(a.leave(), c.leave())
    return alice, bob, carol


def check(texts, count):
    """Each sender's texts are there, once and in order."""
    assert len(texts) == 2 * count
    for name in ("alice", "carol"):
        assert [t for t in texts if t.startswith(name)] == [f"{name} {n}" for n in range(count)]


async def test_from_postgresql(workshop, clients, database):
    """In each sender's order, with the time of the sending; the table is empty then."""
    server = workshop.server(module=False, sql=sql(database))
    _, bob, _ = await stored_by_mod_offline(server, clients, 150)
    written = parse_utc(utc(1))
    server.stop()
    server.module = True
    server.start()
    node = workshop.node(server)
    await until(lambda: node.stored(bob) == 300, "all of them at the node")
    assert server.stored_offline(bob.partition("@")[0]) == 0
    assert database.query("SELECT count(*) FROM spool") == "0"
    b = await clients.online(server, bob)
    check(await b.inbox.body_count(300), 150)
    for m in b.inbox.messages():
        assert [parse_utc(d.get("stamp")) <= written for d in m.delays] == [True]


async def test_killed_in_the_middle(workshop, clients):
    """I1, I2: what was moved is moved, the rest is at the next start; nothing twice."""
    server = workshop.server(module=False)
    _, bob, _ = await stored_by_mod_offline(server, clients, 300)
    server.stop()
    server.module = True
    server.spawn()
    await until(lambda: list(server.spool_files()), "the spool to be there")
    server.kill()
    server.start()
    workshop.node(server)
    b = await clients.online(server, bob)
    check(await b.inbox.body_count(600), 300)
    await b.leave()
    again = await clients.online(server, bob)
    await again.ping()
    assert again.inbox.bodies() == []


async def test_loaded_into_a_running_server(workshop, clients, admin):
    """What mod_offline stored while the interceptor was out of the way moves when it is back."""
    server = workshop.server()
    node = workshop.node(server)
    await admin(server, "unload")
    _, bob, _ = await stored_by_mod_offline(server, clients, 20)
    await admin(server, "load")
    await until(lambda: node.stored(bob) == 40, "all of them at the node")
    assert server.stored_offline(bob.partition("@")[0]) == 0
    b = await clients.online(server, bob)
    check(await b.inbox.body_count(40), 20)
