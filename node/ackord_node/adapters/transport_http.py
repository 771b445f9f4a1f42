"""Links between the nodes: msgpack frames in the body of one endless HTTP request per direction.

A node sends to a peer over a ``POST /peer/v1/stream`` that it opened itself, and receives over the one that
the peer opened; ``is_up`` and ``peer_up``/``peer_down`` speak of the sending half. The request's body begins
with a hello ``[wire, cluster, cluster_id, from_node, to_node, incarnation, config_digest]``; the acceptor
answers one frame, ``[wire, node, incarnation]`` or ``[-1, code, message, detail]``, and nothing after it. Its
end, as seen by the sender, is the end of the link: a killed process or a reset is noticed at once. A silent
peer is not: that is for the leases to find out (rules R5 and R9), which this layer knows nothing of.

No message of another cluster, of a node that is not in cluster.yaml or of a node with other cluster-wide
settings ever reaches the runtime (rule R18). Every message carries the incarnation of its link's hello.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from aiohttp import web

from ackord.errors import Error, InvalidRequest, Unauthorized, Unavailable
from ackord.wire.frames import FrameDecoder, encode_frame, packb
from ackord.wire.messages import HELLO_REFUSED, STREAM_CONTENT_TYPE
from ackord_node.adapters.peer_queue import BULK_BYTES_MAX, URGENT_COUNT_MAX, PeerQueue
from ackord_node.ports import PeerListener

PEER_PATH = "/peer/v1/stream"
PEER_WIRE_VERSION = 1
PEER_WIRE_VERSION_OLDEST = 1  # the version before, from version 2 on: peers of one step apart must work
MESSAGE_BYTES_MAX = 32 * 1024 * 1024  # one message; a bigger one is dropped by the sender
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX + 64
HELLO_TIMEOUT_S = 2.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 0.5
STABLE_S = 1.0  # a link that lived this long reconnects at once
UNSENT_BYTES_MAX = 128 * 1024  # of the kernel's send queue: what a beacon may have to wait behind
REFUSALS_LOGGED_MAX = 256  # remembered texts, since hellos come from anyone

UP, DOWN, REFUSED = "up", "down", "refused"

log = logging.getLogger("ackord.peers")


class HttpPeerTransport:
    """``PeerTransport`` over aiohttp. ``peers`` maps every node of cluster.yaml but this one to "host:port".

    ``accept`` is the receiving side, to be mounted at ``PEER_PATH``. Until ``set_cluster_id`` was called,
    hellos are refused as "starting" and no link is opened.
    """

    def __init__(
        self,
        name: str,
        cluster: str,
        peers: Mapping[str, str],
        config_digest: str,
        urgent_count_max: int = URGENT_COUNT_MAX,
        bulk_bytes_max: int = BULK_BYTES_MAX,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.config_digest = config_digest
        self.cluster_id: str | None = None
        self.incarnation = 0
        self.listener: PeerListener | None = None
        self.cluster_id_is_known = asyncio.Event()
        self.is_closed = False
        self._links = {
            peer: _Link(self, peer, address, PeerQueue(urgent_count_max, bulk_bytes_max))
            for peer, address in peers.items()
            if peer != name
        }
        self._accepted: dict[str, _Accepted] = {}
        self._refusals_logged: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    def set_cluster_id(self, cluster_id: str) -> None:
        """Opens the gate: from now on links are made and accepted, within this cluster id only."""
        self.cluster_id = cluster_id
        self.cluster_id_is_known.set()

    async def start(self, listener: PeerListener, incarnation: int) -> None:
        self.listener = listener
        self.incarnation = incarnation
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, connect=HELLO_TIMEOUT_S),
            trust_env=False,
        )
        for link in self._links.values():
            link.start(self._session)

    async def close(self) -> None:
        """Ends every link of both directions; no callback comes after this was called."""
        self.is_closed = True
        self.listener = None
        for stream in self._accepted.values():
            stream.close()
        self._accepted.clear()
        await asyncio.gather(*(link.close() for link in self._links.values()))
        if self._session is not None:
            await self._session.close()

    def send(self, node: str, message: Any, urgent: bool = False) -> bool:
        link = self._links.get(node)
        if link is None or link.state != UP:
            return False
        return link.send(packb(message), urgent)

    def is_up(self, node: str) -> bool:
        link = self._links.get(node)
        return link is not None and link.state == UP

    def queued_bytes(self, node: str) -> int:
        link = self._links.get(node)
        return 0 if link is None else link.queue.queued_bytes

    # ------------------------------------------------------------------ the receiving side

    async def accept(self, request: web.Request) -> web.StreamResponse:
        """Handles one ``POST /peer/v1/stream``: judges its hello, then delivers its frames until it ends."""
        response = web.StreamResponse(headers={"Content-Type": STREAM_CONTENT_TYPE})
        response.force_close()
        await response.prepare(request)
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                frames = await _first_frames(request.content, decoder)
            refusal = self._judge(frames[0])
            if refusal is not None:
                self._log_refusal(refusal, frames[0], request.remote)
                await response.write(
                    encode_frame([HELLO_REFUSED, refusal.code, refusal.message, refusal.detail])
                )
                await response.write_eof()
                return response
            await response.write(encode_frame([frames[0][0], self.name, self.incarnation]))
            await self._deliver(request, decoder, frames)
        except (OSError, EOFError, ValueError, Error, aiohttp.ClientError, web.RequestPayloadError) as error:
            log.info("stream from %s ended: %s: %s", request.remote, type(error).__name__, error)
        finally:
            if request.transport is not None:
                request.transport.close()  # else aiohttp goes on reading what may never end
        return response

    async def _deliver(self, request: web.Request, decoder: FrameDecoder, frames: list[Any]) -> None:
        node, incarnation = frames[0][3], frames[0][5]
        stream = _Accepted(request.transport)
        replaced = self._accepted.get(node)
        if replaced is not None:
            replaced.close()  # the peer opened a new one: what is left of the old one must not mix with it
        self._accepted[node] = stream
        self._links[node].hurry()
        frames = frames[1:]
        try:
            while True:
                for frame in frames:
                    if stream.is_closed or self.listener is None:
                        return
                    if not isinstance(frame, list):
                        raise ValueError(f"a peer frame must be an array, not {type(frame).__name__}")
                    self.listener.messages_received(node, incarnation, frame)
                data = await request.content.readany()
                if not data:
                    return
                frames = decoder.feed(data)
        except ValueError as error:
            log.warning("closing the stream of %s, which sent something wrong: %s", node, error)
        finally:
            if self._accepted.get(node) is stream:
                del self._accepted[node]

    def _judge(self, hello: Any) -> Error | None:
        """Why this hello is refused, None if it is welcome."""
        if not isinstance(hello, list) or not hello or type(hello[0]) is not int:
            return InvalidRequest("the first frame is not a hello of an Ackord node")
        if not PEER_WIRE_VERSION_OLDEST <= hello[0] <= PEER_WIRE_VERSION:
            return InvalidRequest(
                f"wrong wire version {hello[0]}: node {self.name} speaks {PEER_WIRE_VERSION_OLDEST} to"
                f" {PEER_WIRE_VERSION}; upgrade one version at a time",
                wire=PEER_WIRE_VERSION,
            )
        if len(hello) < 7 or not all(isinstance(item, str) for item in (*hello[1:5], hello[6])):
            return InvalidRequest("malformed hello of a node")
        if type(hello[5]) is not int:
            return InvalidRequest("malformed hello of a node: the incarnation is not an integer")
        cluster, cluster_id, from_node, to_node = hello[1:5]
        return self._judge_identity(cluster, cluster_id, from_node, to_node, hello[6])

    def _judge_identity(
        self, cluster: str, cluster_id: str, from_node: str, to_node: str, digest: str
    ) -> Error | None:
        if self.is_closed or self.listener is None:
            return Unavailable(f"node {self.name} is {'stopping' if self.is_closed else 'starting'}")
        if cluster != self.cluster:
            return Unauthorized(f"another cluster: this is {self.cluster!r}, not {cluster!r}")
        if to_node != self.name:
            return InvalidRequest(f"wrong node: this is {self.name!r}, not {to_node!r}: check the addresses")
        if from_node not in self._links:
            return Unauthorized(f"unknown node {from_node!r}: it is not in {self.name}'s cluster.yaml")
        if digest != self.config_digest:
            return InvalidRequest(
                f"the cluster-wide settings in cluster.yaml of {from_node!r} and {self.name!r} differ"
                f" ({digest} and {self.config_digest}); they must agree"
            )
        if self.cluster_id is None:
            return Unavailable(f"node {self.name} is starting: it does not know the cluster id yet")
        if cluster_id != self.cluster_id:
            return Unauthorized(
                f"another cluster of the same name {cluster!r}: its id is {cluster_id!r},"
                f" that of {self.name} is {self.cluster_id!r}"
            )
        return None

    def _log_refusal(self, refusal: Error, hello: Any, remote: str | None) -> None:
        if isinstance(refusal, Unavailable):
            return
        sender = hello[3] if isinstance(hello, list) and len(hello) > 3 and type(hello[3]) is str else None
        text = f"refused a stream of node {sender!r}: {refusal.message}"[:500]  # once, not at each attempt
        if text not in self._refusals_logged and len(self._refusals_logged) < REFUSALS_LOGGED_MAX:
            self._refusals_logged.add(text)
            log.warning("%s (from %s)", text, remote)


class _Accepted:
    """One stream that a peer opened towards this node."""

    def __init__(self, transport: asyncio.Transport | None) -> None:
        self._transport = transport
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()


class _Link:
    """The sending half towards one peer: connects, says hello, sends what is queued, connects again."""

    def __init__(self, owner: HttpPeerTransport, peer: str, address: str, queue: PeerQueue) -> None:
        self._owner = owner
        self._peer = peer
        self._url = f"http://{address}{PEER_PATH}"
        self.queue = queue
        self.state: str | None = None  # None until the first attempt ended
        self._session: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted: asyncio.Future[None] | None = None  # set while the body waits for something to send
        self._hurry = asyncio.Event()
        self._up_since: float | None = None  # loop time, of this connection
        self._wire = PEER_WIRE_VERSION
        self._logged: str | None = None

    def start(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._task = asyncio.create_task(self._run(), name=f"peer-link-{self._peer}")
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        self.state = None
        self.queue.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def hurry(self) -> None:
        """The peer is known to live (it has just connected to this node): try now, not after the pause."""
        self._hurry.set()

    def send(self, packed: bytes, urgent: bool) -> bool:
        if len(packed) > MESSAGE_BYTES_MAX:
            log.error(
                "dropped a message of %d bytes for %s: over %d", len(packed), self._peer, MESSAGE_BYTES_MAX
            )
            return False
        queued = self.queue.push_urgent(packed) if urgent else self.queue.push_bulk(packed)
        if self._wanted is not None:
            if not self._wanted.done():
                self._wanted.set_result(None)
            self._wanted = None
        return queued

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
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, ConnectionRefusedError):
                state = REFUSED
            self._log_once(f"cannot connect: {error.os_error}")
        except Error as error:
            self._log_once(f"refused: {error.message}")
        except TimeoutError:
            self._log_once(f"no answer within {HELLO_TIMEOUT_S} s")
        except (OSError, EOFError, ValueError, aiohttp.ClientError) as error:
            self._log_once(f"lost: {type(error).__name__}: {error}")
        self._become(state)
        return self._lived_s()

    def _lived_s(self) -> float:
        return 0.0 if self._up_since is None else asyncio.get_running_loop().time() - self._up_since

    async def _converse(self) -> None:
        assert self._session is not None
        decoder = FrameDecoder(FRAME_BYTES_MAX)
        welcome = asyncio.Event()
        async with asyncio.timeout(HELLO_TIMEOUT_S) as deadline:
            async with self._session.post(
                self._url, data=self._body(welcome), headers={"Content-Type": STREAM_CONTENT_TYPE}
            ) as response:
                try:
                    if response.status != 200:
                        raise Unavailable(f"HTTP status {response.status}: is this the right address?")
                    self._check_answer((await _first_frames(response.content, decoder))[0])
                    deadline.reschedule(None)
                    self._logged = None
                    self.queue.clear()
                    self._become(UP)
                    welcome.set()
                    while await response.content.readany():
                        pass  # the acceptor says nothing more; the end of its answer ends the link
                    raise EOFError("the peer closed the stream")
                finally:
                    response.close()

    async def _body(self, welcome: asyncio.Event) -> AsyncIterator[bytes]:
        """The request's body. aiohttp asks for the next piece only when the socket took the one before."""
        owner = self._owner
        yield encode_frame(
            [
                self._wire,
                owner.cluster,
                owner.cluster_id,
                owner.name,
                self._peer,
                owner.incarnation,
                owner.config_digest,
            ]
        )
        await welcome.wait()
        loop = asyncio.get_running_loop()
        while True:
            if not self.queue:
                self._wanted = wanted = loop.create_future()
                await wanted
            data = self.queue.take()
            if data:
                yield data

    def _check_answer(self, answer: Any) -> None:
        """Raises what the peer refused with, or why its answer cannot be trusted."""
        if not isinstance(answer, list) or len(answer) < 3 or not isinstance(answer[0], int):
            raise InvalidRequest("the answer to the hello is malformed")
        if answer[0] == HELLO_REFUSED:
            detail = answer[3] if len(answer) > 3 and isinstance(answer[3], dict) else {}
            offered = detail.get("wire")
            if isinstance(offered, int) and PEER_WIRE_VERSION_OLDEST <= offered < self._wire:
                self._wire = offered  # an older peer: speak its version from the next attempt on
            raise Unavailable(str(answer[2]))
        if answer[0] != self._wire or answer[1] != self._peer:
            raise InvalidRequest(f"{self._url} answered as node {answer[1]!r} with wire version {answer[0]}")

    def _become(self, state: str) -> None:
        if state == self.state:
            return
        self.state = state
        self._wanted = None
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
            log.warning("link to %s (%s) %s", self._peer, self._url, text)


def _report(task: asyncio.Task[None]) -> None:
    """A link's task ends only by cancellation; anything else is a bug (of a callback), to be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": f"{task.get_name()} failed", "exception": error})


async def _first_frames(content: aiohttp.StreamReader, decoder: FrameDecoder) -> list[Any]:
    while True:
        data = await content.readany()
        if not data:
            raise EOFError("the stream ended before its first frame")
        frames = decoder.feed(data)
        if frames:
            return frames


def _socket(address: Any) -> socket.socket:
    """A socket whose kernel queue stays short, so that urgent frames do not wait behind much bulk."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    not_sent_lowat = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if not_sent_lowat is not None:
        sock.setsockopt(socket.IPPROTO_TCP, not_sent_lowat, UNSENT_BYTES_MAX)
    return sock
