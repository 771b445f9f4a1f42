"""Reports every change of a set of znodes, by watches and by a poll.

Watches can be lost (a reconnect drops them, a proxy can swallow an event), so they only make a report
fast; the poll makes it certain. The poll costs the same however many znodes there are: at most
`POLLED_MAX` of them in each interval, in turn, in slices spread over the interval, so that neither the
service nor the event loop sees a burst. Every batch of reads is ordered behind one sync.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from aiozk import exc, protocol

from ackord_node.adapters.zookeeper_session import GuardedSession
from ackord_node.ports import Clock, CoordinationError

BATCH_MAX = 64  # znodes read at once after a watch or a reconnect
SLICE = 16  # znodes polled at once
POLLED_MAX = 64  # znodes polled in one interval: two for each of 32 tablets
RETRY_S = 0.1

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """A znode as read: its data and data version, or, for a parent, its children and their version."""

    data: bytes
    version: int
    children: tuple[str, ...] = ()


Report = Callable[[Seen | None], None]  # None: the znode does not exist


@dataclass(slots=True, eq=False)
class _Watched:
    path: str
    is_parent: bool
    report: Report
    last: Seen | None = None
    is_reported: bool = False


class ZnodeWatcher:
    """Calls ``report`` (by ``call_soon``) for each added znode with what stands, then at each change."""

    def __init__(self, session: GuardedSession, clock: Clock) -> None:
        self._session = session
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._ring: deque[_Watched] = deque()
        self._dirty: dict[str, None] = {}  # an ordered set
        self._wake = asyncio.Event()
        self._is_armed = False
        self._poll_at_s = 0.0

    def add(self, path: str, report: Report, *, is_parent: bool = False) -> None:
        if path not in self._watched:
            watched = _Watched(path, is_parent, report)
            self._watched[path] = watched
            self._ring.append(watched)
            self.touch(path)

    def remove(self, path: str) -> None:
        self._watched.pop(path, None)  # the ring drops it when its turn comes
        self._dirty.pop(path, None)

    def touch(self, path: str, *, report_again: bool = False) -> None:
        """Reads the znode soon; ``report_again``: reports it even if it did not change."""
        watched = self._watched.get(path)
        if watched is not None:
            if report_again:
                watched.is_reported = False
            self._dirty[path] = None
            self._wake.set()

    def resume(self) -> None:
        """A connection is usable: its watches are none yet, so everything is read again."""
        self._is_armed = True
        self._dirty.update(dict.fromkeys(self._watched))
        self._wake.set()

    def suspend(self) -> None:
        self._is_armed = False

    async def run(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                try:
                    await self._refresh(batch)
                except CoordinationError as error:
                    log.debug("znodes could not be read: %s", error)
                    self._dirty.update(dict.fromkeys(watched.path for watched in batch))
                    await asyncio.sleep(RETRY_S)
                continue
            self._wake.clear()
            await _wait(self._wake, self._poll_at_s - self._clock.now() if self._is_armed else None)

    def _next_batch(self) -> list[_Watched]:
        if not self._is_armed:
            return []
        paths = list(islice(self._dirty, BATCH_MAX))
        for path in paths:
            del self._dirty[path]
        batch = [self._watched[path] for path in paths if path in self._watched]
        if self._clock.now() >= self._poll_at_s:
            batch += self._next_slice()
        return batch

    def _next_slice(self) -> list[_Watched]:
        interval_s = max(0.5, self._session.timeout_s / 3)
        slices = max(1, -(-min(len(self._watched), POLLED_MAX) // SLICE))
        self._poll_at_s = self._clock.now() + interval_s / slices
        polled: list[_Watched] = []
        for _ in range(min(SLICE, len(self._ring))):
            watched = self._ring.popleft()
            if self._watched.get(watched.path) is watched:
                polled.append(watched)
                self._ring.append(watched)
        return polled

    async def _refresh(self, batch: list[_Watched]) -> None:
        requests: list[protocol.Request] = []
        for watched in batch:
            if watched.last is None:  # a read of an absent znode sets no watch, an exists does
                requests.append(protocol.ExistsRequest(path=watched.path, watch=True))
            requests.append(_read_request(watched))
        armed = [watched.last is None for watched in batch]
        answers = iter(await self._session.read(requests))
        for watched, exists_was_sent in zip(batch, armed, strict=True):
            if exists_was_sent:
                next(answers)
            seen = _seen(next(answers))
            if seen is None and not exists_was_sent:
                self._dirty[watched.path] = None
            if watched.is_reported and seen == watched.last:
                continue
            watched.last, watched.is_reported = seen, True
            asyncio.get_running_loop().call_soon(self._deliver, watched, seen)

    def _deliver(self, watched: _Watched, seen: Seen | None) -> None:
        if self._watched.get(watched.path) is watched:
            watched.report(seen)


def _read_request(watched: _Watched) -> protocol.Request:
    if watched.is_parent:
        return protocol.GetChildren2Request(path=watched.path, watch=True)
    return protocol.GetDataRequest(path=watched.path, watch=True)


def _seen(answer: protocol.Response | exc.ResponseError) -> Seen | None:
    if isinstance(answer, protocol.GetDataResponse):
        return Seen(answer.data or b"", answer.stat.version)
    if isinstance(answer, protocol.GetChildren2Response):
        return Seen(b"", answer.stat.child_version, tuple(sorted(answer.children)))
    return None


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(None if timeout_s is None else max(0.0, timeout_s)):
            await event.wait()
    except TimeoutError:
        return
