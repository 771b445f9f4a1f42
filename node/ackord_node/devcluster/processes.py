"""Processes that outlive the command that started them, known by a pid file.

A pid alone can be that of another process by now (after a reboot, or when the numbers wrapped), so
a pid file also holds the process's start time from /proc; both must match before a signal is sent.
A zombie counts as gone: in a container the first process may never collect it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_POLL_S = 0.05


def start_detached(command: Sequence[str], pid_file: Path, log_file: Path, cwd: Path) -> None:
    """Starts ``command`` in a session of its own, its output appended to ``log_file``."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, start_new_session=True
        )
    adopt(process, pid_file)


def adopt(process: subprocess.Popen[bytes], pid_file: Path) -> None:
    """Writes the pid file of a process that is meant to outlive this command."""
    pid_file.parent.mkdir(parents=True, exist_ok=True)
    pid_file.write_text(f"{process.pid} {_start_time(process.pid)}\n")
    process.returncode = 0  # nobody here waits for it; without this, Popen would warn


def running_pid(pid_file: Path) -> int | None:
    """The pid of the process that the file names, if that very process still runs."""
    try:
        pid, started = pid_file.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if _start_time(int(pid)) == started else None


def stop_all(pid_files: Sequence[Path], patience_s: float) -> list[Path]:
    """SIGTERM to all at once, SIGKILL to those that still run after ``patience_s``; returns the latter.

    All are gone when it returns, and so are their pid files.
    """
    for pid_file in pid_files:
        _send(pid_file, signal.SIGTERM)
        _send(pid_file, signal.SIGCONT)  # one that is paused could not obey
    alive = _wait_gone(pid_files, patience_s)
    for pid_file in alive:
        _send(pid_file, signal.SIGKILL)
    if stuck := _wait_gone(alive, 5.0):
        raise RuntimeError(f"could not be killed: {', '.join(pid_file.stem for pid_file in stuck)}")
    for pid_file in pid_files:
        pid_file.unlink(missing_ok=True)
    return alive


def _wait_gone(pid_files: Sequence[Path], patience_s: float) -> list[Path]:
    deadline = time.monotonic() + patience_s
    alive = [pid_file for pid_file in pid_files if running_pid(pid_file)]
    while alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        alive = [pid_file for pid_file in alive if running_pid(pid_file)]
    return alive


def _send(pid_file: Path, number: signal.Signals) -> None:
    pid = running_pid(pid_file)
    if pid is not None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass  # it ended in between


def _start_time(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process (proc(5), field 22); None if it is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return None if fields[0] in "ZX" else fields[19]
