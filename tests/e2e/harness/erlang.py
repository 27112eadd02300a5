"""The Erlang side: compiling ejabberd's modules, and writing terms."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
INTERCEPTOR = ROOT / "deploy" / "ejabberd"
TESTS = ROOT / "tests" / "e2e" / "modules"


def libraries():
    """The folder that holds ejabberd's application, as Debian installs it."""
    found = sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))
    if not found:
        raise FileNotFoundError("ejabberd is missing")
    return found[-1].parents[1]


def compile_erlang(folder, *sources):
    """Compile the interceptor, or these files, into the folder; a warning is an error."""
    done = subprocess.run(
        [INTERCEPTOR / "compile.sh", str(folder), *map(str, sources)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def beams():
    """A folder with what the sources compile to, made once for each process that tests."""
    folder = Path(tempfile.mkdtemp(prefix="amphora-beams-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    compile_erlang(folder)
    compile_erlang(folder, *sorted(TESTS.glob("*.erl")))
    return folder


def erlang(value):
    """A Python value as an Erlang term; a string is a binary."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return "<<" + ",".join(map(str, value.encode())) + ">>"
    if isinstance(value, tuple):
        return "{" + ",".join(map(erlang, value)) + "}"
    return "[" + ",".join(map(erlang, value)) + "]"
