"""Frames made of parts that are packed already, so that what is queued is packed once and never again."""

from __future__ import annotations

from collections.abc import Sequence


def join_frame(parts: Sequence[bytes], size: int) -> bytes:
    """One frame holding the msgpack array of ``parts``, whose bytes add up to ``size``; b"" for no parts."""
    if not parts:
        return b""
    count = len(parts)
    if count < 16:
        header = bytes((0x90 | count,))
    elif count < 1 << 16:
        header = b"\xdc" + count.to_bytes(2, "big")
    else:
        header = b"\xdd" + count.to_bytes(4, "big")
    return b"".join(((len(header) + size).to_bytes(4, "big"), header, *parts))
