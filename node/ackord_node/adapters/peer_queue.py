"""What waits for one peer link: two bounded queues and how they become frames.

Everything queued in one turn of the loop leaves together. Urgent messages (beacons, leases, confirmations)
travel in a frame of their own before any bulk, and a bulk frame is bounded, so a beacon waits for at most
one bulk frame that is already in the socket. Messages are packed when they are queued: the sizes are exact
and nobody can change a message afterwards.
"""

from __future__ import annotations

from collections import deque

from ackord_node.framing import join_frame

URGENT_COUNT_MAX = 8_192
URGENT_FRAME_BYTES = 64 * 1024
BULK_BYTES_MAX = 32 * 1024 * 1024
BULK_FRAME_BYTES = 256 * 1024


class PeerQueue:
    """Packed messages for one peer, in order within each of the two priorities."""

    def __init__(
        self, urgent_count_max: int = URGENT_COUNT_MAX, bulk_bytes_max: int = BULK_BYTES_MAX
    ) -> None:
        self._urgent_count_max = urgent_count_max
        self._bulk_bytes_max = bulk_bytes_max
        self._urgent: deque[bytes] = deque()
        self._bulk: deque[bytes] = deque()
        self._urgent_bytes = 0
        self._bulk_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._urgent or self._bulk)

    @property
    def queued_bytes(self) -> int:
        """Bytes of all messages that wait."""
        return self._urgent_bytes + self._bulk_bytes

    def push_urgent(self, packed: bytes) -> bool:
        """False if the queue is full: nothing was queued."""
        if len(self._urgent) >= self._urgent_count_max:
            return False
        self._urgent.append(packed)
        self._urgent_bytes += len(packed)
        return True

    def push_bulk(self, packed: bytes) -> bool:
        """False if the queue is full: nothing was queued. An empty queue takes a message of any size."""
        if self._bulk and self._bulk_bytes + len(packed) > self._bulk_bytes_max:
            return False
        self._bulk.append(packed)
        self._bulk_bytes += len(packed)
        return True

    def clear(self) -> None:
        self._urgent.clear()
        self._bulk.clear()
        self._urgent_bytes = self._bulk_bytes = 0

    def take(self) -> bytes:
        """At most one urgent and one bulk frame, joined for a single write; b"" if nothing waits."""
        urgent, urgent_bytes = _take(self._urgent, URGENT_FRAME_BYTES)
        bulk, bulk_bytes = _take(self._bulk, BULK_FRAME_BYTES)
        self._urgent_bytes -= urgent_bytes
        self._bulk_bytes -= bulk_bytes
        return join_frame(urgent, urgent_bytes) + join_frame(bulk, bulk_bytes)


def _take(queue: deque[bytes], bytes_max: int) -> tuple[list[bytes], int]:
    """Messages from the left until ``bytes_max`` would be exceeded, at least one if there is any."""
    taken: list[bytes] = []
    size = 0
    while queue and (not taken or size + len(queue[0]) <= bytes_max):
        packed = queue.popleft()
        taken.append(packed)
        size += len(packed)
    return taken, size
