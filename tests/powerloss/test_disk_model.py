"""The disk under the power cuts: that it says what the process did, and loses what it may and nothing else."""

from __future__ import annotations

import filecmp
import random
from pathlib import Path

import pytest

from tests.powerloss import trace
from tests.powerloss.disk import MODELS, Disk, Model
from tests.powerloss.engine_cuts import record
from tests.powerloss.trace import NEVER, calls_of

needs_strace = pytest.mark.skipif(not trace.is_available(), reason="strace is not installed")

IMAGES = 60


def hexed(text: str) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in text.encode()) + '"'


def traced(*calls: str) -> Disk:
    """What these lines, of which strings stand between backquotes, did to the folder /d."""
    lines = []
    for call in calls:
        parts = call.split("`")
        parts[1::2] = [hexed(part) for part in parts[1::2]]
        lines.append(f"{100 if not call.startswith('B ') else 200} {''.join(parts).removeprefix('B ')}")
    disk = Disk(Path("/d"))
    disk.replay(calls_of(iter(lines)))
    return disk


def images(disk: Disk, instant: int, model: Model, tmp_path: Path) -> list[dict[str, bytes]]:
    """Many of the folders that a cut may leave: path -> content."""
    found = []
    for number in range(IMAGES):
        target = tmp_path / f"{model}{number}"
        disk.leave(instant, model, random.Random(number), target)
        found.append({str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()})
    return found


WRITE_AND_SYNC = (
    "openat(AT_FDCWD, `/d`, O_RDONLY|O_DIRECTORY) = 9",
    "openat(AT_FDCWD, `/d/a`, O_WRONLY|O_CREAT|O_TRUNC, 0644) = 3",
    "write(3, `one`, 3) = 3",
    "fsync(3) = 0",
    "fsync(9) = 0",
    "write(3, `two`, 3) = 3",
)


@pytest.mark.parametrize("model", MODELS)
def test_what_was_synced_is_there_and_the_rest_may_be(model: Model, tmp_path: Path) -> None:
    found = images(traced(*WRITE_AND_SYNC), 5, model, tmp_path)
    contents = {image["a"] for image in found}
    assert all(content.startswith(b"one") for content in contents)
    assert {b"one", b"onetwo"} <= contents


def test_a_sync_covers_only_what_had_returned_before_it_began(tmp_path: Path) -> None:
    disk = traced(
        *WRITE_AND_SYNC[:5],
        "write(3, `two`, 3 <unfinished ...>",
        "B fdatasync(3) = 0",
        "<... write resumed>) = 3",
    )
    assert {b"one", b"onetwo"} <= {image["a"] for image in images(disk, 7, "ordered", tmp_path)}


def test_a_sync_that_did_not_return_promises_nothing(tmp_path: Path) -> None:
    disk = traced(*WRITE_AND_SYNC, "fdatasync(3 <unfinished ...>", "+++ killed by SIGKILL +++")
    assert b"one" in {image["a"] for image in images(disk, 7, "weak", tmp_path)}


def test_a_file_without_its_name_is_lost_in_the_weak_model_only(tmp_path: Path) -> None:
    disk = traced(*WRITE_AND_SYNC[:4])
    assert {} in images(disk, 3, "weak", tmp_path)
    assert all(image["a"] == b"one" for image in images(disk, 3, "ordered", tmp_path))


@pytest.mark.parametrize("model", MODELS)
def test_a_rename_is_there_whole_or_not_at_all(model: Model, tmp_path: Path) -> None:
    disk = traced(
        *WRITE_AND_SYNC,
        "openat(AT_FDCWD, `/d/b`, O_WRONLY|O_CREAT|O_TRUNC, 0644) = 4",
        "write(4, `new`, 3) = 3",
        "fsync(4) = 0",
        "fsync(9) = 0",
        "rename(`/d/b`, `/d/a`) = 0",
    )
    found = images(disk, 10, model, tmp_path)
    assert {tuple(sorted(image)) for image in found} == {("a", "b"), ("a",)}
    for image in found:
        assert image["a"].startswith(b"one") if "b" in image else image["a"] == b"new"


def test_unsynced_sectors_of_the_weak_model_are_lost_each_by_itself(tmp_path: Path) -> None:
    disk = traced(*WRITE_AND_SYNC[:5], "pwrite64(3, `" + "x" * 2048 + "`, 2048, 512) = 2048")
    holes = [
        image["a"]
        for image in images(disk, 5, "weak", tmp_path)
        if image["a"].endswith(b"x" * 512) and b"x" * 2048 not in image["a"]
    ]
    assert holes


def test_a_descriptor_is_given_away_before_its_close_has_returned(tmp_path: Path) -> None:
    """As the traces of a loaded machine have it: the other thread's open returns in the middle of a close."""
    disk = traced(
        "openat(AT_FDCWD, `/d`, O_RDONLY|O_DIRECTORY) = 9",
        "openat(AT_FDCWD, `/elsewhere`, O_RDONLY) = 3",
        "close(3 <unfinished ...>",
        "B openat(AT_FDCWD, `/d/a`, O_WRONLY|O_CREAT|O_TRUNC, 0644 <unfinished ...>",
        "B <... openat resumed>) = 3",
        "<... close resumed>) = 0",
        "B write(3, `one`, 3) = 3",
        "B fsync(3) = 0",
        "B fsync(9) = 0",
        "B close(3 <unfinished ...>",
        "openat(AT_FDCWD, `/elsewhere`, O_WRONLY) = 3",
        "write(3, `two`, 3) = 3",
        "B <... close resumed>) = 0",
    )
    for model in MODELS:
        assert all(image == {"a": b"one"} for image in images(disk, disk.last, model, tmp_path))


def test_a_call_that_is_cut_off_never_returned() -> None:
    calls = list(calls_of(iter(["100 write(3, `x`, 1 <unfinished ...>".replace("`x`", hexed("x"))])))
    assert [(call.name, call.text(1), call.left) for call in calls] == [("write", b"x", NEVER)]


def test_ways_of_writing_that_the_trace_does_not_show_are_refused() -> None:
    with pytest.raises(ValueError, match="mapping"):
        traced(
            "openat(AT_FDCWD, `/d/a`, O_RDWR|O_CREAT, 0644) = 3",
            "mmap(NULL, 4096, PROT_READ|PROT_WRITE, MAP_SHARED, 3, 0) = 0x7f0000000000",
        )
    with pytest.raises(ValueError, match="does not know"):
        traced(
            "openat(AT_FDCWD, `/d/a`, O_RDWR|O_CREAT, 0644) = 3",
            "copy_file_range(5, NULL, 3, NULL, 4096, 0) = 4096",
        )


@needs_strace
def test_the_trace_of_a_store_tells_all_that_is_in_its_folder(tmp_path: Path) -> None:
    """With everything on the disk, the rebuilt folder is the one that the process left, byte for byte."""
    data, rebuilt = tmp_path / "data", tmp_path / "rebuilt"
    data.mkdir()
    disk = record(data, 1, 200, None, True, None)
    assert len(disk.marks) == 200
    disk.leave_all(rebuilt)
    names = sorted(str(p.relative_to(data)) for p in data.rglob("*") if p.is_file())
    assert names == sorted(str(p.relative_to(rebuilt)) for p in rebuilt.rglob("*") if p.is_file())
    assert filecmp.cmpfiles(data, rebuilt, names, shallow=False)[0] == names


@needs_strace
def test_a_life_that_is_killed_has_committed_before(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    disk = record(data, 1, 20_000, 0.0, True, None)
    assert 0 < len(disk.marks) < 20_000
