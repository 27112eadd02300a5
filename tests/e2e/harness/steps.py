"""What several tests do on their way."""

from .stanzas import amp, message, rule


async def all_stored(sender, to, body="mark"):
    """Write one more message to somebody who is away, and wait until it is in the store.

    So is then, by the order of a pair, what the sender wrote to him before. Without it
    a message may still be on its way when the recipient comes back, and reach him live.
    """
    mark = amp(rule("notify", "deliver", "stored"))
    reply = await sender.inbox.reply(sender.send_xml(message(to, body, payload=mark)))
    assert reply.status == "notify", reply
