"""Which node, retry or not, what next: the SDK's decisions as pure functions and plain state.

No clock, no randomness, no I/O: ``now`` (seconds, monotonic) and ``jitter`` (0 <= jitter < 1) are arguments.

Whether a write may have happened is decided here (rule R17). A call is one write under one request id (rule
R16), sent as one or more attempts. An attempt that ended without an answer may have happened. The call's
outcome is unknown if any attempt's was, unless a later attempt under the same id got an answer about the
*write*: its version, or that it was refused on the row's state. An answer about the *node* (it is no
coordinator, it is overloaded) settles only its own attempt.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from ackord.errors import Conflict, Error, InvalidRequest, OutcomeUnknown, Unavailable, VersionCollected
from ackord.wire.keys import KeySchema
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import tablets_from_wire

BACKOFF_FIRST_S: Final = 0.005
BACKOFF_MAX_S: Final = 0.2
AVOID_S: Final = 0.25  # a replica that could not answer for a tablet is avoided so long
REDIRECTS_MAX: Final = 2  # "ask that node" is followed at once so often in a row, then with a pause
EQUAL_FACTOR: Final = 1.5  # nodes within this factor of the nearest, plus ...
EQUAL_SLACK_S: Final = 0.002  # ... this much, count as equally near
READ_FRAME_OPS: Final = 96  # reads of one turn of the loop go to one node until they are about so many
PROBE_INTERVAL: Final = 64  # every so many reads goes to the next node whatever its latency
SMOOTHING: Final = 0.1  # weight of a new latency sample

REFUSED_ID_REASONS: Final = (
    "stale",
    "client_collected",
    "registered_ahead",
)  # the node forgot this client, or it registered by a clock that was ahead: its id can never execute


# ---------------------------------------------------------------------------------- routing table


@dataclass(slots=True, eq=False)
class TabletRoute:
    """One tablet's place. ``coordinator`` is corrected in place by what nodes answer."""

    id: int
    table: str
    start: bytes
    end: bytes | None
    coordinator: str | None
    in_sync: tuple[str, ...]
    epoch: int
    avoid: dict[str, float] = field(default_factory=dict)  # node -> until when (seconds)
    reads: Any = None  # the reads of this turn of the loop that leave together, kept by `reads.Reads`


@dataclass(slots=True, eq=False)
class TableRoute:
    """A table's key schema and tablets in key order."""

    id: int
    name: str
    key: KeySchema
    tablets: list[TabletRoute]
    starts: list[bytes]

    def tablet_of(self, key: bytes) -> TabletRoute:
        return self.tablets[bisect_right(self.starts, key) - 1]


@dataclass(slots=True, eq=False)
class RoutingTable:
    """What a node answers to GET /v1/routing."""

    cluster: str
    cluster_id: str
    now_version: int
    version: int
    nodes: dict[str, str]  # name -> "http://host:port"
    limits: Limits
    tables: dict[str, TableRoute]
    doubtful: list[str] = field(
        default_factory=list
    )  # tables of an earlier answer that this one did not have

    @classmethod
    def from_wire(cls, wire: Any) -> RoutingTable:
        """ValueError if this is no routing table of a protocol version that this SDK speaks."""
        if not isinstance(wire, Mapping) or not isinstance(wire.get("wire"), int):
            raise ValueError("the answer is no routing table")
        limits = limits_from_wire(wire.get("limits"))
        nodes, tables = wire.get("nodes"), wire.get("tables")
        if not isinstance(nodes, Mapping) or not isinstance(tables, Mapping):
            raise ValueError("a routing table has nodes and tables")
        return cls(
            cluster=str(wire.get("cluster", "")),
            cluster_id=str(wire.get("cluster_id", "")),
            now_version=_int(wire, "now_version"),
            version=_int(wire, "version"),
            nodes={str(name): str(url).rstrip("/") for name, url in nodes.items()},
            limits=limits,
            tables={str(name): _table_route(str(name), table, limits) for name, table in tables.items()},
        )

    def inherit(self, older: RoutingTable) -> None:
        """Keeps what was learned about tablets since ``older`` was fetched: nodes to avoid, and coordinators and
        tables that this table, perhaps from a node that lags, knows only from earlier or not at all."""
        for name, before in older.tables.items():
            table = self.tables.get(name)
            if table is None or table.id < before.id:  # numbers are never given out twice
                self.tables[name] = before
                self.doubtful.append(name)
            if table is None or before.id != table.id:
                continue
            known = {tablet.id: tablet for tablet in before.tablets}
            for tablet in table.tablets:
                old = known.get(tablet.id)
                if old is None:
                    continue
                tablet.avoid = old.avoid
                if old.epoch > tablet.epoch:
                    tablet.coordinator, tablet.in_sync, tablet.epoch = old.coordinator, old.in_sync, old.epoch


def limits_from_wire(wire: Any) -> Limits:
    """The cluster's limits; fields that this SDK does not know are left out, missing ones keep the
    default."""
    if not isinstance(wire, Mapping):
        return DEFAULT_LIMITS
    known = {item.name for item in fields(Limits)}
    return Limits(
        **{name: value for name, value in wire.items() if name in known and type(value) is int and value > 0}
    )


def _table_route(name: str, wire: Any, limits: Limits) -> TableRoute:
    if not isinstance(wire, Mapping):
        raise ValueError(f"table {name!r} is no map")
    try:
        key = KeySchema.from_wire(wire.get("key"), limits.key_column_bytes)
    except InvalidRequest as error:
        raise ValueError(f"table {name!r}: {error}") from None
    ranges = tablets_from_wire(wire.get("tablets"))
    tablets = []
    for tablet, item in zip(ranges, wire["tablets"], strict=True):
        coordinator, in_sync = item.get("coordinator"), item.get("in_sync", ())
        if not isinstance(in_sync, list | tuple):
            raise ValueError(f"the in-sync set of tablet {tablet.id} is no list")
        tablets.append(
            TabletRoute(
                id=tablet.id,
                table=name,
                start=tablet.start,
                end=tablet.end,
                coordinator=coordinator if isinstance(coordinator, str) else None,
                in_sync=tuple(map(str, in_sync)),
                epoch=_int(item, "epoch"),
            )
        )
    return TableRoute(_int(wire, "id"), name, key, tablets, [tablet.start for tablet in tablets])


def _int(wire: Mapping[str, Any], name: str) -> int:
    value = wire.get(name, 0)
    if type(value) is not int:
        raise ValueError(f"{name} is no integer: {ascii(value)[:60]}")
    return value


# ------------------------------------------------------------------------------------ choosing nodes


class NodeChooser:
    """Which node takes the next request.

    ``reads`` is "any" (the nearest in-sync replica by measured latency, in turn among equally near ones),
    "round_robin" (every in-sync replica in turn), "coordinator", or "node:NAME" (that node only).
    """

    def __init__(self, reads: str) -> None:
        is_node = str(reads).startswith("node:") and reads != "node:"
        if not is_node and reads not in ("any", "round_robin", "coordinator"):
            raise InvalidRequest(
                f"reads={reads!r} is none of 'any', 'round_robin', 'coordinator', 'node:NAME'",
                field="reads",
                value=ascii(reads)[:60],
            )
        self.reads = reads
        self.latency_s: dict[str, float] = {}
        self._turn = 0

    def measured(self, node: str, seconds: float) -> None:
        """A request to the node took so long."""
        before = self.latency_s.get(node)
        self.latency_s[node] = seconds if before is None else before + SMOOTHING * (seconds - before)

    def for_write(self, tablet: TabletRoute, up: Collection[str]) -> str | None:
        """The coordinator if there is a stream to it, else None: wait and refresh."""
        return tablet.coordinator if tablet.coordinator in up else None

    def for_read(
        self, tablet: TabletRoute, up: Collection[str], suspect: Collection[str], now: float, beside: int = 0
    ) -> str | None:
        """A node to read from. ``up`` are the nodes with a stream, ``suspect`` those of them that have
        stopped answering; they and the tablet's avoided ones come last. ``beside``: so many reads leave for
        the node of the call before in the same frame; while they are few it is chosen again, because a frame
        costs more than the reads in it. None: nobody to ask."""
        if self.reads == "coordinator":
            return self.for_write(tablet, up)
        if self.reads.startswith("node:"):
            name = self.reads[5:]
            return name if name in up else None
        candidates = [node for node in tablet.in_sync if node in up]
        if (
            tablet.coordinator is not None
            and tablet.coordinator not in candidates
            and tablet.coordinator in up
        ):
            candidates.append(tablet.coordinator)
        if tablet.avoid:
            candidates = self._without_avoided(tablet, candidates, now)
        if suspect:
            candidates = [node for node in candidates if node not in suspect] or candidates
        if len(candidates) <= 1:
            return candidates[0] if candidates else None
        if not 0 < beside < READ_FRAME_OPS:
            self._turn += 1
        if self.reads == "any" and self._turn % PROBE_INTERVAL:
            candidates = self._nearest(candidates)
        return candidates[self._turn % len(candidates)]

    def _without_avoided(self, tablet: TabletRoute, candidates: list[str], now: float) -> list[str]:
        for node, until in list(tablet.avoid.items()):
            if until <= now:
                del tablet.avoid[node]
        free = [node for node in candidates if node not in tablet.avoid]
        if free:
            return free
        return sorted(candidates, key=lambda node: tablet.avoid[node])[:1]

    def _nearest(self, candidates: list[str]) -> list[str]:
        latencies = [self.latency_s.get(node, 0.0) for node in candidates]  # unmeasured: try it
        bound = min(latencies) * EQUAL_FACTOR + EQUAL_SLACK_S
        return [node for node, latency in zip(candidates, latencies, strict=True) if latency <= bound]


# ---------------------------------------------------------------------------------------- retries


def backoff_s(failures: int, jitter: float, retry_after_ms: Any = None) -> float:
    """Seconds to wait after the ``failures``-th failure in a row (1, 2, ...): doubles from 5 ms to 200 ms,
    spread over half to one and a half of that; a node's hint is a lower bound, up to 10 s."""
    delay = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 20), BACKOFF_MAX_S) * (0.5 + jitter)
    if isinstance(retry_after_ms, int) and retry_after_ms > 0:
        delay = max(delay, min(retry_after_ms, 10_000) / 1000 * (1 + 0.25 * jitter))
    return delay


@dataclass(frozen=True, slots=True)
class Next:
    """What to do with an operation whose attempt failed."""

    retry: bool
    at_once: bool = False
    refresh: bool = False  # the routing table looks old
    unknown: bool = False  # this attempt may have happened
    new_id: bool = False  # the write needs a new request id; its old one certainly never ran
    coordinator: str | None = None  # what the node said
    retry_after_ms: Any = None


def after_failure(error: Error, *, is_write: bool, unknown_before: bool, node: str, redirects: int) -> Next:
    """Decides after an attempt at ``node`` was answered by ``error``. ``unknown_before``: an earlier attempt
    of this call may have happened. ``redirects``: redirections followed at once in a row so far."""
    reason = error.detail.get("reason")
    if is_write and reason in REFUSED_ID_REASONS and isinstance(error, Unavailable | OutcomeUnknown):
        return Next(retry=not unknown_before, at_once=True, unknown=unknown_before, new_id=True)
    if isinstance(error, OutcomeUnknown):
        return Next(retry=True, refresh=True, unknown=is_write)
    if not isinstance(error, Unavailable):
        return Next(retry=False)
    coordinator = error.detail.get("coordinator")
    coordinator = coordinator if isinstance(coordinator, str) else None
    moved = coordinator is not None and coordinator != node
    hint = error.detail.get("retry_after_ms")
    elsewhere = not is_write and reason in ("no_lease", "no_tablet", "not_coordinator", "stale_routing")
    return Next(
        retry=True,
        at_once=redirects < REDIRECTS_MAX and (moved if is_write else elsewhere),
        refresh=reason in ("not_coordinator", "no_lease", "no_tablet", "stale_routing", None),
        coordinator=coordinator if moved else None,
        retry_after_ms=hint if type(hint) is int else None,
    )


def settles(error: Error) -> bool:
    """Whether this answer tells what became of the *write*, earlier attempts under its id included."""
    return isinstance(error, Conflict | InvalidRequest | VersionCollected)


def final_error(error: Error, *, is_write: bool, unknown: bool) -> Error:
    """What the caller gets when no attempt follows. ``unknown``: an attempt without an answer may have
    happened (this one included, unless ``error`` is its answer)."""
    if not is_write:
        if not isinstance(error, OutcomeUnknown):
            return error
        return Unavailable(error.message, **error.detail)
    unknown = unknown or type(error) is Error  # an answer that this SDK does not know tells nothing
    if not unknown or settles(error) or isinstance(error, OutcomeUnknown):
        return error
    return OutcomeUnknown(
        f"an attempt of this write was not answered and may have happened; the last one: {error.message}",
        **error.detail,
    )
