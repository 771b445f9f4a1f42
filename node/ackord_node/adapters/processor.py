"""How long a thread waited for a processor: what other processes took, and not the node itself."""

from __future__ import annotations

import contextlib
import os
from typing import Final

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"  # nanoseconds run, nanoseconds waited, times run
_BYTES: Final = 96


class ProcessorWaits:
    """Of the thread that makes it, whoever asks. A system that does not tell counts as one that never makes it wait."""

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)

    def seconds(self) -> float:
        """Since the thread began."""
        if self._file is None:
            return 0.0
        try:
            return int(os.pread(self._file, _BYTES, 0).split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0
