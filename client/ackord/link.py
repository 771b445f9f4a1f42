"""The SDK's connection to one node: keeps a stream open, sends groups as frames, matches answers to them.

Bounded: at most ``inflight_ops_max`` operations are unanswered and about ``QUEUED_BYTES_MAX`` bytes unsent;
more wait in the backlog, which the batcher bounds. A node that stays silent while it owes answers is suspect:
reads prefer others; after ``SILENCE_S`` its stream is given up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from ackord.calls import Group
from ackord.errors import Error, Unauthorized, Unavailable, from_code
from ackord.routing import backoff_s
from ackord.transport import Environment, Stream, Transport
from ackord.wire.frames import encode_frame
from ackord.wire.limits import Limits
from ackord.wire.messages import HELLO_REFUSED, OP_WRITE, TOLD, WIRE_VERSION, WIRE_VERSION_OLDEST

FRAME_BYTES_TARGET: Final = 1024 * 1024  # groups are put into one frame up to about this size
QUEUED_BYTES_MAX: Final = 4 * 1024 * 1024
HELLO_TIMEOUT_S: Final = 3.0
PATIENCE_S: Final = 1.0  # a node that owes an answer and is silent for so long is suspect
SILENCE_S: Final = 40.0  # ... and for so long is given up; above limits.request_wait_ms


async def _end_of(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        await asyncio.wait([task])


class LinkOwner(Protocol):
    """Whom a link reports to."""

    def link_up(self, link: NodeLink) -> None: ...

    def link_down(self, link: NodeLink, groups: list[Group], unsent: list[Group]) -> None:
        """The stream ended: ``groups`` had no (complete) answer, ``unsent`` had not left."""

    def link_answered(self, link: NodeLink, group: Group, indices: Any, results: Any) -> int:
        """An answer to a group; returns how many of its operations it answered. ValueError or TypeError if
        the answer is malformed."""

    def prepare(self, group: Group) -> bool:
        """Takes out operations whose caller has gone; False if none is left."""

    def writes_answered(self, link: NodeLink) -> None:
        """The node owes no answer to a write any more."""

    def version_seen(self, version: int) -> None:
        """The cluster's clock, from a hello."""

    @property
    def on_told(self) -> Callable[[NodeLink, Any, Any], None]:
        """Gets what the node tells beside answers: ``[tablet, number]`` and ``[seq, version, [key, ...]]`` (R19)."""


class NodeLink:
    """One node's stream, renewed for as long as the link lives."""

    def __init__(
        self, name: str, url: str, cluster: str, limits: Limits, inflight_ops_max: int, owner: LinkOwner
    ) -> None:
        self.name = name
        self.url = url
        self.error: Error = Unavailable(f"no connection to node {name} at {url} yet")
        self.is_up = False
        self.inflight: dict[int, Group] = {}
        self.inflight_count = 0
        self.writes_count = 0  # groups of writes that the node has not answered
        self.round_s = 0.0  # from sending a group of writes to its answer, the last time
        self.round_s_min = 0.0  # and at best, on this connection; 0.0: there was none
        self.backlog: deque[Group] = deque()
        self.last_heard_at = 0.0
        self._cluster = cluster
        self._limits = limits
        self._inflight_ops_max = min(inflight_ops_max, limits.stream_inflight_ops_count)
        self._owner = owner
        self._next_rid = 1
        self._stream: Stream | None = None
        self._ended: asyncio.Future[None] | None = None
        self._hello: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------- connection

    def start(self, environment: Environment, transport: Transport) -> None:
        self._environment = environment
        self._task = asyncio.get_running_loop().create_task(self._run(transport))

    def close(self) -> Coroutine[Any, Any, None]:
        """Ends the stream and the task, even if what is returned, which waits for that, is cancelled before it begins;
        what was in flight stays where it is."""
        self.is_up = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return _end_of(task)

    def drop(self, reason: str) -> None:
        """Gives the present stream up; a new one is tried at once."""
        self._stream_closed(Unavailable(f"node {self.name}: {reason}"))

    async def _run(self, transport: Transport) -> None:
        failures = 0
        hello = encode_frame([WIRE_VERSION, self._cluster, "sdk"])
        while True:
            loop = asyncio.get_running_loop()
            self._ended, self._hello = loop.create_future(), loop.create_future()
            try:
                self._stream = await transport.connect(
                    self.url, hello, self._limits.frame_bytes, self._frames_received, self._stream_closed
                )
                if await self._serve():
                    failures = 0
            except Error as error:
                self.error = error
            finally:
                await self._close_stream()
            failures += 1
            await self._environment.sleep(backoff_s(failures, self._environment.jitter()))

    async def _serve(self) -> bool:
        """Until the stream ends; whether the node had accepted it."""
        assert self._ended is not None and self._hello is not None
        await asyncio.wait(
            [self._hello, self._ended], timeout=HELLO_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not self._hello.done():
            if not self._ended.done():
                self.error = Unavailable(f"node {self.name} at {self.url} does not say hello")
            return False
        if self._stream is not None and not self._ended.done():
            self.is_up = True
            self._owner.link_up(self)
            self.pump()
            await self._ended
        return True

    async def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    def _stream_closed(self, error: Error) -> None:
        if self._ended is None or self._ended.done():
            return
        self._ended.set_result(None)
        self.error = error
        self.is_up = False
        groups, unsent = list(self.inflight.values()), list(self.backlog)
        self.inflight.clear()
        self.inflight_count = self.writes_count = 0
        self.round_s = self.round_s_min = 0.0
        self.backlog.clear()
        self._owner.link_down(self, groups, unsent)

    # ------------------------------------------------------------------------------- sending

    def submit(self, group: Group) -> None:
        """Queues a group; ``pump`` sends it."""
        self.backlog.append(group)

    def pump(self) -> None:
        """Sends from the backlog what the bounds allow, as few frames as possible."""
        stream = self._stream
        if not self.is_up or stream is None:
            return
        now = self._environment.now()
        while self.backlog and stream.queued_bytes < QUEUED_BYTES_MAX:
            frame = self._next_frame(now)
            if not frame:
                return
            stream.send(encode_frame(frame))

    def _next_frame(self, now: float) -> list[Any]:
        frame: list[Any] = []
        size = 0
        while self.backlog and len(frame) < self._limits.frame_groups_count:
            group = self.backlog[0]
            count = group.unanswered_count
            if self.inflight_count and self.inflight_count + count > self._inflight_ops_max:
                break
            if frame and size + group.size > FRAME_BYTES_TARGET:
                break
            self.backlog.popleft()
            if not self._owner.prepare(group):
                continue
            if not self.inflight:
                self.last_heard_at = now  # from here on it owes something
            rid = self._next_rid
            self._next_rid += 1
            group.sent_at = group.reviewed_at = now
            self.inflight[rid] = group
            self.writes_count += group.op == OP_WRITE
            self.inflight_count += group.unanswered_count
            size += group.size
            frame.append(group.encode(rid))
        return frame

    # ------------------------------------------------------------------------------- receiving

    def _frames_received(self, frames: list[Any]) -> None:
        if self._ended is None or self._ended.done():
            return
        self.last_heard_at = self._environment.now()
        writes_count = self.writes_count
        try:
            if self._hello is not None and not self._hello.done():
                self._greeted(frames.pop(0))
            for frame in frames:
                if frame and frame[0] == HELLO_REFUSED:
                    raise self._last_words(frame)
                for rid, indices, results in frame:
                    if rid == TOLD:
                        self._owner.on_told(self, indices, results)
                        continue
                    group = self.inflight[rid]
                    count = self._owner.link_answered(self, group, indices, results)
                    group.unanswered_count -= count
                    self.inflight_count -= count
                    if group.unanswered_count <= 0:
                        del self.inflight[rid]
                        if group.op == OP_WRITE:
                            self.writes_count -= 1
                            self._measured(self.last_heard_at - group.sent_at)
        except Error as error:
            self._stream_closed(error)
        except (ValueError, TypeError, LookupError) as error:
            self.drop(f"an answer that is not of this protocol: {error!r}")
        if self.backlog:
            self.pump()
        if writes_count and not self.writes_count:
            self._owner.writes_answered(self)

    def _measured(self, round_s: float) -> None:
        self.round_s = round_s
        self.round_s_min = min(self.round_s_min, round_s) if self.round_s_min else round_s

    def _greeted(self, hello: Any) -> None:
        if hello[0] == HELLO_REFUSED:
            raise self._last_words(hello)
        version, cluster, node, _incarnation, now_version = hello[:5]
        if not WIRE_VERSION_OLDEST <= version <= WIRE_VERSION:
            raise Unavailable(
                f"node {self.name} speaks wire version {version}, this SDK {WIRE_VERSION}", value=version
            )
        if cluster != self._cluster:
            raise Unauthorized(
                f"{self.url} belongs to cluster {cluster!r}, not {self._cluster!r}", value=cluster
            )
        if node != self.name:
            raise Unavailable(f"{self.url} is node {node!r}, not {self.name!r}", value=node)
        self._owner.version_seen(now_version)
        assert self._hello is not None
        self._hello.set_result(None)

    def _last_words(self, frame: Any) -> Error:
        """Why the node ends the stream."""
        return from_code(frame[1], f"node {self.name} at {self.url}: {frame[2]}", dict(frame[3] or {}))

    @property
    def silent_s(self) -> float:
        """How long the node has owed an answer and said nothing; 0 if it owes none."""
        if not self.inflight:
            return 0.0
        return self._environment.now() - self.last_heard_at

    def is_silent(self) -> bool:
        """Whether it is suspect; one that has been silent for too long is given up."""
        silent_s = self.silent_s
        if silent_s >= SILENCE_S:
            self.drop(f"silent for {silent_s:.0f} s")
        return PATIENCE_S <= silent_s < SILENCE_S and self.is_up
