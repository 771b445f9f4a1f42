"""The rows of a ``write_many``: what to do, to which key, on which condition. Values only; nothing is sent
before ``Table.write_many`` takes them. Not to be changed once made; not frozen either, which would make each of them
three times as dear as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.expressions import Expression, encode_where
from ackord.routing import TableRoute
from ackord.wire.extras import encode_extras
from ackord.wire.keys import is_auto_key
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import (
    COND_IF_ABSENT,
    COND_IF_EXISTS,
    COND_IF_VERSION,
    COND_MERGE,
    COND_NONE,
    COND_WHERE,
    KIND_DELETE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_UPDATE,
    RETURN_NEW,
    RETURN_OLD,
)
from ackord.wire.values import INT64_MAX, encode_columns, encode_update

_RETURNING: Final = {"new": RETURN_NEW, "old": RETURN_OLD}

# kind, body, condition, condition's value: the part of a write that its key and identity are added to
Encoded = tuple[int, bytes | None, int, Any]


@dataclass(slots=True, unsafe_hash=True)
class Put:
    """Replaces the whole row, or creates it. At most one of the ``if_`` conditions, and ``where`` beside it."""

    key: Any
    columns: Mapping[str, Any]
    if_version: int | None = field(default=None, kw_only=True)
    if_absent: bool = field(default=False, kw_only=True)
    if_exists: bool = field(default=False, kw_only=True)
    where: Expression | None = field(default=None, kw_only=True)
    on_conflict: str | None = field(default=None, kw_only=True)
    ttl: float | None = field(default=None, kw_only=True)
    timestamp: int | Mapping[str, int] | None = field(default=None, kw_only=True)

    def encode(self, limits: Limits) -> Encoded:
        body = encode_columns(self.columns, limits)
        if self._is_plain:
            return KIND_PUT, body, COND_NONE, None
        condition, value = encode_condition(
            self.if_version, self.if_absent, self.if_exists, self.where, limits, self.on_conflict
        )
        if self.ttl is not None or self.timestamp is not None:
            body = encode_extras(body, self.ttl, self.timestamp)
        return KIND_PUT, body, condition, value

    @property
    def _is_plain(self) -> bool:
        """Whether there is nothing but the row."""
        if self.if_version is not None or self.if_absent or self.if_exists or self.where is not None:
            return False
        return self.on_conflict is None and self.ttl is None and self.timestamp is None


@dataclass(slots=True, unsafe_hash=True)
class Update:
    """Sets and deletes single columns, adds to numbers (an absent one begins as the amount) and appends to lists (an
    absent one begins empty); creates the row if there is none. Conditions as in Put."""

    key: Any
    set: Mapping[str, Any] | None = None
    delete: Sequence[str] = field(default=(), kw_only=True)
    increment: Mapping[str, int | float] | None = field(default=None, kw_only=True)
    append: Mapping[str, Sequence[Any]] | None = field(default=None, kw_only=True)
    if_version: int | None = field(default=None, kw_only=True)
    if_absent: bool = field(default=False, kw_only=True)
    if_exists: bool = field(default=False, kw_only=True)
    where: Expression | None = field(default=None, kw_only=True)
    on_conflict: str | None = field(default=None, kw_only=True)
    ttl: float | None = field(default=None, kw_only=True)
    timestamp: int | Mapping[str, int] | None = field(default=None, kw_only=True)
    delete_cells: Mapping[str, Sequence[int]] | None = field(default=None, kw_only=True)

    def encode(self, limits: Limits) -> Encoded:
        condition, value = encode_condition(
            self.if_version, self.if_absent, self.if_exists, self.where, limits, self.on_conflict
        )
        body = encode_update(self.set, self.delete, self.increment, limits, self.append)
        if self.ttl is not None or self.timestamp is not None or self.delete_cells:
            body = encode_extras(body, self.ttl, self.timestamp, self.delete_cells)
        return KIND_UPDATE, body, condition, value


@dataclass(slots=True, unsafe_hash=True)
class Delete:
    """Deletes the row; without a condition it is no error if there is none."""

    key: Any
    if_version: int | None = field(default=None, kw_only=True)
    if_exists: bool = field(default=False, kw_only=True)
    where: Expression | None = field(default=None, kw_only=True)

    def encode(self, limits: Limits) -> Encoded:
        condition, value = encode_condition(self.if_version, False, self.if_exists, self.where, limits)
        return KIND_DELETE, None, condition, value


Operation = Put | Update | Delete


def conflict_condition(if_version: int | None, has_other: bool, on_conflict: str) -> tuple[int, Any]:
    """What ``if_version`` becomes with ``on_conflict``: "latest" writes whatever the row is by now, "merge" merges."""
    if on_conflict not in ("latest", "merge"):
        raise InvalidRequest(
            f'on_conflict={ascii(on_conflict)[:40]} is neither "latest" nor "merge"',
            field="on_conflict",
            value=ascii(on_conflict)[:40],
            limit=["latest", "merge"],
        )
    if if_version is None or has_other:
        raise InvalidRequest(
            "on_conflict says what to do when if_version loses: it needs if_version, and no other if_",
            field="on_conflict",
        )
    _, base = encode_condition(if_version, False, False, None, DEFAULT_LIMITS)
    return (COND_NONE, None) if on_conflict == "latest" else (COND_MERGE, base)


def for_auto(body: Encoded) -> Encoded:
    """The same for a key that ends with AUTO; InvalidRequest if that cannot be."""
    kind, columns, condition, value = body
    if kind != KIND_PUT or condition != COND_NONE:
        raise InvalidRequest(
            "a key that ends with AUTO makes a new row: only a put without a condition can do that",
            field="key",
        )
    return KIND_PUT_AUTO, columns, condition, value


def encode_condition(
    if_version: int | None,
    if_absent: bool,
    if_exists: bool,
    where: Expression | None,
    limits: Limits,
    on_conflict: str | None = None,
) -> tuple[int, Any]:
    """(condition, its value) as on the wire; InvalidRequest for more than one beside ``where``, or a wrong
    one."""
    if on_conflict is not None:
        condition = conflict_condition(if_version, if_absent or if_exists, on_conflict)
        return condition if where is None else (COND_WHERE, [*condition, encode_where(where, limits)])
    if where is not None:
        plain = encode_condition(if_version, if_absent, if_exists, None, limits)
        return COND_WHERE, [*plain, encode_where(where, limits)]
    if if_version is None and not if_absent and not if_exists:
        return COND_NONE, None
    if (if_version is not None) + bool(if_absent) + bool(if_exists) > 1:
        raise InvalidRequest(
            "at most one of if_version, if_absent and if_exists may be given", field="condition", limit=1
        )
    if if_version is not None:
        if type(if_version) is not int or not 0 < if_version <= INT64_MAX:
            raise InvalidRequest(
                f"if_version={ascii(if_version)[:60]} is not a version (an int that a write or row returned)",
                field="if_version",
                value=ascii(if_version)[:60],
            )
        return COND_IF_VERSION, if_version
    return (COND_IF_ABSENT, None) if if_absent else (COND_IF_EXISTS, None)


def encode_returning(returning: Any) -> int:
    if returning not in _RETURNING:
        raise InvalidRequest(
            f'returning={ascii(returning)[:40]} is neither "new" nor "old"',
            field="returning",
            value=ascii(returning)[:40],
            limit=list(_RETURNING),
        )
    return _RETURNING[returning]


def encode_write(table: TableRoute, operation: Operation, limits: Limits) -> tuple[bytes, Encoded]:
    """The key and the rest of a write; of a key that ends with AUTO the columns before."""
    encoded = table.key.fast(operation.key)
    if encoded is not None:
        return encoded, operation.encode(limits)
    try:
        return table.key.encode(operation.key), operation.encode(limits)
    except InvalidRequest:
        if not is_auto_key(operation.key):
            raise
    return table.key.encode_auto(operation.key), for_auto(operation.encode(limits))


def key_tuple(key: Any) -> tuple[Any, ...]:
    if type(key) is tuple:
        return key
    return tuple(key) if type(key) is list else (key,)
