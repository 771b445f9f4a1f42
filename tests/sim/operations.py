"""What clients do beyond single writes and reads: transactions, merges, appends, conditions, numbers.

As in `workload`, each loop does one thing after the other, values tell who wrote them, and nothing that failed is
repeated here. Most work on the table that all share, among the rows of the others; a table of its own has what needs
other key columns.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

import ackord
from ackord.wire.messages import VERSION_COUNTER_BITS
from ackord.wire.options import TableOptions
from tests.sim.history import DELETE, OK, PUT, UPDATE, Op
from tests.sim.recorder import Context, Key, Recorder
from tests.sim.recorder_operations import FullRecorder, RecordedTransaction
from tests.sim.transfers import Transfers
from tests.sim.workload import CREATE_PAUSE_S, LIST_LENGTH_MAX, TABLE_KEY, Workload

NUMBERS_KEY: Final[dict[str, Any]] = {"slot": int, "number": ackord.AUTO}
KEPT_BASES: Final = 6  # that one loop remembers of a row
KNOWN_VERSIONS: Final = 20  # that one loop remembers
AHEAD_MS: Final = 300  # so far ahead it reads


class Operation(Workload):
    """A workload whose recorder knows every operation. ``own_table``: what follows the shared table's name in that
    of its own; none: it uses the shared one."""

    own_table = ""
    key_columns: dict[str, Any] = TABLE_KEY
    options = TableOptions()

    def recorder(self, context: Context, rng: random.Random) -> Recorder:
        return FullRecorder(context, self.name, self.table + self.own_table, rng)

    async def prepare(self, context: Context) -> bool:
        """Creates its own table; False if the context was over before it stood."""
        if not self.own_table:
            return True
        options = self.options.to_wire()
        while not context.is_over:
            try:
                await context.store.create_table(
                    self.table + self.own_table, self.key_columns, timeout=context.timeout_s, **options
                )
                return True
            except (ackord.Unavailable, ackord.OutcomeUnknown):
                await asyncio.sleep(CREATE_PAUSE_S)
        return False

    async def step(self, recorder: Recorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        assert isinstance(recorder, FullRecorder)
        await self.do(recorder, rng, memory)

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        raise NotImplementedError


class Transact(Operation):
    """Transactions over a few rows of one slot, which single writes and scans use as well. Every write has a stamp,
    so that it shows in which version of which row it took effect, and how often."""

    name = "transact"
    rows_count = 4

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        slot = rng.randrange(2)
        keys = [(slot, f"transact-{number}") for number in range(self.rows_count)]
        choice = rng.random()
        if choice < 0.15:
            await recorder.scan((slot, "transact-"), (slot, "transact."), reverse=rng.random() < 0.5)
        elif choice < 0.25:
            await recorder.put(rng.choice(keys), {"by": recorder.context.stamp(), "n": 0})
        elif choice < 0.3:
            increment = {"n": 1}
            await recorder.update(rng.choice(keys), {"by": recorder.context.stamp()}, increment=increment)
        else:
            seed, stamp = rng.getrandbits(64), recorder.context.stamp

            async def work(tx: RecordedTransaction) -> None:
                await self._work(tx, random.Random(seed), keys, stamp())

            await recorder.transact(slot, work, is_repeated=rng.random() < 0.4)

    async def _work(self, tx: RecordedTransaction, rng: random.Random, keys: list[Key], stamp: str) -> None:
        read: set[Key] = set()
        if rng.random() < 0.4:
            low, high = sorted(rng.sample(range(self.rows_count + 1), 2))
            slot = keys[0][0]
            await tx.scan((slot, f"transact-{low}"), (slot, f"transact-{high}"), reverse=rng.random() < 0.5)
            read.update(keys[low:high])
        alone = [key for key in rng.sample(keys, rng.randrange(0 if read else 1, 3)) if key not in read]
        if rng.random() < 0.5:
            await asyncio.gather(*(tx.get(key) for key in alone))
        else:
            for key in alone:
                await tx.get(key)
        if rng.random() < 0.15:
            return  # it only reads
        *written, last = rng.sample(keys, rng.randrange(1, 4))
        for key in written:
            choice = rng.random()
            if choice < 0.5:
                tx.put(key, {"by": stamp, "n": 0})
            elif choice < 0.85:
                tx.update(key, {"by": stamp}, {"n": 1})
            else:
                tx.delete(key)
        condition = rng.choice(({}, {}, {"if_absent": True}, {"if_exists": True}))
        tx.put(last, {"by": stamp, "n": 0}, **condition)  # refused, the others must not be done either


class Merge(Operation):
    """Rows to which all add, each from the version that it read some time ago: a sum and a set. What an item is
    worth stands in its name, so that the sum of a row is that of its items in every read."""

    name = "merge"
    keys_count = 2

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        number = rng.randrange(self.keys_count)
        generation = memory.setdefault(number, 0)
        key = self.key(number, f"-{generation}")
        bases: list[Op] = memory.setdefault(key, [])
        if not bases or rng.random() < 0.4:
            await self._read(recorder, key, bases)
            if bases and len(bases[-1].columns["items"]) >= LIST_LENGTH_MAX:  # type: ignore[index]
                memory[number] += 1
            return
        base = rng.choice(bases)
        assert base.version is not None and base.columns is not None
        worth = rng.choice((1, 1, 7, -2))
        item, increment = f"{recorder.context.stamp()}:{worth}", {"total": worth}
        items = sorted([*base.columns["items"], item])
        union = {"items": [item]}
        if rng.random() < 0.6:
            columns = {**base.columns, "items": items, "total": base.columns["total"] + worth}
            op = await recorder.merge_put(key, base.version, columns, increment, union)
        else:
            op = await recorder.merge_update(key, base.version, {"items": items}, increment, union)
        if op.error.startswith("VersionCollected"):
            bases.remove(base)

    @staticmethod
    async def _read(recorder: FullRecorder, key: Key, bases: list[Op]) -> None:
        seen = await recorder.get(key)
        if seen.outcome == OK and seen.version is None:
            await recorder.put(key, {"total": 0, "items": []}, if_absent=True)
        elif seen.outcome == OK and seen.version not in [base.version for base in bases]:
            bases.append(seen)
            del bases[:-KEPT_BASES]


class Grow(Operation):
    """Lists to which all append without having read them: every element is there once, in the order of the calls."""

    name = "grow"
    keys_count = 3

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        number = rng.randrange(self.keys_count)
        generation = memory.setdefault(number, 0)
        key = self.key(number, f"-{generation}")
        if rng.random() < 0.25:
            op = await recorder.get(key)
            if op.columns is not None and len(op.columns["list"]) >= LIST_LENGTH_MAX:
                memory[number] += 1
            return
        items = [recorder.context.stamp() for _ in range(rng.choice((1, 1, 2)))]
        await recorder.append(key, {"list": items}, rng.choice((None, None, "new", "old")))


class Conditions(Operation):
    """Writes under conditions on the row's columns, some of which return the row."""

    name = "conditions"
    keys_count = 3

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = self.key(rng.randrange(self.keys_count))
        if rng.random() < 0.25:
            await recorder.get(key)
            return
        kind = rng.choice((PUT, PUT, UPDATE, UPDATE, DELETE))
        columns = {} if kind == DELETE else {"state": rng.randrange(3), "by": recorder.context.stamp()}
        if kind == UPDATE and rng.random() < 0.5:
            del columns["state"]
        returning = rng.choice((None, "new", "old"))
        await recorder.write_where(kind, key, columns, self._where(rng), returning)

    @staticmethod
    def _where(rng: random.Random) -> list[Any] | None:
        choice = rng.random()
        if choice < 0.3:
            return None
        if choice < 0.6:
            return ["state", "==", rng.randrange(3)]
        if choice < 0.8:
            return ["state", ">=", rng.randrange(3)]
        return ["by", "exists", rng.random() < 0.4]


class Numbers(Operation):
    """Rows that the table numbers: no number comes twice, and a later row has a higher one."""

    name = "numbers"
    own_table = "_numbers"
    key_columns = NUMBERS_KEY

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        slot = rng.randrange(2)
        if rng.random() < 0.12:
            await recorder.scan((slot,), (slot + 1,), reverse=rng.random() < 0.5)
        else:
            await recorder.insert((slot,), {"by": recorder.context.stamp()})


class Versions(Operation):
    """Rows that are overwritten and deleted, and read as of versions that somebody saw, of some between, and of some
    that are still to come; and their versions, and whole ranges."""

    name = "versions"
    keys_count = 3

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        slot = rng.randrange(2)
        known: list[int] = memory.setdefault(slot, [])  # of one tablet
        recorder.version_reached = memory.get(("highest", slot), 0)
        key = (slot, f"versions-{rng.randrange(self.keys_count)}")
        choice = rng.random()
        if choice < 0.35 or not known:
            op = await self._change(recorder, rng, key)
        elif choice < 0.65:
            op = await recorder.get_as_of(key, self._as_of(rng, known))
        elif choice < 0.8:
            before = self._as_of(rng, known) if rng.random() < 0.3 else None
            op = await recorder.versions(key, rng.choice((1, 2, 5, 100)), before)
        elif choice < 0.9:
            as_of, is_reverse = self._as_of(rng, known), rng.random() < 0.5
            op = await recorder.scan_as_of((slot, "versions-"), (slot, "versions."), as_of, is_reverse)
        else:
            op = await recorder.get(key)
        if op.version is not None and op.version not in known:
            memory["highest", slot] = max(recorder.version_reached, op.version)
            known.append(op.version)
            del known[:-KNOWN_VERSIONS]

    @staticmethod
    async def _change(recorder: FullRecorder, rng: random.Random, key: Key) -> Op:
        choice = rng.random()
        if choice < 0.2:
            return await recorder.delete(key)
        if choice < 0.5:
            return await recorder.update(key, {"w": recorder.context.stamp()}, increment={"n": 1})
        return await recorder.put(key, {"v": recorder.context.stamp()})

    @staticmethod
    def _as_of(rng: random.Random, known: list[int]) -> int:
        choice = rng.random()
        if choice < 0.5:
            return rng.choice(known)
        if choice < 0.7:
            return rng.choice(known) - 1
        if choice < 0.85:
            return rng.randint(min(known), max(known))
        return max(known) + (rng.randrange(1, AHEAD_MS) << VERSION_COUNTER_BITS)


class Fleeting(Operation):
    """Rows that expire, by the table's time or their own. Nobody deletes them."""

    name = "fleeting"
    own_table = "_fleeting"
    options = TableOptions(ttl=1.0)
    keys_count = 4

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = (0, f"fleeting-{rng.randrange(self.keys_count)}")
        choice = rng.random()
        stamp = {"by": recorder.context.stamp()}
        if choice < 0.5:
            await recorder.get(key)
        elif choice < 0.6:
            await recorder.scan((0,), (1,))
        elif choice < 0.75:
            await recorder.put_expiring(key, stamp, rng.choice((None, 0.3, 2.0, 30.0)))
        elif choice < 0.85:
            await recorder.put(key, stamp, if_absent=True)
        elif choice < 0.9:
            await recorder.put(key, stamp, if_exists=True)
        else:
            await recorder.update(key, stamp, increment={"n": 1})


class Cells(Operation):
    """Columns that keep several values with their times."""

    name = "cells"
    own_table = "_cells"
    options = TableOptions(max_versions=3)
    keys_count = 2

    async def do(self, recorder: FullRecorder, rng: random.Random, memory: dict[Any, Any]) -> None:
        key = (0, f"cells-{rng.randrange(self.keys_count)}")
        choice = rng.random()
        if choice < 0.2:
            await recorder.get(key)
        elif choice < 0.45:
            op = await recorder.cells(key, rng.randrange(1, 5), *memory.get(key, (None, None)))
            times = [time for cells in (op.columns or {}).values() for time, _ in cells]
            memory[key] = (None, None) if not times or rng.random() < 0.5 else (min(times), max(times))
        elif choice < 0.8:
            await recorder.update(key, {rng.choice("ab"): recorder.context.stamp()}, increment={"n": 1})
        elif choice < 0.95:
            await recorder.put(key, {"a": recorder.context.stamp()})
        else:
            await recorder.delete(key)


class Bank(Operation):
    """Transfers between accounts of one partition key (`transfers.Transfers`), which has its own account of a run and
    its own judgement. The accounts fit the smallest page, so that each scan of them is one moment."""

    name = "transfers"
    own_table = "_bank"

    def __init__(self, table: str, slots_count: int) -> None:
        super().__init__(table, slots_count)
        self.transfers = Transfers(table + self.own_table, accounts_count=3)

    async def prepare(self, context: Context) -> bool:
        while not context.is_over:
            try:
                await self.transfers.create(context.store, context.timeout_s)
                return True
            except (ackord.Unavailable, ackord.OutcomeUnknown, ackord.Conflict):
                await asyncio.sleep(CREATE_PAUSE_S)
        return False

    async def run(self, context: Context) -> None:
        rng = random.Random(context.rng.getrandbits(64))
        await self.transfers.run(context.store, rng, lambda: context.is_over, context.pause_s)

    async def check_end(self, store: Any) -> None:
        if self.transfers.seen.totals or self.transfers.seen.commits:
            await self.transfers.check_end(store)


OPERATIONS: Final[dict[str, type[Operation]]] = {
    kind.name: kind for kind in (Transact, Bank, Merge, Grow, Conditions, Numbers, Versions, Fleeting, Cells)
}
