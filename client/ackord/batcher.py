"""Natural batching: what the calls of one turn of the event loop ask becomes one frame per node.

Calls only put an operation into ``pending``; the first of a turn asks the loop to run ``flush`` once all
callbacks that are ready now have run. There is no timer and nothing waits for another call: an idle caller's
operation leaves in the same turn. The operations of one tablet and kind form one group.

What fails goes through ``routing.after_failure``: answered to the caller, sent again at once, or parked until
its backoff has passed, a new routing table has come, or a node has come up. A sweep enforces deadlines and
looks after operations whose node has fallen silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from ackord.calls import Group, Identities, Operation, Parked, QueueOptions, Write, groups_of
from ackord.errors import Error, TableNotFound, Unavailable
from ackord.gathering import Gather
from ackord.link import PATIENCE_S, NodeLink
from ackord.reads import ReadGroup, Reads
from ackord.refusals import queue_full, too_late, unreachable
from ackord.routing import (
    AVOID_S,
    READ_FRAME_OPS,
    REDIRECTS_MAX,
    Next,
    NodeChooser,
    RoutingTable,
    TabletRoute,
    after_failure,
    backoff_s,
    final_error,
)
from ackord.row import Row
from ackord.transport import Cancellable, Environment, Transport
from ackord.wire.messages import (
    CALL_OPS,
    OP_AS_OF,
    OP_GET,
    OP_HOLD,
    OP_SELECT,
    OP_WRITE,
    WHOLE_GROUP,
    error_from_wire,
    is_error,
)

SWEEP_INTERVAL_S: Final = 0.25  # at most, while anything is under way
GROUP_OPS_MAX: Final = 1_024


class Batcher:
    """All operations of one store that are under way."""

    def __init__(
        self,
        environment: Environment,
        transport: Transport,
        routing: RoutingTable,
        chooser: NodeChooser,
        request_refresh: Callable[[], None],
        options: QueueOptions,
    ) -> None:
        self.routing = routing
        self.links: dict[str, NodeLink] = {}
        self.open_count = 0  # operations that have no answer
        self.open_bytes = 0
        self.on_told: Callable[[NodeLink, Any, Any], None] = lambda link, hold, told: None
        self._environment = environment
        self._transport = transport
        self._chooser = chooser
        self._request_refresh = request_refresh
        self._options = options
        self._up: dict[str, NodeLink] = {}
        self._suspect: set[str] = set()
        self._pending: dict[int, dict[TabletRoute, list[Any]]] = {op: {} for op in CALL_OPS}
        self.reads = Reads(self)
        self._gather = Gather(environment, self._flush, self.flush_soon)
        self.writes_answered = self._gather.answered
        self._parked: dict[Parked, None] = {}  # in order of arrival
        self._flush_timer: Cancellable | None = None
        self._sweep_timer: Cancellable | None = None
        self._sweep_at = float("inf")
        self._identities = Identities(environment, routing.now_version)
        self._closing: dict[asyncio.Task[None], None] = {}
        self._is_closed = False
        self._update_links()

    # ---------------------------------------------------------------------------------- entry

    def add(self, op: Operation) -> None:
        """Takes a new operation; Unavailable if the queue is full or closed."""
        self.take_room(1, op.size)
        self._enqueue(op)

    def take_room(self, count: int, size: int = 0) -> None:
        """For so many operations, of so many bytes; Unavailable if there is none."""
        open_count, open_bytes, options = self.open_count + count, self.open_bytes + size, self._options
        if self._is_closed:
            raise Unavailable("the store is closed")
        if open_count > options.queue_ops_max or open_bytes > options.queue_bytes_max:
            has_count = open_count > options.queue_ops_max
            raise queue_full(self.open_count, self.open_bytes, options, has_count=has_count)
        self.open_count, self.open_bytes = open_count, open_bytes

    def _enqueue(self, op: Operation) -> None:
        pending = self._pending[op.op]
        ops = pending.get(op.tablet)
        if ops is None:
            pending[op.tablet] = [op]
            self.flush_soon()
        else:
            ops.append(op)

    def flush_soon(self) -> None:
        """At the end of this turn of the loop."""
        if self._flush_timer is None:
            self._flush_timer = self._environment.call_soon(self._flush)

    def version_seen(self, version: int) -> None:
        self._identities.version_seen(version)

    # -------------------------------------------------------------------------------- sending

    def _flush(self) -> None:
        self._flush_timer = None
        now = self._environment.now()
        touched: dict[str, NodeLink] = {}
        beside = self._flush_reads(touched, now)
        for op, pending in self._pending.items():
            if not pending:
                continue
            self._pending[op] = {}
            for tablet, ops in pending.items():
                link = self._link_for(op, tablet, now, beside)
                if op == OP_WRITE:
                    if link is not None and self._gather.holds(link, len(ops)):
                        self._pending[op][tablet] = ops
                        continue
                else:
                    beside = len(ops) + (beside if beside < READ_FRAME_OPS else 0)
                if link is None:
                    self._park_unreachable(op, tablet, ops)
                    continue
                touched[link.name] = link
                for group in groups_of(op, tablet, ops, self._identities, self._group_ops_max):
                    link.submit(group)
                    self._watch(group.deadline)
        for link in touched.values():
            link.pump()

    def _flush_reads(self, touched: dict[str, NodeLink], now: float) -> int:
        """How many reads leave for the node that the last of them goes to."""
        beside = 0
        for group in self.reads.take(self._group_ops_max):
            link = self._link_for(OP_GET, group.tablet, now, beside)
            count = len(group.keys)
            beside = count + (beside if beside < READ_FRAME_OPS else 0)
            if link is None:
                self._park_unreachable(OP_GET, group.tablet, group.ops)
                continue
            touched[link.name] = link
            link.submit(group)
            self._watch(group.deadline)
        return beside

    @property
    def _group_ops_max(self) -> int:
        return min(GROUP_OPS_MAX, self.routing.limits.group_ops_count, self._options.inflight_ops_max)

    def _link_for(self, op: int, tablet: TabletRoute, now: float, beside: int = 0) -> NodeLink | None:
        if op == OP_WRITE:
            name = self._chooser.for_write(tablet, self._up)
        else:
            name = self._chooser.for_read(tablet, self._up, self._suspect, now, beside)
        return self._up[name] if name is not None else None

    def prepare(self, group: Group) -> bool:
        if isinstance(group, ReadGroup) and group.is_lean and not group.has_absent_callers():
            return True
        left = [op for op in group.ops if op is not None and not op.future.done()]
        if len(left) < len(group.ops):
            gone = [op for op in group.take_all() if op.future.done()]
            group.ops, group.unanswered_count = left, len(left)
            for op in gone:
                self._finish(op, None)
        return bool(left)

    # ------------------------------------------------------------------------------ answering

    def link_answered(self, link: NodeLink, group: Group, indices: Any, results: Any) -> int:
        if self._suspect:
            self._suspect.discard(link.name)
        failed: list[tuple[Operation, Error]] = []
        if indices is None and isinstance(group, ReadGroup) and group.is_lean and group.deliver(results):
            self._chooser.measured(link.name, self._environment.now() - group.sent_at)
            self.open_count -= len(results)
            return len(results)
        if group.op >= OP_HOLD:
            results = group.unwrapped(link.name, indices, results)
        if indices is None:
            if len(results) != len(group.ops):
                raise ValueError(f"{len(results)} results for {len(group.ops)} operations")
            count = group.unanswered_count
            ops, group.ops = group.ops, []
            if group.op == OP_GET:
                self._chooser.measured(link.name, self._environment.now() - group.sent_at)
        elif indices == WHOLE_GROUP:
            count = group.unanswered_count
            ops = group.take_all()
            results = [results] * len(ops)
        else:
            count = len(indices)
            ops = [group.ops[index] for index in indices]
            if not len(results) == len(set(indices)) == count:
                raise ValueError(f"{len(results)} results for {count} operations")
            for index in indices:
                group.ops[index] = None
        self._take_results(group.op, ops, results, failed)
        if failed:
            self._retry([(op, self._judge(op, error, link.name)) for op, error in failed])
        if count >= group.unanswered_count and any(group.ops):
            raise ValueError("an operation was answered twice, and another one of its group not at all")
        return count

    def _take_results(
        self, kind: int, ops: list[Any], results: list[Any], failed: list[tuple[Operation, Error]]
    ) -> None:
        is_get = kind in (OP_GET, OP_SELECT, OP_HOLD)
        for op, result in zip(ops, results, strict=True):
            if op is None:
                continue
            if is_get:
                if type(result) is bytes:
                    result = Row(op.key, result)
                elif result is not None:
                    failed.append((op, error_from_wire(result)))
                    continue
            elif kind == OP_WRITE:
                if type(result) is not int:
                    result = op.written(result)
                    if isinstance(result, Error):
                        failed.append((op, result))
                        continue
                op.release()
            elif is_error(result) or (kind != OP_AS_OF and type(result) is not list):
                failed.append((op, error_from_wire(result)))
                continue
            self.open_count -= 1
            self.open_bytes -= op.size
            future = op.future
            if not future.done():
                if op.many is None:
                    future.set_result(result)
                else:
                    op.many.put(op.index, result)

    def _finish(self, op: Operation, result: Any) -> None:
        """The end of an operation that was taken out of where it was."""
        self.open_count -= 1
        self.open_bytes -= op.size
        if isinstance(op, Write):
            op.release()
        op.deliver(result)

    def _finish_error(self, op: Operation, error: Error) -> None:
        self._finish(op, final_error(error, is_write=isinstance(op, Write), unknown=op.is_unknown))

    # -------------------------------------------------------------------------------- retries

    def _judge(self, op: Operation, error: Error, node: str) -> Next:
        """Decides about an attempt that ``node`` answered with an error, and learns from it."""
        op.error = error
        is_write, unknown = isinstance(op, Write), op.is_unknown
        verdict = after_failure(
            error, is_write=is_write, unknown_before=unknown, node=node, redirects=op.redirects
        )
        if isinstance(op, Write):
            op.is_unknown = op.is_unknown or verdict.unknown
            if verdict.new_id and verdict.retry:
                self._identities.refused(op, error)
        elif verdict.retry:
            op.tablet.avoid[node] = self._environment.now() + AVOID_S
        if verdict.coordinator is not None:
            self._route(op)
            op.tablet.coordinator = verdict.coordinator
        if verdict.refresh:
            self._request_refresh()
        return verdict

    def _retry(self, failed: list[tuple[Operation, Next]]) -> None:
        later: dict[tuple[int, Any], list[Operation]] = {}
        for op, verdict in failed:
            if not verdict.retry:
                assert op.error is not None
                self._finish_error(op, op.error)
                continue
            if verdict.at_once and op.redirects < REDIRECTS_MAX:
                op.redirects += 1
                self._requeue(op)
                continue
            op.redirects = 0
            op.failures += 1
            later.setdefault((op.failures, verdict.retry_after_ms), []).append(op)
        for (failures, hint), ops in later.items():
            self._park(ops, backoff_s(failures, self._environment.jitter(), hint))

    def _park(self, ops: list[Operation], seconds: float) -> None:
        parked = Parked(ops)
        self._parked[parked] = None
        parked.timer = self._environment.call_later(seconds, lambda: self._unpark(parked))
        self._watch(parked.deadline)

    def _park_unreachable(self, op: int, tablet: TabletRoute, ops: list[Any]) -> None:
        """No node can be asked for this tablet now."""
        link = self.links.get(tablet.coordinator or "")
        error = unreachable(tablet, op == OP_WRITE, link.error.message if link is not None else "unknown")
        verdict = Next(retry=True)
        for item in ops:
            item.error = error
        self._request_refresh()
        self._retry([(item, verdict) for item in ops])

    def _unpark(self, parked: Parked) -> None:
        if parked.timer is not None:
            parked.timer.cancel()
        self._parked.pop(parked, None)
        for op in parked.ops:
            self._requeue(op)

    def _wake_all(self) -> None:
        for parked in list(self._parked):
            self._unpark(parked)

    def _requeue(self, op: Operation) -> None:
        if op.future.done():
            self._finish(op, None)
        elif op.deadline <= self._environment.now():
            self._expire(op, is_sent=False)
        elif not self._route(op) and op.error is not None and op.error.detail.get("reason") == "no_tablet":
            name = op.table.name
            self._finish_error(op, TableNotFound(f"the table {name!r} was dropped", table=name))
        else:
            self._enqueue(op)

    def _route(self, op: Operation) -> bool:
        """Finds the operation's tablet in the routing table of now; False if the table is not in it."""
        table = self.routing.tables.get(op.table.name)
        if table is None or table.id != op.table.id:
            return False
        op.table, op.tablet = table, table.tablet_of(op.encoded)
        return True

    # ---------------------------------------------------------------------- nodes come and go

    def adopt(self, routing: RoutingTable) -> None:
        """Takes a new routing table; what waited for one is tried again."""
        routing.inherit(self.routing)
        self.routing = routing
        self.version_seen(routing.now_version)
        self._update_links()
        self._wake_all()

    def _update_links(self) -> None:
        nodes = self.routing.nodes
        for name, link in list(self.links.items()):
            if nodes.get(name) != link.url:
                del self.links[name]
                link.drop("no longer part of the cluster at this address")
                task = asyncio.get_running_loop().create_task(link.close())
                self._closing[task] = None
                task.add_done_callback(self._closing.pop)
        for name, url in nodes.items():
            if name not in self.links:
                link = NodeLink(
                    name, url, self.routing.cluster, self.routing.limits, self._options.inflight_ops_max, self
                )
                self.links[name] = link
                link.start(self._environment, self._transport)

    def link_up(self, link: NodeLink) -> None:
        self._up[link.name] = link
        self._wake_all()

    def link_down(self, link: NodeLink, groups: list[Group], unsent: list[Group]) -> None:
        if self._up.get(link.name) is link:
            del self._up[link.name]
        self._suspect.discard(link.name)
        if groups:
            self._request_refresh()
        lost: list[tuple[Operation, Next]] = []
        for group in groups:
            for op in group.take_all():
                if isinstance(op, Write):
                    op.is_unknown = True
                lost.append((op, Next(retry=True, at_once=not isinstance(op, Write))))
        lost.extend((op, Next(retry=True)) for group in unsent for op in group.take_all())
        for op, _ in lost:
            op.error = link.error
        self._retry(lost)

    # ----------------------------------------------------------------------------------- time

    def _watch(self, deadline: float) -> None:
        """Makes sure that the sweep runs by then."""
        if deadline < self._sweep_at or self._sweep_timer is None:
            now = self._environment.now()
            if self._sweep_timer is not None:
                self._sweep_timer.cancel()
            self._sweep_at = min(deadline, now + SWEEP_INTERVAL_S)
            self._sweep_timer = self._environment.call_later(max(self._sweep_at - now, 0.0), self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        self._sweep_at = float("inf")
        now = self._environment.now()
        deadlines: list[float] = []
        for link in list(self.links.values()):
            for group in list(link.inflight.values()):
                if now - group.reviewed_at >= PATIENCE_S:
                    group.reviewed_at = now
                    self._review(link, group, now)
                self._expire_group(group, now, is_sent=True)
                deadlines.append(group.deadline)
            for group in list(link.backlog):
                self._expire_group(group, now, is_sent=False)
                deadlines.append(group.deadline)
            if link.is_silent():
                self._suspect.add(link.name)
        for parked in list(self._parked):
            if parked.deadline <= now:
                self._unpark(parked)
            else:
                deadlines.append(parked.deadline)
        if deadlines:
            self._watch(min(deadlines))

    def _expire_group(self, group: Group, now: float, *, is_sent: bool) -> None:
        if group.deadline <= now:
            for op in group.take_expired(now):
                self._expire(op, is_sent=is_sent)

    def _expire(self, op: Operation, *, is_sent: bool) -> None:
        if op.future.done():
            self._finish(op, None)
        else:
            self._finish(op, too_late(op, is_sent=is_sent))

    def _review(self, link: NodeLink, group: Group, now: float) -> None:
        """A group has waited long. Reads are asked elsewhere too; writes follow their coordinator."""
        left = [op for op in group.ops if op is not None]
        if not left:
            return
        op = left[0]
        self._route(op)
        if group.op == OP_WRITE:
            self._request_refresh()
        else:
            op.tablet.avoid[link.name] = now + PATIENCE_S
        other = self._link_for(group.op, op.tablet, now)
        if other is None or other is link:
            return
        for op in group.take_all():
            op.error = Unavailable(f"node {link.name} has not answered for {now - group.sent_at:.1f} s")
            if isinstance(op, Write):
                op.is_unknown = True
            self._requeue(op)

    # --------------------------------------------------------------------------------- closing

    async def close(self) -> None:
        """Answers everything that is under way and ends all streams."""
        self._is_closed = True
        error = Unavailable("the store was closed")
        sent: list[Operation] = []
        unsent = [op for pending in self._pending.values() for ops in pending.values() for op in ops]
        unsent.extend(op for group in self.reads.take(GROUP_OPS_MAX) for op in group.ops)
        for timer in (self._flush_timer, self._sweep_timer, self._gather.timer):
            if timer is not None:
                timer.cancel()
        for parked in self._parked:
            if parked.timer is not None:
                parked.timer.cancel()
            unsent.extend(parked.ops)
        self._parked.clear()
        self._pending = {op: {} for op in CALL_OPS}
        for link in self.links.values():
            sent.extend(op for group in link.inflight.values() for op in group.take_all())
            unsent.extend(op for group in link.backlog for op in group.take_all())
            link.backlog.clear()
        for op in sent:
            if isinstance(op, Write):
                op.is_unknown = True
        for op in sent + unsent:
            self._finish_error(op, error)
        closing = [link.close() for link in self.links.values()]
        await asyncio.gather(*closing, *self._closing)
