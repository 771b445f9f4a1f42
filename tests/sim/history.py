"""The record of what clients asked and saw, from which everything else about a run is judged.

One ``Op`` for each operation on one row (a row of a batch included), each scan and each table operation, with
the true times at which it was asked and answered. ``began`` and ``ended`` number all these moments in the order in
which the recorder saw them: many share one time, above all in the simulator, but "a was answered before b was
asked" must never be in doubt. The outcome is R17's: ``ok``; ``conflict`` (not done, because
its condition did not hold, which is an observation of the row as well); ``failed`` (certainly not done);
``unknown`` (may take effect at any time after it was asked, or never). An operation that never returned is
``open``, which means the same as unknown.

A history can be written as JSON lines while it grows, one line for each operation that has ended, so that a run
that is broken off leaves what it knew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TextIO

OPEN: Final = "open"
OK: Final = "ok"
CONFLICT: Final = "conflict"
FAILED: Final = "failed"
UNKNOWN: Final = "unknown"

GET: Final = "get"
PUT: Final = "put"
UPDATE: Final = "update"
DELETE: Final = "delete"
SCAN: Final = "scan"
CREATE: Final = "create"
DROP: Final = "drop"
TRANSACT: Final = "transact"
INSERT: Final = "insert"  # under a number that the table gives
AS_OF: Final = "as of"
SCAN_AS_OF: Final = "scan as of"
VERSIONS: Final = "versions"
CELLS: Final = "cells"

ROW_WRITES: Final = (PUT, UPDATE, DELETE)

Columns = dict[str, Any]
SeenRow = tuple[tuple[Any, ...], int, Columns]  # key, version, columns


@dataclass(slots=True)
class Op:
    """``args`` of a write: ``columns`` (put), ``set``, ``remove`` and ``increment`` (update), ``if_version``,
    ``if_absent``, ``if_exists``, ``where`` ([column, comparison, value]), ``append`` and ``union`` (what is added to
    lists and to sorted lists without repetition), ``returning``; of a scan: ``start`` and ``end`` (keys; absent: no
    bound), ``limit``, ``reverse``. ``version`` is a write's new version, or that of the row which was seen; ``columns``
    the row which was seen by a get or a conflict (None: no row); ``found`` the row that a write returned.

    What a transaction reads and writes are operations of their own, its commit is one more: its ``args`` have
    ``reads`` ([key, version or None]), ``ranges`` ([start, end, keys and versions]) and ``writes`` (keys)."""

    number: int
    client: str
    workload: str
    kind: str
    table: str
    key: tuple[Any, ...] | None
    args: dict[str, Any]
    invoked_s: float
    began: int
    returned_s: float | None = None
    ended: int | None = None
    outcome: str = OPEN
    version: int | None = None
    columns: Columns | None = None
    rows: list[SeenRow] | None = None
    error: str = ""
    batch: int | None = None  # the number of the first operation of the same write_many
    note: str = ""  # what the outcome alone does not say
    found: tuple[int | None, Columns | None] | None = None
    versions: list[tuple[int, Columns | None]] | None = None  # of a row, newest first

    @property
    def is_unknown(self) -> bool:
        return self.outcome in (UNKNOWN, OPEN)

    def __str__(self) -> str:
        until = "..." if self.returned_s is None or self.is_unknown else f"{self.returned_s:.6f}"
        key = "" if self.key is None else f" {self.key!r}"
        args = "".join(f" {name}={value!r}" for name, value in self.args.items())
        return f"#{self.number} [{self.invoked_s:.6f}, {until}] {self.client} {self.kind}{key}{args}: {self._ending()}"

    def _ending(self) -> str:
        if self.outcome == OK and self.kind in ROW_WRITES:
            return f"ok, version {self.version}"
        if self.outcome == OK and self.rows is not None:
            return f"{len(self.rows)} rows"
        if self.outcome == OK and self.versions is not None:
            return f"versions {[version for version, _ in self.versions]}"
        if self.outcome == OK and self.kind not in (GET, AS_OF, CELLS):
            return OK
        if self.outcome in (OK, CONFLICT):
            seen = "no row" if self.columns is None else f"version {self.version} {self.columns!r}"
            return f"saw {seen}" if self.outcome == OK else f"conflict, saw {seen}"
        return f"{self.outcome} {self.error}".rstrip()


_FIELDS: Final = tuple(Op.__dataclass_fields__)


@dataclass(slots=True)
class History:
    """All operations in the order in which they were asked. ``is_full`` ends the workloads: what is held is
    bounded."""

    path: Path | None = None
    ops_count_max: int = 1_000_000
    ops: list[Op] = field(default_factory=list)
    _moments_count: int = 0
    _file: TextIO | None = None
    _open: dict[int, Op] = field(default_factory=dict)

    @property
    def is_full(self) -> bool:
        return len(self.ops) >= self.ops_count_max

    @property
    def open_count(self) -> int:
        return len(self._open)

    def begin(
        self,
        client: str,
        workload: str,
        kind: str,
        table: str,
        key: tuple[Any, ...] | None,
        now_s: float,
        args: Mapping[str, Any] | None = None,
    ) -> Op:
        """An operation is about to be asked."""
        op = Op(len(self.ops), client, workload, kind, table, key, dict(args or {}), now_s, self._moment())
        self.ops.append(op)
        self._open[op.number] = op
        return op

    def end(self, op: Op, outcome: str, now_s: float, *, error: str = "", note: str = "") -> None:
        """It was answered, or will never be; what it saw is set before this."""
        if op.outcome != OPEN:
            raise ValueError(f"ended twice: {op}")
        op.outcome, op.returned_s, op.ended, op.error, op.note = outcome, now_s, self._moment(), error, note
        del self._open[op.number]
        if self.path is not None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("w", encoding="utf-8")
            self._file.write(encode_op(op) + "\n")

    def _moment(self) -> int:
        self._moments_count += 1
        return self._moments_count

    def close(self, now_s: float) -> None:
        """What is still open is unknown from now on."""
        for op in list(self._open.values()):
            self.end(op, UNKNOWN, now_s, error="never returned")
        if self._file is not None:
            self._file.close()
            self._file = None

    def digest(self) -> str:
        """The same for two runs exactly if their clients asked and saw the same at the same times."""
        digest = hashlib.sha256()
        for op in self.ops:
            digest.update(encode_op(op).encode())
        return digest.hexdigest()


def encode_op(op: Op) -> str:
    """One line of JSON; what is absent is left out."""
    return json.dumps(
        {name: value for name in _FIELDS if (value := getattr(op, name)) not in (None, "")},
        separators=(",", ":"),
    )


def decode_op(line: str) -> Op:
    wire = json.loads(line)
    unknown = wire.keys() - set(_FIELDS)
    if unknown:
        raise ValueError(f"a line of a history with {sorted(unknown)}")
    op = Op(**({"key": None} | wire))
    op.key = _tuple(op.key)
    op.args |= {name: tuple(op.args[name]) for name in ("start", "end") if name in op.args}
    if op.found is not None:
        op.found = tuple(op.found)  # type: ignore[assignment]
    if op.versions is not None:
        op.versions = [(version, columns) for version, columns in op.versions]
    if op.rows is not None:
        op.rows = [(tuple(key), version, columns) for key, version, columns in op.rows]
    return op


def _tuple(key: Any) -> tuple[Any, ...] | None:
    return None if key is None else tuple(key)


def read_history(path: Path) -> History:
    """A history that was written; operations that had not ended when it broke off are not in it, nor is a last
    line that was written in part."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    history = History(ops_count_max=max(len(lines), 1))
    history.ops = sorted((decode_op(line) for line in lines), key=lambda op: op.number)
    return history
