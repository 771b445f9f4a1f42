"""Frames made of parts that are packed already, so that what is queued is packed once and never again; and how a
node takes the frames of a stream from its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ackord.wire.chunks import ChunkDecoder
from ackord.wire.frames import FrameDecoder


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


class Content(Protocol):
    """The body of a request, as aiohttp gives it."""

    async def readany(self) -> bytes: ...


async def first_frames(content: Content, decoder: FrameDecoder) -> list[Any]:
    """A stream's first frame, and what came with it; EOFError if it ends before."""
    while True:
        data = await content.readany()
        if not data:
            raise EOFError("the stream ended before its first frame")
        frames = decoder.feed(data)
        if frames:
            return frames


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
