"""Both ends of a retrieval (section 6 of the intercept protocol), the other one played.

F5, F9; invariants I1, I6: what the other side does wrong costs a request, and no message.
"""

import pytest

from harness.component import INTERCEPT, Component
from harness.fake_server import FakeServer, intercept
from harness.prosody import COMPONENT, HOST
from harness.stanzas import CLIENT, FORWARD, INFO, RETRIEVAL, STANZAS, Stanza, new_id
from harness.waiting import until

COUNT = f"<query xmlns='{INFO}' node='{RETRIEVAL}'/>"
FETCH = f"<offline xmlns='{RETRIEVAL}'><fetch/></offline>"
PURGE = f"<offline xmlns='{RETRIEVAL}'><purge/></offline>"
BOB = f"bob@{HOST}"


# ---------------------------------------------------------------------------- the node


@pytest.fixture
async def link(workshop):
    """A node linked to a server in this test's hand."""
    async with FakeServer() as fake:
        workshop.node(fake, start=False).spawn()
        yield await fake.greeted()


def retrieve(payload, *, name, type="get", jid=f"{BOB}/phone", **attributes):
    """A request as an interceptor sends it; its id is its name."""
    given = "".join(f" {k}='{v}'" for k, v in attributes.items())
    return (
        f"<iq type='get' id='{name}' from='{HOST}' to='{COMPONENT}'>"
        f"<retrieve xmlns='{INTERCEPT}' session='{name}' jid='{jid}'>"
        f"<forwarded xmlns='{FORWARD}'><iq xmlns='{CLIENT}' type='{type}' id='q'{given}>{payload}"
        f"</iq></forwarded></retrieve></iq>"
    )


def taken(name, batch, *, ids="", ended=False):
    """A batch is taken, or whoever it was for is gone."""
    more = " ended='true'" if ended else ""
    return (
        f"<message from='{HOST}' to='{COMPONENT}'><taken xmlns='{INTERCEPT}' for='{BOB}' "
        f"session='{name}' batch='{batch}' ids='{ids}'{more}/></message>"
    )


async def said(link):
    """The next thing the node says: a hand-over, an answer, whatever is neither greeting nor ping."""
    stanza = await link.next()
    assert stanza is not None, "the node closed the stream"
    for name in ("hand-over", "deleted", "verdicts"):
        found = stanza.find(f"{{{INTERCEPT}}}{name}")
        if found is not None:
            return found
    return stanza


def answer(stanza):
    """(the request's name, the reply to the client)."""
    assert stanza.get("type") == "result", stanza.attrib
    found = stanza.find(f"{{{INTERCEPT}}}retrieve")
    reply = found.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}iq")
    assert found.get("session") == stanza.get("id")
    return found.get("session"), Stanza(reply)


async def store(link, number):
    """So many messages for Bob."""
    for _ in range(number):
        key = new_id("key")
        link.write(intercept(BOB, key, key=key))
        assert (await link.verdict(key)).get("do") == "stored"


@pytest.mark.once("the server is the test itself")
async def test_f9_a_host_asks_for_its_own_users_alone(link):
    """F9: a request for somebody at another host, or for nobody, is an error of the interceptor's;
    one that says another address than its own is forbidden."""
    jids = (f"bob@other.{HOST}/phone", BOB, HOST, f"{HOST}/phone", f"@{HOST}/phone", "")
    for jid in jids:
        link.write(retrieve(COUNT, name=new_id("r"), jid=jid))
        refused = await said(link)
        assert refused.get("type") == "error", jid
        assert refused.find(f".//{{{STANZAS}}}bad-request") is not None
    link.write(f"<iq type='get' id='x' from='{HOST}' to='{COMPONENT}'><retrieve xmlns='{INTERCEPT}'/></iq>")
    assert (await said(link)).get("type") == "error"
    for attributes in ({"to": f"alice@{HOST}"}, {"from": f"alice@{HOST}/phone"}):
        link.write(retrieve(COUNT, name="r1", **attributes))
        assert answer(await said(link))[1].condition == "forbidden"
    link.write(retrieve("<query xmlns='jabber:iq:version'/>", name="r2"))
    assert answer(await said(link))[1].condition == "feature-not-implemented"


@pytest.mark.once("the server is the test itself")
async def test_i6_two_batches_and_eight_requests(link):
    """I6: what is not confirmed is not followed by more than one further batch; a ninth request is
    refused; requests that are given up make room."""
    await store(link, 160)
    for n in range(8):
        link.write(retrieve(FETCH, name=f"f{n}"))
    batches = {}
    while sum(map(len, batches.values())) < 16:
        hand_over = await said(link)
        assert hand_over.get("view") == "true"
        batches.setdefault(hand_over.get("session"), []).append(hand_over.get("batch"))
    assert {len(of_one) for of_one in batches.values()} == {2}
    link.write(retrieve(COUNT, name="c1"))
    name, refused = answer(await said(link))
    assert (name, refused.condition) == ("c1", "resource-constraint")
    link.write(taken("f0", batches["f0"][1], ended=True))
    assert (await said(link)).get("session") == "f0"
    link.write(retrieve(COUNT, name="c2"))
    name, counted = answer(await said(link))
    assert (name, counted.type) == ("c2", "result")
    # the one that is confirmed goes on, to its end
    link.write(taken("f1", batches["f1"][0]))
    seen = [await said(link), await said(link)]
    assert [(s.get("session"), s.get("batch")) for s in seen if s.tag.endswith("deleted")] == [
        ("f1", batches["f1"][0])
    ]
    link.write(taken("f1", batches["f1"][1]))
    while (last := await said(link)).tag != "{jabber:component:accept}iq":
        assert last.get("session") == "f1"
    name, done = answer(last)
    assert (name, done.type) == ("f1", "result")


@pytest.mark.once("the server is the test itself")
async def test_a_link_that_breaks_amid_retrievals(workshop):
    """I1, I6: the node forgets them with the link, and keeps the messages."""
    async with FakeServer() as fake:
        workshop.node(fake, start=False).spawn()
        link = await fake.greeted()
        await store(link, 120)
        for n in range(8):
            link.write(retrieve(FETCH, name=f"f{n}"))
        assert (await said(link)).get("view") == "true"
        link.cut()
        link = await fake.greeted()
        link.write(retrieve(COUNT, name="c"))
        name, counted = answer(await said(link))
        assert name == "c" and "120" in counted.find(".").itertext()
        link.write(retrieve(PURGE, name="p", type="set"))
        assert answer(await said(link))[1].type == "result"


# ---------------------------------------------------------------------------- the interceptor


def asked(component):
    """The requests that the interceptor has sent, each (id, name, the client's stanza)."""
    found = []
    for stanza in component.all:
        inner = stanza.find(f"{{{INTERCEPT}}}retrieve")
        if inner is not None:
            iq = inner.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}iq")
            found.append((stanza.get("id"), inner.get("session"), inner.get("jid"), iq))
    return found


def ends(component):
    """What the interceptor said about shown batches, each (name, batch, ids, ended)."""
    return [
        (t.get("session"), t.get("batch"), t.get("ids"), t.get("ended"))
        for t in component.said("taken")
    ]


def show(name, batch, jid, *bodies):
    """A batch of shown messages."""
    inside = "".join(
        f"<item id='i{n}'><forwarded xmlns='{FORWARD}'><delay xmlns='urn:xmpp:delay' "
        f"stamp='2026-11-22T05:00:00Z'/><message xmlns='{CLIENT}' from='alice@{HOST}/desk' "
        f"to='{jid}' type='chat'><body>{body}</body></message></forwarded></item>"
        for n, body in enumerate(bodies)
    )
    return (
        f"<message from='{COMPONENT}' to='{HOST}'><hand-over xmlns='{INTERCEPT}' session='{name}' "
        f"batch='{batch}' view='true'>{inside}</hand-over></message>"
    )


def result(id, name, inside):
    """The node's answer."""
    return (
        f"<iq type='result' id='{id}' from='{COMPONENT}' to='{HOST}'><retrieve xmlns='{INTERCEPT}' "
        f"session='{name}'>{inside}</retrieve></iq>"
    )


def done(id, name, type="result", inside=""):
    """An answer with a reply in it."""
    return result(
        id,
        name,
        f"<forwarded xmlns='{FORWARD}'><iq xmlns='{CLIENT}' type='{type}'>{inside}</iq></forwarded>",
    )


@pytest.fixture
def server(workshop):
    """A server whose requests have three seconds."""
    return workshop.server(options={"amphora_retrieve_timeout": 3})


def begin(client, payload):
    """Ask and do not wait; the id."""
    id = new_id("q")
    client.write(f"<iq type='get' id='{id}'>{payload}</iq>")
    return id


async def answered(client, id):
    """The answer to that."""
    found = await client.inbox.until(lambda box: [s for s in box.all if s.id == id], "an answer")
    return found[0]


async def test_a_message_that_nobody_decides(server, clients):
    """F2: a request waits for what is undecided, but not for ever; the node is asked then."""
    async with Component(server) as node:
        await node.greet()
        alice, bob = server.people("alice", "bob")
        a = await clients.online(server, alice, "desk", raw=True)
        a.send_text(bob, "undecided")
        await until(lambda: node.said("intercept"), "the intercept")
        b = await clients.login(server, bob, raw=True)
        id = begin(b, COUNT)
        await until(lambda: asked(node), "the request")
        ((request, name, jid, iq),) = asked(node)
        assert jid == f"{bob}/phone" == iq.get("from")
        assert iq.get("id") == id and iq.find(f"{{{INFO}}}query") is not None
        assert node.said("intercept"), "it came behind the message"
        node.write(done(request, name))
        assert (await answered(b, id)).type == "result"


async def test_answers_that_make_no_sense(server, clients):
    """Never silence: an answer without a reply, and an error of the node's, are errors."""
    async with Component(server) as node:
        await node.greet()
        b = await clients.login(server, *server.people("bob"), raw=True)
        error = f"<error type='cancel'><feature-not-implemented xmlns='{STANZAS}'/></error>"
        for number, (write, condition) in enumerate(
            [
                (lambda id, name: result(id, name, ""), "internal-server-error"),
                (lambda id, name: done(id, name, "error"), "internal-server-error"),
                (
                    lambda id, _: f"<iq type='error' id='{id}' from='{COMPONENT}' to='{HOST}'>{error}</iq>",
                    "feature-not-implemented",
                ),
            ]
        ):
            id = begin(b, COUNT)
            await until(lambda: len(asked(node)) == number + 1, "the request")  # noqa: B023
            request, name, _, _ = asked(node)[number]
            node.write(write(request, name))
            reply = await answered(b, id)
            assert (reply.type, reply.condition) == ("error", condition)


async def test_f9_messages_under_a_name_that_nobody_asked_for(server, clients):
    """F9, F7: they go to nobody, and the node hears that there is no such request; what is shown
    in time is confirmed without ids, once acknowledged."""
    async with Component(server) as node:
        await node.greet()
        (bob,) = server.people("bob")
        b = await clients.login(server, bob, raw=True, sm=True)
        node.write(show("stranger", 1, bob, "for nobody"))
        await until(lambda: ("stranger", "1", "", "true") in ends(node), "the end of it")
        id = begin(b, FETCH)
        await until(lambda: asked(node), "the request")
        ((request, name, _, _),) = asked(node)
        node.write(show(name, 7, bob, "one", "two") + done(request, name))
        assert (await answered(b, id)).type == "result"
        assert b.inbox.bodies() == ["one", "two"]
        assert (name, "7", "", None) not in ends(node), "nothing is acknowledged yet"
        b.acknowledge(b.handled)
        await until(lambda: (name, "7", "", None) in ends(node), "the confirmation")
        # too late: the request is answered
        node.write(show(name, 8, bob, "three"))
        await until(lambda: (name, "8", "", "true") in ends(node), "the end of it")
        await b.ping()
        assert b.inbox.bodies() == ["one", "two"]


async def test_f3_a_node_that_goes_silent_amid_a_fetch(server, clients):
    """The client has what came, then an error; the node is told until it has understood."""
    async with Component(server) as node:
        await node.greet()
        (bob,) = server.people("bob")
        b = await clients.login(server, bob, raw=True)
        id = begin(b, FETCH)
        await until(lambda: asked(node), "the request")
        ((request, name, _, _),) = asked(node)
        node.write(show(name, 1, bob, "one"))
        refused = await answered(b, id)
        assert (refused.error.get("type"), refused.condition) == ("wait", "service-unavailable")
        assert b.inbox.bodies() == ["one"]
        await until(lambda: (name, "1", "", "true") in ends(node), "the end of it")
        node.write(done(request, name) + show(name, 2, bob, "late"))
        await until(lambda: (name, "2", "", "true") in ends(node), "the end of it, again")
        deleted = f"<deleted xmlns='{INTERCEPT}' session='{name}' batch='2'/>"
        node.write(f"<message from='{COMPONENT}' to='{HOST}'>{deleted}</message>")
        again = begin(b, COUNT)
        await until(lambda: len(asked(node)) == 2, "the next request")
        node.write(done(*asked(node)[1][:2]))
        assert (await answered(b, again)).type == "result"
        assert len([s for s in b.inbox.all if s.id == id]) == 1
