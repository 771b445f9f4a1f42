"""The nemesis: makes the faults of a plan happen, each kind at random moments of its own, and undoes all of them.

Every kind has its own random stream, drawn from the seed and its name: leaving one kind out (as the shrinker does)
leaves the moments of the others as they were.

Assumptions, each where it is used: disks are damaged only as ``Damage`` allows; a disk is rolled back silently only
while everything else is well, because rule R13 can notice that only with the help of the other members.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ackord_node.core import effects as e
from tests.sim.cluster import Cluster, SimNode
from tests.sim.damage import Damage
from tests.sim.kernel import Process
from tests.sim.network import NetworkKnobs, Pair
from tests.sim.plan import EVENT_KINDS, Plan
from tests.sim.rollback import Rollback

HIDDEN_FLIPS = ("row", "log", "request", "meta", "record")
TURN_CALLBACKS_MAX = 12


class Nemesis:
    def __init__(self, cluster: Cluster, plan: Plan, clients: list[Process]) -> None:
        self.cluster = cluster
        self.plan = plan
        self.clients = clients
        self.damage = Damage(cluster)
        self.rollback = Rollback(cluster, self.damage)
        self.is_over = False
        self._undo: dict[int, Callable[[], None]] = {}  # of faults that last
        self._undo_count = 0
        self._rngs = {kind: random.Random(f"{plan.seed} {kind}") for kind in EVENT_KINDS}
        self._acts: dict[str, Callable[[random.Random], bool]] = {
            "partition full": self._partition_full,
            "partition one-way": self._partition_one_way,
            "partition bridged": self._partition_bridged,
            "link clogged": self._clog,
            "crash": lambda rng: self._down(rng, power_loss=False),
            "power lost": lambda rng: self._down(rng, power_loss=True),
            "cluster without power": self._all_down,
            "fsync error": self._fsync_error,
            "bit flip": self._bit_flip,
            "disk lost": self._disk_lost,
            "disk rolled back": self._roll_back,
            "disk stalled": self._stall,
            "disk full": self._full,
            "session expired": self._expire,
            "coordination gone": self._coordination_gone,
            "coordination unreachable": self._coordination_unreachable,
            "pause": self._pause,
            "client paused": self._pause_client,
            "clock rate changed": self._clock_rate,
            "wall clock jump": self._wall_clock,
            "planned restart": self._planned_restart,
            "hand-over": self._hand_over,
        }

    @property
    def world(self) -> Any:
        return self.cluster.world

    def begin(self) -> None:
        for kind in EVENT_KINDS:
            if self.plan.has(kind):
                self._plan_next(kind)
        if self.plan.has("clocks beyond rho"):
            self._drift_beyond(random.Random(f"{self.plan.seed} drift"))

    def _plan_next(self, kind: str) -> None:
        rate = EVENT_KINDS[kind] / 10 * self.plan.kinds[kind]
        self.world.after(self._rngs[kind].expovariate(rate), self._act, kind)

    def _act(self, kind: str) -> None:
        if self.is_over:
            return
        if not self.rollback.is_quiet and self._acts[kind](self._rngs[kind]):
            self.cluster.trace.fault(kind, self._text)
        self._text = ""
        self._plan_next(kind)

    _text = ""

    # -------------------------------------------------------------------------- lasting faults

    def _for(self, seconds: float, undo: Callable[[], None]) -> None:
        """``undo`` ends the fault: after this time, or when all faults end."""
        number = self._undo_count
        self._undo_count += 1
        self._undo[number] = undo
        self.world.after(seconds, self._end, number)

    def _end(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()

    def heal(self) -> None:
        """All faults end, and everything that is down is started."""
        self.is_over = True
        for number in list(self._undo):
            self._end(number)
        cluster = self.cluster
        cluster.network.mend_all()
        cluster.network.knobs = NetworkKnobs(delay_s=cluster.network.knobs.delay_s)
        self._calm_service()
        for node in cluster.nodes.values():
            node.disk.capacity_bytes = None
            node.disk.fail_next_sync = False
            if node.is_up and node.is_leaving:
                continue  # it starts again when it has stopped
            if node.is_up and node.process is not None:
                node.process.resume()
                if abs(node.process.rate - 1) > self.plan.knobs.timing.drift_max:
                    node.process.set_rate(1.0)
            else:
                self._start(node)
        for process in self.clients:
            process.resume()

    def _calm_service(self) -> None:
        service = self.cluster.service
        service.set_down(False)
        for name in self.cluster.nodes:
            service.set_reachable(name, True)
        service.unknown_rate = service.watch_delay = service.watch_loss_rate = 0.0

    def _start(self, node: SimNode) -> None:
        if not node.is_up:
            node.start()

    def keep_up(self) -> None:
        """After healing: what stops by itself (a planned stop, a void store) is started again."""
        for node in self.cluster.nodes.values():
            self._start(node)
        self.world.after(0.2, self.keep_up)

    def crashed(self, node: SimNode) -> None:
        """However it came about: an operator or a supervisor starts the process again."""
        self.world.after(self.world.rng.uniform(0.05, 1.5), self._start, node)

    # -------------------------------------------------------------------------------- choosing

    def _node(self, rng: random.Random) -> SimNode:
        """Any node; the coordinator of some tablet more often."""
        nodes = list(self.cluster.nodes.values())
        if rng.random() < 0.4:
            leaders = [n for n in nodes if any(h.replica.coordinator for h in n.hosts().values())]
            if leaders:
                return rng.choice(leaders)
        return rng.choice(nodes)

    def _seconds(self, rng: random.Random) -> float:
        """How long a fault lasts: around the lease and the session timeout, shorter and longer."""
        timing = self.plan.knobs.timing
        mean = rng.choice((0.1, timing.lease, timing.lease * 2, self.plan.knobs.session_timeout_ms / 1000))
        return rng.expovariate(1 / mean) + 0.01

    # --------------------------------------------------------------------------------- network

    def _cut(self, pairs: list[Pair], rng: random.Random) -> bool:
        self._text = " ".join(f"{a}>{b}" for a, b in pairs)
        self._for(self._seconds(rng), self.cluster.network.cut(pairs))
        return True

    def _partition_full(self, rng: random.Random) -> bool:
        """One side of the nodes, each side with some of the clients, perhaps without the coordination service."""
        names = list(self.cluster.nodes)
        side = set(rng.sample(names, rng.randint(1, len(names) - 1)))
        side |= {c.name for c in self.clients if rng.random() < 0.3}
        everyone = names + [c.name for c in self.clients]
        pairs = [(a, b) for a in everyone for b in everyone if (a in side) != (b in side)]
        if rng.random() < 0.3:
            for name in sorted(side & set(names)):
                self._cut_off(name, rng)
        return self._cut(pairs, rng)

    def _partition_one_way(self, rng: random.Random) -> bool:
        names = list(self.cluster.nodes)
        node = self._node(rng).name
        others = [name for name in names if name != node]
        others = rng.sample(others, rng.randint(1, len(others)))
        pairs = [(node, other) for other in others]
        return self._cut(pairs if rng.random() < 0.5 else [(b, a) for a, b in pairs], rng)

    def _partition_bridged(self, rng: random.Random) -> bool:
        """Two sides that only one node can reach both."""
        names = list(self.cluster.nodes)
        rng.shuffle(names)
        rest = names[1:]  # without the bridge
        half = rng.randint(1, len(rest) - 1)
        pairs = [(a, b) for a in rest[:half] for b in rest[half:]]
        return self._cut(pairs + [(b, a) for a, b in pairs], rng)

    def _clog(self, rng: random.Random) -> bool:
        node, other = rng.sample(list(self.cluster.nodes) + [c.name for c in self.clients], 2)
        network = self.cluster.network
        self._text = f"{node}>{other}"
        network.clog((node, other), rng.choice((0.05, 0.2, 1.0)))
        self._for(self._seconds(rng), lambda: network.clog((node, other), 0))
        return True

    # ------------------------------------------------------------------- processes and machines

    def _within_turn(self, node: SimNode, act: Callable[[], None], rng: random.Random) -> None:
        """Now, or in the middle of a turn of its loop: between any two callbacks."""
        process = node.process
        assert process is not None
        if rng.random() < 0.5:
            act()
        else:
            process.stop_within_turn(rng.randint(1, TURN_CALLBACKS_MAX), act)

    def _down(self, rng: random.Random, power_loss: bool) -> bool:
        node = self._node(rng)
        if not node.is_up:
            return False
        is_silent = power_loss and rng.random() < 0.5
        self._text = node.name
        self._within_turn(node, lambda: self._crash(node, power_loss, is_silent), rng)
        return True

    def _crash(self, node: SimNode, power_loss: bool, is_silent: bool = False) -> None:
        # A torn end that looks like damage makes the whole store suspect: only while others are intact.
        node.disk.garbled_rate = 0.1 if self.damage.may_damage(node, is_hidden=False) else 0.0
        node.crash(power_loss, is_silent)

    def _all_down(self, rng: random.Random) -> bool:
        for node in self.cluster.nodes.values():
            if node.is_up:
                self._crash(node, power_loss=True)
        return True

    def _pause(self, rng: random.Random) -> bool:
        node = self._node(rng)
        process = node.process
        if process is None or not process.is_alive or process.is_paused:
            return False
        self._text = node.name
        seconds = self._seconds(rng)

        def pause() -> None:
            process.pause()
            self._for(seconds, process.resume)

        self._within_turn(node, pause, rng)
        return True

    def _pause_client(self, rng: random.Random) -> bool:
        process = rng.choice(self.clients)
        if process.is_paused:
            return False
        self._text = process.name
        process.pause()
        self._for(self._seconds(rng), process.resume)
        return True

    def _planned_restart(self, rng: random.Random) -> bool:
        node = self._node(rng)
        if not node.is_serving or node.is_leaving:
            return False
        self._text = node.name
        node.stop()
        return True

    def _hand_over(self, rng: random.Random) -> bool:
        led = [
            (node, host)
            for node in self.cluster.nodes.values()
            for _, host in sorted(node.hosts().items())
            if host.replica.coordinator is not None
        ]
        if not led:
            return False
        node, host = rng.choice(led)
        successor = rng.choice([None, *self.cluster.nodes])
        self._text = f"{node.name} tablet {host.tablet:x} to {successor}"
        assert node.process is not None
        node.process.post(host.feed, e.HandOver(successor))
        return True

    # ----------------------------------------------------------------------------------- disks

    def _fsync_error(self, rng: random.Random) -> bool:
        node = self._node(rng)
        if not node.is_up:
            return False
        self._text = node.name
        # What the failed sync leaves may look damaged, as after a power loss.
        node.disk.garbled_rate = 0.0
        node.disk.fail_next_sync = True
        return True

    def _bit_flip(self, rng: random.Random) -> bool:
        node = self._node(rng)
        hidden = (*HIDDEN_FLIPS, "version") if self.plan.options.has_history else HIDDEN_FLIPS
        kind = rng.choice(("wal", "wal", "manifest", *hidden))
        is_hidden = kind in hidden or node.is_up
        if kind not in hidden and node.is_up and self.plan.knobs.min_in_sync == 1:
            return False  # a copy that is made here later may be a tablet's only one, and is lost with the process
        if not self.damage.may_damage(node, is_hidden):
            return False
        hit = node.disk.flip_bit(rng, kind)
        if hit is None:
            return False
        self._text = f"{node.name} {hit}"
        if is_hidden:
            self.damage.mark(node)
        return True

    def _disk_lost(self, rng: random.Random) -> bool:
        node = self._node(rng)
        if not self.damage.may_damage(node, is_hidden=False):
            return False
        self._text = node.name
        node.crash(power_loss=True, is_silent=rng.random() < 0.3)
        node.disk.lose()
        return True

    def _roll_back(self, rng: random.Random) -> bool:
        node = self._node(rng)
        if not self.rollback.happens_to(node, rng):
            return False
        self._text = node.name
        return True

    def _stall(self, rng: random.Random) -> bool:
        node = self._node(rng)
        worker = node.worker
        if worker is None:
            return False
        self._text = node.name
        worker.stalled_until = self.world.now + self._seconds(rng)

        def flow() -> None:
            worker.stalled_until = 0.0

        self._for(worker.stalled_until - self.world.now, flow)
        return True

    def _full(self, rng: random.Random) -> bool:
        node = self._node(rng)
        disk = node.disk
        if not node.is_up:
            return False
        self._text = node.name
        disk.capacity_bytes = disk.used_bytes() + rng.randint(0, 2000)

        def roomy() -> None:
            disk.capacity_bytes = None

        self._for(self._seconds(rng), roomy)
        return True

    # --------------------------------------------------------------------- coordination service

    def _expire(self, rng: random.Random) -> bool:
        node = self._node(rng)
        self._text = node.name
        self.cluster.service.expire(node.name)
        return True

    def _coordination_gone(self, rng: random.Random) -> bool:
        service = self.cluster.service
        service.set_down(True)
        self._for(self._seconds(rng), lambda: service.set_down(False))
        return True

    def _coordination_unreachable(self, rng: random.Random) -> bool:
        node = self._node(rng)
        self._text = node.name
        self._cut_off(node.name, rng)
        return True

    def _cut_off(self, name: str, rng: random.Random) -> None:
        service = self.cluster.service
        service.set_reachable(name, False)
        self._for(self._seconds(rng), lambda: service.set_reachable(name, True))

    # ---------------------------------------------------------------------------------- clocks

    def _clock_rate(self, rng: random.Random) -> bool:
        """Within rho, or beyond it if the seed has that (and then the oracles of reads are suspended)."""
        rho = self.plan.knobs.timing.drift_max * 0.95
        process = self._node(rng).process
        if process is None:
            return False
        if self.plan.has("clocks beyond rho") and rng.random() < 0.5:
            return self._drift_beyond(rng)
        rate = rng.uniform(1 - rho, 1 + rho)
        self.cluster.trace.count("clock drift within rho")
        process.set_rate(rate)
        self._text = f"{process.name} {rate:.4f}"
        return True

    def _drift_beyond(self, rng: random.Random) -> bool:
        process = self._node(rng).process
        if process is None:
            return False
        rate = rng.choice((0.3, 0.7, 1.5, 3.0))
        process.set_rate(rate)
        self._text = f"{process.name} {rate}"
        self.cluster.trace.fault("clock drift beyond rho", self._text)
        return True

    def _wall_clock(self, rng: random.Random) -> bool:
        node = self._node(rng)
        process = node.process
        if process is None:
            return False
        process.wall_ahead_ms += rng.choice((-60_000, -1000, 1000, 60_000))
        node.wall_ahead_ms_max = max(node.wall_ahead_ms_max, process.wall_ahead_ms)
        self._text = f"{process.name} {process.wall_ahead_ms} ms"
        return True
