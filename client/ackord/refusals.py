"""The errors that the SDK itself answers with, because no node did."""

from __future__ import annotations

from typing import Any

from ackord.calls import Get, QueueOptions, Write
from ackord.errors import Error, OutcomeUnknown, Unavailable
from ackord.routing import TabletRoute


def queue_full(count: int, size: int, options: QueueOptions, *, has_count: bool) -> Unavailable:
    """``has_count``: it is their number that would be too much, not their bytes."""
    field = "queue_ops_max" if has_count else "queue_bytes_max"
    limit = getattr(options, field)
    return Unavailable(
        f"{count} operations of {size} bytes are under way in this store already: {field} is {limit}",
        reason="client_queue_full",
        field=field,
        limit=limit,
        retry_after_ms=50,
    )


def unreachable(tablet: TabletRoute, is_write: bool, reason: str) -> Unavailable:
    """No node can be asked for this tablet now; ``reason``: why not its coordinator."""
    if is_write and tablet.coordinator is None:
        text = f"tablet {tablet.id} of table {tablet.table!r} has no coordinator now"
    else:
        text = (
            f"no node can be reached for tablet {tablet.id} of table {tablet.table!r} "
            f"(node {tablet.coordinator}: {reason})"
        )
    return Unavailable(text, reason="unreachable", tablet=tablet.id, table=tablet.table)


def too_late(op: Get, *, is_sent: bool) -> Error:
    """The deadline has passed. A write that may have been executed is in doubt (rule R17)."""
    why = f"; the last attempt: {op.error.message}" if op.error is not None else ""
    detail: dict[str, Any] = dict(op.error.detail) if op.error is not None else {}
    detail.update(table=op.table.name, tablet=op.tablet.id)
    text = f"no answer from tablet {op.tablet.id} of table {op.table.name!r} in time{why}"
    if isinstance(op, Write) and (op.is_unknown or is_sent):
        return OutcomeUnknown(text, **detail)
    return Unavailable(text, **detail)
