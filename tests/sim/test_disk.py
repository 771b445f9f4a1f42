"""The simulated disk fails as the real one was measured to; the port's contract is in tests/contract."""

from __future__ import annotations

import random

import pytest

from ackord_node.core.log import Entry, RecordCorrupt
from ackord_node.ports import Batch, EngineCorrupt, EngineError, EngineFailed, EngineFull
from tests.sim.disk import SimDisk, SimEngine

TABLET = 7
NO_LIMIT = 1 << 40


def opened(disk: SimDisk) -> SimEngine:
    engine = SimEngine(disk)
    engine.open()
    return engine


def put(engine: SimEngine, first: int, last: int, *, sync: bool = True) -> None:
    for number in range(first, last + 1):
        entry = Entry.create(TABLET, 1, number, number, [])
        engine.commit(Batch(log=[(TABLET, number, entry.record)], rows=[(TABLET, b"%04d" % number, b"row")]))
    if sync:
        engine.disk.sync()


def stored(engine: SimEngine) -> list[int]:
    rows, _ = engine.scan(TABLET, b"", None, False, NO_LIMIT, NO_LIMIT)
    found = [int(key) for key, _ in rows]
    assert [index for index, _ in engine.read_log(TABLET, 1, 1_000, NO_LIMIT)] == found
    return found


def test_a_power_loss_keeps_all_that_was_synced_and_a_prefix_of_the_rest() -> None:
    rng = random.Random(1)
    kept = set()
    for _ in range(200):
        disk = SimDisk()
        engine = opened(disk)
        put(engine, 1, 5)
        put(engine, 6, 9, sync=False)
        assert stored(engine) == list(range(1, 10)), "readable before it is durable"
        disk.crash(rng)
        with pytest.raises(EngineFailed):
            engine.get(TABLET, b"0001")
        after = opened(disk)
        found = stored(after)
        assert found == list(range(1, len(found) + 1))
        kept.add(len(found))
        assert after.suspect == bool(disk.seen["garbled tail"])
    assert kept == {5, 6, 7, 8, 9}


def test_a_torn_tail_is_normal_and_a_garbled_one_is_suspect() -> None:
    rng = random.Random(2)
    torn = garbled = 0
    for _ in range(100):
        disk = SimDisk()
        disk.garbled_rate = 0.5
        put(opened(disk), 1, 1, sync=False)
        disk.crash(rng)
        engine = opened(disk)
        torn += disk.seen["torn tail"]
        garbled += disk.seen["garbled tail"]
        assert engine.suspect == bool(disk.seen["garbled tail"])
    assert torn and garbled


def test_the_end_of_a_process_alone_loses_nothing() -> None:
    disk = SimDisk()
    put(opened(disk), 1, 9, sync=False)
    disk.crash(random.Random(3), power_loss=False)
    engine = opened(disk)
    assert stored(engine) == list(range(1, 10))
    assert not engine.suspect


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_bit_in_the_log_opens_before_it_and_is_suspect_until_cleared(seed: int) -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 9)
    rng = random.Random(seed)
    assert disk.flip_bit(rng, "wal")
    assert stored(engine) == list(range(1, 10)), "what is in memory is not what is on disk"
    disk.crash(rng)
    engine = opened(disk)
    assert engine.suspect
    found = stored(engine)
    assert len(found) < 9
    assert found == list(range(1, len(found) + 1))
    engine.close()
    engine = opened(disk)
    assert engine.suspect, "the mark outlives a restart"
    engine.clear_suspicion()
    engine.close()
    assert not opened(disk).suspect
    assert disk.seen["suspect"] == 1


def test_a_damaged_log_that_is_folded_into_tables_harms_nobody() -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 9)
    assert disk.flip_bit(random.Random(4), "wal")
    engine.checkpoint()
    disk.crash(random.Random(4))
    engine = opened(disk)
    assert not engine.suspect
    assert stored(engine) == list(range(1, 10))


@pytest.mark.parametrize("kind", ["row", "log", "request"])
def test_damage_in_a_table_is_found_when_it_is_read_and_gone_when_cleared(kind: str) -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 9)
    engine.commit(Batch(requests=[(TABLET, b"client", b"done")], meta={TABLET: b"meta"}))
    assert disk.flip_bit(random.Random(5), kind) is None, "nothing is in tables yet"
    engine.checkpoint()
    hit = disk.flip_bit(random.Random(5), kind)
    assert hit is not None and hit.startswith(kind)

    def read() -> object:
        if kind == "row":
            return engine.scan(TABLET, b"", None, False, NO_LIMIT, NO_LIMIT)
        return engine.read_log(TABLET, 1, 100, NO_LIMIT) if kind == "log" else engine.requests(TABLET)

    with pytest.raises(EngineCorrupt) as caught:
        read()
    assert caught.value.tablet == TABLET
    assert engine.metas() == {TABLET: b"meta"}
    disk.crash(random.Random(5))
    engine = opened(disk)
    with pytest.raises(EngineCorrupt):
        read()
    engine.commit(Batch(clear=[TABLET]))
    read()
    assert not engine.suspect


def test_a_damaged_row_is_found_by_get_and_get_many_and_healed_by_overwriting() -> None:
    disk = SimDisk()
    engine = opened(disk)
    engine.commit(Batch(rows=[(TABLET, b"a", b"1")]))
    engine.checkpoint()
    assert disk.flip_bit(random.Random(6), "row")
    with pytest.raises(EngineCorrupt):
        engine.get(TABLET, b"a")
    with pytest.raises(EngineCorrupt):
        engine.get_many(TABLET, [b"b", b"a"])
    engine.commit(Batch(rows=[(TABLET, b"a", b"2")]))
    assert engine.get(TABLET, b"a") == b"2"


def test_a_snapshot_meets_the_damage_that_it_was_taken_with() -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 9)
    engine.checkpoint()
    assert disk.flip_bit(random.Random(7), "row")
    with pytest.raises(EngineCorrupt):
        engine.snapshot(TABLET).read("rows", None, NO_LIMIT)


@pytest.mark.parametrize("seed", range(20))
def test_a_record_below_the_engines_checksum_is_found_by_its_own(seed: int) -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 3)
    engine.checkpoint()
    assert disk.flip_bit(random.Random(seed), "record")
    refused = 0
    for _, record in engine.read_log(TABLET, 1, 10, NO_LIMIT):
        try:
            Entry.decode(TABLET, record)
        except RecordCorrupt:
            refused += 1
    assert refused == 1


def test_damage_that_no_tablet_can_be_named_for_voids_the_store() -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 3)
    assert disk.flip_bit(random.Random(8), "manifest")
    assert stored(engine) == [1, 2, 3]
    disk.crash(random.Random(8))
    engine = SimEngine(disk)
    with pytest.raises(EngineCorrupt) as caught:
        engine.open()
    assert caught.value.tablet is None
    engine.set_aside()
    engine.open()
    assert stored(engine) == []
    engine.mark_void()
    engine.close()
    with pytest.raises(EngineCorrupt):
        engine.open()


def test_the_merging_of_tables_meets_damage_that_nobody_read() -> None:
    disk = SimDisk()
    engine = opened(disk)
    put(engine, 1, 3)
    engine.checkpoint()
    assert disk.flip_bit(random.Random(9), "row")
    for _ in range(3):
        engine.checkpoint()
    with pytest.raises(EngineCorrupt) as caught:
        put(engine, 4, 4)
    assert caught.value.tablet is None


def test_a_damaged_end_of_a_log_fails_the_commit_that_looks_for_it() -> None:
    disk = SimDisk()
    put(opened(disk), 1, 1)
    disk.crash(random.Random(10))
    engine = opened(disk)
    assert disk.flip_bit(random.Random(10), "log")
    with pytest.raises(EngineCorrupt) as caught:
        engine.log_bounds(TABLET)
    assert caught.value.tablet == TABLET
    with pytest.raises(EngineCorrupt) as caught:
        put(engine, 2, 2)
    assert caught.value.tablet is None


def test_a_failed_sync_is_final_and_what_is_on_disk_then_is_open() -> None:
    kept = set()
    for seed in range(60):
        disk = SimDisk()
        engine = opened(disk)
        put(engine, 1, 2)
        disk.fail_next_sync = True
        with pytest.raises(EngineFailed):
            put(engine, 3, 4)
        with pytest.raises(EngineFailed):
            put(engine, 5, 5)
        disk.crash(random.Random(seed), power_loss=False)
        kept.add(len(stored(opened(disk))))
    assert kept == {2, 3, 4}


def test_a_full_disk_refuses_commits_and_goes_on_once_there_is_room() -> None:
    disk = SimDisk(capacity_bytes=2_000)
    engine = opened(disk)
    put(engine, 1, 3)
    snapshot = engine.snapshot(TABLET)
    with pytest.raises(EngineFull):
        engine.commit(Batch(rows=[(TABLET, b"big", bytes(2_000))]))
    assert engine.get(TABLET, b"big") is None
    assert stored(engine) == [1, 2, 3]
    disk.reserve_bytes = 2_000
    assert engine.free_bytes() < 0
    with pytest.raises(EngineFull):
        put(engine, 4, 4)
    disk.capacity_bytes = 20_000
    assert snapshot.read("rows", None, NO_LIMIT)[1]
    put(engine, 4, 4)
    assert stored(engine) == [1, 2, 3, 4]
    with pytest.raises(EngineError):
        snapshot.read("rows", None, NO_LIMIT)


def test_a_full_disk_may_keep_a_store_from_opening() -> None:
    disk = SimDisk(capacity_bytes=10_000)
    put(opened(disk), 1, 5)
    disk.crash(random.Random(11))
    disk.capacity_bytes = 100
    with pytest.raises(EngineFull):
        opened(disk)
    disk.capacity_bytes = None
    assert stored(opened(disk)) == [1, 2, 3, 4, 5]


def test_an_image_is_the_disk_as_it_was_however_often_it_is_restored() -> None:
    disk = SimDisk(wal_bytes_max=300)
    engine = opened(disk)
    put(engine, 1, 5)
    image = disk.image()
    put(engine, 6, 9)
    for _ in range(2):
        disk.restore(image)
        with pytest.raises(EngineFailed):
            engine.get(TABLET, b"0001")
        engine = opened(disk)
        assert stored(engine) == [1, 2, 3, 4, 5]
        assert not engine.suspect
        put(engine, 6, 7)
    disk.lose()
    engine = opened(disk)
    assert stored(engine) == []
    disk.restore(image)
    assert stored(opened(disk)) == [1, 2, 3, 4, 5]


def test_what_happens_to_a_disk_depends_on_the_seed_alone() -> None:
    def run(seed: int) -> tuple[list[str | None], list[bytes], list[tuple[str, int]]]:
        rng = random.Random(seed)
        disk = SimDisk(wal_bytes_max=400)
        hits: list[str | None] = []
        for _ in range(5):
            engine = opened(disk)
            put(engine, 1, 20, sync=False)
            hits += [disk.flip_bit(rng, kind) for kind in ("wal", "record")]
            disk.crash(rng)
        return hits, disk.wal, sorted(disk.seen.items())

    assert run(1) == run(1)
    assert run(1) != run(2)
