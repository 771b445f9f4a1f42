"""Runs a private ZooKeeper for development and tests, without a service manager.

One recipe for both: find java and the jars, write zoo.cfg, start a detached process, wait until it
serves. It listens on one address only, takes 60 to 80 MiB and serves within a second. Its ticks are
short (500 ms) so that sessions of one second are possible; a production ensemble is set up by people.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INSTALL_HINT = "apt-get install --no-install-recommends zookeeper default-jre-headless"
MAIN_CLASS = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
PACKAGED_JARS = Path("/usr/share/java")
PACKAGED_JAR_NAMES = (
    "zookeeper.jar",
    "zookeeper-jute.jar",
    "slf4j-api.jar",
    "slf4j-simple.jar",
    "metrics-core.jar",
    "snappy-java.jar",
)
POLL_S = 0.05


class ZooKeeperUnavailable(RuntimeError):
    """ZooKeeper is not installed here, or did not come up; the message says what to do."""


@dataclass(frozen=True)
class Member:
    """One server of an ensemble: the port for clients and the two among the servers. ``host`` if not all of
    them are on one."""

    client_port: int
    quorum_port: int
    election_port: int
    host: str | None = None


@dataclass(frozen=True)
class ZooKeeperSettings:
    """``folder`` holds everything of this server: zoo.cfg, data and log. ``members`` is empty for a single
    server; otherwise it lists the whole ensemble and ``server_id`` (from 1) says which one this is."""

    folder: Path
    client_port: int
    host: str = "127.0.0.1"
    server_id: int = 1
    members: tuple[Member, ...] = ()
    tick_ms: int = 500
    session_timeout_ms_min: int = 1000
    session_timeout_ms_max: int = 60_000
    heap_mib: int = 128
    init_limit_ticks: int = 20
    sync_limit_ticks: int = 4


def find_java() -> str:
    """The java executable: of JAVA_HOME if set, else from the PATH."""
    home = os.environ.get("JAVA_HOME")
    candidate = str(Path(home) / "bin" / "java") if home else "java"
    found = shutil.which(candidate) or shutil.which("java")
    if found is None:
        raise ZooKeeperUnavailable(f"java was not found; install it with: {INSTALL_HINT}")
    return found


def find_jars() -> list[str]:
    """The jars of an unpacked release if ZOOKEEPER_HOME names one, else those of the system's package."""
    home = os.environ.get("ZOOKEEPER_HOME")
    if home:
        jars = sorted(str(path) for path in (Path(home) / "lib").glob("*.jar"))
        if any(Path(jar).name.startswith("zookeeper") for jar in jars):
            return jars
        raise ZooKeeperUnavailable(f"ZOOKEEPER_HOME is {home}, but {home}/lib holds no zookeeper jar")
    if not (PACKAGED_JARS / "zookeeper.jar").exists():
        raise ZooKeeperUnavailable(
            f"ZooKeeper was not found in {PACKAGED_JARS}; install it with: {INSTALL_HINT} "
            "(or set ZOOKEEPER_HOME to an unpacked release)"
        )
    return [str(PACKAGED_JARS / name) for name in PACKAGED_JAR_NAMES if (PACKAGED_JARS / name).exists()]


def write_config(settings: ZooKeeperSettings) -> Path:
    """Writes zoo.cfg and myid; keeps data that is there. Returns the path of zoo.cfg."""
    data = settings.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    (data / "myid").write_text(f"{settings.server_id}\n")
    lines = [
        f"tickTime={settings.tick_ms}",
        f"initLimit={settings.init_limit_ticks}",
        f"syncLimit={settings.sync_limit_ticks}",
        f"minSessionTimeout={settings.session_timeout_ms_min}",
        f"maxSessionTimeout={settings.session_timeout_ms_max}",
        f"dataDir={data}",
        f"clientPort={settings.client_port}",
        f"clientPortAddress={settings.host}",
        "maxClientCnxns=0",
        "admin.enableServer=false",
        "4lw.commands.whitelist=srvr,ruok,mntr,stat,cons,dump,wchp",
        "autopurge.snapRetainCount=3",
        "autopurge.purgeInterval=1",
        "preAllocSize=4096",
    ]
    for number, member in enumerate(settings.members, start=1):
        host = member.host or settings.host
        lines.append(f"server.{number}={host}:{member.quorum_port}:{member.election_port}")
    path = settings.folder / "zoo.cfg"
    path.write_text("\n".join(lines) + "\n")
    return path


def launch(settings: ZooKeeperSettings, wrapper: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Starts the server in a session of its own, its output going to zookeeper.log; does not wait. ``wrapper`` is a
    command that runs another one in its own place, such as nsenter."""
    java, jars = find_java(), find_jars()
    config = write_config(settings)
    command = [
        *wrapper,
        java,
        "-Xms32m",
        f"-Xmx{settings.heap_mib}m",
        "-Xss256k",
        "-XX:+UseSerialGC",
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.net.preferIPv4Stack=true",
        "-Dzookeeper.jmx.log4j.disable=true",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-cp",
        os.pathsep.join([str(settings.folder), *jars]),
        MAIN_CLASS,
        str(config),
    ]
    with (settings.folder / "zookeeper.log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=settings.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def is_serving(host: str, port: int) -> bool:
    """Whether the server answers and, in an ensemble, belongs to a quorum."""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"srvr")
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
    except OSError:
        return False
    return b"Mode: " in answer


def is_something_else(host: str, port: int) -> bool:
    """Whether what listens there is certainly no ZooKeeper: it answers, and not as one does. A server that
    is silent gets the benefit of the doubt."""
    answer = b""
    try:
        with socket.create_connection((host, port), timeout=1.0) as connection:
            connection.settimeout(0.3)
            connection.sendall(b"srvr\n")
            answer = connection.recv(4096)
    except OSError:
        return False
    return bool(answer) and not any(
        word in answer.lower() for word in (b"zookeeper", b"mode: ", b"whitelist")
    )


def wait_until_serving(
    settings: ZooKeeperSettings, process: subprocess.Popen[bytes], timeout_s: float = 20.0
) -> None:
    """Returns once it serves; ZooKeeperUnavailable, with the end of its log, if it ends or takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while not is_serving(settings.host, settings.client_port):
        exit_code = process.poll()
        if exit_code is not None or time.monotonic() > deadline_s:
            why = "is not serving yet" if exit_code is None else f"ended with exit code {exit_code}"
            log = settings.folder / "zookeeper.log"
            raise ZooKeeperUnavailable(
                f"ZooKeeper on port {settings.client_port} {why} (log: {log}):\n{_tail(log)}"
            )
        time.sleep(POLL_S)


def is_running(pid: int, folder: Path) -> bool:
    """Whether ``pid`` is the server of this folder, rather than another process that got its number."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return str(folder / "zoo.cfg").encode() in command.split(b"\0")


def stop(pid: int, folder: Path, timeout_s: float = 10.0) -> None:
    """Ends the server of this folder: asks first, kills after ``timeout_s``. Fine if it is not running."""
    for signal_number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
        if not is_running(pid, folder):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)
        deadline_s = time.monotonic() + patience_s
        while is_running(pid, folder) and time.monotonic() < deadline_s:
            time.sleep(POLL_S)


def _tail(path: Path, lines: int = 12) -> str:
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
