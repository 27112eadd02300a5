#!/usr/bin/env python3
"""Runs the benches of the store and of a whole node on all databases, and writes what they say.

Each server is a new one (tests/servers/serve.sh) in TMPDIR, which must be on a real disk: it syncs
as in earnest. Its memory and its log are what docs/store.md advises; all else is its default.
The figures are medians over the rounds, of one run on one machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches" / "peers"), str(ROOT / "benches" / "store_runs")]

import machine  # noqa: E402
import picture  # noqa: E402

#: Name, kind for serve.sh, options of the server, URL.
DATABASES = {
    "sqlite": ("SQLite", None, "", ""),
    "postgres": (
        "PostgreSQL",
        "postgres",
        "-c shared_buffers=1GB -c max_wal_size=4GB",
        "postgres://amphora:secret@127.0.0.1:{port}/bench?sslmode=disable",
    ),
    "mariadb": (
        "MariaDB",
        "mariadb",
        "--innodb-buffer-pool-size=1G --innodb-log-file-size=1G",
        "mysql://amphora:secret@127.0.0.1:{port}/bench?sslmode=disable",
    ),
}

#: Figures of the table: the bench's words, ours, and how a number is shown.
ROWS = [
    ("limit", "the limit: plain bulk inserts, rows a second", "rate", "{:,.0f}"),
    ("limit, two connections", "the same on two connections, as the store has them there", "rate", "{:,.0f}"),
    ("appends, 1024 waiting, 1 a job", "durable appends a second, 1,024 waiting", "rate", "{:,.0f}"),
    ("appends, 1024 waiting, 1 a job", "as a part of the limit (aim: 0.60)", "ratio", "{:.2f}"),
    ("appends, 1024 waiting, 1 a job", "processor time of an append, the node's part, µs", "cpu", "{:.1f}"),
    ("appends, 1024 waiting, 1 a job", "the server's part, µs", "server_cpu", "{:.1f}"),
    ("appends, 64 waiting, 1 a job", "p99 of an append with 64 waiting, ms (aim: 10)", "p99", "{:.1f}"),
    ("appends, 1 waiting, 1 a job", "p50 of an append that is alone, ms", "p50", "{:.1f}"),
    ("hand-over of 5,000, store alone", "hand-over of 5,000, the store alone, ms", "ms", "{:.0f}"),
    ("node: the limit", "the limit beside the whole node, rows a second", "rate", "{:,.0f}"),
    ("node: durable appends, 1,024 waiting", "whole node: durable appends a second, 1,024 waiting", "rate", "{:,.0f}"),
    ("node: durable appends, 1,024 waiting", "as a part of the limit beside it (aim: 0.60)", "ratio", "{:.2f}"),
    ("node: durable appends, 4,096 waiting", "whole node: durable appends a second, 4,096 waiting", "rate", "{:,.0f}"),
    ("node: durable appends, 4,096 waiting", "as a part of the limit beside it", "ratio", "{:.2f}"),
    ("node: durable appends, 64 waiting", "whole node: p50 of a verdict with 64 waiting, ms", "p50", "{:.1f}"),
    ("node: durable appends, 64 waiting", "whole node: p99 of a verdict with 64 waiting, ms (aim: 10)", "p99", "{:.1f}"),
    ("node: hand-over of 5,000 to one user", "whole node: hand-over of 5,000, ms (aim: 100)", "ms", "{:.0f}"),
    ("node: memory", "whole node: memory at its peak, MiB", "peak", "{:.0f}"),
    ("rows before", "rows in the table before what follows", "rows", "{:,.0f}"),
    ("limit, many rows", "the limit there: plain bulk inserts, rows a second", "rate", "{:,.0f}"),
    ("appends, 1024 waiting, many rows", "durable appends a second there, 1,024 waiting", "rate", "{:,.0f}"),
    ("appends, 1024 waiting, many rows", "as a part of the limit there", "ratio", "{:.2f}"),
    ("hand-over of 5,000, many rows", "hand-over of 5,000 there, the store alone, ms", "ms", "{:.0f}"),
    ("node: hand-over of 5,000, many rows", "whole node: hand-over of 5,000 there, ms (aim: 100)", "ms", "{:.0f}"),
    ("node: durable appends, many rows", "whole node: durable appends a second there, 1,024 waiting", "rate", "{:,.0f}"),
    ("node: memory, many rows", "whole node: memory at its peak there, MiB", "peak", "{:.0f}"),
    ("count of a user's messages", "a count of a user's messages there, ms", "ms", "{:.2f}"),
    ("page of expiries", "a page of expiries there, ms", "ms", "{:.2f}"),
    ("appends, 64 waiting, without retention", "p99 with 64 waiting there, ms", "p99", "{:.1f}"),
    ("appends, 64 waiting, during retention", "the same during a round of retention, ms", "p99", "{:.1f}"),
    ("a round of retention", "that round, s (90: given up)", "s", "{:.0f}"),
    ("a round of retention", "old rows that it removed a second (one in 100 is old)", "rate", "{:,.0f}"),
    ("hand-over of 5,000, after churn", "hand-over of 5,000 after the coming and going below, the store alone, ms", "ms", "{:.0f}"),
    ("node: hand-over of 5,000, after churn", "whole node: hand-over of 5,000 after it, ms (aim: 100)", "ms", "{:.0f}"),
    ("node: durable appends, after churn", "whole node: durable appends a second after it, 1,024 waiting", "rate", "{:,.0f}"),
]

RULES = [
    ("node: three rules evaluated, no store", "three rules evaluated a second, nothing stored, 1,024 waiting", "rate",
     "{:,.0f}"),
    ("node: three rules evaluated, no store", "p50, ms", "p50", "{:.1f}"),
    ("node: three rules evaluated, no store", "p99, ms", "p99", "{:.1f}"),
    ("node: three rules evaluated, 64 waiting", "the same, 64 waiting", "rate", "{:,.0f}"),
    ("node: three rules evaluated, 64 waiting", "p50, ms", "p50", "{:.1f}"),
    ("node: three rules evaluated, 64 waiting", "p99, ms", "p99", "{:.1f}"),
    ("node: expiries, 200 a second", "messages that wait for another time in what follows", "waiting", "{:,.0f}"),
    ("node: expiries, 200 a second", "200 expiries a second: late by, p50, ms", "p50", "{:.1f}"),
    ("node: expiries, 200 a second", "p99, ms", "p99", "{:.1f}"),
    ("node: expiries, 20,000 at once", "20,000 expiries at one moment: notices a second", "rate", "{:,.0f}"),
    ("node: expiries, 20,000 at once", "the last late by, ms", "max", "{:,.0f}"),
]

COSTS = [
    ("inserts without the fence, 1024 a transaction", "inserts without the fence, 1,024 rows a transaction", "times",
     "{:.2f}"),
    ("inserts without the fence, 64 a transaction", "the same, 64 rows a transaction", "times", "{:.2f}"),
    ("inserts without the fence, 1 a transaction", "the same, one row a transaction", "times", "{:.2f}"),
    ("inserts without the unique key, 1024 a transaction", "inserts without the unique key, 1,024 rows a transaction",
     "times", "{:.2f}"),
    ("deletes without marks, 1024 a transaction", "deletes without marks, 1,024 rows a transaction", "times", "{:.2f}"),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", default=",".join(DATABASES), help="which, with commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of each run")
    parser.add_argument("--rows-before", type=int, default=0, help="measure again with so many; 0: don't")
    parser.add_argument("--churn", type=int, default=0,
                        help="minutes of coming and going, on all databases at the same time; 0: none")
    parser.add_argument("--rate", type=int, default=5_000, help="messages a second of each database's churn")
    parser.add_argument("--costs", type=int, default=0,
                        help="rounds of what the fence, the unique key and the marks cost; 0: none")
    parser.add_argument("--add", action="store_true",
                        help="keep what store.json has of other runs, but for what is measured anew")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="where store.md goes")
    parser.add_argument("--replot", action="store_true", help="write the page anew from store.json")
    return parser.parse_args()


def said(options):
    """The arguments that say what is measured, those that are not used left out."""
    names = ["databases", "rounds", "rows"]
    names += ["rows_before"] if options.rows_before else []
    names += ["churn", "rate"] if options.churn else []
    names += ["costs"] if options.costs else []
    return {name: getattr(options, name) for name in names}


def command_line(arguments):
    """What is typed for them."""
    words = [f"--{name.replace('_', '-')} {value}" for name, value in arguments.items()]
    return " ".join(["benches/databases.py", *words])


class Server:
    """A database server of its own, or a file."""

    def __init__(self, key, folder):
        _, kind, options, url = DATABASES[key]
        self.process = None
        if kind is None:
            self.url = f"sqlite://{folder}/amphora.db"
            return
        environment = {**os.environ, "SERVER_OPTIONS": options}
        self.process = subprocess.Popen(
            [ROOT / "tests" / "servers" / "serve.sh", kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        word, _, rest = self.process.stdout.readline().strip().partition(" ")
        if word != "ready":
            raise SystemExit(f"{kind} does not start: see above")
        self.port = rest.split()[0]
        self.url = url.format(port=self.port)
        self._make_database(kind)

    def _make_database(self, kind):
        clients = {
            "postgres": ["psql", "-q", "-h", "127.0.0.1", "-p", self.port, "-U", "amphora",
                         "-d", "postgres", "-c", "CREATE DATABASE bench"],
            "mariadb": ["mariadb", "--no-defaults", "-h", "127.0.0.1", "-P", self.port, "-u", "amphora",
                        "-psecret", "-e", "CREATE DATABASE bench"],
        }
        subprocess.run(clients[kind], check=True, env={**os.environ, "PGPASSWORD": "secret"})

    def stop(self):
        if self.process:
            # The end of its input is the sign; then it removes its folder.
            self.process.stdin.close()
            self.process.wait()


def command(name, words, lines):
    """What runs a bench that adds its figures to the file."""
    return ["cargo", "bench", "--locked", "--quiet", "--bench", name, "--", "--json", str(lines), *words]


def bench(name, words, lines):
    """One run."""
    subprocess.run(command(name, words, lines), cwd=ROOT, check=True)


def measure(options, folder):
    """All databases, one after the other: each has the machine for itself."""
    if not (options.rounds or options.rows_before or options.costs):
        return
    for key in options.databases.split(","):
        server, lines = Server(key, folder), folder / "lines"
        try:
            store, node, rows = ["--url", server.url], ["--store", server.url], str(options.rows)
            if options.rounds:
                bench("store", [*store, "--rows", rows, "--rounds", str(options.rounds)], lines)
            for _ in range(options.rounds):
                bench("load", [*node, "--messages", rows, "--waiting", "10000"], lines)
            if options.rows_before:
                bench("store", [*store, "--rows-before", str(options.rows_before), "--rows", rows], lines)
                bench("load", [*node, "--beside", "many rows", "--messages", rows], lines)
            if options.costs:
                bench("store", [*store, "--costs", "--rows", rows, "--rounds", str(options.costs)], lines)
        finally:
            server.stop()


def come_and_go(options, folder):
    """All databases at the same time, each at its steady rate; then, one after the other, a node on what
    that has left."""
    servers = {key: Server(key, folder) for key in options.databases.split(",")}
    try:
        # Some twelve lines a database, however long.
        words = ["--churn", str(options.churn), "--rate", str(options.rate), "--interval", str(5 * options.churn)]
        runs = []
        for key, server in servers.items():
            run = command("store", ["--url", server.url, *words], folder / f"lines-{key}")
            runs.append(subprocess.Popen(run, cwd=ROOT))
        if any([run.wait() for run in runs]):
            raise SystemExit("a run of coming and going failed: see above")
        for key, server in servers.items():
            bench("load", ["--store", server.url, "--beside", "after churn"], folder / f"lines-{key}")
    finally:
        for server in servers.values():
            server.stop()


def medians(lines):
    """By database and what was measured: each number's median. Runs of churn stay as they are."""
    found, churn = {}, {}
    for line in lines:
        database, what, numbers = line["database"], line["what"], line["numbers"]
        if what.startswith("churn, minute"):
            churn.setdefault(database, []).append(numbers)
            continue
        for name, number in numbers.items():
            if name == "ratio" and not number:
                # So it was written where there was no limit.
                continue
            found.setdefault((what, name, database), []).append(number)
    return {key: statistics.median(numbers) for key, numbers in found.items()}, churn


def page(about, figures, churn, settings):
    """The page, as Markdown."""
    names = [name for name, *_ in DATABASES.values() if any(key[2] == name for key in figures)]
    note = ""
    if about["load"] > about["cores"] / 4:
        note = (
            f" **The machine was not idle when the run began (load {about['load']:g}): others used"
            " the same cores and the same disk, and every figure is worse for it.** Compare within a"
            " column only."
        )
    text = [
        "# The store on each database",
        "",
        f"Written by `benches/databases.py` on {about['date']}. Medians of {settings['rounds']} round(s), but for"
        " what is said of a place 'there', of the retention and of the coming and going: these are of a"
        f" single run.{note}",
        *(["", settings["note"]] if settings.get("note") else []),
        *_runs(settings.get("runs", [])),
        "",
        "![Durable appends a second, by database, beside the limit](store.svg)",
        "",
        *_table(names, ROWS, figures),
        "",
        *_what_is_measured(),
        *_more("Rules and expiries", "Of a whole node, with the same messages.", names, RULES, figures),
        *_more("What the fence, the unique key and the marks cost",
               "How many times as fast it is without, in transactions like the store's.", names, COSTS, figures),
        *_churn(churn),
        "",
        _machine(about),
    ]
    return "\n".join(text) + "\n"


def _runs(runs):
    """The commands, each with when and of what it was run."""
    if not runs:
        return []
    text = ["", "Measured by these, as far as it was recorded; what two of them measured is of the later one.", ""]
    for run in runs:
        text.append(f"- {run['date']}, amphora {run['amphora']}, {run['processor']}, at a load of {run['load']:g}:"
                    f" `{command_line(run['arguments'])}`")
    return text


def _table(names, rows, figures):
    """A column a database, a row a figure that any of them has."""
    text = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for what, ours, name, form in rows:
        values = [figures.get((what, name, database)) for database in names]
        if any(value is not None for value in values):
            cells = ["–" if value is None else form.format(value) for value in values]
            text.append(f"| {ours} | " + " | ".join(cells) + " |")
    return text


def _more(title, words, names, rows, figures):
    """A section with a table, if there is something to tell."""
    table = _table(names, rows, figures)
    return ["", f"## {title}", "", words, "", *table] if len(table) > 2 else []


def _what_is_measured():
    return [
        "The limit is the fastest of the plain forms of a bulk insert, of the same rows, by the same"
        " driver, on one connection, into the same tables of the same server, 1,024 rows a transaction,"
        " the rows made before the clock runs. To PostgreSQL the store has two connections, and may pass it."
        " An append counts when its commit was answered. A hand-over reads"
        " pages of 50 and deletes each; for the whole node the client's acknowledgements come at once."
        " The load generator runs on the same cores.",
        "",
        "'There' is beside the rows before, which are of 50 to a user. The limit there is of the same users as"
        " the store's appends there, right after these, and its rows are removed before anything else is measured."
        " The whole node's appends go to 1,000 users there as elsewhere.",
        "",
        "Every server syncs each commit. Memory and log are what [store.md](../store.md) advises"
        " (`shared_buffers` and `innodb_buffer_pool_size` 1 GiB, `max_wal_size` 4 GiB,"
        " `innodb_log_file_size` 1 GiB); all else is the default.",
    ]


def _churn(churn):
    if not churn:
        return []
    text = [
        "",
        "## Coming and going",
        "",
        "Messages come at a steady rate and go by pages of 50, at a steady number of rows, on all of these"
        " databases at the same time.",
        "",
        "| database, minute | rows/s | append p99, ms | page p99, ms | table, MB | bench, MiB | server, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for database, intervals in churn.items():
        for at in intervals:
            text.append(
                f"| {database}, {at['minute']:.1f} | {at['rate']:,.0f} | {at['p99']:.1f} | {at['page']:.1f} "
                f"| {at['table']:.0f} | {at['node']:.0f} | {at['server']:.0f} |"
            )
    return text


def _machine(about):
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    return (
        f"{about['cores']} cores ({about['processor']}), {about['memory_gib']} GiB, {about['system']}. Data on"
        f" {about['filesystem']}, where a synced write of 512 bytes took {about['sync_ms']:.2f} ms (median)"
        f" before the run; the load average was {about['load']:g}. Versions: {versions}. Every figure is in"
        " [store.json](store.json)."
    )


def add(data, former):
    """What a former run has measured, and this one instead of it where both have."""
    anew = {(line["database"], line["what"].partition(", minute")[0]) for line in data["lines"]}
    kept = [line for line in former["lines"]
            if (line["database"], line["what"].partition(", minute")[0]) not in anew]
    runs = former["settings"].get("runs", []) + data["settings"]["runs"]
    return {**former, "settings": {**former["settings"], "runs": runs}, "lines": kept + data["lines"]}


def main():
    options = arguments()
    saved = options.out / "store.json"
    if options.replot:
        data = json.loads(saved.read_text())
    else:
        machine.PACKAGES = ("postgresql-15", "postgresql-17", "mariadb-server")
        with tempfile.TemporaryDirectory(prefix="amphora-databases.") as folder:
            subprocess.run(["cargo", "bench", "--locked", "--no-run", "--bench", "store", "--bench", "load"],
                           cwd=ROOT, check=True)
            about = machine.describe(folder, "true")
            about["versions"]["amphora"] = machine._commit()
            measure(options, Path(folder))
            if options.churn:
                come_and_go(options, Path(folder))
            lines = [line for file in Path(folder).glob("lines*") for line in file.read_text().splitlines()]
        run = {"date": about["date"], "load": about["load"], "processor": about["processor"],
               "amphora": about["versions"]["amphora"], "arguments": said(options)}
        data = {"machine": about, "settings": {"rounds": options.rounds, "runs": [run]},
                "lines": list(map(json.loads, lines))}
        if options.add:
            data = add(data, json.loads(saved.read_text()))
        options.out.mkdir(parents=True, exist_ok=True)
        saved.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    figures, churn = medians(data["lines"])
    (options.out / "store.md").write_text(page(data["machine"], figures, churn, data["settings"]))
    (options.out / "store.svg").write_text(picture.svg(data["machine"], figures))
    print(f"written: {options.out / 'store.md'}")


if __name__ == "__main__":
    main()
