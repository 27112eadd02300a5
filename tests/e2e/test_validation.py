"""What a sender is told about rules that can't be accepted. R1, R2, R13 to R18, R42, R52, R56 to R66."""

import pytest

from harness.prosody import HOST
from harness.replies import check_error, check_refusal, check_reply
from harness.stanzas import AMP, amp, message, new_id, rule, utc


@pytest.fixture(scope="module")
def prosody(workshop):
    """The server."""
    return workshop.server()


@pytest.fixture(scope="module")
def node(workshop, prosody):
    """The node, at its default security."""
    return workshop.node(prosody)


FUTURE = "2099-01-01T00:00:00Z"
GOOD = ("notify", "deliver", "stored")

#: name: (all rules, the element that names the bad ones, the bad ones)
REFUSED = {
    "R61 unknown action": ([("explode", "deliver", "stored")], "unsupported-actions", [0]),
    "R57 no action": ([(None, "deliver", "stored")], "unsupported-actions", [0]),
    "R62 unknown condition": ([("drop", "moon-phase", "full")], "unsupported-conditions", [0]),
    "R58 no condition": ([("drop", None, "stored")], "unsupported-conditions", [0]),
    "R63 unknown value": ([("drop", "deliver", "by-pigeon")], "invalid-rules", [0]),
    "R59 no value": ([("drop", "deliver", None)], "invalid-rules", [0]),
    "R59 empty value": ([("drop", "deliver", "")], "invalid-rules", [0]),
    "R36 no DateTime": ([("drop", "expire-at", "tomorrow")], "invalid-rules", [0]),
    "R36 a date only": ([("drop", "expire-at", "2099-01-01")], "invalid-rules", [0]),
    "R36 an impossible day": ([("drop", "expire-at", "2099-02-30T00:00:00Z")], "invalid-rules", [0]),
    "R37 other zones, or none": (
        [
            ("drop", "expire-at", f"2099-01-01T00:00:00{zone}")
            for zone in ("+02:00", "-00:30", "+00:01", "+24:00", "+0000", "+00", "UTC", "z", " Z", "")
        ],
        "invalid-rules",
        list(range(10)),
    ),
    "R36 other forms": (
        [
            ("drop", "expire-at", time)
            for time in (
                "2099-01-01 00:00:00Z", "2099-01-01t00:00:00Z", "20990101T00:00:00Z", "00:00:00Z",
                "2099-1-1T00:00:00Z", "2099-01-01T00:00Z", "2099-01-01T00:00:00.Z",
                "2099-01-01T00:00:00,5Z", " 2099-01-01T00:00:00Z", "2099-01-01T00:00:00Z ",
                "-2099-01-01T00:00:00Z", "12099-01-01T00:00:00Z", "4070908800",
            )
        ],
        "invalid-rules",
        list(range(13)),
    ),
    "R36 times that do not exist": (
        [
            ("drop", "expire-at", time)
            for time in (
                "2099-01-01T24:00:00Z", "2099-01-01T00:60:00Z", "2099-01-01T23:59:60Z",
                "2099-02-29T00:00:00Z", "2099-13-01T00:00:00Z", "0000-01-01T00:00:00Z",
            )
        ],
        "invalid-rules",
        list(range(6)),
    ),
    "R40 unknown match": ([("drop", "match-resource", "phone")], "invalid-rules", [0]),
    "R15 case matters": ([("Drop", "deliver", "stored")], "unsupported-actions", [0]),
    "R18 all bad values are named": (
        [GOOD, ("drop", "deliver", "x"), GOOD, ("alert", "expire-at", "y")],
        "invalid-rules",
        [1, 3],
    ),
    "R18 all bad actions are named": (
        [("a", "deliver", "stored"), GOOD, ("b", "deliver", "direct")],
        "unsupported-actions",
        [0, 2],
    ),
    "conditions come before actions and values": (
        [("drop", "deliver", "x"), ("a", "deliver", "stored"), ("drop", "c", "d")],
        "unsupported-conditions",
        [2],
    ),
    "actions come before values": (
        [("drop", "deliver", "x"), ("a", "deliver", "stored")],
        "unsupported-actions",
        [1],
    ),
}


@pytest.mark.parametrize("away", [True, False], ids=["offline", "online"])
async def test_refused_rules(prosody, node, clients, away):
    """R15, R17, R18, R57 to R59, R61 to R63, R66: each names its rules, nothing is delivered."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = None if away else await clients.online(prosody, bob)
    ids = {}
    for name, (rules, _, _) in REFUSED.items():
        payload = amp(*(rule(*each) for each in rules))
        ids[name] = a.send_xml(message(bob, "no", payload=payload))
    problems = []
    for name, (rules, element, bad) in REFUSED.items():
        reply = await a.inbox.reply(ids[name])
        try:
            check_refusal(
                reply,
                element,
                id=ids[name],
                sender=f"{alice}/desk",
                named=[rules[n] for n in bad],
                echoed=rules,
            )
        except AssertionError as problem:
            problems.append(f"{name}: {problem}")
    assert not problems, "\n".join(problems)
    end = a.send_text(bob, "the end")
    b = b or await clients.online(prosody, bob)
    await b.inbox.reply(end)
    assert b.inbox.bodies() == ["the end"], "a refused message was delivered"
    await a.ping()
    assert all(len(a.inbox.with_id(id)) == 1 for id in ids.values())


ACCEPTED = {
    "R37 +00:00 is UTC": "2099-01-01T00:00:00+00:00",
    "R37 -00:00 is UTC": "2099-01-01T00:00:00-00:00",
    "R36 short fraction": "2099-01-01T00:00:00.5Z",
    "R36 long fraction": "2099-01-01T00:00:00.123456789012Z",
    "R36 a fraction of 1,000 digits": f"2099-01-01T00:00:00.{'123456789' * 111}1Z",
    "R36 a fraction with +00:00": "2099-01-01T00:00:00.000000001+00:00",
    "R36 a leap day": "2096-02-29T23:59:59Z",
    "R36 the last moment": "9999-12-31T23:59:59.999999999Z",
}


async def test_accepted_times(prosody, node, clients):
    """R36, R37 and their readings."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    for name, value in ACCEPTED.items():
        a.send_xml(message(bob, name, payload=amp(rule("error", "expire-at", value))))
    assert await b.inbox.body_count(len(ACCEPTED)) == list(ACCEPTED)


@pytest.mark.parametrize("id", [None, ""], ids=["R1 no id", "R2 empty id"])
async def test_an_id_is_needed(prosody, node, clients, id):
    """R1, R2: bad-request, type modify."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=True)
    b = await clients.online(prosody, bob)
    attribute = "" if id is None else "id=''"
    payload = amp(rule("drop", "deliver", "none"))
    a.write(f"<message to='{bob}' type='chat' {attribute}><body>x</body>{payload}</message>")
    (error,) = await a.inbox.until(
        lambda box: [m for m in box.messages() if m.type == "error"], "an error"
    )
    assert not error.id
    assert error.condition == "bad-request"
    assert error.error.get("type") == "modify"
    assert error.body is None
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert b.inbox.bodies() == ["the end"]


MALFORMED = {
    "R60 no rule": f"<amp xmlns='{AMP}'/>",
    "R60 only foreign children": f"<amp xmlns='{AMP}'><x xmlns='y'/></amp>",
    "R56 per-hop maybe": f"<amp xmlns='{AMP}' per-hop='maybe'>{rule(*GOOD)}</amp>",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed(prosody, node, clients, name):
    """R56, R60: refused as bad-request, type modify; nothing is delivered."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    id = a.send_xml(message(bob, "x", payload=MALFORMED[name]))
    error = await a.inbox.reply(id)
    check_error(error, "modify", "400", "bad-request", id=id, sender=f"{alice}/desk")
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert b.inbox.bodies() == ["the end"]


async def test_a_foreign_amp_is_not_ours(prosody, node, clients):
    """Only the namespace counts: `<amp/>` of another one is left alone."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    foreign = "<amp xmlns='urn:other'><rule action='explode'/></amp>"
    got = await b.inbox.reply(a.send_xml(message(bob, "x", payload=foreign)))
    assert got.find("{urn:other}amp/{urn:other}rule").get("action") == "explode"
    assert a.inbox.messages() == []


async def test_per_hop(prosody, node, clients):
    """R14, R42: in a per-hop set a match-resource rule is ignored, and the next one counts;
    R34, R39: deliver and expire-at may be in one."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    rules = [("drop", "match-resource", "any"), ("alert", "expire-at", utc(-60))]
    id = a.send_xml(message(bob, "x", payload=amp(*(rule(*r) for r in rules), per_hop="true")))
    reply = await a.inbox.reply(id)
    check_reply(
        reply, "alert", id=id, sender=f"{alice}/desk", recipient=bob, rule=rules[1]
    )
    stored = ("error", "deliver", "stored")
    id = a.send_xml(message(bob, "x", payload=amp(rule(*stored), per_hop="true")))
    reply = await a.inbox.reply(id)
    check_reply(reply, "error", id=id, sender=f"{alice}/desk", recipient=bob, rule=stored)
    # the same without per-hop is dropped by its first rule (R46: in silence)
    dropped = a.send_xml(message(bob, "x", payload=amp(*(rule(*r) for r in rules))))
    end = a.send_xml(message(bob, "x", payload=amp(rule(*rules[1]))))
    await a.inbox.reply(end)
    assert a.inbox.with_id(dropped) == []


async def test_a_message_that_claims_to_be_a_reply(prosody, node, clients):
    """R52: rules with a status are never evaluated, so nobody can be made to answer them."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    forged = amp(rule("error", "deliver", "direct"), status="alert")
    a.send_xml(message(bob, "x", payload=forged))
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert a.inbox.messages() == []


async def test_types_without_rules(prosody, node, clients):
    """Errors are never answered, whatever rules they carry."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    payload = amp(rule("alert", "deliver", "direct"))
    a.send_xml(message(f"{bob}/phone", "x", type="error", payload=payload))
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert a.inbox.messages() == []


async def test_about_a_room(prosody, node, clients):
    """Rules in an invitation to a room are ignored, and it is delivered as any message."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    room = "<x xmlns='http://jabber.org/protocol/muc#user'><invite to='x@example.org'/></x>"
    payload = room + amp(rule("alert", "deliver", "stored"))
    id = a.send_xml(message(bob, "come", payload=payload))
    await a.ping()
    b = await clients.online(prosody, bob)
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert b.inbox.bodies() == ["come", "the end"]
    assert a.inbox.with_id(id) == []


async def test_too_many_rules(prosody, node, clients):
    """I7: a message with thousands of rules is refused, and the next one is served."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk")
    b = await clients.online(prosody, bob)
    many = amp(*[rule("drop", "deliver", "none")] * 2000)
    id = a.send_xml(message(bob, "x", id=new_id(), payload=many))
    reply = await a.inbox.reply(id)
    assert reply.type == "error"
    assert reply.to == f"{alice}/desk" and reply.sender in (HOST, bob)
    await b.inbox.reply(a.send_text(bob, "the end"))
    assert b.inbox.bodies() == ["the end"]
