"""Key ranges, and tokens that carry a position in one from process to process.

A range is (start, end) of encoded keys: start <= key < end, an end of None is no bound. Its limits are given as key
values, whole keys or the first few columns of them; values of the first columns alone stand for all keys that begin
with them.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import KeySchema, after_prefix

KeyRange = tuple[bytes, bytes | None]

EMPTY: Final[KeyRange] = (b"", b"")
TOKEN_VERSION: Final = 1
TOKEN_CHARS_MAX: Final = 512 * 1024


def key_range(
    schema: KeySchema,
    prefix: Any = (),
    *,
    start: Any = None,
    start_after: Any = None,
    end: Any = None,
    end_at: Any = None,
) -> KeyRange:
    """The keys that begin with ``prefix``, from ``start`` (inclusive) or ``start_after`` (exclusive) on, up to
    ``end`` (exclusive) or ``end_at`` (inclusive). InvalidRequest if both of a pair are given."""
    if start is not None and start_after is not None:
        raise InvalidRequest("start and start_after exclude each other", field="start_after")
    if end is not None and end_at is not None:
        raise InvalidRequest("end and end_at exclude each other", field="end_at")
    low, high = schema.prefix_range(prefix)
    if start is not None:
        low = max(low, schema.encode_prefix(start))
    if start_after is not None:
        above = after_prefix(schema.encode_prefix(start_after))
        if above is None:
            return EMPTY
        low = max(low, above)
    bound = None
    if end is not None:
        bound = schema.encode_prefix(end)
    elif end_at is not None:
        bound = after_prefix(schema.encode_prefix(end_at))
    return low, least(high, bound)


def least(a: bytes | None, b: bytes | None) -> bytes | None:
    """The lower of two ends."""
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)


def is_empty(wanted: KeyRange) -> bool:
    return wanted[1] is not None and wanted[0] >= wanted[1]


def seal(kind: str, content: list[Any]) -> str:
    """A token: text that ``unseal`` opens again, anywhere. Not secret, but it shows if it was changed."""
    body = packb([TOKEN_VERSION, kind, *content])
    sealed = zlib.crc32(body).to_bytes(4, "big") + body
    return base64.urlsafe_b64encode(sealed).decode("ascii").rstrip("=")


def unseal(kind: str, token: Any, field: str = "token") -> list[Any]:
    """What was sealed; InvalidRequest if it is no token of this kind and version."""
    if type(token) is not str or len(token) > TOKEN_CHARS_MAX:
        raise _refused(field, "it is not a token", token)
    try:
        sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        content = unpackb(sealed[4:])
    except (binascii.Error, ValueError):
        raise _refused(field, "it is not a token", token) from None
    if (
        zlib.crc32(sealed[4:]).to_bytes(4, "big") != sealed[:4]
        or type(content) is not list
        or len(content) < 2
    ):
        raise _refused(field, "it is damaged", token)
    if content[0] != TOKEN_VERSION:
        raise _refused(field, f"it has version {ascii(content[0])[:20]}, not {TOKEN_VERSION}", token)
    if content[1] != kind:
        raise _refused(field, f"it is not of a {kind}", token)
    return content[2:]


def _refused(field: str, why: str, token: Any) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: {why}; give what an earlier answer of the same scan gave",
        field=field,
        value=ascii(token)[:60],
    )
