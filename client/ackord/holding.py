"""What goes between a client that keeps rows and a node (rule R19): reads that ask for a lease, and answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ackord.calls import Get, Group
from ackord.wire.messages import OP_HOLD, OP_KEEP, WHOLE_GROUP


class Keeper(Protocol):
    """Whoever keeps rows in memory."""

    clock: Callable[[], float]

    def granted(self, node: str, hold: Hold, raw: bytes | None, grant: list[Any], sent_at: float) -> None:
        """The row may be kept; ValueError or TypeError if the grant is none."""


class HoldGroup(Group):
    """Reads of rows that are to be kept: their leases count from when the group was sent."""

    __slots__ = ("_held_at",)

    def encode(self, rid: int) -> list[Any]:
        self._held_at = self.ops[0].keeper.clock()
        return [rid, OP_HOLD, self.tablet.id, [op.encoded for op in self.ops]]

    def unwrapped(self, node: str, indices: Any, results: Any) -> Any:
        if indices == WHOLE_GROUP:
            return results
        ops = self.ops if indices is None else [self.ops[index] for index in indices]
        rows = list(results)
        for at, (op, result) in enumerate(zip(ops, results, strict=True)):
            if type(result) is list and len(result) == 2:
                rows[at], grant = result
                if op is not None and grant is not None:
                    op.keeper.granted(node, op, rows[at], grant, self._held_at)
        return rows


class Hold(Get):
    """A read of a row that is to be kept (rule R19); ``keeper`` gets what was granted. ``name`` is the key as its
    caller gave it."""

    __slots__ = ("keeper", "name")

    op = OP_HOLD
    group_kind = HoldGroup

    keeper: Keeper
    name: Any


class KeepGroup(Group):
    """Says that rows were dropped, and asks for more time for the others; nobody waits for it, and it is never sent
    again. ``extended`` gets the answer and when this was sent."""

    __slots__ = ("_clock", "_extended", "_number", "_sent_at", "_seq", "_tablet_id")

    def __init__(
        self,
        tablet: int,
        number: int,
        seq: int,
        clock: Callable[[], float],
        extended: Callable[[Any, float], None],
    ) -> None:
        self.op = OP_KEEP
        self.ops = [self]
        self.size = 0
        self.deadline = float("inf")
        self.unanswered_count = 1
        self._tablet_id, self._number, self._seq = tablet, number, seq
        self._clock, self._extended = clock, extended

    @property
    def future(self) -> KeepGroup:
        return self

    def done(self) -> bool:
        return False

    def take_all(self) -> list[Any]:
        self.ops = []
        return []

    def encode(self, rid: int) -> list[Any]:
        self.ops = []
        self._sent_at = self._clock()
        return [rid, OP_KEEP, self._tablet_id, self._number, self._seq]

    def unwrapped(self, node: str, indices: Any, results: Any) -> Any:
        if indices != WHOLE_GROUP:
            self._extended(results[0], self._sent_at)
        return []
