"""Feeding the other copies, hand-fed: what is sent when, after which answer, and what expels (R3, R13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.messages import check
from ackord_node.core.types import LogLimits
from tests.support.core_hand import TABLET, TIMING, Hand, coordinator, entries, serving

SMALL = replace(LogLimits(), append_bytes=60, inflight_bytes=100)


def appends(h: Hand, to: str) -> list[tuple[int, int]]:
    """(previous index, number of records) of each append since ``forget``."""
    return [(x[3], len(x[6])) for x in h.sent(m.APPEND, to)]


def mismatch(h: Hand, node: str, probed: int, safe: int = 0) -> None:
    copies = {"n2": 2, "n3": 3}
    h.hear(node, m.MISMATCH, TABLET, h.epoch, copies[node], probed, safe)


def test_a_replica_is_probed_once_and_fed_after_its_answer() -> None:
    h = coordinator(settled=False, tail=entries(3))
    h.store()
    h.answer_inquiry("n2")
    h.answer_inquiry("n3")
    assert appends(h, "n2") == [(3, 0)]
    h.tick(TIMING.retry_interval - 0.01)
    h.write()
    assert appends(h, "n2") == [(3, 0)], "one message until it answers"
    h.tick(0.02)
    assert appends(h, "n2") == [(3, 0), (3, 1)], "again, as the first may be lost"
    h.forget()
    h.confirm("n2", 3)
    assert appends(h, "n2") == [(3, 1)]


def test_several_appends_are_in_flight_up_to_a_limit() -> None:
    h = serving(log=SMALL)
    for seq in range(1, 6):
        h.write(seq=seq)
    assert appends(h, "n2") == [(0, 1), (1, 1)]
    h.forget()
    h.store()
    h.confirm("n2", 1)
    assert appends(h, "n2")[0][0] == 2


def test_nothing_is_sent_where_no_link_is() -> None:
    h = serving()
    h.do(e.PeerDown("n2", refused=False))
    h.write()
    assert h.sent(m.APPEND, "n2") == []
    assert h.sent(m.APPEND, "n3")
    assert h.c.progress["n2"].next == 1


def test_lost_appends_are_sent_again_from_what_was_confirmed() -> None:
    h = serving(tail=entries(2))
    h.write()
    h.forget()
    h.tick(2 * TIMING.retry_interval - 0.01)
    assert appends(h, "n2") == []
    h.tick(0.02)
    assert appends(h, "n2") == [(2, 1)]


def trimmed(first_in_memory: int = 6) -> Hand:
    """The log's entries 1 to 5 are on disk only; 1 to ``first_in_memory`` - 6 ... are trimmed."""
    h = serving(tail=entries(8))
    log = h.r.state.log
    h.store()
    log.release(5, 0)
    assert log.first == first_in_memory
    h.forget()
    return h


def test_what_is_not_in_memory_is_read_from_disk_once() -> None:
    h = trimmed()
    p = h.c.progress["n2"]
    p.confirmed = 0
    p.next, p.probing = 3, False
    h.c.replication.send(p, h.now)
    h.tick()
    h.tick(1.0)
    assert h.did(e.ReadLog) == [e.ReadLog("n2", 3)]
    h.forget()
    records = [x.record for x in entries(2, first=3)]
    h.do(e.LogRead("n2", 3, records))
    assert appends(h, "n2")[0] == (2, 2)
    assert h.did(e.ReadLog) == [e.ReadLog("n2", 5)]
    h.do(e.LogRead("n3", 5, records))
    assert appends(h, "n3") == [], "an answer to nothing"


@pytest.mark.parametrize("broken", [[], [b"short"]])
def test_what_cannot_be_read_comes_by_snapshot(broken: list[bytes]) -> None:
    h = trimmed()
    p = h.c.progress["n2"]
    p.confirmed, p.next, p.probing = 0, 3, False
    h.c.replication.send(p, h.now)
    h.do(e.LogRead("n2", 3, broken))
    assert h.did(e.OpenSnapshot)


def test_a_reading_that_is_overtaken_is_not_sent() -> None:
    h = trimmed()
    p = h.c.progress["n2"]
    p.confirmed, p.next, p.probing = 0, 3, False
    h.c.replication.send(p, h.now)
    p.next = 9
    h.do(e.LogRead("n2", 3, [x.record for x in entries(2, first=3)]))
    assert appends(h, "n2") == []
    assert not p.reading


def test_a_mismatch_leads_to_a_probe_where_it_is_safe() -> None:
    h = coordinator(tail=entries(8))
    h.forget()
    mismatch(h, "n2", 8, safe=4)
    assert appends(h, "n2") == [(4, 4)]
    p = h.c.progress["n2"]
    assert p.probing
    h.forget()
    mismatch(h, "n2", 4, safe=1)
    assert appends(h, "n2") == [(1, 7)]


def test_a_mismatch_of_what_was_confirmed_expels() -> None:
    """Rule R13, if the answer is to the present probe; others were overtaken by a confirmation."""
    h = serving(tail=entries(4))
    p = h.c.progress["n2"]
    mismatch(h, "n2", 4)
    assert not p.expelled, "no probe is under way"
    h.do(e.PeerUp("n2"))
    assert p.probing
    mismatch(h, "n2", 3)
    assert not p.expelled, "the probe is at 4"
    mismatch(h, "n2", 4)
    assert p.expelled


def test_a_snapshot_is_closed_with_its_coordinator() -> None:
    h = serving()
    h.c.progress["n2"].snapshot_id = 5
    h.hear("n3", m.BEACON, TABLET, 9, h.now, 0, 0, -1.0, 0.0, 0, 0)
    assert h.r.coordinator is None
    assert h.did(e.CloseSnapshot) == [e.CloseSnapshot("n2", 5)]


def test_nothing_else_is_sent_while_a_snapshot_is() -> None:
    h = serving()
    p = h.c.progress["n2"]
    p.snapshot_id, p.snapshot_sent_at = 5, h.now
    h.write()
    h.tick(1.0)
    mismatch(h, "n2", 1)
    assert h.sent(m.APPEND, "n2") == []
    assert p.snapshot_id == 5


# ---------------------------------------------------------------------------------------- messages


GOOD: list[Any] = [m.CONFIRM, TABLET, 3, 2, 1]


@pytest.mark.parametrize(
    "bad",
    [
        "text",
        (m.CONFIRM, TABLET, 3, 2, 1),
        [],
        [m.CONFIRM, TABLET],
        ["kind", TABLET, 3, 2, 1],
        [[m.CONFIRM], TABLET, 3, 2, 1],
        [99, TABLET, 3, 2, 1],
        [m.CONFIRM, TABLET, 3, 2],
        [m.CONFIRM, TABLET, 3, 2, 1, 0],
        [m.CONFIRM, "7", 3, 2, 1],
        [m.APPEND, TABLET, 3, 0, 0, 0, [x.record for x in (entries(1) + entries(1, first=3))], 0],
        [m.APPEND, TABLET, 3, 1, 3, 0, [x.record for x in entries(1)], 0],
        [m.CONFIRM, TABLET, None, 2, 1],
    ],
)
def test_what_has_not_the_shape_of_a_message_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="peer message"):
        check(bad)
    assert check(GOOD) is GOOD
