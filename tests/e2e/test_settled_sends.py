"""Messages of the host's own whose outcome a node wants to know (section 5 of the protocol), and
the names of the accounts (section 9), against a node that the test plays. Invariants I1, I2."""

import pytest

from harness.prosody import COMPONENT, HOST
from harness.stanzas import new_id
from harness.waiting import until
from test_interceptor import INTERCEPT, Component

FORWARD = "urn:xmpp:forward:0"


def send(node, key, to, *, body="hello", sender=HOST, type="", again=False):
    """Ask for a message; the id of the request."""
    id = new_id("send")
    node.write(
        f"<iq type='set' from='{COMPONENT}' to='{HOST}' id='{id}'><send xmlns='{INTERCEPT}' "
        f"key='{key}' for='{to}' settle='true'{' again=' + repr('true') if again else ''}>"
        f"<forwarded xmlns='{FORWARD}'><message xmlns='jabber:client' from='{sender}' to='{to}' "
        f"id='{key}'{type}><body>{body}</body><amp xmlns='http://jabber.org/protocol/amp'><rule "
        "action='drop' condition='expire-at' value='2999-01-01T00:00:00Z'/></amp></message>"
        "</forwarded></send></iq>"
    )
    return id


def answer(node, id):
    """What a request was answered with: an outcome, or (type, condition) of an error; or None."""
    for element in node.all:
        if element.get("id") != id:
            continue
        if element.get("type") == "result":
            return element.find(f"{{{INTERCEPT}}}send").get("outcome")
        error = next(e for e in element if e.tag.endswith("}error"))
        return error.get("type"), error[0].tag.rpartition("}")[2]
    return None


async def answered(node, id):
    """Wait for the answer."""
    return await until(lambda: answer(node, id), f"the answer to {id}")


async def intercept(node, key, stage, count=1):
    """Wait for so many intercepts of a key at a stage; the last."""

    def found():
        of_key = [e for e in node.said("intercept") if (e.get("key"), e.get("stage")) == (key, stage)]
        return len(of_key) >= count and of_key[-1]

    return await until(found, f"{key} at {stage}")


def verdict(node, key, stage, what):
    """Answer an intercept."""
    node.write(
        f"<message from='{COMPONENT}' to='{HOST}'><verdicts xmlns='{INTERCEPT}'>"
        f"<verdict key='{key}' stage='{stage}' do='{what}'/></verdicts></message>"
    )


async def announced(node, jid):
    """Wait until a session of that user is announced; the announcement."""
    of_user = lambda: [e for e in node.said("available") if e.get("jid").startswith(f"{jid}/")]
    return (await until(of_user, f"{jid} to be announced"))[-1]


def open_gate(node, available):
    """Nothing is stored for that session."""
    node.write(
        f"<message from='{COMPONENT}' to='{HOST}'><handed-over xmlns='{INTERCEPT}' "
        f"session='{available.get('session')}' n='{available.get('n')}' count='0'/></message>"
    )


async def sync(node):
    """A round trip: what was written before has been read."""
    assert (await answered(node, send(node, "nonsense", f"x@{HOST}")))[1] == "bad-request"


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server; what nobody takes goes to the spool at once."""
    return workshop.server(archive="never", options={"amphora_hold": 0})


async def test_delivered_once_per_key(prosody, clients):
    """I2: the newest request of a key gets the result; one that comes later gets it at once."""
    (bob,) = prosody.people("bob")
    b = await clients.online(prosody, bob, raw=True)
    async with Component(prosody) as node:
        await node.greet()
        open_gate(node, await announced(node, bob))
        first = send(node, "send-a-1", bob)
        at_rules = await intercept(node, "send-a-1", "rules")
        assert at_rules.get("may-see-presence") == "true", "the host needs no right"
        second = send(node, "send-a-1", bob, again=True)
        await sync(node)
        assert len([e for e in node.said("intercept") if e.get("key") == "send-a-1"]) == 1
        verdict(node, "send-a-1", "rules", "deliver")
        assert await answered(node, second) == "delivered"
        assert answer(node, first) is None
        third = send(node, "send-a-1", bob, again=True)
        assert await answered(node, third) == "delivered"
        await b.ping()
        assert b.inbox.bodies() == ["hello"]


async def test_what_waits_in_a_gate_is_not_delivered_yet(prosody, clients):
    """I1: the result comes when it is written to the session, or when it came back and is stored."""
    bob, carol = prosody.people("bob", "carol")
    b = await clients.online(prosody, bob, raw=True)
    c = await clients.online(prosody, carol, raw=True)
    async with Component(prosody) as node:
        await node.greet()
        sessions = {jid: await announced(node, jid) for jid in (bob, carol)}
        ids = {}
        for key, jid in (("send-g-1", bob), ("send-g-2", carol)):
            send(node, key, jid)
            await intercept(node, key, "rules")
            verdict(node, key, "rules", "deliver")
            ids[jid] = send(node, key, jid, again=True)
        await sync(node)
        assert all(answer(node, id) is None for id in ids.values())
        open_gate(node, sessions[bob])
        assert await answered(node, ids[bob]) == "delivered"
        await b.ping()
        assert b.inbox.bodies() == ["hello"]
        await c.leave()
        await intercept(node, "send-g-2", "undelivered")
        assert answer(node, ids[carol]) is None
        verdict(node, "send-g-2", "undelivered", "stored")
        assert await answered(node, ids[carol]) == "stored"
        assert c.inbox.bodies() == []
        again = send(node, "send-g-2", carol, again=True)
        assert await answered(node, again) == "stored"


async def test_stored_and_discarded(prosody, clients):
    """The result waits for the last stage, and says what became of it."""
    bob, carol = prosody.people("bob", "carol")
    async with Component(prosody) as node:
        await node.greet()
        for key, to, what in (("send-b-1", bob, "stored"), ("send-b-2", carol, "discarded")):
            id = send(node, key, to)
            await intercept(node, key, "rules")
            verdict(node, key, "rules", "deliver")
            await intercept(node, key, "offline")
            assert answer(node, id) is None
            verdict(node, key, "offline", what)
            assert await answered(node, id) == what
        id = send(node, "send-b-3", bob)
        await intercept(node, "send-b-3", "rules")
        verdict(node, "send-b-3", "rules", "discarded")
        assert await answered(node, id) == "discarded"
        nobody = send(node, "send-b-4", f"nobody@{HOST}")
        await intercept(node, "send-b-4", "rules")
        verdict(node, "send-b-4", "rules", "deliver")
        assert await answered(node, nobody) == "discarded"


async def test_what_is_no_message_of_the_host(prosody):
    """It is refused for good, and nothing is held."""
    (bob,) = prosody.people("bob")
    async with Component(prosody) as node:
        await node.greet()
        for wrong in (
            {"key": "Zk3fQ-1"},
            {"key": "send-" + "x" * 300},
            {"sender": f"eve@{HOST}"},
            {"sender": f"{HOST}/x"},
            {"sender": "example.net"},
            {"to": f"{bob}/phone"},
            {"to": HOST},
            {"to": "bob@example.net"},
            {"type": " type='headline'"},
            {"type": " type='groupchat'"},
            {"type": " type='error'"},
        ):
            id = send(node, **{"key": "send-c-1", "to": bob, **wrong})
            assert await answered(node, id) == ("modify", "bad-request"), wrong
        large = send(node, "send-c-2", bob, body="x" * (508 * 1024))
        assert await answered(node, large) == ("modify", "policy-violation")
        held = [e for e in node.said("intercept") if e.get("to") == bob]
        assert held == []


async def test_the_account_is_removed(prosody, clients):
    """What is held for it is discarded, and said so."""
    (bob,) = prosody.people("bob")
    b = await clients.login(prosody, bob, raw=True)
    async with Component(prosody) as node:
        await node.greet()
        id = send(node, "send-d-1", bob)
        await intercept(node, "send-d-1", "rules")
        b.write("<iq type='set' id='bye'><query xmlns='jabber:iq:register'><remove/></query></iq>")
        assert await answered(node, id) == "discarded"


async def test_over_a_lost_link(prosody):
    """I1, I2: what was at rules is let go and held anew; what was at offline comes out of the spool, once."""
    bob, carol = prosody.people("bob", "carol")
    async with Component(prosody) as node:
        await node.greet()
        send(node, "send-e-1", bob)
        send(node, "send-e-2", carol)
        await intercept(node, "send-e-1", "rules")
        await intercept(node, "send-e-2", "rules")
        verdict(node, "send-e-2", "rules", "deliver")
        await intercept(node, "send-e-2", "offline")
    await until(lambda: "send-e-2" in prosody.spooled(), "the spool")
    async with Component(prosody) as node:
        await node.greet()
        first, second = send(node, "send-e-1", bob, again=True), send(node, "send-e-2", carol, again=True)
        again = await intercept(node, "send-e-1", "rules")
        assert again.get("again") == "true"
        spooled = await intercept(node, "send-e-2", "offline")
        assert spooled.get("again") == "true"
        verdict(node, "send-e-2", "offline", "stored")
        assert await answered(node, second) == "stored"
        verdict(node, "send-e-1", "rules", "discarded")
        assert await answered(node, first) == "discarded"
        await sync(node)
        of_these = [e for e in node.said("intercept") if e.get("key").startswith("send-e-")]
        keys = sorted((e.get("key"), e.get("stage")) for e in of_these)
        assert keys == [("send-e-1", "rules"), ("send-e-2", "offline")]


async def test_a_restart_of_the_server(workshop):
    """I2: outcomes are known after an orderly restart."""
    prosody = workshop.server()
    (bob,) = prosody.people("bob")
    async with Component(prosody) as node:
        await node.greet()
        id = send(node, "send-f-1", bob)
        await intercept(node, "send-f-1", "rules")
        verdict(node, "send-f-1", "rules", "discarded")
        assert await answered(node, id) == "discarded"
    prosody.stop()
    prosody.start()
    async with Component(prosody) as node:
        await node.greet()
        assert await answered(node, send(node, "send-f-1", bob, again=True)) == "discarded"
        assert node.said("intercept") == []


async def page(node, after, max):
    """A page of accounts: (names, complete), or the condition of an error."""
    id = new_id("accounts")
    node.write(
        f"<iq type='get' from='{COMPONENT}' to='{HOST}' id='{id}'>"
        f"<accounts xmlns='{INTERCEPT}' after='{after}' max='{max}'/></iq>"
    )
    found = await until(lambda: [e for e in node.all if e.get("id") == id], "the accounts")
    if found[0].get("type") == "error":
        return found[0][-1][0].tag.rpartition("}")[2]
    accounts = found[0].find(f"{{{INTERCEPT}}}accounts")
    return [name.text for name in accounts], accounts.get("complete") == "true"


async def test_accounts_by_pages(workshop):
    """In order, each once; the last page says that it is the last; a new listing sees new accounts."""
    prosody = workshop.server()
    for name in ("d", "b", "a", "c", "e"):
        prosody.account(name)
    async with Component(prosody) as node:
        await node.greet()
        assert await page(node, "", 2) == (["a", "b"], False)
        assert await page(node, "b", 2) == (["c", "d"], False)
        assert await page(node, "d", 2) == (["e"], True)
        assert await page(node, "bb", 9) == (["c", "d", "e"], True)
        assert await page(node, "z", 9) == ([], True)
        prosody.account("aa")
        assert await page(node, "", 100000) == (["a", "aa", "b", "c", "d", "e"], True)


@pytest.mark.only("prosody", "ejabberd lists the accounts of its own database, which the tests use")
async def test_accounts_that_cannot_be_listed(workshop):
    """The node is told; who asks for a broadcast to the domain hears of it, and can use a list."""
    prosody = workshop.server(options={"authentication": "null"})
    async with Component(prosody) as node:
        await node.greet()
        assert await page(node, "", 500) == "feature-not-implemented"
    node = workshop.node(prosody)
    code, output = node.broadcast(
        "start", "--to-domain", HOST, "--body", "x", "--expires", "1h"
    )
    assert code == 75 and "can't list its accounts" in output and "a list of recipients" in output
    assert node.broadcast("list") == (0, "no broadcasts\n")
