"""The appends of each database beside their limit, as a picture for light and dark pages."""

from plot import BAR, LEFT, RIGHT, STYLE, WIDTH, _text as text

STEP, TOP = 22, 84

#: What is drawn of each database: its words in the figures, ours, and its colour.
BARS = [
    ("limit", "the limit: plain bulk inserts", "own"),
    ("appends, 1024 waiting, 1 a job", "the store, 1,024 waiting", "ours"),
    ("node: durable appends, 1,024 waiting", "a whole node, 1,024 waiting", "ours"),
]


def svg(about, figures):
    """Three bars a database."""
    names = [name for name in ("SQLite", "PostgreSQL", "MariaDB") if ("limit", "rate", name) in figures]
    rates = [figures.get((what, "rate", name), 0) for name in names for what, *_ in BARS]
    scale = (WIDTH - LEFT - RIGHT) / max(rates, default=1)
    lines, y = [], TOP
    for name in names:
        lines.append(text(16, y + 12, name, "text head"))
        y += STEP
        for what, ours, colour in BARS:
            rate = figures.get((what, "rate", name))
            if rate is None:
                continue
            lines.append(text(LEFT - 10, y + BAR - 4, ours, "text", 'text-anchor="end"'))
            width = max(1.0, rate * scale)
            lines.append(f'<rect class="{colour}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}"/>')
            lines.append(text(LEFT + width + 8, y + BAR - 4, f"{rate:,.0f}", "text"))
            y += STEP
        y += 12
    when = f"{about['date']}, {about['cores']} cores, load generator and server on the same"
    if about["load"] > about["cores"] / 4:
        when += f"; the machine was not idle (load {about['load']:g})"
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8}" role="img">',
        "<title>Durable appends a second, by database, beside the limit</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{y + 8}"/>',
        text(16, 28, "Durable appends a second; longer is better", "text title"),
        text(16, 48, when, "faint"),
    ]
    return "\n".join([*head, *lines, "</svg>"]) + "\n"
