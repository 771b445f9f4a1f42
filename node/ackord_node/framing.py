"""Frames made of parts that are packed already, so that what is queued is packed once and never again; and the
chunks of HTTP that carry frames between nodes, coded here because a message passes through them on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence


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


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked HTTP body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNK_LINE_BYTES_MAX = 256


class ChunkDecoder:
    """Takes the bytes of a chunked HTTP body apart, wherever the pieces end. ``is_ended``: its last chunk came."""

    __slots__ = ("_left", "_line", "is_ended")

    def __init__(self) -> None:
        self._left = 0  # of the chunk that has begun
        self._line = b""  # the beginning of a line that says how long a chunk is
        self.is_ended = False

    def feed(self, data: bytes) -> list[bytes]:
        """What ``data`` holds of the body; ValueError if it is not chunked."""
        pieces: list[bytes] = []
        if self._line:
            data, self._line = self._line + data, b""
        at, end = 0, len(data)
        while at < end and not self.is_ended:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            line_end = data.find(b"\r\n", at)
            if line_end < 0:
                self._line = data[at:]
            line = data[at:line_end].partition(b";")[0].strip() if line_end >= 0 else b""
            if max(len(self._line), len(line)) > CHUNK_LINE_BYTES_MAX:
                raise ValueError("the body is not chunked: no length where a chunk begins")
            at = line_end + 2 if line_end >= 0 else end
            if line:  # it is empty where the chunk before ends
                self._left = _length(line)
                self.is_ended = self._left == 0
        return pieces


def _length(line: bytes) -> int:
    if line.strip(b"0123456789abcdefABCDEF"):  # int() takes signs, prefixes and underscores too
        raise ValueError("the body is not chunked: a chunk's length is not hexadecimal")
    return int(line, 16)


class TakenBody:
    """What aiohttp gives the rest of a request's chunked body to, bytes as they arrive, in place of its own parser:
    ``RequestHandler.set_parser`` takes it. No task is woken and nothing is buffered on the way to ``take``.

    Only for a client that sends nothing between its hello and the answer to it (HELLO_ALONE_HEADER), since nobody
    knows how much of that aiohttp's parser has seen. ``ended`` is done once the body ends, by whatever ended it.
    """

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._chunks = ChunkDecoder()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        if not self.ended.done():
            try:
                for piece in self._chunks.feed(data):
                    self._take(piece)
            except Exception as error:
                self._end(error)
        if self._chunks.is_ended:
            self._end(None)
        return False, b""

    def feed_eof(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)
