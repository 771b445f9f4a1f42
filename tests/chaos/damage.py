"""What is done to a node's files: a disk filled up, bits flipped, a folder deleted, an older state put back."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
BALLAST = "ballast"
FLIPPED_FILES = {"table": "*.sst", "log": "*.log", "manifest": "MANIFEST-*"}


def fill(disk: Path) -> None:
    """Leaves no byte."""
    with (disk / BALLAST).open("wb", buffering=0) as file:
        for block in (16 * MIB, MIB, 4096):
            try:
                while True:
                    os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), block)
            except OSError:
                pass


def make_room(disk: Path) -> None:
    (disk / BALLAST).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit of a stored file. ``inode``: a new file may get the old one's name."""

    path: Path
    inode: int
    offset: int
    before: int
    after: int

    def __str__(self) -> str:
        return f"{self.path.name} at {self.offset}"

    def is_there(self) -> bool:
        """Whether the damage is still in the store's files."""
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_ino != self.inode:
                    return False
                file.seek(self.offset)
                return file.read(1) == bytes([self.after])
        except FileNotFoundError:
            return False


def flippable(store: Path, kind: str) -> list[Path]:
    """The store's files of a kind of ``FLIPPED_FILES`` that hold something."""
    return [path for path in sorted(store.glob(FLIPPED_FILES[kind])) if path.stat().st_size > 64]


def flip_bit(path: Path, rng: random.Random) -> Flip:
    """In the file's part that is in use: the end of a log may be zeros that were allocated ahead."""
    data = path.read_bytes().rstrip(b"\0")
    offset = rng.randrange(max(1, len(data)))
    before = data[offset] if data else 0
    after = before ^ (1 << rng.randrange(8))
    with path.open("r+b", buffering=0) as file:
        inode = os.fstat(file.fileno()).st_ino
        file.seek(offset)
        file.write(bytes([after]))
        os.fsync(file.fileno())
    return Flip(path, inode, offset, before, after)


def empty(data: Path) -> None:
    """Deletes all of a data folder, as an operator's mistake would."""
    shutil.rmtree(data)


def image(data: Path, place: Path) -> None:
    """A copy of a data folder as it is now."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(data, place)


def roll_back(data: Path, place: Path) -> None:
    """Puts the copy in the place of the data folder."""
    shutil.rmtree(data)
    shutil.copytree(place, data)


def forget_aside(data: Path) -> int:
    """Deletes stores that a node set aside as damaged, as an operator would once they were looked at."""
    asides = list(data.glob("store.damaged-*"))
    for aside in asides:
        shutil.rmtree(aside)
    return len(asides)
