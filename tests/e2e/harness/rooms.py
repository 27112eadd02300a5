"""Rooms of a real component for multi-user chat (XEP-0045)."""

from .stanzas import MUC, MUC_USER

ROOMS = "rooms.example.org"


async def join(client, room, nick):
    """Enter a room, and wait until it says so. Who is first makes it an open one."""
    client.write(f"<presence to='{room}@{ROOMS}/{nick}'><x xmlns='{MUC}'/></presence>")
    entered = await client.inbox.until(
        lambda box: [s for s in box.all if is_own_presence(s, room, nick)], "to be in the room"
    )
    codes = {status.get("code") for status in entered[0].element.iter(f"{{{MUC_USER}}}status")}
    if "201" in codes:
        answer = await client.iq(
            f"<query xmlns='{MUC}#owner'><x xmlns='jabber:x:data' type='submit'/></query>",
            type="set",
            to=f"{room}@{ROOMS}",
        )
        assert answer.type == "result", answer
    return f"{room}@{ROOMS}/{nick}"


def is_own_presence(stanza, room, nick):
    """Whether it is the room's word that the client is in it."""
    return (
        stanza.name == "presence"
        and stanza.sender == f"{room}@{ROOMS}/{nick}"
        and any(s.get("code") == "110" for s in stanza.element.iter(f"{{{MUC_USER}}}status"))
    )


def left(client, room):
    """Whom the client saw leave the room, himself or others."""
    return [
        s for s in client.inbox.all
        if s.name == "presence" and s.type == "unavailable" and s.sender.startswith(f"{room}@")
    ]
