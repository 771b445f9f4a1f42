"""PostgreSQL: a primary and two synchronous standbys of Debian's postgresql, through asyncpg with prepared statements.

``synchronous_standby_names = '2 (s1, s2)'`` and ``synchronous_commit = remote_apply``: a commit is answered when its
WAL is fsynced on the primary and both standbys, and both have applied it. Reads go to the primary, which shows a
transaction only when its commit was answered by the standbys.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from bench.systems.base import (
    HOST,
    Access,
    BenchError,
    Client,
    Pool,
    Rows,
    Server,
    TableSpec,
    as_user,
    find_program,
    free_ports,
    output,
    stop_all,
    wait_until,
)

STANDBYS = ("s1", "s2")
USER = "bench"
DATABASE = "postgres"
START_TIMEOUT_S = 60.0
CONNECTIONS_MAX = 64  # more of them make it slower on few cores; callers beyond wait their turn
PACKAGED = Path("/usr/lib/postgresql")
UNPRIVILEGED = "postgres"  # PostgreSQL refuses to run as root; Debian's package makes this user
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "remote_apply",
    "wal_level": "replica",
    "max_connections": "600",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "wal_compression": "off",
    "jit": "off",
    "hot_standby": "on",
}


@dataclass(slots=True)
class _Session:
    """One connection, with what it has prepared."""

    connection: Any
    put: Any
    get: Any
    get_version: Any
    put_if: Any
    insert: Any
    put_many: Any
    scan: Any


class PostgreSQLClient:
    """One statement at a time per connection, each a transaction of its own."""

    def __init__(self, sessions: Sequence[_Session]) -> None:
        self._sessions = sessions
        self._pool = Pool(sessions)

    async def put(self, key: int, value: bytes) -> None:
        session = await self._pool.take()
        try:
            await session.put.fetchval(key, value)
        finally:
            self._pool.give(session)

    async def get(self, key: int) -> bytes | None:
        session = await self._pool.take()
        try:
            value: bytes | None = await session.get.fetchval(key)
        finally:
            self._pool.give(session)
        return value

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        session = await self._pool.take()
        try:
            value, version = await session.get_version.fetchrow(key)
        finally:
            self._pool.give(session)
        return value, version

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        session = await self._pool.take()
        try:
            return await session.put_if.fetchval(key, value, version) is not None
        finally:
            self._pool.give(session)

    async def insert(self, key: int, value: bytes) -> None:
        session = await self._pool.take()
        try:
            await session.insert.fetchval(key, value)
        finally:
            self._pool.give(session)

    async def load(self, rows: Rows) -> None:
        await self.put_many(rows)

    async def put_many(self, rows: Rows) -> None:
        session = await self._pool.take()
        try:
            await session.put_many.fetchval([key for key, _ in rows], [value for _, value in rows])
        finally:
            self._pool.give(session)

    async def scan(self, start: int, count: int) -> int:
        session = await self._pool.take()
        try:
            return len(await session.scan.fetch(start, count))
        finally:
            self._pool.give(session)

    async def close(self) -> None:
        for session in self._sessions:
            await session.connection.close()


async def _session(port: int, name: str) -> _Session:
    connection = await asyncpg.connect(host=HOST, port=port, user=USER, database=DATABASE)
    replace = "on conflict (id) do update set value = excluded.value, version = t.version + 1"
    return _Session(
        connection,
        put=await connection.prepare(f"insert into {name} as t values ($1, $2, 1) {replace}"),
        get=await connection.prepare(f"select value from {name} where id = $1"),
        get_version=await connection.prepare(f"select value, version from {name} where id = $1"),
        put_if=await connection.prepare(
            f"update {name} set value = $2, version = version + 1 where id = $1 and version = $3 returning id"
        ),
        insert=await connection.prepare(f"insert into {name} values ($1, $2, 1)"),
        put_many=await connection.prepare(
            # in the order of the keys, so that two batches that meet wait for each other and never in a circle
            f"insert into {name} as t select id, value, 1 from unnest($1::bigint[], $2::bytea[]) as r (id, value) "
            f"order by id {replace}"
        ),
        scan=await connection.prepare(f"select id, value from {name} where id >= $1 order by id limit $2"),
    )


@dataclass(frozen=True, slots=True)
class PostgreSQLAccess:
    port: int

    def has_cache(self) -> bool:
        return False

    async def create(self, table: TableSpec) -> None:
        connection = await asyncpg.connect(host=HOST, port=self.port, user=USER, database=DATABASE)
        await connection.execute(
            f"create table {table.name} (id bigint primary key, value bytea not null, version bigint not null) "
            "with (fillfactor = 80)"  # room for new versions of a row beside the old one
        )
        await connection.close()

    async def connect(self, table: TableSpec, callers: int) -> Client:
        count = min(callers, CONNECTIONS_MAX)
        sessions = []
        for start in range(0, count, 16):
            some = range(start, min(start + 16, count))
            sessions += await asyncio.gather(*(_session(self.port, table.name) for _ in some))
        return PostgreSQLClient(sessions)


class PostgreSQL:
    """The primary and its standbys, in ``folder``."""

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = _programs()
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        self._port = 0
        self._servers: list[Server] = []

    def start(self) -> None:
        self._folder.mkdir(parents=True)
        if self._user is not None:
            subprocess.run(["chown", self._user, str(self._folder)], check=True)
        self._port, *standby_ports = free_ports(1 + len(STANDBYS))
        data = self._folder / "primary"
        self._run(
            "initdb",
            "-D",
            str(data),
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-instructions",
        )
        self._serve("primary", self._port)
        for name, port in zip(STANDBYS, standby_ports, strict=True):
            source = f"host={HOST} port={self._port} user={USER} application_name={name}"
            self._run("pg_basebackup", "-D", str(self._folder / name), "-d", source, "-R", "-c", "fast")
            self._serve(name, port)
        asyncio.run(self._make_synchronous())
        wait_until(self._are_synchronous, "synchronous standbys", self._servers, START_TIMEOUT_S)

    def _serve(self, name: str, port: int) -> None:
        """Starts a server on its data; returns when it takes connections."""
        options = SETTINGS | {
            "port": str(port),
            "listen_addresses": HOST,
            "unix_socket_directories": "",
        }
        arguments = [word for option, value in options.items() for word in ("-c", f"{option}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self._folder / name), *arguments]
        server = Server(name, command, self._folder, self._user)
        self._servers.append(server)
        server.start()
        ready = [str(self._programs / "pg_isready"), "-q", "-h", HOST, "-p", str(port), "-U", USER]
        wait_until(
            lambda: subprocess.run(ready, check=False).returncode == 0,
            f"readiness of PostgreSQL's {name}",
            [server],
            START_TIMEOUT_S,
        )

    async def _make_synchronous(self) -> None:
        """Only now: without its standbys the primary would wait for ever."""
        connection = await asyncpg.connect(host=HOST, port=self._port, user=USER, database=DATABASE)
        names = f"{len(STANDBYS)} ({', '.join(STANDBYS)})"
        await connection.execute(f"alter system set synchronous_standby_names = '{names}'")
        await connection.execute("select pg_reload_conf()")
        await connection.close()

    async def _sync_states(self) -> dict[str, str]:
        connection = await asyncpg.connect(host=HOST, port=self._port, user=USER, database=DATABASE)
        try:
            rows = await connection.fetch("select application_name, sync_state from pg_stat_replication")
        finally:
            await connection.close()
        return {row["application_name"]: row["sync_state"] for row in rows}

    def check(self, table: TableSpec) -> None:
        states = asyncio.run(self._sync_states())
        if states != dict.fromkeys(STANDBYS, "sync"):
            raise BenchError(f"PostgreSQL's standbys are not both synchronous: {states}")

    def _are_synchronous(self) -> bool:
        return asyncio.run(self._sync_states()) == dict.fromkeys(STANDBYS, "sync")

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
            **as_user(self._user),
        )
        if done.returncode:
            raise BenchError(f"{program} failed:\n{done.stdout}{done.stderr}")

    def stop(self) -> None:
        # The standbys first: a primary that shuts down waits for what they have not received.
        stop_all(self._servers[1:], signal.SIGINT)
        stop_all(self._servers[:1], signal.SIGINT)
        self._servers.clear()

    def access(self) -> Access:
        return PostgreSQLAccess(self._port)

    def pids(self) -> dict[str, int]:
        return {server.name: server.pid for server in self._servers}

    def folders(self) -> list[Path]:
        return [self._folder / server.name for server in self._servers]

    def describe(self) -> dict[str, str]:
        settings = SETTINGS | {"synchronous_standby_names": f"'{len(STANDBYS)} ({', '.join(STANDBYS)})'"}
        return {
            "version": output([str(self._programs / "postgres"), "--version"]),
            "client": f"asyncpg {asyncpg.__version__}, prepared statements, up to {CONNECTIONS_MAX} connections",
            "written": "acknowledged after an fsync on the primary and both standbys, and applied there",
            "read": "at the primary",
            "settings": ", ".join(f"{option} = {value}" for option, value in settings.items()),
        }


def _programs() -> Path:
    """Where the newest version that is installed has its programs."""
    versions = sorted(PACKAGED.glob("*/bin/postgres"), key=lambda path: float(path.parent.parent.name))
    return versions[-1].parent if versions else Path(find_program("postgres")).parent
