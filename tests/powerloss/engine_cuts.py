"""Power cuts of the engine alone: a process commits batch after batch under strace, and for many instants of its life
what the disk may hold then is opened again.

What must hold for each (rules R13 and R14): the store opens, or says why not before anything was promised; it
holds every batch whose commit had returned; it is exactly the state after some number of batches, of which at
most the one under way may be more; and it goes on from there. Then a new life begins on one of these disks.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.powerloss.disk import MODELS, Disk, Model
from tests.powerloss.reader import Expected, Found, Reader
from tests.powerloss.trace import calls_of, command, has_ended

TRACE_END_S_MAX = 20.0
WRITER_S_MAX = 60.0


@dataclass(slots=True)
class Figures:
    """What a campaign saw."""

    cuts: Counter[str] = field(default_factory=Counter)  # model -> images opened
    outcomes: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    lives: int = 0
    more: int = 0  # images that held the batch under way
    violations: list[str] = field(default_factory=list)


def await_trace(trace_path: Path) -> None:
    """strace writes its last lines after the process that it follows is gone."""
    deadline = time.monotonic() + TRACE_END_S_MAX
    while not has_ended(trace_path):
        assert time.monotonic() < deadline, f"strace did not end {trace_path}"
        time.sleep(0.02)


def _await_batch(process: subprocess.Popen[bytes], side_path: Path) -> None:
    """Until the writer has said that a commit returned: on a loaded machine its start alone takes seconds."""
    deadline = time.monotonic() + WRITER_S_MAX
    while not (side_path.exists() and side_path.stat().st_size):
        assert process.poll() is None, f"the writer ended with {process.returncode}"
        assert time.monotonic() < deadline, "the writer commits nothing"
        time.sleep(0.02)


def record(
    folder: Path, seed: int, batches: int, kill_after_s: float | None, is_synced: bool, base: Path | None
) -> Disk:
    """One life of the writer on ``folder``, which holds what ``base`` holds; ``kill_after_s`` counts from its first
    commit."""
    trace_path, side_path = folder.with_name("trace"), folder.with_name("side")
    trace_path.unlink(missing_ok=True)
    side_path.unlink(missing_ok=True)
    argv = [
        sys.executable,
        "-m",
        "tests.powerloss.writer",
        str(folder),
        str(side_path),
        str(seed),
        str(batches),
    ]
    process = subprocess.Popen(command(trace_path, [*argv, "synced" if is_synced else "unsynced"]))
    try:
        if kill_after_s is not None:
            _await_batch(process, side_path)
            time.sleep(kill_after_s)
            assert process.poll() is None, f"the writer ended with {process.returncode} before it was killed"
        else:
            code = process.wait(WRITER_S_MAX)
            assert code == 0, f"the writer ended with {code}"
    finally:
        process.kill()
        process.wait()
    await_trace(trace_path)
    disk = Disk(folder, base)
    with trace_path.open() as lines:
        disk.replay(calls_of(lines), side_path)
    disk.check_against(folder)
    return disk


def judge(found: Found, expected: Expected, least: int, most: int) -> str | None:
    """What is wrong with a folder that must hold at least ``least`` and at most ``most`` batches."""
    if found.refusal is not None:
        # Without a promise it may be made anew. A manifest that is torn so that its record fails its checksum voids
        # the store (R14): the node says so, and peers refill it. One that is whole but names a table that is not
        # there, or not all of it, is not torn: it was written before what it names was synced.
        is_torn = "MANIFEST" in found.refusal and ".sst" not in found.refusal
        is_said = "EngineCorrupt" in found.refusal and is_torn
        return f"refused: {found.refusal}" if least and not is_said else None
    if found.count < least:
        return f"holds {found.count} batches, {least} were acknowledged"
    if found.count > most:
        return f"holds {found.count} batches, only {most} were begun"
    if found.digest != expected.digest(found.count):
        return f"is not the state after {found.count} batches"
    if found.digest_after is not None and found.digest_after != expected.digest(found.count + 1):
        return f"does not go on from {found.count} batches as it should"
    return None


class Campaign:
    """Lives of one store, each begun on what a cut of the life before left, or anew if that was void: so does a node
    that puts its store aside."""

    def __init__(self, seed: int, *, is_synced: bool = True) -> None:
        self.seed = seed
        self.figures = Figures()
        self._is_synced = is_synced
        self._chance = random.Random(seed)
        self._expected = Expected(seed)
        self._reader = Reader(seed)
        self._folder = Path(tempfile.mkdtemp(prefix="ackord-powerloss-"))

    def run(self, lives: int, cuts: int, batches: int) -> Figures:
        """``cuts`` images of each life, and the one that the next begins on; a life is ``batches`` batches long or,
        every third, ends by a kill."""
        base: Path | None = None
        had = 0
        try:
            for life in range(lives):
                base, had = self._live(life, cuts, batches, base, had)
        finally:
            self._reader.close()
            shutil.rmtree(self._folder, ignore_errors=True)
        return self.figures

    def _live(
        self, life: int, cuts: int, batches: int, base: Path | None, had: int
    ) -> tuple[Path | None, int]:
        data = self._folder / f"data{life}"
        if base is None:
            data.mkdir()
        else:
            shutil.copytree(base, data)
        kill_after_s = self._chance.uniform(1.0, 2.0) if life % 3 == 2 else None
        if kill_after_s is not None:
            batches *= 100  # the end comes from outside
        disk = record(data, self.seed, batches, kill_after_s, self._is_synced, base)
        self.figures.lives += 1
        self.figures.batches += len(disk.marks)
        instants = disk.interesting_instants()
        for number in range(cuts):
            model = MODELS[number % len(MODELS)]
            if self._chance.random() < 0.5:
                instant = self._chance.choice(instants)
            else:
                instant = self._chance.randrange(disk.last + 1)
            self._cut(disk, life, instant, model, had, goes_on=number % 4 < 2)
        shutil.rmtree(data)
        return self._next_base(disk, life, had)

    def _cut(self, disk: Disk, life: int, instant: int, model: Model, had: int, goes_on: bool) -> None:
        image = self._folder / "image"
        disk.leave(instant, model, self._chance, image)
        self._judge(image, disk, life, instant, model, had, goes_on)

    def _judge(
        self, image: Path, disk: Disk, life: int, instant: int, model: Model, had: int, goes_on: bool
    ) -> Found:
        """What the engine finds in the image, which is gone afterwards; whether it may be so is counted."""
        least = had + disk.marks_until(instant)
        found = self._reader.read(image, goes_on)
        shutil.rmtree(image)
        figures = self.figures
        figures.cuts[model] += 1
        wrong = judge(found, self._expected, least, least + 1)
        if wrong is not None:
            figures.outcomes["wrong"] += 1
            figures.violations.append(f"seed {self.seed}, life {life}, {model}, instant {instant}: {wrong}")
            return found
        outcome = "opened"
        if found.refusal is not None:
            outcome = "void" if least else "refused before the first batch"
        elif found.suspect:
            outcome = "suspect"
        figures.outcomes[outcome] += 1
        figures.more += found.refusal is None and found.count == least + 1
        return found

    def _next_base(self, disk: Disk, life: int, had: int) -> tuple[Path | None, int]:
        """The disk that the next life begins on, a cut late in this one, and how many batches it holds."""
        instant = self._chance.randrange(disk.last * 9 // 10, disk.last + 1)
        base, image = self._folder / f"base{life}", self._folder / "image"
        model = self._chance.choice(MODELS)
        disk.leave(instant, model, self._chance, base)
        shutil.copytree(base, image)
        found = self._judge(image, disk, life, instant, model, had, goes_on=False)
        return (base, found.count) if found.refusal is None else (None, 0)
