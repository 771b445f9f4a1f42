"""Building conditions and filters: ``ackord.col("state") == "new"``.

    (ackord.col("state") == "new") & (ackord.col("total") >= 100)
    ~ackord.col("note").exists() | ackord.key("customer").starts_with("a")

``col`` names a column of the row, ``key`` a key column; they are apart because a row may have a column of the same
name. What each test means of missing columns and mixed types stands in ``ackord.wire.expressions``. Mind the
brackets: ``&`` and ``|`` bind closer than ``==``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from ackord.errors import InvalidRequest
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
    encode_expression,
    expression_to_json,
)
from ackord.wire.json_forms import dump_json
from ackord.wire.limits import Limits


class Expression:
    """A condition on a row, for ``where=``. Combine expressions by ``&``, ``|`` and ``~``; a Python ``and``,
    ``or``, ``not`` or ``if`` cannot see into the row and raises TypeError."""

    __slots__ = ("node",)

    def __init__(self, node: Node) -> None:
        self.node = node

    def __and__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        return Expression(And((*_flat(And, self.node), *_flat(And, other.node))))

    def __or__(self, other: Expression) -> Expression:
        if not isinstance(other, Expression):
            return NotImplemented
        return Expression(Or((*_flat(Or, self.node), *_flat(Or, other.node))))

    def __invert__(self) -> Expression:
        return Expression(Not(self.node))

    def __bool__(self) -> NoReturn:
        raise _no_truth("an expression")

    def __repr__(self) -> str:
        return f"Expression({dump_json(expression_to_json(self.node))})"


class Field:
    """A column or key column; its comparisons are expressions."""

    __slots__ = ("operand",)

    def __init__(self, operand: Column | Key) -> None:
        self.operand = operand

    def __eq__(self, other: object) -> Expression:  # type: ignore[override]
        return self._compare("==", other)

    def __ne__(self, other: object) -> Expression:  # type: ignore[override]
        return self._compare("!=", other)

    def __lt__(self, other: object) -> Expression:
        return self._compare("<", other)

    def __le__(self, other: object) -> Expression:
        return self._compare("<=", other)

    def __gt__(self, other: object) -> Expression:
        return self._compare(">", other)

    def __ge__(self, other: object) -> Expression:
        return self._compare(">=", other)

    __hash__ = None  # type: ignore[assignment]

    def exists(self) -> Expression:
        """The row has the column, whatever its value (None included)."""
        return Expression(Exists(self.operand))

    def contains(self, part: object) -> Expression:
        """A str or bytes with this part, a list with an equal item, a map with this name."""
        return Expression(Contains(self.operand, _operand(part)))

    def starts_with(self, prefix: object) -> Expression:
        """A str or bytes that begins so."""
        return Expression(StartsWith(self.operand, _operand(prefix)))

    def _compare(self, op: str, other: object) -> Expression:
        return Expression(Compare(op, self.operand, _operand(other)))

    def __bool__(self) -> NoReturn:
        raise _no_truth("a column")

    def __repr__(self) -> str:
        return f"{'key' if isinstance(self.operand, Key) else 'col'}({self.operand.name!r})"


def col(name: str) -> Field:
    """A column of the row."""
    return Field(Column(name))


def key(name: str) -> Field:
    """A key column."""
    return Field(Key(name))


def encode_where(where: Any, limits: Limits) -> bytes | None:
    """As on the wire; InvalidRequest if it is no expression or breaks a limit."""
    if where is None:
        return None
    if not isinstance(where, Expression):
        hint = '; write for example ackord.col("state") == "new"'
        if isinstance(where, Field):
            hint = "; compare the column, or ask whether it .exists()"
        raise InvalidRequest(
            f"where takes an expression, not {type(where).__name__}{hint}",
            field="where",
            value=type(where).__name__,
        )
    return encode_expression(where.node, limits)


def _operand(value: object) -> Operand:
    if isinstance(value, Field):
        return value.operand
    if isinstance(value, Expression):
        raise TypeError("an expression is not a value: compare columns and constants, and combine by & | ~")
    return Value(value)


def _flat(kind: type[And] | type[Or], node: Node) -> tuple[Node, ...]:
    """Chains of one operator stay one level deep."""
    return node.parts if isinstance(node, And | Or) and isinstance(node, kind) else (node,)


def _no_truth(what: str) -> TypeError:
    return TypeError(
        f"{what} has no truth value here, only at the server: write & | ~ in place of and, or, not, with brackets "
        "around comparisons, and (a < x) & (x < b) in place of a < x < b"
    )
