"""What the sockets of long-lived connections are told, so that one that leads nowhere ends.

A peer without power, a firewall that has forgotten an idle connection and a partition all say nothing: the kernel would
repeat what was not acknowledged for a quarter of an hour, and after a partition wait as long again as it has lasted.
"""

from __future__ import annotations

import socket
from typing import Any, Final

DEAD_S: Final = 5.0  # what was sent and not acknowledged for so long ends the connection
IDLE_S: Final = 5.0  # a connection on which nothing came for so long is probed,
PROBE_S: Final = 2.0  # again after so long,
PROBES_COUNT: Final = 3  # and ends after so many without an answer

_MS_PER_S: Final = 1000
# Not all systems have all of them; without one a connection ends later, or not before the call's deadline.
_OPTIONS: Final = (
    ("TCP_USER_TIMEOUT", int(DEAD_S * _MS_PER_S)),
    ("TCP_KEEPIDLE", int(IDLE_S)),
    ("TCP_KEEPINTVL", int(PROBE_S)),
    ("TCP_KEEPCNT", PROBES_COUNT),
)


def end_when_dead(connection: Any) -> None:
    """``connection``: a connected TCP socket, or what a transport gives as its "socket"."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
