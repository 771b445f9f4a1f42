"""The guide's Python, page by page, against a real cluster.

Blocks run in order in one namespace, with ``await`` at top level as in ``python -m asyncio``. A line that ends with
``# -> value`` must give that value, compared as it is shown.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import ackord
from tests.support.cluster import REPO, RealCluster

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("cluster-guide")]

GUIDE = REPO / "docs" / "guide"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(GUIDE.glob("*.md"))}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"  # -> (.+)$")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RealCluster]:
    with RealCluster() as cluster:
        yield cluster


async def run(code: ast.AST, mode: str, names: dict[str, Any], where: str) -> Any:
    compiled = compile(code, where, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)  # type: ignore[call-overload]
    result = eval(compiled, names)
    return await result if inspect.iscoroutine(result) else result


async def run_block(source: str, names: dict[str, Any], where: str) -> int:
    """Runs the statements; how many values were compared."""
    lines = source.splitlines()
    compared = 0
    for statement in ast.parse(source, where).body:
        assert statement.end_lineno is not None
        shown = SHOWN.search(lines[statement.end_lineno - 1])
        if isinstance(statement, ast.Expr):
            result = await run(ast.Expression(statement.value), "eval", names, where)
            if shown is not None:
                assert repr(result) == shown[1], f"{where}: {ast.unparse(statement)}"
                compared += 1
        else:
            assert shown is None, f"{where}: a value is shown behind a statement that has none"
            await run(ast.Module([statement], []), "exec", names, where)
    return compared


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if BLOCK.search(text)])
async def test_the_page_does_what_it_says(cluster: RealCluster, page: str) -> None:
    text = PAGES[page]
    names: dict[str, Any] = {"__name__": "guide"}
    async with ackord.connect(cluster.urls) as store:
        if "ackord.connect(" not in "".join(
            BLOCK.findall(text)
        ):  # the page goes on from the README's example
            await store.create_table("started", {"customer": str, "order": int})
            names |= {"ackord": ackord, "store": store, "orders": store.table("started")}
        compared = 0
        for number, block in enumerate(BLOCK.findall(text), 1):
            source = block.replace("http://127.0.0.1:7801", cluster.urls)
            compared += await run_block(source, names, f"{page}.md, block {number}")
    assert compared == len(re.findall(r"  # -> ", text)), "every value that is shown was compared"


def test_the_pages_of_the_row_operations_have_examples() -> None:
    for page in (
        "conditions",
        "updates",
        "scans",
        "getting-started",
        "versions",
        "ttl",
        "conflicts",
        "cache",
    ):
        assert BLOCK.search(PAGES[page]), page
