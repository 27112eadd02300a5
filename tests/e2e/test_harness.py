"""The harness itself, against a Prosody without Amphora."""

import pytest

from harness.stanzas import parse_utc


@pytest.fixture(scope="module")
def prosody(workshop):
    """A plain Prosody."""
    return workshop.server(module=False)


@pytest.mark.parametrize("raw", [False, True], ids=["slixmpp", "raw"])
async def test_a_text_goes_from_one_to_the_other(prosody, clients, raw):
    """Both kinds of client send and receive."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice, "desk", raw=raw)
    b = await clients.online(prosody, bob, raw=raw)
    id = a.send_text(bob, "hello <you>")
    got = await b.inbox.reply(id)
    assert (got.body, got.sender) == ("hello <you>", f"{alice}/desk")
    await a.ping()


async def test_unacknowledged_stanzas_come_back_on_resumption(prosody, clients):
    """The raw client resumes, and the server sends again what it had not acknowledged."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice)
    b = await clients.online(prosody, bob, raw=True, sm=True)
    taken = b.handled
    for n in range(3):
        a.send_text(bob, f"{n}")
    await b.inbox.body_count(3)
    await b.vanish()
    b.handled = taken + 1
    again = await clients.raw(prosody, bob).resume(b)
    assert await again.inbox.body_count(2) == ["1", "2"]


async def test_a_restart_keeps_accounts_and_stored_messages(prosody, clients):
    """Prosody's own offline storage, which Amphora will have to take over."""
    alice, bob = prosody.people("alice", "bob")
    a = await clients.online(prosody, alice)
    a.send_text(bob, "later")
    await a.ping()
    assert prosody.stored_offline(bob.partition("@")[0]) == 1
    prosody.stop()
    prosody.start()
    b = await clients.online(prosody, bob)
    await b.inbox.body_count(1)
    (got,) = b.inbox.messages()
    assert parse_utc(got.delays[0].get("stamp")).tzinfo is not None
