#!/usr/bin/env python3
"""What a message takes on PostgreSQL's disk, and in its log, in the tables that the node makes.

The server is a new one (tests/servers/serve.sh). Rows are written by SQL, in transactions of 1,024, to
recipients at random, with stanzas of some 500 bytes that hardly shrink. Two cases are the ends between
which a real server is:

- often: each page is touched many times between two checkpoints, so that few pages are logged whole;
- once: the rows of each step are at random places in a table many times as large, and a checkpoint is
  before each step, so that nearly every row has a page, or several, logged whole.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches" / "peers")]

import machine  # noqa: E402

#: The settings that docs/store.md advises.
OPTIONS = "-c shared_buffers=1GB -c max_wal_size=4GB"

#: Ids are an epoch and a counter; keys and JIDs are as long as real ones.
FILL = """
CREATE PROCEDURE fill(first int, n int) LANGUAGE plpgsql AS $$
DECLARE i int := 0;
BEGIN
  WHILE i < n LOOP
    INSERT INTO offline_message (recipient, id, key, sender, kind, size, stored_at, appended_at,
        archived, expires_at, expire_rule, met_rule, stanza)
    SELECT 'user' || lpad((random() * 1e6)::int::text, 8, '0') || '@example.org',
      (7::bigint << 42) + first + g, 'Zk3fQ9xYw2-' || (first + g),
      'sender' || lpad((random() * 1e5)::int::text, 6, '0') || '@example.org/phone.a1b2c3d4', 1, 497,
      1790000000000 + first + g, 1790000000000 + first + g, true,
      CASE WHEN g % 10 = 0 THEN 1790000000000 + first + g END, CASE WHEN g % 10 = 0 THEN 0 END, NULL,
      convert_to('<message xmlns=''jabber:client'' from=''sender000000@example.org/phone.a1b2c3d4'''
        ' to=''user00000000@example.org'' type=''chat'' id=''' || md5(random()::text) || '''><body>' ||
        translate(encode(decode((SELECT string_agg(md5(random()::text || g || x), '')
          FROM generate_series(1, 10) x), 'hex'), 'base64'), E'\\n', '') ||
        '</body><request xmlns=''urn:xmpp:receipts''/><origin-id xmlns=''urn:xmpp:sid:0'' id=''' ||
        md5(random()::text) || '''/></message>', 'UTF8')
    FROM generate_series(i + 1, least(i + 1024, n)) g;
    COMMIT;
    i := i + 1024;
  END LOOP;
END $$
"""

MARKS = "INSERT INTO mark SELECT 'Zk3fQ9xYw2-' || g, NULL, 1790000000000 + g FROM generate_series({}, {}) g"


class Server:
    """A PostgreSQL of its own, with the node's tables."""

    def __init__(self, amphora):
        self.process = subprocess.Popen(
            [ROOT / "tests" / "servers" / "serve.sh", "postgres"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "SERVER_OPTIONS": OPTIONS},
        )
        word, port, *_ = self.process.stdout.readline().split() or [""] * 2
        if word != "ready":
            raise SystemExit("PostgreSQL does not start: see above")
        self.port = port
        self.database = "postgres"
        self.sql("CREATE DATABASE disk OWNER amphora ENCODING 'UTF8' TEMPLATE template0")
        self.database = "disk"
        url = f"postgres://amphora:secret@127.0.0.1:{port}/disk?sslmode=disable"
        environment = {**os.environ, "AMPHORA__STORE__URL": url, "RUST_LOG": "warn"}
        subprocess.run([amphora, "migrate"], check=True, cwd="/", env=environment)
        self.sql(FILL)

    def sql(self, *statements):
        """What the last of them says; each is a transaction of its own."""
        command = ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", self.port,
                   "-U", "postgres", "-d", self.database]
        for statement in statements:
            command += ["-c", statement]
        run = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE,
                             env={**os.environ, "PGPASSWORD": "secret"})
        return run.stdout.strip()

    def logged(self, statement):
        """Bytes of log that a statement makes."""
        before = int(self.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))
        self.sql(statement)
        return int(self.sql("SELECT pg_current_wal_insert_lsn() - '0/0'")) - before

    def count(self):
        """Messages in the table."""
        return int(self.sql("SELECT count(*) FROM offline_message"))

    def stop(self):
        """The end of its input is the sign; then it removes its folder."""
        self.process.stdin.close()
        self.process.wait()


def sizes(server):
    """Bytes a row of the table and of each index, and of a mark."""
    rows = server.count()
    size = "SELECT pg_{}_size('{}')"
    names = {"heap": ("table", "offline_message"), "total": ("total_relation", "offline_message")}
    for index in ("pkey", "key", "expiry"):
        names[index] = ("relation", f"offline_message_{index}")
    found = {key: int(server.sql(size.format(*name))) / rows for key, name in names.items()}
    found["stanza"] = float(server.sql("SELECT avg(length(stanza)) FROM offline_message"))
    return found


def often(server, first, few):
    """Bytes of log a row, where each page is touched many times between two checkpoints."""
    ids = f"BETWEEN (7::bigint << 42) + {first + 1} AND (7::bigint << 42) + {first + few}"
    # the first of them after a checkpoint log whole pages
    server.sql(f"CALL fill({first + few}, {few})")
    return {
        "append": server.logged(f"CALL fill({first}, {few})") / few,
        "delete": server.logged(f"DELETE FROM offline_message WHERE id {ids}") / few,
        "mark": (server.logged(MARKS.format(1, few)) + server.logged("DELETE FROM mark")) / few,
        "vacuum": server.logged("VACUUM offline_message") / few,
    }


def once(server, first, few, compression):
    """Bytes of log a row, where nearly every row has whole pages logged."""
    server.sql(f"ALTER SYSTEM SET wal_compression = {compression}", "SELECT pg_reload_conf()")
    before = server.count()
    server.sql("CHECKPOINT")
    found = {"delete": server.logged(f"DELETE FROM offline_message WHERE random() < {few / before}")}
    gone = before - server.count()
    server.sql("CHECKPOINT")
    found["vacuum"] = server.logged("VACUUM offline_message")
    found = {key: bytes_ / gone for key, bytes_ in found.items()}
    server.sql("CHECKPOINT")
    # into the places of what is gone
    found["append"] = server.logged(f"CALL fill({first}, {gone})") / gone
    return found


def measure(amphora, rows):
    """All of it, on one server."""
    few = rows // 30
    server = Server(amphora)
    try:
        server.sql(f"CALL fill(0, {rows})")
        found = {"rows": rows, "few": few, "size": sizes(server)}
        server.sql(MARKS.format(1, few))
        found["size"]["mark"] = int(server.sql("SELECT pg_total_relation_size('mark')")) / few
        server.sql("TRUNCATE mark")
        found["often"] = often(server, rows, few)
        found["once"] = once(server, rows + 2 * few, few, "off")
        found["once, lz4"] = once(server, rows + 4 * few, few, "lz4")
        for case in ("once", "once, lz4"):
            # a mark is beside the one before it: its pages are touched often, whatever else happens
            found[case]["mark"] = found["often"]["mark"]
        return found
    finally:
        server.stop()


def page(about, found):
    """The page, as Markdown."""
    size = found["size"]
    cases = ("often", "once", "once, lz4")
    names = {"append": "its append", "delete": "its delete", "vacuum": "its place made free by vacuum",
             "mark": "the mark of its key, until that is gone, too"}
    text = [
        "# What a message takes on PostgreSQL's disk",
        "",
        f"Written by `benches/disk.py` on {about['date']}: {found['rows']:,} messages in the tables that the"
        f" node makes, with stanzas of {size['stanza']:.0f} bytes on average that hardly shrink.",
        "",
        "| while it waits | bytes |",
        "| --- | --- |",
        f"| its row, stanza included | {size['heap']:.0f} |",
        f"| the primary key, `(recipient, id)` | {size['pkey']:.0f} |",
        f"| the unique index on its key | {size['key']:.0f} |",
        f"| the index by expiry, where one in ten expires | {size['expiry']:.0f} |",
        f"| **all** | **{size['total']:.0f}** |",
        f"| once it is gone, for ten minutes: its mark | {size['mark']:.0f} |",
        "",
        "| bytes of log for | often | once | once, `wal_compression = lz4` |",
        "| --- | --- | --- | --- |",
    ]
    for key, name in names.items():
        text.append(f"| {name} | " + " | ".join(f"{found[case][key]:,.0f}" for case in cases) + " |")
    sums = (sum(found[case].values()) for case in cases)
    text.append("| **its life** | " + " | ".join(f"**{total:,.0f}**" for total in sums) + " |")
    text += [
        "",
        "PostgreSQL logs a page whole when it is touched for the first time after a checkpoint"
        " (`full_page_writes`). *Often*: each page is touched many times between two checkpoints. *Once*:"
        f" {found['few']:,} rows a step, at random places, and a checkpoint before each step. A real server"
        " is between the two: closer to *once* the larger its table and the shorter the time between"
        " checkpoints.",
        "",
        f"PostgreSQL {about['versions']['postgresql-15']}, {about['system']}. Bytes do not depend on what"
        " else the machine does. Every figure is in [disk.json](disk.json).",
        "",
    ]
    return "\n".join(text)


def main():
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--amphora", required=True, help="the command, for its tables")
    parser.add_argument("--rows", type=int, default=600_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "figures", help="where disk.md goes")
    given = parser.parse_args()
    about = machine.describe(tempfile.gettempdir(), given.amphora)
    found = measure(Path(given.amphora).resolve(), given.rows)
    (given.out / "disk.json").write_text(json.dumps({"machine": about, **found}, indent=1) + "\n")
    (given.out / "disk.md").write_text(page(about, found))
    print(page(about, found))


if __name__ == "__main__":
    main()
