"""The simulator's command line.

python -m tests.sim SEED [COUNT]           runs COUNT seeds from SEED on
python -m tests.sim SEED --trace           one seed, and all that happened in it
python -m tests.sim SEED --shrink          the smallest settings under which the seed still fails
python -m tests.sim --seeds 5000 --jobs 2  a campaign, and what it met
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace

from tests.sim.campaign import campaign, quieten, run_plan, timed
from tests.sim.plan import ALL_KINDS, Plan, draw, without
from tests.sim.shrink import options, shrink
from tests.sim.walk import Outcome

TRACE_LINES = 80
ERROR_CHARS = 3000


def main() -> int:
    parser = _parser()
    args = parser.parse_args()
    quieten()
    plan_of = _plans(parser, args)
    if args.shrink:
        return _shrink(plan_of(args.seed))
    count = args.seeds or args.count
    if count == 1:
        return _one(plan_of(args.seed), args.trace)
    seeds = range(args.seed, args.seed + count)
    total, seconds = timed(lambda: campaign(plan_of, seeds, args.jobs, lambda o: _told(plan_of(o.seed), o)))
    print(total.shown(seconds))
    return 1 if total.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("seed", type=int, nargs="?", default=1)
    parser.add_argument("count", type=int, nargs="?", default=1)
    parser.add_argument("--seeds", type=int, help="how many seeds, from 1 or SEED on")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--shrink", action="store_true")
    parser.add_argument("--without", default="", help="kinds of faults to leave out, joined by commas")
    parser.add_argument("--clients", type=int)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--tablets", type=int)
    parser.add_argument("--seconds", type=float, help="of the phase under faults")
    return parser


def _plans(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Callable[[int], Plan]:
    kinds = [kind.strip() for kind in args.without.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in ALL_KINDS]
    if unknown:
        parser.error(f"no such kind of fault: {', '.join(unknown)}; there are {', '.join(ALL_KINDS)}")
    given = {
        "clients_count": args.clients,
        "concurrency": args.concurrency,
        "tablets_count": args.tablets,
        "seconds": args.seconds,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    return lambda seed: replace(without(draw(seed), kinds), **changes)


def command(plan: Plan) -> str:
    """What replays exactly this run."""
    return " ".join(["python -m tests.sim", str(plan.seed), *options(draw(plan.seed), plan)])


def _one(plan: Plan, is_wordy: bool) -> int:
    outcome, walk = run_plan(plan, is_wordy)
    lines = list(walk.trace.lines)
    if is_wordy:
        print("\n".join(lines))
    elif outcome.error:
        print("\n".join(lines[-TRACE_LINES:]))
    _told(plan, outcome)
    if not outcome.error:
        ops = ", ".join(f"{count} {name}" for name, count in sorted(outcome.ops.items()))
        print(f"seed {plan.seed} passed: {plan.shown()}\n{ops}\ndigest {outcome.digest}")
    return 1 if outcome.error else 0


def _told(plan: Plan, outcome: Outcome) -> None:
    if outcome.error:
        print(f"seed {plan.seed} FAILED: {plan.shown()}")
        print(outcome.error[:ERROR_CHARS])
        print(f"replay: {command(plan)} [--trace | --shrink]", flush=True)


def _shrink(plan: Plan) -> int:
    first = run_plan(plan)[0]
    if not first.error:
        print(f"seed {plan.seed} passes: nothing to make smaller")
        return 1
    kind = first.error[:30]

    def fails(smaller: Plan) -> bool:
        error = run_plan(smaller)[0].error
        is_same = bool(error) and error[:30] == kind
        print(f"{'fails ' if is_same else 'passes'} {command(smaller)}", flush=True)
        return is_same

    smallest = shrink(plan, fails)
    _told(smallest, run_plan(smallest)[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
