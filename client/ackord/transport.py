"""How the SDK reaches nodes: one full-duplex stream per node, plain requests, and time.

The Protocols are what the rest of the SDK knows; a simulator implements them too. The others are what
``connect`` uses: aiohttp for plain requests, and for streams `http_stream`. A stream is one POST whose request
body and response body both stay open: frames leave as chunks of the one and arrive as chunks of the other, and
its end is seen at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import aiohttp

from ackord.errors import BY_CODE, Error, Unavailable, from_code
from ackord.http_stream import HttpStream, OnClosed, OnFrames, open_stream
from ackord.wire.frames import FrameDecoder, packb, unpackb
from ackord.wire.messages import MSGPACK_CONTENT_TYPE

CONNECT_TIMEOUT_S = 3.0

_CODES = {cls.name: code for code, cls in BY_CODE.items()}


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Environment(Protocol):
    """Time and randomness."""

    def now(self) -> float:
        """Seconds, monotonic."""

    def boot_now(self) -> float:
        """Seconds of a clock that goes on while the machine sleeps: leases count on it (rules R15, R19)."""

    def jitter(self) -> float:
        """Random, 0 <= jitter < 1."""

    def random_bytes(self, count: int) -> bytes:
        """Unique among all clients of the cluster."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable: ...

    def call_soon(self, callback: Callable[[], None]) -> Cancellable: ...

    async def sleep(self, seconds: float) -> None: ...


class Stream(Protocol):
    """An open stream; what arrives goes to the callbacks given to ``connect``, on the event loop."""

    @property
    def queued_bytes(self) -> int:
        """Bytes given to ``send`` that have not left yet."""

    def send(self, frame: bytes) -> None:
        """Queues an encoded frame; frames leave in order. Nothing happens on a closed stream."""

    async def close(self) -> None:
        """Ends it; bounded in time. ``on_closed`` is not called after this began."""


class Transport(Protocol):
    async def connect(
        self, url: str, hello: bytes, frame_bytes_max: int, on_frames: OnFrames, on_closed: OnClosed
    ) -> Stream:
        """Opens a stream to the node at ``url`` whose first frame is ``hello``. Raises an Error.
        ``on_frames`` gets decoded frames, the node's hello first; ``on_closed`` is called once if the stream
        ends by itself."""

    async def request(self, method: str, url: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        """A plain request with a msgpack body (None: none): (HTTP status, decoded body). Raises Unavailable,
        with ``detail["sent"]`` False if the node certainly did not get it."""

    async def close(self) -> None: ...


class AsyncioEnvironment:
    """Time of the running event loop, randomness of the operating system."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.boot_now = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
        self.jitter = random.random
        self.random_bytes = os.urandom

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Cancellable:
        return self._loop.call_later(seconds, callback)

    def call_soon(self, callback: Callable[[], None]) -> Cancellable:
        return self._loop.call_soon(callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class HttpTransport:
    """Transport over aiohttp; to be made inside a running event loop."""

    def __init__(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(_note_sent)
        self._session = aiohttp.ClientSession(
            trace_configs=[trace],
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
        )

    async def connect(
        self, url: str, hello: bytes, frame_bytes_max: int, on_frames: OnFrames, on_closed: OnClosed
    ) -> Stream:
        stream: HttpStream | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                stream = await open_stream(url, hello, FrameDecoder(frame_bytes_max), on_frames, on_closed)
                status, body = await stream.accepted
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: of an address that cannot be
            if stream is not None:
                stream.abort()
            raise Unavailable(f"no stream to {url}: {_reason(error)}", url=url) from None
        except BaseException:
            if stream is not None:
                stream.abort()
            raise
        if status != 200:
            raise error_of_body(status, _decoded(body), url)
        return stream

    async def request(self, method: str, url: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        headers = {"Accept": MSGPACK_CONTENT_TYPE}
        data = None
        attempts: list[str] = []
        if body is not None:
            headers["Content-Type"] = MSGPACK_CONTENT_TYPE
            data = packb(body)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method, url, data=data, headers=headers, trace_request_ctx=attempts
                ) as response,
            ):
                content = await response.read()
                if response.content_type != MSGPACK_CONTENT_TYPE:
                    text = content[:200].decode(errors="replace")
                    return response.status, {"error": {"code": "error", "message": text}}
                return response.status, unpackb(content) if content else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if not attempts:
                raise Unavailable(f"cannot reach {url}: {_reason(error)}", sent=False, url=url) from None
            raise Unavailable(f"{method} {url}: {_reason(error)}", sent=True, url=url) from None

    async def close(self) -> None:
        await self._session.close()


async def _note_sent(
    _: aiohttp.ClientSession, context: Any, sent: aiohttp.TraceRequestHeadersSentParams
) -> None:
    """aiohttp repeats a DELETE whose connection broke and then tells of the last attempt only."""
    if context.trace_request_ctx is not None:
        context.trace_request_ctx.append(sent.method)


def _decoded(content: bytes) -> Any:
    try:
        return unpackb(content)
    except ValueError:
        return {"error": {"code": "error", "message": content[:200].decode(errors="replace")}}


def error_of_body(status: int, body: Any, url: str) -> Error:
    """The error in the body of a plain answer; a status of 5xx without one is Unavailable."""
    fields = body.get("error") if isinstance(body, dict) else None
    if not isinstance(fields, dict):
        fields = {"code": "unavailable" if status >= 500 else "error", "message": f"HTTP status {status}"}
    detail = fields.get("detail")
    known = {str(name): value for name, value in detail.items()} if isinstance(detail, dict) else {}
    for name in ("self", "message", "current"):
        known.pop(name, None)
    message = f"{fields.get('message', 'no message')} (from {url})"
    return from_code(_CODES.get(str(fields.get("code")), 1), message, known)


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
