"""Thousands of damaged requests to a node's HTTP application: each is answered with an error of the protocol, none is a
bug in the log, none changes what it must not, and the node holds no more at the end than before."""

from __future__ import annotations

import asyncio
import gc
import gzip
import logging
import random
import zlib
from collections import Counter
from typing import Any

import aiohttp
import pytest
from yarl import URL

from ackord.errors import InvalidRequest, Unauthorized
from ackord.wire.frames import FrameDecoder, encode_frame
from ackord.wire.json_forms import parse_json
from ackord.wire.limits import Limits
from ackord.wire.messages import HELLO_REFUSED, STREAM_CONTENT_TYPE
from ackord.wire.puts import Puts
from ackord_node.server.groups import GroupChecker
from tests.fuzz.http_cases import TABLE, Case, HttpCases
from tests.fuzz.mutation import Mutator, nested
from tests.support.http_node import ORDERS, Client, HttpNode, http_node

CASES = 4000
ANSWER_S_MAX = 20.0
LIMITS = Limits(body_bytes=256 * 1024, frame_bytes=128 * 1024)


def fingerprint(node: HttpNode) -> str:
    service = node.service
    return repr((sorted(service.rows.items()), sorted(service.tables.items()), len(service.recoveries)))


async def send(session: aiohttp.ClientSession, node: HttpNode, case: Case) -> tuple[int, bytes]:
    url = URL(node.url + case.path, encoded=True)
    async with asyncio.timeout(ANSWER_S_MAX):
        async with session.request(
            case.method, url, data=case.body, headers=case.headers, allow_redirects=False
        ) as response:
            return response.status, await response.read()


def judge_answer(case: Case, status: int, raw: bytes) -> str | None:
    """What is wrong with an answer to a request that is not a stream."""
    if status >= 500 and status != 503:
        return f"status {status}: {raw[:300]!r}"
    if status < 400 or case.method == "HEAD" or "msgpack" in str(case.headers):
        return None
    if not raw.startswith(b"{"):
        return None  # aiohttp's own refusal of what is not HTTP
    error = parse_json(raw)["error"]
    wanted = {"code", "message", "detail", "outcome_unknown", "retriable", "current"}
    return None if set(error) == wanted else f"an error of another form: {raw[:300]!r}"


@pytest.mark.parametrize("seed", [1, 2])
async def test_damaged_requests_are_refused_and_change_nothing(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cases = HttpCases(Mutator(random.Random(seed)), tablets=(1, 2))
    statuses: Counter[int] = Counter()
    async with http_node(limits=LIMITS) as node, aiohttp.ClientSession() as session:
        client = Client(session, node.url)
        assert (await client("POST", "/v1/tables", ORDERS))[0] == 201
        for _ in range(CASES // 2):
            case = cases.next()
            before = fingerprint(node)
            status, raw = await send(session, node, case)
            statuses[status] += 1
            wrong = judge_answer(case, status, raw)
            assert wrong is None, f"seed {seed}: {case}: {wrong}"
            if status >= 400 or case.method in ("GET", "HEAD"):
                assert fingerprint(node) == before, f"seed {seed}: {case}: {status}, yet the state changed"
            bugs = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
            assert not bugs, f"seed {seed}: {case}: {bugs} {caplog.records[-1].exc_text}"
            if TABLE not in node.service.tables:
                await client("POST", "/v1/tables", ORDERS)
        assert (await client("GET", "/health"))[0] == 200
        checker = GroupChecker(LIMITS)
        for group in node.service.groups:
            if isinstance(group[-1], Puts):  # as it came
                group = [*group[:-1], [group[-1].first_seq, group[-1].keys, group[-1].bodies]]
            assert checker.check([1, *group[1:]]) > 0, "the service was given a group that is none"
    assert statuses[200] > 50 and statuses[400] > 300, statuses


HELLOS: tuple[Any, ...] = (
    [],
    [1],
    [True, None, "x"],
    [1.0, None, "x"],
    [1, nested(1000), "x"],
    [1, {"a": nested(500)}, "x"],
    [1, "é" * 5000, "x"],
    [2**63, None, "x"],
    {"a": 1},
    None,
    nested(1000),
)


@pytest.mark.parametrize("number", range(len(HELLOS)))
async def test_an_odd_hello_ends_the_stream_with_a_reason(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with http_node() as node, aiohttp.ClientSession() as session:
        body = encode_frame(HELLOS[number])
        case = Case("POST", "/v1/stream", {"Content-Type": STREAM_CONTENT_TYPE}, body)
        status, raw = await send(session, node, case)
        assert status == 200
        (answer,) = FrameDecoder(1 << 20).feed(raw)
        assert answer[0] == HELLO_REFUSED
        assert answer[1] in (InvalidRequest.code, Unauthorized.code)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_objects_do_not_pile_up() -> None:
    """After a warm-up, a thousand damaged requests leave no objects behind."""
    cases = HttpCases(Mutator(random.Random(9)))
    counts = []
    async with http_node(limits=LIMITS) as node, aiohttp.ClientSession() as session:
        for _ in range(3):
            for _ in range(400):
                await send(session, node, cases.next())
            node.service.groups.clear()
            node.service.results.clear()
            node.service.rows.clear()
            node.service.recoveries.clear()
            gc.collect()
            counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] < 3000, counts


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zzz"])
async def test_no_encoded_body_is_unpacked(encoding: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not even to find out that it is none, or that it is a bomb."""
    bomb = zlib.compress(bytes(50_000_000)) if encoding == "deflate" else gzip.compress(bytes(50_000_000))
    async with http_node() as node, aiohttp.ClientSession() as session:
        client = Client(session, node.url)
        await client("POST", "/v1/tables", ORDERS)
        for method, path, status in (
            ("PUT", "/v1/tables/orders/rows/a/1", 415),
            ("DELETE", "/v1/tables/orders/rows/a/1", 400),
            ("GET", "/v1/tables/orders/rows", 200),
        ):
            for body in (b"xyz", bomb):
                headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
                assert (await send(session, node, Case(method, path, headers, body)))[0] == status
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_body_that_breaks_off_is_no_bug(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with http_node() as node, aiohttp.ClientSession() as session:
        await Client(session, node.url)("POST", "/v1/tables", ORDERS)
        for rest in (b"5\r\n{}", b"zz\r\n", b"5\r\n{}abc\r\n-1\r\n"):
            reader, writer = await asyncio.open_connection(*node.url.removeprefix("http://").split(":"))
            head = f"{method} /v1/tables/orders/rows/a/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + rest)
            writer.write_eof()
            async with asyncio.timeout(10):
                assert b" 500 " not in (await reader.read())[:20]
            writer.close()
            await writer.wait_closed()
        assert node.service.rows == {}
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "body",
    [
        {"action": [[]], "tablet": 1},
        {"action": {}, "tablet": 1},
        {"action": "inspect", "tablet": True},
        {"action": "force", "tablet": 1, "node": [], "accept_loss": True},
        {"action": "force", "tablet": 1, "node": "n1", "accept_loss": 1},
        {"action": "rebuild", "without": [["n1"]]},
        {"action": "rebuild", "without": "n1"},
    ],
)
async def test_a_recovery_of_the_wrong_types_reaches_nothing(body: dict[str, Any]) -> None:
    async with http_node() as node, aiohttp.ClientSession() as session:
        assert (await Client(session, node.url)("POST", "/admin/v1/recover", body))[0] == 400
        assert node.service.recoveries == []
