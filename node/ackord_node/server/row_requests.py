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
from ackord.wire.json_forms import from_json, parse_json, version_from_json
from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import (
    CLIENT_ID_BYTES,
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_NONE,
    VERSION_COUNTER_BITS,
)

CONDITION_PARAMETERS = ("if_version", "if_absent", "if_exists")
TOKEN_BYTES_MAX = 64 * 1024

_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_STAMPED = re.compile(r"([0-9]{13})-([!-~]+)")
_INT = re.compile(r"-?[0-9]{1,20}")
_BASE64URL = re.compile(r"[A-Za-z0-9_-]*={0,2}")


def key_of_path(raw_path: str, schema: KeySchema) -> bytes:
    """The encoded key that ``/v1/tables/T/rows/K1/K2`` names: int as decimal, str as text, bytes as
    base64url, each percent-encoded."""
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
    return schema.encode(
        tuple(
            _path_value(name, kind, segment)
            for (name, kind), segment in zip(schema.columns, segments, strict=True)
        )
    )


def _path_value(name: str, kind: str, segment: str) -> Any:
    raw = unquote_to_bytes(segment)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise _bad_segment(name, segment, "percent-encoded UTF-8") from None
    if kind == "str":
        return text
    if kind == "int":
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


def condition_of_query(query: dict[str, str]) -> tuple[int, int | None]:
    """(cond, cond_value) of ``if_version=``, ``if_absent=true`` or ``if_exists=true``; at most one."""
    given = [name for name in CONDITION_PARAMETERS if name in query]
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
        return self.end is not None and self.start >= self.end

    def after_row(self, key: bytes) -> ScanRange:
        """What is left once the row with this key was delivered."""
        if self.reverse:
            return ScanRange(self.start, key, True)
        return ScanRange(key + b"\x00", self.end, False)

    def after_tablet(self, start: bytes, end: bytes | None) -> ScanRange | None:
        """What is left once the tablet start..end is exhausted; None if nothing is."""
        if self.reverse:
            rest = ScanRange(self.start, start, True)
        elif end is None:
            return None
        else:
            rest = ScanRange(end, self.end, False)
        return None if rest.is_empty() else rest

    def token(self) -> str:
        """The position as text; opaque to callers, bound to the direction."""
        position = b"r" + (self.end or b"") if self.reverse else b"f" + self.start
        return base64.urlsafe_b64encode(position).decode().rstrip("=")

    def resumed(self, token: str) -> ScanRange:
        """This range from the token's position on, never outside of it."""
        position = _from_base64url(token) if len(token) <= TOKEN_BYTES_MAX else None
        if not position or position[:1] != (b"r" if self.reverse else b"f"):
            raise InvalidRequest(
                "after must be the `next` of an answer to the same scan", field="after", value=token[:60]
            )
        at = position[1:]
        if self.reverse:
            if not at:
                return self  # nothing was read yet, and the range has no end
            return ScanRange(self.start, at if self.end is None else min(at, self.end), True)
        return ScanRange(max(at, self.start), self.end, False)


SCAN_PARAMETERS = ("limit", "reverse", "start", "end", "prefix", "after")


def scan_of_query(query: dict[str, str], schema: KeySchema, limits: Limits) -> tuple[ScanRange, int]:
    """(what to scan, rows at most). ``start``, ``end`` and ``prefix`` are JSON lists of key values."""
    start, end = b"", None
    if "prefix" in query:
        if "start" in query or "end" in query:
            raise InvalidRequest("prefix and start or end exclude each other", field="prefix")
        start, end = schema.prefix_range(_json_key("prefix", query["prefix"]))
    if "start" in query:
        start = schema.encode_prefix(_json_key("start", query["start"]))
    if "end" in query:
        end = schema.encode_prefix(_json_key("end", query["end"]))
    wanted = ScanRange(start, end, flag_of_query(query, "reverse"))
    if "after" in query:
        wanted = wanted.resumed(query["after"])
    text = query.get("limit", str(limits.scan_page_rows_count))
    is_number = text.isascii() and text.isdigit() and len(text) <= 10
    if not is_number or not 1 <= int(text) <= limits.scan_page_rows_count:
        raise InvalidRequest(
            f"limit must be 1 to {limits.scan_page_rows_count}, not {text[:60]!r}",
            field="limit",
            value=text[:60],
            limit=limits.scan_page_rows_count,
        )
    return wanted, int(text)


def _json_key(name: str, text: str) -> tuple[Any, ...]:
    value = from_json(parse_json(text))
    if not isinstance(value, list):
        raise InvalidRequest(f"{name} must be a JSON list of key values", field=name, value=text[:60])
    return tuple(value)
