"""Query parameters of reads of earlier versions and of cells, and of what a write says beside its columns."""

from __future__ import annotations

import re
from typing import Any

from ackord.errors import InvalidRequest
from ackord.wire.extras import encode_extras
from ackord.wire.json_forms import to_json, version_from_json
from ackord.wire.keys import INT64_MAX, KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    COND_IF_VERSION,
    COND_MERGE,
    COND_NONE,
    OP_AS_OF,
    OP_CELLS,
    OP_HISTORY,
    row_columns,
    row_version,
)
from ackord.wire.values import decode_columns
from ackord_node.server.asking import row_answer

VERSION_PARAMETERS = ("as_of", "versions", "from", "to", "history", "before")
EXTRA_PARAMETERS = ("ttl", "timestamp", "on_conflict")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,9})?")


def version_group(query: dict[str, str], tablet: int, key: bytes, limits: Limits) -> list[Any] | None:
    """The request group of ``as_of=``, ``history=`` (with ``before=``), or ``versions=``, ``from=``, ``to=``; None
    if the present row is wanted."""
    given = [name for name in VERSION_PARAMETERS if name in query]
    if not given:
        return None
    for family in (("as_of",), ("history", "before"), ("versions", "from", "to")):
        if given[0] in family and not set(given) <= set(family):
            raise InvalidRequest(f"{' and '.join(given)} exclude each other", field=given[-1])
    if "where" in query or "columns" in query:
        raise InvalidRequest(f"{given[0]} excludes where and columns", field=given[0])
    if "as_of" in query:
        return [OP_AS_OF, tablet, [key], version_from_json(query["as_of"], "as_of")]
    most = limits.history_rows_count
    if given[0] in ("history", "before"):
        before = version_from_json(query["before"], "before") if "before" in query else INT64_MAX
        return [OP_HISTORY, tablet, key, before, _count("history", query.get("history", "100"), most)]
    bounds = [int(_number(name, query[name])) if name in query else None for name in ("from", "to")]
    return [OP_CELLS, tablet, [key], _count("versions", query.get("versions", str(most)), most), *bounds]


def history_answer(schema: KeySchema, key: bytes, result: list[Any], as_json: bool) -> dict[str, Any]:
    """``{"versions": [{"version", "columns" or null if deleted}, ...], "next": the "before" of the rest or null}``"""
    flat, follows = result
    versions: list[dict[str, Any]] = []
    for version, row in zip(flat[::2], flat[1::2], strict=True):
        if row is None:
            versions.append({"version": str(version) if as_json else version, "columns": None})
            continue
        shown = row_answer(schema, key, row, as_json)
        del shown["key"]
        versions.append(shown)
    rest = str(follows) if as_json and follows is not None else follows
    return {"versions": versions, "next": rest}


def cells_answer(schema: KeySchema, key: bytes, row: bytes, as_json: bool) -> dict[str, Any]:
    """``{"key", "version", "cells": {column: [[timestamp, value], ...]}}``"""
    cells, version = decode_columns(row_columns(row)), row_version(row)
    values = list(schema.decode(key))
    if not as_json:
        return {"key": values, "version": version, "cells": cells}
    shown = {name: [[time, to_json(value)] for time, value in of] for name, of in cells.items()}
    return {"key": [to_json(value) for value in values], "version": str(version), "cells": shown}


def with_extras(query: dict[str, str], body: bytes | None, delete_cells: Any = None) -> bytes | None:
    """The body of a write with ``ttl=`` (seconds), ``timestamp=`` (milliseconds) and cells to delete."""
    if body is None:
        for name in ("ttl", "timestamp"):
            if name in query:
                raise InvalidRequest(f"{name} is for PUT and PATCH", field=name)
        return None
    ttl = float(_number("ttl", query["ttl"])) if "ttl" in query else None
    timestamp = int(_number("timestamp", query["timestamp"])) if "timestamp" in query else None
    return encode_extras(body, ttl, timestamp, delete_cells)


def on_conflict(query: dict[str, str], condition: int, value: Any) -> tuple[int, Any]:
    """What ``on_conflict=`` makes of the condition."""
    wanted = query.get("on_conflict")
    if wanted is None:
        return condition, value
    if wanted not in ("latest", "merge"):
        raise InvalidRequest(
            f"on_conflict must be latest or merge, not {wanted[:40]!r}",
            field="on_conflict",
            value=wanted[:40],
            limit=["latest", "merge"],
        )
    if condition != COND_IF_VERSION:
        raise InvalidRequest("on_conflict needs if_version", field="on_conflict")
    return (COND_NONE, None) if wanted == "latest" else (COND_MERGE, value)


def _number(name: str, text: str) -> str:
    if _NUMBER.fullmatch(text) is None or (name != "ttl" and "." in text):
        raise InvalidRequest(f"{name}={text[:40]!r} is not a number", field=name, value=text[:40])
    return text


def _count(name: str, text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or not 1 <= int(text) <= most:
        raise InvalidRequest(
            f"{name} must be 1 to {most}, not {text[:40]!r}", field=name, value=text[:40], limit=most
        )
    return int(text)
