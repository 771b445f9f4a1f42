"""What a tablet removes in the background, counted for whoever watches the node. Nothing is decided by it."""

from __future__ import annotations


class Upkeep:
    __slots__ = ("_rows_expired_count", "_versions_removed_count", "keys_waiting")

    def __init__(self) -> None:
        self.keys_waiting: dict[
            bytes, float
        ] = {}  # got versions, to be looked at; since when, the oldest first
        self._rows_expired_count = 0
        self._versions_removed_count = 0

    def rows_expired(self, count: int) -> None:
        """Deletions of expired rows were appended here."""
        self._rows_expired_count += count

    def versions_removed(self, count: int) -> None:
        self._versions_removed_count += count

    def take_counts(self) -> tuple[int, int]:
        """Expired rows and removed versions since this was asked last."""
        counts = self._rows_expired_count, self._versions_removed_count
        self._rows_expired_count = self._versions_removed_count = 0
        return counts

    def waiting_s(self, now: float) -> float:
        """How long the key that waits longest for the removal of its versions has done so."""
        since = next(iter(self.keys_waiting.values()), now)
        return max(now - since, 0.0)
