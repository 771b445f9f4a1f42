"""`make profile`: a flame graph of every process of Ackord while it is under load, with py-spy.

Rates meanwhile do not count: the profiler takes CPU too. The SVGs go to .ackord/bench, with --publish to
docs/benchmarks.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench import plan
from bench.__main__ import PUBLISHED, RESULTS
from bench.systems.ackord import Ackord
from bench.systems.base import BenchError, end_on_sigterm
from bench.workers import Workers
from bench.workloads import Work

PROFILED = (
    Work("put", plan.SMALL, 256),
    Work("batch", plan.SMALL, 16),
    Work("get", plan.SMALL, 256),
    Work("put", plan.SMALL, 1),
)
WARM_UP_S = 1.0
MARGIN_S = 1.0  # the load outlasts the recording
RATE_PER_S = 200


def py_spy() -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise BenchError("py-spy is missing: pip install 'ackord[bench]'")
    return program


def record(pids: Mapping[str, int], work: Work, seconds: float, folder: Path) -> list[Path]:
    """Samples all of the processes at once; returns the pictures."""
    who = work.name.partition(", 10k")[0].replace(", ", "-").replace(" ", "")
    paths = {name: folder / f"flame-{who}-{name}.svg" for name in pids}
    recorders = [
        subprocess.Popen(
            [
                py_spy(),
                "record",
                "--nonblocking",
                "--pid",
                str(pid),
                "--duration",
                str(max(round(seconds), 1)),
                "--rate",
                str(RATE_PER_S),
                "--output",
                str(paths[name]),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, pid in pids.items()
    ]
    for recorder in recorders:
        recorder.wait()
    written = [path for path in paths.values() if path.exists()]
    for path in written:  # their titles are py-spy's whole command, with the folders of this machine
        text = path.read_text(encoding="utf-8")
        for mine in (folder, Path(py_spy()).parent):
            text = text.replace(f"{mine}/", "")
        path.write_text(text, encoding="utf-8")
    return written


def profile(seconds: float, folder: Path) -> list[Path]:
    """All pictures of all profiled works."""
    home = Path(tempfile.mkdtemp(prefix="ackord-bench-", dir="/var/tmp"))
    system, workers = Ackord(home), Workers()
    written: list[Path] = []
    try:
        system.start()
        workers.load(system.access(), plan.SMALL)
        for run, work in enumerate(PROFILED):
            chosen = workers.prepare(system.access(), work, seconds + MARGIN_S, WARM_UP_S, run)
            pids = {name: pid for name, pid in system.pids().items() if name != "zookeeper"}
            pids["client"] = chosen[0].pid
            with ThreadPoolExecutor(1) as beside:
                recording = beside.submit(record, pids, work, seconds, folder)
                Workers.go(chosen, seconds + MARGIN_S)
                written += recording.result()
            Workers.part(chosen)
    finally:
        workers.close()
        system.stop()
        shutil.rmtree(home, ignore_errors=True)
    return written


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make profile", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each work (%(default)s)")
    parser.add_argument("--publish", action="store_true", help="into docs/benchmarks")
    options = parser.parse_args(words)
    folder = PUBLISHED if options.publish else RESULTS
    end_on_sigterm()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        py_spy()
        for path in profile(options.seconds, folder):
            print(path)
    except BenchError as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
