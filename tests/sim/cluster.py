"""A whole cluster of simulated nodes: what app.py wires for one process, and what happens to processes and disks.

A ``SimNode`` is a machine: it keeps its disk while processes (incarnations) come and go. ``Cluster`` starts and
ends them, makes clients' processes, and calls the checks after every step of every replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ackord
from ackord.wire.limits import Limits
from ackord_node.core import effects as e
from ackord_node.core import messages as m
from ackord_node.core.types import LogLimits, Timing
from ackord_node.ports import EngineCorrupt, EngineError, EngineFailed
from ackord_node.runtime.identity import IdentityError, check_folder, check_readable, mark_suspect, read_facts
from ackord_node.runtime.node import Node
from ackord_node.runtime.settings import NodeSettings
from ackord_node.runtime.tablet_host import TabletHost
from tests.sim.coordination import SimCoordination
from tests.sim.disk import SimDisk, SimEngine
from tests.sim.kernel import Process, World
from tests.sim.network import Host, Network, NetworkKnobs
from tests.sim.peers import SimPeerTransport
from tests.sim.service import SimCoordinationService
from tests.sim.streams import Face, NullMetrics, SimEnvironment, SimTransport, ask_peer
from tests.sim.trace import Trace
from tests.sim.worker import SimWorker

CLUSTER = "sim"
_GIVING = frozenset((m.BEACON, m.BEACON_CONFIRM, m.PEER_BEACON, m.PEER_BEACON_CONFIRM))


@dataclass(slots=True)
class ClusterKnobs:
    """What cluster.yaml would say, and how fast the disks are."""

    nodes_count: int = 3
    replicas_count: int = 3
    min_in_sync: int = 2
    timing: Timing = field(default_factory=Timing)
    log_limits: LogLimits = field(default_factory=LogLimits)
    limits: Limits = field(default_factory=Limits)
    session_timeout_ms: int = 3000
    sync_s: tuple[float, float] = (0.0002, 0.002)
    wal_bytes_max: int = 64 * 1024
    clock_rates: tuple[float, float] = (1.0, 1.0)


class _Clock:
    def __init__(self, process: Process) -> None:
        self.now = process.now
        self.wall_ms = process.wall_ms


class CheckedNode(Node):
    """The real node, whose replicas are looked at after every step."""

    on_step: Callable[[TabletHost], None]
    on_rights: Callable[[], None]

    def messages_received(self, node: str, incarnation: int, messages: Sequence[Any]) -> None:
        super().messages_received(node, incarnation, messages)
        if any(message[0] in _GIVING for message in messages):
            self.on_rights()

    def _open(self, tablet: int, schema: Any) -> TabletHost:
        host = super()._open(tablet, schema)
        step, on_step = host.replica.step, self.on_step

        def checked(event: e.Event, now: float) -> list[e.Effect]:
            out = step(event, now)
            on_step(host)
            return out

        host.replica.step = checked  # type: ignore[method-assign]
        return host


class SimNode:
    """One machine of the cluster."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.disk = SimDisk(wal_bytes_max=cluster.knobs.wal_bytes_max)
        self.process: Process | None = None
        self.node: CheckedNode | None = None
        self.engine: SimEngine | None = None
        self.face: Face | None = None
        self.worker: SimWorker | None = None
        self.is_serving = False
        self.is_leaving = False
        self.wall_ahead_ms_max = 0  # of the wall clocks of all its processes
        self.starts_count = 0
        self.checked: dict[int, Any] = {}  # where the invariants were checked last, by tablet

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.is_alive

    # ------------------------------------------------------------------------------- start, end

    def start(self) -> None:
        """A new incarnation, as main() of a new process."""
        assert not self.is_up
        cluster = self.cluster
        low, high = cluster.knobs.clock_rates
        rng = cluster.world.rng
        self.starts_count += 1
        process = Process(cluster.world, self.name, rng.uniform(0, 1000), rng.uniform(low, high))
        self.wall_ahead_ms_max = max(self.wall_ahead_ms_max, 200)
        process.wall_ahead_ms = rng.randint(-200, 200)
        self.process = process
        self.is_serving = self.is_leaving = False
        cluster.network.silent.discard(self.name)
        cluster.network.hosts[self.name] = Host(process)
        cluster.trace.note(f"{self.name} starts ({self.starts_count})")
        process.post(self._boot, process)

    def _boot(self, process: Process) -> None:
        cluster = self.cluster
        engine = SimEngine(self.disk)
        try:
            self._open_checked(engine)
        except EngineCorrupt as error:
            engine.close()
            cluster.trace.note(f"{self.name}: the store is void: {error}")
            engine.set_aside()
            self._open_checked(engine)
        except EngineError as error:
            cluster.trace.note(f"{self.name} cannot open its disk: {error}")
            self.crash(power_loss=False)
            return
        self.engine = engine
        facts = read_facts(engine)
        check_folder(facts, CLUSTER, self.name, "disk")
        peers = [name for name in cluster.nodes if name != self.name]
        transport = SimPeerTransport(cluster.network, process, self.name, peers)
        coordination = SimCoordination(cluster.service, process, self.name, cluster.knobs.session_timeout_ms)
        self.worker = SimWorker(process, self.disk, cluster.knobs.sync_s)
        metrics = NullMetrics()
        node = self.node = CheckedNode(
            cluster.settings(self.name),
            _Clock(process),
            engine,
            coordination,
            transport,
            metrics,
            facts,
            self._crashed_itself,
            lambda target, path: ask_peer(cluster.network, process, self.name, target, path),
            self.worker,
            process.rng.getrandbits,
        )
        node.on_step = lambda host: cluster.stepped(self, host)
        node.on_rights = lambda: cluster.on_rights()
        self.face = Face(node, process, metrics)
        host = cluster.network.hosts[self.name]
        host.peers, host.face = transport, self.face
        process.start(self._live(node, process))

    def _open_checked(self, engine: SimEngine) -> None:
        """As the application does it."""
        engine.open()
        check_readable(engine)
        if engine.suspect:
            self.cluster.trace.note(f"{self.name}: the store is suspect")
            mark_suspect(engine)
            self.disk.sync()

    async def _live(self, node: CheckedNode, process: Process) -> None:
        reporting = process.loop.create_task(_read_metrics(node))
        try:
            await node.start()
        except IdentityError as error:
            self.cluster.trace.note(f"{self.name} does not start: {error}")
            reporting.cancel()
            self.cluster.world.after(0.0, self._ended, process)
            return
        except Exception as error:
            self.cluster.world.failures.append(f"{self.name}: start failed: {error!r}")
            return
        self.is_serving = True
        self.cluster.trace.note(f"{self.name} serves")

    def stop(self) -> None:
        """A planned stop, as on SIGTERM."""
        if self.is_up and self.is_serving and not self.is_leaving and self.node is not None:
            self.is_leaving = True
            assert self.process is not None
            self.process.post(self._begin_leaving, self.node, self.process)

    def _begin_leaving(self, node: CheckedNode, process: Process) -> None:
        process.start(self._leave(node, process))

    async def _leave(self, node: CheckedNode, process: Process) -> None:
        trace, world = self.cluster.trace, self.cluster.world
        trace.note(f"{self.name} hands over and stops")
        try:
            await node.leave()
            await node.transport.close()
            assert self.face is not None
            await self.face.drain()
            await node.close()
            trace.note(f"{self.name} has stopped")
        except EngineFailed as error:
            trace.note(f"{self.name} ends while it stops: {error}")
        except Exception as error:
            world.failures.append(f"{self.name}: its stop failed: {error!r}")
        world.after(0.0, self._ended, process)

    def _ended(self, process: Process) -> None:
        if self.process is process and process.is_alive:
            self.crash(power_loss=False)

    def _crashed_itself(self, reason: str, is_void: bool) -> None:
        """What app.crash and app.crash_void do."""
        cluster = self.cluster
        cluster.trace.note(f"{self.name} crashes: {reason}")
        if not cluster.is_expected_crash(self, reason, is_void):
            raise AssertionError(f"{self.name} crashes: {reason}")
        if is_void and self.engine is not None:
            self.engine.mark_void()
        self.crash(power_loss=False)

    def crash(self, power_loss: bool, is_silent: bool = False) -> None:
        """The process is gone; with ``power_loss`` the machine too, and unsynced writes. ``is_silent``: nothing tells
        the others of it until it is back."""
        process = self.process
        if process is None or not process.is_alive:
            return
        process.kill()
        cluster = self.cluster
        cluster.trace.note(f"{self.name} is down" + (" (power lost)" if power_loss else ""))
        cluster.trace.note(f"{self.name} disk: {len(self.disk.wal)} records, {self.disk.synced} synced")
        if is_silent:
            cluster.network.silent.add(self.name)
        cluster.network.process_ended(process)
        self.disk.crash(cluster.world.rng, power_loss)
        self.engine = self.node = self.face = self.worker = None
        self.is_serving = self.is_leaving = False
        cluster.node_crashed(self)

    # ---------------------------------------------------------------------------------- looking

    def hosts(self) -> dict[int, TabletHost]:
        return self.node.hosts if self.node is not None and self.is_up else {}


async def _read_metrics(node: Node) -> None:
    """Somebody reads them once in a while."""
    while True:
        await asyncio.sleep(1.0)
        node.reporter.report_metrics()


class Cluster:
    def __init__(
        self, world: World, knobs: ClusterKnobs, network_knobs: NetworkKnobs, is_wordy: bool = False
    ) -> None:
        self.world = world
        self.knobs = knobs
        self.trace = Trace(world, is_wordy)
        self.network = Network(world, self.trace, network_knobs)
        self.service = SimCoordinationService(world)
        self.nodes: dict[str, SimNode] = {}
        self.steps_count = 0
        self.on_step: Callable[[SimNode, TabletHost], None] = lambda node, host: None
        self.on_rights: Callable[[], None] = lambda: None  # messages came that give rights to answer
        self.on_crash: Callable[[SimNode], None] = lambda node: None
        self.expected_crashes: Callable[[SimNode, str, bool], bool] = lambda node, reason, is_void: False
        self.urls = {f"http://n{i}:1": f"n{i}" for i in range(1, knobs.nodes_count + 1)}
        for name in self.urls.values():
            self.nodes[name] = SimNode(self, name)
        self._clients_count = 0

    def settings(self, name: str) -> NodeSettings:
        knobs = self.knobs
        return NodeSettings(
            name=name,
            cluster=CLUSTER,
            addresses={node: url for url, node in self.urls.items()},
            replicas_count=knobs.replicas_count,
            min_in_sync=knobs.min_in_sync,
            timing=knobs.timing,
            log_limits=knobs.log_limits,
            limits=knobs.limits,
        )

    # ----------------------------------------------------------------------------------- checks

    def stepped(self, node: SimNode, host: TabletHost) -> None:
        self.steps_count += 1
        s, c = host.replica.state, host.replica.coordinator
        position = (s.commit, s.applied, s.log.first, s.log.end, s.durable, s.promised, s.generation, c)
        if node.checked.get(host.tablet) != position:  # else the step changed nothing that they speak of
            node.checked[host.tablet] = position
            host.replica.check_invariants()
        self.on_step(node, host)

    def node_crashed(self, node: SimNode) -> None:
        self.on_crash(node)

    def is_expected_crash(self, node: SimNode, reason: str, is_void: bool) -> bool:
        return self.expected_crashes(node, reason, is_void)

    # ---------------------------------------------------------------------------------- clients

    def client_process(self) -> Process:
        self._clients_count += 1
        rng = self.world.rng
        return Process(self.world, f"c{self._clients_count}", rng.uniform(0, 1000), rng.uniform(0.999, 1.001))

    def connect(self, process: Process, timeout: float = 10.0, reads: str = "any") -> ackord.store.Connecting:
        return ackord.connect(
            list(self.urls),
            timeout=timeout,
            reads=reads,
            transport=SimTransport(self.network, process, self.urls),
            environment=SimEnvironment(process),
        )
