"""Power cuts of a loaded cluster: real nodes under strace, a real ZooKeeper, writers that record every answer.

A cut kills one, two or all nodes in the middle of the load. Each trace up to its process's end is a consistent cut of
the cluster's history, since a dead process tells nobody anything; what each disk may hold then takes the place of
the data folder, and the node starts on it. The writers go on throughout. In the end every acknowledged row must be
on every node with its version, whatever was cut, and every tablet fully in sync again.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import ackord
from tests.powerloss.disk import MODELS, Disk
from tests.powerloss.engine_cuts import await_trace
from tests.powerloss.trace import calls_of, command
from tests.support.cluster import RealCluster, RealNode
from tests.support.cluster_load import Writers

KEY: dict[str, type | str] = {"writer": int, "n": int}
WRITERS_COUNT = 12
SPLIT_AT = (4, 8)
READY_S_MAX = 60.0  # a refill of every copy on a busy machine included
_SUSPECT_LOG = "the store's log was refused"
_VOID_LOG = "the store is void"


@dataclass(slots=True)
class ClusterFigures:
    cuts: Counter[str] = field(default_factory=Counter)  # how many nodes were cut at once
    models: Counter[str] = field(default_factory=Counter)  # images by model
    outcomes: Counter[str] = field(default_factory=Counter)  # what the nodes said of their disks
    acknowledged: int = 0
    unknown: int = 0


class TracedNode:
    """A node whose every life is traced from a known disk."""

    def __init__(self, node: RealNode) -> None:
        self.node = node
        self._base: Path | None = None
        self._life = 0

    @property
    def _trace_path(self) -> Path:
        return self.node.folder / f"{self.node.name}.trace{self._life}"

    def start(self) -> None:
        self._life += 1
        self.node.data.mkdir(parents=True, exist_ok=True)
        self.node.wrapper = tuple(command(self._trace_path, []))
        self.node.start()

    def lose_power(self, chance: random.Random) -> str:
        """After the process has ended: puts what the disk may hold in the place of its folder; the model."""
        await_trace(self._trace_path)
        disk = Disk(self.node.data, self._base)
        with self._trace_path.open() as lines:
            disk.replay(calls_of(lines))
        disk.check_against(self.node.data)
        model = chance.choice(MODELS)
        base = self.node.folder / f"{self.node.name}.base{self._life}"
        disk.leave(disk.last, model, chance, base)
        shutil.rmtree(self.node.data)
        shutil.copytree(base, self.node.data)
        if self._base is not None:
            shutil.rmtree(self._base)
        self._base = base
        self._trace_path.unlink()
        return model


class ClusterCampaign:
    def __init__(self, seed: int) -> None:
        self.figures = ClusterFigures()
        self._chance = random.Random(seed)
        self._cluster = RealCluster()
        self._traced = [TracedNode(node) for node in self._cluster.nodes.values()]
        self._writers: list[Writers] = []

    async def run(self, cuts: int, *, nodes_cut: int | None = None) -> ClusterFigures:
        """``nodes_cut`` nodes at each cut, or now one and now all."""
        try:
            await asyncio.to_thread(self._start)
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(ackord.connect(self._cluster.urls))
                each = [
                    await stack.enter_async_context(ackord.connect(self._cluster.urls, reads=f"node:{name}"))
                    for name in self._cluster.nodes
                ]
                for number in range(cuts):
                    await self._round(number, store, each, nodes_cut or self._chance.choice((1, 2, 3, 3)))
        finally:
            await asyncio.to_thread(self._cluster.close)
        return self.figures

    def _start(self) -> None:
        self._cluster.zookeeper.start()
        for traced in self._traced:
            traced.start()
        self._cluster.wait_ready(READY_S_MAX)

    async def _round(self, number: int, store: ackord.Store, each: list[ackord.Store], count: int) -> None:
        """One cut under load on a new table, then all tables of all rounds are compared."""
        name = f"t{number}"
        await store.create_table(name, KEY, split_at=SPLIT_AT)
        async with Writers(store.table(name), count=WRITERS_COUNT, split_at=SPLIT_AT) as writers:
            self._writers.append(writers)
            await asyncio.sleep(self._chance.uniform(0.3, 1.5))
            await asyncio.to_thread(self._cut, self._chance.sample(self._traced, count))
            for done in range(number + 1):
                await asyncio.to_thread(self._cluster.wait_in_sync, f"t{done}", READY_S_MAX)
        for before in self._writers:
            await before.verify(each)
        self.figures.cuts[f"{count} nodes"] += 1
        self.figures.acknowledged += writers.acks_count
        self.figures.unknown += len(writers.unknown)

    def _cut(self, traced: list[TracedNode]) -> None:
        before = {one: len(one.node.log()) for one in traced}
        for one in traced:
            one.node.kill()
        for one in traced:
            one.node.wait_exit()
        for one in traced:
            self.figures.models[one.lose_power(self._chance)] += 1
        for one in traced:
            one.start()
        self._cluster.wait_ready(READY_S_MAX)
        for one, length in before.items():
            log = one.node.log()[length:]
            said = "suspect" if _SUSPECT_LOG in log else "void" if _VOID_LOG in log else "opened"
            self.figures.outcomes[said] += 1
