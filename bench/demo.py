"""Real data through a real failure: loads the Unicode character database while the busiest node is killed.

The table ``characters`` gets one row for every character that Python's ``unicodedata`` knows. At one third of the
rows the node that has acknowledged the most writes as a coordinator is killed with SIGKILL, at two thirds it is
started again. Then every row is read back from each replica in turn, from that replica's own copy, and compared.

Exits with 0 only if no row is missing or different anywhere. May be run again: the table is dropped first.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ackord
from ackord_node.config import ConfigError
from bench.harness import Cluster, ClusterError, progress, run, wait_in_sync

TABLE = "characters"
KEY = {"block": int, "code_point": int}
BLOCK_SIZE = 256
TABLETS_COUNT = 6
WRITERS_PER_TABLET = 16
IN_SYNC_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 60.0
EXAMPLES_COUNT = 5

Key = tuple[int, int]
Characters = dict[Key, dict[str, Any]]


def character(code_point: int) -> dict[str, Any]:
    """What the database says of one character, as columns."""
    text = chr(code_point)
    return {
        "name": unicodedata.name(text, ""),
        "category": unicodedata.category(text),
        "bidirectional": unicodedata.bidirectional(text),
        "combining": unicodedata.combining(text),
        "numeric": unicodedata.numeric(text, None),
        "decimal": unicodedata.decimal(text, None),
        "decomposition": unicodedata.decomposition(text),
        "mirrored": bool(unicodedata.mirrored(text)),
        "east_asian_width": unicodedata.east_asian_width(text),
    }


def load_characters() -> Characters:
    """Every assigned character by key. Not assigned (Cn), private (Co) and surrogates (Cs), which are no
    characters and which UTF-8 cannot express, are left out."""
    return {
        (code_point // BLOCK_SIZE, code_point): character(code_point)
        for code_point in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code_point)) not in ("Cn", "Co", "Cs")
    }


def split_blocks(keys: Iterable[Key], tablets_count: int) -> list[int]:
    """The blocks at which new tablets begin, so that all tablets hold about as many rows."""
    ordered = sorted(keys)
    wanted = (ordered[len(ordered) * at // tablets_count][0] for at in range(1, tablets_count))
    return sorted(set(wanted) - {ordered[0][0]})


class Gaps:
    """The longest time without an acknowledged write, from the first one on."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._last_at = time.monotonic()

    def acknowledged(self, now: float) -> None:
        self.longest_s = max(self.longest_s, now - self._last_at)
        self._last_at = now


@dataclass
class Loading:
    """How far the load is, and what was seen on the way."""

    total: int
    done: int = 0
    gaps: Gaps = field(default_factory=Gaps)
    tablet_gaps: list[Gaps] = field(default_factory=list)
    tablet_done: list[int] = field(default_factory=list)
    milestones: dict[int, asyncio.Event] = field(default_factory=dict)

    def milestone(self, rows: int) -> asyncio.Event:
        """Set once so many rows are acknowledged."""
        return self.milestones.setdefault(rows, asyncio.Event())

    def acknowledged(self, tablet: int) -> None:
        now = time.monotonic()
        self.done += 1
        self.tablet_done[tablet] += 1
        self.gaps.acknowledged(now)
        self.tablet_gaps[tablet].acknowledged(now)
        if self.done in self.milestones:
            self.milestones[self.done].set()


async def load(
    store: ackord.Store, definition: ackord.TableDefinition, rows: Characters, seen: Loading
) -> None:
    """Writes all rows, single puts from some writers for each tablet, so that one tablet that waits for a new
    coordinator does not hold up the others."""
    table = store.table(TABLE)
    tablets = {tablet.id: at for at, tablet in enumerate(definition.tablets)}
    queues: list[deque[Key]] = [deque() for _ in tablets]
    order = list(rows)
    random.Random(1).shuffle(order)
    for key in order:
        queues[tablets[definition.tablet_of(definition.key.encode(key)).id]].append(key)
    seen.tablet_gaps = [Gaps() for _ in queues]
    seen.tablet_done = [0] * len(queues)

    async def writer(tablet: int) -> None:
        while queues[tablet]:
            key = queues[tablet].popleft()
            await table.put(key, rows[key], timeout=CALL_TIMEOUT_S)
            seen.acknowledged(tablet)

    async with asyncio.TaskGroup() as group:
        for tablet in range(len(queues)):
            for _ in range(WRITERS_PER_TABLET):
                group.create_task(writer(tablet))


async def busiest_coordinator(store: ackord.Store, seen: Loading) -> str:
    """The node whose tablets have acknowledged the most writes."""
    writes: dict[str, int] = {}
    status = await store.status()
    for tablet, done in zip(status["tables"][TABLE]["tablets"], seen.tablet_done, strict=True):
        node = tablet["coordinator"]
        writes[node] = writes.get(node, 0) + done
    return max(sorted(writes), key=lambda node: writes[node])


@dataclass
class Failure:
    """The kill and the return of one node."""

    node: str = ""
    note: str = ""
    catch_up_s: float = 0.0


async def kill_and_restart(cluster: Cluster, store: ackord.Store, seen: Loading, failure: Failure) -> None:
    """SIGKILL at one third, start at two thirds; returns once the node is in sync everywhere again."""
    await seen.milestone(seen.total // 3).wait()
    failure.node = await busiest_coordinator(store, seen)
    await cluster.kill(failure.node)
    failure.note = f"{failure.node} killed"
    await seen.milestone(seen.total * 2 // 3).wait()
    failure.note = f"{failure.node} starting"
    begun = time.monotonic()
    await cluster.start_missing()
    failure.note = f"{failure.node} started"
    await wait_in_sync(store, TABLE, set(cluster.nodes), IN_SYNC_TIMEOUT_S)
    failure.catch_up_s = time.monotonic() - begun
    failure.note = ""


async def show(seen: Loading, failure: Failure) -> None:
    with progress("loading", seen.total) as bar:
        while seen.done < seen.total:
            bar.show(seen.done, failure.note)
            await asyncio.sleep(0.1)
        bar.show(seen.done)


@dataclass
class Comparison:
    """What one replica holds against what was written."""

    missing: list[Key] = field(default_factory=list)
    different: list[Key] = field(default_factory=list)
    unexpected: list[Key] = field(default_factory=list)

    @property
    def wrong_count(self) -> int:
        return len(self.missing) + len(self.different) + len(self.unexpected)


async def compare(cluster: Cluster, node: str, rows: Characters) -> Comparison:
    """Reads the whole table from one replica. Requests on a stream are never forwarded: what ``reads`` asks of
    this node is answered from its own copy, under its own lease."""
    found = Comparison()
    left = set(rows)
    async with ackord.connect(cluster.urls, reads=f"node:{node}") as store:
        with progress(f"reading {node}", len(rows)) as bar:
            async for row in store.table(TABLE).scan():
                key: Key = row.key
                if key not in rows:
                    found.unexpected.append(key)
                    continue
                left.discard(key)
                if row.columns != rows[key]:
                    found.different.append(key)
                if len(left) % 1024 == 0:
                    bar.show(len(rows) - len(left))
            bar.show(len(rows) - len(left))
    found.missing = sorted(left)
    return found


async def demo(cluster: Cluster) -> int:
    for node in cluster.nodes:
        cluster.pid(node)
    rows = load_characters()
    print(f"Unicode {unicodedata.unidata_version}: {len(rows):,} characters")
    async with ackord.connect(cluster.urls) as store:
        try:
            await store.drop_table(TABLE, timeout=CALL_TIMEOUT_S)
        except ackord.TableNotFound:
            pass
        splits = split_blocks(rows, TABLETS_COUNT)
        definition = await store.create_table(TABLE, KEY, split_at=splits, timeout=CALL_TIMEOUT_S)
        await wait_in_sync(store, TABLE, set(cluster.nodes), IN_SYNC_TIMEOUT_S)
        seen, failure = Loading(len(rows)), Failure()
        begun = time.monotonic()
        async with asyncio.TaskGroup() as group:
            loading = group.create_task(load(store, definition, rows, seen))
            group.create_task(kill_and_restart(cluster, store, seen, failure))
            group.create_task(show(seen, failure))
            await loading
            elapsed_s = time.monotonic() - begun
    results = {node: await compare(cluster, node, rows) for node in cluster.nodes}
    report(seen, failure, elapsed_s, results)
    return 1 if any(found.wrong_count for found in results.values()) else 0


def report(seen: Loading, failure: Failure, elapsed_s: float, results: dict[str, Comparison]) -> None:
    of_tablet_s = max(gaps.longest_s for gaps in seen.tablet_gaps)
    lines = [
        ("rows written", f"{seen.total:,} in {elapsed_s:.1f} s, {seen.total / elapsed_s:,.0f} rows/s"),
        ("killed", f"{failure.node}, with SIGKILL, while it was the busiest coordinator"),
        ("longest time without an acknowledged write", f"{seen.gaps.longest_s:.2f} s"),
        ("the same for the tablet that waited longest", f"{of_tablet_s:.2f} s"),
        ("from its start until in sync again", f"{failure.catch_up_s:.2f} s"),
    ]
    for node, found in results.items():
        counts = f"{len(found.missing)} missing, {len(found.different)} different"
        if found.unexpected:
            counts += f", {len(found.unexpected)} that nobody wrote"
        lines.append((f"rows read back from {node}", counts))
    print()
    for name, value in lines:
        print(f"  {name:<44}{value}")
    for node, found in results.items():
        for what in ("missing", "different", "unexpected"):
            for key in getattr(found, what)[:EXAMPLES_COUNT]:
                print(f"  {what} at {node}: {key} {unicodedata.name(chr(key[1]), '')}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Load the Unicode database, kill a node, compare every row.")
    parser.add_argument("--config", default="cluster.yaml", help="default: %(default)s")
    options = parser.parse_args()
    try:
        return run(demo(Cluster(options.config)))
    except (ClusterError, ConfigError, ackord.Error) as error:
        print(f"demo: {error}", file=sys.stderr)
    except ExceptionGroup as errors:
        print(f"demo: {'; '.join(str(error) for error in errors.exceptions)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
