"""Reads of earlier versions at one replica: what they wait for before they answer (rules R12, R20)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from ackord.errors import Unavailable
from ackord.wire.messages import OP_AS_OF, OP_CELLS, WHOLE_GROUP, error_to_wire
from ackord_node.adapters.engine_memory import MemoryEngine
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.log import Entry
from ackord_node.runtime import version_reads
from ackord_node.runtime.requests import Deferred
from ackord_node.runtime.version_reads import VersionReads
from tests.support.core_hand import NODES, TABLET, Hand, descriptor
from tests.unit.test_core_expiry import EXPIRES_MS, KEY, ROW, member

AS_OF = 10  # the version of the row


class HandHost:
    """As much of a tablet's host as these reads need, around a replica that is fed by hand."""

    tablet = TABLET

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        self.replica = hand.r
        self.answers: list[Any] = []
        self.reads = VersionReads(self, MemoryEngine(), cast(Any, self))

    def now(self) -> float:
        return self.hand.now

    def wall_ms(self) -> int:
        return 0

    def feed(self, event: e.Event) -> None:
        self.hand.do(event)

    def selection(self, options: list[Any]) -> Any:
        raise AssertionError(options)

    def elsewhere(self, reason: str) -> list[Any]:
        return error_to_wire(Unavailable("not here", reason=reason))

    def guarded(self, rid: int, read: Callable[[], list[Any]], respond: Callable[[list[Any]], None]) -> None:
        respond([rid, None, read()])

    def ask(self, as_of: int) -> None:
        self.reads.take([1, OP_AS_OF, TABLET, [KEY], as_of], self.answers.append)

    def hears(self, *message: Any) -> None:
        """As the tablet's host does with what it hears."""
        for effect in self.replica.step(e.Received("n1", 11, list(message)), self.hand.now):
            if isinstance(effect, e.Reply) and isinstance(effect.request, Deferred):
                effect.request.answer(effect.indices, effect.results)


def test_a_read_as_of_a_version_waits_for_a_pending_reading_of_the_clock() -> None:
    """Another replica may have said by it already that the row is gone, or that the version is no longer kept."""
    host = HandHost(member())
    assert host.replica.state.clock.at_end == EXPIRES_MS
    host.ask(AS_OF)
    assert host.answers == []
    host.hears(m.COMMIT, TABLET, 3, 2)
    assert host.answers == [[1, None, [None]]]


def test_a_read_as_of_a_version_waits_until_that_is_committed() -> None:
    """What is not committed may still be cut, and another write be the one of that version."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    h.append(3, 0, 0, 1, [Entry.create(TABLET, 3, 1, 10, [[b"c", 1, 0, [1], [KEY], [ROW]]])])
    newer = (20).to_bytes(8, "big") + ROW[8:]
    h.append(3, 1, 3, 1, [Entry.create(TABLET, 3, 2, 20, [[b"c", 1, 0, [2], [KEY], [newer]]])])
    h.beacon(3, 1, 0, request=h.now, seconds=5.0)
    host = HandHost(h)
    host.ask(20)
    assert host.answers == []
    host.ask(AS_OF)
    assert host.answers == [[1, None, [ROW]]], "what is committed is settled"
    host.hears(m.COMMIT, TABLET, 3, 2)
    assert host.answers[1:] == [[1, None, [newer]]]


@pytest.mark.parametrize("as_of", [1_000, 100_000 << 16])
def test_a_version_that_this_copy_has_not_reached_is_for_the_coordinator(as_of: int) -> None:
    """However far it lies ahead of this node's clock: it may have been acknowledged."""
    host = HandHost(member())
    host.ask(as_of)
    ((rid, places, error),) = host.answers
    assert (rid, places) == (1, WHOLE_GROUP) and error[2]["reason"] == "not_coordinator"


def test_large_rows_end_an_answer_before_it_holds_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group may name thousands of keys, and a row may have megabytes."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    h.append(3, 0, 0, 1, [Entry.create(TABLET, 3, 1, 10, [[b"c", 1, 0, [1], [KEY], [ROW]]])])
    h.beacon(3, 1, 0, request=h.now, seconds=5.0)
    host = HandHost(h)
    monkeypatch.setattr(version_reads, "GET_BYTES_MAX", len(ROW) + 1)
    host.reads.take([1, OP_AS_OF, TABLET, [KEY] * 4, AS_OF], host.answers.append)
    host.reads.take([2, OP_CELLS, TABLET, [KEY] * 4, 1, None, None], host.answers.append)
    refused = host.elsewhere("overloaded")
    assert host.answers[0] == [1, None, [ROW, ROW, refused, refused]]
    assert [row == refused for row in host.answers[1][2]] == [False, True, True, True], "cells take more"
