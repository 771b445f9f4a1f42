"""Damage that RocksDB must not be shown (rule R14): it would take it for something else than damage.

RocksDB 9.8 reads its log and its manifest with one reader, and a single flipped bit can mislead it. A record type of
recycled logs with another log's number makes it take the same record again and again, for ever. A length beyond the
end of the file makes it take that record for the torn end of the file, and everything behind it for nothing: of a
manifest, tables full of rows would be gone without a word. This store recycles no logs and uses none of the newer
types, so a type beyond the plain ones is damage; and a record whose checksum fits fewer bytes than it claims was not
torn. Both become records that RocksDB refuses by their checksum. Everything else is left to RocksDB.

The format: blocks of 32 KiB; in them records ``crc32c u32 | length u16 | type u8 | payload``; the checksum covers type
and payload, and is masked; no header is split; a zero header ends its block.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
_LENGTH_OFFSET = 4
_LENGTH_AND_TYPE = struct.Struct("<HB")
_PLAIN_TYPES = 4  # full, first, middle, last; 0 is the zero header's
_REFUSED_TYPE = 0xFF
_CASTAGNOLI = 0x82F63B78  # the polynomial of CRC-32C, reflected
_MASK_DELTA = 0xA282EAD8
_U32 = 0xFFFFFFFF


def disarm(store_path: Path) -> list[Path]:
    """Makes every such record of the store refusable, durably; the files in which there was one."""
    damaged = []
    for path in sorted((*store_path.glob("*.log"), *store_path.glob("MANIFEST-*"))):
        found = list(_misleading(path))
        if found:
            _refuse(path, found)
            damaged.append(path)
    return damaged


def _misleading(path: Path) -> Iterator[tuple[int, int]]:
    """Where the records stand that mislead, and the length that each should have."""
    with path.open("rb") as file:
        base = 0
        while block := file.read(_BLOCK_BYTES):
            at, end = 0, len(block) - _HEADER.size
            while at <= end:
                checksum, length, kind = _HEADER.unpack_from(block, at)
                if kind == 0 and length == 0:
                    break
                payload = at + _HEADER.size
                if payload + length > len(block):
                    fits = _true_length(checksum, block[payload - 1 :])
                    if fits is None:
                        break  # torn
                    length = fits
                    yield base + at, length
                elif kind > _PLAIN_TYPES and kind != _REFUSED_TYPE:
                    yield base + at, length
                at = payload + length
            base += len(block)


def _true_length(masked: int, data: bytes) -> int | None:
    """Of how many bytes of payload the checksum is; ``data`` begins with the type. None: of no number of them."""
    rotated = (masked - _MASK_DELTA) & _U32
    wanted = (rotated >> 17 | rotated << 15) & _U32 ^ _U32
    table, crc = _crc_table(), _U32
    for length, byte in enumerate(data):
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
        if crc == wanted:
            return length
    return None


@cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
        table.append(crc)
    return table


def _refuse(path: Path, records: list[tuple[int, int]]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for at, length in records:
            os.pwrite(fd, _LENGTH_AND_TYPE.pack(length, _REFUSED_TYPE), at + _LENGTH_OFFSET)
        os.fsync(fd)
    finally:
        os.close(fd)
