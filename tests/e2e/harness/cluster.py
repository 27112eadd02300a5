"""Three nodes, each linked to one server, sharing a database over NATS, and what can be done to them."""

import asyncio
import os
import signal

from .cut import Ways
from .history import Ended, Fault, Owned, Wrote
from .links import shard_of
from .members import owners
from .node import Node
from .waiting import Deadline

LINKS = ("amp1.example.org", "amp2.example.org", "amp3.example.org")
SHARDS = 24
LEASE = 3

JOINED = """[cluster]
nats = ["nats://{nats}"]
lease = "{lease}s"
"""

#: How a node may end by itself, to be started again: its database does not answer at the start; fenced.
MAY_END = (69, 80)

OWNERS = (
    "SELECT shard, epoch, owner, incarnation FROM shard WHERE owner IS NOT NULL"
    " AND owner <> '' ORDER BY shard"
)

IDS = "SELECT recipient, id FROM offline_message"
#: Below it in an id is the number within the epoch.
EPOCH = 42


class Cluster:
    """The nodes, n1 to n3. A supervisor starts each again that ends, unless it is to be down."""

    def __init__(self, workshop, server, database, nats, history):
        self._database, self._nats, self._history = database, nats, history
        self._made = []
        for number, component in enumerate(LINKS, 1):
            ways = Ways({"nats": nats.port, "database": database.port, "server": server.component_port})
            url = database.url.replace(f"127.0.0.1:{database.port}", ways.address("database"))
            node = workshop.node(
                server,
                start=False,
                name=f"n{number}",
                component=component,
                address=ways.address("server"),
                url=url,
                shards=SHARDS,
                inside=ways.inside,
                within=ways.command,
                more=JOINED.format(nats=ways.address("nats"), lease=LEASE),
            )
            self._made.append(_Supervised(node, ways))
            if "AMPHORA_CHAOS_TRACE" in os.environ:
                self._trace(node, ways)
        self._tasks = []

    def _trace(self, node, ways):
        """Write down what passes on its link: of each piece the time in the history, and the bytes."""
        out = open(node.dir / "link", "wb")  # noqa: SIM115 (it is open as long as the node)
        ways.trace("server", lambda data: out.write(b"%9.3f %s\n" % (self._history.now(), data)))

    @property
    def nodes(self):
        """All of them."""
        return [made.node for made in self._made]

    async def start(self):
        """Start all, wait until each has its share, and watch them from then on."""
        for made in self._made:
            made.up()
        self._tasks.append(asyncio.ensure_future(self._supervise()))
        await self.whole()
        self._tasks.append(asyncio.ensure_future(self._poll()))

    async def whole(self, seconds=60):
        """Wait until every node is ready and has a share of the shards."""
        try:
            async with asyncio.timeout(seconds):
                while not await asyncio.to_thread(self._is_whole):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            shares = owners(self._database)
            raise Deadline(f"not whole within {seconds} s: {shares}\n{self.output()}") from None

    async def ready(self, node, seconds=60):
        """Wait until that node says so."""
        try:
            async with asyncio.timeout(seconds):
                while await asyncio.to_thread(node.http_status, "/readyz") != 200:
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise Deadline(f"not ready within {seconds} s:\n{node.log[-3000:]}") from None

    async def stop(self):
        """All end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for made in self._made:
            await asyncio.to_thread(made.end)

    def output(self):
        """What the nodes wrote, for a failed test."""
        return "\n".join(f"--- {node.settings['name']}\n{node.log[-3000:]}" for node in self.nodes)

    async def do(self, step):
        """A fault from its beginning to its end."""
        self._history.add(Fault(str(step)))
        begin = self._faults()[step.fault]
        undo = await begin(None if step.node is None else self._made[step.node])
        if undo:
            await asyncio.sleep(step.lasts)
            await undo()
        self._history.add(Fault(f"undone: {step}"))

    def _faults(self):
        faults = {"kill": self._kill, "stop": self._stop, "stand still": self._stand_still}
        faults |= {"kill nats": self._kill_nats, "roll": self._roll}
        for way in ("nats", "database", "server"):
            for how in ("cut", "hush"):
                faults[f"{how} {way}"] = lambda made, how=how, way=way: self._part(made, how, way)
        return faults

    async def _kill(self, made):
        await made.turn.acquire()
        made.down()
        if made.node.process:
            made.node.kill()

        async def undo():
            made.up()
            made.turn.release()

        return undo

    async def _stop(self, made):
        await made.turn.acquire()
        made.down()
        code = await asyncio.to_thread(made.node.stop)
        # it may have been told before it listens to signals
        if code not in (0, None, -signal.SIGTERM):
            self._history.add(Ended(made.node.settings["name"], code))

        async def undo():
            made.up()
            made.turn.release()

        return undo

    async def _stand_still(self, made):
        await made.turn.acquire()
        if made.node.process:
            made.node.signal(signal.SIGSTOP)

        async def undo():
            if made.node.process:
                made.node.signal(signal.SIGCONT)
            made.turn.release()

        return undo

    async def _part(self, made, how, way):
        getattr(made.ways, how)(way)

        async def undo():
            made.ways.mend(way)

        return undo

    async def _kill_nats(self, _):
        self._nats.kill()

        async def undo():
            await asyncio.to_thread(self._nats.start)

        return undo

    async def _roll(self, _):
        """As docs/cluster.md has it: the next when the last is ready."""
        for made in self._made:
            undo = await self._stop(made)
            await undo()
            await self.ready(made.node)

    async def _supervise(self):
        while True:
            for made in self._made:
                code = made.ended()
                if code is not None:
                    self._history.add(Ended(made.node.settings["name"], code))
                    made.up()
            await asyncio.sleep(0.1)

    async def _poll(self):
        seen, known = {}, None
        while True:
            rows = await asyncio.to_thread(self._database.query, OWNERS)
            ids = set((await asyncio.to_thread(self._database.query, IDS)).splitlines())
            # what is new was committed after the owners had been looked at the last time
            for row in ids - (ids if known is None else known):
                user, id = row.replace("\t", "|").split("|")
                self._history.add(Wrote(shard_of(user, SHARDS), int(id) >> EPOCH))
            known = ids
            for row in rows.splitlines():
                shard, epoch, owner, number = row.replace("\t", "|").split("|")
                event = Owned(int(shard), int(epoch), f"{owner}/{number}")
                if seen.get(shard) != event:
                    seen[shard] = event
                    self._history.add(event)
            await asyncio.sleep(0.1)

    def _is_whole(self):
        try:
            found = owners(self._database)
        except AssertionError:
            return False  # there are no tables yet
        names = {node.settings["name"] for node in self.nodes}
        shared = set(found) == names and sum(found.values()) == SHARDS
        return shared and all(node.http_status("/readyz") == 200 for node in self.nodes)


class _Supervised:
    """A node with its ways, that is to run or not."""

    def __init__(self, node, ways):
        self.node, self.ways = node, ways
        #: held by whatever is done to its process: a roll goes on while other things happen
        self.turn = asyncio.Lock()
        self._wanted = False

    def up(self):
        """It is to run."""
        self._wanted = True
        if self.node.process is None:
            self.node.spawn()

    def down(self):
        """It is about to be ended, and must not be started again."""
        self._wanted = False

    def ended(self):
        """The code with which it ended by itself, or None."""
        process = self.node.process
        if not self._wanted or process is None or process.returncode() is None:
            return None
        code = process.wait()
        self.node.process = None
        return code

    def end(self):
        """It ends, and its ways."""
        self.down()
        if self.node.process:
            self.node.signal(signal.SIGCONT)
            self.node.stop()
        self.ways.close()
