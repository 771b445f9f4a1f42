"""JSON forms are lossless, strict, and say what is wrong."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ackord.errors import InvalidRequest
from ackord.wire import json_forms

RELAXED = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # machines are shared

NAMES = st.text(max_size=6) | st.sampled_from(["$bytes", "$map", "$float", "$"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@RELAXED
@given(VALUES)
def test_values_survive_json(value: Any) -> None:
    text = json_forms.dump_json(json_forms.to_json(value))
    back = json_forms.from_json(json_forms.parse_json(text))
    assert repr(back) == repr(value)


def test_the_documented_forms() -> None:
    assert json_forms.to_json(b"\x00\xff") == {"$bytes": "AP8="}
    assert json_forms.to_json([math.nan, math.inf, -math.inf]) == [
        {"$float": "NaN"},
        {"$float": "Infinity"},
        {"$float": "-Infinity"},
    ]
    assert json_forms.to_json({"$x": 1}) == {"$map": {"$x": 1}}
    assert json_forms.to_json({"$x": 1, "y": 2}) == {"$x": 1, "y": 2}
    assert json_forms.from_json(json.loads('{"$map": {"$bytes": "AA=="}}')) == {"$bytes": "AA=="}


def test_rows() -> None:
    row = json_forms.row_to_json((b"k", 7), 2**62, {"$c": b"x", "f": math.nan})
    assert row["key"] == [{"$bytes": "aw=="}, 7]
    assert row["version"] == str(2**62)
    key, version, columns = json_forms.row_from_json(json.loads(json.dumps(row)))
    assert (key, version, columns["$c"]) == ((b"k", 7), 2**62, b"x")
    assert json_forms.row_from_json({"key": [1]}) == ((1,), None, {})


@pytest.mark.parametrize(
    "value",
    [
        {"$bytes": "*"},
        {"$bytes": "é"},
        {"$bytes": 1},
        {"$float": "nan"},
        {"$float": 1},
        {"$float": []},
        {"$map": []},
        {"$other": 1},
        [{"x": {"$": 1}}],
    ],
)
def test_wrong_forms(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        json_forms.from_json(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', r"\$float"),
        (b'{"a": 1e999}', "beyond"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'"\xff"', "not valid JSON"),
        (b"[" * 200_000, "nested|not valid"),
        (b"1" * 5000, "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_not_json(text: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        json_forms.parse_json(text)


@pytest.mark.parametrize("value", ["", "-1", "1.0", "x", "9" * 19, "9" * 30, -1, 2**63, True, None, 1.0, "١"])
def test_what_is_no_version(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="version"):
        json_forms.version_from_json(value)


def test_versions_are_strings_or_ints() -> None:
    assert json_forms.version_from_json(str(2**63 - 1)) == json_forms.version_from_json(2**63 - 1)


@pytest.mark.parametrize("value", [[], None, "x", 1])
def test_columns_are_an_object(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        json_forms.columns_from_json(value)
    with pytest.raises(InvalidRequest):
        json_forms.row_from_json(value)


def test_a_name_that_stands_twice_among_very_many_is_found_at_once() -> None:
    names = ",".join(f'"{number}":1' for number in range(20_000))
    begin = time.process_time()
    with pytest.raises(InvalidRequest, match="'19999' stands twice"):
        json_forms.parse_json(f'{{{names},"19999":2}}')
    assert time.process_time() - begin < 2
