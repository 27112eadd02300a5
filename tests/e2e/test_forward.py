"""What is sent on: `[[forward]]`, and `deliver` with `forward` and `gateway` (R33, R40, R41)."""

import itertools
from dataclasses import dataclass

import pytest

from harness.component import Component
from harness.gateway import Gateway
from harness.prosody import COMPONENT, HOST, SECRET
from harness.reference import ACTIONS, CONDITIONS
from harness.replies import check_error, check_refusal, check_reply
from harness.stanzas import STANZA_ID, amp, message, new_id, rule, utc
from harness.waiting import until, wait_for

INTERCEPT = "urn:amphora:intercept:1"
ADDRESS = "http://jabber.org/protocol/address"
ARCHIVE = "urn:xmpp:mam:2"
CARBONS = "urn:xmpp:carbons:2"
SMS = "sms.example.org"
GATEWAY = "gw.example.net"

#: The users of another network as a host, and the component that leads there.
PHONES = {"hosts": {SMS: COMPONENT}, "components": {GATEWAY: SECRET}}


def entries(*pairs):
    """`[[forward]]`, as a node's settings."""
    return "".join(f'[[forward]]\nfrom = "{source}"\nto = "{to}"\n' for source, to in pairs)


def marks(stanza):
    """For whom a message was sent on."""
    return [mark.get("jid") for mark in stanza.element.iter(f"{{{INTERCEPT}}}for")]


@dataclass
class Site:
    """A server, a node that sends on, and people whom no test has used yet."""

    prosody: object
    node: object
    #: (who is written to, who gets it)
    pairs: object
    #: written to, and carol at the gateway gets it
    frank: str
    #: has no account, and dave gets what comes
    nobody: str
    dave: str


@pytest.fixture(scope="module")
def site(workshop):
    """A closed network, where everybody may use every rule."""
    prosody = workshop.server(**PHONES)
    pairs = [tuple(prosody.people("bob", "carol")) for _ in range(8)]
    frank, dave = prosody.people("frank", "dave")
    nobody = f"nobody@{HOST}"
    more = entries(*pairs, (frank, f"carol@{GATEWAY}"), (nobody, dave), (SMS, GATEWAY))
    node = workshop.node(prosody, security="none", others=f', "{SMS}"', more=more)
    return Site(prosody, node, iter(pairs), frank, nobody, dave)


@pytest.fixture
async def gateway(site):
    """Another network."""
    async with Gateway(site.prosody, GATEWAY, SECRET) as component:
        yield component


async def test_what_he_gets_goes_to_the_other_and_leaves_no_trace(site, clients):
    """Online or away, whatever the address and type: no session, carbon, archive of his has it."""
    bob, carol = next(site.pairs)
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    b = await clients.online(site.prosody, bob, "phone", priority=5, raw=True)
    await b.iq(f"<enable xmlns='{CARBONS}'/>", type="set")
    for n in range(3):
        a.send_text(bob, f"away {n}")
    mark = message(bob, "mark", payload=amp(rule("notify", "deliver", "stored")))
    reply = await a.inbox.reply(a.send_xml(mark))
    assert reply.status == "notify", "R26: the rules are looked at again where it goes"
    c = await clients.online(site.prosody, carol, "pad")
    assert await c.inbox.body_count(4) == ["away 0", "away 1", "away 2", "mark"]
    forged = f"<stanza-id xmlns='{STANZA_ID}' by='{bob}' id='x'/>"
    addresses = (bob, f"{bob}/phone", f"{bob}/elsewhere")
    for kind, to in itertools.product(("chat", "normal", "headline", None), addresses):
        a.send_text(to, f"{kind} to {to}", type=kind, payload=forged)
    await c.inbox.body_count(16)
    for got in c.inbox.messages():
        assert (got.sender, got.to, marks(got)) == (f"{alice}/desk", carol, [bob]), got
        by = [s.get("by") for s in got.element.findall(f"{{{STANZA_ID}}}stanza-id")]
        assert bob not in by, by
    await b.iq(f"<query xmlns='{ARCHIVE}'/>", type="set")
    assert [s for s in b.inbox.all if s.name == "message"] == []


async def test_no_account_is_needed(site, clients):
    """Whoever left may have his messages sent on; rules find `forward`, not `none` (R33)."""
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    d = await clients.online(site.prosody, site.dave, "pad")
    a.send_text(site.nobody, "plain")
    met = a.send_xml(
        message(site.nobody, "rules", payload=amp(rule("notify", "deliver", "forward")))
    )
    assert (await a.inbox.reply(met)).status == "notify"
    assert await d.inbox.body_count(2) == ["plain", "rules"]


async def test_what_is_of_his_sessions_stays_with_them(site, clients):
    """Errors, answers to rules, rooms and subscriptions are nobody else's."""
    bob, carol = next(site.pairs)
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    b = await clients.online(site.prosody, bob, "phone")
    c = await clients.online(site.prosody, carol, "pad")
    own = [
        {"type": "error", "payload": "<error type='cancel'/>"},
        {"type": "groupchat"},
        {"payload": "<x xmlns='http://jabber.org/protocol/muc#user'/>"},
        {
            "type": "headline",
            "payload": "<event xmlns='http://jabber.org/protocol/pubsub#event'><items node='n'/></event>",
        },
        {"payload": amp(rule("alert", "deliver", "stored"), status="alert")},
    ]
    for what in own:
        id = a.send_text(f"{bob}/phone", "his", **what)
        assert marks(await b.inbox.reply(id)) == []
    a.send_text(f"{bob}/phone", "the end")
    assert await c.inbox.body_count(1) == ["the end"]


@pytest.mark.parametrize("addressed", ["", "/phone"], ids=["bare", "full"])
@pytest.mark.parametrize("kind", ["forward", "gateway"])
async def test_every_rule(site, clients, gateway, kind, addressed):
    """R20 to R22, R27 to R29, R33, R40, R41, R44 to R51, R53 to R55: no other value is met."""
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    frank = await clients.online(site.prosody, site.frank, "phone", priority=1)
    to = (site.frank if kind == "forward" else f"123@{SMS}") + addressed
    target = f"carol@{GATEWAY}" if kind == "forward" else f"123@{GATEWAY}"
    sent = {}
    for (condition, value), action in itertools.product(CONDITIONS, ACTIONS):
        written = (action, condition, {"past": utc(-60), "future": utc(3600)}.get(value, value))
        id = a.send_xml(message(to, "a body", payload=amp(rule(*written))))
        met = {
            "deliver": value == kind,
            "expire-at": value == "past",
            "match-resource": value in ("any", "other" if addressed else "exact"),
        }[condition]
        sent[id] = (written, met)
    end = a.send_text(to, "the end")
    await gateway.inbox.reply(end)
    await a.ping()
    for id, (written, met) in sent.items():
        action = written[0]
        replies = a.inbox.with_id(id)
        assert len(replies) == (1 if met and action != "drop" else 0), (written, replies)
        for reply in replies:
            check_reply(
                reply,
                action,
                id=id,
                sender=f"{alice}/desk",
                recipient=to,
                rule=written,
                host=HOST if kind == "forward" else SMS,
            )
        got = gateway.inbox.with_id(id)
        assert len(got) == (0 if met and action != "notify" else 1), (written, got)
        for stanza in got:
            assert (stanza.sender, stanza.to) == (f"{alice}/desk", target), "the sender is kept"
            assert stanza.rules == [written]
            assert stanza.amp.get("from") == f"{alice}/desk", "R54"
            assert stanza.amp.get("to") == to, "R55: whom he wrote to"
            assert marks(stanza) == [to.removesuffix(addressed) if addressed else to]
    assert frank.inbox.bodies() == []


async def test_the_gateway_answers_the_sender(site, clients, gateway):
    """His address is kept, so an answer and an error reach him."""
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    got = await gateway.inbox.reply(a.send_text(f"123@{SMS}", "hello"))
    gateway.send_message(mto=got.sender, mfrom=got.to, mbody="hello yourself", mtype="chat")
    (answer,) = [s for s in await a.inbox.until(lambda box: box.messages(), "an answer")]
    assert (answer.sender, answer.body) == (f"123@{GATEWAY}", "hello yourself")


def unreachable(server):
    """What a server says of a component that is away, when it knows no other way there."""
    return "remote-server-not-found" if server.kind == "ejabberd" else "remote-server-timeout"


async def test_a_gateway_that_is_away_is_an_error(site, clients):
    """Nothing is kept for it: the sender hears of it, as of any component."""
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    id = a.send_text(f"123@{SMS}", "hello")
    assert (await a.inbox.reply(id)).condition == unreachable(site.prosody)


async def test_rules_are_looked_at_again_where_it_goes(site, clients):
    """R26: what was not met here may be met there, with that user's own facts."""
    bob, carol = next(site.pairs)
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    await clients.online(site.prosody, bob, "phone")
    alert = ("alert", "deliver", "stored")
    id = a.send_xml(message(bob, "x", payload=amp(rule(*alert))))
    check_reply(
        await a.inbox.reply(id), "alert", id=id, sender=f"{alice}/desk", recipient=carol, rule=alert
    )
    notify = ("notify", "match-resource", "any")
    id = a.send_xml(message(bob, "twice", payload=amp(rule(*notify))))
    await a.inbox.reply(id, count=2)
    first, second = a.inbox.with_id(id)
    assert (first.amp.get("to"), second.amp.get("to")) == (bob, carol)
    c = await clients.online(site.prosody, carol, "pad")
    assert await c.inbox.body_count(1) == ["twice"]


async def test_order(site, clients):
    """I3: rules or none, online or away, they come in the order in which they were sent."""
    bob, carol = next(site.pairs)
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    texts = [str(n) for n in range(60)]

    def send(text):
        rules = amp(rule("drop", "expire-at", utc(3600))) if int(text) % 3 == 0 else ""
        a.send_text(bob, text, payload=rules)

    for text in texts[:30]:
        send(text)
    c = await clients.online(site.prosody, carol, "pad")
    for text in texts[30:]:
        send(text)
    assert await c.inbox.body_count(len(texts)) == texts


async def test_a_loop_of_two_nodes_goes_round_once(workshop, clients):
    """Each sends on to the other: the message stays where it came from."""
    second = "amp.sms.example.org"
    prosody = workshop.server(hosts={SMS: second})
    alice, bob = prosody.people("alice", "bob")
    there = f"bob@{SMS}"
    workshop.node(prosody, security="none", more=entries((bob, there)))
    workshop.node(
        prosody, security="none", component=second, host=SMS, more=entries((there, bob))
    )
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    got = await b.inbox.reply(a.send_text(bob, "round"))
    assert (marks(got), got.to) == ([bob, there], bob)
    # there, nobody has that account
    refused = await a.inbox.reply(a.send_text(there, "round from there"))
    assert refused.condition == "service-unavailable"
    rules = amp(rule("notify", "deliver", "direct"))
    id = a.send_xml(message(bob, "rules", payload=rules))
    reply = await a.inbox.reply(id)
    assert reply.status == "notify", "and there the rules are looked at as without an entry"
    assert await b.inbox.body_count(2) == ["round", "rules"]


async def test_what_was_sent_on_too_often_is_an_error(site, clients):
    """I6: the marks are bounded, with rules or without, in whatever elements they stand."""
    bob, carol = next(site.pairs)
    (alice,) = site.prosody.people("alice")
    a = await clients.online(site.prosody, alice, "desk")
    c = await clients.online(site.prosody, carol, "pad")

    def marked(times, each=4):
        jids = [f"<for jid='u{n}@example.net'/>" for n in range(times)]
        return "".join(
            f"<redirected xmlns='{INTERCEPT}'>{''.join(jids[n : n + each])}</redirected>"
            for n in range(0, times, each)
        )

    for rules in ("", amp(rule("drop", "deliver", "gateway"))):
        id = a.send_xml(message(bob, "too often", payload=marked(8) + rules))
        reply = await a.inbox.reply(id)
        check_error(reply, "cancel", None, "policy-violation", id=id, sender=f"{alice}/desk")
    got = await c.inbox.reply(a.send_xml(message(bob, "the last time", payload=marked(7))))
    assert len(marks(got)) == 8 and marks(got).count(bob) == 1
    assert c.inbox.bodies() == ["the last time"]


async def test_whom_he_blocks_reaches_nobody(site, clients):
    """His block list comes first."""
    bob, carol = next(site.pairs)
    alice, eve = site.prosody.people("alice", "eve")
    b = await clients.online(site.prosody, bob, "phone", raw=True)
    await b.iq(f"<block xmlns='urn:xmpp:blocking'><item jid='{eve}'/></block>", type="set")
    c = await clients.online(site.prosody, carol, "pad")
    e = await clients.online(site.prosody, eve, "desk")
    blocked = e.send_text(bob, "blocked")
    assert (await e.inbox.reply(blocked)).condition == "service-unavailable"
    a = await clients.online(site.prosody, alice, "desk")
    a.send_text(bob, "welcome")
    assert await c.inbox.body_count(1) == ["welcome"]


async def test_while_the_node_is_away_over_reloads_and_restarts(workshop, clients, admin):
    """What was said last holds until a node says something else."""
    # without a node, a new session waits so long for what may be stored for it
    prosody = workshop.server(options={"amphora_hold": 1, "amphora_gate_limit": 0})
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    node = workshop.node(prosody, security="none", more=entries((bob, carol)))
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    c = await clients.online(prosody, carol, "pad")
    await admin(prosody, "restart")
    await c.inbox.reply(a.send_text(bob, "after a reload"))
    met = a.send_xml(message(bob, "x", payload=amp(rule("alert", "deliver", "forward"))))
    assert (await a.inbox.reply(met)).status == "alert"
    node.stop()
    await c.inbox.reply(a.send_text(bob, "without a node"))
    unseen = a.send_xml(message(bob, "x", payload=amp(rule("alert", "deliver", "forward"))))
    behind = a.send_text(bob, "behind the rules")
    check_error(
        await a.inbox.reply(unseen),
        "cancel",
        None,
        "service-unavailable",
        id=unseen,
        sender=f"{alice}/desk",
    )
    await c.inbox.reply(behind)
    await admin(prosody, "restart")
    await c.inbox.reply(a.send_text(bob, "after another reload"))
    assert b.inbox.bodies() == []
    for client in (a, b, c):
        await client.leave()
    prosody.stop()
    prosody.start()
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    c = await clients.online(prosody, carol, "pad")
    await c.inbox.reply(a.send_text(bob, "after a restart"))
    node.write_config(more="")
    node.start()
    await b.inbox.reply(a.send_text(bob, "no more"))
    assert c.inbox.bodies() == ["after a restart"]
    await admin(prosody, "restart")
    await b.inbox.reply(a.send_text(bob, "nor after a reload"))


async def test_what_is_held_when_it_begins_or_ends_is_decided_anew(workshop, clients):
    """A message that waits for a node is decided by what that node says."""
    prosody = workshop.server()
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    node = workshop.node(prosody, security="none")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    c = await clients.online(prosody, carol, "pad")
    node.stop()
    first = a.send_xml(message(bob, "begins", payload=amp(rule("notify", "deliver", "forward"))))
    await a.ping()
    node.write_config(more=entries((bob, carol)))
    node.start()
    assert (await a.inbox.reply(first)).status == "notify"
    await c.inbox.reply(first)
    node.stop()
    second = a.send_xml(message(bob, "ends", payload=amp(rule("notify", "deliver", "direct"))))
    await a.ping()
    node.write_config(more="")
    node.start()
    assert (await a.inbox.reply(second)).status == "notify"
    await b.inbox.reply(second)


async def greet(component, *elements):
    """What a node would say of sending on, and the server's answer."""
    id = new_id("g")
    component.write(
        f"<iq type='set' from='{COMPONENT}' to='{HOST}' id='{id}'><greeting xmlns='{INTERCEPT}' "
        f"version='1' node='n0' security='none' window='9'>{''.join(elements)}</greeting></iq>"
    )
    await until(lambda: any(e.get("id") == id for e in component.all), "the greeting's answer")


async def test_his_sessions_change_nothing_while_a_node_decides(workshop, clients):
    """R33: it is asked once, and its verdict holds though he has come online meanwhile."""
    prosody = workshop.server()
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, "desk")
    async with Component(prosody) as node:
        await greet(node, f"<forward from='{bob}' to='{carol}'/>")
        a.send_xml(message(f"{bob}/phone", "ruled", payload=amp(rule("drop", "deliver", "none"))))
        await until(lambda: node.said("intercept"), "the intercept")
        (held,) = node.said("intercept")
        assert (held.get("forwards-to"), held.get("gateway")) == (carol, None)
        await clients.online(prosody, bob, "phone", priority=5)
        node.verdict(held.get("key"), "deliver")
        await until(lambda: len(node.said("intercept")) > 1, "the next intercept")
        (_, again) = node.said("intercept")
        assert (again.get("to"), again.get("forwards-to")) == (carol, None), "R26"


async def test_what_a_node_saw_is_sent_on_out_of_the_spool(workshop, clients):
    """I1: held at rules, kept over a restart, and decided by the next node."""
    prosody = workshop.server()
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, "desk")
    async with Component(prosody) as first:
        await greet(first, f"<forward from='{bob}' to='{carol}'/>")
        met = ("notify", "deliver", "forward")
        id = a.send_xml(message(bob, "ruled", payload=amp(rule(*met))))
        await until(lambda: first.said("intercept"), "the intercept")
        prosody.stop()
    prosody.start()
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    workshop.node(prosody, security="none", more=entries((bob, carol)))
    assert (await a.inbox.reply(id)).status == "notify"
    c = await clients.online(prosody, carol, "pad")
    await c.inbox.reply(id)
    assert b.inbox.bodies() == []


async def test_entries_that_make_no_sense_are_left_out(workshop, clients):
    """Of another host, of no address, of several at once: and the others hold."""
    prosody = workshop.server(options={"amphora_gate_limit": 0})
    alice, bob, carol = prosody.people("alice", "bob", "carol")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob, "phone")
    c = await clients.online(prosody, carol, "pad")
    async with Component(prosody) as node:
        await greet(
            node,
            "<forward from='bob@elsewhere.example' to='x@example.net'/>",
            f"<forward from='{HOST}' to='x@example.net'/>",
            f"<forward from='{alice}'/>",
            f"<gateway from='{HOST}' to='x@example.net'/>",
            "<gateway from='elsewhere.example' to='example.net'/>",
            f"<forward from='{bob}' to='{carol}'/>",
        )
        await c.inbox.reply(a.send_text(bob, "on"))
        await a.inbox.reply(c.send_text(alice, "not on"))
        await until(lambda: prosody.log.count("which is left out") == 5, "them in the log")
        await greet(node)
        await b.inbox.reply(a.send_text(bob, "no more"))


async def test_at_strict_an_entry_tells_a_stranger_nothing(workshop, clients):
    """R69, R72: the refusal is the same with an entry and without, online or away."""
    prosody = workshop.server(**PHONES)
    eve, bob, carol = prosody.people("eve", "bob", "carol", friends=False)
    plain = prosody.people("plain", friends=False)[0]
    friend, fred, hugo = prosody.people("friend", "fred", "hugo")
    more = entries((bob, carol), (fred, hugo), (SMS, GATEWAY))
    workshop.node(prosody, others=f', "{SMS}"', more=more)
    e = await clients.online(prosody, eve, "desk")
    alert = ("alert", "deliver", "forward")

    async def refused(to):
        id = e.send_xml(message(to, "x", payload=amp(rule(*alert))))
        check_refusal(
            await e.inbox.reply(id),
            "invalid-rules",
            id=id,
            sender=f"{eve}/desk",
            named=[alert],
            echoed=[alert],
        )

    for to in (bob, plain, f"nobody@{HOST}", f"123@{SMS}"):
        await refused(to)
    await clients.online(prosody, bob, "phone")
    c = await clients.online(prosody, carol, "pad")
    await refused(bob)
    e.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "forward"))))
    e.send_text(bob, "the end")
    assert await c.inbox.body_count(1) == ["the end"]
    # nobody is at the gateway: an error is silent where it answers rules
    silent = e.send_xml(message(f"123@{SMS}", "x", payload=amp(rule("drop", "deliver", "none"))))
    told = await e.inbox.reply(e.send_text(f"123@{SMS}", "x"))
    assert told.condition == unreachable(prosody)
    assert e.inbox.with_id(silent) == []
    f = await clients.online(prosody, friend, "desk")
    id = f.send_xml(message(fred, "x", payload=amp(rule(*alert))))
    check_reply(
        await f.inbox.reply(id), "alert", id=id, sender=f"{friend}/desk", recipient=fred, rule=alert
    )


@pytest.fixture(scope="module")
def two(workshop):
    """Two servers that talk to each other. The first sends on to the second."""
    near, far = workshop.server(s2s=True), workshop.server(s2s=True)
    (bob,), (carol,) = near.people("bob"), far.people("carol")
    workshop.node(near, host=near.host, security="none", more=entries((bob, carol)))
    workshop.node(far, host=far.host, security="none")
    return near, far, bob, carol


def original(stanza):
    """Whom XEP-0033 names as its first sender."""
    path = f"{{{ADDRESS}}}addresses/{{{ADDRESS}}}address"
    return [e.get("jid") for e in stanza.element.findall(path) if e.get("type") == "ofrom"]


async def test_to_another_server_from_here(two, clients):
    """The sender's own server sends it on: his address stays, and the other's answers reach him."""
    near, far, bob, carol = two
    (alice,) = near.people("alice")
    a = await clients.online(near, alice, "desk")
    c = await clients.online(far, carol, "pad")
    plain = await c.inbox.reply(a.send_text(bob, "plain"))
    rules = ("notify", "deliver", "direct")
    id = a.send_xml(message(bob, "ruled", payload=amp(rule(*rules))))
    ruled = await c.inbox.reply(id)
    for got in (plain, ruled):
        assert (got.sender, original(got), marks(got)) == (f"{alice}/desk", [], [bob])
    check_reply(
        await a.inbox.reply(id),
        "notify",
        id=id,
        sender=f"{alice}/desk",
        recipient=carol,
        rule=rules,
        host=far.host,
    )
    met = ("notify", "deliver", "forward")
    id = a.send_xml(message(bob, "met here", payload=amp(rule(*met))))
    check_reply(
        await a.inbox.reply(id),
        "notify",
        id=id,
        sender=f"{alice}/desk",
        recipient=bob,
        rule=met,
        host=near.host,
    )
    await c.inbox.reply(id)


async def test_from_another_server_to_another_server(two, clients):
    """Nobody may speak for a third domain: it comes from him who was written to, and names the
    sender, whatever the message said of that itself."""
    near, far, bob, carol = two
    (alice,) = far.people("alice")
    a = await clients.online(far, alice, "desk")
    c = await clients.online(far, carol, "pad")
    forged = (
        f"<addresses xmlns='{ADDRESS}'><address type='ofrom' jid='boss@{far.host}'/>"
        f"<address type='cc' jid='dave@{far.host}'/></addresses>"
    )
    for payload in ("", forged, amp(rule("drop", "deliver", "stored"))):
        got = await c.inbox.reply(a.send_text(bob, "hello", payload=payload))
        assert (got.sender, got.to) == (bob, carol)
        assert original(got) == [f"{alice}/desk"], got
    assert len(got.element.findall(f"{{{ADDRESS}}}addresses")) == 1
    id = a.send_xml(message(bob, "met", payload=amp(rule("alert", "deliver", "forward"))))
    reply = await a.inbox.reply(id)
    assert (reply.status, reply.sender) == ("alert", near.host)


def test_bad_settings_are_refused_with_a_remedy(workshop):
    """A node does not start on entries that lead nowhere or in a circle."""
    prosody = workshop.server(start=False)
    node = workshop.node(
        prosody,
        start=False,
        more=entries((f"a@{HOST}", f"b@{HOST}"), (f"b@{HOST}", f"a@{HOST}"), ("x.org", "a@y.org")),
    )
    code, said = node.command("check-config", "--config", str(node.config))
    assert code != 0
    assert f'forward[0].to = "b@{HOST}": is sent on again by forward[1]' in said
    assert f'forward[1].to = "a@{HOST}": is sent on again by forward[0]' in said
    assert 'forward[2].to = "a@y.org": must be a domain' in said


def test_a_thousand_entries_fit_into_a_greeting(workshop):
    """I6: as many as the settings take, the server takes."""
    prosody = workshop.server()
    many = [(f"user-{n}-{'x' * 60}@{HOST}", f"user-{n}-{'y' * 60}@example.net") for n in range(1000)]
    node = workshop.node(prosody, more=entries(*many))
    node.wait_log("host greeted")
    wait_for(lambda: "Messages for 1000 users are sent on" in prosody.log, "it in the log")


async def test_to_a_server_that_knows_nothing_of_rules(workshop, clients):
    """R23, R25: a message with rules comes back, from where it was sent to; one without goes on."""
    near, far = workshop.server(s2s=True), workshop.server(s2s=True, module=False)
    alice, bob = near.people("alice", "bob")
    eve, carol = far.people("eve", "carol")
    workshop.node(near, host=near.host, security="none", more=entries((bob, carol)))
    c = await clients.online(far, carol, "pad")
    for sender in (
        await clients.online(near, alice, "desk"),
        await clients.online(far, eve, "desk"),
    ):
        jid = sender.boundjid.full
        ruled = message(bob, "ruled", payload=amp(rule("drop", "deliver", "stored")))
        id = sender.send_xml(ruled)
        reply = await sender.inbox.reply(id)
        check_error(reply, "cancel", None, "service-unavailable", id=id, sender=jid)
        assert reply.sender == bob, "it tells nothing of the next address"
        await c.inbox.reply(sender.send_text(bob, f"plain of {jid}"))
    assert len(c.inbox.bodies()) == 2
