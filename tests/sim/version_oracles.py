"""What must hold of versions, cells and expiry: what clients saw against what was committed.

A read as of a version tells what was committed then, whenever it is asked, or that this is no longer kept, which is
true. A row is gone once the clock of its tablet has passed its time, for every reader from the moment on at which that
reading was committed, and not before (rule R20); the clock itself is no further than the wall clocks allow.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any

from ackord.wire.messages import VERSION_COUNTER_BITS
from ackord.wire.options import TableOptions
from tests.sim.cluster_oracle import Clocks, CommittedRows, Expiries
from tests.sim.history import (
    AS_OF,
    CELLS,
    CONFLICT,
    FAILED,
    GET,
    OK,
    ROW_WRITES,
    SCAN,
    SCAN_AS_OF,
    VERSIONS,
    History,
    Op,
)
from tests.sim.operation_oracles import Committed, RowName

GRACE_MS_SURE = 1_000_000  # a run is shorter: nothing that was deleted is forgotten in it
EPOCH_MS = 1_600_000_000_000  # of the simulated wall clocks
CLOCK_SLACK_MS = 2
COLLECTED = "VersionCollected"


def is_collected(op: Op) -> bool:
    return op.outcome == FAILED and op.error.startswith(COLLECTED)


# ------------------------------------------------------------------------------------- versions


class VersionsJudge:
    """Of one table that keeps versions. ``grace_ms``: how long its deletions are remembered at least; ``clocks``: the
    readings of its tablets' clocks."""

    def __init__(
        self, history: History, committed: Committed, options: TableOptions, grace_ms: int, clocks: Clocks
    ) -> None:
        self._history = history
        self._committed = committed
        self._keep_versions = options.keep_versions
        self._keep_for_ms = options.keep_for_ms
        self._remembers = grace_ms >= GRACE_MS_SURE
        self._clocks = clocks
        self._acknowledged: dict[RowName, list[tuple[int, int]]] = {}  # key -> (when, version)
        for op in history.ops:
            if op.outcome == OK and op.kind in ROW_WRITES and op.key is not None and op.version is not None:
                self._acknowledged.setdefault((op.table, op.key), []).append((op.ended or 0, op.version))

    def reports(self, table: str, *, are_reads_judged: bool) -> list[str]:
        found = []
        for op in self._history.ops:
            if op.table != table:
                continue
            problem = None
            if op.kind == AS_OF:
                problem = self._as_of(op)
            elif op.kind == SCAN_AS_OF and op.outcome == OK:
                problem = self._scan(op)
            elif op.kind == VERSIONS and op.outcome == OK:
                problem = self._run(op, are_reads_judged)
            if problem is not None:
                found.append(f"{op}\n    {problem}")
        return found

    def _as_of(self, op: Op) -> str | None:
        name, as_of = (op.table, op.key or ()), op.args.get("as_of", 0)
        expected = self._committed.at(name, as_of)
        if op.outcome == OK and (op.version, op.columns) != expected:
            return f"as of then it was {expected}"
        if is_collected(op) and self._must_be_kept(name, as_of, op):
            return f"it is kept: {self._committed.versions(name)}"
        return None

    def _must_be_kept(self, name: RowName, as_of: int, op: Op) -> bool:
        """Whatever was written since, and whenever it was asked."""
        versions = self._committed.versions(name)
        at = bisect_right(versions, as_of)
        if not self._remembers:
            return False
        if len(versions) - at < self._keep_versions:
            return True
        if at == 0 or not self._keep_for_ms:
            return False
        clock_ms = clock_at(self._clocks, op.returned_s or 0.0)
        return (versions[at] >> VERSION_COUNTER_BITS) + self._keep_for_ms > clock_ms

    def _scan(self, op: Op) -> str | None:
        args = op.args
        keys = self._committed.keys_in(op.table, args.get("start"), args.get("end"))
        expected = []
        for key in reversed(keys) if args.get("reverse") else keys:
            version, columns = self._committed.at((op.table, key), args["as_of"])
            if version is not None:
                expected.append((key, version, columns))
        return None if op.rows == expected else f"saw {op.rows}, as of then there were {expected}"

    def _run(self, op: Op, are_reads_judged: bool) -> str | None:
        name, run = (op.table, op.key or ()), op.versions or []
        versions = self._committed.versions(name)
        below = versions[: bisect_left(versions, op.args["before"])] if "before" in op.args else versions
        seen = [version for version, _ in run]
        top = bisect_right(below, seen[0]) if seen else 0
        if seen != below[max(top - len(seen), 0) : top][::-1]:
            return f"is no run of {below}"
        if any(self._committed.rows[name][version] != columns for version, columns in run):
            return "a version is not what was committed"
        if "before" in op.args or not self._remembers:
            return None
        newest = max((v for at, v in self._acknowledged.get(name, ()) if at < op.began), default=0)
        if are_reads_judged and newest > (seen[0] if seen else 0):
            return f"misses version {newest}, which was acknowledged"
        if len(seen) < min(op.args["limit"], self._keep_versions, top):
            return f"holds too few of {below}"
        is_exact = (
            op.workload == "final" and not self._keep_for_ms and op.args["limit"] >= self._keep_versions
        )
        if is_exact and len(seen) > self._keep_versions:
            return f"holds more than the newest {self._keep_versions}"
        return None


# ---------------------------------------------------------------------------------------- cells


def check_cells(history: History, cells: CommittedRows, max_versions: int) -> list[str]:
    """The newest cells of the version that was read, those within the times that were asked for; each column has
    no more than it may, at falling times."""
    reports = []
    for op in history.ops:
        if op.kind != CELLS or op.outcome != OK or op.version is None:
            continue
        assert op.key is not None
        stored = cells.get((op.table, op.key), {}).get(op.version) or {}
        start, end = op.args.get("start_ms"), op.args.get("end_ms")
        expected = {}
        for name, column in stored.items():
            times = [time for time, _ in column]
            if len(times) > max_versions or times != sorted(set(times), reverse=True):
                reports.append(f"{op}\n    the cells of {name!r} are {column}")
            within = [c for c in column if (start is None or c[0] >= start) and (end is None or c[0] < end)]
            if within:
                expected[name] = within[: op.args["count"]]
        if op.columns != expected:
            reports.append(f"{op}\n    committed were {expected}")
    return reports


# --------------------------------------------------------------------------------------- expiry


def clock_at(clocks: Clocks, time_s: float) -> int:
    """The highest reading that was committed by then."""
    return max((reading for at, reading in clocks if at <= time_s), default=0)


def check_expiry(history: History, table: str, expiries: Expiries) -> list[str]:
    """No row is read that had expired when the read began, and none is gone that had not when it ended. Nobody deletes
    rows of this table."""
    acknowledged: dict[Any, list[tuple[int, int]]] = {}
    for op in history.ops:
        if op.table == table and op.outcome == OK and op.kind in ROW_WRITES and op.version is not None:
            acknowledged.setdefault(op.key, []).append((op.ended or 0, op.version))
    reports = []
    for op in history.ops:
        if op.table != table:
            continue
        for key, version in _seen(op, sorted(expiries)):
            expires, clocks = expiries.get(key, ({}, []))
            if version is not None:
                if 0 < expires.get(version, 0) <= _clock_before(clocks, op.invoked_s):
                    reports.append(f"{op}\n    {key!r} of version {version} had expired")
                continue
            newest = max((v for at, v in acknowledged.get(key, ()) if at < op.began), default=0)
            clock_ms = clock_at(clocks, op.returned_s or 0.0)
            if newest and not any(v >= newest and 0 < at <= clock_ms for v, at in expires.items()):
                reports.append(
                    f"{op}\n    {key!r} of version {newest} had not expired at {clock_ms}: {expires}"
                )
    return reports


def _clock_before(clocks: Clocks, time_s: float) -> int:
    return max((reading for at, reading in clocks if at < time_s), default=0)


def _seen(op: Op, keys: list[Any]) -> list[tuple[Any, int | None]]:
    """(key, version or None) of what a read or a refusal showed."""
    if op.kind == SCAN and op.outcome == OK:
        rows = {key: version for key, version, _ in op.rows or ()}
        start, end = op.args.get("start"), op.args.get("end")
        within = [
            key
            for key in keys
            if (start is None or key >= tuple(start)) and (end is None or key < tuple(end))
        ]
        return [(key, rows.get(key)) for key in within]
    if (op.kind == GET and op.outcome == OK) or (op.outcome == CONFLICT and op.note != "repeated"):
        return [(op.key, op.version)]
    return []


def check_clocks(expiries: Expiries, ahead_ms: Mapping[str, int], min_in_sync: int) -> list[str]:
    """No reading is further ahead than any ``min_in_sync`` of the wall clocks ever were: with a minimum of two, a
    jump of one alone moves nothing."""
    ever = sorted(ahead_ms.values(), reverse=True)[min_in_sync - 1]
    reports = []
    for clocks in {id(clocks): clocks for _, clocks in expiries.values()}.values():
        for at, reading in clocks:
            if reading > EPOCH_MS + at * 1000 + ever + CLOCK_SLACK_MS:
                reports.append(
                    f"at {at:.3f} s the clock is at {reading - EPOCH_MS}, the wall clocks {ahead_ms} ahead"
                )
    return reports
