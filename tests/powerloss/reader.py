"""Opens the data folders that power cuts left, in a process of its own: one folder per line on its input, one JSON
line for each on its output. If this process dies, the folder it was asked for killed it."""

from __future__ import annotations

import hashlib
import json
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ackord_node.adapters.engine_memory import MemoryDisk, MemoryEngine
from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.ports import Engine, EngineError
from tests.powerloss.writer import COUNT_FACT, TABLETS, WRITE_BUFFER_BYTES, batch_of

NO_LIMIT = 1 << 40
ANSWER_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class Found:
    """What the engine said of a folder: ``count`` batches are in it, or it was refused."""

    refusal: str | None
    suspect: bool = False
    count: int = 0
    digest: str = ""
    digest_after: str | None = None  # if asked for: after one more batch, a close and another open


def digest_of(engine: Engine) -> str:
    """Of everything that is stored, as the port shows it."""
    digest = hashlib.sha256(
        repr((sorted(engine.node_facts().items()), sorted(engine.metas().items()))).encode()
    )
    for tablet in TABLETS:
        bounds = engine.log_bounds(tablet)
        log = [] if bounds is None else engine.read_log(tablet, bounds[0], NO_LIMIT, NO_LIMIT)
        rows = engine.scan(tablet, b"", None, False, NO_LIMIT, NO_LIMIT)
        digest.update(repr((tablet, bounds, log, rows, engine.requests(tablet))).encode())
    return digest.hexdigest()


class Expected:
    """The digest of the state after each number of batches, from the engine in memory."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._disk = MemoryDisk()
        self._engine = MemoryEngine(self._disk)
        self._engine.open()
        self._digests = [digest_of(self._engine)]

    def digest(self, count: int) -> str:
        while len(self._digests) <= count:
            self._disk.apply(batch_of(self._seed, len(self._digests)))
            self._digests.append(digest_of(self._engine))
        return self._digests[count]


class Reader:
    """The other process, from the side of the one that asks."""

    def __init__(self, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.powerloss.reader", str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, folder: Path, goes_on: bool) -> Found:
        """What is in the folder; ``goes_on``: and whether the store can be used from there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{'on' if goes_on else 'only'} {folder}\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], ANSWER_S_MAX)[0]:
            self._process.kill()
            raise AssertionError(f"{folder} is not opened within {ANSWER_S_MAX:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(
                f"{folder} ended the process that opened it: exit code {self._process.wait()}"
            )
        return Found(**json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def _engine(folder: Path) -> RocksEngine:
    return RocksEngine(folder, reserve_bytes=0, write_buffer_bytes=WRITE_BUFFER_BYTES)


def read(folder: Path, seed: int, goes_on: bool) -> dict[str, object]:
    engine = _engine(folder)
    try:
        engine.open()
    except EngineError as error:
        return {"refusal": f"{type(error).__name__}: {error}"}
    suspect = engine.suspect
    count = int(engine.node_facts().get(COUNT_FACT, b"0"))
    found: dict[str, object] = {
        "refusal": None,
        "suspect": suspect,
        "count": count,
        "digest": digest_of(engine),
    }
    if not goes_on:
        engine.close()
        return found
    engine.commit(batch_of(seed, count + 1))
    if suspect:
        engine.clear_suspicion()
    engine.close()
    engine = _engine(folder)
    engine.open()
    assert not engine.suspect
    digest_after = digest_of(engine)
    engine.close()
    return {**found, "digest_after": digest_after}


def main(seed: int) -> None:
    for line in sys.stdin:
        how, _, folder = line.rstrip("\n").partition(" ")
        print(json.dumps(read(Path(folder), seed, how == "on")), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
