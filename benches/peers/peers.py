"""Measures offline messages: servers with their own storage, and with Amphora.

Started by run.sh, which installs what is missing.
"""

import argparse
import asyncio
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import contenders
import machine
import plot
import scenarios
import table
from figures import KILL, LOGIN, MANY, ONE, Figures, Row, name_of
from harness.prosody import ROOT
from load import Gone

#: Characters of a failure's reason that are kept.
REASON = 240

EXAMPLES = """
examples:
  run.sh                                   all of them, three rounds, into docs/figures
  run.sh --messages 2000 --one 500 --rounds 1 --out /tmp/figures
                                           a quick look
  run.sh --only amphora prosody-internal   names or beginnings of names
  run.sh --store '{postgresql}'            Amphora on a PostgreSQL of the run's own as well
  run.sh --store mariadb://amphora:secret@127.0.0.1/amphora
                                           ... on a database that is there, and empty
  run.sh --replot                          table and picture again from docs/figures/peers.json
"""


def arguments():
    """What the command line says."""
    keys = ", ".join(kind.key for kind in contenders.ALL)
    parser = argparse.ArgumentParser(
        prog="benches/peers/run.sh",
        description="Measures offline messages in one run on one machine: the servers' own storages, "
        "and the servers with Amphora. Writes a table, a picture and all figures.",
        epilog=f"contenders: {keys}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--messages", type=positive, default=20_000, metavar="N", help="messages to all users (20,000)")
    add("--users", type=positive, default=1_000, metavar="N", help="users of that scenario (1,000)")
    add("--one", type=positive, default=5_000, metavar="N", help="messages to one user (5,000)")
    add("--rounds", type=positive, default=3, metavar="N", help="rounds, whose medians count (3)")
    add("--only", nargs="+", default=[], metavar="NAME", help="only these contenders")
    add("--store", action="append", default=[], metavar="URL", help="Amphora on this store as well")
    add("--no-kill", action="store_true", help="leave the kills out")
    add("--limit", type=positive, default=600, metavar="S", help="seconds a scenario may take (600)")
    add("--note", default="", metavar="TEXT", help="a sentence for the table")
    add(
        "--out",
        type=Path,
        default=ROOT / "docs" / "figures",
        metavar="FOLDER",
        help="where peers.md, peers.svg and peers.json go (docs/figures)",
    )
    add("--replot", action="store_true", help="measure nothing, write from OUT/peers.json again")
    add("--work", type=Path, help=argparse.SUPPRESS)
    add("--packages", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        args.chosen = choose(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def positive(text):
    """A number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def choose(args):
    """The contenders that the command line asks for."""
    offered = [*contenders.ALL, *(kind for url in args.store for kind in contenders.with_store(url))]
    for name in args.only:
        if not any(kind.key.startswith(name) for kind in offered):
            raise ValueError(f"--only {name}: no contender of that name; see --help")
    wanted = tuple(args.only) or ("",)
    return [kind for kind in offered if kind.key.startswith(wanted)]


class Run:
    """All rounds over all contenders, in a folder of their own."""

    def __init__(self, args):
        self.args = args
        keys = ("messages", "users", "one", "rounds", "limit", "note")
        settings = {key: getattr(args, key) for key in keys}
        binary = os.environ["AMPHORA_BIN"]
        rows = [Row(kind.key, kind.label, kind.durable, kind.synced, kind.own) for kind in args.chosen]
        self.figures = Figures(machine.describe(args.work, binary), settings, rows)

    def all(self):
        """Round after round, so that what disturbs the machine for a while meets all alike."""
        for number in range(1, self.args.rounds + 1):
            for kind in self.args.chosen:
                print(f"round {number} of {self.args.rounds}: {kind.label}", flush=True)
                row = self.figures.row(kind.key)
                row.rounds.append({})
                self._round(kind, row.rounds[-1])
                self.write()

    def _round(self, kind, results):
        args = self.args
        self._try(kind, results, MANY, self._many, scenarios.users(args.users))
        self._try(kind, results, ONE, self._one, [scenarios.ONE])
        if args.no_kill:
            return
        for name in kind.kills:
            kill = partial(self._kill, name)
            self._try(kind, results, KILL + name, kill, scenarios.kill_users())

    def _try(self, kind, results, scenario, measure, users):
        """One scenario on a contender that was never used before; a failure is a result."""
        args = self.args
        folder = args.work / "run"
        contender = kind(folder)
        try:
            folder.mkdir()
            contender.start(users)
            around = machine.surroundings(folder)
            asyncio.run(measure(contender, results))
            results[scenario].update(around)
        except (scenarios.Failed, Gone, AssertionError, EOFError, OSError) as error:
            results[scenario] = {"failed": reason(error, args.work)}
            print(f"    {name_of(scenario)} failed: {error}", flush=True)
        finally:
            contender.stop()
            shutil.rmtree(folder, ignore_errors=True)

    async def _many(self, contender, results):
        args, names = self.args, scenarios.users(self.args.users)
        found = await scenarios.throughput(contender, names, args.messages, args.limit)
        if not found["cut"]:
            await scenarios.spot_check(contender, names, args.messages, args.limit)
        results[MANY] = found
        print(f"    (a) {speed(found)}", flush=True)

    async def _one(self, contender, results):
        args = self.args
        found = await scenarios.throughput(contender, [scenarios.ONE], args.one, args.limit)
        results[ONE] = found
        print(f"    (b) {speed(found)}", flush=True)
        if found["cut"]:
            return
        try:
            found = await scenarios.fetch(contender, scenarios.ONE, range(args.one), args.limit)
            results[LOGIN] = found
            print(f"    (c) {found['seconds']:.2f} s", flush=True)
        except scenarios.Failed as error:
            results[LOGIN] = {"failed": str(error)}
            print(f"    (c) failed: {error}", flush=True)

    async def _kill(self, name, contender, results):
        found = await scenarios.killed(contender, name, self.args.messages, self.args.limit)
        results[KILL + name] = found
        lost = found["accepted"] - found["survived"]
        total, twice = found["accepted"], found["twice"]
        print(f"    (d) {name} killed: {lost} of {total} lost, {twice} twice", flush=True)

    def write(self):
        """The three files, after each contender, so that an end in the middle loses little."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        self.figures.save(self.args.out / "peers.json")
        draw(self.figures, self.args.out)


def speed(found):
    """A rate for people."""
    cut = ", cut short" if found["cut"] else ""
    return f"{found['messages'] / found['seconds']:,.0f}/s ({found['seconds']:.1f} s{cut})"


def reason(error, work):
    """What went wrong, short enough for a table, without paths of this run."""
    lines = str(error).replace(str(work), "").split("\n")
    text = " ".join(line.strip() for line in lines if line.strip())
    return text[:REASON] or type(error).__name__


def draw(figures, out):
    """Table and picture."""
    (out / "peers.md").write_text(table.markdown(figures))
    (out / "peers.svg").write_text(plot.svg(figures))


def main():
    """Measure, or write again what was measured."""
    args = arguments()
    # as Ctrl-C does, also where the shell had it ignored
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if args.packages:
        print("\n".join(dict.fromkeys(name for kind in args.chosen for name in kind.packages)))
        return
    if args.replot:
        draw(Figures.load(args.out / "peers.json"), args.out)
        return
    run = Run(args)
    run.all()
    print(f"written: {args.out}/peers.md, peers.svg, peers.json")


if __name__ == "__main__":
    main()
