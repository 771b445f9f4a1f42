"""Every decoder gives a value or the error that its docstring names, whatever the bytes are."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ackord.errors import Error, InvalidRequest
from ackord.wire.frames import FrameDecoder, FrameError, encode_frame, packb, unpackb
from ackord.wire.json_forms import check_depth, columns_from_json, from_json, parse_json
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS
from ackord.wire.messages import TableDefinition, TabletRange, error_from_wire
from ackord.wire.values import check_columns, check_update, encode_columns, encode_update
from ackord_node.config import ConfigError, parse
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.core.types import Descriptor, Member
from ackord_node.server.groups import GroupChecker
from ackord_node.server.row_requests import (
    CONDITION_PARAMETERS,
    SCAN_PARAMETERS,
    ScanRange,
    condition_of_query,
    identity_of_key,
    key_of_path,
    limit_of_query,
    range_of_query,
    returning_of_query,
    selection_of_query,
)
from tests.fuzz.mutation import Mutator, nested

SCHEMA = KeySchema((("a", "int"), ("b", "str"), ("c", "bytes")))
CASES = 2500
TABLET = 0x10001
TABLE_ID = 1

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=300))
def test_unpackb_gives_a_value_or_a_value_error(data: bytes) -> None:
    try:
        value = unpackb(data)
    except ValueError:
        return
    assert packb(value) is not None


@given(values)
def test_values_survive_the_wire(value: Any) -> None:
    assert packb(unpackb(packb(value))) == packb(value)


@given(values, st.lists(st.integers(1, 20), max_size=10))
def test_frames_do_not_depend_on_where_the_chunks_end(value: Any, cuts: list[int]) -> None:
    data = encode_frame(value) * 3
    decoder, found = FrameDecoder(10_000), []
    for cut in cuts:
        found += decoder.feed(data[:cut])
        data = data[cut:]
    found += decoder.feed(data)
    assert [packb(one) for one in found] == [packb(value)] * 3
    assert decoder.pending_bytes == 0


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_is_a_frame_error_and_holds_no_more_than_a_frame(chunks: list[bytes]) -> None:
    decoder = FrameDecoder(100)
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            assert decoder.pending_bytes <= 104 + len(chunk)
    except FrameError:
        pass


@given(st.binary(max_size=60))
def test_keys_of_strangers(data: bytes) -> None:
    is_valid = SCHEMA.is_valid(data)
    try:
        key = SCHEMA.decode(data)
    except ValueError:
        assert not is_valid
        return
    assert SCHEMA.encode(key) == data


def entry() -> bytes:
    return Entry.create(
        TABLET, 3, 7, 1 << 60, [[b"c" * 16, 5, 1, [1, 2], [b"k", None], [b"v", 4]], [None, 77]]
    ).record


def descriptor() -> bytes:
    members = frozenset({Member("n1", 5), Member("n2", 6)})
    return Descriptor(TABLET, 3, "n1", 9, members, ("n1", "n2", "n3"), 2, b"", b"m").encode()


def definition() -> TableDefinition:
    tablets = (
        TabletRange(1, b"", SCHEMA.encode_prefix((5,))),
        TabletRange(2, SCHEMA.encode_prefix((5,)), None),
    )
    return TableDefinition(1, "orders", SCHEMA, tablets)


COLUMNS = {
    "total": 990,
    "state": "new",
    "blob": b"\x00\xff",
    "price": 1.5,
    "none": None,
    "tags": ["a", {"b": 1}],
}
CHECKER = GroupChecker(DEFAULT_LIMITS)
GROUPS: list[list[Any]] = [
    [1, 1, TABLET, [b"k1", b"k2"]],
    [
        2,
        2,
        TABLET,
        b"c" * 16,
        1 << 60,
        0,
        [[1, 1, b"k", encode_columns(COLUMNS), 0, None, 1], [2, 3, b"k", None, 1, 5, 1]],
    ],
    [3, 3, TABLET, b"", None, False, 10, 1000],
    [4, 2, TABLET, b"c" * 16, 1 << 60, 0, [3, [b"k", b"l"], [encode_columns(COLUMNS)] * 2]],
]
CONFIG = """
cluster: demo
coordination: zookeeper://127.0.0.1:2181/ackord
replication: {replicas: 2, min_in_sync: 2, lease_ms: 1000, session_timeout_ms: 3000}
nodes:
  n1: {address: 127.0.0.1:7801, data: .ackord/n1}
  n2: {address: 127.0.0.1:7802, data: .ackord/n2}
"""


def judge_group(data: bytes) -> None:
    group = unpackb(data)
    if CHECKER.rid_of(group) is not None:
        assert CHECKER.check(group) > 0


def judge_json(data: bytes) -> None:
    value = parse_json(data)
    check_depth(value)
    columns_from_json(value)
    from_json(value)


def judge_path(data: bytes) -> None:
    key_of_path(data.decode("latin-1"), SCHEMA)


def judge_token(data: bytes) -> None:
    range_of_query({"after": data.decode("latin-1")}, SCHEMA, TABLE_ID)


def judge_query(data: bytes) -> None:
    value = unpackb(data)
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        query = {n: str(v) for n, v in value.items() if n in SCAN_PARAMETERS + CONDITION_PARAMETERS}
        limit_of_query(query, DEFAULT_LIMITS)
        returning_of_query(query)
        selection_of_query(query, DEFAULT_LIMITS)
        condition_of_query(query, DEFAULT_LIMITS)
        range_of_query(query, SCHEMA, TABLE_ID)


def judge_error(data: bytes) -> None:
    assert isinstance(error_from_wire(unpackb(data)), Error)


DECODERS: dict[str, tuple[bytes, Callable[[bytes], Any], tuple[type[Exception], ...]]] = {
    "frame": (encode_frame(COLUMNS) * 2, lambda data: FrameDecoder(5000).feed(data), (FrameError,)),
    "msgpack": (packb([COLUMNS, 2**63, -1]), unpackb, (ValueError,)),
    "group get": (packb(GROUPS[0]), judge_group, (InvalidRequest, ValueError)),
    "group write": (packb(GROUPS[1]), judge_group, (InvalidRequest, ValueError)),
    "group scan": (packb(GROUPS[2]), judge_group, (InvalidRequest, ValueError)),
    "columns": (encode_columns(COLUMNS), check_columns, (InvalidRequest,)),
    "update": (encode_update({"a": 1}, ["b"], {"c": 2}), check_update, (InvalidRequest,)),
    "json": (b'{"a": [1, 2.5e3, {"$bytes": "AAH/"}], "b": {"$float": "NaN"}}', judge_json, (InvalidRequest,)),
    "log record": (entry(), lambda data: Entry.decode(TABLET, data), (RecordCorrupt,)),
    "descriptor": (descriptor(), Descriptor.decode, (ValueError,)),
    "copy's metadata": (CopyMeta(5, 3, 9, 2, [(0, 0), (3, 2)], 77).encode(), CopyMeta.decode, (ValueError,)),
    "table": (
        packb(definition().to_wire()),
        lambda data: TableDefinition.from_wire(unpackb(data)),
        (ValueError, InvalidRequest),
    ),
    "error": (packb([4, "no", {"a": 1}, None]), judge_error, (ValueError,)),
    "path": (b"/v1/tables/t/rows/5/text/AAE_", judge_path, (InvalidRequest,)),
    "token": (ScanRange(b"f", None, False).token(TABLE_ID).encode(), judge_token, (InvalidRequest,)),
    "query": (
        packb({"limit": "5", "reverse": "true", "start": '[1, "a"]'}),
        judge_query,
        (InvalidRequest, ValueError),
    ),
    "idempotency key": (
        b"1700000000000-token",
        lambda data: identity_of_key(data.decode("latin-1"), DEFAULT_LIMITS),
        (InvalidRequest,),
    ),
    "cluster.yaml": (
        CONFIG.encode(),
        lambda data: parse(data.decode("latin-1"), Path("cluster.yaml")),
        (ConfigError,),
    ),
}


@pytest.mark.parametrize("name", DECODERS)
def test_damaged_input_raises_what_is_documented(name: str) -> None:
    valid, decode, expected = DECODERS[name]
    decode(valid)
    mutator = Mutator(random.Random(name))
    is_msgpack = name in (
        "msgpack",
        "descriptor",
        "copy's metadata",
        "columns",
        "update",
        "query",
        "error",
        "table",
    ) or name.startswith("group")
    refused = 0
    for number in range(CASES if name != "cluster.yaml" else 250):
        data = mutator.packed(unpackb(valid)) if is_msgpack and number % 2 else mutator.damaged(valid)
        try:
            decode(data)
        except expected:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}: {data[:200]!r} raised {error!r}") from error
    assert refused > 0


@pytest.mark.parametrize("header", [b"\x91", b"\x81", b"\xdd\x00\x00\x00\x01", b"\xdc\x00\x01"])
def test_nesting_without_end_is_refused_not_a_crash(header: bytes) -> None:
    with pytest.raises(ValueError, match="msgpack"):
        unpackb(header * 100_000)
    with pytest.raises(InvalidRequest):
        check_columns(packb({"a": nested(900)}))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0xDD, 0xDF, 0xDB, 0xC6, 0xC9]))
def test_claimed_sizes_cost_nothing(size: int, kind: int) -> None:
    try:
        unpackb(struct.pack(">BI", kind, size) * 3)
    except ValueError:
        return
    assert size == 0


def test_a_record_with_a_good_checksum_over_a_bad_payload_is_corrupt() -> None:
    """No node writes one; what is no list of groups must not end a process with another error."""
    rest = struct.pack(">QQQ", 3, 7, 1 << 60)
    for payload in (b"", b"\xc1", b"\x05", packb([5]), packb([[b"c", 1]]), packb({"a": 1})):
        crc = zlib.crc32(payload, zlib.crc32(rest, zlib.crc32(struct.pack(">Q", TABLET))))
        with pytest.raises(RecordCorrupt):
            Entry.decode(TABLET, crc.to_bytes(4, "big") + rest + payload)
