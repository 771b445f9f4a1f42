"""What happened in a run: counted by kind, hashed into the run's digest, and told line by line if asked to."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.kernel import World

LINES_MAX = 4000


class Trace:
    """``note`` is what a reader wants to see; ``hashed`` all that two runs of one seed must have in common."""

    def __init__(self, world: World, is_wordy: bool = False) -> None:
        self.is_wordy = is_wordy
        self.faults: Counter[str] = Counter()
        self.lines: deque[str] = deque(maxlen=LINES_MAX if not is_wordy else None)
        self._world = world
        self._hash = hashlib.blake2b(digest_size=16)

    def note(self, text: str) -> None:
        line = f"{self._world.now:11.6f} {text}"
        self.lines.append(line)
        self._hash.update(line.encode())

    def fault(self, kind: str, text: str = "") -> None:
        self.faults[kind] += 1
        self.note(f"** {kind} {text}")

    def count(self, kind: str) -> None:
        """A fault that is too frequent for a line of its own."""
        self.faults[kind] += 1

    def hashed(self, source: str, target: str, data: bytes) -> None:
        self._hash.update(f"{self._world.now:.9f} {source} {target}".encode())
        self._hash.update(data)

    def detail(self, text: str) -> None:
        if self.is_wordy:
            self.lines.append(f"{self._world.now:11.6f} {text}")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
