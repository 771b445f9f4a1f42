"""House rules as a test: what ruff, mypy and import-linter do not check."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for folder in ("client", "node") for path in (ROOT / folder).rglob("*.py"))
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
CORE_FORBIDDEN = {"asyncio", "datetime", "os", "random", "secrets", "socket", "threading", "time", "uuid"}
SHARED_WITH_NODE = ("ackord.errors", "ackord.sockets", "ackord.wire")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name(path))


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, those inside functions and type-checking blocks too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def texts() -> Iterator[Path]:
    """The files of the project that people write, as opposed to what tools made."""
    made = {".git", ".venv", ".ackord", "__pycache__"}
    kinds = {".py", ".pyi", ".md", ".yaml", ".toml", ".lock", ".txt", ".sh", ""}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        cached = any(part in made or part.endswith("_cache") or part == ".hypothesis" for part in parts)
        if path.is_file() and path.suffix in kinds and not cached:
            yield path


def test_no_property_fails_because_the_machine_is_busy() -> None:
    assert settings().deadline is None


def test_there_is_something_to_check() -> None:
    assert any(path.parts[-2] == "core" for path in SOURCES)


def test_files_are_short() -> None:
    lengths = {name(path): path.read_text(encoding="utf-8").count("\n") for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name}: {length} lines"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_modules_say_what_they_are() -> None:
    assert [name(path) for path in SOURCES if path.stat().st_size and not ast.get_docstring(tree(path))] == []


def test_core_imports_neither_clock_nor_chance_nor_input_and_output() -> None:
    core = [path for path in SOURCES if path.is_relative_to(ROOT / "node" / "ackord_node" / "core")]
    bad = [
        f"{name(path)}:{line} imports {module}"
        for path in core
        for line, module in imported(path)
        if module.split(".")[0] in CORE_FORBIDDEN
    ]
    assert core
    assert bad == []


def test_the_node_uses_only_the_shared_part_of_the_sdk() -> None:
    bad = [
        f"{name(path)}:{line} imports {module}"
        for path in SOURCES
        if path.is_relative_to(ROOT / "node")
        for line, module in imported(path)
        if module.split(".")[0] == "ackord" and not module.startswith(SHARED_WITH_NODE)
    ]
    assert bad == []


def test_no_paths_of_one_machine_and_no_package_hosts() -> None:
    # put together here, so that this file does not hold what it looks for
    machine = re.compile(
        "|".join(["/" + "work/", "/" + "root/", "/home/" + "[a-z]", "/tmp/" + "[a-z]", "/opt/" + "[a-z]"])
    )
    hosts = re.compile("|".join(["--" + "index-url", "--" + "find-links", "@ " + "file:", "pypi" + r"\.org"]))
    bad = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine.search(line) or hosts.search(line)
    ]
    assert bad == []


def test_every_locked_requirement_is_pinned_and_every_dependency_locked() -> None:
    lines = (ROOT / "requirements-dev.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9a-z.]*", pin)] == []
    locked = {normal(pin.split("==")[0]) for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    names = {normal(re.split(r"[\[<>=;~! ]", requirement)[0]) for requirement in wanted}
    assert names - locked == {"ackord"}


def normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_users_get_version_ranges_not_pins() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [
        requirement
        for requirement in project["dependencies"]
        if "==" in requirement or ">=" not in requirement
    ] == []


def test_both_packages_are_typed() -> None:
    assert (ROOT / "client" / "ackord" / "py.typed").exists()
    assert (ROOT / "node" / "ackord_node" / "py.typed").exists()


def test_the_first_example_of_the_readme_is_the_example_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks[0] == (ROOT / "examples" / "orders.py").read_text(encoding="utf-8")
