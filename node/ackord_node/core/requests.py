"""The request-id table: a write runs exactly once however often it is sent (rule R16).

For each client of the tablet: the version at which it registered, the floor below which it needs no
answer any more, and the results above it. A result is a version, an error's code, or a version with the row that
the write was to return; such rows are counted in bytes. The table changes only by applying log entries, in order,
so it is the same on every replica at the same index, and it is part of snapshots.

A client that is not in the table was either never seen or was collected. It was never seen if it registered
after ``collected_below``: collecting a client raises that mark to the client's registration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ackord.wire.frames import packb, unpackb
from ackord_node.core.log import Entry

RETURNED_SLACK_BYTES = 32 * 1024  # of returned rows below the floor, before they are pruned


def result_bytes(result: Any) -> int:
    """What a result holds beside numbers."""
    return 0 if type(result) is int or result[1] is None else len(result[1])


@dataclass(slots=True)
class ClientRecord:
    """``results`` maps a sequence number to the write's version, to minus the error's code, or to ``[version, row or
    None]`` for a write that returns a row."""

    registered: int
    floor: int = 0
    last_version: int = 0
    results: dict[int, Any] = field(default_factory=dict)
    pruned_count: int = 0  # size after the last pruning, so that pruning is amortised
    returned_bytes: int = 0  # of the rows in ``results``
    pruned_bytes: int = 0  # ... after the last pruning

    def encode(self) -> bytes:
        return packb(
            [
                self.registered,
                self.floor,
                self.last_version,
                self.pruned_count,
                list(self.results),
                list(self.results.values()),
                self.pruned_bytes,
            ]
        )

    @classmethod
    def decode(cls, data: bytes) -> ClientRecord:
        registered, floor, last_version, pruned_count, seqs, results, *rest = unpackb(data)
        record = cls(registered, floor, last_version, dict(zip(seqs, results, strict=True)), pruned_count)
        record.returned_bytes = sum(map(result_bytes, results))
        record.pruned_bytes = rest[0] if rest else 0
        return record

    def prune(self) -> None:
        """Forgets results below the floor; a function of the applied entries alone, like all here."""
        if (
            len(self.results) > 2 * self.pruned_count + 64
            or self.returned_bytes > 2 * self.pruned_bytes + RETURNED_SLACK_BYTES
        ):
            floor = self.floor
            self.results = {seq: result for seq, result in self.results.items() if seq >= floor}
            self.pruned_count = len(self.results)
            if self.returned_bytes:
                self.pruned_bytes = self.returned_bytes = sum(map(result_bytes, self.results.values()))


class RequestTable:
    """All clients of one tablet, as of the commit point."""

    __slots__ = ("clients", "collected_below", "dirty", "returned_bytes")

    def __init__(self, collected_below: int = 0) -> None:
        self.clients: dict[bytes, ClientRecord] = {}
        self.collected_below = collected_below
        self.returned_bytes = 0  # of all clients
        self.dirty: dict[bytes, None] = {}  # clients that changed since they were last stored, in order

    def load(self, records: list[tuple[bytes, bytes]]) -> None:
        """Takes stored records, all at once or in pieces."""
        for client, data in records:
            self.clients[client] = record = ClientRecord.decode(data)
            self.returned_bytes += record.returned_bytes

    def apply(self, entry: Entry) -> None:
        version = entry.version
        for group in entry.groups:
            client = group[0]
            if client is None:
                self._collect(group[1])
                continue
            seqs = group[3]
            if client:
                self._apply_group(client, group, version)
            version += len(seqs)

    def _apply_group(self, client: bytes, group: list[Any], version: int) -> None:
        _, registered, floor, seqs, keys, values = group[:6]
        record = self.clients.get(client)
        if record is None:
            record = self.clients[client] = ClientRecord(registered)
        record.floor = max(record.floor, floor)
        results = record.results
        results.update(zip(seqs, range(version, version + len(seqs)), strict=True))
        if None in keys:
            results.update((seqs[at], -values[at]) for at, key in enumerate(keys) if key is None)
        record.last_version = version + len(seqs) - 1
        before = record.returned_bytes
        if len(group) > 6:
            for offset, row in returned_rows(group):
                results[seqs[offset]] = [version + offset, row]
                record.returned_bytes += len(row) if row is not None else 0
        record.prune()
        self.returned_bytes += record.returned_bytes - before
        self.dirty[client] = None

    def _collect(self, cutoff: int) -> None:
        for client, record in list(self.clients.items()):
            if record.last_version < cutoff:
                self.collected_below = max(self.collected_below, record.registered)
                self.returned_bytes -= record.returned_bytes
                del self.clients[client]
                self.dirty[client] = None

    def cutoff(self, keep_count: int) -> int:
        """The ``last_version`` below which clients must go so that at most ``keep_count`` stay."""
        versions = sorted((r.last_version for r in self.clients.values()), reverse=True)
        return versions[keep_count - 1] if keep_count <= len(versions) else 0

    def returned_cutoff(self, keep_bytes: int) -> int:
        """The same so that the returned rows of those that stay, the latest ones, take at most ``keep_bytes``."""
        size = 0
        for record in sorted(self.clients.values(), key=lambda r: r.last_version, reverse=True):
            size += record.returned_bytes
            if size > keep_bytes:
                return record.last_version + 1
        return 0

    def take_dirty(self) -> list[tuple[bytes, bytes | None]]:
        """What changed since the last call, encoded for the store; None for a collected client."""
        changed: list[tuple[bytes, bytes | None]] = []
        for client in self.dirty:
            record = self.clients.get(client)
            changed.append((client, record.encode() if record is not None else None))
        self.dirty.clear()
        return changed


def returned_rows(group: list[Any]) -> list[tuple[int, bytes | None]]:
    """(offset, row) of the group's writes that return one."""
    return [(offset, group[5][offset] if row is True else row) for offset, row in group[6]]
