"""What is done once at the end of a turn of the event loop, however often it was asked for.

So what all frames of a turn bring to a tablet is in one entry, and the entries of all tablets leave in one frame for
each peer: the busier a node is, the longer its turns and the cheaper each write.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Flushable(Protocol):
    def flush(self) -> None: ...


class Turn:
    def __init__(self) -> None:
        self._dirty: dict[Flushable, None] = {}  # in the order of their writes
        self._is_ending = False

    def add(self, host: Flushable) -> None:
        """It has writes that ``end`` is to take on."""
        self._dirty[host] = None

    def want(self, host: Flushable) -> None:
        self.add(host)
        self.end()

    def end(self) -> None:
        """Flushes what was added, and what is until then, at the end of this turn."""
        if self._dirty and not self._is_ending:
            self._is_ending = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._is_ending = False
        dirty, self._dirty = self._dirty, {}
        for host in dirty:
            host.flush()
