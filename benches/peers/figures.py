"""The figures of all rounds, and what is said about them: medians, ranges, failures."""

import json
import statistics
from dataclasses import dataclass, field

#: The scenarios with a rate or a time, in the order in which they are shown.
MANY, ONE, LOGIN = "many", "one", "login"
#: The prefix of scenarios that kill something; its name follows.
KILL = "kill: "


def name_of(scenario):
    """How the table names it."""
    named = {MANY: "(a)", ONE: "(b)", LOGIN: "(c)"}
    return named.get(scenario) or "(d), " + scenario.removeprefix(KILL)


@dataclass
class Row:
    """One contender: `rounds` holds for each round what each scenario gave, or
    `{"failed": why}`."""

    key: str
    label: str
    durable: str
    synced: bool
    own: bool
    rounds: list = field(default_factory=list)

    def all(self, scenario):
        """What the rounds gave for a scenario, failures left out."""
        return [r[scenario] for r in self.rounds if scenario in r and "failed" not in r[scenario]]

    def failures(self, scenario):
        """Why rounds failed at it."""
        found = [r[scenario]["failed"] for r in self.rounds if "failed" in r.get(scenario, {})]
        return list(dict.fromkeys(found))

    def rates(self, scenario):
        """Messages a second in each round."""
        return [one["messages"] / one["seconds"] for one in self.all(scenario)]

    def seconds(self, scenario):
        """Seconds in each round."""
        return [one["seconds"] for one in self.all(scenario)]

    def cpu_microseconds(self, scenario):
        """Processor time of a message in each round."""
        return [one["cpu_seconds"] / one["messages"] * 1e6 for one in self.all(scenario)]

    def cut(self, scenario):
        """Whether the limit ended a round before all was done."""
        return any(one.get("cut") for one in self.all(scenario))


@dataclass
class Figures:
    """A whole run."""

    machine: dict
    settings: dict
    rows: list

    def row(self, key):
        """The contender with that key."""
        return next(row for row in self.rows if row.key == key)

    def kills(self):
        """Names of what was killed, in the order in which it was first."""
        names = {}
        for row in self.rows:
            for one in row.rounds:
                names.update(dict.fromkeys(name for name in one if name.startswith(KILL)))
        return list(names)

    def save(self, path):
        """All rounds, as JSON."""
        path.write_text(json.dumps(self, default=vars, indent=1) + "\n")

    @classmethod
    def load(cls, path):
        """What `save` wrote."""
        read = json.loads(path.read_text())
        rows = [Row(**row) for row in read["rows"]]
        return cls(read["machine"], read["settings"], rows)


def median(values):
    """The median, or None of nothing."""
    return statistics.median(values) if values else None
