"""One request group for the service, awaited: what the plain HTTP endpoints are made of."""

from __future__ import annotations

import asyncio
from typing import Any

from ackord.errors import Error, OutcomeUnknown, Unavailable
from ackord.wire.json_forms import row_to_json
from ackord.wire.keys import KeySchema
from ackord.wire.messages import (
    OP_WRITE,
    WHOLE_GROUP,
    TableDefinition,
    error_from_wire,
    is_error,
    row_columns,
    row_version,
)
from ackord.wire.values import decode_columns
from ackord_node.runtime.service import Service
from ackord_node.server.errors import Answered

GRACE_MS = 2_000  # beyond request_wait_ms, within which the service itself answers
ELSEWHERE_REASONS = ("not_coordinator", "no_lease", "no_tablet", "stale_routing")


class NotServedHere(Exception):
    """This node certainly did not do it and names why another one may; ``coordinator`` if it is known."""

    def __init__(self, error: Unavailable, coordinator: str | None) -> None:
        super().__init__(error.message)
        self.error = error
        self.coordinator = coordinator


async def ask(service: Service, group: list[Any], table: TableDefinition, json_rows: bool) -> Any:
    """The result of a group of one operation. Raises the error it ended with: Answered with the current row,
    NotServedHere where another node should be asked."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def respond(entry: list[Any]) -> None:
        if future.done():
            return
        _, indices, results = entry
        future.set_result((indices == WHOLE_GROUP, results))

    service.submit([0, *group], respond)
    service.flush()
    op, tablet = group[0], group[1]
    try:
        async with asyncio.timeout((service.limits.request_wait_ms + GRACE_MS) / 1000):
            is_whole, results = await future
    except TimeoutError:
        raise _undecided(op, tablet, service.limits.request_wait_ms) from None
    result = results if is_whole else results[0]
    if is_whole or is_error(result):
        raise _raised(result, tablet, service, table, json_rows)
    return result


def row_answer(schema: KeySchema, key: bytes, row: bytes, as_json: bool) -> dict[str, Any]:
    """``{"key", "version", "columns"}`` of a stored row."""
    columns = decode_columns(row_columns(row))
    values = schema.decode(key)
    version = row_version(row)
    if as_json:
        return row_to_json(values, version, columns)
    return {"key": list(values), "version": version, "columns": columns}


def _raised(wire: Any, tablet: int, service: Service, table: TableDefinition, json_rows: bool) -> Exception:
    error = error_from_wire(wire)
    if isinstance(error, Unavailable) and error.detail.get("reason") in ELSEWHERE_REASONS:
        coordinator = error.detail.get("coordinator") or service.coordinator_of(tablet)
        return NotServedHere(error, coordinator if coordinator != service.name else None)
    current = wire[3] if isinstance(wire, list) and len(wire) > 3 else None
    if isinstance(current, bytes):
        return Answered(error, _current(current, json_rows))
    return error


def _current(row: bytes, as_json: bool) -> dict[str, Any]:
    """The row that a condition was judged on; its key is the request's own."""
    columns = decode_columns(row_columns(row))
    if not as_json:
        return {"version": row_version(row), "columns": columns}
    shown = row_to_json((), row_version(row), columns)
    del shown["key"]
    return shown


def _undecided(op: int, tablet: int, waited_ms: int) -> Error:
    text = f"tablet {tablet} did not decide within {waited_ms} ms"
    if op == OP_WRITE:
        return OutcomeUnknown(f"{text}; the write may still happen", tablet=tablet)
    return Unavailable(text, tablet=tablet, reason="undecided")
