"""A real cluster for tests: node processes, a ZooKeeper of its own, data folders on a real disk, free ports.

All control is synchronous and returns at once where it can (a signal is only sent), so that a test that drives load
on its event loop is not stopped by it; the waits belong into ``asyncio.to_thread``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.support.ports import HOST, free_ports
from tests.support.zookeeper import ZooKeeperServer

REPO = Path(__file__).resolve().parents[2]
SESSION_TIMEOUT_MS = 3000
LEASE_MS = 1000
POLL_S = 0.05
LOG_TAIL_BYTES = 6000
LOGS_VARIABLE = "ACKORD_TEST_LOGS"  # a folder that the nodes' logs are copied to at the end


class RealNode:
    """One node: its place in cluster.yaml, its data folder, its log and, while it runs, its process."""

    def __init__(
        self,
        name: str,
        port: int,
        folder: Path,
        data: Path,
        *,
        host: str = HOST,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.wrapper = tuple(wrapper)  # the command that runs a program in this node's place
        self.folder = folder
        self.data = data
        self.log_path = folder / f"{name}.log"
        self.environment: dict[str, str] = {}  # beside this process's own, at the next start
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        assert not self.is_running, f"{self.name} runs already"
        self._process = launch_node(
            self.folder / "cluster.yaml", self.name, self.log_path, self.environment, self.wrapper
        )

    def kill(self) -> None:
        """SIGKILL; returns at once."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, a planned stop; returns at once."""
        self._signal(signal.SIGTERM)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def wait_exit(self, timeout_s: float = 15.0) -> int:
        """The exit code, negative for the signal that ended it."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def wipe(self) -> None:
        """Empties the data folder of a node that does not run."""
        assert not self.is_running
        shutil.rmtree(self.data, ignore_errors=True)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_log(self, text: str, timeout_s: float = 15.0, *, after: int = 0) -> None:
        """Until the log holds ``text`` beyond its first ``after`` characters."""
        deadline = time.monotonic() + timeout_s
        while text not in self.log()[after:]:
            assert time.monotonic() < deadline, (
                f"{self.name} never said {text!r}:\n{self.log()[-LOG_TAIL_BYTES:]}"
            )
            time.sleep(POLL_S)

    def ask(self, path: str, timeout_s: float = 2.0) -> Any:
        """The JSON answer of a page, whatever its status; OSError if there is none. AssertionError if what answers is
        no node: something else listens on this port."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
                status, said = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, said = error.status, error.read()
        try:
            return json.loads(said)
        except ValueError:
            raise AssertionError(
                f"{self.url}{path} answered {status} {said[:200]!r}: is that {self.name}, or a server of somebody "
                f"else?\n{self.log()[-LOG_TAIL_BYTES:]}"
            ) from None

    def end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)


class RealCluster:
    """``count`` nodes and a ZooKeeper; enter it (or call ``start`` and ``close``).

    ``settings`` are cluster.yaml's sections beside the nodes, merged into the defaults; ``node_settings`` go into
    each node's entry; ``data`` places single nodes' data folders elsewhere; ``hosts`` and ``wrappers`` place nodes
    on other addresses than loopback, together with the commands that run programs there. A ``folder`` that is given
    is kept at the end.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        name: str = "test",
        zookeeper: ZooKeeperServer | None = None,
        settings: Mapping[str, Any] | None = None,
        node_settings: Mapping[str, Mapping[str, Any]] | None = None,
        data: Mapping[str, Path] | None = None,
        hosts: Mapping[str, str] | None = None,
        wrappers: Mapping[str, Sequence[str]] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._is_temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="ackord-cluster-"))
        self._owns_zookeeper = zookeeper is None
        self.zookeeper = zookeeper or ZooKeeperServer()
        self.nodes: dict[str, RealNode] = {}
        for number, port in enumerate(free_ports(count), start=1):
            node = f"n{number}"
            place = (data or {}).get(node, self.folder / "data" / node)
            host, wrapper = (hosts or {}).get(node, HOST), (wrappers or {}).get(node, ())
            self.nodes[node] = RealNode(node, port, self.folder, place, host=host, wrapper=wrapper)
        self.settings: dict[str, Any] = {
            "cluster": name,
            "coordination": f"zookeeper://{self.zookeeper.address}/ackord",
            "replication": {
                "replicas": min(3, count),
                "min_in_sync": min(2, count),
                "lease_ms": LEASE_MS,
                "session_timeout_ms": SESSION_TIMEOUT_MS,
            },
            **(settings or {}),
        }
        self._node_settings = node_settings or {}
        self.write_config()

    # --------------------------------------------------------------------------------- settings

    @property
    def config_path(self) -> Path:
        return self.folder / "cluster.yaml"

    @property
    def urls(self) -> str:
        return ",".join(node.url for node in self.nodes.values())

    def __getitem__(self, name: str) -> RealNode:
        return self.nodes[name]

    def write_config(self) -> None:
        nodes = {
            node.name: {
                "address": f"{node.host}:{node.port}",
                "data": str(node.data),
                **self._node_settings.get(node.name, {}),
            }
            for node in self.nodes.values()
        }
        self.config_path.write_text(yaml.safe_dump({**self.settings, "nodes": nodes}))

    # ------------------------------------------------------------------------------ start and end

    def start(self, *, wait: bool = True) -> None:
        if self._owns_zookeeper:
            self.zookeeper.start()
        for node in self.nodes.values():
            if not node.is_running:
                node.start()
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout_s: float = 30.0, *, only: Sequence[str] | None = None) -> float:
        """Until these nodes (all) say that they are ready; the seconds that took. The error holds logs."""
        started = time.monotonic()
        waiting = [self.nodes[name] for name in only or self.nodes]
        reasons: dict[str, str] = {}
        while waiting:
            for node in list(waiting):
                assert node.is_running, f"{node.name} has ended:\n{node.log()[-LOG_TAIL_BYTES:]}"
                try:
                    answer = node.ask("/ready")
                except OSError as error:
                    reasons[node.name] = str(error)
                    continue
                reasons[node.name] = answer["reason"]
                if answer["ready"]:
                    waiting.remove(node)
            if waiting:
                if time.monotonic() - started > timeout_s:
                    raise AssertionError(self._not_ready(waiting, reasons, timeout_s))
                time.sleep(POLL_S)
        return time.monotonic() - started

    def _not_ready(self, waiting: Sequence[RealNode], reasons: dict[str, str], timeout_s: float) -> str:
        names = ", ".join(f"{node.name} ({reasons.get(node.name)})" for node in waiting)
        return f"not ready within {timeout_s:.0f} s: {names}\n{self.logs()}"

    def stop(self, timeout_s: float = 20.0) -> dict[str, int]:
        """Plans all nodes' stops at once; their exit codes."""
        running = [node for node in self.nodes.values() if node.is_running]
        for node in running:
            node.resume()
            node.stop()
        return {node.name: node.wait_exit(timeout_s) for node in running}

    def kill(self) -> None:
        for node in self.nodes.values():
            if node.is_running:
                node.kill()
                node.wait_exit()

    def close(self) -> None:
        for node in self.nodes.values():
            node.end()
        if self._owns_zookeeper:
            self.zookeeper.close()
        keep = os.environ.get(LOGS_VARIABLE)
        if keep:
            for node in self.nodes.values():
                if node.log_path.exists():
                    shutil.copy(node.log_path, Path(keep) / f"{self.folder.name}-{node.name}.log")
        if self._is_temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def logs(self) -> str:
        tails = [f"---- {node.name}\n{node.log()[-LOG_TAIL_BYTES:]}" for node in self.nodes.values()]
        return "\n".join(tails)

    # -------------------------------------------------------------------------------- questions

    def routing(self, ask: str | None = None) -> dict[str, Any]:
        """The routing table of node ``ask``, or of the first that answers."""
        for node in [self.nodes[ask]] if ask else self.nodes.values():
            try:
                found = node.ask("/v1/routing")
            except OSError:
                continue
            assert isinstance(found, dict)
            if "tables" in found:  # else the node is starting, and says so
                return found
        raise AssertionError(f"no node told the routing table\n{self.logs()}")

    def tablets(self, table: str, ask: str | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.routing(ask)["tables"][table]["tablets"]
        return found

    def coordinators(self, table: str, ask: str | None = None) -> dict[int, str | None]:
        return {tablet["id"]: tablet["coordinator"] for tablet in self.tablets(table, ask)}

    def busiest(self, table: str) -> str:
        """The node that coordinates most tablets of the table."""
        names = [name for name in self.coordinators(table).values() if name is not None]
        return max(sorted(set(names)), key=names.count)

    def wait_in_sync(self, table: str, timeout_s: float = 30.0) -> float:
        """Until every tablet has a coordinator and all its replicas in sync; the seconds that took."""
        started = time.monotonic()
        wanted = self.settings["replication"]["replicas"]
        while True:
            tablets = self.tablets(table)
            lacking = [t for t in tablets if len(t["in_sync"]) < wanted or t["coordinator"] is None]
            if not lacking:
                return time.monotonic() - started
            assert time.monotonic() - started < timeout_s, f"not in sync again: {lacking}\n{self.logs()}"
            time.sleep(POLL_S)

    def wait_spread(self, table: str, timeout_s: float = 30.0, *, only: Sequence[str] | None = None) -> float:
        """Until the table's coordinators are evenly spread over all nodes, or over ``only`` those; the seconds
        that took."""
        started = time.monotonic()
        wanted = list(self.nodes) if only is None else list(only)
        while True:
            names = list(self.coordinators(table, only[0] if only else None).values())
            counts = [names.count(name) for name in wanted]
            if sum(counts) == len(names) and max(counts) - min(counts) <= 1:
                return time.monotonic() - started
            assert time.monotonic() - started < timeout_s, f"not spread evenly: {names}\n{self.logs()}"
            time.sleep(POLL_S)

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


def launch_node(
    config: Path,
    name: str,
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """One node process of this working tree, its output appended to ``log_path``."""
    paths = os.pathsep.join([str(REPO / "client"), str(REPO / "node")])
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [*wrapper, sys.executable, "-m", "ackord_node", "--config", str(config), "--node", name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=config.parent,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )
