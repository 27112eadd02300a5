"""The machine: what it is, how fast its disk syncs, what processes cost."""

import os
import platform
import statistics
import subprocess
import time
from datetime import date
from pathlib import Path

#: Packages whose versions are named, as Debian calls them.
PACKAGES = ("prosody", "ejabberd", "postgresql-15", "postgresql-17", "libsqlite3-0", "erlang-base")
#: Writes that the disk is asked to sync one by one, and the bytes of each.
SYNCS, SYNC_BYTES = 100, 512


def cpu_seconds(pids):
    """Processor time of these processes and all below them, the ended ones included."""
    parents, spent = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        parents[int(folder.name)] = int(fields[1])
        # utime, stime, and those of children that were waited for
        spent[int(folder.name)] = sum(int(field) for field in fields[11:15])
    family = set(pids)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    return sum(spent.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def sync_milliseconds(folder):
    """The median time of a small synced write in that folder."""
    path = Path(folder) / "sync"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DSYNC, 0o600)
    times = []
    try:
        for _ in range(SYNCS):
            begin = time.monotonic()
            os.write(file, b"x" * SYNC_BYTES)
            times.append(time.monotonic() - begin)
    finally:
        os.close(file)
        path.unlink()
    return statistics.median(times) * 1e3


def surroundings(folder):
    """What else the machine is doing: its load average, and how fast its disk syncs."""
    return {"load": round(os.getloadavg()[0], 1), "sync_ms": round(sync_milliseconds(folder), 2)}


def describe(folder, binary):
    """Facts of this run, in the order in which they are shown."""
    return {
        "date": date.today().isoformat(),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{_os_name()}, Linux {platform.release()}",
        "filesystem": _output("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(folder)),
        **surroundings(folder),
        "versions": _versions(binary),
    }


def _versions(binary):
    versions = {"amphora": f"{_output(binary, '--version').split()[-1]} ({_commit()})"}
    for package in PACKAGES:
        found = _output("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", package)
        if found.startswith("installed "):
            versions[package] = found.split()[1]
    return versions


def _commit():
    here = Path(__file__).resolve().parent
    return _output("git", "-C", str(here), "describe", "--always", "--dirty") or "no commit"


def _processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _os_name():
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return "an unknown system"


def _output(*command):
    """What a command prints, or nothing if it can't."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    return done.stdout.strip()
