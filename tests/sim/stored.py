"""What a simulated disk holds: stored values that may be damaged, and the records of its write-ahead log.

A stored value whose block was damaged is a `Damaged`: a read finds it as surely as a checksum would, at no cost for
all the others. Log records are real bytes with a real checksum, so that any torn or flipped bit of them counts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import msgpack

from ackord_node.adapters.engine_maps import StoreMaps
from ackord_node.ports import Batch

HEADER = struct.Struct(">II")  # length of the payload, its checksum


class Damaged(bytes):
    """A stored value whose block fails its checksum."""

    __slots__ = ()


def has_damage(store: StoreMaps) -> bool:
    return any(value.__class__ is Damaged for copy in store.copies.values() for value in copy.values())


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


def with_batches(tables: StoreMaps, batches: Sequence[Batch]) -> StoreMaps:
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
