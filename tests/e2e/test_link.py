"""The link to a server that is broken, hostile or absent. C1 to C4; invariant I7.

After each the node is the same process, has said what was wrong, is linked again and has
what it had stored.
"""

import asyncio

import pytest

from harness.fake_server import FORWARD, INTERCEPT, FakeServer, available, intercept
from harness.node import Node
from harness.prosody import COMPONENT, HOST
from harness.stanzas import CLIENT, DELAY, new_id
from harness.waiting import until

pytestmark = pytest.mark.once("the server is the test itself")


@pytest.fixture
async def server():
    """A server in this test's hand."""
    async with FakeServer() as fake:
        yield fake


@pytest.fixture
def node(workshop, server):
    """A node that has been told to connect to it."""
    return workshop.node(server, start=False).spawn()


async def bodies(link, jid, count):
    """Announce a session and collect the texts handed over to it."""
    session = new_id("session")
    link.write(available(jid, session))
    texts = []
    while len(texts) < count:
        stanza = await link.next()
        assert stanza is not None, "the node closed the stream"
        for item in stanza.iter(f"{{{INTERCEPT}}}item"):
            inner = item.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}message")
            texts.append(inner.findtext(f"{{{CLIENT}}}body"))
    return texts


async def store(link, jid, body):
    """Have one message stored."""
    key = new_id("key")
    link.write(intercept(jid, body, key=key))
    verdict = await link.verdict(key)
    assert verdict.get("do") == "stored"
    return key


BOMB = (
    "<!DOCTYPE bomb [<!ENTITY a 'aaaaaaaaaaaaaaaa'>"
    "<!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>"
    "<!ENTITY d '&c;&c;&c;&c;&c;&c;&c;&c;'><!ENTITY e '&d;&d;&d;&d;&d;&d;&d;&d;'>"
    "]><message>&e;&e;&e;&e;</message>"
)

#: what is sent amid a good stream, and the stream errors that are right (RFC 6120, 4.9.3)
HOSTILE = {
    "billion laughs": (BOMB, {"restricted-xml", "not-well-formed", "bad-format"}),
    "a comment": ("<message><!-- hello --></message>", {"restricted-xml"}),
    "a comment between stanzas": ("<!-- hello -->", {"restricted-xml"}),
    "a processing instruction": ("<message><?php evil() ?></message>", {"restricted-xml"}),
    "an unknown entity": ("<message>&nbsp;</message>", {"restricted-xml", "not-well-formed"}),
    "crossed tags": (
        f"<message from='{HOST}' to='{COMPONENT}'><a><b></a></b></message>",
        {"not-well-formed", "bad-format"},
    ),
    "an unquoted attribute": ("<message to=amp/>", {"not-well-formed", "bad-format"}),
    "two attributes of a name": ("<message a='1' a='2'/>", {"not-well-formed", "bad-format"}),
    "text between stanzas": ("hello", {"not-well-formed", "bad-format", "restricted-xml"}),
    "broken UTF-8": (
        b"<message><body>\xff\xfe\xc3</body></message>",
        {"unsupported-encoding", "not-well-formed", "bad-format"},
    ),
    "an overlong UTF-8": (
        b"<message><body>\xc0\xbc</body></message>",
        {"unsupported-encoding", "not-well-formed", "bad-format"},
    ),
    "a NUL": (b"<message><body>\x00</body></message>", {"not-well-formed", "bad-format", "restricted-xml"}),
    "HTTP": ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", {"not-well-formed", "bad-format"}),
    "a header again": (
        "<?xml version='1.0'?><stream:stream>",
        {"not-well-formed", "bad-format", "restricted-xml", "invalid-xml"},
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_xml(node, server, name):
    """I7: a stream error of the right kind, a new link, and what was stored is there."""
    data, right = HOSTILE[name]
    jid = f"bob@{HOST}"
    link = await server.greeted()
    await store(link, jid, "precious")
    pid = node.process.pid
    link.write(data)
    condition = await link.until_end()
    link.cut()
    again = await server.greeted()
    assert await bodies(again, jid, 1) == ["precious"]
    assert node.process.returncode() is None and node.process.pid == pid
    assert condition in right, f"stream error {condition!r}"


async def test_what_strangers_write_to_the_component_does_not_end_the_link(node, server):
    """I7: anybody can have the server send something here. What nests too deep is left out,
    what is not from a host is not read; the link stays, and others are served."""
    jid = f"bob@{HOST}"
    link = await server.greeted()
    eve = f"from='eve@{HOST}/r' to='{COMPONENT}'"
    wide = "".join(f" a{i}='1'" for i in range(300))
    for depth in (70, 130, 2_000, 100_000):
        nested = "<a>" * depth + "</a>" * depth
        for name in ("message", "iq", "presence"):
            link.write(f"<{name} {eve} id='1' type='get'>{nested}</{name}>")
    link.write(f"<iq {eve} id='1' type='get'><a{wide}/></iq>")
    link.write(f"<iq from='{HOST}' to='{COMPONENT}' id='1' type='get'><a{wide}/></iq>")
    await store(link, jid, "precious")
    assert await bodies(link, jid, 1) == ["precious"]


@pytest.mark.parametrize(
    ("begin", "end"),
    [("<message><body>", "</body></message>"), ("<message a='", "'/>")],
    ids=["text", "attribute"],
)
async def test_a_stanza_over_the_limit(node, server, begin, end):
    """I7: what is far too large is skipped without being kept; the link goes on behind it."""
    jid = f"bob@{HOST}"
    link = await server.greeted()
    await store(link, jid, "precious")
    before = rss(node)
    link.write(begin)
    sent = await link.flood(b"x" * 1_000_000, 100_000_000)
    assert sent == 100_000_000
    assert rss(node) - before < 64_000, "KiB more than before"
    link.write(end)
    assert await bodies(link, jid, 1) == ["precious"]


GARBAGE = [
    "<message/>",
    "<message><x:y/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><intercept xmlns='{INTERCEPT}'/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><intercept xmlns='{INTERCEPT}' key='k' stage='?' "
    "to='bob'/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><available xmlns='{INTERCEPT}'/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><available xmlns='{INTERCEPT}' session='' n='-1' "
    "jid='@/' priority='999'/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><taken xmlns='{INTERCEPT}' for='x' session='y' "
    "batch='99999999999999999999' ids='1 2 3'/></message>",
    f"<message from='{HOST}' to='{COMPONENT}'><unheard-of xmlns='{INTERCEPT}'/></message>",
    f"<message from='mallory@evil.example' to='{COMPONENT}'><intercept xmlns='{INTERCEPT}' "
    "key='evil' stage='offline' to='bob@example.org'/></message>",
    "<presence/>",
    f"<presence from='x@{HOST}' to='{COMPONENT}' type='subscribe'/>",
    "<iq/>",
    "<iq type='result' id='never-asked'/>",
    f"<iq type='error' id='x' from='{HOST}' to='{COMPONENT}'><error/></iq>",
    "<nonsense xmlns='urn:nowhere'><a/></nonsense>",
    intercept("\ud7ffb@" + "x" * 5000, "long", key="long"),
    intercept("@", "no user", key="no-user"),
    intercept("bob@" + HOST, "x", key="K" * 3000),
]


async def test_well_formed_nonsense(node, server):
    """Ignored or refused, one by one: the link stays, and the next good stanza is served."""
    jid = f"bob@{HOST}"
    link = await server.greeted()
    for text in GARBAGE:
        link.write(text)
    assert await store(link, jid, "good")
    assert await bodies(link, jid, 1) == ["good"]


async def test_how_messages_are_forwarded(node, server):
    """W2, W4: inside the protocol's own element, with the time when the server received them."""
    jid = f"bob@{HOST}"
    link = await server.greeted()
    text = intercept(jid, "x", key="key")
    stamp = text.split("stamp='")[1].partition("'")[0]
    link.write(text)
    assert (await link.verdict("key")).get("do") == "stored"
    link.write(available(jid, "s1"))
    item = None
    while item is None:
        stanza = await link.next()
        assert stanza.find(f"{{{FORWARD}}}forwarded") is None, "a bare forward"
        item = stanza.find(f"{{{INTERCEPT}}}hand-over/{{{INTERCEPT}}}item")
    forwarded = item.find(f"{{{FORWARD}}}forwarded")
    assert [child.tag for child in forwarded] == [f"{{{DELAY}}}delay", f"{{{CLIENT}}}message"]
    assert forwarded[0].get("stamp") == stamp


async def test_an_unknown_request(node, server):
    """An unknown IQ gets feature-not-implemented."""
    link = await server.greeted()
    link.write(
        f"<iq type='get' id='what' from='{HOST}' to='{COMPONENT}'><x xmlns='urn:nowhere'/></iq>"
    )
    while (answer := await link.next()).get("id") != "what":
        pass
    assert answer.get("type") == "error"
    assert answer.find(".//{urn:ietf:params:xml:ns:xmpp-stanzas}feature-not-implemented") is not None


async def test_foreign_elements_are_ignored(node, server):
    """Unknown attributes and elements inside an intercept do no harm."""
    link = await server.greeted()
    key = new_id("key")
    text = intercept(f"bob@{HOST}", "x", key=key, future="yes")
    text = text.replace("<forwarded", "<tomorrow a='b'><c/></tomorrow><forwarded", 1)
    link.write(text)
    assert (await link.verdict(key)).get("do") == "stored"


async def test_cut_amid_a_stanza(node, server):
    """What was half there is not stored; sent again, it is stored once."""
    jid = f"bob@{HOST}"
    link = await server.greeted()
    first = await store(link, jid, "whole")
    text = intercept(jid, "half", key="half-1")
    link.write(text[: len(text) // 2])
    link.cut()
    link = await server.greeted()
    link.write(intercept(jid, "half", key="half-1", again=True, after=first))
    assert (await link.verdict("half-1")).get("do") == "stored"
    link.cut()
    # the verdict is lost on the way, so it is asked again
    link = await server.greeted()
    link.write(intercept(jid, "half", key="half-1", again=True))
    assert (await link.verdict("half-1")).get("do") == "stored"
    await store(link, jid, "last")
    assert await bodies(link, jid, 3) == ["whole", "half", "last"]


async def test_one_byte_at_a_time(node, server):
    """A stanza may come in any pieces."""
    link = await server.greeted()
    key = new_id("key")
    for byte in intercept(f"bob@{HOST}", "☃ slow", key=key).encode():
        link.write(bytes([byte]))
        await asyncio.sleep(0)
    assert (await link.verdict(key)).get("do") == "stored"
    assert await bodies(link, f"bob@{HOST}", 1) == ["☃ slow"]


STREAM_ERRORS = {
    "conflict": ["conflict"],
    "host-unknown": ["host-unknown", COMPONENT],
    "not-authorized": ["secret"],
    "system-shutdown": ["system-shutdown"],
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_stream_errors(node, server, name):
    """C1, C3: said with a remedy in the log; the node tries again and is served."""
    link = await server.link()
    await link.handshake(
        answer=f"<stream:error><{name} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>"
        "</stream:stream>"
    )
    await link.until_end()
    link.cut()
    again = await server.greeted(seconds=60)
    await store(again, f"bob@{HOST}", "x")
    await asyncio.to_thread(node.wait_log, *STREAM_ERRORS[name])


async def test_a_closed_stream_is_opened_again(node, server):
    """`</stream:stream>` is answered, and the node comes back."""
    link = await server.greeted()
    link.write("</stream:stream>")
    await link.until_end()
    link.cut()
    await server.greeted()


async def test_silence(node, server):
    """A server that says nothing after it accepted is given up."""
    silent = await server.link()
    second = await server.link(seconds=90)
    silent.cut()
    await second.handshake()
    await second.greet()
    await store(second, f"bob@{HOST}", "x")


async def test_a_greeting_that_is_refused(node, server):
    """Another version of the protocol: said in the log, the node is not ready."""
    link = await server.link()
    await link.handshake()
    iq = await link.next()
    link.write(
        f"<iq type='error' id='{iq.get('id')}' from='{HOST}' to='{COMPONENT}'><error type='modify'>"
        "<not-acceptable xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
    )
    await asyncio.to_thread(node.wait_log, "version")
    assert node.http_status("/readyz") == 503


async def test_ready_only_when_greeted(node, server):
    """`/readyz` follows the link, `/healthz` does not."""
    link = await server.link()
    await until(lambda: node.http_status("/healthz") == 200, "/healthz")
    assert node.http_status("/readyz") == 503
    await link.handshake()
    assert node.http_status("/readyz") == 503
    await link.greet()
    await until(lambda: node.http_status("/readyz") == 200, "/readyz after the greeting")
    link.cut()
    await until(lambda: node.http_status("/readyz") == 503, "/readyz after the loss")


async def test_the_greeting_says_what_is_supported(node, server):
    """R15: one table feeds validation and disco; the greeting carries it."""
    link = await server.link()
    await link.handshake()
    greeting = await link.greet()
    names = {(e.tag.rpartition("}")[2], e.get("name")) for e in greeting}
    assert names == {("action", a) for a in ("alert", "drop", "error", "notify")} | {
        ("condition", c) for c in ("deliver", "expire-at", "match-resource")
    }
    assert (greeting.get("version"), greeting.get("node"), greeting.get("security")) == (
        "1",
        "n1",
        "strict",
    )


def rss(node: Node):
    """The node's memory in KiB."""
    with open(f"/proc/{node.process.pid}/status") as status:
        return int(status.read().split("VmRSS:")[1].split()[0])
