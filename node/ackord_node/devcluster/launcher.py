"""Starts, watches and stops a whole cluster on this machine: what `make cluster` is.

Everything it makes is in ``.ackord`` beside cluster.yaml: ``run`` (pid files), ``logs``, ``zookeeper``
and the nodes' data folders. It may be called again at any time: what runs is left alone, what is
missing is started, and two calls at once wait for each other. It only starts and stops: no safety
rule depends on it.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ackord_node.config import Address, ClusterConfig, NodeConfig, is_loopback
from ackord_node.devcluster import processes, zookeeper_process
from ackord_node.devcluster.installer import install_zookeeper

STOP_PATIENCE_S = 15.0
PORT_PATIENCE_S = 3.0
_READY_POLL_S = 0.1
_REQUEST_TIMEOUT_S = 2.0
_NEWS_EVERY_S = 5.0
_LOG_TAIL_LINES = 15


class LaunchError(Exception):
    """The cluster cannot be started here; the message says why and what to do."""


class Launcher:
    """One cluster.yaml on one machine. ``say`` gets the lines for people; ``node_command`` starts a node
    when ``--config PATH --node NAME`` is appended."""

    def __init__(
        self,
        config: ClusterConfig,
        say: Callable[[str], None] = print,
        node_command: Sequence[str] = (sys.executable, "-m", "ackord_node"),
    ) -> None:
        self._config = config
        self._say = say
        self._node_command = list(node_command)
        self._home = config.path.resolve().parent
        self._state = self._home / ".ackord"

    # ------------------------------------------------------------------------------- commands

    def up(self, timeout_s: float) -> None:
        """Starts what does not run and returns once every node is in service; LaunchError if that fails."""
        began = time.monotonic()
        with self._only_me():
            self._check_local()
            coordination = self._ensure_coordination()
            started = [node for node in self._config.nodes.values() if self._ensure_node(node)]
            if not started and not any(self._not_ready().values()):
                self._say(f'Cluster "{self._config.cluster}" is already running and serves every tablet.')
            else:
                how = "starting" if len(started) == len(self._config.nodes) else "resuming"
                names = ", ".join(node.name for node in started) or "waiting for all nodes"
                self._say(f'Cluster "{self._config.cluster}" is {how}: {names}')
                self._wait_ready(time.monotonic() + timeout_s, {node.name for node in started})
                self._say(f"Every tablet is served (after {time.monotonic() - began:.1f} s).")
        self._say("")
        self._say(f"  {'coordination':<14}{coordination}")
        for node in self._config.nodes.values():
            self._say(f"  {node.name:<14}{node.address.url}")
        self._say(f"  {'logs':<14}{_short(self._state / 'logs')}")
        self._say("\nTry:")
        for line in self._lines_to_try():
            self._say(f"  {line}")

    def stop(self) -> None:
        """Ends all nodes at once, then the ZooKeeper that ``up`` started; all are gone when it returns."""
        if not self._state.exists():
            self._say("Nothing is running.")
            return
        with self._only_me():
            self._stop()

    def clean(self) -> None:
        """``stop``, then deletes the state and the data folders in it."""
        if self._state.exists():
            with self._only_me():
                self._stop()
                shutil.rmtree(self._state)
        for node in self._config.nodes.values():
            if node.data.exists():
                self._say(
                    f"{node.name}'s data in {node.data} is left: it lies outside {_short(self._state)}."
                )
        self._say(f"{_short(self._state)} is deleted.")
        if any(_accepts(address) for address in self._config.coordination.hosts):
            self._say(
                f"The ZooKeeper in {self._config.path} was not started from here and still holds the "
                f"cluster's records: delete {self._config.coordination.root} there before the next start."
            )

    def status(self) -> bool:
        """Prints what runs; True if every node is in service."""
        reasons = self._not_ready()
        ready = sum(reason is None for reason in reasons.values())
        self._say(f'Cluster "{self._config.cluster}": {ready} of {len(reasons)} nodes in service')
        for address in self._config.coordination.hosts:
            pid = processes.running_pid(self._zookeeper_pid_file)
            state = "reachable" if _accepts(address) else "not reachable"
            self._say(f"  {'ZooKeeper':<11}{address!s:<22}{f'pid {pid}' if pid else '':<13}{state}")
        for node in self._config.nodes.values():
            pid = processes.running_pid(self._pid_file(node))
            state = reasons[node.name] or "in service"
            self._say(f"  {node.name:<11}{node.address!s:<22}{f'pid {pid}' if pid else '':<13}{state}")
        return ready == len(reasons)

    def install(self) -> None:
        """Installs what a local ZooKeeper needs, if something is missing."""
        install_zookeeper(self._state / "logs" / "apt.log", self._say)

    # ------------------------------------------------------------------------------ the steps

    @contextmanager
    def _only_me(self) -> Iterator[None]:
        self._state.mkdir(exist_ok=True)
        with (self._state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("Another command is at work on this cluster; waiting for it ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_local(self) -> None:
        for node in self._config.nodes.values():
            if not _is_of_this_machine(node.address.host):
                raise LaunchError(
                    f"{node.name}'s address {node.address} is not of this machine. Start each node where it "
                    f"belongs: ackord-node --config {self._config.path.name} --node {node.name}"
                )

    def _ensure_coordination(self) -> str:
        """Returns what to tell people about the coordination service, after it was started if need be."""
        coordination = self._config.coordination
        if not coordination.hosts:
            raise LaunchError(
                f"{coordination.scheme}:// is for tests in one process; a cluster of several needs zookeeper://"
            )
        hosts = ",".join(str(address) for address in coordination.hosts)
        if any(_accepts(address) for address in coordination.hosts):
            for address in coordination.hosts:
                if zookeeper_process.is_something_else(address.host, address.port):
                    raise LaunchError(
                        f"What listens at {address} is no ZooKeeper. Stop it, or change `coordination` in "
                        f"{self._config.path}."
                    )
            return f"ZooKeeper at {hosts}"
        if len(coordination.hosts) > 1 or not is_loopback(coordination.hosts[0].host):
            raise LaunchError(
                f"No ZooKeeper answers at {hosts} (coordination in {self._config.path}), and only a "
                "single one on this machine is started from here."
            )
        self._start_zookeeper(coordination.hosts[0])
        return f"ZooKeeper at {hosts}"

    def _start_zookeeper(self, address: Address) -> None:
        self.install()
        host = "127.0.0.1" if address.host == "localhost" else address.host
        settings = zookeeper_process.ZooKeeperSettings(self._state / "zookeeper", address.port, host=host)
        process = zookeeper_process.launch(settings)
        try:
            zookeeper_process.wait_until_serving(settings, process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        processes.adopt(process, self._zookeeper_pid_file)

    def _ensure_node(self, node: NodeConfig) -> bool:
        """Starts the node unless it runs; True if it was started."""
        if processes.running_pid(self._pid_file(node)):
            return False
        # the port of one that was killed a moment ago may outlive it for a moment
        patience_s = PORT_PATIENCE_S if self._pid_file(node).exists() else 0.0
        if not _is_free(node.address, patience_s):
            raise LaunchError(
                f"{node.name}'s address {node.address} is in use by a process that was not started from "
                f"here. Stop it, or change the address in {self._config.path}."
            )
        command = [*self._node_command, "--config", str(self._config.path.resolve()), "--node", node.name]
        processes.start_detached(command, self._pid_file(node), self._log_file(node), self._home)
        return True

    def _wait_ready(self, deadline: float, started: set[str]) -> None:
        """Until every node is in service. One that ends and was not ``started`` by this command was on its
        way out when the command began: it is started, once."""
        next_news = time.monotonic() + _NEWS_EVERY_S
        while True:
            waiting = {name: reason for name, reason in self._not_ready().items() if reason}
            if not waiting:
                return
            for name in waiting:
                node = self._config.node(name)
                if processes.running_pid(self._pid_file(node)):
                    continue
                if name in started:
                    raise LaunchError(
                        f"{name} ended while starting; the end of {_short(self._log_file(node))}:\n"
                        + _tail(self._log_file(node))
                    )
                started.add(name)
                self._ensure_node(node)
            news = "; ".join(f"{name}: {reason}" for name, reason in waiting.items())
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"Not every node is in service in time. {news}\nLogs: {_short(self._state / 'logs')}"
                )
            if time.monotonic() > next_news:
                self._say(f"  still waiting: {news}")
                next_news = time.monotonic() + _NEWS_EVERY_S
            time.sleep(_READY_POLL_S)

    def _not_ready(self) -> dict[str, str | None]:
        """For each node why it is not in service, None if it is."""
        return {node.name: _why_not_ready(node.address) for node in self._config.nodes.values()}

    def _stop(self) -> None:
        pid_files = sorted((self._state / "run").glob("node-*.pid"))
        count = sum(processes.running_pid(pid_file) is not None for pid_file in pid_files)
        killed = processes.stop_all(pid_files, STOP_PATIENCE_S)
        zookeeper_ran = processes.running_pid(self._zookeeper_pid_file) is not None
        processes.stop_all([self._zookeeper_pid_file], STOP_PATIENCE_S)
        for pid_file in killed:
            self._say(f"{pid_file.stem} did not end within {STOP_PATIENCE_S:.0f} s and was killed.")
        if count or zookeeper_ran:
            stopped = [f"{count} node{'s' * (count != 1)}"] * (count > 0) + ["ZooKeeper"] * zookeeper_ran
            self._say(f"Stopped {' and '.join(stopped)}.")
        else:
            self._say("Nothing is running.")

    def _lines_to_try(self) -> list[str]:
        url = next(iter(self._config.nodes.values())).address.url
        python = Path(sys.executable)
        return [
            f"{_short(python.with_name('ackord'))} status",
            f"curl -s {url}/v1/tables",
            f"{_short(python)} examples/orders.py",
        ]

    # ------------------------------------------------------------------------------ the files

    @property
    def _zookeeper_pid_file(self) -> Path:
        return self._state / "run" / "zookeeper.pid"

    def _pid_file(self, node: NodeConfig) -> Path:
        return self._state / "run" / f"node-{node.name}.pid"

    def _log_file(self, node: NodeConfig) -> Path:
        return self._state / "logs" / f"{node.name}.log"


def _why_not_ready(address: Address) -> str | None:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", "/ready", headers={"Accept": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read(65_536))
        if response.status == 200 and answer["ready"] is True:
            return None
        return str(answer.get("reason", f"HTTP status {response.status}"))
    except ConnectionRefusedError:
        return "not running"
    except OSError as error:
        return f"no answer ({error})"
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return "its answer to GET /ready is not that of a node"
    finally:
        connection.close()


def _accepts(address: Address) -> bool:
    try:
        with socket.create_connection((address.host, address.port), timeout=_REQUEST_TIMEOUT_S):
            return True
    except OSError:
        return False


def _is_free(address: Address, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while _accepts(address):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_READY_POLL_S)
    return True


def _is_of_this_machine(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, where in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(where)
                return True
        except OSError:
            continue
    return False


def _tail(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    return "\n".join(f"  {line}" for line in lines) or "  (empty)"


def _short(path: Path) -> str:
    """The path as a person in this folder would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
