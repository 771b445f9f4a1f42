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
from collections.abc import Mapping
from typing import Any, cast

import aiohttp
from aiohttp import web

from ackord.errors import Error, InvalidRequest, Unauthorized, Unavailable
from ackord.wire.frames import FrameDecoder, encode_frame, packb
from ackord.wire.messages import HELLO_ALONE_HEADER, HELLO_REFUSED, STREAM_CONTENT_TYPE
from ackord_node.adapters.peer_link import (
    FRAME_BYTES_MAX,
    HELLO_TIMEOUT_S,
    PEER_PATH,
    PEER_WIRE_VERSION,
    PEER_WIRE_VERSION_OLDEST,
    UP,
    PeerLink,
)
from ackord_node.adapters.peer_queue import BULK_BYTES_MAX, URGENT_COUNT_MAX, PeerQueue
from ackord_node.framing import TakenBody, first_frames
from ackord_node.ports import PeerListener

REFUSALS_LOGGED_MAX = 256  # remembered texts, since hellos come from anyone

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
            peer: PeerLink(self, peer, address, PeerQueue(urgent_count_max, bulk_bytes_max))
            for peer, address in peers.items()
            if peer != name
        }
        self._accepted: dict[str, _Accepted] = {}
        self._refusals_logged: set[str] = set()

    def set_cluster_id(self, cluster_id: str) -> None:
        """Opens the gate: from now on links are made and accepted, within this cluster id only."""
        self.cluster_id = cluster_id
        self.cluster_id_is_known.set()

    async def start(self, listener: PeerListener, incarnation: int) -> None:
        self.listener = listener
        self.incarnation = incarnation
        for link in self._links.values():
            link.start()

    async def close(self) -> None:
        """Ends every link of both directions; no callback comes after this was called."""
        self.is_closed = True
        self.listener = None
        for stream in self._accepted.values():
            stream.close()
        self._accepted.clear()
        await asyncio.gather(*(link.close() for link in self._links.values()))

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
                frames = await first_frames(request.content, decoder)
            refusal = self._judge(frames[0])
            if refusal is not None:
                self._log_refusal(refusal, frames[0], request.remote)
                await response.write(
                    encode_frame([HELLO_REFUSED, refusal.code, refusal.message, refusal.detail])
                )
                await response.write_eof()
                return response
            await self._deliver(request, response, decoder, frames)
        except (OSError, EOFError, ValueError, Error, aiohttp.ClientError, web.RequestPayloadError) as error:
            log.info("stream from %s ended: %s: %s", request.remote, type(error).__name__, error)
        finally:
            if request.transport is not None:
                request.transport.close()  # else aiohttp goes on reading what may never end
        return response

    async def _deliver(
        self, request: web.Request, response: web.StreamResponse, decoder: FrameDecoder, frames: list[Any]
    ) -> None:
        """The answer to the hello, then all that the peer sends, until the stream ends."""
        node, incarnation = frames[0][3], frames[0][5]
        stream = _Accepted(request.transport)
        replaced = self._accepted.get(node)
        if replaced is not None:
            replaced.close()  # the peer opened a new one: what is left of the old one must not mix with it

        def take(data: bytes) -> None:
            for frame in decoder.feed(data):
                self._take(stream, node, incarnation, frame)

        taken = TakenBody(take) if HELLO_ALONE_HEADER in request.headers else None
        if taken is not None:
            request.protocol.set_parser(cast(Any, taken))
        self._accepted[node] = stream
        self._links[node].met(incarnation)
        try:
            await response.write(encode_frame([frames[0][0], self.name, self.incarnation]))
            for frame in frames[1:]:
                self._take(stream, node, incarnation, frame)
            if taken is not None:
                await taken.ended
                return
            while not stream.is_closed and (data := await request.content.readany()):
                take(data)
        except ValueError as error:
            log.warning("closing the stream of %s, which sent something wrong: %s", node, error)
        finally:
            stream.is_closed = True
            if self._accepted.get(node) is stream:
                del self._accepted[node]

    def _take(self, stream: _Accepted, node: str, incarnation: int, frame: Any) -> None:
        if stream.is_closed or self.listener is None:
            return
        if not isinstance(frame, list):
            raise ValueError(f"a peer frame must be an array, not {type(frame).__name__}")
        self.listener.messages_received(node, incarnation, frame)

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


__all__ = ["PEER_PATH", "PEER_WIRE_VERSION", "PEER_WIRE_VERSION_OLDEST", "HttpPeerTransport"]
