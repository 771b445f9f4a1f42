"""Merges from stale bases: every client adds to the same row's ``sum`` and ``union`` columns, from a version of the
row that it read a while ago (``on_conflict="merge"``).

Each merge adds an element of its own to the union, and a number of its own to the sum. So every read shows which
merges it holds: they must be those that were acknowledged up to its version, and the sum must be theirs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import ackord
from tests.chaos.works import COLLECTED, FINAL, REPORTS_MAX, Client, Work, real_time
from tests.sim.history import CONFLICT, FAILED, GET, OK, UNKNOWN, Op

TABLE_KEY: Final[dict[str, type]] = {"row": int, "generation": int}
MERGE: Final = "merge"
KEEP_VERSIONS: Final = 1_000
BASES: Final = 3  # that a client holds, the oldest first
ROWS: Final = 2
ELEMENTS_MAX: Final = 150  # then the clients go on with another row; a run of merges alone keeps to one


class Merges(Work):
    name: ClassVar[str] = "merges"
    clients_count: ClassVar[int] = 64
    pause_s: ClassVar[float] = 0.4
    aim_share: ClassVar[float] = 1.0

    async def create(self, store: ackord.Store) -> None:
        await store.create_table(
            self.table,
            TABLE_KEY,
            split_at=[] if self.is_alone else [ROWS // 2],
            keep_versions=KEEP_VERSIONS,
            merge={"sum": "sum", "items": "union"},
            timeout=60,
        )

    async def step(self, client: Client) -> None:
        number = 0 if self.is_alone else client.rng.randrange(ROWS)
        memory: Memory = client.memory.setdefault(number, Memory())
        key = (number, memory.generation)
        if client.rng.random() < 0.4 or not memory.bases:
            await self._look(client, key, memory)
        else:
            op = await self._merge(client, key, memory)
            if op.note == COLLECTED:
                memory.bases.clear()
        if len(memory.items) >= ELEMENTS_MAX and not self.is_alone:
            client.memory[number] = Memory(memory.generation + 1)

    async def _look(self, client: Client, key: tuple[int, int], memory: Memory) -> None:
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            row = await store.table(self.table).get(key, timeout=timeout_s)
            _note(op, row, memory)
            if row is not None:
                memory.bases.append((row.version, dict(row)))

        op = await client.do(self, GET, key, call, is_read=True, part=part)
        if op.outcome == OK and not op.version:
            await self._begin_row(client, key)

    async def _begin_row(self, client: Client, key: tuple[int, int]) -> None:
        """The row that there is nothing of yet; a base for all."""

        async def call(op: Op, timeout_s: float) -> None:
            await client.store.table(self.table).put(
                key, {"sum": 0, "items": []}, if_absent=True, timeout=timeout_s
            )

        await client.do(self, "begin", key, call)

    async def _merge(self, client: Client, key: tuple[int, int], memory: Memory) -> Op:
        """As a put of the whole row or as an update, from one of the bases that the client holds."""
        version, base = client.rng.choice(memory.bases)
        element, by = client.stamp(), client.rng.randrange(1, 100)
        is_put, table = client.rng.random() < 0.6, client.store.table(self.table)

        async def call(op: Op, timeout_s: float) -> None:
            options: dict[str, Any] = {
                "if_version": version,
                "on_conflict": "merge",
                "timeout": timeout_s,
            }
            if is_put:
                columns = {"sum": base["sum"] + by, "items": [*base["items"], element]}
                op.version = await table.put(key, columns, **options)
            else:
                op.version = await table.update(
                    key, increment={"sum": by}, append={"items": [element]}, **options
                )

        return await client.do(
            self,
            MERGE,
            key,
            call,
            refusals=(ackord.VersionCollected,),
            element=element,
            by=by,
            base=version,
        )

    async def read_final(self, client: Client) -> None:
        async for row in client.store.table(self.table).scan(timeout=client.timeout_s):

            async def call(op: Op, _: float, row: ackord.Row = row) -> None:
                _note(op, row, Memory())

            await client.do(self, GET, row.key, call, is_read=True)

    def judge(self) -> list[str]:
        by_key: dict[tuple[Any, ...], list[Op]] = defaultdict(list)
        for op in self.history.ops:
            if op.key is not None:
                by_key[op.key].append(op)
        return [report for key in sorted(by_key) for report in judge_row(by_key[key])][:REPORTS_MAX]

    def tell(self) -> str:
        rows = {op.key: op.columns for op in self.history.ops if op.workload == FINAL and op.columns}
        return (
            f"{self.count(MERGE, OK)} merges acknowledged, {self.count(MERGE, UNKNOWN)} left unknown;"
            f" {sum(row['count'] for row in rows.values())} elements in {len(rows)} rows, which sum up to"
            f" {sum(row['sum'] for row in rows.values())}"
        )


@dataclass(slots=True)
class Memory:
    """What a client knows of a row: the generation, the elements that it saw last, and versions to merge from."""

    generation: int = 0
    items: set[int] = field(default_factory=set)
    bases: deque[tuple[int, dict[str, Any]]] = field(default_factory=lambda: deque(maxlen=BASES))


def _note(op: Op, row: ackord.Row | None, memory: Memory) -> None:
    """What is new and what is gone since the client's last read: whole rows would fill the memory."""
    items = [] if row is None else row["items"]
    held = set(items)
    op.version = 0 if row is None else row.version
    op.columns = {
        "sum": 0 if row is None else row["sum"],
        "count": len(items),
        "new": sorted(held - memory.items),
        "gone": sorted(memory.items - held),
    }
    memory.items = held


def judge_row(ops: list[Op]) -> list[str]:
    """``ops``: all that was asked of one row, the final reads included."""
    merges = {op.args["element"]: op for op in ops if op.kind == MERGE}
    reads = [op for op in ops if op.kind == GET and op.outcome == OK]
    key, sure = ops[0].key, [op for op in merges.values() if op.outcome == OK]
    finals = [op for op in reads if op.workload == FINAL]
    if not finals:
        return [f"the row {key} is gone, with {sure[0]}"] if sure else []
    reports = []
    for op in finals:
        held = set((op.columns or {})["new"])
        reports += [
            f"an acknowledged merge is lost: {one}" for one in sure if one.args["element"] not in held
        ]
    reports += _judge_reads(merges, reads)
    return [*reports, *real_time([*sure, *reads])]


def _judge_reads(merges: dict[int, Op], reads: list[Op]) -> Iterator[str]:
    """Each read, from what it says to be new and gone since the same client's last one."""
    versions = sorted(op.version or 0 for op in merges.values() if op.outcome == OK)
    by_client: dict[str, set[int]] = defaultdict(set)
    presence: dict[int, tuple[int, int]] = {}  # unknown merge -> first version with it, last version without
    unknown = {element for element, op in merges.items() if op.is_unknown}
    for op in sorted(reads, key=lambda op: op.began):
        seen, version = op.columns or {}, op.version or 0
        held = by_client[op.client] if op.workload != FINAL else set()
        yield from _judge_read(op, held, merges)
        held.difference_update(seen["gone"])
        held.update(seen["new"])
        yield from _judge_sum(op, held, merges)
        known = [merges[element] for element in held if element in merges and element not in unknown]
        expected = bisect_right(versions, version)
        latest = max(known, key=lambda one: one.version or 0, default=None)
        if latest is not None and (latest.version or 0) > version:
            yield f"{_short(op)}\n    holds what is later than its version {version}: {latest}"
        elif len(known) != expected:
            yield f"{_short(op)}\n    holds {len(known)} acknowledged merges, {expected} were done up to {version}"
        for element in unknown:
            first, last = presence.get(element, (1 << 63, -1))
            is_in = element in held
            presence[element] = (min(first, version), last) if is_in else (first, max(last, version))
    for element, (first, last) in presence.items():
        if first < last:
            yield f"a merge was there at {first} and not at {last}: {merges[element]}"


def _judge_read(op: Op, held: set[int], merges: dict[int, Op]) -> Iterator[str]:
    seen = op.columns or {}
    if seen["gone"]:
        yield f"{_short(op)}\n    misses {[str(merges.get(element)) for element in seen['gone'][:3]]}"
    if seen["count"] != len(held - set(seen["gone"]) | set(seen["new"])):
        yield f"{_short(op)}\n    holds {seen['count']} elements, some of them twice"
    for element in seen["new"]:
        merge = merges.get(element)
        if merge is None or merge.outcome in (FAILED, CONFLICT):
            yield f"{_short(op)}\n    holds {element}, which was not added: {merge}"


def _judge_sum(op: Op, held: set[int], merges: dict[int, Op]) -> Iterator[str]:
    expected = sum(merges[element].args["by"] for element in held if element in merges)
    if (op.columns or {})["sum"] != expected:
        yield f"{_short(op)}\n    sums up to {(op.columns or {})['sum']}, but its elements to {expected}"


def _short(op: Op) -> str:
    return f"#{op.number} [{op.invoked_s:.3f}, {op.returned_s:.3f}] {op.client} read {op.key} at {op.version}"
