"""What a system must offer to be measured, and how its processes are started, watched and ended.

A ``System`` is three real servers of one kind on this machine, started and ended by the driver. A ``Client`` is one
process's access to them: the driver's worker processes make one each from what ``System.access`` returns, which
travels between processes. Every call of a client that writes returns only when the write is on the disks that the
system's documentation asks for at its safest; every read sees all writes that were acknowledged before.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

HOST = "127.0.0.1"
LOG_TAIL_LINES = 15
POLL_S = 0.05
STOP_PATIENCE_S = 20.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")
Rows = Sequence[tuple[int, bytes]]


class BenchError(Exception):
    """The run cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class TableSpec:
    """Rows 0 to ``rows_count`` - 1, each of an int key and one value of ``value_bytes`` random bytes."""

    rows_count: int
    value_bytes: int

    @property
    def name(self) -> str:
        return f"rows_{self.rows_count}_{self.value_bytes}"


class Client(Protocol):
    """One process's access to one table. All calls may run concurrently."""

    async def put(self, key: int, value: bytes) -> None:
        """Replaces the row, or creates it."""

    async def get(self, key: int) -> bytes | None:
        """The row's value, linearizable."""

    async def get_version(self, key: int) -> tuple[bytes, Any]:
        """The row's value, with what ``put_if`` needs to know it by."""

    async def put_if(self, key: int, value: bytes, version: Any) -> bool:
        """Replaces the row if it is still that version; False if it is not."""

    async def insert(self, key: int, value: bytes) -> None:
        """Creates a row that does not exist."""

    async def load(self, rows: Rows) -> None:
        """Creates rows that do not exist, before anything is measured."""

    async def put_many(self, rows: Rows) -> None:
        """Replaces rows that exist, in the system's cheapest way."""

    async def scan(self, start: int, count: int) -> int:
        """Reads the next ``count`` rows in key order from ``start``; how many there were."""

    async def close(self) -> None: ...


@runtime_checkable
class CachingClient(Protocol):
    """A client that can keep rows in its own process's memory, and stays linearizable."""

    def cached_get(self) -> Callable[[int], Awaitable[Any]]:
        """Reads a row; the same cache at each call."""


class Access(Protocol):
    """How a worker process reaches a running system; picklable."""

    def has_cache(self) -> bool:
        """Whether its clients are CachingClients."""

    async def create(self, table: TableSpec) -> None:
        """Creates the table, without rows."""

    async def connect(self, table: TableSpec, callers: int) -> Client:
        """A client for so many concurrent callers."""


class System(Protocol):
    """Three servers of one kind."""

    name: str

    def start(self) -> None:
        """Starts the servers; returns when they serve and every replica is in sync."""

    def stop(self) -> None: ...

    def access(self) -> Access: ...

    def check(self, table: TableSpec) -> None:
        """BenchError if a replica is not in sync: a figure that was reached without it does not count."""

    def pids(self) -> dict[str, int]:
        """The main process of each server."""

    def folders(self) -> list[Path]:
        """Where the servers keep their data."""

    def describe(self) -> dict[str, str]:
        """Version and the settings that matter, for the report."""


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does: through its `finally` clauses, which stop the servers."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


# --------------------------------------------------------------------------------------- processes


class Server:
    """One server process that the driver starts and ends."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, user: str | None = None) -> None:
        self.name = name
        self.command = list(command)
        self.folder = folder
        self.log = folder / f"{name}.log"
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise BenchError(f"{self.name} does not run; the end of its log:\n{tail(self.log)}")
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **as_user(self._user),
            )

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to end; ``wait`` waits."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def wait(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def as_user(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess that run a program as this user, None for the present one."""
    if user is None:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def stop_all(servers: Iterable[Server], number: signal.Signals = signal.SIGTERM) -> None:
    chosen = list(servers)
    for server in chosen:
        server.end(number)
    for server in chosen:
        server.wait()


def wait_until(is_true: Callable[[], bool], what: str, servers: Sequence[Server], timeout_s: float) -> None:
    """Polls until it is; BenchError with the logs' ends if a server ends meanwhile or it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        for server in servers:
            server.pid  # noqa: B018 - raises if the process has ended
        if time.monotonic() > deadline:
            logs = "\n".join(f"{server.name}:\n{tail(server.log)}" for server in servers)
            raise BenchError(f"{what} did not come about within {timeout_s:.0f} s; the logs end with\n{logs}")
        time.sleep(POLL_S)


def tail(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in lines) or "  (empty)"


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1.0):
            return True
    except OSError:
        return False


def find_program(name: str, *folders: Path) -> str:
    """Its path; BenchError if it is not installed."""
    for folder in folders:
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        raise BenchError(
            f"{name} is not installed; scripts/install-bench-packages installs all that is needed"
        )
    return found


def output(command: Sequence[str]) -> str:
    """The first line that the program prints, for version numbers."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def pause(system: System) -> None:
    """Its servers get no CPU until ``resume``: beside a system that is measured even heartbeats count."""
    _signal_all(system, signal.SIGSTOP)


def resume(system: System) -> None:
    _signal_all(system, signal.SIGCONT)


def _signal_all(system: System, number: signal.Signals) -> None:
    for pid in descendants(system.pids().values(), parents()):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


# ------------------------------------------------------------------------------------- measurement


def parents() -> dict[int, int]:
    """Of every process its parent."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            found[int(entry.name)] = int(fields[1])
    return found


def descendants(pids: Iterable[int], parent_of: Mapping[int, int]) -> list[int]:
    """These processes and all that they have started, and so on."""
    children: dict[int, list[int]] = {}
    for pid, parent in parent_of.items():
        children.setdefault(parent, []).append(pid)
    waiting, found = list(pids), []
    while waiting:
        found.append(waiting.pop())
        waiting.extend(children.get(found[-1], ()))
    return found


def cpu_s(pids: Iterable[int], parent_of: Mapping[int, int]) -> float:
    """CPU seconds that these processes and their descendants, ended ones too, have used."""
    ticks = 0
    for pid in descendants(pids, parent_of):
        if fields := _stat(pid):
            ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / _TICKS_PER_S


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def disk_bytes(folders: Iterable[Path]) -> int:
    """What the files take on the disk (blocks, not lengths: logs are allocated ahead)."""
    total = 0
    for folder in folders:
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    total += path.stat().st_blocks * 512
    return total


# --------------------------------------------------------------------------------------- connections


class Pool(Generic[T]):
    """Connections that serve one call each at a time. The one that came back last goes out first."""

    def __init__(self, connections: Iterable[T]) -> None:
        self._free = list(connections)
        self._waiting: deque[asyncio.Future[T]] = deque()

    async def take(self) -> T:
        if self._free:
            return self._free.pop()
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return await future

    def give(self, connection: T) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(connection)
                return
        self._free.append(connection)
