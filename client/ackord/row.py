"""A row as read: its key, its version, and its columns as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ackord.wire.messages import VERSION_COUNTER_BITS, row_columns, row_expires_ms, row_version
from ackord.wire.values import decode_columns


class Row(Mapping[str, Any]):
    """An immutable row. ``row["total"]``, ``row.get("note")``, ``dict(row)`` read the columns, which are
    decoded at the first such use; ``row.key`` is the tuple of key columns, ``row.version`` the int that
    ``if_version`` takes. Two rows are equal if key, version and columns are."""

    __slots__ = ("_columns", "_raw", "key")

    key: tuple[Any, ...]

    def __init__(self, key: tuple[Any, ...], raw: bytes) -> None:
        """``raw`` is the row as stored: its version, when it expires if it says so, then the columns."""
        self.key = key
        self._raw = raw
        self._columns: dict[str, Any] | None = None

    @property
    def version(self) -> int:
        return row_version(self._raw)

    def of_key(self, key: tuple[Any, ...]) -> Row:
        """The same row under this key."""
        return Row(key, self._raw)

    @property
    def expires_at(self) -> float | None:
        """When the row expires, in seconds of Unix time, if it was written with a ``ttl`` of its own."""
        expires_ms = row_expires_ms(self._raw)
        return expires_ms / 1000 if expires_ms else None

    def cells(self, name: str) -> list[tuple[int, Any]]:
        """The column's cells as (timestamp in milliseconds, value), newest first. All that were asked for of a row
        that was read with ``versions`` or ``time_range``, else the one value at the row's version."""
        columns = self._decoded()
        return [(self.version >> VERSION_COUNTER_BITS, columns[name])] if name in columns else []

    @property
    def columns(self) -> dict[str, Any]:
        """The columns as a dict of their own; changing it changes nothing else."""
        return decode_columns(row_columns(self._raw))

    def _decoded(self) -> dict[str, Any]:
        if self._columns is None:
            self._columns = decode_columns(row_columns(self._raw))
        return self._columns

    def __getitem__(self, name: str) -> Any:
        return self._decoded()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def __contains__(self, name: object) -> bool:
        return name in self._decoded()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self.key == other.key and self.version == other.version and self._same_columns(other)

    def _same_columns(self, other: Row) -> bool:
        return self._raw == other._raw or self._decoded() == other._decoded()

    def __hash__(self) -> int:
        return hash((self.key, self.version))

    def __repr__(self) -> str:
        return f"Row(key={self.key!r}, version={self.version}, {self._decoded()!r})"


class CellRow(Row):
    """A row that was read with several cells of its columns; as a mapping it holds the newest of them."""

    __slots__ = ("_cells",)

    def __init__(self, key: tuple[Any, ...], raw: bytes) -> None:
        super().__init__(key, raw)
        self._cells: dict[str, list[list[Any]]] = decode_columns(row_columns(raw))
        self._columns = {name: cells[0][1] for name, cells in self._cells.items()}

    @property
    def columns(self) -> dict[str, Any]:
        return dict(self._decoded())

    def cells(self, name: str) -> list[tuple[int, Any]]:
        return [(time, value) for time, value in self._cells.get(name, ())]


@dataclass(frozen=True, slots=True)
class Written:
    """What a write with ``returning`` did: the row's key, the write's version, and the row as it left it ("new") or
    found it ("old"), None if there is or was none."""

    key: tuple[Any, ...]
    version: int
    row: Row | None
