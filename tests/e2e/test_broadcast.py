"""Broadcasts: a message to a whole domain or to a list, once each, over restarts of either side.

R36 to R38, R45, R46 (the rule of a broadcast), O1, O3, O5; invariants I1, I2, I6, I7.
"""

import asyncio
import contextlib
import json
import re
import socket
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from harness.stanzas import utc
from harness.waiting import until, wait_for

FORWARDED = "{urn:xmpp:mam:2}result/{urn:xmpp:forward:0}forwarded/{jabber:client}message"


@pytest.fixture
def prosody(workshop):
    """A server of its own for each test: a domain has the users that the test makes."""
    return workshop.server()


@pytest.fixture
def node(workshop, prosody):
    """A node of its own for each test."""
    return workshop.node(prosody)


async def run(node, *arguments):
    """`amphora broadcast ...`, which must do well; its output."""
    code, output = await asyncio.to_thread(node.broadcast, *arguments)
    assert code == 0, f"{arguments}: {code}\n{output}"
    return output


async def start(node, *arguments):
    """Start a broadcast; its number."""
    output = await run(node, "start", *arguments)
    return int(re.match(r"broadcast (\d+)", output).group(1))


async def status(node, number):
    """The report of a broadcast."""
    reply = await asyncio.to_thread(lambda: node.ask(do="status", broadcast=number))
    return reply["broadcast"]


async def reach(node, number, condition, what):
    """Wait until a broadcast's report meets a condition; the report."""
    while_waiting = {}

    async def poll():
        while True:
            while_waiting["last"] = await status(node, number)
            if condition(while_waiting["last"]):
                return while_waiting["last"]
            await asyncio.sleep(0.02)

    try:
        return await asyncio.wait_for(poll(), 60)
    except asyncio.TimeoutError:
        raise AssertionError(f"never {what}: {while_waiting['last']}") from None


def settled(report):
    """Recipients that are settled."""
    return report["total"] - report["left"]


def over(report):
    """Whether it is at its end."""
    return report["ended-at"] is not None


async def done(node, number):
    """Wait for its end; the report."""
    return await reach(node, number, over, "over")


def stored(node):
    """How many messages each recipient has in the store."""
    with sqlite3.connect(node.database, timeout=30) as database:
        rows = "SELECT recipient, count(*) FROM offline_message GROUP BY recipient"
        return dict(database.execute(rows).fetchall())


def rows(node):
    """Recipients who are not settled, in the store."""
    with sqlite3.connect(node.database, timeout=30) as database:
        return database.execute("SELECT count(*) FROM broadcast_recipient").fetchone()[0]


async def comes_back(prosody, clients, jid, expected):
    """A user comes back and finds just that; then he leaves."""
    client = await clients.online(prosody, jid, "back", raw=True)
    mark = client.send_text(jid, "end")
    await client.inbox.until(lambda box: "end" in box.bodies(), "his own message")
    await client.inbox.reply(mark)
    texts = [text for text in client.inbox.bodies() if text != "end"]
    assert texts == expected, f"{jid}: {texts}"
    await client.leave()


async def archive(client):
    """The bodies in a user's archive."""
    await client.iq("<query xmlns='urn:xmpp:mam:2' queryid='q'/>", type="set")
    found = [s.find(FORWARDED) for s in client.inbox.all if s.name == "message"]
    return [f.findtext("{jabber:client}body") for f in found if f is not None]


async def test_a_whole_domain(prosody, node, clients):
    """O1, O3: who is online gets it at once, who is away when he is back; each once, also in the archive."""
    people = prosody.people("alice", "bob", "carol", "dave")
    alice, bob, carol, dave = people
    a = await clients.online(prosody, alice, "desk", raw=True)
    low = await clients.online(prosody, carol, "bot", priority=-1, raw=True)
    number = await start(
        node, "--to-domain", "example.org", "--subject", "Tonight", "--body", "down & <up>",
        "--expires", "1h", "--wait",
    )
    report = await done(node, number)
    assert report["state"] == "done"
    counts = {key: report[key] for key in ("total", "delivered", "stored", "discarded", "left")}
    assert counts == {"total": 4, "delivered": 1, "stored": 3, "discarded": 0, "left": 0}
    assert await a.inbox.body_count(1) == ["down & <up>"]
    message = a.inbox.messages()[0]
    assert message.sender == "example.org" and message.to == alice
    assert message.element.findtext("{jabber:client}subject") == "Tonight"
    [(action, condition, _)] = message.rules
    assert (action, condition) == ("drop", "expire-at")
    assert low.inbox.bodies() == [], "a session below zero gets nothing"
    for jid in (bob, carol, dave):
        await comes_back(prosody, clients, jid, ["down & <up>"])
    for jid in (bob, dave):
        await comes_back(prosody, clients, jid, [])
    assert await archive(a) == ["down & <up>"]
    b = await clients.online(prosody, bob, "desk", raw=True)
    assert (await archive(b)).count("down & <up>") == 1
    assert rows(node) == 0


async def test_expired_before_he_is_back(prosody, node, clients):
    """R38, R45, R46: who is back too late gets nothing, and nobody hears of it."""
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, raw=True)
    await start(node, "--to-domain", "example.org", "--body", "soon", "--expires", utc(4), "--wait")
    assert await a.inbox.body_count(1) == ["soon"]
    await comes_back(prosody, clients, bob, ["soon"])
    await until(lambda: not stored(node), "the message to expire in the store")
    await comes_back(prosody, clients, carol, [])


async def test_it_expires_while_it_is_sent(prosody, node, clients):
    """Who is left when the time comes is counted as expired, and gets nothing."""
    people = prosody.people(*(f"u{n:02}" for n in range(30)))
    number = await start(
        node, "--to-domain", "example.org", "--body", "x", "--rate", "2", "--expires", utc(4)
    )
    report = await done(node, number)
    assert report["state"] == "done" and report["total"] == 30 and report["left"] == 0
    assert 0 < report["stored"] < 30
    assert report["stored"] + report["discarded"] + report["expired"] == 30
    assert report["expired"] > 0 and rows(node) == 0
    await until(lambda: not stored(node), "what was stored to expire")
    await comes_back(prosody, clients, people[29], [])


async def test_a_list(prosody, node, clients, tmp_path):
    """Those on the list and nobody else; who is on it twice gets it once; who is not there is counted."""
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    names = tmp_path / "list.txt"
    names.write_text(f"# staff\n{alice}\n{bob.upper()}\n\n{alice}\nnobody@example.org\n")
    stanza = tmp_path / "notice.xml"
    stanza.write_text(
        "<?xml version='1.0'?>\n<message type='chat'><body>hello</body>"
        "<x xmlns='urn:example:x'>one <b>two</b> three</x></message>\n"
    )
    a = await clients.online(prosody, alice, raw=True)
    number = await start(
        node, "--to-file", str(names), "--stanza", str(stanza), "--expires", "1h", "--wait"
    )
    report = await done(node, number)
    counts = [report[key] for key in ("total", "delivered", "stored", "discarded")]
    assert counts == [3, 1, 1, 1]
    await a.inbox.body_count(1)
    [message] = a.inbox.messages()
    assert message.type == "chat"
    assert "".join(message.find("{urn:example:x}x").itertext()) == "one two three"
    await comes_back(prosody, clients, bob, ["hello"])
    await comes_back(prosody, clients, carol, [])
    assert a.inbox.bodies() == ["hello"]


async def test_the_rate_is_kept(prosody, node):
    """I6: never more are settled than the rate allows by then, and the numbers only grow."""
    prosody.people(*(f"u{n:02}" for n in range(30)))
    began = time.monotonic()
    number = await start(
        node, "--to-domain", "example.org", "--body", "x", "--rate", "10", "--expires", "1h"
    )
    before = 0
    while True:
        report = await status(node, number)
        now = settled(report)
        assert before <= now <= 10 * (time.monotonic() - began) + 2
        before = now
        if over(report):
            break
        await asyncio.sleep(0.02)
    assert before == 30 and len(stored(node)) == 30


async def test_more_users_than_a_page(prosody, node):
    """1,200 accounts are three pages: each is a recipient, once."""
    people = prosody.people(*(f"u{n:04}" for n in range(1200)), friends=False)
    number = await start(
        node, "--to-domain", "example.org", "--body", "x", "--rate", "1000", "--expires", "1h"
    )
    report = await done(node, number)
    assert (report["total"], report["stored"], report["left"]) == (1200, 1200, 0)
    assert stored(node) == {jid: 1 for jid in people}


async def crowd(prosody, clients, away=280, online=20):
    """Many users, some of them online."""
    people = prosody.people(*(f"u{n:03}" for n in range(away + online)), friends=False)
    # every so many, so that any part of the broadcast has some
    here = people[:: (away + online) // online]
    there = [
        await clients.online(prosody, jid, "here", raw=True) for jid in here
    ]
    return people, dict(zip(here, there))


async def test_node_killed_amid_it(prosody, node, clients):
    """I1, I2: kill -9 in the middle of 300, and a new start: everybody exactly once."""
    people, online = await crowd(prosody, clients)
    number = await start(
        node, "--to-domain", "example.org", "--body", "once", "--rate", "200", "--expires", "1h"
    )
    for part in (60, 160):
        await reach(node, number, lambda r, part=part: settled(r) >= part, f"at {part}")
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
    report = await done(node, number)
    assert report["total"] == 300 and report["left"] == 0 and report["discarded"] == 0
    for jid, client in online.items():
        await client.ping()
        assert client.inbox.bodies() == ["once"], jid
    away = {jid: 1 for jid in people if jid not in online}
    assert stored(node) == away
    assert report["delivered"] + report["stored"] == 300
    for jid in list(away)[::40]:
        await comes_back(prosody, clients, jid, ["once"])


async def test_server_restarted_amid_it(prosody, node, clients):
    """I1, I2: Prosody is stopped in the middle, and started: everybody exactly once, archived once."""
    people, online = await crowd(prosody, clients)
    number = await start(
        node, "--to-domain", "example.org", "--body", "once", "--rate", "150", "--expires", "1h"
    )
    await reach(node, number, lambda r: settled(r) >= 80, "at 80")
    await asyncio.to_thread(prosody.stop)
    report = await status(node, number)
    assert report["state"] == "running" and report["left"] > 0
    await asyncio.to_thread(prosody.start)
    report = await done(node, number)
    assert report["total"] == 300 and report["left"] == 0 and report["discarded"] == 0
    kept = stored(node)
    assert all(count == 1 for count in kept.values())
    for jid in people:
        if jid not in online:
            assert jid in kept, jid
    for jid, client in online.items():
        # one that got it while it was connected does not find it again
        got = client.inbox.bodies()
        assert len(got) + kept.get(jid, 0) == 1, f"{jid}: {got}"
    for jid in people[1:300:50]:
        client = await clients.online(prosody, jid, "desk", raw=True)
        assert await archive(client) == ["once"], jid


async def test_node_killed_and_server_restarted(prosody, node, clients):
    """I2: what the server delivered for a node that was killed, it knows after a restart of its own."""
    people, online = await crowd(prosody, clients, away=0, online=120)
    number = await start(
        node, "--to-domain", "example.org", "--body", "once", "--rate", "40", "--expires", "1h"
    )
    await reach(node, number, lambda r: settled(r) >= 1, "at 1")

    def delivered():
        return sum(len(client.inbox.bodies()) for client in online.values())

    # While somebody else writes to the database, the node can't record what is delivered.
    with contextlib.closing(sqlite3.connect(node.database, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        recorded = 120 - rows(node)
        await until(lambda: delivered() >= recorded + 10, "deliveries that are not recorded")
        await asyncio.to_thread(node.kill)
    for client in online.values():
        await client.ping()
    got = {jid: client.inbox.bodies() for jid, client in online.items()}
    assert rows(node) >= 120 - delivered() + 10
    await asyncio.to_thread(prosody.stop)
    await asyncio.to_thread(prosody.start)
    await asyncio.to_thread(node.start)
    report = await done(node, number)
    assert report["total"] == 120 and report["left"] == 0
    kept = stored(node)
    for jid in people:
        assert len(got[jid]) + kept.get(jid, 0) == 1, f"{jid}: {got[jid]} {kept.get(jid)}"


async def test_server_killed_amid_it(prosody, node, clients):
    """I2: Prosody is killed in the middle: what is stored is stored once; a delivery that was not
    told yet may come again, with the id that it had."""
    people, online = await crowd(prosody, clients)
    number = await start(
        node, "--to-domain", "example.org", "--body", "once", "--rate", "200", "--expires", "1h"
    )
    await reach(node, number, lambda r: settled(r) >= 100, "at 100")
    await asyncio.to_thread(prosody.kill)
    await asyncio.to_thread(prosody.start)
    report = await done(node, number)
    assert report["total"] == 300 and report["left"] == 0 and report["discarded"] == 0
    kept = stored(node)
    assert set(people) - set(online) <= set(kept) and set(kept.values()) == {1}
    with sqlite3.connect(node.database) as database:
        keys = dict(database.execute("SELECT recipient, key FROM offline_message").fetchall())
    for jid, client in online.items():
        got = client.inbox.messages()
        assert len(got) + kept.get(jid, 0) in (1, 2), f"{jid}: {got}"
        ids = {message.id for message in got} | {key for key in [keys.get(jid)] if key}
        assert len(ids) == 1, f"{jid}: {ids}"


async def test_pause_resume_cancel(prosody, node, clients, tmp_path):
    """Nothing is sent while it is paused; resumed it goes on where it stood; cancelled it ends."""
    people = prosody.people(*(f"u{n:02}" for n in range(40)))
    number = await start(
        node, "--to-domain", "example.org", "--body", "first", "--rate", "10", "--expires", "1h"
    )
    await reach(node, number, lambda r: settled(r) >= 3, "begun")
    output = await run(node, "pause", str(number))
    assert "paused" in output
    stands = settled(await status(node, number))
    # another one, of twice the time that the first would need for two more
    names = tmp_path / "list"
    names.write_text("\n".join(people[:8]))
    await start(
        node, "--to-file", str(names), "--body", "second", "--rate", "4", "--expires", "1h", "--wait"
    )
    report = await status(node, number)
    assert report["state"] == "paused" and settled(report) <= stands + 1
    # a restart leaves it paused
    await asyncio.to_thread(node.kill)
    await asyncio.to_thread(node.start)
    assert (await status(node, number))["state"] == "paused"
    assert "running" in await run(node, "resume", str(number))
    await reach(node, number, lambda r: settled(r) >= stands + 5, "going on")
    output = await run(node, "cancel", str(number))
    assert "cancelled" in output
    report = await done(node, number)
    assert report["state"] == "cancelled" and report["left"] == 0
    assert report["cancelled"] > 0 and report["stored"] + report["cancelled"] == 40
    assert sum(stored(node).values()) == report["stored"] + 8, "what is stored stays"
    for command in ("pause", "resume", "cancel"):
        code, output = await asyncio.to_thread(node.broadcast, command, str(number))
        assert code == 1 and "cancelled" in output, output
    listed = await run(node, "list")
    assert [line.split(":")[0] for line in listed.splitlines()] == ["broadcast 1", "broadcast 2"]
    await comes_back(prosody, clients, people[0], ["first", "second"])


async def test_a_blocked_server_and_a_removed_account(prosody, node, clients):
    """Who blocks the server itself gets nothing, and is counted as discarded. In ejabberd nobody can."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, raw=True)
    await a.iq(
        "<block xmlns='urn:xmpp:blocking'><item jid='example.org'/></block>", type="set"
    )
    number = await start(node, "--to-domain", "example.org", "--body", "x", "--expires", "1h", "--wait")
    report = await done(node, number)
    blocked = prosody.kind != "ejabberd"
    assert [report[key] for key in ("total", "stored", "discarded")] == [2, 1, int(blocked)]
    await a.ping()
    assert a.inbox.bodies() == ([] if blocked else ["x"])
    await comes_back(prosody, clients, bob, ["x"])


async def test_who_is_sent_on_gets_it_there(prosody, workshop, clients, tmp_path):
    """A recipient whose messages are sent on counts as delivered."""
    alice, bob = prosody.people("alice", "bob")
    node = workshop.node(prosody, start=False)
    entry = f'\n[[forward]]\nfrom = "{bob}"\nto = "{alice}"\n'
    node.config.write_text(node.config.read_text() + entry)
    node.start()
    a = await clients.online(prosody, alice, raw=True)
    names = tmp_path / "list"
    names.write_text(bob)
    number = await start(
        node, "--to-file", str(names), "--body", "there", "--expires", "1h", "--wait"
    )
    report = await done(node, number)
    assert (report["delivered"], report["total"]) == (1, 1)
    assert await a.inbox.body_count(1) == ["there"]
    assert stored(node) == {}


async def test_module_reloaded_amid_it(prosody, node, clients, admin):
    """The interceptor is loaded anew in the middle: everybody exactly once."""
    people = [prosody.account("admin"), *prosody.people(*(f"u{n:03}" for n in range(150)), friends=False)]
    boss = await clients.online(prosody, people[0], "desk", raw=True)
    number = await start(
        node, "--to-domain", "example.org", "--body", "once", "--rate", "100", "--expires", "1h"
    )
    await reach(node, number, lambda r: settled(r) >= 30, "at 30")
    await admin(prosody, "restart")
    report = await done(node, number)
    assert report["total"] == 151 and report["left"] == 0 and report["discarded"] == 0
    assert stored(node) == {jid: 1 for jid in people[1:]}
    await boss.ping()
    assert boss.inbox.bodies() == ["once"]


# ------------------------------------------------------------------ the command line


def test_errors_of_the_command_line(prosody, node, tmp_path):
    """Each mistake is named with its place and its remedy, and nothing is begun."""
    prosody.people("alice")
    names = tmp_path / "list"

    def fails(*arguments):
        code, output = node.broadcast("start", *arguments)
        assert code != 0, output
        return code, output

    good = ("--body", "x", "--expires", "1h")
    names.write_text("alice@example.org\n@example.org\nbob@example.org/phone\nbob@example.net\n")
    code, output = fails("--to-file", str(names), *good)
    assert code == 65
    for line in (2, 3, 4):
        assert f"{names}:{line}: " in output, output
    code, output = fails("--to-file", str(tmp_path / "none"), *good)
    assert code == 66 and "none" in output
    code, output = fails("--to-domain", "example.net", *good)
    assert code == 2 and "example.net" in output and "example.org" in output
    for when in ("2020-01-01T00:00:00Z", "tomorrow", "0s", "9999days"):
        code, output = fails("--to-domain", "example.org", "--body", "x", "--expires", when)
        assert code == 2, (when, output)
    assert "in the past" in fails("--to-domain", "example.org", "--body", "x", "--expires", "2020-01-01T00:00:00Z")[1]
    for rate in ("0", "1001", "x"):
        assert fails("--to-domain", "example.org", *good, "--rate", rate)[0] == 2
    assert fails("--to-domain", "example.org", "--to-file", str(names), *good)[0] == 2
    assert fails("--to-domain", "example.org", "--expires", "1h")[0] == 2
    assert fails("--to-domain", "example.org", "--body", " ", "--expires", "1h")[0] == 65
    stanza = tmp_path / "stanza.xml"
    for text, says in (
        ("<message to='a@b'><body/></message>", "'to'"),
        ("<presence/>", "<message/>"),
        ("<message><body></message>", "well-formed"),
        ("<message><amp xmlns='http://jabber.org/protocol/amp'/></message>", "<amp/>"),
        ("<message type='headline'><body>x</body></message>", "headline"),
    ):
        stanza.write_text(text)
        code, output = fails("--to-domain", "example.org", "--stanza", str(stanza), "--expires", "1h")
        assert code == 65 and says in output and str(stanza) in output, output
    code, output = node.broadcast("status", "7")
    assert code == 1 and "no broadcast 7" in output
    assert node.broadcast("list") == (0, "no broadcasts\n")


def test_without_a_node_or_a_socket(prosody, workshop):
    """The command says where it looked and how to find out more; a node without a socket says so."""
    node = workshop.node(prosody, start=False)
    code, output = node.broadcast("list")
    assert code == 75 and node.control in output and "check-config" in output
    node.config.write_text(node.config.read_text().replace('name = "n1"', 'name = "n1"\ncontrol = ""'))
    node.start()
    code, output = node.broadcast("list")
    assert code == 78 and "node.control" in output
    assert not Path(node.control).exists()


def test_the_socket(prosody, node, workshop):
    """I7: it is its owner's alone; a stale one is replaced, another node's is not; it goes with the node."""
    assert stat.S_IMODE(Path(node.control).stat().st_mode) == 0o600
    other = workshop.node(prosody, start=False, component="amp2.example.org", host="example.net")
    other.config.write_text(
        other.config.read_text().replace('name = "n1"', f'name = "n2"\ncontrol = "{node.control}"')
    )
    other.spawn()
    assert other.wait_exit() == 71
    assert node.control in other.log and "another node" in other.log
    assert node.broadcast("list")[0] == 0, "the first one's is still there"
    node.kill()
    assert Path(node.control).exists(), "left by the node that was killed"
    node.start()
    assert node.broadcast("list")[0] == 0
    node.stop()
    assert not Path(node.control).exists()
    Path(node.control).write_text("mine")
    node.spawn()
    assert node.wait_exit() == 71
    assert Path(node.control).read_text() == "mine" and "is no socket" in node.log
    Path(node.control).unlink()


def test_hostile_lines(prosody, node):
    """I7: nothing that is written to the socket ends the node, or anybody else's connection."""
    for line in (b"\n", b"{\n", b"\xff\xfe\n", b'{"do":"status"}\n', b"[" * 100000 + b"\n",
                 b'{"do":"add","broadcast":1,"recipients":[1]}\n',
                 b'{"do":"status","broadcast":99999999999999999999}\n'):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(node.control)
            connection.sendall(line)
            reply = json.loads(connection.makefile().readline())
            assert reply["problem"]["kind"] == "request", line[:40]
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(node.control)
        try:
            connection.sendall(b"x" * (4 * 1024 * 1024 + 2))
            reply = json.loads(connection.makefile().readline())
            assert "4194304 bytes" in reply["problem"]["says"]
        except (ConnectionResetError, BrokenPipeError):
            pass  # it closed before all was written
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(node.control)
    assert node.ask(do="list") == {"broadcasts": []}
    silent.close()


def test_a_list_that_is_not_told_to_its_end(prosody, node):
    """Who goes away in the middle of a list leaves nothing behind, and so does a node that is killed."""
    prosody.people("alice")
    command = {
        "do": "start", "host": "example.org", "everyone": False, "rate": 50,
        "stanza": "<message><body>x</body></message>", "expires_at": utc(3600),
    }
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(node.control)
    stream = connection.makefile("rw")

    def ask(**line):
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        return json.loads(stream.readline())

    first = ask(**command)["broadcast"]
    assert first["state"] == "filling"
    added = ask(do="add", broadcast=first["id"], recipients=["alice@example.org"])
    assert added["broadcast"]["total"] == 1
    wrong = ask(do="add", broadcast=first["id"], recipients=["alice@example.net"])
    assert wrong["problem"]["kind"] == "recipients" and "alice@example.net" in wrong["problem"]["says"]
    stream.close()
    connection.close()

    def ended():
        [report] = node.ask(do="list")["broadcasts"]
        return report if over(report) else None

    report = wait_for(ended, "the unfinished list to end")
    assert report["state"] == "cancelled" and report["cancelled"] == 1
    # and over a kill
    second = node.ask(**command)["broadcast"]
    wait_for(lambda: over(node.ask(do="status", broadcast=second["id"])["broadcast"]), "the second to end")
    assert not stored(node) and rows(node) == 0


async def test_follow(prosody, node):
    """Progress is told in lines where there is no terminal, and the last says how it ended."""
    prosody.people(*(f"u{n:02}" for n in range(12)))
    number = await start(
        node, "--to-domain", "example.org", "--body", "x", "--rate", "6", "--expires", "1h"
    )
    lines = (await run(node, "status", str(number), "--follow")).splitlines()
    assert all(line.startswith(f"broadcast {number}") for line in lines)
    assert "12 of 12 settled" in lines[-1] and lines[-1].endswith("done")
    page = await run(node, "status", str(number))
    assert "recipients 12" in page and "stored     12" in page


# ------------------------------------------------------------------ XEP-0050

COMMANDS = "http://jabber.org/protocol/commands"
SEND = "urn:amphora:broadcast:send"
LIST = "urn:amphora:broadcast:list"


async def execute(client, name, fields=None, session=None):
    """One step of a command: the `<command/>`, or the error stanza."""
    given = "".join(
        f"<field var='{key}'>"
        + "".join(f"<value>{value}</value>" for value in ([values] if isinstance(values, str) else values))
        + "</field>"
        for key, values in (fields or {}).items()
    )
    form = f"<x xmlns='jabber:x:data' type='submit'>{given}</x>" if fields else ""
    attributes = f" sessionid='{session}'" if session else ""
    answer = await client.iq(
        f"<command xmlns='{COMMANDS}' node='{name}'{attributes}>{form}</command>",
        type="set", to="example.org",
    )
    return answer if answer.type == "error" else answer.find(f"{{{COMMANDS}}}command")


def notes(command):
    """The notes of a command, as (type, text)."""
    return [(note.get("type", "info"), note.text) for note in command.findall(f"{{{COMMANDS}}}note")]


def fields_of(command):
    """The fields of a command's form: name -> (type, values, options)."""
    data = "{jabber:x:data}"
    return {
        field.get("var"): (
            field.get("type"),
            [value.text for value in field.findall(f"{data}value")],
            [option.findtext(f"{data}value") for option in field.findall(f"{data}option")],
        )
        for field in command.findall(f"{data}x/{data}field")
    }


async def test_an_administrators_commands(prosody, node, clients):
    """XEP-0050: he sends one to everyone, sees it in the list, and pauses and cancels another."""
    people = prosody.people("alice", "bob", *(f"u{n:02}" for n in range(20)))
    people.insert(0, prosody.account("admin"))
    admin = await clients.online(prosody, people[0], "desk", raw=True)
    a = await clients.online(prosody, people[1], raw=True)
    items = await admin.iq(
        f"<query xmlns='http://jabber.org/protocol/disco#items' node='{COMMANDS}'/>", to="example.org"
    )
    assert SEND in repr(items) and LIST in repr(items)
    form = await execute(admin, SEND)
    assert form.get("status") == "executing"
    offered = fields_of(form)
    assert offered["to"][2] == ["everyone", "list"] and offered["recipients"][0] == "jid-multi"
    sent = await execute(
        admin, SEND,
        {"to": "everyone", "subject": "Hi", "body": ["one", "two"], "expire": "3600", "rate": "1000"},
        form.get("sessionid"),
    )
    assert sent.get("status") == "completed", notes(sent)
    assert notes(sent)[0][0] == "info" and "Broadcast 1: running" in notes(sent)[0][1]
    report = await done(node, 1)
    assert report["total"] == 23 and report["everyone"] and report["host"] == "example.org"
    assert await a.inbox.body_count(1) == ["one\ntwo"]
    # a list, slow enough to be stopped
    slow = await execute(admin, SEND)
    slow = await execute(
        admin, SEND,
        {"to": "list", "recipients": people[3:], "body": "slow", "expire": utc(3600), "rate": "1"},
        slow.get("sessionid"),
    )
    assert slow.get("status") == "completed", notes(slow)
    listed = await execute(admin, LIST)
    assert fields_of(listed)["broadcast"][2] == ["2", "1"]
    paused = await execute(admin, LIST, {"broadcast": "2", "do": "pause"}, listed.get("sessionid"))
    assert "2: paused" in notes(paused)[0][1]
    assert (await status(node, 2))["state"] == "paused"
    again = await execute(admin, LIST)
    wrong = await execute(admin, LIST, {"broadcast": "1", "do": "pause"}, again.get("sessionid"))
    assert wrong.get("status") == "executing" and notes(wrong)[0][0] == "error"
    assert "can't be done" in notes(wrong)[0][1]
    cancelled = await execute(admin, LIST, {"broadcast": "2", "do": "cancel"}, wrong.get("sessionid"))
    assert "2: cancelled" in notes(cancelled)[0][1]
    report = await done(node, 2)
    assert report["state"] == "cancelled" and report["cancelled"] > 0


async def test_a_wrong_form(prosody, node, clients):
    """What is wrong is said under the field's own label, and the form comes back as it was filled in."""
    prosody.people("alice")
    admin = await clients.online(prosody, prosody.account("admin"), "desk", raw=True)
    good = {"to": "everyone", "body": "x", "expire": "3600", "rate": "50"}
    form = await execute(admin, SEND)
    session = form.get("sessionid")
    for change, says in (
        ({"expire": "2020-01-01T00:00:00Z"}, "Expires: is in the past"),
        ({"expire": "soon"}, "Expires: must be a number of seconds"),
        ({"expire": "0"}, "Expires: must be 1 second to 366 days"),
        ({"body": ""}, "Message: "),
        ({"rate": "0"}, "Messages a second: "),
        ({"rate": "fast"}, "Messages a second: "),
        ({"to": "list"}, "Recipients: "),
        ({"to": "some"}, "To: "),
        ({"to": "list", "recipients": ["alice@example.net"]}, "Recipients: alice@example.net is no user"),
        ({"to": "list", "recipients": ["example.org"]}, "Recipients: example.org is no user"),
        ({"recipients": ["alice@example.org"]}, "Recipients: must be empty"),
    ):
        answer = await execute(admin, SEND, {**good, **change}, session)
        assert answer.get("status") == "executing", change
        kind, text = notes(answer)[0]
        assert kind == "error" and says in text, (change, text)
        back = fields_of(answer)
        assert back["to"][1] == [({**good, **change})["to"]], back
    await asyncio.to_thread(node.stop)
    gone = await execute(admin, SEND, good, session)
    assert "No node" in notes(gone)[0][1]
    none = await execute(admin, LIST)
    assert "No node" in notes(none)[0][1]


async def test_commands_are_for_administrators(prosody, node, clients):
    """Nobody else sees or runs them, and nobody can speak to the component as the host does."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob, raw=True)
    for name in (SEND, LIST):
        refused = await execute(a, name)
        assert refused.type == "error" and refused.condition == "forbidden"
    items = await a.iq(
        f"<query xmlns='http://jabber.org/protocol/disco#items' node='{COMMANDS}'/>", to="example.org"
    )
    assert SEND not in repr(items) and LIST not in repr(items)
    a.write(
        "<iq type='set' id='evil' to='amp.example.org'><broadcast xmlns='urn:amphora:intercept:1'"
        f" action='start' everyone='true' expires='{utc(3600)}'><body>spam</body></broadcast></iq>"
    )
    a.send_text(bob, "end")
    assert await b.inbox.body_count(1) == ["end"]
    assert node.ask(do="list") == {"broadcasts": []}
