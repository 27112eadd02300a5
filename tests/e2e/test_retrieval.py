"""Users who look at what is stored for them: XEP-0013, F1 to F9."""

import signal
import time

import pytest

from harness.prosody import HOST
from harness.stanzas import (
    CLIENT,
    HINTS,
    INFO,
    ITEMS,
    RETRIEVAL,
    amp,
    message,
    new_id,
    parse_utc,
    rule,
    utc,
)
from harness.steps import all_stored
from harness.waiting import PATIENCE, until

FORM = "jabber:x:data"
UNKNOWN = "0000001-0000000999999"


@pytest.fixture(scope="module")
def prosody(workshop):
    """A server that gives up a sleeping session after two seconds."""
    return workshop.server(hibernation=2)


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """Its node."""
    return workshop.node(prosody)


@pytest.fixture(scope="module")
def narrow(workshop):
    """A server that writes ten messages ahead of the client's acknowledgements, and its node."""
    server = workshop.server(hibernation=300, options={"amphora_session_window": 10})
    workshop.node(server)
    return server


# ---------------------------------------------------------------------------- what clients do


def disco(ns):
    """A query for the node."""
    return f"<query xmlns='{ns}' node='{RETRIEVAL}'/>"


def offline(inside):
    """A request."""
    return f"<offline xmlns='{RETRIEVAL}'>{inside}</offline>"


def items(action, nodes):
    """A request about some messages."""
    return offline("".join(f"<item action='{action}' node='{node}'/>" for node in nodes))


def number(answer):
    """The count in an answer to disco#info."""
    assert answer.type == "result", answer
    query = answer.find(f"{{{INFO}}}query")
    assert query.get("node") == RETRIEVAL
    identity = query.find(f"{{{INFO}}}identity")
    assert (identity.get("category"), identity.get("type")) == ("automation", "message-list")
    assert [f.get("var") for f in query.findall(f"{{{INFO}}}feature")] == [RETRIEVAL]
    form = query.find(f"{{{FORM}}}x")
    assert form.get("type") == "result"
    fields = {
        field.get("var"): field.findtext(f"{{{FORM}}}value")
        for field in form.findall(f"{{{FORM}}}field")
    }
    assert fields["FORM_TYPE"] == RETRIEVAL
    return int(fields["number_of_messages"])


async def count(client):
    """How many messages are stored."""
    return number(await client.iq(disco(INFO)))


async def asked_until(client, payload, condition):
    """Ask again and again until the answer is as it should become; that answer."""
    end = time.monotonic() + PATIENCE
    while not condition(answer := await client.iq(payload)):
        assert time.monotonic() < end, f"the answer stays {answer}"
    return answer


async def headers(client):
    """The list, each (node, sender)."""
    answer = await client.iq(disco(ITEMS))
    assert answer.type == "result", answer
    query = answer.find(f"{{{ITEMS}}}query")
    assert query.get("node") == RETRIEVAL
    found = query.findall(f"{{{ITEMS}}}item")
    assert {item.get("jid") for item in found} <= {client.jid}, "F4: jid is the user's"
    return [(item.get("node"), item.get("name")) for item in found]


async def nodes(client):
    """The names of the stored messages."""
    return [node for node, _ in await headers(client)]


def name_of(stanza):
    """The node under which a message was shown, or None."""
    found = stanza.element.findall(f"{{{RETRIEVAL}}}offline")
    if not found:
        return None
    assert len(found) == 1
    (item,) = found[0]
    return item.get("node")


def shown(client):
    """What it was shown so far, each (node, body)."""
    return [(name_of(m), m.body) for m in client.inbox.messages() if name_of(m)]


def shown_bodies(client):
    """The texts of that."""
    return [body for _, body in shown(client)]


async def fetching(client, number_of_messages):
    """Ask for all, and wait until so many have come; the id of the request."""
    id = new_id("fetch")
    client.write(f"<iq type='get' id='{id}'>{offline('<fetch/>')}</iq>")
    await client.inbox.until(lambda _: len(shown(client)) >= number_of_messages, "the window")
    return id


async def answer_to(client, id):
    """The answer to a request that was written."""
    with_id = lambda box: [s for s in box.all if s.id == id]  # noqa: E731
    (answer,) = await client.inbox.until(with_id, f"the answer to {id}")
    return answer


async def flood(client, bodies, sender):
    """The client is available and gets exactly these, and then what is live."""
    end = new_id("end")
    await client.inbox.body_count(len(bodies))
    await client.inbox.reply(sender.send_text(client.inbox.owner.partition("/")[0], end))
    texts = [m.body for m in client.inbox.messages() if m.body and not name_of(m)]
    assert texts == [*bodies, end]


async def store(server, clients, number_of_messages, *, raw=True):
    """Alice writes so many messages to Bob, who is away: (her client, bob)."""
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=raw)
    for n in range(number_of_messages - 1):
        a.send_text(bob, str(n))
    if number_of_messages:
        await all_stored(a, bob, str(number_of_messages - 1))
    return a, bob


def texts(first, last=None):
    """The bodies that `store` makes."""
    return [str(n) for n in (range(first) if last is None else range(first, last))]


# ---------------------------------------------------------------------------- F1: support


async def test_f1_the_feature_comes_and_goes_with_the_node(workshop, clients):
    """F1: the server lists it while a node is there; without one a request gets an error."""
    server = workshop.server()
    alice, bob = server.people("alice", "bob")
    a = await clients.login(server, alice, raw=True)

    async def listed():
        answer = await a.iq(f"<query xmlns='{INFO}'/>", to=HOST)
        found = answer.find(f"{{{INFO}}}query").findall(f"{{{INFO}}}feature")
        return [f.get("var") for f in found].count(RETRIEVAL)

    assert await listed() == 0
    for payload in (disco(INFO), disco(ITEMS), offline("<fetch/>")):
        refused = await a.iq(payload)
        assert (refused.error.get("type"), refused.condition) == ("wait", "service-unavailable")
        assert (await a.iq(payload, to=bob)).condition == "forbidden", "F5, with or without a node"
    node = workshop.node(server)
    assert await listed() == 1
    assert await count(a) == 0
    node.stop()
    for _ in range(200):
        if not await listed():
            break
    else:
        pytest.fail("the feature stayed although the node is gone")


# ---------------------------------------------------------------------------- F2, F4: count, list


async def test_f2_f4_nothing_stored(prosody, node, clients):
    """F2, F4: none is zero and an empty list; fetch and purge of nothing are well."""
    _, bob = await store(prosody, clients, 0)
    b = await clients.login(prosody, bob, raw=True)
    assert await count(b) == 0
    assert await headers(b) == []
    for type, request in (("get", "<fetch/>"), ("set", "<fetch/>"), ("set", "<purge/>")):
        assert (await b.iq(offline(request), type=type)).type == "result"
    assert shown(b) == []


async def test_f2_f4_count_and_list_before_presence(prosody, node, clients):
    """F2, F4: all messages in order, each with its sender's full JID and a name of its own."""
    alice, carol, bob = prosody.people("alice", "carol", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    c = await clients.online(prosody, carol, "it&apos;s &lt;mine&gt; &amp; ü/a@b", raw=True)
    assert await count(c) == 0
    await all_stored(a, bob, "first")
    await all_stored(c, bob, "second")
    await all_stored(a, bob, "third")
    b = await clients.login(prosody, bob, raw=True)
    assert await count(b) == 3
    listed = await headers(b)
    senders = [f"{alice}/desk", f"{carol}/it's <mine> & ü/a@b", f"{alice}/desk"]
    assert [sender for _, sender in listed] == senders
    assert len({name for name, _ in listed}) == 3
    assert [name for name, _ in listed] == sorted(name for name, _ in listed)
    assert await headers(b) == listed, "the names stay"
    to_himself = await b.iq(disco(INFO), to=bob)
    assert number(to_himself) == 3, "addressed to himself"


async def test_f2_the_count_includes_what_waits_in_the_spool(workshop, clients):
    """F2: what the server still keeps for the node when the request comes is counted."""
    server = workshop.server(options={"amphora_hold": 0.2})
    node = workshop.node(server)
    alice, bob = server.people("alice", "bob")
    a = await clients.online(server, alice, "desk", raw=True)
    b = await clients.login(server, bob, raw=True)
    assert await count(b) == 0
    node.stop()
    for n in range(2000):
        a.send_text(bob, str(n))
    await a.ping()

    def spooled():
        files = server.spool_files()
        return sum(f.read_bytes().count(b"\n") for f in files) >= 2000

    await until(spooled, "the messages in the spool")
    node.spawn()
    # the first request that the node answers finds all of them
    answer = await asked_until(
        b, disco(INFO), lambda a: a.type == "result" or a.condition != "service-unavailable"
    )
    assert number(answer) == 2000


async def test_f4_a_list_that_no_stanza_holds(workshop, clients):
    """F4: it is refused, with a word on what can be done; the link and the rest stay."""
    server = workshop.server(stanza_limit=20_000)
    workshop.node(server)
    a, bob = await store(server, clients, 300)
    b = await clients.login(server, bob, raw=True)
    refused = await b.iq(disco(ITEMS))
    assert refused.condition == "policy-violation"
    assert "fetch" in refused.error.findtext("{urn:ietf:params:xml:ns:xmpp-stanzas}text")
    assert await count(b) == 300
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(b) == texts(300)
    removed = [name for name, _ in shown(b)][:290]
    assert (await b.iq(items("remove", removed), type="set")).type == "result"
    assert len(await headers(b)) == 10


# ---------------------------------------------------------------------------- F5, F9: errors


async def test_f5_f9_somebody_elses_messages(prosody, node, clients):
    """F5, F9: a friend, a stranger and whoever asks about nobody get the same `forbidden`."""
    a, bob = await store(prosody, clients, 2)
    (eve,) = prosody.people("eve", friends=False)
    e = await clients.online(prosody, eve, raw=True)
    requests = [
        ("get", disco(INFO)),
        ("get", disco(ITEMS)),
        ("get", offline("<fetch/>")),
        ("set", offline("<fetch/>")),
        ("set", offline("<purge/>")),
        ("get", items("view", [UNKNOWN])),
        ("set", items("remove", [UNKNOWN])),
    ]
    for client in (a, e):
        for owner in (bob, f"nobody@{HOST}"):
            for type, payload in requests:
                answer = await client.iq(payload, type=type, to=owner)
                assert (answer.type, answer.condition) == ("error", "forbidden"), payload
        assert shown(client) == []
    b = await clients.login(prosody, bob, raw=True)
    assert await count(b) == 2


async def test_f9_a_forged_sender(prosody, node, clients):
    """F9: the server knows who asks, whatever `from` says; the answer goes to him alone."""
    a, bob = await store(prosody, clients, 1)
    id = new_id()
    a.write(f"<iq type='get' id='{id}' from='{bob}/phone'>{offline('<fetch/>')}</iq>")
    if prosody.kind != "ejabberd":  # which ends the stream for that
        answer = await answer_to(a, id)
        assert answer.type in ("error", "result")
    assert shown(a) == []
    b = await clients.login(prosody, bob, raw=True)
    assert await count(b) == 1


async def test_f5_unknown_nodes(prosody, node, clients):
    """F5: `item-not-found`, and nothing is shown or removed, the known ones neither."""
    a, bob = await store(prosody, clients, 3)
    b = await clients.login(prosody, bob, raw=True)
    known = await nodes(b)
    for unknown in (UNKNOWN, "nonsense", "2003-02-27T22:52:37.225Z", "", "9" * 5000):
        for type, action in (("get", "view"), ("set", "remove")):
            for asked in ([unknown], [*known, unknown], [unknown, *known]):
                answer = await b.iq(items(action, asked), type=type)
                assert answer.condition == "item-not-found", asked
    assert shown(b) == []
    assert await nodes(b) == known
    # somebody else's names are unknown too: hers may have one of them, not all three
    _, carol = await store(prosody, clients, 1)
    c = await clients.login(prosody, carol, raw=True)
    own = await nodes(c)
    assert (await c.iq(items("view", known))).condition == "item-not-found"
    assert (await c.iq(items("remove", known), type="set")).condition == "item-not-found"
    assert shown(c) == []
    assert await nodes(c) == own
    assert await nodes(b) == known


async def test_malformed_requests(prosody, node, clients):
    """Each gets an error, and nothing happens to the messages or to the link."""
    a, bob = await store(prosody, clients, 2)
    b = await clients.login(prosody, bob, raw=True)
    one, two = await nodes(b)
    view, remove = f"<item action='view' node='{one}'/>", f"<item action='remove' node='{two}'/>"
    bad = [
        ("get", ""),
        ("set", ""),
        ("get", "<other/>"),
        ("get", f"<item node='{one}'/>"),
        ("get", "<item action='view'/>"),
        ("get", f"<item action='burn' node='{one}'/>"),
        ("get", "<purge/>"),
        ("get", remove),
        ("set", view + remove),
        ("set", "<fetch/><purge/>"),
        ("set", "<purge/>" + view),
        ("set", "<purge/><purge/>"),
    ]
    for type, inside in bad:
        assert (await b.iq(offline(inside), type=type)).condition == "bad-request", inside
    large = await b.iq(items("view", [one] * 2000))
    assert large.condition == "policy-violation"
    many = await b.iq(offline(f"<item node='{one}' action='view'/>" * 1001))
    assert many.condition == "policy-violation"
    deep = await b.iq(offline("<a>" * 100 + "</a>" * 100))
    assert deep.condition == "policy-violation"
    unknown = await b.iq(f"<query xmlns='{ITEMS}' node='{RETRIEVAL}'/>", type="set")
    assert unknown.type == "error"
    assert shown(b) == []
    assert await nodes(b) == [one, two]
    assert "link down" not in node.log


# ---------------------------------------------------------------------------- F6, F7: view


async def test_f6_f7_view(prosody, node, clients):
    """F6: the messages asked for, each with its name and when it was sent, then the result.
    F7: they stay stored, also when the session ends."""
    a, bob = await store(prosody, clients, 4)
    a.send_xml(message(bob, "forged", payload=offline(f"<item node='{UNKNOWN}'/>")))
    await all_stored(a, bob, "last")
    b = await clients.login(prosody, bob, raw=True)
    names = await nodes(b)
    asked = [names[4], names[1], names[1]]
    answer = await b.iq(items("view", asked))
    assert answer.type == "result" and len(answer.element) == 0
    # each once, in the order of the list; before the result
    # ejabberd stores none that says so of itself
    stored = [*texts(4), *["forged"] * (prosody.kind != "ejabberd"), "last"]
    assert shown(b) == [(names[1], "1"), (names[4], stored[4])]
    assert b.inbox.all.index(answer) > max(b.inbox.all.index(m) for m in b.inbox.messages())
    for shown_one in b.inbox.messages():
        (delay,) = shown_one.delays
        assert delay.get("from") == HOST
        assert parse_utc(utc(-600)) < parse_utc(delay.get("stamp")) <= parse_utc(utc(1))
        assert shown_one.sender.endswith("/desk")
    assert await nodes(b) == names
    assert (await b.iq(items("view", names))).type == "result"
    assert shown(b)[2:] == list(zip(names, stored, strict=True))
    await b.leave()
    again = await clients.login(prosody, bob, raw=True)
    assert await nodes(again) == names


async def test_f7_what_was_viewed_is_handed_over_later(prosody, node, clients):
    """F7: a session that views and one that is handed the same messages do not mix them up,
    even if it is the same one."""
    a, bob = await store(prosody, clients, 5)
    first = await clients.login(prosody, bob, "first", raw=True)
    names = await nodes(first)
    await first.leave()
    b = await clients.login(prosody, bob, raw=True, sm=True)
    # to view is not to ask for no flood
    assert (await b.iq(items("view", names))).type == "result"
    await b.available()
    await b.inbox.body_count(10)
    assert shown_bodies(b) == texts(5)
    b.acknowledge(b.handled)
    await flood(b, texts(5), a)
    b.acknowledge(b.handled)
    await b.leave()
    again = await clients.login(prosody, bob, raw=True)
    assert await count(again) == 0, "F7, I1: what was handed over and acknowledged is gone"


async def test_what_was_viewed_and_not_acknowledged_stays(prosody, node, clients):
    """F7: the session dies with it; nothing is stored twice, nothing goes back to the sender."""
    a, bob = await store(prosody, clients, 5)
    b = await clients.login(prosody, bob, raw=True, sm=True)
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    await b.vanish()
    c = await clients.login(prosody, bob, "desk", raw=True)
    await c.available()
    await flood(c, texts(5), a)
    assert [m for m in a.inbox.messages() if m.type == "error"] == []


# ---------------------------------------------------------------------------- F7, F8: remove, purge


async def test_f7_removed_is_removed(prosody, node, clients):
    """F7: what is removed is gone when the result comes; the rest is handed over later."""
    a, bob = await store(prosody, clients, 6)
    b = await clients.login(prosody, bob, raw=True)
    names = await nodes(b)
    assert (await b.iq(items("remove", [names[0], names[3]]), type="set")).type == "result"
    assert await nodes(b) == [names[n] for n in (1, 2, 4, 5)]
    assert await count(b) == 4
    again = await b.iq(items("remove", [names[0]]), type="set")
    assert again.condition == "item-not-found"
    assert (await b.iq(items("view", [names[3]]))).condition == "item-not-found"
    await b.leave()
    c = await clients.online(prosody, bob, "desk", raw=True)
    await flood(c, ["1", "2", "4", "5"], a)


async def test_f7_removed_is_durable(workshop, clients):
    """F7, F8, I1: after kill -9 what was removed or purged is still gone."""
    server = workshop.server()
    node = workshop.node(server)
    a, bob = await store(server, clients, 5)
    b = await clients.login(server, bob, raw=True)
    names = await nodes(b)
    assert (await b.iq(items("remove", names[:2]), type="set")).type == "result"
    node.kill()
    node.start()
    assert await nodes(b) == names[2:]
    assert (await b.iq(offline("<purge/>"), type="set")).type == "result"
    node.kill()
    node.start()
    assert await count(b) == 0
    await b.available()
    await flood(b, [], a)


async def test_f8_purge(prosody, node, clients):
    """F8: all of 1,200 are gone; nothing is handed over later, and what is new is kept."""
    a, bob = await store(prosody, clients, 1200)
    b = await clients.login(prosody, bob, raw=True)
    assert (await b.iq(offline("<purge/>"), type="set")).type == "result"
    assert await count(b) == 0
    await all_stored(a, bob, "new")
    assert await count(b) == 1
    await b.leave()
    c = await clients.online(prosody, bob, "desk", raw=True)
    await flood(c, ["new"], a)


async def test_removal_makes_room_in_the_quota(workshop, clients):
    """F7, F8, O2: what is removed or purged counts no more."""
    server = workshop.server()
    workshop.node(server, per_user=3)
    a, bob = await store(server, clients, 3)
    b = await clients.login(server, bob, raw=True)
    names = await nodes(b)

    async def refused():
        marked = amp(rule("notify", "deliver", "stored"))
        reply = await a.inbox.reply(a.send_xml(message(bob, "more", payload=marked)))
        return reply.type == "error"

    assert await refused()
    assert (await b.iq(items("remove", names[:1]), type="set")).type == "result"
    assert not await refused()
    assert await refused()
    assert (await b.iq(offline("<purge/>"), type="set")).type == "result"
    assert await count(b) == 0
    for _ in range(3):
        assert not await refused()
    assert await refused()
    assert await count(b) == 3


# ---------------------------------------------------------------------------- F8: fetch


@pytest.mark.parametrize("sm", [True, False], ids=["sm", "plain"])
async def test_f8_fetch_2000(prosody, node, clients, sm):
    """F8, F6, I3: all, in order, each with its name, then the result; they stay stored."""
    a, bob = await store(prosody, clients, 2000)
    b = await clients.login(prosody, bob, raw=True, sm=sm, acks=True)
    id = new_id("fetch")
    b.write(f"<iq type='get' id='{id}'>{offline('<fetch/>')}</iq>")
    with_id = lambda box: [s for s in box.all if s.id == id]  # noqa: E731
    (answer,) = await b.inbox.until(with_id, "the result", seconds=90)
    assert answer.type == "result"
    assert b.inbox.all[-1] is answer, "something came after the result"
    assert shown_bodies(b) == texts(2000)
    assert [name for name, _ in shown(b)] == await nodes(b)
    assert await count(b) == 2000


async def test_slixmpp(prosody, node, clients):
    """F2, F4, F6, F7, F8 with an independent client's plugin."""
    a, bob = await store(prosody, clients, 5)
    b = await clients.login(prosody, bob)
    b.register_plugin("xep_0004")
    b.register_plugin("xep_0013")
    plugin = b["xep_0013"]
    ignore = lambda _: None  # noqa: E731

    async def how_many():
        form = (await plugin.get_count())["disco_info"].xml.find(f"{{{FORM}}}x")
        return form.findall(f"{{{FORM}}}field")[1].findtext(f"{{{FORM}}}value")

    assert await how_many() == "5"
    listed = (await plugin.get_headers())["disco_items"]["items"]
    names = [name for _, name, _ in sorted(listed, key=lambda item: item[1])]
    assert len(names) == 5
    viewed = await plugin.view([names[1], names[2]], callback=ignore)
    assert [m["body"] for m in viewed["offline"]["results"]] == ["1", "2"]
    assert (await plugin.remove(names[:2]))["type"] == "result"
    assert await how_many() == "3"
    fetched = await plugin.fetch(callback=ignore)
    assert [m["body"] for m in fetched["offline"]["results"]] == ["2", "3", "4"]
    assert [m["offline"]["item"]["node"] for m in fetched["offline"]["results"]] == names[2:]
    assert (await plugin.purge())["type"] == "result"
    assert await how_many() == "0"
    await b.available()
    await b.inbox.reply(a.send_text(bob, "live"))


async def test_f8_what_was_asked_first_is_shown_before_it_is_purged(prosody, node, clients):
    """I3, F8: a session's requests are carried out in order, without waiting for answers."""
    a, bob = await store(prosody, clients, 300)
    b = await clients.login(prosody, bob, raw=True, sm=True, acks=True)
    ids = [new_id("p") for _ in range(4)]
    asked = [("get", "<fetch/>"), ("set", "<purge/>"), ("get", "<fetch/>"), ("set", "<purge/>")]
    b.write(
        "".join(
            f"<iq type='{type}' id='{id}'>{offline(inside)}</iq>"
            for id, (type, inside) in zip(ids, asked, strict=True)
        )
    )
    answers = lambda box: [s for s in box.all if s.id in ids]  # noqa: E731
    await b.inbox.until(lambda box: len(answers(box)) == 4, "four answers")
    assert [s.id for s in answers(b.inbox)] == ids
    assert {s.type for s in answers(b.inbox)} == {"result"}
    assert shown_bodies(b) == texts(300)
    assert b.inbox.all.index(answers(b.inbox)[0]) >= 300


async def test_f8_a_client_that_stops_reading_holds_up_nobody_else(prosody, node, clients):
    """F8: its fetch goes on when it acknowledges; other sessions get their answers meanwhile."""
    a, bob = await store(prosody, clients, 250)
    slow = await clients.login(prosody, bob, "slow", raw=True, sm=True)
    fetch = await fetching(slow, 100)
    quick = await clients.login(prosody, bob, "quick", raw=True)
    assert await count(quick) == 250
    assert (await quick.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(quick) == texts(250)
    await slow.ping()
    assert not [s for s in slow.inbox.all if s.id == fetch]
    assert len(shown(slow)) <= 100, "more than its window"
    slow.acks = True
    slow.acknowledge(slow.handled)
    assert (await answer_to(slow, fetch)).type == "result"
    assert shown_bodies(slow) == texts(250)


async def test_too_many_requests(prosody, node, clients):
    """Each of 40 requests at once is answered: some with the count, the rest with an error."""
    a, bob = await store(prosody, clients, 3)
    b = await clients.login(prosody, bob, raw=True)
    ids = [new_id("many") for _ in range(40)]
    b.write("".join(f"<iq type='get' id='{id}'>{disco(INFO)}</iq>" for id in ids))
    answers = lambda: [s for s in b.inbox.all if s.id in ids]  # noqa: E731
    await b.inbox.until(lambda _: len(answers()) == 40, "40 answers")
    refused = [s for s in answers() if s.type == "error"]
    assert {(s.error.get("type"), s.condition) for s in refused} == {("wait", "resource-constraint")}
    assert 8 <= 40 - len(refused) < 40
    assert {number(s) for s in answers() if s.type == "result"} == {3}
    assert await count(b) == 3, "there is room again"


async def test_blocked_since(prosody, node, clients):
    """Messages of somebody who is blocked by now are not shown; they can be removed."""
    a, bob = await store(prosody, clients, 3)
    b = await clients.login(prosody, bob, raw=True)
    names = await nodes(b)
    who = a.jid
    blocked = await b.iq(
        f"<block xmlns='urn:xmpp:blocking'><item jid='{who}'/></block>", type="set"
    )
    assert blocked.type == "result"
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown(b) == []
    assert (await b.iq(items("remove", names), type="set")).type == "result"
    assert await count(b) == 0


# ---------------------------------------------------------------------------- F3: no flood


@pytest.mark.parametrize(
    "request_", [disco(INFO), disco(ITEMS), offline("<fetch/>")], ids=["info", "items", "fetch"]
)
async def test_f3_no_flood(prosody, node, clients, request_):
    """F3: after a look at the node, or a fetch, presence brings no flood; live ones come, also
    after unavailable and available again. The next session gets what is stored."""
    a, bob = await store(prosody, clients, 3)
    b = await clients.login(prosody, bob, raw=True, sm=True, acks=True)
    assert (await b.iq(request_)).type == "result"
    fetched = len(shown(b))
    await b.available()
    await flood(b, [], a)
    b.write("<presence type='unavailable'/>")
    await b.ping()
    await all_stored(a, bob, "meanwhile")
    await b.available(5)
    await b.inbox.reply(a.send_text(bob, "live"))
    assert len(b.inbox.bodies()) == fetched + 2, "a flood"
    assert await count(b) == 4
    await b.leave()
    c = await clients.online(prosody, bob, "desk", raw=True)
    await flood(c, [*texts(3), "meanwhile"], a)


async def test_f3_other_sessions_are_not_flooded_either(prosody, node, clients):
    """F3: as long as a session fetches for itself, another gets live messages alone, whichever
    of them comes first; what is stored comes when the last that fetches has ended."""
    a, bob = await store(prosody, clients, 3)
    one = await clients.login(prosody, bob, "one", raw=True)
    two = await clients.login(prosody, bob, "two", raw=True)
    assert await count(one) == await count(two) == 3
    tablet = await clients.online(prosody, bob, "tablet", raw=True)
    await flood(tablet, [], a)
    await two.available()
    await tablet.inbox.reply(a.send_text(bob, "to both"))
    await two.inbox.body_count(1)
    assert two.inbox.bodies() == ["to both"]
    await one.leave()
    await tablet.inbox.reply(a.send_text(bob, "one has left"))
    assert len(tablet.inbox.bodies()) == 3
    await two.leave()
    await tablet.inbox.body_count(6)
    await tablet.inbox.reply(a.send_text(bob, "end"))
    assert tablet.inbox.bodies()[1:] == ["to both", "one has left", *texts(3), "end"]
    assert shown(tablet) == []


async def test_f3_a_sleeping_session_lives(prosody, node, clients):
    """F3: a session that sleeps (XEP-0198) still counts; when the server gives it up, what it
    had not acknowledged is stored behind the rest, and the other gets all."""
    a, bob = await store(prosody, clients, 3)
    b = await clients.login(prosody, bob, raw=True, sm=True)
    assert await count(b) == 3
    await b.available()
    await b.inbox.reply(a.send_text(bob, "not acknowledged"))
    tablet = await clients.login(prosody, bob, "tablet", raw=True)
    await b.vanish()
    await tablet.available()
    await tablet.inbox.body_count(4)
    await flood(tablet, [*texts(3), "not acknowledged"], a)


async def test_f3_a_session_that_resumes_fetches_still(workshop, clients):
    """F3: resumption (XEP-0198) is no reason for a flood."""
    server = workshop.server(hibernation=300)
    workshop.node(server)
    a, bob = await store(server, clients, 3)
    b = await clients.login(server, bob, raw=True, sm=True)
    assert await count(b) == 3
    await b.available()
    await b.vanish()
    a.send_text(bob, "while it slept")
    await a.ping()
    back = await clients.raw(server, bob, acks=True).resume(b)
    await flood(back, ["while it slept"], a)
    assert await count(back) == 3


async def test_f3_a_hand_over_that_runs_goes_on(prosody, node, clients):
    """F3: who asks after his presence is handed the rest; from then on it fetches for itself.
    What is under way is still stored, and shown (F2)."""
    a, bob = await store(prosody, clients, 150)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(100)
    assert await count(b) == 150
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.body_count(150)
    await flood(b, texts(150), a)
    b.write("<presence type='unavailable'/>")
    await b.ping()
    await all_stored(a, bob, "later")
    await b.available()
    await b.inbox.reply(a.send_text(bob, "live"))
    assert b.inbox.bodies()[-1] == "live" and "later" not in b.inbox.bodies()
    assert await count(b) == 1


async def test_f3_the_mark_outlives_a_reload(workshop, clients, admin):
    """F3: the module is loaded again; the session still fetches for itself, and the others
    wait for its end."""
    server = workshop.server()
    workshop.node(server)
    a, bob = await store(server, clients, 3)
    b = await clients.login(server, bob, raw=True)
    assert await count(b) == 3
    await admin(server, "restart")
    await b.available()
    await flood(b, [], a)
    tablet = await clients.online(server, bob, "tablet", raw=True)
    await flood(tablet, [], a)
    assert await count(b) == 3
    await b.leave()
    await tablet.inbox.body_count(4)
    assert tablet.inbox.bodies()[1:] == texts(3)


async def test_f3_without_a_node(workshop, clients):
    """F3: the wish counts although nobody could answer."""
    server = workshop.server()
    node = workshop.node(server)
    a, bob = await store(server, clients, 3)
    node.stop()
    b = await clients.login(server, bob, raw=True)
    assert (await b.iq(disco(INFO))).condition == "service-unavailable"
    await b.available()
    node.start()
    await flood(b, [], a)
    assert await count(b) == 3


async def test_f3_live_messages_of_a_client_that_acknowledges_nothing(workshop, clients):
    """F3, I1: messages wait for room in the server's queue, in order, and none is lost."""
    options = {"amphora_gate_messages": 50}
    server = workshop.server(hibernation=1, unacknowledged=500, options=options)
    workshop.node(server)
    a, bob = await store(server, clients, 3)
    b = await clients.login(server, bob, raw=True, sm=True)
    assert await count(b) == 3
    await b.available()
    for n in range(700):
        a.send_text(bob, f"live {n}")
    await a.ping()
    await b.inbox.body_count(440)
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.reply(a.send_text(bob, "end"))
    live = b.inbox.bodies()
    assert live == sorted(set(live), key=live.index) and "0" not in live
    await b.leave()
    c = await clients.online(server, bob, "desk", raw=True)
    kept = [text for n in range(700) if (text := f"live {n}") not in live]
    assert kept, "the gate was never full"
    await flood(c, texts(3) + kept, a)


# ---------------------------------------------------------------------------- amid other things


async def test_f6_the_result_waits_behind_the_messages(narrow, clients):
    """F6: also where the client has to acknowledge before there is room for all of them."""
    a, bob = await store(narrow, clients, 40)
    b = await clients.login(narrow, bob, raw=True, sm=True)
    id = await fetching(b, 10)
    await b.ping()
    assert shown_bodies(b) == texts(10) and not [s for s in b.inbox.all if s.id == id]
    b.acks = True
    b.acknowledge(b.handled)
    answer = await answer_to(b, id)
    assert answer.type == "result"
    assert shown_bodies(b) == texts(40)
    assert b.inbox.all[-1] is answer


async def test_presence_falls_amid_a_fetch(narrow, clients):
    """F8: a fetch needs no presence, and goes on whatever the priority becomes."""
    a, bob = await store(narrow, clients, 150)
    b = await clients.login(narrow, bob, raw=True, sm=True)
    assert await count(b) == 150
    await b.available(1)
    id = await fetching(b, 9)
    await b.available(-1)
    b.acks = True
    b.acknowledge(b.handled)
    assert (await answer_to(b, id)).type == "result"
    assert shown_bodies(b) == texts(150)


async def test_f8_resumption_amid_a_fetch(narrow, clients):
    """F8: a client that resumes (XEP-0198) gets the rest and the result."""
    a, bob = await store(narrow, clients, 120)
    b = await clients.login(narrow, bob, raw=True, sm=True)
    id = await fetching(b, 10)
    b.acknowledge(b.handled)
    await b.ping()
    await b.vanish()
    assert len(shown(b)) < 120
    back = await clients.raw(narrow, bob, acks=True).resume(b)
    assert (await answer_to(back, id)).type == "result"
    assert shown_bodies(b) + shown_bodies(back) == texts(120)


async def test_a_reload_amid_a_fetch(workshop, clients, admin):
    """F8: it goes on as if nothing had happened."""
    server = workshop.server(options={"amphora_session_window": 60})
    node = workshop.node(server)
    a, bob = await store(server, clients, 250)
    b = await clients.login(server, bob, raw=True, sm=True)
    id = await fetching(b, 60)
    await admin(server, "reload")
    b.acks = True
    b.acknowledge(b.handled)
    assert (await answer_to(b, id)).type == "result"
    assert shown_bodies(b) == texts(250)
    assert await count(b) == 250
    assert node.process.returncode() is None


async def test_an_unload_amid_a_fetch(workshop, clients, admin):
    """F8: never silence; the client is told to ask again."""
    server = workshop.server(options={"amphora_session_window": 60})
    workshop.node(server)
    a, bob = await store(server, clients, 70)
    b = await clients.login(server, bob, raw=True, sm=True)
    id = await fetching(b, 60)
    await admin(server, "unload")
    answer = await answer_to(b, id)
    assert (answer.error.get("type"), answer.condition) == ("wait", "service-unavailable")


async def test_the_node_is_killed_amid_a_fetch(workshop, clients):
    """F8, I1: the client gets what was on its way, and an error; it asks again, and has all."""
    server = workshop.server()
    node = workshop.node(server)
    a, bob = await store(server, clients, 400)
    b = await clients.login(server, bob, raw=True, sm=True)
    id = await fetching(b, 100)
    node.kill()
    b.acks = True
    b.acknowledge(b.handled)
    answer = await answer_to(b, id)
    assert (answer.error.get("type"), answer.condition) == ("wait", "service-unavailable")
    part = shown_bodies(b)
    assert part == texts(len(part)) and len(part) < 400
    node.start()
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(b)[len(part):] == texts(400)
    await b.available()
    await flood(b, [], a)
    await b.leave()
    c = await clients.online(server, bob, "desk", raw=True)
    await flood(c, texts(400), a)


async def test_a_node_that_does_not_answer(workshop, clients):
    """An error within the limit, and what the node says too late harms nothing."""
    server = workshop.server(options={"amphora_retrieve_timeout": 1})
    node = workshop.node(server)
    a, bob = await store(server, clients, 120)
    b = await clients.login(server, bob, raw=True, sm=True, acks=True)
    assert await count(b) == 120
    node.process.signal(signal.SIGSTOP)
    try:
        for request in (disco(INFO), offline("<fetch/>")):
            refused = await b.iq(request)
            assert (refused.error.get("type"), refused.condition) == ("wait", "service-unavailable")
    finally:
        node.process.signal(signal.SIGCONT)
    assert await count(b) == 120
    assert shown(b) == []
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(b) == texts(120)
    assert "link down" not in node.log


async def test_a_session_that_ends_amid_a_fetch(prosody, node, clients):
    """F7: nothing of it stays behind; the next one sees all."""
    a, bob = await store(prosody, clients, 250)
    for _ in range(12):
        b = await clients.login(prosody, bob, raw=True)
        b.write(f"<iq type='get' id='f'>{offline('<fetch/>')}</iq>")
        await b.inbox.until(lambda _: shown(b), "the first")  # noqa: B023
        await b.vanish()
    c = await clients.login(prosody, bob, raw=True)
    assert (await c.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(c) == texts(250)
    assert (await c.iq(offline("<purge/>"), type="set")).type == "result"
    assert await count(c) == 0


async def test_a_purge_while_another_session_is_handed_them(prosody, node, clients):
    """F8, F2: what is under way to another session is stored until it is taken, and purged with
    the rest; that session goes on."""
    a, bob = await store(prosody, clients, 250)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    await b.inbox.body_count(100)
    other = await clients.login(prosody, bob, "other", raw=True)
    assert await count(other) == 250
    assert (await other.iq(offline("<purge/>"), type="set")).type == "result"
    assert await count(other) == 0
    b.acks = True
    b.acknowledge(b.handled)
    await b.inbox.reply(a.send_text(bob, "live"))
    got = b.inbox.bodies()
    assert got == [*texts(len(got) - 1), "live"]
    await b.leave()
    await other.leave()
    c = await clients.online(prosody, bob, "desk", raw=True)
    await flood(c, [], a)


async def test_expired_ones_are_not_shown(prosody, node, clients):
    """F2, F4, R67: from its time on a message is not counted, listed or fetched."""
    a, bob = await store(prosody, clients, 1)
    drop = amp(rule("drop", "expire-at", utc(3)))
    a.send_xml(message(bob, "short-lived", payload=drop))
    await all_stored(a, bob, "after it")
    b = await clients.login(prosody, bob, raw=True)
    listed = await nodes(b)

    await asked_until(b, disco(INFO), lambda answer: number(answer) == 2)
    left = await nodes(b)
    assert len(left) == 2 and set(left) <= set(listed)
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(b) == ["0", "after it"]


async def test_rules_hints_and_the_archive_change_nothing(prosody, node, clients):
    """F4: all that is stored is listed, archived or not, with rules or without."""
    a, bob = await store(prosody, clients, 1)
    a.send_xml(message(bob, "hint", payload=f"<no-permanent-store xmlns='{HINTS}'/>"))
    a.send_xml(message(bob, "rule", payload=amp(rule("notify", "expire-at", utc(600)))))
    await all_stored(a, bob, "end")
    b = await clients.login(prosody, bob, raw=True)
    assert len(await nodes(b)) == 4
    assert (await b.iq(offline("<fetch/>"))).type == "result"
    assert shown_bodies(b) == ["0", "hint", "rule", "end"]
    assert b.inbox.messages()[2].element.find(f"{{{CLIENT}}}body").text == "rule"
