"""POST /v1/stream: order, parts, refusals and bounds of the SDK's stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from ackord.errors import InvalidRequest, Unauthorized, Unavailable
from ackord.wire.chunks import chunk
from ackord.wire.frames import FrameDecoder, encode_frame, packb
from ackord.wire.limits import DEFAULT_LIMITS, Limits
from ackord.wire.messages import STREAM_CONTENT_TYPE, TOLD
from ackord_node.server import stream as streams
from tests.support.fake_service import FakeService
from tests.support.http_node import HttpNode, http_node
from tests.support.transports import eventually

CLIENT = b"c" * 16
HELLO = [1, "demo", "sdk"]


class Stream:
    """The client's side of one stream."""

    def __init__(self, outgoing: asyncio.Queue[bytes | None], response: aiohttp.ClientResponse) -> None:
        self._outgoing = outgoing
        self._response = response
        self._decoder = FrameDecoder(1 << 30)
        self._frames: list[Any] = []
        self.frames_count = 0

    def send(self, *groups: Any) -> None:
        self._outgoing.put_nowait(encode_frame(list(groups)))

    def send_raw(self, data: bytes | None) -> None:
        self._outgoing.put_nowait(data)

    async def frame(self) -> Any:
        """The next frame; None at the end of the stream."""
        async with asyncio.timeout(5):
            while not self._frames:
                data = await self._response.content.readany()
                if not data:
                    return None
                self._frames = self._decoder.feed(data)
            self.frames_count += 1
            return self._frames.pop(0)

    async def answers(self, count: int) -> list[Any]:
        """So many answers, of as many frames as they come in."""
        found: list[Any] = []
        while len(found) < count:
            frame = await self.frame()
            assert frame is not None, "the stream ended"
            found.extend(frame)
        return found


@asynccontextmanager
async def open_stream(url: str, hello: Any = HELLO) -> AsyncIterator[Stream]:
    outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
    outgoing.put_nowait(hello if isinstance(hello, bytes) else encode_frame(hello))

    async def body() -> AsyncIterator[bytes]:
        while (data := await outgoing.get()) is not None:
            yield data

    headers = {"Content-Type": STREAM_CONTENT_TYPE}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/stream", data=body(), headers=headers) as response,
    ):
        assert response.status == 200
        yield Stream(outgoing, response)
        response.close()


@pytest.fixture
async def node() -> AsyncIterator[HttpNode]:
    async with http_node() as made:
        yield made


@pytest.fixture
async def stream(node: HttpNode) -> AsyncIterator[Stream]:
    async with open_stream(node.url) as made:
        assert (await made.frame())[:4] == [1, "demo", "n1", 7]
        yield made


def put(seq: int, key: bytes, body: bytes = b"\x80") -> list[Any]:
    return [seq, 1, key, body, 0, None, 1]


def write(rid: int, *ops: Any, **changes: Any) -> list[Any]:
    named = {"tablet": 4, "client_id": CLIENT, "registered": 1 << 40, "floor": 0} | changes
    return [rid, 2, named["tablet"], named["client_id"], named["registered"], named["floor"], list(ops)]


# ----------------------------------------------------------------------------------- the good


async def test_groups_of_a_frame_are_submitted_in_order_and_flushed_once(
    node: HttpNode, stream: Stream
) -> None:
    groups = [
        write(1, put(1, b"a"), put(2, b"b")),
        [2, 1, 4, [b"b", b"none", b"a"]],
        [3, 3, 4, b"", None, False, 10, 1000],
    ]
    stream.send(*groups)
    (one, two, three) = await stream.answers(3)
    assert node.service.groups == groups
    assert node.service.flushes == 1
    assert stream.frames_count == 2, "the hello's answer, and one frame for all that was answered in a turn"
    first, second = one[2]
    assert one[:2] == [1, None]
    assert two == [2, None, [second.to_bytes(8, "big") + b"\x80", None, first.to_bytes(8, "big") + b"\x80"]]
    assert three[2][0][0][::2] == [b"a", b"b"]
    assert three[2][0][1] is None


async def test_answers_leave_in_the_order_of_decision_and_in_parts(node: HttpNode, stream: Stream) -> None:
    node.service.hold = True
    stream.send([1, 1, 4, [b"a"]], write(2, put(1, b"x"), put(2, b"y"), put(3, b"z")))
    stream.send([3, 1, 4, [b"c"]])
    await eventually(lambda: len(node.service.held) == 3)
    respond = node.service.held[0][1]
    respond([3, None, [b"row-c"]])
    assert await stream.answers(1) == [[3, None, [b"row-c"]]]
    respond([2, [1], [20]])
    assert await stream.answers(1) == [[2, [1], [20]]]
    stream.send([4, 1, 4, [b"d"]])
    await eventually(lambda: len(node.service.held) == 4)
    respond([2, [2, 0], [30, 10]])
    respond([1, -1, [5, "not now", {}, None]])
    assert await stream.answers(2) == [[2, [2, 0], [30, 10]], [1, -1, [5, "not now", {}, None]]]
    respond([4, None, [None]])
    await stream.answers(1)
    await eventually(lambda: b'{op="get",outcome="ok"} 2.0' in node.metrics.render())
    text = node.metrics.render().decode()
    assert 'ackord_operations_total{op="write",outcome="ok"} 3.0' in text
    assert 'ackord_operations_total{op="get",outcome="unavailable"} 1.0' in text
    assert 'ackord_request_seconds_count{op="write"} 1.0' in text
    assert "ackord_client_frame_ops_count 3.0" in text


async def test_a_big_answer_is_split_and_complete(node: HttpNode, stream: Stream) -> None:
    for number in range(40):
        node.service.rows[b"%03d" % number] = bytes(8) + b"x" * 200_000
    keys = [b"%03d" % number for number in range(40)]
    stream.send([1, 1, 4, keys])
    got: dict[int, bytes] = {}
    while len(got) < 40:
        for rid, indices, results in await stream.frame():
            assert rid == 1
            assert indices is not None
            got.update(zip(indices, results, strict=True))
    assert got == {number: node.service.rows[keys[number]] for number in range(40)}
    assert stream.frames_count > 2


async def test_a_very_big_answer_is_not_packed_again_and_again(
    node: HttpNode, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_bytes = 0

    def counted(value: Any) -> bytes:
        nonlocal packed_bytes
        packed = packb(value)
        packed_bytes += len(packed)
        return packed

    monkeypatch.setattr(streams, "packb", counted)
    node.service.rows[b"big"] = bytes(8) + b"x" * 100_000
    stream.send([7, 1, 4, [b"big"] * 300])
    answered = 0
    while answered < 300:
        for _, indices, rows in await stream.frame():
            assert indices == list(range(answered, answered + len(rows)))
            answered += len(rows)
    assert packed_bytes < 2.1 * 300 * 100_000


async def test_what_a_holder_is_told_comes_whole_and_in_order_with_answers(
    node: HttpNode, stream: Stream
) -> None:
    """Rule R19: after the answers that were decided before it, however many keys it names."""
    node.service.hold = True
    stream.send([1, 1, 4, [b"a"]])
    await eventually(lambda: len(node.service.held) == 1)
    respond = node.service.held[0][1]
    told = [TOLD, [4, 77], [1, 9, [b"%05d" % number + b"k" * 995 for number in range(1_500)]]]
    respond([1, None, [b"row"]])
    respond(told)
    assert await stream.answers(2) == [[1, None, [b"row"]], told]


async def test_the_end_of_the_clients_half_still_gets_its_answers(node: HttpNode, stream: Stream) -> None:
    node.service.hold = True
    stream.send([1, 1, 4, [b"a"]])
    await eventually(lambda: len(node.service.held) == 1)
    stream.send_raw(None)
    await asyncio.sleep(0.02)
    node.service.release()
    assert await stream.frame() == [[1, None, [None]]]
    assert await stream.frame() is None


async def test_a_planned_stop_answers_what_was_read_and_ends_the_stream() -> None:
    async with http_node() as node, open_stream(node.url) as stream:
        await stream.frame()
        node.service.hold = True
        stream.send(write(1, put(1, b"a")))
        await eventually(lambda: len(node.service.held) == 1)
        stop = asyncio.create_task(node.runner.cleanup())
        await asyncio.sleep(0.02)
        assert not stop.done()
        node.service.release()
        assert (await stream.frame())[0][:2] == [1, None]
        assert await stream.frame() is None
        await stop


async def test_answers_after_the_client_went_away_harm_nobody(node: HttpNode) -> None:
    node.service.hold = True
    async with open_stream(node.url) as stream:
        await stream.frame()
        stream.send([1, 1, 4, [b"a"]])
        await eventually(lambda: len(node.service.held) == 1)
    await eventually(lambda: b"ackord_client_streams 0.0" in node.metrics.render())
    node.service.release()
    async with open_stream(node.url) as stream:
        assert (await stream.frame())[0] == 1


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("hello", "code", "said"),
    [
        ([2, "demo", "sdk"], InvalidRequest.code, "wrong wire version 2"),
        ([1, "other", "sdk"], Unauthorized.code, "this is 'demo', not 'other'"),
        ([1], InvalidRequest.code, "hello"),
        (["1", "demo"], InvalidRequest.code, "hello"),
        ([True, "demo"], InvalidRequest.code, "hello"),
        ({}, InvalidRequest.code, "hello"),
        (b"\x00\x00\x00\x01\xc1", InvalidRequest.code, "msgpack"),
        (b"\xff\xff\xff\xff", InvalidRequest.code, "limit"),
        (b"\x00\x00\x00\x05\xdd\xff\xff\xff\xff", InvalidRequest.code, "msgpack"),
    ],
)
async def test_a_wrong_hello_is_refused(node: HttpNode, hello: Any, code: int, said: str) -> None:
    async with open_stream(node.url, hello) as stream:
        answer = await stream.frame()
        assert answer[:2] == [-1, code]
        assert said in answer[2]
        assert await stream.frame() is None


async def test_a_client_may_leave_the_cluster_open(node: HttpNode) -> None:
    async with open_stream(node.url, [1, None, "curl"]) as stream:
        assert (await stream.frame())[0] == 1


async def test_a_wrong_content_type_is_415(node: HttpNode) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.post(node.url + "/v1/stream", data=encode_frame(HELLO)) as response:
            assert response.status == 415
            assert STREAM_CONTENT_TYPE in (await response.json())["error"]["message"]


HUGE = b"k" * 9_000


def puts(rid: int, first_seq: int, keys: Any, bodies: Any) -> list[Any]:
    """A group of puts as columns."""
    return [rid, 2, 4, CLIENT, 1, 0, [first_seq, keys, bodies]]


@pytest.mark.parametrize(
    ("group", "field"),
    [
        ([9], "group"),
        ([9, 1], "group"),
        ([9, "1", 4, [b"a"]], "group"),
        ([9, True, 4, [b"a"]], "group"),
        ([9, 7, 4, [b"a"]], "op"),
        ([9, 1, 0, [b"a"]], "tablet"),
        ([9, 1, "4", [b"a"]], "tablet"),
        ([9, 1, 4], "group"),
        ([9, 1, 4, []], "keys"),
        ([9, 1, 4, [b"a"] * 4097], "keys"),
        ([9, 1, 4, ["a"]], "key"),
        ([9, 1, 4, [HUGE]], "key"),
        ([9, 1, 4, {}], "keys"),
        ([9, 2, 4, CLIENT, 1, 0], "group"),
        (write(9), "operations"),
        (write(9, put(1, b"a"), client_id=b"short"), "client_id"),
        (write(9, put(1, b"a"), client_id="c" * 16), "client_id"),
        (write(9, put(1, b"a"), registered=0), "registered"),
        (write(9, put(1, b"a"), registered=True), "registered"),
        (write(9, put(1, b"a"), floor=-1), "floor"),
        (write(9, put(1, b"a"), floor=2**64 - 1), "floor"),
        (write(9, put(1, b"a"), [1, 2]), "op"),
        (write(9, put(0, b"a")), "seq"),
        (write(9, put(1, b"a"), put(1, HUGE)), "key"),
        (write(9, [1, 6, b"a", b"\x80", 0, None, 1]), "kind"),
        (write(9, [1, 5, b"a", b"\x80", 0, None, 1]), "body"),
        (write(9, [1, True, b"a", b"\x80", 0, None, 1]), "kind"),
        (write(9, [1, 1, b"a", None, 0, None, 1]), "body"),
        (write(9, [1, 2, b"a", "text", 0, None, 1]), "body"),
        (write(9, [1, 3, b"a", b"\x80", 0, None, 1]), "body"),
        (write(9, put(1, b"a", b"x" * (4 * 1024 * 1024 + 1))), "body"),
        (write(9, [1, 1, b"a", b"\x80", 6, None, 1]), "cond"),
        (write(9, [1, 1, b"a", b"\x80", 5, None, 1]), "cond_value"),
        (write(9, [1, 3, b"a", None, 5, 7, 1]), "on_conflict"),
        (write(9, [1, 1, b"a", b"\x80", 4, [5, None, b"e"], 1]), "cond_value"),
        ([9, 16, 1, [b"a"], -1], "cond_value"),
        ([9, 16, 1, [], 1], "keys"),
        ([9, 16, 1, [b"a"]], "group"),
        ([9, 17, 1, b"a", 1, 0], "limit"),
        ([9, 17, 1, "a", 1, 1], "key"),
        ([9, 18, 1, [b"a"], 1, "x", None], "time_range"),
        ([9, 19, 1, b"", None, False, 1, 1, None], "cond_value"),
        ([9, 19, 1, b"", None, False, 0, 1, 1], "rows_max"),
        (write(9, [1, 1, b"a", b"\x80", True, None, 1]), "cond"),
        (write(9, [1, 1, b"a", b"\x80", 4, None, 1]), "cond_value"),
        (write(9, [1, 1, b"a", b"\x80", 4, [0, None], 1]), "cond_value"),
        (write(9, [1, 1, b"a", b"\x80", 4, [4, None, b"e"], 1]), "cond"),
        (write(9, [1, 1, b"a", b"\x80", 4, [1, None, b"e"], 1]), "cond_value"),
        (write(9, [1, 1, b"a", b"\x80", 4, [0, None, b"e" * 32769], 1]), "where"),
        (write(9, [1, 1, b"a", b"\x80", 0, None, 1, 3]), "returning"),
        (write(9, [1, 1, b"a", b"\x80", 0, None, 1, True]), "returning"),
        (write(9, [1, 1, b"a", b"\x80", 0, None, 1, 1, 1]), "op"),
        (puts(9, 1, [b"a"], []), "bodies"),
        (puts(9, 1, [b"a"], b"\x80"), "bodies"),
        (puts(9, 1, [b"a"], [None]), "body"),
        (puts(9, 1, [b"a"], [b"x" * (4 * 1024 * 1024 + 1)]), "body"),
        (puts(9, 1, [b"a", HUGE], [b"\x80"] * 2), "key"),
        (puts(9, 1, [b"a", "b"], [b"\x80"] * 2), "key"),
        (puts(9, 1, [], []), "keys"),
        (puts(9, 1, [b"a"] * 4097, [b"\x80"] * 4097), "keys"),
        (puts(9, 0, [b"a"], [b"\x80"]), "seq"),
        (puts(9, 2**63 - 1, [b"a"], [b"\x80"]), "seq"),
        ([9, 4, 4, [b"a"], None], "group"),
        ([9, 4, 4, [b"a"], "where", None], "where"),
        ([9, 4, 4, [b"a"], None, ["a", 1]], "columns"),
        ([9, 4, 4, [b"a"], None, "abc"], "columns"),
        ([9, 4, 4, [b"a"], None, ["a"] * 1025], "columns"),
        ([9, 4, 4, [1], None, None], "key"),
        ([9, 5, 4, b"", None], "group"),
        ([9, 5, 4, b"", 1, None], "key"),
        ([9, 5, 4, b"", None, 1], "where"),
        ([9, 3, 4, b"", None, False, 10, 10, None], "group"),
        ([9, 3, 4, b"", None, False, 10, 10, 1, None], "where"),
        ([9, 3, 4, b"", None, False, 10, 10, None, [None]], "columns"),
        (write(9, [1, 1, b"a", b"\x80", 1, None, 1]), "cond_value"),
        (write(9, [1, 1, b"a", b"\x80", 1, 1.0, 1]), "cond_value"),
        (write(9, [1, 1, b"a", b"\x80", 0, None, 0]), "attempt"),
        ([9, 3, 4, b"", None, False, 10], "group"),
        ([9, 3, 4, None, None, False, 10, 10], "key"),
        ([9, 3, 4, b"", "z", False, 10, 10], "key"),
        ([9, 3, 4, b"", None, 0, 10, 10], "reverse"),
        ([9, 3, 4, b"", None, False, 5001, 10], "rows_max"),
        ([9, 3, 4, b"", None, False, True, 10], "rows_max"),
        ([9, 3, 4, b"", None, False, 10, 0], "bytes_max"),
    ],
)
async def test_a_bad_group_is_answered_and_the_others_go_on(
    node: HttpNode, stream: Stream, group: Any, field: str
) -> None:
    stream.send([1, 1, 4, [b"a"]], group, [2, 1, 4, [b"b"]])
    answers = {answer[0]: answer for answer in await stream.answers(3)}
    assert answers[9][1] == -1
    assert answers[9][2][0] == InvalidRequest.code
    assert answers[9][2][2]["field"] == field
    assert answers[1] == [1, None, [None]]
    assert answers[2] == [2, None, [None]]
    assert [submitted[0] for submitted in node.service.groups] == [1, 2]


@pytest.mark.parametrize(
    "bad",
    [
        encode_frame([["x", 1, 4, [b"a"]]]),
        encode_frame([[True, 1, 4, [b"a"]]]),
        encode_frame([[-1, 1, 4, [b"a"]]]),
        encode_frame([[]]),
        encode_frame([5]),
        encode_frame(None),
        encode_frame({"rid": 1}),
        encode_frame([[1, 1, 4, [b"a"]]] * 2),
        encode_frame([[1, 1, 4, [b"a"]]] * 4097),
        b"\x00\x00\x00\x02\x91\xc1",
        b"\x7f\xff\xff\xff",
        b"\x00\x00\x00\x06\x91\xdd\xff\xff\xff\xff",
    ],
)
async def test_what_cannot_be_answered_ends_the_stream(node: HttpNode, stream: Stream, bad: bytes) -> None:
    node.service.hold = True
    stream.send_raw(bad)
    answer = await stream.frame()
    assert answer[:2] == [-1, InvalidRequest.code]
    assert await stream.frame() is None
    node.service.release()
    async with open_stream(node.url) as other:
        assert (await other.frame())[0] == 1


# ------------------------------------------------------------------------------------- bounds


@asynccontextmanager
async def limited(**changes: Any) -> AsyncIterator[tuple[HttpNode, Stream, FakeService]]:
    limits: Limits = replace(DEFAULT_LIMITS, **changes)
    async with http_node(limits=limits) as node, open_stream(node.url) as stream:
        await stream.frame()
        yield node, stream, node.service


async def test_a_stream_with_too_much_undecided_is_not_read_on() -> None:
    async with limited(stream_inflight_ops_count=10) as (_, stream, service):
        service.hold = True
        for rid in range(30):
            stream.send([rid, 1, 4, [b"a", b"b"]])
        await eventually(lambda: len(service.held) == 5)
        await asyncio.sleep(0.05)
        assert len(service.held) == 5, "five groups of two: the rest waits in the socket"
        respond = service.held[0][1]
        respond([0, None, [None, None]])
        await eventually(lambda: len(service.held) == 6)
        service.hold = False
        service.release()
        assert sorted(answer[0] for answer in await stream.answers(30)) == list(range(30))


async def test_what_one_frame_carries_beyond_the_bound_is_refused_with_a_hint() -> None:
    async with limited(stream_inflight_ops_count=10) as (_, stream, service):
        service.hold = True
        stream.send(*[[rid, 1, 4, [b"a"] * 4] for rid in range(4)])
        refused = await stream.answers(2)
        assert [answer[:2] for answer in refused] == [[2, -1], [3, -1]]
        code, _, detail, _ = refused[0][2]
        assert code == Unavailable.code
        assert detail["reason"] == "overloaded"
        assert detail["retry_after_ms"] > 0
        service.release()
        assert [answer[0] for answer in await stream.answers(2)] == [1, 0]


async def test_a_client_that_does_not_take_its_answers_is_not_read_on() -> None:
    async with limited() as (_node, stream, service):
        service.rows[b"a"] = bytes(8) + b"x" * 1_000_000
        for rid in range(200):
            stream.send([rid, 1, 4, [b"a"]])
        await asyncio.sleep(0.5)
        taken = len(service.groups)
        await asyncio.sleep(0.2)
        assert taken == len(service.groups) < 100
        assert len(await stream.answers(200)) == 200


async def test_a_frame_that_asks_for_more_than_the_client_takes_waits_for_it() -> None:
    async with limited() as (_node, stream, service):
        service.rows[b"a"] = bytes(8) + b"x" * 1_000_000
        stream.send(*[[rid, 1, 4, [b"a"]] for rid in range(100)])
        await asyncio.sleep(0.5)
        assert 8 <= len(service.groups) < 50
        assert [answer[0] for answer in await stream.answers(100)] == list(range(100))


async def test_too_many_streams_are_refused() -> None:
    async with limited(streams_count=1) as (node, _, _), aiohttp.ClientSession() as session:
        headers = {"Content-Type": STREAM_CONTENT_TYPE}
        async with session.post(
            node.url + "/v1/stream", data=encode_frame(HELLO), headers=headers
        ) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["detail"]["limit"] == 1


async def test_what_came_before_something_that_ends_the_stream_is_taken_on(
    node: HttpNode, stream: Stream
) -> None:
    stream.send(write(1, put(1, b"a")), ["no number"])
    await eventually(lambda: node.service.flushes == 1)
    assert len(node.service.groups) == 1


async def test_a_client_that_reads_nothing_does_not_keep_a_stream_that_has_ended(
    node: HttpNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DRAIN_TIMEOUT_S", 0.2)
    node.service.rows[b"big"] = (1).to_bytes(8, "big") + b"x" * 3_500_000
    host, port = node.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    _, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        head = f"POST /v1/stream HTTP/1.1\r\nHost: h\r\nContent-Type: {STREAM_CONTENT_TYPE}\r\n"
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk(encode_frame(HELLO)))
        writer.write(chunk(encode_frame([[rid, 1, 4, [b"big"]] for rid in (1, 2)])))
        await eventually(lambda: len(node.service.groups) == 2)
        writer.write(chunk(b"\xff" * 8))  # the end of the stream
        server = node.runner.server
        assert server is not None
        await eventually(lambda: not server.connections)
    finally:
        writer.transport.abort()
