"""What a row may hold, checked at both ends."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import StrEnum
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ackord.errors import InvalidRequest
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.values import (
    are_columns,
    check_columns,
    check_update,
    decode_columns,
    encode_columns,
    encode_update,
)

RELAXED = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # machines are shared

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
NAMES = st.text(min_size=1, max_size=10)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@RELAXED
@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_columns_come_back_as_they_were(columns: dict[str, Any]) -> None:
    blob = encode_columns(columns, DEFAULT_LIMITS)
    assert decode_columns(blob) == columns
    assert check_columns(blob, DEFAULT_LIMITS) == columns
    assert repr(decode_columns(blob)) == repr(columns)  # True is not 1, 1.0 is not 1


@RELAXED
@given(
    st.lists(
        st.dictionaries(st.text(max_size=9) | st.just(b"c"), VALUES | st.just(2**63), max_size=3).map(
            msgpack.packb
        )
        | st.sampled_from([b"", b"\x90", b"\x80\x80", b"\xc1\x80"]),
        min_size=1,
        max_size=4,
    )
)
def test_bodies_together_are_checked_as_each_by_itself(blobs: list[bytes]) -> None:
    limits = replace(DEFAULT_LIMITS, columns_count=2, column_name_bytes=40, value_depth_count=2)
    is_fine = are_columns(blobs, limits)
    for blob in blobs:
        try:
            check_columns(blob, limits)
        except InvalidRequest:
            assert not is_fine
            return
    assert is_fine


def test_bodies_of_large_rows_are_left_to_the_check_of_each() -> None:
    limits = replace(DEFAULT_LIMITS, cell_bytes=50)
    assert are_columns([encode_columns({"a": b"x" * 40})], limits)
    assert not are_columns([encode_columns({"a": b"x" * 30, "b": b"y" * 30})], limits)


def test_nan_and_infinities_are_values() -> None:
    back = check_columns(encode_columns({"n": math.nan, "i": -math.inf}))
    assert math.isnan(back["n"]) and back["i"] == -math.inf


class Colour(StrEnum):
    RED = "red"


def nested(depth: int) -> Any:
    value: Any = 1
    for k in range(depth):
        value = [value] if k % 2 else {"x": value}
    return value


BAD: list[tuple[Any, str]] = [
    ({"c": 2**63}, "64 bits"),
    ({"c": -(2**63) - 1}, "64 bits"),
    ({"c": [1, {"x": 10**5000}]}, "64 bits"),
    ({"c": {1: 2}}, "not str|no str"),
    ({"c": nested(17)}, "nested deeper than 16"),
    ({"n" * 256: 1}, "256 bytes"),
    ({"é" * 128: 1}, "256 bytes"),
    ({"": 1}, "0 bytes"),
    ({1: 1}, "must be str"),
    ({f"c{k}": k for k in range(1025)}, "1025 columns"),
    ({"c": b"\x00" * (4 * 1024 * 1024)}, "4194304"),
    ([("c", 1)], "dict|map"),
]


@pytest.mark.parametrize(("columns", "words"), BAD)
def test_refused_by_the_sdk(columns: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        encode_columns(columns, DEFAULT_LIMITS)
    assert "field" in caught.value.detail and "value" in caught.value.detail


@pytest.mark.parametrize(
    "value", [object(), (1, 2), {1, 2}, 1j, Colour.RED, bytearray(b"a"), [(1,)], {"a": {3}}]
)
def test_other_types_are_refused_by_the_sdk(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="of type"):
        encode_columns({"column": value})


@pytest.mark.parametrize(
    "columns", [{"c": "\ud800"}, {"\udc80": 1}, {"c": [{"x": "a\udfff"}]}, {"c": {"\ud800": 1}}]
)
def test_lone_surrogates_are_refused_in_words_that_can_be_printed(columns: Any) -> None:
    with pytest.raises(InvalidRequest, match="surrogate") as caught:
        encode_columns(columns)
    str(caught.value).encode()
    str(caught.value.detail).encode()


def test_a_list_that_holds_itself_ends() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InvalidRequest, match="nested"):
        encode_columns({"c": loop})


@pytest.mark.parametrize(("columns", "words"), [item for item in BAD if item[1] != "64 bits"])
def test_refused_by_the_node(columns: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words + "|invalid msgpack"):
        check_columns(msgpack.packb(columns), DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "incomplete"),
        (b"\xc1", "invalid"),
        (b"\x80\x80", "too many|extra"),
        (b"\x81\xa1c\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "64 bits"),  # uint64
        (b"\x81\xa1c\xd4\x05x", "invalid"),  # ext
        (b"\x81\xa1c\xd6\xff\x00\x00\x00\x00", "invalid"),  # timestamp
        (b"\x81\xc4\x01c\x01", "must be str"),  # a name of bytes
        (b"\x81\xa1c\x81\xc4\x01c\x01", "no str"),
        (b"\x81\xa1c\xa2\xed\xa0", "invalid"),
        (b"\x81\xa3\xed\xa0\x80\x01", "invalid"),  # a surrogate as bytes
        (b"\x81\xa1c" + b"\x91" * 500 + b"\xc0", "nested"),
        (b"\x81\xa1c" + b"\x91" * 5000 + b"\xc0", "invalid"),
        (b"\xdf\xff\xff\xff\xff", "invalid"),
        (b"\x90", "list"),
        ("text", "bytes"),
        (None, "bytes"),
    ],
)
def test_untrusted_bytes(blob: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        check_columns(blob, DEFAULT_LIMITS)


def test_the_row_limit_counts_encoded_bytes() -> None:
    limits = replace(DEFAULT_LIMITS, row_bytes=100)
    overhead = len(encode_columns({"c": b"x" * 50})) - 50
    fits = {"c": b"x" * (100 - overhead)}
    blob = encode_columns(fits, limits)
    assert len(blob) == 100
    assert check_columns(blob, limits) == fits
    with pytest.raises(InvalidRequest) as caught:
        encode_columns({"c": b"x" * (101 - overhead)}, limits)
    assert (caught.value.detail["value"], caught.value.detail["limit"]) == (101, 100)


def test_updates() -> None:
    blob = encode_update({"a": 1, "l": [1]}, ["b"], {"n": -5}, DEFAULT_LIMITS)
    assert check_update(blob, DEFAULT_LIMITS) == ({"a": 1, "l": [1]}, ["b"], {"n": -5}, {})
    assert check_update(encode_update(), DEFAULT_LIMITS) == ({}, [], {}, {})


@pytest.mark.parametrize(
    "arguments",
    [
        ({"a": 1}, ["a"], {}),
        ({"a": 1}, [], {"a": 1}),
        ({}, ["a"], {"a": 1}),
        ({}, ["a", "a"], {}),
        ({}, [], {"a": math.nan}),
        ({}, [], {"a": math.inf}),
        ({}, [], {"a": "1"}),
        ({}, [], {"a": True}),
        ({}, [], {"a": 2**63}),
        ({}, [1], {}),
        ({}, [""], {}),
        ({}, "abc", {}),
        ({"a": object()}, [], {}),
        ([], [1], {}),
    ],
)
def test_impossible_updates(arguments: tuple[Any, Any, Any]) -> None:
    changes, removed, increments = arguments
    with pytest.raises(InvalidRequest):
        encode_update(changes, removed, increments, DEFAULT_LIMITS)
    try:
        blob = msgpack.packb(arguments)
    except (TypeError, OverflowError):
        return
    with pytest.raises(InvalidRequest):
        check_update(blob, DEFAULT_LIMITS)


@pytest.mark.parametrize("value", [None, [], [{}, []], [[], [], {}], [{}, {}, {}], {"a": 1}])
def test_what_is_no_update(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        check_update(msgpack.packb(value), DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("field", "value"), [("set", False), ("set", 0), ("increment", 0), ("increment", "")]
)
def test_an_empty_looking_part_of_an_update_is_not_taken_as_none(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=field):
        encode_update(**{field: value})
