"""Three NATS servers that keep what is kept on each, and can be parted from each other."""

import itertools
import json
import urllib.request

from .cut import Ways
from .nats import Nats
from .ports import free_port

#: What a server tells the others about its address must lead nowhere: they are to take the ways.
CLUSTER = """
server_name: "s{number}"
http: "127.0.0.1:{monitor}"
cluster {{
  name: "test"
  listen: "127.0.0.1:{port}"
  advertise: "127.0.0.1:1"
  no_advertise: true
  routes: [{routes}]
}}
"""

SERVERS = range(3)


class NatsCluster:
    """The servers, by number; between each two a way in either direction."""

    def __init__(self, folder):
        ports = [free_port() for _ in SERVERS]
        self._monitors = [free_port() for _ in SERVERS]
        pairs = itertools.permutations(SERVERS, 2)
        self._ways = Ways({pair: ports[pair[1]] for pair in pairs}, apart=False)
        self._servers = []
        for number in SERVERS:
            routes = ", ".join(
                f'"nats://{self._ways.address((number, other))}"' for other in SERVERS if other != number
            )
            more = CLUSTER.format(
                number=number, monitor=self._monitors[number], port=ports[number], routes=routes
            )
            place = folder / f"nats{number}"
            place.mkdir()
            self._servers.append(Nats(place, more))

    @property
    def url(self):
        """Where clients find them, as it stands between the quotes of a list."""
        return '", "'.join(server.url for server in self._servers)

    def start(self):
        """Start all."""
        for server in self._servers:
            server.start()
        return self

    def stop(self):
        """All end."""
        for server in self._servers:
            server.stop()
        self._ways.close()

    def part(self, number, how):
        """`cut` or `hush` all ways to and from that one."""
        for pair in self._pairs(number):
            getattr(self._ways, how)(pair)

    def mend(self, number):
        """They are whole again."""
        for pair in self._pairs(number):
            self._ways.mend(pair)

    def clients(self, number):
        """The names of those that are connected there."""
        url = f"http://127.0.0.1:{self._monitors[number]}/connz"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [connection.get("name") for connection in json.load(answer)["connections"]]

    def _pairs(self, number):
        return [pair for pair in itertools.permutations(SERVERS, 2) if number in pair]
