"""The network between the simulated processes: delays, loss, and cuts of single directions.

Everything between two processes is carried by ``Lane``s: one direction of one connection, in order. What is sent
into a cut direction is stuck, as in a TCP sender's queue; when the cut ends it arrives late, or the connection
breaks and it is lost. Messages of the peers (whose port allows loss) have faults of their own, see peers.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.sim.kernel import Process, World
from tests.sim.trace import Trace

Pair = tuple[str, str]


@dataclass(slots=True)
class NetworkKnobs:
    """Rates are per message or per packet; times in seconds."""

    delay_s: tuple[float, float] = (0.0002, 0.001)
    loss_rate: float = 0.0  # of single messages between peers
    duplicate_rate: float = 0.0
    late_rate: float = 0.0  # a message that arrives after others and perhaps after its link's end ...
    late_s: tuple[float, float] = (0.1, 3.0)  # ... so much later
    tail_rate: float = 0.0  # a packet that holds up its lane
    tail_s: float = 0.3  # mean; exponential, so without a bound
    break_rate: float = 0.0  # per packet: its connection breaks
    table_late_rate: float = (
        0.0  # of creates and drops of tables: their connection breaks, and they arrive ...
    )
    table_late_s: tuple[float, float] = (0.02, 6.0)  # ... so much later all the same


class Connection(Protocol):
    """Two lanes, or more, that end together."""

    is_broken: bool

    def break_off(self) -> None:
        """The connection is lost; what is under way is lost with it. Both ends get to know."""

    def ends(self) -> tuple[Process, Process]: ...


@dataclass(slots=True, eq=False)
class Lane:
    """One direction of a connection: arrivals in the order of sending."""

    source: str
    target: str
    connection: Connection
    last_arrival: float = 0.0
    stuck: list[tuple[Callable[..., object], tuple[Any, ...]]] = field(default_factory=list)


@dataclass(slots=True)
class Host:
    """What can be reached under a node's name."""

    process: Process
    peers: Any = None  # its SimPeerTransport
    face: Any = None  # its HTTP face (streams.Face)


class Network:
    def __init__(self, world: World, trace: Trace, knobs: NetworkKnobs) -> None:
        self.world = world
        self.trace = trace
        self.knobs = knobs
        self.hosts: dict[str, Host] = {}
        self.silent: set[str] = set()  # machines without power: not even a refusal comes from them
        self._blocked: Counter[Pair] = Counter()
        self._clogged: dict[Pair, float] = {}  # seconds added
        self._lanes_stuck: dict[Pair, dict[Lane, None]] = {}
        self._connections: dict[Connection, None] = {}

    # ------------------------------------------------------------------------------- faults

    def cut(self, pairs: list[Pair]) -> Callable[[], None]:
        """Blocks these directions; returns what ends this cut. Cuts may overlap."""
        self._blocked.update(pairs)
        is_over = False

        def mend() -> None:
            nonlocal is_over
            if is_over:
                return
            is_over = True
            self._blocked.subtract(pairs)
            for pair in pairs:
                if self._blocked[pair] <= 0:
                    self._unblocked(pair)

        return mend

    def clog(self, pair: Pair, seconds: float) -> None:
        """Everything in this direction takes so much longer; 0 ends it."""
        if seconds:
            self._clogged[pair] = seconds
        else:
            self._clogged.pop(pair, None)

    def mend_all(self) -> None:
        for pair in [pair for pair, count in self._blocked.items() if count > 0]:
            self._blocked[pair] = 0
            self._unblocked(pair)
        self._blocked.clear()
        self._clogged.clear()

    @property
    def has_cuts(self) -> bool:
        return any(count > 0 for count in self._blocked.values()) or bool(self._clogged)

    def is_cut(self, source: str, target: str) -> bool:
        return self._blocked[source, target] > 0

    def _unblocked(self, pair: Pair) -> None:
        for lane in list(self._lanes_stuck.pop(pair, {})):
            stuck, lane.stuck = lane.stuck, []
            if lane.connection.is_broken:
                continue
            if self.world.rng.random() < 0.5:
                lane.connection.break_off()
                continue
            for call, args in stuck:
                self.carry(lane, call, *args)

    # ------------------------------------------------------------------------------ carrying

    def delay(self, source: str, target: str) -> float:
        low, high = self.knobs.delay_s
        rng = self.world.rng
        delay = low + (high - low) * rng.random()
        if self.knobs.tail_rate and rng.random() < self.knobs.tail_rate:
            self.trace.count("message delayed")
            delay += rng.expovariate(1 / self.knobs.tail_s)
        return delay + self._clogged.get((source, target), 0.0)

    def carry(self, lane: Lane, call: Callable[..., object], *args: Any) -> None:
        """Calls ``call`` at the other end, after what was carried before it."""
        pair = (lane.source, lane.target)
        if lane.stuck or self._blocked[pair] > 0:
            lane.stuck.append((call, args))
            self._lanes_stuck.setdefault(pair, {})[lane] = None
            return
        if self.knobs.break_rate and self.world.rng.random() < self.knobs.break_rate:
            self.trace.fault("connection broken", f"{lane.source}-{lane.target}")
            lane.connection.break_off()
            return
        when = max(lane.last_arrival + 1e-9, self.world.now + self.delay(*pair))
        lane.last_arrival = when
        self.world.at(when, self._arrive, lane, call, args)

    def late_by(self) -> float:
        """Seconds by which a table operation that leaves now is late; 0: it is not held up."""
        knobs, rng = self.knobs, self.world.rng
        if not knobs.table_late_rate or rng.random() >= knobs.table_late_rate:
            return 0.0
        low, high = knobs.table_late_s
        return rng.choice((rng.uniform(low, high), rng.uniform(low, 10 * low)))

    def _arrive(self, lane: Lane, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not lane.connection.is_broken:
            call(*args)

    def tell_broken(self, source: str, target: str, call: Callable[..., object]) -> None:
        """``target`` gets to know that the connection ended on ``source``'s side, once a packet can reach it."""
        if self._blocked[source, target] > 0 or source in self.silent:
            self.world.after(0.05, self.tell_broken, source, target, call)
        else:
            self.world.after(self.delay(source, target), call)

    # --------------------------------------------------------------------- connections, hosts

    def opened(self, connection: Connection) -> None:
        self._connections[connection] = None

    def ended(self, connection: Connection) -> None:
        self._connections.pop(connection, None)

    def process_ended(self, process: Process) -> None:
        """The operating system closes what the process had open (or, without power, nobody does)."""
        for connection in list(self._connections):
            if process in connection.ends():
                connection.break_off()
