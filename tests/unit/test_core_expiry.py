"""Rule R20 at one replica: what a reading of the tablet's clock hides, and when."""

from __future__ import annotations

from ackord.wire.frames import packb
from ackord.wire.messages import OWN_MARK
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.log import Entry
from tests.support.core_hand import NODES, TABLET, WALL_MS, Asked, Hand, descriptor, serving

KEY = b"k"
EXPIRES_MS = 5000
ROW = (10).to_bytes(8, "big") + OWN_MARK + EXPIRES_MS.to_bytes(8, "big") + packb({"n": 1})


def reading(index: int, clock_ms: int) -> Entry:
    return Entry.create(TABLET, 3, index, index * 10, [[None, 0, clock_ms]])


def member() -> Hand:
    """n2 holds a lease; a row that expires is committed, and a reading of the clock that hides it is not."""
    h = Hand("n2")
    h.do(e.DescriptorSeen(descriptor(*NODES, coordinator="n1", incarnation=11), 4))
    row = Entry.create(TABLET, 3, 1, 10, [[None, 0, 1], [b"c", 1, 0, [1], [KEY], [ROW]]])
    h.append(3, 0, 0, 1, [row])
    h.append(3, 1, 3, 1, [reading(2, EXPIRES_MS)])
    h.beacon(3, 1, 0, request=h.now, seconds=5.0)
    return h


def test_a_read_waits_for_a_reading_that_hides_its_row() -> None:
    """Another replica may have answered by it already (rule R12)."""
    h = member()
    asked = Asked()
    assert h.r.get_many(asked, [KEY, b"other"], h.now) == ([None, None], [0])
    effects = h.hear("n1", m.COMMIT, TABLET, 3, 2)
    replies = [x for x in effects if isinstance(x, e.Reply)]
    assert [(x.indices, x.results) for x in replies] == [([0], [None])]


def test_a_range_waits_for_a_reading_of_the_clock() -> None:
    h = member()
    assert h.r.has_pending_in(b"x", b"y")
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert not h.r.has_pending_in(b"", None)


def test_a_row_is_shown_until_the_clock_has_reached_its_expiry() -> None:
    h = member()
    assert h.r.reads.committed_row(KEY) == ROW
    h.append(3, 2, 3, 1, [reading(3, EXPIRES_MS - 1)])
    assert h.r.reads.committed_row(KEY) == ROW
    h.hear("n1", m.COMMIT, TABLET, 3, 2)
    assert h.r.reads.committed_row(KEY) is None
    assert h.r.reads.stored_row(KEY) == ROW, "it is hidden, not deleted"
    assert h.r.reads.newest_row(KEY) is None


def test_a_write_is_judged_by_the_reading_at_the_logs_end() -> None:
    h = member()
    assert h.r.reads.newest_row(KEY) is None
    assert h.r.reads.committed_row(KEY) == ROW


def test_a_tablet_in_which_nothing_expires_has_no_clock() -> None:
    h = serving("n1", min_in_sync=1)
    end = h.r.state.log.end
    for seconds in range(5):
        h.do(e.Tick(WALL_MS + 1000 * seconds), h.now + 1)
    assert h.r.state.log.end == end
