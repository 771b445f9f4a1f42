"""Two ways to set up peer transports by name, so that one suite can drive both adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aiohttp import web

from ackord_node.adapters.transport_http import PEER_PATH, HttpPeerTransport
from ackord_node.adapters.transport_memory import MemoryNetwork
from ackord_node.ports import PeerTransport
from tests.support.ports import free_port

CLUSTER_ID = "cluster-id-1"


class Recorder:
    """A PeerListener that remembers what it was told."""

    def __init__(self) -> None:
        self.links: list[tuple[str, str]] = []  # ("up" | "down" | "refused", node)
        self.batches: list[tuple[str, int, list[Any]]] = []
        self.bad: Any = None  # a message that is refused with ValueError

    def messages_received(self, node: str, incarnation: int, messages: Sequence[Any]) -> None:
        if self.bad is not None and self.bad in messages:
            raise ValueError("bad message")
        self.batches.append((node, incarnation, list(messages)))

    def peer_up(self, node: str) -> None:
        self.links.append(("up", node))

    def peer_down(self, node: str, refused: bool) -> None:
        self.links.append(("refused" if refused else "down", node))

    def messages(self, node: str) -> list[Any]:
        return [message for sender, _, batch in self.batches if sender == node for message in batch]


class Rig(Protocol):
    async def start(self, name: str, incarnation: int = 1) -> tuple[PeerTransport, Recorder]: ...

    async def stop(self, name: str) -> None: ...

    async def close(self) -> None: ...


class MemoryRig:
    def __init__(self, urgent_count_max: int, bulk_bytes_max: int) -> None:
        self.network = MemoryNetwork()
        self._limits = (urgent_count_max, bulk_bytes_max)
        self._started: dict[str, PeerTransport] = {}

    async def start(self, name: str, incarnation: int = 1) -> tuple[PeerTransport, Recorder]:
        transport = self.network.transport(name, *self._limits)
        recorder = Recorder()
        self._started[name] = transport
        await transport.start(recorder, incarnation)
        return transport, recorder

    async def stop(self, name: str) -> None:
        await self._started.pop(name).close()

    async def close(self) -> None:
        for name in list(self._started):
            await self.stop(name)


class HttpRig:
    """Each name keeps its port, so that a stopped transport can be started again at its address."""

    def __init__(
        self, urgent_count_max: int, bulk_bytes_max: int, names: Sequence[str] = ("n1", "n2")
    ) -> None:
        self._limits = (urgent_count_max, bulk_bytes_max)
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in names}
        self._started: dict[str, tuple[HttpPeerTransport, web.AppRunner]] = {}

    def make(self, name: str, **changes: Any) -> HttpPeerTransport:
        arguments: dict[str, Any] = {
            "cluster": "demo",
            "peers": self.addresses,
            "config_digest": "digest-1",
            "urgent_count_max": self._limits[0],
            "bulk_bytes_max": self._limits[1],
        }
        return HttpPeerTransport(name, **(arguments | changes))

    async def start(
        self, name: str, incarnation: int = 1, cluster_id: str | None = CLUSTER_ID, **changes: Any
    ) -> tuple[HttpPeerTransport, Recorder]:
        transport, recorder = self.make(name, **changes), Recorder()
        app = web.Application()
        app.router.add_post(PEER_PATH, transport.accept)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        host, port = self.addresses[name].split(":")
        await web.TCPSite(runner, host, int(port), reuse_address=True).start()
        self._started[name] = (transport, runner)
        if cluster_id is not None:
            transport.set_cluster_id(cluster_id)
        await transport.start(recorder, incarnation)
        return transport, recorder

    async def stop(self, name: str) -> None:
        transport, runner = self._started.pop(name)
        for site in list(runner.sites):
            await site.stop()  # first, else a peer's next attempt lands in a server that no longer answers
        await transport.close()
        await runner.cleanup()

    async def close(self) -> None:
        for name in list(self._started):
            await self.stop(name)
        await asyncio.sleep(0.01)  # closed sockets are given back in later turns of the loop


async def eventually(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    """Waits until the condition holds; fails the test if it does not in time."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.002)
