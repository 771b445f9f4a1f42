"""`make bench`: Ackord beside what people would pick instead, on the same work, in one run.

docs/benchmarks.md says what is measured, how fair it is to whom, and how to read the figures.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import machine, plan, plots, report, systems
from bench.run import Run
from bench.systems.base import BenchError, end_on_sigterm
from bench.workloads import Work

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / ".ackord" / "bench"
PUBLISHED = REPOSITORY / "docs" / "benchmarks"
INSTALLER = REPOSITORY / "scripts" / "install-bench-packages"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peers",
        default="all",
        help="all, none, or names with commas: %(default)s; " + ", ".join(systems.PEERS),
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell in each round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of them is shown (%(default)s)")
    parser.add_argument("--full", action="store_true", help="the whole cross product, which takes hours")
    parser.add_argument(
        "--only",
        default="",
        help="cells in whose name this regular expression is found, such as '^put, (1|64),'",
    )
    parser.add_argument("--folder", type=Path, help="where the servers' data goes (a new folder in /var/tmp)")
    parser.add_argument("--publish", action="store_true", help="also write the page in docs/benchmarks")
    return parser.parse_args(words)


def cells_of(options: argparse.Namespace) -> list[Work]:
    if options.full:
        cells = plan.full()
    else:
        cells = plan.usual() if systems.parse_peers(options.peers) else plan.quick()
    chosen = [work for work in cells if re.search(options.only, work.name)]
    if not chosen:
        raise BenchError(f"{options.only!r} is in no cell's name; one is {cells[0].name!r}")
    return chosen


def install(peers: Sequence[str]) -> None:
    """What the peers need of Debian's packages; the script says what to do where it cannot."""
    if peers and subprocess.run([str(INSTALLER), *peers], check=False).returncode:
        raise BenchError("not all peers can be measured here; PEERS= names those that shall be, or none")


def bench(options: argparse.Namespace) -> None:
    peers = systems.parse_peers(options.peers)
    cells = cells_of(options)
    install(peers)
    begun = time.monotonic()
    parent = options.folder or Path("/var/tmp")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="ackord-bench-", dir=parent))
    folder.chmod(0o711)  # PostgreSQL's user has to pass
    try:
        chosen = [systems.make(name, folder / name) for name in ("ackord", *peers)]
        with Run(chosen, options.seconds, options.rounds) as run:
            run.results.machine = machine.describe(folder)
            run.start()
            run.load(plan.tables(cells))
            run.measure(cells)
            run.half_load()
            run.cached()
            run.finish()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = run.results
    report.print_all(results)
    written = RESULTS / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    written.mkdir(parents=True)
    for place in (written, PUBLISHED) if options.publish else (written,):
        place.mkdir(parents=True, exist_ok=True)
        results.save(place / "last-run.json")
        pictures = plots.draw_all(results, place)
        (place / "last-run.md").write_text(report.page(results, pictures))
    print(
        f"\nsaved in {written.relative_to(REPOSITORY)}, after {(time.monotonic() - begun) / 60:.0f} minutes"
    )


def main() -> int:
    end_on_sigterm()
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        bench(arguments())
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
