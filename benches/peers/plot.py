"""The figures as a picture: horizontal bars with numbers, for light and dark pages."""

from xml.sax.saxutils import escape

from figures import LOGIN, MANY, ONE, median
from table import not_idle, rate, seconds

WIDTH = 820
LEFT, RIGHT = 280, 190
BAR, STEP, GAP = 16, 26, 40
TOP = 92

STYLE = """
  svg { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
  .page { fill: #ffffff } .text { fill: #1f2328 } .faint { fill: #59636e }
  .own { fill: #8c959f } .ours { fill: #1f6feb } .unsynced { fill-opacity: 0.45 }
  .range { stroke: #1f2328; stroke-width: 1.2 } .axis { stroke: #d1d9e0 }
  .head { font-weight: 600 } .title { font-size: 16px; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117 } .text { fill: #f0f6fc } .faint { fill: #9198a1 }
    .own { fill: #6e7681 } .ours { fill: #58a6ff }
    .range { stroke: #f0f6fc } .axis { stroke: #3d444d }
  }
"""


def svg(figures):
    """The picture, with a panel for each scenario."""
    settings = figures.settings
    one = f"{settings['one']:,}"
    panels = [
        (
            MANY,
            f"(a) {settings['messages']:,} messages to {settings['users']:,} users who are away",
            "messages a second until all are as durable as the server makes them; longer is better",
        ),
        (ONE, f"(b) {one} messages to one user who is away", "messages a second; longer is better"),
        (
            LOGIN,
            f"(c) the log-in that fetches {one}",
            "seconds from presence to last message; shorter is better",
        ),
    ]
    about = _about(figures)
    parts, y = [], TOP
    for scenario, title, unit in panels:
        lines, y = _panel(figures, scenario, title, unit, y)
        parts += lines
    height = y + 26
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Offline messages: Amphora beside the servers' own storages</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        _text(16, 28, "Offline messages: Amphora beside the servers' own", "text title"),
        *(_text(16, 48 + 18 * i, line, "faint") for i, line in enumerate(about)),
    ]
    legend = [
        f'<rect class="own" x="16" y="{height - 24}" width="12" height="12"/>',
        _text(34, height - 14, "synced to disk before it is accepted", "faint"),
        f'<rect class="own unsynced" x="290" y="{height - 24}" width="12" height="12"/>',
        _text(308, height - 14, "never synced", "faint"),
        f'<rect class="ours" x="420" y="{height - 24}" width="12" height="12"/>',
        _text(438, height - 14, "Amphora: the time until it is synced", "faint"),
    ]
    return "\n".join([*head, *parts, *legend, "</svg>"]) + "\n"


#: Packages whose versions stand in the picture, and their names there.
NAMES = {"amphora": "Amphora", "prosody": "Prosody", "ejabberd": "ejabberd", "postgresql": "PostgreSQL"}


def _about(figures):
    """Two lines: when and where, and the versions."""
    machine, rounds = figures.machine, figures.settings["rounds"]
    when = f"{machine['date']}, {machine['cores']} cores, "
    when += "one round" if rounds == 1 else f"medians of {rounds} rounds, lines from lowest to highest"
    if not_idle(machine):
        when += f"; the machine was not idle (load {machine['load']:g})"
    versions = []
    for package, version in machine["versions"].items():
        name = NAMES.get(package.partition("-")[0])
        if name:
            # without what Debian adds
            versions.append(f"{name} {version.rpartition('-')[0] or version}")
    return when, ", ".join(versions)


def _panel(figures, scenario, title, unit, y):
    """The lines of one panel, and where the next one begins."""
    form = seconds if scenario == LOGIN else rate
    values = {row.key: _values(row, scenario) for row in figures.rows}
    most = max((max(found) for found in values.values() if found), default=1)
    scale = (WIDTH - LEFT - RIGHT) / most
    lines = [_text(16, y + 12, title, "text head"), _text(16, y + 30, unit, "faint")]
    top = y = y + GAP
    for row in figures.rows:
        lines += _bar(row, scenario, values[row.key], scale, y, form)
        y += STEP
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{top}" y2="{y - STEP + BAR + 4}"/>')
    return lines, y + 14


def _values(row, scenario):
    return row.seconds(scenario) if scenario == LOGIN else row.rates(scenario)


def _bar(row, scenario, values, scale, y, form):
    middle = y + BAR - 4
    name = "text" if row.own else "text head"
    lines = [_text(LEFT - 10, middle, row.label, name, 'text-anchor="end"')]
    if not values:
        why = "failed" if row.failures(scenario) else "not measured"
        return [*lines, _text(LEFT + 8, middle, why, "faint")]
    value, low, high = median(values), min(values), max(values)
    kind = ("own" if row.own else "ours") + ("" if row.synced else " unsynced")
    width = max(1.0, value * scale)
    lines.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
    if len(values) > 1:
        across = y + BAR / 2
        lines.append(
            f'<line class="range" x1="{LEFT + low * scale:.1f}" x2="{LEFT + high * scale:.1f}" '
            f'y1="{across}" y2="{across}"/>'
        )
    number = form(value)
    if row.failures(scenario):
        number += f" ({len(row.rounds) - len(values)} failed)"
    if row.cut(scenario):
        number += " (cut short)"
    end = LEFT + max(width, high * scale if len(values) > 1 else 0)
    lines.append(_text(end + 8, middle, number, "text"))
    return lines


def _text(x, y, words, classes, more=""):
    return f'<text class="{classes}" x="{x:.1f}" y="{y}" {more}>{escape(words)}</text>'
