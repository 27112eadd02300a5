"""Reading an archive, and saying what goes into it (XEP-0313)."""

from .stanzas import CLIENT, FORWARD, MAM, Stanza, new_id

#: As many as the server gives in one page.
PAGE = 50

RESULT = f"{{{MAM}}}result"
INNER = f"{RESULT}/{{{FORWARD}}}forwarded/{{{CLIENT}}}message"


async def read_archive(client):
    """All that the client's own archive holds, oldest first: (id in the archive, message)."""
    query = new_id("archive")
    done = await client.iq(
        f"<query xmlns='{MAM}' queryid='{query}'>"
        f"<set xmlns='http://jabber.org/protocol/rsm'><max>{PAGE}</max></set></query>",
        type="set",
    )
    fin = done.find(f"{{{MAM}}}fin")
    assert fin is not None and fin.get("complete") == "true", f"more than a page: {done}"
    found = [stanza.find(RESULT) for stanza in client.inbox.all if stanza.name == "message"]
    return [
        (result.get("id"), Stanza(result.find(f"{{{FORWARD}}}forwarded/{{{CLIENT}}}message")))
        for result in found
        if result is not None and result.get("queryid") == query
    ]


async def archived_bodies(client):
    """The texts in the client's own archive, oldest first."""
    return [message.body for _, message in await read_archive(client)]


async def archive_nothing(client):
    """From now on the user's archive takes nothing."""
    answer = await client.iq(f"<prefs xmlns='{MAM}' default='never'/>", type="set")
    assert answer.type == "result", answer
