"""The launcher behind `make cluster`, with real processes; a small script stands in for a node."""

from __future__ import annotations

import http.server
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackord_node import config
from ackord_node.devcluster import installer, processes
from ackord_node.devcluster.__main__ import main
from ackord_node.devcluster.launcher import Launcher, LaunchError
from ackord_node.devcluster.zookeeper_process import is_serving
from tests.support.ports import free_ports

pytestmark = pytest.mark.integration

# A node's outside: --config, --node, GET /ready (503 for a moment, then 200), an orderly end at SIGTERM.
FAKE_NODE = """\
import http.server, json, pathlib, sys, time
sys.path[:0] = {path!r}
from ackord_node import config
node = config.load(sys.argv[2]).node(sys.argv[4])
began = time.monotonic()
print("started", node.name, flush=True)
if pathlib.Path("refuse-" + node.name).exists():
    sys.exit("this node does not like its disk")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        late = pathlib.Path("late-" + node.name).exists() or time.monotonic() - began < 0.3
        self.send_response(503 if late else 200)
        self.end_headers()
        answer = {{"ready": False, "reason": "catching up"}} if late else {{"ready": True}}
        self.wfile.write(json.dumps(answer).encode())
    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer((node.address.host, node.address.port), Handler).serve_forever()
"""


class Cluster:
    """A folder with a cluster.yaml, a launcher with fake nodes, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = free_ports(4)
        self.config_path = folder / "cluster.yaml"
        nodes = "".join(
            f"  n{i}: {{address: 127.0.0.1:{self.ports[i]}, data: .ackord/n{i}}}\n" for i in (1, 2, 3)
        )
        self.config_path.write_text(
            f"cluster: test\ncoordination: zookeeper://127.0.0.1:{self.ports[0]}/ackord\nnodes:\n{nodes}"
        )
        script = folder / "fake_node.py"
        script.write_text(FAKE_NODE.format(path=sys.path))
        self.said: list[str] = []
        self.launcher = Launcher(
            config.load(self.config_path), self.said.append, (sys.executable, "-W", "ignore", str(script))
        )

    def pid(self, name: str) -> int | None:
        return processes.running_pid(self.folder / ".ackord" / "run" / f"node-{name}.pid")

    def pids(self) -> list[int | None]:
        return [self.pid(name) for name in ("n1", "n2", "n3")]

    def output(self) -> str:
        text = "\n".join(self.said)
        self.said.clear()
        return text


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.launcher.stop()
    assert cluster.pids() == [None, None, None]


@pytest.fixture
def zookeeper(cluster: Cluster) -> Iterator[None]:
    """Something that accepts connections at the coordination address: a ZooKeeper that is not ours."""
    with socket.create_server(("127.0.0.1", cluster.ports[0])):
        yield


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("zookeeper")
def test_up_again_after_a_kill_and_stop(cluster: Cluster) -> None:
    cluster.launcher.up(20)
    assert cluster.pids().count(None) == 0
    first = cluster.output()
    assert "is starting: n1, n2, n3" in first
    assert f"http://127.0.0.1:{cluster.ports[2]}" in first
    assert "curl -s http://127.0.0.1" in first

    pids = cluster.pids()
    cluster.launcher.up(20)
    assert "is already running and serves every tablet" in cluster.output()
    assert cluster.pids() == pids

    assert pids[1] is not None
    os.kill(pids[1], signal.SIGKILL)
    wait_until(lambda: cluster.pid("n2") is None)
    assert cluster.launcher.status() is False
    status = cluster.output()
    assert "2 of 3 nodes in service" in status
    assert "not running" in status
    cluster.launcher.up(20)
    assert "is resuming: n2" in cluster.output()
    assert cluster.pids()[::2] == pids[::2]
    assert cluster.pid("n2") not in (None, pids[1])
    assert cluster.launcher.status() is True

    cluster.output()
    cluster.launcher.stop()
    assert cluster.output() == "Stopped 3 nodes."
    assert cluster.pids() == [None, None, None]
    cluster.launcher.stop()
    assert cluster.output() == "Nothing is running."


@pytest.mark.usefixtures("zookeeper")
def test_a_node_that_ends_while_starting(cluster: Cluster) -> None:
    (cluster.folder / "refuse-n3").touch()
    with pytest.raises(LaunchError, match=r"n3 ended while starting(?s:.*)this node does not like its disk"):
        cluster.launcher.up(20)


@pytest.mark.usefixtures("zookeeper")
def test_a_node_that_is_not_ready_in_time(cluster: Cluster) -> None:
    (cluster.folder / "late-n2").touch()
    with pytest.raises(LaunchError, match=r"Not every node is in service in time\. n2: catching up"):
        cluster.launcher.up(6)  # the others are ready by then, on a busy machine too


@pytest.mark.usefixtures("zookeeper")
def test_an_address_in_use(cluster: Cluster) -> None:
    with (
        socket.create_server(("127.0.0.1", cluster.ports[1])),
        pytest.raises(LaunchError, match=r"n1's address .* is in use by a process"),
    ):
        cluster.launcher.up(5)


@pytest.mark.usefixtures("zookeeper")
def test_what_was_done_before_the_nodes_started_costs_them_no_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installing ZooKeeper may take longer than nodes are waited for."""
    monkeypatch.setattr(cluster.launcher, "_check_local", lambda: time.sleep(8.5))
    cluster.launcher.up(8)


@pytest.mark.usefixtures("zookeeper")
def test_up_at_once_after_a_kill(cluster: Cluster) -> None:
    """The killed process may still be dying, and its port open, when the command begins."""
    cluster.launcher.up(20)
    pids = cluster.pids()
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    cluster.launcher.up(20)
    assert all(new not in (None, old) for new, old in zip(cluster.pids(), pids, strict=True))


@pytest.mark.usefixtures("zookeeper")
def test_the_port_of_a_killed_node_closes_late(cluster: Cluster) -> None:
    pid_file = cluster.folder / ".ackord" / "run" / "node-n1.pid"
    pid_file.parent.mkdir(parents=True)
    pid_file.write_text("1 0\n")
    server = socket.create_server(("127.0.0.1", cluster.ports[1]))
    closing = threading.Timer(0.5, server.close)
    closing.start()
    cluster.launcher.up(20)
    closing.join()
    assert cluster.pids().count(None) == 0


@pytest.mark.usefixtures("zookeeper")
def test_a_node_that_ends_while_the_command_waits_for_it_is_started_once(cluster: Cluster) -> None:
    (cluster.folder / "late-n2").touch()
    with pytest.raises(LaunchError):
        cluster.launcher.up(1.5)
    pid = cluster.pid("n2")
    assert pid is not None
    (cluster.folder / "late-n2").unlink()
    os.kill(pid, signal.SIGSTOP)  # does not answer, as a process that is about to be gone
    dying = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    dying.start()
    cluster.launcher.up(20)
    dying.join()
    assert cluster.pid("n2") not in (None, pid)


def test_something_else_at_the_address_of_zookeeper(cluster: Cluster) -> None:
    handler = http.server.BaseHTTPRequestHandler
    with http.server.HTTPServer(("127.0.0.1", cluster.ports[0]), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(LaunchError, match="is no ZooKeeper"):
            cluster.launcher.up(5)
        server.shutdown()


@pytest.mark.usefixtures("zookeeper")
def test_a_paused_node_is_stopped(cluster: Cluster) -> None:
    cluster.launcher.up(20)
    pid = cluster.pid("n1")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    cluster.launcher.stop()
    assert time.monotonic() - began < 5
    assert cluster.pids() == [None, None, None]


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    pid_file, log = tmp_path / "p.pid", tmp_path / "p.log"
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    processes.start_detached([sys.executable, "-c", script], pid_file, log, tmp_path)
    wait_until(lambda: log.read_text() == "up\n")
    assert processes.stop_all([pid_file], 0.3) == [pid_file]
    assert processes.running_pid(pid_file) is None
    assert not pid_file.exists()


def test_a_pid_that_belongs_to_another_process_by_now_gets_no_signal(tmp_path: Path) -> None:
    pid_file = tmp_path / "p.pid"
    pid_file.write_text(f"{os.getpid()} 1\n")
    assert processes.running_pid(pid_file) is None
    assert processes.stop_all([pid_file], 0.1) == []


@pytest.mark.usefixtures("zookeeper")
def test_clean_deletes_the_data_and_nothing_else(cluster: Cluster) -> None:
    cluster.launcher.up(20)
    (cluster.folder / ".ackord" / "n1").mkdir()
    (cluster.folder / "mine").touch()
    cluster.output()
    cluster.launcher.clean()
    assert not (cluster.folder / ".ackord").exists()
    assert (cluster.folder / "mine").exists()
    assert "was not started from here and still holds the cluster's records" in cluster.output()


def test_coordination_elsewhere_is_not_started(cluster: Cluster) -> None:
    text = cluster.config_path.read_text().replace(
        "zookeeper://127.0.0.1:", "zookeeper://127.0.0.1:1,127.0.0.1:"
    )
    cluster.config_path.write_text(text)
    with pytest.raises(LaunchError, match="No ZooKeeper answers at"):
        Launcher(config.load(cluster.config_path), cluster.said.append).up(5)


def test_nodes_of_other_machines_are_not_started(cluster: Cluster) -> None:
    text = cluster.config_path.read_text().replace(f"127.0.0.1:{cluster.ports[1]}", "192.0.2.1:7801")
    cluster.config_path.write_text(text)
    with pytest.raises(LaunchError, match=r"n1's address 192\.0\.2\.1:7801 is not of this machine"):
        Launcher(config.load(cluster.config_path), cluster.said.append).up(5)


@pytest.mark.skipif(bool(installer.missing_packages()), reason="ZooKeeper is not installed")
def test_a_local_zookeeper_is_started_and_stopped(cluster: Cluster) -> None:
    cluster.launcher.up(40)
    assert is_serving("127.0.0.1", cluster.ports[0])
    cluster.output()
    cluster.launcher.stop()
    assert cluster.output() == "Stopped 3 nodes and ZooKeeper."
    assert not is_serving("127.0.0.1", cluster.ports[0])


def test_missing_zookeeper_without_the_right_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installer, "missing_packages", lambda: ["zookeeper"])
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        installer.InstallError, match="sudo apt-get install --no-install-recommends zookeeper"
    ):
        installer.install_zookeeper(tmp_path / "apt.log", print)


def test_command_line_names_a_wrong_cluster_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster.yaml").write_text("cluster: x\nnode: {}\n")
    assert main(["status", "--config", str(tmp_path / "cluster.yaml")]) == 2
    assert "cluster.yaml:2: unknown key node; did you mean nodes?" in capsys.readouterr().err


def test_zookeeper_is_installed_after_the_package_lists_were_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh container has no package lists: the first install fails, the one after `update` succeeds."""
    apt = tmp_path / "apt-get"
    apt.write_text(
        f'#!/bin/sh\ncd {tmp_path}; echo "$@" >> calls\n'
        'case "$*" in *update*) touch lists ;; *) [ -e lists ] && touch jar ;; esac\n'
    )
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        installer, "missing_packages", lambda: [] if (tmp_path / "jar").exists() else ["zookeeper"]
    )
    said: list[str] = []
    installer.install_zookeeper(tmp_path / "logs" / "apt.log", said.append)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        "-q install -y --no-install-recommends zookeeper",
        "-q update",
        "-q install -y --no-install-recommends zookeeper",
    ]
    assert said == ["Installing zookeeper with apt-get; this takes a minute or so ..."]
    installer.install_zookeeper(tmp_path / "logs" / "apt.log", said.append)
    assert len(said) == 1, "nothing is missing, nothing is done"
