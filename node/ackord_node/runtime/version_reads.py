"""Reads of earlier versions and of cells, of one tablet, on any replica that may answer.

What was at a version is settled once the commit point has passed it (rule R12): every later write gets a higher one.
A version above the tablet's last one is passed by a record that the coordinator appends first; other replicas send
such a read to it, or answer once their commit point is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ackord.errors import Error, InvalidRequest, VersionCollected
from ackord.wire.messages import (
    OP_AS_OF,
    OP_CELLS,
    OP_COUNT,
    OP_HISTORY,
    VERSION_COUNTER_BITS,
    WHOLE_GROUP,
    error_to_wire,
    is_error,
)
from ackord_node.core import effects as e
from ackord_node.core.history import Moment
from ackord_node.core.replica import READ_WAIT_S, Replica
from ackord_node.ports import Clock, Engine
from ackord_node.runtime.requests import GET_BYTES_MAX, Deferred
from ackord_node.runtime.scan import Range, Selection
from ackord_node.runtime.service import Respond

SCAN_KEYS_COUNT = 1_000  # looked at in one step of the event loop
SCAN_BYTES = 512 * 1024
HISTORY_RUN_COUNT = 16  # versions read before the first look at how large they are


class Host(Protocol):
    """What is needed of the tablet's host."""

    replica: Replica
    tablet: int

    def feed(self, event: e.Event) -> None: ...

    def selection(self, options: list[Any]) -> Selection: ...

    def elsewhere(self, reason: str) -> list[Any]: ...

    def guarded(self, rid: int, read: Callable[[], list[Any]], respond: Respond) -> None: ...


class VersionReads:
    def __init__(self, host: Host, engine: Engine, clock: Clock) -> None:
        self._host = host
        self._engine = engine
        self._clock = clock

    def take(self, group: list[Any], respond: Respond) -> None:
        """A group of OP_AS_OF, OP_HISTORY, OP_CELLS, OP_SCAN_AS_OF, or OP_COUNT as of a version, whose shape was
        checked."""
        rid, op = group[0], group[1]
        reads = self._host.replica.reads
        if op == OP_AS_OF:
            keys, as_of = group[3], group[4]
            row = lambda key: self._row_as_of(key, as_of)  # noqa: E731
            self._when_settled(rid, keys, as_of, lambda: self._rows(keys, row), respond)
        elif op == OP_HISTORY:
            key, before, count_max = group[3:]
            self._when_settled(rid, [key], None, lambda: [self._history(key, before, count_max)], respond)
        elif op == OP_CELLS:
            keys, bounds = group[3], group[4:]
            row = lambda key: reads.cells(key, *bounds)  # noqa: E731
            self._when_settled(rid, keys, None, lambda: self._rows(keys, row), respond)
        elif op == OP_COUNT:
            start, end, where, as_of = group[3:]
            wanted = Range(start, end, False, SCAN_KEYS_COUNT, SCAN_BYTES)
            self._when_settled(rid, None, as_of, lambda: [self._count(wanted, as_of, where)], respond)
        else:
            wanted, as_of, options = Range(*group[3:8]), group[8], group[9:]
            self._when_settled(rid, None, as_of, lambda: [self._page(wanted, as_of, options)], respond)

    def _rows(self, keys: list[bytes], read: Callable[[bytes], Any]) -> list[Any]:
        """One after the other; what goes beyond ``GET_BYTES_MAX`` is refused and may be asked again."""
        rows: list[Any] = []
        size = 0
        for key in keys:
            row = read(key) if size < GET_BYTES_MAX else self._host.elsewhere("overloaded")
            size += len(row) if type(row) is bytes else 0
            rows.append(row)
        return rows

    def _when_settled(
        self,
        rid: int,
        keys: list[bytes] | None,
        as_of: int | None,
        read: Callable[[], list[Any]],
        respond: Respond,
    ) -> None:
        """Answers at once, or once the commit point has reached what the read depends on. With a version nothing but
        that counts, since what is pending lies above it; ``keys`` None: none is looked at."""
        host, replica, now = self._host, self._host.replica, self._clock.now()
        s = replica.state

        def refused(reason: str = "no_lease") -> None:
            respond([rid, WHOLE_GROUP, host.elsewhere(reason)])

        def answer() -> None:
            if as_of is not None and as_of > s.commit_version:
                refused("not_coordinator")
            else:
                host.guarded(rid, read, respond)

        if not replica.may_read(now):
            refused()
            return
        if as_of is not None and as_of > s.last_version:
            problem = self._advance(as_of)
            if problem is not None:
                respond([rid, WHOLE_GROUP, problem])
                return
        is_member = replica.coordinator is None
        is_pending = is_member and (
            s.clock.at_end > s.clock.at_commit or any(key in s.overlay.pending for key in keys or ())
        )
        if as_of is not None:
            is_pending = as_of > s.commit_version or (is_member and s.clock.at_end > s.clock.at_commit)
        if not is_pending:
            answer()
        elif not replica.reads.wait(Deferred(answer, refused), [], [], now + READ_WAIT_S):
            refused()

    def _advance(self, as_of: int) -> list[Any] | None:
        """Makes sure that no write gets ``as_of`` any more; else why not. Only the coordinator can tell whether it is
        too far ahead: others may lag behind a version that was acknowledged, and their clocks too."""
        host, s = self._host, self._host.replica.state
        if host.replica.coordinator is None:
            return host.elsewhere("not_coordinator")
        limit = s.config.limits.as_of_ahead_ms
        if as_of >> VERSION_COUNTER_BITS > self._clock.wall_ms() + limit:
            return error_to_wire(
                InvalidRequest(
                    f"as_of={as_of} lies more than {limit} ms ahead of the clock",
                    field="as_of",
                    value=as_of,
                    limit=limit,
                )
            )
        host.feed(e.AdvanceVersion(as_of))
        return host.elsewhere("not_coordinator") if as_of > s.last_version else None

    def _row_as_of(self, key: bytes, as_of: int) -> Any:
        try:
            return self._host.replica.reads.row_as_of(key, as_of)
        except VersionCollected as error:
            return error_to_wire(error)

    def _history(self, key: bytes, before: int, count_max: int) -> list[Any]:
        """Versions newest first, in runs of few at first, so that large rows end it."""
        reads = self._host.replica.reads
        bytes_max = self._host.replica.state.config.limits.scan_page_bytes
        found: list[Any] = []
        size, run = 0, HISTORY_RUN_COUNT
        while len(found) < 2 * count_max and size < bytes_max:
            wanted = min(run, count_max - len(found) // 2)
            part, before, is_last = reads.history(key, before, wanted)
            for version, row in part:
                found += (version, row)
                size += 16 + (len(row) if row is not None else 0)
            if is_last:
                return [found, None]
            run *= 2
        return [found, before]

    def _page(self, wanted: Range, as_of: int, options: list[Any]) -> Any:
        """One page of what the range was at ``as_of``. A row that cannot be told any more ends the scan."""
        try:
            return self._page_as_of(wanted, as_of, self._host.selection(options) if options else None)
        except Error as error:
            return error_to_wire(error)

    def _count(self, wanted: Range, as_of: int, where: bytes | None) -> Any:
        """How many rows a stretch of the range had, and where the next one begins."""
        page = self._page(wanted, as_of, [where, None])
        return page if is_error(page) else [len(page[0]) // 2, page[1]]

    def _page_as_of(self, wanted: Range, as_of: int, selection: Selection | None) -> list[Any]:
        replica = self._host.replica
        s, reads = replica.state, replica.reads
        retention = s.retention
        if retention is None:
            raise VersionCollected(
                "a table that keeps no older versions cannot be scanned as of one", version=as_of
            )
        count = retention.keep_versions
        keys_max, bytes_max = min(SCAN_KEYS_COUNT, wanted.rows_max), min(SCAN_BYTES, wanted.bytes_max)
        stored, rest = self._engine.history_scan(
            self._host.tablet, wanted.start, wanted.end, wanted.reverse, as_of, count, keys_max, bytes_max
        )
        start, end = wanted.start, wanted.end
        if rest is not None:
            start, end = (rest, end) if wanted.reverse else (start, rest)
        moments = {at.key: at for at in stored}
        for key in s.recent.keys_in(start, end):
            moments.setdefault(key, Moment(key, [], None, None, None))
        found: list[bytes] = []
        for key in sorted(moments, reverse=wanted.reverse):
            at = s.recent.over(key, lambda key=key: moments[key], as_of, count)  # type: ignore[misc]
            row = reads.shown(retention.row_at(at, as_of, s.clock.at_commit))
            if row is not None and selection is not None:
                row = selection.take(key, row)
            if row is not None:
                found += (key, row)
        retention.check_scan(as_of, s.clock.at_commit)
        return [found, rest]
