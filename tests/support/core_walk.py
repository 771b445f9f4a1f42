"""One random walk: a cluster from a seed, clients, faults for a while, then healing and the proof of liveness.

python -m tests.support.core_walk SEED [COUNT]      replays one seed, or runs COUNT from it on
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ackord.wire.limits import Limits
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core import effects as e
from ackord_node.core import log as core_log
from ackord_node.core.copy_meta import CopyMeta
from ackord_node.core.types import LogLimits, Timing
from tests.support.core_clients import KEYS
from tests.support.core_cluster import Cluster, Node, Profile
from tests.support.core_keepers import Keeper

FAULTS_S = 9.0
TINY_LOG = LogLimits(
    memory_bytes=600,
    disk_bytes=500,
    append_bytes=500,
    inflight_bytes=3000,
    entry_bytes=300,
    snapshot_chunk_bytes=200,
)


FAULTS = {
    "crash": 10,
    "pause": 8,
    "cut": 6,
    "one-way": 4,
    "isolate": 4,
    "service": 6,
    "session": 6,
    "hand over": 4,
    "leave": 2,
    "slow disk": 2,
    "stuck disk": 4,
    "corrupt": 2,
    "bounce": 2,
    "force": 1,
}
ROLLBACK_FAULTS = {"rollback": 10, "hand over": 1, "slow disk": 1, "session": 1}


@contextmanager
def small_marks(size: int = 250) -> Iterator[None]:
    """Lets logs of a few entries be trimmed, so that snapshots happen."""
    before = core_log.MARK_BYTES
    core_log.MARK_BYTES = size
    try:
        yield
    finally:
        core_log.MARK_BYTES = before


class Walk:
    def __init__(self, seed: int, options: TableOptions = DEFAULT_OPTIONS, keepers: int = 0) -> None:
        """``keepers``: so many clients keep rows (rule R19)."""
        self.seed = seed
        c = Cluster(seed)
        rng = c.rng
        # What the walk is about: every fault at once, clocks that drift beyond the bound (only reads may suffer),
        # or one disk at a time that rolls back unnoticed, which the rules bear only while the others are reachable.
        self.kind = rng.choices(("all", "drift", "rollback"), (8, 1, 1))[0]
        nodes = 5 if rng.random() < 0.15 else 3
        timing = Timing(
            balance_delay=rng.choice((1e9, 1.5)),
            lease=rng.choice((0.3, 0.3, 1.0)),
            confirm_timeout=rng.choice((0.4, 1.0)),
        )
        timing = replace(timing, rejoin_pause_max=2.0)
        self.profile = Profile(
            nodes=nodes,
            min_in_sync=rng.choice((1, 2, 2)) if nodes == 3 else rng.choice((1, 2, 3)),
            is_chaotic=rng.random() < 0.5 and self.kind != "rollback",
            session_timeout=rng.choice((0.4, 1.5)),
            delay_max=rng.choice((0.003, 0.003, 0.05)),
            disk_delay_max=rng.choice((0.003, 0.01, 0.08)),
            drift=timing.drift_max * (20 if self.kind == "drift" else rng.choice((0.0, 0.95))),
            timing=timing,
            log=TINY_LOG if rng.random() < 0.6 else LogLimits(),
            limits=replace(Limits(), clients_count=rng.choice((2, 4096))),
            options=options,
        )
        self.cluster = Cluster(seed, self.profile)
        self.cluster.oracle.judges_reads = self.kind != "drift"
        self._faults = ROLLBACK_FAULTS if self.kind == "rollback" else FAULTS
        self._fault_rate = rng.choice((1.6, 5.0))  # a second
        self.faults: dict[str, int] = {}
        self._is_calm = False
        for number in range(keepers):
            Keeper(self.cluster, seed * 10 + number, self.profile.drift * (1, -1)[number % 2])

    def run(self) -> Walk:
        with small_marks():
            self._faulty_phase()
            self._heal()
            self._live_phase()
            if self.kind == "all" and self.cluster.rng.random() < 0.2:
                self._drop_phase()
        return self

    # ------------------------------------------------------------------------ safety phase

    def _faulty_phase(self) -> None:
        c = self.cluster
        if c.rng.random() < 0.8:
            c.form()
        else:
            c.start()
        c.has_faults = c.has_clients = True
        for client in c.clients:
            client.start()
        for keeper in c.keepers:
            keeper.start(KEYS)
        c.at(0.1, self._fault)
        c.at(0.05, self._read)
        c.run(FAULTS_S)

    def _read(self) -> None:
        c = self.cluster
        if self._is_calm:
            return
        for node in c.nodes.values():
            if node.is_up and not node.is_paused:
                c.read(node.name, *c.rng.sample(KEYS, c.rng.choice((1, 2, 5))))
        c.at(c.rng.expovariate(20.0), self._read)

    def _fault(self) -> None:
        c, rng = self.cluster, self.cluster.rng
        if self._is_calm:
            return
        node = rng.choice(list(c.nodes.values()))
        if rng.random() < 0.4:
            node = c.nodes.get(c.service.descriptor.coordinator or "", node)
        name = rng.choices(list(self._faults), list(self._faults.values()))[0]
        fault: Callable[[Node], bool] = getattr(self, "_" + name.replace(" ", "_").replace("-", "_"))
        if fault(node):
            self.faults[name] = self.faults.get(name, 0) + 1
            c.trace.append(f"{c.now:.6f} ** {name} {node.name}")
        is_burst = rng.random() < 0.25  # what one fault leaves half done meets the next
        c.at(rng.uniform(0.0, 0.1) if is_burst else rng.expovariate(self._fault_rate), self._fault)

    def _is_spare(self, node: Node) -> bool:
        """Whether this node's copy may be lost: another intact in-sync copy stays, whatever set is decided."""
        c = self.cluster
        for descriptor in (c.service.descriptor, *c.service.under_way):
            if descriptor.in_sync:
                others = [m for m in descriptor.in_sync if m.node != node.name]
                if not any(
                    c.nodes[m.node].disk.meta.copy_id == m.copy_id
                    and not c.nodes[m.node].disk.meta.suspect
                    and (not c.nodes[m.node].is_up or c.nodes[m.node].core.state.copy_id == m.copy_id)
                    for m in others
                ):
                    return False
        return True

    def _crash(self, node: Node) -> bool:
        c, rng = self.cluster, self.cluster.rng
        if not node.is_up:
            return False
        c.crash(node.name)
        chance = rng.random()
        if chance < 0.15 and self._is_spare(node):
            c.lose_disk(node.name)
        elif chance < 0.25 and self._is_spare(node) and node.disk.states:
            c.roll_back(node.name, rng.randint(1, 8), is_suspect=True)
        c.at(rng.expovariate(1.0), lambda: c.start(node.name) if not self._is_calm else None)
        return True

    def _pause(self, node: Node) -> bool:
        c = self.cluster
        if node.is_paused or not node.is_up:
            return False
        c.pause(node.name)
        incarnation = node.incarnation
        c.at(
            c.rng.expovariate(0.8),
            lambda: c.resume(node.name) if node.is_paused and node.incarnation == incarnation else None,
        )
        return True

    def _cut(self, node: Node) -> bool:
        self.cluster.cut(node.name)
        self.cluster.at(self.cluster.rng.expovariate(0.8), self.cluster.mend)
        return True

    def _one_way(self, node: Node) -> bool:
        c = self.cluster
        other = c.rng.choice([x for x in c.nodes if x != node.name])
        c.cuts.add((node.name, other))
        c.refresh_links()
        c.at(c.rng.expovariate(0.8), c.mend)
        return True

    def _isolate(self, node: Node) -> bool:
        """The node is cut off from all others and its session is gone at once; it knows of neither."""
        c = self.cluster
        self._cut(node)
        c.service.end_session(node, node.session)
        c.service.disconnect(node)
        c.at(c.rng.expovariate(0.8), lambda: c.service.connect(node))
        return True

    def _service(self, node: Node) -> bool:
        c = self.cluster
        away = list(c.nodes.values()) if c.rng.random() < 0.3 else [node]
        for x in away:
            c.service.disconnect(x)
            c.at(c.rng.expovariate(0.7), lambda x=x: c.service.connect(x))  # type: ignore[misc]
        return True

    def _session(self, node: Node) -> bool:
        c = self.cluster
        holder = c.nodes[c.service.lock[0]] if c.service.lock else node
        c.service.end_session(holder, holder.session)
        return True

    def _hand_over(self, node: Node) -> bool:
        c = self.cluster
        leader = c.coordinator()
        if leader is None or leader.is_paused:
            return False
        c.step(leader, e.HandOver(c.rng.choice([None, *c.nodes])))
        return True

    def _leave(self, node: Node) -> bool:
        c = self.cluster
        if not node.is_up or node.is_paused:
            return False
        c.step(node, e.Leave())
        incarnation = node.incarnation

        def stop() -> None:
            if node.is_up and node.incarnation == incarnation:
                c.crash(node.name)
                c.at(0.3, lambda: c.start(node.name) if not self._is_calm else None)

        c.at(c.rng.uniform(0.3, 3.0), stop)
        return True

    def _slow_disk(self, node: Node) -> bool:
        c = self.cluster
        if not node.is_up or node.is_paused:
            return False
        c.step(node, e.DiskSlow("the disk is slow"))
        c.to_node(node, e.DiskWell(), c.rng.expovariate(0.7))
        return True

    def _stuck_disk(self, node: Node) -> bool:
        node.disk_is_stuck = True

        def well() -> None:
            node.disk_is_stuck = False
            if node.is_up and not node.disk_is_busy and not node.is_paused:
                self.cluster.step(node, e.Tick())
                self.cluster._kick_disk(node)

        self.cluster.at(self.cluster.rng.expovariate(0.8), well)
        return True

    def _corrupt(self, node: Node) -> bool:
        c = self.cluster
        if not node.is_up or node.is_paused or not self._is_spare(node):
            return False
        c.step(node, e.Corrupted("a record failed its checksum"))
        return True

    def _bounce(self, node: Node) -> bool:
        """Everything stops at once, as after a power cut."""
        c = self.cluster
        for x in c.nodes.values():
            if x.is_up:
                c.crash(x.name)
                c.at(c.rng.expovariate(1.5), lambda x=x: c.start(x.name) if not self._is_calm else None)  # type: ignore[misc]
        return True

    def _force(self, node: Node) -> bool:
        return self.cluster.force(node.name)

    def _rollback(self, node: Node) -> bool:
        """The disk is an older state of itself and does not say so. The others know more than it, and are there."""
        c = self.cluster
        if not c.is_well() or not node.disk.states:
            return False
        states = c.rng.randint(1, 8)
        older = node.disk.states[-min(states, len(node.disk.states))]
        end = max([CopyMeta.decode(older.meta).applied, *older.log])
        others = [x.core.state.commit for x in c.nodes.values() if x is not node]
        if end < len(c.oracle.truth) and max(others) <= end:
            return False
        c.crash(node.name)
        c.roll_back(node.name, states, is_suspect=False)
        c.at(c.rng.choice((0.01, 0.5, 2.5)), lambda: c.start(node.name) if not self._is_calm else None)
        return True

    # ---------------------------------------------------------------------- liveness phase

    def _heal(self) -> None:
        c = self.cluster
        self._is_calm, c.has_faults, c.has_clients = True, False, False
        c.mend()
        for node in c.nodes.values():
            node.disk_is_stuck = False
            if node.is_paused:
                c.resume(node.name)
            if node.is_up and node.core.state.is_leaving:
                c.crash(node.name)
            if node.is_up:
                c.step(node, e.DiskWell())
                if not node.disk_is_busy:
                    c._kick_disk(node)
        c.start()
        for node in c.nodes.values():
            c.service.connect(node)
            self._poll(node)

    def _poll(self, node: Node) -> None:
        self.cluster.service.tell(node)
        self.cluster.at(1.0, lambda: self._poll(node))

    def _live_phase(self) -> None:
        c = self.cluster
        c.run_until(c.is_well, 60, "every replica is in sync and serves")
        for client in c.clients:
            for op in client.open:
                op.attempts = max(op.attempts, 1)
        op = c.put_done()
        c.run_until(c.is_well, 20, "the last write reaches every replica")
        c.run(2.0)
        c.run_until(c.is_well, 20, "it stays well")
        for name in c.nodes:
            reader = c.read(name, op.key)
            assert list(reader.rows.values()) == [c.oracle.rows.get(op.key)], f"{name} serves the last write"
        c.check_end()

    def _drop_phase(self) -> None:
        """The table is dropped while some nodes cannot see it (rule R18)."""
        c = self.cluster
        c.has_clients = True
        for client in c.clients:
            client.start()
        for node in c.nodes.values():
            if c.rng.random() < 0.4:
                c.service.disconnect(node)
                c.at(c.rng.uniform(0, 8), lambda node=node: c.service.connect(node))  # type: ignore[misc]
            elif c.rng.random() < 0.3:
                self._pause(node)
        before = c.mark_dropped()
        names = [member.node for member in before.in_sync]

        def has_stopped() -> bool:
            return any(c.nodes[name].core.state.stopped_reason == "dropped" for name in names)

        c.run_until(has_stopped, 20, "some member stops")
        c.run(self.profile.timing.promise * (1 + self.profile.drift))
        c.oracle.is_dropped = True
        c.run(3.0)

    def summary(self) -> dict[str, int]:
        o, c = self.cluster.oracle, self.cluster
        return {
            "steps": c.steps,
            "entries": len(o.truth),
            "acks": o.acks,
            "reads": o.reads,
            "kept reads": sum(keeper.hits for keeper in c.keepers),
            "told": sum(keeper.told_count for keeper in c.keepers),
            "epochs": c.service.descriptor.epoch,
            "changes": c.service.version,
            **self.faults,
        }


def command(seed: int) -> str:
    return f"PYTHONPATH=client:node python -m tests.support.core_walk {seed}"


def main() -> None:
    first = int(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    begin = time.monotonic()
    total: dict[str, int] = {}
    failed = 0
    for seed in range(first, first + count):
        walk = Walk(seed)
        try:
            walk.run()
        except (AssertionError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
            failed += 1
            print(f"seed {seed}: {type(error).__name__} {str(error)[:700]}", flush=True)
            if count == 1:
                print("\n".join(walk.cluster.trace[-int(os.environ.get("ACKORD_SIM_TRACE", "60")) :]))
                raise
        for name, number in walk.summary().items():
            total[name] = total.get(name, 0) + number
    print(f"{count} seeds, {failed} failed, {time.monotonic() - begin:.1f} s, {total}")


if __name__ == "__main__":
    main()
