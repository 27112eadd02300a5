"""Messages with rules that leave for another server. R12 to R14, R23 to R26, R42, R54, R55, R64.

Each server is at an address of its own, and they find each other as servers do.
"""

import asyncio
import re
import signal

import pytest

from harness.component import Component
from harness.mirror import Mirror
from harness.ports import free_address
from harness.prosody import SECRET
from harness.replies import check_error, check_refusal, check_reply
from harness.stanzas import AMP, CLIENT, FORWARD, Stanza, amp, message, new_id, rule, utc
from harness.waiting import until

PAST = "2004-01-01T00:00:00Z"
FUTURE = "2099-01-01T00:00:00Z"
MAM = "urn:xmpp:mam:2"

#: a rule that is never met on the way out, and not where somebody is there
QUIET = rule("drop", "deliver", "stored")


@pytest.fixture(scope="module")
def near(workshop):
    """The sender's server, with a node."""
    mirror = {"mirror.{host}": SECRET}
    server = workshop.server(s2s=True, modules=["relayer"], components=mirror)
    server.node = workshop.node(server)
    return server


@pytest.fixture(scope="module")
def far(workshop):
    """Another server, with a node of its own."""
    server = workshop.server(s2s=True)
    server.node = workshop.node(server)
    return server


@pytest.fixture(scope="module")
def plain(workshop):
    """A server that knows nothing of rules."""
    return workshop.server(s2s=True, module=False)


@pytest.fixture(scope="module")
def pretender(workshop):
    """A server that says it supports rules, and passes on what comes as it came."""
    return workshop.server(kind="prosody", s2s=True, module=False, modules=["pretender"], level="debug")


def friends(near, far):
    """Alice at one server and Bob at the other, in each other's roster."""
    (alice,), (bob,) = near.people("alice"), far.people("bob")
    near.account(alice.partition("@")[0], {bob: "both"})
    far.account(bob.partition("@")[0], {alice: "both"})
    return alice, bob


def asked(server):
    """How often that server was asked what it supports."""
    query = rf"Received\[s2sin\]: <iq (?=[^>]*type='get')[^>]*to='{re.escape(server.host)}'"
    return len(re.findall(query, server.log))


async def archived(client):
    """What the archive of that user holds: the messages, oldest first."""
    begin = len(client.inbox.all)
    await client.iq(f"<query xmlns='{MAM}' queryid='{new_id('q')}'/>", type="set")
    path = f"{{{MAM}}}result/{{{FORWARD}}}forwarded/{{{CLIENT}}}message"
    found = [s.element.find(path) for s in client.inbox.all[begin:]]
    return [Stanza(inner) for inner in found if inner is not None]


def bodies(stanzas):
    """Their texts."""
    return [s.body for s in stanzas if s.body is not None]


# ------------------------------------------------------------------ both edges


async def test_a_message_with_rules_reaches_a_server_that_supports_them(near, far, clients):
    """R23, R24, R26: asked by disco, it goes on, and the other server looks at the rules."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    stored = ("notify", "deliver", "stored")
    id = a.send_xml(message(bob, "later", payload=amp(rule(*stored))))
    reply = await a.inbox.reply(id)
    check_reply(
        reply, "notify", id=id, sender=f"{alice}/desk", recipient=bob, rule=stored, host=far.host
    )
    b = await clients.online(far, bob, raw=True)
    assert await b.inbox.body_count(1) == ["later"]
    assert len(a.inbox.with_id(id)) == 1


@pytest.mark.parametrize("action", ["drop", "alert", "error", "notify"])
async def test_a_rule_that_is_met_at_the_other_edge(near, far, clients, action):
    """R12, R26, R27, R44 to R51: the remote server's answer reaches the sender's full JID."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    given = (action, "deliver", "stored")
    id = a.send_xml(message(bob, "ruled", payload=amp(rule(*given))))
    if action != "drop":
        reply = await a.inbox.reply(id)
        check_reply(
            reply, action, id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=far.host
        )
    mark = a.send_xml(message(bob, "mark", payload=amp(rule("notify", "deliver", "stored"))))
    await a.inbox.reply(mark)
    b = await clients.online(far, bob, raw=True)
    expected = ["ruled", "mark"] if action == "notify" else ["mark"]
    assert await b.inbox.body_count(len(expected)) == expected
    assert len(a.inbox.with_id(id)) == (0 if action == "drop" else 1)


async def test_match_resource_is_decided_where_the_resource_is(near, far, clients):
    """R40, R43: `exact` and `other` are the recipient's server's; `any` is met on the way out."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(far, bob, "phone", raw=True)
    sender = f"{alice}/desk"
    for to, value in [(f"{bob}/phone", "exact"), (bob, "other"), (f"{bob}/gone", "other")]:
        given = ("notify", "match-resource", value)
        id = a.send_xml(message(to, value, payload=amp(rule(*given))))
        reply = await a.inbox.reply(id)
        check_reply(reply, "notify", id=id, sender=sender, recipient=to, rule=given, host=far.host)
    given = ("alert", "match-resource", "any")
    id = a.send_xml(message(bob, "any", payload=amp(rule(*given))))
    reply = await a.inbox.reply(id)
    check_reply(reply, "alert", id=id, sender=sender, recipient=bob, rule=given, host=near.host)
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["exact", "other", "other", "end"]


async def test_per_hop(near, far, clients):
    """R12 to R14, R42: with per-hop as without it both edges look at the rules, and pass over
    match-resource; the attribute goes along."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(far, bob, "phone", raw=True)
    ignored = rule("drop", "match-resource", "any")
    for per_hop in ("true", "false"):
        given = ("alert", "expire-at", PAST)
        id = a.send_xml(message(bob, "near", payload=amp(rule(*given), per_hop=per_hop)))
        reply = await a.inbox.reply(id)
        check_reply(
            reply, "alert", id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=near.host
        )
    given = ("notify", "match-resource", "other")
    id = a.send_xml(message(bob, "far", payload=amp(ignored, QUIET, per_hop="true")))
    arrived = await b.inbox.reply(id)
    assert arrived.amp.get("per-hop") == "true" and len(arrived.rules) == 2
    id = a.send_xml(message(bob, "silent", payload=amp(rule(*given), per_hop="true")))
    await b.inbox.reply(id)
    assert a.inbox.with_id(id) == []


# ------------------------------------------------------------------ the sender's edge


@pytest.mark.parametrize("condition", [("expire-at", PAST), ("deliver", "direct")], ids=["expired", "direct"])
@pytest.mark.parametrize("action", ["drop", "alert", "error", "notify"])
async def test_a_rule_that_is_met_on_the_way_out(near, far, clients, action, condition):
    """R12, R20, R21, R33, R38, R44 to R51: the sender's server carries it out, nothing else leaves."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(far, bob, raw=True)
    given = (action, *condition)
    later = rule("error", "expire-at", FUTURE)
    id = a.send_xml(message(bob, "ruled", payload=amp(later, rule(*given))))
    if action != "drop":
        reply = await a.inbox.reply(id)
        check_reply(
            reply, action, id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=near.host
        )
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == (["ruled", "end"] if action == "notify" else ["end"])


async def test_rules_are_validated_before_anybody_is_asked(near, far, clients):
    """R15, R17, R18: refused by the sender's server, alike whatever the next one supports."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(far, bob, raw=True)
    for to in (bob, f"nobody@{free_address()}"):
        for element, bad in [
            ("unsupported-actions", ("explode", "deliver", "direct")),
            ("unsupported-conditions", ("drop", "moon-phase", "full")),
            ("invalid-rules", ("drop", "expire-at", "tomorrow")),
        ]:
            id = a.send_xml(message(to, "no", payload=amp(QUIET, rule(*bad))))
            reply = await a.inbox.reply(id)
            check_refusal(
                reply,
                element,
                id=id,
                sender=f"{alice}/desk",
                named=[bad],
                echoed=[("drop", "deliver", "stored"), bad],
            )
            assert reply.sender == near.host
        a.send_xml(message(to, "no", id=None, payload=amp(QUIET)))
        await a.inbox.until(lambda box: box.with_id(None), "the refusal of a message without id")
        a.inbox.all.clear()
    await b.inbox.reply(a.send_text(bob, "end"))
    assert b.inbox.bodies() == ["end"]


async def test_strict_is_the_other_servers_matter(near, far, clients):
    """R69, R72: what is decided on the way out says nothing about the recipient, so a stranger
    may ask for it; the recipient's server refuses what it must not tell."""
    alice, bob = near.people("alice") + far.people("bob")
    a = await clients.online(near, alice, "desk", raw=True)
    given = ("notify", "deliver", "direct")
    id = a.send_xml(message(bob, "who is there?", payload=amp(rule(*given))))
    reply, refusal = await a.inbox.reply(id), await a.inbox.reply(id, 2)
    check_reply(
        reply, "notify", id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=near.host
    )
    assert refusal.condition == "not-acceptable" and refusal.sender == far.host


async def test_performance_accepts_drop_alone(workshop, far, clients):
    """R71: at the sender's leg as at the recipient's."""
    server = workshop.server(s2s=True)
    workshop.node(server, security="performance")
    alice, bob = friends(server, far)
    a = await clients.online(server, alice, "desk", raw=True)
    b = await clients.online(far, bob, raw=True)
    bad = ("alert", "deliver", "direct")
    id = a.send_xml(message(bob, "no", payload=amp(rule(*bad))))
    reply = await a.inbox.reply(id)
    check_refusal(
        reply, "invalid-rules", id=id, sender=f"{alice}/desk", named=[bad], echoed=[bad]
    )
    await b.inbox.reply(a.send_xml(message(bob, "yes", payload=amp(QUIET))))
    assert b.inbox.bodies() == ["yes"]


# ------------------------------------------------------------------ the next server


async def test_a_server_without_support(near, plain, clients):
    """R23, R25, R64: service-unavailable; what is discarded here does not ask for it."""
    alice, bob = friends(near, plain)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(plain, bob, raw=True)
    sender = f"{alice}/desk"
    for given in [QUIET, rule("notify", "deliver", "direct"), rule("notify", "expire-at", PAST)]:
        id = a.send_xml(message(bob, "no", payload=amp(given)))
        reply = await a.inbox.reply(id)
        check_error(reply, "cancel", "503", "service-unavailable", id=id, sender=sender)
        assert reply.sender == near.host
    given = ("alert", "expire-at", PAST)
    id = a.send_xml(message(bob, "no", payload=amp(rule(*given))))
    reply = await a.inbox.reply(id)
    check_reply(reply, "alert", id=id, sender=sender, recipient=bob, rule=given, host=near.host)
    dropped = a.send_xml(message(bob, "no", payload=amp(rule("drop", "deliver", "direct"))))
    await b.inbox.reply(a.send_text(bob, "plain"))
    assert b.inbox.bodies() == ["plain"]
    assert a.inbox.with_id(dropped) == []
    assert all(len(a.inbox.with_id(s.id)) == 1 for s in a.inbox.messages())


async def test_a_server_that_cannot_be_reached(near, clients):
    """R23, R64: not known to support them is as good as not supporting them."""
    (alice,) = near.people("alice")
    a = await clients.online(near, alice, "desk", raw=True)
    id = a.send_xml(message(f"bob@{free_address()}", "no", payload=amp(QUIET)))
    reply = await a.inbox.reply(id)
    check_error(reply, "cancel", "503", "service-unavailable", id=id, sender=f"{alice}/desk")


async def test_a_server_that_does_not_answer_in_time(workshop, clients):
    """R23: after `amphora_disco_timeout` it is not known to support them; asked again later."""
    near = workshop.server(s2s=True, options={"amphora_disco_timeout": 1, "amphora_disco_retry": 0})
    workshop.node(near)
    slow = workshop.server(kind="prosody", s2s=True, module=False, modules=["pretender"])
    alice, bob = friends(near, slow)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(slow, bob, raw=True)
    slow.signal(signal.SIGSTOP)
    id = a.send_xml(message(bob, "no", payload=amp(QUIET)))
    reply = await a.inbox.reply(id)
    check_error(reply, "cancel", "503", "service-unavailable", id=id, sender=f"{alice}/desk")
    slow.signal(signal.SIGCONT)
    # the late answer to the old question counts for nothing, that to a new one does
    await b.inbox.reply(a.send_text(bob, "plain"))
    await b.inbox.reply(a.send_xml(message(bob, "yes", payload=amp(QUIET))))
    assert b.inbox.bodies() == ["plain", "yes"]


async def test_a_server_is_asked_once(near, pretender, clients):
    """R5, R24: who waits for the answer shares it, and so do all that come later. R9: a server that
    lists no more than the feature is sent any rule."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    before = asked(pretender)
    for number in range(20):
        a.send_xml(message(bob, str(number), payload=amp(QUIET)))
    assert await b.inbox.body_count(20) == [str(n) for n in range(20)]
    await b.inbox.reply(a.send_xml(message(f"{bob}/phone", "20", payload=amp(QUIET))))
    assert asked(pretender) == max(before, 1)


async def test_an_answer_is_forgotten(workshop, pretender, clients):
    """R5: after `amphora_disco_cache` the server is asked again; more than a day is refused."""
    near = workshop.server(s2s=True, options={"amphora_disco_cache": 0.3})
    workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    before = asked(pretender)
    sent = 0
    while asked(pretender) < before + 3:
        sent += 1
        await b.inbox.reply(a.send_xml(message(bob, str(sent), payload=amp(QUIET))))
    # and not for every message
    assert sent > 3
    if near.kind == "ejabberd":
        return  # which refuses its settings file as a whole: test_ejabberd_settings
    await asyncio.to_thread(near.stop)
    near.options["amphora_disco_cache"] = 24 * 60 * 60 + 1
    await asyncio.to_thread(near.start)
    refused = "amphora_disco_cache must be a number of at most 86400"
    await until(lambda: refused in near.log, "the module to refuse more than a day")


async def test_a_server_learns_to_support_them(workshop, near, clients):
    """R23, R24: one that did not support them is asked again soon."""
    asking = workshop.server(s2s=True, options={"amphora_disco_retry": 0.3})
    workshop.node(asking)
    learner = workshop.server(s2s=True)
    node = workshop.node(learner, start=False)
    alice, bob = friends(asking, learner)
    a = await clients.online(asking, alice, "desk", raw=True)
    b = await clients.online(learner, bob, raw=True)
    id = a.send_xml(message(bob, "no", payload=amp(QUIET)))
    assert (await a.inbox.reply(id)).condition == "service-unavailable"
    await asyncio.to_thread(node.start)

    async def arrives():
        id = a.send_xml(message(bob, "yes", payload=amp(QUIET)))
        found = lambda: a.inbox.with_id(id) or b.inbox.with_id(id)  # noqa: E731
        await until(found, "an answer or the message")
        return b.inbox.with_id(id)

    while not await arrives():
        pass
    assert b.inbox.bodies() == ["yes"]


# ------------------------------------------------------------------ what leaves


async def test_the_rules_leave_with_their_addresses(near, pretender, clients):
    """R54, R55: full JID of the sender and the recipient as addressed, whatever the client wrote."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, "phone", raw=True)
    forged = {"from": "mallory@example.net/x", "to": "juliet@example.net"}
    for to in (bob, f"{bob}/phone"):
        for attributes in ({}, forged):
            arrived = await b.inbox.reply(
                a.send_xml(message(to, "hi", payload=amp(QUIET, **attributes)))
            )
            assert arrived.amp.get("from") == f"{alice}/desk"
            assert arrived.amp.get("to") == to
            assert arrived.amp.get("status") is None
            assert arrived.rules == [("drop", "deliver", "stored")]


async def test_what_another_server_wrote_on_the_rules_is_not_believed(far, plain, clients):
    """R54, R55: the recipient's server writes both anew."""
    bob, alice = friends(far, plain)
    a = await clients.online(plain, alice, "desk", raw=True)
    b = await clients.online(far, bob, "phone", raw=True)
    forged = {"from": f"mallory@{far.host}/x", "to": f"juliet@{far.host}"}
    arrived = await b.inbox.reply(a.send_xml(message(bob, "hi", payload=amp(QUIET, **forged))))
    assert arrived.amp.get("from") == f"{alice}/desk" and arrived.amp.get("to") == bob
    given = ("notify", "deliver", "direct")
    id = a.send_xml(message(bob, "hi", payload=amp(rule(*given), **forged)))
    reply = await a.inbox.reply(id)
    check_reply(
        reply, "notify", id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=far.host
    )


async def test_a_local_component_is_no_server(near, clients):
    """R12, R54, R55: a message to one is not held, and carries its addresses all the same."""
    (alice,) = near.people("alice")
    a = await clients.online(near, alice, "desk", raw=True)
    # held, the first would be discarded and the second be refused
    rules = [rule("drop", "deliver", "direct"), rule("explode", "deliver", "direct")]
    async with Mirror(near):
        for to in (f"mirror.{near.host}", f"bob@mirror.{near.host}", f"bob@mirror.{near.host}/x"):
            for given in rules:
                reply = await a.inbox.reply(a.send_xml(message(to, "hi", payload=amp(given))))
                copy = Stanza(reply.element.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}message"))
                assert copy.amp.get("from") == f"{alice}/desk" and copy.amp.get("to") == to


async def test_a_message_to_a_server_itself(near, plain, clients):
    """R25: a domain is asked and evaluated like a user of it."""
    (alice,) = near.people("alice")
    a = await clients.online(near, alice, "desk", raw=True)
    id = a.send_xml(message(plain.host, "hi", payload=amp(QUIET)))
    reply = await a.inbox.reply(id)
    check_error(reply, "cancel", "503", "service-unavailable", id=id, sender=f"{alice}/desk")


async def test_the_senders_archive_and_carbons_have_it_once(near, pretender, clients):
    """As if it had not been held; of what does not leave they hear nothing."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    other = await clients.online(near, alice, "pad", raw=True)
    await other.iq("<enable xmlns='urn:xmpp:carbons:2'/>", type="set")
    b = await clients.online(pretender, bob, raw=True)
    a.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "direct"))))
    a.send_xml(message(bob, "expired", payload=amp(rule("error", "expire-at", PAST))))
    a.send_xml(message(bob, "leaves", payload=amp(QUIET)))
    a.send_text(bob, "follows")
    assert await b.inbox.body_count(2) == ["leaves", "follows"]
    await other.ping()
    copies = [s.carbon for s in other.inbox.all if s.name == "message" and s.carbon]
    assert [c.body for c in copies if c.body] == ["leaves", "follows"]
    assert copies[0].amp.get("from") == f"{alice}/desk"
    assert bodies(await archived(a)) == ["leaves", "follows"]
    assert b.inbox.messages()[0].element.find("{urn:xmpp:sid:0}stanza-id[@by='%s']" % alice) is None


async def test_whom_the_sender_blocks_is_not_written_to(near, far, clients):
    """The block list comes first: neither rules nor the other server are asked."""
    alice, bob = friends(near, far)
    a = await clients.online(near, alice, "desk", raw=True)
    await a.iq(f"<block xmlns='urn:xmpp:blocking'><item jid='{bob}'/></block>", type="set")
    id = a.send_xml(message(bob, "no", payload=amp(rule("alert", "deliver", "direct"))))
    reply = await a.inbox.reply(id)
    assert reply.condition == "not-acceptable" and reply.amp is None
    await a.ping()
    assert len(a.inbox.with_id(id)) == 1


async def test_the_sender_is_gone_meanwhile(near, pretender, clients):
    """His message goes on, and his archive has it once; the notice waits for him."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    given = ("notify", "deliver", "direct")
    near.node.signal(signal.SIGSTOP)
    id = a.send_xml(message(bob, "ruled", payload=amp(rule(*given))))
    a.send_text(bob, "follows")
    await a.ping()
    await a.leave()
    near.node.signal(signal.SIGCONT)
    assert await b.inbox.body_count(2) == ["ruled", "follows"]
    again = await clients.online(near, alice, "desk", raw=True)
    reply = await again.inbox.reply(id)
    check_reply(
        reply, "notify", id=id, sender=f"{alice}/desk", recipient=bob, rule=given, host=near.host
    )
    assert bodies(await archived(again)) == ["ruled", "follows"]


# ------------------------------------------------------------------ order, limits, failures


async def test_order_of_a_pair(near, pretender, clients):
    """I3: what one sends to another arrives in that order, with rules or without."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    expected = []
    near.node.signal(signal.SIGSTOP)
    for number in range(60):
        kind = number % 3
        if kind == 0:
            a.send_xml(message(bob, str(number), payload=amp(QUIET)))
        elif kind == 1:
            a.send_text(bob, str(number))
        else:
            a.send_xml(message(bob, "dropped", payload=amp(rule("drop", "deliver", "direct"))))
            continue
        expected.append(str(number))
    # another session, and another recipient, are not held up
    other = await clients.online(near, alice, "pad", raw=True)
    await b.inbox.reply(other.send_text(bob, "aside"))
    near.node.signal(signal.SIGCONT)
    await b.inbox.body_count(len(expected) + 1)
    assert b.inbox.bodies() == ["aside", *expected]


async def test_what_waits_only_for_order_goes_on_after_the_hold(workshop, pretender, clients):
    """I3 gives way after `amphora_hold`: a message without rules needs no node."""
    near = workshop.server(s2s=True, options={"amphora_hold": 1})
    node = workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    node.signal(signal.SIGSTOP)
    ruled = a.send_xml(message(bob, "ruled", payload=amp(QUIET)))
    a.send_text(bob, "first")
    a.send_text(bob, "second")
    assert await b.inbox.body_count(2) == ["first", "second"]
    node.signal(signal.SIGCONT)
    await b.inbox.reply(ruled)
    assert b.inbox.bodies() == ["first", "second", "ruled"]


async def test_no_more_is_held_than_the_limits_say(workshop, pretender, clients):
    """I6: over a quarter of `amphora_edge_messages` or `amphora_edge_bytes` a sender is told to
    wait, over all of them everybody."""
    near = workshop.server(
        s2s=True, options={"amphora_edge_messages": 16, "amphora_edge_bytes": 32000}
    )
    node = workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    others = [await clients.online(near, jid, raw=True) for jid in near.people(*"cdef")]
    b = await clients.online(pretender, bob, raw=True)
    for texts in (["1", "2", "3", "4"], ["a" * 4000, "b" * 4000]):
        node.signal(signal.SIGSTOP)
        for text in texts[:-1]:
            a.send_xml(message(bob, text, payload=amp(QUIET)))
        a.send_text(bob, texts[-1])
        for refused in (
            a.send_xml(message(bob, "ruled", payload=amp(QUIET))),
            a.send_text(bob, "follows"),
        ):
            reply = await a.inbox.reply(refused)
            check_error(reply, "wait", None, "resource-constraint", id=refused, sender=f"{alice}/desk")
        for other in others[:3]:
            for text in texts:
                other.send_xml(message(bob, text, payload=amp(QUIET)))
            await other.ping()
            assert other.inbox.messages() == [], "there was room for others"
        refused = others[3].send_xml(message(bob, "ruled", payload=amp(QUIET)))
        assert (await others[3].inbox.reply(refused)).condition == "resource-constraint"
        node.signal(signal.SIGCONT)
        await b.inbox.body_count(4 * len(texts))
        from_alice = [s.body for s in b.inbox.messages() if s.sender == f"{alice}/desk"]
        assert from_alice == texts and len(b.inbox.bodies()) == 4 * len(texts)
        b.inbox.all.clear()
    deep = "<x xmlns='urn:x'>" + "<x>" * 70 + "</x>" * 70 + "</x>"
    refused = a.send_xml(message(bob, "deep", payload=amp(QUIET) + deep))
    assert (await a.inbox.reply(refused)).condition == "policy-violation"
    await b.inbox.reply(a.send_xml(message(bob, "room again", payload=amp(QUIET))))
    assert b.inbox.bodies() == ["room again"]


async def test_without_a_node(workshop, pretender, clients):
    """R64: after `amphora_hold` messages with rules go back, sent before or not; others go on."""
    near = workshop.server(s2s=True, options={"amphora_hold": 1})
    node = workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    node.signal(signal.SIGSTOP)
    sent = a.send_xml(message(bob, "sent", payload=amp(QUIET)))
    await a.ping()
    node.kill()
    unsent = a.send_xml(message(bob, "unsent", payload=amp(QUIET)))
    a.send_text(bob, "plain")
    for id in (sent, unsent):
        reply = await a.inbox.reply(id)
        check_error(reply, "cancel", "503", "service-unavailable", id=id, sender=f"{alice}/desk")
    assert await b.inbox.body_count(1) == ["plain"]
    # from now on at once
    id = a.send_xml(message(bob, "late", payload=amp(QUIET)))
    assert (await a.inbox.reply(id)).condition == "service-unavailable"
    await asyncio.to_thread(node.start)
    await b.inbox.reply(a.send_xml(message(bob, "again", payload=amp(QUIET))))
    assert b.inbox.bodies() == ["plain", "again"]
    assert all(len(a.inbox.with_id(id)) == 1 for id in (sent, unsent))


async def test_a_node_is_killed_and_comes_back(near, pretender, clients):
    """I1, I2: what it had not answered goes to the next one, nothing is lost and nothing doubled."""
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    near.node.signal(signal.SIGSTOP)
    given = rule("notify", "deliver", "direct")
    ids = [a.send_xml(message(bob, str(n), payload=amp(given))) for n in range(50)]
    await a.ping()
    near.node.kill()
    ids += [a.send_xml(message(bob, str(n), payload=amp(given))) for n in range(50, 60)]
    await asyncio.to_thread(near.node.start)
    assert await b.inbox.body_count(60) == [str(n) for n in range(60)]
    await a.inbox.reply(ids[-1])
    assert [len(a.inbox.with_id(id)) for id in ids] == [1] * 60
    await b.inbox.reply(a.send_text(bob, "end"))
    assert len(b.inbox.bodies()) == 61


async def test_the_server_stops(workshop, pretender, clients):
    """What is held goes back before the server ends, and what waited behind it goes on."""
    near = workshop.server(s2s=True)
    node = workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    await b.inbox.reply(a.send_xml(message(bob, "before", payload=amp(QUIET))))
    node.signal(signal.SIGSTOP)
    id = a.send_xml(message(bob, "ruled", payload=amp(QUIET)))
    a.send_text(bob, "plain")
    await a.ping()
    await asyncio.to_thread(near.stop)
    node.signal(signal.SIGCONT)
    assert await b.inbox.body_count(2) == ["before", "plain"]
    # whether a closing connection still carries the error is its own matter; the archive has it
    await asyncio.to_thread(near.start)
    again = await clients.online(near, alice, "desk", raw=True)
    kept = await archived(again)
    errors = [] if near.kind == "ejabberd" else [id]  # whose archive keeps none
    assert [m.id for m in kept if m.condition == "service-unavailable"] == errors
    assert bodies(kept) == ["before", "plain"]


async def test_the_module_is_unloaded(workshop, pretender, clients, admin):
    """The same, while the server stays: from then on it is as without the module."""
    near = workshop.server(s2s=True)
    node = workshop.node(near)
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    await b.inbox.reply(a.send_xml(message(bob, "before", payload=amp(QUIET))))
    node.signal(signal.SIGSTOP)
    id = a.send_xml(message(bob, "ruled", payload=amp(QUIET)))
    a.send_text(bob, "plain")
    await a.ping()
    await admin(near, "unload")
    assert (await a.inbox.reply(id)).condition == "service-unavailable"
    node.signal(signal.SIGCONT)
    a.send_text(bob, "after")
    assert await b.inbox.body_count(3) == ["before", "plain", "after"]


def intercepts(node, key=None):
    """What a played node was asked, about that message or all."""
    return [i for i in node.said("intercept") if key in (None, i.get("key"))]


async def asked_about(node, count=1):
    """Wait until it was asked about so many messages; their keys in order."""
    keys = lambda: list(dict.fromkeys(i.get("key") for i in intercepts(node)))  # noqa: E731
    await until(lambda: len(keys()) >= count, f"{count} intercepts")
    return keys()


async def test_what_a_node_is_asked(workshop, pretender, clients):
    """R23: the facts of the sender's leg; without an answer within `amphora_resend` once more."""
    near = workshop.server(s2s=True, options={"amphora_resend": 1})
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    async with Component(near) as node:
        await node.greet()
        a.send_xml(message(f"{bob}/phone", "ruled", payload=amp(QUIET)))
        (key,) = await asked_about(node)
        first = intercepts(node)[0]
        assert first.get("leg") == "sender" and first.get("stage") == "rules"
        assert first.get("to") == bob and first.get("next-supports-amp") == "true"
        assert first.get("again") is None and first.get("after") is None
        inner = first.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}message")
        assert inner.get("from") == f"{alice}/desk" and inner.get("to") == f"{bob}/phone"
        await until(lambda: len(intercepts(node)) >= 2, "it to come again")
        assert intercepts(node)[1].get("again") == "true" and intercepts(node)[1].get("key") == key
        node.verdict(key, "deliver")
        assert await b.inbox.body_count(1) == ["ruled"]


async def test_answers_that_do_not_count(workshop, pretender, clients):
    """After a retry it is asked again; nonsense is left out, and so is a verdict on another link
    than the one on which it was asked last."""
    near = workshop.server(s2s=True, options={"amphora_resend": 600})
    alice, bob = friends(near, pretender)
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    async with Component(near) as node:
        await node.greet()
        a.send_xml(message(bob, "1", payload=amp(QUIET)))
        (one,) = await asked_about(node)
        for stage, what in [("offline", "deliver"), ("rules", "stored"), ("rules", "explode")]:
            node.verdict(one, what, stage)
        for tries in (2, 3):
            node.verdict(one, "retry")
            await until(lambda: len(intercepts(node)) == tries, "it to come again after retry")
        a.send_xml(message(bob, "2", payload=amp(QUIET)))
        one, two = await asked_about(node, 2)
        node.verdict(two, "deliver")
        await a.ping()
        assert b.inbox.bodies() == []
    async with Component(near) as node:
        await node.greet(window=1)
        assert await asked_about(node) == [one]
        node.verdict(two, "discarded")
        node.verdict(one, "retry")
        # what has not come is not answered, and the one window goes round
        assert await asked_about(node, 2) == [one, two]
    async with Component(near) as node:
        await node.greet()
        assert await asked_about(node, 2) == [one, two]
        node.verdict(two, "deliver")
        node.verdict(one, "deliver")
        node.verdict(one, "deliver")
        assert await b.inbox.body_count(2) == ["1", "2"]
        await b.inbox.reply(a.send_text(bob, "end"))
        assert b.inbox.bodies() == ["1", "2", "end"]


async def test_the_window_is_one_for_both_legs(workshop, pretender, clients):
    """I6: no more is unanswered on a link than its window, whichever way the messages go."""
    near = workshop.server(s2s=True)
    alice, bob = friends(near, pretender)
    (carol,) = near.people("carol")
    a = await clients.online(near, alice, "desk", raw=True)
    async with Component(near) as node:
        await node.greet(window=2)
        a.send_xml(message(bob, "that it is known what his server supports", payload=amp(QUIET)))
        await until(lambda: node.said("intercept"), "the first intercept")
        for number in range(5):
            a.send_xml(message(bob, str(number), payload=amp(QUIET)))
            a.send_xml(message(carol, str(number), payload=amp(QUIET)))
        answered = set()
        legs = []
        while len(answered) < 11:
            new = [i for i in node.said("intercept") if i.get("key") not in answered]
            keys = {i.get("key"): i.get("leg") for i in new}
            assert len(keys) <= 2, keys
            for key, leg in keys.items():
                answered.add(key)
                legs.append(leg)
                node.verdict(key, "discarded")
            await a.ping()
        assert sorted(legs) == ["recipient"] * 5 + ["sender"] * 6
        # none of them waits for all of the others
        assert set(legs[1:5]) == {"recipient", "sender"}


# ------------------------------------------------------------------ what the host sends on


def relayed(to, *rules, silent="false"):
    """What has the test's module send a message on to another address."""
    order = f"<relay xmlns='urn:example:relay' to='{to}' silent='{silent}'/>"
    return order + (amp(*rules) if rules else "")


async def test_what_the_host_sends_on_asks_the_next_server(near, pretender, plain, clients):
    """R23, R25: relayed in order to a server that supports rules, refused before another one."""
    (alice, via) = near.people("alice", "via")
    (bob,), (carol,) = pretender.people("bob"), plain.people("carol")
    a = await clients.online(near, alice, "desk", raw=True)
    b = await clients.online(pretender, bob, raw=True)
    c = await clients.online(plain, carol, raw=True)
    later = rule("error", "expire-at", FUTURE)
    for number in range(10):
        rules = [later] if number % 2 == 0 else []
        a.send_xml(message(via, str(number), payload=relayed(bob, *rules)))
    assert await b.inbox.body_count(10) == [str(n) for n in range(10)]
    assert b.inbox.messages()[0].sender == via
    refused = a.send_xml(message(via, "no", payload=relayed(carol, later)))
    reply = await a.inbox.reply(refused)
    check_error(reply, "cancel", "503", "service-unavailable", id=refused, sender=f"{alice}/desk")
    assert reply.sender == via, "where it was sent on to is told"
    unsaid = a.send_xml(message(via, "no", payload=relayed(carol, later, silent="true")))
    await c.inbox.reply(a.send_xml(message(via, "yes", payload=relayed(carol))))
    assert c.inbox.bodies() == ["yes"]
    await a.ping()
    assert a.inbox.with_id(unsaid) == []
