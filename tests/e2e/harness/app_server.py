"""The server of a phone's maker, to which push notifications go: a component that says yes."""

from .component import ACCEPT, External
from .stanzas import PUSH
from .waiting import until

DOMAIN = "push.example.org"
PUSH_SECRET = "of the app server"
#: What a server has to know for it.
APPS = {DOMAIN: PUSH_SECRET}

PUBLISH = "{http://jabber.org/protocol/pubsub}pubsub/{http://jabber.org/protocol/pubsub}publish"
FIELD = "{jabber:x:data}field"
VALUE = "{jabber:x:data}value"


class AppServer(External):
    """Connects as DOMAIN; `pushes` are (node, important) in the order in which they came,
    `messages` whatever else the domain was sent."""

    def __init__(self, server):
        super().__init__(server, DOMAIN, PUSH_SECRET)
        self.pushes, self.messages = [], []

    def of(self, node):
        """The pushes of one device: for each whether it was important."""
        return [important for name, important in self.pushes if name == node]

    async def count(self, node, count):
        """Wait for so many pushes of that device."""
        await until(lambda: len(self.of(node)) >= count, f"{count} for {node}: {self.pushes}")
        return self.of(node)

    async def important(self, node, count):
        """Wait for so many important ones. Presence that a session left makes unimportant ones."""
        await until(lambda: sum(self.of(node)) >= count, f"{count} for {node}: {self.pushes}")

    def take(self, element):
        """Says yes to what is published."""
        if element.tag == f"{{{ACCEPT}}}message":
            self.messages.append(element)
        if element.tag != f"{{{ACCEPT}}}iq" or element.get("type") != "set":
            return
        publish = element.find(PUBLISH)
        filled = {f.get("var") for f in publish.iter(FIELD) if f.find(VALUE) is not None}
        self.pushes.append((publish.get("node"), "last-message-body" in filled))
        self.write(
            f"<iq type='result' id='{element.get('id')}' from='{DOMAIN}' "
            f"to='{element.get('from')}'/>"
        )


async def enable_push(client, node):
    """The client asks for push notifications to that device."""
    answer = await client.iq(f"<enable xmlns='{PUSH}' jid='{DOMAIN}' node='{node}'/>", type="set")
    assert answer.type == "result", answer
