"""A connection to Redis for one call at a time: hiredis on a bare asyncio protocol.

redis-py's own asyncio client takes several times the CPU for each call; the benchmark shall measure the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

_pack: Callable[[tuple[bytes, ...]], bytes] = cast(
    Any, hiredis.pack_command
)  # its stub allows for one word only


class Connection(asyncio.Protocol):
    """Answers come in the order of the commands; one call waits for them at a time."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[list[Any]] | None = None
        self._answers: list[Any] = []
        self._wanted_count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error or ConnectionError("Redis has closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            self._answers.append(answer)
        if len(self._answers) >= self._wanted_count and self._waiting is not None:
            answers, self._answers = self._answers, []
            if not self._waiting.done():
                self._waiting.set_result(answers)

    async def call(self, commands: Sequence[tuple[bytes, ...]]) -> list[Any]:
        """The answers of the commands, which are sent together; raises the first that is an error."""
        assert self._transport is not None
        self._wanted_count = len(commands)
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(b"".join([_pack(command) for command in commands]))
        answers = await self._waiting
        for answer in answers:
            if isinstance(answer, hiredis.HiredisError):
                raise answer
        return answers

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def connect(host: str, port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection
