"""What must hold of everything that clients saw, judged from the history alone; so also for a real cluster.

Linearizability of each row says nearly all. The other oracles look at the same promises from another side, in
linear time and without a search, so that a hole in one checker is not a hole in the proof: sums of counters, lists
without loss or repetition, sets, the outcomes within a batch, the order of a scan, tables that come and go, and
what must be there in the end. Each returns readable reports; none means that all is well.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from tests.sim.history import (
    CONFLICT,
    CREATE,
    DELETE,
    DROP,
    FAILED,
    GET,
    OK,
    PUT,
    ROW_WRITES,
    SCAN,
    UPDATE,
    Columns,
    History,
    Op,
)
from tests.sim.linearizability import freeze, where_holds
from tests.sim.row_events import Expiring, RowName, check_history_keys

REPORTS_MAX: Final = 20  # of one oracle


def check_history(
    history: History, *, has_final_reads: bool = True, expiring: Expiring | None = None
) -> list[str]:
    """Every oracle of this module. ``has_final_reads``: ``workload.read_final`` was the last thing that happened.
    ``expiring``: versions that may expire."""
    reports = check_history_keys(history, REPORTS_MAX, expiring)
    checks = [check_conflicts, check_batches, check_scans, check_tables, check_lists]
    if has_final_reads:
        checks += [check_counters, check_sets, check_last_writes]
    return reports + [report for check in checks for report in check(history)[:REPORTS_MAX]]


def check_deadlines(history: History, timeout_s: float, grace_s: float) -> list[str]:
    """Row operations that took longer than they may."""
    return [
        f"over its deadline: {op}"
        for op in history.ops
        if op.kind in (GET, *ROW_WRITES)
        and op.returned_s is not None
        and op.returned_s - op.invoked_s > timeout_s + grace_s
    ]


def check_conflicts(history: History) -> list[str]:
    """A condition that was refused does not hold of the row that was reported with the refusal (unless it is that of
    an earlier attempt, which is answered with the row of now)."""
    return [
        f"refused, but the condition holds: {op}"
        for op in history.ops
        if op.outcome == CONFLICT and op.note != "repeated" and _holds(op)
    ]


def _holds(op: Op) -> bool:
    if "where" in op.args:
        return where_holds(op.args["where"], None if op.columns is None else freeze(op.columns))
    if "if_version" in op.args:
        return op.columns is not None and op.version == op.args["if_version"]
    return (op.columns is None) == bool(op.args.get("if_absent"))


# ------------------------------------------------------------------------------------- counters


def check_counters(history: History) -> list[str]:
    """In the end a counter is the sum of what was acknowledged, and of some of what is unknown."""
    reports = []
    finals = _finals(history)
    for name, (sure, unknown) in sorted(_increments(history).items()):
        for op, _, row in finals.get(name, ()):
            value = 0 if row is None else row.get("n", 0)
            if not sure <= value <= sure + unknown:
                reports.append(
                    f"{name[1]!r} counts {value}, but {sure} were acknowledged and {unknown} are unknown\n    {op}"
                )
    return reports


def _increments(history: History) -> dict[RowName, tuple[int, int]]:
    sums: dict[RowName, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for op in history.ops:
        if op.workload == "counter" and op.kind == UPDATE and op.key is not None:
            amount = op.args["increment"]["n"]
            sure, unknown = sums[op.table, op.key]
            if op.outcome == OK:
                sums[op.table, op.key] = (sure + amount, unknown)
            elif op.is_unknown:
                sums[op.table, op.key] = (sure, unknown + amount)
    return sums


# ---------------------------------------------------------------------------------------- lists


def check_lists(history: History) -> list[str]:
    """Every list that was read holds nothing twice and nothing that certainly was not appended, is a beginning of
    every longer one, and holds all that was acknowledged before it was asked for; what was appended after another
    was acknowledged stands behind it."""
    reports = []
    seen = _lists_seen(history)
    for name, appends in sorted(_appends(history).items()):
        longest: list[Any] = []
        for op, elements in sorted(seen.get(name, ()), key=lambda item: len(item[1])):
            if elements[: len(longest)] != longest:
                reports.append(f"{op}\n    is not a continuation of {longest!r}")
                break
            longest = elements
            where = {element: position for position, element in enumerate(elements)}
            for element, append in appends.items():
                is_due = append.outcome == OK and (append.ended or 0) < op.began
                if is_due and element not in where:
                    reports.append(f"{op}\n    misses {element!r} of {append}")
        reports += _judge_list(name, longest, appends)
    return reports


def _judge_list(name: RowName, elements: list[Any], appends: dict[Any, Op]) -> Iterator[str]:
    for element, count in Counter(elements).items():
        append = appends.get(element)
        if count > 1:
            yield f"{name[1]!r} holds {element!r} {count} times"
        if append is None or append.outcome in (FAILED, CONFLICT):
            yield f"{name[1]!r} holds {element!r}, which was not appended: {append}"
    latest: Op | None = None
    for element in elements:
        append = appends.get(element)
        if append is None:
            continue
        if latest is not None and append.outcome == OK and (append.ended or 0) < latest.began:
            yield f"{name[1]!r} holds in the wrong order: {latest} before {append}"
        if latest is None or append.began > latest.began:
            latest = append


def _appends(history: History) -> dict[RowName, dict[Any, Op]]:
    found: dict[RowName, dict[Any, Op]] = defaultdict(dict)
    for op in history.ops:
        if op.workload == "append" and op.kind == PUT and op.key is not None:
            found[op.table, op.key][op.args["columns"]["list"][-1]] = op
        elif op.workload == "grow" and op.kind == UPDATE and op.key is not None:
            for element in op.args["append"]["list"]:
                found[op.table, op.key][element] = op
    return found


def _lists_seen(history: History) -> dict[RowName, list[tuple[Op, list[Any]]]]:
    found: dict[RowName, list[tuple[Op, list[Any]]]] = defaultdict(list)
    for op in history.ops:
        if op.kind == GET and op.outcome == OK and op.key is not None and op.columns is not None:
            elements = op.columns.get("list")
            if isinstance(elements, list):
                found[op.table, op.key].append((op, elements))
    return found


# ----------------------------------------------------------------------------- sets and last writes


def check_sets(history: History) -> list[str]:
    """Inserted rows: an acknowledged one is there in the end under its version, an unknown one may be, one that was
    certainly not inserted is not."""
    reports = []
    finals = _finals(history)
    for op in history.ops:
        if op.workload != "set" or op.kind != PUT or op.key is None:
            continue
        for final, version, _ in finals.get((op.table, op.key), ()):
            if op.outcome == OK and version != op.version:
                reports.append(
                    f"an inserted row is {'gone' if version is None else 'changed'}: {op}\n    {final}"
                )
            elif op.outcome in (FAILED, CONFLICT) and version is not None:
                reports.append(f"a row that was not inserted is there: {op}\n    {final}")
    return reports


def check_last_writes(history: History) -> list[str]:
    """No row is older in the end than its last acknowledged write, and none is gone that nobody can have deleted."""
    last: dict[RowName, Op] = {}
    deletable: set[RowName] = set()
    for op in history.ops:
        if op.key is None or op.kind not in ROW_WRITES:
            continue
        name = (op.table, op.key)
        if op.outcome == OK and op.version is not None:
            before = last.get(name)
            if before is None or (before.version or 0) < op.version:
                last[name] = op
        elif op.is_unknown and op.kind == DELETE:
            deletable.add(name)
    reports = []
    finals = _finals(history)
    for name, op in sorted(last.items()):
        for final, version, columns in finals.get(name, ()):
            if version is None and op.kind != DELETE and name not in deletable:
                reports.append(f"an acknowledged write is lost: {op}\n    {final}")
            elif version is not None and version < (op.version or 0):
                reports.append(f"a row is older than its last acknowledged write: {op}\n    {final}")
            elif version == op.version and op.kind == PUT and columns != op.args["columns"]:
                reports.append(f"a row is not what was written: {op}\n    {final}")
    return reports


def _finals(history: History) -> dict[RowName, list[tuple[Op, int | None, Columns | None]]]:
    """Key -> what each of the last reads saw of it: gets, and scans of the whole table."""
    finals: dict[RowName, list[tuple[Op, int | None, Columns | None]]] = defaultdict(list)
    scans = []
    for op in history.ops:
        if op.workload == "final" and op.outcome == OK:
            if op.kind == SCAN:
                scans.append((op, {key: (version, columns) for key, version, columns in op.rows or ()}))
            elif op.kind == GET and op.key is not None:
                finals[op.table, op.key].append((op, op.version, op.columns))
    for (table, key), seen in finals.items():
        for op, rows in scans:
            if op.table == table:
                seen.append((op, *rows.get(key, (None, None))))
    return finals


# --------------------------------------------------------------------------------- batches and scans


def check_batches(history: History) -> list[str]:
    """Each row of a batch has its own outcome: one with a stamp was written by that batch's operation on that row,
    unless that was refused; what cannot be a row is refused alone."""
    writers: dict[tuple[str, Any, str], list[Op]] = defaultdict(list)
    reports = []
    for op in history.ops:
        if op.batch is not None and op.key is not None:
            written = op.args.get("columns") or op.args.get("set") or {}
            if "stamp" in written:
                writers[op.table, op.key, written["stamp"]].append(op)
            if len(op.key) == 1 and op.outcome != FAILED and not op.is_unknown:
                reports.append(f"what is no row was not refused: {op}")
    for op in history.ops:
        for key, columns in _columns_seen(op):
            stamp = columns.get("stamp")
            if stamp is None:
                continue
            able = writers.get((op.table, key, stamp), [])
            if not any(
                (writer.outcome == OK or writer.is_unknown) and writer.began < _end(op) for writer in able
            ):
                reports.append(f"{op}\n    saw in {key!r} the stamp of {[str(writer) for writer in able]}")
    return reports


def _columns_seen(op: Op) -> Iterable[tuple[Any, Columns]]:
    if op.rows is not None:
        return [(key, columns) for key, _, columns in op.rows]
    return [(op.key, op.columns)] if op.columns is not None else []


def _end(op: Op) -> float:
    return float("inf") if op.ended is None else op.ended


def check_scans(history: History) -> list[str]:
    """Rows come in order, within the range, once each, not more than were asked for. (That none is missing is for
    linearizability to say, which takes a scan as a read of every key.)"""
    reports = []
    for op in history.ops:
        if op.rows is None:
            continue
        args, keys = op.args, [key for key, _, _ in op.rows]
        start, end = args.get("start"), args.get("end")
        if keys != sorted(set(keys), reverse=bool(args.get("reverse"))):
            reports.append(f"rows out of order or twice: {op}: {keys}")
        if any(
            (start is not None and key < tuple(start)) or (end is not None and key >= tuple(end))
            for key in keys
        ):
            reports.append(f"rows out of the range: {op}: {keys}")
        if args.get("limit") is not None and len(keys) > args["limit"]:
            reports.append(f"more rows than asked for: {op}")
    return reports


# --------------------------------------------------------------------------------------- tables


def check_tables(history: History) -> list[str]:
    """A table that was created is there until its drop was asked for; after the drop was answered none of that name
    is, not even an empty one, until it is created again. (The workload uses no name again whose create or drop has an
    unknown outcome, so nothing else excuses a table.)"""
    return [
        report
        for incarnations in _tables_used(history).values()
        for ops in incarnations.values()
        for report in _judge_incarnation(ops)
    ]


def check_standing(history: History, standing: Collection[str]) -> list[str]:
    """The same of the tables that stand in the end, after all that was late."""
    reports = []
    for name, incarnations in sorted(_tables_used(history).items()):
        *_, last = incarnations.values()
        created, drop = _ends_of(last)
        if drop is not None and drop.outcome == OK and name in standing:
            reports.append(f"a dropped table stands: {drop}")
        if created is not None and drop is None and name not in standing:
            reports.append(f"a table is gone that nobody dropped: {created}")
    return reports


def _tables_used(history: History) -> dict[str, dict[str, list[Op]]]:
    """Name of a table -> its incarnations, in their order -> what was done with each."""
    found: dict[str, dict[str, list[Op]]] = defaultdict(lambda: defaultdict(list))
    for op in history.ops:
        if op.workload == "tables":
            found[op.table.rpartition("@")[0]][op.table].append(op)
    return found


def _ends_of(ops: list[Op]) -> tuple[Op | None, Op | None]:
    """The create that succeeded, and the drop that was asked for, of one incarnation."""
    created = next((op for op in ops if op.kind == CREATE and op.outcome == OK), None)
    return created, next((op for op in ops if op.kind == DROP), None)


def _judge_incarnation(ops: list[Op]) -> Iterator[str]:
    created, drop = _ends_of(ops)
    for op in ops:
        if op.kind == CREATE and (op.error.startswith("TableExists") or "is being dropped" in op.error):
            yield f"a table of that name was there before: {op}"
        if op.kind == CREATE or created is None:
            continue
        is_missing = op.error.startswith("TableNotFound")
        is_before = drop is None or op is drop or (op.ended is not None and op.ended < drop.began)
        if is_missing and is_before:
            yield f"a table is not found that stands: {op}\n    {created}"
        is_after = drop is not None and drop.outcome == OK and op.began > _end(drop)
        if is_after and op.outcome == OK:
            yield f"a dropped table answers: {op}\n    {drop}"
