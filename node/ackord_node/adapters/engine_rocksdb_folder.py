"""The data folder around the RocksDB store: who has it open, which format it is in, how full its disk is.

Small files stand beside the store: ``ackord-lock`` (flock, so that two processes cannot open one
folder, and the kernel releases it however the process ends), ``ackord-format`` (the format version, written
only once the store exists) and ``ackord-suspect`` (rule R13: written before a store whose log was refused
is opened at all, so that a crash in between cannot make it look sound). ``ackord-void`` (rule R14) marks a
store that was found damaged as a whole while it was open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from ackord_node.ports import EngineForeign, EngineLocked

FORMAT = 2
FORMAT_WITHOUT_HISTORY = 1  # the store has no space for versions of rows; it gets one when it is opened
# A program of format N + 1 lists N here too, and reads it.
FORMATS_READ = frozenset({FORMAT_WITHOUT_HISTORY, FORMAT})

_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's block size


class DataFolder:
    """One node's data folder; ``lock`` comes first, ``unlock`` last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store_path = path / "store"
        self._lock_path = path / "ackord-lock"
        self._format_path = path / "ackord-format"
        self._suspect_path = path / "ackord-suspect"
        self._void_path = path / "ackord-void"
        self._lock_fd: int | None = None

    def lock(self) -> None:
        """Creates the folder if needed and locks it; EngineLocked if another process has it open."""
        if not self.path.is_dir():
            self.path.mkdir(parents=True, exist_ok=True)
            _sync_directory(self.path.parent)
        fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            raise EngineLocked(
                f"the data folder {self.path} is open in another process (pid {holder or 'unknown'}): "
                "stop that process, or give this node a folder of its own"
            ) from error
        os.ftruncate(fd, 0)
        with contextlib.suppress(OSError):  # the pid is for people; a full disk must not keep the node down
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._lock_fd = fd

    def unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def format_version(self) -> int | None:
        """The folder's format version, None if there is no store in it yet; EngineForeign if not ours."""
        try:
            text = self._format_path.read_bytes()
        except FileNotFoundError:
            return None
        version = int(text) if text.strip().isdigit() else None
        if version not in FORMATS_READ:
            read = ", ".join(str(each) for each in sorted(FORMATS_READ))
            found = text[:32].decode("ascii", "replace").strip()
            raise EngineForeign(
                f"the data folder {self.path} has format {found!r}, and this "
                f"program reads {read}: start it with the version of Ackord that wrote it"
            )
        return version

    def write_format(self) -> None:
        self._write_durably(self._format_path, b"%d\n" % FORMAT)

    def is_suspect(self) -> bool:
        return self._suspect_path.exists()

    def mark_suspect(self) -> None:
        self._write_durably(self._suspect_path, b"")

    def clear_suspect(self) -> None:
        self._suspect_path.unlink(missing_ok=True)
        _sync_directory(self.path)

    def is_void(self) -> bool:
        return self._void_path.exists()

    def mark_void(self) -> None:
        self._write_durably(self._void_path, b"")

    def set_aside(self) -> Path | None:
        """Rule R14: damage that no tablet can be named for voids the whole store. It is kept beside the new one
        for a person to look at; where it went, None if there was nothing left of it."""
        aside = None
        if self.store_path.exists():
            number = sum(1 for _ in self.path.glob("store.damaged-*")) + 1
            aside = self.path / f"store.damaged-{number}"
            self.store_path.rename(aside)
        for mark in (self._format_path, self._suspect_path, self._void_path):
            mark.unlink(missing_ok=True)
        _sync_directory(self.path)
        return aside

    def free_bytes(self) -> int:
        """What the file system still gives to this user."""
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def disk_bytes(self) -> int:
        """What the store's files take; a file that vanishes meanwhile counts as nothing."""
        total = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self.store_path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_blocks * _BLOCK_BYTES
        return total

    def _write_durably(self, path: Path, data: bytes) -> None:
        """All of the file or none of it, whenever the machine stops."""
        draft = path.with_name(path.name + ".new")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_directory(self.path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
