"""Free ports and addresses on loopback; ports below the range that outgoing connections use."""

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


#: Where servers find each other (RFC 6120); without DNS it can't be another port.
S2S = 5269


def free_address():
    """An address of 127/8 on whose port 5269 nobody listens, for a server that others reach.

    There are 16 million of them, so runs at the same time do not get into each other's way.
    """
    while True:
        address = "127." + ".".join(str(random.randrange(1, 255)) for _ in range(3))
        if address in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((address, S2S))
            except OSError:
                continue
        _given.add(address)
        return address
