"""A cluster of cores on virtual time, from one seed: nodes, disks, links, a coordination service, faults.

Everything that happens is a call at a virtual time in one heap, so a seed replays exactly. Each node reads its own
clock, which drifts within rho. Faults of the links: cut (messages on the way are lost, both ends hear of it), and
in chaotic mode also loss, duplication and reordering, which TCP would not do but the rules must survive.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from ackord.wire.keys import KeySchema
from ackord.wire.limits import Limits
from ackord.wire.messages import KIND_PUT
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord.wire.values import encode_columns
from ackord_node.core import effects as e
from ackord_node.core.history import history_key
from ackord_node.core.replica import Replica
from ackord_node.core.state import CoreConfig
from ackord_node.core.types import Descriptor, LogLimits, Member, Timing
from ackord_node.runtime.requests import tell_holder
from tests.support.core_clients import Client, Op, Reader, read, write_event
from tests.support.core_disk import SnapshotSource, VirtualDisk
from tests.support.core_keepers import Keeper
from tests.support.core_oracle import Oracle, Violation
from tests.support.core_service import Service

TABLET = 7
WALL_MS = 1_700_000_000_000


class Overrun(AssertionError):
    """What should happen in bounded time did not."""


@dataclass(frozen=True)
class Profile:
    nodes: int = 3
    min_in_sync: int = 2
    clients: int = 3
    is_chaotic: bool = False
    delay_max: float = 0.004
    disk_delay_max: float = 0.006
    session_timeout: float = 1.5
    drift: float = 0.0
    chunk_count: int = 2
    timing: Timing = field(default_factory=lambda: Timing(balance_delay=1e9))
    log: LogLimits = field(default_factory=LogLimits)
    limits: Limits = field(default_factory=Limits)
    options: TableOptions = DEFAULT_OPTIONS
    schema: KeySchema | None = None  # of the table's keys, where operations need it


class Notes(list[str]):
    """What the nodes noted."""

    def count(self, text: str) -> int:
        return sum(text in note for note in self)


class Node:
    def __init__(self, cluster: Cluster, name: str, disk: VirtualDisk) -> None:
        self.cluster = cluster
        self.name = name
        self.disk = disk
        self.replica: Replica | None = None
        self.incarnation = 0
        self.is_paused = False
        self.backlog: list[Callable[[], None]] = []
        self.drift = cluster.rng.uniform(-1, 1) * cluster.profile.drift
        self.offset = cluster.rng.uniform(0, 1000)
        self.wall_skew_ms = cluster.rng.randint(-300, 300)
        self.connected = False
        self.session: int | None = None
        self.disk_is_busy = False
        self.disk_is_stuck = False
        self.in_flight: e.TabletBatch | None = None
        self.tick_due = float("inf")
        self.seen_commit = 0
        self.seen_generation = 0
        self.snapshots: dict[tuple[str, int], SnapshotSource] = {}

    @property
    def is_up(self) -> bool:
        return self.replica is not None

    @property
    def core(self) -> Replica:
        assert self.replica is not None, f"{self.name} is down"
        return self.replica

    def clock(self) -> float:
        return self.offset + self.cluster.now * (1 + self.drift)

    def wall_ms(self) -> int:
        return self.cluster.wall_ms() + self.wall_skew_ms

    def real(self, local: float) -> float:
        return (local - self.offset) / (1 + self.drift)


class Cluster:
    def __init__(self, seed: int, profile: Profile | None = None) -> None:
        self.profile = profile or Profile()
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.has_faults = False
        self.has_clients = False
        self.oracle = Oracle()
        self.trace: list[str] = []
        self.notes = Notes()
        self.digest = hashlib.blake2b(digest_size=8)
        self.registered = 0  # clients so far
        self.keepers: list[Keeper] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._copies = 100
        self.nodes: dict[str, Node] = {}
        names = [f"n{i + 1}" for i in range(self.profile.nodes)]
        for name in names:
            self.nodes[name] = Node(self, name, VirtualDisk(TABLET, self.new_copy_id()))
        self.cuts: set[tuple[str, str]] = set()
        self._open: dict[tuple[str, str], int] = {}  # links that are open -> generation
        self._generation = 0
        self._last_delivery: dict[tuple[str, str, bool], float] = {}
        self.drop: Callable[[str, str, list[Any]], bool] = lambda source, target, message: (
            False
        )  # scenarios drop messages
        self.hold: Callable[[str, str, list[Any]], bool] = lambda source, target, message: False
        self.held: list[tuple[str, str, int, list[Any]]] = []
        newborn = Descriptor(
            TABLET, 0, None, 0, frozenset(), tuple(names), self.profile.min_in_sync, b"", None
        )
        self.service = Service(self, newborn)
        self.clients = [Client(self, i) for i in range(self.profile.clients)]

    # --------------------------------------------------------------------------------- time

    def at(self, delay: float, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, call))

    def at_node(self, node: Node, call: Callable[[], None], delay: float) -> None:
        """A call in the node's process as it runs now; a paused process makes it up later."""
        incarnation = node.incarnation

        def run() -> None:
            if node.incarnation != incarnation or node.replica is None:
                return
            if node.is_paused:
                node.backlog.append(call)
            else:
                call()

        self.at(delay, run)

    def to_node(self, node: Node, event: e.Event, delay: float) -> None:
        self.at_node(node, lambda: self.step(node, event), delay)

    def delay(self) -> float:
        return self.rng.uniform(0.0002, self.profile.delay_max)

    def watch_delay(self) -> float:
        return self.rng.uniform(0.0, 0.6) if self.has_faults and self.rng.random() < 0.2 else self.delay()

    def wall_ms(self) -> int:
        return WALL_MS + int(self.now * 1000)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = end

    def run_until(self, condition: Callable[[], bool], seconds: float, what: str = "") -> float:
        """Runs until the condition holds; returns how long that took; Overrun if it does not come to pass."""
        begin, end = self.now, self.now + seconds
        while not condition():
            if not self._heap or self._heap[0][0] > end:
                raise Overrun(f"not within {seconds} s: {what or 'the condition'}; {self.describe()}")
            self.now, _, call = heapq.heappop(self._heap)
            call()
        return self.now - begin

    # --------------------------------------------------------------------------------- steps

    def step(self, node: Node, event: e.Event) -> None:
        if node.replica is None:
            return
        self.steps += 1
        now = node.clock()
        self._record(node, event)
        effects = node.replica.step(event, now)
        node.replica.check_invariants()
        self.oracle.committed(node)
        for effect in effects:
            self._carry_out(node, effect)
        if node.replica.has_announcement:  # the driver's turn has nothing else to send
            self.at_node(node, lambda: self._announce(node), 0.0)
        if isinstance(event, e.Durable):
            node.disk_is_busy = False
            if node.replica.state.has_unstored:
                self._kick_disk(node)
        for other in self.nodes.values():
            if other.replica is not None and not other.is_paused:
                self.oracle.readable(other, other.clock())
        for keeper in self.keepers:
            keeper.check()
        self._plan_tick(node)

    def _record(self, node: Node, event: e.Event) -> None:
        what = event.message if isinstance(event, e.Received) else type(event).__name__
        line = f"{self.now:.6f} {node.name} {what!r:.160}"
        self.digest.update(line.encode())
        self.trace.append(line)
        if len(self.trace) > 6000:
            del self.trace[:3000]

    def _plan_tick(self, node: Node) -> None:
        due = max(node.real(node.core.wake_at), self.now + 0.001)
        if due < node.tick_due - 1e-9:
            node.tick_due = due
            self.at_node(node, lambda: self._tick(node, due), due - self.now)

    def _announce(self, node: Node) -> None:
        if node.replica is not None and node.replica.has_announcement:
            self.step(node, e.Announce())

    def _tick(self, node: Node, due: float) -> None:
        if node.tick_due == due:
            node.tick_due = float("inf")
            self.step(node, e.Tick(node.wall_ms()))

    def _carry_out(self, node: Node, effect: e.Effect) -> None:
        match effect:
            case e.Send():
                self._send(node, effect)
            case e.Reply(request=request, indices=indices, results=results):
                answer: Any = getattr(request, "replied", None) or request.answer  # type: ignore[attr-defined]
                answer(indices, results)
            case e.Persist():
                self._kick_disk(node)
            case e.Tell():
                tell_holder(TABLET)(effect)
            case e.Swap():
                self.service.swap(node, effect)
            case e.ReadDescriptor():
                self.service.read(node)
            case e.AcquireLock():
                self.service.acquire(node)
            case e.ReleaseLock():
                self.service.release(node)
            case e.Note(text=text):
                self.trace.append(f"{self.now:.6f} {node.name} -- {text}")
                self.notes.append(text)
            case _:
                self._serve_catch_up(node, effect)

    def _serve_catch_up(self, node: Node, effect: e.Effect) -> None:
        delay = self.rng.uniform(0.0, self.profile.disk_delay_max)
        match effect:
            case e.ReadLog(node=target, first=first):

                def read_log() -> None:
                    self.step(node, e.LogRead(target, first, node.disk.read_log(first, 4)))

                self.at_node(node, read_log, delay)
            case e.ReadRows(start=start):

                def read_rows() -> None:
                    self.step(node, e.RowsRead(start, *node.disk.scan(start, 2)))

                self.at_node(node, read_rows, delay)
            case e.OpenSnapshot(node=target, snapshot_id=number):

                def open_snapshot() -> None:
                    if self.has_faults and self.rng.random() < 0.1:
                        self.step(node, e.SnapshotFailed(target, number))
                        return
                    node.snapshots[target, number] = SnapshotSource(node.disk, self.profile.chunk_count)
                    self._next_chunk(node, target, number)

                self.at_node(node, open_snapshot, delay)
            case e.NextChunk(node=target, snapshot_id=number):
                self.at_node(node, lambda: self._next_chunk(node, target, number), delay)
            case e.CloseSnapshot(node=target, snapshot_id=number):
                node.snapshots.pop((target, number), None)
            case _:
                raise AssertionError(f"unknown effect {effect!r}")

    def _next_chunk(self, node: Node, target: str, number: int) -> None:
        source = node.snapshots.get((target, number))
        if source is not None:
            at, space, records, header = source.next()
            self.step(node, e.SnapshotChunk(target, number, at, space, records, header))

    # ---------------------------------------------------------------------------------- disk

    def _kick_disk(self, node: Node) -> None:
        if node.disk_is_busy or node.disk_is_stuck:
            return
        node.disk_is_busy = True
        self.at_node(node, lambda: self._take(node), self.rng.uniform(0.0, 0.0005))

    def _take(self, node: Node) -> None:
        batch = node.core.take_batch()
        if batch is None:
            node.disk_is_busy = False
            return
        if self.has_faults and self.rng.random() < 0.01:
            node.core.unstored(batch)
            self.at_node(node, lambda: self._take(node), 0.05)
            return
        node.in_flight = batch
        incarnation = node.incarnation

        def stored() -> None:
            if node.incarnation == incarnation and node.in_flight is batch:
                if node.disk_is_stuck:
                    self.at(0.05, stored)
                    return
                node.in_flight = None
                node.disk.remember()
                node.disk.apply(batch)
                self.to_node(node, e.Durable(batch), self.rng.uniform(0.0, 0.001))

        self.at(self.rng.uniform(0.0002, self.profile.disk_delay_max), stored)

    def new_copy_id(self) -> int:
        self._copies += 1
        return self._copies

    # ------------------------------------------------------------------------------- network

    def _send(self, node: Node, effect: e.Send) -> None:
        source, target, message = node.name, effect.node, effect.message
        if (source, target) not in self._open or self.drop(source, target, message):
            return
        if self.hold(source, target, message):
            self.held.append((source, target, node.incarnation, message))
            return
        if not (self.profile.is_chaotic and self.has_faults):
            lane = (source, target, effect.urgent)
            when = max(self.now + self.delay(), self._last_delivery.get(lane, 0.0) + 1e-6)
            self._last_delivery[lane] = when
            self._deliver(
                source, target, node.incarnation, message, when - self.now, self._open[source, target]
            )
            return
        if self.rng.random() < 0.03:
            return
        for _ in range(2 if self.rng.random() < 0.05 else 1):
            late = self.rng.uniform(0.1, 3.0) if self.rng.random() < 0.02 else self.delay()
            self._deliver(source, target, node.incarnation, message, late, None)

    def _deliver(
        self, source: str, target: str, incarnation: int, message: list[Any], delay: float, link: int | None
    ) -> None:
        """``link``: the generation of the link that carries it and that ends with it; None: it arrives anyway, in
        whatever process runs there then."""

        def arrive() -> None:
            if link is None or self._open.get((source, target)) == link:
                self.to_node(self.nodes[target], e.Received(source, incarnation, message), 0.0)

        self.at(delay, arrive)

    def release_held(self, wanted: Callable[[str, str, list[Any]], bool] = lambda s, t, m: True) -> int:
        """Delivers what was held, however late; returns how many messages that were."""
        ready = [h for h in self.held if wanted(h[0], h[1], h[3])]
        self.held = [h for h in self.held if not wanted(h[0], h[1], h[3])]
        for source, target, incarnation, message in ready:
            self._deliver(source, target, incarnation, message, 0.0, None)
        return len(ready)

    def refresh_links(self) -> None:
        """Opens and ends links as processes and cuts allow, and tells both ends a little later."""
        for source in self.nodes.values():
            for target in self.nodes.values():
                if source is target:
                    continue
                pair = (source.name, target.name)
                wanted = source.is_up and target.is_up and pair not in self.cuts
                if wanted and pair not in self._open:
                    self._generation += 1
                    self._open[pair] = self._generation
                    self._tell_later(source, pair, self.delay())
                elif not wanted and self._open.pop(pair, None) is not None:
                    self._tell_later(source, pair, self.rng.uniform(0, 0.2))

    def _tell_later(self, source: Node, pair: tuple[str, str], delay: float) -> None:
        self.at_node(source, lambda: self._tell_link(source, pair), delay)

    def _tell_link(self, source: Node, pair: tuple[str, str]) -> None:
        if pair in self._open:
            self.step(source, e.PeerUp(pair[1]))
        else:
            refused = not self.nodes[pair[1]].is_up and pair not in self.cuts
            self.step(source, e.PeerDown(pair[1], refused))

    def cut(self, *names: str) -> None:
        """Separates the named nodes from all others."""
        for a in names:
            for b in self.nodes:
                if b not in names:
                    self.cuts |= {(a, b), (b, a)}
        self.refresh_links()

    def mend(self) -> None:
        self.cuts.clear()
        self.refresh_links()

    # ------------------------------------------------------------------------------ processes

    def start(self, *names: str) -> None:
        for name in names or self.nodes:
            node = self.nodes[name]
            if node.is_up:
                continue
            self.oracle.stored(node)
            p = self.profile
            copy = node.disk.load()
            node.incarnation += 1
            node.backlog, node.is_paused = [], False
            node.disk_is_busy = node.disk_is_stuck = False
            node.in_flight, node.tick_due, node.snapshots = None, float("inf"), {}
            node.seen_commit, node.seen_generation = copy.meta.applied, 0
            config = CoreConfig(p.timing, p.log, p.limits)
            node.replica = Replica(
                name, node.incarnation, copy, config, node.disk, self.new_copy_id, node.clock(), p.options
            )
            node.replica.state.schema = self.profile.schema
            node.seen_generation = node.replica.state.generation
            node.seen_commit = node.replica.state.commit
            self.step(node, e.Tick(node.wall_ms()))
            self.service.connect(node)
        self.refresh_links()

    def crash(self, name: str) -> None:
        """Ends the process; a batch under way is on disk or is not."""
        node = self.nodes[name]
        if node.in_flight is not None and self.rng.random() < 0.5:
            node.disk.apply(node.in_flight)
        node.in_flight = None
        node.replica = None
        node.is_paused = False
        self.trace.append(f"{self.now:.6f} {name} crashes")
        self.service.crashed(node)
        self.refresh_links()

    def lose_disk(self, name: str) -> None:
        node = self.nodes[name]
        assert not node.is_up
        node.disk = VirtualDisk(TABLET, self.new_copy_id())

    def roll_back(self, name: str, states: int, is_suspect: bool) -> None:
        """The disk returns to an older state; ``is_suspect``: the engine noticed."""
        node = self.nodes[name]
        assert not node.is_up
        node.disk.now = node.disk.states[-min(states, len(node.disk.states))].copy()
        if (
            is_suspect
        ):  # the engine marks the store before it opens it, and forgets that once the copies say so
            meta = node.disk.meta
            meta.suspect = True
            node.disk.now.meta = meta.encode()

    def mark_dropped(self) -> Descriptor:
        """What dropping the table does to the descriptor (rule R18); returns what it replaced."""
        before = self.service.descriptor
        marked = replace(before, epoch=before.epoch + 1, coordinator=None, incarnation=0, dropped=True)
        assert self.service.apply(marked, self.service.version)
        return before

    def force(self, name: str) -> bool:
        """Makes one copy the only one, as an operator may. False if that could lose what was acknowledged."""
        node, before = self.nodes[name], self.service.descriptor
        member = before.member_of(name)
        meta = node.disk.meta
        is_intact = member is not None and member.copy_id == meta.copy_id and not meta.suspect
        is_same = node.replica is None or node.core.state.me == member
        if not is_intact or not is_same or before.dropped:
            return False
        epoch = max(before.epoch, *(x.disk.meta.promised for x in self.nodes.values())) + 1
        forced = replace(
            before,
            epoch=epoch,
            coordinator=None,
            incarnation=0,
            in_sync=frozenset({Member(name, meta.copy_id)}),
            recovered=epoch,
        )
        return self.service.apply(forced, self.service.version)

    def pause(self, name: str) -> None:
        self.nodes[name].is_paused = True

    def resume(self, name: str) -> None:
        node = self.nodes[name]
        node.is_paused = False
        backlog, node.backlog = node.backlog, []
        for call in backlog:
            if node.is_up and not node.is_paused:
                call()

    # -------------------------------------------------------------------------------- use

    def write(self, node: Node, group: e.WriteGroup) -> None:
        self.step(node, write_event(self, [group], node.wall_skew_ms))

    def likely_coordinator(self) -> str:
        known = self.service.descriptor.coordinator
        if known is None or (self.has_faults and self.rng.random() < 0.2):
            return self.rng.choice(list(self.nodes))
        return known

    def coordinator(self) -> Node | None:
        """The active coordinator of the newest epoch, if there is one."""
        d = self.service.descriptor
        node = self.nodes.get(d.coordinator or "")
        if node is None or node.replica is None or node.replica.coordinator is None:
            return None
        c = node.replica.coordinator
        return node if c.is_active and c.epoch == d.epoch else None

    def leader(self) -> Node:
        node = self.coordinator()
        assert node is not None, self.describe()
        return node

    def in_sync(self) -> list[str]:
        return sorted(member.node for member in self.service.descriptor.in_sync)

    def is_well(self) -> bool:
        """A coordinator serves, every replica is in sync under its present copy and may answer reads."""
        node = self.coordinator()
        if node is None or node.core.coordinator is None or not node.core.may_read(node.clock()):
            return False
        if node.core.coordinator.membership.proposed is not None:
            return False
        members = self.service.descriptor.in_sync
        return all(
            other.is_up
            and other.core.state.me in members
            and other.core.may_read(other.clock())
            and other.core.state.commit == node.core.state.log.end == other.core.state.log.end
            and not other.core.state.has_unstored
            and not other.disk_is_busy
            for other in self.nodes.values()
        )

    def form(self) -> Node:
        """Starts every node and waits until all are in sync; the coordinator."""
        self.start()
        self.run_until(self.is_well, 20, "the cluster forms")
        return self.leader()

    def put(self, key: bytes = b"k1", node: str | None = None) -> Op:
        """One unique put of a new client, retried until it is decided unless ``node`` is given."""
        client = Client(self, len(self.clients))
        op = client.op(KIND_PUT, key, encode_columns({"v": f"put {client.id.decode()}"}))
        client.submit([op], node)
        return op

    def put_done(self, key: bytes = b"k1", seconds: float = 10) -> Op:
        op = self.put(key)
        self.run_until(lambda: op.is_done, seconds, f"{op} is decided")
        assert isinstance(op.outcome, int), op
        return op

    def read(self, name: str, *keys: bytes) -> Reader:
        return read(self, self.nodes[name], list(keys))

    def describe(self) -> str:
        d = self.service.descriptor
        lines = [f"epoch {d.epoch} of {d.coordinator}, in sync {self.in_sync()}, lock {self.service.lock}"]
        for node in self.nodes.values():
            if node.replica is None:
                lines.append(f"{node.name} is down")
                continue
            s = node.replica.state
            c = node.replica.coordinator
            lines.append(
                f"{node.name}{' paused' if node.is_paused else ''} copy {s.copy_id} promised {s.promised} "
                f"applied {s.applied} commit {s.commit} end {s.log.end} durable {s.durable} trimmed {s.log.trimmed} "
                f"suspect {s.suspect} filling {s.filling} read {node.replica.may_read(node.clock())} "
                f"stage {node.replica.takeover.stage.value}"
                + (f" coordinates {c.epoch} active {c.is_active}" if c else "")
            )
        return "\n  ".join(lines)

    def check_end(self) -> None:
        """After healing: equal rows, request tables and logs, which are what the committed log says."""
        first = self.leader().core.state
        tables = {c: r.encode() for c, r in first.requests.clients.items()}
        for node in self.nodes.values():
            s = node.core.state
            if node.disk.now.rows != self.oracle.rows:
                raise Violation(f"{node.name} stores {node.disk.now.rows}, committed is {self.oracle.rows}")
            self._check_history(node)
            if {c: r.encode() for c, r in s.requests.clients.items()} != tables:
                raise Violation(f"the request tables of {node.name} and the coordinator differ")
            if (
                dict(node.disk.now.requests) != tables
                or s.requests.collected_below != first.requests.collected_below
            ):
                raise Violation(f"the stored request table of {node.name} differs from the coordinator's")
            low = max(s.log.trimmed, first.log.trimmed, 1)
            for index in range(low, first.log.end + 1):
                if s.log.epoch_at(index) != first.log.epoch_at(index):
                    raise Violation(f"{node.name} has another entry at {index}")

    def _check_history(self, node: Node) -> None:
        """Every committed version of every row is stored, also where it came by snapshot."""
        if not self.profile.options.has_history:
            return
        wanted = {}
        for entry in self.oracle.truth:
            for key, version, row in entry.versions():
                wanted[history_key(key, version, row is None)] = row or b""
        if node.disk.now.history != wanted:
            raise Violation(f"{node.name} stores other versions than were committed")
        clock = max((entry.clock_ms for entry in self.oracle.truth), default=0)
        if node.core.state.clock.at_commit != clock:
            raise Violation(f"{node.name}'s clock is {node.core.state.clock.at_commit}, committed is {clock}")
