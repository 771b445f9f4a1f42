"""What only the RocksDB engine can meet: locks, formats, damaged files, a killed process, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackord_node.adapters import engine_rocksdb_store
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.adapters.engine_rocksdb_store import RocksStore, engine_error
from ackord_node.ports import (
    Batch,
    EngineCorrupt,
    EngineError,
    EngineFailed,
    EngineForeign,
    EngineFull,
    EngineLocked,
)

MIB = 1 << 20
NO_LIMIT = 1 << 40


def make_engine(path: Path, reserve_bytes: int = 0) -> RocksEngine:
    return RocksEngine(path, reserve_bytes=reserve_bytes, block_cache_bytes=MIB, write_buffer_bytes=MIB)


def opened(path: Path) -> RocksEngine:
    engine = make_engine(path)
    engine.open()
    return engine


def count_rows(engine: RocksEngine, tablet: int) -> int:
    rows, _ = engine.scan(tablet, b"", None, False, NO_LIMIT, NO_LIMIT)
    return len(rows)


def row_batch(tablet: int, first: int, count: int, size: int = 100) -> Batch:
    rows: list[tuple[int, bytes, bytes | None]] = [
        (tablet, b"%08d" % number, os.urandom(size)) for number in range(first, first + count)
    ]
    return Batch(rows=rows)


def run_and_kill(path: Path, batches: int) -> None:
    """Runs a child process that commits batches of one row and one log record, and kills it then."""
    script = f"""
        import sys, time
        from pathlib import Path
        from ackord_node.adapters.engine_rocksdb import RocksEngine
        from ackord_node.ports import Batch
        engine = RocksEngine(Path({str(path)!r}), reserve_bytes=0, write_buffer_bytes=1 << 20)
        engine.open()
        for number in range(1, {batches} + 1):
            engine.commit(Batch(rows=[(1, b"%08d" % number, b"r" * 100)], log=[(1, number, b"l" * 100)]))
        print("committed", flush=True)
        time.sleep(60)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"committed\n"
        finally:
            child.send_signal(signal.SIGKILL)


def wal_of(path: Path) -> Path:
    """The write-ahead log that holds the data."""
    return max((path / "store").glob("*.log"), key=lambda file: file.stat().st_size)


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


# ------------------------------------------------------------------------------- lock and format


def test_a_second_process_is_refused_with_the_folders_name(tmp_path: Path) -> None:
    engine = opened(tmp_path / "data")
    script = f"""
        from pathlib import Path
        from ackord_node.adapters.engine_rocksdb import RocksEngine
        from ackord_node.ports import EngineLocked
        try:
            RocksEngine(Path({str(tmp_path / "data")!r}), reserve_bytes=0).open()
        except EngineLocked as error:
            print(error)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=30,
        check=True,
    )
    assert str(tmp_path / "data") in result.stdout
    assert f"pid {os.getpid()}" in result.stdout
    engine.close()


def test_a_refused_open_leaves_the_first_engine_alone(tmp_path: Path) -> None:
    engine = opened(tmp_path / "data")
    with pytest.raises(EngineLocked):
        opened(tmp_path / "data")
    engine.commit(Batch(rows=[(1, b"a", b"1")]))
    with pytest.raises(EngineLocked):  # the refused one has not released the lock of the first
        opened(tmp_path / "data")
    engine.close()


@pytest.mark.parametrize("version", ["3", "0", "", "garbage"])
def test_another_format_version_is_refused(tmp_path: Path, version: str) -> None:
    opened(tmp_path / "data").close()
    (tmp_path / "data" / "ackord-format").write_text(version)
    with pytest.raises(EngineForeign, match="this program reads 1, 2"):
        opened(tmp_path / "data")
    (tmp_path / "data" / "ackord-format").write_text("2\n")
    opened(tmp_path / "data").close()


def test_data_without_a_format_file_is_refused(tmp_path: Path) -> None:
    engine = opened(tmp_path / "data")
    engine.commit(Batch(meta={1: b"m"}))
    engine.close()
    (tmp_path / "data" / "ackord-format").unlink()
    with pytest.raises(EngineForeign, match="ackord-format"):
        opened(tmp_path / "data")


def test_a_creation_that_was_cut_short_is_finished(tmp_path: Path) -> None:
    opened(tmp_path / "data").close()
    (tmp_path / "data" / "ackord-format").unlink()
    engine = opened(tmp_path / "data")
    engine.commit(Batch(meta={1: b"m"}))
    engine.close()
    assert (tmp_path / "data" / "ackord-format").read_text() == "2\n"


@pytest.mark.parametrize("lost", ["CURRENT", "all", "manifest"])
def test_a_store_that_lost_its_files_is_void_not_empty(tmp_path: Path, lost: str) -> None:
    engine = opened(tmp_path / "data")
    engine.commit(Batch(meta={1: b"m"}))
    engine.close()
    store = tmp_path / "data" / "store"
    for file in list(store.iterdir()):
        if lost == "all" or file.name == lost:
            file.unlink()
        elif lost == "manifest" and file.name.startswith("MANIFEST"):
            flip_byte(file, file.stat().st_size // 2)
    with pytest.raises(EngineCorrupt) as caught:
        opened(tmp_path / "data")
    assert caught.value.tablet is None
    if lost == "all":
        assert not list(store.glob("*.sst"))


# ------------------------------------------------------------------------- a killed process, R13


def test_every_acknowledged_batch_survives_a_kill(tmp_path: Path) -> None:
    run_and_kill(tmp_path / "data", 300)
    engine = opened(tmp_path / "data")
    assert not engine.suspect
    assert count_rows(engine, 1) == 300
    assert engine.log_bounds(1) == (1, 300)
    assert len(engine.read_log(1, 1, 1000, NO_LIMIT)) == 300
    engine.close()


def test_a_torn_tail_opens_without_suspicion(tmp_path: Path) -> None:
    run_and_kill(tmp_path / "data", 50)
    wal = wal_of(tmp_path / "data")
    os.truncate(wal, wal.stat().st_size - 20)
    engine = opened(tmp_path / "data")
    assert not engine.suspect
    assert count_rows(engine, 1) == 49
    engine.close()


def test_a_flipped_byte_in_the_log_makes_the_store_suspect_until_cleared(tmp_path: Path) -> None:
    run_and_kill(tmp_path / "data", 50)
    wal = wal_of(tmp_path / "data")
    flip_byte(wal, wal.stat().st_size // 2)
    engine = opened(tmp_path / "data")
    assert engine.suspect
    left = count_rows(engine, 1)
    assert 0 < left < 50
    assert engine.log_bounds(1) == (1, left)
    engine.commit(Batch(meta={1: b"m"}))
    engine.close()

    again = opened(tmp_path / "data")  # the damage is gone from the files, but not what it destroyed
    assert again.suspect
    again.clear_suspicion()
    again.close()
    last = opened(tmp_path / "data")
    assert not last.suspect
    last.close()


# -------------------------------------------------------------------------------- corruption, R14


@pytest.fixture
def corrupt_store(tmp_path: Path) -> Iterator[RocksEngine]:
    """20,000 rows of tablet 1 and some of tablet 2 in table files, of which one has a flipped byte."""
    engine = opened(tmp_path / "data")
    engine.commit(row_batch(2, 0, 10))
    for first in range(0, 20_000, 1_000):
        engine.commit(row_batch(1, first, 1_000))
    engine.close()
    largest = max((tmp_path / "data" / "store").glob("*.sst"), key=lambda file: file.stat().st_size)
    flip_byte(largest, largest.stat().st_size // 2)
    engine = opened(tmp_path / "data")
    yield engine
    engine.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_a_corrupt_block_does_not_end_silently(corrupt_store: RocksEngine, reverse: bool) -> None:
    with pytest.raises(EngineCorrupt) as caught:
        corrupt_store.scan(1, b"", None, reverse, NO_LIMIT, NO_LIMIT)
    assert caught.value.tablet == 1
    assert count_rows(corrupt_store, 2) == 10


def test_gets_and_snapshots_over_a_corrupt_block_fail(corrupt_store: RocksEngine) -> None:
    keys = [b"%08d" % number for number in range(20_000)]
    with pytest.raises(EngineCorrupt) as caught:
        corrupt_store.get_many(1, keys)
    assert caught.value.tablet == 1
    tablets_failed: list[int | None] = []
    for key in keys:
        try:
            assert corrupt_store.get(1, key) is not None
        except EngineCorrupt as error:
            tablets_failed.append(error.tablet)
    assert 0 < len(tablets_failed) < 1_000
    assert set(tablets_failed) == {1}
    snapshot = corrupt_store.snapshot(1)
    with pytest.raises(EngineCorrupt):
        snapshot.read("rows", None, NO_LIMIT)
    snapshot.close()


def test_a_corrupt_tablet_can_be_cleared_and_refilled(corrupt_store: RocksEngine) -> None:
    corrupt_store.commit(Batch(clear=[1], rows=row_batch(1, 0, 100).rows))
    assert count_rows(corrupt_store, 1) == 100
    assert corrupt_store.get_many(1, [b"%08d" % 50, b"%08d" % 10_000])[1] is None


def test_a_block_at_the_edge_of_a_tablet_stays_damaged_when_it_is_cleared(tmp_path: Path) -> None:
    """Which is why a copy that meets damage again and again gives the whole store up (`runtime.relapses`)."""
    engine = opened(tmp_path / "data")
    engine.commit(Batch(rows=row_batch(1, 0, 10).rows + row_batch(2, 0, 10).rows))
    engine.close()
    table = max((tmp_path / "data" / "store").glob("*.sst"), key=lambda file: file.stat().st_size)
    flip_byte(table, 1_000)  # in the block that holds the rows of both
    engine = opened(tmp_path / "data")
    for _ in range(2):
        with pytest.raises(EngineCorrupt) as caught:
            count_rows(engine, 1)
        assert caught.value.tablet == 1
        engine.commit(Batch(clear=[1], rows=row_batch(1, 0, 10).rows))
    engine.close()


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("IO error: No space left on device: While appending to file: 000030.log", EngineFull),
        ("IO error: Disk quota exceeded: While appending", EngineFull),
        ("Corruption: block checksum mismatch", EngineCorrupt),
        ("IO error: Input/output error: While fdatasync", EngineFailed),
        ("", EngineFailed),
    ],
)
def test_errors_are_told_apart(text: str, kind: type[EngineError]) -> None:
    error = engine_error(Exception(text), "get", 7)
    assert type(error) is kind
    if isinstance(error, EngineCorrupt):
        assert error.tablet == 7


def test_a_failed_fsync_ends_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tmp_path / "data")

    def fail(store: RocksStore) -> None:
        raise EngineFailed("fsync of the log failed: IO error")

    monkeypatch.setattr(RocksStore, "sync", fail)
    with pytest.raises(EngineFailed):
        engine.commit(Batch(rows=[(1, b"a", b"1")]))
    monkeypatch.undo()
    with pytest.raises(EngineFailed):  # whatever the disk says later: what it lost is unknown
        engine.commit(Batch(rows=[(1, b"b", b"1")]))
    engine.close()


class StallingDb:
    """Refuses the first writes as RocksDB does while its memtables are full."""

    def __init__(self, stalls: int) -> None:
        self.stalls = stalls
        self.batches: list[object] = []

    def write(self, batch: object, options: object) -> None:
        self.batches.append(batch)
        if len(self.batches) <= self.stalls:
            raise Exception("Result incomplete: Write stall")


def test_a_write_stall_is_retried_with_a_new_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    database = StallingDb(2)
    store = object.__new__(RocksStore)
    monkeypatch.setattr(store, "_db", database, raising=False)
    monkeypatch.setattr(store, "_handles", {}, raising=False)
    monkeypatch.setattr(store, "_write_options", None, raising=False)
    built = iter(["first", "second", "third"])
    store.write(lambda handles: next(built))  # type: ignore[arg-type,return-value]
    assert database.batches == ["first", "second", "third"]

    monkeypatch.setattr(engine_rocksdb_store, "_STALL_S_MAX", 0.0)
    database.stalls = 100
    with pytest.raises(EngineFailed, match="stall"):
        store.write(lambda handles: "batch")  # type: ignore[arg-type,return-value]


# --------------------------------------------------------------------------------------- full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    mount = tmp_path / "small"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.decode().strip()}")
    yield mount
    # Lazily: a failed test has not closed its engine, and must not leave the mount behind.
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(engine: RocksEngine) -> int:
    """Commits batches of 20 rows until there is no space; the number of rows that count."""
    for first in range(0, 100_000, 20):
        try:
            engine.commit(row_batch(1, first, 20, 2_000))
        except EngineFull:
            return first
    pytest.fail("the disk never filled up")


def test_a_full_disk_refuses_commits_and_recovers_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 * MIB))
    engine = make_engine(small_disk / "data", reserve_bytes=4 * MIB)
    engine.open()
    count = fill(engine)
    assert engine.free_bytes() <= 0
    snapshot = engine.snapshot(1)
    for _ in range(2):
        with pytest.raises(EngineFull):
            engine.commit(Batch(rows=[(1, b"later", b"1")]))
        assert count_rows(engine, 1) == count  # reads go on, and nothing of a failed batch is seen

    ballast.unlink()
    assert engine.free_bytes() > 0
    engine.commit(Batch(rows=[(1, b"later", b"1")], log=[(1, 1, b"r")]))
    assert count_rows(engine, 1) == count + 1
    with pytest.raises(EngineError):
        snapshot.read("rows", None, 100)  # it ended with the store that it was taken from
    engine.close()
    again = opened(small_disk / "data")
    assert not again.suspect
    assert count_rows(again, 1) == count + 1
    again.close()


def test_reads_go_on_when_reopening_finds_no_room_either(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(8 * MIB))
    engine = make_engine(small_disk / "data", reserve_bytes=-MIB)  # so that it always tries
    engine.open()
    count = fill(engine)
    for _ in range(3):
        with pytest.raises(EngineFull):
            engine.commit(Batch(rows=[(1, b"later", b"1" * MIB)]))
        assert count_rows(engine, 1) == count
    ballast.unlink()
    engine.commit(Batch(rows=[(1, b"later", b"1")]))
    assert count_rows(engine, 1) == count + 1
    engine.close()
