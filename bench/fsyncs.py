"""Counts, with strace, how often each server of each system syncs its disk while one caller writes row after row.

    .venv/bin/python -m bench.fsyncs --peers all

One caller's writes cannot share a sync: a server that takes part in every acknowledgement syncs at least once for each.
All three servers must show that for Ackord, PostgreSQL and Redis; two of three for etcd and ZooKeeper.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import systems
from bench.plan import SMALL
from bench.systems.base import BenchError, System, descendants, end_on_sigterm, find_program, parents

WRITES_COUNT = 100
CALLS = "fsync,fdatasync,sync_file_range,msync"
ATTACH_S = 2.0
NEEDED = {"etcd": 2, "ZooKeeper": 2}  # a majority; of the others all three


async def count(system: System, folder: Path) -> dict[str, int]:
    """Syncs of each server while ``WRITES_COUNT`` rows are written, one after another."""
    access = system.access()
    await access.create(SMALL)
    client = await access.connect(SMALL, 1)
    try:
        await client.load([(key, b"x" * 100) for key in range(100)])
        tracers = {name: _trace(pid, folder / f"{name}.strace") for name, pid in system.pids().items()}
        await asyncio.sleep(ATTACH_S)
        before = {name: _lines(folder / f"{name}.strace") for name in tracers}
        for key in range(WRITES_COUNT):
            await client.put(key % 100, b"y" * 100)
        after = {name: _lines(folder / f"{name}.strace") for name in tracers}
        for tracer in tracers.values():
            tracer.send_signal(signal.SIGINT)
            tracer.wait()
    finally:
        await client.close()
    return {name: after[name] - before[name] for name in tracers}


def _trace(pid: int, path: Path) -> subprocess.Popen[bytes]:
    """Of the process and all that it has started."""
    chosen = [word for one in descendants([pid], parents()) for word in ("-p", str(one))]
    command = [find_program("strace"), "-f", "-q", "-e", f"trace={CALLS}", "-o", str(path), *chosen]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _lines(path: Path) -> int:
    """Calls that have returned: one that is interrupted in the log has a line for its end."""
    try:
        return sum(" = 0" in line for line in path.read_text().splitlines())
    except OSError:
        return 0


def verdict(name: str, syncs: Mapping[str, int]) -> str:
    enough = sum(found >= WRITES_COUNT for found in syncs.values())
    needed = NEEDED.get(name, 3)
    return f"{enough} servers synced for every write, {needed} must: {'yes' if enough >= needed else 'NO'}"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peers", default="all", help="as of make bench (%(default)s)")
    options = parser.parse_args(words)
    folder = Path(tempfile.mkdtemp(prefix="ackord-bench-", dir="/var/tmp"))
    folder.chmod(0o711)
    end_on_sigterm()
    is_good = True
    try:
        for name in ("ackord", *systems.parse_peers(options.peers)):
            system = systems.make(name, folder / name)
            try:
                system.start()
                begun = time.monotonic()
                syncs = asyncio.run(count(system, folder))
            finally:
                system.stop()
            found = ", ".join(f"{server} {number}" for server, number in syncs.items())
            text = verdict(system.name, syncs)
            is_good &= text.endswith("yes")
            print(
                f"{system.name}: {WRITES_COUNT} writes in {time.monotonic() - begun:.1f} s: {found}; {text}"
            )
    except BenchError as error:
        print(f"fsyncs: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
