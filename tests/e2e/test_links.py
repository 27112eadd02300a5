"""Several links, the nodes played by the test: whose users are whose, and how they move.

"Several links" in docs/intercept.md; invariants I1, I2, I3, I6. What real nodes make of it is in
test_links_load.py.
"""

import pytest

from harness.component import INTERCEPT, Component
from harness.links import LINKS, owner, person_of
from harness.prosody import HOST
from harness.stanzas import AMP, CLIENT, FORWARD, INFO, RETRIEVAL, amp, message, new_id, rule
from harness.waiting import until

ONE, TWO = LINKS


@pytest.fixture
def server(workshop):
    """A server with two links, and an archive for nobody."""
    options = {"amphora_resend": 60, "amphora_repeat": 60, "amphora_hold": 600}
    return workshop.server(archive=None, links=LINKS, options=options)


class Nodes:
    """The two that the test plays; `nodes[ONE]` is one of them, while it is linked."""

    def __init__(self, server):
        self._server = server
        self._linked = {}

    def __getitem__(self, domain):
        return self._linked[domain]

    async def link(self, domain, greet=True, **said):
        """One comes; greeted, unless told otherwise."""
        node = self._linked[domain] = await Component(self._server, domain).__aenter__()
        if greet:
            await node.greet(**said)
        return node

    async def cut(self, domain):
        """One goes, and the server has seen it."""
        said = f"at {domain} is gone"
        before = self._server.log.count(said)
        await self._linked.pop(domain).__aexit__()
        await until(lambda: self._server.log.count(said) > before, f"{domain} to be missed")

    async def end(self):
        """All go."""
        for node in self._linked.values():
            await node.__aexit__()


@pytest.fixture
async def nodes(server):
    """Nobody is linked yet."""
    made = Nodes(server)
    yield made
    await made.end()


def texts(node, stage=None):
    """The texts of all intercepts that came to a node."""
    return [body(i) for i in node.said("intercept") if stage in (None, i.get("stage"))]


def body(element):
    """The text of the message in it."""
    return element.findtext(f".//{{{CLIENT}}}body")


async def intercepted(node, text, stage="offline"):
    """Wait for the intercept of that message; it."""

    def found():
        return [i for i in node.said("intercept") if body(i) == text and i.get("stage") == stage]

    return (await until(found, f"{text!r} at {stage}"))[-1]


async def announced(node, jid, above=0):
    """Wait until a session of that user is announced; the announcement."""

    def found():
        of_user = [e for e in node.said("available") if e.get("jid").startswith(f"{jid}/")]
        return [e for e in of_user if int(e.get("n")) > above]

    return (await until(found, f"{jid} to be announced"))[-1]


def item(id, to, text):
    """An item of a hand-over."""
    return (
        f"<item id='{id}'><forwarded xmlns='{FORWARD}'><message xmlns='{CLIENT}' type='chat' "
        f"from='zoe@{HOST}/desk' to='{to}' id='{id}'><body>{text}</body></message></forwarded></item>"
    )


def hand_over(node, session, batch, to, numbers):
    """Hand items over, each with its number as text."""
    items = "".join(item(f"i-{n}", to, str(n)) for n in numbers)
    node.say(f"<hand-over session='{session}' batch='{batch}'>{items}</hand-over>")


def handed_over(node, available):
    """All was handed over to a session."""
    session, n = available.get("session"), available.get("n")
    node.say(f"<handed-over session='{session}' n='{n}' count='0'/>")


def taken(node, session, ended=None):
    """What a node was told of a session: (batch, ids, ended)."""
    told = [e for e in node.said("taken") if e.get("session") == session]
    return [(e.get("batch"), e.get("ids").split(), e.get("ended") == "true") for e in told]


async def test_each_user_has_one_link(server, nodes, clients):
    """All of a user goes by his link, whoever sends; with one link everybody's goes there."""
    people = {domain: [person_of(server, domain) for _ in range(4)] for domain in LINKS}
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    for n, jid in enumerate([*people[ONE], *people[TWO]]):
        a.send_text(jid, f"alone {n}")
    for n in range(8):
        await intercepted(nodes[ONE], f"alone {n}")
    await nodes.link(TWO)
    for domain in LINKS:
        for jid in people[domain]:
            a.send_text(jid, f"{jid} after")
    for domain in LINKS:
        for jid in people[domain]:
            await intercepted(nodes[domain], f"{jid} after")
            assert owner(jid) == domain
    after = {d: {t.split()[0] for t in texts(nodes[d]) if t.endswith("after")} for d in LINKS}
    assert after == {d: set(people[d]) for d in LINKS}


async def test_i3_a_link_is_lost_between_intercept_and_verdict(server, nodes, clients):
    """I1, I3: all that is undecided goes to the other at once, as perhaps sent before, in order."""
    bob, carol = person_of(server, TWO), person_of(server, ONE, "carol")
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO)
    for n in range(5):
        a.send_text(bob, str(n))
        a.send_text(carol, f"c {n}")
    first = [await intercepted(nodes[TWO], str(n)) for n in range(5)]
    await intercepted(nodes[ONE], "c 4")
    nodes[TWO].verdict(first[0].get("key"), "stored", "offline")
    # it waits for those before it, and counts no more then
    nodes[TWO].verdict(first[3].get("key"), "stored", "offline")
    await nodes[TWO].round_trip()
    await nodes.cut(TWO)
    again = [await intercepted(nodes[ONE], str(n)) for n in range(1, 5)]
    assert [i.get("key") for i in again] == [i.get("key") for i in first[1:]]
    assert [i.get("again") for i in again] == ["true"] * 4
    keys = [None, *(i.get("key") for i in again)]
    assert [i.get("after") for i in again] == keys[:4]
    got = [t for t in texts(nodes[ONE]) if t.isdigit()]
    assert got == ["1", "2", "3", "4"], "in order, each once, and not what is stored"
    assert [t for t in texts(nodes[ONE]) if t[0] == "c"] == [f"c {n}" for n in range(5)], "nothing else moved"


async def test_i3_a_verdict_of_the_link_that_was_left_counts_no_more(server, nodes, clients):
    """I2, I3: after the move only the link that was asked last is believed."""
    bob = person_of(server, TWO)
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    told = amp(rule("notify", "deliver", "none"))
    a.send_xml(message(bob, "ruled", payload=told))
    a.send_text(bob, "plain")
    old = await intercepted(nodes[ONE], "ruled", "rules")
    await nodes.link(TWO)
    new = await intercepted(nodes[TWO], "ruled", "rules")
    assert (new.get("key"), new.get("again")) == (old.get("key"), "true")
    nodes[ONE].verdict(old.get("key"), "discarded")
    await nodes[ONE].round_trip()
    nodes[TWO].verdict(new.get("key"), "deliver")
    stored = await intercepted(nodes[TWO], "ruled", "offline")
    assert stored.get("key") == old.get("key"), "the old link's word discarded it"
    nodes[ONE].verdict(old.get("key"), "stored", "offline")
    await nodes[ONE].round_trip()
    await nodes[TWO].round_trip()
    assert texts(nodes[TWO], "offline") == ["ruled"], "the old link's word let the next one go on"
    nodes[TWO].verdict(old.get("key"), "stored", "offline")
    await intercepted(nodes[TWO], "plain")
    assert texts(nodes[ONE], "offline") == []


async def test_i3_a_link_comes_back_amid_a_hand_over(server, nodes, clients):
    """I2, I3: what was written and not confirmed is not written again, what the old link still brings
    is left out, and the rest comes by the new one, in order."""
    bob = person_of(server, TWO)
    await nodes.link(ONE)
    b = await clients.online(server, bob, raw=True, sm=True)
    by_one = await announced(nodes[ONE], bob)
    session, jid = by_one.get("session"), f"{bob}/phone"
    hand_over(nodes[ONE], session, 7, jid, [1, 2])
    await b.inbox.body_count(2)
    await nodes.link(TWO)
    by_two = await announced(nodes[TWO], bob)
    assert by_two.get("session") == session
    assert int(by_two.get("n")) > int(by_one.get("n"))
    await until(lambda: taken(nodes[ONE], session), "the old link to be told")
    assert taken(nodes[ONE], session) == [("0", [], True)]
    # both link's words cross: the old one had more on its way
    hand_over(nodes[ONE], session, 8, jid, [3, 4])
    handed_over(nodes[ONE], by_one)
    handed_over(nodes[ONE], by_two)
    await nodes[ONE].round_trip()
    hand_over(nodes[TWO], session, 11, jid, [1, 2, 3])
    hand_over(nodes[TWO], session, 12, jid, [4])
    handed_over(nodes[TWO], by_two)
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    a.send_text(bob, "live")
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["1", "2", "3", "4", "live", "end"]
    b.acknowledge(b.handled)
    await until(lambda: len(taken(nodes[TWO], session)) == 3, "all to be confirmed")
    assert taken(nodes[TWO], session) == [
        ("7", ["i-1", "i-2"], False),
        ("11", ["i-1", "i-2", "i-3"], False),
        ("12", ["i-4"], False),
    ]
    assert taken(nodes[ONE], session) == [("0", [], True)], "the old link is told nothing more"


async def test_i3_a_link_is_lost_amid_a_hand_over(server, nodes, clients):
    """I2: what was written waits for its confirmation, and goes by the other link under its names."""
    bob = person_of(server, TWO)
    await nodes.link(ONE)
    await nodes.link(TWO)
    b = await clients.online(server, bob, raw=True, sm=True)
    by_two = await announced(nodes[TWO], bob)
    session, jid = by_two.get("session"), f"{bob}/phone"
    hand_over(nodes[TWO], session, 7, jid, [1, 2])
    await b.inbox.body_count(2)
    b.acknowledge(b.handled)
    await until(lambda: taken(nodes[TWO], session), "what was taken")
    hand_over(nodes[TWO], session, 8, jid, [3])
    await b.inbox.body_count(3)
    await nodes.cut(TWO)
    by_one = await announced(nodes[ONE], bob)
    assert by_one.get("session") == session
    await until(lambda: taken(nodes[ONE], session), "what was taken, for it may not be deleted")
    assert taken(nodes[ONE], session) == [("7", ["i-1", "i-2"], False)]
    b.acknowledge(b.handled)
    await until(lambda: len(taken(nodes[ONE], session)) > 1, "what was confirmed since")
    assert taken(nodes[ONE], session)[1:] == [("8", ["i-3"], False)]
    # the other node does not know it yet
    hand_over(nodes[ONE], session, 3, jid, [1, 2, 3, 4])
    handed_over(nodes[ONE], by_one)
    await b.inbox.body_count(4)
    b.acknowledge(b.handled)
    await until(lambda: len(taken(nodes[ONE], session)) > 2, "all of it")
    assert taken(nodes[ONE], session)[2:] == [("3", ["i-1", "i-2", "i-3", "i-4"], False)]
    assert b.inbox.bodies() == ["1", "2", "3", "4"]


async def test_i6_each_link_has_a_window_of_its_own(server, nodes, clients):
    """I6: one that does not answer holds up nobody else's, and gets no more than it asked for."""
    bob, carol = person_of(server, ONE), person_of(server, TWO, "carol")
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE, window=2)
    await nodes.link(TWO)
    for n in range(6):
        a.send_text(bob, str(n))
        a.send_text(carol, f"c {n}")
    for n in range(6):
        await intercepted(nodes[TWO], f"c {n}")
    await a.ping()
    assert 0 < len(texts(nodes[ONE])) <= 2
    await nodes.cut(ONE)
    for n in range(6):
        await intercepted(nodes[TWO], str(n))
    assert [t for t in texts(nodes[TWO]) if t.isdigit()] == [str(n) for n in range(6)]
    assert len(texts(nodes[TWO])) == 12, "what is the other's went again"
    await nodes.link(ONE, window=2)
    await intercepted(nodes[ONE], "0")
    await a.ping()
    assert 0 < len(texts(nodes[ONE])) <= 2
    await nodes.cut(TWO)
    await nodes.cut(ONE)
    await nodes.link(ONE, window=2)
    await until(lambda: texts(nodes[ONE]), "what was in its window to come again")


async def test_both_are_lost_and_come_back(server, nodes, clients):
    """I1, I3: as with one link it waits; the first that comes gets all, the second its own."""
    bob, carol = person_of(server, ONE), person_of(server, TWO, "carol")
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO)
    await nodes.cut(ONE)
    await nodes.cut(TWO)
    for n in range(3):
        a.send_text(bob, str(n))
        a.send_text(carol, f"c {n}")
    await a.ping()
    await nodes.link(TWO)
    for name in ("", "c "):
        for n in range(3):
            await intercepted(nodes[TWO], f"{name}{n}")
    await nodes.link(ONE)
    for n in range(3):
        await intercepted(nodes[ONE], str(n))
    assert texts(nodes[ONE]) == ["0", "1", "2"]
    assert [t for t in texts(nodes[TWO]) if t[0] == "c"] == ["c 0", "c 1", "c 2"]


async def test_what_is_in_the_spool_drains_by_each_users_link(workshop, clients):
    """I1, I3: after `hold` without any; and what a link did not decide, goes to the other."""
    options = {"amphora_resend": 60, "amphora_repeat": 60, "amphora_hold": 0}
    server = workshop.server(archive=None, links=LINKS, options=options)
    nodes = Nodes(server)
    people = [person_of(server, ONE), person_of(server, TWO, "carol")]
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    for n in range(3):
        for jid in people:
            a.send_text(jid, f"{jid} {n}")
    await a.ping()
    await nodes.link(ONE)
    for jid in people:
        await intercepted(nodes[ONE], f"{jid} 2")
    await nodes.link(TWO)
    await intercepted(nodes[TWO], f"{people[1]} 2")
    assert texts(nodes[TWO]) == [f"{people[1]} {n}" for n in range(3)]
    await nodes.cut(ONE)
    await intercepted(nodes[TWO], f"{people[0]} 2")
    assert texts(nodes[TWO])[3:] == [f"{people[0]} {n}" for n in range(3)]
    await nodes.end()


async def test_a_link_that_does_not_greet_has_no_users(server, nodes, clients):
    """A stream alone is no link."""
    bob = person_of(server, TWO)
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO, greet=False)
    a.send_text(bob, "hello")
    found = await intercepted(nodes[ONE], "hello")
    nodes[TWO].verdict(found.get("key"), "stored", "offline")
    await nodes[TWO].round_trip()
    await nodes[TWO].greet()
    assert (await intercepted(nodes[TWO], "hello")).get("key") == found.get("key")


async def test_a_link_greets_again(server, nodes, clients):
    """It is a new link: what it had is sent to it again, and what it says of before counts no more."""
    bob, carol = person_of(server, TWO), person_of(server, ONE, "carol")
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO)
    a.send_text(bob, "hello")
    a.send_text(carol, "c")
    await intercepted(nodes[TWO], "hello")
    await intercepted(nodes[ONE], "c")
    await nodes[TWO].greet()
    await until(lambda: texts(nodes[TWO]) == ["hello", "hello"], "it to come again")
    assert texts(nodes[ONE]) == ["c"], "it went to the other, or what is the other's moved"


async def test_an_account_is_removed(server, nodes, clients):
    """The user's link is told, and the next one if that is lost before it has answered."""
    bob = person_of(server, TWO)
    await nodes.link(ONE)
    await nodes.link(TWO)
    owner_ = await clients.login(server, bob, raw=True)
    owner_.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
    removed = lambda node: [e.get("jid") for e in node.said("account-removed")]
    await until(lambda: removed(nodes[TWO]) == [bob], "the user's link to be told")
    assert removed(nodes[ONE]) == []
    await nodes.cut(TWO)
    await until(lambda: removed(nodes[ONE]) == [bob], "the other to be told")


async def test_r23_the_senders_leg_goes_by_the_recipients_link(server, nodes, clients):
    """R23: what leaves for another server is decided by the link of whom it is for, and by the other
    one if that is lost; what the lost one had said of a later one counts no more."""
    away = next(j for j in (f"bob{n}@elsewhere.example" for n in range(99)) if owner(j) == TWO)
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO)
    sent = [
        a.send_xml(message(away, text, payload=amp(rule("drop", "deliver", "gateway"))))
        for text in ("first", "second")
    ]
    first, second = [await intercepted(nodes[TWO], text, "rules") for text in ("first", "second")]
    assert {i.get("leg") for i in (first, second)} == {"sender"}
    nodes[TWO].verdict(second.get("key"), "deliver")
    await nodes[TWO].round_trip()
    await nodes.cut(TWO)
    again = [await intercepted(nodes[ONE], text, "rules") for text in ("first", "second")]
    assert [i.get("key") for i in again] == [first.get("key"), second.get("key")]
    for held in again:
        nodes[ONE].verdict(held.get("key"), "discarded")
    await nodes[ONE].round_trip()
    await a.ping()
    assert [a.inbox.with_id(id) for id in sent] == [[], []], "it went on, and came back as an error"


def requests(node):
    """Requests of users about their stored messages: (id, session)."""
    return [e.get("session") for e in node.said("retrieve")]


async def test_f9_a_request_ends_with_its_link(server, nodes, clients):
    """F9: an error to be asked again on; then the other is asked."""
    bob = person_of(server, TWO)
    await nodes.link(ONE)
    await nodes.link(TWO)
    b = await clients.login(server, bob, raw=True)
    count = f"<query xmlns='{INFO}' node='{RETRIEVAL}'/>"
    b.write(f"<iq type='get' id='q1'>{count}</iq>")
    await until(lambda: requests(nodes[TWO]), "the request")
    await nodes.cut(TWO)
    refused = await b.inbox.until(lambda box: [s for s in box.all if s.id == "q1"], "the answer")
    error = refused[0].element.find(f"{{{CLIENT}}}error")
    assert (refused[0].type, error.get("type")) == ("error", "wait")
    b.write(f"<iq type='get' id='q2'>{count}</iq>")
    await until(lambda: requests(nodes[ONE]), "the request by the other link")


ALERT = "<action name='drop'/><action name='alert'/><condition name='deliver'/>"
DROP = "<action name='notify'/><action name='drop'/><condition name='expire-at'/><condition name='deliver'/>"


async def listed(client, node=None):
    """What the server lists of rules."""
    attribute = f" node='{node}'" if node else ""
    answer = await client.iq(f"<query xmlns='{INFO}'{attribute}/>", to=HOST)
    features = answer.element.iter(f"{{{INFO}}}feature")
    return {f.get("var") for f in features if f.get("var").startswith(AMP)}


async def test_r7_what_all_nodes_support_is_listed(server, nodes, clients):
    """R6, R7: where they differ, never more than each can do; the features stay while one is there."""
    a = await clients.login(server, *server.people("alice"), raw=True)
    assert await listed(a) == set()
    await nodes.link(ONE, supports=ALERT)
    assert await listed(a, AMP) == {AMP, *(f"{AMP}?{x}" for x in ("action=drop", "action=alert", "condition=deliver"))}
    await nodes.link(TWO, supports=DROP)
    assert await listed(a) == {AMP}
    assert await listed(a, AMP) == {AMP, f"{AMP}?action=drop", f"{AMP}?condition=deliver"}
    await nodes.cut(ONE)
    assert await listed(a) == {AMP}
    assert f"{AMP}?action=notify" in await listed(a, AMP)
    await nodes.cut(TWO)
    assert await listed(a) == set()


async def test_r69_of_two_levels_the_stricter_counts(server, nodes, clients):
    """R69: an error that says where the recipient is is kept from strangers if one node says so."""
    alice = server.people("alice", friends=False)[0]
    a = await clients.online(server, alice, "desk", raw=True)
    await nodes.link(ONE, security="strict")
    await nodes.link(TWO, security="none")
    nobody = next(j for j in (f"nobody{n}@{HOST}" for n in range(99)) if owner(j) == TWO)
    quiet = a.send_xml(message(nobody, "q", payload=amp(rule("drop", "deliver", "stored"))))
    held = await intercepted(nodes[TWO], "q", "rules")
    await nodes.cut(ONE)
    nodes[TWO].verdict(held.get("key"), "deliver")
    loud = a.send_xml(message(nobody, "l", payload=amp(rule("drop", "deliver", "stored"))))
    nodes[TWO].verdict((await intercepted(nodes[TWO], "l", "rules")).get("key"), "deliver")
    assert (await a.inbox.reply(loud)).type == "error"
    assert (await a.inbox.reply(quiet)).type == "error", "the level of a link that is gone counts"


async def test_a_reload_changes_no_link(server, nodes, clients, admin):
    """What is undecided goes to the same links again, and sessions stay announced under their names."""
    bob, carol = person_of(server, TWO), person_of(server, ONE, "carol")
    a = await clients.online(server, *server.people("alice"), "desk", raw=True)
    await nodes.link(ONE)
    await nodes.link(TWO)
    b = await clients.online(server, person_of(server, TWO, "bea"), raw=True)
    session = (await announced(nodes[TWO], b.jid)).get("session")
    a.send_text(bob, "b")
    a.send_text(carol, "c")
    held = await intercepted(nodes[TWO], "b")
    await intercepted(nodes[ONE], "c")
    await admin(server, "reload")
    if server.kind == "ejabberd":
        # it reads the settings, and does not start anew: the links and what they know are as before
        nodes[TWO].verdict(held.get("key"), "stored", "offline")
        a.send_text(bob, "b after")
        await intercepted(nodes[TWO], "b after")
        assert (texts(nodes[TWO]), texts(nodes[ONE])) == (["b", "b after"], ["c"])
        assert nodes[TWO].said("hello") == nodes[ONE].said("hello") == []
        return
    for node in (nodes[ONE], nodes[TWO]):
        if node.said("hello"):
            await node.greet()
    await until(lambda: len(texts(nodes[TWO])) > 1, "it to come again")
    await until(lambda: len(texts(nodes[ONE])) > 1, "it to come again")
    assert (set(texts(nodes[TWO])), set(texts(nodes[ONE]))) == ({"b"}, {"c"})
    assert nodes[TWO].said("hello") == nodes[ONE].said("hello") == []
    handed_over(nodes[TWO], await announced(nodes[TWO], b.jid))
    of_bea = [e.get("session") for e in nodes[TWO].said("available") if e.get("jid").startswith(b.jid)]
    assert of_bea == [session, session]
    elsewhere = [e for e in nodes[ONE].said("available") if e.get("jid").startswith(b.jid)]
    assert elsewhere == [], "it went by the other link for a moment"


async def test_settled_sends_move(server, nodes, clients):
    """Section 5: the message moves with its user; its outcome goes to the newest request."""
    bob = person_of(server, TWO)
    await nodes.link(ONE)
    await nodes.link(TWO)
    key = new_id("send-")

    def send(domain, again=""):
        id = new_id("s")
        nodes[domain].write(
            f"<iq type='set' from='{domain}' to='{HOST}' id='{id}'><send xmlns='{INTERCEPT}' "
            f"key='{key}' for='{bob}' settle='true'{again}><forwarded xmlns='{FORWARD}'>"
            f"<message xmlns='{CLIENT}' from='{HOST}' to='{bob}' id='{key}' type='chat'>"
            "<body>news</body></message></forwarded></send></iq>"
        )
        return id

    send(TWO)
    await intercepted(nodes[TWO], "news", "rules")
    await nodes.cut(TWO)
    held = await intercepted(nodes[ONE], "news", "rules")
    id = send(ONE, " again='true'")
    nodes[ONE].verdict(held.get("key"), "discarded")
    outcome = lambda: [e[0].get("outcome") for e in nodes[ONE].all if e.get("id") == id]
    assert await until(outcome, "the outcome") == ["discarded"]
