"""What the engine-level runs write: batch k of a seed is always the same, so that a reader knows every state there
ever was, and a process that commits one batch after another and says so after each.

The saying is a ``write`` of one byte to a side file. It appears in the trace of system calls between those of the
store, which is how a run knows, for every instant, how many commits had returned.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

from ackord_node.adapters.engine_rocksdb import RocksEngine
from ackord_node.ports import Batch

COUNT_FACT = "count"  # the node fact that holds how many batches were committed
TABLETS = (1, 2, 3)
KEYS_COUNT = 400
LOG_KEPT = 40
WRITE_BUFFER_BYTES = 64 * 1024  # so small that flushes, compactions and new log files come all the time


def batch_of(seed: int, number: int) -> Batch:
    """Batch ``number`` (from 1 on): like those of a loaded node, with every kind of deletion now and then."""
    chance = random.Random(f"{seed}/{number}")
    batch = Batch(node={COUNT_FACT: b"%d" % number})
    for tablet in TABLETS:
        if chance.random() < 0.3:
            continue
        batch.log.append((tablet, number, chance.randbytes(chance.choice((30, 300, 3000)))))
        batch.meta[tablet] = b"meta %d of %d" % (number, tablet)
        for _ in range(chance.randrange(6)):
            key = b"k%d" % chance.randrange(KEYS_COUNT)
            value = None if chance.random() < 0.2 else chance.randbytes(chance.choice((10, 100, 2000)))
            batch.rows.append((tablet, key, value))
        if chance.random() < 0.3:
            batch.requests.append((tablet, b"c%d" % chance.randrange(20), chance.randbytes(50)))
        if chance.random() < 0.1:
            batch.trim.append((tablet, number - LOG_KEPT))
        if chance.random() < 0.05:
            batch.cut.append((tablet, number - 2))
        if chance.random() < 0.01:
            batch.clear.append(tablet)
    return batch


def write(folder: Path, side_path: Path, seed: int, count: int, is_synced: bool) -> None:
    engine = RocksEngine(folder, reserve_bytes=0, write_buffer_bytes=WRITE_BUFFER_BYTES)
    engine.open()
    if not is_synced:
        engine._live().sync = lambda: None  # type: ignore[method-assign]
    first = int(engine.node_facts().get(COUNT_FACT, b"0")) + 1
    side = os.open(side_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in range(first, first + count):
        engine.commit(batch_of(seed, number))
        os.write(side, b".")
    engine.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "synced")
