"""Chunks of HTTP bodies, cut anywhere, and what takes a connection's bytes over from aiohttp."""

from __future__ import annotations

import pytest

from ackord_node.framing import CHUNK_LINE_BYTES_MAX, ChunkDecoder, TakenBody, chunk

BODY = [b"a", b"xyz" * 100, b"\r\n\r\n0\r\n", b"\x00" * 17]
CODED = b"".join(map(chunk, BODY))


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100, len(CODED)])
def test_a_body_is_the_same_wherever_its_pieces_end(step: int) -> None:
    decoder = ChunkDecoder()
    found = [piece for at in range(0, len(CODED), step) for piece in decoder.feed(CODED[at : at + step])]
    assert b"".join(found) == b"".join(BODY)
    assert not decoder.is_ended


def test_what_is_left_of_the_chunk_before_is_passed_over() -> None:
    for rest in (b"\r\n", b"\n", b""):
        assert ChunkDecoder().feed(rest + chunk(b"data")) == [b"data"]


def test_extensions_and_case_are_read_and_the_last_chunk_ends_the_body() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"A;name=value\r\n0123456789\r\n0\r\n\r\n5\r\nafter\r\n") == [b"0123456789"]
    assert decoder.is_ended
    assert decoder.feed(chunk(b"more")) == []


@pytest.mark.parametrize(
    "bad", [b"zz\r\n", b"-1\r\n", b"1_0\r\nx", b"0x1\r\n", b"f" * (CHUNK_LINE_BYTES_MAX + 1)]
)
def test_what_is_not_chunked_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match="not chunked"):
        ChunkDecoder().feed(bad)


async def test_a_taken_body_ends_with_its_last_chunk_or_its_connection() -> None:
    for ends_itself in (True, False):
        taken: list[bytes] = []
        body = TakenBody(taken.append)
        body.feed_data(chunk(b"one") + b"3\r\nt")
        body.feed_data(b"wo\r\n")
        assert b"".join(taken) == b"onetwo"
        assert not body.ended.done()
        if ends_itself:
            body.feed_data(b"0\r\n\r\n")
        else:
            body.feed_eof()
        await body.ended


async def test_an_error_of_the_taker_ends_a_taken_body_and_nothing_is_taken_after_it() -> None:
    taken: list[bytes] = []

    def take(data: bytes) -> None:
        taken.append(data)
        raise ValueError("wrong")

    body = TakenBody(take)
    body.feed_data(chunk(b"one"))
    body.feed_data(chunk(b"two"))
    assert taken == [b"one"]
    with pytest.raises(ValueError, match="wrong"):
        await body.ended
