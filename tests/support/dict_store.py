"""A store in a dictionary that can lie: correct under faults that a store may have (refused, late, lost answers),
and wrong in one chosen way, so that the workloads and the oracles above them can be shown to notice.

``warp_loop`` is an event loop whose time jumps to the next timer instead of passing.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import ackord
from ackord.wire.messages import join_row
from ackord.wire.values import encode_columns

ANOMALIES: Final = (
    "stale_read",
    "stale_scan",
    "lost_write",
    "unchecked_version",
    "unchecked_absence",
    "double_effect",
    "failed_but_done",
    "dirty_read",
    "resurrected",
    "older_version",
    "wrong_version",
    "changed_value",
    "skipped_row",
    "repeated_row",
    "unordered_scan",
    "swapped_outcomes",
    "lost_row_of_batch",
    "undone_delete",
    "lost_append",
    "groundless_conflict",
    "kept_rows",
    "undropped_table",
    "vanished_table",
    "lost_at_the_end",
)
ANOMALY_RATE: Final = 0.05

StoredRow = tuple[int, dict[str, Any]]
Key = tuple[Any, ...]
Rows = dict[Key, StoredRow]
Operation = ackord.Put | ackord.Update | ackord.Delete


class DictStore:
    """``anomaly`` (one of ANOMALIES) happens at ``ANOMALY_RATE``; ``fault_rate`` is that of legal failures."""

    def __init__(self, rng: random.Random, anomaly: str | None = None, fault_rate: float = 0.05) -> None:
        assert anomaly is None or anomaly in ANOMALIES
        self.rng = rng
        self.anomaly = anomaly
        self.fault_rate = fault_rate
        self.rows: dict[str, dict[Key, StoredRow]] = {}
        self.dropped_rows: dict[str, dict[Key, StoredRow]] = {}
        self.older: dict[tuple[str, Key], StoredRow | None] = {}  # the row before the last write
        self.version = 1_000
        self.anomalies_count = 0

    def is_odd(self, anomaly: str) -> bool:
        """Whether it goes wrong in this way now."""
        happens = self.anomaly == anomaly and self.rng.random() < ANOMALY_RATE
        self.anomalies_count += happens
        return happens

    def fails(self) -> bool:
        return self.rng.random() < self.fault_rate

    async def pause(self) -> None:
        await asyncio.sleep(self.rng.random() * 0.01)

    # --------------------------------------------------------------------------------- tables

    def table(self, name: str) -> DictTable:
        return DictTable(self, name)

    async def create_table(
        self, name: str, key: Any, *, split_at: Any = (), timeout: float | None = None
    ) -> None:
        await self.pause()
        if self.fails():
            raise ackord.Unavailable("not now")
        old = self.dropped_rows.pop(name, {})
        self.rows.setdefault(name, old if old and self.is_odd("kept_rows") else {})
        await self.pause()
        if self.fails():
            raise ackord.OutcomeUnknown("no answer")

    async def drop_table(self, name: str, *, timeout: float | None = None) -> None:
        await self.pause()
        if self.fails():
            raise ackord.Unavailable("not now")
        if not self.is_odd("undropped_table"):
            self.dropped_rows[name] = self.rows.pop(name, {})
        await self.pause()
        if self.fails():
            raise ackord.OutcomeUnknown("no answer")


class DictTable:
    def __init__(self, store: DictStore, name: str) -> None:
        self._store = store
        self._name = name

    @property
    def _rows(self) -> dict[Key, StoredRow]:
        rows = self._store.rows.get(self._name)
        if rows is None or ("_" in self._name and self._store.is_odd("vanished_table")):
            raise ackord.TableNotFound("no such table")
        return rows

    # ---------------------------------------------------------------------------------- reads

    async def get(self, key: Key, *, timeout: float | None = None) -> ackord.Row | None:
        store = self._store
        await store.pause()
        if store.fails():
            raise ackord.Unavailable("not now")
        seen = self._rows.get(key)
        if store.is_odd("stale_read"):
            seen = store.older.get((self._name, key))
        if seen is not None and store.is_odd("changed_value"):
            seen = (seen[0], {**seen[1], "v": 77})
        await store.pause()
        return None if seen is None else _row(key, seen)

    async def get_many(self, keys: Sequence[Key], *, timeout: float | None = None) -> list[ackord.Row | None]:
        return list(await asyncio.gather(*[self.get(key) for key in keys]))

    async def scan(
        self,
        prefix: Any = (),
        *,
        start: Any = None,
        end: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[ackord.Row]:
        store = self._store
        await store.pause()
        if store.fails():
            raise ackord.Unavailable("not now")
        keys = [
            key
            for key in sorted(self._rows, reverse=reverse)
            if key[: len(prefix)] == prefix and (start is None or key >= start) and (end is None or key < end)
        ]
        if len(keys) > 1 and store.is_odd("unordered_scan"):
            keys[0], keys[1] = keys[1], keys[0]
        if keys and store.is_odd("repeated_row"):
            keys.insert(0, keys[0])
        if keys and store.is_odd("skipped_row"):
            keys.pop(store.rng.randrange(len(keys)))
        found = [(key, self._rows[key]) for key in keys[:limit]]
        if found and store.is_odd("stale_scan"):
            key = found[0][0]
            older = store.older.get((self._name, key))
            found[0:1] = [] if older is None else [(key, older)]
        await store.pause()
        for key, row in found:
            yield _row(key, row)

    # --------------------------------------------------------------------------------- writes

    async def put(
        self, key: Key, columns: dict[str, Any], timeout: float | None = None, **condition: Any
    ) -> int:
        return await self._write(ackord.Put(key, columns, **condition))

    async def update(self, key: Key, set: Any = None, timeout: float | None = None, **options: Any) -> int:
        return await self._write(ackord.Update(key, set, **options))

    async def delete(self, key: Key, timeout: float | None = None, **condition: Any) -> int:
        return await self._write(ackord.Delete(key, **condition))

    async def write_many(
        self, operations: Sequence[Operation], *, timeout: float | None = None
    ) -> list[int | ackord.Error]:
        results: list[int | ackord.Error] = []
        for operation in operations:
            if len(operation.key) == 1:
                results.append(ackord.InvalidRequest("not a key"))
                continue
            try:
                results.append(await self._write(operation, self._store.is_odd("lost_row_of_batch")))
            except ackord.Error as error:
                results.append(error)
        if len(results) > 1 and self._store.is_odd("swapped_outcomes"):
            results[0], results[1] = results[1], results[0]
        return results

    async def _write(self, operation: Operation, is_lost: bool = False) -> int:
        store = self._store
        await store.pause()
        rows = self._rows  # of this table: what is late must not reach another of the same name
        if store.fails():
            if store.is_odd("failed_but_done"):
                self._apply(rows, operation)
            raise ackord.Unavailable("not now")
        if store.fails():
            await self._apply_some_time(rows, operation)
        version = self._apply(rows, operation, is_lost)
        if store.is_odd("double_effect"):
            self._apply(rows, operation)
        await store.pause()
        if store.fails():
            raise ackord.OutcomeUnknown("no answer")
        return version - 2 if store.is_odd("wrong_version") else version

    async def _apply_some_time(self, rows: Rows, operation: Operation) -> None:
        """Never, now, or later; the caller does not know."""
        store = self._store
        choice = store.rng.random()
        if choice < 0.3:
            self._apply_quietly(rows, operation)
        elif choice < 0.6:
            asyncio.get_running_loop().call_later(
                store.rng.random() * 0.2, self._apply_quietly, rows, operation
            )
        if choice < 0.3 and store.is_odd("resurrected"):
            asyncio.get_running_loop().call_later(0.05, self._apply_quietly, rows, operation)
        await store.pause()
        raise ackord.OutcomeUnknown("no answer")

    def _apply_quietly(self, rows: Rows, operation: Operation) -> None:
        try:
            self._apply(rows, operation)
        except ackord.Error:
            pass

    def _apply(self, rows: Rows, operation: Operation, is_lost: bool = False) -> int:
        store, key = self._store, operation.key
        before = rows.get(key)
        self._check(operation, before)
        version = store.version = store.version + store.rng.randrange(1, 4)
        if store.is_odd("older_version"):
            version -= 40
        is_append = isinstance(operation, ackord.Put) and "list" in operation.columns
        if is_lost or store.is_odd("lost_write") or (is_append and store.is_odd("lost_append")):
            return version
        if isinstance(operation, ackord.Delete):
            rows.pop(key, None)
            if before is not None and store.is_odd("undone_delete"):
                asyncio.get_running_loop().call_later(0.05, rows.setdefault, key, before)
        else:
            rows[key] = (version, _columns(operation, before))
            if store.is_odd("dirty_read"):
                asyncio.get_running_loop().call_later(0.05, self._undo, key, version, before)
        store.older[self._name, key] = before
        return version

    def _undo(self, key: Key, version: int, before: StoredRow | None) -> None:
        rows = self._store.rows.get(self._name, {})
        if key in rows and rows[key][0] == version:
            if before is None:
                del rows[key]
            else:
                rows[key] = before

    def _check(self, operation: Operation, row: StoredRow | None) -> None:
        store = self._store
        is_refused = False
        if operation.if_version is not None:
            is_refused = row is None or row[0] != operation.if_version
            is_refused = is_refused and not store.is_odd("unchecked_version")
        elif operation.if_exists:
            is_refused = row is None
        elif not isinstance(operation, ackord.Delete) and operation.if_absent:
            is_refused = row is not None and not store.is_odd("unchecked_absence")
        has_condition = operation.if_version is not None or operation.if_exists
        if is_refused or (has_condition and store.is_odd("groundless_conflict")):
            raise ackord.Conflict("refused", None if row is None else _row(operation.key, row))

    def lose_one(self) -> None:
        """What a store does that forgets something after everybody has gone."""
        rows = self._rows
        del rows[self._store.rng.choice(sorted(rows))]


def _columns(operation: ackord.Put | ackord.Update, before: StoredRow | None) -> dict[str, Any]:
    if isinstance(operation, ackord.Put):
        return dict(operation.columns)
    columns = dict(before[1]) if before is not None else {}
    for name in operation.delete:
        columns.pop(name, None)
    columns |= operation.set or {}
    for name, amount in (operation.increment or {}).items():
        columns[name] = columns.get(name, 0) + amount
    return columns


def _row(key: Key, row: StoredRow) -> ackord.Row:
    return ackord.Row(key, join_row(row[0], encode_columns(row[1])))


class _WarpSelector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0)


class WarpLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._warp = _WarpSelector()
        super().__init__(self._warp)

    def time(self) -> float:
        return self._warp.now
