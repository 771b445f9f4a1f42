"""The SDK's stream on a bare connection: chunks wherever pieces end, refusals, and what is not HTTP."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ackord.errors import Error, Unavailable
from ackord.http_stream import HEAD_BYTES_MAX, HttpStream, ProtocolError, parse_head
from ackord.transport import HttpTransport
from ackord.wire.chunks import chunk
from ackord.wire.frames import FrameDecoder, encode_frame, packb

OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/2 200", b"HTTP/1.1 2000 OK\r\nx", b"HTTP/1.1 200 OK\r\nContent-Length: -1"]
)
def test_what_is_not_http_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_head(head)


def test_field_names_are_taken_in_any_case() -> None:
    assert parse_head(b"HTTP/1.1 503 No\r\nCONTENT-length: 7") == (503, {"content-length": "7"})


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server of one connection, which ``answer`` serves once the request's head has come."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with made:
        yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}"


async def connected(url: str, frames: list[Any], ends: list[Error]) -> HttpStream:
    transport = HttpTransport()
    try:
        stream = await transport.connect(url, encode_frame(["hello"]), 1 << 20, frames.extend, ends.append)
        assert isinstance(stream, HttpStream)
        return stream
    finally:
        await transport.close()


async def test_frames_go_both_ways_in_chunks_of_any_size() -> None:
    answers = encode_frame(["one"]) + encode_frame([b"x" * 1000])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = encode_frame(["hello"])
        assert await reader.readexactly(len(chunk(hello))) == chunk(hello)
        writer.write(OK + b"".join(chunk(answers[at : at + 7]) for at in range(0, len(answers), 7)))
        question = chunk(encode_frame([1, 2]))
        assert await reader.readexactly(len(question)) == question
        writer.write(b"0\r\n\r\n")

    frames: list[Any] = []
    ends: list[Error] = []
    async with server(answer) as url:
        stream = await connected(url, frames, ends)
        stream.send(encode_frame([1, 2]))
        async with asyncio.timeout(5):
            while not ends:
                await asyncio.sleep(0.01)
        assert frames == [["one"], [b"x" * 1000]]
        assert [error.message for error in ends] == ["the stream ended: the node closed the stream"]
        await stream.close()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_refusal_says_what_the_node_said(is_chunked: bool) -> None:
    body = packb({"error": {"code": "unavailable", "message": "full"}})

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        field = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body)
        writer.write(b"HTTP/1.1 503 No\r\n%b\r\n\r\n" % field)
        writer.write(chunk(body[:20]) + chunk(body[20:]) + b"0\r\n\r\n" if is_chunked else body)

    async with server(answer) as url:
        with pytest.raises(Unavailable, match="full"):
            await connected(url, [], [])


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 " + b"x" * HEAD_BYTES_MAX * 2,
    ],
)
async def test_a_server_that_is_no_node_is_unavailable(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    async with server(answer) as url:
        with pytest.raises(Unavailable, match="no stream to"):
            await connected(url, [], [])


async def test_garbage_on_an_open_stream_ends_it_once() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + chunk(b"\xff\xff\xff\xff\xff"))
        await reader.read()

    ends: list[Error] = []
    async with server(answer) as url:
        stream = await connected(url, [], ends)
        async with asyncio.timeout(5):
            while not ends:
                await asyncio.sleep(0.01)
        await stream.close()
        assert len(ends) == 1
        assert "a frame of" in ends[0].message


@pytest.mark.parametrize("turns", range(12))
async def test_a_caller_who_goes_away_at_any_turn_leaves_nothing_behind(turns: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + chunk(encode_frame(["hello"])))
        await reader.read()

    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    ends: list[Error] = []
    async with server(answer) as url:
        call = asyncio.create_task(connected(url, [], ends))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        if isinstance(outcome, HttpStream):
            await outcome.close()
        for _ in range(5):
            await asyncio.sleep(0)
        del call, outcome
        gc.collect()
        assert complaints == []
        assert ends == []


async def test_an_answer_in_the_turn_in_which_its_caller_goes_away_is_passed_over() -> None:
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    ends: list[Error] = []
    frames: list[Any] = []
    stream = HttpStream("http://h:1", b"", FrameDecoder(1 << 20), frames.extend, ends.append)
    stream.accepted.cancel()  # as its task is cancelled, which has not run yet
    stream.data_received(OK + chunk(encode_frame(["hello"])))
    stream.connection_lost(None)
    assert (frames, ends, complaints) == ([], [], [])


async def test_a_close_that_is_cancelled_still_gives_the_socket_back() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        try:
            await reader.read()
        finally:
            gone.set()

    gone = asyncio.Event()
    async with server(answer) as url:
        stream = await connected(url, [], [])
        closing = asyncio.create_task(stream.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        async with asyncio.timeout(5):
            await gone.wait()


@pytest.mark.parametrize(
    "url", ["http://h:99999", "http://" + "x" * 70 + ".org:1", "http://a..b:1", "http://[::1"]
)
async def test_an_address_that_cannot_be_is_unavailable(url: str) -> None:
    with pytest.raises(Unavailable, match="no stream to"):
        await connected(url, [], [])


def test_a_length_of_thousands_of_digits_is_no_length() -> None:
    with pytest.raises(ProtocolError):
        parse_head(b"HTTP/1.1 503 No\r\nContent-Length: " + b"1" * 5000)
