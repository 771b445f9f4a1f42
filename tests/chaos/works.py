"""What the workloads of whole rows have in common: transfers, appends, merges and versions (`work_*.py`).

A work has tables and one history of its own for the whole run, and a judgement that is a function of that history.
Each of its calls is one operation in it, a transaction as well, with an outcome as rule R17 has it. No call that
failed is repeated: only the SDK may, under one request id.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left, insort
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Final

import ackord
from tests.sim.history import CONFLICT, FAILED, GET, OK, SCAN, UNKNOWN, History, Op
from tests.sim.recorder import SHORT_TIMEOUT_PART, SHORT_TIMEOUT_RATE, UnexpectedError

FAILURE_PAUSE_S: Final = 0.05  # after a failed call: one that fails at once must not be repeated without end
CREATE_PAUSE_S: Final = 0.2
NODE_READ_PART: Final = 0.3  # of the usual timeout: the one node that is asked may be down
REPORTS_MAX: Final = 20  # of one work
FINAL: Final = "final"
COLLECTED: Final = "collected"

Call = Callable[[Op, float], Awaitable[None]]


@dataclass(slots=True)
class Client:
    """One client of a work. ``readers`` are stores of which each reads from one node; ``memory`` is the work's."""

    name: str
    store: ackord.Store
    readers: Sequence[ackord.Store]
    history: History
    rng: random.Random
    now: Callable[[], float]
    is_over: Callable[[], bool]
    pause_s: float
    timeout_s: float
    number: int = 0
    is_final: bool = False
    stamps_count: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)

    def stamp(self) -> int:
        """A number that no other client uses, and this one once."""
        self.stamps_count += 1
        return self.number * 1_000_000 + self.stamps_count

    def reader(self) -> tuple[ackord.Store, float]:
        """Whom to ask, and how much of the usual time to give it."""
        if self.rng.random() < 0.4:
            return self.store, 1.0
        return self.rng.choice(self.readers), NODE_READ_PART

    async def do(
        self,
        work: Work,
        kind: str,
        key: tuple[Any, ...] | None,
        call: Call,
        *,
        is_read: bool = False,
        part: float = 1.0,
        refusals: tuple[type[ackord.Error], ...] = (),
        **args: Any,
    ) -> Op:
        """One operation. ``call`` gets it, with the time for it, and notes in it what it saw; ``refusals`` are errors
        which say that certainly nothing was done. UnexpectedError if it ends in a way that no fault excuses."""
        workload = FINAL if self.is_final else work.name
        op = self.history.begin(self.name, workload, kind, work.table, key, self.now(), args)
        timeout_s = self.timeout_s * part
        if self.rng.random() < SHORT_TIMEOUT_RATE and not self.is_final:
            timeout_s *= SHORT_TIMEOUT_PART
        try:
            await call(op, timeout_s)
        except ackord.Error as error:
            await self._failed(op, error, is_read, refusals)
        except UnexpectedError as error:
            self._end(op, UNKNOWN, error)
            raise
        else:
            self._end(op, OK)
        if self.is_final and op.outcome != OK:
            raise UnexpectedError(f"all is well, and yet: {op}")
        return op

    async def _failed(
        self, op: Op, error: ackord.Error, is_read: bool, refusals: tuple[type[ackord.Error], ...]
    ) -> None:
        op.version = op.columns = op.rows = None
        if isinstance(error, ackord.VersionCollected):
            op.note = COLLECTED
        if isinstance(error, ackord.Conflict):
            self._end(op, CONFLICT, error)
        elif isinstance(error, ackord.OutcomeUnknown) and not is_read:
            self._end(op, UNKNOWN, error)
        elif isinstance(error, (ackord.Unavailable, *refusals)):
            self._end(op, FAILED, error)
        else:
            self._end(op, UNKNOWN, error)
            raise UnexpectedError(f"{op}: {error!r}") from error
        if not isinstance(error, ackord.Conflict):
            await asyncio.sleep(FAILURE_PAUSE_S)

    def _end(self, op: Op, outcome: str, error: BaseException | None = None) -> None:
        text = "" if error is None else f"{type(error).__name__}: {error}"
        self.history.end(op, outcome, self.now(), error=text, note=op.note)


class Work:
    """One way of using whole rows. ``clients_count`` and ``pause_s`` are for a run of this work alone; among others it
    is smaller. ``aim_share``: how often faults of such a run choose the node that coordinates the work's tablet."""

    name: ClassVar[str]
    clients_count: ClassVar[int] = 16
    pause_s: ClassVar[float] = 0.2
    aim_share: ClassVar[float] = 0.6

    def __init__(self, history: History, *, is_alone: bool) -> None:
        self.history = history
        self.is_alone = is_alone
        self.table = self.name

    async def create(self, store: ackord.Store) -> None:
        """The table, and what stands in it before the clients begin. May be called again."""
        raise NotImplementedError

    async def step(self, client: Client) -> None:
        """One call or a few."""
        raise NotImplementedError

    async def read_final(self, client: Client) -> None:
        """All that there is, by a client that reads from one node."""
        raise NotImplementedError

    def judge(self) -> list[str]:
        """What is wrong with the history, the final reads included."""
        raise NotImplementedError

    def tell(self) -> str:
        """One line of figures, after the last reads."""
        raise NotImplementedError

    def count(self, kind: str, *outcomes: str) -> int:
        return sum(
            op.kind == kind and op.workload != FINAL and op.outcome in outcomes for op in self.history.ops
        )

    async def run(self, client: Client) -> None:
        while not client.is_over():
            await self.step(client)
            await asyncio.sleep(client.rng.random() * 2 * client.pause_s)


def real_time(ops: Iterable[Op]) -> list[str]:
    """Of operations on one partition, each with its ``version``: what was answered before another was asked has no
    greater version, and a smaller one if both wrote. Reads have a note or rows or columns; writes have none of them."""
    reports = []
    known = sorted((op for op in ops if op.version is not None), key=lambda op: op.began)
    ended = sorted((op for op in known if op.outcome == OK and op.ended is not None), key=_ended)
    tops: list[Op] = list(accumulate(ended, _later))
    for op in known:
        before = bisect_left(ended, op.began, key=_ended)
        if before == 0:
            continue
        top = tops[before - 1]
        is_late = _version(op) < _version(top) or (_is_write(op) and _version(op) == _version(top))
        if is_late:
            reports.append(f"{op} has version {op.version}\n    after {top} had version {top.version}")
    return reports


def _later(one: Op, other: Op) -> Op:
    return other if _version(other) > _version(one) else one


def _ended(op: Op) -> int:
    assert op.ended is not None
    return op.ended


def _version(op: Op) -> int:
    assert op.version is not None
    return op.version


def _is_write(op: Op) -> bool:
    return op.kind not in (GET, SCAN)


class Steps:
    """A value that changed at certain versions."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[int, Any]] = []

    def set(self, version: int, value: Any) -> None:
        insort(self._steps, (version, value), key=_first)

    def at(self, version: int) -> tuple[int, Any] | None:
        """The last change up to that version."""
        at = bisect_left(self._steps, version + 1, key=_first)
        return self._steps[at - 1] if at else None


def _first(step: tuple[int, Any]) -> int:
    return step[0]
