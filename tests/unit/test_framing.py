"""What takes a connection's bytes over from aiohttp."""

from __future__ import annotations

import pytest

from ackord.wire.chunks import chunk
from ackord_node.framing import TakenBody


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
