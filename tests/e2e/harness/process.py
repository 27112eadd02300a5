"""A process of ours whose output goes to a file, ended by its id and by nothing broader."""

import atexit
import os
import signal
import subprocess

from .waiting import PATIENCE

_running = set()


class Process:
    """Started at once; `log` keeps the output of all its lives."""

    def __init__(self, command, log, cwd, env=None):
        self.log = log
        with open(log, "ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                # Python ignores SIGXFSZ, and so does its child: with a limit on the size of
                # files a write fails, as on a full disk, instead of ending the process
                restore_signals=False,
            )
        _running.add(self)

    @property
    def pid(self):
        """The process id."""
        return self._child.pid

    def returncode(self):
        """The exit code, or None while it runs."""
        return self._child.poll()

    def wait(self, seconds=PATIENCE):
        """The exit code, within a limit."""
        code = self._child.wait(seconds)
        _running.discard(self)
        return code

    def terminate(self, seconds=PATIENCE):
        """SIGTERM, and the exit code."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            self._child.send_signal(signal.SIGCONT)  # a test that failed may have stopped it
        return self.wait(seconds)

    def signal(self, number):
        """Any other signal."""
        self._child.send_signal(number)

    def kill(self):
        """kill -9."""
        if self._child.poll() is None:
            self._child.kill()
        return self.wait()


@atexit.register
def _end_all():
    for process in list(_running):
        process.kill()
