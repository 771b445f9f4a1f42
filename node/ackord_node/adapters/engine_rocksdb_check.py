"""Damage that RocksDB must not be shown (rule R14): record types at which its reader never returns.

RocksDB 9.8 reads its log and its manifest with one reader. Where it meets a record type of recycled logs with
another log's number it takes the same record again and again, for ever; a single flipped bit in a type byte, or
the garbage behind a torn tail, is enough. This store recycles no logs and uses none of the newer types, so a type
beyond the plain ones is damage, and its byte is replaced by one that RocksDB refuses by the record's checksum,
which covers the type. Everything else is left to RocksDB.

The format: blocks of 32 KiB; in them records ``crc32c u32 | length u16 | type u8 | payload``; no header is split;
a zero header ends its block.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
_TYPE_OFFSET = 6
_PLAIN_TYPES = 4  # full, first, middle, last; 0 is the zero header's
_REFUSED_TYPE = 0xFF


def disarm(store_path: Path) -> list[Path]:
    """Makes every such record of the store refusable, durably; the files in which there was one."""
    damaged = []
    for path in sorted((*store_path.glob("*.log"), *store_path.glob("MANIFEST-*"))):
        offsets = list(_odd_types(path))
        if offsets:
            _refuse(path, offsets)
            damaged.append(path)
    return damaged


def _odd_types(path: Path) -> Iterator[int]:
    """Where the type bytes stand that are neither plain nor refused anyway."""
    with path.open("rb") as file:
        base = 0
        while block := file.read(_BLOCK_BYTES):
            at, end = 0, len(block) - _HEADER.size
            while at <= end:
                _, length, kind = _HEADER.unpack_from(block, at)
                if kind > _PLAIN_TYPES and kind != _REFUSED_TYPE:
                    yield base + at + _TYPE_OFFSET
                elif kind == 0 and length == 0:
                    break
                at += _HEADER.size + length
            base += len(block)


def _refuse(path: Path, offsets: list[int]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for offset in offsets:
            os.pwrite(fd, bytes([_REFUSED_TYPE]), offset)
        os.fsync(fd)
    finally:
        os.close(fd)
