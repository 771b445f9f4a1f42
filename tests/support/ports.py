"""Free ports for servers that are started later, which no other suite on this machine is given meanwhile.

They are below the range from which the kernel takes the ports of outgoing connections, so none of those gets into
the way. A port is reserved by an abstract Unix socket of its name, which the kernel frees with its process. Whatever
else listens here is found by trying.
"""

from __future__ import annotations

import errno
import random
import socket
from collections import deque
from typing import Final

HOST: Final = "127.0.0.1"
FIRST, LAST = 10_000, 32_000
RESERVED_MAX: Final = 256  # by one process; beyond, the oldest is given back
TRIES_MAX: Final = 1_000

_reserved: deque[socket.socket] = deque()
_random = random.Random()


def free_ports(count: int) -> list[int]:
    """All different."""
    return [free_port() for _ in range(count)]


def free_port() -> int:
    for _ in range(TRIES_MAX):
        port = _random.randint(FIRST, LAST)
        reservation = _reserve(port)
        if reservation is None:
            continue
        if not _is_free(port):
            reservation.close()
            continue
        _reserved.append(reservation)
        if len(_reserved) > RESERVED_MAX:
            _reserved.popleft().close()
        return port
    raise OSError(errno.EADDRINUSE, f"no free port from {FIRST} to {LAST} was found in {TRIES_MAX} tries")


def _reserve(port: int) -> socket.socket | None:
    reservation = socket.socket(socket.AF_UNIX)
    try:
        reservation.bind(f"\0ackord-test-port-{port}")
    except OSError:
        reservation.close()
        return None
    return reservation


def _is_free(port: int) -> bool:
    """On every address: a server elsewhere that listens on all of them would take part in it."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
