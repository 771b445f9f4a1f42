"""Prometheus metrics of one node, in a registry of their own.

Everything is told per batch, not per operation: a labelled child is looked up once and kept, an increment
carries a count. The runtime, the engine's driver and the HTTP faces call the methods; nobody else knows the
client library.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_LATENCY_S = (
    0.0001,
    0.0002,
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
)
_FSYNC_S = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_LOOP_LAG_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_BATCH_COUNT = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384)


class Metrics:
    """The node's metrics; all names begin with ``ackord_``. ``waited_s`` tells how long the loop's thread has waited
    for a processor so far."""

    def __init__(self, waited_s: Callable[[], float] = float) -> None:
        self._waited_s = waited_s
        self._waited_before_s = waited_s()
        self.registry = registry = CollectorRegistry()
        # Brings the gauges up to date: they cost a look at every tablet, and only who reads them needs it.
        self.look: Callable[[], None] = lambda: None
        self._operations = Counter(
            "ackord_operations", "Operations answered, by outcome.", ("op", "outcome"), registry=registry
        )
        self._latency = Histogram(
            "ackord_request_seconds",
            "From the arrival of a request group to its last answer.",
            ("op",),
            buckets=_LATENCY_S,
            registry=registry,
        )
        self._client_batch = Histogram(
            "ackord_client_frame_ops",
            "Operations in one frame of a client.",
            buckets=_BATCH_COUNT,
            registry=registry,
        )
        self._commit_batch = Histogram(
            "ackord_engine_commit_entries",
            "Log entries made durable by one commit.",
            buckets=_BATCH_COUNT,
            registry=registry,
        )
        self._fsync = Histogram(
            "ackord_engine_commit_seconds",
            "Duration of one synced commit of the engine.",
            buckets=_FSYNC_S,
            registry=registry,
        )
        self._loop_lag = Histogram(
            "ackord_loop_lag_seconds",
            "How much later than asked the event loop ran a timer.",
            buckets=_LOOP_LAG_S,
            registry=registry,
        )
        self._loop_blocked = Histogram(
            "ackord_loop_blocked_seconds",
            "The loop's lag less its thread's wait for a processor: what the node did itself.",
            buckets=_LOOP_LAG_S,
            registry=registry,
        )
        self._in_sync = Gauge(
            "ackord_in_sync_members",
            "Members of a tablet's in-sync set, told by its coordinator.",
            ("tablet",),
            registry=registry,
        )
        self._lag = Gauge(
            "ackord_replica_lag_entries",
            "Log entries that a member has not confirmed, told by the tablet's coordinator.",
            ("tablet", "member"),
            registry=registry,
        )
        self._queue = Gauge("ackord_queue_size", "What waits in a queue.", ("queue",), registry=registry)
        self._peer_up = Gauge(
            "ackord_peer_link_up", "1 if the link to the peer is open.", ("peer",), registry=registry
        )
        self._streams = Gauge("ackord_client_streams", "Open streams of clients.", registry=registry)
        self._register_upkeep(registry)
        self._counters: dict[tuple[str, str], Counter] = {}
        self._latencies: dict[str, Histogram] = {}
        self._members: dict[int, set[str]] = {}  # of the tablets that have a lag series
        self._told: dict[int, tuple[int, dict[str, int]]] = {}  # of each of them, what its series say

    def _register_upkeep(self, registry: CollectorRegistry) -> None:
        """What is removed in the background."""
        self._rows_expired = Counter(
            "ackord_rows_expired", "Expired rows that this node's tablets deleted.", registry=registry
        )
        self._expiry_lag = Gauge(
            "ackord_expiry_lag_seconds",
            "How long ago the row that waits longest for its deletion expired, where this node coordinates.",
            registry=registry,
        )
        self._versions_removed = Counter(
            "ackord_versions_removed",
            "Versions of rows that were removed from this node's disk.",
            registry=registry,
        )
        self._collector_keys = Gauge(
            "ackord_collector_waiting_keys",
            "Rows that were written and wait for the removal of their old versions.",
            registry=registry,
        )
        self._collector_lag = Gauge(
            "ackord_collector_lag_seconds",
            "How long the first of them has waited.",
            registry=registry,
        )

    # ------------------------------------------------------------------ HTTP faces

    def operations(self, op: str, outcome: str, count: int) -> None:
        """``count`` operations ended so; ``outcome`` is "ok" or an error's name."""
        counter = self._counters.get((op, outcome))
        if counter is None:
            counter = self._counters[(op, outcome)] = self._operations.labels(op, outcome)
        counter.inc(count)

    def request_done(self, op: str, seconds: float) -> None:
        histogram = self._latencies.get(op)
        if histogram is None:
            histogram = self._latencies[op] = self._latency.labels(op)
        histogram.observe(seconds)

    def client_frame(self, ops_count: int) -> None:
        self._client_batch.observe(ops_count)

    def client_streams(self, count: int) -> None:
        self._streams.set(count)

    # ------------------------------------------------------------------ runtime

    def engine_commit(self, entries_count: int, seconds: float) -> None:
        """One synced group commit."""
        self._commit_batch.observe(entries_count)
        self._fsync.observe(seconds)

    def loop_lag(self, seconds: float) -> None:
        waited_s = self._waited_s()
        self._loop_lag.observe(seconds)
        self._loop_blocked.observe(max(0.0, seconds - (waited_s - self._waited_before_s)))
        self._waited_before_s = waited_s

    def queue(self, name: str, size: int) -> None:
        self._queue.labels(name).set(size)

    def peer_link(self, peer: str, is_up: bool) -> None:
        self._peer_up.labels(peer).set(1 if is_up else 0)

    def tablet(self, tablet: int, in_sync_count: int, lag_entries: dict[str, int]) -> None:
        """The state of a tablet that this node coordinates; ``lag_entries`` by member."""
        if self._told.get(tablet) == (in_sync_count, lag_entries):
            return
        self._told[tablet] = (in_sync_count, lag_entries)
        self._in_sync.labels(str(tablet)).set(in_sync_count)
        for gone in self._members.get(tablet, set()) - lag_entries.keys():
            self._lag.remove(str(tablet), gone)
        self._members[tablet] = set(lag_entries)
        for member, entries in lag_entries.items():
            self._lag.labels(str(tablet), member).set(entries)

    def expiry(self, rows_count: int, lag_s: float) -> None:
        """So many rows more were deleted because they had expired."""
        self._rows_expired.inc(rows_count)
        self._expiry_lag.set(lag_s)

    def collector(self, versions_count: int, keys_waiting_count: int, lag_s: float) -> None:
        """So many versions more were removed."""
        self._versions_removed.inc(versions_count)
        self._collector_keys.set(keys_waiting_count)
        self._collector_lag.set(lag_s)

    def forget_tablet(self, tablet: int) -> None:
        """This node does not coordinate the tablet (any more)."""
        if tablet not in self._members:
            return
        del self._told[tablet]
        self._in_sync.remove(str(tablet))
        for member in self._members.pop(tablet):
            self._lag.remove(str(tablet), member)

    def render(self) -> bytes:
        """The text exposition format."""
        self.look()
        return generate_latest(self.registry)
