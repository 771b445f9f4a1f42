"""Point reads on their way: lists side by side, and no object for a single read.

A cluster answers a read in a few microseconds, so what an SDK does for each of them decides how many a program can
make. All reads of one tablet in one turn of the loop are one group here: keys, encoded keys, futures and
deadlines. Only where something goes wrong (an error, a silent node, a deadline, a caller who has gone) do they become
operations like any other, and take the general ways of the batcher.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator
from operator import methodcaller
from typing import Any, Protocol

from ackord.calls import Get, Group, Many
from ackord.operations import key_tuple
from ackord.routing import TableRoute, TabletRoute
from ackord.row import Row
from ackord.wire.messages import OP_GET

_is_done = methodcaller("done")


class ReadGroup(Group):
    """Reads of single rows of one tablet: of many callers, or ``many``, a part of one caller's ``get_many``, whose
    results belong at ``places``."""

    __slots__ = ("_ops", "deadlines", "encoded", "futures", "keys", "many", "places", "table")

    def __init__(self, table: TableRoute, tablet: TabletRoute, many: Many | None = None) -> None:
        self.op = OP_GET
        self.table = table
        self.tablet = tablet
        self.size = 0
        self.keys: list[tuple[Any, ...]] = []
        self.encoded: list[bytes] = []
        self.futures: list[asyncio.Future[Any]] = []
        self.deadlines: list[float] = []
        self.many = many
        self.places: list[int] = []
        self.sent_at = 0.0
        self.reviewed_at = 0.0
        self._ops: list[Any] | None = None

    def part(self, start: int, stop: int) -> ReadGroup:
        """Some of the reads as a group of their own."""
        part = ReadGroup(self.table, self.tablet, self.many)
        for name in ("keys", "encoded", "futures", "deadlines", "places"):
            setattr(part, name, getattr(self, name)[start:stop])
        return part

    @property
    def is_lean(self) -> bool:
        """Whether nothing has gone wrong so far."""
        return self._ops is None

    @property
    def ops(self) -> list[Any]:
        """The reads as operations, from now on."""
        if self._ops is None:
            columns = zip(self.futures, self.keys, self.encoded, self.deadlines, strict=True)
            places = self.places or [0] * len(self.keys)
            self._ops = [
                Get(future, self.table, self.tablet, key, encoded, deadline, self.many, place)
                for (future, key, encoded, deadline), place in zip(columns, places, strict=True)
            ]
        return self._ops

    @ops.setter
    def ops(self, ops: list[Any]) -> None:
        self._ops = ops

    def seal(self) -> None:
        """No read is added any more."""
        self.deadline = min(self.deadlines)
        self.unanswered_count = len(self.keys)

    def has_absent_callers(self) -> bool:
        return True in map(_is_done, self.futures)

    def encode(self, rid: int) -> list[Any]:
        return [rid, OP_GET, self.tablet.id, self.encoded] if self.is_lean else super().encode(rid)

    def deliver(self, results: list[Any]) -> bool:
        """Gives every caller its row; False if something else than rows came, then it is to be done again."""
        if len(results) != len(self.keys):
            raise ValueError(f"{len(results)} results for {len(self.keys)} operations")
        if self.many is not None:
            return self._deliver_many(self.many, results)
        for future, key, raw in zip(self.futures, self.keys, results, strict=True):
            if raw is None:
                row = None
            elif type(raw) is bytes:
                row = Row(key, raw)
            else:
                return False
            if not future.done():
                future.set_result(row)
        return True

    def _deliver_many(self, many: Many, results: list[Any]) -> bool:
        if not {bytes, type(None)}.issuperset(map(type, results)):
            return False
        rows = [None if raw is None else Row(key, raw) for key, raw in zip(self.keys, results, strict=True)]
        many.put_all(self.places, rows)
        return True


class Queue(Protocol):
    """What is needed of the batcher."""

    def take_room(self, count: int, size: int = 0) -> None: ...

    def flush_soon(self) -> None: ...


class Reads:
    """The reads of this turn of the loop, by tablet, until ``take``."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._groups: list[ReadGroup] = []
        self._new_future = asyncio.get_running_loop().create_future

    def get(self, table: TableRoute, key: Any, deadline: float) -> asyncio.Future[Any]:
        """Takes a read of one row, which the future gets. InvalidRequest for the key, Unavailable if too much is
        under way."""
        schema = table.key
        encoded = schema.fast(key) or schema.encode(key)
        self._queue.take_room(1)
        tablet = table.tablets[bisect_right(table.starts, encoded) - 1]
        group: ReadGroup | None = tablet.reads
        if group is None:
            group = tablet.reads = self._begin(ReadGroup(table, tablet))
        future = self._new_future()
        group.keys.append(key if type(key) is tuple else key_tuple(key))
        group.encoded.append(encoded)
        group.futures.append(future)
        group.deadlines.append(deadline)
        return future

    def get_many(self, table: TableRoute, keys: list[Any], deadline: float) -> asyncio.Future[list[Any]]:
        """The same of several rows, at least one; what goes wrong with one of them is its result."""
        schema = table.key
        encoded = [schema.fast(key) or schema.encode(key) for key in keys]
        self._queue.take_room(len(keys))
        many = Many(self._new_future(), len(keys))
        groups: dict[int, ReadGroup] = {}
        starts = table.starts
        for place, (key, raw) in enumerate(zip(keys, encoded, strict=True)):
            at = bisect_right(starts, raw) - 1
            group = groups.get(at)
            if group is None:
                group = groups[at] = self._begin(ReadGroup(table, table.tablets[at], many))
            group.keys.append(key if type(key) is tuple else key_tuple(key))
            group.encoded.append(raw)
            group.places.append(place)
        for group in groups.values():
            group.futures = [many.future] * len(group.keys)
            group.deadlines = [deadline] * len(group.keys)
        return many.future

    def _begin(self, group: ReadGroup) -> ReadGroup:
        self._groups.append(group)
        self._queue.flush_soon()
        return group

    def take(self, count_max: int) -> Iterator[ReadGroup]:
        """The groups, ready to be sent, each of at most so many reads."""
        groups, self._groups = self._groups, []
        for group in groups:
            group.tablet.reads = None
            count = len(group.keys)
            parts = [group]
            if count > count_max:
                parts = [group.part(at, at + count_max) for at in range(0, count, count_max)]
            for part in parts:
                part.seal()
                yield part
