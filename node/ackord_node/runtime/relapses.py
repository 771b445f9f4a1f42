"""Damage that comes back: what a rebuilt copy meets again lies in a block that the deletion of its rows did not free.

Rows are deleted by marks. A flipped block at the edge of a tablet's range stays in its file, readers go through it on
their way to the range, and the copy would be rebuilt for ever; RocksDB cannot merge it away either. So the store is
then taken as damaged as a whole (rule R14): it is set aside, and refilled by the peers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from ackord_node.ports import Clock

REBUILDS_COUNT = 3  # of one tablet's copy for damage, so many of them ...
REBUILDS_S = 600.0  # ... in this time show that rebuilding does not help

log = logging.getLogger("ackord.node")


class Holding(Protocol):
    """What must be known of a tablet's copy."""

    @property
    def is_only_copy(self) -> bool: ...


class Relapses:
    """``copies``: by tablet, all that this node holds. ``crash(reason, is_void)`` ends the process."""

    def __init__(
        self, copies: Callable[[], Mapping[int, Holding]], clock: Clock, crash: Callable[[str, bool], None]
    ) -> None:
        self._copies = copies
        self._clock = clock
        self._crash = crash
        self._met: dict[int, deque[float]] = {}

    def met(self, tablet: int) -> None:
        """The tablet's copy is rebuilt because its stored data is damaged."""
        now = self._clock.now()
        times = self._met.setdefault(tablet, deque(maxlen=REBUILDS_COUNT))
        times.append(now)
        if len(times) < REBUILDS_COUNT or now - times[0] > REBUILDS_S:
            return
        only = [other for other, copy in sorted(self._copies().items()) if copy.is_only_copy]
        if only:
            log.error(
                "tablet %x: the damage is still there, but tablet %x has no other copy", tablet, only[0]
            )
            return
        self._crash(
            f"tablet {tablet:x} was rebuilt {REBUILDS_COUNT} times and its data is damaged again: the store is "
            "damaged as a whole (rule R14)",
            True,
        )
