"""The table of mutants: for each rule dropped, what catches it.

    python -m tests.sim.mutants [--seconds S] [--no-walk] [--write FILE] [NAME ...]

Each mutant runs in a process of its own: first the test that it names, which must fail, then random walks of the
simulated core from seed 1 on, for ``--seconds`` (by default 5) or until one fails. Exits with 1 if a mutant is not
caught by its test.
"""

from __future__ import annotations
import __future__

import argparse
import importlib
import inspect
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.sim import (
    mutants_beacons,
    mutants_cache,
    mutants_disk,
    mutants_lead,
    mutants_request,
    mutants_time,
    mutants_transactions,
    mutants_versions,
)
from tests.sim.forks import Tests, run
from tests.sim.mutant import Mutant

ALL = [
    *mutants_lead.MUTANTS,
    *mutants_time.MUTANTS,
    *mutants_beacons.MUTANTS,
    *mutants_disk.MUTANTS,
    *mutants_request.MUTANTS,
    *mutants_versions.MUTANTS,
    *mutants_transactions.MUTANTS,
    *mutants_cache.MUTANTS,
]
HEAD = """# Mutants

Written by `make mutants`; do not edit. Each line is the product with one rule, or one condition of a rule, dropped.
"Test" shows directly what the condition is for. "Walk" says how many random walks of the simulated core, from seed 1
on, and how many seconds on one core it took until one failed, and what it said; "-" if not within {seconds:g} s, or if
the walk does not run that part. "Model" is the mutant's name in the models that the protocol was designed with.

"""


Sources = dict[tuple[str, str], str]  # (module, function) -> its text


def edited(mutant: Mutant) -> Sources:
    """The functions as the mutant has them. LookupError if an edit does not fit the code."""
    sources: Sources = {}
    for module, name, old, new in mutant.edits:
        owner, _, last = name.rpartition(".")
        where = importlib.import_module(module)
        original = inspect.getattr_static(getattr(where, owner) if owner else where, last)
        function: Any = original.fget if isinstance(original, property) else original
        source = sources.get((module, name)) or textwrap.dedent(inspect.getsource(function))
        if old not in source:
            raise LookupError(f"mutant {mutant.name}: {name} does not contain {old!r}")
        sources[module, name] = source.replace(old, new)
    return sources


def compiled(source: Any, title: str) -> Any:
    flags = __future__.annotations.compiler_flag
    return compile(source, title, "exec", flags=flags, dont_inherit=True)


def replace(module: str, name: str, code: Any) -> None:
    """The function or ``Class.method`` as the code defines it, wherever the module's is used."""
    where = importlib.import_module(module)
    owner, _, last = name.rpartition(".")
    made: dict[str, Any] = {}
    exec(code, vars(where), made)
    if owner:
        setattr(getattr(where, owner), last, made[last])
        return
    original = getattr(where, last)
    for other in list(sys.modules.values()):  # also where it was imported by name
        if getattr(other, last, None) is original:
            setattr(other, last, made[last])


def walked(seconds: float, keepers: int) -> str:
    """How the walk catches what is broken in this process."""
    from tests.support.core_walk import Walk

    begin = time.process_time()
    seed = 0
    while time.process_time() - begin < seconds:
        seed += 1
        try:
            Walk(seed, keepers=keepers).run()
        except Exception as error:
            said = " ".join(str(error).split())
            return f"{seed} walks, {time.process_time() - begin:.1f} s: {type(error).__name__}: {said[:90]}"
    return ""


class Table:
    def __init__(self, mutants: list[Mutant], seconds: float) -> None:
        self._seconds = seconds
        self.rows: dict[str, tuple[Mutant, bool, str]] = {}
        self._sources = {mutant.name: edited(mutant) for mutant in mutants}  # before anybody edits the code
        importlib.import_module("tests.support.core_walk")  # before the forks, so that no child pays for it
        files = sorted({f"tests/{mutant.test.split('::')[0]}" for mutant in mutants})
        run(files, mutants, self._catch, self._done)

    def _catch(self, mutant: Mutant, tests: Tests) -> list[Any]:
        for (module, name), source in self._sources[mutant.name].items():
            replace(module, name, compiled(source, f"<mutant {mutant.name}>"))
        failed = tests.first_failure([f"tests/{mutant.test}"])
        keepers = 2 if mutant.rule == "R19" else 0
        walk = walked(self._seconds, keepers) if mutant.is_walked and self._seconds else ""
        return [failed is not None, walk]

    def _done(self, mutant: Mutant, result: Any, seconds: float) -> None:
        caught, walk = result or (True, "it hangs")
        self.rows[mutant.name] = (mutant, caught, walk)
        word = "caught" if caught else "NOT CAUGHT BY ITS TEST"
        print(f"{mutant.rule:4s} {mutant.name:40s} {word}; {walk or '-'}", flush=True)

    def text(self, mutants: Iterable[Mutant]) -> str:
        lines = ["| rule | mutant | test | walk | model |", "|---|---|---|---|---|"]
        for mutant in mutants:
            _, caught, walk = self.rows[mutant.name]
            test = f"`{mutant.test}`" if caught else "NOT CAUGHT"
            said = walk.replace("|", "/") or "-"
            model = f"`{mutant.model}`" if mutant.model else ""
            lines.append(f"| {mutant.rule} | `{mutant.name}` | {test} | {said} | {model} |")
        return HEAD.format(seconds=self._seconds) + "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants")
    parser.add_argument("--seconds", type=float, default=5.0, help="of walks for each mutant")
    parser.add_argument("--no-walk", action="store_true")
    parser.add_argument("--write", type=Path, help="writes the table there")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    wanted = [mutant for mutant in ALL if not options.names or mutant.name in options.names]
    begin = time.monotonic()
    table = Table(wanted, 0.0 if options.no_walk else options.seconds)
    missed = [name for name, (_, caught, _) in table.rows.items() if not caught]
    by_walk = sum(bool(walk) for _, _, walk in table.rows.values())
    print(
        f"{len(wanted)} mutants, {len(wanted) - len(missed)} caught by their tests, {by_walk} also by random walks; "
        f"{time.monotonic() - begin:.0f} s"
    )
    for name in missed:
        print(f"not caught: {name}")
    if options.write is not None:
        options.write.write_text(table.text(wanted), encoding="utf-8")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
