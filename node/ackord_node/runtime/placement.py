"""Which nodes hold a new tablet's replicas, and in which order they are preferred as coordinators.

Pure. Coordinators stay evenly spread even when a node is away, because the second places are spread as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence


def place(
    nodes: Sequence[str], replicas_count: int, existing: Iterable[tuple[str, ...]], tablets_count: int
) -> list[tuple[str, ...]]:
    """Orders of preference for ``tablets_count`` new tablets, beside the ``existing`` ones."""
    firsts: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    totals: Counter[str] = Counter()
    for order in existing:
        _count(order, firsts, pairs, totals)
    placed = []
    for _ in range(tablets_count):
        order = _next(sorted(nodes), replicas_count, firsts, pairs, totals)
        _count(order, firsts, pairs, totals)
        placed.append(order)
    return placed


def _next(
    nodes: list[str],
    replicas_count: int,
    firsts: Counter[str],
    pairs: Counter[tuple[str, str]],
    totals: Counter[str],
) -> tuple[str, ...]:
    first = min(nodes, key=lambda n: (firsts[n], totals[n], n))
    rest = sorted((n for n in nodes if n != first), key=lambda n: (pairs[(first, n)], totals[n], n))
    return (first, *rest[: replicas_count - 1])


def _count(
    order: tuple[str, ...], firsts: Counter[str], pairs: Counter[tuple[str, str]], totals: Counter[str]
) -> None:
    firsts[order[0]] += 1
    if len(order) > 1:
        pairs[(order[0], order[1])] += 1
    totals.update(order)
