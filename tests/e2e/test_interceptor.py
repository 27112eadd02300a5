"""The interceptor in Prosody: what it holds, keeps, gates and reports, whatever goes wrong."""

import asyncio
import resource
import time

import pytest

from harness.component import Component
from harness.prosody import COMPONENT, HOST
from harness.stanzas import amp, message, new_id, parse_utc, rule
from harness.steps import all_stored
from harness.waiting import until

INTERCEPT = "urn:amphora:intercept:1"
BODY = "{jabber:client}body"


def nested(levels):
    """So many elements in each other."""
    return "<e xmlns='urn:example:deep'>" + "<e>" * (levels - 1) + "</e>" * levels


async def test_a_message_that_no_node_could_read(workshop, clients):
    """Too deep: refused by its form, where it would be held; what comes after it is not affected."""
    prosody = workshop.server(archive="never")
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    for levels in (60, 130, 1000):
        refused = a.send_xml(message(bob, "deep", payload=nested(levels)))
        assert (await a.inbox.reply(refused)).condition == "policy-violation"
        rules = amp(rule("notify", "deliver", "stored"))
        refused = a.send_xml(message(bob, "deep", payload=rules + nested(levels)))
        assert (await a.inbox.reply(refused)).condition == "policy-violation"
    a.send_xml(message(bob, "as deep as can be", payload=nested(59)))
    await all_stored(a, bob, "after it")
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["as deep as can be", "after it", "end"]


@pytest.mark.only("prosody", "filters are Prosody's")
@pytest.mark.parametrize("sm", [True, False], ids=["acks", "no acks"])
async def test_another_module_fails_while_something_is_handed_over(workshop, clients, sm):
    """I1, I3: the session goes on, and gets all that was stored, in order."""
    prosody = workshop.server(archive="never", modules=["faulty"])
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    texts = ["before", "faulty", "after it"]
    for text in texts:
        await all_stored(a, bob, text)
    b = await clients.online(prosody, bob, raw=True, sm=sm, acks=sm)
    await b.ping()
    assert await b.inbox.body_count(3) == texts
    assert "a filter that fails" in prosody.log
    await until(lambda: node.stored(bob) == 0, "all of it is taken")


async def test_a_full_disk_of_the_spool(workshop, clients):
    """What can't be written to the spool stays in memory; nothing is lost or told as lost."""
    prosody = workshop.server(archive="never", options={"amphora_hold": 0})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    node.stop()
    pid = prosody.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (50_000, unlimited[1]))
    for n in range(40):
        a.send_text(bob, f"{n} " + "x" * 2000)
        await a.drain()
    await a.ping()
    resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
    for n in range(40, 45):
        a.send_text(bob, f"{n} " + "x" * 2000)
    await a.ping()
    (path,) = prosody.spool_files()
    # the line that was torn has a beginning, and no end
    await until(lambda: path.read_text().count("</body>") >= 45, "all of them in the spool")
    prosody.kill()
    prosody.start()
    await asyncio.to_thread(node.start)
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    numbers = [t.partition(" ")[0] for t in b.inbox.bodies()]
    assert numbers == [str(n) for n in range(45)] + ["end"]


async def test_little_memory_and_no_node(workshop, clients):
    """More than may be held in memory goes to the spool at once, in order; nothing is refused."""
    prosody = workshop.server(options={"amphora_held_messages": 5, "amphora_hold": 600})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    node.stop()
    for n in range(50):
        a.send_text(bob, str(n))
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == [str(n) for n in range(50)] + ["end"]
    assert [m for m in a.inbox.messages() if m.type == "error"] == []


async def test_the_next_owner_of_a_name(workshop, clients):
    """What is written to a new account while the removal of the old one waits arrives."""
    prosody = workshop.server()
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    await all_stored(a, bob, "old")
    node.stop()
    a.send_text(bob, "held for the old one")
    await a.ping()
    await remove_account(prosody, clients, bob)
    prosody.account(bob.partition("@")[0], {alice: "both"})
    a.send_text(bob, "for the new one")
    await a.ping()
    await asyncio.to_thread(node.start)
    b = await clients.online(prosody, bob, "new")
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["for the new one", "end"]


async def remove_account(prosody, clients, jid):
    """The account's owner removes it."""
    owner = await clients.login(prosody, jid, raw=True)
    owner.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
    await until(owner.closed.is_set, "the end of the session")


async def test_the_time_of_a_removal(workshop, clients):
    """It is that of the removal, at each repetition and over a restart of the server."""
    prosody = workshop.server(options={"amphora_resend": 0.3})
    (bob,) = prosody.people("bob")
    before = time.time()
    await remove_account(prosody, clients, bob)
    after = time.time()
    stamps = []
    for _ in range(2):
        async with Component(prosody) as node:
            await node.greet()
            await until(lambda node=node: len(node.said("account-removed")) >= 2, "it is repeated")
            stamps += [(e.get("jid"), e.get("stamp")) for e in node.said("account-removed")]
        prosody.stop()
        prosody.start()
    assert set(stamps) == {stamps[0]} and stamps[0][0] == bob
    moment = stamps[0][1]
    assert len(moment) == len("2026-11-22T05:00:00.123Z") and moment.endswith("Z")
    assert before - 0.001 <= parse_utc(moment).timestamp() <= after


async def test_what_is_to_be_stored_does_not_wait_for_its_pair(workshop, clients):
    """I3: a flood of one sender to one user who is away goes out at once, each after the one before."""
    prosody = workshop.server()
    alice, bob = prosody.people("alice", "bob")
    async with Component(prosody) as node:
        await node.greet()
        a = await clients.online(prosody, alice, "desk", raw=True)
        for n in range(30):
            a.send_text(bob, str(n))
        await until(lambda: len(node.said("intercept")) == 30, "all of them, without a verdict")
        keys = [e.get("key") for e in node.said("intercept")]
        assert [e.get("after") for e in node.said("intercept")] == [None, *keys[:-1]]


async def test_a_refusal_does_not_wait_for_a_pair_that_pauses(workshop, clients):
    """I5: nor does it tell whether something else of the sender's is undecided."""
    prosody = workshop.server()
    mallory, bob = prosody.people("mallory", "bob", friends=False)
    async with Component(prosody) as node:
        await node.greet()
        m = await clients.online(prosody, mallory, "desk", raw=True)
        harmless = amp(rule("drop", "deliver", "forward"))
        curious = amp(rule("notify", "deliver", "stored"))
        id = new_id()
        m.write(
            message(bob, "plain")
            + message(bob, "harmless", payload=harmless)
            + message(bob, "curious", id=id, payload=curious)
        )
        await until(lambda: len(node.said("intercept")) == 3, "the three")
        assert sorted(e.get("stage") for e in node.said("intercept")) == ["offline", "rules", "rules"]
        rights = [e.get("may-see-presence") for e in node.said("intercept") if e.get("stage") == "rules"]
        assert rights == ["false", "false"]
        harmless, curious = (e.get("key") for e in node.said("intercept") if e.get("stage") == "rules")
        node.write(
            f"<message from='{COMPONENT}' to='{HOST}'><verdicts xmlns='{INTERCEPT}'>"
            f"<verdict key='{harmless}' stage='rules' do='retry'/>"
            f"<verdict key='{curious}' stage='rules' do='discarded'><send>"
            f"<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='{HOST}' "
            f"to='{mallory}/desk' id='{id}' type='error'/></forwarded></send></verdict>"
            f"</verdicts></message>"
        )
        await m.inbox.reply(id)
        assert [e.get("key") for e in node.said("intercept")].count(curious) == 1


async def test_a_full_gate_beside_an_open_one(workshop, clients):
    """I2: what overflows one device's gate comes to that device, and not twice to the other."""
    prosody = workshop.server(options={"amphora_gate_messages": 5, "amphora_session_window": 4})
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(19):
        a.send_text(bob, f"stored {n}")
    await all_stored(a, bob, "stored 19")
    phone = await clients.online(prosody, bob, "phone", raw=True, sm=True)
    await phone.inbox.body_count(4)
    tablet = await clients.online(prosody, bob, "tablet")
    await tablet.inbox.reply(a.send_text(f"{bob}/tablet", "its gate is open"))
    live = [f"live {n}" for n in range(17)]
    for text in live:
        a.send_text(bob, text)
    assert (await tablet.inbox.body_count(18))[1:] == live
    phone.acks = True
    phone.acknowledge(phone.handled)
    await phone.inbox.reply(a.send_text(bob, "end"))
    assert phone.inbox.bodies() == [f"stored {n}" for n in range(20)] + live + ["end"]
    await tablet.ping()
    assert tablet.inbox.bodies()[1:] == live + ["end"]


def announced(node, jid):
    """Every announcement of a session so far."""
    return [e for e in node.said("available") if e.get("jid") == jid]


def handed_over(node, session, n):
    """Say that a session has got what is stored."""
    node.write(
        f"<message from='{COMPONENT}' to='{HOST}'><handed-over xmlns='{INTERCEPT}' "
        f"session='{session}' n='{n}' count='0'/></message>"
    )


async def intercept_of(node, body):
    """Wait for the intercept of the message with that text; its key."""

    def found():
        return [e for e in node.said("intercept") if any(b.text == body for b in e.iter(BODY))]

    await until(found, f"the intercept of {body}")
    return found()[-1].get("key")


async def test_what_a_gate_gave_back_is_for_its_session(workshop, clients):
    """I2, I3: a message out of a full gate that is stored after the session was answered: the
    session whose gate is closed is announced again, and none of those that had it live."""
    prosody = workshop.server(options={"amphora_gate_messages": 2})
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    async with Component(prosody) as node:
        await node.greet()

        def last(resource):
            return (announced(node, f"{bob}/{resource}") or [None])[-1]

        def answer(resource):
            handed_over(node, last(resource).get("session"), last(resource).get("n"))

        phone = await clients.online(prosody, bob, "phone", raw=True)
        others = [f"tablet{n}" for n in range(6)]
        tablets = [await clients.online(prosody, bob, other, raw=True) for other in others]
        everybody = [*others, "phone"]
        await until(lambda: None not in map(last, everybody), "the announcements")
        for other, tablet in zip(others, tablets):
            answer(other)
            await tablet.inbox.reply(tablet.send_text(f"{bob}/{other}", "its gate is open"))
        for n in range(3):
            a.send_text(bob, str(n))
        await until(lambda: len(node.said("intercept")) == 2, "what was in the full gate")
        assert [e.get("stage") for e in node.said("intercept")] == 2 * ["undelivered"]
        answer("phone")
        for held in node.said("intercept"):
            node.verdict(held.get("key"), "stored", "undelivered")
        await until(lambda: last("phone").get("n") == "2", "the phone again")
        assert [last(other).get("n") for other in others] == 6 * ["1"]
        answer("phone")
        assert await phone.inbox.body_count(1) == ["2"]


async def test_a_gate_waits_for_what_was_loaded_after_the_answer(workshop, clients):
    """I3: what a full gate gave back was in the spool when the session was answered, and is not
    decided yet. What its sender wrote later stays in the gate until it is."""
    prosody = workshop.server(options={"amphora_gate_messages": 3, "amphora_held_messages": 2})
    alice, bob, carol, dave = prosody.people("alice", "bob", "carol", "dave")
    a, c, d = [await clients.online(prosody, who, "desk", raw=True) for who in (alice, carol, dave)]
    async with Component(prosody) as node:
        await node.greet()
        phone = await clients.online(prosody, bob, "phone", raw=True)
        await until(lambda: announced(node, f"{bob}/phone"), "the announcement")
        session = announced(node, f"{bob}/phone")[0].get("session")
        for who, body in ((c, "carol"), (d, "dave"), (a, "older"), (a, "newer")):
            who.send_text(bob, body)
            await who.ping()
        keys = [await intercept_of(node, body) for body in ("carol", "dave")]
        assert len(node.said("intercept")) == 2, "two fill the memory, the third is in the spool"
        handed_over(node, session, 1)
        node.verdict(keys[0], "discarded", "undelivered")
        older = await intercept_of(node, "older")
        node.verdict(keys[1], "discarded", "undelivered")
        node.verdict(older, "stored", "undelivered")
        await until(lambda: announced(node, f"{bob}/phone")[-1].get("n") == "2", "the phone again")
        node.write(
            f"<message from='{COMPONENT}' to='{HOST}'><hand-over xmlns='{INTERCEPT}' "
            f"session='{session}' batch='1'><item id='1'><forwarded xmlns='urn:xmpp:forward:0'>"
            f"<message xmlns='jabber:client' from='{alice}/desk' to='{bob}' type='chat'>"
            f"<body>older</body></message></forwarded></item></hand-over></message>"
        )
        handed_over(node, session, 2)
        assert await phone.inbox.body_count(2) == ["older", "newer"]


async def test_what_a_session_left_comes_before_what_waited(workshop, clients):
    """I3: what waited in the gate of a session that ended is stored before what its sender wrote
    later, which waited for its turn in the pair; also if the node can't store it at once."""
    prosody = workshop.server(options={"amphora_gate_messages": 1})
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    async with Component(prosody) as node:
        await node.greet()
        phone = await clients.online(prosody, bob, "phone", raw=True)
        a.send_text(bob, "out of the full gate")
        a.send_text(bob, "left in the gate")
        overflowed = await intercept_of(node, "out of the full gate")
        a.send_text(bob, "in turn")
        await a.ping()
        await phone.vanish()
        left = await intercept_of(node, "left in the gate")
        node.verdict(left, "retry", "undelivered")
        node.verdict(overflowed, "stored", "undelivered")
        await intercept_of(node, "in turn")
        asked = [b.text for e in node.said("intercept") for b in e.iter(BODY)]
        assert asked == ["out of the full gate", "left in the gate", "left in the gate", "in turn"]


async def test_no_announcement_before_the_spool_is_decided(workshop, clients):
    """What was in the spool when the session came is stored before it gets what is stored."""
    prosody = workshop.server(options={"amphora_hold": 0})
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a, c = [await clients.online(prosody, who, "desk", raw=True) for who in (alice, carol)]
    for who, body in ((a, "first"), (c, "second")):
        who.send_text(bob, body)
        await who.ping()
    await clients.online(prosody, bob, "phone", raw=True)
    async with Component(prosody) as node:
        await node.greet()
        first, second = [await intercept_of(node, body) for body in ("first", "second")]
        node.verdict(first, "stored", "offline")
        await node.round_trip()
        assert announced(node, f"{bob}/phone") == []
        node.verdict(second, "stored", "offline")
        await until(lambda: announced(node, f"{bob}/phone"), "the announcement")


async def test_rules_out_of_the_spool_keep_their_place(workshop, clients):
    """I3: a message with rules that comes out of the spool is stored before what followed it."""
    prosody = workshop.server(options={"amphora_hold": 1})
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    async with Component(prosody) as silent:
        await silent.greet()
        a.send_xml(message(bob, "rules", payload=amp(rule("notify", "deliver", "none"))))
        for n in range(5):
            a.send_text(bob, str(n))
        await until(lambda: silent.said("intercept"), "the question")
        await a.ping()
    (path,) = prosody.spool_files()
    await until(lambda: path.read_text().count("<body>") == 6, "them in the spool")
    workshop.node(prosody)
    await all_stored(a, bob, "5")
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["rules"] + [str(n) for n in range(6)] + ["end"]


async def test_a_reload_amid_a_hand_over(workshop, clients, admin):
    """It goes on: nothing comes twice, nothing stays behind, what waits in the gate comes last."""
    prosody = workshop.server(options={"amphora_session_window": 60})
    node = workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    for n in range(149):
        a.send_text(bob, str(n))
    await all_stored(a, bob, "149")
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(60)
    a.send_text(bob, "150")
    await a.ping()
    await admin(prosody, "restart")
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.body_count(151)
    await b.inbox.reply(a.send_text(bob, "151"))
    assert b.inbox.bodies() == [str(n) for n in range(152)]
    await b.vanish()
    again = await clients.online(prosody, bob, "tablet")
    await again.inbox.reply(a.send_text(bob, "end"))
    assert again.inbox.bodies() == ["end"]
    assert "is gone" not in prosody.log, "the reload broke the link"
    assert node.process.returncode() is None


async def test_loaded_while_the_node_is_connected(workshop, clients, admin):
    """The module asks for a greeting; the stream, which other hosts may use, stays as it is."""
    prosody = workshop.server()
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    await admin(prosody, "unload")
    await admin(prosody, "load")
    await until(lambda: prosody.log.count("Node n1 is there") == 2, "the second greeting")
    assert prosody.log.count(prosody.LINKED) == 1
    a = await clients.online(prosody, alice, "desk")
    await all_stored(a, bob, "x")
    b = await clients.online(prosody, bob)
    assert await b.inbox.body_count(1) == ["x"]


async def test_sessions_that_end_without_a_node(workshop, clients):
    """I6: a node is told of the end of those that it may know, and of no others."""
    prosody = workshop.server(hibernation=1)
    (bob,) = prosody.people("bob")
    for n in range(5):
        b = await clients.online(prosody, bob, f"r{n}", raw=True)
        await b.leave()
    async with Component(prosody) as node:
        await node.greet()
        known = await clients.online(prosody, bob, "known", raw=True)
        await until(lambda: node.said("available"), "the announcement")
        session = node.said("available")[0].get("session")
        await known.leave()
        await until(lambda: node.said("taken"), "its end")
        assert {e.get("session") for e in node.said("taken")} == {session}
        assert len({e.get("session") for e in node.said("available")}) == 1
    async with Component(prosody) as node:
        await node.greet()
        last = await clients.online(prosody, bob, "last", raw=True)
        await until(lambda: node.said("available"), "the announcement")
        assert node.said("taken") == [], "that node forgot the session with its link"
        await last.leave()


async def test_a_session_without_presence(workshop, clients):
    """A message with rules to the full JID of a session that has sent none reaches it (R33)."""
    prosody = workshop.server()
    workshop.node(prosody)
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    bot = await clients.login(prosody, bob, "bot", raw=True)
    to = f"{bob}/bot"
    a.send_xml(message(to, "1", payload=amp(rule("error", "deliver", "stored"))))
    told = a.send_xml(message(to, "2", payload=amp(rule("notify", "deliver", "direct"))))
    a.send_xml(message(to, "3", payload=amp(rule("drop", "match-resource", "other"))))
    assert await bot.inbox.body_count(3) == ["1", "2", "3"]
    assert (await a.inbox.reply(told)).status == "notify"
    stored = a.send_xml(message(bob, "4", payload=amp(rule("error", "deliver", "stored"))))
    assert (await a.inbox.reply(stored)).status == "error"
