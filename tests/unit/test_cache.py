"""What a client keeps of rows, for how long, and what it refuses to keep (rule R19)."""

from __future__ import annotations

import inspect
from collections import deque
from typing import Any, cast

import pytest

import ackord
from ackord.cache import CacheOptions, Lease, RowCache
from ackord.caching import CHECK_S, CachedTable, Caching
from ackord.holding import Hold, HoldGroup, KeepGroup
from ackord.wire.limits import Limits
from ackord.wire.messages import OP_HOLD, OP_KEEP, WHOLE_GROUP, join_row
from ackord.wire.values import encode_columns
from ackord_node.server.groups import GroupChecker

LEASE_S = 0.3


def raw(n: int) -> bytes:
    return join_row(n, encode_columns({"n": n}))


def lease(until: float = 100.0, number: int = 1) -> Lease:
    made = Lease("n1", 7, number)
    made.until = until
    return made


def cache(rows_max: int = 100, bytes_max: int = 1 << 20) -> RowCache:
    return RowCache(CacheOptions(rows_max, bytes_max), LEASE_S)


def keep(c: RowCache, key: str, n: int | None, under: Lease, as_of: int = 1, now: float = 0.0) -> None:
    c.keep(key.encode(), ((key,), key), None if n is None else raw(n), under, as_of, now)


def n_of(c: RowCache, key: str, now: float = 0.0) -> Any:
    kept = c.find(key.encode(), key, now)
    return "none" if kept is None else None if kept.row is None else kept.row["n"]


# ------------------------------------------------------------------------------------- the rows


def test_a_row_is_found_under_every_form_of_its_key_while_its_lease_stands() -> None:
    c, under = cache(), lease(until=1.0)
    keep(c, "a", 1, under)
    assert c.names["a"] is c.names["a",] and n_of(c, "a") == 1
    assert c.find(b"a", ["a"], 0.5) is c.names["a"], "a list is no name, but a key"
    assert n_of(c, "a", now=1.0) == "none"
    under.until = 2.0
    assert n_of(c, "a", now=1.0) == 1, "the lease was extended for all that is under it"
    assert c.find(b"b", "b", 0.0) is None


def test_that_there_is_no_row_is_kept_like_a_row() -> None:
    c = cache()
    keep(c, "a", None, lease())
    assert n_of(c, "a") is None
    c.told([b"a"], 5, 0.0)
    assert n_of(c, "a") == "none"


def test_what_is_told_is_dropped_and_an_earlier_reading_of_it_not_kept_any_more() -> None:
    c = cache()
    keep(c, "a", 1, lease(), as_of=10)
    c.told([b"a", b"b"], 20, 0.0)
    assert n_of(c, "a") == "none" and not c.names
    for key in ("a", "b"):
        keep(c, key, 1, lease(), as_of=19)
        assert n_of(c, key) == "none"
        keep(c, key, 2, lease(), as_of=20)
        assert n_of(c, key) == 2
    assert c.stats.invalidations == 1 and c.stats.rows == 2
    c.told([b"a"], 5, 0.0)
    keep(c, "a", 1, lease(), as_of=19)
    assert n_of(c, "a") == "none", "a floor is never lowered"


def test_a_reading_that_comes_late_does_not_replace_a_later_one() -> None:
    c, old = cache(), lease(until=0.5, number=2)
    keep(c, "a", 2, old, as_of=20)
    keep(c, "a", 1, lease(), as_of=19)
    assert n_of(c, "a") == 2
    keep(c, "a", 1, lease(), as_of=19, now=0.6)
    assert n_of(c, "a", now=0.6) == 1, "that one may not be answered any more, this one may"


def test_a_row_whose_lease_is_over_when_it_comes_is_not_kept() -> None:
    c = cache()
    keep(c, "a", 1, lease(until=1.0), now=1.0)
    assert c.stats.rows == 0


def test_floors_are_forgotten_once_nothing_older_could_be_kept_anyway() -> None:
    c = cache()
    c.told([b"a"], 20, 0.0)
    c.told([b"b"], 20, LEASE_S + 0.01)
    keep(c, "a", 1, lease(), as_of=1)
    keep(c, "b", 1, lease(), as_of=1)
    assert n_of(c, "a") == 1 and n_of(c, "b") == "none"


def test_floors_that_are_too_many_become_one_for_all() -> None:
    c = cache(rows_max=3)
    for at in range(5):
        c.told([b"%d" % at], 10 + at, 0.0)
    assert len(c._floors) == 3
    keep(c, "other", 1, lease(), as_of=10)
    assert n_of(c, "other") == "none"
    keep(c, "other", 1, lease(), as_of=11)
    assert n_of(c, "other") == 1
    keep(c, "4", 1, lease(), as_of=13)
    assert n_of(c, "4") == "none"


def test_rows_and_bytes_are_bounded_and_what_is_used_stays_longer() -> None:
    c = cache(rows_max=3)
    for key in "abc":
        keep(c, key, 1, lease())
    c.names["a"].is_used = True
    keep(c, "d", 1, lease())
    assert set(c.names) == {"a", "c", "d", ("a",), ("c",), ("d",)}
    c.names["a"].is_used = False
    keep(c, "e", 1, lease())
    keep(c, "f", 1, lease())
    assert "a" in c.names or "d" in c.names
    assert c.stats.rows == 3 and c.stats.evictions == 3
    small = cache(bytes_max=1500)
    for at in range(10):
        keep(small, str(at), at, lease())
    assert small.stats.bytes <= 1500 and 1 < small.stats.rows < 5
    keep(small, "big", 1, lease())
    small.keep(b"huge", (("huge",),), b"x" * 5000, lease(), 1, 0.0)
    assert small.stats.bytes <= 1500


def test_bytes_are_counted_down_again() -> None:
    c = cache()
    for n in range(50):
        keep(c, "a", n, lease())
    once = c.stats.bytes
    c.told([b"a"], 0, 0.0)
    assert once < 1000 and c.stats.bytes == 0 and not c.names and not c._floors


@pytest.mark.parametrize(
    "options", [{"rows_max": 0}, {"bytes_max": -1}, {"rows_max": 1.5}, {"bytes_max": True}]
)
def test_bounds_are_positive_ints(options: dict[str, Any]) -> None:
    with pytest.raises(ackord.InvalidRequest):
        CacheOptions(**options)


# ------------------------------------------------------------------------------------ the leases


class Link:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_up = True
        self.backlog: deque[Any] = deque()
        self.sent: list[Any] = []
        self.groups: list[Any] = []

    def pump(self) -> None:
        while self.backlog:
            group = self.backlog.popleft()
            self.groups.append(group)
            self.sent.append(group.encode(len(self.groups)))


class Desk:
    """A store's caching between hand-made links, with a clock by hand."""

    name = "t"
    id = 7

    def __init__(self) -> None:
        self.now = 10.0
        self.links = {name: Link(name) for name in ("n1", "n2")}
        self.limits = Limits()
        self.routing = self
        self.boot_now = lambda: self.now
        self.soon: list[Any] = []
        self.call_soon = self.soon.append
        self.on_told: Any = None
        self.caching = Caching(cast(Any, self), cast(Any, self))
        self.cache = self.caching.cache_of("t", CacheOptions())

    def ask(self, *keys: str) -> HoldGroup:
        holds = []
        for key in keys:
            hold = Hold(cast(Any, None), cast(Any, self), cast(Any, self), (key,), key.encode(), 0.0)
            hold.keeper, hold.name = self.caching, key
            holds.append(hold)
        group = HoldGroup(OP_HOLD, cast(Any, self), holds)
        assert group.encode(3) == [3, OP_HOLD, 7, [key.encode() for key in keys]]
        return group

    def tell(self, node: str, number: int, seq: int, version: int, *keys: str) -> None:
        self.on_told(self.links[node], [7, number], [seq, version, [key.encode() for key in keys]])

    def turn(self) -> None:
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            call()


def test_a_lease_counts_from_the_question_however_late_the_answer_is() -> None:
    d = Desk()
    group = d.ask("a", "b", "c")
    d.now += 0.2
    rows = group.unwrapped("n1", None, [[raw(1), [5, 0.3, 9]], [None, [5, 0.3, 9]], [raw(3), None]])
    assert rows == [raw(1), None, raw(3)]
    assert n_of(d.cache, "a", d.now) == 1 and n_of(d.cache, "b", d.now) is None
    assert n_of(d.cache, "c", d.now) == "none", "no grant came with it"
    d.now += 0.1001
    assert n_of(d.cache, "a", d.now) == "none"


def test_a_part_of_an_answer_and_an_error_are_passed_on() -> None:
    d = Desk()
    group = d.ask("a", "b")
    error = [3, "no", {}, None]
    assert group.unwrapped("n1", WHOLE_GROUP, error) is error
    assert group.unwrapped("n1", [1], [[raw(1), [5, 0.3, 9]]]) == [raw(1)]
    assert group.unwrapped("n1", [0], [error]) == [error]
    assert n_of(d.cache, "b", d.now) == 1 and n_of(d.cache, "a", d.now) == "none"
    for wrong in ([raw(1), [5]], [raw(1), 7], [raw(1), ["x", "y", "z"]]):
        with pytest.raises((ValueError, TypeError)):
            d.ask("a").unwrapped("n1", None, [wrong])


def test_another_number_is_another_lease() -> None:
    """Under the first the node answers for nothing any more."""
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    d.now += 0.2
    d.ask("b").unwrapped("n1", None, [[raw(2), [6, 0.3, 9]]])
    d.now += 0.15
    assert n_of(d.cache, "a", d.now) == "none" and n_of(d.cache, "b", d.now) == 2


def test_nothing_is_answered_after_the_lease_without_looking() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, CHECK_S / 2, 9]]])
    under = d.cache.names["a"].lease
    assert under.check_at == under.until
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    assert under.check_at == pytest.approx(d.now + CHECK_S)
    d.now = under.until - CHECK_S / 2
    d.caching.used(under, d.now)
    assert under.check_at == under.until


def test_a_told_row_is_dropped_before_that_is_said_and_said_once_for_several() -> None:
    d = Desk()
    d.ask("a", "b").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]], [raw(2), [5, 0.3, 9]]])
    d.tell("n1", 5, 1, 20, "a")
    d.tell("n1", 5, 2, 20, "b")
    d.tell("n2", 8, 4, 20, "z")
    assert not d.cache.names and not d.links["n1"].sent
    d.turn()
    assert d.links["n1"].sent == [[1, OP_KEEP, 7, 5, 2]]
    assert d.links["n2"].sent == [[1, OP_KEEP, 7, 8, 4]]
    d.turn()
    assert len(d.links["n1"].sent) == 1


def test_a_lease_that_is_used_is_extended_from_when_that_was_asked() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    under, begun = d.cache.names["a"].lease, d.now
    d.now += 0.1
    assert d.caching.used(under, d.now) and not d.links["n1"].sent
    d.now += 0.1
    d.caching.used(under, d.now)
    d.caching.used(under, d.now)
    (group,) = d.links["n1"].groups
    assert d.links["n1"].sent == [[1, OP_KEEP, 7, 5, 0]]
    d.now += 0.05
    assert group.unwrapped("n1", None, [[5, 0.3]]) == []
    assert under.until == pytest.approx(begun + 0.5)
    group.unwrapped("n1", None, [[6, 9.0]])
    group.unwrapped("n1", None, [None])
    group.unwrapped("n1", WHOLE_GROUP, [3, "no", {}, None])
    assert under.until == pytest.approx(begun + 0.5)


def test_what_is_said_of_leases_is_never_sent_again_and_not_to_a_node_that_is_away() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    d.links["n1"].is_up = False
    d.tell("n1", 5, 1, 20, "a")
    del d.links["n2"]
    d.on_told(Link("n2"), [7, 1], [1, 0, []])
    d.turn()
    assert not d.links["n1"].sent
    group = KeepGroup(7, 5, 1, lambda: 0.0, lambda grant, at: None)
    assert not group.future.done() and group.take_all() == [] == group.ops


def test_the_loop_gets_a_turn_now_and_then() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    under = d.cache.names["a"].lease
    assert d.caching.used(under, d.now) and not d.caching.used(under, d.now + CHECK_S / 2)
    assert d.caching.used(under, d.now + CHECK_S)


def test_a_cached_get_takes_what_a_get_takes() -> None:
    def arguments(kind: type[ackord.Table]) -> list[Any]:
        signature = inspect.signature(kind.get)
        given = [(one.name, one.annotation, one.default) for one in signature.parameters.values()]
        return [given, signature.return_annotation]

    assert arguments(CachedTable) == arguments(ackord.Table)


def test_after_the_store_is_closed_nothing_is_answered() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])
    late = d.ask("b")
    d.caching.close()
    late.unwrapped("n1", None, [[raw(1), [5, 0.3, 9]]])  # while the streams end
    assert not d.cache.names and d.cache.stats.bytes == 0


def test_no_lease_is_longer_than_floors_are_remembered() -> None:
    d = Desk()
    d.ask("a").unwrapped("n1", None, [[raw(1), [5, 1000.0, 9]]])
    assert d.cache.find(b"a", "a", 10.3 - 1e-6) is not None
    assert d.cache.find(b"a", "a", 10.3 + 1e-6) is None


def test_nodes_check_what_a_client_says_of_its_rows() -> None:
    check = GroupChecker(Limits()).check
    assert check([1, OP_HOLD, 7, [b"a", b"b"]]) == 2 and check([1, OP_KEEP, 7, 5, 0]) == 1
    for wrong in (
        [1, OP_HOLD, 7],
        [1, OP_HOLD, 7, ["a"]],
        [1, OP_KEEP, 7, 5],
        [1, OP_KEEP, 7, -1, 0],
        [1, OP_KEEP, 7, 5, b""],
    ):
        with pytest.raises(ackord.InvalidRequest):
            check(wrong)
