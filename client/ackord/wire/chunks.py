"""The chunks of a chunked HTTP body (RFC 9112), written and read by hand where frames are many and small: the streams
of the SDK, and the links between nodes."""

from __future__ import annotations

from typing import Final

LAST_CHUNK: Final = b"0\r\n\r\n"
SIZE_LINE_BYTES_MAX: Final = 256
SIZE_DIGITS_MAX: Final = 8

_HEXADECIMAL: Final = b"0123456789abcdefABCDEF"  # int() takes signs, prefixes and underscores too


class ChunkError(ValueError):
    """Bytes that are no chunked body."""


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class ChunkDecoder:
    """Takes a chunked body apart, wherever the pieces that arrive end. It may begin inside of one, between two chunks:
    what is left there of the line end of the chunk before is passed over. ``is_ended``: the last chunk came."""

    __slots__ = ("_left", "_line", "is_ended")

    def __init__(self) -> None:
        self._left = 0  # bytes of the present chunk that are to come, its line end included
        self._line = b""  # the beginning of a chunk's size line
        self.is_ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """The parts of the body that ``data`` holds. After ChunkError the decoder is of no further use."""
        parts: list[bytes] = []
        if self._line:
            data, self._line = self._line + data, b""
        at, end = 0, len(data)
        while at < end and not self.is_ended:
            if not self._left:
                line_end = data.find(b"\r\n", at, at + SIZE_LINE_BYTES_MAX)
                if line_end < 0:
                    if end - at >= SIZE_LINE_BYTES_MAX:
                        raise ChunkError("the body is not chunked: no size where a chunk begins")
                    self._line = data[at:]
                    break
                line = data[at:line_end]
                at = line_end + 2
                if line:
                    size = _size(line)
                    self.is_ended = not size
                    self._left = size + 2
                continue
            take = min(self._left, end - at)
            self._left -= take
            # the last two bytes of a chunk are its line end
            stop = at + take - max(2 - self._left, 0)
            if stop > at:
                parts.append(data[at:stop])
            at += take
        return parts


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > SIZE_DIGITS_MAX or digits.strip(_HEXADECIMAL):
        raise ChunkError(f"the body is not chunked: a chunk's size is {line[:20]!r}")
    return int(digits, 16)
