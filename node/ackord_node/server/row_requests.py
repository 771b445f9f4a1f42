"""Pure parts of the row endpoints: keys in paths, conditions in queries, idempotency keys, page tokens."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from ackord.errors import InvalidRequest
from ackord.wire.expressions import encode_expression, expression_from_json
from ackord.wire.json_forms import from_json, parse_json, version_from_json
from ackord.wire.keys import AUTO, KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    CLIENT_ID_BYTES,
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    COND_WHERE,
    RETURN_NEW,
    RETURN_OLD,
    VERSION_COUNTER_BITS,
)
from ackord.wire.ranges import is_empty, key_range, seal, unseal
from ackord_node.server.version_queries import on_conflict

CONDITION_PARAMETERS = ("if_version", "if_absent", "if_exists", "where", "returning")
SELECT_PARAMETERS = ("where", "columns")

_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_STAMPED = re.compile(r"([0-9]{13})-([!-~]+)")
_INT = re.compile(r"-?[0-9]{1,20}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")


def key_of_path(raw_path: str, schema: KeySchema) -> bytes:
    """The encoded key that ``/v1/tables/T/rows/K1/K2`` names: int as decimal, str as text, bytes as
    base64url, each percent-encoded."""
    return schema.encode(_key_values(raw_path, schema))


def new_key_of_path(raw_path: str, schema: KeySchema) -> tuple[bytes, bool]:
    """The same of a PUT, whose last segment may be ``auto`` where the last key column is AUTO; then the bytes of the
    columns before, and True."""
    values = _key_values(raw_path, schema)
    if values[-1] is AUTO:
        return schema.encode_auto(values), True
    return schema.encode(values), False


def _key_values(raw_path: str, schema: KeySchema) -> tuple[Any, ...]:
    segments = raw_path.split("/")[5:]
    if len(segments) != len(schema.columns):
        names = "/".join(name for name, _ in schema.columns)
        raise InvalidRequest(
            f"the path has {len(segments)} key columns, the table's key has {len(schema.columns)}:"
            f" .../rows/{names}",
            field="key",
            value=len(segments),
            limit=len(schema.columns),
        )
    return tuple(
        _path_value(name, kind, segment)
        for (name, kind), segment in zip(schema.columns, segments, strict=True)
    )


def _path_value(name: str, kind: str, segment: str) -> Any:
    raw = unquote_to_bytes(segment)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _bad_segment(name, segment, "percent-encoded UTF-8") from None
    if kind == "str":
        return text
    if kind == "auto" and text == "auto":
        return AUTO
    if kind in ("int", "auto"):
        if _INT.fullmatch(text) is None:
            raise _bad_segment(name, segment, "a decimal integer")
        return int(text)
    decoded = _from_base64url(text)
    if decoded is None:
        raise _bad_segment(name, segment, "base64url")
    return decoded


def _bad_segment(name: str, segment: str, wanted: str) -> InvalidRequest:
    return InvalidRequest(
        f"key column {name!r}: the path segment {segment[:60]!r} is not {wanted}",
        field=name,
        value=segment[:60],
    )


def _from_base64url(text: str) -> bytes | None:
    if _BASE64URL.fullmatch(text) is None:
        return None
    bare = text.rstrip("=")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


def condition_of_query(query: dict[str, str], limits: Limits) -> tuple[int, Any]:
    """(cond, cond_value) of ``where=`` and at most one of ``if_version=``, ``if_absent=true``,
    ``if_exists=true``."""
    condition, value = on_conflict(query, *_plain_condition(query))
    where = where_of_query(query, limits)
    return (condition, value) if where is None else (COND_WHERE, [condition, value, where])


def where_of_query(query: dict[str, str], limits: Limits) -> bytes | None:
    """The expression ``where`` holds as JSON, encoded."""
    if "where" not in query:
        return None
    return encode_expression(expression_from_json(parse_json(query["where"]), limits), limits)


def selection_of_query(query: dict[str, str], limits: Limits) -> list[Any]:
    """``[where, columns]``, empty if neither is given; ``columns`` is a JSON list of names."""
    where, columns = where_of_query(query, limits), None
    if "columns" in query:
        columns = parse_json(query["columns"])
        if not isinstance(columns, list) or not all(type(name) is str for name in columns):
            raise InvalidRequest(
                "columns must be a JSON list of column names", field="columns", value=query["columns"][:60]
            )
        if len(columns) > limits.columns_count:
            raise InvalidRequest(
                f"{len(columns)} columns, over the limit of {limits.columns_count}",
                field="columns",
                value=len(columns),
                limit=limits.columns_count,
            )
    return [] if where is None and columns is None else [where, columns]


def returning_of_query(query: dict[str, str]) -> list[int]:
    """What follows the operation on the wire if a row is to be returned: ``returning=new`` or ``old``."""
    if "returning" not in query:
        return []
    known = {"new": RETURN_NEW, "old": RETURN_OLD}
    if query["returning"] not in known:
        raise InvalidRequest(
            f"returning must be new or old, not {query['returning'][:60]!r}",
            field="returning",
            value=query["returning"][:60],
        )
    return [known[query["returning"]]]


def _plain_condition(query: dict[str, str]) -> tuple[int, int | None]:
    given = [name for name in CONDITION_PARAMETERS[:3] if name in query]
    if len(given) > 1:
        raise InvalidRequest(f"{' and '.join(given)} exclude each other", field=given[1])
    if "if_version" in query:
        return COND_IF_VERSION, version_from_json(query["if_version"], "if_version")
    if flag_of_query(query, "if_absent"):
        return COND_IF_ABSENT, None
    if flag_of_query(query, "if_exists"):
        return COND_IF_EXISTS, None
    return COND_NONE, None


def flag_of_query(query: dict[str, str], name: str) -> bool:
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise InvalidRequest(
            f"{name} must be true or false, not {value[:60]!r}", field=name, value=value[:60]
        )
    return value == "true"


def identity_of_key(idempotency_key: str, limits: Limits) -> tuple[bytes, int]:
    """(client_id, version at which it registered) of an Idempotency-Key (rule R16). The time in the key says
    how old a retry may be; so it must be there."""
    registered_ms: int | None = None
    if len(idempotency_key) <= limits.idempotency_key_chars:
        if match := _UUID7.fullmatch(idempotency_key):
            registered_ms = int(match[1] + match[2], 16)
        elif match := _STAMPED.fullmatch(idempotency_key):
            registered_ms = int(match[1])
    if not registered_ms or registered_ms >= 1 << (63 - VERSION_COUNTER_BITS):
        raise InvalidRequest(
            "Idempotency-Key must be `<unix milliseconds>-<token>` (13 digits, '-', printable ASCII) or a"
            f" UUIDv7, of at most {limits.idempotency_key_chars} characters",
            field="Idempotency-Key",
            value=ascii(idempotency_key[:80]),
            limit=limits.idempotency_key_chars,
        )
    client_id = hashlib.sha256(idempotency_key.encode()).digest()[:CLIENT_ID_BYTES]
    return client_id, registered_ms << VERSION_COUNTER_BITS


@dataclass(frozen=True, slots=True)
class ScanRange:
    """What is left to scan: start <= key < end, in one direction."""

    start: bytes
    end: bytes | None
    reverse: bool

    def is_empty(self) -> bool:
        return is_empty((self.start, self.end))

    def after(self, follows: bytes) -> ScanRange:
        """What is left, where a page said what follows it."""
        if self.reverse:
            return ScanRange(self.start, follows, True)
        return ScanRange(follows, self.end, False)

    def after_tablet(self, start: bytes, end: bytes | None) -> ScanRange | None:
        """What is left once the tablet start..end is exhausted; None if nothing is."""
        if self.reverse:
            rest = ScanRange(self.start, start, True)
        elif end is None:
            return None
        else:
            rest = ScanRange(end, self.end, False)
        return None if rest.is_empty() else rest

    def token(self, table_id: int) -> str:
        """The position as text; opaque to callers, bound to the table and the direction."""
        return seal("page", [table_id, self.reverse, self.end if self.reverse else self.start])

    def resumed(self, token: str, table_id: int) -> ScanRange:
        """This range from the token's position on, never outside of it."""
        content = unseal("page", token, "after")
        is_position = len(content) == 3 and (content[2] is None or type(content[2]) is bytes)
        if not is_position or content[:2] != [table_id, self.reverse]:
            raise InvalidRequest(
                "after must be the `next` of an answer to the same request", field="after", value=token[:60]
            )
        at: bytes | None = content[2]
        if at is None:
            return self  # nothing was read yet, and the range has no end
        if self.reverse:
            return ScanRange(self.start, at if self.end is None else min(at, self.end), True)
        return ScanRange(max(at, self.start), self.end, False)


RANGE_PARAMETERS = ("start", "start_after", "end", "end_at", "prefix", "after", "where")
SCAN_PARAMETERS = ("limit", "reverse", "columns", *RANGE_PARAMETERS)


def range_of_query(query: dict[str, str], schema: KeySchema, table_id: int) -> ScanRange:
    """What is to be scanned: ``prefix``, ``start``, ``start_after``, ``end`` and ``end_at`` are JSON lists of key
    values, ``after`` is the token of the page before."""
    keys = {
        name: _json_key(name, query[name])
        for name in ("prefix", "start", "start_after", "end", "end_at")
        if name in query
    }
    start, end = key_range(schema, keys.pop("prefix", ()), **keys)
    wanted = ScanRange(start, end, flag_of_query(query, "reverse"))
    return wanted.resumed(query["after"], table_id) if "after" in query else wanted


def limit_of_query(query: dict[str, str], limits: Limits) -> int:
    """How many rows the page may hold."""
    text = query.get("limit", str(limits.scan_page_rows_count))
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not 1 <= int(text) <= limits.scan_page_rows_count:
        raise InvalidRequest(
            f"limit must be 1 to {limits.scan_page_rows_count}, not {text[:60]!r}",
            field="limit",
            value=text[:60],
            limit=limits.scan_page_rows_count,
        )
    return int(text)


def _json_key(name: str, text: str) -> tuple[Any, ...]:
    value = from_json(parse_json(text))
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a JSON list of key values", field=name, value=text[:60])
    return tuple(value)
