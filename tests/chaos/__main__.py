"""``python -m tests.chaos --minutes M``: a real cluster in network namespaces under load and faults.

The exit code is 0 only if no check failed and every replica was in sync in the end; 1: something was violated (node
logs and data folders are kept), 2: a run is not possible here, 130: broken off. The results are in .ackord/chaos/RUN:
history/*.jsonl (every call), report.md, report.json, picture.png, and what the machines left.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import uvloop

from tests.chaos import sandbox
from tests.chaos.faults import KINDS
from tests.chaos.load import WORKS
from tests.chaos.nemesis import MIX, kinds_of_a_run
from tests.support.cluster import REPO

EXIT_VIOLATED = 1
EXIT_IMPOSSIBLE = 2
EXIT_BROKEN_OFF = 130


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Runs a real cluster in network namespaces under faults and load, and checks every answer.",
        epilog=f"Kinds of fault: {', '.join(kinds_of_a_run(()))}.",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults come (default: 5)")
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3, help="default: 3")
    parser.add_argument(
        "--seed", type=int, help="of the order and details of the faults (default: a new one)"
    )
    parser.add_argument("--only", default="", metavar="KINDS", help="kinds of fault, joined by commas")
    parser.add_argument(
        "--work",
        choices=sorted(WORKS),
        help="only this load, with many clients (default: all of them, and more)",
    )
    parser.add_argument("--folder", type=Path, help="of the results (default: .ackord/chaos/RUN)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.only = tuple(kind for kind in parsed.only.split(",") if kind)
    unknown = [kind for kind in parsed.only if kind not in KINDS and kind != MIX]
    if unknown:
        parser.error(f"no such kind of fault: {', '.join(unknown)}")
    return parsed


def main() -> int:
    options = parse()
    if options.inside:
        return _inside(options)
    reason = sandbox.why_not()
    if reason is not None:
        print(reason, file=sys.stderr)
        return EXIT_IMPOSSIBLE
    seed = random.randrange(2**32) if options.seed is None else options.seed
    folder = options.folder or REPO / ".ackord" / "chaos" / f"{time.strftime('%Y%m%d-%H%M%S')}-{seed}"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.chaos", "--inside", f"--minutes={options.minutes}"]
    command += [f"--nodes={options.nodes}", f"--seed={seed}", f"--folder={folder.resolve()}"]
    if options.only:
        command.append(f"--only={','.join(options.only)}")
    if options.work:
        command.append(f"--work={options.work}")
    os.chdir(REPO)
    return sandbox.run_inside(command)


def _inside(options: argparse.Namespace) -> int:
    from tests.chaos.machines import Machines
    from tests.chaos.report import write_report
    from tests.chaos.run import Order, run

    sandbox.settle_in()
    order = Order(options.minutes, options.nodes, options.seed, options.only, options.folder, options.work)
    print(
        f"seed {order.seed}, {order.nodes_count} nodes, {order.minutes:g} minutes; {order.folder}", flush=True
    )
    machines = Machines(order.folder, order.nodes_count)
    is_passed = False
    try:
        machines.start()
        outcome = uvloop.run(run(order, machines))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the report is left
        write_report(outcome)
        is_passed = outcome.is_passed
        if outcome.is_broken_off:
            return EXIT_BROKEN_OFF
    except KeyboardInterrupt:
        print("broken off", file=sys.stderr)
        return EXIT_BROKEN_OFF
    finally:
        if not is_passed:
            machines.keep_disks()
        machines.close()
    return 0 if is_passed else EXIT_VIOLATED


if __name__ == "__main__":
    sys.exit(main())
