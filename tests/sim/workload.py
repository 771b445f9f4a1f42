"""What clients do to a cluster, so that whatever it does wrong can show in what they see.

All workloads share one table with the key (slot: int, name: str); the slots are spread over its tablets. Few keys
and several loops per client make for contention. Values are unique in some writes, which makes wrong order plain,
and equal in others, which a cluster that compares values instead of requests would confuse. No workload repeats a
call that failed: only the SDK may, under one request id, and a call that runs twice must show.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import ackord
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from tests.sim.history import CONFLICT, GET, OK, ROW_WRITES, Op
from tests.sim.recorder import Context, Key, Recorder, StoreLike, UnexpectedError, is_row_key, never

__all__ = [
    "TABLE_KEY",
    "WORKLOADS",
    "Context",
    "StoreLike",
    "UnexpectedError",
    "Workload",
    "create_load_table",
    "make_workloads",
    "never",
    "read_final",
    "read_scans",
]

TABLE_KEY: Final[dict[str, type]] = {"slot": int, "name": str}
CREATE_PAUSE_S: Final = 0.2
FINAL_READ_KEYS: Final = 100  # keys in one call
FINAL_TIMEOUT_S: Final = 60.0

LIST_LENGTH_MAX: Final = 40  # then an append goes on with another list
SET_ELEMENTS_MAX: Final = 25  # of one loop, then it goes on with another set


class Workload:
    """One way of using the table. The object has no state of a run: all clients may share it."""

    name: str

    def __init__(self, table: str, slots_count: int) -> None:
        self.table = table
        self.slots_count = slots_count

    async def run(self, context: Context) -> None:
        """One client's part: ends when the context says so, or with what a loop raised."""
        loops = [
            asyncio.ensure_future(self._loop(context, random.Random(context.rng.getrandbits(64)), number))
            for number in range(context.concurrency)
        ]
        try:
            await asyncio.wait(loops, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for loop in loops:
                loop.cancel()
            ends = await asyncio.gather(*loops, return_exceptions=True)
        for end in ends:
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end

    async def _loop(self, context: Context, rng: random.Random, number: int) -> None:
        recorder = self.recorder(context, rng)
        memory: dict[Any, Any] = {"number": number}
        while not context.is_over:
            await self.step(recorder, rng, memory)
            if context.pause_s:
                await asyncio.sleep(rng.random() * 2 * context.pause_s)

    def recorder(self, context: Context, rng: random.Random) -> Recorder:
        return Recorder(context, self.name, self.table, rng)

    async def prepare(self, context: Context) -> bool:
        """Makes what it needs beside the shared table; False if the context was over before."""
        return True

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        """One call or a few; ``memory`` is the loop's own."""
        raise NotImplementedError

    def key(self, number: int, suffix: str = "") -> Key:
        """Neighbouring numbers lie in different slots."""
        return (number * 5 + len(self.name)) % self.slots_count, f"{self.name}-{number}{suffix}"


class Register(Workload):
    """Rows that are put, compared and set, created, updated, deleted and read, all by everybody."""

    name = "register"
    keys_count = 4

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = self.key(rng.randrange(self.keys_count))
        choice = rng.random()
        if choice < 0.35:
            op = await recorder.get(key)
        elif choice < 0.40:
            keys = [self.key(number) for number in range(self.keys_count)]
            for op in await recorder.get_many(keys):
                _remember(memory, op)
            return
        elif choice < 0.75:
            columns = {"v": _value(recorder, rng)}
            op = await recorder.put(key, columns, **_condition(rng, memory.get(key), 0.6))
        elif choice < 0.88:
            op = await self._update(recorder, rng, key, memory.get(key))
        else:
            condition = _condition(rng, memory.get(key), 0.4)
            condition.pop("if_absent", None)
            op = await recorder.delete(key, **condition)
        _remember(memory, op)

    async def _update(self, recorder: Recorder, rng: random.Random, key: Key, version: int | None) -> Op:
        columns = {"w": _value(recorder, rng)} if rng.random() < 0.6 else {}
        increment = {"n": rng.choice([1, 1, 5])} if rng.random() < 0.6 or not columns else {}
        remove = ["v"] if rng.random() < 0.2 else []
        return await recorder.update(
            key, columns, increment=increment, remove=remove, **_condition(rng, version, 0.3)
        )


class Counter(Workload):
    """Rows that are only counted up: each acknowledged increment counts once, an unknown one at most once."""

    name = "counter"
    keys_count = 3

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = self.key(rng.randrange(self.keys_count))
        if rng.random() < 0.25:
            await recorder.get(key)
        else:
            columns = {"last": recorder.context.stamp()} if rng.random() < 0.2 else {}
            await recorder.update(key, columns, increment={"n": rng.choice([1, 1, 1, 3])})


class Append(Workload):
    """Lists that grow by one element under the version that was read: no element may be lost or come twice."""

    name = "append"
    keys_count = 3

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        number = rng.randrange(self.keys_count)
        generation = memory.setdefault(number, 0)
        key = self.key(number, f"-{generation}")
        seen = await recorder.get(key)
        if seen.outcome != OK:
            return
        elements = list(seen.columns["list"]) if seen.columns is not None else []
        if len(elements) >= LIST_LENGTH_MAX:
            memory[number] += 1
            return
        columns = {"list": [*elements, recorder.context.stamp()]}
        if seen.version is None:
            await recorder.put(key, columns, if_absent=True)
        else:
            await recorder.put(key, columns, if_version=seen.version)


class UniqueSet(Workload):
    """Rows that are only inserted, each by one call, and scanned: none may be lost or invented."""

    name = "set"

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        count = memory.get("count", 0)
        generation = f"set-{count // SET_ELEMENTS_MAX:04d}"
        slot = rng.randrange(self.slots_count)
        if rng.random() < 0.1:
            start, end = (slot, f"{generation}-"), (slot, f"{generation}.")
            await recorder.scan(start, end, reverse=rng.random() < 0.5)
            return
        memory["count"] = count + 1
        key = (slot, f"{generation}-{recorder.context.stamp()}")
        await recorder.put(key, {"v": rng.randrange(3)}, if_absent=True)


class Batch(Workload):
    """Many rows in one call, each with an outcome of its own; now and then one that must be refused alone."""

    name = "batch"
    keys_count = 12
    rows_max = 10

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        if rng.random() < 0.3:
            keys = [self.key(number) for number in range(self.keys_count)]
            for op in await recorder.get_many(rng.sample(keys, rng.randrange(1, self.keys_count))):
                _remember(memory, op)
            return
        numbers = rng.sample(range(self.keys_count), rng.randrange(1, self.rows_max + 1))
        if rng.random() < 0.1:
            numbers.append(numbers[0])  # two on one row, which may take effect in either order
        stamp = recorder.context.stamp()
        operations = [self._operation(rng, self.key(number), stamp, memory) for number in numbers]
        if rng.random() < 0.1:
            at = rng.randrange(len(operations) + 1)
            operations.insert(at, ackord.Put((0,), {"stamp": stamp}))
        for op in await recorder.write_many(operations):
            _remember(memory, op)

    @staticmethod
    def _operation(
        rng: random.Random, key: Key, stamp: str, memory: dict[Any, Any]
    ) -> ackord.Put | ackord.Update | ackord.Delete:
        condition = _condition(rng, memory.get(key), 0.3)
        choice = rng.random()
        if choice < 0.6:
            return ackord.Put(key, {"stamp": stamp}, **condition)
        if choice < 0.85:
            return ackord.Update(key, {"stamp": stamp}, increment={"n": 1}, **condition)
        condition.pop("if_absent", None)
        return ackord.Delete(key, **condition)


class Scans(Workload):
    """Rows that stay, between rows that come and go, read in both directions, in parts and whole: none that stays may
    be skipped or come twice."""

    name = "scan"
    rows_count = 8  # in each slot, of each kind

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        slot = rng.randrange(self.slots_count)
        number = rng.randrange(self.rows_count)
        choice = rng.random()
        if choice < 0.25:  # a condition, so that rows which are there are not written again and again
            await recorder.put((slot, f"scan-{number}-stays"), {"v": number}, if_absent=True)
        elif choice < 0.45:
            await recorder.put((slot, f"scan-{number}-comes"), {"v": recorder.context.stamp()})
        elif choice < 0.6:
            await recorder.delete((slot, f"scan-{number}-comes"))
        else:
            await self._scan(recorder, rng, slot)

    def _scan(self, recorder: Recorder, rng: random.Random, slot: int) -> Any:
        reverse = rng.random() < 0.5
        limit = rng.randrange(
            1, 4 * self.rows_count
        )  # other workloads' rows, without bound, come with these:
        choice = rng.random()
        if choice < 0.15:
            return recorder.scan(limit=limit, reverse=reverse)
        if choice < 0.3:
            return recorder.scan((slot,), (slot + 1,), limit=limit, reverse=reverse)
        if choice < 0.5:
            return recorder.scan((slot, "scan-"), (slot + 2, "scan."), limit=limit, reverse=reverse)
        return recorder.scan(
            (slot, "scan-"), (slot, "scan."), limit=limit if choice < 0.6 else None, reverse=reverse
        )


class Tables(Workload):
    """Small tables that come and go under the same names: a dropped one must never show again, not even empty, and one
    that was created must stay until its drop.

    Each loop has names of its own and does one thing after the other. A name is not used again after a create or a
    drop of unknown outcome, which may still take effect at any time: so whenever one is created here, none of that
    name may stand. Attempts that the SDK repeated within a call are no excuse once the call was acknowledged.
    """

    name = "tables"

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        context = recorder.context
        tried = memory.get("tried", 0)
        generation = memory["generation"] = memory.get("generation", 0) + 1
        client = "".join(char if char.isalnum() else "_" for char in context.client)
        name = f"{self.table}_{client}_{memory['number']}_{tried}"
        table = Recorder(context, self.name, name, rng, incarnation=f"{name}@{generation}")
        split_at = [self.slots_count // 2] if rng.random() < 0.5 else []
        is_sure = (await table.create(TABLE_KEY, split_at)).outcome == OK
        if is_sure:
            for number in range(rng.randrange(1, 5)):
                await self._use(table, rng, self.key(number % 3))
            is_sure = (await table.drop()).outcome == OK
        if is_sure:
            await table.get(self.key(0))
            await table.scan()
        else:
            memory["tried"] = tried + 1

    @staticmethod
    async def _use(table: Recorder, rng: random.Random, key: Key) -> None:
        choice = rng.random()
        if choice < 0.5:
            await table.put(key, {"v": table.context.stamp()})
        elif choice < 0.8:
            await table.get(key)
        else:
            await table.scan()


WORKLOADS: Final[dict[str, type[Workload]]] = {
    kind.name: kind for kind in (Register, Counter, Append, UniqueSet, Batch, Scans, Tables)
}


def make_workloads(
    table: str = "load", slots_count: int = 6, names: Sequence[str] | None = None
) -> list[Workload]:
    return [WORKLOADS[name](table, slots_count) for name in (WORKLOADS if names is None else names)]


async def create_load_table(
    context: Context,
    table: str = "load",
    tablets_count: int = 3,
    slots_count: int = 6,
    options: TableOptions = DEFAULT_OPTIONS,
) -> bool:
    """Creates the table that the workloads share; False if the context was over before it stood."""
    split_at = [slots_count * number // tablets_count for number in range(1, tablets_count)]
    while not context.is_over:
        try:
            await context.store.create_table(
                table, TABLE_KEY, split_at=split_at, timeout=context.timeout_s, **options.to_wire()
            )
            return True
        except (ackord.Unavailable, ackord.OutcomeUnknown):
            await asyncio.sleep(CREATE_PAUSE_S)
    return False


async def read_final(context: Context, table: str = "load") -> list[Op]:
    """Reads every key of the table that the history knows, and scans it in both directions. UnexpectedError if the
    cluster cannot answer."""
    recorder = Recorder(context, "final", table, random.Random(0), timeout_s=FINAL_TIMEOUT_S)
    keys = sorted({op.key for op in context.history.ops if _is_row_of(op, table)})  # type: ignore[type-var]
    done: list[Op] = []
    for at in range(0, len(keys), FINAL_READ_KEYS):
        done += await recorder.get_many(keys[at : at + FINAL_READ_KEYS])  # type: ignore[arg-type]
    return _all_read(done) + await read_scans(context, table)


async def read_scans(context: Context, table: str) -> list[Op]:
    """The second half of it."""
    recorder = Recorder(context, "final", table, random.Random(0), timeout_s=FINAL_TIMEOUT_S)
    return _all_read([await recorder.scan(reverse=reverse) for reverse in (False, True)])


def _all_read(done: list[Op]) -> list[Op]:
    for op in done:
        if op.outcome != OK:
            raise UnexpectedError(f"the table cannot be read in the end: {op}")
    return done


def _is_row_of(op: Op, table: str) -> bool:
    return op.table == table and op.key is not None and op.kind in (GET, *ROW_WRITES) and is_row_key(op.key)


def _value(recorder: Recorder, rng: random.Random) -> Any:
    return recorder.context.stamp() if rng.random() < 0.6 else rng.randrange(3)


def _condition(rng: random.Random, version: int | None, rate: float) -> dict[str, Any]:
    """None, or one of the three; ``version`` is what the loop saw last and may be old."""
    if rng.random() >= rate:
        return {}
    choice = rng.random()
    if choice < 0.6 and version is not None:
        return {"if_version": version}
    return {"if_absent": True} if choice < 0.8 else {"if_exists": True}


def _remember(memory: dict[Any, Any], op: Op) -> None:
    if op.outcome in (OK, CONFLICT) and op.key is not None:
        memory[op.key] = op.version
