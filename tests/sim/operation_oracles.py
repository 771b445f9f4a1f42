"""What must hold of transactions, merges, numbers and returned rows, beyond the linearizability of each row.

Where it helps, what clients saw is compared with what was committed (`cluster_oracle.ClusterOracle.committed_rows`):
the versions of a tablet are the order of all that happened in it, so a transaction is serializable exactly if what it
read was the state just before its own version.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from tests.sim.cluster_oracle import CommittedRows
from tests.sim.history import (
    CONFLICT,
    FAILED,
    GET,
    INSERT,
    OK,
    ROW_WRITES,
    SCAN,
    TRANSACT,
    Columns,
    History,
    Op,
)

REPORTS_MAX = 20
NOT_AS_READ = "have changed since"  # in the message of a conflict that is not about a write's own condition
RowName = tuple[str, tuple[Any, ...]]


class Committed:
    """The rows of a cluster at each version."""

    def __init__(self, rows: CommittedRows) -> None:
        self.rows = rows
        self._versions = {name: sorted(versions) for name, versions in rows.items()}
        self._keys: dict[str, list[Any]] = defaultdict(list)
        for table, key in sorted(rows):
            self._keys[table].append(key)

    def versions(self, name: RowName) -> list[int]:
        return self._versions.get(name, [])

    def at(self, name: RowName, version: int) -> tuple[int | None, Columns | None]:
        """The row at this version; (None, None): there was none."""
        versions = self.versions(name)
        at = bisect_right(versions, version)
        if at == 0 or self.rows[name][versions[at - 1]] is None:
            return None, None
        return versions[at - 1], self.rows[name][versions[at - 1]]

    def before(self, name: RowName, version: int) -> tuple[int | None, Columns | None]:
        return self.at(name, version - 1)

    def keys_in(self, table: str, start: Any, end: Any) -> list[Any]:
        keys = self._keys.get(table, [])
        low = 0 if start is None else bisect_left(keys, tuple(start))
        return keys[low : len(keys) if end is None else bisect_left(keys, tuple(end))]


def check_operations(history: History, rows: CommittedRows) -> list[str]:
    """Every oracle of this module."""
    committed = Committed(rows)
    reports: list[str] = []
    for check in (check_transactions, check_stamps, check_returned):
        reports += check(history, committed)[:REPORTS_MAX]
    return reports + check_merges(history)[:REPORTS_MAX] + check_numbers(history)[:REPORTS_MAX]


# --------------------------------------------------------------------------------- transactions


def check_transactions(history: History, committed: Committed) -> list[str]:
    """What a transaction read was the state just before its version; if it was refused for that, it was not."""
    reports = []
    for op in history.ops:
        if op.kind != TRANSACT:
            continue
        if op.outcome == OK and op.version is not None:
            at = op.version if not op.args.get("writes") else op.version - 1
            reports += [f"{op}\n    {found}" for found in _misread(op, committed, at)]
        elif op.outcome == CONFLICT and NOT_AS_READ in op.error and not _has_changed(op, committed):
            reports.append(f"refused, but nothing has changed of what it read: {op}")
    return reports


def _misread(op: Op, committed: Committed, at: int) -> Iterator[str]:
    for key, version in op.args.get("reads", ()):
        found, _ = committed.at((op.table, tuple(key)), at)
        if found != version:
            yield f"read {key!r} of version {version}, but at its commit it was {found}"
    for start, end, rows in op.args.get("ranges", ()):
        read = {tuple(key): version for key, version in rows}
        for key in committed.keys_in(op.table, start, end):
            found, _ = committed.at((op.table, key), at)
            if found != read.get(key):
                yield f"scanned {key!r} of version {read.get(key)}, but at its commit it was {found}"


def _has_changed(op: Op, committed: Committed) -> bool:
    """Whether anything that it read was ever otherwise, later than when it was read."""
    seen = [(tuple(key), version) for key, version in op.args.get("reads", ())]
    for start, end, rows in op.args.get("ranges", ()):
        read = {tuple(key): version for key, version in rows}
        seen += [(key, read.get(key)) for key in committed.keys_in(op.table, start, end)]
    return any((committed.versions((op.table, key)) or [0])[-1] > (version or 0) for key, version in seen)


def check_stamps(history: History, committed: Committed) -> list[str]:
    """All writes of a transaction took effect at one version, or none did; each write once."""
    where: dict[tuple[RowName, Any], list[int]] = defaultdict(list)
    for name, versions in committed.rows.items():
        for version, columns in sorted(versions.items()):
            if columns is not None and "by" in columns:
                where[name, columns["by"]].append(version)
    reports = []
    by_stamp: dict[tuple[str, Any], list[Op]] = defaultdict(list)
    for op in history.ops:
        stamp = (op.args.get("columns") or op.args.get("set") or {}).get("by")
        if stamp is not None and op.workload == "transact" and op.key is not None:
            by_stamp[op.table, stamp].append(op)
    for (_, stamp), ops in sorted(by_stamp.items()):
        found: dict[Any, list[int]] = {}
        for op in ops:
            assert op.key is not None
            found[op.key] = where.get(((op.table, op.key), stamp), [])
        places = {tuple(versions) for versions in found.values()}
        is_done = any(found.values())
        if len(places) > 1 or any(len(versions) > 1 for versions in found.values()):
            reports.append(f"{ops[0]}\n    took effect in part, or twice: {found}")
        elif is_done and all(op.outcome in (FAILED, CONFLICT) for op in ops):
            reports.append(f"{ops[0]}\n    took effect all the same: {found}")
        elif any(op.outcome == OK and found[op.key] != [op.version] for op in ops):
            reports.append(f"{ops[0]}\n    took effect otherwise: {found}")
    return reports


# ------------------------------------------------------------------------------- returned rows


def check_returned(history: History, committed: Committed) -> list[str]:
    """A write that returned the row gave that of just before it, or what it left."""
    reports = []
    for op in history.ops:
        if op.outcome != OK or op.kind not in ROW_WRITES or "returning" not in op.args:
            continue
        assert op.key is not None and op.version is not None
        version = op.version if op.args["returning"] == "new" else op.version - 1
        expected = committed.at((op.table, op.key), version)
        if op.found != expected:
            reports.append(f"{op}\n    returned {op.found}, but it was {expected}")
    return reports


# -------------------------------------------------------------------------------------- merges


def check_merges(history: History) -> list[str]:
    """Every row that was read adds up; it has all that was acknowledged before, and nothing that was not done."""
    writes: dict[RowName, dict[str, Op]] = defaultdict(dict)
    reports = []
    for op in history.ops:
        if op.workload == "merge" and "union" in op.args and op.key is not None:
            writes[op.table, op.key][op.args["union"]["items"][0]] = op
    for op in history.ops:
        for key, columns in _rows_seen(op):
            if (op.table, key) in writes and columns is not None:
                reports += [f"{op}\n    {found}" for found in _misadded(op, columns, writes[op.table, key])]
    return reports


def _rows_seen(op: Op) -> list[tuple[Any, Columns | None]]:
    if op.outcome != OK or op.kind not in (GET, SCAN):
        return []
    return [(op.key, op.columns)] if op.rows is None else [(key, columns) for key, _, columns in op.rows]


def _misadded(op: Op, columns: Columns, writes: dict[str, Op]) -> Iterator[str]:
    items = columns.get("items", [])
    total = sum(int(item.rsplit(":", 1)[1]) for item in items)
    if columns.get("total") != total:
        yield f"the total is {columns.get('total')}, but the items make {total}"
    counts: Counter[str] = Counter(items)
    for item, count in counts.items():
        write = writes.get(item)
        if count > 1 or write is None or write.outcome in (FAILED, CONFLICT):
            yield f"{item!r} is there {count} times: {write}"
    for item, write in writes.items():
        if write.outcome == OK and (write.ended or 0) < op.began and item not in items:
            yield f"{item!r} is missing: {write}"


# ------------------------------------------------------------------------------------- numbers


def check_numbers(history: History) -> list[str]:
    """No number comes twice; a row that was asked for after another was there has a higher one; rows that were seen
    are those that were inserted, once each; none that was acknowledged is missing from a later read of its range."""
    reports: list[str] = []
    inserts: dict[tuple[str, Any], Op] = {}
    done: dict[tuple[str, Any], list[Op]] = defaultdict(list)
    for op in history.ops:
        if op.kind == INSERT:
            inserts[op.table, op.args["columns"]["by"]] = op
            if op.outcome == OK:
                done[op.table, op.key].append(op)
    for ops in done.values():
        reports += _misnumbered(ops)
    for op in history.ops:
        if op.kind == SCAN and op.outcome == OK and any(table == op.table for table, _ in inserts):
            reports += [f"{op}\n    {found}" for found in _misinserted(op, inserts, done)]
    return reports


def _misnumbered(ops: list[Op]) -> Iterator[str]:
    numbers = Counter(op.version for op in ops)
    for number, count in numbers.items():
        if count > 1:
            yield f"{count} rows have the number {number}: {[str(op) for op in ops if op.version == number]}"
    highest: Op | None = None  # of those that were acknowledged by now
    ended = sorted(ops, key=lambda op: op.ended or 0)
    at = 0
    for op in sorted(ops, key=lambda op: op.began):
        while at < len(ended) and (ended[at].ended or 0) < op.began:
            if highest is None or (ended[at].version or 0) > (highest.version or 0):
                highest = ended[at]
            at += 1
        if highest is not None and (op.version or 0) <= (highest.version or 0):
            yield f"{op}\n    is not above {highest}"


def _misinserted(op: Op, inserts: dict[Any, Op], done: dict[Any, list[Op]]) -> Iterator[str]:
    seen = Counter(columns["by"] for _, _, columns in op.rows or ())
    for key, version, columns in op.rows or ():
        insert = inserts.get((op.table, columns["by"]))
        if insert is None or insert.outcome in (FAILED, CONFLICT) or seen[columns["by"]] > 1:
            yield f"holds {key!r}, which is there {seen[columns['by']]} times: {insert}"
        elif key[-1] != version or (insert.outcome == OK and insert.version != version):
            yield f"holds {key!r} in version {version}, which was {insert}"
    start, end = op.args.get("start"), op.args.get("end")
    for (table, prefix), ops in done.items():
        if table == op.table and (start is None or start <= prefix) and (end is None or prefix < end):
            for insert in ops:
                if (insert.ended or 0) < op.began and insert.args["columns"]["by"] not in seen:
                    yield f"misses {insert}"
