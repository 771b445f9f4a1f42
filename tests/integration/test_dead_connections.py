"""A connection whose other end has gone without a word ends, whether something was sent on it or nothing.

In a network of its own, whose only interface goes down under open connections: nobody answers, and nobody says so.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
import uvloop

from ackord.sockets import IDLE_S, PROBE_S, PROBES_COUNT
from ackord.transport import HttpTransport
from ackord_node.adapters.peer_link import _connected

PROMISED_S = IDLE_S + PROBE_S * PROBES_COUNT
SLACK_S = 30.0  # of a busy machine: without the options the kernel takes a quarter of an hour, or for ever
SETTLED_S = 0.2  # what was sent so far is acknowledged by then


@pytest.mark.skipif(os.geteuid() != 0, reason="a network of its own takes root")
def test_connections_that_lead_nowhere_end() -> None:
    command = f"ip link set lo up && exec {sys.executable} -m {__name__}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=PROMISED_S + 2 * SLACK_S,
    )
    assert (done.returncode, done.stdout) == (0, "all ended\n"), done.stderr


class Held(asyncio.Protocol):
    """A connection that tells its end."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST "):
            self.transport.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)


async def main() -> None:
    """Two connections of the SDK and two between nodes; on one of each something is sent when nobody is there."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Held, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    ends: list[asyncio.Future[Any]] = []
    streams, peers = [], []
    for _ in range(2):
        end = loop.create_future()
        ends.append(end)
        streams.append(
            await HttpTransport().connect(
                f"http://{address}", b"hello", 1024, lambda frames: None, end.set_result
            )
        )
        transport, peer = await loop.create_connection(Held, sock=await _connected(address))
        ends.append(peer.ended)
        peers.append(transport)
    await asyncio.sleep(SETTLED_S)
    assert not any(end.done() for end in ends)
    down = await asyncio.create_subprocess_exec("ip", "link", "set", "lo", "down")
    assert await down.wait() == 0
    streams[0].send(b"anybody there?")
    peers[0].write(b"anybody there?")
    await asyncio.wait_for(asyncio.gather(*ends), PROMISED_S + SLACK_S)
    print("all ended")


if __name__ == "__main__":
    uvloop.run(main())
