"""A TCP proxy that understands length-prefixed frames and can lose them, for tests of lost answers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Self

Verdict = Callable[[bytes], str]  # of a frame: "pass", "drop", "cut" (before it) or "pass+cut" (after it)


def pass_all(_frame: bytes) -> str:
    return "pass"


class FrameProxy:
    """Forwards frames (4 bytes of length, then the payload) between clients and one server.

    ``judge_request`` and ``judge_answer`` decide about each frame's payload. ``is_refusing`` makes it close
    every new connection at once. ``connections`` and ``requests`` count what came.
    """

    def __init__(self, host: str, port: int) -> None:
        self.judge_request: Verdict = pass_all
        self.judge_answer: Verdict = pass_all
        self.is_refusing = False
        self.connections = 0
        self.requests = 0
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await self._serve(reader, writer)
        writer.transport.abort()
        self._writers.discard(writer)
        self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_refusing:
            return
        self._writers.add(writer)
        server_reader, server_writer = await asyncio.open_connection(*self._target)
        self._writers.add(server_writer)
        try:
            pumps = [
                asyncio.ensure_future(self._pump(reader, server_writer, self._request)),
                asyncio.ensure_future(self._pump(server_reader, writer, self._answer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            server_writer.transport.abort()
            self._writers.discard(server_writer)

    def _request(self, frame: bytes) -> str:
        self.requests += 1
        return self.judge_request(frame)

    def _answer(self, frame: bytes) -> str:
        return self.judge_answer(frame)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, judge: Verdict) -> None:
        while True:
            head = await reader.readexactly(4)
            frame = await reader.readexactly(struct.unpack("!i", head)[0])
            verdict = judge(frame)
            if verdict.startswith("pass"):
                writer.write(head + frame)
                await writer.drain()
            if verdict.endswith("cut"):
                return
