"""Options of a table, chosen when it is created and fixed from then on: history, expiry, cells, merge rules.

Only what differs from the defaults is stored and sent, so that a table without options is what it always was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ackord.errors import InvalidRequest

MERGE_RULES: Final = ("latest", "max", "min", "sum", "union", "append")
SECONDS_MAX: Final = 3_153_600_000  # a hundred years
SECONDS_MIN: Final = 0.001  # times are kept in milliseconds
KEEP_VERSIONS_MAX: Final = 10_000
MAX_VERSIONS_MAX: Final = 1_000
MERGE_COLUMNS_MAX: Final = 1_024
COLUMN_NAME_BYTES_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class TableOptions:
    """``keep_versions`` and ``keep_for`` (seconds): a row's version can be read while it is one of the newest
    ``keep_versions``, or was superseded less than ``keep_for`` ago. ``ttl`` (seconds): a row expires so long
    after its last write. ``max_versions``: cells kept of a column; ``timestamp_deviation`` (seconds): how far
    a cell's timestamp that the caller gives may lie from the clock. ``merge``: column -> rule."""

    keep_versions: int = 1
    keep_for: float | None = None
    ttl: float | None = None
    max_versions: int = 1
    timestamp_deviation: float = 86_400
    merge: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_count("keep_versions", self.keep_versions, KEEP_VERSIONS_MAX)
        _check_count("max_versions", self.max_versions, MAX_VERSIONS_MAX)
        for name in ("keep_for", "ttl", "timestamp_deviation"):
            value = getattr(self, name)
            if value is not None or name == "timestamp_deviation":
                check_seconds(name, value)
        _check_merge(self.merge)
        if self.merge and self.max_versions > 1:
            raise InvalidRequest(
                "merge: a table whose columns keep several cells (max_versions over 1) has no merge rules",
                field="merge",
                value=self.max_versions,
                limit=1,
            )

    @property
    def has_history(self) -> bool:
        """Whether superseded versions of rows are kept."""
        return self.keep_versions > 1 or self.keep_for is not None

    @property
    def has_cells(self) -> bool:
        """Whether columns hold several timestamped cells."""
        return self.max_versions > 1

    @property
    def keep_for_ms(self) -> int:
        """0: versions are kept by their number only."""
        return 0 if self.keep_for is None else milliseconds(self.keep_for)

    @property
    def ttl_ms(self) -> int:
        """0: rows do not expire by themselves."""
        return 0 if self.ttl is None else milliseconds(self.ttl)

    @property
    def deviation_ms(self) -> int:
        return milliseconds(self.timestamp_deviation)

    def to_wire(self) -> dict[str, Any]:
        """What differs from the defaults."""
        given = {name: getattr(self, name) for name in _NAMES}
        wire = {name: value for name, value in given.items() if value != getattr(DEFAULT_OPTIONS, name)}
        if "merge" in wire:
            wire["merge"] = dict(sorted(self.merge.items()))
        return wire

    @classmethod
    def from_wire(cls, wire: Any) -> TableOptions:
        """From ``to_wire``, or from a user's map; InvalidRequest names the field, the value and the limit."""
        if wire is None:
            return cls()
        if not isinstance(wire, Mapping):
            raise InvalidRequest(
                f"options are a map, not {type(wire).__name__}", field="options", value=type(wire).__name__
            )
        for name in wire:
            if name not in _NAMES:
                raise InvalidRequest(
                    f"unknown table option {ascii(name)[:60]}; known are {', '.join(_NAMES)}",
                    field=ascii(name)[:60],
                    limit=list(_NAMES),
                )
        return cls(**{name: value for name, value in wire.items() if value is not None})


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def check_seconds(name: str, value: Any) -> None:
    """InvalidRequest unless the value is a duration in seconds."""
    if type(value) not in (int, float) or not SECONDS_MIN <= value <= SECONDS_MAX:
        raise InvalidRequest(
            f"{name}={ascii(value)[:60]} is not a number of seconds from {SECONDS_MIN} to {SECONDS_MAX}",
            field=name,
            value=ascii(value)[:60],
            limit=[SECONDS_MIN, SECONDS_MAX],
        )


def _check_count(name: str, value: Any, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidRequest(
            f"{name}={ascii(value)[:60]} is not a number from 1 to {most}",
            field=name,
            value=ascii(value)[:60],
            limit=most,
        )


def _check_merge(merge: Any) -> None:
    if not isinstance(merge, Mapping) or len(merge) > MERGE_COLUMNS_MAX:
        raise InvalidRequest(
            f"merge must be a map of up to {MERGE_COLUMNS_MAX} columns to rules",
            field="merge",
            value=ascii(merge)[:60],
            limit=MERGE_COLUMNS_MAX,
        )
    for column, rule in merge.items():
        if type(column) is not str or not 0 < len(column.encode(errors="replace")) <= COLUMN_NAME_BYTES_MAX:
            raise InvalidRequest(
                f"merge: {ascii(column)[:60]} is not a column name", field="merge", value=ascii(column)[:60]
            )
        if rule not in MERGE_RULES:
            raise InvalidRequest(
                f"merge: column {column!r} has the rule {ascii(rule)[:60]}; known are {', '.join(MERGE_RULES)}",
                field="merge",
                value=ascii(rule)[:60],
                limit=list(MERGE_RULES),
            )


_NAMES: Final = tuple(f.name for f in fields(TableOptions))
DEFAULT_OPTIONS: Final = TableOptions()
