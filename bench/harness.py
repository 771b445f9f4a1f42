"""What the demo and the benchmark share: the running cluster as processes, and a progress bar.

The processes are those that `make cluster` started, known by the pid files under ``.ackord/run``; nothing else is
ever signalled.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import ackord
from ackord_node import config
from ackord_node.devcluster import processes
from ackord_node.devcluster.launcher import Launcher, LaunchError

POLL_S = 0.02
START_TIMEOUT_S = 60.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


class ClusterError(Exception):
    """The cluster is not as a run needs it; the message says what to do."""


class Cluster:
    """The local cluster of one cluster.yaml."""

    def __init__(self, path: str) -> None:
        self.config = config.load(path)
        self.home = self.config.path.resolve().parent
        self.nodes = list(self.config.nodes)
        self.urls = [node.address.url for node in self.config.nodes.values()]
        self._launcher = Launcher(self.config, say=lambda text: None)

    def pid(self, node: str) -> int:
        """The node's process; ClusterError if it does not run."""
        pid = processes.running_pid(self.home / ".ackord" / "run" / f"node-{node}.pid")
        if pid is None:
            raise ClusterError(f"node {node} does not run; `make cluster` starts it")
        return pid

    async def kill(self, node: str) -> None:
        """SIGKILL: the process has no chance to hand anything over. Returns once its port is closed, which may
        be a moment after the process is gone: a thread that is in an fsync ends later."""
        os.kill(self.pid(node), signal.SIGKILL)
        address = self.config.node(node).address
        while True:
            try:
                _, writer = await asyncio.open_connection(address.host, address.port)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(POLL_S)

    async def start_missing(self) -> None:
        """Starts what does not run, as `make cluster` does; returns once every node says that it is ready."""
        try:
            await asyncio.to_thread(self._launcher.up, START_TIMEOUT_S)
        except LaunchError as error:
            raise ClusterError(str(error)) from None

    def resident_mib(self, node: str) -> float:
        """Memory of the process that is in RAM."""
        for line in Path(f"/proc/{self.pid(node)}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise ClusterError(f"node {node} has ended")

    def cpu_s(self, node: str) -> float:
        """CPU seconds that the process has used, all threads together."""
        fields = Path(f"/proc/{self.pid(node)}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


async def in_sync_nodes(store: ackord.Store, table: str) -> list[set[str]]:
    """Of each tablet of the table the nodes in its in-sync set."""
    status = await store.status()
    return [set(tablet["in_sync"]) for tablet in status["tables"][table]["tablets"]]


async def wait_in_sync(store: ackord.Store, table: str, nodes: set[str], timeout_s: float) -> None:
    """Until every tablet has these nodes in its in-sync set."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if all(nodes <= members for members in await in_sync_nodes(store, table)):
                return
        except (ackord.Unavailable, KeyError):
            pass  # asked of a node that is only just coming up
        if time.monotonic() > deadline:
            raise ClusterError(f"not all of {', '.join(sorted(nodes))} are in sync after {timeout_s:.0f} s")
        await asyncio.sleep(POLL_S)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs it on uvloop if that is installed (it comes with ackord[node]), else on asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


# ------------------------------------------------------------------------------------- progress


class Progress(Protocol):
    """Shows how far a loop has come."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, done: int, note: str = "") -> None: ...


class LineProgress:
    """One line a second; for a terminal without rich, or a log file."""

    def __init__(self, title: str, total: int, say: Callable[[str], None] = print) -> None:
        self._title, self._total, self._say = title, total, say
        self._shown_at = 0.0
        self._shown_done = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if done != self._shown_done and (now - self._shown_at >= 1.0 or done == self._total):
            self._shown_at, self._shown_done = now, done
            self._say(f"{self._title} {done:>9,} of {self._total:,} {note}".rstrip())


class RichProgress:
    """A bar with rate and time left."""

    def __init__(self, title: str, total: int) -> None:
        from rich import progress

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]} rows/s"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
        )
        self._task = self._bar.add_task(title, total=total, note="", rate="")
        self._started_at = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: int, note: str = "") -> None:
        rate = done / max(time.monotonic() - self._started_at, 1e-3)
        self._bar.update(self._task, completed=done, note=note, rate=f"{rate:,.0f}")


def progress(title: str, total: int) -> Progress:
    """A bar on a terminal that rich can draw on, else plain lines."""
    try:
        from rich.console import Console
    except ImportError:
        return LineProgress(title, total)
    return RichProgress(title, total) if Console().is_terminal else LineProgress(title, total)
