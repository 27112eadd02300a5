"""A network of its own for a node: a namespace, and a pair of interfaces that leads into it (iproute2)."""

import atexit
import contextlib
import itertools
import os
import random
import subprocess

_numbers = itertools.count(1)
_made = set()


def allowed():
    """Whether this user may make one."""
    return os.geteuid() == 0 and _ip("netns", "list", check=False) == 0


class Namespace:
    """One node's network. `outside` are addresses of this machine in it: what a node reaches there it
    reaches over the pair, and an address that is taken away loses every packet without a word."""

    def __init__(self, outside):
        name = f"amp{os.getpid()}-{next(_numbers)}"
        self.name, self._near = name, f"{name}o"
        inner = f"{name}i"
        net = _free_net()
        self.inside = f"{net}.200"
        self.outside = {way: f"{net}.{number}" for number, way in enumerate(outside, 1)}
        _ip("netns", "add", name)
        _made.add(name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", inner, "netns", name)
        _ip("addr", "add", f"{net}.254/24", "dev", self._near)
        _ip("link", "set", self._near, "up")
        for command in (
            ("addr", "add", f"{self.inside}/24", "dev", inner),
            ("link", "set", inner, "up"),
            ("link", "set", "lo", "up"),
        ):
            _ip("-n", name, *command)
        for way in self.outside:
            self.mend(way)

    @property
    def command(self):
        """What goes before a command that is to run in it."""
        return ["ip", "netns", "exec", self.name]

    def hush(self, way):
        """Nothing reaches that address any more."""
        _ip("addr", "del", f"{self.outside[way]}/32", "dev", self._near)

    def mend(self, way):
        """It is there again, with all connections that both ends still know."""
        _ip("addr", "add", f"{self.outside[way]}/32", "dev", self._near)
        # forget that nobody answered there
        _ip("-n", self.name, "neigh", "flush", "all")

    def close(self):
        """It ends, and the pair with it."""
        if self.name in _made:
            _made.discard(self.name)
            _ip("netns", "del", self.name)


def _free_net():
    """Three bytes of addresses that are for tests (RFC 2544), and that nobody uses here."""
    while True:
        net = f"198.{random.choice((18, 19))}.{random.randrange(256)}"
        command = ["ip", "route", "show", f"{net}.0/24"]
        routes = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if not routes.stdout.strip():
            return net


def _ip(*arguments, check=True):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    assert not check or done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.returncode


@atexit.register
def _end_all():
    for name in list(_made):
        with contextlib.suppress(AssertionError):
            _ip("netns", "del", name)
