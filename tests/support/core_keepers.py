"""Clients of a cluster of cores that keep rows (rule R19), on virtual time: the SDK's own cache, leases and messages,
over streams that can be late, cut, or out of order, in processes that can be frozen and whose clocks drift.

After every step of the cluster each row that a keeper may answer is compared with what is committed.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from ackord.cache import CacheOptions, Kept
from ackord.caching import Caching
from ackord.holding import Hold, HoldGroup
from ackord.wire.limits import Limits
from ackord.wire.messages import OP_HOLD, OP_KEEP, TOLD, WHOLE_GROUP
from ackord_node.core import effects as e
from ackord_node.core.replica import Replica
from ackord_node.runtime.holds import hold_rows, keep
from ackord_node.runtime.requests import Request
from tests.support.core_oracle import Violation

if TYPE_CHECKING:
    from ackord.batcher import Batcher
    from ackord.transport import Cancellable, Environment
    from ackord_node.runtime.tablet_host import TabletHost
    from tests.support.core_cluster import Cluster, Node

TABLE = "t"
PAUSE_S = 0.01  # between two reads of one keeper in a walk, about


class Host:
    """What ``runtime.holds`` uses of a tablet's host."""

    def __init__(self, cluster: Cluster, node: Node) -> None:
        self._c = cluster
        self._node = node
        self.now = node.clock

    @property
    def replica(self) -> Replica:
        return self._node.core

    def feed(self, event: e.Event) -> None:
        self._c.step(self._node, event)

    def get(self, rid: int, keys: list[bytes], respond: Any) -> None:
        found = self.replica.get_many(Request(rid, respond), keys, self.now())
        if found is None:
            respond([rid, WHOLE_GROUP, ["refused"]])
            return
        rows, late = found
        ready = [at for at in range(len(keys)) if at not in late]
        if ready:
            respond([rid, ready, [rows[at] for at in ready]])


class Stream:
    """A keeper's stream to one run of one node; called with what the node sends. As ``NodeLink``, what the SDK sends
    goes through ``backlog``."""

    def __init__(self, keeper: Keeper, node: Node) -> None:
        self.name = node.name
        self.backlog: deque[Any] = deque()
        self.is_cut = False  # nothing arrives any more, and neither end knows
        self.extra_delay = 0.0
        self.is_ordered = True
        self._keeper = keeper
        self._node = node
        self._incarnation = node.incarnation
        self._groups: dict[int, Any] = {}
        self._rid = 0
        self._there = self._back = 0.0

    @property
    def is_up(self) -> bool:
        return self._node.is_up and self._node.incarnation == self._incarnation

    def pump(self) -> None:
        while self.backlog:
            group = self.backlog.popleft()
            self._rid += 1
            self._groups[self._rid] = group
            sent = group.encode(self._rid)
            c, keeper = self._keeper.c, self._keeper
            self._there = max(c.now + keeper.delay(), self._there + 1e-6)
            c.at(self._there - c.now, partial(self._arrive, sent))

    def _arrive(self, sent: list[Any]) -> None:
        node, c = self._node, self._keeper.c
        if self.is_cut or not self.is_up:
            return

        def take() -> None:
            host = cast("TabletHost", Host(c, node))
            rid, op, _ = sent[:3]
            if op == OP_HOLD:
                hold_rows(host, rid, sent[3], self)
            else:
                assert op == OP_KEEP
                keep(host, rid, sent[3], sent[4], self)

        c.at_node(node, take, 0.0)

    def __call__(self, entry: list[Any]) -> None:
        c = self._keeper.c
        when = c.now + self._keeper.delay() + self.extra_delay
        if self.is_ordered:
            when = self._back = max(when, self._back + 1e-6)
        c.at(when - c.now, lambda: self._keeper.deliver(lambda: self._received(entry)))

    def _received(self, entry: list[Any]) -> None:
        if self.is_cut or self._keeper.streams.get(self.name) is not self:
            return
        rid, indices, results = entry
        if rid == TOLD:
            self._keeper.told_count += 1
            self._keeper.caching.told(self, indices, results)  # type: ignore[arg-type]
        else:
            self._groups[rid].unwrapped(self.name, indices, results)


class Links(dict[str, Stream]):
    """``Batcher.links``: a stream that ended is made anew when it is asked for."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper

    def get(self, name: str, default: Any = None) -> Any:
        return self._keeper.stream(name)


class Keeper:
    """One client process."""

    def __init__(self, c: Cluster, number: int = 0, drift: float = 0.0) -> None:
        self.c = c
        self.drift = drift
        self.rng = random.Random(number)
        self.offset = self.rng.uniform(0, 1000)
        self.streams: dict[str, Stream] = {}
        self.is_frozen = False
        self._backlog: list[Callable[[], None]] = []
        self.told_count = 0
        self.hits = 0
        self.links = Links(self)
        self.routing = self  # as Batcher's
        self.limits: Limits = c.profile.limits
        self.on_told: Any = None
        self.boot_now = self.clock
        self.caching = Caching(cast("Batcher", self), cast("Environment", self))
        self.cache = self.caching.cache_of(TABLE, CacheOptions())
        self.id = 7  # as a tablet's route
        c.keepers.append(self)

    def clock(self) -> float:
        return self.offset + self.c.now * (1 + self.drift)

    def delay(self) -> float:
        return self.rng.uniform(0.0002, self.c.profile.delay_max)

    def call_soon(self, callback: Callable[[], None]) -> Cancellable | None:
        self.c.at(0.0, lambda: self.deliver(callback))
        return None

    # -------------------------------------------------------------------------------- process

    def deliver(self, call: Callable[[], None]) -> None:
        if self.is_frozen:
            self._backlog.append(call)
        else:
            call()

    def freeze(self) -> None:
        """Stops: it neither hears nor says anything, and answers nobody."""
        self.is_frozen = True

    def thaw(self) -> None:
        self.is_frozen = False
        backlog, self._backlog = self._backlog, []
        for call in backlog:
            self.deliver(call)

    def stream(self, name: str) -> Stream | None:
        """The stream to the node that runs now; None if it is down."""
        node, stream = self.c.nodes[name], self.streams.get(name)
        if stream is not None and not stream.is_up:
            del self.streams[name]
            stream = None
        if stream is None and node.is_up:
            stream = self.streams[name] = Stream(self, node)
        return stream

    def _ended(self, name: str) -> None:
        self.streams.pop(name, None)

    def reconnect(self, name: str) -> None:
        """Its end of the stream is closed, and another one opened; the node's end stays until it notices."""
        stream = self.streams.pop(name, None)
        if stream is not None:
            stream.is_cut = True

    # ----------------------------------------------------------------------------------- rows

    def ask(self, name: str, *keys: bytes) -> None:
        """Asks a node for rows that may be kept."""
        stream = self.stream(name)
        if stream is None:
            return
        holds = []
        for key in keys:
            hold = Hold(None, self, self, (key,), key, 0.0)  # type: ignore[arg-type]
            hold.keeper, hold.name = self.caching, key
            holds.append(hold)
        stream.backlog.append(HoldGroup(OP_HOLD, self, holds))  # type: ignore[arg-type]
        stream.pump()

    @property
    def name(self) -> str:
        """As a table's route."""
        return TABLE

    def found(self, key: bytes) -> Kept | None:
        """What it may answer from memory."""
        now = self.clock()
        kept = self.cache.names.get(key)
        if kept is not None and kept.lease.check_at > kept.lease.until:
            raise Violation(f"a row of {key!r} would be answered after its lease")
        return self.cache.find(key, key, now) if kept is not None else None

    def keeps(self, *keys: bytes) -> bool:
        return all(self.found(key) is not None for key in keys)

    def get(self, key: bytes) -> bool:
        """One read from memory, as a caller's: False if the row is not there. The lease is extended in time."""
        kept = self.found(key)
        if kept is None or self.is_frozen:
            return False
        self.hits += 1
        self._judge(key, kept)
        self.caching.used(kept.lease, self.clock())
        return True

    def check(self) -> None:
        """Everything that it may answer now is what was committed last."""
        if not self.is_frozen and self.c.oracle.judges_reads:
            for key in list(self.cache.names):
                kept = self.found(key)
                if kept is not None:
                    self._judge(key, kept)

    def _judge(self, key: bytes, kept: Kept) -> None:
        oracle = self.c.oracle
        if oracle.is_dropped:
            raise Violation(f"a row of {key!r} is kept, but its tablet is dropped")
        row = None if kept.row is None else kept.row._raw
        oracle.answered(key, row, oracle.exposed, f"a row kept from {kept.lease.node}")

    # ----------------------------------------------------------------------------------- walk

    def start(self, keys: list[bytes]) -> None:
        """Reads and mishaps without end."""
        self._keys = keys
        self.c.at(self.rng.uniform(0, 0.2), self._turn)

    def _turn(self) -> None:
        if not self.c.has_clients:
            self.thaw()
            return
        rng, c = self.rng, self.c
        if self.is_frozen:
            if rng.random() < 0.05:
                self.thaw()
        elif rng.random() < 0.005:
            self.freeze()
        else:
            key = rng.choice(self._keys)
            if not self.get(key):
                self.ask(rng.choice(list(c.nodes)), *{key, rng.choice(self._keys)})
            if rng.random() < 0.01:
                self._mishap()
        c.at(rng.expovariate(1 / PAUSE_S), self._turn)

    def _mishap(self) -> None:
        stream = self.rng.choice(list(self.streams.values())) if self.streams else None
        if stream is None:
            return
        choice = self.rng.random()
        if choice < 0.3:
            stream.is_cut = True
            self.c.at(self.rng.expovariate(1.0), partial(self._ended, stream.name))
        elif choice < 0.6:
            self.reconnect(stream.name)
        else:
            stream.extra_delay = self.rng.choice((0.0, 0.0, 0.05, 0.3))
