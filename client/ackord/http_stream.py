"""The open stream to a node on a bare connection: one POST whose two bodies stay open, chunk by chunk.

Frames leave and arrive in the turn of the event loop in which they are ready: there is no task, queue or future
between the socket and the link, because at one frame for a few operations those cost more than the operations.
What it speaks is HTTP/1.1 (RFC 9112): a request head, then a chunked body each way.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import urlsplit

from ackord.errors import Error, Unavailable
from ackord.sockets import end_when_dead
from ackord.wire.chunks import LAST_CHUNK, ChunkDecoder, ChunkError, chunk
from ackord.wire.frames import FrameDecoder, FrameError
from ackord.wire.messages import MSGPACK_CONTENT_TYPE, STREAM_CONTENT_TYPE

CLOSE_TIMEOUT_S: Final = 0.5
HEAD_BYTES_MAX: Final = 64 * 1024
REFUSAL_BYTES_MAX: Final = 64 * 1024  # of the body of an answer other than 200

OnFrames = Callable[[list[Any]], None]
OnClosed = Callable[[Error], None]


class ProtocolError(ValueError):
    """The node sent what is not HTTP."""


class HttpStream(asyncio.Protocol):
    """One POST that stays open in both directions. ``accepted`` gets (status, body) once the node has answered:
    the body is empty for 200, after which frames go to ``on_frames``."""

    def __init__(
        self, url: str, hello: bytes, decoder: FrameDecoder, on_frames: OnFrames, on_closed: OnClosed
    ) -> None:
        self._url = url
        self._hello = hello
        self._decoder = decoder
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._head = bytearray()
        self._status = 0  # until the head of the answer is there
        self._refusal = bytearray()
        self._refusal_left = REFUSAL_BYTES_MAX
        self._chunks: ChunkDecoder | None = None
        self._is_closing = False
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[tuple[int, bytes]] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()

    @property
    def queued_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, frame: bytes) -> None:
        transport = self._transport
        if transport is not None and not self._is_closing:
            transport.write(chunk(frame))

    def abort(self) -> None:
        """Nobody waits for its answer any more."""
        self._is_closing = True
        self.accepted.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Ends the request's body, gives the node a moment to end the answer's, then closes."""
        was_open = not self._is_closing and self._status == 200
        self._is_closing = True
        transport = self._transport
        if transport is None:
            return
        try:
            if was_open and not transport.is_closing():
                transport.write(LAST_CHUNK)
                await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT_S)
        finally:
            transport.abort()
        await asyncio.wait([self._lost], timeout=CLOSE_TIMEOUT_S)

    # ------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = open_transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        connection = transport.get_extra_info("socket")
        if connection is not None:
            end_when_dead(connection)
        where = urlsplit(self._url)
        head = (
            f"POST /v1/stream HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: {STREAM_CONTENT_TYPE}\r\n"
            f"Transfer-Encoding: chunked\r\nAccept: {MSGPACK_CONTENT_TYPE}\r\n\r\n"
        )
        open_transport.write(head.encode() + chunk(self._hello))

    def data_received(self, data: bytes) -> None:
        try:
            if self._chunks is None or self._status != 200:
                self._head_received(data)
            else:
                self._body_received(data)
        except FrameError as error:
            self._end(f"the node sent {error}")
        except (ProtocolError, ChunkError) as error:
            self._end(f"the node sent what is not HTTP: {error}")

    def eof_received(self) -> bool:
        return False  # the transport closes itself, and says so

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._lost.done():
            self._lost.set_result(None)
        self._end(str(exc) or type(exc).__name__ if exc is not None else "the node closed the stream")

    def _end(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort()
        if self.accepted.cancelled():
            self._is_closing = True  # who wanted the stream has gone, perhaps in this turn of the loop
        elif not self.accepted.done():
            if self._status not in (0, 200):
                self.accepted.set_result((self._status, bytes(self._refusal)))
            else:
                self.accepted.set_exception(ConnectionError(reason))
                self.accepted.exception()  # may go unheard: its caller may not have come so far as to wait for it
        elif not self._is_closing:
            self._is_closing = True
            self._on_closed(Unavailable(f"the stream ended: {reason}"))

    # ---------------------------------------------------------------------------- the answer

    def _body_received(self, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        for part in chunks.feed(data):
            frames = self._decoder.feed(part)
            if frames and not self._is_closing:
                self._on_frames(frames)
        if chunks.is_ended:
            self._end("the node closed the stream")

    def _head_received(self, data: bytes) -> None:
        """Until the answer's head is there; of a refusal also its body, which says why."""
        if self.accepted.cancelled():
            return
        if not self._status:
            self._head += data
            head, found, data = bytes(self._head).partition(b"\r\n\r\n")
            if not found:
                if len(self._head) > HEAD_BYTES_MAX:
                    raise ProtocolError("a head without an end")
                return
            self._head.clear()
            self._status, fields = parse_head(head)
            is_chunked = fields.get("transfer-encoding", "").lower() == "chunked"
            self._chunks = ChunkDecoder() if is_chunked else None
            if self._status == 200:
                if not is_chunked:
                    raise ProtocolError("an answer that is not chunked")
                self.accepted.set_result((200, b""))
                if data:
                    self._body_received(data)
                return
            self._refusal_left = min(int(fields.get("content-length", REFUSAL_BYTES_MAX)), REFUSAL_BYTES_MAX)
        parts = [data] if self._chunks is None else self._chunks.feed(data)
        for part in parts:
            self._refusal += part[: self._refusal_left - len(self._refusal)]
        is_finished = self._chunks is not None and self._chunks.is_ended
        if is_finished or len(self._refusal) >= self._refusal_left:
            self._end("refused")


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """(status, fields by lower-case name) of an answer; ProtocolError."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if not version.startswith("HTTP/1.") or not (status.isascii() and status.isdigit() and len(status) == 3):
        raise ProtocolError(f"the answer {first[:60]!a}")
    fields = {}
    for line in lines:
        name, found, value = line.partition(":")
        if not found:
            raise ProtocolError(f"the field {line[:60]!a}")
        fields[name.strip().lower()] = value.strip()
    length = fields.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) <= 18):
        raise ProtocolError("a length that is no number")
    return int(status), fields


@functools.cache
def _tls() -> ssl.SSLContext:
    """Reading the trusted certificates takes a while, so once."""
    return ssl.create_default_context()


async def open_stream(
    url: str, hello: bytes, decoder: FrameDecoder, on_frames: OnFrames, on_closed: OnClosed
) -> HttpStream:
    """Connects and sends the hello; ``stream.accepted`` tells what the node says. OSError if it cannot be
    reached."""
    where = urlsplit(url)
    is_secure = where.scheme == "https"
    context = _tls() if is_secure else None
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(
        lambda: HttpStream(url, hello, decoder, on_frames, on_closed),
        where.hostname or "",
        where.port or (443 if is_secure else 80),
        ssl=context,
    )
    return stream
