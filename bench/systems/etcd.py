"""etcd: three members of Debian's etcd-server, through grpc.aio.

Every write goes through Raft: it is answered when a majority of the members has fsynced it to its log, the leader among
them. Reads are etcd's default, linearizable: the member that is asked makes sure with a majority that it is up to
date. All calls go to the leader, which saves etcd the hop of forwarding them; several channels, as one HTTP/2
connection of grpc carries a hundred calls at a time.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from bench.systems import etcd_messages as messages
from bench.systems.base import (
    HOST,
    Access,
    BenchError,
    Client,
    Rows,
    Server,
    TableSpec,
    find_program,
    free_ports,
    output,
    stop_all,
    wait_until,
)

MEMBERS = ("e1", "e2", "e3")
START_TIMEOUT_S = 30.0
CALLERS_PER_CHANNEL = 32
TXN_ROWS_MAX = 128  # etcd's default for one transaction
SETTINGS = {
    "quota-backend-bytes": str(8 << 30),  # the largest that etcd recommends; 2 GiB would end a long run
    "auto-compaction-mode": "revision",
    "auto-compaction-retention": "10000",  # without compaction every version of every key is kept
    "snapshot-count": "100000",  # the default, named because it matters
    "logger": "zap",
    "log-level": "warn",
}


class EtcdClient:
    """Channels to the leader, used in turn."""

    def __init__(self, target: str, prefix: bytes, channels_count: int) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]  # else all channels share one connection
        self._prefix = prefix
        self._channels = [grpc.aio.insecure_channel(target, options) for _ in range(channels_count)]
        self._ranges = cycle([_call(channel, "Range", messages.RangeResponse) for channel in self._channels])
        self._puts = cycle([_call(channel, "Put", messages.PutResponse) for channel in self._channels])
        self._txns = cycle([_call(channel, "Txn", messages.TxnResponse) for channel in self._channels])

    def _key(self, key: int) -> bytes:
        return b"%b%012d" % (self._prefix, key)

    async def put(self, key: int, value: bytes) -> None:
        await next(self._puts)(messages.PutRequest(key=self._key(key), value=value))

    async def get(self, key: int) -> bytes | None:
        response = await next(self._ranges)(messages.RangeRequest(key=self._key(key)))
        for pair in response.kvs:
            value: bytes = pair.value
            return value
        return None

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        response = await next(self._ranges)(messages.RangeRequest(key=self._key(key)))
        pair = response.kvs[0]
        return pair.value, pair.mod_revision

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        encoded = self._key(key)
        unchanged = messages.Compare(
            result=messages.COMPARE_EQUAL,
            target=messages.COMPARE_MOD_REVISION,
            key=encoded,
            mod_revision=version,
        )
        put = messages.RequestOp(request_put=messages.PutRequest(key=encoded, value=value))
        response = await next(self._txns)(messages.TxnRequest(compare=[unchanged], success=[put]))
        succeeded: bool = response.succeeded
        return succeeded

    async def insert(self, key: int, value: bytes) -> None:
        if not await self.put_if(key, value, 0):
            raise BenchError(f"row {key} existed")

    async def load(self, rows: Rows) -> None:
        await self.put_many(rows)

    async def put_many(self, rows: Rows) -> None:
        for start in range(0, len(rows), TXN_ROWS_MAX):
            puts = [
                messages.RequestOp(request_put=messages.PutRequest(key=self._key(key), value=value))
                for key, value in rows[start : start + TXN_ROWS_MAX]
            ]
            await next(self._txns)(messages.TxnRequest(success=puts))

    async def scan(self, start: int, count: int) -> int:
        request = messages.RangeRequest(key=self._key(start), range_end=self._prefix + b"~", limit=count)
        response = await next(self._ranges)(request)
        return sum(1 for pair in response.kvs if pair.value)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


def _call(channel: grpc.aio.Channel, method: str, response: Any) -> Any:
    return channel.unary_unary(
        f"/etcdserverpb.KV/{method}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=response.FromString,
    )


def _leader(ports: Sequence[int]) -> str:
    """The leader's address, wherever the last election has put it; BenchError if not every member knows it."""
    found = ""
    for port in ports:
        request = urllib.request.Request(f"http://{HOST}:{port}/v3/maintenance/status", data=b"{}")
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                status = json.load(response)
        except OSError as error:
            raise BenchError(f"the member of etcd at port {port} does not answer: {error}") from None
        leader = status.get("leader", "0")
        if leader == "0":
            raise BenchError(f"the member of etcd at port {port} knows no leader")
        if leader == status["header"]["member_id"]:
            found = f"{HOST}:{port}"
    if not found:
        raise BenchError("etcd has no leader")
    return found


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    ports: tuple[int, ...]

    def has_cache(self) -> bool:
        return False

    async def create(self, table: TableSpec) -> None:
        """Keys have the table's name as prefix; there is nothing to create."""

    async def connect(self, table: TableSpec, callers: int) -> Client:
        channels_count = max(callers // CALLERS_PER_CHANNEL, 1)
        return EtcdClient(_leader(self.ports), table.name.encode() + b"/", channels_count)


class Etcd:
    """The members, in ``folder``."""

    name = "etcd"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = find_program("etcd")
        self._ports: tuple[int, ...] = ()
        self._servers: list[Server] = []

    def start(self) -> None:
        ports = free_ports(2 * len(MEMBERS))
        self._ports, peer_ports = tuple(ports[: len(MEMBERS)]), ports[len(MEMBERS) :]
        members = dict(zip(MEMBERS, peer_ports, strict=True))
        cluster = ",".join(f"{name}=http://{HOST}:{port}" for name, port in members.items())
        for name, port in zip(MEMBERS, self._ports, strict=True):
            folder = self._folder / name
            folder.mkdir(parents=True)
            options = SETTINGS | {
                "name": name,
                "data-dir": str(folder / "data"),
                "listen-client-urls": f"http://{HOST}:{port}",
                "advertise-client-urls": f"http://{HOST}:{port}",
                "listen-peer-urls": f"http://{HOST}:{members[name]}",
                "initial-advertise-peer-urls": f"http://{HOST}:{members[name]}",
                "initial-cluster": cluster,
                "initial-cluster-state": "new",
            }
            command = [self._program, *(f"--{option}={value}" for option, value in options.items())]
            self._servers.append(Server(name, command, folder))
        for server in self._servers:
            server.start()
        wait_until(self._has_leader, "a leader of etcd", self._servers, START_TIMEOUT_S)

    def _has_leader(self) -> bool:
        try:
            _leader(self._ports)
        except BenchError:
            return False
        return True

    def stop(self) -> None:
        stop_all(self._servers)
        self._servers.clear()

    def access(self) -> Access:
        return EtcdAccess(self._ports)

    def check(self, table: TableSpec) -> None:
        _leader(self._ports)

    def pids(self) -> dict[str, int]:
        return {server.name: server.pid for server in self._servers}

    def folders(self) -> list[Path]:
        return [server.folder / "data" for server in self._servers]

    def describe(self) -> dict[str, str]:
        return {
            "version": output([self._program, "--version"]),
            "client": f"grpc.aio {grpc.__version__}, to the leader, a channel for each {CALLERS_PER_CHANNEL} callers",
            "written": "acknowledged after an fsync of the log on a majority (two of three)",
            "read": "linearizable (the default)",
            "settings": ", ".join(f"{option} {value}" for option, value in SETTINGS.items()),
        }
