"""What one seed decides before its run begins: sizes, knobs, which faults at which rates.

A plan is drawn from the seed alone, and then changed by what the command line says (``--without``, ``--clients``...),
so that a failing run can be made smaller and still be replayed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ackord.wire.limits import Limits
from ackord.wire.options import DEFAULT_OPTIONS, TableOptions
from ackord_node.core import log as core_log
from ackord_node.core.types import LogLimits, Timing
from ackord_node.runtime import tablet_host
from tests.sim.cluster import ClusterKnobs
from tests.sim.network import NetworkKnobs

TINY_LOG = LogLimits(
    memory_bytes=1500,
    disk_bytes=2500,
    append_bytes=1000,
    inflight_bytes=6000,
    entry_bytes=800,
    snapshot_chunk_bytes=300,
)
SMALL_LOG = LogLimits(
    memory_bytes=8_000, disk_bytes=30_000, append_bytes=8_000, inflight_bytes=64_000, entry_bytes=8_000
)

# What happens at single moments: kind -> mean times in ten seconds, if the seed has the kind at all.
EVENT_KINDS: dict[str, float] = {
    "partition full": 2.5,
    "partition one-way": 2.5,
    "partition bridged": 2.0,
    "link clogged": 2.5,
    "crash": 3.0,
    "power lost": 3.0,
    "cluster without power": 0.7,
    "fsync error": 2.0,
    "bit flip": 5.0,
    "disk lost": 1.5,
    "disk rolled back": 3.0,
    "disk stalled": 2.0,
    "disk full": 1.2,
    "session expired": 3.0,
    "coordination gone": 1.5,
    "coordination unreachable": 2.5,
    "pause": 4.0,
    "client paused": 1.5,
    "clock rate changed": 2.0,
    "wall clock jump": 1.5,
    "planned restart": 2.0,
    "hand-over": 3.0,
}
# What happens to messages all the time: rates are drawn when the seed has the kind.
MESSAGE_KINDS = (
    "message lost",
    "message duplicated",
    "message delayed",
    "message reordered",
    "connection broken",
    "table operation late",
)
# How the coordination service behaves, and what the seed begins with.
SERVICE_KINDS = ("watch late", "compare-and-set unknown")
START_KINDS = ("tables come and go", "node down from the start", "clocks beyond rho", "clocks within rho")
ALL_KINDS = (*EVENT_KINDS, *MESSAGE_KINDS, *SERVICE_KINDS, *START_KINDS)


# What a client may do beyond single writes and reads, beside one of the plain workloads.
ON_ANY_TABLE = ("transact", "transfers", "grow", "conditions", "numbers", "fleeting", "cells")
ON_HISTORY = ("merge", "merge", "versions", "versions", "versions")
SHORT_GRACE_MS = 700
MERGE_RULES = {"total": "sum", "items": "union"}


@dataclass(slots=True)
class Plan:
    seed: int
    seconds: float  # of the safety phase, virtual
    kinds: dict[str, float]  # which faults, and how often: factor on the rate above
    clients_count: int
    tablets_count: int
    concurrency: int
    pause_s: float  # between a client's operations
    knobs: ClusterKnobs
    network: NetworkKnobs
    pipeline_entries: int
    mark_bytes: int
    reads: list[str] = field(default_factory=list)  # of each client
    operations: list[str] = field(default_factory=list)  # beyond single writes and reads, one for each client
    options: TableOptions = DEFAULT_OPTIONS  # of the table that all share

    def has(self, kind: str) -> bool:
        return kind in self.kinds

    def shown(self) -> str:
        k, t = self.knobs, self.knobs.timing
        return (
            f"{k.nodes_count} nodes, {self.tablets_count} tablets, min {k.min_in_sync}, {self.clients_count} clients x "
            f"{self.concurrency}, {self.seconds:.1f} s, lease {t.lease}, confirm {t.confirm_timeout}, session "
            f"{k.session_timeout_ms} ms, log {k.log_limits.disk_bytes}, pipeline {self.pipeline_entries}; operations: "
            f"{', '.join(self.operations) or 'plain'} {self.options.to_wire() or ''}; faults: "
            f"{', '.join(sorted(self.kinds)) or 'none'}"
        )


def draw(seed: int) -> Plan:
    rng = random.Random(f"plan {seed}")
    five = rng.random() < 0.08
    kinds = _kinds(rng)
    timing = replace(
        Timing(),
        lease=rng.choice((0.2, 0.3, 0.5, 1.0)),
        confirm_timeout=rng.choice((0.3, 0.5, 1.0)),
        rejoin_pause=rng.choice((0.1, 0.5)),
        rejoin_pause_max=2.0,
        lock_rank_delay=rng.choice((0.05, 0.15)),
        retry_interval=rng.choice((0.1, 0.25)),
        balance_delay=rng.choice((1.0, 3.0, 1e9)),
    )
    within = timing.drift_max * 0.95
    is_drifting = "clocks within rho" in kinds
    knobs = ClusterKnobs(
        nodes_count=5 if five else 3,
        replicas_count=rng.choice((3, 5)) if five else 3,
        min_in_sync=rng.choice((1, 2, 2, 2)),
        timing=timing,
        log_limits=rng.choice((TINY_LOG, TINY_LOG, SMALL_LOG)),
        limits=_limits(rng),
        session_timeout_ms=rng.choice((800, 1500, 3000)),
        sync_s=rng.choice(((0.0001, 0.001), (0.0005, 0.004), (0.001, 0.03))),
        wal_bytes_max=rng.choice((4_000, 16_000, 64_000)),
        clock_rates=(1 - within, 1 + within) if is_drifting else (1.0, 1.0),
    )
    of_operations = random.Random(f"operations {seed}")
    operations, options = _operations(of_operations)
    if options.has_history and of_operations.random() < 0.25:  # deletions are forgotten within the run
        knobs.limits = replace(knobs.limits, tombstone_keep_ms=SHORT_GRACE_MS)
    return Plan(
        seed=seed,
        operations=operations,
        options=options,
        seconds=rng.choice((1.5, 1.5, 2.0, 2.5, 4.0)),
        kinds=kinds,
        clients_count=rng.choice((1, 2, 2, 3)),
        tablets_count=rng.choice((1, 1, 2, 3)) if five else rng.choice((1, 1, 1, 1, 2, 2, 2, 3, 3, 6)),
        concurrency=rng.choice((1, 1, 2)),
        pause_s=rng.choice((0.1, 0.15, 0.2)),
        knobs=knobs,
        network=_network(rng, kinds),
        pipeline_entries=rng.choice((1, 1, 2, 8)),
        mark_bytes=rng.choice((300, 2000)),
        reads=[rng.choice(("any", "round_robin", "round_robin", "coordinator")) for _ in range(8)],
    )


def _operations(rng: random.Random) -> tuple[list[str], TableOptions]:
    """What clients do beyond single writes and reads, in most seeds; and whether the table keeps versions."""
    if rng.random() < 0.4:
        return [], DEFAULT_OPTIONS
    has_history = rng.random() < 0.5
    names = [*ON_ANY_TABLE, *(ON_HISTORY if has_history else ())]
    operations = [rng.choice(names) for _ in range(8)]
    if not has_history:
        return operations, DEFAULT_OPTIONS
    keep_for = rng.choice((None, None, 0.5, 3.0))
    return operations, TableOptions(rng.choice((2, 4, 60)), keep_for, merge=MERGE_RULES)


def _kinds(rng: random.Random) -> dict[str, float]:
    """Some kinds and their intensity: a seed with everything at once proves less than many different ones."""
    if rng.random() < 0.03:
        return {}  # no faults at all: what fails then is the simulator, or everything
    share = rng.choice((0.1, 0.2, 0.3, 0.5))
    intensity = rng.choice((1.0, 1.5, 2.5, 4.0))
    kinds = {kind: intensity for kind in ALL_KINDS if rng.random() < share}
    if rng.random() < 0.6:
        kinds.pop("clocks beyond rho", None)  # it suspends the oracles of reads
    return kinds


def _network(rng: random.Random, kinds: dict[str, float]) -> NetworkKnobs:
    knobs = NetworkKnobs(delay_s=rng.choice(((0.0001, 0.0005), (0.0002, 0.002), (0.001, 0.02))))
    if "message lost" in kinds:
        knobs.loss_rate = rng.choice((0.003, 0.02, 0.08))
    if "message duplicated" in kinds:
        knobs.duplicate_rate = rng.choice((0.01, 0.05))
    if "message reordered" in kinds:
        knobs.late_rate = rng.choice((0.005, 0.02))
    if "message delayed" in kinds:
        knobs.tail_rate, knobs.tail_s = rng.choice(((0.002, 0.5), (0.01, 0.1), (0.03, 0.03)))
    if "connection broken" in kinds:
        knobs.break_rate = rng.choice((0.0005, 0.003))
    if "table operation late" in kinds:
        knobs.table_late_rate = rng.choice((0.1, 0.4))
    return knobs


def _limits(rng: random.Random) -> Limits:
    return replace(
        Limits(),
        clients_count=rng.choice((2, 4, 4096)),
        client_results_count=rng.choice((64, 65_536)),
        pending_ops_count=rng.choice((4, 64, 16_384)),
        waiting_reads_count=rng.choice((4, 16_384)),
        group_ops_count=rng.choice((4, 4096)),
        stream_inflight_ops_count=rng.choice((16, 65_536)),
        scan_page_rows_count=rng.choice((3, 1000)),
        scan_page_bytes=rng.choice((300, 1024 * 1024)),
        request_wait_ms=rng.choice((1500, 30_000)),
    )


def without(plan: Plan, kinds: Collection[str]) -> Plan:
    """The same plan with fewer kinds of faults."""
    left = {kind: rate for kind, rate in plan.kinds.items() if kind not in kinds}
    network = replace(plan.network)
    if "message lost" in kinds:
        network.loss_rate = 0.0
    if "message duplicated" in kinds:
        network.duplicate_rate = 0.0
    if "message reordered" in kinds:
        network.late_rate = 0.0
    if "message delayed" in kinds:
        network.tail_rate = 0.0
    if "connection broken" in kinds:
        network.break_rate = 0.0
    if "table operation late" in kinds:
        network.table_late_rate = 0.0
    knobs = plan.knobs
    if "clocks within rho" in kinds:
        knobs = replace(knobs, clock_rates=(1.0, 1.0))
    return replace(plan, kinds=left, network=network, knobs=knobs)


@contextmanager
def module_knobs(plan: Plan) -> Iterator[None]:
    """Constants of the product's modules that a seed draws too."""
    before = core_log.MARK_BYTES, tablet_host.PIPELINE_ENTRIES
    core_log.MARK_BYTES, tablet_host.PIPELINE_ENTRIES = plan.mark_bytes, plan.pipeline_entries
    try:
        yield
    finally:
        core_log.MARK_BYTES, tablet_host.PIPELINE_ENTRIES = before
