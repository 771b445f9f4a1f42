"""A table that keeps versions: what a row was at a version stays the same, on every node, until it is collected.

Every write puts a value that nobody else writes, or deletes the row. ``get(as_of=)``, ``scan(as_of=)`` and
``history`` then tell the same story: at each version the row is what the last write up to it left, a version that
the limit keeps can be read, and one that was once collected never again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import ackord
from tests.chaos.works import COLLECTED, REPORTS_MAX, Client, Work, real_time
from tests.sim.history import DELETE, GET, OK, PUT, SCAN, Op

TABLE_KEY: Final[dict[str, type]] = {"slot": int}
AS_OF: Final = "as_of"
HISTORY: Final = "history"
KEEP_VERSIONS: Final = 5
SLOTS: Final = 6
KNOWN_MAX: Final = 12  # versions that a client remembers
AHEAD_MS_MAX: Final = 300
COUNTER_BITS: Final = 16

Key = tuple[Any, ...]
Seen = tuple[int, Any] | None  # version, value; None: no row


class Versions(Work):
    name: ClassVar[str] = "versions"

    async def create(self, store: ackord.Store) -> None:
        await store.create_table(
            self.table, TABLE_KEY, split_at=[SLOTS // 2], keep_versions=KEEP_VERSIONS, timeout=60
        )

    # -------------------------------------------------------------------------------------- calls

    async def step(self, client: Client) -> None:
        key, choice = (client.rng.randrange(SLOTS),), client.rng.random()
        known: list[int] = client.memory.setdefault("known", [])
        if choice < 0.35 or not known:
            op = await self._write(client, key)
        elif choice < 0.45:
            op = await self._get(client, key)
        elif choice < 0.75:
            op = await self._get_as_of(client, key, self._pick(client, known))
        elif choice < 0.85:
            op = await self._scan_as_of(client, self._pick(client, known))
        else:
            op = await self._history(client, key)
        if op.version:
            known.append(op.version)
            del known[:-KNOWN_MAX]

    @staticmethod
    def _pick(client: Client, known: list[int]) -> int:
        """One of the versions that the client knows, one beside it, or one ahead, which no write has reached yet."""
        version, choice = client.rng.choice(known), client.rng.random()
        if choice < 0.2:
            return version + client.rng.choice((-1, 1))
        if choice < 0.3:
            return known[-1] + (client.rng.randrange(AHEAD_MS_MAX) << COUNTER_BITS)
        return version

    async def _write(self, client: Client, key: Key) -> Op:
        table, stamp = client.store.table(self.table), client.stamp()
        if client.rng.random() < 0.1:

            async def delete(op: Op, timeout_s: float) -> None:
                op.version = await table.delete(key, timeout=timeout_s)

            return await client.do(self, DELETE, key, delete, value=None)

        async def put(op: Op, timeout_s: float) -> None:
            op.version = await table.put(key, {"v": stamp}, timeout=timeout_s)

        return await client.do(self, PUT, key, put, value=stamp)

    async def _get(self, client: Client, key: Key) -> Op:
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            row = await store.table(self.table).get(key, timeout=timeout_s)
            op.version = None if row is None else row.version
            op.columns = {"rows": _wire(key, row)}

        return await client.do(self, GET, key, call, is_read=True, part=part)

    async def _get_as_of(self, client: Client, key: Key, version: int) -> Op:
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            row = await store.table(self.table).get(key, as_of=version, timeout=timeout_s)
            op.columns = {"rows": _wire(key, row)}

        return await client.do(
            self,
            AS_OF,
            key,
            call,
            is_read=True,
            part=part,
            refusals=(ackord.VersionCollected, ackord.InvalidRequest),
            as_of=version,
        )

    async def _scan_as_of(self, client: Client, version: int) -> Op:
        """Of every slot, those without a row as well."""
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            rows = await store.table(self.table).scan(as_of=version, timeout=timeout_s).rows()
            found = {row.key: row for row in rows}
            op.columns = {
                "rows": [part for slot in range(SLOTS) for part in _wire((slot,), found.get((slot,)))]
            }

        return await client.do(
            self,
            SCAN,
            None,
            call,
            is_read=True,
            part=part,
            refusals=(ackord.VersionCollected, ackord.InvalidRequest),
            as_of=version,
        )

    async def _history(self, client: Client, key: Key) -> Op:
        store, part = client.reader()

        async def call(op: Op, timeout_s: float) -> None:
            found = await store.table(self.table).history(key, KEEP_VERSIONS, timeout=timeout_s)
            op.columns = {
                "versions": [[one.version, None if one.row is None else one.row["v"]] for one in found]
            }

        return await client.do(self, HISTORY, key, call, is_read=True, part=part)

    async def read_final(self, client: Client) -> None:
        for slot in range(SLOTS):
            op = await self._history(client, (slot,))
            await self._get(client, (slot,))
            for version, _ in (op.columns or {}).get("versions", ()):
                await self._get_as_of(client, (slot,), version)

    def judge(self) -> list[str]:
        return [
            report for slot in range(SLOTS) for report in judge_row(self.history.ops, (slot,), KEEP_VERSIONS)
        ][:REPORTS_MAX]

    def tell(self) -> str:
        refused = sum(op.note == COLLECTED for op in self.history.ops)
        return (
            f"{self.count(PUT, OK) + self.count(DELETE, OK)} writes acknowledged; {self.count(AS_OF, OK)} rows and"
            f" {self.count(SCAN, OK)} scans as of a version, {self.count(HISTORY, OK)} histories; {refused} times no"
            " longer kept"
        )


def _wire(key: Key, row: ackord.Row | None) -> list[list[Any]]:
    return [[key[0], None if row is None else row.version, None if row is None else row["v"]]]


# ------------------------------------------------------------------------------------------ judgement


@dataclass(slots=True)
class Row:
    """What is known of one row. ``writes``: all that may have taken effect; ``done``: version -> the value that it
    left, None if it deleted the row."""

    key: Key
    keep_versions: int
    writes: dict[Any, Op] = field(default_factory=dict)
    deletes: list[Op] = field(default_factory=list)
    done: dict[int, Any] = field(default_factory=dict)
    ordered: list[int] = field(default_factory=list)

    def newest_at(self, version: int) -> int | None:
        """The last version up to this one that is known."""
        at = bisect_right(self.ordered, version)
        return self.ordered[at - 1] if at else None


def judge_row(ops: Iterable[Op], key: Key, keep_versions: int) -> list[str]:
    """``ops``: all of the table's; the final reads are no different."""
    mine = [op for op in ops if op.key in (key, None)]
    row = Row(key, keep_versions)
    reports = list(_learn(row, mine))
    reads = [op for op in mine if op.kind in (AS_OF, SCAN)]
    reports += _judge_as_of(row, reads)
    for op in mine:
        if op.kind == HISTORY and op.outcome == OK:
            reports += _judge_history(row, op)
        elif op.kind == GET:
            reports += _judge_current(row, op)
        elif op.kind == AS_OF and op.error.startswith("InvalidRequest"):
            reports += _judge_ahead(row, op)
    reports += _judge_collected(row, reads)
    current = [op for op in mine if op.kind in (GET, PUT, DELETE) and op.outcome == OK]
    return [*reports, *real_time(current)]


def _learn(row: Row, ops: list[Op]) -> Iterator[str]:
    """Which versions there were: from the answers of writes, and of what reads saw."""
    for op in ops:
        if op.kind == PUT and (op.outcome == OK or op.is_unknown):
            row.writes[op.args["value"]] = op
        elif op.kind == DELETE and (op.outcome == OK or op.is_unknown):
            row.deletes.append(op)
        if op.kind in (PUT, DELETE) and op.outcome == OK and op.version is not None:
            if op.version in row.done:
                yield f"two writes at one version {op.version}: {op}"
            row.done[op.version] = op.args.get("value")
    for op in ops:
        for version, value in _sightings(row.key, op):
            known = row.done.setdefault(version, value)
            if known != value:
                yield f"{op}\n    saw {value} at version {version}, where {known} was written or seen"
            write = row.writes.get(value)
            if value is not None and write is None:
                yield f"{op}\n    saw {value} at version {version}, which nobody wrote"
            elif write is not None and write.outcome == OK and write.version != version:
                yield f"{op}\n    saw version {version} of {write}, acknowledged as {write.version}"
    row.ordered = sorted(row.done)


def _sightings(key: Key, op: Op) -> Iterator[tuple[int, Any]]:
    seen = op.columns or {}
    if op.kind == HISTORY:
        for version, value in seen.get("versions", ()):
            yield version, value
    for slot, version, value in seen.get("rows", ()):
        if (slot,) == key and version is not None:
            yield version, value


def _seen_at(key: Key, op: Op) -> list[Seen]:
    """What a read showed of the row: nothing if it did not tell, else one thing."""
    rows = (op.columns or {}).get("rows", ())
    return [None if version is None else (version, value) for slot, version, value in rows if (slot,) == key]


def _judge_as_of(row: Row, reads: list[Op]) -> Iterator[str]:
    """At each version the row is what the last write up to it left, whoever is asked and whenever."""
    for op in reads:
        for seen in _seen_at(row.key, op) if op.outcome == OK else ():
            as_of = op.args["as_of"]
            newest = row.newest_at(as_of)
            expected = None if newest is None or row.done[newest] is None else newest
            found = None if seen is None else seen[0]
            if found is not None and found > as_of:
                yield f"{op}\n    saw version {found}, which is later"
            elif found != expected and not (found is None and _may_be_deleted(row, expected, as_of)):
                yield f"{op}\n    saw {seen} of {row.key}, where version {newest} was the last one"


def _may_be_deleted(row: Row, since: int | None, as_of: int) -> bool:
    """Whether a deletion of unknown outcome, which no read shows as a version, can lie between the two."""
    return since is not None and since < as_of and any(op.is_unknown for op in row.deletes)


def _judge_history(row: Row, op: Op) -> Iterator[str]:
    """Newest first and nothing left out: all that was acknowledged before it was asked for, as far as it is kept."""
    listed = [version for version, _ in (op.columns or {})["versions"]]
    if listed != sorted(set(listed), reverse=True):
        yield f"{op}\n    lists out of order: {listed}"
        return
    due = [
        write.version
        for write in (*row.writes.values(), *row.deletes)
        if write.outcome == OK and write.version is not None and (write.ended or 0) < op.began
    ]
    newest = max(due, default=0)
    if due and (not listed or listed[0] < newest):
        yield f"{op}\n    lists {listed}, without {newest}, which was acknowledged before"
    if not listed:
        return
    left_out = [version for version in row.ordered if listed[-1] < version < listed[0]]
    missing = sorted(set(left_out) - set(listed))
    if missing:
        yield f"{op}\n    lists {listed}, without {missing} in between"
    upto = row.ordered[: bisect_right(row.ordered, listed[0])]
    if len(listed) < min(row.keep_versions, len(upto)):
        yield f"{op}\n    lists only {listed} of {upto[-row.keep_versions :]}"


def _judge_current(row: Row, op: Op) -> Iterator[str]:
    """No row although one was acknowledged, and nobody can have deleted it since."""
    if op.outcome != OK or _seen_at(row.key, op) != [None]:
        return
    before = [write for write in row.writes.values() if write.outcome == OK and (write.ended or 0) < op.began]
    newest = max(before, key=lambda write: write.version or 0, default=None)
    if newest is not None and not any(
        write.began < (op.ended or 0) and (write.is_unknown or (write.version or 0) > (newest.version or 0))
        for write in row.deletes
    ):
        yield f"{op}\n    saw no row, after {newest}"


def _judge_ahead(row: Row, op: Op) -> Iterator[str]:
    """Only a version that lies too far ahead of everything may be refused as such."""
    before = [write for write in (*row.writes.values(), *row.deletes) if (write.ended or math.inf) < op.began]
    newest = max(before, key=lambda write: write.version or 0, default=None)
    if newest is not None and op.args["as_of"] <= (newest.version or 0):
        yield f"{op}\n    was refused, after {newest}"


def _judge_collected(row: Row, reads: list[Op]) -> Iterator[str]:
    """Only a version with enough newer ones may be refused, and what was refused once is not answered later."""
    alone = [op for op in reads if op.kind == AS_OF]
    refused: dict[int, Op] = {}
    for op in sorted((op for op in alone if op.note == COLLECTED), key=lambda op: op.ended or 0):
        as_of = op.args["as_of"]
        refused.setdefault(as_of, op)
        newest = row.newest_at(as_of)
        newer = _newer(row, as_of, op)
        if newest is not None and newer < row.keep_versions:
            yield f"{op}\n    was refused, but only {newer} versions are newer than {as_of}"
    for op in alone:
        before = refused.get(op.args["as_of"])
        if op.outcome == OK and before is not None and (before.ended or 0) < op.began:
            yield f"{op}\n    was answered after it had been refused: {before}"


def _newer(row: Row, as_of: int, op: Op) -> int:
    """How many writes can have been newer than the version when the question was answered: those begun by then, but
    not those that are known to be older."""
    version_of = {value: version for version, value in row.done.items() if value is not None}
    count = 0
    for write in (*row.writes.values(), *row.deletes):
        version = write.version if write.outcome == OK else version_of.get(write.args.get("value"))
        count += write.began < (op.ended or 0) and (version is None or version > as_of)
    return count
