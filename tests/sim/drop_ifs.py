"""Every condition of the core is load bearing: with any one dropped, a test fails.

For each function that docs/protocol.md names, one mutant for every ``if`` (never, always), every conditional
expression, every filter of a comprehension, and every operand of ``and`` / ``or``. Each runs in a process of its own,
forked after the tests were collected, against the tests that caught most so far first, then against walks of the
simulated core. A mutant that hangs is caught.

    python -m tests.sim.drop_ifs [--all] [--walks N] [--every N] [--show] [PART OF A NAME ...]
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.sim.forks import ROOT, Tests, run
from tests.sim.mutants import compiled, replace
from tests.sim.needless import NEEDLESS
from tests.unit.test_docs import PROTOCOL, references

PACKAGE = ROOT / "node" / "ackord_node"
SUITES = [
    "tests/unit/test_core_*.py",
    "tests/unit/test_plain_puts.py",
    "tests/unit/test_version_reads.py",
    "tests/scenario",
    "tests/property/test_requests.py",
    "tests/property/test_retention.py",
    "tests/property/test_transactions.py",
    "tests/fuzz/test_peer_messages.py",
]
WALK_FIRST_SEED = 5000


@dataclass(frozen=True)
class Place:
    """A condition and what becomes of it."""

    module: str  # "core/takeover.py"
    function: str  # "Takeover._may_try"
    number: int  # of the edit in that function
    what: str  # "never if d is None", "without `x` in `x and y`"
    line: int

    @property
    def name(self) -> str:
        return f"{self.module}:{self.function}: {self.what}"


# ------------------------------------------------------------------------------------- mutants


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def edits(function: ast.AST) -> Iterator[tuple[str, int, Any]]:
    """(what, line, action on the tree) for every condition; the actions are for one copy of the tree each."""
    texts = {id(x) for text in ast.walk(function) if isinstance(text, ast.JoinedStr) for x in ast.walk(text)}
    for node in ast.walk(function):
        if id(node) in texts:
            continue  # only words of a message
        if isinstance(node, ast.If | ast.IfExp):
            text = ast.unparse(node.test)
            for word, value in (("never", False), ("always", True)):
                yield f"{word} if {text}", node.lineno, (node, "test", value)
        elif isinstance(node, ast.comprehension):
            for at, test in enumerate(node.ifs):
                yield f"any if {ast.unparse(test)}", test.lineno, (node, "ifs", at)
        elif isinstance(node, ast.BoolOp):
            for at, operand in enumerate(node.values):
                whole = ast.unparse(node)
                yield f"without `{ast.unparse(operand)}` in `{whole}`", operand.lineno, (node, "values", at)


def mutated(function: ast.AST, number: int) -> ast.AST:
    changed = copy.deepcopy(function)
    _, _, (node, field, value) = list(edits(changed))[number]
    if field == "test":
        node.test = ast.copy_location(ast.Constant(value), node.test)
    else:
        rest = getattr(node, field)
        del rest[value]
        if isinstance(node, ast.BoolOp) and len(rest) == 1:
            neutral = ast.Constant(isinstance(node.op, ast.And))
            rest.insert(0, ast.copy_location(neutral, rest[0]))
    return ast.fix_missing_locations(changed)


@cache
def tree_of(module: str) -> ast.Module:
    """As it stands when the run begins, whatever is edited meanwhile."""
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def named_functions() -> dict[str, set[str]]:
    """module -> names (functions, methods or whole classes) that docs/protocol.md gives."""
    found: dict[str, set[str]] = {}
    for module, name in references(PROTOCOL.read_text(encoding="utf-8")):
        if module.startswith("core/"):
            found.setdefault(module, set()).add(name)
    return found


def places(is_all: bool) -> list[Place]:
    named = named_functions()
    modules = sorted(f"core/{p.name}" for p in (PACKAGE / "core").glob("*.py")) if is_all else sorted(named)
    found = []
    for module in modules:
        for name, function in functions(tree_of(module)):
            wanted = named.get(module, set())
            if not is_all and name not in wanted and name.split(".")[0] not in wanted:
                continue
            if name == "Replica.check_invariants":
                continue
            for number, (what, line, _) in enumerate(edits(function)):
                found.append(Place(module, name, number, what, line))
    return found


def apply(place: Place) -> None:
    """Puts the mutant in place of the function, for the rest of this process."""
    function: Any = mutated(dict(functions(tree_of(place.module)))[place.function], place.number)
    code = compiled(ast.Module([function], []), f"<{place.name}>")
    replace(module_name(place), place.function, code)


def module_name(place: Place) -> str:
    return "ackord_node." + place.module.removesuffix(".py").replace("/", ".")


# ------------------------------------------------------------------------------------- running


class Campaign:
    def __init__(self, wanted: list[Place], walks: int, workers: int, verbose: bool) -> None:
        self._walks = walks
        self._verbose = verbose
        self._catches: dict[str, int] = {}
        self.survivors: list[Place] = []
        self.caught = 0
        importlib.import_module("tests.support.core_walk")  # before the forks, so that no child pays for it
        files = [str(path.relative_to(ROOT)) for suite in SUITES for path in sorted(ROOT.glob(suite))]
        run(files, wanted, self._catch, self._done, workers)

    def _catch(self, place: Place, tests: Tests) -> str:
        """In the child: what catches the mutant, "" if nothing does."""
        apply(place)
        names = sorted(tests.items, key=lambda name: -self._catches.get(name, 0))
        failed = tests.first_failure(names)
        if failed is not None:
            return failed
        from tests.support.core_walk import Walk

        for seed in range(WALK_FIRST_SEED, WALK_FIRST_SEED + self._walks):
            try:
                Walk(seed).run()
            except Exception as error:
                return f"walk {seed}: {type(error).__name__} {str(error)[:80]}"
        return ""

    def _done(self, place: Place, how: str | None, seconds: float) -> None:
        if how == "":
            self.survivors.append(place)
            print(f"SURVIVES {place.name}  (line {place.line})", flush=True)
            return
        how = how or "it hangs"
        self._catches[how] = self._catches.get(how, 0) + 1
        self.caught += 1
        if self._verbose:
            print(f"caught {place.name} by {how} {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.drop_ifs")
    parser.add_argument("--all", action="store_true", help="all of the core, named or not")
    parser.add_argument("--walks", type=int, default=6, help="walks for a mutant that no test catches")
    parser.add_argument("--every", type=int, default=1, help="only each N-th condition")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="also what catches each mutant")
    parser.add_argument("parts", nargs="*")
    options = parser.parse_args()
    wanted = [p for p in places(options.all) if not options.parts or any(x in p.name for x in options.parts)]
    wanted = wanted[:: options.every]
    begin = time.monotonic()
    tried = [p for p in wanted if p.name not in NEEDLESS]
    campaign = Campaign(tried, options.walks, options.workers, options.show)
    print(
        f"{len(wanted)} dropped conditions: {campaign.caught} caught, {len(wanted) - len(tried)} need no test, "
        f"{len(campaign.survivors)} survive; {time.monotonic() - begin:.0f} s"
    )
    unknown = sorted(set(NEEDLESS) - {p.name for p in places(is_all=True)})
    for name in unknown:
        print(f"no such condition any more: {name}")
    sys.exit(bool(campaign.survivors or unknown))


if __name__ == "__main__":
    main()
