"""What a simulated disk holds: the contents of a store, and the records of its write-ahead log.

A stored value whose block was damaged is a `Damaged`: a read finds it as surely as a checksum would, at no cost for
all the others. Log records are real bytes with a real checksum, so that any torn or flipped bit of them counts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import msgpack

from ackord_node.adapters.engine_memory import SortedMap
from ackord_node.core.history import history_key
from ackord_node.ports import Batch

HEADER = struct.Struct(">II")  # length of the payload, its checksum


class Damaged(bytes):
    """A stored value whose block fails its checksum."""

    __slots__ = ()


@dataclass(slots=True)
class Copy:
    """What is stored of one tablet."""

    meta: bytes | None = None
    log: SortedMap[int] = field(default_factory=SortedMap)
    rows: SortedMap[bytes] = field(default_factory=SortedMap)
    requests: SortedMap[bytes] = field(default_factory=SortedMap)
    history: SortedMap[bytes] = field(default_factory=SortedMap)  # core.history.history_key -> row

    def share(self) -> Copy:
        spaces = (self.log.share(), self.rows.share(), self.requests.share(), self.history.share())
        return Copy(self.meta, *spaces)

    def values(self) -> Iterator[bytes]:
        if self.meta is not None:
            yield self.meta
        for space in (self.log, self.rows, self.requests, self.history):
            for _, value in space.items(None, None):
                yield value


@dataclass(slots=True)
class State:
    """The contents of a store."""

    node: dict[str, bytes] = field(default_factory=dict)
    copies: dict[int, Copy] = field(default_factory=dict)

    def share(self) -> State:
        return State(dict(self.node), {tablet: copy.share() for tablet, copy in self.copies.items()})

    def copy(self, tablet: int) -> Copy:
        found = self.copies.get(tablet)
        if found is None:
            found = self.copies[tablet] = Copy()
        return found

    def apply(self, batch: Batch) -> None:
        """The batch in the port's order."""
        for tablet in batch.clear:
            self.copies[tablet] = Copy(self.copy(tablet).meta)
        for tablet in batch.forget:
            self.copies.pop(tablet, None)
        for tablet, index in batch.cut:
            self.copy(tablet).log.keep(None, index)
        for tablet, index in batch.trim:
            self.copy(tablet).log.keep(index, None)
        for tablet, meta in batch.meta.items():
            self.copy(tablet).meta = meta
        for tablet, index, record in batch.log:
            self.copy(tablet).log.put(index, record)
        for tablet, key, row in batch.rows:
            self.copy(tablet).rows.put(key, row)
        for tablet, client, request in batch.requests:
            self.copy(tablet).requests.put(client, request)
        for tablet, key, version, row in batch.history:
            self.copy(tablet).history.put(history_key(key, version, row is None), row or b"")
        for tablet, key, version, is_deletion in batch.history_drop:
            self.copy(tablet).history.put(history_key(key, version, is_deletion), None)
        self.node.update(batch.node)

    def size_bytes(self) -> int:
        return sum(len(value) for copy in self.copies.values() for value in copy.values())

    def is_damaged(self) -> bool:
        return any(value.__class__ is Damaged for copy in self.copies.values() for value in copy.values())


def encoded(batch: Batch) -> bytes:
    payload: bytes = msgpack.packb(
        [
            batch.clear,
            batch.forget,
            batch.cut,
            batch.trim,
            list(batch.meta.items()),
            batch.log,
            batch.rows,
            batch.requests,
            batch.history,
            batch.history_drop,
            list(batch.node.items()),
        ]
    )
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _decoded(payload: bytes) -> Batch:
    clear, forget, cut, trim, meta, log, rows, requests, history, history_drop, node = msgpack.unpackb(
        payload, use_list=False
    )
    return Batch(
        list(clear),
        list(forget),
        list(cut),
        list(trim),
        dict(meta),
        list(log),
        list(rows),
        list(requests),
        list(history),
        list(history_drop),
        dict(node),
    )


def with_batches(tables: State, batches: Sequence[Batch]) -> State:
    state = tables.share()
    for batch in batches:
        state.apply(batch)
    return state


def replayed(wal: Sequence[bytes]) -> tuple[list[Batch], bool]:
    """The batches up to the end of the log or its first damage; True if that is damage and not just an end that
    was never written whole."""
    data = b"".join(wal)
    batches: list[Batch] = []
    at = 0
    while at < len(data):
        if len(data) - at < HEADER.size:
            break
        length, checksum = HEADER.unpack_from(data, at)
        at += HEADER.size
        if length > len(data) - at:
            break
        payload = data[at : at + length]
        if zlib.crc32(payload) != checksum:
            return batches, True
        batches.append(_decoded(payload))
        at += length
    return batches, False
