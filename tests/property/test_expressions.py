"""Expressions: evaluation against a plain reference, and the three forms against each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ackord
from ackord.errors import InvalidRequest
from ackord.expressions import Expression, Field, encode_where
from ackord.wire import expressions as x
from ackord.wire.frames import packb
from ackord.wire.json_forms import dump_json, parse_json
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import join_row
from ackord.wire.values import encode_columns

SCHEMA = KeySchema((("customer", "str"), ("order", "int")))
NAMES = ["a", "b", "c"]

scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 2**53, 2**53 + 1, -(2**63), 2**63 - 1]),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, math.nan, math.inf, -math.inf, 2.0**53, 2.0**63]),
    st.text("ab", max_size=3),
    st.binary(max_size=2),
)
value = st.recursive(
    scalar,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text("ab", max_size=1), v, max_size=2),
    max_leaves=4,
)
operand = st.one_of(
    st.builds(x.Column, st.sampled_from(NAMES)),
    st.builds(x.Key, st.sampled_from(["customer", "order"])),
    st.builds(x.Value, value),
)
leaf = st.one_of(
    st.builds(x.Compare, st.sampled_from(x.COMPARISONS), operand, operand),
    st.builds(x.Exists, operand),
    st.builds(x.Contains, operand, operand),
    st.builds(x.StartsWith, operand, operand),
)
node: st.SearchStrategy[x.Node] = st.recursive(
    leaf,
    lambda n: st.one_of(
        st.builds(x.Not, n),
        st.builds(x.And, st.lists(n, min_size=1, max_size=3).map(tuple)),
        st.builds(x.Or, st.lists(n, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)
columns = st.dictionaries(st.sampled_from(NAMES), value, max_size=3)
key = st.tuples(st.text("ab", max_size=3), st.sampled_from([0, 1, 2, 2**53 + 1]))

# ------------------------------------------------------------------------------------- the reference

KINDS = {type(None): "null", bool: "bool", int: "number", float: "number", str: "str", bytes: "bytes"}


def same(a: Any, b: Any) -> bool:
    """Equality by the documented rules, written over frozen shapes rather than by recursion on pairs."""
    return bool(shape(a) == shape(b)) and not has_nan(a) and not has_nan(b)


def shape(v: Any) -> Any:
    if isinstance(v, list):
        return ("list", tuple(shape(item) for item in v))
    if isinstance(v, dict):
        return ("map", frozenset((name, shape(item)) for name, item in v.items()))
    return (KINDS[type(v)], v)


def has_nan(v: Any) -> bool:
    if isinstance(v, list):
        return any(map(has_nan, v))
    if isinstance(v, dict):
        return any(map(has_nan, v.values()))
    return isinstance(v, float) and math.isnan(v)


def reference(n: x.Node, row: dict[str, Any], names: dict[str, Any]) -> bool:
    def found(o: x.Operand) -> list[Any]:
        """What an operand stands for: one value or none."""
        if isinstance(o, x.Value):
            return [o.value]
        source = row if isinstance(o, x.Column) else names
        return [source[o.name]] if o.name in source else []

    def pair(a: x.Operand, b: x.Operand) -> tuple[Any, Any] | None:
        left, right = found(a), found(b)
        return (left[0], right[0]) if left and right else None

    match n:
        case x.And(parts):
            return not [p for p in parts if not reference(p, row, names)]
        case x.Or(parts):
            return [p for p in parts if reference(p, row, names)] != []
        case x.Not(part):
            return not reference(part, row, names)
        case x.Exists(o):
            return bool(found(o))
        case x.Compare("==", a, b):
            two = pair(a, b)
            return two is not None and same(*two)
        case x.Compare("!=", a, b):
            return not reference(x.Compare("==", a, b), row, names)
        case x.Compare(op, a, b):
            two = pair(a, b)
            if two is None or KINDS.get(type(two[0])) != KINDS.get(type(two[1])):
                return False
            if KINDS.get(type(two[0])) not in ("number", "str", "bytes"):
                return False
            left, right = two
            return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op])
        case x.Contains(a, b):
            two = pair(a, b)
            if two is None:
                return False
            whole, part = two
            if isinstance(whole, list):
                return any(same(item, part) for item in whole)
            if isinstance(whole, dict):
                return isinstance(part, str) and any(part == name for name in whole)
            return type(whole) in (str, bytes) and type(whole) is type(part) and whole.count(part) > 0
        case x.StartsWith(a, b):
            two = pair(a, b)
            if two is None:
                return False
            whole, part = two
            return isinstance(whole, str | bytes) and type(whole) is type(part) and whole[: len(part)] == part
    raise AssertionError(n)


# --------------------------------------------------------------------------------------------- tests


@settings(max_examples=600, deadline=None)
@given(node, columns, key)
def test_evaluation_is_that_of_the_reference(n: x.Node, row: dict[str, Any], k: tuple[str, int]) -> None:
    wanted = reference(n, row, dict(zip(("customer", "order"), k, strict=True)))
    compiled = x.compile_expression(n, SCHEMA)
    assert compiled.judge(row, k) is wanted
    stored = join_row(5, encode_columns(row))
    assert compiled.holds(SCHEMA.encode(k), stored) is wanted
    assert x.compile_expression(x.Not(n), SCHEMA).judge(row, k) is not wanted


@settings(max_examples=300, deadline=None)
@given(node, columns, key)
def test_the_forms_say_the_same(n: x.Node, row: dict[str, Any], k: tuple[str, int]) -> None:
    wanted = x.compile_expression(n, SCHEMA).judge(row, k)
    through_bytes = x.decode_expression(x.encode_expression(n))
    through_json = x.expression_from_json(parse_json(dump_json(x.expression_to_json(n))))
    assert repr(through_bytes) == repr(n)  # by text, since NaN is no equal of itself
    assert x.encode_expression(through_json) == x.encode_expression(n)
    assert x.compile_expression(through_bytes, SCHEMA).judge(row, k) is wanted


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(st.integers(-1, 25) | st.text(max_size=2), lambda v: st.lists(v, max_size=4), max_leaves=12)
)
def test_garbage_is_refused_or_read(item: Any) -> None:
    try:
        n = x.decode_expression(packb(item))
    except InvalidRequest:
        pass
    else:
        assert x.decode_expression(x.encode_expression(n)) == n


def judged(where: Expression, row: dict[str, Any], k: tuple[str, int] = ("alice", 1)) -> bool:
    blob = encode_where(where, DEFAULT_LIMITS)
    assert blob is not None
    return x.compiled(blob, SCHEMA).judge(row, k)


def test_the_builder() -> None:
    col, k = ackord.col, ackord.key
    assert judged((col("n") >= 3) & (col("n") < 5), {"n": 4})
    assert not judged((col("n") >= 3) & (col("n") < 5), {"n": 5})
    assert judged((col("n") == 1) | (col("m") == 1) | (col("x") == 1), {"x": 1.0})
    assert judged(~col("gone").exists(), {})
    assert judged(col("none").exists(), {"none": None})
    assert judged(col("tags").contains("red") & col("name").starts_with("a"), {"tags": ["red"], "name": "ab"})
    assert judged((k("customer") == "alice") & (k("order") < 2), {})
    assert judged(col("a") < col("b"), {"a": 1, "b": 1.5})
    assert not judged(col("flag") == 1, {"flag": True})
    assert judged(col("state") != "new", {})
    assert not judged(~(col("state") != "new"), {})
    assert judged(col("n") > 3, {"n": 4})


def test_and_or_not_of_python_are_refused_with_a_hint() -> None:
    def column(name: str) -> Field:
        return ackord.col(name)

    for misuse in (
        lambda: column("a") == 1 and column("b") == 2,
        lambda: column("a") == 1 or column("b") == 2,
        lambda: not column("a").exists(),
        lambda: not column("a"),
        lambda: 1 < column("a") < 3,
    ):
        with pytest.raises(TypeError, match=r"write & \| ~"):
            misuse()
    with pytest.raises(TypeError):
        column("a") & (column("b") == 1)  # type: ignore[operator]
    with pytest.raises(TypeError, match="is not a value"):
        column("a") == (column("b") == 1)  # noqa: B015
    with pytest.raises(InvalidRequest, match="ask whether it"):
        encode_where(column("a"), DEFAULT_LIMITS)


def test_limits() -> None:
    def chain(count: int) -> Expression:
        where = ackord.col("a") == 0
        for number in range(1, count):
            where = where | (ackord.col("a") == number)
        return where

    limits = Limits(expression_nodes_count=31, expression_depth_count=4, expression_bytes=300)
    encode_where(chain(10), limits)
    with pytest.raises(InvalidRequest, match=r"34 parts .*limit of 31") as caught:
        encode_where(chain(11), limits)
    assert caught.value.detail == {"field": "where", "value": 34, "limit": 31}
    deep = ackord.col("a") == 1
    encode_where(~~deep, limits)
    with pytest.raises(InvalidRequest, match="nested deeper than 4"):
        encode_where(~~~deep, limits)
    with pytest.raises(InvalidRequest, match="bytes, over the limit of 300") as caught:
        encode_where(ackord.col("a") == "x" * 300, limits)
    assert caught.value.detail["limit"] == 300

    lenient = Limits(expression_depth_count=5000, expression_nodes_count=100_000, expression_bytes=1 << 20)
    hostile = packb(x.Value(1).value)
    for _ in range(3000):
        hostile = b"\x92\x03" + hostile
    with pytest.raises(InvalidRequest):
        x.decode_expression(hostile)
    for broken in (chain(11), ~~~deep, ackord.col("a") == "x" * 300):
        blob = encode_where(broken, lenient)
        with pytest.raises(InvalidRequest):
            x.decode_expression(blob, limits)


@pytest.mark.parametrize(
    "where",
    [
        ackord.col("a") == {1, 2},
        ackord.col("a") == 2**63,
        ackord.col("") == 1,
        ackord.col("a" * 256) == 1,
        ackord.col("a") == "\ud800",
        ackord.col("\ud800") == 1,
    ],
)
def test_constants_and_names_are_those_that_a_row_may_have(where: Expression) -> None:
    with pytest.raises(InvalidRequest):
        encode_where(where, DEFAULT_LIMITS)


def test_an_unknown_key_column_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'nobody' is no key column.*customer, order"):
        judged(ackord.key("nobody") == 1, {})


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        ["=="],
        ["==", {"col": "a"}],
        ["is", {"col": "a"}, 1],
        ["and"],
        ["not", ["exists", {"col": "a"}], 1],
        ["==", {"a": 1, "b": 2}, 1],
        ["==", {"col": 1}, 1],
        ["and", {"col": "a"}],
        [["and"]],
        [{}, 1],
    ],
)
def test_wrong_json_is_refused(item: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        x.expression_from_json(item)
    assert caught.value.detail["field"] == "where"
