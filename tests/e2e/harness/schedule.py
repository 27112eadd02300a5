"""What is done to a cluster, and when. The same seed gives the same schedule."""

import dataclasses
import random

#: What is done to one node, and undone after a while.
TO_A_NODE = (
    *("kill", "stop", "stand still"),
    *("cut nats", "cut database", "cut server"),
    *("hush nats", "hush database", "hush server"),
)
#: What is done to the cluster as a whole.
TO_ALL = ("kill nats", "roll")

#: Seconds between two faults, and for how long one lasts. The lease is 3 s: some faults end before
#: anybody has noticed, some after the shards have been taken.
PAUSE = (0.2, 3.0)
LENGTH = (0.3, 7.0)


@dataclasses.dataclass(frozen=True)
class Step:
    """`fault` begins `at` seconds after the start, and is undone `lasts` seconds later. Faults of
    different nodes may overlap."""

    at: float
    fault: str
    node: int | None
    lasts: float

    def __str__(self):
        where = "" if self.node is None else f" n{self.node + 1}"
        return f"{self.at:6.2f} s: {self.fault}{where} for {self.lasts:.2f} s"


def schedule(seed, seconds, nodes=3):
    """Random faults for so many seconds, never two at the same node at a time."""
    chance = random.Random(seed)
    steps = []
    free = [0.0] * nodes
    now = 0.5
    while now < seconds:
        fault = chance.choice(TO_A_NODE * 2 + TO_ALL)
        lasts = round(chance.uniform(*LENGTH), 2)
        if fault in TO_ALL:
            # a roll goes through all nodes, so it waits until they are whole
            now = max([now, *free]) if fault == "roll" else now
            steps.append(Step(round(now, 2), fault, None, lasts))
            if fault == "roll":
                free = [now + 1.0] * nodes
        else:
            node = chance.randrange(nodes)
            now = max(now, free[node])
            steps.append(Step(round(now, 2), fault, node, lasts))
            free[node] = now + lasts + 0.5
        now += chance.uniform(*PAUSE)
    return steps
