"""The columns that a write leaves, also where that takes more than the current row: a merge, cells, an expiry.

The coordinator alone judges; the log carries the row that results (rules R12, R20).
"""

from __future__ import annotations

from typing import Any

from ackord.errors import InvalidRequest, VersionCollected
from ackord.wire.extras import Extras, split_extras
from ackord.wire.messages import (
    COND_MERGE,
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    VERSION_COUNTER_BITS,
    join_row,
    row_columns,
    row_expires_ms,
    row_version,
)
from ackord.wire.values import decode_columns, encode_columns
from ackord_node.core.cells import check_extras, plain_row, put_cells, update_cells
from ackord_node.core.merge import merge_columns
from ackord_node.core.reads import Reads
from ackord_node.core.rows import apply_op, check_condition, updated
from ackord_node.core.state import TabletState


class Judge:
    def __init__(self, state: TabletState, reads: Reads) -> None:
        self._s = state
        self._reads = reads
        self.has_expiring = (
            False  # a row with a ttl of its own was judged, and its entry may not be appended yet
        )

    def split(self, op: list[Any], version: int) -> tuple[list[Any], Extras]:
        """The operation without what its body says before its columns; InvalidRequest if that cannot be."""
        extras, body = split_extras(op[3])
        check_extras(extras, self._s.options, version >> VERSION_COUNTER_BITS)
        return [*op[:3], body, *op[4:]], extras

    def row(self, op: list[Any], body: Any, key: bytes, version: int, extras: Extras) -> bytes | None:
        """The row that the operation leaves, None if deleted; Conflict, InvalidRequest, VersionCollected."""
        s, limits = self._s, self._s.config.limits
        if _merge_base(op) is not None:
            columns = self._merged(op, body)
        elif s.options.has_cells:
            columns = self._with_cells(op, body, version, extras)
        else:
            columns = apply_op(op, body, self._reads.newest_row, limits, s.schema)
        if columns is None:
            return None
        return join_row(version, columns, self._expires_ms(op, key, version, extras))

    def _expires_ms(self, op: list[Any], key: bytes, version: int, extras: Extras) -> int:
        """When the row expires by its own ttl. An update without one leaves it as it is."""
        if extras.ttl_ms:
            self.has_expiring = True
            return (version >> VERSION_COUNTER_BITS) + extras.ttl_ms
        if op[1] != KIND_UPDATE or not (self._s.clock.at_end or self.has_expiring):
            return 0
        current = self._reads.newest_row(key)
        return row_expires_ms(current) if current is not None else 0

    # ----------------------------------------------------------------------------------- merge

    def _merged(self, op: list[Any], body: Any) -> bytes | None:
        s, limits, key = self._s, self._s.config.limits, op[2]
        base_version = _merge_base(op)
        assert base_version is not None
        current = self._reads.newest_row(key)
        if op[4] == COND_WHERE:
            check_condition([*op[:4], COND_WHERE, [COND_NONE, None, op[5][2]]], current, limits, s.schema)
        plain = [*op[:4], COND_NONE, None]
        if current is not None and row_version(current) == base_version:
            return apply_op(plain, body, lambda _: current, limits, s.schema)
        if s.options.has_cells:
            raise InvalidRequest(
                "on_conflict='merge' is not for tables whose columns keep several cells", field="on_conflict"
            )
        base = self._base(key, base_version)
        if op[1] == KIND_PUT:
            new = decode_columns(body)
        else:
            new = decode_columns(updated(base, body, limits))
        before = decode_columns(row_columns(base)) if base is not None else {}
        now = decode_columns(row_columns(current)) if current is not None else {}
        merged = merge_columns(before, now, new, s.options.merge)
        if current is None and not merged:
            return None  # deleted meanwhile, and nothing makes it live again
        return encode_columns(merged, limits)

    def _base(self, key: bytes, version: int) -> bytes | None:
        """The row at this version of it, None if that was a deletion."""
        s = self._s
        if s.retention is not None and version <= s.commit_version:
            found = self._reads.moment(key, version)
            if s.retention.kept(found, s.clock.at_end):
                if found.version != version:
                    raise InvalidRequest(
                        f"if_version={version} is no version of this row", field="if_version", value=version
                    )
                if found.row is None or not s.clock.hides(found.row, s.clock.at_end):
                    return found.row
        raise VersionCollected(
            f"the base of the merge, version {version}, is no longer kept: the table's keep_versions or keep_for "
            "must outlast the time between a read and its write",
            version=version,
        )

    # ----------------------------------------------------------------------------------- cells

    def _with_cells(self, op: list[Any], body: Any, version: int, extras: Extras) -> bytes | None:
        s, limits = self._s, self._s.config.limits
        current = self._reads.newest_row(op[2])
        if op[4] != COND_NONE:
            check_condition(op, plain_row(current) if current is not None else None, limits, s.schema)
        now_ms = version >> VERSION_COUNTER_BITS
        if op[1] == KIND_DELETE:
            return None
        if op[1] in (KIND_PUT, KIND_PUT_AUTO):
            return put_cells(decode_columns(body), extras, now_ms, limits)
        return update_cells(current, body, extras, now_ms, s.options.max_versions, limits)


def _merge_base(op: list[Any]) -> int | None:
    """The base version of an operation that is to be merged if it loses."""
    if op[4] == COND_MERGE:
        return int(op[5])
    if op[4] == COND_WHERE and op[5][0] == COND_MERGE:
        return int(op[5][1])
    return None
