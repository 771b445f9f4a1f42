"""``POST /v1/stream``: the SDK's full-duplex stream of frames (wire version 1, see ackord.wire.messages).

One reader submits what arrives, frame by frame. What was answered when a frame has been submitted leaves at once, as
one frame, and so does what is answered later, at the end of its turn of the loop; only where a client is slow to
take its answers a writer task sends them, and waits for it. Answers leave in any order. Nothing grows without
bound: a stream that has too many undecided operations, or whose client does not take its answers, is not read
until that changed; what one frame carries beyond the bound is refused as Unavailable with a retry hint.

A group that is wrong is answered with its error; where not even its number can be read, or the frame is no
frame, the stream gets ``[-1, code, message, detail]`` and ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from ackord.errors import BY_CODE, Error, InvalidRequest, Unauthorized, Unavailable
from ackord.wire.chunks import chunk
from ackord.wire.frames import FrameDecoder, encode_frame, packb
from ackord.wire.messages import (
    HELLO_REFUSED,
    OP_AS_OF,
    OP_CELLS,
    OP_COUNT,
    OP_GET,
    OP_HISTORY,
    OP_HOLD,
    OP_KEEP,
    OP_SCAN,
    OP_SCAN_AS_OF,
    OP_SELECT,
    OP_WRITE,
    STREAM_CONTENT_TYPE,
    TOLD,
    WHOLE_GROUP,
    WIRE_VERSION,
    WIRE_VERSION_OLDEST,
    error_to_wire,
    is_error,
)
from ackord_node.framing import first_frames, join_frame
from ackord_node.runtime.service import Service
from ackord_node.server.bodies import BodyRefused, check_query
from ackord_node.server.groups import GroupChecker
from ackord_node.server.metrics import Metrics

HELLO_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 3.0  # at a planned stop, for the answers that are still due
UNSENT_BYTES_MAX = 8 * 1024 * 1024  # answers that the client has not taken; beyond, it is not read
UNTAKEN_BYTES_MAX = 256 * 1024  # in the connection's buffer; beyond, the writer waits for the client
ANSWER_BYTES = 1024 * 1024  # a longer answer of several operations is split
FRAME_BYTES = 4 * 1024 * 1024  # a response frame ends once it is this long
OVERLOAD_RETRY_MS = 50
OP_NAMES = {
    OP_GET: "get",
    OP_SELECT: "get",
    OP_AS_OF: "get",
    OP_CELLS: "get",
    OP_HOLD: "get",
    OP_KEEP: "keep",
    OP_HISTORY: "history",
    OP_WRITE: "write",
    OP_SCAN: "scan",
    OP_SCAN_AS_OF: "scan",
    OP_COUNT: "count",
}

_EXPECTED = (Error, ValueError, OSError, EOFError, aiohttp.ClientError, web.RequestPayloadError)

log = logging.getLogger("ackord.server")


class StreamHandlers:
    """Accepts streams, and ends them in an orderly way at a planned stop."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics
        self._streams: set[ClientStream] = set()
        self._is_stopping = False

    async def accept(self, request: web.Request) -> web.StreamResponse:
        check_query(request, ())
        if request.content_type != STREAM_CONTENT_TYPE:
            raise BodyRefused(
                415,
                InvalidRequest(
                    f"a stream's content type is {STREAM_CONTENT_TYPE}, not {request.content_type[:100]}",
                    field="Content-Type",
                    value=request.content_type[:100],
                    limit=STREAM_CONTENT_TYPE,
                ),
            )
        most = self._service.limits.streams_count
        if self._is_stopping or len(self._streams) >= most:
            text = "is stopping" if self._is_stopping else f"has its limit of {most} streams open"
            raise Unavailable(
                f"node {self._service.name} {text}", reason="overloaded", limit=most, retry_after_ms=1000
            )
        response = web.StreamResponse(headers={"Content-Type": STREAM_CONTENT_TYPE})
        response.force_close()
        await response.prepare(request)
        stream = ClientStream(self._service, self._metrics, request, response, _sender(request, response))
        self._streams.add(stream)
        self._metrics.client_streams(len(self._streams))
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)
            self._metrics.client_streams(len(self._streams))
            if request.transport is not None:
                _end(request.transport)
        return response

    async def drain(self) -> None:
        """Reads nothing more, waits a moment for the answers that are due, ends every stream."""
        self._is_stopping = True
        if self._streams:
            await asyncio.gather(*(stream.drain() for stream in list(self._streams)))


def _end(transport: asyncio.Transport) -> None:
    """Closes the connection, else aiohttp goes on reading what may never end. A client that reads nothing keeps it, and
    what was to be sent, no longer than a moment."""
    transport.close()
    if transport.get_write_buffer_size():
        asyncio.get_running_loop().call_later(DRAIN_TIMEOUT_S, transport.abort)


class Sender(Protocol):
    """The way of a frame out, without waiting."""

    @property
    def is_free(self) -> bool:
        """Whether the client takes its answers, so that they do not pile up."""

    def send(self, frame: bytes) -> None: ...


class ChunkSender:
    """Frames as chunks of a response that was begun, straight into its connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def is_free(self) -> bool:
        transport = self._transport
        return transport.get_write_buffer_size() < UNTAKEN_BYTES_MAX and not transport.is_closing()

    def send(self, frame: bytes) -> None:
        self._transport.write(chunk(frame))


def _sender(request: web.Request, response: web.StreamResponse) -> Sender | None:
    transport = request.transport
    if transport is None or response.headers.get("Transfer-Encoding") != "chunked":
        return None
    return ChunkSender(transport)


class ClientStream:
    """One stream from its hello to its end."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        request: web.Request,
        response: web.StreamResponse,
        sender: Sender | None = None,
    ) -> None:
        """Without a ``sender`` all answers are written by the writer."""
        self._sender = sender
        self._is_submitting = False
        self._sending: asyncio.Handle | None = None  # answers leave at the end of this turn
        self._service = service
        self._metrics = metrics
        self._request = request
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._checker = GroupChecker(service.limits)
        self._inflight_max = service.limits.stream_inflight_ops_count
        self._inflight = 0  # undecided operations
        self._groups: dict[int, list[Any]] = {}  # rid -> [operations left, op, arrived at]
        self._answers: deque[bytes] = deque()  # packed, to leave with the next frame
        self._answers_bytes = 0
        self._outcomes: dict[tuple[str, str], int] = {}  # not told to the metrics yet
        self._room: asyncio.Future[None] | None = None  # the reader waits for room
        self._wanted: asyncio.Future[None] | None = None  # the writer waits for answers
        self._reader: asyncio.Task[None] | None = None
        self._is_finishing = False  # nothing more is read
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Returns when the stream has ended, whoever ended it."""
        self._reader = asyncio.create_task(self._read(), name="client-stream-reader")
        writer = asyncio.create_task(self._write(), name="client-stream-writer")
        try:
            await asyncio.wait((self._reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if not writer.done():
                last_words = self._finish(self._reader)
                await asyncio.wait((writer,), timeout=DRAIN_TIMEOUT_S)
                if writer.done() and writer.exception() is None:
                    await self._response.write(last_words)
                    await self._response.write_eof()
        except (OSError, aiohttp.ClientError):
            pass  # the client went away while the end was written
        finally:
            self._groups.clear()
            self._reader.cancel()
            writer.cancel()
            ends = await asyncio.gather(self._reader, writer, return_exceptions=True)
            self._ended.set()
            for end in ends:
                if isinstance(end, Exception) and not isinstance(end, _EXPECTED):
                    log.error("a bug in a client's stream", exc_info=end)

    async def drain(self) -> None:
        """Reads nothing more; returns once what was read is answered, or after a bounded wait."""
        if self._reader is not None:
            self._reader.cancel()
        await self._ended.wait()

    # ------------------------------------------------------------------ reading

    async def _read(self) -> None:
        content = self._request.content
        decoder = FrameDecoder(self._service.limits.frame_bytes)
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            frames = await first_frames(content, decoder)
        await self._welcome(frames.pop(0))
        while True:
            for frame in frames:
                rest, is_left = frame, True
                while is_left:
                    while self._is_congested():
                        self._room = self._loop.create_future()
                        await self._room
                    rest = self._take(rest)
                    is_left = bool(rest)
            data = await content.readany()
            if not data:
                return
            frames = decoder.feed(data)

    async def _welcome(self, hello: Any) -> None:
        """Answers the hello; raises why it is refused."""
        service = self._service
        if type(hello) is not list or len(hello) < 2 or type(hello[0]) is not int:
            raise InvalidRequest("the first frame must be a hello: [wire version, cluster or null, who]")
        version, cluster = hello[0], hello[1]
        if not WIRE_VERSION_OLDEST <= version <= WIRE_VERSION:
            raise InvalidRequest(
                f"wrong wire version {version}: this node speaks {WIRE_VERSION_OLDEST} to {WIRE_VERSION}",
                wire=WIRE_VERSION,
            )
        if cluster is not None and cluster != service.cluster:
            named = (
                cluster[:100] if type(cluster) is str else type(cluster).__name__
            )  # not a structure's text
            raise Unauthorized(f"another cluster: this is {service.cluster!r}, not {named!r}")
        await self._response.write(
            encode_frame([version, service.cluster, service.name, service.incarnation, service.now_version()])
        )

    def _take(self, frame: Any) -> list[Any]:
        """Submits the groups of one frame; returns those for which there is no room, because of what the others were
        answered."""
        most = self._service.limits.frame_groups_count
        if type(frame) is not list or len(frame) > most:
            raise InvalidRequest(f"a frame is a list of at most {most} groups", field="frame", limit=most)
        arrived_s = self._loop.time()
        self._is_submitting = True
        try:
            total, rest = self._submit(frame, arrived_s)
        finally:
            self._is_submitting = False
            self._service.flush()  # also what came before something that ends the stream
        if total:
            self._metrics.client_frame(total)
        if self._answers:
            self._send_answers()
        return rest

    def _submit(self, frame: list[Any], arrived_s: float) -> tuple[int, list[Any]]:
        """How many operations the node was given, and the groups that are left."""
        submit = self._service.submit
        total = 0
        for at, group in enumerate(frame):
            if self._answers_bytes >= UNSENT_BYTES_MAX:
                return total, frame[at:]
            rid = self._checker.rid_of(group)
            if rid is None:
                raise InvalidRequest("a group has no number: it must begin with an int", field="rid")
            if rid in self._groups:
                raise InvalidRequest(f"the group number {rid} is in use already", field="rid", value=rid)
            try:
                count = self._checker.check(group)
            except InvalidRequest as error:
                self._refuse(rid, error)
                continue
            if self._inflight and self._inflight + count > self._inflight_max:
                self._refuse(rid, self._overloaded())
                continue
            self._groups[rid] = [count, group[1], arrived_s]
            self._inflight += count
            total += count
            submit(group, self._respond)
        return total, []

    def _is_congested(self) -> bool:
        return self._inflight >= self._inflight_max or self._answers_bytes >= UNSENT_BYTES_MAX

    def _overloaded(self) -> Unavailable:
        return Unavailable(
            f"this stream has {self._inflight} undecided operations, its limit is {self._inflight_max}",
            reason="overloaded",
            limit=self._inflight_max,
            retry_after_ms=OVERLOAD_RETRY_MS,
        )

    # ------------------------------------------------------------------ answering

    def _respond(self, entry: list[Any]) -> None:
        """The service's answer to a group or to a part of it."""
        rid, indices, results = entry
        group = self._groups.get(rid)
        if group is None:
            if rid == TOLD and not self._is_finishing:
                self._queue(entry)  # for a client that keeps rows (rule R19), not an answer
            return  # the stream has ended
        op = group[1]
        if indices == WHOLE_GROUP:
            count = group[0]
            self._count_outcome(op, _error_name(results), count)
        else:
            count = len(results)
            self._count_results(op, results)
        group[0] -= count
        if group[0] <= 0:
            del self._groups[rid]
            self._metrics.request_done(OP_NAMES[op], self._loop.time() - group[2])
        self._inflight -= count
        self._queue(entry)

    def _refuse(self, rid: int, error: Error) -> None:
        self._queue([rid, WHOLE_GROUP, error_to_wire(error)])

    def _queue(self, entry: list[Any]) -> None:
        packed = packb(entry)
        rid, indices, results = entry
        if len(packed) > ANSWER_BYTES and indices != WHOLE_GROUP and rid != TOLD and len(results) > 1:
            if indices is None:
                indices = list(range(len(results)))
            count = max(
                1, len(results) * ANSWER_BYTES // len(packed)
            )  # each part is packed once more, not ever again
            del packed
            for at in range(0, len(results), count):
                self._queue([rid, indices[at : at + count], results[at : at + count]])
            return
        self._answers.append(packed)
        self._answers_bytes += len(packed)
        if not self._is_submitting and self._sending is None:
            self._sending = self._loop.call_soon(self._send_answers)

    def _count_results(self, op: int, results: list[Any]) -> None:
        if list not in map(type, results):  # neither an error nor a page
            self._count_outcome(op, "ok", len(results))
            return
        failed = 0
        for result in results:
            if type(result) is list and is_error(result):
                failed += 1
                self._count_outcome(op, _error_name(result), 1)
        if failed < len(results):
            self._count_outcome(op, "ok", len(results) - failed)

    def _count_outcome(self, op: int, outcome: str, count: int) -> None:
        name = (OP_NAMES[op], outcome)
        self._outcomes[name] = self._outcomes.get(name, 0) + count

    # ------------------------------------------------------------------ writing

    def _send_answers(self) -> None:
        """Sends what was answered, or lets the writer do it if the client is slow to take its answers."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        sender = self._sender
        if sender is not None and self._wanted is not None and not self._wanted.done():
            while self._answers and sender.is_free:
                sender.send(self._next_frame())
                self._sent()
        if self._answers or self._is_finishing:
            self._wake_writer()

    def _sent(self) -> None:
        for (op, outcome), count in self._outcomes.items():
            self._metrics.operations(op, outcome, count)
        self._outcomes.clear()
        if self._room is not None and not self._is_congested():
            if not self._room.done():
                self._room.set_result(None)
            self._room = None

    async def _write(self) -> None:
        """Sends what has not been sent at once, until the stream is finished and all is sent."""
        while self._answers or self._groups or not self._is_finishing:
            if not self._answers:
                self._wanted = self._loop.create_future()
                await self._wanted
                continue
            await self._response.write(self._next_frame())
            self._sent()

    def _next_frame(self) -> bytes:
        if self._answers_bytes <= FRAME_BYTES:
            parts, size = list(self._answers), self._answers_bytes
            self._answers.clear()
        else:
            parts, size = [], 0
            while self._answers and (not parts or size + len(self._answers[0]) <= FRAME_BYTES):
                parts.append(self._answers.popleft())
                size += len(parts[-1])
        self._answers_bytes -= size
        return join_frame(parts, size)

    def _wake_writer(self) -> None:
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(None)
            self._wanted = None

    def _finish(self, reader: asyncio.Task[None]) -> bytes:
        """The reader has ended. Answers that are due still leave if that was by a cancellation (drain) or by
        the end of the client's half; an error of the client ends them. Returns what it hears last."""
        self._is_finishing = True
        error = None if reader.cancelled() else reader.exception()
        if error is not None:
            self._groups.clear()
        self._wake_writer()
        if not isinstance(error, Error | ValueError):
            return b""
        known = error if isinstance(error, Error) else InvalidRequest(str(error), field="frame")
        log.info("closing the stream of %s: %s", self._request.remote, known.message)
        code, message, detail, _ = error_to_wire(known)
        return encode_frame([HELLO_REFUSED, code, message, detail])


def _error_name(wire: Any) -> str:
    return BY_CODE.get(wire[0], Error).name
