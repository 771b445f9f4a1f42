"""The sending half of the link to one peer: connects, says hello, sends what is queued, connects again.

It speaks HTTP, one request whose chunked body never ends, but writes it by hand: each frame of the write path passes
here, and a client library's tasks and buffers cost more than the frame itself. Everything queued in a turn of the
loop leaves in one write at its end; while the kernel takes no more, the rest stays in the queue, where urgent
messages still overtake bulk ones.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from typing import Any, Protocol, cast

from ackord.errors import Error, InvalidRequest, Unavailable
from ackord.sockets import end_when_dead
from ackord.wire.chunks import ChunkDecoder, chunk
from ackord.wire.frames import FrameDecoder, encode_frame
from ackord.wire.messages import HELLO_ALONE_HEADER, HELLO_REFUSED, STREAM_CONTENT_TYPE
from ackord_node.adapters.peer_queue import PeerQueue
from ackord_node.ports import PeerListener

PEER_PATH = "/peer/v1/stream"
PEER_WIRE_VERSION = 1
PEER_WIRE_VERSION_OLDEST = 1  # the version before, from version 2 on: peers of one step apart must work
MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # one message; a bigger one is dropped by the sender
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX + 64
HEAD_BYTES_MAX = 16 * 1024  # of the acceptor's answer
HELLO_TIMEOUT_S = 2.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.5
STABLE_S = 1.0  # a link that lived this long reconnects at once
UNSENT_BYTES_MAX = 128 * 1024  # of the kernel's send queue: what a beacon may have to wait behind

UP, DOWN, REFUSED = "up", "down", "refused"

log = logging.getLogger("ackord.peers")


class LinkOwner(Protocol):
    """The transport, as its links know it."""

    name: str
    cluster: str
    config_digest: str
    cluster_id: str | None
    incarnation: int
    listener: PeerListener | None
    cluster_id_is_known: asyncio.Event


class Conversation(asyncio.Protocol):
    """One connection: the request goes out, the acceptor's one frame of an answer comes back."""

    def __init__(self, link: PeerLink) -> None:
        loop = asyncio.get_running_loop()
        self._link = link
        self.answer: asyncio.Future[Any] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.is_paused = False
        self.incarnation = 0  # the peer's, as its answer said
        self.transport: asyncio.Transport | None = None
        self._head = b""
        self._has_head = False
        self._chunks: ChunkDecoder | None = None  # None: the body is not chunked
        self._frames = FrameDecoder(FRAME_BYTES_MAX)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self.transport.set_write_buffer_limits(high=0)  # what the kernel does not take stays in the queue

    def data_received(self, data: bytes) -> None:
        if self.answer.done():
            return  # the acceptor says nothing more; the end of its answer ends the link
        try:
            self._take(data)
        except (ValueError, Error) as error:
            self.answer.set_exception(error)

    def _take(self, data: bytes) -> None:
        if not self._has_head:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if len(head) > HEAD_BYTES_MAX:
                raise ValueError("the answer's head does not end: is this the right address?")
            if not found:
                return
            status = head.split(b"\r\n", 1)[0].split(b" ")
            if len(status) < 2 or status[1] != b"200":
                shown = b" ".join(status)[:60].decode(errors="replace")
                raise Unavailable(f"HTTP answer {shown!r}: is this the right address?")
            self._has_head = True
            if b"\r\ntransfer-encoding: chunked" in head.lower():
                self._chunks = ChunkDecoder()
        for piece in [data] if self._chunks is None else self._chunks.feed(data):
            frames = self._frames.feed(piece)
            if frames:
                self.answer.set_result(frames[0])
                return

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        self._link.flush()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_exception(error or EOFError("the stream ended before its first frame"))
        if not self.ended.done():
            self.ended.set_result(None)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # else it is reported as never looked at
        self.answer.cancel()


class PeerLink:
    def __init__(self, owner: LinkOwner, peer: str, address: str, queue: PeerQueue) -> None:
        self._owner = owner
        self._peer = peer
        self._address = address
        self.queue = queue
        self.state: str | None = None  # None until the first attempt ended
        self._task: asyncio.Task[None] | None = None
        self._conversation: Conversation | None = None  # of the link that is up
        self._is_flush_due = False
        self._hurry = asyncio.Event()
        self._up_since: float | None = None  # loop time, of this connection
        self._wire = PEER_WIRE_VERSION
        self._logged: str | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(), name=f"peer-link-{self._peer}")
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        self.state = None
        self.queue.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def met(self, incarnation: int) -> None:
        """This run of the peer has just connected to this node. So it lives: try now, not after the pause. And a link
        to another run of it is dead, even if the network has not said so: a machine without power says nothing."""
        self._hurry.set()
        conversation = self._conversation
        if conversation is not None and conversation.incarnation != incarnation:
            conversation.abort()

    def send(self, packed: bytes, urgent: bool) -> bool:
        if len(packed) > MESSAGE_BYTES_MAX:
            log.error(
                "dropped a message of %d bytes for %s: over %d", len(packed), self._peer, MESSAGE_BYTES_MAX
            )
            return False
        queued = self.queue.push_urgent(packed) if urgent else self.queue.push_bulk(packed)
        if not self._is_flush_due and self._conversation is not None:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)
        return queued

    def flush(self) -> None:
        """Writes what is queued, as far as the kernel takes it."""
        self._is_flush_due = False
        conversation = self._conversation
        if conversation is None or conversation.transport is None:
            return
        transport = conversation.transport
        # uvloop's refuses a write from its end on, of which the conversation hears a turn of the loop later.
        while self.queue and not conversation.is_paused and not transport.is_closing():
            transport.write(chunk(self.queue.take()))

    # ------------------------------------------------------------------ life of the link

    async def _run(self) -> None:
        await self._owner.cluster_id_is_known.wait()
        pause_s = 0.0
        while True:
            self._hurry.clear()
            lived_s = await self._connect_once()
            if lived_s >= STABLE_S:
                pause_s = 0.0
                continue
            pause_s = min(max(BACKOFF_FIRST_S, pause_s * 2), BACKOFF_MAX_S)
            try:
                async with asyncio.timeout(pause_s * random.uniform(0.75, 1.25)):
                    await self._hurry.wait()
            except TimeoutError:
                continue

    async def _connect_once(self) -> float:
        """One connection from the attempt to its end, whatever the end is; reports the state it leaves and
        returns for how many seconds the link was up."""
        state = DOWN
        self._up_since = None
        try:
            await self._converse()
        except ConnectionRefusedError as error:
            state = REFUSED
            self._log_once(f"cannot connect: {error}")
        except Error as error:
            self._log_once(f"refused: {error.message}")
        except TimeoutError:
            self._log_once(f"no answer within {HELLO_TIMEOUT_S} s")
        except (OSError, EOFError, ValueError) as error:
            self._log_once(f"lost: {type(error).__name__}: {error}")
        self._become(state)
        return self._lived_s()

    def _lived_s(self) -> float:
        return 0.0 if self._up_since is None else asyncio.get_running_loop().time() - self._up_since

    async def _converse(self) -> None:
        conversation = Conversation(self)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                sock = await _connected(self._address)
                transport, _ = await self._loop.create_connection(lambda: conversation, sock=sock)
                transport.write(self._request())
                conversation.incarnation = self._check_answer(await conversation.answer)
            self._logged = None
            self.queue.clear()
            self._conversation = conversation
            self._become(UP)
            self.flush()
            await conversation.ended
            raise EOFError("the peer closed the stream")
        finally:
            self._conversation = None
            conversation.abort()

    def _request(self) -> bytes:
        owner = self._owner
        head = (
            f"POST {PEER_PATH} HTTP/1.1\r\nHost: {self._address}\r\nContent-Type: {STREAM_CONTENT_TYPE}\r\n"
            f"{HELLO_ALONE_HEADER}: true\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        hello = [
            self._wire,
            owner.cluster,
            owner.cluster_id,
            owner.name,
            self._peer,
            owner.incarnation,
            owner.config_digest,
        ]
        return head.encode() + chunk(encode_frame(hello))

    def _check_answer(self, answer: Any) -> int:
        """The peer's incarnation. Raises what the peer refused with, or why its answer cannot be trusted."""
        if not isinstance(answer, list) or len(answer) < 3 or not isinstance(answer[0], int):
            raise InvalidRequest("the answer to the hello is malformed")
        if answer[0] == HELLO_REFUSED:
            detail = answer[3] if len(answer) > 3 and isinstance(answer[3], dict) else {}
            offered = detail.get("wire")
            if isinstance(offered, int) and PEER_WIRE_VERSION_OLDEST <= offered < self._wire:
                self._wire = offered  # an older peer: speak its version from the next attempt on
            raise Unavailable(str(answer[2]))
        if answer[0] != self._wire or answer[1] != self._peer:
            raise InvalidRequest(
                f"{self._address} answered as node {answer[1]!r} with wire version {answer[0]}"
            )
        if type(answer[2]) is not int:
            raise InvalidRequest("the answer to the hello has no incarnation")
        return answer[2]

    def _become(self, state: str) -> None:
        if state == self.state:
            return
        self.state = state
        listener = self._owner.listener
        if state == UP:
            self._up_since = asyncio.get_running_loop().time()
            log.info("link to %s is up", self._peer)
        else:
            self.queue.clear()
        if listener is None:
            return
        if state == UP:
            listener.peer_up(self._peer)
        else:
            listener.peer_down(self._peer, state == REFUSED)

    def _log_once(self, text: str) -> None:
        """Each reason once, not at each attempt; a link that came up starts anew."""
        if text != self._logged:
            self._logged = text
            log.warning("link to %s (%s) %s", self._peer, self._address, text)


def _report(task: asyncio.Task[None]) -> None:
    """A link's task ends only by cancellation; anything else is a bug (of a callback), to be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": f"{task.get_name()} failed", "exception": error})


async def _connected(address: str) -> socket.socket:
    """A socket that is connected to ``host:port``, whichever of the host's addresses answers."""
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    failure: OSError = ConnectionError(f"{host} has no address")
    for family, kind, protocol, _, where in infos:
        sock = _socket(family, kind, protocol)
        try:
            await loop.sock_connect(sock, where)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    """A socket whose kernel queue stays short, so that urgent frames do not wait behind much bulk, and that does not
    outlive a peer that is silent: a link that is made anew after a partition is there at once."""
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    end_when_dead(sock)
    not_sent_lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if not_sent_lowat is not None:
        sock.setsockopt(socket.IPPROTO_TCP, not_sent_lowat, UNSENT_BYTES_MAX)
    return sock
