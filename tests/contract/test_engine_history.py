"""The versions of rows in every engine, against a plain model of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ackord_node.adapters.engine_memory import MemoryDisk, MemoryEngine
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.core.history import VERSION_MAX, Moment, Removable, history_key, split_history_key
from ackord_node.ports import Batch, Engine
from tests.sim.disk import SimDisk, SimEngine

NO_LIMIT = 1 << 40
Model = dict[bytes, dict[int, bytes | None]]


@pytest.fixture(params=["memory", "sim", "rocksdb"])
def make_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    if request.param == "memory":
        disk = MemoryDisk()
        return lambda: MemoryEngine(disk)
    if request.param == "sim":
        sim_disk = SimDisk(wal_bytes_max=1024)
        return lambda: SimEngine(sim_disk)
    return lambda: RocksEngine(tmp_path / "data", reserve_bytes=0, write_buffer_bytes=1 << 20)


@pytest.fixture
def engine(make_engine: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make_engine()
    engine.open()
    yield engine
    engine.close()


def key(number: int) -> bytes:
    """Of varied lengths, none the first part of another."""
    return b"k" * (number % 3) + b"%03d\x00\x01" % number


def filled(engine: Engine, seed: int = 1, keys_count: int = 12, most: int = 9) -> Model:
    rng = random.Random(seed)
    model: Model = {}
    batch = Batch()
    for number in range(keys_count):
        versions = sorted(rng.sample(range(1, 400), rng.randint(1, most)))
        model[key(number)] = {v: None if rng.random() < 0.3 else b"row %d" % v for v in versions}
        batch.history.extend((5, key(number), v, row) for v, row in model[key(number)].items())
    for neighbour in (4, 6):
        batch.history.append((neighbour, key(0), 7, b"another tablet's"))
    engine.commit(batch)
    return model


def expected(model: Model, at: bytes, as_of: int, count_max: int) -> Moment:
    versions = sorted(model[at].items(), reverse=True)
    above = [(v, row is None) for v, row in versions if v > as_of]
    below = [(v, row) for v, row in versions if v <= as_of]
    version, row = below[0] if below else (None, None)
    return Moment(at, above[:count_max], above[-1][0] if above else None, version, row)


def test_keys_of_versions_sort_by_row_and_newest_first() -> None:
    raw = [history_key(b"a\x00\x01", v, v % 2 == 0) for v in (VERSION_MAX, 9, 2, 1)]
    assert raw == sorted(raw)
    assert [split_history_key(at) for at in raw[1:3]] == [(b"a\x00\x01", 9, False), (b"a\x00\x01", 2, True)]
    assert history_key(b"a\x00\x01", 1, False) < history_key(b"b\x00\x01", VERSION_MAX, False)


def test_versions_come_newest_first(engine: Engine) -> None:
    model = filled(engine)
    for at, versions in model.items():
        newest_first = sorted(versions.items(), reverse=True)
        assert engine.history(5, at, VERSION_MAX, 100) == newest_first
        assert engine.history(5, at, VERSION_MAX, 2) == newest_first[:2]
        assert engine.history(5, at, 200, 100) == [(v, row) for v, row in newest_first if v <= 200]
    assert engine.history(5, b"kmissing\x00\x01", VERSION_MAX, 9) == []
    assert engine.history(4, key(0), VERSION_MAX, 9) == [(7, b"another tablet's")]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count_max", [1, 2, 50])
def test_a_scan_finds_what_each_row_was(engine: Engine, reverse: bool, count_max: int) -> None:
    model = filled(engine, seed=2)
    order = sorted(model, reverse=reverse)
    for as_of in (0, 1, 50, 199, 200, 398, 400, VERSION_MAX):
        found, rest = engine.history_scan(5, b"", None, reverse, as_of, count_max, 1000, NO_LIMIT)
        assert rest is None
        assert found == [expected(model, at, as_of, count_max) for at in order]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_goes_on_where_it_stopped(engine: Engine, reverse: bool) -> None:
    model = filled(engine, seed=3)
    for keys_max, bytes_max in ((1, NO_LIMIT), (5, NO_LIMIT), (100, 1), (100, 60)):
        start: bytes = b""
        end: bytes | None = None
        seen: list[bytes] = []
        while True:
            found, rest = engine.history_scan(5, start, end, reverse, 200, 3, keys_max, bytes_max)
            assert 0 < len(found) <= keys_max
            seen.extend(at.key for at in found)
            if rest is None:
                break
            start, end = (start, rest) if reverse else (rest, end)
        assert seen == sorted(model, reverse=reverse)


def test_a_scan_keeps_to_its_bounds(engine: Engine) -> None:
    model = filled(engine, seed=4)
    keys = sorted(model)
    for reverse in (False, True):
        for low in range(0, len(keys), 3):
            for high in range(low, len(keys), 2):
                found, rest = engine.history_scan(5, keys[low], keys[high], reverse, 400, 1, 99, NO_LIMIT)
                wanted = sorted(keys[low:high], reverse=reverse)
                assert ([at.key for at in found], rest) == (wanted, None)
        one, rest = engine.history_scan(5, keys[3], keys[3] + b"\x00", reverse, 400, 1, 99, NO_LIMIT)
        assert ([at.key for at in one], rest) == ([keys[3]], None)


@pytest.mark.parametrize(
    "bounds",
    [
        Removable(1, None, 0),
        Removable(3, None, 0),
        Removable(1, 150, 0),
        Removable(2, 250, 200),
        Removable(1, None, 999),
    ],
)
def test_what_may_go_is_found_in_pieces(engine: Engine, bounds: Removable) -> None:
    model = filled(engine, seed=5)
    wanted = []
    for at in sorted(model):
        versions = sorted(model[at].items(), reverse=True)
        if versions[0][1] is None and versions[0][0] <= bounds.deleted_max:
            wanted += [(at, v, row is None) for v, row in versions[1:] + versions[:1]]
            continue
        for number, (version, row) in enumerate(versions):
            if number < bounds.keep_versions:
                continue
            if bounds.superseded_max is None or versions[number - 1][0] <= bounds.superseded_max:
                wanted.append((at, version, row is None))
    found, rest = engine.history_excess(5, b"", bounds, 1000, 1000)
    assert (found, rest) == (wanted, None)
    removed: list[tuple[bytes, int, bool]] = []
    position: bytes | None = b""
    for _ in range(1000):
        assert position is not None
        found, position = engine.history_excess(5, position, bounds, 2, 3)
        assert len(found) <= 3
        engine.commit(Batch(history_drop=[(5, *item) for item in found]))
        removed += found
        if position is None:
            break
    assert removed == wanted
    assert engine.history_excess(5, b"", bounds, 1000, 1000) == ([], None)
    for at, versions_of in model.items():
        gone = {v for k, v, _ in wanted if k == at}
        left = [(v, row) for v, row in sorted(versions_of.items(), reverse=True) if v not in gone]
        assert engine.history(5, at, VERSION_MAX, 100) == left


def test_clear_and_forget_delete_the_history(engine: Engine) -> None:
    filled(engine)
    engine.commit(Batch(clear=[5], history=[(5, key(1), 9, b"new")]))
    assert engine.history(5, key(0), VERSION_MAX, 9) == []
    assert engine.history(5, key(1), VERSION_MAX, 9) == [(9, b"new")]
    engine.commit(Batch(forget=[4]))
    assert engine.history(4, key(0), VERSION_MAX, 9) == []
    assert engine.history(6, key(0), VERSION_MAX, 9) == [(7, b"another tablet's")]


def test_a_snapshot_holds_the_history_of_its_moment(engine: Engine) -> None:
    model = filled(engine, seed=6)
    snapshot = engine.snapshot(5)
    engine.commit(
        Batch(history=[(5, key(0), 999, b"later")], history_drop=[(5, key(1), v, False) for v in range(400)])
    )
    records: list[tuple[bytes, bytes]] = []
    after: bytes | None = None
    while True:
        piece, is_last = snapshot.read("history", after, 64)
        records += piece
        if is_last:
            break
        after = piece[-1][0]
    snapshot.close()
    wanted = [
        (history_key(k, v, row is None), row or b"") for k, vs in model.items() for v, row in vs.items()
    ]
    assert records == sorted(wanted)


def test_the_history_survives_a_reopening(make_engine: Callable[[], Engine]) -> None:
    engine = make_engine()
    engine.open()
    engine.commit(Batch(history=[(5, key(0), 3, b"three"), (5, key(0), 4, None)]))
    engine.close()
    engine = make_engine()
    engine.open()
    assert engine.history(5, key(0), VERSION_MAX, 9) == [(4, None), (3, b"three")]
    engine.close()


def test_a_store_of_an_earlier_release_gets_a_history(tmp_path: Path) -> None:
    engine = RocksEngine(tmp_path / "data", reserve_bytes=0)
    engine.open()
    engine.commit(Batch(rows=[(5, b"a", b"row")]))
    assert engine._store is not None
    del engine._store.history
    engine._store._db.drop_column_family("history")
    engine.close()
    (tmp_path / "data" / "ackord-format").write_text("1\n")
    engine = RocksEngine(tmp_path / "data", reserve_bytes=0)
    engine.open()
    assert (tmp_path / "data" / "ackord-format").read_text() == "2\n"
    assert engine.get(5, b"a") == b"row"
    engine.commit(Batch(history=[(5, key(0), 3, b"three")]))
    assert engine.history(5, key(0), VERSION_MAX, 9) == [(3, b"three")]
    engine.close()
