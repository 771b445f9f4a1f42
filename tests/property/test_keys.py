"""Encoded keys sort like the tuples they encode, and only real keys decode."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ackord.errors import InvalidRequest
from ackord.wire.keys import INT64_MAX, INT64_MIN, KeySchema, after_prefix

RELAXED = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # machines are shared

INTS = st.integers(INT64_MIN, INT64_MAX) | st.sampled_from([INT64_MIN, -1, 0, 1, INT64_MAX])
TEXTS = st.text(max_size=12) | st.text(alphabet="\x00\x01a\u00ff", max_size=5)
BLOBS = st.binary(max_size=12) | st.lists(st.sampled_from([0, 1, 255]), max_size=5).map(bytes)
VALUES = {"int": INTS, "str": TEXTS, "bytes": BLOBS}


@st.composite
def schemas(draw: st.DrawFn) -> KeySchema:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=4))
    return KeySchema(tuple((f"c{k}", kind) for k, kind in enumerate(kinds)))


@st.composite
def schemas_and_keys(draw: st.DrawFn, count: int = 2) -> tuple[KeySchema, list[tuple[Any, ...]]]:
    schema = draw(schemas())
    columns = [VALUES[kind] for kind in schema.types]
    return schema, draw(st.lists(st.tuples(*columns), min_size=count, max_size=count))


def sortable(key: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.encode() if isinstance(value, str) else value for value in key)


@RELAXED
@given(schemas_and_keys())
def test_order_is_that_of_the_tuples(drawn: tuple[KeySchema, list[tuple[Any, ...]]]) -> None:
    schema, (one, two) = drawn
    assert (schema.encode(one) < schema.encode(two)) == (sortable(one) < sortable(two))
    assert (schema.encode(one) == schema.encode(two)) == (one == two)


@RELAXED
@given(schemas_and_keys(1))
def test_decode_returns_the_key(drawn: tuple[KeySchema, list[tuple[Any, ...]]]) -> None:
    schema, (key,) = drawn
    encoded = schema.encode(key)
    assert schema.decode(encoded) == key
    assert schema.is_valid(encoded)
    assert KeySchema.from_wire(schema.to_wire()) == schema


@RELAXED
@given(schemas_and_keys(), st.integers(0, 4))
def test_prefix_range_holds_exactly_the_keys_with_the_prefix(
    drawn: tuple[KeySchema, list[tuple[Any, ...]]], length: int
) -> None:
    schema, (one, two) = drawn
    prefix = one[:length]
    start, end = schema.prefix_range(prefix)
    encoded = schema.encode(two)
    assert (start <= encoded and (end is None or encoded < end)) == (two[:length] == prefix)
    assert schema.encode(one).startswith(start)


@RELAXED
@given(schemas(), st.binary(max_size=40))
def test_arbitrary_bytes_are_valid_only_if_they_are_an_encoding(schema: KeySchema, data: bytes) -> None:
    try:
        key = schema.decode(data)
    except ValueError:
        assert not schema.is_valid(data)
    else:
        assert schema.is_valid(data)
        assert schema.encode(key) == data


@RELAXED
@given(schemas_and_keys(1), st.data())
def test_damaged_encodings_never_pass_as_something_else(
    drawn: tuple[KeySchema, list[tuple[Any, ...]]], data: st.DataObject
) -> None:
    schema, (key,) = drawn
    encoded = bytearray(schema.encode(key))
    encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(encoded)
    if schema.is_valid(damaged):
        assert schema.encode(schema.decode(damaged)) == damaged


@RELAXED
@given(st.binary(max_size=6), st.binary(max_size=6))
def test_after_prefix_is_the_least_bound(prefix: bytes, other: bytes) -> None:
    bound = after_prefix(prefix)
    below = bound is None or other < bound
    assert below == (other.startswith(prefix) or other < prefix)


STR_INT = KeySchema((("name", "str"), ("n", "int")))


@pytest.mark.parametrize(
    ("key", "field", "words"),
    [
        (("a", 2**63), "n", "64 bits"),
        (("a", -(2**63) - 1), "n", "64 bits"),
        (("a", 10**3000), "n", "64 bits"),
        (("a", True), "n", "bool"),
        (("a", float("nan")), "n", "nan"),
        (("a", 1.0), "n", "float"),
        (("\ud800", 1), "name", "surrogate"),
        (("a" * 1025, 1), "name", "1024"),
        (("é" * 513, 1), "name", "1026"),
        ((b"a", 1), "name", "bytes"),
        ((None, 1), "name", "NoneType"),
        (("a",), "key", "2"),
        (("a", 1, 2), "key", "3"),
        ("a", "key", "1 columns"),
        ((), "key", "0"),
    ],
)
def test_a_refused_key_names_the_column_and_the_limit(key: Any, field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        STR_INT.encode(key)
    assert caught.value.detail["field"] == field
    assert "value" in caught.value.detail and "limit" in caught.value.detail
    str(caught.value).encode()


def test_the_limit_is_of_the_value_before_encoding() -> None:
    schema = KeySchema((("b", "bytes"),))
    longest = schema.encode(b"\x00" * 1024)
    assert schema.is_valid(longest)
    assert schema.decode(longest) == (b"\x00" * 1024,)
    assert not schema.is_valid(b"\x01" * 1025 + b"\x00\x01")


def test_keys_may_be_lists_or_the_bare_value_of_one_column() -> None:
    assert STR_INT.encode(["a", 1]) == STR_INT.encode(("a", 1))
    assert KeySchema((("n", "int"),)).encode(7) == KeySchema((("n", "int"),)).encode((7,))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x00\x02", b"a", b"a\x00\x01a", b"\xff\x00\x01", None, "a", 5]
)
def test_malformed_keys(data: Any) -> None:
    assert not KeySchema((("s", "str"),)).is_valid(data)


@pytest.mark.parametrize(
    "columns",
    [
        [],
        [["a", "int"]] * 5,
        [["a", "float"]],
        [["a", "int"], ["a", "str"]],
        [["", "int"]],
        [["a" * 256, "int"]],
        [["\ud800", "int"]],
        [[1, "int"]],
        [["a"]],
        ["ab"],
        {"a": "int"},
        None,
        [["a", ["int"]]],
    ],
)
def test_impossible_schemas(columns: Any) -> None:
    with pytest.raises(InvalidRequest):
        KeySchema.from_wire(columns)


@given(st.data())
def test_many_keys_decode_as_each_does(data: st.DataObject) -> None:
    """In any order, with heads that repeat, of every schema."""
    kinds = data.draw(st.lists(st.sampled_from(["int", "str", "bytes"]), min_size=1, max_size=4))
    if len(kinds) > 1 and kinds[-1] == "int" and data.draw(st.booleans()):
        kinds[-1] = "auto"
    schema = KeySchema(tuple((f"c{at}", kind) for at, kind in enumerate(kinds)))
    pools: dict[str, list[Any]] = {
        "int": [0, -1, 2**63 - 1],
        "str": ["", "a", "\0", "é"],
        "bytes": [b"", b"\0\xff\0\1", b"b"],
    }
    keys = data.draw(
        st.lists(st.tuples(*(st.sampled_from(pools[kind]) for kind in schema.types)), max_size=8)
    )
    assert schema.decode_many([schema.encode(key) for key in keys]) == keys
