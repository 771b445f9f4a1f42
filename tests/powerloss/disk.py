"""A file system's memory and its disk, from a trace: what a power cut at a given instant may leave.

Certain is only what was synced before: a file's bytes and size by fsync or fdatasync of the file, a directory's
entries by fsync of the directory, each for what had returned before that sync began, once the sync has returned.
Of the rest, calls under way included, any part may be there. Two models say which parts:

- ``ordered``, like a journalled file system (ext4 in its ordered mode): names reach the disk in the order in
  which they changed, and any fsync takes all earlier changes of names along; a file grows from its front.
- ``weak``, little more than what POSIX promises: of unsynced changes of names any subset that keeps the order on
  each name, of unsynced bytes any sectors, with zeros, or garbage, where the size came without the bytes.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from tests.powerloss.trace import NEVER, Call

Model = Literal["ordered", "weak"]
MODELS: tuple[Model, ...] = ("ordered", "weak")
SECTOR_BYTES = 512
PAGE_BYTES = 4096
_FALLOC_FL_KEEP_SIZE = "FALLOC_FL_KEEP_SIZE"
_IGNORED = frozenset({"sync_file_range"})  # starts a writeback and promises nothing


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a file's bytes: ``data`` at ``offset``, or, without data, a new size."""

    entered: int
    left: int
    offset: int
    data: bytes | None


@dataclass(slots=True, eq=False)
class Inode:
    is_folder: bool
    base: bytes = b""  # a file's content when the tracing began, all of it on disk
    changes: list[Change] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)
    entries: dict[str, Inode] = field(default_factory=dict)  # a folder's, as its processes see it
    base_entries: dict[str, Inode] = field(default_factory=dict)
    size: int = 0  # as its processes see it


@dataclass(frozen=True, slots=True)
class Naming:
    """A change of names: each pair is a place and what stands there afterwards (None: nothing)."""

    entered: int
    left: int
    places: tuple[tuple[Inode, str, Inode | None], ...]


@dataclass(slots=True)
class _OpenFile:
    inode: Inode
    position: int
    appends: bool


class Disk:
    """What ``calls`` did to the files under ``root``, whose content before them was ``base``."""

    def __init__(self, root: Path, base: Path | None = None) -> None:
        self._root = PurePosixPath(root)
        self.top = Inode(is_folder=True)
        self.namings: list[Naming] = []
        self.all_syncs: list[tuple[int, int]] = []
        self.marks: list[int] = []  # instants at which something was written to ``side``
        self.last = 0  # the last instant of the trace
        self._open: dict[int, _OpenFile] = {}
        self._sides: set[int] = set()
        if base is not None:
            _load(self.top, base)

    # ------------------------------------------------------------------------------ the trace

    def replay(self, calls: Iterable[Call], side: Path | None = None) -> None:
        for call in calls:
            self.last = max(self.last, call.entered, call.left if call.left != NEVER else 0)
            handler = getattr(self, f"_{call.name}", None)
            if handler is not None:
                handler(call)
            elif call.name in ("open", "openat", "creat"):
                self._opened(call, side)
            elif call.name not in _IGNORED and self._concerns(call):
                raise ValueError(f"a call that this disk does not know: {call.name}({call.args})")
        self.marks.sort()

    def _concerns(self, call: Call) -> bool:
        target = call.args[2 if call.name in ("copy_file_range", "splice") else 0]
        if target.isdigit():
            return int(target) in self._open
        return call.name == "sync" or any(
            '"' in arg and self._inside(call.text(at)) is not None for at, arg in enumerate(call.args)
        )

    def _inside(self, path: bytes) -> PurePosixPath | None:
        """The path relative to the root; None if it is not under it."""
        whole = PurePosixPath(path.decode())
        return whole.relative_to(self._root) if whole.is_relative_to(self._root) else None

    def _place(self, path: bytes) -> tuple[Inode, str] | None:
        """The folder and the name of a path; None if it is not under the root."""
        inside = self._inside(path)
        if inside is None:
            return None
        folder = self.top
        for part in inside.parts[:-1]:
            folder = folder.entries[part]
        return folder, inside.name

    def _name(self, call: Call, *places: tuple[Inode, str, Inode | None]) -> None:
        """Notes the change and, as other calls would see it, makes it."""
        self.namings.append(Naming(call.entered, call.left, places))
        for folder, name, inode in places:
            if inode is None:
                folder.entries.pop(name, None)
            else:
                folder.entries[name] = inode

    def _opened(self, call: Call, side: Path | None) -> None:
        at = 1 if call.name == "openat" else 0
        path = call.text(at)
        flags = call.args[at + 1].split("|") if call.name != "creat" else ["O_CREAT", "O_TRUNC"]
        if side is not None and path == str(side).encode() and call.result is not None:
            self._sides.add(call.result)
        inside = self._inside(path)
        if inside is None:
            return
        if not inside.parts:
            inode = self.top
        else:
            place = self._place(path)
            assert place is not None
            folder, name = place
            if name not in folder.entries:
                if "O_CREAT" not in flags:
                    return
                self._name(call, (folder, name, Inode(is_folder=False)))
            inode = folder.entries[name]
        if "O_TRUNC" in flags and inode.size:
            self._resize(call, inode, 0)
        if call.result is not None:
            self._open[call.result] = _OpenFile(inode, 0, "O_APPEND" in flags)

    def _close(self, call: Call) -> None:
        self._open.pop(call.number(0), None)
        self._sides.discard(call.number(0))

    def _dup(self, call: Call) -> None:
        if call.result is not None and call.number(0) in self._open:
            self._open[call.result] = self._open[call.number(0)]

    _dup2 = _dup3 = _dup

    def _fcntl(self, call: Call) -> None:
        if call.args[1].startswith("F_DUPFD"):
            self._dup(call)

    def _lseek(self, call: Call) -> None:
        if call.result is not None and call.number(0) in self._open:
            self._open[call.number(0)].position = call.result

    def _mmap(self, call: Call) -> None:
        shared = "MAP_SHARED" in call.args[3] and "PROT_WRITE" in call.args[2]
        if shared and call.number(4) in self._open:
            raise ValueError("a file of the store is written through a mapping, which no trace shows")

    def _write(self, call: Call) -> None:
        descriptor = call.number(0)
        if descriptor in self._sides:
            self.marks.append(call.entered)
        file = self._open.get(descriptor)
        if file is None:
            return
        data = call.text(1)
        if call.result is not None:
            data = data[: call.result]
        if file.appends:
            file.position = file.inode.size
        self._put(call, file.inode, file.position, data)
        file.position += len(data)

    _writev = _write

    def _pwrite64(self, call: Call) -> None:
        file = self._open.get(call.number(0))
        if file is not None:
            data = call.text(1)
            self._put(call, file.inode, call.number(3), data if call.result is None else data[: call.result])

    def _put(self, call: Call, inode: Inode, offset: int, data: bytes) -> None:
        inode.changes.append(Change(call.entered, call.left, offset, data))
        inode.size = max(inode.size, offset + len(data))

    def _resize(self, call: Call, inode: Inode, size: int) -> None:
        inode.changes.append(Change(call.entered, call.left, size, None))
        inode.size = size

    def _ftruncate(self, call: Call) -> None:
        file = self._open.get(call.number(0))
        if file is not None:
            self._resize(call, file.inode, call.number(1))

    def _fallocate(self, call: Call) -> None:
        file = self._open.get(call.number(0))
        if file is None or call.args[1] == _FALLOC_FL_KEEP_SIZE:
            return
        if call.args[1] != "0":
            raise ValueError(f"a fallocate that this disk does not know: {call.args}")
        end = call.number(2) + call.number(3)
        if end > file.inode.size:
            self._resize(call, file.inode, end)

    def _fsync(self, call: Call) -> None:
        file = self._open.get(call.number(0))
        if file is not None and call.left != NEVER:
            file.inode.syncs.append((call.entered, call.left))
            self.all_syncs.append((call.entered, call.left))

    _fdatasync = _fsync

    def _mkdir(self, call: Call) -> None:
        place = self._place(call.text(0))
        if place is not None:
            self._name(call, (*place, Inode(is_folder=True)))

    def _unlink(self, call: Call) -> None:
        place = self._place(call.text(0))
        if place is not None and place[1] in place[0].entries:
            self._name(call, (*place, None))

    _rmdir = _unlink

    def _rename(self, call: Call) -> None:
        source, target = self._place(call.text(0)), self._place(call.text(1))
        if source is None and target is None:
            return
        if source is None or target is None:
            raise ValueError(f"a rename into or out of the folder: {call.args}")
        if source[1] in source[0].entries:  # else a call under way at the end, and another thread was faster
            self._name(call, (*source, None), (*target, source[0].entries[source[1]]))

    def _link(self, call: Call) -> None:
        source, target = self._place(call.text(0)), self._place(call.text(1))
        if source is not None and target is not None:
            self._name(call, (*target, source[0].entries[source[1]]))

    # ------------------------------------------------------------------------------ the power cut

    def interesting_instants(self) -> list[int]:
        """Where names changed or something became durable, and just before and after."""
        instants = {at for n in self.namings for at in (n.entered, n.left)}
        instants |= {at for sync in self.all_syncs for at in sync} | set(self.marks)
        return sorted({at + d for at in instants if at != NEVER for d in (-1, 0) if 0 <= at + d <= self.last})

    def marks_until(self, instant: int) -> int:
        return bisect.bisect_right(self.marks, instant)

    def leave(self, instant: int, model: Model, chance: random.Random, target: Path) -> None:
        """Builds in ``target`` (a new folder) one of the states that a power cut at ``instant`` may leave."""
        survival = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        entries = self._names_left(instant, model, survival, chance)
        _build(
            lambda folder: entries.get(id(folder), {}),
            self.top,
            target,
            lambda inode: _content(inode, instant, model, survival, chance),
        )

    def leave_all(self, target: Path) -> None:
        """Builds what the processes saw at the end, as if all of it had reached the disk."""
        _build(lambda folder: folder.entries, self.top, target, _last_content)

    def check_against(self, folder: Path) -> None:
        """That the folder of the process, now that it has ended, holds what the trace says: so nothing was written in
        a way that the trace does not show. Only calls under way at its end leave a doubt."""
        if any(naming.left == NEVER for naming in self.namings):
            return
        _check_against(self.top, folder)

    def _names_left(
        self, instant: int, model: Model, survival: float, chance: random.Random
    ) -> dict[int, dict[str, Inode]]:
        """Folder (by id) -> what is in it on the disk."""
        entries = {key: dict(inode.base_entries) for key, inode in _folders(self.top).items()}
        begun = [n for n in self.namings if n.entered <= instant]
        journal_end = max((e for e, left in self.all_syncs if left <= instant), default=-1)
        stopped = False
        missing: set[tuple[int, str]] = set()
        for naming in begun:
            touched = {(id(folder), name) for folder, name, _ in naming.places}
            if model == "ordered":
                is_synced = naming.left < journal_end
                stopped = stopped or not (is_synced or chance.random() < survival)
                is_left = not stopped
            else:
                is_synced = all(
                    any(naming.left < e and left <= instant for e, left in folder.syncs)
                    for folder, _, _ in naming.places
                )
                is_left = is_synced or (not touched & missing and chance.random() < survival)
            if not is_left:
                missing |= touched
                continue
            for folder, name, inode in naming.places:
                place = entries.setdefault(id(folder), {})
                if inode is None:
                    place.pop(name, None)
                else:
                    place[name] = inode
        return entries


def _load(inode: Inode, path: Path) -> None:
    for entry in sorted(path.iterdir()):
        child = Inode(is_folder=entry.is_dir())
        if child.is_folder:
            _load(child, entry)
        else:
            child.base = entry.read_bytes()
            child.size = len(child.base)
        inode.entries[entry.name] = inode.base_entries[entry.name] = child


def _folders(top: Inode) -> dict[int, Inode]:
    """The folders that were there when the tracing began."""
    found = {id(top): top}
    for child in top.base_entries.values():
        if child.is_folder:
            found |= _folders(child)
    return found


def _build(
    entries_of: Callable[[Inode], dict[str, Inode]],
    folder: Inode,
    target: Path,
    content_of: Callable[[Inode], bytes],
) -> None:
    target.mkdir()
    for name, inode in sorted(entries_of(folder).items()):
        if inode.is_folder:
            _build(entries_of, inode, target / name, content_of)
        else:
            (target / name).write_bytes(content_of(inode))


def _check_against(inode: Inode, path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if names != sorted(inode.entries):
        raise AssertionError(f"{path} holds {names}, its trace says {sorted(inode.entries)}")
    for name, child in inode.entries.items():
        if child.is_folder:
            _check_against(child, path / name)
        elif any(change.left == NEVER for change in child.changes):
            continue
        elif (path / name).read_bytes() != _last_content(child):
            raise AssertionError(f"{path / name} is not what its trace says")


def _apply(data: bytearray, change: Change) -> None:
    if change.data is None:
        del data[change.offset :]
        data.extend(bytes(change.offset - len(data)))
        return
    if len(data) < change.offset:
        data.extend(bytes(change.offset - len(data)))
    data[change.offset : change.offset + len(change.data)] = change.data


def _last_content(inode: Inode) -> bytes:
    data = bytearray(inode.base)
    for change in inode.changes:
        _apply(data, change)
    return bytes(data)


def _content(inode: Inode, instant: int, model: Model, survival: float, chance: random.Random) -> bytes:
    data = bytearray(inode.base)
    synced_until = max((entered for entered, left in inode.syncs if left <= instant), default=-1)
    unsynced = []
    for change in inode.changes:
        if change.entered > instant:
            continue
        if change.left < synced_until:
            _apply(data, change)
        else:
            unsynced.append(change)
    if unsynced:
        (_grow if model == "ordered" else _scatter)(data, unsynced, survival, chance)
    return bytes(data)


def _grow(data: bytearray, unsynced: list[Change], survival: float, chance: random.Random) -> None:
    """Changes reach the disk in order, page by page, up to some point. The size counts once the page does, but in a
    page that was on the disk already it may count before: then the page's new sectors are torn, and zeros follow."""
    for change in unsynced:
        if change.data is None:
            if chance.random() >= survival:
                return
            _apply(data, change)
            continue
        for piece in _pieces(change, PAGE_BYTES):
            if chance.random() < survival:
                _apply(data, piece)
                continue
            if piece.offset % PAGE_BYTES and piece.offset == len(data) and chance.random() < 0.5:
                assert piece.data is not None
                end = piece.offset + len(piece.data)
                for sector in _pieces(piece, SECTOR_BYTES):
                    if chance.random() >= survival:
                        break
                    _apply(data, sector)
                data.extend(bytes(end - len(data)))
            return


def _scatter(data: bytearray, unsynced: list[Change], survival: float, chance: random.Random) -> None:
    """Any sectors, and a size that may be there without them."""
    filling = chance.choice(("zeros", "zeros", "garbage"))
    before = len(data)
    seen = bytearray(data)
    kept = []
    for change in unsynced:
        _apply(seen, change)
        if change.data is None:
            if chance.random() < survival:
                kept.append(change)
        else:
            kept += [p for p in _pieces(change, SECTOR_BYTES) if chance.random() < survival]
    if len(seen) > before and chance.random() < survival:
        size = chance.randrange(before, len(seen) + 1)
        data.extend(bytes(size - before) if filling == "zeros" else chance.randbytes(size - before))
    for change in kept:
        if change.data is not None and change.offset > len(data) and filling == "garbage":
            data.extend(chance.randbytes(change.offset - len(data)))
        _apply(data, change)


def _pieces(change: Change, unit_bytes: int) -> Iterable[Change]:
    """The change, torn where the disk's units begin."""
    assert change.data is not None
    start, end = change.offset, change.offset + len(change.data)
    while start < end:
        stop = min(end, (start // unit_bytes + 1) * unit_bytes)
        part = change.data[start - change.offset : stop - change.offset]
        yield Change(change.entered, change.left, start, part)
        start = stop
