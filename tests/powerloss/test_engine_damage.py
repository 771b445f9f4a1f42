"""Rule R14: damage in RocksDB's own log or manifest is refused or survived, in bounded time."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ackord_node.adapters.engine_rocksdb_check import disarm
from tests.powerloss.reader import Expected, Reader

pytestmark = pytest.mark.integration

SEED = 5
BATCHES = 30
BLOCK_BYTES = 32 * 1024
LENGTH_HIGH, TYPE = 5, 6  # offsets in a record's header
MISLEADING = [*((TYPE, bit) for bit in (0, 2, 3, 7)), *((LENGTH_HIGH, bit) for bit in range(8))]
LEAVE_UNCLOSED = """
import os, sys
from pathlib import Path
from ackord_node.adapters.engine_rocksdb import RocksEngine
from tests.powerloss.writer import batch_of
engine = RocksEngine(Path(sys.argv[1]), reserve_bytes=0)
engine.open()
for number in range(1, int(sys.argv[2]) + 1):
    engine.commit(batch_of(int(sys.argv[3]), number))
os._exit(0)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose process was killed: all of it is in the log."""
    path = tmp_path_factory.mktemp("store") / "data"
    subprocess.run(
        [sys.executable, "-c", LEAVE_UNCLOSED, str(path), str(BATCHES), str(SEED)],
        check=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return path


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader(SEED)
    yield reader
    reader.close()


def record_starts(data: bytes | bytearray) -> list[int]:
    starts, at = [], 0
    while at + 7 <= len(data):
        if BLOCK_BYTES - at % BLOCK_BYTES < 7:
            at += BLOCK_BYTES - at % BLOCK_BYTES
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        if kind == 0:
            break
        starts.append(at)
        at += 7 + length
    return starts


def damaged(folder: Path, target: Path, pattern: str, record: int, offset: int, bit: int) -> Path:
    """A copy of the folder with one bit flipped in the header of a record."""
    shutil.copytree(folder, target)
    path = max((target / "store").glob(pattern), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[record_starts(data)[record] + offset] ^= 1 << bit
    path.write_bytes(data)
    return target


@pytest.mark.parametrize(("offset", "bit"), MISLEADING)
@pytest.mark.parametrize("record", [3, -1])
def test_a_flipped_bit_in_a_log_records_header_makes_the_store_suspect(
    folder: Path, reader: Reader, tmp_path: Path, record: int, offset: int, bit: int
) -> None:
    found = reader.read(damaged(folder, tmp_path / "data", "*.log", record, offset, bit), goes_on=True)
    assert found.refusal is None
    assert found.suspect
    assert 0 < found.count < BATCHES
    expected = Expected(SEED)
    assert found.digest == expected.digest(found.count)
    assert found.digest_after == expected.digest(found.count + 1)


@pytest.mark.parametrize(("offset", "bit"), MISLEADING)
@pytest.mark.parametrize("record", [3, -2, -1])
def test_a_flipped_bit_in_a_manifest_records_header_voids_the_store(
    folder: Path, reader: Reader, tmp_path: Path, record: int, offset: int, bit: int
) -> None:
    """Where it makes the record longer than the file, RocksDB would forget all that follows, tables of rows too."""
    found = reader.read(damaged(folder, tmp_path / "data", "MANIFEST-*", record, offset, bit), goes_on=False)
    assert found.refusal is not None
    assert found.refusal.startswith("EngineCorrupt")
    assert "MANIFEST" in found.refusal


@pytest.mark.parametrize("pattern", ["*.log", "MANIFEST-*"])
@pytest.mark.parametrize("kind", [1, 5, 7, 11, 130])
def test_garbage_behind_the_end_ends_in_bounded_time(
    folder: Path, reader: Reader, tmp_path: Path, pattern: str, kind: int
) -> None:
    target = tmp_path / "data"
    shutil.copytree(folder, target)
    path = max((target / "store").glob(pattern), key=lambda p: p.stat().st_size)
    with path.open("ab") as file:
        file.write(struct.pack("<IHB", 0x01020304, 20, kind) + bytes(range(40)))
    found = reader.read(target, goes_on=False)
    if found.refusal is None:
        assert found.count == BATCHES
        assert found.digest == Expected(SEED).digest(BATCHES)
    else:
        assert found.refusal.startswith("EngineCorrupt")


@pytest.mark.parametrize("left", [1, 6, 9, 40])
def test_a_torn_record_at_the_end_is_no_damage(
    folder: Path, reader: Reader, tmp_path: Path, left: int
) -> None:
    """What a power loss leaves: the writer had not been told that it is there."""
    target = tmp_path / "data"
    shutil.copytree(folder, target)
    path = max((target / "store").glob("*.log"), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[: record_starts(data)[-1] + left])
    found = reader.read(target, goes_on=False)
    assert (found.refusal, found.suspect, found.count) == (None, False, BATCHES - 1)
    assert found.digest == Expected(SEED).digest(BATCHES - 1)


def test_a_sound_store_is_left_alone(folder: Path) -> None:
    before = {path: path.read_bytes() for path in (folder / "store").iterdir() if path.is_file()}
    assert disarm(folder / "store") == []
    assert before == {path: path.read_bytes() for path in (folder / "store").iterdir() if path.is_file()}
