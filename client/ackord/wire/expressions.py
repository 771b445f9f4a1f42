"""Conditions and filters: a small typed expression language, judged at the server.

An expression is a tree of the classes below. The same tree has a msgpack form (on the wire), a JSON form (HTTP,
command line) and a compiled form (``compile_expression``). It is made by ``ackord.col`` and ``ackord.key``.

Values have a kind: null, bool, number (int and float), str, bytes, list, map. Three rules decide every case:

1. Values of different kinds are never equal and have no order. Ints and floats are one kind and compare by
   their exact numeric value; a bool is no number; NaN equals nothing. ``<``, ``<=``, ``>`` and ``>=`` hold only of
   two numbers, two strs (by code point) or two bytes. Lists and maps are equal if all they hold is.
2. A missing column equals nothing, has no order, contains nothing and does not exist.
3. ``!=`` is the exact opposite of ``==``, so it holds of a missing column and of another kind; ``~`` is the exact
   opposite of what it stands before. There is no third truth value.

A row that does not exist is judged as one without columns; its key columns have the values of the key asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb, unpackb
from ackord.wire.json_forms import from_json, to_json
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import row_columns
from ackord.wire.values import check_name, check_value, decode_columns

# ------------------------------------------------------------------------------------------ the tree


@dataclass(frozen=True, slots=True)
class Column:
    """The value of a column of the row."""

    name: str


@dataclass(frozen=True, slots=True)
class Key:
    """The value of a key column."""

    name: str


@dataclass(frozen=True, slots=True)
class Value:
    """A constant."""

    value: Any


Operand = Column | Key | Value


@dataclass(frozen=True, slots=True)
class Compare:
    """``op`` is one of COMPARISONS."""

    op: str
    left: Operand
    right: Operand


@dataclass(frozen=True, slots=True)
class Exists:
    operand: Operand


@dataclass(frozen=True, slots=True)
class Contains:
    """A str or bytes that holds the other as a part, a list that holds an equal item, a map that has the
    name."""

    whole: Operand
    part: Operand


@dataclass(frozen=True, slots=True)
class StartsWith:
    """A str or bytes that begins with the other."""

    whole: Operand
    prefix: Operand


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Node


Node = Compare | Exists | Contains | StartsWith | And | Or | Not

COMPARISONS: Final = ("==", "!=", "<", "<=", ">", ">=")

# What a node is called in the JSON form; its number in the msgpack form never changes meaning.
_NUMBERS: Final = {
    "and": 1,
    "or": 2,
    "not": 3,
    "==": 4,
    "!=": 5,
    "<": 6,
    "<=": 7,
    ">": 8,
    ">=": 9,
    "exists": 10,
    "contains": 11,
    "starts_with": 12,
}
_WORDS: Final = {number: word for word, number in _NUMBERS.items()}
_COLUMN, _KEY, _VALUE = 20, 21, 22

# -------------------------------------------------------------------------------------- msgpack form


def encode_expression(node: Node, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """The expression as bytes, checked; InvalidRequest names the field, the value and the limit."""
    check_expression(node, limits)
    try:
        blob = packb(_to_list(node))
    except UnicodeEncodeError as error:
        raise _bad(f"a lone surrogate, which UTF-8 cannot express: {ascii(error.object)[:60]}") from None
    _check_bytes(blob, limits)
    return blob


def decode_expression(blob: Any, limits: Limits = DEFAULT_LIMITS) -> Node:
    """The expression of bytes from a client that is not trusted."""
    if type(blob) is not bytes:
        raise _bad(f"an expression is bytes, not {type(blob).__name__}")
    _check_bytes(blob, limits)
    try:
        item = unpackb(blob)
    except ValueError as error:
        raise _bad(str(error)) from None
    node = _Reader(limits).node(item, 1)
    check_expression(node, limits)
    return node


def check_expression(node: Node, limits: Limits = DEFAULT_LIMITS) -> None:
    """InvalidRequest if it is too large or too deep, or a name or constant is none that a row can have."""
    count = 0
    for item, depth in _walk(node):
        count += 1
        if depth > limits.expression_depth_count:
            raise _too_deep(limits)
        if isinstance(item, Column | Key):
            check_name(item.name, limits)
        elif isinstance(item, Value):
            check_value("where", item.value, 1, limits)
    if count > limits.expression_nodes_count:
        raise InvalidRequest(
            f"where has {count} parts (operators, columns, constants), over the limit of "
            f"{limits.expression_nodes_count}",
            field="where",
            value=count,
            limit=limits.expression_nodes_count,
        )


def _walk(node: Node) -> Iterator[tuple[Node | Operand, int]]:
    todo: list[tuple[Node | Operand, int]] = [(node, 1)]
    while todo:
        item, depth = todo.pop()
        yield item, depth
        todo.extend((part, depth + 1) for part in _parts(item))


def _parts(item: Node | Operand) -> tuple[Node | Operand, ...]:
    if isinstance(item, And | Or):
        return item.parts
    if isinstance(item, Not):
        return (item.part,)
    if isinstance(item, Compare):
        return item.left, item.right
    if isinstance(item, Exists):
        return (item.operand,)
    if isinstance(item, Contains):
        return item.whole, item.part
    if isinstance(item, StartsWith):
        return item.whole, item.prefix
    return ()


def _word(node: Node) -> str:
    if isinstance(node, Compare):
        return node.op
    return {
        And: "and",
        Or: "or",
        Not: "not",
        Exists: "exists",
        Contains: "contains",
        StartsWith: "starts_with",
    }[type(node)]


def _to_list(item: Node | Operand) -> list[Any]:
    if isinstance(item, Value):
        return [_VALUE, item.value]
    if isinstance(item, Column | Key):
        return [_KEY if isinstance(item, Key) else _COLUMN, item.name]
    return [_NUMBERS[_word(item)], *map(_to_list, _parts(item))]


class _Reader:
    """Reads the msgpack form, which nobody vouches for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def node(self, item: Any, depth: int) -> Node:
        if depth > self._limits.expression_depth_count:
            raise _too_deep(self._limits)
        if type(item) is not list or not item or type(item[0]) is not int:
            raise _bad(f"a part of it is a {type(item).__name__}, not [operator, ...]")
        word = _WORDS.get(item[0])
        if word is None:
            raise _bad(f"unknown operator {item[0]}")
        if word in ("and", "or", "not"):
            return _build(word, [self.node(part, depth + 1) for part in item[1:]])
        return _build(word, [self._operand(part) for part in item[1:]])

    def _operand(self, item: Any) -> Operand:
        if type(item) is not list or len(item) != 2:
            raise _bad(f"an operand is [kind, name or value], not a {type(item).__name__}")
        kind, content = item
        if kind == _VALUE:
            return Value(content)
        if kind in (_COLUMN, _KEY) and type(content) is str:
            return Column(content) if kind == _COLUMN else Key(content)
        raise _bad(f"unknown operand {ascii(kind)[:40]}")


def _build(word: str, parts: list[Any]) -> Node:
    """The node of an operator and its parts; InvalidRequest if their number is wrong."""
    count = {"not": 1, "exists": 1}.get(word, 2)
    if word in ("and", "or"):
        if not parts:
            raise _bad(f"{word!r} takes one or more expressions")
        return And(tuple(parts)) if word == "and" else Or(tuple(parts))
    if len(parts) != count:
        raise _bad(f"{word!r} takes {count} operand{'s' * (count > 1)}, not {len(parts)}")
    if word == "not":
        return Not(parts[0])
    if word == "exists":
        return Exists(parts[0])
    if word == "contains":
        return Contains(parts[0], parts[1])
    if word == "starts_with":
        return StartsWith(parts[0], parts[1])
    return Compare(word, parts[0], parts[1])


# ----------------------------------------------------------------------------------------- JSON form


def expression_to_json(node: Node) -> Any:
    """``["==", {"col": "state"}, "new"]``, ``["and", [...], [...]]``: what ``expression_from_json`` reads."""
    if isinstance(node, And | Or | Not):
        parts = (node.part,) if isinstance(node, Not) else node.parts
        return [_word(node), *map(expression_to_json, parts)]
    return [_word(node), *map(_operand_to_json, _parts(node))]


def expression_from_json(item: Any, limits: Limits = DEFAULT_LIMITS) -> Node:
    """The expression of parsed JSON: a list of an operator's word and its parts. An operand is ``{"col": name}``,
    ``{"key": name}``, ``{"value": constant}``, or a constant that is no map as it stands."""
    node = _from_json(item, 1, limits)
    check_expression(node, limits)
    return node


def _from_json(item: Any, depth: int, limits: Limits) -> Node:
    if depth > limits.expression_depth_count:
        raise _too_deep(limits)
    if not isinstance(item, list) or not item or type(item[0]) is not str or item[0] not in _NUMBERS:
        raise _bad(f'write ["==", {{"col": "state"}}, "new"]; operators are {" ".join(_NUMBERS)}', item)
    word = item[0]
    if word in ("and", "or", "not"):
        return _build(word, [_from_json(part, depth + 1, limits) for part in item[1:]])
    return _build(word, [_operand_from_json(part) for part in item[1:]])


def _operand_to_json(item: Any) -> Any:
    if isinstance(item, Value):
        return {"value": to_json(item.value)} if isinstance(item.value, dict) else to_json(item.value)
    return {"key" if isinstance(item, Key) else "col": item.name}


def _operand_from_json(item: Any) -> Operand:
    if isinstance(item, dict) and len(item) == 1:
        ((kind, content),) = item.items()
        if kind in ("col", "key"):
            if not isinstance(content, str):
                raise _bad(f"{kind!r} takes a column's name", content)
            return Column(content) if kind == "col" else Key(content)
        if kind == "value":
            return Value(from_json(content))
    if isinstance(item, dict) and not (len(item) == 1 and next(iter(item)).startswith("$")):
        raise _bad('a map is no operand; write {"col": name}, {"key": name} or {"value": {...}}', item)
    return Value(from_json(item))


# ---------------------------------------------------------------------------------------- evaluation

_MISSING: Final = object()
_ORDER: Final = {int: 1, float: 1, str: 2, bytes: 3}  # kinds that have an order

Getter = Callable[[Mapping[str, Any], tuple[Any, ...]], Any]
Judge = Callable[[Mapping[str, Any], tuple[Any, ...]], bool]


@dataclass(frozen=True, slots=True)
class Filter:
    """A compiled expression: ``judge(columns, key values)``; what it does not need may be empty."""

    judge: Judge
    needs_columns: bool
    needs_key: bool
    schema: KeySchema | None

    def holds(self, key: bytes, row: bytes | None) -> bool:
        """Of a stored row, or of a key without one."""
        columns = decode_columns(row_columns(row)) if row is not None and self.needs_columns else {}
        values = self.schema.decode(key) if self.needs_key and self.schema is not None else ()
        return self.judge(columns, values)


def compile_expression(node: Node, schema: KeySchema | None = None) -> Filter:
    """InvalidRequest if it names a key column that the table does not have."""
    names = [name for name, _ in schema.columns] if schema is not None else []
    kinds = {type(item) for item, _ in _walk(node)}
    return Filter(_judge(node, names), Column in kinds, Key in kinds, schema)


@lru_cache(maxsize=256)
def compiled(blob: bytes, schema: KeySchema | None, limits: Limits = DEFAULT_LIMITS) -> Filter:
    """The filter of encoded bytes from a client that is not trusted; the same bytes are read once."""
    return compile_expression(decode_expression(blob, limits), schema)


def is_equal(a: Any, b: Any) -> bool:
    """Rule 1: one kind and one value, all the way down."""
    kind, other = type(a), type(b)
    if kind is not other:
        return ((kind is int and other is float) or (kind is float and other is int)) and bool(a == b)
    if kind is list:
        return len(a) == len(b) and all(map(is_equal, a, b))
    if kind is dict:
        return len(a) == len(b) and all(name in b and is_equal(value, b[name]) for name, value in a.items())
    return bool(a == b)


def _judge(node: Node, key_names: list[str]) -> Judge:
    if isinstance(node, And):
        parts = [_judge(part, key_names) for part in node.parts]
        return lambda columns, key: all(part(columns, key) for part in parts)
    if isinstance(node, Or):
        parts = [_judge(part, key_names) for part in node.parts]
        return lambda columns, key: any(part(columns, key) for part in parts)
    if isinstance(node, Not):
        inner = _judge(node.part, key_names)
        return lambda columns, key: not inner(columns, key)
    if isinstance(node, Exists):
        get = _getter(node.operand, key_names)
        return lambda columns, key: get(columns, key) is not _MISSING
    if isinstance(node, Contains):
        return _pair(node.whole, node.part, _contains, key_names)
    if isinstance(node, StartsWith):
        return _pair(node.whole, node.prefix, _starts_with, key_names)
    return _pair(node.left, node.right, _TESTS[node.op], key_names)


def _pair(left: Operand, right: Operand, test: Callable[[Any, Any], bool], key_names: list[str]) -> Judge:
    if isinstance(left, Column) and isinstance(right, Value):  # the common form, a call less for each row
        name, value = left.name, right.value
        return lambda columns, key: test(columns.get(name, _MISSING), value)
    get, other = _getter(left, key_names), _getter(right, key_names)
    return lambda columns, key: test(get(columns, key), other(columns, key))


def _getter(operand: Operand, key_names: list[str]) -> Getter:
    if isinstance(operand, Value):
        value = operand.value
        return lambda columns, key: value
    if isinstance(operand, Column):
        name = operand.name
        return lambda columns, key: columns.get(name, _MISSING)
    if operand.name not in key_names:
        known = ", ".join(key_names)
        raise InvalidRequest(
            f"where: {ascii(operand.name)[:80]} is no key column of the table (those are: {known})",
            field="where",
            value=ascii(operand.name)[:80],
            limit=key_names,
        )
    place = key_names.index(operand.name)
    return lambda columns, key: key[place]


def _has_order(a: Any, b: Any) -> bool:
    kind = _ORDER.get(type(a))
    return kind is not None and kind == _ORDER.get(type(b))


def _equals(a: Any, b: Any) -> bool:
    return a is not _MISSING and b is not _MISSING and is_equal(a, b)


def _contains(whole: Any, part: Any) -> bool:
    kind = type(whole)
    if kind is list:
        return part is not _MISSING and any(is_equal(item, part) for item in whole)
    if kind is str or kind is bytes:
        return type(part) is kind and part in whole
    return kind is dict and type(part) is str and part in whole


def _starts_with(whole: Any, prefix: Any) -> bool:
    kind = type(whole)
    return (kind is str or kind is bytes) and type(prefix) is kind and whole.startswith(prefix)


_TESTS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "==": _equals,
    "!=": lambda a, b: not _equals(a, b),
    "<": lambda a, b: _has_order(a, b) and a < b,
    "<=": lambda a, b: _has_order(a, b) and a <= b,
    ">": lambda a, b: _has_order(a, b) and a > b,
    ">=": lambda a, b: _has_order(a, b) and a >= b,
}

# -------------------------------------------------------------------------------------------- errors


def _check_bytes(blob: bytes, limits: Limits) -> None:
    if len(blob) > limits.expression_bytes:
        raise InvalidRequest(
            f"where takes {len(blob)} bytes, over the limit of {limits.expression_bytes}",
            field="where",
            value=len(blob),
            limit=limits.expression_bytes,
        )


def _too_deep(limits: Limits) -> InvalidRequest:
    return InvalidRequest(
        f"where is nested deeper than {limits.expression_depth_count} operators",
        field="where",
        value=limits.expression_depth_count + 1,
        limit=limits.expression_depth_count,
    )


def _bad(message: str, value: Any = None) -> InvalidRequest:
    detail = {} if value is None else {"value": ascii(value)[:80]}
    return InvalidRequest(f"where: {message}", field="where", **detail)
