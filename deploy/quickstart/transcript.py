"""Prints a conversation so that it can be read down the middle of the page."""

import os
import textwrap
from datetime import datetime

WIDTH = 92
INDENT = " " * 36
COLOURS = {"alice": "36", "bob": "33", "remark": "2", "title": "1", "good": "32"}


def wrap(text, width):
    """Lines of so many characters, never broken inside a word."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


class Transcript:
    """One line an event: time, who, which way, with whom, what."""

    def __init__(self, out):
        self.out = out
        out.reconfigure(errors="replace")
        self.coloured = out.isatty() and "NO_COLOR" not in os.environ
        self.arrows = "utf" in (out.encoding or "").lower()

    def paint(self, text, colour):
        """Coloured on a terminal."""
        if not self.coloured or colour not in COLOURS:
            return text
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"

    def line(self, text=""):
        """A line as it is, at once."""
        print(text, file=self.out, flush=True)

    def title(self, text):
        """A new part."""
        self.line()
        self.line(self.paint(text, "title"))
        self.line(self.paint(("─" if self.arrows else "-") * len(text), "title"))

    def remark(self, text):
        """What the narrator says."""
        self.line(f"    {text}" if text else "")

    def event(self, who, way, other, text, *details):
        """`who` sends to (`way` is '>') or gets from ('<') `other`; details go below."""
        arrow = {">": "→", "<": "←"}[way] if self.arrows else {">": "->", "<": "<-"}[way]
        clock = datetime.now().strftime("%H:%M:%S")
        head = f"  {clock}  {self.paint(f'{who:>5}', who)} {arrow:<2} {other:<13}"
        first, *rest = wrap(text, WIDTH - len(INDENT))
        self.line(f"{head}  {first}")
        for more in rest:
            self.line(f"{INDENT}{more}")
        for detail in details:
            for more in wrap(detail, WIDTH - len(INDENT)):
                self.line(f"{INDENT}{self.paint(more, 'remark')}")

    def good(self, text):
        """Something turned out as told."""
        mark = "✓" if self.arrows else "ok:"
        self.line(f"    {self.paint(mark, 'good')} {text}")
