"""Free ports on loopback, below the range from which outgoing connections take theirs."""

import random
import socket

_given = set()


def free_port():
    """A port that nobody listens on and that this process has not given out before."""
    while True:
        port = random.randrange(15000, 32000)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
