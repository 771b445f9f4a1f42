"""Makes a failing run smaller: fewer kinds of faults, fewer clients, fewer tablets, less time, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.sim.plan import ALL_KINDS, Plan, without

Fails = Callable[[Plan], bool]
SECONDS_STEP = 0.5


def shrink(plan: Plan, fails: Fails) -> Plan:
    """The smallest plan found that still fails. Each try is a run."""
    plan = _fewer_kinds(plan, fails)
    for name, least in (("clients_count", 1), ("concurrency", 1), ("tablets_count", 1)):
        value = getattr(plan, name)
        while value > least:
            value -= 1
            smaller = replace(plan, **{name: value})
            if fails(smaller):
                plan = smaller
    while plan.seconds > SECONDS_STEP:
        shorter = replace(plan, seconds=plan.seconds - SECONDS_STEP)
        if not fails(shorter):
            break
        plan = shorter
    return _fewer_kinds(plan, fails)


def _fewer_kinds(plan: Plan, fails: Fails) -> Plan:
    """Leaves out half of the kinds, then a quarter, ... then one at a time."""
    kinds = [kind for kind in ALL_KINDS if plan.has(kind)]
    size = max(1, len(kinds) // 2)
    while True:
        for at in range(0, len(kinds), size):
            smaller = without(plan, kinds[at : at + size])
            if len(smaller.kinds) < len(plan.kinds) and fails(smaller):
                plan = smaller
        if size == 1:
            return plan
        size //= 2


def options(drawn: Plan, plan: Plan) -> list[str]:
    """The command line's options that turn the drawn plan into this one."""
    found = []
    gone = [kind for kind in ALL_KINDS if drawn.has(kind) and not plan.has(kind)]
    if gone:
        found.append(f'--without "{",".join(gone)}"')
    for option, name in (
        ("--clients", "clients_count"),
        ("--concurrency", "concurrency"),
        ("--tablets", "tablets_count"),
        ("--seconds", "seconds"),
    ):
        if getattr(drawn, name) != getattr(plan, name):
            found.append(f"{option} {getattr(plan, name):g}")
    return found
