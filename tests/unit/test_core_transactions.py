"""Transactions at one coordinator, by hand: what fits a partition, and the version of what only reads (R21)."""

from __future__ import annotations

from typing import Any

import pytest

from ackord.errors import InvalidRequest
from ackord.wire.keys import KeySchema
from ackord.wire.messages import COND_NONE, KIND_PUT, KIND_TRANSACTION
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
