"""Options, extras of writes, and stored forms: what is default leaves no trace, and old forms are still read."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.errors import InvalidRequest
from ackord.wire.extras import NO_EXTRAS, Extras, encode_extras, split_extras
from ackord.wire.frames import packb, unpackb
from ackord.wire.keys import KeySchema
from ackord.wire.messages import (
    TableDefinition,
    TabletRange,
    join_row,
    row_columns,
    row_expires_ms,
    row_version,
)
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord.wire.values import encode_columns, project
from ackord_node.core import messages as m
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.log import Entry

BODY = encode_columns({"a": 1, "b": "x"})


def table(options: TableOptions = DEFAULT_OPTIONS) -> TableDefinition:
    key = KeySchema.from_wire([["k", "int"]])
    return TableDefinition(3, "t", key, (TabletRange(7, b"", None),), options=options)


def test_a_table_without_options_is_stored_as_it_always_was() -> None:
    assert "options" not in table().to_wire()
    assert TableDefinition.from_wire(table().to_wire()).options == DEFAULT_OPTIONS
    assert len(unpackb(CopyMeta(5).encode())) == 13
    assert CopyMeta.decode(CopyMeta(5).encode()).clock_ms == 0
    assert CopyMeta.decode(CopyMeta(5, clock_ms=9).encode()).clock_ms == 9


def test_options_travel_with_the_definition() -> None:
    options = TableOptions(3, 1.5, 60, merge={"b": "sum", "a": "max"})
    wire = unpackb(packb(table(options).to_wire()))
    assert wire["options"] == {
        "keep_versions": 3,
        "keep_for": 1.5,
        "ttl": 60,
        "merge": {"a": "max", "b": "sum"},
    }
    assert TableDefinition.from_wire(wire) == table(options)
    with pytest.raises(ValueError, match="keep_versions"):
        TableDefinition.from_wire({**wire, "options": {"keep_versions": True}})
    with pytest.raises(InvalidRequest, match="unknown table option"):
        TableOptions.from_wire({"keep": 1})


@pytest.mark.parametrize(
    ("arguments", "extras"),
    [
        ((None,), NO_EXTRAS),
        ((1.5,), Extras(1500)),
        ((None, 7), Extras(timestamp=7)),
        ((2, {"a": -7}), Extras(2000, timestamps={"a": -7})),
        ((None, None, {"a": [1, 2]}), Extras(delete_cells={"a": [1, 2]})),
    ],
)
def test_what_a_write_says_beside_its_columns(arguments: tuple[Any, ...], extras: Extras) -> None:
    encoded = encode_extras(BODY, *arguments)
    assert split_extras(encoded) == (extras, BODY)
    assert (encoded == BODY) == (extras == NO_EXTRAS)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\xc1\x00\x05ab",
        b"\xc1\x00\x01\x01" + BODY,
        b"\xc1\x00\x02\x81\xa1" + BODY,
        b"\xc1" + len(packb({"ttl": -1})).to_bytes(2, "big") + packb({"ttl": -1}) + BODY,
        b"\xc1" + len(packb({"tt": 1})).to_bytes(2, "big") + packb({"tt": 1}) + BODY,
        b"\xc1" + len(packb({"cells": {"a": 1}})).to_bytes(2, "big") + packb({"cells": {"a": 1}}) + BODY,
    ],
)
def test_garbled_extras_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        split_extras(body)


@pytest.mark.parametrize("ttl", [0, -1, True, "5", float("nan"), float("inf"), 1e12])
def test_a_ttl_is_a_number_of_seconds(ttl: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_extras(BODY, ttl)
    assert caught.value.detail["field"] == "ttl"


def test_a_row_with_an_end_of_its_own_keeps_its_columns() -> None:
    plain, own = join_row(9, BODY), join_row(9, BODY, 1234)
    assert (row_expires_ms(plain), row_expires_ms(own)) == (0, 1234)
    assert row_version(plain) == row_version(own) == 9
    assert row_columns(plain) == row_columns(own) == BODY
    part = project(own, ["b"])
    assert (row_expires_ms(part), row_columns(part)) == (1234, encode_columns({"b": "x"}))


def test_members_of_two_releases_confirm_beacons() -> None:
    old = [m.BEACON_CONFIRM, 7, 1, 5, 0.0, -1.0, 3, 7]
    assert m.check(list(old)) == old
    assert m.check([*old, 1_700_000_000_000])[8] == 1_700_000_000_000
    for wrong in (old[:-1], [*old, 1, 2], [m.CONFIRM, 7, 1, 5, 3, 4]):
        with pytest.raises(ValueError, match="fields"):
            m.check(wrong)


def test_control_groups_of_the_log() -> None:
    assert Entry.create(7, 1, 1, 100, [[None, 50]]).clock_ms == 0
    entry = Entry.create(7, 1, 1, 100, [[None, 0, 1234], [b"", 0, 0, [0, 0], [b"a", None], [b"row", 4]]])
    assert (entry.clock_ms, entry.last_version) == (1234, 101)
    assert list(entry.versions()) == [(b"a", 100, b"row")]
    assert Entry.decode(7, entry.record).clock_ms == 1234
