"""A session with one ZooKeeper server: its requests packed by hand, on a bare asyncio protocol.

The server answers a session's requests in their order, so any number of them may be under way; requests that are made
in one turn of the event loop go out in one write. aiozk, which Ackord's nodes use, packs requests field by field and
reads answers through a stream with a timer for each; here that would be most of what is measured.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, cast

CREATE: Final = 1
GET_DATA: Final = 4
SET_DATA: Final = 5
SYNC: Final = 9
PING: Final = 11
GET_CHILDREN: Final = 8
MULTI: Final = 14
CLOSE: Final = -11
OK: Final = 0
NO_NODE: Final = -101
BAD_VERSION: Final = -103
NODE_EXISTS: Final = -110
PING_XID: Final = -2
ANY_VERSION: Final = -1
SESSION_TIMEOUT_MS: Final = 30_000
PING_EVERY_S: Final = 5.0
# perms ALL, scheme "world", id "anyone"; then the flags of a plain node
OPEN_TO_ALL: Final = struct.pack("!iii5si6si", 1, 31, 5, b"world", 6, b"anyone", 0)
STAT_BYTES: Final = 68
_INT = struct.Struct("!i")
_HEADER = struct.Struct("!iqi")
_MULTI_HEADER = struct.Struct("!i?i")


class ZooKeeperError(Exception):
    """The server refused a request with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ZooKeeper answered with error {code}")
        self.code = code


def text(value: bytes) -> bytes:
    """A string or buffer as it goes over the wire."""
    return _INT.pack(len(value)) + value


def create_body(path: bytes, value: bytes) -> bytes:
    return text(path) + text(value) + OPEN_TO_ALL


def set_body(path: bytes, value: bytes, version: int = ANY_VERSION) -> bytes:
    return text(path) + text(value) + _INT.pack(version)


def read_body(path: bytes) -> bytes:
    """Of GET_DATA and GET_CHILDREN, without a watch."""
    return text(path) + b"\0"


def multi_body(operations: Sequence[tuple[int, bytes]]) -> bytes:
    parts = []
    for code, body in operations:
        parts += [_MULTI_HEADER.pack(code, False, -1), body]
    return b"".join([*parts, _MULTI_HEADER.pack(-1, True, -1)])


def first_error(answer: bytes) -> int:
    """Of a MULTI that was refused: the code of the operation at which it failed."""
    at = 0
    while at + 9 <= len(answer):
        kind, is_done, _ = _MULTI_HEADER.unpack_from(answer, at)
        if is_done:
            break
        (code,) = _INT.unpack_from(answer, at + 9)
        if kind == -1 and code not in (OK, -2):  # -2: undone because of another one
            return int(code)
        at += 13
    return OK


def value_and_version(answer: bytes) -> tuple[bytes, int]:
    """Of GET_DATA: the value, and the node's version from the stat behind it."""
    (length,) = _INT.unpack_from(answer)
    (version,) = _INT.unpack_from(answer, 4 + length + 32)
    return answer[4 : 4 + length], version


def names(answer: bytes) -> list[bytes]:
    """Of GET_CHILDREN."""
    (count,) = _INT.unpack_from(answer)
    found, at = [], 4
    for _ in range(count):
        (length,) = _INT.unpack_from(answer, at)
        found.append(answer[at + 4 : at + 4 + length])
        at += 4 + length
    return found


class Connection(asyncio.Protocol):
    """One session."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._outgoing: list[bytes] = []
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._xid = 0
        self._ping_timer: asyncio.TimerHandle | None = None

    # --------------------------------------------------------------------------------- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        opening = struct.pack("!iqiq", 0, 0, SESSION_TIMEOUT_MS, 0) + text(bytes(16)) + b"\0"
        self._transport.write(text(opening))

    def connection_lost(self, error: Exception | None) -> None:
        waiting: list[asyncio.Future[Any]] = [self._opened, *self._waiting]
        for future in waiting:
            if not future.done():
                future.set_exception(error or ConnectionError("ZooKeeper has closed the connection"))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        at, end = 0, len(received)
        while end - at >= 4:
            (length,) = _INT.unpack_from(received, at)
            if end - at < 4 + length:
                break
            self._take(bytes(received[at + 4 : at + 4 + length]))
            at += 4 + length
        del received[:at]

    # -------------------------------------------------------------------------------- requests

    async def open(self) -> None:
        """Returns when the session is there."""
        await self._opened
        self._ping()

    def send(self, code: int, body: bytes) -> asyncio.Future[bytes]:
        """The answer's body; ZooKeeperError if it is an error."""
        self._xid = xid = (self._xid + 1) & 0x7FFFFFFF
        future: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting.append(future)
        self._write(struct.pack("!iii", len(body) + 8, xid, code) + body)
        return future

    async def close(self) -> None:
        """Ends the session."""
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        if self._transport is not None and not self._transport.is_closing():
            await self.send(CLOSE, b"")
            self._transport.close()

    def _write(self, message: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _ping(self) -> None:
        self._write(struct.pack("!iii", 8, PING_XID, PING))
        self._ping_timer = self._loop.call_later(PING_EVERY_S, self._ping)

    def _take(self, frame: bytes) -> None:
        if not self._opened.done():
            self._opened.set_result(None)
            return
        xid, _, code = _HEADER.unpack_from(frame)
        if xid == PING_XID:
            return
        future = self._waiting.popleft()
        if future.done():
            return
        if code:
            future.set_exception(ZooKeeperError(code))
        else:
            future.set_result(frame[16:])


async def connect(host: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    await connection.open()
    return connection
