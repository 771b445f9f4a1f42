"""Rule R20 at the coordinator: when it reads the clock, when it looks for rows that expired, and what it deletes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ackord.wire.frames import packb
from ackord.wire.messages import OWN_MARK
from ackord.wire.options import TableOptions
from ackord_node.core import messages as m
from ackord_node.core.effects import ReadRows, RowsRead
from ackord_node.core.expiry import READ_INTERVAL_S, SWEEP_INTERVAL_S, Expiry, TabletClock
from ackord_node.core.progress import Progress
from ackord_node.core.upkeep import Upkeep
from tests.support.core_hand import COPIES, NODES, TABLET, Hand

TTL_S = 10
START_MS = 100_000


def row(version_ms: int, expires_ms: int = 0) -> bytes:
    own = OWN_MARK + expires_ms.to_bytes(8, "big") if expires_ms else b""
    return (version_ms << 16).to_bytes(8, "big") + own + packb({"n": 1})


class Sweeper:
    """An ``Expiry`` alone, with a wall clock that shows what ``wall_ms`` says and rows in ``rows``."""

    def __init__(self, clock_ms: int = START_MS, **options: Any) -> None:
        self.clock = TabletClock(TableOptions(**(options or {"ttl": TTL_S})), clock_ms)
        self.wall_ms = clock_ms
        self.rows: dict[bytes, bytes] = {}
        self.appended: list[list[list[Any]]] = []
        self.may_append = True
        self.out: list[Any] = []
        self.overlay = SimpleNamespace(unapplied={}, pending={})
        state: Any = SimpleNamespace(
            tells_wall=True,
            clock=self.clock,
            retention=None,
            options=TableOptions(ttl=TTL_S),
            overlay=self.overlay,
            upkeep=Upkeep(),
            out=self.out,
            wall_ms=lambda now: self.wall_ms,
        )
        self.progress: dict[str, Progress] = {}
        self.expiry = Expiry(state, self.progress, self._append)
        assert self.tick(0.0) == [ReadRows(b"")], "nobody knows yet what an earlier coordinator left"
        self.read()

    def _append(self, groups: list[list[Any]]) -> bool:
        if self.may_append:
            self.appended.append(groups)
            for group in groups:
                if group[0] is None:
                    self.clock.at_end = group[2]
        return self.may_append

    def put(self, key: bytes, found: bytes) -> None:
        self.rows[key] = found
        self.expiry.wrote(found)

    def tick(self, now: float) -> list[Any]:
        """What the tick wants to read."""
        self.expiry.tick([], now)
        wanted = [x for x in self.out if isinstance(x, ReadRows)]
        self.out.clear()
        return wanted

    def read(self, start: bytes = b"", next_key: bytes | None = None) -> None:
        listed = sorted(self.rows.items())
        event = RowsRead(start, listed, next_key)
        self.expiry.rows_read(event, self.rows.get)

    def is_looking(self, now: float) -> bool:
        return bool(self.tick(now))


def expired(count: int = 1) -> Sweeper:
    """So many rows expired at the clock's present reading, and nobody has looked yet."""
    sweeper = Sweeper()
    for number in range(count):
        sweeper.put(b"k%d" % number, row(START_MS - 50_000))
    return sweeper


def test_a_rows_own_expiry_goes_before_the_tables() -> None:
    clock = TabletClock(TableOptions(ttl=TTL_S), 0)
    assert clock.expiry_of(row(START_MS)) == START_MS + TTL_S * 1000
    assert clock.expiry_of(row(START_MS, START_MS + 1)) == START_MS + 1
    assert TabletClock(TableOptions(), 0).expiry_of(row(START_MS)) == 0


def test_the_clock_is_read_once_a_second() -> None:
    sweeper = Sweeper()
    sweeper.put(b"k", row(START_MS, START_MS + 1))
    for step in range(1, 31):
        sweeper.wall_ms = START_MS + 100 * step
        sweeper.put(b"k%d" % step, row(START_MS, START_MS + 100 * step))
        sweeper.tick(10 + step / 10)
    assert len(sweeper.appended) == 3, "three seconds"


def test_a_tick_looks_for_rows_only_when_some_may_have_expired() -> None:
    sweeper = Sweeper()
    sweeper.put(b"k", row(START_MS))
    assert not sweeper.is_looking(10.0)
    assert sweeper.expiry.wake_at == float("inf")


def test_it_looks_once_at_a_time_and_not_without_a_pause() -> None:
    sweeper = expired()
    assert sweeper.tick(10.0) == [ReadRows(b"")]
    assert not sweeper.is_looking(10.0 + 9 * SWEEP_INTERVAL_S), "the answer has not come"
    sweeper.may_append = False
    sweeper.read()
    assert sweeper.is_looking(10.0 + 10 * SWEEP_INTERVAL_S), "what could not be deleted is looked for again"
    sweeper.read()
    assert not sweeper.is_looking(10.0 + 10.5 * SWEEP_INTERVAL_S)
    assert sweeper.is_looking(10.0 + 11.1 * SWEEP_INTERVAL_S)


def test_what_has_expired_is_deleted_in_one_group_and_nothing_else() -> None:
    sweeper = expired(2)
    sweeper.put(b"stays", row(START_MS))
    sweeper.tick(10.0)
    sweeper.read()
    assert sweeper.appended == [[[b"", 0, 0, [0, 0], [b"k0", b"k1"], [None, None]]]]


def test_where_nothing_has_expired_nothing_is_appended() -> None:
    sweeper = expired(1)
    sweeper.rows[b"k0"] = row(START_MS)  # written again since
    sweeper.tick(10.0)
    sweeper.read()
    assert not sweeper.appended


def test_a_row_that_was_deleted_since_it_was_read_is_left_alone() -> None:
    sweeper = expired(2)
    sweeper.tick(10.0)
    event = RowsRead(b"", sorted(sweeper.rows.items()), None)
    del sweeper.rows[b"k0"]
    sweeper.expiry.rows_read(event, sweeper.rows.get)
    assert sweeper.appended == [[[b"", 0, 0, [0], [b"k1"], [None]]]]


def test_rows_that_an_earlier_look_asked_for_count_for_nothing() -> None:
    """They were read for an earlier coordinator, or for an earlier part of the cycle."""
    sweeper = expired()
    sweeper.read()
    assert not sweeper.appended, "nobody asked"
    sweeper.tick(10.0)
    sweeper.read(b"x")
    assert not sweeper.appended


def test_a_cycle_goes_on_where_it_stopped_and_ends_with_the_earliest_expiry_that_it_saw() -> None:
    sweeper = expired()
    sweeper.put(b"later", row(START_MS, START_MS + 500))
    assert sweeper.tick(10.0) == [ReadRows(b"")]
    sweeper.read(next_key=b"m")
    del sweeper.rows[b"k0"]
    assert sweeper.tick(10.1) == [ReadRows(b"m")], "the rest of the rows has not been seen yet"
    sweeper.read(b"m")
    assert not sweeper.is_looking(10.2)
    sweeper.clock.at_end = START_MS + 499
    assert not sweeper.is_looking(10.3)
    sweeper.clock.at_end = START_MS + 500
    assert sweeper.tick(10.4) == [ReadRows(b"")]


def test_rows_that_are_not_stored_yet_count_in_a_cycle() -> None:
    sweeper = expired()
    sweeper.overlay.pending[b"p"] = (1, row(START_MS, START_MS + 300))
    sweeper.overlay.unapplied[b"gone"] = (1, None)
    sweeper.tick(10.0)
    del sweeper.rows[b"k0"]
    sweeper.read()
    sweeper.clock.at_end = START_MS + 300
    assert sweeper.is_looking(10.0 + 2 * SWEEP_INTERVAL_S)


def test_members_tell_their_wall_clock_only_where_rows_expire() -> None:
    assert READ_INTERVAL_S > 0
    h = Hand("n2")
    h.beacon(3, 0, 0, request=h.now, seconds=5.0)
    (confirm,) = h.sent(m.BEACON_CONFIRM)
    assert confirm[:4] == [m.BEACON_CONFIRM, TABLET, 3, COPIES[NODES[1]]]
    assert len(confirm) == 8
