"""The machine that a run was made on: what a reader needs to judge the figures."""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

from bench import yardstick


def describe(folder: Path) -> dict[str, Any]:
    """``folder``: where the servers' data is; its disk is timed."""
    found = asyncio.run(yardstick.take(folder))
    return {
        "date": f"{datetime.datetime.now():%d %B %Y, %H:%M}",
        "processor": _first(Path("/proc/cpuinfo"), r"model name\s*: (.+)"),
        "cores_count": len(os.sched_getaffinity(0)),
        "ram_gib": round(int(_first(Path("/proc/meminfo"), r"MemTotal:\s*(\d+)") or 0) / (1 << 20), 1),
        "kernel": platform.release(),
        "file_system": file_system(folder),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "fdatasync_ms": found.fdatasync_ms,
        "round_trip_ms": found.round_trip_ms,
    }


def file_system(folder: Path) -> str:
    """Type of the file system that holds the folder."""
    best, kind = "", "?"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        if len(point) > len(best) and folder.resolve().is_relative_to(point):
            best, kind = point, name
    return kind


def memory_available_bytes() -> int:
    return int(_first(Path("/proc/meminfo"), r"MemAvailable:\s*(\d+)") or 0) * 1024


def sentence(machine: dict[str, Any]) -> str:
    return (
        f"{machine['date']}: {machine['cores_count']} cores ({machine['processor'] or 'unknown'}), "
        f"{machine['ram_gib']} GiB of RAM, Linux {machine['kernel']}, {machine['file_system']}, "
        f"Python {machine['python']}. An fdatasync of 4 KiB took {machine['fdatasync_ms']:.2f} ms, "
        f"a bare aiohttp round trip {machine['round_trip_ms']:.3f} ms; "
        f"the load average at the start was {machine['load_average']:.1f}."
    )


def _first(path: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, path.read_text())
    except OSError:
        return ""
    return found[1].strip() if found else ""
