"""Installs ZooKeeper and a Java runtime where apt-get and the right to use it are there.

Elsewhere it says what to install. Nothing is started by the installation: Debian's package
``zookeeper`` brings only the jars, ``zookeeperd`` would bring the service.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ackord_node.devcluster.zookeeper_process import ZooKeeperUnavailable, find_jars, find_java

_APT_TIMEOUT_S = 900


class InstallError(Exception):
    """Something is missing and cannot be installed from here; the message says what to do."""


def missing_packages() -> list[str]:
    """Which Debian packages a local ZooKeeper still needs."""
    missing = []
    for package, find in (("zookeeper", find_jars), ("default-jre-headless", find_java)):
        try:
            find()
        except ZooKeeperUnavailable:
            missing.append(package)
    return missing


def install_zookeeper(log_file: Path, say: Callable[[str], None]) -> None:
    """Installs what is missing; does nothing if nothing is. InstallError says what to do by hand."""
    packages = missing_packages()
    if not packages:
        return
    apt = _apt_get()
    if apt is None:
        raise InstallError(
            f"{' and '.join(packages)} must be installed for a local ZooKeeper, and this needs apt-get as "
            f"root or sudo.\nEither: sudo apt-get install --no-install-recommends {' '.join(packages)}\n"
            "or let `coordination` in cluster.yaml point at a ZooKeeper that runs."
        )
    say(f"Installing {' and '.join(packages)} with apt-get; this takes a minute or so ...")
    log_file.parent.mkdir(parents=True, exist_ok=True)
    install = [*apt, "install", "-y", "--no-install-recommends", *packages]
    with log_file.open("ab") as log:
        # The package lists are fetched only if they are needed: most machines have them.
        if _run(install, log.fileno()) or missing_packages():
            _run([*apt, "update"], log.fileno())
            _run(install, log.fileno())
    if missing := missing_packages():
        raise InstallError(
            f"{' and '.join(missing)} could not be installed; apt-get's output is in {log_file}"
        )


def _apt_get() -> list[str] | None:
    if shutil.which("apt-get") is None:
        return None
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") is None:
        return None
    if sys.stdin.isatty():
        return ["sudo", *command]
    may_sudo = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode == 0
    return ["sudo", "-n", *command] if may_sudo else None


def _run(command: list[str], log: int) -> int:
    try:
        # sudo asks for a password on the terminal itself, so the output may go to the log
        return subprocess.run(command, stdout=log, stderr=log, timeout=_APT_TIMEOUT_S, check=False).returncode
    except subprocess.TimeoutExpired:
        return 1
