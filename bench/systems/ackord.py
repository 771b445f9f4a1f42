"""Ackord itself: three nodes of the local cluster, with a ZooKeeper of its own, as `make cluster` starts them."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ackord
from ackord_node import config
from ackord_node.devcluster import processes
from ackord_node.devcluster.installer import InstallError
from ackord_node.devcluster.launcher import Launcher, LaunchError
from bench.harness import Cluster, in_sync_nodes, wait_in_sync
from bench.systems.base import HOST, Access, BenchError, Client, Rows, TableSpec, free_ports

NODES = ("n1", "n2", "n3")
START_TIMEOUT_S = 60.0
IN_SYNC_TIMEOUT_S = 60.0
BLOCK_CACHE_MIB = 1024  # as PostgreSQL's shared buffers
CALL_TIMEOUT_S = 60.0  # the peers' clients wait without end
COLUMN = "value"


class AckordClient:
    """One store; concurrent calls share frames, as the SDK does for everybody."""

    def __init__(self, store: ackord.Store, name: str) -> None:
        self._store = store
        self._table = store.table(name)
        self._cached: ackord.Table | None = None

    async def put(self, key: int, value: bytes) -> None:
        await self._table.put(key, {COLUMN: value})

    async def get(self, key: int) -> bytes | None:
        row = await self._table.get(key)
        if row is None:
            return None
        value: bytes = row[COLUMN]
        return value

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        row = await self._table.get(key)
        if row is None:
            raise BenchError(f"row {key} is not there")
        return row[COLUMN], row.version

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        try:
            await self._table.put(key, {COLUMN: value}, if_version=version)
        except ackord.Conflict:
            return False
        return True

    async def insert(self, key: int, value: bytes) -> None:
        await self._table.put(key, {COLUMN: value}, if_absent=True)

    async def load(self, rows: Rows) -> None:
        await self.put_many(rows)

    async def put_many(self, rows: Rows) -> None:
        puts = [ackord.Put(key, {COLUMN: value}) for key, value in rows]
        for result in await self._table.write_many(puts):
            if isinstance(result, ackord.Error):
                raise result

    async def scan(self, start: int, count: int) -> int:
        return len(await self._table.scan(start=start, limit=count).rows())

    def cached_get(self) -> Callable[[int], Awaitable[Any]]:
        if self._cached is None:
            options: dict[str, Any] = {"cache": True}
            self._cached = self._store.table(self._table.name, **options)
        return self._cached.get

    async def close(self) -> None:
        await self._store.close()


@dataclass(frozen=True, slots=True)
class AckordAccess:
    urls: list[str]

    def has_cache(self) -> bool:
        return "cache" in inspect.signature(ackord.Store.table).parameters

    async def create(self, table: TableSpec) -> None:
        """In one tablet, as a table is unless one asks for more: one node coordinates its writes, like the one leader
        or primary of each peer. ``bench.tablets`` measures more of them."""
        async with ackord.connect(self.urls) as store:
            await store.create_table(table.name, {"id": int})
            await wait_in_sync(store, table.name, set(NODES), IN_SYNC_TIMEOUT_S)

    async def connect(self, table: TableSpec, callers: int) -> Client:
        return AckordClient(await ackord.connect(self.urls, timeout=CALL_TIMEOUT_S), table.name)


class Ackord:
    """The cluster, in ``folder``."""

    name = "Ackord"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cluster: Cluster | None = None
        self._launcher: Launcher | None = None

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "cluster.yaml"
        ports = free_ports(len(NODES) + 1)
        lines = [
            "cluster: bench",
            f"coordination: zookeeper://{HOST}:{ports[0]}/ackord",
            "replication: {replicas: 3, min_in_sync: 2, lease_ms: 1000, session_timeout_ms: 3000}",
            f"defaults: {{block_cache_mib: {BLOCK_CACHE_MIB}}}",
            "nodes:",
            *(
                f"  {name}: {{address: {HOST}:{port}, data: {name}}}"
                for name, port in zip(NODES, ports[1:], strict=True)
            ),
        ]
        path.write_text("\n".join(lines) + "\n")
        self._launcher = Launcher(config.load(path), say=lambda text: None)
        try:
            self._launcher.install()
            self._launcher.up(START_TIMEOUT_S)
        except (LaunchError, InstallError) as error:
            raise BenchError(str(error)) from None
        self._cluster = Cluster(str(path))

    def stop(self) -> None:
        if self._launcher is not None:
            self._launcher.stop()
            self._launcher = None

    @property
    def cluster(self) -> Cluster:
        if self._cluster is None:
            raise BenchError("Ackord was not started")
        return self._cluster

    def access(self) -> Access:
        return AckordAccess(self.cluster.urls)

    def check(self, table: TableSpec) -> None:
        async def ask() -> list[set[str]]:
            async with ackord.connect(self.cluster.urls) as store:
                return await in_sync_nodes(store, table.name)

        for members in asyncio.run(ask()):
            if members != set(NODES):
                missing = ", ".join(sorted(set(NODES) - members))
                raise BenchError(f"{missing} had left the in-sync set of a tablet")

    def pids(self) -> dict[str, int]:
        pids = {node: self.cluster.pid(node) for node in NODES}
        zookeeper = processes.running_pid(self._folder / ".ackord" / "run" / "zookeeper.pid")
        return pids if zookeeper is None else pids | {"zookeeper": zookeeper}

    def folders(self) -> list[Path]:
        return [self._folder / node for node in NODES]

    def describe(self) -> dict[str, str]:
        return {
            "version": ackord.__version__,
            "client": f"the SDK, Python {sys.version.split()[0]}",
            "written": "acknowledged after an fsync on every in-sync replica (three)",
            "read": "any in-sync replica, under its lease",
            "settings": f"cluster.yaml as shipped, a block cache of {BLOCK_CACHE_MIB} MiB, each table one tablet",
        }
