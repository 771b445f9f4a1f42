"""A history as events of single rows, for the checker of linearizability.

A conflict is a read of the row that was reported with it; a scan is a read of every key in its range.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.sim.history import CONFLICT, DELETE, FAILED, GET, INSERT, OK, PUT, ROW_WRITES, SCAN, History, Op
from tests.sim.linearizability import Contradiction, Event, check_key, freeze

RowName = tuple[str, tuple[Any, ...]]  # table, key
Expiring = Mapping[RowName, Iterable[int]]  # versions of rows that may expire


def event_of(op: Op) -> Event | None:
    """What an operation on one row says about it; None: nothing."""
    if op.kind in ROW_WRITES and (op.outcome == OK or op.is_unknown):
        args = op.args
        return Event(
            op.kind,
            op.began,
            op.ended if op.outcome == OK and op.ended is not None else math.inf,
            op.version if op.outcome == OK else None,
            freeze(args.get("columns", {}) if op.kind == PUT else args.get("set", {})),
            freeze(args.get("increment", {})),
            tuple(args.get("remove", ())),
            args.get("if_version"),
            args.get("if_absent", False),
            args.get("if_exists", False),
            op,
            freeze(args.get("append", {})),
            freeze(args.get("union", {})),
            tuple(args["where"]) if "where" in args else None,
        )
    if (op.outcome == OK and op.kind == GET) or op.outcome == CONFLICT:
        return _read(op, op.version, op.columns)
    return None


def _read(op: Op, version: int | None, columns: dict[str, Any] | None) -> Event:
    assert op.ended is not None
    seen = None if columns is None else freeze(columns)
    return Event(GET, op.began, op.ended, version, seen, op=op)


def events_by_key(history: History, expiring: Expiring | None = None) -> dict[RowName, list[Event]]:
    """(table, key) -> its events. A version that may have expired is one that somebody may have deleted. A scan is a
    read of every key in its range that the history knows, of absence where it returned no row; one that its limit cut
    short, up to its last row."""
    found: dict[RowName, list[Event]] = {}
    scans = []
    for op in history.ops:
        if op.kind == SCAN and op.outcome == OK:
            scans.append(op)
            for key, _, _ in op.rows or ():
                found.setdefault((op.table, key), [])
        elif op.key is not None and op.kind in (GET, *ROW_WRITES):
            events = found.setdefault((op.table, op.key), [])
            event = event_of(op)
            if event is not None:
                events.append(event)
            if op.found is not None:
                events.append(_read(op, *op.found))
    for op, key in _inserted(history, scans):
        written = Event(
            PUT,
            op.began,
            op.ended if op.outcome == OK and op.ended is not None else math.inf,
            op.version if op.outcome == OK else None,
            freeze(op.args["columns"]),
            if_absent=True,
            op=op,
        )
        found.setdefault((op.table, key), []).append(written)
    for name in expiring or ():
        for version in (expiring or {})[name]:
            found.setdefault(name, []).append(Event(DELETE, 0, math.inf, if_version=version))
    names = sorted(found)
    for op in scans:
        _add_scan(op, found, names)
    return found


def _inserted(history: History, scans: list[Op]) -> Iterator[tuple[Op, tuple[Any, ...]]]:
    """Rows that their table numbered, with their keys; those of unknown outcome as far as they were seen."""
    unknown: dict[tuple[str, Any], Op] = {}
    for op in history.ops:
        if op.kind == INSERT and op.key is not None:
            if op.outcome == OK:
                yield op, (*op.key, op.version)
            elif op.is_unknown:
                unknown[op.table, op.args["columns"]["by"]] = op
    for scan in scans if unknown else ():
        for key, _, columns in scan.rows or ():
            op_seen = unknown.pop((scan.table, columns.get("by")), None)
            if op_seen is not None:
                yield op_seen, key


def _add_scan(op: Op, found: dict[RowName, list[Event]], names: list[RowName]) -> None:
    rows = {key: (version, columns) for key, version, columns in op.rows or ()}
    for key, (version, columns) in rows.items():
        found[op.table, key].append(_read(op, version, columns))
    start, end, limit = op.args.get("start"), op.args.get("end"), op.args.get("limit")
    last = None
    if limit is not None and len(rows) >= limit:  # it says nothing of what lies behind its last row
        if not op.rows:
            return
        last = op.rows[-1][0]
    is_reverse = op.args.get("reverse", False)
    begin = () if start is None else tuple(start)
    for name in names[bisect_left(names, (op.table, max(begin, last) if last and is_reverse else begin)) :]:
        key = name[1]
        is_behind = (end is not None and key >= tuple(end)) or (last and not is_reverse and key > last)
        if name[0] != op.table or is_behind:
            break
        if key not in rows:
            found[name].append(_read(op, None, None))


def check_history_keys(
    history: History, reports_max: int = 20, expiring: Expiring | None = None
) -> list[str]:
    """A readable report for each key whose operations are not linearizable, until there are enough."""
    reports: list[str] = []
    for (table, key), events in sorted(events_by_key(history, expiring).items()):
        found = check_key(events) if len(reports) < reports_max else None
        if found is not None:
            reports.append(
                f"{table} {key!r} is not linearizable: {found}{_not_done(history, table, key, found)}"
            )
    return reports


def _not_done(history: History, table: str, key: tuple[Any, ...], found: Contradiction) -> str:
    """Writes that certainly did not happen are no events, but one of them may be what was read after all."""
    seen = {event.columns for event in found.window if event.is_read} - {None}
    ops = [
        op
        for op in history.ops
        if (op.table, op.key) == (table, key) and op.kind == PUT and op.outcome in (FAILED, CONFLICT)
        if freeze(op.args["columns"]) in seen
    ]
    return "".join(f"\n    not done, and yet? {op}" for op in ops[:3])
