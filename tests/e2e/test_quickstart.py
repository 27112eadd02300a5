"""The quickstart goes as it tells, cleans up, and can be run twice at a time."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from harness.node import binary
from harness.prosody import ROOT
from harness.waiting import wait_for

SCRIPT = ROOT / "deploy" / "quickstart.sh"

pytestmark = pytest.mark.timeout(400)


def run(kind, *arguments, **settings):
    """Start the script with the command that is being tested, and that kind of server."""
    return subprocess.Popen(
        [str(SCRIPT), "--server", kind, "--binary", binary(), *arguments],
        **{"stdout": subprocess.PIPE, **settings},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_scene(text):
    """The transcript tells the scene, in order, in plain text."""
    told = ["1. Bob is away", "NOTIFY", "ALERT", "ERROR", "3. Bob comes back", "As told"]
    places = [text.find(word) for word in told]
    assert -1 not in places and places == sorted(places), text
    back = text.index("3. Bob comes back")
    texts = re.findall(r"bob\s+←\s+alice\s+“(.*)”", text[back:])
    assert texts == [
        "Are you coming tonight?",
        "Call me when you read this.",
        "The table is booked for eight.",
        "There you are!",
    ]
    assert "\x1b" not in text, "colours where there is no terminal"


def test_two_at_a_time(kind, tmp_path, tmp_path_factory):
    """Each has its own folder and ports, and leaves neither files nor processes; what both need first, one
    makes."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "AMPHORA_CACHE": str(cache), "PYTHONUTF8": "1"}
    plays = [run(kind, env=environment) for _ in range(2)]
    for play in plays:
        text, _ = play.communicate(timeout=300)
        assert play.returncode == 0, text
        check_scene(text)
    assert list(tmp_path.iterdir()) == [], "something was left"


def test_keep(kind, tmp_path):
    """`--keep` runs on after the scene, until Ctrl-C, and cleans up then."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUTF8": "1"}
    output = tmp_path / "output"
    with open(output, "w") as out:
        play = run(kind, "--keep", stdout=out, env=environment, start_new_session=True)
    try:
        wait_for(lambda: "Running until" in output.read_text() or play.poll() is not None, "the end", 200)
        text = output.read_text()
        assert play.poll() is None, text
        assert "/metrics" in text
        database = Path(re.search(r"its database\s+(\S+)", text).group(1))
        assert database.exists()
    finally:
        os.killpg(play.pid, signal.SIGINT)
        code = play.wait(60)
    assert code == 0, output.read_text()
    assert not database.parent.exists()


def test_a_scene_that_goes_wrong(tmp_path):
    """A command that does nothing: the script says so, and fails."""
    text = subprocess.run(
        [str(SCRIPT), "--binary", "/bin/false"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert text.returncode != 0
    assert "amphora ended with" in text.stderr
    assert "Traceback" not in text.stderr


def test_help():
    """`--help` explains, and starts nothing."""
    text = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, timeout=30)
    assert text.returncode == 0
    assert "--keep" in text.stdout and "quickstart" in text.stdout
