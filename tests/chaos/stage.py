"""What faults act on: the machines, with a record of what was done when, and who may touch which node.

A fault claims the nodes whose processes it ends or whose files it changes; two faults at once never claim the same
node. A node that ends by itself and is not claimed is started again, as a supervisor would; whether it had a reason
to end is judged (rule R14: only its disk is one).
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.load import Load
from tests.chaos.machines import Machines, NotWhole
from tests.support.cluster import RealNode

EXIT_DISK_FAILED = 70
EXIT_S = 30.0
RESTART_PAUSE_S = 0.5
WATCH_S = 0.1
BUSIEST_SHARE = 0.4


@dataclass(slots=True)
class Band:
    """One fault. Seconds of the run: from its beginning, over its end (nothing is broken any more), until
    everything was in sync again (None: it was not waited for, or not reached)."""

    kind: str
    began_s: float
    ended_s: float | None = None
    whole_s: float | None = None
    details: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # of a mix: the kinds in it

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Exit:
    """A node that ended by itself."""

    node: str
    at_s: float
    code: int
    was_expected: bool


class Stage:
    """``now`` gives the seconds of the run."""

    def __init__(
        self,
        machines: Machines,
        rng: random.Random,
        now: Callable[[], float],
        load: Load,
    ) -> None:
        self.machines = machines
        self.rng = rng
        self.now = now
        self.load = load
        self.bands: list[Band] = []
        self.exits: list[Exit] = []
        self.problems: list[str] = []
        self.outages: list[
            tuple[str, float, float | None]
        ] = []  # node, from, to: it did not run, or was stopped
        self.flips: list[str] = []  # what became of the damage, for each time
        self._claimed: set[str] = set()
        self._released = asyncio.Condition()
        self._excused: set[str] = set()
        self._full: set[str] = set()
        self._noted: set[int] = set()  # processes whose end was judged

    @property
    def names(self) -> list[str]:
        return self.machines.names

    def node(self, name: str) -> RealNode:
        return self.machines.cluster[name]

    def say(self, band: Band, text: str) -> None:
        band.details.append(text)
        print(f"{self.now():8.1f}  {band.kind}: {text}", flush=True)

    # ------------------------------------------------------------------------------------- claims

    @asynccontextmanager
    async def claim(self, count: int = 1, *, busiest: bool | None = None) -> AsyncIterator[list[RealNode]]:
        """``count`` nodes that no other fault has; with the busiest coordinator among them, without, or as it
        comes: more often where the load aims at a tablet."""
        tables, share = self.load.aim or (None, BUSIEST_SHARE)
        ranking = await asyncio.to_thread(self.machines.coordinators, tables)
        if busiest is None:
            busiest = self.rng.random() < share
        async with self._released:
            await self._released.wait_for(lambda: len(self._claimed) + count <= len(self.names))
            free = [name for name in ranking if name not in self._claimed]
            chosen = free[:1] if busiest else []
            chosen += self.rng.sample(
                [name for name in sorted(free) if name not in chosen], count - len(chosen)
            )
            self._claimed.update(chosen)
        try:
            yield [self.node(name) for name in chosen]
        finally:
            async with self._released:
                self._claimed.difference_update(chosen)
                self._released.notify_all()

    @asynccontextmanager
    async def claim_named(self, name: str) -> AsyncIterator[RealNode]:
        async with self._released:
            await self._released.wait_for(lambda: name not in self._claimed)
            self._claimed.add(name)
        try:
            yield self.node(name)
        finally:
            async with self._released:
                self._claimed.discard(name)
                self._released.notify_all()

    # --------------------------------------------------------------------------------- processes

    async def kill(self, node: RealNode) -> None:
        node.kill()
        code = await asyncio.to_thread(node.wait_exit)
        if code != -signal.SIGKILL and node.pid not in self._noted:
            self.note_exit(node, code)
        self._out(node.name)

    async def stop(self, node: RealNode) -> int:
        """A planned stop; the exit code, which must be 0 of a node that serves."""
        node.stop()
        code = await asyncio.to_thread(node.wait_exit, EXIT_S)
        self._out(node.name)
        return code

    def start(self, node: RealNode) -> None:
        if not node.is_running:
            node.start()
        self._back(node.name)

    @asynccontextmanager
    async def paused(self, nodes: Iterable[RealNode]) -> AsyncIterator[None]:
        stopped = list(nodes)
        try:
            for node in stopped:
                node.pause()
                self._out(node.name)
            yield
        finally:
            for node in stopped:
                node.resume()
                self._back(node.name)

    def _out(self, name: str) -> None:
        self.outages.append((name, self.now(), None))

    def _back(self, name: str) -> None:
        for at, (node, since, until) in enumerate(self.outages):
            if node == name and until is None:
                self.outages[at] = (node, since, self.now())

    # -------------------------------------------------------------------------------- supervision

    def excuse(self, node: RealNode) -> None:
        """Its disk is being hurt: it may end by itself until everything is in sync again."""
        self._excused.add(node.name)

    def is_hurt(self, name: str) -> bool:
        """Whether a fault has hurt or filled its disk since everything was in sync last."""
        return name in self._excused or name in self._full

    def excuse_starts(self, names: Iterable[str]) -> None:
        """Their disks are being filled up: none may end for that, but one that starts now may have to give up."""
        self._full.update(names)

    async def supervise(self) -> None:
        """Starts nodes again that ended by themselves, for ever."""
        while True:
            for node in self.machines.nodes:
                if node.name not in self._claimed and not node.is_running:
                    await self._restart(node)
            await asyncio.sleep(WATCH_S)

    async def _restart(self, node: RealNode) -> None:
        code = await asyncio.to_thread(node.wait_exit)
        self.note_exit(node, code)
        self._out(node.name)
        await asyncio.sleep(RESTART_PAUSE_S)
        if node.name not in self._claimed:
            self.start(node)

    def note_exit(self, node: RealNode, code: int) -> None:
        if node.pid in self._noted:
            return
        self._noted.add(node.pid)
        has_reason = node.name in self._excused or (node.name in self._full and _could_not_open(node))
        expected = has_reason and code == EXIT_DISK_FAILED
        self.exits.append(Exit(node.name, round(self.now(), 1), code, expected))
        print(f"{self.now():8.1f}  {node.name} ended by itself with {code}", flush=True)
        if not expected:
            self.problems.append(f"{node.name} ended by itself with {code} at {self.now():.1f} s")

    # -------------------------------------------------------------------------------------- whole

    async def wait_whole(self, band: Band | None, timeout_s: float, *, must: bool) -> bool:
        """Until every replica is in sync. Not to reach that is a violation if it ``must``; then small tables that
        come and go all the time count as well."""
        try:
            await self.machines.wait_whole(timeout_s, None if must else self.load.lasting_tables)
        except NotWhole as error:
            if must:
                self.problems.append(f"at {self.now():.1f} s: {error}")
            print(f"{self.now():8.1f}  {error}", flush=True)
            return False
        self._excused &= self._claimed
        self._full.clear()
        if band is not None:
            band.whole_s = self.now()
        return True


def _could_not_open(node: RealNode) -> bool:
    lines = node.log().rstrip().splitlines()
    return bool(lines) and "cannot open the data folder" in lines[-1] and "No space left" in lines[-1]
