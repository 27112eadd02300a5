"""What happened while a cluster was under load: a list of events, each with its time."""

import dataclasses
import json
import time


@dataclasses.dataclass(frozen=True)
class Sent:
    """A sender wrote the message; `number` counts what he wrote to that user, from 0."""

    id: str
    sender: str
    user: str
    number: int


@dataclasses.dataclass(frozen=True)
class Accepted:
    """The server has said that it has the message (XEP-0198, section 4)."""

    id: str


@dataclasses.dataclass(frozen=True)
class Refused:
    """The message came back as an error."""

    id: str
    condition: str


@dataclasses.dataclass(frozen=True)
class Came:
    """A session of the user was given the message; `stanza`: its id at the server (XEP-0359)."""

    id: str
    user: str
    session: str
    stanza: str | None = None


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """The server has, for certain, that this session took the first `count` of its messages."""

    session: str
    count: int


@dataclasses.dataclass(frozen=True)
class Stored:
    """The message is in the database, at the end."""

    id: str


@dataclasses.dataclass(frozen=True)
class Owned:
    """The database says who may write a shard: a start of a node."""

    shard: int
    epoch: int
    owner: str


@dataclasses.dataclass(frozen=True)
class Wrote:
    """A message is in the database, with an id of that epoch, that was not when the owners were last seen."""

    shard: int
    epoch: int


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something was done to the cluster, or undone."""

    what: str


@dataclasses.dataclass(frozen=True)
class Ended:
    """A node's process ended by itself."""

    node: str
    code: int


class History:
    """Events in the order in which they were seen."""

    def __init__(self, events=()):
        self._events = [(float(n), event) for n, event in enumerate(events)]
        self._begun = time.monotonic()

    def add(self, event):
        """Something has happened now."""
        self._events.append((self.now(), event))

    def now(self):
        """Seconds since the beginning."""
        return time.monotonic() - self._begun

    def of(self, kind):
        """All events of a kind, in order."""
        return [event for _, event in self._events if isinstance(event, kind)]

    def all(self):
        """Every event, in order."""
        return [event for _, event in self._events]

    def timed(self, kind):
        """The same, each with its time in seconds since the beginning."""
        return [(at, event) for at, event in self._events if isinstance(event, kind)]

    def write(self, path):
        """For whoever looks why a check failed: one event a line."""
        with open(path, "w", encoding="utf-8") as out:
            for at, event in self._events:
                fields = dataclasses.asdict(event)
                out.write(f"{at:9.3f} {type(event).__name__} {json.dumps(fields)}\n")
