"""Conditions as text: ``state == "new" and total >= 100``, for ``--where``.

The words are Python's: comparisons (also ``1 < n < 5``), ``and``, ``or``, ``not``, brackets, and ``"red" in tags`` for
contains. A bare name is a column, ``col("a b")`` one whose name is no word, ``key("customer")`` a key column;
``exists(x)``, ``contains(x, y)`` and ``starts_with(x, y)`` are the tests. Constants are those of Python and JSON.
"""

from __future__ import annotations

import ast
from typing import Any, Final

from ackord.errors import InvalidRequest
from ackord.expressions import Expression
from ackord.wire.expressions import (
    And,
    Column,
    Compare,
    Contains,
    Exists,
    Key,
    Node,
    Not,
    Operand,
    Or,
    StartsWith,
    Value,
)

_OPERATORS: Final[dict[type[ast.cmpop], str]] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_JSON_NAMES: Final = {"true": True, "false": False, "null": None}


def parse_where(text: str | None) -> Expression | None:
    """The expression of the text; InvalidRequest says what cannot be read."""
    if text is None:
        return None
    try:
        return Expression(_node(ast.parse(text.strip(), mode="eval").body, text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _refused(text, getattr(error, "msg", None) or "it cannot be read") from None


def _node(item: ast.expr, text: str) -> Node:
    if isinstance(item, ast.BoolOp):
        parts = tuple(_node(part, text) for part in item.values)
        return And(parts) if isinstance(item.op, ast.And) else Or(parts)
    if isinstance(item, ast.UnaryOp) and isinstance(item.op, ast.Not):
        return Not(_node(item.operand, text))
    if isinstance(item, ast.Compare):
        sides = [item.left, *item.comparators]
        tests = [
            _compare(op, left, right, text)
            for op, left, right in zip(item.ops, sides, item.comparators, strict=False)
        ]
        return tests[0] if len(tests) == 1 else And(tuple(tests))
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and not item.keywords:
        operands = [_operand(argument, text) for argument in item.args]
        match item.func.id, operands:
            case "exists", [one]:
                return Exists(one)
            case "contains", [whole, part]:
                return Contains(whole, part)
            case "starts_with", [whole, prefix]:
                return StartsWith(whole, prefix)
    raise _refused(text, f"{ast.unparse(item)[:60]!r} is no condition")


def _compare(op: ast.cmpop, left: ast.expr, right: ast.expr, text: str) -> Node:
    if isinstance(op, ast.In):
        return Contains(_operand(right, text), _operand(left, text))
    if isinstance(op, ast.NotIn):
        return Not(Contains(_operand(right, text), _operand(left, text)))
    word = _OPERATORS.get(type(op))
    if word is None:
        raise _refused(text, "write == or != in place of is")
    return Compare(word, _operand(left, text), _operand(right, text))


def _operand(item: ast.expr, text: str) -> Operand:
    if isinstance(item, ast.Name):
        return Value(_JSON_NAMES[item.id]) if item.id in _JSON_NAMES else Column(item.id)
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in ("col", "key"):
        match item.args:
            case [ast.Constant(value=str(name))] if not item.keywords:
                return Column(name) if item.func.id == "col" else Key(name)
    try:
        value: Any = ast.literal_eval(item)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise _refused(text, f"{ast.unparse(item)[:60]!r} is neither a column nor a constant") from None
    return Value(value)


def _refused(text: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f'--where {ascii(text)[:80]}: {why}; write for example: state == "new" and total >= 100',
        field="where",
        value=ascii(text)[:80],
    )
