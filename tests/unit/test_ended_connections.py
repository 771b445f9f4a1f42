"""What is sent on a connection that has just ended is lost quietly: uvloop refuses the write, and who holds the
connection may hear of its end a turn of the loop later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import uvloop
from aiozk import protocol

from ackord_node.adapters.peer_link import Conversation, PeerLink
from ackord_node.adapters.peer_queue import PeerQueue
from ackord_node.adapters.zookeeper_session import WireConnection


def on_uvloop(work: Callable[[int], Awaitable[None]]) -> None:
    """Runs ``work(port)`` beside a server that says nothing; nothing may be reported to the loop."""
    reported: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
        await work(server.sockets[0].getsockname()[1])
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.01)

    uvloop.run(main())
    assert reported == []


def test_a_link_to_a_peer() -> None:
    async def work(port: int) -> None:
        loop = asyncio.get_running_loop()
        owner = SimpleNamespace(listener=None)
        link = PeerLink(cast(Any, owner), "n2", f"127.0.0.1:{port}", PeerQueue())
        _, conversation = await loop.create_connection(lambda: Conversation(link), "127.0.0.1", port)
        assert conversation.transport is not None
        link._conversation, link._loop = conversation, loop
        conversation.transport.abort()
        assert link.send(b"message", urgent=True)
        await conversation.ended
        conversation.abort()

    on_uvloop(work)


def test_a_connection_to_zookeeper() -> None:
    async def work(port: int) -> None:
        wire = WireConnection("127.0.0.1", port, lambda _: None, None)
        await wire.open()
        assert wire.writer is not None
        wire.writer.transport.abort()
        answer = wire.send(protocol.GetDataRequest(path="/a", watch=False), xid=1)
        await asyncio.sleep(0)
        answer.cancel()
        wire.tear_down()

    on_uvloop(work)
