"""ZooKeeper: an ensemble of three servers of Debian's zookeeper.

Every write goes through the leader and is answered when a majority has fsynced it to its transaction log. A read
is preceded by a sync of the same path on the same connection, which is what its documentation asks of those who want
to see the latest write; both go out together.

A row is a node; a hundred neighbours share a parent, as ZooKeeper has no ranges: a scan lists the parents that it
touches and reads their children, all of them under way at once. A batch is one transaction (multi).
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ackord_node.devcluster.zookeeper_process import (
    MAIN_CLASS,
    Member,
    ZooKeeperSettings,
    ZooKeeperUnavailable,
    find_jars,
    find_java,
    is_serving,
    write_config,
)
from bench.systems import zookeeper_connection as wire
from bench.systems.base import (
    HOST,
    Access,
    BenchError,
    Client,
    Rows,
    Server,
    TableSpec,
    free_ports,
    stop_all,
    wait_until,
)

SERVERS = ("z1", "z2", "z3")
START_TIMEOUT_S = 60.0
ELECTION_TIMEOUT_S = 15.0
CHILDREN_COUNT = 100
HEAP_MIB = 2048
TICK_MS = 2000  # ZooKeeper's own default


class ZooKeeperClient:
    """One session with the leader, which all callers of the process share."""

    def __init__(self, connection: wire.Connection, name: str) -> None:
        self._connection = connection
        self._root = b"/" + name.encode()

    def _path(self, key: int) -> bytes:
        return b"%b/%010d/%02d" % (self._root, key // CHILDREN_COUNT, key % CHILDREN_COUNT)

    def _parent(self, key: int) -> bytes:
        return b"%b/%010d" % (self._root, key // CHILDREN_COUNT)

    async def put(self, key: int, value: bytes) -> None:
        await self._connection.send(wire.SET_DATA, wire.set_body(self._path(key), value))

    def _read(self, path: bytes) -> asyncio.Future[bytes]:
        self._sync(path)
        return self._connection.send(wire.GET_DATA, wire.read_body(path))

    def _sync(self, path: bytes) -> None:
        self._connection.send(wire.SYNC, wire.text(path)).add_done_callback(_check)

    async def get(self, key: int) -> bytes | None:
        try:
            answer = await self._read(self._path(key))
        except wire.ZooKeeperError as error:
            if error.code == wire.NO_NODE:
                return None
            raise
        return wire.value_and_version(answer)[0]

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        return wire.value_and_version(await self._read(self._path(key)))

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        try:
            await self._connection.send(wire.SET_DATA, wire.set_body(self._path(key), value, version))
        except wire.ZooKeeperError as error:
            if error.code == wire.BAD_VERSION:
                return False
            raise
        return True

    async def insert(self, key: int, value: bytes) -> None:
        body = wire.create_body(self._path(key), value)
        try:
            await self._connection.send(wire.CREATE, body)
        except wire.ZooKeeperError as error:
            if error.code != wire.NO_NODE:
                raise
            await self._make(self._parent(key))
            await self._connection.send(wire.CREATE, body)

    async def _make(self, path: bytes) -> None:
        """Creates an empty node unless it is there."""
        try:
            await self._connection.send(wire.CREATE, wire.create_body(path, b""))
        except wire.ZooKeeperError as error:
            if error.code != wire.NODE_EXISTS:
                raise

    async def make_root(self) -> None:
        await self._make(self._root)

    async def load(self, rows: Rows) -> None:
        for parent in dict.fromkeys(self._parent(key) for key, _ in rows):
            await self._make(parent)
        await self._multi([(wire.CREATE, wire.create_body(self._path(key), value)) for key, value in rows])

    async def put_many(self, rows: Rows) -> None:
        await self._multi([(wire.SET_DATA, wire.set_body(self._path(key), value)) for key, value in rows])

    async def _multi(self, operations: list[tuple[int, bytes]]) -> None:
        answer = await self._connection.send(wire.MULTI, wire.multi_body(operations))
        if code := wire.first_error(answer):
            raise wire.ZooKeeperError(code)

    async def scan(self, start: int, count: int) -> int:
        end = start + count
        self._sync(self._root)
        parents = [self._parent(key) for key in range(start - start % CHILDREN_COUNT, end, CHILDREN_COUNT)]
        listed = [self._connection.send(wire.GET_CHILDREN, wire.read_body(parent)) for parent in parents]
        first, last = self._path(start), self._path(end - 1)
        reads = []
        for parent, answer in zip(parents, listed, strict=True):
            for name in sorted(wire.names(await answer)):
                path = b"%b/%b" % (parent, name)
                if first <= path <= last:
                    reads.append(self._connection.send(wire.GET_DATA, wire.read_body(path)))
        return len([wire.value_and_version(await read)[0] for read in reads])

    async def close(self) -> None:
        await self._connection.close()


def _check(future: asyncio.Future[bytes]) -> None:
    """A sync that fails fails the read behind it too, which is where the error is raised."""
    if not future.cancelled():
        future.exception()


@dataclass(frozen=True, slots=True)
class ZooKeeperAccess:
    ports: tuple[int, ...]

    def has_cache(self) -> bool:
        return False

    async def create(self, table: TableSpec) -> None:
        connection = await wire.connect(HOST, self._leader())
        try:
            await ZooKeeperClient(connection, table.name).make_root()
        finally:
            await connection.close()

    async def connect(self, table: TableSpec, callers: int) -> Client:
        """Servers that were paused for long may elect a leader first."""
        deadline = time.monotonic() + ELECTION_TIMEOUT_S
        while True:
            try:
                return ZooKeeperClient(await wire.connect(HOST, self._leader()), table.name)
            except (BenchError, ConnectionError):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    def _leader(self) -> int:
        for port in self.ports:
            if re.search(r"Mode: leader", _four_letters(port, b"srvr")):
                return port
        raise BenchError("ZooKeeper has no leader")


def _four_letters(port: int, command: bytes) -> str:
    """What a server says of itself; "" if it does not."""
    try:
        with socket.create_connection((HOST, port), timeout=2.0) as connection:
            connection.sendall(command)
            parts = []
            while part := connection.recv(4096):
                parts.append(part)
    except OSError:
        return ""
    return b"".join(parts).decode(errors="replace")


class ZooKeeper:
    """The ensemble, in ``folder``."""

    name = "ZooKeeper"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._java, self._jars = find_java(), find_jars()
        except ZooKeeperUnavailable as error:
            raise BenchError(str(error)) from None
        self._ports: tuple[int, ...] = ()
        self._servers: list[Server] = []

    def start(self) -> None:
        ports = free_ports(3 * len(SERVERS))
        members = tuple(
            Member(ports[3 * at], ports[3 * at + 1], ports[3 * at + 2]) for at in range(len(SERVERS))
        )
        self._ports = tuple(member.client_port for member in members)
        for number, (name, member) in enumerate(zip(SERVERS, members, strict=True), start=1):
            folder = self._folder / name
            folder.mkdir(parents=True)
            config = write_config(
                ZooKeeperSettings(
                    folder=folder,
                    client_port=member.client_port,
                    server_id=number,
                    members=members,
                    tick_ms=TICK_MS,
                    sync_limit_ticks=10,
                )
            )
            command = [
                self._java,
                f"-Xms{HEAP_MIB}m",
                f"-Xmx{HEAP_MIB}m",
                "-XX:+UseG1GC",
                "-Djava.net.preferIPv4Stack=true",
                "-Dzookeeper.jmx.log4j.disable=true",
                "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
                "-cp",
                os.pathsep.join([str(folder), *self._jars]),
                MAIN_CLASS,
                str(config),
            ]
            self._servers.append(Server(name, command, folder))
        for server in self._servers:
            server.start()
        wait_until(
            lambda: all(is_serving(HOST, port) for port in self._ports),
            "a quorum of ZooKeeper",
            self._servers,
            START_TIMEOUT_S,
        )

    def stop(self) -> None:
        stop_all(self._servers)
        self._servers.clear()

    def access(self) -> Access:
        return ZooKeeperAccess(self._ports)

    def check(self, table: TableSpec) -> None:
        if not all(is_serving(HOST, port) for port in self._ports):
            raise BenchError("a server of ZooKeeper had left the quorum")

    def pids(self) -> dict[str, int]:
        return {server.name: server.pid for server in self._servers}

    def folders(self) -> list[Path]:
        return [server.folder / "data" for server in self._servers]

    def describe(self) -> dict[str, str]:
        answer = _four_letters(self._ports[0], b"srvr") if self._ports else ""
        found = re.search(r"Zookeeper version: ([\d.]+)", answer)
        return {
            "version": found[1] if found else "?",
            "client": "requests packed by hand on a bare asyncio protocol, one session with the leader per process",
            "written": "acknowledged after an fsync of the log on a majority (two of three)",
            "read": "sync and getData together, at the leader",
            "settings": f"heap {HEAP_MIB} MiB, G1, forceSync yes (the default), preAllocSize 4 MiB",
        }
