"""A real node under a hail of damaged requests, connections and peer messages, beside a cluster that must not notice.

Three nodes make a table ``guard`` that nothing here writes to. Then the third one is killed and its place towards
the first is taken by this process, which knows the cluster's id and settings as a broken peer would. The node may
refuse and close links as it likes; it must live, answer ``/health`` in time, keep every row of ``guard`` and every
epoch as they were, log no bug, and end with about as many descriptors and as much memory as it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

import ackord
from ackord.wire.frames import FrameDecoder, encode_frame
from ackord.wire.messages import HELLO_REFUSED, STREAM_CONTENT_TYPE
from ackord_node.config import load
from ackord_node.core import messages as m
from tests.fuzz.http_cases import TABLE, HttpCases
from tests.fuzz.mutation import Mutator
from tests.fuzz.peer_cases import Facts, PeerCases, valid_messages
from tests.fuzz.raw_cases import raw_case
from tests.support.cluster import RealCluster, RealNode

KEY: dict[str, type | str] = {"customer": str, "order": int}
GUARD, GUARD_ROWS = "guard", 60
HEALTH_S_MAX = 5.0
ANSWER_S_MAX = 30.0
RSS_GROWTH_BYTES_MAX = 150 * 1024 * 1024
DESCRIPTORS_MORE_MAX = 30
IDLE_CONNECTIONS = 150
_BUGS = (" ERROR ", " CRITICAL ", "Traceback")


@dataclass(slots=True)
class RealFigures:
    http: Counter[int] = field(default_factory=Counter)  # status -> answers
    peer: Counter[str] = field(default_factory=Counter)
    raw: int = 0
    served: int = 0  # writes and reads beside the hail
    health_s_max: float = 0.0
    rss_growth_bytes: int = 0
    descriptors_more: int = 0


class RealFuzz:
    def __init__(self, seed: int) -> None:
        self.figures = RealFigures()
        self._seed = seed
        self._cluster = RealCluster(3)
        self._node: RealNode = self._cluster["n1"]
        self._is_over = False

    async def run(self, seconds: float) -> RealFigures:
        try:
            await asyncio.to_thread(self._cluster.start)
            async with ackord.connect(self._node.url) as store:
                await self._fuzz(store, seconds)
        finally:
            await asyncio.to_thread(self._cluster.close)
        return self.figures

    async def _fuzz(self, store: ackord.Store, seconds: float) -> None:
        for name in (GUARD, TABLE):
            await store.create_table(name, KEY)
        for number in range(GUARD_ROWS):
            await store.table(GUARD).put(("g", number), {"n": number})
        await asyncio.to_thread(self._cluster["n3"].kill)
        await asyncio.to_thread(self._wait_without_n3)
        async with aiohttp.ClientSession() as session:
            await self._for(min(2.0, seconds / 3), session, store)  # pools and caches fill
            before = await self._state(store)
            log_length, rss, descriptors = len(self._node.log()), self._rss(), self._descriptors()
            await self._for(seconds, session, store)
        await asyncio.sleep(0.5)
        assert self._node.is_running, self._node.log()[-3000:]
        assert await self._state(store) == before, "the guarded table changed"
        said = self._node.log()[log_length:]
        bugs = [line for line in said.splitlines() if any(bug in line for bug in _BUGS)]
        assert not bugs, "\n".join(bugs[:10]) + said[-2000:]
        self.figures.rss_growth_bytes = self._rss() - rss
        self.figures.descriptors_more = self._descriptors() - descriptors
        assert self.figures.rss_growth_bytes < RSS_GROWTH_BYTES_MAX, self.figures
        assert self.figures.descriptors_more < DESCRIPTORS_MORE_MAX, self.figures

    def _wait_without_n3(self) -> None:
        deadline = time.monotonic() + 30
        while any("n3" in t["in_sync"] or t["coordinator"] is None for t in self._guarded()):
            assert time.monotonic() < deadline, self._cluster.logs()
            time.sleep(0.05)

    def _guarded(self) -> list[dict[str, Any]]:
        return self._cluster.tablets(GUARD, "n1")

    async def _state(self, store: ackord.Store) -> Any:
        rows = [
            (row.key, row.version, dict(row.columns)) async for row in store.table(GUARD).scan(timeout=20)
        ]
        tablets = await asyncio.to_thread(self._guarded)
        return rows, [t["id"] for t in tablets]  # who coordinates may change by itself, on a busy machine

    async def _for(self, seconds: float, session: aiohttp.ClientSession, store: ackord.Store) -> None:
        self._is_over = False
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(self._http(session, number))
            for number in range(2):
                group.create_task(self._raw(number))
                group.create_task(self._peer(session, number))
            group.create_task(self._hold_connections())
            group.create_task(self._watch(session, store))
            await asyncio.sleep(seconds)
            self._is_over = True

    # ------------------------------------------------------------------------------ the hail

    async def _http(self, session: aiohttp.ClientSession, number: int) -> None:
        tablets = tuple(t["id"] for t in await asyncio.to_thread(self._guarded))
        cases = HttpCases(Mutator(random.Random(f"{self._seed}/http/{number}")), (tablets[0] + 1000, 5))
        while not self._is_over:
            case = cases.next()
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    url = URL(self._node.url + case.path, encoded=True)
                    async with session.request(
                        case.method, url, data=case.body, headers=case.headers, allow_redirects=False
                    ) as response:
                        await response.read()
                        status = response.status
            except aiohttp.ClientError:
                status = 0  # the connection was closed: allowed, if the node lives
            except TimeoutError:
                raise AssertionError(f"no answer within {ANSWER_S_MAX} s: {case}") from None
            assert status < 500 or status in (503, 504), f"{status} to {case}"
            self.figures.http[status] += 1

    async def _raw(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/raw/{number}")
        while not self._is_over:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._node.port)
                data = raw_case(chance)
                cut = chance.randrange(len(data) + 1)
                writer.write(data[:cut])  # in two pieces, the second one late
                await asyncio.sleep(chance.choice((0, 0, 0.05)))
                writer.write(data[cut:])
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.choice((0.05, 0.2))):
                        await reader.read(1 << 16)
                writer.transport.abort() if chance.random() < 0.5 else writer.close()
            self.figures.raw += 1

    async def _hold_connections(self) -> None:
        """Many that say nothing, or half of something."""
        opened = []
        for number in range(IDLE_CONNECTIONS):
            _, writer = await asyncio.open_connection("127.0.0.1", self._node.port)
            writer.write(b"PUT /v1/tables/orders HTTP/1.1\r\nHost: x\r\nContent-Le"[: number % 50])
            opened.append(writer)
        while not self._is_over:
            await asyncio.sleep(0.1)
        for writer in opened:
            writer.transport.abort()

    async def _watch(self, session: aiohttp.ClientSession, store: ackord.Store) -> None:
        """Health in time, and a write and a read that work as ever; a table that a case dropped is made anew."""
        number = 0
        while not self._is_over:
            begun = time.monotonic()
            async with session.get(self._node.url + "/health") as response:
                assert response.status == 200
            self.figures.health_s_max = max(self.figures.health_s_max, time.monotonic() - begun)
            assert self.figures.health_s_max < HEALTH_S_MAX
            number += 1
            with contextlib.suppress(
                ackord.Unavailable, ackord.OutcomeUnknown
            ):  # while a case drops the table
                try:
                    await self._use(store, number)
                    self.figures.served += 1
                except ackord.TableNotFound:
                    await store.create_table(TABLE, KEY)
            await asyncio.sleep(0.1)

    async def _use(self, store: ackord.Store, number: int) -> None:
        key = ("watch", number)
        version = await store.table(TABLE).put(key, {"n": number}, timeout=20)
        row = await store.table(TABLE).get(key, timeout=20)
        assert row is None or (row.version, row["n"]) == (version, number)  # None: dropped and made anew

    # ------------------------------------------------------------------------------ the peer

    async def _peer(self, session: aiohttp.ClientSession, number: int) -> None:
        chance = random.Random(f"{self._seed}/peer/{number}")
        mutator = Mutator(chance)
        cases = PeerCases(mutator)
        routing = await asyncio.to_thread(self._cluster.routing, "n1")
        digest = load(Path(self._cluster.config_path)).digest()
        while not self._is_over:
            hello: Any = [
                1,
                self._cluster.name,
                routing["cluster_id"],
                "n3",
                "n1",
                chance.getrandbits(62),
                digest,
            ]
            is_odd = chance.random() < 0.3
            data = encode_frame(mutator.value(hello)) if is_odd else encode_frame(hello)
            if not is_odd:
                for message in self._bad_messages(cases, chance):
                    data += encode_frame([message])
            await self._say(session, data, is_odd)

    def _bad_messages(self, cases: PeerCases, chance: random.Random) -> list[Any]:
        """Some of an old epoch, one of no tablet, and last one of the present epoch that no node can have sent."""
        tablet = self._guarded()[0]
        facts = Facts(tablet["id"], max(tablet["epoch"] - 1, 0), 5, 6, 0, 0)
        stale = [valid_messages(facts)[chance.randrange(len(valid_messages(facts)) - 1)] for _ in range(3)]
        nowhere = [[message[0], 99, *message[2:]] for message in valid_messages(facts)[:-1]]
        present = Facts(tablet["id"], tablet["epoch"], 5, 6, 0, 0)
        while True:
            message = cases.next(present)
            try:
                m.check(message)
            except ValueError:
                return [*stale, chance.choice(nowhere), message]

    async def _say(self, session: aiohttp.ClientSession, data: bytes, is_odd: bool) -> None:
        """The node must end the link by itself: this side keeps its half open."""

        async def body() -> AsyncIterator[bytes]:
            yield data
            await asyncio.sleep(ANSWER_S_MAX)

        headers = {"Content-Type": STREAM_CONTENT_TYPE}
        raw = b""
        try:
            async with asyncio.timeout(ANSWER_S_MAX - 5):
                async with session.post(
                    self._node.url + "/peer/v1/stream", data=body(), headers=headers
                ) as answer:
                    with contextlib.suppress(aiohttp.ClientError):
                        while piece := await answer.content.readany():
                            raw += piece
        except aiohttp.ClientError:
            self.figures.peer["closed"] += 1
            return
        except TimeoutError:
            raise AssertionError(f"a link with a bad message stays open: {data[:300]!r}") from None
        frames = FrameDecoder(1 << 20).feed(raw)
        refused = bool(frames) and frames[0][0] == HELLO_REFUSED
        self.figures.peer["hello refused" if refused else "hello taken, link closed"] += 1
        assert is_odd or not refused, frames

    # ------------------------------------------------------------------------------ what it takes

    def _rss(self) -> int:
        fields = Path(f"/proc/{self._node.pid}/statm").read_text().split()
        return int(fields[1]) * 4096

    def _descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self._node.pid}/fd").iterdir())
