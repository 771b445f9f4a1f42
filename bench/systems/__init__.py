"""The systems that the benchmark compares, by the name that the command line knows them by.

Each module is imported only when its system is asked for: its client library may not be installed.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from bench.systems.base import BenchError, System

PEERS = {
    "etcd": "Etcd",
    "zookeeper": "ZooKeeper",
    "postgresql": "PostgreSQL",
    "redis": "Redis",
}


def make(name: str, folder: Path) -> System:
    """The system, not started; its files will be in ``folder``."""
    class_name = (PEERS | {"ackord": "Ackord"})[name]
    try:
        module = importlib.import_module(f"bench.systems.{name}")
    except ImportError as error:
        raise BenchError(f"{name} needs a Python package: {error}. pip install 'ackord[bench]'") from None
    system: System = getattr(module, class_name)(folder)
    return system


def parse_peers(text: str) -> list[str]:
    """ "all", "none", or names with commas between them."""
    if text in ("all", "none"):
        return list(PEERS) if text == "all" else []
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in PEERS]:
        raise BenchError(f"{', '.join(unknown)}: no such peer; there are {', '.join(PEERS)}, all and none")
    return names
