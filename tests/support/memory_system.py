"""A system for the benchmark's own tests: no servers, rows in the worker's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.systems.base import Access, Client, Rows, TableSpec


class MemoryClient:
    """Answers after one turn of the event loop. ``loses_every``: so many conditional writes go through, then one
    does not."""

    def __init__(self, rows: dict[int, bytes], loses_every: int = 0) -> None:
        self.rows = rows
        self._loses_every = loses_every
        self._attempts_count = 0

    async def put(self, key: int, value: bytes) -> None:
        await asyncio.sleep(0)
        self.rows[key] = value

    async def get(self, key: int) -> bytes | None:
        await asyncio.sleep(0)
        return self.rows.get(key)

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        return self.rows[key], self.rows[key]

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        self._attempts_count += 1
        if self._loses_every and self._attempts_count % self._loses_every == 0:
            return False
        await self.put(key, value)
        return True

    async def insert(self, key: int, value: bytes) -> None:
        assert key not in self.rows
        await self.put(key, value)

    async def load(self, rows: Rows) -> None:
        await self.put_many(rows)

    async def put_many(self, rows: Rows) -> None:
        assert len(dict(rows)) == len(rows)
        await asyncio.sleep(0)
        self.rows.update(rows)

    async def scan(self, start: int, count: int) -> int:
        await asyncio.sleep(0)
        return sum(key in self.rows for key in range(start, start + count))

    def cached_get(self) -> Callable[[int], Awaitable[Any]]:
        async def get(key: int) -> bytes:
            return self.rows[key]

        return get

    async def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class MemoryAccess:
    """Every process has rows of its own. ``fails``: connecting does not work."""

    fails: bool = False

    def has_cache(self) -> bool:
        return True

    async def create(self, table: TableSpec) -> None:
        pass

    async def connect(self, table: TableSpec, callers: int) -> Client:
        if self.fails:
            raise ConnectionError("nobody there")
        return MemoryClient(dict.fromkeys(range(table.rows_count), b"x" * table.value_bytes))


class MemorySystem:
    """Nothing to start, nothing to stop."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name = name
        self.is_running = False
        self._fails = fails

    def start(self) -> None:
        self.is_running = True

    def stop(self) -> None:
        self.is_running = False

    def access(self) -> Access:
        return MemoryAccess(self._fails)

    def check(self, table: TableSpec) -> None:
        assert self.is_running

    def pids(self) -> dict[str, int]:
        return {}

    def folders(self) -> list[Path]:
        return []

    def describe(self) -> dict[str, str]:
        return {"version": "0"}
