"""One suite for every adapter of the `Engine` port: what a commit makes durable and what the readers see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackord_node.adapters.engine_memory import MemoryDisk, MemoryEngine
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.ports import Batch, Engine, EngineError, EngineFailed, EngineLocked
from tests.sim.disk import SimDisk, SimEngine

EngineMaker = Callable[[], Engine]
NO_LIMIT = 1 << 40


@pytest.fixture(params=["memory", "sim", "rocksdb"])
def make_engine(request: pytest.FixtureRequest, tmp_path: Path) -> EngineMaker:
    """Makes engines that are not open yet, all over the same disk."""
    if request.param == "memory":
        disk = MemoryDisk()
        return lambda: MemoryEngine(disk)
    if request.param == "sim":
        sim_disk = SimDisk(wal_bytes_max=1024)
        return lambda: SimEngine(sim_disk)
    return lambda: RocksEngine(tmp_path / "data", reserve_bytes=0, write_buffer_bytes=1 << 20)


@pytest.fixture
def engine(make_engine: EngineMaker) -> Iterator[Engine]:
    engine = make_engine()
    engine.open()
    yield engine
    engine.close()


def all_rows(engine: Engine, tablet: int) -> list[tuple[bytes, bytes]]:
    rows, is_exhausted = engine.scan(tablet, b"", None, False, NO_LIMIT, NO_LIMIT)
    assert is_exhausted
    return rows


def whole_log(engine: Engine, tablet: int, first: int) -> list[int]:
    return [index for index, _ in engine.read_log(tablet, first, 10_000, NO_LIMIT)]


def log_batch(tablet: int, first: int, last: int) -> Batch:
    return Batch(log=[(tablet, index, b"record %d" % index) for index in range(first, last + 1)])


# ----------------------------------------------------------------------------------------- commit


def test_new_store_is_empty(engine: Engine) -> None:
    assert engine.metas() == {}
    assert engine.node_facts() == {}
    assert engine.log_bounds(1) is None
    assert engine.requests(1) == []
    assert engine.get(1, b"key") is None
    assert engine.get_many(1, [b"a", b"b"]) == [None, None]
    assert engine.get_many(1, []) == []
    assert all_rows(engine, 1) == []
    assert engine.read_log(1, 1, 10, NO_LIMIT) == []
    assert not engine.suspect


def test_empty_batch_commits(engine: Engine) -> None:
    engine.commit(Batch())
    assert engine.metas() == {}


def test_one_batch_carries_every_space_of_many_tablets(engine: Engine) -> None:
    engine.commit(
        Batch(
            meta={1: b"meta 1", 2: b"meta 2"},
            log=[(1, 5, b"five"), (2, 1, b"one")],
            rows=[(1, b"a", b"A"), (2, b"a", b"other A"), (1, b"", b"empty key"), (1, b"\xff\xff", b"")],
            requests=[(1, b"client", b"done"), (2, b"client", b"other")],
            node={"cluster": b"c1", "näme": b"n1"},
        )
    )
    assert engine.metas() == {1: b"meta 1", 2: b"meta 2"}
    assert engine.node_facts() == {"cluster": b"c1", "näme": b"n1"}
    assert engine.read_log(1, 5, 10, NO_LIMIT) == [(5, b"five")]
    assert engine.read_log(2, 1, 10, NO_LIMIT) == [(1, b"one")]
    assert all_rows(engine, 1) == [(b"", b"empty key"), (b"a", b"A"), (b"\xff\xff", b"")]
    assert engine.get_many(1, [b"a", b"missing", b"", b"a"]) == [b"A", None, b"empty key", b"A"]
    assert engine.get(2, b"a") == b"other A"
    assert engine.requests(1) == [(b"client", b"done")]
    assert engine.requests(2) == [(b"client", b"other")]


def test_later_entries_of_a_batch_win(engine: Engine) -> None:
    engine.commit(
        Batch(
            rows=[(1, b"a", b"1"), (1, b"a", b"2"), (1, b"b", b"1"), (1, b"b", None), (1, b"c", None)],
            requests=[(1, b"x", None), (1, b"x", b"1")],
            log=[(1, 1, b"old"), (1, 1, b"new")],
        )
    )
    assert all_rows(engine, 1) == [(b"a", b"2")]
    assert engine.requests(1) == [(b"x", b"1")]
    assert engine.read_log(1, 1, 9, NO_LIMIT) == [(1, b"new")]


def test_rows_and_requests_are_overwritten_and_deleted(engine: Engine) -> None:
    engine.commit(Batch(rows=[(1, b"a", b"1"), (1, b"b", b"1")], requests=[(1, b"x", b"1"), (1, b"y", b"1")]))
    engine.commit(Batch(rows=[(1, b"a", b"2"), (1, b"b", None)], requests=[(1, b"x", None)]))
    assert all_rows(engine, 1) == [(b"a", b"2")]
    assert engine.get(1, b"b") is None
    assert engine.requests(1) == [(b"y", b"1")]


def test_clear_deletes_all_but_the_metadata_and_comes_first(engine: Engine) -> None:
    for tablet in (1, 2, 3):
        engine.commit(log_batch(tablet, 1, 3))
        engine.commit(
            Batch(rows=[(tablet, b"a", b"old")], requests=[(tablet, b"c", b"old")], meta={tablet: b"meta"})
        )
    engine.commit(Batch(clear=[2], meta={2: b"renewed"}, rows=[(2, b"b", b"new")], log=[(2, 9, b"nine")]))
    assert engine.metas() == {1: b"meta", 2: b"renewed", 3: b"meta"}
    assert all_rows(engine, 2) == [(b"b", b"new")]
    assert engine.requests(2) == []
    assert engine.log_bounds(2) == (9, 9)
    for neighbour in (1, 3):
        assert all_rows(engine, neighbour) == [(b"a", b"old")]
        assert engine.requests(neighbour) == [(b"c", b"old")]
        assert engine.log_bounds(neighbour) == (1, 3)
    engine.commit(Batch(clear=[1, 3]))
    assert engine.metas() == {1: b"meta", 2: b"renewed", 3: b"meta"}
    assert engine.log_bounds(1) is None


def test_forget_deletes_the_metadata_too(engine: Engine) -> None:
    engine.commit(Batch(meta={1: b"m", 2: b"m"}, rows=[(1, b"a", b"1"), (2, b"a", b"1")], log=[(1, 1, b"r")]))
    engine.commit(Batch(forget=[1]))
    assert engine.metas() == {2: b"m"}
    assert all_rows(engine, 1) == []
    assert engine.log_bounds(1) is None
    assert all_rows(engine, 2) == [(b"a", b"1")]


# -------------------------------------------------------------------------------------------- log


def test_log_is_read_from_an_index_within_limits(engine: Engine) -> None:
    engine.commit(log_batch(1, 1, 20))
    engine.commit(log_batch(2, 21, 30))  # the next tablet's log must not continue this one's
    assert engine.log_bounds(1) == (1, 20)
    assert whole_log(engine, 1, 1) == list(range(1, 21))
    assert whole_log(engine, 1, 18) == [18, 19, 20]
    assert whole_log(engine, 1, 21) == []
    assert [index for index, _ in engine.read_log(1, 5, 3, NO_LIMIT)] == [5, 6, 7]
    assert engine.read_log(1, 5, 10, 1) == [(5, b"record 5")]
    assert [index for index, _ in engine.read_log(1, 1, 10, 40)] == [1, 2, 3]  # 8 + 8 bytes each


def test_log_is_read_up_to_a_gap(engine: Engine) -> None:
    engine.commit(log_batch(1, 3, 5))
    engine.commit(log_batch(1, 8, 9))
    assert whole_log(engine, 1, 1) == []
    assert whole_log(engine, 1, 3) == [3, 4, 5]
    assert whole_log(engine, 1, 6) == []
    assert whole_log(engine, 1, 8) == [8, 9]
    assert engine.log_bounds(1) == (3, 9)


@pytest.mark.parametrize("count", [6, 5_000])
def test_cut_deletes_the_tail_and_trim_the_head(engine: Engine, count: int) -> None:
    for tablet in (1, 2, 3):
        engine.commit(log_batch(tablet, 1, count))
    third = count // 3
    engine.commit(Batch(cut=[(2, 2 * third + 1)]))
    assert engine.log_bounds(2) == (1, 2 * third)
    engine.commit(Batch(trim=[(2, third)]))
    assert engine.log_bounds(2) == (third, 2 * third)
    assert whole_log(engine, 2, third) == list(range(third, 2 * third + 1))
    assert whole_log(engine, 2, 1) == []
    for neighbour in (1, 3):
        assert whole_log(engine, neighbour, 1) == list(range(1, count + 1))


def test_cut_is_overwritten_by_the_same_batch(engine: Engine) -> None:
    engine.commit(log_batch(1, 1, 10))
    engine.commit(Batch(cut=[(1, 4)], log=[(1, 4, b"four"), (1, 5, b"five")]))
    assert engine.log_bounds(1) == (1, 5)
    assert engine.read_log(1, 3, 9, NO_LIMIT) == [(3, b"record 3"), (4, b"four"), (5, b"five")]


def test_cut_and_trim_of_nothing_and_of_everything(engine: Engine) -> None:
    engine.commit(Batch(cut=[(1, 5)], trim=[(1, 5)]))
    engine.commit(log_batch(1, 10, 12))
    engine.commit(Batch(cut=[(1, 13)], trim=[(1, 10)]))
    assert engine.log_bounds(1) == (10, 12)
    engine.commit(Batch(trim=[(1, 100)]))
    assert engine.log_bounds(1) is None
    engine.commit(log_batch(1, 100, 101))
    engine.commit(Batch(cut=[(1, 0)]))
    assert engine.log_bounds(1) is None
    assert whole_log(engine, 1, 100) == []


def test_cut_and_trim_into_gaps_find_the_records_that_remain(engine: Engine) -> None:
    engine.commit(Batch(log=[(1, index, b"r") for index in (2, 3, 10, 11, 20)]))
    engine.commit(Batch(cut=[(1, 15)]))
    assert engine.log_bounds(1) == (2, 11)
    engine.commit(Batch(trim=[(1, 5)]))
    assert engine.log_bounds(1) == (10, 11)
    engine.commit(Batch(cut=[(1, 11)], trim=[(1, 11)]))
    assert engine.log_bounds(1) is None


def test_cut_applies_before_trim_and_both_before_the_new_records(engine: Engine) -> None:
    engine.commit(log_batch(1, 1, 10))
    engine.commit(Batch(cut=[(1, 6)], trim=[(1, 8)], log=[(1, 7, b"seven")]))
    assert engine.log_bounds(1) == (7, 7)


# ------------------------------------------------------------------------------------------- scan


@pytest.fixture
def scanned(engine: Engine) -> Engine:
    rows = [(2, b"k%d" % number, b"row %d" % number) for number in range(10)]
    fringe: list[tuple[int, bytes, bytes | None]] = [(1, b"k5", b"before"), (3, b"k5", b"behind")]
    engine.commit(Batch(rows=[*rows, *fringe, (2, b"k5\0", b"row 5.5")]))
    return engine


def keys_of(result: tuple[list[tuple[bytes, bytes]], bool]) -> tuple[list[bytes], bool]:
    return [key for key, _ in result[0]], result[1]


def test_scan_goes_both_ways_over_a_range(scanned: Engine) -> None:
    forward = scanned.scan(2, b"k4", b"k7", False, 100, NO_LIMIT)
    assert forward == ([(b"k4", b"row 4"), (b"k5", b"row 5"), (b"k5\0", b"row 5.5"), (b"k6", b"row 6")], True)
    backward = scanned.scan(2, b"k4", b"k7", True, 100, NO_LIMIT)
    assert backward == (forward[0][::-1], True)


def test_scan_without_end_stays_in_its_tablet(scanned: Engine) -> None:
    assert keys_of(scanned.scan(2, b"k9", None, False, 100, NO_LIMIT)) == ([b"k9"], True)
    assert keys_of(scanned.scan(2, b"k9", None, True, 100, NO_LIMIT)) == ([b"k9"], True)
    assert len(scanned.scan(2, b"", None, True, 100, NO_LIMIT)[0]) == 11
    assert scanned.scan(2, b"z", None, True, 100, NO_LIMIT) == ([], True)
    assert scanned.scan(4, b"", None, True, 100, NO_LIMIT) == ([], True)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_tells_whether_it_is_exhausted(scanned: Engine, reverse: bool) -> None:
    def count(rows_max: int, bytes_max: int = NO_LIMIT) -> tuple[int, bool]:
        rows, is_exhausted = scanned.scan(2, b"k1", b"k4", reverse, rows_max, bytes_max)
        return len(rows), is_exhausted

    assert count(1) == (1, False)
    assert count(2) == (2, False)
    assert count(3) == (3, True)
    assert count(4) == (3, True)
    assert count(9, 1) == (1, False)
    assert count(9, 7) == (1, False)  # 2 + 5 bytes each: one row reaches the limit
    assert count(9, 8) == (2, False)
    assert count(9, 15) == (3, True)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_of_an_empty_range(scanned: Engine, reverse: bool) -> None:
    for start, end in ((b"k4", b"k4"), (b"k7", b"k4"), (b"k1a", b"k2"), (b"l", b"m"), (b"", b"a")):
        assert scanned.scan(2, start, end, reverse, 100, NO_LIMIT) == ([], True)


@pytest.mark.parametrize("reverse", [False, True])
def test_paging_meets_every_row_once(scanned: Engine, reverse: bool) -> None:
    start, end = b"", None
    seen: list[bytes] = []
    is_exhausted = False
    while not is_exhausted:
        keys, is_exhausted = keys_of(scanned.scan(2, start, end, reverse, 3, NO_LIMIT))
        seen += keys
        start, end = (start, keys[-1]) if reverse else (keys[-1] + b"\0", end)
    assert seen == [key for key, _ in scanned.scan(2, b"", None, reverse, 100, NO_LIMIT)[0]]


# --------------------------------------------------------------------------------------- snapshot


def test_snapshot_stays_while_writes_go_on(engine: Engine) -> None:
    rows = [(b"k%02d" % number, b"first") for number in range(20)]
    engine.commit(Batch(rows=[(1, *row) for row in rows], requests=[(1, b"c", b"first")]))
    snapshot = engine.snapshot(1)
    read, is_exhausted = snapshot.read("rows", None, 8 * 5)
    assert (read, is_exhausted) == (rows[:5], False)

    engine.commit(Batch(rows=[(1, b"k07", None), (1, b"k08", b"second"), (1, b"k99", b"second")]))
    engine.commit(Batch(clear=[1], rows=[(1, b"k00", b"third")]))
    while not is_exhausted:
        more, is_exhausted = snapshot.read("rows", read[-1][0], 50)
        read += more
    assert read == rows
    assert snapshot.read("requests", None, NO_LIMIT) == ([(b"c", b"first")], True)
    assert snapshot.read("requests", b"c", NO_LIMIT) == ([], True)
    snapshot.close()
    assert all_rows(engine, 1) == [(b"k00", b"third")]
    with pytest.raises(EngineError):
        snapshot.read("rows", None, 100)
    snapshot.close()


def test_snapshot_of_nothing(engine: Engine) -> None:
    snapshot = engine.snapshot(7)
    assert snapshot.read("rows", None, 100) == ([], True)
    assert snapshot.read("requests", None, 100) == ([], True)
    snapshot.close()


# ----------------------------------------------------------------------------------------- reopen


def test_reopen_keeps_everything(make_engine: EngineMaker) -> None:
    first = make_engine()
    first.open()
    first.commit(log_batch(1, 1, 100))
    first.commit(Batch(trim=[(1, 40)], cut=[(1, 91)]))
    first.commit(
        Batch(meta={1: b"m"}, rows=[(1, b"a", b"1")], requests=[(1, b"c", b"r")], node={"cluster": b"c1"})
    )
    first.close()

    second = make_engine()
    second.open()
    assert not second.suspect
    assert second.metas() == {1: b"m"}
    assert second.node_facts() == {"cluster": b"c1"}
    assert second.log_bounds(1) == (40, 90)
    assert whole_log(second, 1, 40) == list(range(40, 91))
    assert all_rows(second, 1) == [(b"a", b"1")]
    assert second.requests(1) == [(b"c", b"r")]
    second.commit(log_batch(1, 91, 92))
    assert second.log_bounds(1) == (40, 92)
    second.close()


def test_one_engine_may_be_opened_again(make_engine: EngineMaker) -> None:
    engine = make_engine()
    engine.open()
    engine.commit(Batch(rows=[(1, b"a", b"1")]))
    engine.close()
    engine.close()
    engine.open()
    assert engine.get(1, b"a") == b"1"
    engine.close()


def test_two_engines_cannot_open_one_disk(make_engine: EngineMaker) -> None:
    first, second = make_engine(), make_engine()
    first.open()
    with pytest.raises(EngineLocked):
        second.open()
    first.commit(Batch(rows=[(1, b"a", b"1")]))
    first.close()
    second.open()
    assert second.get(1, b"a") == b"1"
    second.close()


def test_closed_engine_refuses(engine: Engine) -> None:
    engine.close()
    with pytest.raises(EngineFailed):
        engine.get(1, b"a")
    with pytest.raises(EngineFailed):
        engine.commit(Batch(rows=[(1, b"a", b"1")]))


def test_sizes(engine: Engine) -> None:
    engine.commit(Batch(rows=[(1, b"a", bytes(10_000))]))
    assert engine.disk_bytes() >= 10_000
    assert engine.free_bytes() > 0
