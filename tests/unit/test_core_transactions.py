"""Transactions at one coordinator, by hand: what fits a partition, and the version of what only reads (R21)."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.errors import InvalidRequest
from ackord.wire.frames import packb
from ackord.wire.keys import KeySchema, after_prefix
from ackord.wire.messages import (
    COND_IF_VERSION,
    COND_NONE,
    KIND_PUT,
    KIND_PUT_AUTO,
    KIND_TRANSACTION,
    row_columns,
)
from ackord_node.core import effects as e
from ackord_node.core.transactions import misfit_of
from tests.support.core_hand import WALL_MS, Asked, serving
from tests.unit.test_core_writes import commit

SCHEMA = KeySchema((("customer", "str"), ("order", "int")))
OWN, FOREIGN = SCHEMA.encode_prefix(("alice",)), SCHEMA.encode(("bob", 1))


@pytest.mark.parametrize("key", [FOREIGN, OWN, OWN + b"\0", FOREIGN[:-1]])
def test_a_read_or_written_key_is_a_whole_key_of_the_partition(key: bytes) -> None:
    assert isinstance(misfit_of(SCHEMA, OWN, [[[key, None]], [], []]), InvalidRequest)
    assert isinstance(
        misfit_of(SCHEMA, OWN, [[], [], [[KIND_PUT, key, b"\x80", COND_NONE, None]]]), InvalidRequest
    )
    whole = SCHEMA.encode(("alice", 1))
    assert (
        misfit_of(SCHEMA, OWN, [[[whole, None]], [], [[KIND_PUT, whole, b"\x80", COND_NONE, None]]]) is None
    )


def test_a_read_range_lies_within_the_partition() -> None:
    above = after_prefix(OWN)
    assert above is not None
    for start, end, fits in (
        (OWN, above, True),
        (OWN + b"a", OWN + b"b", True),
        (OWN, None, False),
        (OWN, above + b"\0", False),
        (OWN[:-1], above, False),
    ):
        assert (misfit_of(SCHEMA, OWN, [[], [[start, end, 0, b""]], []]) is None) == fits


def test_only_a_row_that_is_to_be_numbered_may_lack_its_last_column() -> None:
    numbered = KeySchema((("customer", "str"), ("order", "auto")))
    for schema, kind, fits in (
        (numbered, KIND_PUT_AUTO, True),
        (numbered, KIND_PUT, False),
        (SCHEMA, KIND_PUT_AUTO, False),
    ):
        write = [kind, OWN, b"\x80", COND_NONE, None]
        assert (misfit_of(schema, OWN, [[], [], [write]]) is None) == fits, (schema, kind)


def test_what_only_reads_is_as_new_as_what_was_judged_before_it() -> None:
    """Also behind a write of the same group, which has no entry yet."""
    h = serving()
    h.write(key=b"other")
    commit(h)
    asked: Any = Asked()
    put = [1, KIND_PUT, b"k", b"\x80", COND_NONE, None, 1]
    reader = [2, KIND_TRANSACTION, b"k", [[], [], []], COND_NONE, None, 1]
    h.do(e.Writes([e.WriteGroup(asked, b"w2", 5, 1, [put, reader])], WALL_MS))
    commit(h)
    assert asked.answers[1] == asked.answers[0] == h.r.state.last_version


def test_what_only_reads_is_as_new_as_what_another_client_wrote_before_it_in_the_same_step() -> None:
    h = serving()
    h.write(key=b"other")
    commit(h)
    wrote: Any = Asked()
    read: Any = Asked()
    put = [1, KIND_PUT, b"k", b"\x80", COND_NONE, None, 1]
    reader = [1, KIND_TRANSACTION, b"k", [[], [], []], COND_NONE, None, 1]
    groups = [e.WriteGroup(wrote, b"w1", 5, 1, [put]), e.WriteGroup(read, b"w2", 5, 1, [reader])]
    h.do(e.Writes(groups, WALL_MS))
    commit(h)
    assert read.answers[0] == wrote.answers[0] == h.r.state.last_version


def transaction(seq: int, *writes: list[Any]) -> list[Any]:
    return [seq, KIND_TRANSACTION, b"k", [[], [], list(writes)], COND_NONE, None, 1]


def put(key: bytes, body: bytes = b"\x80", condition: int = COND_NONE, value: int | None = None) -> list[Any]:
    return [KIND_PUT, key, body, condition, value]


def test_a_refused_transaction_leaves_what_was_pending_before_it() -> None:
    h = serving()
    h.write(key=b"ka")
    before = h.r.state.overlay.pending[b"ka"]
    asked: Any = Asked()
    refused = transaction(2, put(b"ka", packb({"n": 2})), put(b"kb"), put(b"kc", b"\x80", COND_IF_VERSION, 7))
    h.do(e.Writes([e.WriteGroup(asked, b"w2", 5, 1, [refused])], WALL_MS))
    assert h.r.state.overlay.pending == {b"ka": before}


def test_a_transaction_may_write_a_row_twice() -> None:
    h = serving()
    asked: Any = Asked()
    twice = transaction(1, put(b"ka", packb({"n": 1})), put(b"ka", packb({"n": 2})))
    h.do(e.Writes([e.WriteGroup(asked, b"w2", 5, 1, [twice])], WALL_MS))
    commit(h)
    assert type(asked.answers[0]) is int
    row = h.r.reads.newest_row(b"ka")
    assert row is not None and row_columns(row) == packb({"n": 2})


def test_a_transaction_is_remembered_for_its_client_only() -> None:
    h = serving()
    begun = h.r.state.log.end
    asked: list[Any] = []
    for client in (b"", b"w"):
        asked.append(Asked())
        h.do(e.Writes([e.WriteGroup(asked[-1], client, 5, 1, [transaction(1, put(b"ka"))])], WALL_MS))
    again: Any = Asked()
    retry = [*transaction(1, put(b"ka"))[:6], 2]
    h.do(e.Writes([e.WriteGroup(again, b"w", 5, 1, [retry])], WALL_MS))
    commit(h)
    assert again.answers == asked[1].answers != asked[0].answers
    assert h.r.state.log.end - begun == 2
