"""A node with the link and no shard, and one with all shards and no link: all that is decided
crosses, over a real NATS server. The tests of one node, and more, hold here too. I1, I2, I3, I6."""

import asyncio

import pytest

from harness.database import Database
from harness.members import owners
from harness.stanzas import amp, message, rule
from harness.steps import all_stored
from harness.waiting import until, wait_for
from test_broadcast import comes_back, done
from test_broadcast import start as start_broadcast
from test_crash import EACH, check_everybody, crowd, pour
from test_expiry import (  # noqa: F401
    test_each_action_when_the_time_comes,
    test_in_time,
    test_the_notice_waits_for_a_sender_who_left,
)
from test_offline import (  # noqa: F401
    test_500_in_order_with_live_ones_meanwhile,
    test_big_messages,
    test_it_goes_to_the_resource_that_comes,
    test_negative_priority_gets_nothing_until_it_rises,
    test_the_sender_is_away_when_his_notice_comes,
    test_the_stanza_comes_as_it_was_sent,
    test_unavailable_and_back_in_one_session,
    test_what_is_kept_and_what_is_not,
)
from test_retrieval import (  # noqa: F401
    test_f2_f4_count_and_list_before_presence,
    test_f5_unknown_nodes,
    test_f6_f7_view,
    test_f7_removed_is_removed,
    test_f8_fetch_2000,
    test_f8_purge,
    test_f8_what_was_asked_first_is_shown_before_it_is_purged,
    test_a_session_that_ends_amid_a_fetch,
    test_too_many_requests,
)
from test_rules import (  # noqa: F401
    test_rules_are_tried_in_order,
    test_slixmpp_understands_the_replies,
)

pytestmark = pytest.mark.once("what crosses is the nodes' doing")

SHARDS = 8
QUOTA = """
[[quota.override]]
for = "{jid}"
messages_per_user = 3
"""


@pytest.fixture(scope="module")
def database():
    """A server with a database for the module."""
    server = Database("postgres")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server(hibernation=2)


@pytest.fixture(scope="module")
def far(workshop, database):
    """The node without a link."""
    return workshop.member(database, workshop.nats(), "far", shards=SHARDS)


@pytest.fixture(scope="module")
def node(workshop, prosody, database, far):
    """The node with the link, which has given all shards to the other."""
    node = workshop.near(prosody, far)
    drain(node)
    wait_for(lambda: owners(database) == {"far": SHARDS}, "all shards at the other node")
    return node


def drain(node):
    """Give all shards away."""
    code, output = node.command("drain", "--config", str(node.config))
    assert code == 0, output


async def test_quota(prosody, node, far, clients):
    """Who has no room is known where the shard is."""
    alice, bob = prosody.people("alice", "bob")
    far.write_config(more=QUOTA.format(jid=bob))
    far.stop()
    await asyncio.to_thread(far.start)
    a = await clients.online(prosody, alice, "desk")
    for n in range(3):
        a.send_text(bob, str(n))
    reply = await a.inbox.reply(a.send_text(bob, "too many"))
    assert reply.type == "error", reply
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(3) == ["0", "1", "2"]


async def test_account_removed(prosody, database, node, clients):
    """What was kept for an account goes with it, and the server hears when it has gone."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(5):
        a.send_text(bob, str(n))
    await all_stored(a, bob)
    count = f"SELECT count(*) FROM offline_message WHERE recipient = '{bob}'"
    assert database.query(count) == "6"
    b = await clients.login(prosody, bob, raw=True)
    b.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
    await until(lambda: database.query(count) == "0", "the rows to be deleted")


async def test_order_under_load(prosody, database, node, clients):
    """I3: many pairs at once; nothing is refused, lost or doubled."""
    senders, recipients, names = await crowd(prosody, clients)
    await pour(senders, recipients, 0, EACH)
    for sender in senders:
        await sender.ping()
    await check_everybody(prosody, clients, recipients, names, EACH)
    assert all(s.inbox.messages() == [] for s in senders), "a bounce although it was kept"


async def test_notify_rules_of_many(prosody, node, clients):
    """The notices of rules come with the verdicts, each once."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    payload = amp(rule("notify", "deliver", "stored"))
    ids = [a.send_xml(message(bob, str(n), payload=payload)) for n in range(100)]
    for id in ids:
        reply = await a.inbox.reply(id)
        assert reply.status == "notify"
    assert all(len(a.inbox.with_id(id)) == 1 for id in ids)


async def test_broadcast(prosody, far, node, clients, tmp_path):
    """It runs where the first shard is, is told to any node, and goes out through the node with the
    link."""
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, "desk")
    names = tmp_path / "names"
    names.write_text("".join(f"{jid}\n" for jid in (alice, bob, carol)))
    words = ("--to-file", str(names), "--body", "to all", "--expires", "1h", "--wait")
    number = await start_broadcast(node, *words)
    report = await done(far, number)
    assert await done(node, number) == report
    assert (report["delivered"], report["stored"], report["left"]) == (1, 2, 0), report
    assert await a.inbox.body_count(1) == ["to all"]
    for jid in (bob, carol):
        await comes_back(prosody, clients, jid, ["to all"])
