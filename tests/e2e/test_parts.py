"""Several databases in one node, each with the users of some shards. I1, I2, I3."""

import asyncio
import hashlib
import re

import pytest

from harness.database import Database
from harness.prosody import HOST
from harness.replies import check_reply
from harness.stanzas import amp, message, rule, utc
from harness.steps import all_stored
from harness.waiting import until

pytestmark = pytest.mark.once("it is about the node and its databases")

SHARDS = 8
PARTS = """
[[store.part]]
name = "file"
shards = "0-3"
url = "sqlite://{file}"

[[store.part]]
name = "server"
shards = "4-7"
url = "{server}"
"""


def part(jid):
    """Which part has a user."""
    shard = int.from_bytes(hashlib.sha256(jid.encode()).digest()[:4], "big") % SHARDS
    return "file" if shard < 4 else "server"


def names(kind, count):
    """Names of users of a part."""
    every = (f"{kind}{n}" for n in range(1000))
    some = [name for name in every if part(f"{name}@{HOST}") == kind]
    return some[:count]


def people(prosody, *users):
    """Accounts of just these names, all in each other's roster."""
    jids = [f"{user}@{HOST}" for user in users]
    for user, jid in zip(users, jids, strict=True):
        prosody.account(user, {other: "both" for other in jids if other != jid})
    return jids


@pytest.fixture(params=["postgres", "mariadb"])
def database(request):
    """A server with a database, for one test: it is killed."""
    server = Database(request.param)
    yield server
    server.stop()


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test."""
    return workshop.server()


@pytest.fixture
def node(workshop, prosody, database):
    """A node with two databases: a file, and the server's."""
    node = workshop.node(prosody, start=False)
    node.write_config(parts=PARTS.format(file=node.database, server=database.url))
    yield node.start()
    node.stop()


async def ready(node, code):
    """Wait for what the node says of itself."""
    await until(lambda: node.http_status("/readyz") == code, f"/readyz to say {code}")


async def check_away(node, how):
    """The part is named, the other is well, and the process is alive."""
    away = f"part server: {how}"
    await until(lambda: away in node.http_get("/healthz"), f"/healthz to say '{away}'")
    assert node.http_status("/healthz") == 200 and node.http_status("/readyz") == 503
    assert "part file" not in node.http_get("/healthz")
    assert node.metric('amphora_store_healthy{part="server"}') == 0
    assert node.metric('amphora_store_healthy{part="file"}') == 1


async def check_served(prosody, clients, a, jid):
    """A user of the part that is well is served as ever: stored, expired, handed over."""
    when = utc(1)
    id = a.send_xml(message(jid, "late", payload=amp(rule("alert", "expire-at", when))))
    a.send_text(jid, "one")
    await all_stored(a, jid)
    reply = await a.inbox.reply(id)
    expected = ("alert", "expire-at", when)
    check_reply(reply, "alert", id=id, sender=f"alice@{HOST}/desk", recipient=jid, rule=expected)
    client = await clients.online(prosody, jid)
    assert await client.inbox.body_count(2) == ["one", "mark"]
    await client.leave()


async def test_a_part_is_killed_and_comes_back(prosody, database, node, clients):
    """Its users' messages are held, stored when it is back, and expire then; the users of the
    other part notice nothing."""
    users = ("alice", *names("file", 2), *names("server", 1))
    alice, well, other, away = people(prosody, *users)
    a = await clients.online(prosody, alice, "desk", raw=True)
    for jid in (well, away):
        a.send_text(jid, "0")
        await all_stored(a, jid)
    when = utc(5)
    late = a.send_xml(message(away, "late", payload=amp(rule("alert", "expire-at", when))))
    await until(lambda: database.rows() == 3, "the message that will be late in the store")
    assert node.stored(well) == 2 and node.stored(away) == 0

    await asyncio.to_thread(database.kill)
    for n in range(1, 20):
        a.send_text(away, str(n))
        a.send_text(well, str(n))
    await all_stored(a, well)
    await check_away(node, "unhealthy")
    retries = 'amphora_store_retries_total{part="server"}'
    await until(lambda: (node.metric(retries) or 0) > 0, "appends to be answered 'retry'")
    await check_served(prosody, clients, a, other)
    assert a.inbox.with_id(late) == [], "its row could not be read"

    await asyncio.to_thread(database.start)
    await ready(node, 200)
    assert node.http_get("/healthz") == "alive\n"
    check_reply(
        await a.inbox.reply(late, seconds=90),
        "alert",
        id=late,
        sender=f"{alice}/desk",
        recipient=away,
        rule=("alert", "expire-at", when),
    )
    await all_stored(a, away, "end")
    for jid, last in ((well, ["mark"]), (away, ["end"])):
        client = await clients.online(prosody, jid)
        texts = await client.inbox.body_count(22)
        assert texts == ["0", "mark", *map(str, range(1, 20)), *last], jid
        await client.leave()
    await until(lambda: database.rows() == 0 and node.rows() == 0, "empty databases")
    assert [m for m in a.inbox.messages() if m.error is not None] == []
    assert "secret" not in node.log


async def test_a_part_is_away_when_the_node_starts(prosody, database, node, clients):
    """The node serves the other part; what was stored, and what was sent meanwhile, is handed
    over in order when the database is there."""
    alice, well, away = people(prosody, "alice", *names("file", 1), *names("server", 1))
    a = await clients.online(prosody, alice, "desk", raw=True)
    a.send_text(away, "0")
    await all_stored(a, away)
    assert node.stop() == 0
    await asyncio.to_thread(database.kill)
    code, output = node.command("migrate", "--config", str(node.config))
    assert code == 69 and "part 'server'" in output and "secret" not in output, output
    await asyncio.to_thread(node.spawn)
    await until(lambda: node.http_status("/healthz") == 200, "the node to serve")
    await check_away(node, "not open")
    for n in range(1, 20):
        a.send_text(away, str(n))
    await check_served(prosody, clients, a, well)
    client = await clients.online(prosody, away)
    await client.ping()
    assert client.inbox.bodies() == []

    await asyncio.to_thread(database.start)
    await ready(node, 200)
    texts = await client.inbox.body_count(21, seconds=90)
    assert texts == ["0", "mark", *map(str, range(1, 20))]
    await client.leave()
    await until(lambda: database.rows() == 0, "an empty database")


async def test_a_broadcast_while_a_part_is_away(prosody, database, node, clients):
    """It is kept with shard 0, in the file. The users of the part that is well have theirs, the
    others get it once their database is back; each once."""
    jids = people(prosody, *names("file", 4), *names("server", 4))
    # What a host has not, it can't lose: the first connection makes the accounts known.
    first = await clients.online(prosody, jids[0])
    await first.leave()
    await asyncio.to_thread(database.kill)
    await check_away(node, "unhealthy")
    arguments = ("--to-domain", HOST, "--body", "all", "--expires", "1h", "--rate", "100")
    code, output = await asyncio.to_thread(node.broadcast, "start", *arguments)
    assert code == 0, output
    number = int(re.match(r"broadcast (\d+)", output).group(1))

    def count(what):
        return node.ask(do="status", broadcast=number)["broadcast"][what]

    await until(lambda: count("stored") == 4, "those of the part that is well to be stored")
    assert count("stored") == 4
    await asyncio.to_thread(database.start)
    await until(lambda: count("state") == "done", "the end of the broadcast", seconds=90)
    assert (count("total"), count("stored")) == (8, 8)
    assert database.rows() == 4 and node.rows() == 4
    for jid in jids:
        client = await clients.online(prosody, jid)
        assert await client.inbox.body_count(1) == ["all"]
        client.send_text(jid, "end")
        assert await client.inbox.body_count(2) == ["all", "end"], jid
        await client.leave()


async def test_from_one_database_to_two(prosody, database, node, clients):
    """A node is not let in before the messages are moved; then each user has his, in order, and
    what comes later comes after them."""
    assert node.stop() == 0
    parts = node.settings["parts"].replace(str(node.database), str(node.dir / "new.db"))
    node.write_config(parts="")
    alice, *jids = people(prosody, "alice", *names("file", 3), *names("server", 3))
    await asyncio.to_thread(lambda: node.database.unlink())
    await asyncio.to_thread(node.start)
    a = await clients.online(prosody, alice, "desk", raw=True)
    for jid in jids:
        for n in range(10):
            a.send_text(jid, f"{n} \U0001f600")
        await all_stored(a, jid)
    assert node.stop() == 0
    old = node.dir / "old.toml"
    old.write_text(node.config.read_text())
    node.write_config(parts=parts)
    code, output = node.command("run", "--config", str(node.config))
    assert code == 69 and "amphora move" in output, output
    arguments = ("move", "--from", str(old), "--config", str(node.config))
    code, output = node.command(*arguments)
    assert code == 0 and "moved 66 messages of 6 users" in output, output
    await asyncio.to_thread(node.start)
    assert node.rows() == 0 and database.rows() == 33
    for jid in jids:
        a.send_text(jid, "later")
        await all_stored(a, jid)
        client = await clients.online(prosody, jid)
        texts = await client.inbox.body_count(13)
        assert texts == [*(f"{n} \U0001f600" for n in range(10)), "mark", "later", "mark"], jid
        await client.leave()
