"""The documentation against the code: links, named code and tests, and tables of what can be counted."""

from __future__ import annotations

import ast
import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from ackord.wire.limits import Limits
from ackord_node.config import ProcessSettings, Replication
from ackord_node.core import messages
from ackord_node.core.types import Descriptor
from ackord_node.server.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROTOCOL = ROOT / "docs" / "protocol.md"
OPERATIONS = ROOT / "docs" / "operations.md"
RULES = [f"R{number}" for number in range(1, 19)] + ["R7b"]
# `module.py`: `Name`, `Class.method`, ... where a line may end after a comma or colon
REFERENCE = re.compile(r"`([\w/]+\.py)`:((?:,?\s+`[A-Za-z_][\w.]*`)+)")


@cache
def names_in(path: Path) -> frozenset[str]:
    """Module level names, and ``Class.member`` for what a class body defines."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for name in assigned(node):
            found.add(name)
        if isinstance(node, ast.ClassDef):
            found.update(f"{node.name}.{name}" for inner in node.body for name in assigned(inner))
    return frozenset(found)


def assigned(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]


def source(module: str) -> Path:
    """A module as the pages name it: from the repository's root, or within the node's package."""
    for folder in (ROOT, ROOT / "node" / "ackord_node"):
        if (folder / module).is_file():
            return folder / module
    raise AssertionError(f"there is no module {module}")


def references(text: str) -> list[tuple[str, str]]:
    return [
        (module, name)
        for module, names in REFERENCE.findall(text)
        for name in re.findall(r"`([\w.]+)`", names)
    ]


def sections(text: str) -> dict[str, str]:
    """The text below each ``### R...`` heading."""
    parts = re.split(r"^#{2,3} (.*)$", text, flags=re.MULTILINE)
    return {title.split()[0]: body for title, body in zip(parts[1::2], parts[2::2], strict=True)}


def column(text: str, heading: str) -> list[str]:
    """The code words in the first column of the table whose first heading is this."""
    lines = text[text.index(f"| {heading} |") :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows += re.findall(r"`([^`]+)`", line.split("|")[1])
    return rows


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.split("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_modules_and_symbols_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [x for x in references(text) if x[1] not in names_in(source(x[0]))] == []
    for module in re.findall(r"`((?:client|tests|core|runtime|adapters|server)/[\w/]+\.py)`", text):
        source(module)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_names_code_and_tests(rule: str) -> None:
    body = sections(PROTOCOL.read_text(encoding="utf-8"))[rule]
    named = references(body)
    assert any(not module.startswith("tests/") for module, _ in named), "no code"
    assert any(module.startswith("tests/") and name.startswith("test_") for module, name in named), "no test"
    whole = body.count(".py`:")
    assert len(REFERENCE.findall(body)) == whole, "a reference is not of the form `module.py`: `name`, ..."


def test_the_tables_of_the_protocol_are_complete() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    kinds = {
        name
        for name, value in vars(messages).items()
        if type(value) is int and value in messages.FIELDS and not name.startswith(("FLAG_", "_"))
    }
    assert set(column(text, "kind")) == kinds
    fields = {f.name for f in dataclasses.fields(Descriptor)} - {"tablet"}
    assert set(column(text, "field")) == fields


def test_the_tables_of_settings_are_complete() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    keys = column(text, "key")
    assert {f"replication.{f.name}" for f in dataclasses.fields(Replication)} <= set(keys)
    per_node = column(text[text.index("Per node") :], "key")
    assert set(per_node) == {"address", "data", *(f.name for f in dataclasses.fields(ProcessSettings))}
    for f in dataclasses.fields(Replication):
        (line,) = [x for x in text.splitlines() if x.startswith(f"| `replication.{f.name}` |")]
        assert line.split("|")[3].strip() == str(f.default)
    for f in dataclasses.fields(ProcessSettings):
        (line,) = [x for x in text.splitlines() if x.startswith(f"| `{f.name}` |")]
        assert line.split("|")[3].strip() == str(f.default)


def test_the_table_of_limits_is_that_of_the_code() -> None:
    text = OPERATIONS.read_text(encoding="utf-8")
    documented = dict(
        re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text[text.index("## Limits") :], re.MULTILINE)
    )
    assert documented == {f.name: f"{f.default:,}" for f in dataclasses.fields(Limits)}


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    registered = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Metrics().registry.collect()
    }
    assert set(column(OPERATIONS.read_text(encoding="utf-8"), "metric")) == registered


def test_decisions_have_one_form() -> None:
    records = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    numbers = [page.name[:4] for page in records]
    assert all(number.isdigit() for number in numbers) and len(set(numbers)) == len(numbers)
    for page in records:
        headings = re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert headings == ["Context", "Decision", "Alternatives", "Consequences"], page.name
