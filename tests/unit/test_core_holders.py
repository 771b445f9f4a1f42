"""Who holds rows of a copy, condition by condition, with messages that come late, twice or never (rule R19)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ackord.wire.limits import Limits
from ackord.wire.messages import join_row
from ackord.wire.values import encode_columns
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.effects import Tell
from ackord_node.core.holders import FOREVER, Hold, Holders, longest_hold
from ackord_node.core.log import Entry
from ackord_node.core.types import Timing
from tests.support.core_hand import COPIES, serving
from tests.support.core_hand import Hand as Core

TIMING = Timing(drift_max=0.1)
LIMITS = Limits(cache_lease_ms=300, cached_rows_count=8)
ROW = join_row(5, encode_columns({"n": 1}))


class Hand:
    def __init__(self, limits: Limits = LIMITS) -> None:
        self.said: list[Tell] = []
        self.holders = Holders(7, TIMING, limits, self.said.append)
        self.holders.now = 0.0
        self.index = 0

    def hold(self, holder: str, *keys: bytes, now: float = 0.0, right_until: float = FOREVER) -> Hold:
        self.holders.now = now
        granted = self.holders.grant(holder, right_until, now)
        assert granted is not None
        for key in keys:
            assert self.holders.hold(granted[0], key)
        return granted[0]

    def bound(self) -> int | None:
        return self.holders.bound

    def is_lifted(self) -> bool:
        return self.holders.is_lifted

    def write(self, *keys: bytes, clock_ms: int = 0, now: float = 0.0) -> None:
        self.index += 1
        self.holders.now = now
        groups: list[Any] = [[b"", 0, 0, list(range(len(keys))), list(keys), [ROW] * len(keys)]]
        if clock_ms:
            groups = [[None, 0, clock_ms]]
        self.holders.appended(Entry.create(1, 1, self.index, 100 * self.index, groups))


def test_an_entry_waits_for_every_holder_of_every_key_that_it_touches() -> None:
    h = Hand()
    one, two = h.hold("one", b"a", b"b"), h.hold("two", b"b")
    h.hold("three", b"c")
    h.write(b"a", b"b", b"d")
    assert [(t.holder, t.number, t.seq, t.version, t.keys) for t in h.said] == [
        ("one", one.number, 1, 102, [b"a", b"b"]),
        ("two", two.number, 1, 102, [b"b"]),
    ]
    assert h.bound() == 0
    h.holders.answered("one", one.number, 1)
    assert h.bound() == 0 and not h.is_lifted()
    h.holders.answered("two", two.number, 1)
    assert h.bound() is None and h.is_lifted()
    assert h.holders.counts == (3, 1), "only c is held now"


def test_the_bound_is_below_the_first_entry_that_waits() -> None:
    h = Hand()
    one = h.hold("one", b"a")
    two = h.hold("two", b"b")
    h.write(b"x")
    h.write(b"a")
    h.write(b"b")
    assert h.bound() == 1
    h.holders.answered("two", two.number, 1)
    assert h.bound() == 1
    h.holders.answered("one", one.number, 1)
    assert h.bound() is None


def test_an_answer_of_another_hold_or_holder_counts_for_nothing() -> None:
    h = Hand()
    one = h.hold("one", b"a")
    h.write(b"a")
    h.holders.answered("one", one.number + 1, 1)
    h.holders.answered("two", one.number, 1)
    h.holders.answered("one", one.number, 0)
    assert h.bound() == 0
    h.holders.answered("one", one.number, 1)
    h.holders.answered("one", one.number, 1)
    assert h.bound() is None


def test_an_answer_to_an_earlier_message_does_not_stand_for_a_later_one() -> None:
    h = Hand()
    one = h.hold("one", b"a", b"b")
    h.write(b"a")
    h.write(b"a", b"b")
    h.holders.answered("one", one.number, 1)
    assert h.bound() == 1 and b"a" in h.holders.by_key
    assert not h.holders.hold(one, b"a"), "it was told to drop it, and has not said that it did"
    h.holders.answered("one", one.number, 2)
    assert h.bound() is None and h.holders.counts == (1, 0)
    assert h.holders.hold(one, b"a")


def test_who_was_told_of_an_entry_that_was_cut_must_answer_before_it_is_granted_the_key_again() -> None:
    """Else its late answer would make the node forget what it keeps by then."""
    h = Hand()
    one = h.hold("one", b"a")
    h.write(b"a")
    h.holders.cut(1)
    assert h.bound() is None
    assert not h.holders.hold(one, b"a")
    h.index = 0
    h.write(b"a")
    assert h.bound() == 0
    h.holders.answered("one", one.number, 1)
    assert h.bound() == 0, "the entry that is there now waits for the second message"
    h.holders.answered("one", one.number, 2)
    assert h.bound() is None


def test_a_cut_keeps_the_waits_below_it() -> None:
    h = Hand()
    h.hold("one", b"a", b"b")
    h.write(b"a")
    h.write(b"b")
    h.holders.cut(2)
    assert h.bound() == 0


def test_a_lease_is_waited_out_scaled_and_then_nothing_of_it_counts() -> None:
    h = Hand()
    one = h.hold("one", b"a")
    h.write(b"a")
    end = 0.3 * TIMING.scale
    h.holders.tick(end - 0.001)
    assert h.bound() == 0 and h.holders.latest == pytest.approx(end)
    h.holders.tick(end)
    assert h.bound() is None and h.holders.counts == (0, 0) and h.holders.lapsed_count == 1
    again = h.hold("one", b"a", now=end)
    assert again.number != one.number
    assert h.holders.renew("one", one.number, FOREVER, end) is None


def test_an_entry_does_not_wait_for_who_has_lapsed_already() -> None:
    h = Hand()
    h.hold("one", b"a")
    h.write(b"a", now=0.5)
    assert h.bound() is None and not h.said


def test_a_lease_that_lapsed_is_not_extended_but_begun_anew() -> None:
    h = Hand()
    one = h.hold("one", b"a")
    assert h.holders.renew("one", one.number, FOREVER, 0.5) is None
    assert h.hold("one", now=0.5) is not one and b"a" not in h.holders.by_key


def test_a_lease_is_extended_for_all_its_keys() -> None:
    h = Hand()
    one = h.hold("one", b"a")
    renewed = h.holders.renew("one", one.number, FOREVER, 0.2)
    assert renewed is not None and renewed[0] is one and renewed[1] == pytest.approx(0.3)
    assert h.holders.renew("two", one.number, FOREVER, 0.2) is None
    h.holders.tick(0.4)
    h.write(b"a", now=0.4)
    assert h.said and h.bound() == 0


def test_a_lease_ends_with_the_grantors_own_right() -> None:
    h = Hand()
    one = h.hold("one", b"a", right_until=0.1)
    assert one.raw == pytest.approx(0.1) and one.until == pytest.approx(0.1 * TIMING.scale)
    assert h.holders.grant("two", 0.1, 0.1) is None
    h.hold("one", right_until=0.05, now=0.01)
    assert one.raw == pytest.approx(0.1), "a shorter grant takes nothing back"


def test_who_owes_an_answer_is_not_extended_beyond_one_lease() -> None:
    h = Hand()
    one = h.hold("one", b"a", b"b")
    h.write(b"a", now=0.1)
    for now in (0.15, 0.2, 0.3):
        h.holders.renew("one", one.number, FOREVER, now)
    assert one.raw == pytest.approx(0.4)
    h.holders.answered("one", one.number, 1)
    h.holders.renew("one", one.number, FOREVER, 0.3)
    assert one.raw == pytest.approx(0.6)


def test_a_reading_of_the_clock_touches_the_rows_that_it_hides() -> None:
    h = Hand()
    h.hold("one", b"a", b"b", b"c")
    h.holders.expires(b"a", 1000)
    h.holders.expires(b"b", 2000)
    h.write(clock_ms=1000)
    assert [t.keys for t in h.said] == [[b"a"]]
    h.write(clock_ms=999)
    assert len(h.said) == 1


def test_after_a_restart_nothing_is_confirmed_while_an_earlier_runs_leases_may_last() -> None:
    h = Hand()
    h.holders.restarted(300, 10.0)
    assert h.bound() == 0
    h.holders.tick(10.0 + 0.3 * TIMING.scale - 0.001)
    assert h.bound() == 0 and h.holders.wake_at <= 10.0 + 0.3 * TIMING.scale
    h.holders.tick(10.0 + 0.3 * TIMING.scale)
    assert h.bound() is None and h.is_lifted() and h.holders.wake_at == FOREVER
    other = Hand()
    other.holders.restarted(0, 10.0)
    assert other.bound() is None


def test_numbers_of_holds_are_not_those_of_another_run() -> None:
    numbers = set()
    for incarnation in range(1, 50):
        holders = Holders(incarnation, TIMING, LIMITS, lambda tell: None)
        for holder in "abc":
            granted = holders.grant(holder, FOREVER, 0.0)
            assert granted is not None
            numbers.add(granted[0].number)
    assert len(numbers) == 49 * 3
    granted = Holders((1 << 62) - 1, TIMING, LIMITS, lambda tell: None).grant("a", FOREVER, 0.0)
    assert granted is not None and 0 <= granted[0].number < 1 << 63


def test_rows_of_one_holder_are_bounded_and_the_oldest_called_back() -> None:
    h = Hand()
    keys = [b"%d" % at for at in range(8)]
    one = h.hold("one", *keys)
    assert not h.holders.hold(one, b"more") and h.holders.hold(one, b"3")
    assert h.holders.wake_at <= 0.0
    h.holders.tick(0.0)
    assert [(t.keys, t.version) for t in h.said] == [([b"0", b"1"], 0)]
    assert h.bound() is None, "no write waits for it"
    assert not h.holders.hold(one, b"0"), "not before it answered"
    h.holders.answered("one", one.number, 1)
    assert h.holders.hold(one, b"more") and h.holders.counts == (1, 7)


def test_rows_that_are_being_told_are_not_called_back_as_well() -> None:
    h = Hand(replace(LIMITS, cached_rows_count=1))
    one = h.hold("one", b"a")
    h.write(b"a")
    assert not h.holders.hold(one, b"b")
    h.holders.tick(0.0)
    assert len(h.said) == 1


@pytest.mark.parametrize(
    ("confirm_timeout", "lease", "cache_lease_ms", "expected"),
    [(1.0, 1.0, 300, 0.3), (0.3, 1.0, 300, 0.1), (9.0, 0.2, 300, 0.2), (9.0, 9.0, 2000, 2.0)],
)
def test_a_lease_is_at_most_a_third_of_the_confirm_timeout(
    confirm_timeout: float, lease: float, cache_lease_ms: int, expected: float
) -> None:
    timing = Timing(confirm_timeout=confirm_timeout, lease=lease)
    assert longest_hold(timing, Limits(cache_lease_ms=cache_lease_ms)) == pytest.approx(expected)


def test_a_client_that_is_frozen_expels_no_member() -> None:
    assert longest_hold(Timing(confirm_timeout=0.6), Limits(cache_lease_ms=9000)) == pytest.approx(0.2)


def test_no_row_is_kept_that_a_pending_reading_of_the_clock_hides() -> None:
    """Rule R20: a coordinator still reads it, at its commit point."""
    h = serving()
    holding, clock = h.r.holding, h.r.state.clock
    row = join_row(5, encode_columns({"n": 1}), expires_ms=1500)
    clock.at_end = 1499
    assert holding.keeps(b"a", row)
    clock.at_end = 1500
    assert not holding.keeps(b"a", row)
    assert holding.keeps(b"a", ROW) and holding.keeps(b"a", None)


def test_a_suspect_copy_may_have_lost_its_record_and_waits_anyway() -> None:
    """Also for a lease that its record tells, and that is longer than any that is granted by now."""
    for meta, waits_ms in (
        (CopyMeta(COPIES["n1"], promised=3), None),
        (CopyMeta(COPIES["n1"], promised=3, suspect=True), 300),
        (CopyMeta(COPIES["n1"], promised=3, hold_ms=200), 200),
        (CopyMeta(COPIES["n1"], promised=3, suspect=True, hold_ms=900), 900),
    ):
        h = Core(meta=CopyMeta.decode(meta.encode()))
        holders = h.r.state.holders
        assert (holders.bound == 0) is (waits_ms is not None)
        if waits_ms is not None:
            assert abs(holders.quiet_until - waits_ms / 1000 * h.config.timing.scale) < 1e-9
