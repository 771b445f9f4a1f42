"""Columns that keep several timestamped cells (tables with ``max_versions`` over 1).

A column is stored as a list of ``[timestamp_ms, value]``, newest first, at most ``max_versions``. The coordinator
makes it when it judges the write, so the log carries the result and replicas never judge. A put replaces the row,
older cells included; an update adds a cell to each column that it changes. Where a timestamp is there already the
new cell takes its place. What reads and conditions see of a column is its newest cell.
"""

from __future__ import annotations

from typing import Any

from ackord.errors import InvalidRequest
from ackord.wire.extras import Extras
from ackord.wire.frames import packb
from ackord.wire.limits import Limits
from ackord.wire.messages import VERSION_COUNTER_BITS, row_columns, row_version
from ackord.wire.options import TableOptions
from ackord.wire.updates import updated_columns
from ackord.wire.values import Update, decode_columns, encode_columns

Cells = dict[str, list[list[Any]]]


def check_extras(extras: Extras, options: TableOptions, now_ms: int) -> None:
    """InvalidRequest if the write names timestamps that this table does not take."""
    if not extras.has_cells:
        return
    if not options.has_cells:
        raise InvalidRequest(
            "timestamps are for tables whose columns keep several cells (max_versions over 1)",
            field="timestamp",
            value=options.max_versions,
            limit=1,
        )
    given = list((extras.timestamps or {}).values())
    if extras.timestamp is not None:
        given.append(extras.timestamp)
    for time in given:
        if abs(time - now_ms) > options.deviation_ms:
            raise InvalidRequest(
                f"the timestamp {time} lies more than {options.deviation_ms} ms from the clock, {now_ms}",
                field="timestamp",
                value=time,
                limit=options.deviation_ms,
            )


def put_cells(columns: dict[str, Any], extras: Extras, now_ms: int, limits: Limits) -> bytes:
    cells = {name: [[_time_of(name, extras, now_ms), value]] for name, value in columns.items()}
    return _encoded(cells, limits)


def update_cells(
    current: bytes | None, update: Update, extras: Extras, now_ms: int, max_versions: int, limits: Limits
) -> bytes:
    """The columns blob after an update of a stored row."""
    cells: Cells = decode_columns(row_columns(current)) if current is not None else {}
    for name, times in (extras.delete_cells or {}).items():
        left = [cell for cell in cells.get(name, ()) if cell[0] not in times]
        if left:
            cells[name] = left
        else:
            cells.pop(name, None)
    after = updated_columns(_newest(cells), update)
    for name in update.delete:
        cells.pop(name, None)
    for name in (*update.set, *update.increment, *update.append):
        time = _time_of(name, extras, now_ms)
        kept = [cell for cell in cells.get(name, ()) if cell[0] != time]
        cells[name] = sorted([*kept, [time, after[name]]], key=lambda cell: -cell[0])[:max_versions]
    return _encoded(cells, limits)


def plain_row(row: bytes) -> bytes:
    """A stored row as its readers see it: the newest value of each column."""
    blob = row_columns(row)
    return row[: len(row) - len(blob)] + packb(_newest(decode_columns(blob)))


def single_cells(row: bytes) -> bytes:
    """A row of a table that keeps one value of each column, in the form of one that keeps cells."""
    blob, now_ms = row_columns(row), row_version(row) >> VERSION_COUNTER_BITS
    cells = {name: [[now_ms, value]] for name, value in decode_columns(blob).items()}
    return row[: len(row) - len(blob)] + packb(cells)


def cells_of(row: bytes, count_max: int, start_ms: int | None, end_ms: int | None) -> bytes:
    """The row with up to ``count_max`` cells of each column whose timestamp is in start <= t < end; columns without
    any are left out."""
    blob = row_columns(row)
    chosen = {}
    for name, cells in decode_columns(blob).items():
        fitting = [
            cell
            for cell in cells
            if (start_ms is None or cell[0] >= start_ms) and (end_ms is None or cell[0] < end_ms)
        ]
        if fitting:
            chosen[name] = fitting[:count_max]
    return row[: len(row) - len(blob)] + packb(chosen)


def _newest(cells: Cells) -> dict[str, Any]:
    return {name: versions[0][1] for name, versions in cells.items()}


def _time_of(name: str, extras: Extras, now_ms: int) -> int:
    if extras.timestamps and name in extras.timestamps:
        return extras.timestamps[name]
    return now_ms if extras.timestamp is None else extras.timestamp


def _encoded(cells: Cells, limits: Limits) -> bytes:
    encode_columns(_newest(cells), limits)  # each value within its limits; nesting is the cells' own
    blob = packb(cells)
    if len(blob) > limits.row_bytes:
        raise InvalidRequest(
            f"the row's cells take {len(blob)} bytes, over the limit of {limits.row_bytes} for a row",
            field="columns",
            value=len(blob),
            limit=limits.row_bytes,
        )
    return blob
