"""Which cells a run measures: by default a selection that takes about 25 minutes, in full the whole cross product."""

from __future__ import annotations

from collections.abc import Sequence

from bench.systems.base import TableSpec
from bench.workloads import CACHED_GET, Work

SMALL = TableSpec(10_000, 100)
WIDE = TableSpec(10_000, 4096)
LARGE = TableSpec(1_000_000, 100)
LARGE_AND_WIDE = TableSpec(1_000_000, 4096)
CALLERS = (1, 16, 64, 256)
PROCESSES, CALLERS_EACH = 8, 32
YCSB = ("ycsb-a", "ycsb-b", "ycsb-c", "ycsb-d", "ycsb-f")
KINDS = ("put", "get", *YCSB, "rmw", "batch", "scan")
LARGE_BESIDE = (("put", 256), ("get", 256), ("ycsb-a", 64))  # measured with both numbers of rows
PACED_CALLERS = 256  # as many connections as the largest number of callers has
CACHED = Work(CACHED_GET, SMALL, 1)  # of Ackord alone, where its SDK has the cache


def usual() -> list[Work]:
    """The default: everything on the small table, and of the other tables what answers their question."""
    cells = [Work(kind, SMALL, callers) for kind in ("put", "get") for callers in CALLERS]
    cells += [Work(kind, SMALL, CALLERS_EACH, PROCESSES) for kind in ("put", "get")]
    cells += [Work(kind, SMALL, 64) for kind in (*YCSB, "rmw")]
    cells += [Work(kind, SMALL, 16) for kind in ("batch", "scan")]
    cells += [Work(kind, WIDE, 64) for kind in ("put", "get")]
    cells += [Work(kind, LARGE, callers) for kind, callers in LARGE_BESIDE]
    return cells


def quick() -> list[Work]:
    """For Ackord alone, after a change."""
    cells = [Work(kind, SMALL, callers) for kind in ("put", "get") for callers in CALLERS]
    return [*cells, *(Work(kind, SMALL, 16) for kind in ("batch", "scan"))]


def full() -> list[Work]:
    """Every work with every table and every number of callers: some hours."""
    groups = [(callers, 1) for callers in CALLERS] + [(CALLERS_EACH, PROCESSES)]
    return [
        Work(kind, table, callers, processes)
        for table in (SMALL, WIDE, LARGE, LARGE_AND_WIDE)
        for kind in KINDS
        for callers, processes in groups
    ]


def tables(cells: Sequence[Work]) -> list[TableSpec]:
    """The tables that the cells need, the small ones first."""
    found = dict.fromkeys(work.table for work in cells)
    return sorted(found, key=lambda table: table.rows_count * table.value_bytes)


def half_load(rate_max: float) -> Work:
    """Puts at half of the highest rate that a system has reached."""
    return Work("put", SMALL, PACED_CALLERS, rate=rate_max / 2)
