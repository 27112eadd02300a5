"""The figures as Markdown."""

from figures import KILL, LOGIN, MANY, ONE, median, name_of

HEAD = """# Offline messages: Amphora beside the servers' own

Written by `benches/peers/run.sh` on {date}; [README.md](README.md) says what is measured and
how to repeat it. Medians of {rounds}, {spread}.

![Messages a second and seconds, by server and storage](peers.svg)
"""


def markdown(figures):
    """The whole page."""
    settings, machine = figures.settings, figures.machine
    rounds = settings["rounds"]
    head = HEAD.format(
        date=machine["date"],
        rounds="one round" if rounds == 1 else f"{rounds} rounds",
        spread="without a range" if rounds == 1 else "with the lowest and the highest",
    )
    parts = [head, _notes(figures), _speeds(figures), _ratios(figures), _kills(figures)]
    parts += [_failures(figures), _machine(figures)]
    return "\n".join(part for part in parts if part)


def _notes(figures):
    notes = []
    load, cores = figures.machine["load"], figures.machine["cores"]
    if not_idle(figures.machine):
        notes.append(
            f"The machine was not idle: its load average was {load:g} before the run, on {cores} cores. "
            "Take the figures as provisional."
        )
    if figures.settings.get("note"):
        notes.append(figures.settings["note"])
    return "\n\n".join(notes) + "\n" if notes else ""


def not_idle(machine):
    """Whether something else took processor time when the run began."""
    return machine["load"] > machine["cores"] / 4


def _table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _speeds(figures):
    settings = figures.settings
    head = [
        "server, storage",
        "how durable",
        f"(a) {settings['messages']:,} to {settings['users']:,} users",
        f"(b) {settings['one']:,} to one user",
        f"(c) log-in that fetches {settings['one']:,}",
        "(a) CPU a message",
        "load, synced write before (a)",
    ]
    rows = [
        [
            f"**{row.label}**" if not row.own else row.label,
            row.durable,
            _cell(row, MANY, row.rates(MANY), rate),
            _cell(row, ONE, row.rates(ONE), rate),
            _cell(row, LOGIN, row.seconds(LOGIN), seconds),
            _cell(row, MANY, row.cpu_microseconds(MANY), "{:,.0f} µs".format),
            _around(row.all(MANY)),
        ]
        for row in figures.rows
    ]
    return _table(head, rows)


def _cell(row, scenario, values, form):
    if not values:
        return "failed" if row.failures(scenario) else "not measured"
    text = form(median(values))
    if len(values) > 1:
        text += f" ({form(min(values))} to {form(max(values))})"
    if row.failures(scenario):
        failed = len(row.rounds) - len(values)
        text += f", {failed} of {len(row.rounds)} failed"
    return text + (", cut short" if row.cut(scenario) else "")


def _around(rounds):
    """What the machine was doing beside: the medians."""
    if not rounds:
        return "-"
    load, sync = (median([one[key] for one in rounds]) for key in ("load", "sync_ms"))
    return f"{load:.1f}, {sync:.1f} ms"


def rate(value):
    """Messages a second."""
    return f"{value:,.0f}/s"


def seconds(value):
    """A time of some seconds."""
    return f"{value:.2f} s"


def _ratios(figures):
    parts = []
    for ours in (row for row in figures.rows if not row.own):
        rows = []
        for other in (row for row in figures.rows if row.own):
            cells = [
                _ratio(ours.rates(MANY), other.rates(MANY)),
                _ratio(ours.rates(ONE), other.rates(ONE)),
                # of the times, so that more is better here too
                _ratio(other.seconds(LOGIN), ours.seconds(LOGIN)),
            ]
            rows.append([other.label, *cells])
        if any(cell != "-" for _, *cells in rows for cell in cells):
            head = [f"{ours.label}, compared with", "(a)", "(b)", "(c)"]
            parts.append(_table(head, rows))
    if not parts:
        return ""
    return "How many times as fast (below 1: slower):\n\n" + "\n".join(parts)


def _ratio(ours, others):
    if not ours or not others:
        return "-"
    value = median(ours) / median(others)
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _kills(figures):
    names = figures.kills()
    if not names:
        return ""
    head = ["(d) accepted messages lost at `kill -9`", *(n.removeprefix(KILL) for n in names)]
    rows = [
        [row.label, *(_lost(row, name) for name in names)]
        for row in figures.rows
        if any(name in one for name in names for one in row.rounds)
    ]
    return _table(head, rows)


def _lost(row, name):
    rounds = row.all(name)
    if not rounds:
        return "failed" if row.failures(name) else "-"
    cells = []
    for one in rounds:
        lost = one["accepted"] - one["survived"]
        text = f"{lost:,} of {one['accepted']:,}"
        cells.append(text + (f", {one['twice']:,} twice" if one["twice"] else ""))
    return "; ".join(cells) + (", some rounds failed" if row.failures(name) else "")


def _failures(figures):
    lines = []
    for row in figures.rows:
        scenarios = dict.fromkeys(name for one in row.rounds for name in one)
        for scenario in scenarios:
            for why in row.failures(scenario):
                lines.append(f"- {row.label}, {name_of(scenario)}: {why}")
            if row.cut(scenario):
                limit = figures.settings["limit"]
                lines.append(
                    f"- {row.label}, {name_of(scenario)}: stopped after {limit:g} s, the rate is up to then"
                )
    return "What failed or was cut short:\n\n" + "\n".join(lines) + "\n" if lines else ""


def _machine(figures):
    machine = figures.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB, "
        f"{machine['system']}. Data on {machine['filesystem']}, where a synced write of 512 bytes took "
        f"{machine['sync_ms']:g} ms (median) before the run. Versions: {versions}. All rounds are in "
        "[peers.json](peers.json).\n"
    )
