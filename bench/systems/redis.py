"""Redis: a primary and two replicas of Debian's redis-server, through redis-py's asyncio client with hiredis.

``appendfsync always`` on all three, and WAIT 2 after each write: a Redis server fsyncs its file before it sends
replies, a replica's confirmation included, so a write whose WAIT has counted both is on three disks. Writes travel
with their WAIT in one message. Reads go to the primary.

Redis has no ranges over keys; as YCSB does, a sorted set holds all keys in order, which only inserts touch, and a
scan asks it for the keys and then for the values. Compare-and-set is a script, as WATCH would take two more trips.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hiredis

from bench.systems.base import (
    HOST,
    Access,
    BenchError,
    Client,
    Pool,
    Rows,
    Server,
    TableSpec,
    accepts,
    find_program,
    free_ports,
    output,
    stop_all,
    wait_until,
)
from bench.systems.redis_connection import Connection, connect

SERVERS = ("r1", "r2", "r3")
REPLICAS_COUNT = 2
START_TIMEOUT_S = 30.0
WAIT_TIMEOUT_MS = 10_000
CONNECTIONS_MAX = 256
SETTINGS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",  # the append-only file is the copy on disk; snapshots beside it would be a second one
    "repl-diskless-sync-delay": "0",
    "repl-backlog-size": "256mb",
    "client-output-buffer-limit": "replica 0 0 0",
}
COMPARE_AND_SET = (
    "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end redis.call('SET', KEYS[1], ARGV[2]) return 1"
)


class RedisClient:
    """Connections to the primary: a WAIT keeps its connection busy until both replicas have answered."""

    def __init__(self, connections: list[Connection], script: bytes, name: str) -> None:
        self._connections = connections
        self._pool = Pool(connections)
        self._script = script
        self._prefix = name.encode() + b":"
        self._index = name.encode()

    def _key(self, key: int) -> bytes:
        return b"%b%d" % (self._prefix, key)

    async def _read(self, *command: bytes) -> Any:
        connection = await self._pool.take()
        try:
            return (await connection.call([command]))[0]
        finally:
            self._pool.give(connection)

    async def _write(self, *commands: tuple[bytes, ...]) -> Any:
        """The first command's answer, once all of them are on all disks."""
        connection = await self._pool.take()
        try:
            answers = await connection.call(
                [*commands, (b"WAIT", b"%d" % REPLICAS_COUNT, b"%d" % WAIT_TIMEOUT_MS)]
            )
        finally:
            self._pool.give(connection)
        if answers[-1] < REPLICAS_COUNT:
            raise BenchError(f"only {answers[-1]} of Redis's replicas have confirmed a write")
        return answers[0]

    async def put(self, key: int, value: bytes) -> None:
        await self._write((b"SET", self._key(key), value))

    async def get(self, key: int) -> bytes | None:
        value: bytes | None = await self._read(b"GET", self._key(key))
        return value

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        value = await self._read(b"GET", self._key(key))
        return value, value

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        answer = await self._write((b"EVALSHA", self._script, b"1", self._key(key), version, value))
        return bool(answer == 1)

    async def insert(self, key: int, value: bytes) -> None:
        await self.load([(key, value)])

    async def load(self, rows: Rows) -> None:
        index = [word for key, _ in rows for word in (b"%d" % key, self._key(key))]
        await self._write(self._set(rows), (b"ZADD", self._index, *index))

    async def put_many(self, rows: Rows) -> None:
        await self._write(self._set(rows))

    def _set(self, rows: Rows) -> tuple[bytes, ...]:
        return (b"MSET", *(word for key, value in rows for word in (self._key(key), value)))

    async def scan(self, start: int, count: int) -> int:
        connection = await self._pool.take()
        try:
            command = (
                b"ZRANGE",
                self._index,
                b"%d" % start,
                b"+inf",
                b"BYSCORE",
                b"LIMIT",
                b"0",
                b"%d" % count,
            )
            (keys,) = await connection.call([command])
            (values,) = await connection.call([(b"MGET", *keys)])
        finally:
            self._pool.give(connection)
        return sum(value is not None for value in values)

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()


@dataclass(frozen=True, slots=True)
class RedisAccess:
    port: int

    def has_cache(self) -> bool:
        return False

    async def create(self, table: TableSpec) -> None:
        """Keys have the table's name as prefix; there is nothing to create."""

    async def connect(self, table: TableSpec, callers: int) -> Client:
        count = min(callers, CONNECTIONS_MAX)
        connections = await asyncio.gather(*(connect(HOST, self.port) for _ in range(count)))
        (script,) = await connections[0].call([(b"SCRIPT", b"LOAD", COMPARE_AND_SET.encode())])
        return RedisClient(connections, script, table.name)


class Redis:
    """The servers, in ``folder``."""

    name = "Redis"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = find_program("redis-server")
        self._ports: list[int] = []
        self._servers: list[Server] = []

    def start(self) -> None:
        self._ports = free_ports(len(SERVERS))
        for name, port in zip(SERVERS, self._ports, strict=True):
            folder = self._folder / name
            folder.mkdir(parents=True)
            lines = [f"{option} {value or chr(34) * 2}" for option, value in SETTINGS.items()]
            lines += [f"bind {HOST}", f"port {port}", f"dir {folder}", "daemonize no"]
            if name != SERVERS[0]:
                lines.append(f"replicaof {HOST} {self._ports[0]}")
            (folder / "redis.conf").write_text("\n".join(lines) + "\n")
            server = Server(name, [self._program, str(folder / "redis.conf")], folder)
            self._servers.append(server)
            server.start()
            wait_until(partial(accepts, port), f"Redis on port {port}", [server], START_TIMEOUT_S)
        asyncio.run(self._wait_for_replicas())

    async def _wait_for_replicas(self) -> None:
        connection = await connect(HOST, self._ports[0])
        try:
            for _ in range(200):
                _, count = await connection.call([(b"SET", b"ready", b"1"), (b"WAIT", b"2", b"100")])
                if count == REPLICAS_COUNT:
                    return
        finally:
            connection.close()
        raise BenchError(f"Redis's replicas do not follow; see the logs in {self._folder}")

    def stop(self) -> None:
        stop_all(self._servers)
        self._servers.clear()

    def access(self) -> Access:
        return RedisAccess(self._ports[0])

    def check(self, table: TableSpec) -> None:
        """Nothing to ask: every write has waited for both replicas, or has failed."""

    def pids(self) -> dict[str, int]:
        return {server.name: server.pid for server in self._servers}

    def folders(self) -> list[Path]:
        return [server.folder for server in self._servers]

    def describe(self) -> dict[str, str]:
        return {
            "version": output([self._program, "--version"]),
            "client": f"hiredis {hiredis.__version__} on a bare asyncio protocol, up to {CONNECTIONS_MAX} connections",
            "written": "acknowledged after an fsync on the primary and both replicas (WAIT 2)",
            "read": "at the primary",
            "settings": ", ".join(f"{option} {value!r}" for option, value in SETTINGS.items()),
        }
