"""Namespaces of a run's own: network, mounts and processes of a chaos run end with it, however it ends.

The outer process makes new network, mount and PID namespaces and runs the chaos as their first process. When that
one ends, or dies, or the outer one is killed, the kernel kills every process of the run, and the bridge, the
addresses, the filters and the small disks go with their namespaces. So names and addresses need not be unique on
the machine, and there is nothing that a clean-up could forget or do to others.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

PACKAGES = {  # command -> Debian package
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "mount": "mount",
    "cc": "gcc libc6-dev",
    "java": "default-jre-headless zookeeper",
}


def why_not() -> str | None:
    """Why a run is not possible here, and what to do; None if it is."""
    if sys.platform != "linux":
        return "chaos on real processes needs Linux: it uses namespaces and nftables"
    if os.geteuid() != 0:
        return (
            "chaos on real processes needs root: it makes network namespaces, filters and small file systems"
        )
    missing = [command for command in PACKAGES if shutil.which(command) is None]
    if missing:
        packages = " ".join(PACKAGES[command] for command in missing)
        return (
            f"not found: {', '.join(missing)}; on Debian: apt-get install --no-install-recommends {packages}"
        )
    return None


def run_inside(command: Sequence[str]) -> int:
    """Runs ``command`` as the first process of new namespaces; its exit code. SIGINT and SIGTERM reach it as SIGINT,
    a second one kills it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        print(f"new namespaces are not permitted here: {os.strerror(number)}", file=sys.stderr)
        return 2

    def die_with_parent() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    asked = 0

    def pass_on(_number: int, _frame: object) -> None:
        nonlocal asked
        asked += 1
        child.send_signal(signal.SIGINT if asked == 1 else signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    return child.wait()


def settle_in() -> None:
    """What the first process does before anything else: mounts of its own, and loopback."""
    if os.getpid() != 1:
        raise RuntimeError("not the first process of a PID namespace: call run_inside")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "proc", "proc", "/proc")
    mount_tmpfs(Path("/run"), 16)  # `ip netns` keeps its names there
    Path("/run/netns").mkdir()
    run("ip", "link", "set", "lo", "up")


def mount_tmpfs(place: Path, size_mib: int) -> None:
    run("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "ackord-chaos", str(place))


def run(*command: str, text: str | None = None) -> str:
    """The command's output; RuntimeError with what it said if it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
