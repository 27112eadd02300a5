"""Nodes of a cluster without servers: who owns which shard, and nothing else."""

import collections
import os
import subprocess

from .node import Node, binary

CONFIG = """
[node]
name = "{name}"

[processor]
shards = {shards}

[store]
{store}

[http]
listen = "{inside}:{http}"

[cluster]
nats = ["{nats}"]
lease = "{lease}"
{more}
"""


class Member(Node):
    """A node with no link, that shares a database over NATS."""

    #: There is no server to be linked to.
    component_port = 0

    def __init__(self, folder, name, database, nats, **settings):
        self.joined = {"nats": nats, "lease": "3s"}
        super().__init__(folder, self, name=name, url=database.url, **settings)

    def write_config(self, **settings):
        """Write the settings file, with changes if any."""
        self.settings.update(settings)
        store = self.settings["parts"] or f'url = "{self.settings["url"]}"'
        values = {**self.joined, **self.settings}
        self.config.write_text(CONFIG.format(**values, store=store))
        self.config.chmod(0o600)

    @property
    def control(self):
        """Its control socket, where it is by default."""
        return str(self.dir / f"{self.settings['name']}.sock")

    def drain(self, *arguments):
        """Run `amphora drain`: (code, output)."""
        return self.command("drain", "--config", str(self.config), *arguments)

    def begin_drain(self):
        """The same, at once: the process."""
        command = [binary(), "drain", "--config", str(self.config)]
        return subprocess.Popen(command, cwd=self.dir, env={**os.environ, "NO_COLOR": "1"})


def owners(database):
    """How many shards each node has that can write; None: those that nobody has."""
    rows = database.query(
        "SELECT l.node, count(*) FROM shard s LEFT JOIN lane l ON s.owner = l.node"
        " AND s.incarnation = l.incarnation AND NOT l.fenced GROUP BY l.node"
    )
    found = collections.Counter()
    for row in rows.splitlines():
        node, count = row.replace("\t", "|").split("|")
        found[None if node in ("", "NULL") else node] += int(count)
    return dict(found)


def incarnations(database):
    """Which start of each node is the latest, and whether it is fenced."""
    rows = database.query("SELECT node, incarnation, CASE WHEN fenced THEN 1 ELSE 0 END FROM lane")
    rows = [row.replace("\t", "|").split("|") for row in rows.splitlines()]
    return {node: (int(number), fenced == "1") for node, number, fenced in rows}
