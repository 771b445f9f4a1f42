"""Private ZooKeeper servers on free loopback ports, in a temporary folder, for tests."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ackord_node.devcluster.zookeeper_process import (
    Member,
    ZooKeeperSettings,
    launch,
    wait_until_serving,
)
from tests.support.ports import HOST, free_port, free_ports


class ZooKeeperServer:
    """One server; its data outlives stop, kill and restart, until close (or the end of the with block)."""

    def __init__(
        self, settings: ZooKeeperSettings | None = None, *, tick_ms: int = 500, wrapper: Sequence[str] = ()
    ) -> None:
        self._wrapper = tuple(wrapper)
        self._folder = None if settings else Path(tempfile.mkdtemp(prefix="ackord-zookeeper-"))
        if settings is None:
            assert self._folder is not None
            settings = ZooKeeperSettings(folder=self._folder, client_port=free_port(), tick_ms=tick_ms)
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.settings.host}:{self.settings.client_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        if self._process is None:
            self._process = launch(self.settings, self._wrapper)
        if wait:
            self.wait()

    def wait(self) -> None:
        assert self._process is not None
        wait_until_serving(self.settings, self._process)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kills and starts it on the same data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Kills it and deletes all that it knew, as an operator's mistake would."""
        self.kill()
        shutil.rmtree(self.settings.folder / "data")

    def pause(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self, signal_number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(signal_number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ZooKeeperEnsemble:
    """Three servers that form one quorum, on free loopback ports.

    Or one server for each of ``places`` (a host, and the command that runs a program there), in a ``folder`` that
    is kept at the end.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        places: Sequence[tuple[str, Sequence[str]]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._is_temporary = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="ackord-ensemble-"))
        if places is None:
            ports = free_ports(3 * count)
            members = tuple(Member(ports[3 * i], ports[3 * i + 1], ports[3 * i + 2]) for i in range(count))
            places = [(HOST, ())] * count
        else:
            members = tuple(Member(2181, 2888, 3888, host) for host, _ in places)
        self.servers = [
            ZooKeeperServer(
                ZooKeeperSettings(
                    folder=self._folder / str(number),
                    host=host,
                    client_port=member.client_port,
                    server_id=number,
                    members=members,
                ),
                wrapper=wrapper,
            )
            for number, (member, (host, wrapper)) in enumerate(zip(members, places, strict=True), start=1)
        ]

    @property
    def addresses(self) -> list[str]:
        return [server.address for server in self.servers]

    def start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait()

    def close(self) -> None:
        for server in self.servers:
            server.close()
        if self._is_temporary:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
